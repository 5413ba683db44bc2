/* Functions that the files of this folder take from each other */
#ifndef GWQ_ARM_SLOTS_H
#define GWQ_ARM_SLOTS_H
#include "cpu/kernels.h"

/* features.c: whether the CPU multiplies and adds four bytes per lane (sdot), and 2 x 8 by 8 x 2
 * bytes (smmla) */
int gwq_arm_has_dotprod(void);
int gwq_arm_has_i8mm(void);

/* neon.c: out[i] = float of the FP16 value i < count */
void gwq_neon_halves(const uint8_t *value, int count, float *out);

/* neon_ggml.c */
#define GGML_TYPE(name)                                                                     \
    void gwq_neon_dequantize_##name(const gwq_matrix *m, int64_t group, float *out);        \
    void gwq_neon_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,           \
                                const gwq_input *in, float *y);
GGML_TYPE(f32)
GGML_TYPE(f16)
GGML_TYPE(bf16)
GGML_TYPE(q8_0)
#undef GGML_TYPE

/* neon_ops.c */
void gwq_neon_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                       int16_t *bias);
void gwq_neon_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                    float *out);
void gwq_neon_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out);
void gwq_neon_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                       const float *gate, int64_t count, float *out);
void gwq_neon_to_halves(const float *x, int64_t count, uint16_t *out);
uint64_t gwq_neon_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead);

/* neon_attention.c */
void gwq_neon_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                     int keys, int64_t dim, float (*s)[GWQ_QUERIES]);
void gwq_neon_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys,
                  int64_t dim, float *const out[GWQ_QUERIES]);
void gwq_neon_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out);

/* attend_neon.c */
void gwq_neon_products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                       int width, const float (*b)[GWQ_MANY], const float *shrink,
                       float (*out)[GWQ_MANY]);
void gwq_neon_weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                    float *shrink);

/* neon_functions.c */
void gwq_neon_activate(float *x, const float *up, int64_t count, int activation);
void gwq_neon_softcap(float *x, int64_t count, float cap);
void gwq_neon_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most);
void gwq_neon_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);

/* encode_neon.c */
void gwq_encode_neon(const gwq_encoding *e, int64_t first, int64_t last);

/* gemm_neon.c */
void gwq_multiply_neon(const gwq_multiplication *p);
#endif
