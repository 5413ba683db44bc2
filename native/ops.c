/* Ops on activations, split over the pool row by row; and the memory roof. Arguments are checked here. */
#include "kernels.h"

struct rows_job {
    void (*row)(const struct rows_job *j, int64_t i);
    int64_t n, dim, heads;
    float *out;
    const float *x, *a, *b;
    float eps;
    int style;
};

static void rows_task(void *p, int thread, int threads) {
    const struct rows_job *j = p;
    for (int64_t i = gwq_share(j->n, thread, threads); i < gwq_share(j->n, thread + 1, threads); i++) j->row(j, i);
}

static int run_rows(gwq_pool *pool, struct rows_job *j) {
    enum { WORTH_A_WAKE = 16384 }; /* floats */
    if (j->n < 0 || j->dim < 1 || j->n > INT32_MAX || j->dim > INT32_MAX) return GWQ_E_ARGUMENT;
    if (j->n && (!j->out || !j->x || !j->a)) return GWQ_E_ARGUMENT;
    if (j->n * j->dim < WORTH_A_WAKE) rows_task(j, 0, 1);
    else gwq_pool_run(pool, rows_task, j);
    return GWQ_OK;
}

static void rmsnorm_row(const struct rows_job *j, int64_t i) {
    gwq_in_use()->rmsnorm(j->x + i * j->dim, j->a, j->eps, j->dim, j->out + i * j->dim);
}

int gwq_rmsnorm(gwq_pool *pool, const float *x, const float *weight, float eps, int64_t n, int64_t dim, float *out) {
    struct rows_job j = {.row = rmsnorm_row, .n = n, .dim = dim, .x = x, .a = weight, .eps = eps, .out = out};
    return run_rows(pool, &j);
}

static void silu_mul_row(const struct rows_job *j, int64_t i) {
    gwq_in_use()->silu_mul(j->out + i * j->dim, j->a + i * j->dim, j->dim);
}

int gwq_silu_mul(gwq_pool *pool, float *gate, const float *up, int64_t n, int64_t dim) {
    struct rows_job j = {.row = silu_mul_row, .n = n, .dim = dim, .x = gate, .a = up, .out = gate};
    return run_rows(pool, &j);
}

static void rope_row(const struct rows_job *j, int64_t i) {
    int64_t half = j->dim / 2 / j->heads;
    const float *cos = j->a + i * half, *sin = j->b + i * half;
    int64_t step = j->style == GWQ_ROPE_PAIRS ? 2 : 1, other = j->style == GWQ_ROPE_PAIRS ? 1 : half;
    for (int64_t h = 0; h < j->heads; h++) {
        float *x = j->out + i * j->dim + h * 2 * half;
        for (int64_t k = 0; k < half; k++) {
            float a = x[k * step], b = x[k * step + other];
            x[k * step] = a * cos[k] - b * sin[k];
            x[k * step + other] = a * sin[k] + b * cos[k];
        }
    }
}

int gwq_rope(gwq_pool *pool, float *x, const float *cos, const float *sin, int64_t n, int64_t heads, int64_t dim, int style) {
    if (!sin || heads < 1 || heads > 65536 || dim < 2 || dim % 2 || dim > 65536) return GWQ_E_ARGUMENT;
    if (style != GWQ_ROPE_PAIRS && style != GWQ_ROPE_HALVES) return GWQ_E_ARGUMENT;
    struct rows_job j = {.row = rope_row, .n = n, .dim = heads * dim, .heads = heads, .x = x, .a = cos, .b = sin, .out = x, .style = style};
    return run_rows(pool, &j);
}

int gwq_add(float *x, const float *y, int64_t n, int64_t dim, int broadcast) {
    if (n < 0 || dim < 0 || (n && dim && (!x || !y))) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++, x += dim, y += broadcast ? 0 : dim)
        for (int64_t k = 0; k < dim; k++) x[k] += y[k];
    return GWQ_OK;
}

/* --- memory roof ------------------------------------------------------------------------------------------------ */

struct read_job {
    const uint8_t *data;
    uint64_t bytes, sum[256];
    int streams, ahead;
};

static void read_task(void *p, int thread, int threads) {
    struct read_job *j = p;
    uint64_t part = j->bytes / (uint64_t)threads & ~(uint64_t)4095;
    j->sum[thread] = gwq_in_use()->read(j->data + part * (uint64_t)thread, part, j->streams, j->ahead);
}

int gwq_read(gwq_pool *pool, const void *data, uint64_t bytes, int streams, int ahead, uint64_t *sum) {
    if (!data || !sum || streams < 1 || streams > 8 || ahead < 0) return GWQ_E_ARGUMENT;
    struct read_job j = {.data = data, .bytes = bytes, .streams = streams, .ahead = ahead};
    gwq_pool_run(pool, read_task, &j);
    *sum = 0;
    for (int i = 0; i < 256; i++) *sum += j.sum[i];
    return GWQ_OK;
}
