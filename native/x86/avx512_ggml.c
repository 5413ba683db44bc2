/* AVX-512: many tokens times matrices of the ggml types f32, f16, bf16 and q8_0. */
#include "avx512.h"
#include "avx2_ggml.h"

/* 4 rows x 4 tokens in registers; missing tokens are the last one once more. */
enum { AT_ONCE = 4 };
GWQ_INLINE void four_rows(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                          int count, int rows, float *y, int64_t stride) {
    __m512 sum[AT_ONCE][4];
    const float *from[AT_ONCE];
    for (int i = 0; i < AT_ONCE; i++) {
        from[i] = x + (i < count ? i : count - 1) * cols;
        for (int r = 0; r < 4; r++) sum[i][r] = _mm512_setzero_ps();
    }
    for (int64_t c = 0; c < width; c += 16) {
        __m512 v[AT_ONCE];
        for (int i = 0; i < AT_ONCE; i++) {
            float last[16] = {0};
            const float *at = from[i] + c;
            if (width - c < 16) at = memcpy(last, at, (size_t)(width - c) * sizeof *x);
            v[i] = _mm512_loadu_ps(at);
        }
        for (int r = 0; r < 4; r++) {
            const __m512 f = _mm512_loadu_ps(w[r] + c);
            for (int i = 0; i < AT_ONCE; i++) sum[i][r] = _mm512_fmadd_ps(f, v[i], sum[i][r]);
        }
    }
    float sums[AT_ONCE][4];
    _mm512_storeu_ps(sums[0], sums16((const __m512(*)[4])sum));
    for (int i = 0; i < count; i++)
        for (int r = 0; r < rows; r++) y[i * stride + r] += sums[i][r];
}

#define GGML_TYPE(name, unit_bytes)                                                            \
    void gwq_avx512_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,            \
                                  const gwq_input *in, float *y) {                             \
        if (in->n <= GWQ_FEW) gwq_avx2_matmul_##name(m, first, last, in, y);                   \
        else ggml_gemm(name##_floats, unit_bytes, four_rows, AT_ONCE, m, first, last, in, y);  \
    }
GGML_TYPE(f32, 128)
GGML_TYPE(f16, 64)
GGML_TYPE(bf16, 64)
GGML_TYPE(q8_0, 34)
