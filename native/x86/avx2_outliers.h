/* Outliers of a record with AVX2: the rows in which their products are added up. */
#ifndef GWQ_AVX2_OUTLIERS_H
#define GWQ_AVX2_OUTLIERS_H
#include "avx2_products.h"

/* permute[mask]: byte r = how many of the mask's bits lie below r: where row r finds its product;
 * negative: it has none */
#define BELOW(m, r) (uint64_t)__builtin_popcount((m) & ((1 << (r)) - 1))
#define RANK(m, r) ((m) >> (r) & 1 ? BELOW(m, r) : (uint64_t)128) << 8 * (r)
#define RANKS(m)                                          \
    RANK(m, 0) | RANK(m, 1) | RANK(m, 2) | RANK(m, 3) |   \
    RANK(m, 4) | RANK(m, 5) | RANK(m, 6) | RANK(m, 7)
#define RANKS4(m) RANKS(m), RANKS((m) + 1), RANKS((m) + 2), RANKS((m) + 3)
#define RANKS16(m) RANKS4(m), RANKS4((m) + 4), RANKS4((m) + 8), RANKS4((m) + 12)
#define RANKS64(m) RANKS16(m), RANKS16((m) + 16), RANKS16((m) + 32), RANKS16((m) + 48)
static const uint64_t permute[256] = {RANKS64(0), RANKS64(64), RANKS64(128), RANKS64(192)};

GWQ_INLINE __m256 expand8(unsigned mask, const float *product, __m256 zero) {
    __m256i order = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)&permute[mask]));
    __m256 v = _mm256_loadu_ps(product);
    __asm__("" : "+x"(v)); /* as an operand in memory it takes half as long again on Zen 3 */
    v = _mm256_permutevar8x32_ps(v, order);
    return _mm256_blendv_ps(v, zero, _mm256_castsi256_ps(order));
}

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product,
                       float *y) {
    __m256 y0 = _mm256_load_ps(y), y1 = _mm256_load_ps(y + 8);
    __m128i left = _mm_loadu_si128((const __m128i *)count);
    const float *end = product + total;
    __m256 zero = _mm256_setzero_ps();
    __asm__("" : "+x"(zero)); /* knowing it, gcc 12 makes two instructions of a blend */
    for (int level = 0; level < levels || product < end; level++) {
        __m128i none = _mm_cmpeq_epi8(left, _mm_setzero_si128());
        unsigned rows = 0xffffu ^ (unsigned)_mm_movemask_epi8(none);
        left = _mm_subs_epu8(left, _mm_set1_epi8(1));
        y0 = _mm256_add_ps(y0, expand8(rows & 255, product, zero));
        product += __builtin_popcount(rows & 255);
        y1 = _mm256_add_ps(y1, expand8(rows >> 8, product, zero));
        product += __builtin_popcount(rows >> 8);
    }
    _mm256_store_ps(y, y0);
    _mm256_store_ps(y + 8, y1);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 8) {
        __m256 s = _mm256_load_ps(sum + t);
        _mm256_store_ps(sum + t, _mm256_fmadd_ps(_mm256_set1_ps(v), _mm256_loadu_ps(x + t), s));
    }
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    __m128i c = _mm_loadu_si128((const __m128i *)count), l = _mm_set1_epi8((char)level);
    return 0xffffu ^ (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(c, l), c));
}
#endif
