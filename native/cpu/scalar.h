/* What the files of the scalar row share: FP16, and the functions of its slots. */
#ifndef GWQ_SCALAR_H
#define GWQ_SCALAR_H
#include <string.h>
#include "kernels.h"

/* IEEE half to float, exact, subnormals included */
static inline float half(const uint8_t *p) {
    uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8;
    uint32_t sign = (h & 0x8000u) << 16;
    uint32_t magnitude = (h & 0x7fffu) << 13;
    uint32_t bits = magnitude + 0x38000000u; /* the exponent's bias: 127 - 15 more */
    float f;
    if ((h & 0x7c00u) == 0x7c00u) bits = magnitude | 0x7f800000u; /* infinity or NaN */
    if (!(h & 0x7c00u)) { /* zero or subnormal: a multiple of 2^-24 */
        f = (float)(h & 0x3ffu) * 0x1p-24f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

/* scalar_ggml.c */
#define GGML_TYPE(name)                                                                     \
    void gwq_scalar_dequantize_##name(const gwq_matrix *m, int64_t group, float *out);      \
    void gwq_scalar_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,         \
                                  const gwq_input *in, float *y);
GGML_TYPE(f32)
GGML_TYPE(f16)
GGML_TYPE(bf16)
GGML_TYPE(q8_0)
GGML_TYPE(q4_0)
GGML_TYPE(iq4_nl)
#undef GGML_TYPE

/* scalar_ops.c */
void gwq_scalar_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                         int16_t *bias);
void gwq_scalar_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                      float *out);
void gwq_scalar_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out);
void gwq_scalar_activate(float *x, const float *up, int64_t count, int activation);
void gwq_scalar_softcap(float *x, int64_t count, float cap);
void gwq_scalar_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                         const float *gate, int64_t count, float *out);
void gwq_scalar_to_halves(const float *x, int64_t count, uint16_t *out);
void gwq_scalar_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                       int keys, int64_t dim, float (*s)[GWQ_QUERIES]);
void gwq_scalar_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most);
void gwq_scalar_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);
void gwq_scalar_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]);
void gwq_scalar_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out);
uint64_t gwq_scalar_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead);

/* attend_scalar.c */
void gwq_scalar_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                     int width, const float (*b)[GWQ_MANY], const float *shrink,
                     float (*out)[GWQ_MANY]);
void gwq_scalar_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                      float *shrink);

/* encode_scalar.c */
void gwq_encode_scalar(const gwq_encoding *e, int64_t first, int64_t last);

/* gemm_scalar.c */
void gwq_multiply_scalar(const gwq_multiplication *p);
#endif
