/* The walks over a matrix of a ggml type, of one token, a few and many. Plain C: a SIMD file hands
 * in its inner functions, which are inlined. */
#ifndef GWQ_GGML_ROWS_H
#define GWQ_GGML_ROWS_H
#include "tile_ops.h"

enum {
    UNIT = 32,   /* columns that are decoded at once */
    CHUNK = 256, /* columns of 16 rows that are decoded once for many tokens */
    UNIT_BYTES = 4 * UNIT /* at most */
};

/* w = the 32 weights of a unit */
typedef void (*floats_fn)(const uint8_t *unit, float w[UNIT]);
/* One token: y[k] = dot of the row at row[k] with x, for k < count (constant, at most STREAMS) */
typedef void (*rows_fn)(const uint8_t *const *row, int count, int64_t cols, const float *x,
                        float *y);
/* y[i * stride + r] += w[r] . x[i] over `width` columns, for r < rows <= 4 and i < count <=
 * at_once; x[i]: `cols` after the one before it. The weights beyond `width` are zero. */
typedef void (*four_fn)(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                        int count, int rows, float *y, int64_t stride);

/* The first `cols` < UNIT columns of a unit, and zeros */
GWQ_INLINE void part_of_unit(const uint8_t *p, size_t unit_bytes, int64_t cols,
                             uint8_t copy[UNIT_BYTES]) {
    memset(copy, 0, UNIT_BYTES);
    memcpy(copy, p, (size_t)cols * (unit_bytes / UNIT));
}

/* out (cols) = weights of a row, from p on */
GWQ_INLINE void ggml_row(floats_fn floats, size_t unit_bytes, const uint8_t *p, int64_t cols,
                         float *out) {
    for (; cols >= UNIT; cols -= UNIT, p += unit_bytes, out += UNIT) floats(p, out);
    if (!cols) return;
    uint8_t last[UNIT_BYTES];
    float w[UNIT];
    part_of_unit(p, unit_bytes, cols, last);
    floats(last, w);
    memcpy(out, w, (size_t)cols * sizeof *out);
}

GWQ_INLINE void ggml_dequantize(floats_fn floats, size_t unit_bytes, const gwq_matrix *m,
                                int64_t group, float *out) {
    const size_t stride = m->data_bytes / (uint64_t)m->rows;
    const int64_t end = min64(m->rows, (group + 1) * GWQ_ROWS);
    for (int64_t r = group * GWQ_ROWS; r < end; r++, out += m->cols)
        ggml_row(floats, unit_bytes, (const uint8_t *)m->data + (size_t)r * stride, m->cols, out);
}

/* One token: STREAMS rows that are far apart are read at the same time. */
GWQ_INLINE void ggml_gemv(rows_fn rows, const gwq_matrix *m, int64_t first, int64_t last,
                          const gwq_input *in, float *y) {
    const size_t stride = m->data_bytes / (uint64_t)m->rows;
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
    enum { SOME = 4 }; /* row groups */
    gwq_input one = *in;
    one.n = 1;
    for (int64_t g = first; g < last; g += SOME)
        for (int64_t t = 0; t < in->n; t++) {
            one.x = in->x + t * in->cols;
            ggml_gemv(rows, m, g, min64(g + SOME, last), &one, y + t * m->rows);
        }
}

/* Many tokens: 16 rows x CHUNK columns are decoded once. */
GWQ_INLINE void ggml_gemm(floats_fn floats, size_t unit_bytes, four_fn four, const int at_once,
                          const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in,
                          float *y) {
    const size_t stride = m->data_bytes / (uint64_t)m->rows;
    _Alignas(64) float w[GWQ_ROWS][CHUNK];
    for (int64_t g = first; g < last; g++) {
        const int64_t row = g * GWQ_ROWS;
        const int rows = (int)min64(GWQ_ROWS, m->rows - row);
        for (int64_t t = 0; t < in->n; t++)
            memset(y + t * m->rows + row, 0, (size_t)rows * sizeof *y);
        for (int64_t c = 0; c < m->cols; c += CHUNK) {
            const int64_t width = min64(CHUNK, m->cols - c);
            memset(w, 0, rows < GWQ_ROWS || width < CHUNK ? sizeof w : 0);
            for (int r = 0; r < rows; r++) {
                const uint8_t *p = (const uint8_t *)m->data + (size_t)(row + r) * stride +
                                   (size_t)(c / UNIT) * unit_bytes;
                prefetch(p, CHUNK / UNIT * unit_bytes, CHUNK / UNIT * unit_bytes);
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

GWQ_INLINE void ggml_matmul(rows_fn rows, floats_fn floats, size_t unit_bytes, four_fn four,
                            const int at_once, const gwq_matrix *m, int64_t first, int64_t last,
                            const gwq_input *in, float *y) {
    if (in->n == 1) ggml_gemv(rows, m, first, last, in, y);
    else if (in->n <= GWQ_FEW) ggml_few(rows, m, first, last, in, y);
    else ggml_gemm(floats, unit_bytes, four, at_once, m, first, last, in, y);
}
#endif
