/* AVX-512: vectors of 16 rows, and what SIMDe lacks.
 *
 * With GWQ_SIMDE the same code compiles for any x86 CPU, slowly, for the tests. */
#ifndef GWQ_AVX512_H
#define GWQ_AVX512_H
#ifdef GWQ_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
#include <string.h>
#include "slots.h"

/* acc += products of four neighbouring biased entries and activations, per 32-bit lane. By
 * assembler, because gcc 12 copies the accumulator before and after the intrinsic when it lives in
 * an array. */
GWQ_INLINE void add_quads(__m512i *acc, __m512i entries, const int8_t *x) {
#ifdef GWQ_SIMDE
    int32_t v;
    memcpy(&v, x, 4);
    *acc = _mm512_dpbusd_epi32(*acc, entries, _mm512_set1_epi32(v));
#else
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(*acc)
            : "v"(entries), "m"(*(const int8_t(*)[4])x));
#endif
}

/* The same of activations that are in a register */
GWQ_INLINE void add_products(__m512i *acc, __m512i entries, __m512i x) {
#ifdef GWQ_SIMDE
    *acc = _mm512_dpbusd_epi32(*acc, entries, x);
#else
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(entries), "v"(x));
#endif
}

/* Four activations in every 32-bit lane */
GWQ_INLINE __m512i quad(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
}

/* 64 bytes, which the compiler may neither load again nor make an operand of another instruction:
 * most begin in one cache line and end in the next, and take two turns of a load port each time. */
GWQ_INLINE __m512i load_once(const uint8_t *p) {
    __m512i v = _mm512_loadu_si512(p);
#ifndef GWQ_SIMDE
    __asm__("" : "+v"(v));
#endif
    return v;
}

/* Where the mask is set the bits of a, elsewhere those of b */
GWQ_INLINE __m512i either(int mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8((char)mask), a, b, 0xca);
}

/* What SIMDe 0.7.4 lacks; mostly sixteen values each. */
#ifdef GWQ_SIMDE
GWQ_INLINE __m512 half16(const uint8_t *p) {
    float f[16];
    gwq_avx2_halves(p, 16, f);
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512 halves_of(const uint8_t *p) {
    float f;
    gwq_avx2_halves(p, 1, &f);
    return _mm512_set1_ps(f);
}
GWQ_INLINE __m512 bf16_16(const uint8_t *p) {
    uint32_t n[16];
    for (int i = 0; i < 16; i++) n[i] = (uint32_t)(p[2 * i] | p[2 * i + 1] << 8) << 16;
    return _mm512_castsi512_ps(_mm512_loadu_si512(n));
}
GWQ_INLINE __m512 floats16(__m512i v) {
    int32_t n[16];
    float f[16];
    _mm512_storeu_si512(n, v);
    for (int i = 0; i < 16; i++) f[i] = (float)n[i];
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512i widened(__m128i bytes) {
    int8_t b[16];
    int32_t v[16];
    _mm_storeu_si128((__m128i *)b, bytes);
    for (int i = 0; i < 16; i++) v[i] = b[i];
    return _mm512_loadu_si512(v);
}
GWQ_INLINE __m512 expand16(__mmask16 rows, const float *p) {
    float f[16] = {0};
    for (int r = 0; r < 16; r++)
        if (rows >> r & 1) f[r] = *p++;
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512 expanded(__mmask16 rows, __m512 v) {
    float f[16];
    _mm512_storeu_ps(f, v);
    return expand16(rows, f);
}
GWQ_INLINE __m256i first_bytes(const uint8_t *p, int count) {
    uint8_t b[32] = {0};
    memcpy(b, p, (size_t)count);
    return _mm256_loadu_si256((const __m256i *)b);
}
GWQ_INLINE __m512 first_halves(const uint8_t *p, int count) {
    uint8_t b[32] = {0};
    memcpy(b, p, 2 * (size_t)count);
    return half16(b);
}
GWQ_INLINE __m512i words32(__m256i bytes) {
    uint8_t b[32];
    uint16_t v[32];
    _mm256_storeu_si256((__m256i *)b, bytes);
    for (int i = 0; i < 32; i++) v[i] = b[i];
    return _mm512_loadu_si512(v);
}
GWQ_INLINE __m512 floats_of_words(__m256i words) {
    int16_t v[16];
    float f[16];
    _mm256_storeu_si256((__m256i *)v, words);
    for (int i = 0; i < 16; i++) f[i] = v[i];
    return _mm512_loadu_ps(f);
}
/* What the bias of 16 columns takes from each 32-bit sum */
GWQ_INLINE __m512i bias16(const int16_t *bias) { return _mm512_set1_epi32(bias[0] + bias[1]); }
#else
GWQ_INLINE __m512 half16(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
/* One FP16 value 16 times. It is converted as often, so that it comes from memory to where it is
 * needed without a detour by a scalar register. */
GWQ_INLINE __m512 halves_of(const uint8_t *p) {
    int16_t v;
    memcpy(&v, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(v));
}
GWQ_INLINE __m512 bf16_16(const uint8_t *p) {
    __m512i v = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
}
GWQ_INLINE __m512 floats16(__m512i v) { return _mm512_cvtepi32_ps(v); }
GWQ_INLINE __m512i widened(__m128i bytes) { return _mm512_cvtepi8_epi32(bytes); }
GWQ_INLINE __m512 expand16(__mmask16 rows, const float *p) {
    return _mm512_maskz_expand_ps(rows, _mm512_loadu_ps(p));
}
/* The first numbers, to the rows of the mask in their order; 0 elsewhere */
GWQ_INLINE __m512 expanded(__mmask16 rows, __m512 v) { return _mm512_maskz_expand_ps(rows, v); }
/* The first `count` bytes, or FP16 values, and nothing beyond them; zeros follow. */
GWQ_INLINE __m256i first_bytes(const uint8_t *p, int count) {
    return _mm256_maskz_loadu_epi8((__mmask32)((UINT64_C(1) << count) - 1), p);
}
GWQ_INLINE __m512 first_halves(const uint8_t *p, int count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)((1u << count) - 1), p));
}
GWQ_INLINE __m512i words32(__m256i bytes) { return _mm512_cvtepu8_epi16(bytes); }
GWQ_INLINE __m512 floats_of_words(__m256i words) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(words));
}
GWQ_INLINE __m512i bias16(const int16_t *bias) {
    int32_t v;
    memcpy(&v, bias, 4);
    return _mm512_madd_epi16(_mm512_set1_epi32(v), _mm512_set1_epi16(1));
}
#endif

