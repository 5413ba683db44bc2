/* Ops on activations, split over the pool row by row; and the memory roof. Arguments are checked
 * here. */
#include <math.h>
#include <string.h>
#include "kernels.h"
#include "threads.h"

/* An op on x (n, dim), row by row. a, b, number and style are what its `row` makes of them. */
struct rows_job {
    void (*row)(const struct rows_job *j, int64_t i);
    int64_t n, dim;
    int64_t heads, rotated; /* rope; heads: gates */
    float *out;             /* (n, dim) */
    const float *x;
    const float *a, *b;     /* weight and bias, up, cos and sin, gate */
    float number;           /* eps, cap */
    int style;              /* enum gwq_activation, enum gwq_rope_style */
};

static void rows_task(void *p, int thread, int threads) {
    const struct rows_job *j = p;
    const int64_t end = gwq_share(j->n, thread + 1, threads);
    for (int64_t i = gwq_share(j->n, thread, threads); i < end; i++) j->row(j, i);
}

static int run_rows(gwq_pool *pool, struct rows_job *j) {
    enum { WORTH_A_WAKE = 16384 }; /* floats from which other threads are worth waking */
    if (j->n < 0 || j->dim < 1 || j->n > INT32_MAX || j->dim > INT32_MAX) return GWQ_E_ARGUMENT;
    if (j->n && (!j->out || !j->x)) return GWQ_E_ARGUMENT;
    if (j->n * j->dim < WORTH_A_WAKE) rows_task(j, 0, 1);
    else gwq_pool_run(pool, rows_task, j);
    return GWQ_OK;
}

static void rmsnorm_row(const struct rows_job *j, int64_t i) {
    gwq_in_use()->rmsnorm(j->x + i * j->dim, j->a, j->number, j->dim, j->out + i * j->dim);
}

int gwq_rmsnorm(gwq_pool *pool, const float *x, const float *weight, float eps, int64_t n,
                int64_t dim, float *out) {
    if (n && !weight) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = rmsnorm_row,
        .n = n,
        .dim = dim,
        .x = x,
        .a = weight,
        .number = eps,
        .out = out,
    };
    return run_rows(pool, &j);
}

static void layernorm_row(const struct rows_job *j, int64_t i) {
    const float *x = j->x + i * j->dim;
    float *out = j->out + i * j->dim;
    double sum = 0, squares = 0;
    for (int64_t k = 0; k < j->dim; k++) sum += x[k];
    double mean = sum / (double)j->dim;
    for (int64_t k = 0; k < j->dim; k++) squares += (x[k] - mean) * (x[k] - mean);
    float center = (float)mean;
    float scale = (float)(1 / sqrt(squares / (double)j->dim + j->number));
    for (int64_t k = 0; k < j->dim; k++)
        out[k] = (x[k] - center) * scale * j->a[k] + (j->b ? j->b[k] : 0);
}

int gwq_layernorm(gwq_pool *pool, const float *x, const float *weight, const float *bias, float eps,
                  int64_t n, int64_t dim, float *out) {
    if (n && !weight) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = layernorm_row,
        .n = n,
        .dim = dim,
        .x = x,
        .a = weight,
        .b = bias,
        .number = eps,
        .out = out,
    };
    return run_rows(pool, &j);
}

static void activate_row(const struct rows_job *j, int64_t i) {
    const float *up = j->a ? j->a + i * j->dim : NULL;
    gwq_in_use()->activate(j->out + i * j->dim, up, j->dim, j->style);
}

int gwq_activate(gwq_pool *pool, float *x, const float *up, int64_t n, int64_t dim,
                 int activation) {
    int silu = activation == GWQ_SILU;
    if (!silu && activation != GWQ_GELU && activation != GWQ_GELU_TANH) return GWQ_E_ARGUMENT;
    if (n && silu && !up) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = activate_row,
        .n = n,
        .dim = dim,
        .x = x,
        .a = up,
        .out = x,
        .style = activation,
    };
    return run_rows(pool, &j);
}

static void rope_row(const struct rows_job *j, int64_t i) {
    const int64_t dim = j->dim / j->heads;
    const int64_t half = j->rotated / 2;
    const float *cos = j->a + i * half, *sin = j->b + i * half;
    const int64_t step = j->style == GWQ_ROPE_PAIRS ? 2 : 1;
    const int64_t other = j->style == GWQ_ROPE_PAIRS ? 1 : half; /* within a pair */
    for (int64_t h = 0; h < j->heads; h++) {
        float *x = j->out + i * j->dim + h * dim;
        for (int64_t k = 0; k < half; k++) {
            float a = x[k * step], b = x[k * step + other];
            x[k * step] = a * cos[k] - b * sin[k];
            x[k * step + other] = a * sin[k] + b * cos[k];
        }
    }
}

