/* The functions of gwq.h: arguments are checked here, as native/cpu does, and kernels started. */
#include <stdlib.h>
#include <string.h>
#include "work.h"

/* --- the library ------------------------------------------------------------------------------ */

const char *gwq_isa_name(int index) { return index ? nullptr : "cuda"; }
int gwq_isa_supported(int index) { return index == 0; }
const char *gwq_isa(void) { return "cuda"; }
int gwq_isa_select(const char *) { return GWQ_OK; } /* there is but one */

struct gwq_pool {
    int threads;
};

int gwq_pool_new(int threads, gwq_pool **pool) {
    if (!pool || threads < 1) return GWQ_E_ARGUMENT;
    *pool = (gwq_pool *)calloc(1, sizeof **pool);
    return *pool ? GWQ_OK : GWQ_E_MEMORY;
}
void gwq_pool_free(gwq_pool *pool) { free(pool); }

#define BEGIN                                     \
    std::lock_guard<std::mutex> hold(gwq_lock);   \
    TRY(ready());                                 \
    const cudaStream_t stream = gwq_context.stream
#define END return status_of(cudaGetLastError())

/* Rows and columns that a kernel's indices can count */
static bool countable(int64_t n, int64_t dim) {
    return n >= 0 && dim >= 0 && n <= INT32_MAX && dim <= INT32_MAX &&
           (!dim || n <= ((int64_t)1 << 38) / dim);
}

/* --- matrices --------------------------------------------------------------------------------- */

int gwq_dequantize(gwq_pool *, const gwq_matrix *m, int64_t first, int64_t count, float *out) {
    const device_matrix *d = uploaded(m);
    if (!d || !out) return GWQ_E_ARGUMENT;
    if (first < 0 || count < 0 || first % ROWS || first + count > d->rows) return GWQ_E_INDEX;
    if (count % ROWS && first + count != d->rows) return GWQ_E_INDEX;
    BEGIN;
    if (count) rows_to_floats(stream, *d, nullptr, nullptr, (int)first, (int)count, out);
    END;
}

int gwq_embed(const gwq_matrix *m, const int32_t *ids, int64_t n, float *group, float *out) {
    const device_matrix *d = uploaded(m);
    if (!d || n < 0 || (n && (!ids || !out || !group))) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= d->rows) return GWQ_E_INDEX;
    BEGIN;
    const int64_t room = (int64_t)ROWS * d->cols; /* ids that the work space holds */
    for (int64_t i = 0; i < n; i += room) {
        const int64_t some = n - i < room ? n - i : room;
        TRY_CUDA(cudaMemcpyAsync(group, ids + i, (size_t)some * sizeof *ids,
                                 cudaMemcpyHostToDevice, stream));
        rows_to_floats(stream, *d, (const int *)group, nullptr, 0, (int)some, out + i * d->cols);
        TRY_CUDA(cudaStreamSynchronize(stream)); /* the caller may change its ids */
    }
    END;
}

uint64_t gwq_scratch_bytes(int64_t n, int64_t cols) {
    if (n < 1 || cols < 1 || n > INT32_MAX || cols > INT32_MAX) return 0;
    return product_bytes(n, cols);
}

int gwq_matmul(gwq_pool *, const gwq_matrix *const *m, int count, const float *x, int64_t n,
               float *const *y, void *scratch, uint64_t scratch_bytes) {
    if (!m || !y || count < 1 || !m[0] || n < 1) return GWQ_E_ARGUMENT;
    if (!scratch || scratch_bytes < gwq_scratch_bytes(n, m[0]->cols)) return GWQ_E_SCRATCH;
    for (int first = 0; first < count; first += MATRICES) {
        gwq_op_matmul o = {};
        o.x = x;
        o.count = count - first < MATRICES ? count - first : MATRICES;
        for (int i = 0; i < o.count; i++) {
            o.m[i] = m[first + i];
            o.y[i] = y[first + i];
            if (!o.m[i] || o.m[i]->cols != m[0]->cols) return GWQ_E_ARGUMENT;
        }
        TRY(check_product(&o, n));
        BEGIN;
        (void)stream;
        run_product({&o, n, nullptr}, scratch);
    }
    std::lock_guard<std::mutex> hold(gwq_lock);
    END;
}

/* --- activations ------------------------------------------------------------------------------ */

static int norm_op(const float *x, const float *weight, const float *bias, float eps, int64_t n,
                   int64_t dim, float *out, int layer) {
    if (n < 0 || dim < 1 || !countable(n, dim)) return GWQ_E_ARGUMENT;
    if (n && (!x || !weight || !out)) return GWQ_E_ARGUMENT;
    BEGIN;
    gwq_op_norm o = {x, weight, bias, eps, dim, out};
    if (n) normalize(stream, o, layer, n);
    END;
}

