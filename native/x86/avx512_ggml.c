/* AVX-512: matrices of the ggml types f32, f16, bf16 and q8_0. */
#include "avx512.h"
#include "avx2_ggml.h"

/* --- one token -------------------------------------------------------------------------------- */

/* w = half h of the 32 weights of a unit; of q8_0 without the scale */
typedef __m512 (*half_fn)(const uint8_t *unit, int h);

GWQ_INLINE __m512 f16_half(const uint8_t *p, int h) { return half16(p + 32 * h); }
GWQ_INLINE __m512 bf16_half(const uint8_t *p, int h) { return bf16_16(p + 32 * h); }
GWQ_INLINE __m512 q8_0_half(const uint8_t *p, int h) {
    return floats16(widened(_mm_loadu_si128((const __m128i *)(p + 2 + 16 * h))));
}

/* sum += weights of a unit * x[2]; scaled (constant): whether the unit begins with a scale */
GWQ_INLINE __m512 add_unit(half_fn half, const int scaled, const uint8_t *p, const __m512 x[2],
                           __m512 sum) {
    if (!scaled) {
        sum = _mm512_fmadd_ps(half(p, 0), x[0], sum);
        return _mm512_fmadd_ps(half(p, 1), x[1], sum);
    }
    __m512 s = _mm512_fmadd_ps(half(p, 1), x[1], _mm512_mul_ps(half(p, 0), x[0]));
    return _mm512_fmadd_ps(halves_of(p), s, sum);
}

/* As rows_fn; ahead: bytes between a read and its prefetch, 0: no prefetch */
GWQ_INLINE void ggml_rows(half_fn half, const int scaled, size_t unit_bytes, const size_t ahead,
                          const uint8_t *const *row, const int count, int64_t cols,
                          const float *x, float *y) {
    const int64_t units = cols / 32, rest = cols % 32;
    __m512 sum[STREAMS], v[2];
    for (int k = 0; k < STREAMS; k++) sum[k] = _mm512_setzero_ps();
    for (int64_t u = 0; u < units; u++) {
        for (int i = 0; i < 2; i++) v[i] = _mm512_loadu_ps(x + 32 * u + 16 * i);
        for (int k = 0; k < count; k++) {
            const uint8_t *p = row[k] + (size_t)u * unit_bytes;
            if (ahead) prefetch(p, ahead, unit_bytes);
            sum[k] = add_unit(half, scaled, p, v, sum[k]);
        }
    }
    if (rest) { /* never q8_0, whose rows are whole units */
        float last[32] = {0};
        memcpy(last, x + 32 * units, (size_t)rest * sizeof *x);
        for (int i = 0; i < 2; i++) v[i] = _mm512_loadu_ps(last + 16 * i);
        for (int k = 0; k < count; k++) {
            uint8_t w[128] = {0};
            memcpy(w, row[k] + (size_t)units * unit_bytes, (size_t)rest * (unit_bytes / 32));
            sum[k] = add_unit(half, scaled, w, v, sum[k]);
        }
    }
    float sums[STREAMS];
    _mm_storeu_ps(sums, sums4_of_16(sum));
    for (int k = 0; k < count; k++) y[k] = sums[k];
}

/* --- many tokens ------------------------------------------------------------------------------ */

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

#define ROWS(name, cpu, unit_bytes, scaled, ahead)                                             \
    GWQ_INLINE void name##_##cpu##_rows(const uint8_t *const *row, int count, int64_t cols,    \
                                        const float *x, float *y) {                            \
        ggml_rows(name##_half, scaled, unit_bytes, ahead, row, count, cols, x, y);             \
    }
/* zen4: bytes of prefetch there, where whole cache lines are read faster without */
#define GGML_TYPE(name, unit_bytes, scaled, zen4)                                              \
    ROWS(name, any, unit_bytes, scaled, 4096)                                                  \
    ROWS(name, amdfam19h, unit_bytes, scaled, zen4)                                            \
    void gwq_avx512_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,            \
                                  const gwq_input *in, float *y) {                             \
        if (in->n == 1 && __builtin_cpu_is("amdfam19h"))                                       \
            ggml_gemv(name##_amdfam19h_rows, m, first, last, in, y);                           \
        else if (in->n == 1) ggml_gemv(name##_any_rows, m, first, last, in, y);                \
        else if (in->n <= GWQ_FEW) ggml_few(name##_any_rows, m, first, last, in, y);           \
        else                                                                                   \
            ggml_gemm(name##_floats, unit_bytes, four_rows, AT_ONCE, m, first, last, in, y);   \
    }
GGML_TYPE(f16, 64, 0, 0)
GGML_TYPE(bf16, 64, 0, 0)
GGML_TYPE(q8_0, 34, 1, 4096)

/* Of few tokens memory alone is the limit, and AVX2's smaller loads read it a little faster. */
void gwq_avx512_matmul_f32(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in,
                           float *y) {
    if (in->n <= GWQ_FEW) gwq_avx2_matmul_f32(m, first, last, in, y);
    else ggml_gemm(f32_floats, 128, four_rows, AT_ONCE, m, first, last, in, y);
}
