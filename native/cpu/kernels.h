/* A row of function pointers per instruction set, with a slot per matrix type where types differ.
 * An empty slot (NULL) is filled from the row before it in dispatch.c's table: AVX2's for AVX-512,
 * in the end the scalar one. The public functions have checked the arguments. */
#ifndef GWQ_KERNELS_H
#define GWQ_KERNELS_H
#include "matrix.h"

enum {
    GWQ_PANEL = 64,  /* tokens that share a decoded tile */
    GWQ_FEW = 6,     /* up to here outliers are added token by token, like those of one token */
    GWQ_FEW_LANES = 8, /* floats of a column of gwq_input.few */
    GWQ_QUERIES = 4, /* rows of attention that share the keys they read */
    GWQ_MANY = 32    /* the same of more than GWQ_FEW tokens, where keys are floats by then */
};

/* The activations of one matmul, and their codes: x ~ scale * q in each block of 64 columns. Of
 * `lanes` tokens the first blocks lie together, then their second ones, and so on (gwq_code_at): 1
 * of up to GWQ_FEW tokens, GWQ_PANEL of more, which a kernel then reads in the order of memory. */
typedef struct gwq_input {
    int64_t n;       /* tokens */
    int64_t cols;
    int64_t blocks;  /* ceil(cols / 64) */
    int64_t lanes;
    const float *x;  /* (n, cols) */
    int8_t *q;       /* (n / lanes, blocks, lanes, 64), padded with zeros, 64-byte aligned */
    float *scale;    /* (n / lanes, blocks, lanes) */
    /* (n / lanes, blocks, lanes, 4, 2), for each 16 columns: -ENTRY_BIAS times the sum of q over
     * the columns 4j and 4j+1, and over the columns 4j+2 and 4j+3, j < 4. A kernel that looks up
     * biased entries starts its 16-bit sums here: sum of (entry + ENTRY_BIAS) * q + bias = sum of
     * entry * q. The result of 8 columns fits 16 bits (8 * 32 * 127), whatever overflowed in
     * between. */
    int16_t *bias;
    /* (n / lanes, blocks, lanes, 4), for each 16 columns both numbers of `bias` together, where a
     * 32-bit sum starts; not of one token alone */
    int32_t *start;
    /* x by columns, of each GWQ_PANEL tokens (cols, gwq_panel_lanes of them), zero beyond n: for
     * the outliers of more than GWQ_FEW tokens. */
    float *panel;
    /* the same, (tiles of the columns * GWQ_TILE, GWQ_FEW_LANES), of 2 to GWQ_FEW tokens; what lies
     * beyond cols has no meaning */
    float *few;
    /* Of up to GWQ_FEW tokens, where an instruction set wants it for outliers: codes of 16 bits,
     * x ~ scale16 * code in each tile; (n, tiles, GWQ_TILE), padded with zeros, 64-byte aligned */
    int16_t *codes16;
    float *scale16; /* (n, tiles) */
} gwq_input;

/* Where the codes of a token and a block are, in blocks from q, scale and bias on */
static inline int64_t gwq_code_at(const gwq_input *in, int64_t t, int64_t block) {
    return (t / in->lanes * in->blocks + block) * in->lanes + t % in->lanes;
}

/* Floats of a column of a panel for `count` tokens, at most GWQ_PANEL: of a short prompt few, so
 * that the columns of all tiles stay in the cache */
static inline int gwq_panel_lanes(int64_t count) {
    return count <= 8 ? 8 : count <= 16 ? 16 : count <= 32 ? 32 : GWQ_PANEL;
}

