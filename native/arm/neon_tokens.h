/* Many tokens against decoded tiles, row by row as in neon_tiles.h: of neon.c and dotprod.c. The
 * file that includes it has defined AT_ONCE, the tokens whose sums its registers hold. */
#ifndef GWQ_NEON_TOKENS_H
#define GWQ_NEON_TOKENS_H
#include "neon_tiles.h"

GWQ_INLINE void decode(const int bits, const int unit, quads_fn quads, const uint8_t *table,
                       const uint8_t *line, gwq_entries entries) {
    const int8x16_t t = vld1q_s8((const int8_t *)table);
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit)
        for (int h = 0; h < 4; h++) {
            int8x16_t v[8];
            uint8x16_t a[LINES];
            for (int l = 0; l < lines_of(bits, unit); l++) a[l] = vld1q_u8(line + 64 * l + 16 * h);
            quads(t, a, v);
            for (int p = 0; p < unit; p++) vst1q_s8((int8_t *)&entries[u + p][16 * h], v[p]);
        }
}

/* scales[k]: factors of the k-th sub-block, 32 bits for each row */
GWQ_INLINE void decode_scales(const int sub, scales_fn f, const uint8_t *scale, gwq_scales scales) {
    uint8x16_t s[4];
    f(scale, s);
    for (int k = 0; k < GWQ_BLOCK / 4 / sub; k++) {
        int32x4_t factor[4];
        wide_factors(s, k, GWQ_BLOCK / 4 / sub, factor);
        for (int h = 0; h < 4; h++) vst1q_s32((int32_t *)&scales[k][16 * h], factor[h]);
    }
}

/* `count` (constant, at most AT_ONCE) tokens against the rows 4h .. 4h+7 of nb decoded blocks */
GWQ_INLINE void eight_rows(const int bits, const int sub, const struct decoded *tile, int nb,
                           const gwq_input *in, int64_t at, const int count, int h,
                           float (*acc)[GWQ_ROWS]) {
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
    const float *dx = in->scale + at;
    for (int k = 0; k < nb; k++, q += GWQ_PANEL * GWQ_BLOCK, bias += 8 * GWQ_PANEL,
             dx += GWQ_PANEL) {
        running r[AT_ONCE][2];
        int32x4_t dot[AT_ONCE][2];
        for (int i = 0; i < count; i++)
            for (int g = 0; g < 2; g++) {
                begin(&r[i][g]);
                dot[i][g] = vdupq_n_s32(0);
            }
        ROLLED for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
            const int8_t *v = (const int8_t *)&tile->entries[k][u][16 * h];
            UNROLL for (int p = 0; p < sub; p++) {
                const int8x16_t low = vld1q_s8(v + 64 * p), high = vld1q_s8(v + 64 * p + 16);
                UNROLL for (int i = 0; i < count; i++) {
                    const int8x16_t x = vld1q_s8(q + GWQ_BLOCK * i + 4 * u + 16 * (p / 4));
                    add(&r[i][0], low, x, p % 4, p == 0);
                    add(&r[i][1], high, x, p % 4, p == 0);
                }
            }
            const int32_t *f = (const int32_t *)&tile->scales[k][u / sub][16 * h];
            UNROLL for (int i = 0; i < count; i++) {
                for (int g = 0; g < 2; g++) {
                    int32x4_t sum = sum_of(&r[i][g], sub, BIASED(bits), bias + 8 * i + u / 2);
                    dot[i][g] = vmlaq_s32(dot[i][g], sum, vld1q_s32(f + 4 * g));
                }
            }
        }
        for (int i = 0; i < count; i++)
            for (int g = 0; g < 2; g++) add_rows(dx[i], dot[i][g], acc[i] + 4 * (h + g));
    }
}

/* As tile_ops.tokens, of one row group */
GWQ_INLINE void tokens(const int bits, const int sub, const struct decoded *tile, int nb,
                       const gwq_input *in, int64_t t, int count, int64_t b, struct sums *sums) {
    const int64_t at = gwq_code_at(in, t, b);
    for (int i = 0; i < count; i += AT_ONCE) /* AT_ONCE divides 4: there is room */
        ROLLED for (int h = 0; h < 4; h += 2)
            eight_rows(bits, sub, tile, nb, in, at + i, AT_ONCE, h, sums->dense + i);
}
#endif
