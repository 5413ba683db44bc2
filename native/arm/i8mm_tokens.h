/* Many tokens against decoded tiles with products of 2 x 8 by 8 x 2 bytes (smmla): two rows and two
 * tokens at a time. As dotprod_sums.h, sums go on through a block. */
#ifndef GWQ_I8MM_TOKENS_H
#define GWQ_I8MM_TOKENS_H
#include "neon_tiles.h"

/* Of the columns 8j .. 8j+7, in the place of two quads of columns: two rows in each 16 bytes */
GWQ_INLINE void decode(const int bits, const int unit, quads_fn quads, const uint8_t *table,
                       const uint8_t *line, gwq_entries entries) {
    const int8x16_t t = vld1q_s8((const int8_t *)table);
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit)
        for (int h = 0; h < 4; h++) {
            int8x16_t v[8];
            uint8x16_t a[LINES];
            for (int l = 0; l < lines_of(bits, unit); l++) a[l] = vld1q_u8(line + 64 * l + 16 * h);
            quads(t, a, v);
            for (int p = 0; p < unit; p += 2) {
                const int32x4_t left = vreinterpretq_s32_s8(v[p]);
                const int32x4_t right = vreinterpretq_s32_s8(v[p + 1]);
                int32_t *to = (int32_t *)entries[u + p] + 8 * h;
                vst1q_s32(to, vzip1q_s32(left, right));
                vst1q_s32(to + 4, vzip2q_s32(left, right));
            }
        }
}

/* scales[k]: factors of the k-th sub-block, 16 bits, each row's twice */
GWQ_INLINE void decode_scales(const int sub, scales_fn f, const uint8_t *scale, gwq_scales scales) {
    const int count = GWQ_BLOCK / 4 / sub;
    uint8x16_t s[4];
    f(scale, s);
    for (int k = 0; k < count; k++) {
        int16_t *to = (int16_t *)scales[k];
        int16x8_t factor[2];
        factors(s, k, count, factor);
        for (int i = 0; i < 2; i++) {
            vst1q_s16(to + 16 * i, vzip1q_s16(factor[i], factor[i]));
            vst1q_s16(to + 16 * i + 8, vzip2q_s16(factor[i], factor[i]));
        }
    }
}

enum { PAIRS = 2 }; /* of tokens */

/* What the bias of 16 columns adds to the sums of two tokens, of each row; start:
 * gwq_input.start */
GWQ_INLINE int32x4_t start_of_two(const int32_t *start) {
    int32x2_t two = vdup_n_s32(start[0]);
    two = vset_lane_s32(start[4], two, 1);
    return vcombine_s32(two, two);
}

/* Four tokens against the rows 8g .. 8g+7 of nb decoded blocks */
GWQ_INLINE void eight_rows(const int bits, const int sub, const struct decoded *tile, int nb,
                           const gwq_input *in, int64_t at, int g, float (*acc)[GWQ_ROWS]) {
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int32_t *start = in->start + 4 * at;
    const float *dx = in->scale + at;
    for (int k = 0; k < nb; k++, q += GWQ_PANEL * GWQ_BLOCK, start += 4 * GWQ_PANEL,
             dx += GWQ_PANEL) {
        int32x4_t r[PAIRS][4], dot[PAIRS][4]; /* row 0: token 0, 1; row 1: token 0, 1 */
        for (int i = 0; i < PAIRS; i++)
            for (int h = 0; h < 4; h++) r[i][h] = dot[i][h] = vdupq_n_s32(0);
        ROLLED for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
            UNROLL for (int p = 0; p < sub; p += 4) { /* 16 columns */
                const int8_t *v = (const int8_t *)tile->entries[k][u + p] + 64 * g;
                int64x2_t x[PAIRS][2];
                for (int i = 0; i < PAIRS; i++) {
                    const int8_t *from = q + 2 * GWQ_BLOCK * i + 4 * (u + p);
                    const int64x2_t one = vreinterpretq_s64_s8(vld1q_s8(from));
                    const int64x2_t two = vreinterpretq_s64_s8(vld1q_s8(from + GWQ_BLOCK));
                    x[i][0] = vzip1q_s64(one, two);
                    x[i][1] = vzip2q_s64(one, two);
                }
                UNROLL for (int e = 0; e < 2; e++) /* 8 columns */
                    UNROLL for (int h = 0; h < 4; h++) {
                        const int8x16_t rows = vld1q_s8(v + 128 * e + 16 * h);
                        for (int i = 0; i < PAIRS; i++)
                            r[i][h] = vmmlaq_s32(r[i][h], rows, vreinterpretq_s8_s64(x[i][e]));
                    }
            }
            const int16_t *f = (const int16_t *)tile->scales[k][u / sub] + 16 * g;
            for (int h = 0; h < 4; h++) {
                const int32x4_t factor = vmovl_s16(vld1_s16(f + 4 * h));
                for (int i = 0; i < PAIRS; i++) {
                    if (BIASED(bits))
                        r[i][h] = vaddq_s32(r[i][h], start_of_two(start + 8 * i + u / 4));
                    dot[i][h] = vmlaq_s32(dot[i][h], r[i][h], factor);
                }
            }
        }
        for (int i = 0; i < PAIRS; i++)
            for (int h = 0; h < 4; h += 2) {
                float *y = acc[2 * i] + 8 * g + 2 * h, *next = acc[2 * i + 1] + 8 * g + 2 * h;
                add_rows(dx[2 * i], vuzp1q_s32(dot[i][h], dot[i][h + 1]), y);
                add_rows(dx[2 * i + 1], vuzp2q_s32(dot[i][h], dot[i][h + 1]), next);
            }
    }
}

/* As tile_ops.tokens, of one row group */
GWQ_INLINE void tokens(const int bits, const int sub, const struct decoded *tile, int nb,
                       const gwq_input *in, int64_t t, int count, int64_t b, struct sums *sums) {
    const int64_t at = gwq_code_at(in, t, b);
    for (int i = 0; i < count; i += 2 * PAIRS)
        ROLLED for (int g = 0; g < 2; g++)
            eight_rows(bits, sub, tile, nb, in, at + i, g, sums->dense + i);
}
#endif
