/* Inside libgwq: one row of function pointers per instruction set, one row per matrix type.
 * An empty slot (NULL) is filled from the row before it in gwq.c's table: AVX2's for AVX-512, in the end the scalar
 * one. Arguments were checked by gwq.c. */
#ifndef GWQ_KERNELS_H
#define GWQ_KERNELS_H
#include <stddef.h>
#include "gwq.h"

#define GWQ_INLINE static inline __attribute__((always_inline))

enum { GWQ_K_F32, GWQ_K_F16, GWQ_K_BF16, GWQ_K_Q8_0, GWQ_K_GWQ2, GWQ_K_GWQ3, GWQ_K_GWQ4, GWQ_K_Q4_0, GWQ_K_IQ4_NL, GWQ_K_COUNT };

/* A type's facts: what its bytes are, and its place in the kernel tables. */
typedef struct gwq_type_row {
    int32_t id;         /* enum gwq_type */
    int32_t bits;       /* bits of a tile type's code, 0 for a stock type */
    int32_t unit;       /* columns per storage unit: 64 for tiles, 32 for types of blocks, 1 otherwise */
    int32_t unit_bytes; /* bytes per unit of a row; tiles: of the 16 rows of a row group */
} gwq_type_row;
extern const gwq_type_row gwq_types[GWQ_K_COUNT];
int gwq_type_index(int32_t id); /* -1: not a matrix type */

/* The activations of one matmul. blocks = ceil(cols / 64); q is padded with zeros to whole blocks. */
typedef struct gwq_input {
    int64_t n, cols, blocks;
    const float *x;  /* (n, cols) */
    int8_t *q;       /* (n, 64 * blocks), 64-byte aligned rows */
    float *scale;    /* (n, blocks): x ~ scale * q */
    /* (n, 4 * blocks, 2), for each 16 columns: -ENTRY_BIAS times the sum of q over the columns 4j and 4j+1, and over the
     * columns 4j+2 and 4j+3. A kernel that looks up entries without their sign starts its 16-bit sums here; the result
     * of 8 columns fits 16 bits again (8 * 32 * 127), whatever overflowed in between. */
    int16_t *bias;
    /* For the outliers of more than GWQ_FEW tokens: x by columns, (ceil(n / GWQ_PANEL), cols, GWQ_PANEL), zero beyond n. */
    float *panel;
} gwq_input;
enum {
    GWQ_PANEL = 48, /* tokens that share a decoded tile */
    GWQ_FEW = 6     /* up to here outliers are added token by token, like those of one token */
};

enum { GWQ_QUERIES = 4 }; /* rows of attention that share the keys they read */

typedef struct gwq_kernels {
    const char *isa;
    int (*supported)(void);
    /* One row x (cols) to q (64 * blocks), scale (blocks), bias (8 * blocks): scale = max|x| / 127 per block of 64,
     * q = x / scale rounded to nearest even; a block of zeros has scale 0. Identical bits on every ISA. */
    void (*quantize)(const float *x, int64_t cols, int8_t *q, float *scale, int16_t *bias);
    /* out[c][t] = x[t * stride + c] for t < count <= GWQ_PANEL, c < width; zero for the other tokens */
    void (*panel)(const float *x, int64_t stride, int count, int64_t width, float (*out)[GWQ_PANEL]);
    /* y[t * m->rows + r] for t < in->n and every row r of the row groups (of 16 rows) first .. last-1; tile types with
     * the outliers, stock types without. */
    void (*matmul[GWQ_K_COUNT])(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y);
    /* y += the outliers' part of it. */
    void (*sparse)(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y);
    /* out (16 rows, cols; row stride cols) = row group `group`, rows beyond m->rows not written; no outliers. */
    void (*dequantize[GWQ_K_COUNT])(const gwq_matrix *m, int64_t group, float *out);
    void (*rmsnorm)(const float *x, const float *weight, float eps, int64_t dim, float *out);
    void (*activate)(float *x, const float *up, int64_t count, int activation); /* x = f(x) * up; without `up` (NULL) f(x) */
    void (*softcap)(float *x, int64_t count, float cap);                        /* x = cap * tanh(x / cap) */
    void (*to_halves)(const float *x, int64_t count, uint16_t *out); /* FP16, to nearest even; at most +-65504, NaN stays */
    /* Attention, a run of keys at a time: of type F32, F16 or Q8_0, `stride` numbers apart. s[key][i] = q[i] . k[key] */
    void (*scores)(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride, int keys, int64_t dim,
                   float (*s)[GWQ_QUERIES]);
    /* s = exp(s - most), and their sums over the keys; s may be -INFINITY */
    void (*exponents)(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);
    /* out[i] (dim) += sum of s[key][i] * v[key] */
    void (*mix)(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys, int64_t dim,
                float *const out[GWQ_QUERIES]);
    uint64_t (*read)(const uint8_t *data, uint64_t bytes, int streams, int ahead);
    void (*encode)(const gwq_encoding *e, int64_t first, int64_t last); /* rings first .. last-1, multiples of 8 */
} gwq_kernels;

