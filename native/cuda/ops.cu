/* Ops on activations, and the KV cache's numbers. */
#include "functions.h"
#include "kernels.h"
#include "norms.h"

enum { THREADS = 256 };

static unsigned blocks_of(int64_t count) { return (unsigned)ceil_div(count, THREADS); }

/* Index of the thread in the grid */
DEVICE int64_t thread_index() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }

/* A block of threads for every row */
__global__ void normalize_kernel(gwq_op_norm o, int layer) {
    const float *x = o.x + blockIdx.x * o.dim;
    float *out = o.out + blockIdx.x * o.dim;
    const moments m = moments_of(x, (int)o.dim, o.eps, layer);
    for (int i = (int)threadIdx.x; i < o.dim; i += (int)blockDim.x)
        out[i] = normalized(x[i], m, o.weight[i], o.bias ? o.bias[i] : 0, layer);
}

void normalize(cudaStream_t stream, const gwq_op_norm &o, int layer, int64_t n) {
    const int most = THREADS, needed = ceil_div(o.dim, WARP) * WARP;
    const unsigned threads = (unsigned)(needed < most ? needed : most);
    LAUNCH(normalize_kernel, (unsigned)n, threads, stream, o, layer);
}

/* A thread for every pair of numbers */
__global__ void rotate_kernel(gwq_op_rope o, const int *base, int64_t pairs) {
    const int64_t i = thread_index();
    if (i >= pairs) return;
    const int64_t half = o.rotated / 2;
    const int64_t k = i % half;
    const int64_t head = i / half % o.heads;
    const int64_t token = i / half / o.heads;
    const int64_t turn = (token + (base ? *base : 0)) * half + k;
    const int64_t step = o.style == GWQ_ROPE_PAIRS ? 2 : 1;
    const int64_t other = o.style == GWQ_ROPE_PAIRS ? 1 : half;
    float *x = o.x + (token * o.heads + head) * o.dim + k * step;
    const float a = x[0], b = x[other];
    x[0] = a * o.cos[turn] - b * o.sin[turn];
    x[other] = a * o.sin[turn] + b * o.cos[turn];
}

void rotate(cudaStream_t stream, const gwq_op_rope &o, const int *base, int64_t n) {
    const int64_t pairs = n * o.heads * (o.rotated / 2);
    LAUNCH(rotate_kernel, blocks_of(pairs), THREADS, stream, o, base, pairs);
}

__global__ void activate_kernel(float *x, const float *up, int64_t count, int activation) {
    const int64_t i = thread_index();
    if (i < count) x[i] = activated(x[i], activation) * (up ? up[i] : 1);
}

void activate(cudaStream_t stream, float *x, const float *up, int64_t count, int activation) {
    LAUNCH(activate_kernel, blocks_of(count), THREADS, stream, x, up, count, activation);
}

__global__ void cap_kernel(float *x, int64_t count, float most) {
    const int64_t i = thread_index();
    if (i < count) x[i] = capped(x[i], most);
}

void cap(cudaStream_t stream, float *x, int64_t count, float most) {
    LAUNCH(cap_kernel, blocks_of(count), THREADS, stream, x, count, most);
}

__global__ void gate_kernel(float *x, const float *gate, int64_t count, int64_t each) {
    const int64_t i = thread_index();
    if (i < count) x[i] *= 1 / (1 + expf(-gate[i / each]));
}

void open_gates(cudaStream_t stream, float *x, const float *gate, int64_t count, int64_t each) {
    LAUNCH(gate_kernel, blocks_of(count * each), THREADS, stream, x, gate, count * each, each);
}

__global__ void scale_kernel(float *x, int64_t count, float factor) {
    const int64_t i = thread_index();
    if (i < count) x[i] *= factor;
}

void scale(cudaStream_t stream, float *x, int64_t count, float factor) {
    LAUNCH(scale_kernel, blocks_of(count), THREADS, stream, x, count, factor);
}

__global__ void fill_kernel(float *x, int64_t count, float number) {
    const int64_t i = thread_index();
    if (i < count) x[i] = number;
}

void fill(cudaStream_t stream, float *x, int64_t count, float number) {
    LAUNCH(fill_kernel, blocks_of(count), THREADS, stream, x, count, number);
}

__global__ void add_kernel(float *x, const float *y, int64_t count, int64_t dim, float factor,
                           int broadcast) {
    const int64_t i = thread_index();
    if (i < count) x[i] += factor * y[broadcast ? i % dim : i];
}

void add(cudaStream_t stream, float *x, const float *y, int64_t n, int64_t dim, float factor,
         int broadcast) {
    const int64_t count = n * dim;
    LAUNCH(add_kernel, blocks_of(count), THREADS, stream, x, y, count, dim, factor, broadcast);
}

__global__ void copy_kernel(const float *x, int64_t stride, int64_t count, int64_t dim,
                            float *out) {
    const int64_t i = thread_index();
    if (i < count) out[i] = x[i / dim * stride + i % dim];
}

void copy_runs(cudaStream_t stream, const float *x, int64_t stride, int64_t n, int64_t dim,
               float *out) {
    const int64_t count = n * dim;
    LAUNCH(copy_kernel, blocks_of(count), THREADS, stream, x, stride, count, dim, out);
}

