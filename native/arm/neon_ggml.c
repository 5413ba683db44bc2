/* NEON: matrices of the ggml types f32, f16, bf16 and q8_0. */
#include "neon.h"
#include "cpu/ggml_rows.h"

enum { PARTS = UNIT / 4 }; /* vectors of a unit */

/* --- one function per type: the weights of a unit --------------------------------------------- */

GWQ_INLINE void f32_weights(const uint8_t *p, float32x4_t w[PARTS]) {
    for (int i = 0; i < PARTS; i++) w[i] = vreinterpretq_f32_u8(vld1q_u8(p + 16 * i));
}
GWQ_INLINE void f16_weights(const uint8_t *p, float32x4_t w[PARTS]) {
    for (int i = 0; i < PARTS; i += 2) half8(p + 8 * i, w + i);
}
GWQ_INLINE void bf16_weights(const uint8_t *p, float32x4_t w[PARTS]) {
    for (int i = 0; i < PARTS; i += 2) {
        const uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(p + 8 * i));
        w[i] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16));
        w[i + 1] = vreinterpretq_f32_u32(vshll_high_n_u16(v, 16));
    }
}
GWQ_INLINE void q8_0_codes(const uint8_t *p, float32x4_t w[PARTS]) {
    for (int i = 0; i < PARTS; i += 4) {
        int32x4_t n[4];
        widen16(vreinterpretq_s8_u8(vld1q_u8(p + 2 + 4 * i)), n);
        for (int k = 0; k < 4; k++) w[i + k] = vcvtq_f32_s32(n[k]);
    }
}
GWQ_INLINE void q8_0_weights(const uint8_t *p, float32x4_t w[PARTS]) {
    const float d = half1(p);
    q8_0_codes(p, w);
    for (int i = 0; i < PARTS; i++) w[i] = vmulq_n_f32(w[i], d);
}

/* --- one token: sum[2] += weights of a unit * x ----------------------------------------------- */

typedef void (*unit_fn)(const uint8_t *unit, const float32x4_t x[PARTS], float32x4_t sum[2]);

#define PLAIN_UNIT(name)                                                                         \
    GWQ_INLINE void name##_unit(const uint8_t *p, const float32x4_t x[PARTS],                    \
                            float32x4_t sum[2]) {                                                \
        float32x4_t w[PARTS];                                                                    \
        name##_weights(p, w);                                                                    \
        for (int i = 0; i < PARTS; i++) sum[i % 2] = vfmaq_f32(sum[i % 2], w[i], x[i]);          \
    }
PLAIN_UNIT(f32)
PLAIN_UNIT(f16)
PLAIN_UNIT(bf16)

GWQ_INLINE void q8_0_unit(const uint8_t *p, const float32x4_t x[PARTS], float32x4_t sum[2]) {
    float32x4_t w[PARTS], s[2];
    q8_0_codes(p, w);
    for (int i = 0; i < 2; i++) s[i] = vmulq_f32(w[i], x[i]);
    for (int i = 2; i < PARTS; i++) s[i % 2] = vfmaq_f32(s[i % 2], w[i], x[i]);
    const float d = half1(p);
    for (int i = 0; i < 2; i++) sum[i] = vfmaq_n_f32(sum[i], s[i], d);
}

