/* Norms of a row of numbers by a block of threads. */
#ifndef GWQ_CUDA_NORMS_H
#define GWQ_CUDA_NORMS_H
#include "device.h"

/* A row's norm is (x - center) * scale. */
struct moments {
    float center, scale;
};

/* The same bits in every thread: sums over lanes, then over warps in their order. */
template <class number> DEVICE number block_sum(number v) {
    __shared__ number of_warp[32];
    const int warps = (int)blockDim.x / WARP;
    v = sum_over(v, 1, WARP);
    __syncthreads(); /* whoever still reads an earlier sum */
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = v;
    __syncthreads();
    number total = 0;
    for (int w = 0; w < warps; w++) total += of_warp[w];
    return total;
}

/* RMSNorm, or LayerNorm if `layer`, whose sums are in double: what is left of a mean may be small
 * beside it. */
DEVICE moments moments_of(const float *x, int dim, float eps, int layer) {
    moments m = {0, 1};
    if (layer) {
        double sum = 0, squares = 0;
        for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x) sum += x[i];
        const double mean = block_sum(sum) / dim;
        for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x)
            squares += (x[i] - mean) * (x[i] - mean);
        m.center = (float)mean;
        m.scale = (float)(1 / sqrt(block_sum(squares) / dim + eps));
    } else {
        float squares = 0;
        for (int i = (int)threadIdx.x; i < dim; i += (int)blockDim.x)
            squares = fmaf(x[i], x[i], squares);
        m.scale = 1 / sqrtf(block_sum(squares) / (float)dim + eps);
    }
    return m;
}

DEVICE float normalized(float x, const moments &m, float weight, float shift, int layer) {
    return layer ? (x - m.center) * m.scale * weight + shift : x * m.scale * weight;
}
#endif
