/* AVX-512 with VBMI: lines of a tile to table entries. A lookup takes six bits of an index and
 * ignores two, so that a table of 16 which is repeated needs no mask; and where a window lies in
 * two lines, its bits are looked up where a shift that is needed anyway has left them, in a table
 * of that order. */
#ifndef GWQ_AVX512VBMI_UNPACK_H
#define GWQ_AVX512VBMI_UNPACK_H
#include "avx512.h"

GWQ_INLINE __m512i look_up(__m512i table, __m512i index) {
    return _mm512_permutexvar_epi8(index, table);
}

GWQ_INLINE void quads4(const __m512i *t, const uint8_t *line, __m512i *v) {
    for (int k = 0; k < 2; k++) {
        __m512i a = load_once(line + 64 * k);
        v[2 * k] = look_up(t[0], a);
        v[2 * k + 1] = look_up(t[0], _mm512_srli_epi16(a, 4));
    }
}

/* 32 bits, a window at every second; the last goes on in the next byte's lowest two */
GWQ_INLINE void quads2(const __m512i *t, const uint8_t *line, __m512i *v) {
    __m512i a = load_once(line);
    v[0] = look_up(t[0], a);
    v[1] = look_up(t[0], _mm512_srli_epi16(a, 2));
    v[2] = look_up(t[0], _mm512_srli_epi16(a, 4));
    v[3] = look_up(t[0], _mm512_ror_epi32(a, 6));
}

/* 24 bits, a window at every third: those across two lines are looked up with the lower bits of
 * the window where the shift has put them, in bits 3 and above, and its upper bits in bits 0 and
 * above. */
GWQ_INLINE void quads3(const __m512i *t, const uint8_t *line, __m512i *v) {
    __m512i a = load_once(line), a3 = _mm512_srli_epi16(a, 3);
    __m512i b = load_once(line + 64), b4 = _mm512_srli_epi16(b, 4);
    __m512i c = load_once(line + 128), c2 = _mm512_srli_epi16(c, 2);
    v[0] = look_up(t[0], a);
    v[1] = look_up(t[0], a3);
    v[2] = look_up(t[2], either(3, b, a3)); /* two bits of each */
    v[3] = look_up(t[0], _mm512_srli_epi16(b, 1));
    v[4] = look_up(t[0], b4);
    v[5] = look_up(t[1], either(7, c, b4)); /* one of b, three of c */
    v[6] = look_up(t[0], c2);
    v[7] = look_up(t[3], either(1, a, c2)); /* three of c, one of a */
}

static const uint8_t index64[64] = {
    0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63,
};

/* t[k] for 3 bits: window w at every index with the lowest k bits of w in bits 3 and above, the
 * others in bits 0 and above */
GWQ_INLINE void tables3(const int8_t *entry, uint8_t *table) {
    const __m512i i = _mm512_loadu_si512(index64), upper = _mm512_srli_epi16(i, 3);
    repeated_table(entry, table);
    const __m512i plain = _mm512_loadu_si512(table);
#pragma GCC unroll 4
    for (int k = 1; k < 4; k++) {
        const __m512i high = _mm512_and_si512(i, _mm512_set1_epi8((char)(15 >> k)));
        const __m512i window = either((1 << k) - 1, upper, _mm512_slli_epi16(high, k));
        _mm512_storeu_si512(table + 64 * k, look_up(plain, window));
    }
}

/* Bit p of a byte of the fifth line is the top bit of quad p: a shift by an even number leaves that
 * of quad 2k in bit 4 and that of quad 2k + 1 in bit 5. */
GWQ_INLINE void quads5(const __m512i *t, const uint8_t *line, __m512i *v) {
    const __m512i high = load_once(line + 256);
    const __m512i top[4] = {_mm512_slli_epi16(high, 4), _mm512_slli_epi16(high, 2), high,
                            _mm512_srli_epi16(high, 2)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        __m512i a = load_once(line + 64 * k);
        v[2 * k] = look_up(t[0], either(15, a, top[k]));
        v[2 * k + 1] = look_up(t[1], either(15, _mm512_srli_epi16(a, 4), top[k]));
    }
}

/* t[k] for 5 bits: bits 0 .. 3 of an index are the nibble, bit 4 + k the top bit, with which the
 * table's mirror image is meant */
GWQ_INLINE void tables5(const int8_t *entry, uint8_t *table) {
    const __m512i i = _mm512_loadu_si512(index64);
    repeated_table(entry, table);
    const __m512i plain = _mm512_loadu_si512(table);
    const __m512i mirrored = _mm512_xor_si512(plain, _mm512_set1_epi8(63)); /* 63 - (e + 32) */
#pragma GCC unroll 2
    for (int k = 0; k < 2; k++) {
        const __mmask64 top = _mm512_test_epi8_mask(i, _mm512_set1_epi8((char)(16 << k)));
        _mm512_storeu_si512(table + 64 * k, _mm512_mask_mov_epi8(plain, top, mirrored));
    }
}

#define tables2 repeated_table
#define tables4 repeated_table
#define tables6 repeated_table
#endif
