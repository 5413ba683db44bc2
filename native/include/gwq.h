/* libgwq: the public ABI. C compiles this text and cffi parses it, so it holds declarations only.
 *
 * Functions that return int and can fail return an enum gwq_status: GWQ_OK, or the reason, having
 * written nothing. Those of GWQ_E_ARGUMENT, a fault of the caller's, are not named below. None
 * allocates (except gwq_pool_new), prints, exits or keeps a pointer it was given. Matrices come
 * from untrusted files: call gwq_matrix_check once, then compute with them.
 *
 * Arrays of float are row-major; "(n, dim)" is their shape. Where several threads of `pool` compute
 * (NULL: the caller alone), the result does not depend on their number, to the bit.
 *  */
#ifndef GWQ_H
#define GWQ_H
#include <stdint.h>
#include "gwq_format.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum gwq_status {
    GWQ_OK = 0,
    GWQ_E_ARGUMENT, /* null pointer, negative size, or sizes that do not fit together */
    GWQ_E_TYPE,     /* not a matrix type, or one that the function does not take */
    GWQ_E_SHAPE,    /* rows or columns out of range, or not whole blocks */
    GWQ_E_SIZE,     /* data length is not what type and shape ask for */
    GWQ_E_OFFSETS,  /* side-table: offsets do not ascend from 0 to the table's end */
    GWQ_E_RECORD,   /* side-table: a row group's records do not end where the next one's begin */
    GWQ_E_ROW,      /* side-table: an outlier in a padded row */
    GWQ_E_COLUMN,   /* side-table: a column beyond the matrix, or not ascending */
    GWQ_E_ISA,      /* unknown instruction set, or one this machine lacks */
    GWQ_E_MEMORY,   /* no memory, or no thread could be started */
    GWQ_E_SCRATCH,  /* scratch buffer too small */
    GWQ_E_INDEX,    /* row index out of range */
    GWQ_E_TABLE,    /* a table entry is not in -32..31 */
    GWQ_E_EXPONENT, /* an exponent is not in -64..64 */
    GWQ_E_FINITE,   /* a number is infinite or NaN */
    GWQ_E_DEVICE    /* the driver of a device, or the device itself, failed */
};

/* A weight matrix in memory as it lies in the file. Any type may have outliers. */
typedef struct gwq_matrix {
    int32_t type;            /* enum gwq_type */
    int64_t rows, cols;      /* outputs, inputs */
    const void *data;        /* head and tiles, or rows of a ggml type */
    uint64_t data_bytes;     /* gwq_matrix_bytes of the type and shape */
    const uint8_t *outliers; /* side-table records, or NULL */
    uint64_t outlier_bytes;  /* of the records; 0 without */
    const uint8_t *offsets;  /* int32 little-endian, (ceil(rows / 16) + 1); NULL without outliers */
    uint64_t offset_bytes;   /* 4 * (ceil(rows / 16) + 1); 0 without outliers */
} gwq_matrix;

/* Which two of a head's numbers turn together: 2i and 2i + 1, or i and i + rotated / 2 */
enum gwq_rope_style { GWQ_ROPE_PAIRS = 0, GWQ_ROPE_HALVES = 1 };

/* x / (1 + exp(-x)); x/2 (1 + erf(x / sqrt(2))); its approximation by tanh */
enum gwq_activation { GWQ_SILU = 0, GWQ_GELU = 1, GWQ_GELU_TANH = 2 };

/* --- the library ------------------------------------------------------------------------------ */

/* SHA-256 (hex) of the headers this library was built from. */
const char *gwq_abi(void);

/* Instruction sets are rows of one table, best last. Name of row `index`; NULL past the end. */
const char *gwq_isa_name(int index);
/* 1: this machine can run row `index`; 0: it cannot, or there is no such row. */
int gwq_isa_supported(int index);
/* Name of the instruction set in use; "scalar" before the first gwq_isa_select. */
const char *gwq_isa(void);
/* Use an instruction set from now on, in all threads; NULL: the best supported one. Not while
 * another function runs. GWQ_E_ISA. */