int gwq_rope(gwq_pool *pool, float *x, const float *cos, const float *sin, int64_t n, int64_t heads,
             int64_t dim, int64_t rotated, int style) {
    if (n && (!cos || !sin)) return GWQ_E_ARGUMENT;
    if (heads < 1 || heads > 65536 || dim < 2 || dim > 65536) return GWQ_E_ARGUMENT;
    if (rotated < 2 || rotated % 2 || rotated > dim) return GWQ_E_ARGUMENT;
    if (style != GWQ_ROPE_PAIRS && style != GWQ_ROPE_HALVES) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = rope_row,
        .n = n,
        .dim = heads * dim,
        .heads = heads,
        .rotated = rotated,
        .x = x,
        .a = cos,
        .b = sin,
        .out = x,
        .style = style,
    };
    return run_rows(pool, &j);
}

static void softcap_row(const struct rows_job *j, int64_t i) {
    gwq_in_use()->softcap(j->out + i * j->dim, j->dim, j->number);
}

int gwq_softcap(gwq_pool *pool, float *x, int64_t n, int64_t dim, float cap) {
    if (!(cap > 0)) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = softcap_row,
        .n = n,
        .dim = dim,
        .x = x,
        .number = cap,
        .out = x,
    };
    return run_rows(pool, &j);
}

static void gate_row(const struct rows_job *j, int64_t i) {
    const int64_t each = j->dim / j->heads;
    float *x = j->out + i * j->dim;
    for (int64_t h = 0; h < j->heads; h++, x += each) {
        const float share = 1 / (1 + expf(-j->a[i * j->heads + h]));
        for (int64_t k = 0; k < each; k++) x[k] *= share;
    }
}

int gwq_gate(gwq_pool *pool, float *x, const float *gate, int64_t n, int64_t count, int64_t each) {
    if (n && !gate) return GWQ_E_ARGUMENT;
    if (count < 1 || count > INT32_MAX || each < 1 || each > INT32_MAX) return GWQ_E_ARGUMENT;
    struct rows_job j = {
        .row = gate_row,
        .n = n,
        .dim = count * each,
        .heads = count,
        .x = x,
        .a = gate,
        .out = x,
    };
    return run_rows(pool, &j);
}

int gwq_scale(float *x, int64_t n, int64_t dim, float scale) {
    if (n < 0 || dim < 0 || (n && dim && !x)) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n * dim; i++) x[i] *= scale;
    return GWQ_OK;
}

int gwq_add(float *x, const float *y, int64_t n, int64_t dim, float scale, int broadcast) {
    if (n < 0 || dim < 0 || (n && dim && (!x || !y))) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++, x += dim, y += broadcast ? 0 : dim)
        for (int64_t k = 0; k < dim; k++) x[k] += scale * y[k];
    return GWQ_OK;
}

int gwq_copy(const float *x, int64_t stride, int64_t n, int64_t dim, float *out) {
    if (n < 0 || dim < 0 || stride < dim || (n && dim && (!x || !out))) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n && dim; i++)
        memcpy(out + i * dim, x + i * stride, (size_t)dim * sizeof *out);
    return GWQ_OK;
}

/* --- memory roof ------------------------------------------------------------------------------ */

struct read_job {
    const uint8_t *data;
    uint64_t bytes;
    int streams, ahead;
    uint64_t sum[256]; /* of each thread */
};

static void read_task(void *p, int thread, int threads) {
    struct read_job *j = p;
    int64_t pages = (int64_t)(j->bytes / 4096);
    uint64_t from = (uint64_t)gwq_share(pages, thread, threads) * 4096;
    uint64_t to = (uint64_t)gwq_share(pages, thread + 1, threads) * 4096;
    if (thread + 1 == threads) to = j->bytes;
    j->sum[thread] = gwq_in_use()->read(j->data + from, to - from, j->streams, j->ahead);
}

int gwq_read(gwq_pool *pool, const void *data, uint64_t bytes, int streams, int ahead,
             uint64_t *sum) {
    if (!data || !sum || streams < 1 || streams > 8 || ahead < 0) return GWQ_E_ARGUMENT;
    struct read_job j = {.data = data, .bytes = bytes, .streams = streams, .ahead = ahead};
    gwq_pool_run(pool, read_task, &j);
    *sum = 0;
    for (int i = 0; i < 256; i++) *sum += j.sum[i];
    return GWQ_OK;
}
