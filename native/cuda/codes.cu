/* What comes before a product: a norm or an activation, and int8 codes of the result. */
#include "before.h"
#include "encode.h"

enum { CODE_WARPS = 8 };

DEVICE void put(code_block *to, const int *q, float scale, float second, int lane) {
    for (int i = 0; i < 2; i++) {
        const int c = lane + 32 * i;
        to->q[c / 16 * 16 + place_of(c % 16)] = (int8_t)q[i];
        const int sum = sum_over(q[i], 1, 16);
        if (lane % 16 == 0) to->start[c / 16] = -BIAS * sum;
    }
    if (lane == 0) {
        to->scale = scale;
        to->second = second;
        to->pad[0] = to->pad[1] = 0;
    }
}

DEVICE void put_block(const activations &a, int token, int block, const float *v, int lane) {
    const int64_t at = (int64_t)token * (a.stride / GWQ_BLOCK) + block;
    int q[2], more[2];
    const float scale = encode(v, q), second = encode_rest(v, scale, q, more);
    if (second != 0)
        put(a.blocks + (int64_t)a.n * (a.stride / GWQ_BLOCK) + at, more, second, 0, lane);
    put(a.blocks + at, q, scale, second, lane);
}

/* blockIdx.y: token. Every block of threads finds the norm of the whole token for itself, and
 * encodes its share of the columns. */
__global__ void prepare_kernel(activations a) {
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int token = (int)blockIdx.y;
    const moments norm = moments_before(a, token);
    for (int b = (int)blockIdx.x * CODE_WARPS + warp; b < a.stride / GWQ_BLOCK;
         b += (int)gridDim.x * CODE_WARPS) {
        float v[2] = {0, 0};
        for (int i = 0; i < 2; i++) {
            const int c = GWQ_BLOCK * b + lane + 32 * i;
            if (c < a.cols) v[i] = before(a, token, c, norm);
            a.floats[(int64_t)token * a.stride + c] = v[i];
        }
        if (a.blocks) put_block(a, token, b, v, lane);
    }
}

void prepare(cudaStream_t stream, const activations &a) {
    const int blocks = a.stride / GWQ_BLOCK;
    const dim3 grid((unsigned)ceil_div(blocks, CODE_WARPS), (unsigned)a.n);
    LAUNCH(prepare_kernel, grid, CODE_WARPS * WARP, stream, a);
}