int gwq_isa_select(const char *name);

typedef struct gwq_pool gwq_pool;
/* *pool = a pool of 1..256 threads, of which the caller is one. Several threads may use one pool: a
 * function that gets it holds it until it returns. GWQ_E_MEMORY. */
int gwq_pool_new(int threads, gwq_pool **pool);
/* Ends the pool's threads; NULL does nothing. No function may be using it. */
void gwq_pool_free(gwq_pool *pool);

/* --- matrices --------------------------------------------------------------------------------- */

/* Bytes of the data of a matrix of this type and shape; 0 for a type or shape that cannot be. */
uint64_t gwq_matrix_bytes(int32_t type, int64_t rows, int64_t cols);
/* Whether every function below can compute with the matrix without reading beyond its arrays: its
 * type, shape, length, table and side-table are sound. GWQ_E_TYPE, _SHAPE, _SIZE, _TABLE, _OFFSETS,
 * _RECORD, _ROW, _COLUMN. */
int gwq_matrix_check(const gwq_matrix *m);
/* out (count, cols) = rows first .. first+count-1, outliers included, identical bits on every
 * instruction set. Whole row groups: first is a multiple of 16, and so is count unless it ends the
 * matrix. GWQ_E_INDEX. */
int gwq_dequantize(gwq_pool *pool, const gwq_matrix *m, int64_t first, int64_t count, float *out);
/* out (n, cols) = rows ids[0..n-1]; group (16, cols) is work space. GWQ_E_INDEX. */
int gwq_embed(const gwq_matrix *m, const int32_t *ids, int64_t n, float *group, float *out);

/* Bytes of scratch that gwq_matmul needs for n tokens of matrices of tile types; 0 if n or cols is
 * out of range. */
uint64_t gwq_scratch_bytes(int64_t n, int64_t cols);
/* y[i] (n, rows of m[i]) = x (n, cols) * transpose(m[i]), for `count` matrices of equal cols.
 * Tile types: the dense part sees x as int8 with a scale per 64 columns, outliers see x in float32.
 * ggml types: all in float32, and scratch may be NULL. GWQ_E_SCRATCH. */
int gwq_matmul(gwq_pool *pool, const gwq_matrix *const *m, int count, const float *x, int64_t n,
               float *const *y, void *scratch, uint64_t scratch_bytes);

enum gwq_routing { GWQ_MAX_USED = 256 }; /* experts of a token */

/* --- activations ------------------------------------------------------------------------------ */

/* out (n, dim) = x / sqrt(mean(x^2) + eps) * weight (dim); out may be x. */
int gwq_rmsnorm(gwq_pool *pool, const float *x, const float *weight, float eps, int64_t n,
                int64_t dim, float *out);
/* out (n, dim) = (x - mean(x)) / sqrt(variance(x) + eps) * weight (dim) + bias (dim), or + nothing
 * if bias is NULL; out may be x. */
int gwq_layernorm(gwq_pool *pool, const float *x, const float *weight, const float *bias, float eps,
                  int64_t n, int64_t dim, float *out);
/* Turn the first `rotated` numbers of each head's dim in x (n, heads, dim) in place, by enum
 * gwq_rope_style. cos and sin are (n, rotated / 2), already at the tokens' positions. */
int gwq_rope(gwq_pool *pool, float *x, const float *cos, const float *sin, int64_t n, int64_t heads,
             int64_t dim, int64_t rotated, int style);
/* x (n, dim) = activation(x) * up (n, dim), by enum gwq_activation; up may be NULL for no factor,
 * with the GELUs. */
