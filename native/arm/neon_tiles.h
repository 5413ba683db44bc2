/* Tile matrices in vectors of 16 bytes, 4 rows each: what neon.c, dotprod.c and i8mm.c share. They
 * differ in how they add up products, and include before this one of neon_sums.h and
 * dotprod_sums.h:
 *   running                       sums of 4 rows on their way through a block
 *   begin(&r)                     at the start of a block
 *   add(&r, entries, x, lane, first)  r += products of 4 rows x 4 columns; first: of a sub-block
 *   sum_of(&r, sub, biased, bias) the sums at the end of a sub-block of `sub` quads of columns
 *   TELESCOPE                     whether sums go on through a block
 * and likewise, of many tokens, neon_tokens.h or i8mm_tokens.h. */
#ifndef GWQ_NEON_TILES_H
#define GWQ_NEON_TILES_H
#include "neon_outliers.h"
#include "neon_unpack.h"
#include "cpu/tiles.h"

/* tile_ops.tables: entries are signed here */
GWQ_INLINE void signed_table(const int8_t *entry, uint8_t *table) { memcpy(table, entry, 16); }

/* factor[i], 8 rows each: what the sums of the k-th sub-block of `count` are multiplied by; s: the
 * block's scales, with SCALE_BIAS */
GWQ_INLINE void factors(const uint8x16_t *s, const int k, const int count, int16x8_t factor[2]) {
    const uint8x16_t less = TELESCOPE && k + 1 < count ? s[k + 1] : vdupq_n_u8(SCALE_BIAS);
    factor[0] = vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(s[k]), vget_low_u8(less)));
    factor[1] = vreinterpretq_s16_u16(vsubl_high_u8(s[k], less));
}

/* The same of 4 rows each */
GWQ_INLINE void wide_factors(const uint8x16_t *s, const int k, const int count,
                             int32x4_t factor[4]) {
    int16x8_t f[2];
    factors(s, k, count, f);
    for (int i = 0; i < 2; i++) {
        factor[2 * i] = vmovl_s16(vget_low_s16(f[i]));
        factor[2 * i + 1] = vmovl_high_s16(f[i]);
    }
}

/* Whether `quads` makes entries with ENTRY_BIAS */
#define BIASED(bits) ((bits) == 6)

/* y[4] += dx * dot */
GWQ_INLINE void add_rows(float dx, int32x4_t dot, float *y) {
    vst1q_f32(y, vfmaq_n_f32(vld1q_f32(y), vcvtq_f32_s32(dot), dx));
}

/* dot += the sums of the sub-block that quad c ends; bias: of the block */
GWQ_INLINE void end_sub(const int bits, const int c, const int sub, running *r,
                        const int16_t *bias, int32x4_t factor, int32x4_t *dot) {
    const int32x4_t sum = sum_of(r, sub, BIASED(bits), bias + 2 * (c / 4));
    *dot = c < sub ? vmulq_s32(sum, factor) : vmlaq_s32(*dot, sum, factor);
}

GWQ_INLINE void block(const int bits, const int unit, quads_fn quads, const int sub,
                      scales_fn scales, const uint8_t *table, const uint8_t *scale,
                      const uint8_t *line, const int8_t *q, float dx, const int16_t *bias,
                      float *y) {
    enum { LAST = GWQ_BLOCK / 4 };
    const int lines = lines_of(bits, unit), together = lines == 1 ? 4 : 2;
    const int step = unit < sub ? unit : sub;
    const int8x16_t t = vld1q_s8((const int8_t *)table);
    const uint8x16x4_t x = load64((const uint8_t *)q);
    uint8x16_t s[4];
    int32x4_t dot[4];
    running r[4];
    scales(scale, s);
    for (int h = 0; h < 4; h++) begin(&r[h]);
    /* Entries that a step does not use are not computed: codes of five bits come in two halves. */
    UNROLL for (int u = 0; u < LAST; u += step) {
        uint8x16_t a[4][LINES];
        UNROLL for (int h = 0; h < 4; h++) {
            int8x16_t v[8];
            if (h % together == 0) load_lines(lines, together, line + 16 * h, a);
            quads(t, a[h % together], v);
            UNROLL for (int c = u; c < u + step; c++)
                add(&r[h], v[c % unit], vreinterpretq_s8_u8(x.val[c / 4]), c % 4, c % sub == 0);
        }
        if ((u + step) % unit == 0) line += 64 * lines;
        /* One line: its load moves the address on. Half a unit: loaded when its turn comes. */
        if (lines == 1 || step < unit) IN_ORDER(line);
        if ((u + step) % sub) continue;
        int32x4_t factor[4];
        wide_factors(s, u / sub, LAST / sub, factor);
        UNROLL for (int h = 0; h < 4; h++)
            end_sub(bits, u + step - 1, sub, &r[h], bias, factor[h], &dot[h]);
    }
    for (int h = 0; h < 4; h++) add_rows(dx, dot[h], y + 4 * h);
}

