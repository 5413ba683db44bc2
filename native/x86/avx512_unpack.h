/* AVX-512 without VBMI: lines of a tile to table entries, 64 shuffles of 16 entries at a time. */
#ifndef GWQ_AVX512_UNPACK_H
#define GWQ_AVX512_UNPACK_H
#include "avx512.h"

/* Entries of the windows in the low and in the high nibbles. */
GWQ_INLINE void look_up(__m512i table, __m512i windows, __m512i *low, __m512i *high) {
    const __m512i mask = _mm512_set1_epi8(15);
    *low = _mm512_shuffle_epi8(table, _mm512_and_si512(windows, mask));
    *high = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(windows, 4), mask));
}

GWQ_INLINE void quads4(const __m512i *t, const uint8_t *line, __m512i *v) {
    look_up(t[0], load_once(line), v, v + 1);
    look_up(t[0], load_once(line + 64), v + 2, v + 3);
}

/* Entries of the windows in the bits `shift` .. shift + 3 of each byte */
GWQ_INLINE __m512i look_at(__m512i table, __m512i v, int shift) {
    __m512i window = _mm512_and_si512(_mm512_srli_epi16(v, shift), _mm512_set1_epi8(15));
    return _mm512_shuffle_epi8(table, window);
}

/* Entries of the windows that begin at bit `shift` of a byte of v and end in the byte of next */
GWQ_INLINE __m512i look_across(__m512i table, __m512i v, int shift, __m512i next) {
    __m512i window = either(255 >> shift, _mm512_srli_epi16(v, shift),
                            _mm512_slli_epi16(next, 8 - shift));
    return look_at(table, window, 0);
}

/* 24 bits, a window at every third */
GWQ_INLINE void quads3(const __m512i *t, const uint8_t *line, __m512i *v) {
    __m512i a = load_once(line);
    __m512i b = load_once(line + 64);
    __m512i c = load_once(line + 128);
    v[0] = look_at(t[0], a, 0);
    v[1] = look_at(t[0], a, 3);
    v[2] = look_across(t[0], a, 6, b);
    v[3] = look_at(t[0], b, 1);
    v[4] = look_at(t[0], b, 4);
    v[5] = look_across(t[0], b, 7, c);
    v[6] = look_at(t[0], c, 2);
    v[7] = look_across(t[0], c, 5, a);
}

/* 32 bits, a window at every second: three lie within a byte, the fourth within the bytes turned by
 * six bits */
GWQ_INLINE void quads2(const __m512i *t, const uint8_t *line, __m512i *v) {
    __m512i a = load_once(line);
    for (int p = 0; p < 3; p++) v[p] = look_at(t[0], a, 2 * p);
    v[3] = look_at(t[0], _mm512_ror_epi32(a, 6), 0);
}

/* Entries of nibbles: the table's where bit p of a byte of `high` is 0, else its mirror image's */
GWQ_INLINE __m512i either_half(__m512i table, __m512i low, __m512i high, int p) {
    __m512i mirrored = _mm512_xor_si512(table, _mm512_set1_epi8(63)); /* 63 - (e + 32) */
    __mmask64 upper = _mm512_test_epi8_mask(high, _mm512_set1_epi8((char)(1 << p)));
    __m512i v = _mm512_shuffle_epi8(table, low);
    return _mm512_mask_shuffle_epi8(v, upper, mirrored, low);
}

GWQ_INLINE void quads5(const __m512i *t, const uint8_t *line, __m512i *v) {
    const __m512i mask = _mm512_set1_epi8(15);
    __m512i high = load_once(line + 256);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i a = load_once(line + 64 * k);
        __m512i upper = _mm512_and_si512(_mm512_srli_epi16(a, 4), mask);
        v[2 * k] = either_half(t[0], _mm512_and_si512(a, mask), high, 2 * k);
        v[2 * k + 1] = either_half(t[0], upper, high, 2 * k + 1);
    }
}

#define tables2 repeated_table
#define tables3 repeated_table
#define tables4 repeated_table
#define tables5 repeated_table
#define tables6 repeated_table
#endif