int gwq_activate(gwq_pool *pool, float *x, const float *up, int64_t n, int64_t dim, int activation);
/* x (n, dim) = cap * tanh(x / cap), cap positive. */
int gwq_softcap(gwq_pool *pool, float *x, int64_t n, int64_t dim, float cap);
/* x (n, count, each) *= sigmoid(gate (n, count)) = 1 / (1 + exp(-gate)). */
int gwq_gate(gwq_pool *pool, float *x, const float *gate, int64_t n, int64_t count, int64_t each);
/* x (n, dim) *= scale. */
int gwq_scale(float *x, int64_t n, int64_t dim, float scale);
/* x (n, dim) += scale * y (n, dim), or scale * y (dim) for every row when `broadcast`. */
int gwq_add(float *x, const float *y, int64_t n, int64_t dim, float scale, int broadcast);
/* out (n, dim) = n runs of dim floats that begin `stride` floats apart in x. */
int gwq_copy(const float *x, int64_t stride, int64_t n, int64_t dim, float *out);

/* ids (k) = where the k largest of x (n) are, largest first; of equal numbers the earlier ones.
 * GWQ_E_FINITE: one of all is not finite. */
int gwq_top(const float *x, int64_t n, int64_t k, int32_t *ids);
/* The `used` experts that each token chooses by a softmax over scores (n, experts): chosen (n,
 * used), ascending; of equal scores the lower experts. weights (n, used): of a token's, adding up
 * to 1 where `normed`, else as shares of all experts. used is at most GWQ_MAX_USED.
 * GWQ_E_FINITE. */
int gwq_route(const float *scores, int64_t n, int64_t experts, int64_t used, int normed,
              int32_t *chosen, float *weights);

/* --- attention -------------------------------------------------------------------------------- */

/* Numbers first .. first+count-1 of a cache of type F32, F16 or Q8_0 = x (count). FP16 is rounded
 * to nearest even, +-65504 at most; Q8_0 (first and count multiples of 32) to 127ths of the largest
 * of each 32 numbers. GWQ_E_TYPE. */
int gwq_cache(const float *x, int64_t count, int type, void *cache, int64_t first);
/* With scratch, keys are cut into parts at positions that do not depend on n, up to a position of
 * GWQ_ATTENTION_CUT; of longer parts up to twice that, and so on. So tokens that end on the same
 * side of such a position get the same bits together and alone. */
enum gwq_attention_cuts { GWQ_ATTENTION_CUT = 2048 };
/* Bytes of scratch for attention of n tokens; 0: they need none, or cannot be. */
uint64_t gwq_attention_bytes(int64_t n, int64_t heads, int64_t dim);
/* Causal attention: q and out (n, heads, dim); k and v (start + n, kv_heads, dim) of type F32, F16
 * or Q8_0 (dim a multiple of 32), heads a multiple of kv_heads. Query i has position start + i and
 * sees the keys max(0, start+i-window+1) .. start+i; window 0 means all. Scores are scaled by
 * `scale`, then softcap * tanh(score / softcap) if softcap > 0. scratch: NULL, or
 * gwq_attention_bytes, with which the threads share the keys of a few tokens. GWQ_E_TYPE. */
int gwq_attention(gwq_pool *pool, const float *q, const void *k, const void *v, int type, int64_t n,
                  int64_t start, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                  float softcap, int64_t window, float *out, void *scratch);

/* --- layers with a state ---------------------------------------------------------------------- */

enum gwq_convolution { GWQ_MAX_TAPS = 32 };
/* A gated short convolution over n tokens at positions from `start` on. x (n, 3, dim) has of each
 * token b, c and x, and means nothing afterwards. With u = b * x of a token,
 *     out (n, dim) = c * sum over j < taps of weight[j] (taps, dim) * u of the token taps - 1 - j
 *                    positions earlier,
 * added up in this order; u is 0 before position 0. state (rows, dim): the u of position p lies in
 * row p % rows, where those from start - taps + 1 on are read and the batch's last `rows` are put.
 * taps: 1..GWQ_MAX_TAPS, at most rows + 1. Identical bits on every instruction set. */
