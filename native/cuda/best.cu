/* The largest of many numbers, in order. A block of threads sorts a run of them and keeps the first
 * ones, until one run is left.
 *
 * What is sorted are keys, a number and its place in one: the larger number has the larger key, and
 * of equal ones the earlier. 0 is smaller than any. */
#include "kernels.h"

enum { SORT_THREADS = 256, RUN = 1024, ROUND = RUN / 4, NOT_FINITE = 1 };

DEVICE uint64_t key_of(float x, int at) {
    const uint32_t bits = (uint32_t)__float_as_int(x + 0.0f); /* -0 becomes 0, its equal */
    const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)order << 32 | (uint32_t)~at;
}

/* run (RUN) in descending order (Batcher's bitonic sort) */
DEVICE void sort_run(uint64_t *run) {
    for (int size = 2; size <= RUN; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int t = (int)threadIdx.x; t < RUN / 2; t += SORT_THREADS) {
                const int i = 2 * t - (t & (stride - 1));
                const uint64_t a = run[i], b = run[i + stride];
                const bool falls = (i & size) == 0;
                if ((a < b) != falls) continue;
                run[i] = b;
                run[i + stride] = a;
            }
        }
    __syncthreads();
}

/* out (blocks, k) = the first keys of every run, of x (n) or, where that is NULL, of keys (n).
 * below: NULL, or a key; only smaller ones count. */
__global__ void best_kernel(const float *x, const uint64_t *keys, int n, int k,
                            const uint64_t *below, uint64_t *out, int *fault) {
    __shared__ uint64_t run[RUN];
    const uint64_t limit = below ? *below : UINT64_MAX;
    for (int i = (int)threadIdx.x; i < RUN; i += SORT_THREADS) {
        const int at = (int)blockIdx.x * RUN + i;
        uint64_t key = 0;
        if (at < n) {
            const float v = x ? x[at] : 0;
            if (v - v != 0) atomicOr(fault, NOT_FINITE); /* infinity - infinity is NaN */
            key = x ? key_of(v, at) : keys[at];
        }
        run[i] = key < limit ? key : 0;
    }
    sort_run(run);
    for (int i = (int)threadIdx.x; i < k; i += SORT_THREADS)
        out[(int64_t)blockIdx.x * k + i] = run[i];
}

size_t largest_bytes(int n, int k) {
    const int some = k < ROUND ? k : (int)ROUND;
    return 2 * sizeof(uint64_t) * (size_t)ceil_div(n, RUN) * (size_t)some;
}

void largest(cudaStream_t stream, const float *x, int n, int k, uint64_t *keys, uint64_t *work,
             int *fault) {
    for (int done = 0; done < k; done += ROUND) {
        const int some = k - done < ROUND ? k - done : (int)ROUND;
        const uint64_t *const below = done ? keys + done - 1 : nullptr;
        const float *numbers = x;
        const uint64_t *from = nullptr;
        uint64_t *to = work, *next = work + largest_bytes(n, k) / (2 * sizeof *work);
        int count = n;
        for (int runs = 0; runs != 1;) {
            runs = ceil_div(count, RUN);
            uint64_t *const out = runs == 1 ? keys + done : to;
            LAUNCH(best_kernel, (unsigned)runs, SORT_THREADS, stream, numbers, from, count, some,
                   below, out, fault);
            numbers = nullptr;
            from = out;
            count = runs * some;
            to = next;
            next = (uint64_t *)out;
        }
    }
}

__global__ void places_kernel(const uint64_t *keys, int k, int *ids) {
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < k) ids[i] = place_of_key(keys[i]);
}

void places(cudaStream_t stream, const uint64_t *keys, int k, int *ids) {
    LAUNCH(places_kernel, (unsigned)ceil_div(k, SORT_THREADS), SORT_THREADS, stream, keys, k, ids);
}
