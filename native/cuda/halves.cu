/* Activations of many tokens, for tensor cores: FP16 numbers, with a power of two for each token.
 * Tile matrices see numbers as their int8 codes say them, as with few tokens and on CPUs: one
 * forward pass, whatever computes it. */
#include "before.h"
#include "encode.h"

enum { HALF_THREADS = 256, TURN = 64, TURN_THREADS = 256 };

/* seen (2): a lane's two numbers of a block of 64 as codes say them. Returns whether the block has
 * a massive one. */
DEVICE bool as_codes(const float *v, float *seen) {
    int q[2], more[2];
    const float scale = encode(v, q), second = encode_rest(v, scale, q, more);
    for (int i = 0; i < 2; i++) {
        seen[i] = scale * (float)q[i];
        if (second != 0) seen[i] = fmaf(second, (float)more[i], seen[i]);
    }
    return second != 0;
}

/* Number c of a token, x / factor, where its form has it, in one set or two */
DEVICE void put_half(const half_activations &h, int stride, int token, int c, float x, bool both) {
    const int in_strip = c % STRIP;
    const int place = h.order == AS_ROWS ? row_place(in_strip) : strip_place(in_strip);
    uint16_t *to = h.halves + half_row(token, h.tile, stride) +
                   (int64_t)(c / STRIP) * h.tile * STRIP + 8 * unit_at(token, place / 8) +
                   place % 8;
    const uint16_t half = half_of(x);
    to[0] = half;
    to[(int64_t)h.tile * stride] = both ? half_of(x - half_to_float(half)) : (uint16_t)0;
}

/* blockIdx.x: token. Threads find its numbers, then the largest of them. */
__global__ void halves_kernel(activations a, half_activations h) {
    __shared__ float of_warp[HALF_THREADS / WARP];
    const int token = (int)blockIdx.x;
    const int64_t row = (int64_t)token * a.stride;
    const int thread = (int)threadIdx.x;
    if (token >= a.n) {
        if (thread == 0) h.factors[token] = 0;
        for (int c = thread; c < a.stride; c += HALF_THREADS)
            put_half(h, a.stride, token, c, 0, false);
        return;
    }
    const moments norm = moments_before(a, token);
    float most = 0; /* fmaxf passes over NaN */
    for (int c = thread; c < a.stride; c += HALF_THREADS) {
        const float v = c < a.cols ? before(a, token, c, norm) : 0;
        a.floats[row + c] = v;
        most = fmaxf(most, fabsf(v));
    }
    most = most_over(most, 1, WARP);
    if (thread % WARP == 0) of_warp[thread / WARP] = most;
    __syncthreads();
    for (int w = 0; w < HALF_THREADS / WARP; w++) most = fmaxf(most, of_warp[w]);
    const float factor = power_below(most);
    const float inverse = 1 / factor; /* a power of two too, and not subnormal */
    if (thread == 0) h.factors[token] = factor;
    for (int b = thread / WARP; b < a.stride / GWQ_BLOCK; b += HALF_THREADS / WARP) {
        const int c = GWQ_BLOCK * b + thread % WARP; /* and 32 columns on */
        const float v[2] = {a.floats[row + c], a.floats[row + c + WARP]};
        float seen[2];
        const bool both = as_codes(v, seen);
        for (int i = 0; i < 2; i++)
            put_half(h, a.stride, token, c + WARP * i,
                     (h.order == AS_ROWS ? v[i] : seen[i]) * inverse, both);
        const int s = c / STRIP;
        if (both && thread % WARP == 0)
            atomicOr(h.massive + token / h.tile * massive_words(a.stride) + s / 32, 1 << s % 32);
    }
}

/* blockIdx: x, a block of 64 columns; y, 64 tokens, which are written side by side */
__global__ void turn_kernel(activations a, half_activations h) {
    __shared__ uint16_t square[2][TURN][TURN + 2];
    const int first = (int)blockIdx.x * TURN, tile = (int)blockIdx.y;
    const int sets = any_massive(h.massive + tile * massive_words(a.stride), a.stride) ? 2 : 1;
    const int lane = (int)threadIdx.x % WARP;
    for (int t = (int)threadIdx.x / WARP; t < TURN; t += TURN_THREADS / WARP) {
        const int token = tile * TURN + t;
        float v[2] = {0, 0}, seen[2];
        const float *x = a.floats + (int64_t)token * a.stride + first + lane;
        for (int i = 0; i < 2 && token < a.n; i++) v[i] = x[WARP * i];
        const bool both = sets == 2 && as_codes(v, seen); /* of this token, whatever others have */
        for (int i = 0; i < 2; i++) {
            const float scaled = token < a.n ? v[i] / h.factors[token] : 0;
            const uint16_t half = half_of(scaled);
            square[0][lane + WARP * i][t] = half;
            square[1][lane + WARP * i][t] =
                both ? half_of(scaled - half_to_float(half)) : (uint16_t)0;
        }
    }
    __syncthreads();
    for (int set = 0; set < sets; set++) {
        uint16_t *out = h.columns + ((int64_t)(2 * tile + set) * a.stride + first) * TURN;
        for (int i = (int)threadIdx.x; i < TURN * TURN; i += TURN_THREADS)
            out[i] = square[set][i / TURN][i % TURN];
    }
}

void prepare_halves(cudaStream_t stream, const activations &a, const half_activations &h) {
    static_assert((int)TURN == TILE_TOKENS && (int)TURN == GWQ_BLOCK, "squares are whole blocks");
    fill(stream, (float *)h.massive, (int64_t)(h.tokens / h.tile) * massive_words(a.stride), 0);
    LAUNCH(halves_kernel, (unsigned)h.tokens, HALF_THREADS, stream, a, h);
    if (!h.columns) return;
    const dim3 grid((unsigned)(a.stride / TURN), (unsigned)(h.tokens / TURN));
    LAUNCH(turn_kernel, grid, TURN_THREADS, stream, a, h);
}
