/* Products: one launch for what comes before, and one for all matrices of a kind. */
#include "work.h"
#include <string.h>

static int64_t stride_of(int64_t cols) { return (int64_t)ceil_div(cols, PAD) * PAD; }

static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

/* Tokens of half_activations */
static int64_t padded(int64_t n) {
    const int tile = tile_of((int)n);
    return (int64_t)ceil_div(n, tile) * tile;
}

/* Where a product's scratch has what comes before it: floats, then two sets of codes, or what there
 * is of half_activations */
struct parts {
    size_t floats, blocks, factors, massive, halves, columns, end; /* 256-byte aligned */
};

static parts parts_of(int64_t n, int64_t cols) {
    const int64_t stride = stride_of(cols), tokens = padded(n);
    const int64_t tiles = tokens / tile_of((int)n);
    const size_t each = rounded((size_t)(tokens * stride) * sizeof(uint16_t));
    const size_t codes = 2 * (size_t)(n * (stride / GWQ_BLOCK)) * sizeof(code_block);
    parts p;
    p.floats = 0;
    p.blocks = p.factors = rounded((size_t)(n * stride) * sizeof(float));
    p.massive = p.factors + rounded((size_t)tokens * sizeof(float));
    p.halves = p.massive + rounded((size_t)(tiles * massive_words((int)stride)) * sizeof(int));
    p.columns = p.halves + 2 * each;
    p.end = n > GEMV_TOKENS ? p.columns + (n > FEW_TILE ? 2 * each : 0) : p.blocks + codes;
    return p;
}

size_t product_bytes(int64_t n, int64_t cols) { return 256 + parts_of(n, cols).end; }

int check_product(const gwq_op_matmul *o, int64_t n) {
    if (o->count < 1 || o->count > MATRICES || !o->x || n < 1 || n > INT32_MAX / 2)
        return GWQ_E_ARGUMENT;
    if (o->into && o->count > 1) return GWQ_E_ARGUMENT;
    for (int i = 0; i < o->count; i++) {
        const device_matrix *m = uploaded(o->m[i]);
        if (!m || !o->y[i] || m->cols != o->m[0]->cols) return GWQ_E_ARGUMENT;
    }
    if (o->before == GWQ_BEFORE_NORM && !o->weight) return GWQ_E_ARGUMENT;
    if (o->before == GWQ_BEFORE_ACTIVATION) {
        if (o->activation < GWQ_SILU || o->activation > GWQ_GELU_TANH) return GWQ_E_ARGUMENT;
        if (o->activation == GWQ_SILU && !o->up) return GWQ_E_ARGUMENT;
    }
    return o->choice ? check_experts(o) : GWQ_OK;
}

int check_experts(const gwq_op_matmul *o) {
    if (!o->experts || o->expert_count < 1) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < o->expert_count * o->count; i++) {
        const device_matrix *m = uploaded(o->experts[i]), *as = uploaded(o->m[i % o->count]);
        if (!m || m->kind != as->kind || m->rows != as->rows || m->cols != as->cols)
            return GWQ_E_ARGUMENT;
    }
    return GWQ_OK;
}

/* Puts f(x) where `parts` say, in a form that matrices want. Codes get a->blocks if there is a tile
 * matrix; outliers: whether there may be some. */
static half_activations put_activations(activations *a, form order, bool tiles, bool outliers,
                                        uint8_t *at) {
    const parts where = parts_of(a->n, a->cols);
    half_activations h = {};
    h.order = order;
    if (order == AS_CODES) {
        a->blocks = tiles ? (code_block *)(at + where.blocks) : nullptr;
        prepare(gwq_context.stream, *a);
        return h;
    }
    h.tile = tile_of(a->n);
    h.tokens = (int)padded(a->n);
    h.factors = (float *)(at + where.factors);
    h.massive = (int *)(at + where.massive);
    h.halves = (uint16_t *)(at + where.halves);
    h.columns = outliers && a->n > FEW_TILE ? (uint16_t *)(at + where.columns) : nullptr;
    prepare_halves(gwq_context.stream, *a, h);
    return h;
}

