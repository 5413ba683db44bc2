/* Products: one launch for what comes before, and one for all matrices of a kind. */
#include "work.h"
#include <string.h>

static int64_t stride_of(int64_t cols) { return (int64_t)ceil_div(cols, PAD) * PAD; }

/* floats (n, stride), then two sets of codes, 256-byte aligned */
static size_t floats_bytes(int64_t n, int64_t cols) {
    return ((size_t)(n * stride_of(cols)) * sizeof(float) + 255) / 256 * 256;
}

size_t product_bytes(int64_t n, int64_t cols) {
    const size_t blocks = (size_t)(n * (stride_of(cols) / GWQ_BLOCK));
    return 256 + floats_bytes(n, cols) + 2 * blocks * sizeof(code_block);
}

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

void run_product(const product_job &j, void *scratch) {
    const gwq_op_matmul *o = j.op;
    const int64_t cols = o->m[0]->cols;
    uint8_t *at = (uint8_t *)(((uintptr_t)scratch + 255) / 256 * 256);
    bool tiles = false;
    for (int i = 0; i < o->count; i++) tiles |= uploaded(o->m[i])->kind < ROW_F32;
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
    a.blocks = tiles ? (code_block *)(at + floats_bytes(j.n, cols)) : nullptr;
    prepare(gwq_context.stream, a);

    bool done[MATRICES] = {};
    for (int first = 0; first < o->count; first++) {
        if (done[first]) continue;
        product p = {};
        p.n = (int)j.n;
        p.stride = a.stride;
        p.floats = a.floats;
        p.blocks = a.blocks;
        p.into = o->into;
        p.factor = o->factor;
        p.choice = j.experts ? o->choice : nullptr;
        p.experts = j.experts;
        p.weight_of_choice = j.experts ? o->weight_of_choice : nullptr;
        const int kind = uploaded(o->m[first])->kind;
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
