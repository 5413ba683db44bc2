/* The reference for matrices of ggml types. */
#include "scalar.h"

enum {
    UNIT = 32, /* columns decoded at once */
    STRIP = 16 /* the tokens they are used for */
};

/* One function per type: w = the weights of `count` columns of a row from `first` on, a multiple of
 * UNIT. Types of blocks are always asked for whole blocks. */
typedef void (*floats_fn)(const uint8_t *row, int64_t first, int64_t count, float *w);

static inline void f32_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    memcpy(w, row + 4 * first, (size_t)count * sizeof *w);
}

static inline void f16_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    for (int64_t i = 0; i < count; i++) w[i] = half(row + 2 * (first + i));
}

static inline void bf16_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *p = row + 2 * (first + i);
        uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
        memcpy(w + i, &bits, 4);
    }
}

static inline void q8_0_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    const uint8_t *block = row + first / UNIT * sizeof(struct q8_0_block);
    for (int64_t i = 0; i < count; i++) w[i] = half(block) * (float)(int8_t)block[2 + i];
}

static inline void q4_floats(const float *level, const uint8_t *block, float *w) {
    float d = half(block);
    for (int i = 0; i < UNIT / 2; i++) {
        w[i] = d * level[block[2 + i] & 15];
        w[UNIT / 2 + i] = d * level[block[2 + i] >> 4];
    }
}

static inline void q4_0_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    static const float level[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    (void)count;
    q4_floats(level, row + first / UNIT * sizeof(struct q4_block), w);
}

static inline void iq4_nl_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    static const float level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                    1,    13,   25,  38,  53,  69,  89,  113};
    (void)count;
    q4_floats(level, row + first / UNIT * sizeof(struct q4_block), w);
}

static inline void ggml_dequantize(floats_fn floats, const gwq_matrix *m, int64_t group,
                                   float *out) {
    const size_t stride = m->data_bytes / (uint64_t)m->rows;
    const int64_t end = min64(m->rows, (group + 1) * GWQ_ROWS);
    for (int64_t r = group * GWQ_ROWS; r < end; r++, out += m->cols)
        for (int64_t i = 0; i < m->cols; i += UNIT) {
            const uint8_t *row = (const uint8_t *)m->data + (size_t)r * stride;
            floats(row, i, min64(UNIT, m->cols - i), out + i);
        }
}

/* Eight partial sums: the rounding error of one long chain would show. */
static inline float sum_of(const float s[8]) {
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

static inline void ggml_matmul(floats_fn floats, const gwq_matrix *m, int64_t first, int64_t last,
                               const gwq_input *in, float *y) {
    const size_t stride = m->data_bytes / (uint64_t)m->rows;
    const int64_t end = min64(m->rows, last * GWQ_ROWS);
    for (int64_t r = first * GWQ_ROWS; r < end; r++)
        for (int64_t t = 0; t < in->n; t += STRIP) {
            const uint8_t *row = (const uint8_t *)m->data + (size_t)r * stride;
            const int64_t tokens = min64(STRIP, in->n - t);
            float w[UNIT];
            float sum[STRIP][8] = {{0}};
            for (int64_t i = 0; i < m->cols; i += UNIT) {
                int64_t count = min64(UNIT, m->cols - i);
                floats(row, i, count, w);
                for (int64_t s = 0; s < tokens; s++) {
                    const float *x = in->x + (t + s) * m->cols + i;
                    for (int64_t k = 0; k < count; k++) sum[s][k % 8] += w[k] * x[k];
                }
            }
            for (int64_t s = 0; s < tokens; s++) y[(t + s) * m->rows + r] = sum_of(sum[s]);
        }
}

#define GGML_TYPE(name)                                                                     \
    void gwq_scalar_dequantize_##name(const gwq_matrix *m, int64_t group, float *out) {     \
        ggml_dequantize(name##_floats, m, group, out);                                      \
    }                                                                                       \
    void gwq_scalar_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,         \
                                  const gwq_input *in, float *y) {                          \
        ggml_matmul(name##_floats, m, first, last, in, y);                                  \
    }
GGML_TYPE(f32)
GGML_TYPE(f16)
GGML_TYPE(bf16)
GGML_TYPE(q8_0)
GGML_TYPE(q4_0)
GGML_TYPE(iq4_nl)