typedef struct gwq_kernels {
    const char *isa; /* name of the instruction set */
    int (*supported)(void);

    /* One row x (cols) to q (blocks, 64), scale (blocks), bias (blocks, 8), of which each block
     * lies `lanes` after the one before it: scale = max|x| / 127 of each block, q = x / scale
     * rounded to nearest even; a block of zeros has scale 0. Identical bits on every instruction
     * set. */
    void (*quantize)(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                     int16_t *bias);
    /* One row x (cols) to codes (tiles, GWQ_TILE) and scale (tiles): scale = max|x| / 32767 of each
     * tile, codes = x / scale rounded. NULL where `matmul` adds outliers not by these codes but by
     * x itself and gwq_input.few. */
    void (*quantize16)(const float *x, int64_t cols, int16_t *codes, float *scale);
    /* out[c * lanes + t] = x[t * stride + c] for t < count, c < width; 0 for t < lanes beyond;
     * lanes: a multiple of 8 */
    void (*panel)(const float *x, int64_t stride, int count, int64_t width, int lanes, float *out);
    /* y[t * m->rows + r] for t < in->n and every row r of the row groups first .. last-1: tile
     * types with the outliers, ggml types without */
    void (*matmul[GWQ_K_COUNT])(const gwq_matrix *m, int64_t first, int64_t last,
                                const gwq_input *in, float *y);
    /* y += the outliers' part of it */
    void (*sparse)(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y);
    /* out (16, cols) = the weights of a row group without outliers; rows beyond m->rows are not
     * written. Identical bits on every instruction set. */
    void (*dequantize[GWQ_K_COUNT])(const gwq_matrix *m, int64_t group, float *out);

    /* As gwq_rmsnorm, one row */
    void (*rmsnorm)(const float *x, const float *weight, float eps, int64_t dim, float *out);
    /* x = f(x) * up, or f(x) where up is NULL; activation: enum gwq_activation */
    void (*activate)(float *x, const float *up, int64_t count, int activation);
    /* x = cap * tanh(x / cap) */
    void (*softcap)(float *x, int64_t count, float cap);
    /* out[i] = gate[i] * sum over j < taps of weight[j * stride + i] * u[j][i], added up in this
     * order. Identical bits on every instruction set. */
    void (*convolve)(const float *const *u, const float *weight, int64_t stride, int taps,
                     const float *gate, int64_t count, float *out);
    /* FP16 to nearest even; at most +-65504, NaN stays */
    void (*to_halves)(const float *x, int64_t count, uint16_t *out);

    /* Attention, over a run of keys: cached numbers of type F32, F16 or Q8_0, a key `stride`
     * numbers after the one before it. s[key][i] = q[i] . k[key] */
    void (*scores)(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                   int keys, int64_t dim, float (*s)[GWQ_QUERIES]);
    /* s *= scale, and raises most[i] to the largest s[key][i]; s may be -INFINITY. */
    void (*largest)(float (*s)[GWQ_QUERIES], int keys, float scale, float *most);
    /* s[key][i] = exp(s[key][i] - most[i]), and sum[i] over the keys; s may be -INFINITY. There is
     * room for one key more. */
    void (*exponents)(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum);
    /* out[i] (dim) += sum over the keys of s[key][i] * v[key] */
    void (*mix)(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys,
                int64_t dim, float *const out[GWQ_QUERIES]);
    /* out (count) = numbers first .. first+count-1 of a cache; with scales whole units of them */
    void (*from_cache)(const void *cache, int type, int64_t first, int64_t count, float *out);
    /* out (rows, GWQ_MANY) = a b, or shrink * out + a b with shrink (GWQ_MANY), where entry r, k of
     * a (rows, terms) lies at r * row + k * column. A sum adds up its terms in their order. Of the
     * columns only the first `width` have to be right. */
    void (*products)(const float *a, int64_t row, int64_t column, int64_t rows, int64_t terms,
                     int width, const float (*b)[GWQ_MANY], const float *shrink,
                     float (*out)[GWQ_MANY]);
    /* Scores s[key][i], i < width, which may be -INFINITY, to weights exp(s - most[i]). most[i] is
     * the largest score so far, and is raised; total[i], the sum of weights so far, is multiplied
     * by shrink[i] = exp(its former most - most) before it gets these weights. */
    void (*weigh)(float (*s)[GWQ_MANY], int keys, int width, float *most, float *total,
                  float *shrink);

    /* As gwq_read, one thread's part; returns the sum of its 64-bit words */
    uint64_t (*read)(const uint8_t *data, uint64_t bytes, int streams, int ahead);
    /* As gwq_encode, the rows first .. last-1, both multiples of 64. Identical bits on every
     * instruction set. */
    void (*encode)(const gwq_encoding *e, int64_t first, int64_t last);
    /* As gwq_multiply. Identical bits on every instruction set. */
    void (*multiply)(const gwq_multiplication *p);
} gwq_kernels;

/* One row per instruction set; dispatch.c lists those that are compiled in. */
extern const gwq_kernels gwq_scalar;
extern const gwq_kernels gwq_avx2;
extern const gwq_kernels gwq_avxvnni;
extern const gwq_kernels gwq_avx512;
extern const gwq_kernels gwq_avx512vbmi;
extern const gwq_kernels gwq_neon;
extern const gwq_kernels gwq_dotprod;
extern const gwq_kernels gwq_i8mm;

/* The selected row, without empty slots */
const gwq_kernels *gwq_in_use(void);
#endif
