/* What comes before a product: a norm or an activation, and int8 codes of the result. */
#include "functions.h"
#include "kernels.h"
#include "norms.h"

enum { CODE_WARPS = 8 };

/* Codes of 64 numbers, two of each lane (columns lane and 32 + lane): scale = largest / 127, q =
 * x / scale to nearest even. Returns the scale. */
DEVICE float encode(const float *x, int *q) {
    const float most = most_over(fmaxf(fabsf(x[0]), fabsf(x[1])), 1, WARP); /* passes over NaN */
    const float scale = fmaxf(most, 0.0f) / 127;
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < 2; i++) {
        float v = rintf(x[i] * inverse);
        v = v > 127 ? 127 : v < -127 ? -127 : v; /* only when 1 / scale overflowed */
        q[i] = v == v ? (int)v : 0;
    }
    return scale;
}

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

/* A block of numbers in which one is so large that the codes of the others say little gets a second
 * set of codes, of what the first leaves over (native/cpu/massive.c has the bound):
 *
 *     64 / 12 > 0.1 * (sum of q^2 - 127^2) */
DEVICE bool massive(const int *q) {
    const int squares = sum_over(q[0] * q[0] + q[1] * q[1], 1, WARP);
    return squares < 127 * 127 + 64 * 10 / 12;
}

DEVICE void put_block(const activations &a, int token, int block, const float *v, int lane) {
    const int64_t at = (int64_t)token * (a.stride / GWQ_BLOCK) + block;
    int q[2];
    float second = 0;
    const float scale = encode(v, q);
    if (scale > 0 && massive(q)) {
        const float rest[2] = {v[0] - scale * (float)q[0], v[1] - scale * (float)q[1]};
        const float most = most_over(fmaxf(fabsf(rest[0]), fabsf(rest[1])), 1, WARP);
        if (most > 1e-4f * scale) { /* else the codes hold it all, or it is not finite */
            int more[2];
            second = encode(rest, more);
            code_block *to = a.blocks + (int64_t)a.n * (a.stride / GWQ_BLOCK) + at;
            put(to, more, second, 0, lane);
        }
    }
    put(a.blocks + at, q, scale, second, lane);
}

/* blockIdx.y: token. Every block of threads finds the norm of the whole token for itself, and
 * encodes its share of the columns. */
__global__ void prepare_kernel(activations a) {
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int token = (int)blockIdx.y;
    const float *x = a.x + (int64_t)token * a.cols;
    moments norm = {0, 1};
    if (a.before == GWQ_BEFORE_NORM) norm = moments_of(x, a.cols, a.eps, a.layer);
    for (int b = (int)blockIdx.x * CODE_WARPS + warp; b < a.stride / GWQ_BLOCK;
         b += (int)gridDim.x * CODE_WARPS) {
        float v[2] = {0, 0};
        for (int i = 0; i < 2; i++) {
            const int c = GWQ_BLOCK * b + lane + 32 * i;
            if (c < a.cols) {
                v[i] = x[c];
                if (a.before == GWQ_BEFORE_NORM)
                    v[i] = normalized(v[i], norm, a.weight[c], a.shift ? a.shift[c] : 0, a.layer);
                else if (a.before == GWQ_BEFORE_ACTIVATION)
                    v[i] = activated(v[i], a.activation) *
                           (a.up ? a.up[(int64_t)token * a.cols + c] : 1);
            }
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
