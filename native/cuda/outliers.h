/* What all products do with outliers, and with a row once it is there. */
#ifndef GWQ_CUDA_OUTLIERS_H
#define GWQ_CUDA_OUTLIERS_H
#include "kernels.h"

/* Matrix `which` of a product, of the expert if one is chosen */
DEVICE device_matrix matrix_of(const product &p, int which) {
    if (!p.choice) return p.m[which];
    return p.experts[(int64_t)*p.choice * p.each_expert + p.first_of_expert + which];
}

/* out (tokens, 16) = the outliers of a row group times float activations. A row's share of the
 * threads, blockDim.x / 16, at most a warp, reads neighbours and sums in a fixed order. */
template <int tokens>
DEVICE void add_outliers(const device_matrix &m, int group, const float *x, int stride, int first,
                         float (*out)[ROWS]) {
    const int share = (int)blockDim.x / ROWS;
    const int row = (int)threadIdx.x / share;
    const int from = (int)threadIdx.x % share;
    float sum[tokens] = {};
    x += (int64_t)first * stride;
    if (group * ROWS + row < m.rows) {
        const int *starts = m.outlier_starts + group * ROWS + row;
        for (int i = starts[0] + from; i < starts[1]; i += share) {
            const uint32_t outlier = m.outliers[i];
            const float value = half_to_float((uint16_t)(outlier >> 16));
#pragma unroll
            for (int t = 0; t < tokens; t++)
                sum[t] = fmaf(value, x[(int64_t)t * stride + (outlier & 0xffff)], sum[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < tokens; t++) {
        const float v = sum_over(sum[t], 1, share);
        if (from == 0) out[t][row] = m.power * v;
    }
}

/* y (n, rows) of matrix `which`, with all that is added */
DEVICE void finish_row(const product &p, int which, int token, int row, int rows, float y) {
    const int64_t at = (int64_t)token * rows + row;
    if (p.bias[which]) y += p.bias[which][row];
    p.y[which][at] = y;
    if (p.into) {
        const float factor = p.weight_of_choice ? *p.weight_of_choice : p.factor;
        p.into[at] += factor * y;
    }
}
#endif