int gwq_rmsnorm(gwq_pool *, const float *x, const float *weight, float eps, int64_t n, int64_t dim,
                float *out) {
    return norm_op(x, weight, nullptr, eps, n, dim, out, 0);
}

int gwq_layernorm(gwq_pool *, const float *x, const float *weight, const float *bias, float eps,
                  int64_t n, int64_t dim, float *out) {
    return norm_op(x, weight, bias, eps, n, dim, out, 1);
}

int gwq_rope(gwq_pool *, float *x, const float *cos, const float *sin, int64_t n, int64_t heads,
             int64_t dim, int64_t rotated, int style) {
    if (heads < 1 || heads > 65536 || dim < 2 || dim > 65536) return GWQ_E_ARGUMENT;
    if (!countable(n, heads * dim) || (n && (!x || !cos || !sin))) return GWQ_E_ARGUMENT;
    if (rotated < 2 || rotated % 2 || rotated > dim) return GWQ_E_ARGUMENT;
    if (style != GWQ_ROPE_PAIRS && style != GWQ_ROPE_HALVES) return GWQ_E_ARGUMENT;
    BEGIN;
    gwq_op_rope o = {x, cos, sin, heads, dim, rotated, style};
    if (n) rotate(stream, o, nullptr, n);
    END;
}

int gwq_activate(gwq_pool *, float *x, const float *up, int64_t n, int64_t dim, int activation) {
    if (activation < GWQ_SILU || activation > GWQ_GELU_TANH) return GWQ_E_ARGUMENT;
    if (!countable(n, dim) || dim < 1 || (n && !x)) return GWQ_E_ARGUMENT;
    if (n && activation == GWQ_SILU && !up) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n) activate(stream, x, up, n * dim, activation);
    END;
}

int gwq_softcap(gwq_pool *, float *x, int64_t n, int64_t dim, float most) {
    if (!(most > 0) || !countable(n, dim) || dim < 1 || (n && !x)) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n) cap(stream, x, n * dim, most);
    END;
}

int gwq_gate(gwq_pool *, float *x, const float *gate, int64_t n, int64_t count, int64_t each) {
    if (count < 1 || count > INT32_MAX || each < 1 || each > INT32_MAX) return GWQ_E_ARGUMENT;
    if (!countable(n, count * each) || (n && (!x || !gate))) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n) open_gates(stream, x, gate, n * count, each);
    END;
}

int gwq_scale(float *x, int64_t n, int64_t dim, float factor) {
    if (!countable(n, dim) || (n && dim && !x)) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n && dim) scale(stream, x, n * dim, factor);
    END;
}

int gwq_add(float *x, const float *y, int64_t n, int64_t dim, float factor, int broadcast) {
    if (!countable(n, dim) || (n && dim && (!x || !y))) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n && dim) add(stream, x, y, n, dim, factor, broadcast);
    END;
}

int gwq_copy(const float *x, int64_t stride, int64_t n, int64_t dim, float *out) {
    if (!countable(n, dim) || stride < dim || (n && dim && (!x || !out))) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n && dim) copy_runs(stream, x, stride, n, dim, out);
    END;
}

enum { MOST_SORTED = 1 << 30 }; /* numbers: a block's are counted by int beyond them */

/* *keys = those of the k largest of x (n), in memory that the next call uses again */
static int keys_of(const float *x, int64_t n, int64_t k, uint64_t **keys) {
    static uint64_t *room;
    static size_t bytes;
    const size_t own = (size_t)k * sizeof *room, needed = own + largest_bytes((int)n, (int)k);
    if (bytes < needed) {
        TRY_CUDA(cudaFree(room));
        room = nullptr;
        bytes = 0;
        TRY_CUDA(cudaMalloc((void **)&room, needed));
        bytes = needed;
    }
    largest(gwq_context.stream, x, (int)n, (int)k, room, room + k, &gwq_context.now->fault);
    *keys = room;
    return GWQ_OK;
}

int gwq_top(const float *x, int64_t n, int64_t k, int32_t *ids) {
    if (!x || !ids || k < 1 || k > n || n > MOST_SORTED) return GWQ_E_ARGUMENT;
    BEGIN;
    uint64_t *keys;
    TRY(keys_of(x, n, k, &keys));
    places(stream, keys, (int)k, ids);
    return finished();
}

