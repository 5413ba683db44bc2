/* Programs: a list of ops that all threads of the pool walk together.
 *
 * A small op is done by the first thread alone. A product or attention is shared, and what comes
 * before a product (a norm or activation, and the codes) every thread does for itself, in scratch
 * of its own: that is sooner done than waited for. Threads meet after a shared op, and before one
 * that needs what the first thread has done. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>
#include "attention.h"
#include "gwq_program.h"
#include "matmul.h"
#include "threads.h"

_Static_assert((int)GWQ_PROGRAM_TOKENS <= GWQ_FEW, "products of a program need no panels");

struct walk {
    gwq_pool *pool;
    const gwq_op *ops;
    int count;
    const int32_t *ids;
    int64_t n, pos;
    atomic_uint_fast64_t *taken; /* (count), of the products */
    uint8_t *scratch;            /* (threads, each) */
    size_t each;
    float *parts; /* of attention */
    int64_t *nanoseconds;
    int status; /* the first thread's */
};

/* --- ops of the first thread ------------------------------------------------------------------ */

static int embed(const struct walk *w, const gwq_op_embed *o) {
    int32_t positions[GWQ_PROGRAM_TOKENS];
    for (int i = 0; i < w->n; i++) positions[i] = (int32_t)(w->pos + i);
    return gwq_embed(o->matrix, o->positions ? positions : w->ids, w->n, o->group, o->out);
}

static int norm(const gwq_op_norm *o, int kind, int64_t n) {
    if (kind == GWQ_OP_RMSNORM)
        return gwq_rmsnorm(NULL, o->x, o->weight, o->eps, n, o->dim, o->out);
    return gwq_layernorm(NULL, o->x, o->weight, o->bias, o->eps, n, o->dim, o->out);
}

static int rope(const struct walk *w, const gwq_op_rope *o) {
    if (!o->cos || !o->sin) return GWQ_E_ARGUMENT;
    const int64_t at = w->pos * (o->rotated / 2);
    return gwq_rope(NULL, o->x, o->cos + at, o->sin + at, w->n, o->heads, o->dim, o->rotated,
                    o->style);
}

static int cache(const struct walk *w, const gwq_op_cache *o) {
    return gwq_cache(o->x, w->n * o->width, o->type, o->cache, w->pos * o->width);
}

static int shortconv(const struct walk *w, const gwq_op_shortconv *o) {
    return gwq_shortconv(NULL, o->x, o->weight, o->state, o->rows, o->taps, w->n, w->pos, o->dim,
                         o->out);
}

static int alone(const struct walk *w, const gwq_op *op) {
    switch (op->kind) {
    case GWQ_OP_EMBED:
        return embed(w, &op->embed);
    case GWQ_OP_RMSNORM:
    case GWQ_OP_LAYERNORM:
        return norm(&op->norm, op->kind, op->n);
    case GWQ_OP_ROPE:
        return rope(w, &op->rope);
    case GWQ_OP_ACTIVATE:
        return gwq_activate(NULL, op->each.x, op->each.up, op->n, op->each.dim,
                            op->each.activation);
    case GWQ_OP_SCALE:
        return gwq_scale(op->each.x, op->n, op->each.dim, op->each.number);
    case GWQ_OP_ADD:
        return gwq_add(op->add.x, op->add.y, op->n, op->add.dim, op->add.scale, op->add.broadcast);
    case GWQ_OP_COPY:
        return gwq_copy(op->copy.x, op->copy.stride, op->n, op->copy.dim, op->copy.out);
    case GWQ_OP_CACHE:
        return cache(w, &op->cache);
    case GWQ_OP_FILL:
        if (!op->each.x) return GWQ_E_ARGUMENT;
        for (int64_t i = 0; i < op->n * op->each.dim; i++) op->each.x[i] = op->each.number;
        return GWQ_OK;
    case GWQ_OP_ROUTE:
        return gwq_route(op->route.scores, op->n, op->route.experts, op->route.used,
                         op->route.normed, op->route.chosen, op->route.weights);
    case GWQ_OP_GATE:
        return gwq_gate(NULL, op->gate.x, op->gate.gate, op->n, op->gate.count, op->gate.each);
    case GWQ_OP_SHORTCONV:
        return op->n == w->n ? shortconv(w, &op->shortconv) : GWQ_E_ARGUMENT;
    default:
        return GWQ_E_ARGUMENT;
    }
}

/* --- ops of all threads ----------------------------------------------------------------------- */

static gwq_product product(const gwq_op *op) {
    const gwq_op_matmul *o = &op->matmul;
    return (gwq_product){
        .m = o->m,
        .y = o->y,
        .count = o->count,
        .in = {.n = op->n, .cols = o->m[0]->cols, .x = o->x},
        .bias = o->bias,
        .into = o->into,
        .factor = o->factor,
    };
}

