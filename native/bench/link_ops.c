/* Which memory every operation reads and writes, so that places can be checked before they become
 * pointers. It has to know of an op what the library trusts its caller with. */
#include <string.h>
#include "record.h"

enum { MOST = 1 << 30 }; /* of a dimension, so that products of two have room */

struct linked {
    struct record *r;
    const struct record_pass *pass;
    const gwq_op *op;
};

static int64_t dimension(const struct linked *l, int64_t size) {
    if (size < 1 || size > MOST) record_damaged(l->r, "the shape of an operation");
    return size;
}

static uint64_t times(const struct linked *l, int64_t a, int64_t b) {
    const uint64_t most = (uint64_t)1 << 50;
    if (a < 1 || b < 1 || (uint64_t)a > most / (uint64_t)b)
        record_damaged(l->r, "the shape of an operation");
    return (uint64_t)a * (uint64_t)b;
}

/* `count` floats, or other numbers of four bytes */
#define READ(place, count) \
    ((place) = record_bytes(l->r, (const void *)(place), 4 * (count), 0))
#define READ_IF_THERE(place, count) \
    do { \
        if (place) READ(place, count); \
    } while (0)
#define WRITE(place, count) \
    ((place) = record_bytes(l->r, (const void *)(place), 4 * (count), 1))

/* Operations on the tokens of a run, whose positions count */
static void all_tokens(const struct linked *l) {
    if (l->op->n != l->pass->n) record_damaged(l->r, "the tokens of an operation");
}

static void embed(const struct linked *l, gwq_op_embed *o) {
    all_tokens(l);
    o->matrix = record_matrix(l->r, o->matrix);
    WRITE(o->group, times(l, GWQ_ROWS, o->matrix->cols));
    WRITE(o->out, times(l, l->op->n, o->matrix->cols));
}

static void norm(const struct linked *l, gwq_op_norm *o) {
    const uint64_t dim = (uint64_t)dimension(l, o->dim), all = times(l, l->op->n, o->dim);
    READ(o->x, all);
    READ(o->weight, dim);
    READ_IF_THERE(o->bias, dim);
    WRITE(o->out, all);
}

static void rope(const struct linked *l, gwq_op_rope *o) {
    all_tokens(l);
    const int64_t width = (int64_t)times(l, dimension(l, o->heads), dimension(l, o->dim));
    const uint64_t turns = times(l, l->r->head->ctx, dimension(l, o->rotated) / 2);
    if (o->rotated > o->dim) record_damaged(l->r, "the shape of an operation");
    WRITE(o->x, times(l, l->op->n, width));
    READ(o->cos, turns);
    READ(o->sin, turns);
}

static void each(const struct linked *l, gwq_op_each *o) {
    const uint64_t all = times(l, l->op->n, dimension(l, o->dim));
    WRITE(o->x, all);
    if (l->op->kind == GWQ_OP_ACTIVATE) READ_IF_THERE(o->up, all);
    else o->up = NULL;
}

static void add(const struct linked *l, gwq_op_add *o) {
    const uint64_t dim = (uint64_t)dimension(l, o->dim), all = times(l, l->op->n, o->dim);
    WRITE(o->x, all);
    READ(o->y, o->broadcast ? dim : all);
}

static void copy(const struct linked *l, gwq_op_copy *o) {
    const uint64_t dim = (uint64_t)dimension(l, o->dim);
    if (o->stride < o->dim) record_damaged(l->r, "the shape of an operation");
    READ(o->x, times(l, l->op->n, dimension(l, o->stride)) - (uint64_t)(o->stride - o->dim));
    WRITE(o->out, times(l, l->op->n, (int64_t)dim));
}

/* Bytes of a KV cache's numbers at all positions */
static uint64_t cache_bytes(const struct linked *l, int type, int64_t width) {
    const uint64_t bytes = gwq_matrix_bytes(type, l->r->head->ctx, width);
    if ((type != GWQ_TYPE_F32 && type != GWQ_TYPE_F16 && type != GWQ_TYPE_Q8_0) || !bytes)
        record_damaged(l->r, "the type of a KV cache");
    return bytes;
}

static void cache(const struct linked *l, gwq_op_cache *o) {
    all_tokens(l);
    READ(o->x, times(l, l->op->n, dimension(l, o->width)));
    o->cache = record_bytes(l->r, o->cache, cache_bytes(l, o->type, o->width), 1);
}

static void route(const struct linked *l, gwq_op_route *o) {
    if (o->used < 1 || o->used > GWQ_MAX_USED || o->used > o->experts)
        record_damaged(l->r, "the shape of an operation");
    const uint64_t chosen = times(l, l->op->n, o->used);
    READ(o->scores, times(l, l->op->n, dimension(l, o->experts)));
    WRITE(o->chosen, chosen);
    WRITE(o->weights, chosen);
}

static void attention(const struct linked *l, gwq_op_attention *o) {
    enum { HEADS = 65536, HEAD = 65536 };
    if (l->op->n > l->pass->n) record_damaged(l->r, "the tokens of an operation");
    if (l->pass->n <= GWQ_PROGRAM_TOKENS) all_tokens(l);
    if (o->heads < 1 || o->heads > HEADS || o->kv_heads < 1 || o->kv_heads > o->heads ||
        o->dim < 1 || o->dim > HEAD || o->window < 0)
        record_damaged(l->r, "the shape of an operation");
    const uint64_t bytes = cache_bytes(l, o->type, o->kv_heads * o->dim);
    const uint64_t all = times(l, l->op->n, o->heads * o->dim);
    READ(o->q, all);
    o->k = record_bytes(l->r, o->k, bytes, 0);
    o->v = record_bytes(l->r, o->v, bytes, 0);
    WRITE(o->out, all);
}