/* As rows_fn */
GWQ_INLINE void ggml_rows(unit_fn unit, size_t unit_bytes, const uint8_t *const *row,
                          const int rows, int64_t cols, const float *x, float *y) {
    enum { AHEAD = 1024 };
    const int64_t units = cols / UNIT, rest = cols % UNIT;
    float32x4_t sum[STREAMS][2], v[PARTS];
    for (int k = 0; k < rows; k++) sum[k][0] = sum[k][1] = vdupq_n_f32(0);
    for (int64_t u = 0; u < units; u++) {
        for (int i = 0; i < PARTS; i++) v[i] = vld1q_f32(x + UNIT * u + 4 * i);
        for (int k = 0; k < rows; k++) {
            const uint8_t *p = row[k] + (size_t)u * unit_bytes;
            prefetch(p, AHEAD, unit_bytes);
            unit(p, v, sum[k]);
        }
    }
    if (rest) { /* never q8_0, whose rows are whole units */
        float last[UNIT] = {0};
        memcpy(last, x + UNIT * units, (size_t)rest * sizeof *x);
        for (int i = 0; i < PARTS; i++) v[i] = vld1q_f32(last + 4 * i);
        for (int k = 0; k < rows; k++) {
            uint8_t w[UNIT_BYTES];
            part_of_unit(row[k] + (size_t)units * unit_bytes, unit_bytes, rest, w);
            unit(w, v, sum[k]);
        }
    }
    for (int k = 0; k < rows; k++) y[k] = vaddvq_f32(vaddq_f32(sum[k][0], sum[k][1]));
}

/* --- many tokens: 4 rows x 4 tokens in registers ---------------------------------------------- */

enum { AT_ONCE = 4 };

/* As four_fn, `count` is a constant */
GWQ_INLINE void some_tokens(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                            const int count, int rows, float *y, int64_t stride) {
    float32x4_t sum[AT_ONCE][4], v[AT_ONCE];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < 4; r++) sum[i][r] = vdupq_n_f32(0);
    for (int64_t c = 0; c < width; c += 4) {
        for (int i = 0; i < count; i++) {
            const float *from = x + i * cols + c;
            float last[4] = {0}; /* the weights beyond `width` are zero */
            if (width - c < 4) from = memcpy(last, from, (size_t)(width - c) * sizeof *x);
            v[i] = vld1q_f32(from);
        }
        for (int r = 0; r < 4; r++) {
            const float32x4_t f = vld1q_f32(w[r] + c);
            for (int i = 0; i < count; i++) sum[i][r] = vfmaq_f32(sum[i][r], f, v[i]);
        }
    }
    for (int i = 0; i < count; i++) {
        float four[4];
        vst1q_f32(four, sums4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]));
        for (int r = 0; r < rows; r++) y[i * stride + r] += four[r];
    }
}

GWQ_INLINE void four_rows(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width,
                          int count, int rows, float *y, int64_t stride) {
    if (count == 4) some_tokens(w, x, cols, width, 4, rows, y, stride);
    else
        for (int i = 0; i < count; i++)
            some_tokens(w, x + i * cols, cols, width, 1, rows, y + i * stride, stride);
}

#define GGML_TYPE(name, unit_bytes)                                                         \
    GWQ_INLINE void name##_floats(const uint8_t *p, float out[UNIT]) {                      \
        float32x4_t w[PARTS];                                                               \
        name##_weights(p, w);                                                               \
        for (int i = 0; i < PARTS; i++) vst1q_f32(out + 4 * i, w[i]);                       \
    }                                                                                       \
    GWQ_INLINE void name##_rows(const uint8_t *const *row, int count, int64_t cols,         \
                                const float *x, float *y) {                                 \
        ggml_rows(name##_unit, unit_bytes, row, count, cols, x, y);                         \
    }                                                                                       \
    void gwq_neon_dequantize_##name(const gwq_matrix *m, int64_t group, float *out) {       \
        ggml_dequantize(name##_floats, unit_bytes, m, group, out);                          \
    }                                                                                       \
    void gwq_neon_matmul_##name(const gwq_matrix *m, int64_t first, int64_t last,           \
                                const gwq_input *in, float *y) {                            \
        ggml_matmul(name##_rows, name##_floats, unit_bytes, four_rows, AT_ONCE, m, first, last, \
                    in, y);                                                                 \
    }
GGML_TYPE(f32, 128)
GGML_TYPE(f16, 64)
GGML_TYPE(bf16, 64)
GGML_TYPE(q8_0, 34)