/* The same for `count` (constant) tokens from token at / in->blocks on, `at` of their first block:
 * y[i] is what `block` would make of each. */
GWQ_INLINE void blocks(const int bits, const int unit, quads_fn quads, const int sub,
                       scales_fn scales, const uint8_t *table, const uint8_t *scale,
                       const uint8_t *line, const gwq_input *in, int64_t at, const int count,
                       float (*y)[GWQ_ROWS]) {
    const int8x16_t t = vld1q_s8((const int8_t *)table);
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
    const int64_t next = in->blocks; /* from a token's block to the next token's */
    uint8x16_t s[4];
    int32x4_t factor[4][4];
    scales(scale, s);
    for (int k = 0; k < GWQ_BLOCK / 4 / sub; k++)
        wide_factors(s, k, GWQ_BLOCK / 4 / sub, factor[k]);
    UNROLL for (int h = 0; h < 4; h++) {
        int8x16_t v[8];
        uint8x16_t a[LINES];
        int32x4_t dot[4];
        running r[4];
        for (int i = 0; i < count; i++) begin(&r[i]);
        UNROLL for (int u = 0; u < GWQ_BLOCK / 4; u += unit) {
            for (int l = 0; l < lines_of(bits, unit); l++)
                a[l] = vld1q_u8(line + 8 * bits * u + 64 * l + 16 * h);
            quads(t, a, v);
            UNROLL for (int p = 0; p < unit; p++) {
                const int c = u + p;
                UNROLL for (int i = 0; i < count; i++) {
                    const int8x16_t x = vld1q_s8(q + i * next * GWQ_BLOCK + 16 * (c / 4));
                    add(&r[i], v[p], x, c % 4, c % sub == 0);
                    if ((c + 1) % sub == 0)
                        end_sub(bits, c, sub, &r[i], bias + 8 * i * next, factor[c / sub][h],
                                &dot[i]);
                }
            }
        }
        for (int i = 0; i < count; i++) add_rows(in->scale[at + i * next], dot[i], y[i] + 4 * h);
    }
}

/* N: bits of a code. One row group at a time, 1 KB ahead: not tuned, no such CPU was at hand. */
#define TILE_TYPE(N)                                                                            \
    GWQ_INLINE void block##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,   \
                             const int8_t *q, float dx, const int16_t *bias, float *y) {        \
        block(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, q, dx, bias, y);    \
    }                                                                                           \
    static NOINLINE void two##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                                const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {        \
        blocks(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, in, at, 2, y);     \
    }                                                                                           \
    static NOINLINE void four##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                                 const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {       \
        blocks(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, in, at, 4, y);     \
    }                                                                                           \
    static void decode##N(const uint8_t *table, const uint8_t *line, gwq_entries entries) {     \
        decode(N, QUADS##N, quads##N, table, line, entries);                                    \
    }                                                                                           \
    static void decode_scales##N(const uint8_t *scale, gwq_scales scales) {                     \
        decode_scales(SUB##N, scales##N, scale, scales);                                        \
    }                                                                                           \
    static NOINLINE void tokens##N(const struct decoded *tile, int groups, int nb,              \
                                   const gwq_input *in, int64_t t, int count, int64_t b,        \
                                   struct sums *sums) {                                         \
        (void)groups; /* 1 */                                                                   \
        tokens(N, SUB##N, tile, nb, in, t, count, b, sums);                                     \
    }                                                                                           \
    static const tile_ops ops##N = {                                                            \
        TILE_OPS(N)                                                                             \
        .outliers = float_outliers,                                                             \
        .record = float_record,                                                                 \
        .multiply = multiply_values,                                                            \
        .multiply_few = multiply_few,                                                           \
        .expand = expand,                                                                       \
        .halves = gwq_neon_halves,                                                              \
        .streams = 1,                                                                           \
        .ahead = 1024,                                                                          \
        .groups = 1,                                                                            \
        .unit = 1,                                                                              \
        .tables = signed_table,                                                                 \
        .panel = gwq_neon_panel,                                                                \
        .tokens = tokens##N,                                                                    \
    };                                                                                          \
    TILE_MATMUL(N)
#endif
