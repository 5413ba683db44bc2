/* The experts of a token. */
#include "kernels.h"

enum { CHOICE_THREADS = 256, NOT_FINITE = 1 };

/* A number and where it is; of equal ones the earlier stands before the other */
struct candidate {
    float value;
    int at;
};

DEVICE bool before(const candidate &a, const candidate &b) {
    return a.value > b.value || (a.value == b.value && a.at < b.at);
}

/* The first of all threads' candidates, in every thread */
DEVICE candidate first_of(candidate c) {
    __shared__ candidate of_warp[CHOICE_THREADS / WARP];
    for (int bit = 1; bit < WARP; bit *= 2) {
        const candidate other = {__shfl_xor_sync(ALL_LANES, c.value, bit),
                                 __shfl_xor_sync(ALL_LANES, c.at, bit)};
        if (before(other, c)) c = other;
    }
    __syncthreads(); /* whoever still reads an earlier round */
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = c;
    __syncthreads();
    c = of_warp[0];
    for (int w = 1; w < CHOICE_THREADS / WARP; w++)
        if (before(of_warp[w], c)) c = of_warp[w];
    return c;
}

/* The first of x (n) behind `last`; sets *fault where a number is not finite */
DEVICE candidate next_of(const float *x, int n, const candidate &last, int *fault) {
    candidate best = {-INFINITY, INT32_MAX};
    for (int i = (int)threadIdx.x; i < n; i += CHOICE_THREADS) {
        const candidate c = {x[i], i};
        if (c.value - c.value != 0) atomicOr(fault, NOT_FINITE); /* infinity - infinity is NaN */
        if (before(last, c) && before(c, best)) best = c;
    }
    return first_of(best);
}

/* A block of threads for every token */
__global__ void route_kernel(gwq_op_route o, int *fault) {
    __shared__ int chosen[GWQ_MAX_USED];
    __shared__ float share[GWQ_MAX_USED];
    const int used = (int)o.used;
    const float *scores = o.scores + blockIdx.x * o.experts;
    candidate last = {INFINITY, -1};
    float most = 0;
    for (int i = 0; i < used; i++) {
        last = next_of(scores, (int)o.experts, last, fault);
        if (i == 0) most = last.value;
        if (threadIdx.x == 0) chosen[i] = last.at < o.experts ? last.at : i;
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < used; i += CHOICE_THREADS)
        share[i] = expf(scores[chosen[i]] - most);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < used; i += CHOICE_THREADS) {
        int rank = 0; /* ascending */
        for (int k = 0; k < used; k++) rank += chosen[k] < chosen[i];
        float all = 0;
        if (o.normed)
            for (int k = 0; k < used; k++) all += share[k];
        else
            for (int k = 0; k < o.experts; k++) all += expf(scores[k] - most);
        o.chosen[blockIdx.x * used + rank] = chosen[i];
        o.weights[blockIdx.x * used + rank] = share[i] / all;
    }
}

void route(cudaStream_t stream, const gwq_op_route &o, int n, int *fault) {
    LAUNCH(route_kernel, (unsigned)n, CHOICE_THREADS, stream, o, fault);
}
