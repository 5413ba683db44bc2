/* Blocks of activations with a massive channel: one number so large that the int8 codes of the other 63 say little. Such a block
 * gets a second set of codes, for what the first leaves over; a token that has one is multiplied twice. */
#include <math.h>
#include <string.h>
#include "kernels.h"

/* The largest code is 127. Where the squares of the others add up to less than this, rounding (1/12 each, of 64) is more than 10 % of
 * them: one number of 140 standard deviations beside 63 normal ones. A lower bound would pay less: a second product takes as long as the first. */
enum { LARGEST = 127 * 127, OTHERS = 64 * 10 / 12 };

static int massive(const int8_t *q) {
    int squares = 0;
    for (int i = 0; i < GWQ_BLOCK; i++) squares += q[i] * q[i];
    return squares < LARGEST + OTHERS;
}

int gwq_second_codes(const gwq_input *in, int64_t t, const gwq_input *second) {
    const float *x = in->x + t * in->cols;
    int any = 0;
    for (int64_t b = 0; b < in->blocks; b++) {
        const int64_t at = t * in->blocks + b, width = in->cols - b * GWQ_BLOCK < GWQ_BLOCK ? in->cols - b * GWQ_BLOCK : GWQ_BLOCK;
        const int8_t *q = in->q + at * GWQ_BLOCK;
        const float scale = in->scale[at];
        if (!(scale > 0) || !massive(q)) continue;
        float rest[GWQ_BLOCK], most = 0;
        for (int64_t i = 0; i < width; i++) {
            rest[i] = x[b * GWQ_BLOCK + i] - scale * q[i];
            most = fabsf(rest[i]) > most ? fabsf(rest[i]) : most;
        }
        if (!(most > 1e-4f * scale)) continue; /* the codes hold it all, or it is not finite */
        if (!any) {
            memset(second->q + t * in->blocks * GWQ_BLOCK, 0, (size_t)in->blocks * GWQ_BLOCK);
            memset(second->scale + t * in->blocks, 0, (size_t)in->blocks * sizeof *second->scale);
            memset(second->bias + 8 * t * in->blocks, 0, (size_t)in->blocks * 8 * sizeof *second->bias);
        }
        any = 1;
        gwq_in_use()->quantize(rest, width, second->q + at * GWQ_BLOCK, second->scale + at, second->bias + 8 * at);
    }
    return any;
}

void gwq_second_product(const gwq_matrix *m, int kind, int64_t first, int64_t last, const gwq_input *second, int64_t t, float *y) {
    enum { GROUPS = 32 };
    gwq_matrix dense = *m; /* outliers have seen the numbers themselves */
    dense.outliers = dense.offsets = NULL;
    dense.outlier_bytes = dense.offset_bytes = 0;
    gwq_input one = {.n = 1, .cols = second->cols, .blocks = second->blocks, .q = second->q + t * second->blocks * GWQ_BLOCK,
                     .scale = second->scale + t * second->blocks, .bias = second->bias + 8 * t * second->blocks};
    float before[GROUPS * GWQ_ROWS];
    y += t * m->rows;
    for (int64_t g = first; g < last; g += GROUPS) {
        int64_t end = g + GROUPS < last ? g + GROUPS : last, row = g * GWQ_ROWS;
        int64_t rows = (end * GWQ_ROWS < m->rows ? end * GWQ_ROWS : m->rows) - row;
        memcpy(before, y + row, (size_t)rows * sizeof *y);
        gwq_in_use()->matmul[kind](&dense, g, end, &one, y);
        for (int64_t r = 0; r < rows; r++) y[row + r] += before[r];
    }
}
