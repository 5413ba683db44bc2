/* Layers with a state beside the KV cache. Arguments are checked here. */
#include <string.h>
#include "kernels.h"
#include "threads.h"

enum {
    UNIT = 16,           /* channels of a cache line: threads share none */
    WORTH_A_WAKE = 16384 /* floats from which other threads are worth waking */
};

struct shortconv_job {
    float *x; /* (n, 3, dim) */
    const float *weight;
    float *state;
    int64_t rows, taps, n, start, dim;
    float *out;
};

/* Where the u of a position lies: in the batch, or among those before it */
static float *u_of(const struct shortconv_job *j, int64_t position) {
    if (position >= j->start) return j->x + ((position - j->start) * 3 + 2) * j->dim;
    return j->state + position % j->rows * j->dim;
}

/* The channels from `first` on, of all tokens */
static void shortconv_task(void *p, int thread, int threads) {
    const struct shortconv_job *j = p;
    const int64_t units = (j->dim + UNIT - 1) / UNIT;
    const int64_t first = gwq_share(units, thread, threads) * UNIT;
    const int64_t end = min64(gwq_share(units, thread + 1, threads) * UNIT, j->dim);
    const int64_t count = end - first;
    if (count < 1) return;
    for (int64_t t = 0; t < j->n; t++) {
        const float *b = j->x + t * 3 * j->dim + first;
        float *x = u_of(j, j->start + t) + first;
        for (int64_t i = 0; i < count; i++) x[i] *= b[i];
    }
    for (int64_t t = 0; t < j->n; t++) {
        const int64_t last = j->start + t;
        const int taps = (int)min64(j->taps, last + 1); /* those at a position from 0 on */
        const float *u[GWQ_MAX_TAPS];
        for (int k = 0; k < taps; k++) u[k] = u_of(j, last - taps + 1 + k) + first;
        gwq_in_use()->convolve(u, j->weight + (j->taps - taps) * j->dim + first, j->dim, taps,
                               j->x + (t * 3 + 1) * j->dim + first, count,
                               j->out + t * j->dim + first);
    }
    const int64_t past = j->start + j->n;
    for (int64_t position = past - min64(j->n, j->rows); position < past; position++)
        memcpy(j->state + position % j->rows * j->dim + first, u_of(j, position) + first,
               (size_t)count * sizeof(float));
}

int gwq_shortconv(gwq_pool *pool, float *x, const float *weight, float *state, int64_t rows,
                  int64_t taps, int64_t n, int64_t start, int64_t dim, float *out) {
    if (n < 0 || n > INT32_MAX || start < 0 || start > INT32_MAX) return GWQ_E_ARGUMENT;
    if (dim < 1 || dim > INT32_MAX || rows < 1 || rows > INT32_MAX) return GWQ_E_ARGUMENT;
    if (taps < 1 || taps > GWQ_MAX_TAPS || taps > rows + 1) return GWQ_E_ARGUMENT;
    if (!state || (n && (!x || !weight || !out))) return GWQ_E_ARGUMENT;
    struct shortconv_job j = {
        .x = x,
        .weight = weight,
        .state = state,
        .rows = rows,
        .taps = taps,
        .n = n,
        .start = start,
        .dim = dim,
        .out = out,
    };
    if (n * dim < WORTH_A_WAKE) shortconv_task(&j, 0, 1);
    else gwq_pool_run(pool, shortconv_task, &j);
    return GWQ_OK;
}