/* A thread's bytes of scratch for one product: what comes before it, and codes */
static size_t product_scratch(const gwq_op *op) {
    const int64_t cols = op->matmul.m[0]->cols;
    return gwq_round_up(sizeof(float) * (size_t)(op->n * cols)) +
           gwq_round_up(gwq_product_bytes(op->n, cols));
}

static void before(const gwq_op_matmul *o, int64_t n, int64_t cols, float *out) {
    if (o->before == GWQ_BEFORE_ACTIVATION) {
        memcpy(out, o->x, sizeof *out * (size_t)(n * cols));
        gwq_activate(NULL, out, o->up, n, cols, o->activation);
    } else if (o->layer) {
        gwq_layernorm(NULL, o->x, o->weight, o->shift, o->eps, n, cols, out);
    } else {
        gwq_rmsnorm(NULL, o->x, o->weight, o->eps, n, cols, out);
    }
}

/* Take the chosen expert's matrices, where there is a choice; whether there is such an expert */
static int choose(const gwq_op_matmul *o, gwq_product *j) {
    if (!o->choice) return 1;
    if (*o->choice < 0 || *o->choice >= o->expert_count) return 0;
    j->m = o->experts + o->count * (int64_t)*o->choice;
    if (o->weight_of_choice) j->factor = *o->weight_of_choice;
    return j->m[0] && j->m[0]->cols == j->in.cols;
}

static void matmul(struct walk *w, int i, int thread, int threads) {
    const gwq_op *op = w->ops + i;
    uint8_t *scratch = w->scratch + w->each * (size_t)thread;
    gwq_product j = product(op);
    int tiles, outliers;
    j.taken = w->taken + i;
    if (!choose(&op->matmul, &j) || gwq_product_check(&j, &tiles, &outliers)) {
        if (thread == 0 && !w->status) w->status = GWQ_E_ARGUMENT;
        return;
    }
    if (op->matmul.before) {
        before(&op->matmul, op->n, j.in.cols, (float *)scratch);
        j.in.x = (float *)scratch;
        scratch += gwq_round_up(sizeof(float) * (size_t)(op->n * j.in.cols));
    }
    if (tiles) {
        gwq_product_scratch(&j, outliers, scratch);
        gwq_product_codes(&j, 0, 1);
    }
    gwq_product_share(&j, thread, threads);
}

static gwq_attention_job attention(const struct walk *w, const gwq_op_attention *o) {
    return (gwq_attention_job){
        .q = o->q,
        .k = o->k,
        .v = o->v,
        .type = o->type,
        .n = w->n,
        .start = w->pos,
        .heads = o->heads,
        .kv_heads = o->kv_heads,
        .dim = o->dim,
        .window = o->window,
        .scale = o->scale,
        .softcap = o->softcap,
        .out = o->out,
        .parts = w->parts,
    };
}

/* Runs begin at multiples of 64 numbers, as they would in one run of a vector's width */
static void softcap(const gwq_op *op, int thread, int threads) {
    enum { RUN = 64 };
    const gwq_op_each *o = &op->each;
    for (int64_t t = 0; t < op->n; t++) {
        const int64_t runs = (o->dim + RUN - 1) / RUN;
        const int64_t from = gwq_share(runs, thread, threads) * RUN;
        const int64_t to = min64(gwq_share(runs, thread + 1, threads) * RUN, o->dim);
        if (from < to) gwq_in_use()->softcap(o->x + t * o->dim + from, to - from, o->number);
    }
}

static int shared(int kind) {
    return kind == GWQ_OP_MATMUL || kind == GWQ_OP_ATTENTION || kind == GWQ_OP_SOFTCAP;
}

/* Whether a shared op can be: those of the first thread see for themselves */
static int check(const struct walk *w, const gwq_op *op) {
    if (op->kind == GWQ_OP_SOFTCAP)
        return op->each.x && op->each.dim > 0 && op->each.number > 0 ? GWQ_OK : GWQ_E_ARGUMENT;
    if (op->kind == GWQ_OP_ATTENTION) {
        gwq_attention_job j = attention(w, &op->attention);
        if (op->n != w->n || !gwq_attention_bytes(j.n, j.heads, j.dim)) return GWQ_E_ARGUMENT;
        return gwq_attention_check(&j);
    }
    const gwq_op_matmul *o = &op->matmul;
    const int most = sizeof o->m / sizeof *o->m;
    if (o->count < 1 || o->count > most || !o->m[0] || (o->into && o->count > 1))
        return GWQ_E_ARGUMENT;
    if (!o->x || (o->before == GWQ_BEFORE_NORM && !o->weight)) return GWQ_E_ARGUMENT;
    if (o->before == GWQ_BEFORE_ACTIVATION) { /* which is there, if it is so for no rows */
        if (o->activation == GWQ_SILU && !o->up) return GWQ_E_ARGUMENT;
        int status = gwq_activate(NULL, NULL, o->up, 0, o->m[0]->cols, o->activation);
        if (status) return status;
    }
    if (o->choice && (!o->experts || o->expert_count < 1)) return GWQ_E_ARGUMENT;
    int tiles, outliers;
    gwq_product j = product(op);
    return gwq_product_check(&j, &tiles, &outliers);
}