int gwq_cuda_best(const float *x, int64_t n, int64_t k, int32_t *ids, float *values) {
    if (!x || !ids || !values || k < 1 || k > n || n > MOST_SORTED) return GWQ_E_ARGUMENT;
    BEGIN;
    uint64_t *keys;
    TRY(keys_of(x, n, k, &keys));
    for (int64_t i = 0; i < k; i++) {
        uint64_t some[256];
        if (i % 256 == 0) {
            const int64_t count = k - i < 256 ? k - i : 256;
            TRY_CUDA(cudaMemcpyAsync(some, keys + i, (size_t)count * sizeof *some,
                                     cudaMemcpyDeviceToHost, stream));
            TRY_CUDA(cudaStreamSynchronize(stream));
        }
        const uint32_t bits = bits_of_key(some[i % 256]);
        ids[i] = place_of_key(some[i % 256]);
        memcpy(values + i, &bits, sizeof bits);
    }
    return finished();
}

int gwq_route(const float *scores, int64_t n, int64_t experts, int64_t used, int normed,
              int32_t *chosen, float *weights) {
    if (!scores || !chosen || !weights || n < 1 || !countable(n, experts)) return GWQ_E_ARGUMENT;
    if (used < 1 || used > experts || used > GWQ_MAX_USED) return GWQ_E_ARGUMENT;
    BEGIN;
    gwq_op_route o = {scores, experts, used, normed, chosen, weights};
    route(stream, o, (int)n, &gwq_context.now->fault);
    return finished();
}

/* The device's copy of an index, once it was checked: count numbers from 0 to less than `most` */
static int put_rows(const int32_t *rows, int64_t count, int64_t most, int32_t *work) {
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= most) return GWQ_E_INDEX;
    TRY_CUDA(cudaMemcpyAsync(work, rows, (size_t)count * sizeof *rows, cudaMemcpyHostToDevice,
                             gwq_context.stream));
    return status_of(cudaStreamSynchronize(gwq_context.stream)); /* the caller may change them */
}

int gwq_cuda_gather(const float *x, int64_t most, const int32_t *rows, int64_t n, int64_t dim,
                    int32_t *work, float *out) {
    if (!x || !rows || !work || !out || n < 1 || dim < 1 || !countable(n, dim))
        return GWQ_E_ARGUMENT;
    BEGIN;
    TRY(put_rows(rows, n, most, work));
    gather(stream, x, work, n, dim, out);
    END;
}

int gwq_cuda_combine(const float *x, int64_t most, const int32_t *rows, const float *weights,
                     int64_t n, int64_t used, int64_t dim, int32_t *work, float *out) {
    if (!x || !rows || !weights || !work || !out || n < 1 || used < 1 || used > GWQ_MAX_USED)
        return GWQ_E_ARGUMENT;
    if (dim < 1 || !countable(n * used, dim)) return GWQ_E_ARGUMENT;
    BEGIN;
    TRY(put_rows(rows, n * used, most, work));
    combine(stream, x, work, weights, n, used, dim, out);
    END;
}

/* --- layers with a state ---------------------------------------------------------------------- */

int gwq_shortconv(gwq_pool *, float *x, const float *weight, float *state, int64_t rows,
                  int64_t taps, int64_t n, int64_t start, int64_t dim, float *out) {
    gwq_op_shortconv o = {x, weight, state, rows, taps, dim, out};
    if (start < 0 || start > INT32_MAX) return GWQ_E_ARGUMENT;
    TRY(check_shortconv(&o, n));
    if (!countable(n, 3 * dim)) return GWQ_E_ARGUMENT;
    BEGIN;
    if (n) convolve(stream, o, start, nullptr, n);
    END;
}

/* --- attention -------------------------------------------------------------------------------- */

int gwq_cache(const float *x, int64_t count, int type, void *cache, int64_t first) {
    if (first < 0 || !countable(count, 1) || (count && (!x || !cache))) return GWQ_E_ARGUMENT;
    if (type != GWQ_TYPE_F32 && type != GWQ_TYPE_F16 && type != GWQ_TYPE_Q8_0) return GWQ_E_TYPE;
    if (type == GWQ_TYPE_Q8_0 && (count % 32 || first % 32)) return GWQ_E_ARGUMENT;
    BEGIN;
    if (count) store(stream, x, count, type, cache, first, nullptr, 0);
    END;
}

uint64_t gwq_attention_bytes(int64_t n, int64_t heads, int64_t dim) {
    if (n < 1 || n > FEW || heads < 1 || heads > 65536 || dim < 1 || dim > GWQ_CUDA_HEAD) return 0;
    return attention_bytes(n, heads, dim);
}

int gwq_attention(gwq_pool *, const float *q, const void *k, const void *v, int type, int64_t n,
                  int64_t start, int64_t heads, int64_t kv_heads, int64_t dim, float factor,
                  float softcap, int64_t window, float *out, void *scratch) {
    gwq_op_attention o = {q, k, v, type, heads, kv_heads, dim, window, factor, softcap, out};
    TRY(check_attention(&o, n, start));
    BEGIN;
    attend(stream, o, n, start, nullptr, n <= FEW ? (float *)scratch : nullptr);
    END;
}
