/* Matrices of the ggml types with AVX2: their weights as floats, and the walks over them, of one
 * token, a few and many. */
#ifndef GWQ_AVX2_GGML_H
#define GWQ_AVX2_GGML_H
#include "avx2.h"
#include "cpu/tiles.h"

/* w = the 32 weights of a unit */
typedef void (*floats_fn)(const uint8_t *unit, __m256 w[4]);

GWQ_INLINE void f32_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) w[i] = _mm256_castsi256_ps(load(p + 32 * i));
}
GWQ_INLINE void f16_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) w[i] = half8(p + 16 * i);
}
GWQ_INLINE void bf16_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * i)));
        w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    }
}
GWQ_INLINE void q8_0_codes(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) {
        __m128i codes = _mm_loadl_epi64((const __m128i *)(p + 2 + 8 * i));
        w[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes));
    }
}
GWQ_INLINE void q8_0_floats(const uint8_t *p, __m256 w[4]) {
    __m256 d = _mm256_set1_ps(half1(p));
    q8_0_codes(p, w);
    for (int i = 0; i < 4; i++) w[i] = _mm256_mul_ps(d, w[i]);
}

/* out (cols) = weights of a row, from p on */
GWQ_INLINE void ggml_row(floats_fn floats, size_t unit_bytes, const uint8_t *p, int64_t cols,
                         float *out) {
    __m256 w[4];
    for (; cols >= 32; cols -= 32, p += unit_bytes, out += 32) {
        floats(p, w);
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(out + 8 * i, w[i]);
    }
    if (cols) {
        uint8_t last[128] = {0};
        float f[32];
        memcpy(last, p, (size_t)cols * (unit_bytes / 32));
        floats(last, w);
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(f + 8 * i, w[i]);
        memcpy(out, f, (size_t)cols * sizeof *out);
    }
}

/* One token: y[k] = dot of the row at row[k] with x, for k < count (constant, at most STREAMS).
 * Rows that are far apart are read at the same time. */
typedef void (*rows_fn)(const uint8_t *const *row, int count, int64_t cols, const float *x,
                        float *y);

GWQ_INLINE void ggml_gemv(rows_fn rows, const gwq_matrix *m, int64_t first, int64_t last,
                          const gwq_input *in, float *y) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    int64_t row = first * GWQ_ROWS;
    const int64_t end = min64(m->rows, last * GWQ_ROWS);
    const int64_t each = (end - row) / STREAMS;
    const uint8_t *p[STREAMS];
    for (int64_t i = 0; i < each; i++) {
        float sum[STREAMS];
        for (int k = 0; k < STREAMS; k++)
            p[k] = (const uint8_t *)m->data + (size_t)(row + k * each + i) * stride;
        rows(p, STREAMS, m->cols, in->x, sum);
        for (int k = 0; k < STREAMS; k++) y[row + k * each + i] = sum[k];
    }
    for (row += STREAMS * each; row < end; row++) {
        p[0] = (const uint8_t *)m->data + (size_t)row * stride;
        rows(p, 1, m->cols, in->x, y + row);
    }
}

/* Up to GWQ_FEW tokens: some rows for one after the other, while they are in the cache. Each token
 * gets what it gets alone, to the bit. */
GWQ_INLINE void ggml_few(rows_fn rows, const gwq_matrix *m, int64_t first, int64_t last,
                         const gwq_input *in, float *y) {
    enum { PIECE = 4 }; /* row groups */
    gwq_input one = *in;
    one.n = 1;
    for (int64_t g = first; g < last; g += PIECE)
        for (int64_t t = 0; t < in->n; t++) {
            one.x = in->x + t * in->cols;
            ggml_gemv(rows, m, g, min64(g + PIECE, last), &one, y + t * m->rows);
        }
}

/* Several tokens: 16 rows x CHUNK columns are converted once. */
enum { CHUNK = 256 };

/* y[i * stride + r] += w[r] . x[i] over `width` columns, for r < rows <= 4 and i < count <=
 * at_once; x[i]: `cols` after the one before it. The weights beyond `width` are zero. */
typedef void (*four_fn)(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                        int count, int rows, float *y, int64_t stride);

GWQ_INLINE void ggml_gemm(floats_fn floats, size_t unit_bytes, four_fn four, const int at_once,
                          const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in,
                          float *y) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    _Alignas(64) float w[GWQ_ROWS][CHUNK];
    for (int64_t g = first; g < last; g++) {
        int64_t row = g * GWQ_ROWS;
        int rows = (int)min64(GWQ_ROWS, m->rows - row);
        for (int64_t t = 0; t < in->n; t++)
            memset(y + t * m->rows + row, 0, (size_t)rows * sizeof *y);
        for (int64_t c = 0; c < m->cols; c += CHUNK) {
            int64_t width = min64(CHUNK, m->cols - c);
            memset(w, 0, rows < GWQ_ROWS || width < CHUNK ? sizeof w : 0);
            for (int r = 0; r < rows; r++) {
                const uint8_t *p = (const uint8_t *)m->data + (size_t)(row + r) * stride +
                                   (size_t)(c / 32) * unit_bytes;
                prefetch(p, CHUNK / 32 * unit_bytes, CHUNK / 32 * unit_bytes);
                ggml_row(floats, unit_bytes, p, width, w[r]);
            }
            for (int64_t t = 0; t < in->n; t += at_once)
                for (int r = 0; r < rows; r += 4)
                    four(w + r, in->x + t * in->cols + c, in->cols, width,
                         (int)min64(at_once, in->n - t), (int)min64(4, rows - r),
                         y + t * m->rows + row + r, m->rows);
        }
    }
}
#endif