/* --- the walk --------------------------------------------------------------------------------- */

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void walk_task(void *p, int thread, int threads) {
    struct walk *w = p;
    const int timed = w->nanoseconds && thread == 0;
    int64_t last = timed ? now() : 0;
    for (int i = 0; i < w->count; i++) {
        const gwq_op *op = w->ops + i;
        if (op->kind == GWQ_OP_MATMUL) {
            matmul(w, i, thread, threads);
        } else if (op->kind == GWQ_OP_ATTENTION) {
            gwq_attention_job j = attention(w, &op->attention);
            gwq_attention_share(&j, thread, threads);
            gwq_pool_meet(w->pool);
            gwq_attention_merge(&j, thread, threads);
        } else if (op->kind == GWQ_OP_SOFTCAP) {
            softcap(op, thread, threads);
        } else if (thread == 0) {
            int status = alone(w, op); /* the others walk on: they wait at the same meetings */
            if (status && !w->status) w->status = status;
        }
        const int next = i + 1 < w->count && shared(op[1].kind);
        if (next || (shared(op->kind) && i + 1 < w->count)) gwq_pool_meet(w->pool);
        if (timed) {
            int64_t t = now();
            w->nanoseconds[i] += t - last;
            last = t;
        }
    }
}

static size_t counters(int count) {
    return gwq_round_up(sizeof(atomic_uint_fast64_t) * (size_t)count);
}

/* Most bytes of scratch that a product of the list takes; 0: one cannot be */
static size_t most_scratch(const gwq_op *ops, int count) {
    size_t most = 64;
    for (int i = 0; i < count; i++) {
        if (ops[i].kind != GWQ_OP_MATMUL) continue;
        const gwq_matrix *m = ops[i].matmul.m[0];
        if (!m || m->cols < 1 || m->cols > INT32_MAX) return 0;
        if (ops[i].n < 1 || ops[i].n > GWQ_PROGRAM_TOKENS) return 0;
        size_t bytes = product_scratch(ops + i);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* Most bytes of scratch that all threads need for an attention of the list */
static size_t most_parts(const gwq_op *ops, int count) {
    size_t most = 0;
    for (int i = 0; i < count; i++) {
        const gwq_op_attention *o = &ops[i].attention;
        if (ops[i].kind != GWQ_OP_ATTENTION) continue;
        size_t bytes = gwq_round_up(gwq_attention_bytes(ops[i].n, o->heads, o->dim));
        most = bytes > most ? bytes : most;
    }
    return most;
}

uint64_t gwq_program_bytes(const gwq_op *ops, int count, int threads) {
    if (!ops || count < 1 || threads < 1) return 0;
    const size_t each = most_scratch(ops, count);
    return each ? 64 + counters(count) + most_parts(ops, count) + each * (size_t)threads : 0;
}

int gwq_program_run(gwq_pool *pool, const gwq_op *ops, int count, const int32_t *ids, int64_t n,
                    int64_t pos, void *scratch, uint64_t scratch_bytes, int64_t *nanoseconds) {
    if (!ids || n < 1 || n > GWQ_PROGRAM_TOKENS || !scratch) return GWQ_E_ARGUMENT;
    if (pos < 0 || pos > INT32_MAX - n) return GWQ_E_ARGUMENT;
    const uint64_t needed = gwq_program_bytes(ops, count, gwq_pool_threads(pool));
    if (!needed) return GWQ_E_ARGUMENT;
    if (scratch_bytes < needed) return GWQ_E_SCRATCH;
    uint8_t *at = (uint8_t *)gwq_round_up((size_t)scratch);
    struct walk w = {
        .pool = pool,
        .ops = ops,
        .count = count,
        .ids = ids,
        .n = n,
        .pos = pos,
        .taken = (atomic_uint_fast64_t *)at,
        .parts = (float *)(at + counters(count)),
        .scratch = at + counters(count) + most_parts(ops, count),
        .each = most_scratch(ops, count),
        .nanoseconds = nanoseconds,
    };
    for (int i = 0; i < count; i++) {
        int status = shared(ops[i].kind) ? check(&w, ops + i) : GWQ_OK;
        if (status) return status;
        atomic_init(w.taken + i, 0);
    }
    gwq_pool_run(pool, walk_task, &w);
    return w.status;
}
