/* libgwq: a forward pass as a list of ops, which the library runs from end to end.
 *
 * The list is made for n tokens, 1 to GWQ_PROGRAM_TOKENS, and runs at any position: what depends on
 * that is left to the run. Ops mean what the functions of the same names mean (gwq.h). Neighbours
 * are joined where an op says so, which saves threads the waiting for each other. Results are equal
 * to the bit to those of the functions, one after another.
 *  */
#ifndef GWQ_PROGRAM_H
#define GWQ_PROGRAM_H
#include "gwq.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum gwq_program_limits { GWQ_PROGRAM_TOKENS = 6 };

enum gwq_op_kind {
    GWQ_OP_EMBED = 0,
    GWQ_OP_RMSNORM,
    GWQ_OP_LAYERNORM,
    GWQ_OP_ROPE,
    GWQ_OP_ACTIVATE,
    GWQ_OP_SOFTCAP,
    GWQ_OP_SCALE,
    GWQ_OP_ADD,
    GWQ_OP_COPY,
    GWQ_OP_CACHE,
    GWQ_OP_FILL,
    GWQ_OP_ROUTE,
    GWQ_OP_ATTENTION,
    GWQ_OP_SHORTCONV,
    GWQ_OP_GATE,
    GWQ_OP_MATMUL
};

/* out (n, cols) = rows of the matrix: those of the run's ids, or of the tokens' positions */
typedef struct gwq_op_embed {
    const gwq_matrix *matrix;
    int32_t positions;
    float *group; /* (16, cols), work space */
    float *out;
} gwq_op_embed;

/* RMSNORM and LAYERNORM: out (n, dim); bias may be NULL, as it is with RMSNORM */
typedef struct gwq_op_norm {
    const float *x, *weight, *bias;
    float eps;
    int64_t dim;
    float *out;
} gwq_op_norm;

/* x (n, heads, dim) in place; cos and sin (positions, rotated / 2) from position 0 on */
typedef struct gwq_op_rope {
    float *x;
    const float *cos, *sin;
    int64_t heads, dim, rotated;
    int32_t style;
} gwq_op_rope;

/* ACTIVATE: x (n, dim) = activation(x) * up. SOFTCAP: x = number * tanh(x / number). SCALE: x *=
 * number. FILL: x = number. */
typedef struct gwq_op_each {
    float *x;
    const float *up;
    int32_t activation;
    float number;
    int64_t dim;
} gwq_op_each;

/* x (n, dim) += scale * y */
typedef struct gwq_op_add {
    float *x;
    const float *y;
    int64_t dim;
    float scale;
    int32_t broadcast;
} gwq_op_add;

typedef struct gwq_op_copy {
    const float *x;
    int64_t stride, dim;
    float *out;
} gwq_op_copy;

/* The cache's numbers at the run's positions = x (n, width) */
typedef struct gwq_op_cache {
    const float *x;
    int64_t width;
    int32_t type;
    void *cache;
} gwq_op_cache;

/* scores (n, experts) to chosen and weights (n, used) */
typedef struct gwq_op_route {
    const float *scores;
    int64_t experts, used;
    int32_t normed;
    int32_t *chosen;
    float *weights;
} gwq_op_route;

/* q and out (n, heads, dim); k and v (positions, kv_heads, dim) from position 0 on */
typedef struct gwq_op_attention {
    const float *q;
    const void *k, *v;
    int32_t type;
    int64_t heads, kv_heads, dim, window;
    float scale, softcap;
    float *out;
} gwq_op_attention;

/* x (n, 3, dim) and out (n, dim); state (rows, dim), of the run's positions */
typedef struct gwq_op_shortconv {
    float *x;
    const float *weight;
    float *state;
    int64_t rows, taps, dim;
    float *out;
} gwq_op_shortconv;

/* x (n, count, each) *= sigmoid(gate (n, count)) */
typedef struct gwq_op_gate {
    float *x;
    const float *gate;
    int64_t count, each;
} gwq_op_gate;

/* What comes before a product, of x (n, cols) */
enum gwq_op_before { GWQ_BEFORE_NOTHING = 0, GWQ_BEFORE_NORM, GWQ_BEFORE_ACTIVATION };

/* y[i] (n, rows of m[i]) = f(x) * transpose(m[i]) (+ bias[i] (rows)), for `count` matrices of equal
 * cols; then, for one matrix, into (n, rows) += factor * y[0]. f by enum gwq_op_before: norm(x) by
 * weight, bias and eps as in gwq_op_norm (`layer` for LAYERNORM), or activation(x) * up. Nothing
 * written here may lie in what is read, but `into` in itself.
 *
 * Where there is a choice, the matrices are those of an expert, experts[count * *choice] on, alike
 * in type and shape to m; the factor is *weight_of_choice where that is there. */
typedef struct gwq_op_matmul {
    const float *x;
    int32_t before;
    int32_t layer;
    const float *weight, *shift;
    float eps;
    const float *up;
    int32_t activation;
    int32_t count;
    const gwq_matrix *m[4];
    const float *bias[4];
    float *y[4];
    float *into;
    float factor;
    const float *weight_of_choice;
    const int32_t *choice;
    const gwq_matrix *const *experts;
    int64_t expert_count;
} gwq_op_matmul;

typedef struct gwq_op {
    int32_t kind; /* enum gwq_op_kind, which of the following it is */
    int64_t n;    /* rows; of EMBED, ROPE, CACHE, ATTENTION, SHORTCONV: the run's tokens */
    union {
        gwq_op_embed embed;
        gwq_op_norm norm;
        gwq_op_rope rope;
        gwq_op_each each;
        gwq_op_add add;
        gwq_op_copy copy;
        gwq_op_cache cache;
        gwq_op_route route;
        gwq_op_attention attention;
        gwq_op_shortconv shortconv;
        gwq_op_gate gate;
        gwq_op_matmul matmul;
    };
} gwq_op;

/* Bytes of scratch that gwq_program_run needs; 0 for arguments that cannot be. */
uint64_t gwq_program_bytes(const gwq_op *ops, int count, int threads);
/* Run `count` ops for the tokens ids (n) at the positions pos .. pos + n - 1. pool: of `threads`,
 * as for gwq_program_bytes. nanoseconds: NULL, or (count), to which the time of every op is added.
 * Where an op fails, what is written means nothing. GWQ_E_ARGUMENT, _TYPE, _INDEX, _SCRATCH. */
int gwq_program_run(gwq_pool *pool, const gwq_op *ops, int count, const int32_t *ids, int64_t n,
                    int64_t pos, void *scratch, uint64_t scratch_bytes, int64_t *nanoseconds);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
