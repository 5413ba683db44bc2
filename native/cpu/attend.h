/* Attention of GWQ_MANY queries over keys and values that are floats: one text, compiled once per
 * instruction set by the files that include it.
 *
 * A query is a lane, so that what is done to its scores takes no sums across a vector. Before that,
 * such a file defines LANES (floats of a vector), and ROWS and VECTORS: a tile of a product is ROWS
 * rows of VECTORS vectors. */
#ifndef GWQ_ATTEND_H
#define GWQ_ATTEND_H
#include "lanes.h"

_Static_assert(GWQ_MANY % (VECTORS * LANES) == 0, "whole tiles side by side");

/* a * b + c: rounded once where that is one instruction */
GWQ_INLINE lanes product_sum(lanes a, lanes b, lanes c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return fused(a, b, c);
#else
    return a * b + c;
#endif
}

/* out (rows, VECTORS), a tile of `products`; rows is a constant */
GWQ_INLINE void product_tile(const float *a, int64_t row, int64_t column, const int rows,
                             int64_t terms, const float (*b)[GWQ_MANY], const float *shrink,
                             float (*out)[GWQ_MANY]) {
    lanes sum[ROWS][VECTORS], right[VECTORS];
    for (int v = 0; v < VECTORS; v++)
        for (int r = 0; r < rows; r++)
            sum[r][v] = shrink ? load(out[r] + v * LANES) * load(shrink + v * LANES) : all(0);
    for (int64_t k = 0; k < terms; k++, a += column) {
        for (int v = 0; v < VECTORS; v++) right[v] = load(b[k] + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const lanes x = all(a[r * row]);
            for (int v = 0; v < VECTORS; v++) sum[r][v] = product_sum(x, right[v], sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) memcpy(out[r] + v * LANES, &sum[r][v], sizeof(lanes));
}

/* See gwq_kernels.products; what is constant of row, column and shrink makes shorter code. */
GWQ_INLINE void products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                         const float (*b)[GWQ_MANY], const float *shrink, float (*out)[GWQ_MANY]) {
    for (int c = 0; c < GWQ_MANY; c += VECTORS * LANES) {
        const float(*right)[GWQ_MANY] = (const float(*)[GWQ_MANY])(b[0] + c);
        const float *of = shrink ? shrink + c : NULL;
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS)
            product_tile(a + r * row, row, column, ROWS, terms, right, of,
                         (float(*)[GWQ_MANY])(out[r] + c));
        for (; r < rows; r++)
            product_tile(a + r * row, row, column, 1, terms, right, of,
                         (float(*)[GWQ_MANY])(out[r] + c));
    }
}

/* e^x, x not above 0; 0 where x is below -87 or no number.
 *
 * e^x = 2^n e^r, |r| <= ln(2)/2, Taylor to r^7 (error 5e-9). */
GWQ_INLINE lanes exponential(lanes x) {
    const lanes magic = all(0x1.8p23f); /* the last bits of a sum with it are its integer */
    const flags counts = x >= all(-87);
    const lanes shifted = product_sum(x, all(0x1.715476p+0f), magic); /* x / ln 2 */
    const lanes n = shifted - magic;
    /* r = x - n ln 2, with ln 2 in two parts, the first one short: its product is exact */
    lanes r = product_sum(n, all(-0x1.62e4p-1f), x);
    r = product_sum(n, all(-0x1.7f7d1cp-20f), r);
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    lanes p = all(1.f / 5040);
#pragma GCC unroll 8
    for (int i = 0; i < 7; i++) p = product_sum(p, r, all(factor[i]));
    const lanes power = (lanes)(((flags)shifted + 127) << 23);
    return (lanes)((flags)(p * power) & counts);
}

/* See gwq_kernels.weigh */
GWQ_INLINE void weigh(float (*s)[GWQ_MANY], int keys, float *most, float *total, float *shrink) {
    for (int c = 0; c < GWQ_MANY; c += LANES) {
        const lanes before = load(most + c);
        lanes top = before, sum = all(0);
        for (int n = 0; n < keys; n++) {
            const lanes x = load(s[n] + c);
            top = pick((flags)(x > top), x, top);
        }
        for (int n = 0; n < keys; n++) {
            const lanes e = exponential(load(s[n] + c) - top);
            memcpy(s[n] + c, &e, sizeof e);
            sum += e;
        }
        const lanes less = exponential(before - top);
        sum = product_sum(load(total + c), less, sum);
        memcpy(most + c, &top, sizeof top);
        memcpy(total + c, &sum, sizeof sum);
        memcpy(shrink + c, &less, sizeof less);
    }
}
#endif
