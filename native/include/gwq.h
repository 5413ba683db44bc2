/* libgwq: the public ABI. C compiles this text and cffi parses it, so it holds declarations only.
 *
 * Every function that can fail returns a gwq_status; none allocates (except gwq_pool_new), prints, exits or keeps a
 * pointer it was given. Matrices come from untrusted files: call gwq_matrix_check once, then compute with them.
 * Results do not depend on the number of threads, to the bit. Float arrays are row-major, "(n, dim)" below.
 */
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
    GWQ_E_ARGUMENT,       /* null pointer, negative size, or sizes that do not fit together */
    GWQ_E_TYPE,           /* not a matrix type */
    GWQ_E_SHAPE,          /* rows or columns out of range, or not whole blocks */
    GWQ_E_SIZE,           /* data length is not what type and shape ask for */
    GWQ_E_OFFSETS,        /* side-table: offsets do not ascend from 0 to the table's end */
    GWQ_E_RECORD,         /* side-table: a row group's records do not end where the next one's begin */
    GWQ_E_ROW,            /* side-table: an outlier in a padded row */
    GWQ_E_COLUMN,         /* side-table: a column beyond the matrix, or not ascending */
    GWQ_E_ISA,            /* unknown instruction set, or one this machine lacks */
    GWQ_E_MEMORY,         /* no memory, or no thread could be started */
    GWQ_E_SCRATCH,        /* scratch buffer too small */
    GWQ_E_INDEX,          /* row index out of range */
    GWQ_E_TABLE           /* a table entry is not in -32..31 */
};

typedef struct gwq_pool gwq_pool;

/* A weight matrix in memory as it lies in the file. outliers may be NULL (then offsets too); any type may have them. */
typedef struct gwq_matrix {
    int32_t type;             /* enum gwq_type */
    int64_t rows, cols;       /* outputs, inputs */
    const void *data;         /* head and tiles, or rows of a stock type */
    uint64_t data_bytes;
    const uint8_t *outliers;  /* side-table records */
    uint64_t outlier_bytes;
    const uint8_t *offsets;   /* int32 little-endian, ceil(rows/16) + 1 */
    uint64_t offset_bytes;
} gwq_matrix;

enum gwq_rope_style { GWQ_ROPE_PAIRS = 0, GWQ_ROPE_HALVES = 1 }; /* (2i, 2i+1) or (i, i + dim/2) turn together */
enum gwq_activation { GWQ_SILU = 0, GWQ_GELU = 1, GWQ_GELU_TANH = 2 }; /* GELU by erf, and its approximation by tanh */

/* SHA-256 (hex) of the headers this library was built from. */
const char *gwq_abi(void);

/* Instruction sets: rows of one table, best last; NULL past the end. */
const char *gwq_isa_name(int index);
int gwq_isa_supported(int index);
const char *gwq_isa(void);            /* the one in use */
int gwq_isa_select(const char *name); /* NULL: the best supported one */

int gwq_pool_new(int threads, gwq_pool **pool); /* threads 1..256, the caller counts as one */
void gwq_pool_free(gwq_pool *pool);

/* Bytes of a matrix of this type and shape; 0 for a type or shape that cannot be. */
uint64_t gwq_matrix_bytes(int32_t type, int64_t rows, int64_t cols);
int gwq_matrix_check(const gwq_matrix *m);
/* out (count, cols) = rows first .. first+count-1, outliers included, identical bits on every instruction set.
 * Whole row groups: first is a multiple of 16, and so is count unless it ends the matrix. */
int gwq_dequantize(gwq_pool *pool, const gwq_matrix *m, int64_t first, int64_t count, float *out);
/* out (n, cols) = rows ids[0..n-1]; group (16, cols) is work space. */
int gwq_embed(const gwq_matrix *m, const int32_t *ids, int64_t n, float *group, float *out);

/* y[i] (n, rows of m[i]) = x (n, cols) * transpose(m[i]), for `count` matrices of equal cols.
 * Tile types: the dense part sees x as int8 per 64 columns, outliers see x in float32. Stock types: float32. */
uint64_t gwq_scratch_bytes(int64_t n, int64_t cols);
int gwq_matmul(gwq_pool *pool, const gwq_matrix *const *m, int count, const float *x, int64_t n, float *const *y,
               void *scratch, uint64_t scratch_bytes);

