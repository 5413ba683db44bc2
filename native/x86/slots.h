/* Functions that the files of this folder take from each other. Free of intrinsics, so that
 * avx512.c can include it wherever it gets its own from. */
#ifndef GWQ_X86_SLOTS_H
#define GWQ_X86_SLOTS_H
#include "cpu/kernels.h"

/* avx2.c: out[i] = float of the FP16 value i < count */
void gwq_avx2_halves(const uint8_t *value, int count, float *out);

/* avx2_ggml.c */
#define GGML_TYPE(name)                                                                     \
    void gwq_avx2_dequantize_##name(const gwq_matrix *m, int64_t group, float *out);        \
    void gwq_avx2_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,           \
                                const gwq_input *in, float *y);
GGML_TYPE(f32)
GGML_TYPE(f16)
GGML_TYPE(bf16)
GGML_TYPE(q8_0)
#undef GGML_TYPE

/* avx2_ops.c */
void gwq_avx2_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                       int16_t *bias);
void gwq_avx2_quantize16(const float *x, int64_t cols, int16_t *codes, float *scale);
void gwq_avx2_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                      float *out);
void gwq_avx2_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out);
void gwq_avx2_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                       const float *gate, int64_t count, float *out);
void gwq_avx2_to_halves(const float *x, int64_t count, uint16_t *out);
void gwq_avx2_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                     int keys, int64_t dim, float (*s)[GWQ_QUERIES]);
void gwq_avx2_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys,
                  int64_t dim, float *const out[GWQ_QUERIES]);
void gwq_avx2_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out);
uint64_t gwq_avx2_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead);

/* avx2_functions.c */
void gwq_avx2_activate(float *x, const float *up, int64_t count, int activation);
void gwq_avx2_softcap(float *x, int64_t count, float cap);
void gwq_avx2_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most);
void gwq_avx2_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);

/* avx512_ggml.c */
#define GGML_TYPE(name)                                                             \
    void gwq_avx512_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last, \
                                  const gwq_input *in, float *y);
GGML_TYPE(f32)
GGML_TYPE(f16)
GGML_TYPE(bf16)
GGML_TYPE(q8_0)
#undef GGML_TYPE

/* avx512_codes.c */
void gwq_avx512_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                         int16_t *bias);
void gwq_avx512_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                      float *out);

/* avx512_ops.c */
void gwq_avx512_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                       int keys, int64_t dim, float (*s)[GWQ_QUERIES]);
void gwq_avx512_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]);
void gwq_avx512_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);

/* attend_avx2.c */
void gwq_avx2_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                     int width, const float (*b)[GWQ_MANY], const float *shrink,
                     float (*out)[GWQ_MANY]);
void gwq_avx2_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                    float *shrink);

/* attend_avx512.c */
void gwq_avx512_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                     int width, const float (*b)[GWQ_MANY], const float *shrink,
                     float (*out)[GWQ_MANY]);
void gwq_avx512_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                      float *shrink);

/* encode_avx2.c, encode_avx512.c */
void gwq_encode_avx2(const gwq_encoding *e, int64_t first, int64_t last);
void gwq_encode_avx512(const gwq_encoding *e, int64_t first, int64_t last);

/* gemm_avx2.c, gemm_avx512.c */
void gwq_multiply_avx2(const gwq_multiplication *p);
void gwq_multiply_avx512(const gwq_multiplication *p);
#endif
