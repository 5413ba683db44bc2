/* Lines and scales of a tile with AVX2: one function per width turns a few lines of 8 rows into
 * table entries, one turns a block's scales into signed bytes. */
#ifndef GWQ_AVX2_UNPACK_H
#define GWQ_AVX2_UNPACK_H
#include "avx2.h"

/* v[p]: 8 rows x columns 4p .. 4p+3, one byte each, of lines (64 bytes apart) that hold them
 * together: 4 quads are two lines at 4 bits, one at 2 bits and three at 6 bits, 8 quads are three
 * lines at 3 bits and five at 5 bits. */
typedef void (*quads_fn)(__m256i table, const uint8_t *line, __m256i *v);
enum { QUADS6 = 4, QUADS5 = 8, QUADS4 = 4, QUADS3 = 8, QUADS2 = 4 };

/* As `load`; gcc may neither repeat it nor make it an operand of another instruction. */
GWQ_INLINE __m256i load_once(const void *p) {
    __m256i v = load(p);
    __asm__("" : "+x"(v));
    return v;
}

/* Entries of the windows in the low and in the high nibbles. */
GWQ_INLINE void look_up(__m256i table, __m256i windows, __m256i *low, __m256i *high) {
    *low = _mm256_shuffle_epi8(table, both(windows, 15));
    *high = _mm256_shuffle_epi8(table, bits_at(windows, 4, 15));
}

GWQ_INLINE void quads4(__m256i table, const uint8_t *line, __m256i *v) {
    look_up(table, load_once(line), v, v + 1);
    look_up(table, load_once(line + 64), v + 2, v + 3);
}

/* Entries of the windows in the bits `shift` .. shift + 3 of each byte */
GWQ_INLINE __m256i look_at(__m256i table, __m256i v, int shift) {
    return _mm256_shuffle_epi8(table, bits_at(v, shift, 15));
}

/* Entries of the windows that begin at bit `shift` of a byte of v and end in the byte of next */
GWQ_INLINE __m256i look_across(__m256i table, __m256i v, int shift, __m256i next) {
    __m256i low = bits_at(v, shift, 255 >> shift);
    __m256i high = bits_at(next, shift - 8, 15 & 255 << (8 - shift));
    return _mm256_shuffle_epi8(table, _mm256_or_si256(low, high));
}

/* 24 bits, a window at every third */
GWQ_INLINE void quads3(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i a = load_once(line), b = load_once(line + 64), c = load_once(line + 128);
    v[0] = _mm256_shuffle_epi8(table, both(a, 15));
    v[1] = look_at(table, a, 3);
    v[2] = look_across(table, a, 6, b);
    v[3] = look_at(table, b, 1);
    v[4] = look_at(table, b, 4);
    v[5] = look_across(table, b, 7, c);
    v[6] = look_at(table, c, 2);
    v[7] = look_across(table, c, 5, a);
}

/* 32 bits, a window at every second: three lie within a byte, the fourth within the bytes turned by
 * six bits */
GWQ_INLINE void quads2(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i a = load_once(line);
    __m256i turned = _mm256_or_si256(_mm256_srli_epi32(a, 6), _mm256_slli_epi32(a, 26));
    v[0] = _mm256_shuffle_epi8(table, both(a, 15));
    v[1] = look_at(table, a, 2);
    v[2] = look_at(table, a, 4);
    v[3] = _mm256_shuffle_epi8(table, both(turned, 15));
}

/* The table where the top bit of a byte of `high` is 0, its mirror image where it is 1 */
GWQ_INLINE __m256i either_half(__m256i table, __m256i low, __m256i high) {
    __m256i mirrored = _mm256_xor_si256(table, bytes_of(63)); /* of biased entries: 63 - (e + 32) */
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(mirrored, low),
                              high);
}

GWQ_INLINE void quads5(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i high = load_once(line + 256); /* bit p: of quad p */
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i a = load_once(line + 64 * k);
        v[2 * k] = either_half(table, both(a, 15), _mm256_slli_epi16(high, 7 - 2 * k));
        v[2 * k + 1] = either_half(table, bits_at(a, 4, 15),
                                   _mm256_slli_epi16(high, 6 - 2 * k));
    }
}

/* Biased entries are the codes. */
GWQ_INLINE void quads6(__m256i table, const uint8_t *line, __m256i *v) {
    (void)table;
    __m256i a = load_once(line), b = load_once(line + 64), high = load_once(line + 128);
    v[0] = _mm256_or_si256(both(a, 15), bits_at(high, -4, 0x30));
    v[1] = _mm256_or_si256(bits_at(a, 4, 15),
                           bits_at(high, -2, 0x30));
    v[2] = _mm256_or_si256(both(b, 15), both(high, 0x30));
    v[3] = _mm256_or_si256(bits_at(b, 4, 15),
                           bits_at(high, 2, 0x30));
}

/* s[k]: scale of every row for the columns 16k .. 16k+15 of the block, a signed byte; the two
 * halves are alike. */
typedef void (*scales_fn)(const uint8_t *scale, __m256i s[4]);

GWQ_INLINE __m256i load_twice(const uint8_t *p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
}

GWQ_INLINE void scales4(const uint8_t *scale, __m256i s[4]) {
    __m256i top = _mm256_setzero_si256();
    for (int k = 0; k < 3; k++) {
        __m256i part = load_twice(scale + 16 * k);
        s[k] = _mm256_sub_epi8(both(part, 63), bytes_of(SCALE_BIAS));
        top = _mm256_or_si256(top, bits_at(part, 6 - 2 * k, 3 << 2 * k));
    }
    s[3] = _mm256_sub_epi8(top, bytes_of(SCALE_BIAS));
}

GWQ_INLINE void scales2(const uint8_t *scale, __m256i s[4]) {
    int64_t nibbles; /* of the rows 0 .. 7 and, above them, 8 .. 15 */
    memcpy(&nibbles, scale + 16, 8);
    __m256i low = load_twice(scale);
    __m256i high = _mm256_set1_epi64x(nibbles);
    high = _mm256_blend_epi32(_mm256_slli_epi16(high, 2), _mm256_srli_epi16(high, 2), 0xcc);
    high = both(high, 0x3c);
    s[0] = s[1] = _mm256_sub_epi8(both(low, 63), bytes_of(SCALE_BIAS));
    __m256i second = _mm256_or_si256(bits_at(low, 6, 3), high);
    s[2] = s[3] = _mm256_sub_epi8(second, bytes_of(SCALE_BIAS));
}
#define scales3 scales2
#define scales5 scales4
#define scales6 scales4
#endif