/* out (n, dim) = x / sqrt(mean(x^2) + eps) * weight (dim); out may be x. */
int gwq_rmsnorm(gwq_pool *pool, const float *x, const float *weight, float eps, int64_t n, int64_t dim, float *out);
/* out (n, dim) = (x - mean(x)) / sqrt(variance(x) + eps) * weight (dim) + bias (dim) or nothing; out may be x. */
int gwq_layernorm(gwq_pool *pool, const float *x, const float *weight, const float *bias, float eps, int64_t n,
                  int64_t dim, float *out);
/* Turn the first `rotated` of each head's dim in x (n, heads, dim) in place; cos and sin are (n, rotated/2), already at
 * the tokens' positions. "halves" are those of the rotated part. */
int gwq_rope(gwq_pool *pool, float *x, const float *cos, const float *sin, int64_t n, int64_t heads, int64_t dim,
             int64_t rotated, int style);
/* Numbers first .. first+count-1 of a cache of type F32, F16 or Q8_0 = x (count). FP16 is rounded to nearest even, +-65504 at most; Q8_0
 * (first and count multiples of 32) to 127ths of the largest of 32 numbers. */
int gwq_cache(const float *x, int64_t count, int type, void *cache, int64_t first);
/* Causal attention: q and out (n, heads, dim), k and v (start + n, kv_heads, dim) of type F32, F16 or Q8_0 (dim a multiple
 * of 32), scores scaled by `scale`, then softcap * tanh(score / softcap) if softcap > 0.
 * Query i sees keys max(0, start+i-window+1) .. start+i; window 0 means all. */
int gwq_attention(gwq_pool *pool, const float *q, const void *k, const void *v, int type, int64_t n, int64_t start,
                  int64_t heads, int64_t kv_heads, int64_t dim, float scale, float softcap, int64_t window,
                  float *out);
/* x = activation(x) * up, both (n, dim); up may be NULL for no factor, with the GELUs. */
int gwq_activate(gwq_pool *pool, float *x, const float *up, int64_t n, int64_t dim, int activation);
/* x (n, dim) = cap * tanh(x / cap), cap positive. */
int gwq_softcap(gwq_pool *pool, float *x, int64_t n, int64_t dim, float cap);
/* x (n, dim) *= scale. */
int gwq_scale(float *x, int64_t n, int64_t dim, float scale);
/* x (n, dim) += scale * y (n, dim), or scale * y (dim) for every row when `broadcast`. */
int gwq_add(float *x, const float *y, int64_t n, int64_t dim, float scale, int broadcast);
/* out (n, dim) = n runs of dim floats that begin `stride` apart in x. */
int gwq_copy(const float *x, int64_t stride, int64_t n, int64_t dim, float *out);

/* A run of columns to be encoded. Rows are ordered (8 rows of a ring, rings); rings are a multiple of 8. */
typedef struct gwq_encoding {
    int32_t type;               /* a tile type */
    int32_t columns;            /* 1..64, whole sub-blocks unless it ends the matrix */
    int64_t rings;
    int32_t fit;                /* find the scales, else take those given */
    const float *table;         /* (16) entries; ascending at gwq4 */
    const float *row_scale;     /* (8, rings), not negative */
    const float *row_weight;    /* (8, rings): how much a row's squared error counts, positive */
    const float *column_weight; /* (columns): likewise, when scales are fitted */
    const uint8_t *outlier;     /* (columns, 8, rings) or NULL: 1 where a weight is held out */
    const float *feedback;      /* (columns, columns) or NULL: [j][k] of column j's error is added to target k > j */
    const float *before;        /* (columns, 8, rings) or NULL: error = value - before; NULL: value - target */
    float *target;              /* (columns, 8, rings): what to encode; with feedback, what it had become */
    int8_t *scale;              /* (sub-blocks, 8, rings), -32..31 */
    uint8_t *code;              /* out (columns, 8, rings) */
    float *value;               /* out (columns, 8, rings): what the codes stand for; the target where held out */
} gwq_encoding;
/* Codes of least squared error, column after column, each ring's exactly. Identical bits on every instruction set. */
int gwq_encode(gwq_pool *pool, const gwq_encoding *e);

/* Read `bytes` of memory with `streams` (1..8) far-apart streams per thread, software prefetch `ahead` bytes:
 * what the machine can read at most. *sum keeps the compiler honest. */
int gwq_read(gwq_pool *pool, const void *data, uint64_t bytes, int streams, int ahead, uint64_t *sum);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