const gwq_kernels *gwq_in_use(void);

/* Codes of token t for what those in `in` leave over of blocks with a massive channel, 0 elsewhere (massive.c); returns whether there is
 * such a block. Without one `second` is not written. */
int gwq_second_codes(const gwq_input *in, int64_t t, const gwq_input *second);
/* y (n, rows) of token t += the row groups first .. last-1 of a tile matrix times its second codes. `kind`: enum GWQ_K_* of its type. */
void gwq_second_product(const gwq_matrix *m, int kind, int64_t first, int64_t last, const gwq_input *second, int64_t t, float *y);
void gwq_encode_any(const gwq_encoding *e, int64_t first, int64_t last);
void gwq_encode_avx2(const gwq_encoding *e, int64_t first, int64_t last);

extern const gwq_kernels gwq_scalar;
extern const gwq_kernels gwq_avx2;
extern const gwq_kernels gwq_avx512;

/* Tile geometry, shared by every kernel file. A kernel walks a row group tile by tile:
 *   const uint8_t *tile = gwq_group(m, bits, group);
 *   for (block = 0; block < in->blocks; block += nb) { nb = min(4, blocks - block);
 *       scales at tile, lines at tile + nb * gwq_scale_bytes(bits); tile += nb * gwq_block_bytes(bits); } */
enum { ENTRY_BIAS = 32, SCALE_BIAS = 32 };
static inline int64_t gwq_blocks(int64_t cols) { return (cols + GWQ_BLOCK - 1) / GWQ_BLOCK; }
static inline int64_t gwq_groups(int64_t rows) { return (rows + GWQ_ROWS - 1) / GWQ_ROWS; }
static inline size_t gwq_scale_bytes(int bits) { return bits == 4 ? 48 : 24; } /* of a block; gwq.c compares the structs */
static inline size_t gwq_line_bytes(int bits) { return (size_t)bits * GWQ_ROWS * GWQ_BLOCK / 8; } /* of a block */
static inline size_t gwq_block_bytes(int bits) { return gwq_scale_bytes(bits) + gwq_line_bytes(bits); }
static inline size_t gwq_head_bytes(int64_t rows) {
    return (sizeof(struct gwq_head) + 2 * GWQ_ROWS * (size_t)gwq_groups(rows) + 63) & ~(size_t)63;
}
static inline const int8_t *gwq_table(const gwq_matrix *m) { return ((const struct gwq_head *)m->data)->table; }
/* FP16, of the rows of a row group */
static inline const uint8_t *gwq_row_scales(const gwq_matrix *m, int64_t group) {
    return (const uint8_t *)m->data + sizeof(struct gwq_head) + 2 * GWQ_ROWS * (size_t)group;
}
static inline const uint8_t *gwq_group(const gwq_matrix *m, int bits, int64_t group) {
    return (const uint8_t *)m->data + gwq_head_bytes(m->rows) + (size_t)group * (size_t)gwq_blocks(m->cols) * gwq_block_bytes(bits);
}
static inline uint32_t gwq_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
/* First side-table record of a row group; NULL when the matrix has no side-table. */
static inline const uint8_t *gwq_records(const gwq_matrix *m, int64_t group) {
    return m->outliers ? m->outliers + gwq_load_u32(m->offsets + 4 * group) : NULL;
}

/* The pool: run fn(arg, thread, threads) on every thread of the pool and wait. */
typedef void (*gwq_task)(void *arg, int thread, int threads);
void gwq_pool_run(gwq_pool *pool, gwq_task fn, void *arg);
/* The first of `count` things that are thread's share. */
static inline int64_t gwq_share(int64_t count, int thread, int threads) { return count * thread / threads; }
#endif
