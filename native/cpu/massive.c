/* Massive activations: in some blocks one number is so large that the int8 codes of the other 63
 * say little, because all share a scale. Such a block gets a second set of codes, for the residual
 * that the first set leaves over,
 *
 *     x ~ scale * q + residual_scale * residual_q
 *
 * and a token that has such a block is multiplied twice. */
#include "massive.h"
#include <math.h>
#include <string.h>

/* The largest code of a block is 127. Rounding adds an error of 1/12 (the variance of a uniform
 * distribution of width 1) to each of the 64 codes. A block is massive where that exceeds 10 % of
 * the squares of the other codes,
 *
 *     64 / 12 > 0.1 * (sum of q^2 - 127^2),
 *
 * as with one number of 140 standard deviations beside 63 normal ones. A lower bound would pay
 * less: a second product takes as long as the first. */
enum { LARGEST = 127 * 127, OTHERS = 64 * 10 / 12 };

static int massive(const int8_t *q) {
    int squares = 0;
    for (int i = 0; i < GWQ_BLOCK; i++) squares += q[i] * q[i];
    return squares < LARGEST + OTHERS;
}

/* No codes of token t yet: all are 0 */
static void clear(const gwq_input *in, int64_t t) {
    const int64_t at = t * in->blocks;
    memset(in->q + at * GWQ_BLOCK, 0, (size_t)in->blocks * GWQ_BLOCK);
    memset(in->scale + at, 0, (size_t)in->blocks * sizeof *in->scale);
    memset(in->bias + 8 * at, 0, (size_t)in->blocks * 8 * sizeof *in->bias);
}

int gwq_residual_codes(const gwq_input *in, int64_t t, const gwq_input *residual) {
    int any = 0;
    for (int64_t b = 0; b < in->blocks; b++) {
        const int64_t at = t * residual->blocks + b, code = gwq_code_at(in, t, b);
        const int64_t width = min64(GWQ_BLOCK, in->cols - b * GWQ_BLOCK);
        const float *x = in->x + t * in->cols + b * GWQ_BLOCK;
        const int8_t *q = in->q + code * GWQ_BLOCK;
        const float scale = in->scale[code];
        if (!(scale > 0) || !massive(q)) continue;
        float rest[GWQ_BLOCK];
        float most = 0;
        for (int64_t i = 0; i < width; i++) {
            rest[i] = x[i] - scale * q[i];
            most = fabsf(rest[i]) > most ? fabsf(rest[i]) : most;
        }
        if (!(most > 1e-4f * scale)) continue; /* the codes hold it all, or it is not finite */
        if (!any) clear(residual, t);
        any = 1;
        gwq_in_use()->quantize(rest, width, 1, residual->q + at * GWQ_BLOCK,
                               residual->scale + at, residual->bias + 8 * at);
    }
    return any;
}

void gwq_residual_product(const gwq_matrix *m, int kind, int64_t first, int64_t last,
                          const gwq_input *residual, int64_t t, float *y) {
    enum { GROUPS = 32 };
    const int64_t at = t * residual->blocks;
    gwq_matrix dense = *m; /* outliers have seen the numbers themselves */
    dense.outliers = dense.offsets = NULL;
    dense.outlier_bytes = dense.offset_bytes = 0;
    gwq_input one = {
        .n = 1,
        .cols = residual->cols,
        .blocks = residual->blocks,
        .lanes = 1,
        .q = residual->q + at * GWQ_BLOCK,
        .scale = residual->scale + at,
        .bias = residual->bias + 8 * at,
    };
    float before[GROUPS * GWQ_ROWS]; /* kernels write y, they do not add to it */
    y += t * m->rows;
    for (int64_t g = first; g < last; g += GROUPS) {
        int64_t end = min64(g + GROUPS, last);
        int64_t row = g * GWQ_ROWS;
        int64_t rows = min64(end * GWQ_ROWS, m->rows) - row;
        memcpy(before, y + row, (size_t)rows * sizeof *y);
        gwq_in_use()->matmul[kind](&dense, g, end, &one, y);
        for (int64_t r = 0; r < rows; r++) y[row + r] += before[r];
    }
}