void run_product(const product_job &j, void *scratch) {
    const gwq_op_matmul *o = j.op;
    const int64_t cols = o->m[0]->cols;
    uint8_t *at = (uint8_t *)(((uintptr_t)scratch + 255) / 256 * 256);
    activations a = {};
    a.x = o->x;
    a.n = (int)j.n;
    a.cols = (int)cols;
    a.stride = (int)stride_of(cols);
    a.before = o->before;
    a.layer = o->layer;
    a.activation = o->activation;
    a.weight = o->weight;
    a.shift = o->shift;
    a.up = o->up;
    a.eps = o->eps;
    a.floats = (float *)at;
    half_activations halves = {};
    bool prepared = false, tiles = false;
    bool outliers = j.experts; /* of which one may have some */
    for (int i = 0; i < o->count; i++) {
        const device_matrix *m = uploaded(o->m[i]);
        tiles |= form_of(m->kind, j.n) == AS_CODES && m->kind < ROW_F32;
        outliers |= m->outliers != nullptr;
    }

    bool done[MATRICES] = {};
    for (int first = 0; first < o->count; first++) {
        if (done[first]) continue;
        product p = {};
        p.n = (int)j.n;
        p.stride = a.stride;
        p.floats = a.floats;
        p.into = o->into;
        p.factor = o->factor;
        p.choice = j.experts ? o->choice : nullptr;
        p.experts = j.experts;
        p.weight_of_choice = j.experts ? o->weight_of_choice : nullptr;
        const int kind = uploaded(o->m[first])->kind;
        const form order = form_of(kind, j.n);
        if (!prepared || order != halves.order)
            halves = put_activations(&a, order, tiles, outliers, at);
        prepared = true;
        p.blocks = a.blocks;
        p.halves = halves;
        int groups = 0;
        for (int i = first; i < o->count; i++) {
            const device_matrix *m = uploaded(o->m[i]);
            if (m->kind != kind || (j.experts && i != first + p.count)) continue;
            groups += ceil_div(m->rows, ROWS);
            p.m[p.count] = *m;
            p.bias[p.count] = o->bias[i];
            p.y[p.count] = o->y[i];
            p.groups[p.count] = groups;
            p.count++;
            done[i] = true;
        }
        p.each_expert = o->count;
        p.first_of_expert = first;
        multiply(gwq_context.stream, p);
    }
}

int check_attention(const gwq_op_attention *o, int64_t n, int64_t start) {
    if (!o->q || !o->k || !o->v || !o->out || n < 1 || start < 0 || o->dim < 1)
        return GWQ_E_ARGUMENT;
    if (o->window < 0 || o->kv_heads < 1 || o->kv_heads > 65535 || o->heads < o->kv_heads)
        return GWQ_E_ARGUMENT;
    if (o->heads % o->kv_heads || o->dim > GWQ_CUDA_HEAD) return GWQ_E_ARGUMENT;
    const bool plain = o->type == GWQ_TYPE_F16 || o->type == GWQ_TYPE_F32;
    return plain || (o->type == GWQ_TYPE_Q8_0 && o->dim % 32 == 0) ? GWQ_OK : GWQ_E_TYPE;
}

int check_shortconv(const gwq_op_shortconv *o, int64_t n) {
    if (n < 0 || o->dim < 1 || o->dim > INT32_MAX || o->rows < 1 || o->rows > INT32_MAX)
        return GWQ_E_ARGUMENT;
    if (o->taps < 1 || o->taps > GWQ_MAX_TAPS || o->taps > o->rows + 1) return GWQ_E_ARGUMENT;
    return o->state && (!n || (o->x && o->weight && o->out)) ? GWQ_OK : GWQ_E_ARGUMENT;
}
