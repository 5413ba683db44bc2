/* Attention of GWQ_MANY queries over keys and values that are floats: one text, compiled once per
 * instruction set by the files that include it.
 *
 * A query is a lane, so that what is done to its scores takes no sums across a vector. Before that,
 * such a file defines LANES (floats of a vector), and ROWS and VECTORS: a tile of a product is ROWS
 * rows of VECTORS vectors, or as many vectors one below the other. */
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

/* A tile of `products`, out (rows, vectors); both are constants, with at most TILE vectors in all.
 * */
enum { TILE = ROWS * VECTORS };
GWQ_INLINE void product_tile(const float *a, int64_t row, int64_t column, const int rows,
                             const int vectors, int64_t terms, const float (*b)[GWQ_MANY],
                             const float *shrink, float (*out)[GWQ_MANY]) {
    lanes sum[TILE], right[VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            sum[r * vectors + v] =
                shrink ? load(out[r] + v * LANES) * load(shrink + v * LANES) : all(0);
    for (int64_t k = 0; k < terms; k++, a += column) {
        for (int v = 0; v < vectors; v++) right[v] = load(b[k] + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const lanes x = all(a[r * row]);
            for (int v = 0; v < vectors; v++)
                sum[r * vectors + v] = product_sum(x, right[v], sum[r * vectors + v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++)
            memcpy(out[r] + v * LANES, &sum[r * vectors + v], sizeof(lanes));
}

/* The columns of `products` from c on, as many as `vectors` (constant) have */
GWQ_INLINE void product_columns(const float *a, int64_t row, int64_t column, int64_t rows,
                                const int vectors, int64_t terms, const float (*b)[GWQ_MANY],
                                const float *shrink, float (*out)[GWQ_MANY], int c) {
    const float(*right)[GWQ_MANY] = (const float(*)[GWQ_MANY])(b[0] + c);
    const float *of = shrink ? shrink + c : NULL;
    int64_t r = 0;
    for (; r + TILE / vectors <= rows; r += TILE / vectors)
        product_tile(a + r * row, row, column, TILE / vectors, vectors, terms, right, of,
                     (float(*)[GWQ_MANY])(out[r] + c));
    for (; r < rows; r++)
        product_tile(a + r * row, row, column, 1, vectors, terms, right, of,
                     (float(*)[GWQ_MANY])(out[r] + c));
}

/* See gwq_kernels.products */
GWQ_INLINE void products(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                         int width, const float (*b)[GWQ_MANY], const float *shrink,
                         float (*out)[GWQ_MANY]) {
    int c = 0;
    for (; c + (VECTORS - 1) * LANES < width; c += VECTORS * LANES)
        product_columns(a, row, column, rows, VECTORS, terms, b, shrink, out, c);
    for (; c < width; c += LANES) /* a tile of one vector across has more rows */
        product_columns(a, row, column, rows, 1, terms, b, shrink, out, c);
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
GWQ_INLINE void weigh(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                      float *shrink) {
    for (int c = 0; c < width; c += LANES) {
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
