/* AVX2, FMA and F16C: matrices of the ggml types f32, f16, bf16 and q8_0. */
#include "avx2_ggml.h"

/* --- ggml types: one function per type adds 32 columns to a row's sums ----------------------- */

/* sum[2] += weights of a unit of 32 columns * x[4] */
typedef void (*unit_fn)(const uint8_t *unit, const __m256 x[4], __m256 sum[2]);

GWQ_INLINE void plain_unit(floats_fn floats, const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    __m256 w[4];
    floats(p, w);
    for (int i = 0; i < 4; i++) sum[i % 2] = _mm256_fmadd_ps(w[i], x[i], sum[i % 2]);
}
GWQ_INLINE void f32_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    plain_unit(f32_floats, p, x, sum);
}
GWQ_INLINE void f16_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    plain_unit(f16_floats, p, x, sum);
}
GWQ_INLINE void bf16_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    plain_unit(bf16_floats, p, x, sum);
}
GWQ_INLINE void q8_0_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    __m256 d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_loadu_si64(p)));
    __m256 w[4];
    q8_0_codes(p, w);
    __m256 s = _mm256_mul_ps(w[0], x[0]);
    for (int i = 1; i < 4; i++) s = _mm256_fmadd_ps(w[i], x[i], s);
    sum[0] = _mm256_fmadd_ps(d, s, sum[0]);
}

/* As rows_fn */
GWQ_INLINE void ggml_rows(unit_fn unit, size_t unit_bytes, const uint8_t *const *row,
                          const int rows, int64_t cols, const float *x, float *y) {
    enum { AHEAD = 1024 };
    __m256 sum[STREAMS][2], v[4];
    int64_t units = cols / 32, rest = cols % 32;
    for (int k = 0; k < rows; k++) sum[k][0] = sum[k][1] = _mm256_setzero_ps();
    for (int64_t u = 0; u < units; u++) {
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 32 * u + 8 * i);
        for (int k = 0; k < rows; k++) {
            const uint8_t *p = row[k] + (size_t)u * unit_bytes;
            prefetch(p, AHEAD, unit_bytes);
            unit(p, v, sum[k]);
        }
    }
    if (rest) { /* never q8_0, whose rows are whole units */
        float last[32] = {0};
        memcpy(last, x + 32 * units, (size_t)rest * sizeof *x);
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(last + 8 * i);
        for (int k = 0; k < rows; k++) {
            uint8_t w[128] = {0};
            memcpy(w, row[k] + (size_t)units * unit_bytes, (size_t)rest * (unit_bytes / 32));
            unit(w, v, sum[k]);
        }
    }
    for (int k = 0; k < rows; k++) y[k] = sum8(_mm256_add_ps(sum[k][0], sum[k][1]));
}

GWQ_INLINE void ggml_dequantize(floats_fn floats, size_t unit_bytes, const gwq_matrix *m,
                                int64_t group, float *out) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    const int64_t end = min64(m->rows, (group + 1) * GWQ_ROWS);
    for (int64_t r = group * GWQ_ROWS; r < end; r++, out += m->cols)
        ggml_row(floats, unit_bytes, (const uint8_t *)m->data + (size_t)r * stride, m->cols, out);
}

/* --- several tokens: 4 rows x 3 tokens in registers ------------------------------------------- */

/* As four_fn, `count` is a constant */
GWQ_INLINE void some_tokens(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                          const int count, int rows, float *y, int64_t stride) {
    __m256 sum[3][4];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < 4; r++) sum[i][r] = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) {
        __m256 v[3];
        for (int i = 0; i < count; i++) v[i] = _mm256_loadu_ps(x + i * cols + c);
        for (int r = 0; r < 4; r++) {
            __m256 f = _mm256_load_ps(w[r] + c);
            for (int i = 0; i < count; i++) sum[i][r] = _mm256_fmadd_ps(f, v[i], sum[i][r]);
        }
    }
    for (int i = 0; i < count; i++) {
        if (c < width) { /* the weights beyond `width` are zero */
            float last[8] = {0};
            memcpy(last, x + i * cols + c, (size_t)(width - c) * sizeof *x);
            for (int r = 0; r < 4; r++) {
                sum[i][r] =
                    _mm256_fmadd_ps(_mm256_load_ps(w[r] + c), _mm256_loadu_ps(last), sum[i][r]);
            }
        }
        float four[4];
        _mm_storeu_ps(four, sums4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
        for (int r = 0; r < rows; r++) y[i * stride + r] += four[r];
    }
}

enum { AT_ONCE = 3 };
GWQ_INLINE void four_rows(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                          int count, int rows, float *y, int64_t stride) {
    if (count == 3) some_tokens(w, x, cols, width, 3, rows, y, stride);
    else if (count == 2) some_tokens(w, x, cols, width, 2, rows, y, stride);
    else some_tokens(w, x, cols, width, 1, rows, y, stride);
}

#define GGML_TYPE(name, unit_bytes)                                                   \
    void gwq_avx2_dequantize_##name(const gwq_matrix *m, int64_t group, float *out) { \
        ggml_dequantize(name##_floats, unit_bytes, m, group, out);                    \
    }                                                                                 \
    GWQ_INLINE void name##_rows(const uint8_t *const *row, int count, int64_t cols,   \
                                const float *x, float *y) {                           \
        ggml_rows(name##_unit, unit_bytes, row, count, cols, x, y);                   \
    }                                                                                 \
    void gwq_avx2_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,     \
                                const gwq_input *in, float *y) {                      \
        if (in->n == 1) ggml_gemv(name##_rows, m, first, last, in, y);                \
        else if (in->n <= GWQ_FEW) ggml_few(name##_rows, m, first, last, in, y);      \
        else                                                                          \
            ggml_gemm(name##_floats, unit_bytes, four_rows, AT_ONCE, m, first, last, in, y); \
    }
GGML_TYPE(f32, 128)
GGML_TYPE(f16, 64)
GGML_TYPE(bf16, 64)
GGML_TYPE(q8_0, 34)