int gwq_shortconv(gwq_pool *pool, float *x, const float *weight, float *state, int64_t rows,
                  int64_t taps, int64_t n, int64_t start, int64_t dim, float *out);

/* --- export ----------------------------------------------------------------------------------- */

/* A run of columns to be encoded. Rows are a multiple of 64; what a row becomes does not depend on
 * the others. */
typedef struct gwq_encoding {
    int32_t type; /* a tile type */
    /* 1..64, whole sub-blocks unless it ends the matrix; of gwq2 a multiple of 16, of gwq3 of 32 */
    int32_t columns;
    int64_t rows;
    int64_t first, last; /* of the rows, multiples of 64: those before `last` are encoded */
    int32_t fit; /* 1: find the scales; 0: take those given */
    /* What each window stands for, (16) entries; of the types without history each code, ascending:
     * (16) at gwq4, (32) at gwq5, at gwq6 (64) integers in a row. */
    const float *table;
    const float *row_scale;  /* (rows), not negative */
    const float *row_weight; /* (rows), positive: squared errors are multiplied by it */
    /* (columns): how much squared errors count when scales are fitted; may be NULL if none are */
    const float *column_weight;
    /* (columns) or NULL: likewise when the codes of a ring are chosen */
    const float *column_cost;
    const uint8_t *outlier; /* (columns, rows) or NULL: 1 where a weight is held out */
    /* (columns, columns) or NULL: target[k] += feedback[j][k] * error[j] for k coded after j */
    const float *feedback;
    const float *before; /* (columns, rows): error = value - before; NULL: error = value - target */
    float *target;       /* (columns, rows): what to encode; out: after the feedback */
    int8_t *scale;       /* (sub-blocks, rows), -32..31; in, or out when fitted */
    uint8_t *code;       /* out (columns, rows) */
    float *value;        /* out (columns, rows): what codes mean; target if held out */
} gwq_encoding;
/* Codes of least squared error, column after column; at gwq2 and gwq3 ring after ring: those of 16
 * (32) columns in the order 4p+i with i and p falling, p first, each ring's exactly where nothing
 * is fed back inside it. Identical bits on every instruction set. GWQ_E_TYPE, GWQ_E_SHAPE,
 * GWQ_E_TABLE (an entry beyond +-128). */
int gwq_encode(gwq_pool *pool, const gwq_encoding *e);

enum { GWQ_GEMM_DEPTH = 192 };
/* A product of float matrices, a (m, k) times b (k, n). Entry i, j of a factor lies at i * row +
 * j * column; those of a row of the result lie side by side. */
typedef struct gwq_multiplication {
    int64_t m, n, k;
    const float *a;
    int64_t a_row, a_column;
    const float *b;
    int64_t b_row, b_column;
    float *out; /* (m, n), apart from a and b */
    int64_t out_row;
    int32_t add; /* 1: added to out; 0: put there */
} gwq_multiplication;
/* out = a b, or out += a b, by the calling thread. A sum over k is cut into runs of
 * GWQ_GEMM_DEPTH terms (k <= GWQ_GEMM_DEPTH is one run, k <= 2 * GWQ_GEMM_DEPTH is two of
 * k / 2 and what is left); each run is summed from its first term on by fused multiply-adds, and
 * the sums of the runs are added in order. Identical bits on every instruction set. */
int gwq_multiply(const gwq_multiplication *p);

/* --- measurement ------------------------------------------------------------------------------ */

/* Read `bytes` of memory with `streams` (1..8) far-apart streams per thread, software prefetch
 * `ahead` bytes: what the machine can read at most. *sum, of all 64-bit words, keeps the compiler
 * honest. */
int gwq_read(gwq_pool *pool, const void *data, uint64_t bytes, int streams, int ahead,
             uint64_t *sum);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