/* sums16(v)[4 * n + i] = sum of v[n][i] */
#ifdef GWQ_SIMDE
GWQ_INLINE __m512 sums16(const __m512 v[4][4]) {
    float f[16], sum[16] = {0};
    for (int k = 0; k < 16; k++) {
        _mm512_storeu_ps(f, v[k / 4][k % 4]);
        for (int l = 0; l < 16; l++) sum[k] += f[l];
    }
    return _mm512_loadu_ps(sum);
}
GWQ_INLINE __m128 sums4_of_16(const __m512 v[4]) {
    const __m512 zero = _mm512_setzero_ps();
    const __m512 all[4][4] = {{v[0], v[1], v[2], v[3]}, {zero, zero, zero, zero},
                              {zero, zero, zero, zero}, {zero, zero, zero, zero}};
    return _mm512_castps512_ps128(sums16(all));
}
#else
/* In every lane of 4 the sums of this lane of v[0] .. v[3] */
GWQ_INLINE __m512 sums_of_lanes(const __m512 v[4]) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
}

/* The sum of each of four vectors */
GWQ_INLINE __m128 sums4_of_16(const __m512 v[4]) {
    const __m512 u = sums_of_lanes(v);
    const __m256 w = _mm256_add_ps(_mm512_castps512_ps256(u), _mm512_extractf32x8_ps(u, 1));
    return _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
}

GWQ_INLINE __m512 sums16(const __m512 v[4][4]) {
    __m512 u[4], half[2];
    for (int n = 0; n < 4; n++) u[n] = sums_of_lanes(v[n]);
    for (int i = 0; i < 2; i++)
        half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0x44),
                                _mm512_shuffle_f32x4(u[2 * i], u[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88),
                         _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
}
#endif

/* v[p]: 16 rows x columns 4p .. 4p+3, one byte each, of the lines that hold them together: 4 quads
 * are two lines at 4 bits, one at 2 bits and three at 6 bits, 8 quads are three lines at 3 bits and
 * five at 5 bits. t: the matrix's tables. */
typedef void (*quads_fn)(const __m512i *t, const uint8_t *line, __m512i *v);
enum { QUADS6 = 4, QUADS5 = 8, QUADS4 = 4, QUADS3 = 8, QUADS2 = 4 };

/* Biased entries are the codes. */
GWQ_INLINE void quads6(const __m512i *t, const uint8_t *line, __m512i *v) {
    (void)t;
    const __m512i top = _mm512_set1_epi8(0x30);
    __m512i a = load_once(line), b = load_once(line + 64);
    __m512i high = load_once(line + 128);
    v[0] = either(15, a, _mm512_and_si512(_mm512_slli_epi16(high, 4), top));
    v[1] = either(15, _mm512_srli_epi16(a, 4), _mm512_and_si512(_mm512_slli_epi16(high, 2), top));
    v[2] = either(15, b, _mm512_and_si512(high, top));
    v[3] = either(15, _mm512_srli_epi16(b, 4), _mm512_and_si512(_mm512_srli_epi16(high, 2), top));
}

/* s[k]: scale of every row for the k-th sub-block, a signed byte. */
typedef void (*scales_fn)(const uint8_t *scale, __m128i s[4]);
enum { SUB6 = 4, SUB5 = 4, SUB4 = 4, SUB3 = 8, SUB2 = 8 }; /* quads of a sub-block */

GWQ_INLINE __m128i field(__m128i v, int shift, int mask) {
    return _mm_and_si128(_mm_srli_epi16(v, shift), _mm_set1_epi8((char)mask));
}

GWQ_INLINE void scales4(const uint8_t *scale, __m128i s[4]) {
    const __m128i bias = _mm_set1_epi8(SCALE_BIAS);
    __m128i top = _mm_setzero_si128();
    for (int k = 0; k < 3; k++) {
        __m128i part = _mm_loadu_si128((const __m128i *)(scale + 16 * k));
        s[k] = _mm_sub_epi8(field(part, 0, 63), bias);
        top = _mm_or_si128(top, field(part, 6 - 2 * k, 3 << 2 * k));
    }
    s[3] = _mm_sub_epi8(top, bias);
}

GWQ_INLINE void scales2(const uint8_t *scale, __m128i s[4]) {
    const __m128i bias = _mm_set1_epi8(SCALE_BIAS);
    __m128i low = _mm_loadu_si128((const __m128i *)scale);
    __m128i high = _mm_loadl_epi64((const __m128i *)(scale + 16)); /* nibbles */
    high = _mm_unpacklo_epi64(_mm_slli_epi16(high, 2), _mm_srli_epi16(high, 2));
    high = field(high, 0, 0x3c);
    s[0] = _mm_sub_epi8(field(low, 0, 63), bias);
    s[1] = _mm_sub_epi8(_mm_or_si128(field(low, 6, 3), high), bias);
}
#define scales3 scales2
#define scales5 scales4
#define scales6 scales4
#endif
