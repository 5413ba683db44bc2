/* What comes before a product: a norm or an activation, and int8 codes of the result. */
#include "before.h"
#include "encode.h"

enum {
    CODE_WARPS = 8,
    MOST_SHARES = 1024 /* of a token: a grid has at most 65535 blocks in y, but 2^31 in x */
};

DEVICE void put(code_block *to, const int *q, float scale, float second, int lane) {
    for (int i = 0; i < 2; i++) {
        code_half *half = to->of + i;
        half->q[lane / 16 * 16 + place_of(lane % 16)] = (int8_t)q[i];
        const int sum = sum_over(q[i], 1, 16);
        if (lane % 16 == 0) half->start[lane / 16] = -BIAS * sum;
        if (lane == 0) {
            half->scale = scale;
            half->second = second;
        }
    }
}

DEVICE void put_block(const activations &a, int token, int block, const float *v, int lane) {
    const int64_t at = (int64_t)token * (a.stride / GWQ_BLOCK) + block;
    int q[2], more[2] = {0, 0};
    const float scale = encode(v, q), second = encode_rest(v, scale, q, more);
    put(a.blocks + (int64_t)a.n * (a.stride / GWQ_BLOCK) + at, more, second, 0, lane);
    put(a.blocks + at, q, scale, second, lane);
}

/* blockIdx.x: token. Every block of threads finds the norm of the whole token for itself, and
 * encodes its share of the columns. */
__global__ void prepare_kernel(activations a) {
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int token = (int)blockIdx.x;
    const moments norm = moments_before(a, token);
    for (int b = (int)blockIdx.y * CODE_WARPS + warp; b < a.stride / GWQ_BLOCK;
         b += (int)gridDim.y * CODE_WARPS) {
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
    const int shares = ceil_div(blocks, CODE_WARPS);
    const dim3 grid((unsigned)a.n, (unsigned)(shares < MOST_SHARES ? shares : MOST_SHARES));
    LAUNCH(prepare_kernel, grid, CODE_WARPS * WARP, stream, a);
}
