/* Programs: a list of ops is checked once, run once, captured as a CUDA graph when it runs again,
 * and replayed from then on. What differs from run to run, ids and position, kernels read from the
 * device's memory. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "work.h"

/* A list that was run, as long as neither it nor any matrix has changed */
struct known {
    gwq_op *ops; /* a copy */
    int count;
    int64_t n;
    void *scratch;
    uint64_t generation;
    uint64_t used; /* when, in runs */
    device_matrix **experts; /* (count), of the device; NULL where there is no choice */
    cudaGraphExec_t graph;
    bool captured;
    bool has_run; /* so that the driver has loaded its kernels, which it must not in a capture */
};

enum { MOST_KNOWN = 16 };
static known list[MOST_KNOWN];
static uint64_t runs;

static void forget(known *k) {
    for (int i = 0; k->experts && i < k->count; i++) cudaFree(k->experts[i]);
    if (k->captured) cudaGraphExecDestroy(k->graph);
    free(k->experts);
    free(k->ops);
    memset(k, 0, sizeof *k);
}

/* --- checks ----------------------------------------------------------------------------------- */

static bool dims(int64_t n, int64_t dim) {
    return n > 0 && dim > 0 && n <= INT32_MAX && dim <= INT32_MAX / (n < 64 ? 64 : n);
}

