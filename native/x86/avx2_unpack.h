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

GWQ_INLINE __m256i all(int byte) { return _mm256_set1_epi8((char)byte); }
GWQ_INLINE __m256i both(__m256i v, int mask) { return _mm256_and_si256(v, all(mask)); }

/* As `load`; gcc may neither repeat it nor make it an operand of another instruction. */
GWQ_INLINE __m256i load_once(const void *p) {
    __m256i v = load(p);
    __asm__("" : "+x"(v));
    return v;
}

/* Row r of the result: the row before r in the ring of 8 whose rows lie at p */
GWQ_INLINE __m256i rows_before(const uint8_t *p) {
    int32_t last;
    memcpy(&last, p + 28, 4);
    __m256i rows = load(p - 4); /* what lies before a line: a line, or scales */
    return _mm256_blend_epi32(rows, _mm256_set1_epi32(last), 1);
}

/* Entries of the windows in the low and in the high nibbles. */
GWQ_INLINE void look_up(__m256i table, __m256i windows, __m256i *low, __m256i *high) {
    *low = _mm256_shuffle_epi8(table, both(windows, 15));
    *high = _mm256_shuffle_epi8(table, both(_mm256_srli_epi16(windows, 4), 15));
}

GWQ_INLINE void quads4(__m256i table, const uint8_t *line, __m256i *v) {
    look_up(table, load_once(line), v, v + 1);
    look_up(table, load_once(line + 64), v + 2, v + 3);
}

GWQ_INLINE void quads3(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i part[3], before;
    __m256i last = _mm256_setzero_si256(); /* the last two quads: the bits 3 of A, B and C */
    for (int k = 0; k < 3; k++) {
        part[k] = load_once(line + 64 * k);
        last = _mm256_or_si256(last, both(_mm256_srli_epi16(part[k], 3 - k), 0x11 << k));
    }
    for (int k = 0; k < 3; k++) {
        before = rows_before(line + 64 * k);
        __m256i windows =
            _mm256_or_si256(both(part[k], 0x77), both(_mm256_slli_epi16(before, 1), 0x88));
        look_up(table, windows, v + 2 * k, v + 2 * k + 1);
    }
    /* the topmost bits of the last quads' neighbours are in C as they are wanted */
    look_up(table, _mm256_or_si256(last, both(before, 0x88)), v + 6, v + 7);
}

GWQ_INLINE void quads2(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i a = load_once(line), before = rows_before(line);
    __m256i even = _mm256_or_si256(both(a, 0x33), both(_mm256_slli_epi16(before, 2), 0xcc));
    look_up(table, even, v, v + 2);
    __m256i odd = _mm256_or_si256(both(_mm256_srli_epi16(a, 2), 0x33), both(before, 0xcc));
    look_up(table, odd, v + 1, v + 3);
}

/* The table where the top bit of a byte of `high` is 0, its mirror image where it is 1 */
GWQ_INLINE __m256i either_half(__m256i table, __m256i low, __m256i high) {
    __m256i mirrored = _mm256_xor_si256(table, all(63)); /* of biased entries: 63 - (e + 32) */
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(mirrored, low),
                              high);
}

GWQ_INLINE void quads5(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i high = load_once(line + 256); /* bit p: of quad p */
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m256i a = load_once(line + 64 * k);
        v[2 * k] = either_half(table, both(a, 15), _mm256_slli_epi16(high, 7 - 2 * k));
        v[2 * k + 1] = either_half(table, both(_mm256_srli_epi16(a, 4), 15),
                                   _mm256_slli_epi16(high, 6 - 2 * k));
    }
}

/* Biased entries are the codes. */
GWQ_INLINE void quads6(__m256i table, const uint8_t *line, __m256i *v) {
    (void)table;
    __m256i a = load_once(line), b = load_once(line + 64), high = load_once(line + 128);
    v[0] = _mm256_or_si256(both(a, 15), both(_mm256_slli_epi16(high, 4), 0x30));
    v[1] = _mm256_or_si256(both(_mm256_srli_epi16(a, 4), 15),
                           both(_mm256_slli_epi16(high, 2), 0x30));
    v[2] = _mm256_or_si256(both(b, 15), both(high, 0x30));
    v[3] = _mm256_or_si256(both(_mm256_srli_epi16(b, 4), 15),
                           both(_mm256_srli_epi16(high, 2), 0x30));
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
        s[k] = _mm256_sub_epi8(both(part, 63), all(SCALE_BIAS));
        top = _mm256_or_si256(top, both(_mm256_srli_epi16(part, 6 - 2 * k), 3 << 2 * k));
    }
    s[3] = _mm256_sub_epi8(top, all(SCALE_BIAS));
}

GWQ_INLINE void scales2(const uint8_t *scale, __m256i s[4]) {
    int64_t nibbles; /* of the rows 0 .. 7 and, above them, 8 .. 15 */
    memcpy(&nibbles, scale + 16, 8);
    __m256i low = load_twice(scale);
    __m256i high = _mm256_set1_epi64x(nibbles);
    high = _mm256_blend_epi32(_mm256_slli_epi16(high, 2), _mm256_srli_epi16(high, 2), 0xcc);
    high = both(high, 0x3c);
    s[0] = s[1] = _mm256_sub_epi8(both(low, 63), all(SCALE_BIAS));
    __m256i second = _mm256_or_si256(both(_mm256_srli_epi16(low, 6), 3), high);
    s[2] = s[3] = _mm256_sub_epi8(second, all(SCALE_BIAS));
}
#define scales3 scales2
#define scales5 scales4
#define scales6 scales4

/* 256 * scale of the rows 8h .. 8h+7, twice in each 32-bit lane. With it a block's sum just fits:
 * 64 * 32 * 127 * 32 * 256 < 2^31. */
GWQ_INLINE __m256i spread_scales(__m256i s, int h) {
    const __m256i low = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380,
                                          0x04800480, 0x05800580, 0x06800680, 0x07800780);
    const __m256i high = _mm256_add_epi8(low, _mm256_set1_epi16(0x0800));
    return _mm256_shuffle_epi8(s, h ? high : low); /* an index of 0x80 gives a zero byte */
}
#define UNIT (1.f / 256) /* what sums with these scales count in */
#endif
