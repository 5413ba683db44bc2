/* What the avx2*.c files share: loads and sums, and the functions of the gwq_avx2 row. */
#ifndef GWQ_AVX2_H
#define GWQ_AVX2_H
#include <immintrin.h>
#include <string.h>
#include "kernels.h"

GWQ_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
GWQ_INLINE __m256 half8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
GWQ_INLINE float half1(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}
GWQ_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

void gwq_avx2_halves(const uint8_t *value, int count, float *out); /* out[i] = float of the FP16 value i < count */

void gwq_avx2_quantize(const float *x, int64_t cols, int8_t *q, float *scale, int16_t *bias);
void gwq_avx2_panel(const float *x, int64_t stride, int count, int64_t width, float (*out)[GWQ_PANEL]);
void gwq_avx2_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out);
void gwq_avx2_activate(float *x, const float *up, int64_t count, int activation);
void gwq_avx2_softcap(float *x, int64_t count, float cap);
void gwq_avx2_to_halves(const float *x, int64_t count, uint16_t *out);
void gwq_avx2_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride, int keys, int64_t dim,
                     float (*s)[GWQ_QUERIES]);
void gwq_avx2_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);
void gwq_avx2_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys, int64_t dim,
                  float *const out[GWQ_QUERIES]);
uint64_t gwq_avx2_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead);
#define STOCK_TYPE(name)                                                                                            \
    void gwq_avx2_dequantize_##name(const gwq_matrix *m, int64_t group, float *out);                                \
    void gwq_avx2_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y);
STOCK_TYPE(f32)
STOCK_TYPE(f16)
STOCK_TYPE(bf16)
STOCK_TYPE(q8_0)
#undef STOCK_TYPE
#endif