static void shortconv(const struct linked *l, gwq_op_shortconv *o) {
    all_tokens(l);
    const uint64_t dim = (uint64_t)dimension(l, o->dim), all = times(l, l->op->n, o->dim);
    if (o->taps < 1 || o->taps > GWQ_MAX_TAPS || o->rows < 1 || o->taps > o->rows + 1)
        record_damaged(l->r, "the shape of an operation");
    WRITE(o->x, 3 * all);
    READ(o->weight, (uint64_t)o->taps * dim);
    WRITE(o->state, times(l, dimension(l, o->rows), o->dim));
    WRITE(o->out, all);
}

static void gate(const struct linked *l, gwq_op_gate *o) {
    const uint64_t count = times(l, l->op->n, dimension(l, o->count));
    WRITE(o->x, times(l, (int64_t)count, dimension(l, o->each)));
    READ(o->gate, count);
}

static int within(const void *p, const void *start, uint64_t bytes) {
    const uintptr_t at = (uintptr_t)p, from = (uintptr_t)start;
    return at + sizeof(int32_t) > from && at < from + bytes;
}

/* The matrices of all experts are like those that the op names, and nothing that it writes changes
 * the choice while threads look at it. */
static void experts(const struct linked *l, gwq_op_matmul *o) {
    const struct record *r = l->r;
    const uint64_t first = place_at(o->experts);
    const uint64_t all = times(l, dimension(l, o->expert_count), o->count);
    if (place_kind(o->experts) != PLACE_EXPERTS || first > r->head->experts.count ||
        all > r->head->experts.count - first)
        record_damaged(r, "the experts of an operation");
    o->experts = r->experts + first;
    for (uint64_t i = 0; i < all; i++) {
        const gwq_matrix *e = o->experts[i], *m = o->m[i % (uint64_t)o->count];
        if (e->type != m->type || e->rows != m->rows || e->cols != m->cols)
            record_damaged(r, "the experts of an operation");
    }
    READ(o->choice, 1);
    READ_IF_THERE(o->weight_of_choice, 1);
    for (int i = 0; i < o->count; i++) {
        const uint64_t bytes = 4 * times(l, l->op->n, o->m[i]->rows);
        if (within(o->choice, o->y[i], bytes) || (o->into && within(o->choice, o->into, bytes)))
            record_damaged(r, "an operation that changes its own choice");
    }
}

static void matmul(const struct linked *l, gwq_op_matmul *o) {
    enum { MATRICES = sizeof o->m / sizeof *o->m };
    struct record *r = l->r;
    if (o->count < 1 || o->count > MATRICES || (o->into && o->count > 1) ||
        o->before < GWQ_BEFORE_NOTHING || o->before > GWQ_BEFORE_ACTIVATION)
        record_damaged(r, "a product");
    for (int i = 0; i < MATRICES; i++) {
        if (i >= o->count) {
            o->m[i] = NULL;
            o->bias[i] = o->y[i] = NULL;
            continue;
        }
        o->m[i] = record_matrix(r, o->m[i]);
        if (o->m[i]->cols != o->m[0]->cols) record_damaged(r, "the matrices of a product");
        WRITE(o->y[i], times(l, l->op->n, o->m[i]->rows));
        READ_IF_THERE(o->bias[i], (uint64_t)o->m[i]->rows);
    }
    const uint64_t cols = (uint64_t)o->m[0]->cols, all = times(l, l->op->n, o->m[0]->cols);
    READ(o->x, all);
    if (o->before == GWQ_BEFORE_NORM) {
        READ(o->weight, cols);
        READ_IF_THERE(o->shift, cols);
    } else if (o->before == GWQ_BEFORE_ACTIVATION) {
        READ_IF_THERE(o->up, all);
    }
    if (o->into) WRITE(o->into, times(l, l->op->n, o->m[0]->rows));
    if (o->choice) experts(l, o);
    const int joined = o->before || o->into || o->choice || o->bias[0] || o->bias[1] ||
                       o->bias[2] || o->bias[3];
    if (l->pass->n > GWQ_PROGRAM_TOKENS && joined) record_damaged(r, "a product of a prompt");
}

void record_link_op(struct record *r, const struct record_pass *pass, gwq_op *op) {
    const struct linked of_op = {r, pass, op}, *l = &of_op;
    if (op->n < 1 || op->n > MOST) record_damaged(r, "the tokens of an operation");
    switch (op->kind) {
    case GWQ_OP_EMBED:
        return embed(l, &op->embed);
    case GWQ_OP_RMSNORM:
    case GWQ_OP_LAYERNORM:
        return norm(l, &op->norm);
    case GWQ_OP_ROPE:
        return rope(l, &op->rope);
    case GWQ_OP_ACTIVATE:
    case GWQ_OP_SOFTCAP:
    case GWQ_OP_SCALE:
    case GWQ_OP_FILL:
        return each(l, &op->each);
    case GWQ_OP_ADD:
        return add(l, &op->add);
    case GWQ_OP_COPY:
        return copy(l, &op->copy);
    case GWQ_OP_CACHE:
        return cache(l, &op->cache);
    case GWQ_OP_ROUTE:
        return route(l, &op->route);
    case GWQ_OP_ATTENTION:
        return attention(l, &op->attention);
    case GWQ_OP_GATE:
        return gate(l, &op->gate);
    case GWQ_OP_SHORTCONV:
        return shortconv(l, &op->shortconv);
    case GWQ_OP_MATMUL:
        return matmul(l, &op->matmul);
    default:
        record_damaged(r, "an unknown operation");
    }
}
