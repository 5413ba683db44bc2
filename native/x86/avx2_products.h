/* Outliers of a record times the activations of their columns: AVX2, for all of this folder. */
#ifndef GWQ_AVX2_PRODUCTS_H
#define GWQ_AVX2_PRODUCTS_H
#include "avx2.h"

GWQ_INLINE int total(const uint8_t *count) {
    __m128i sums = _mm_sad_epu8(_mm_loadu_si128((const __m128i *)count), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4);
}

/* Element by element: a gather instruction is slower on AMD. By assembler, because gcc 12 takes one
 * instruction more for each. */
GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count,
                                const float *x, float *product) {
    for (int k = 0; k < count; k += 8) {
        uint64_t c;
        memcpy(&c, column + k, 8);
        __m128 p[4];
        for (int i = 0; i < 4; i++) { /* the lowest two bytes of c */
            p[i] = _mm_load_ss(x + (c & 255));
            __asm__("vinsertps $16, %1, %0, %0" : "+x"(p[i]) : "m"(x[c >> 8 & 255]));
            c >>= 16;
            __asm__("" : "+r"(c));
        }
        __m256 v = _mm256_set_m128(_mm_movelh_ps(p[2], p[3]), _mm_movelh_ps(p[0], p[1]));
        _mm256_storeu_ps(product + k, _mm256_mul_ps(half8(value + 2 * k), v));
    }
}

/* Four tokens of every column lie together: four columns in each half, transposed, are four columns
 * of every token. */
GWQ_INLINE void multiply_few(const uint8_t *value, const uint8_t *column, int count,
                             const float *x, float *product, int64_t stride) {
    for (int k = 0; k < count; k += 8) {
        const uint8_t *c = column + k;
        __m256 v = half8(value + 2 * k), four[4];
        for (int i = 0; i < 4; i++)
            four[i] = _mm256_set_m128(_mm_loadu_ps(x + GWQ_FEW_LANES * c[4 + i]),
                                      _mm_loadu_ps(x + GWQ_FEW_LANES * c[i]));
        __m256 a = _mm256_unpacklo_ps(four[0], four[1]), b = _mm256_unpacklo_ps(four[2], four[3]);
        __m256 d = _mm256_unpackhi_ps(four[0], four[1]), e = _mm256_unpackhi_ps(four[2], four[3]);
        float *to = product + k;
        _mm256_storeu_ps(to, _mm256_mul_ps(v, _mm256_shuffle_ps(a, b, 0x44)));
        _mm256_storeu_ps(to + stride, _mm256_mul_ps(v, _mm256_shuffle_ps(a, b, 0xee)));
        _mm256_storeu_ps(to + 2 * stride, _mm256_mul_ps(v, _mm256_shuffle_ps(d, e, 0x44)));
        _mm256_storeu_ps(to + 3 * stride, _mm256_mul_ps(v, _mm256_shuffle_ps(d, e, 0xee)));
    }
}
#endif