__global__ void gather_kernel(const float *x, const int *rows, int64_t count, int64_t dim,
                              float *out) {
    const int64_t i = thread_index();
    if (i < count) out[i] = x[rows[i / dim] * dim + i % dim];
}

void gather(cudaStream_t stream, const float *x, const int *rows, int64_t n, int64_t dim,
            float *out) {
    const int64_t count = n * dim;
    LAUNCH(gather_kernel, blocks_of(count), THREADS, stream, x, rows, count, dim, out);
}

__global__ void combine_kernel(const float *x, const int *rows, const float *weights,
                               int64_t count, int64_t used, int64_t dim, float *out) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const int64_t first = i / dim * used;
    float sum = 0;
    for (int64_t j = first; j < first + used; j++) sum += weights[j] * x[rows[j] * dim + i % dim];
    out[i] = sum;
}

void combine(cudaStream_t stream, const float *x, const int *rows, const float *weights, int64_t n,
             int64_t used, int64_t dim, float *out) {
    const int64_t count = n * dim;
    LAUNCH(combine_kernel, blocks_of(count), THREADS, stream, x, rows, weights, count, used, dim,
           out);
}

/* --- KV cache --------------------------------------------------------------------------------- */

/* FP16 to nearest even, at most +-65504; NaN stays */
DEVICE uint16_t cached_half(float x) {
    const float size = fminf(fabsf(x), 65504.0f);
    return half_of(x != x ? x : copysignf(size, x));
}

/* A warp for 32 numbers: the largest gets the code 127. A NaN makes the scale NaN. */
DEVICE void store_codes(float x, struct q8_0_block *to) {
    const float most = fminf(most_over(fabsf(x), 1, WARP), 127 * 65504.0f);
    const int wrong = sum_over(x == x ? 0 : 1, 1, WARP);
    const float scale = wrong ? NAN : most / 127;
    const float inverse = most > 0 ? 127 / most : 0;
    const float v = x * inverse;
    to->code[threadIdx.x % WARP] = (int8_t)rintf(v > -127 ? v < 127 ? v : 127 : -127);
    if (threadIdx.x % WARP == 0) to->scale = cached_half(scale);
}

__global__ void store_kernel(const float *x, int64_t count, int type, void *cache, int64_t first,
                             const int *base, int64_t width) {
    const int64_t i = thread_index();
    const int64_t at = first + (base ? *base * width : 0) + i;
    if (type == GWQ_TYPE_Q8_0) { /* whole warps */
        if (i / WARP < count / WARP)
            store_codes(x[i], (struct q8_0_block *)cache + at / WARP);
    } else if (i < count) {
        if (type == GWQ_TYPE_F16) ((uint16_t *)cache)[at] = cached_half(x[i]);
        else ((float *)cache)[at] = x[i];
    }
}

void store(cudaStream_t stream, const float *x, int64_t count, int type, void *cache,
           int64_t first, const int *base, int64_t width) {
    LAUNCH(store_kernel, blocks_of(count), THREADS, stream, x, count, type, cache, first, base,
           width);
}

/* --- layers with a state ---------------------------------------------------------------------- */

/* u of a token of the batch */
DEVICE float u_of(const gwq_op_shortconv &o, int64_t token, int64_t channel) {
    const float *x = o.x + token * 3 * o.dim + channel;
    return x[0] * x[2 * o.dim];
}

/* A thread for every channel of every token */
__global__ void convolve_kernel(gwq_op_shortconv o, int64_t start, const int *base,
                                int64_t count) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const int64_t t = i / o.dim, channel = i % o.dim;
    const int64_t first = start + (base ? *base : 0);
    const int64_t most = first + t + 1; /* positions there are */
    const int64_t taps = o.taps < most ? o.taps : most;
    float sum = 0;
    for (int64_t k = 0; k < taps; k++) {
        const int64_t token = t - taps + 1 + k; /* of the batch, below 0 before it */
        const float u = token >= 0 ? u_of(o, token, channel)
                                   : o.state[(first + token) % o.rows * o.dim + channel];
        sum += o.weight[(o.taps - taps + k) * o.dim + channel] * u;
    }
    o.out[i] = o.x[(t * 3 + 1) * o.dim + channel] * sum;
}

/* The last tokens of the batch, from `token` on, into the state */
__global__ void remember_kernel(gwq_op_shortconv o, int64_t start, const int *base, int64_t token,
                                int64_t count) {
    const int64_t i = thread_index();
    if (i >= count) return;
    const int64_t t = token + i / o.dim, channel = i % o.dim;
    const int64_t position = start + (base ? *base : 0) + t;
    o.state[position % o.rows * o.dim + channel] = u_of(o, t, channel);
}

void convolve(cudaStream_t stream, const gwq_op_shortconv &o, int64_t start, const int *base,
              int64_t n) {
    const int64_t count = n * o.dim, kept = n < o.rows ? n : o.rows;
    LAUNCH(convolve_kernel, blocks_of(count), THREADS, stream, o, start, base, count);
    LAUNCH(remember_kernel, blocks_of(kept * o.dim), THREADS, stream, o, start, base, n - kept,
           kept * o.dim);
}
