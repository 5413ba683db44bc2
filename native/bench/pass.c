#include "pass.h"
#include "gwq_maps.h"
#include "pages.h"
#include "say.h"

/* --- scratch ---------------------------------------------------------------------------------- */

static uint64_t most(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t scratch_of(const struct record *r, const struct record_pass *p, int threads) {
    const gwq_op *ops = r->ops + p->first;
    uint64_t bytes = 0;
    if (p->n <= GWQ_PROGRAM_TOKENS) {
        if (p->count <= INT32_MAX) bytes = gwq_program_bytes(ops, (int)p->count, threads);
        if (!bytes) record_damaged(r, "a program");
        return bytes;
    }
    for (int64_t i = 0; i < p->count; i++) {
        const gwq_op_attention *o = &ops[i].attention;
        if (ops[i].kind == GWQ_OP_MATMUL)
            bytes = most(bytes, gwq_scratch_bytes(ops[i].n, ops[i].matmul.m[0]->cols));
        if (ops[i].kind == GWQ_OP_ATTENTION)
            bytes = most(bytes, gwq_attention_bytes(ops[i].n, o->heads, o->dim));
    }
    return bytes;
}

void model_open(struct model *m, const char *model, const char *record, int threads) {
    struct record *r = &m->record;
    *m = (struct model){0};
    record_read(r, record);
    pages_bring_in(model);
    record_map_model(r, model);
    record_link(r);
    const int status = gwq_pool_new(threads, &m->pool);
    if (status) die_of(status, "threads");
    for (uint64_t i = 0; i < r->head->passes.count; i++)
        m->scratch_bytes = most(m->scratch_bytes, scratch_of(r, r->passes + i, threads));
    m->scratch = allocate(m->scratch_bytes);
}

/* --- an op of a prompt, by one call ----------------------------------------------------------- */

static int norm(gwq_pool *pool, const gwq_op *op) {
    const gwq_op_norm *o = &op->norm;
    if (op->kind == GWQ_OP_RMSNORM)
        return gwq_rmsnorm(pool, o->x, o->weight, o->eps, op->n, o->dim, o->out);
    return gwq_layernorm(pool, o->x, o->weight, o->bias, o->eps, op->n, o->dim, o->out);
}

static int rope(gwq_pool *pool, const gwq_op *op, int64_t pos) {
    const gwq_op_rope *o = &op->rope;
    const int64_t at = pos * (o->rotated / 2);
    return gwq_rope(pool, o->x, o->cos + at, o->sin + at, op->n, o->heads, o->dim, o->rotated,
                    o->style);
}

static int fill(const gwq_op_each *o, int64_t n) {
    for (int64_t i = 0; i < n * o->dim; i++) o->x[i] = o->number;
    return GWQ_OK;
}

static int route(const gwq_op_route *o, int64_t n) {
    return gwq_route(o->scores, n, o->experts, o->used, o->normed, o->chosen, o->weights);
}

/* Of fewer rows than the pass has tokens: of the last ones */
static int attention(const struct model *m, const gwq_op *op, int64_t n) {
    const gwq_op_attention *o = &op->attention;
    return gwq_attention(m->pool, o->q, o->k, o->v, o->type, op->n, m->pos + n - op->n, o->heads,
                         o->kv_heads, o->dim, o->scale, o->softcap, o->window, o->out, m->scratch);
}

static int shortconv(const struct model *m, const gwq_op *op) {
    const gwq_op_shortconv *o = &op->shortconv;
    return gwq_shortconv(m->pool, o->x, o->weight, o->state, o->rows, o->taps, op->n, m->pos,
                         o->dim, o->out);
}

static int embed(const gwq_op_embed *o, const int32_t *ids, int64_t n, int64_t pos) {
    int status = GWQ_OK;
    for (int64_t i = 0; i < n && !status; i++) {
        const int32_t position = (int32_t)(pos + i);
        status = gwq_embed(o->matrix, o->positions ? &position : ids + i, 1, o->group,
                           o->out + i * o->matrix->cols);
    }
    return status;
}

static int call(const struct model *m, const gwq_op *op, const int32_t *ids, int64_t n) {
    switch (op->kind) {
    case GWQ_OP_EMBED:
        return embed(&op->embed, ids, n, m->pos);
    case GWQ_OP_RMSNORM:
    case GWQ_OP_LAYERNORM:
        return norm(m->pool, op);
    case GWQ_OP_ROPE:
        return rope(m->pool, op, m->pos);
    case GWQ_OP_ACTIVATE:
        return gwq_activate(m->pool, op->each.x, op->each.up, op->n, op->each.dim,
                            op->each.activation);
    case GWQ_OP_SOFTCAP:
        return gwq_softcap(m->pool, op->each.x, op->n, op->each.dim, op->each.number);
    case GWQ_OP_SCALE:
        return gwq_scale(op->each.x, op->n, op->each.dim, op->each.number);
    case GWQ_OP_FILL:
        return fill(&op->each, op->n);
    case GWQ_OP_ADD:
        return gwq_add(op->add.x, op->add.y, op->n, op->add.dim, op->add.scale, op->add.broadcast);
    case GWQ_OP_COPY:
        return gwq_copy(op->copy.x, op->copy.stride, op->n, op->copy.dim, op->copy.out);
    case GWQ_OP_CACHE:
        return gwq_cache(op->cache.x, op->n * op->cache.width, op->cache.type, op->cache.cache,
                         m->pos * op->cache.width);
    case GWQ_OP_ROUTE:
        return route(&op->route, op->n);
    case GWQ_OP_ATTENTION:
        return attention(m, op, n);
    case GWQ_OP_GATE:
        return gwq_gate(m->pool, op->gate.x, op->gate.gate, op->n, op->gate.count, op->gate.each);
    case GWQ_OP_SHORTCONV:
        return shortconv(m, op);
    default:
        return gwq_matmul(m->pool, op->matmul.m, op->matmul.count, op->matmul.x, op->n,
                          op->matmul.y, m->scratch, m->scratch_bytes);
    }
}

/* --- passes ----------------------------------------------------------------------------------- */

static void run(struct model *m, const struct record_pass *p, const int32_t *ids) {
    const gwq_op *ops = m->record.ops + p->first;
    int status = GWQ_OK;
    if (p->n <= GWQ_PROGRAM_TOKENS)
        status = gwq_program_run(m->pool, ops, (int)p->count, ids, p->n, m->pos, m->scratch,
                                 m->scratch_bytes, NULL);
    else
        for (int64_t i = 0; i < p->count && !status; i++) status = call(m, ops + i, ids, p->n);
    if (status) die_of(status, m->record.path);
    m->pos += p->n;
}

/* The longest pass of at most `left` tokens; where these are the last ones, with logits, where more
 * follow, rather without */
static const struct record_pass *fitting(const struct record *r, int64_t left) {
    const struct record_pass *found = NULL;
    for (uint64_t i = 0; i < r->head->passes.count; i++) {
        const struct record_pass *p = r->passes + i;
        if (p->n > left || (p->n == left && !p->rows)) continue;
        if (!found || (p->n == found->n && !p->rows)) found = p;
    }
    return found; /* there is one of one token */
}

const float *model_forward(struct model *m, const int32_t *ids, int64_t n) {
    const struct record_pass *p = NULL;
    if (n < 1 || n > m->record.head->ctx - m->pos) record_damaged(&m->record, "its context");
    for (int64_t at = 0; at < n; at += p->n) {
        p = fitting(&m->record, n - at);
        run(m, p, ids + at);
    }
    if (gwq_map_faults(m->record.model.watched))
        die("%s could not be read any more: see to its disk, and copy it again",
            m->record.model.path);
    return (const float *)(uintptr_t)p->logits;
}

int32_t model_best(struct model *m, const float *logits) {
    int32_t id = 0;
    const int status = gwq_top(logits, m->record.head->vocab, 1, &id);
    if (status) die_of(status, "the model's logits");
    return id;
}

int record_has_prompt(const struct record *r, int64_t n) {
    const int64_t batch = r->head->batch;
    for (int64_t at = 0; at < n;) {
        const struct record_pass *p = fitting(r, n - at);
        const int64_t left = n - at;
        if (p->n != (left < batch ? left : batch)) return 0;
        at += p->n;
    }
    return 1;
}