static int check_op(const gwq_op *op, int64_t n) {
    const int64_t rows = op->n;
    switch (op->kind) {
    case GWQ_OP_EMBED: {
        const gwq_op_embed *o = &op->embed;
        return uploaded(o->matrix) && o->out && rows == n ? GWQ_OK : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_RMSNORM:
    case GWQ_OP_LAYERNORM: {
        const gwq_op_norm *o = &op->norm;
        return o->x && o->weight && o->out && dims(rows, o->dim) ? GWQ_OK : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_ROPE: {
        const gwq_op_rope *o = &op->rope;
        if (!o->x || !o->cos || !o->sin || rows != n) return GWQ_E_ARGUMENT;
        if (o->heads < 1 || o->heads > 65536 || o->dim < 2 || o->dim > 65536) return GWQ_E_ARGUMENT;
        if (o->rotated < 2 || o->rotated % 2 || o->rotated > o->dim) return GWQ_E_ARGUMENT;
        return o->style == GWQ_ROPE_PAIRS || o->style == GWQ_ROPE_HALVES ? GWQ_OK
                                                                         : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_ACTIVATE: {
        const gwq_op_each *o = &op->each;
        if (o->activation < GWQ_SILU || o->activation > GWQ_GELU_TANH) return GWQ_E_ARGUMENT;
        if (o->activation == GWQ_SILU && !o->up) return GWQ_E_ARGUMENT;
        return o->x && dims(rows, o->dim) ? GWQ_OK : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_SOFTCAP:
        if (!(op->each.number > 0)) return GWQ_E_ARGUMENT; /* fall through */
    case GWQ_OP_SCALE:
    case GWQ_OP_FILL:
        return op->each.x && dims(rows, op->each.dim) ? GWQ_OK : GWQ_E_ARGUMENT;
    case GWQ_OP_ADD:
        return op->add.x && op->add.y && dims(rows, op->add.dim) ? GWQ_OK : GWQ_E_ARGUMENT;
    case GWQ_OP_COPY: {
        const gwq_op_copy *o = &op->copy;
        return o->x && o->out && dims(rows, o->dim) && o->stride >= o->dim ? GWQ_OK
                                                                            : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_CACHE: {
        const gwq_op_cache *o = &op->cache;
        if (!o->x || !o->cache || rows != n || !dims(n, o->width)) return GWQ_E_ARGUMENT;
        if (o->type == GWQ_TYPE_Q8_0) return o->width % 32 ? GWQ_E_ARGUMENT : GWQ_OK;
        return o->type == GWQ_TYPE_F16 || o->type == GWQ_TYPE_F32 ? GWQ_OK : GWQ_E_TYPE;
    }
    case GWQ_OP_ROUTE: {
        const gwq_op_route *o = &op->route;
        if (!o->scores || !o->chosen || !o->weights || !dims(rows, o->experts))
            return GWQ_E_ARGUMENT;
        return o->used > 0 && o->used <= o->experts && o->used <= GWQ_MAX_USED ? GWQ_OK
                                                                               : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_ATTENTION:
        return rows == n ? check_attention(&op->attention, n, 0) : GWQ_E_ARGUMENT;
    case GWQ_OP_GATE: {
        const gwq_op_gate *o = &op->gate;
        if (!o->x || !o->gate || !dims(rows, o->count) || !dims(rows, o->each))
            return GWQ_E_ARGUMENT;
        return dims(rows, o->count * o->each) ? GWQ_OK : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_SHORTCONV: {
        const gwq_op_shortconv *o = &op->shortconv;
        return rows == n && dims(3 * n, o->dim) ? check_shortconv(o, n) : GWQ_E_ARGUMENT;
    }
    case GWQ_OP_MATMUL:
        return check_product(&op->matmul, rows);
    default:
        return GWQ_E_ARGUMENT;
    }
}

/* What a run's ids and positions index */
static int check_run(const gwq_op *ops, int count, const int32_t *ids, int64_t n, int64_t pos) {
    for (int i = 0; i < count; i++) {
        const gwq_op_embed *o = &ops[i].embed;
        if (ops[i].kind != GWQ_OP_EMBED) continue;
        for (int64_t t = 0; t < n; t++) {
            const int64_t row = o->positions ? pos + t : ids[t];
            if (row < 0 || row >= o->matrix->rows) return GWQ_E_INDEX;
        }
    }
    return GWQ_OK;
}

/* --- ops -------------------------------------------------------------------------------------- */

static void run_op(const gwq_op *op, int64_t n, const device_matrix *experts, void *scratch) {
    const cudaStream_t stream = gwq_context.stream;
    const int *position = &gwq_context.now->position;
    const gwq_op_each &each = op->each;
    switch (op->kind) {
    case GWQ_OP_EMBED:
        rows_to_floats(stream, *uploaded(op->embed.matrix),
                       op->embed.positions ? nullptr : gwq_context.now->ids, position, 0, (int)n,
                       op->embed.out);
        break;
    case GWQ_OP_RMSNORM:
    case GWQ_OP_LAYERNORM:
        normalize(stream, op->norm, op->kind == GWQ_OP_LAYERNORM, op->n);
        break;
    case GWQ_OP_ROPE:
        rotate(stream, op->rope, position, n);
        break;
    case GWQ_OP_ACTIVATE:
        activate(stream, each.x, each.up, op->n * each.dim, each.activation);
        break;
    case GWQ_OP_SOFTCAP:
        cap(stream, each.x, op->n * each.dim, each.number);
        break;
    case GWQ_OP_SCALE:
        scale(stream, each.x, op->n * each.dim, each.number);
        break;
    case GWQ_OP_FILL:
        fill(stream, each.x, op->n * each.dim, each.number);
        break;
    case GWQ_OP_ADD:
        add(stream, op->add.x, op->add.y, op->n, op->add.dim, op->add.scale, op->add.broadcast);
        break;
    case GWQ_OP_COPY:
        copy_runs(stream, op->copy.x, op->copy.stride, op->n, op->copy.dim, op->copy.out);
        break;
    case GWQ_OP_CACHE:
        store(stream, op->cache.x, n * op->cache.width, op->cache.type, op->cache.cache, 0,
              position, op->cache.width);
        break;
    case GWQ_OP_ROUTE:
        route(stream, op->route, (int)op->n, &gwq_context.now->fault);
        break;
    case GWQ_OP_ATTENTION:
        attend(stream, op->attention, n, 0, position, (float *)scratch);
        break;
    case GWQ_OP_GATE:
        open_gates(stream, op->gate.x, op->gate.gate, op->n * op->gate.count, op->gate.each);
        break;
    case GWQ_OP_SHORTCONV:
        convolve(stream, op->shortconv, 0, position, n);
        break;
    default:
        run_product({&op->matmul, op->n, experts}, scratch);
    }
}

/* Bytes of scratch for an op; 0: it cannot be */
static size_t op_bytes(const gwq_op *op) {
    if (op->kind == GWQ_OP_ATTENTION)
        return gwq_attention_bytes(op->n, op->attention.heads, op->attention.dim);
    if (op->kind != GWQ_OP_MATMUL) return 1;
    const device_matrix *m = uploaded(op->matmul.m[0]);
    return m && op->n <= GWQ_PROGRAM_TOKENS ? product_bytes(op->n, m->cols) : 0;
}

uint64_t gwq_program_bytes(const gwq_op *ops, int count, int threads) {
    if (!ops || count < 1 || threads < 1) return 0;
    size_t most = 256;
    for (int i = 0; i < count; i++) {
        if (ops[i].n < 1 || ops[i].n > (int64_t)GWQ_PROGRAM_TOKENS * 65536) return 0;
        const size_t bytes = op_bytes(ops + i);
        if (!bytes) return 0;
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* --- lists that are known --------------------------------------------------------------------- */

static known *find(const gwq_op *ops, int count, int64_t n, void *scratch) {
    for (known *k = list; k < list + MOST_KNOWN; k++)
        if (k->ops && k->count == count && k->n == n && k->scratch == scratch &&
            k->generation == gwq_context.generation &&
            !memcmp(k->ops, ops, (size_t)count * sizeof *ops))
            return k;
    return nullptr;
}

/* The matrices of all experts of an op, in the device's memory */
static int put_experts(const gwq_op_matmul *o, device_matrix **out) {
    const size_t count = (size_t)(o->expert_count * o->count);
    device_matrix *all = (device_matrix *)malloc(count * sizeof *all);
    if (!all) return GWQ_E_MEMORY;
    for (size_t i = 0; i < count; i++) all[i] = *uploaded(o->experts[i]);
    int status = status_of(cudaMalloc((void **)out, count * sizeof *all));
    if (!status)
        status = status_of(cudaMemcpyAsync(*out, all, count * sizeof *all, cudaMemcpyHostToDevice,
                                           gwq_context.stream));
    if (!status) status = status_of(cudaStreamSynchronize(gwq_context.stream));
    free(all);
    return status;
}

static int learn(const gwq_op *ops, int count, int64_t n, void *scratch, known **out) {
    for (int i = 0; i < count; i++) TRY(check_op(ops + i, n));
    known *k = list;
    for (known *other = list; other < list + MOST_KNOWN; other++)
        if (other->used < k->used) k = other;
    forget(k);
    k->ops = (gwq_op *)malloc((size_t)count * sizeof *ops);
    k->experts = (device_matrix **)calloc((size_t)count, sizeof *k->experts);
    int status = k->ops && k->experts ? GWQ_OK : GWQ_E_MEMORY;
    k->count = count;
    for (int i = 0; i < count && !status; i++)
        if (ops[i].kind == GWQ_OP_MATMUL && ops[i].matmul.choice)
            status = put_experts(&ops[i].matmul, &k->experts[i]);
    if (status) {
        forget(k);
        return status;
    }
    memcpy(k->ops, ops, (size_t)count * sizeof *ops);
    k->n = n;
    k->scratch = scratch;
    k->generation = gwq_context.generation;
    *out = k;
    return GWQ_OK;
}

static void run_ops(const known *k) {
    for (int i = 0; i < k->count; i++) run_op(k->ops + i, k->n, k->experts[i], k->scratch);
}

static int capture(known *k) {
    cudaGraph_t graph;
    TRY_CUDA(cudaStreamBeginCapture(gwq_context.stream, cudaStreamCaptureModeThreadLocal));
    run_ops(k);
    TRY_CUDA(cudaStreamEndCapture(gwq_context.stream, &graph));
    const int status = status_of(cudaGraphInstantiate(&k->graph, graph, 0));
    cudaGraphDestroy(graph);
    k->captured = status == GWQ_OK;
    return status;
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Op after op, each waited for */
static int run_timed(const known *k, int64_t *nanoseconds) {
    for (int i = 0; i < k->count; i++) {
        const int64_t start = now();
        run_op(k->ops + i, k->n, k->experts[i], k->scratch);
        TRY_CUDA(cudaStreamSynchronize(gwq_context.stream));
        nanoseconds[i] += now() - start;
    }
    return GWQ_OK;
}

int gwq_program_run(gwq_pool *, const gwq_op *ops, int count, const int32_t *ids, int64_t n,
                    int64_t pos, void *scratch, uint64_t scratch_bytes, int64_t *nanoseconds) {
    if (!ids || n < 1 || n > GWQ_PROGRAM_TOKENS || !scratch) return GWQ_E_ARGUMENT;
    if (pos < 0 || pos > INT32_MAX - n) return GWQ_E_ARGUMENT;
    const uint64_t needed = gwq_program_bytes(ops, count, 1);
    if (!needed) return GWQ_E_ARGUMENT;
    if (scratch_bytes < needed) return GWQ_E_SCRATCH;
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    known *k = find(ops, count, n, scratch);
    if (!k) TRY(learn(ops, count, n, scratch, &k));
    k->used = ++runs;
    TRY(check_run(ops, count, ids, n, pos));
    step now = {(int)pos, {}, 0};
    memcpy(now.ids, ids, (size_t)n * sizeof *ids);
    TRY_CUDA(cudaMemcpyAsync(gwq_context.now, &now, sizeof now, cudaMemcpyHostToDevice,
                             gwq_context.stream));
    if (nanoseconds) {
        TRY(run_timed(k, nanoseconds));
    } else if (!k->has_run) {
        run_ops(k);
    } else {
        if (!k->captured) TRY(capture(k));
        TRY_CUDA(cudaGraphLaunch(k->graph, gwq_context.stream));
    }
    k->has_run = true;
    return finished();
}
