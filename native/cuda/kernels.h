/* What starts kernels: each function puts its kernels into the stream. Arguments were checked. */
#ifndef GWQ_CUDA_KERNELS_H
#define GWQ_CUDA_KERNELS_H
#include "gwq_cuda.h"
#include "layout.h"

enum { MATRICES = 4, FEW = GWQ_PROGRAM_TOKENS };

/* What a program's kernels learn when it runs: it lies in the device's memory */
struct step {
    int position;
    int ids[FEW];
    int fault; /* bits: 1, a number that is not finite */
};

/* --- repack.cu: from the file's bytes (in the device's memory) -------------------------------- */

/* Fills to->data and to->row_scale of a tile matrix */
void repack_tiles(cudaStream_t stream, const uint8_t *file, int exponent, const device_matrix &to);
/* Fills to->data, and to->scale if there are codes. type: enum gwq_type; *most, 0 before: the bits
 * of the largest magnitude that a weight of BF16 or codes may have */
void repack_rows(cudaStream_t stream, const uint8_t *file, int type, const device_matrix &to,
                 int *most);

/* --- rows.cu ---------------------------------------------------------------------------------- */

/* out (count, cols) = rows ids[0..count-1], or first + *base .. if ids is NULL; base may be NULL */
void rows_to_floats(cudaStream_t stream, const device_matrix &m, const int *ids, const int *base,
                    int first, int count, float *out);

/* --- codes.cu --------------------------------------------------------------------------------- */

/* f(x), as floats and as codes. x (n, cols); floats (n, stride), zeros beyond cols; blocks (2, n,
 * stride / 64), the second set where there are massive channels. */
struct activations {
    const float *x;
    int n, cols, stride;
    int before; /* enum gwq_op_before */
    int layer, activation;
    const float *weight, *shift, *up;
    float eps;
    float *floats;
    code_block *blocks; /* NULL: no codes are wanted */
};
void prepare(cudaStream_t stream, const activations &a);

/* --- halves.cu -------------------------------------------------------------------------------- */

/* What matrices of a kind want of n tokens */
enum form { AS_CODES, AS_STRIPS, AS_ROWS }; /* code_blocks or floats; FP16 numbers (layout.h) */
enum { GEMV_TOKENS = FEW }; /* whose results are those that each token gets alone */
BOTH form form_of(int kind, int64_t n) {
    if (kind < ROW_F32) return n > GEMV_TOKENS ? AS_STRIPS : AS_CODES;
    return kind == ROW_F32 || n <= FEW_TILE ? AS_CODES : AS_ROWS;
}

/* f(x) as FP16 numbers, of tokens padded to `tokens` */
struct half_activations {
    form order;
    int tokens, tile;
    float *factors;    /* (tokens) */
    uint16_t *halves;  /* 2 * tokens * stride */
    int *massive;      /* (tiles, massive_words) */
    uint16_t *columns; /* NULL, or (tiles, 2, stride, TILE_TOKENS), for outliers: x itself; of a
                        * tile that has a massive channel both sets are there */
};
void prepare_halves(cudaStream_t stream, const activations &a, const half_activations &h);

/* --- gemv.cu, rows_gemv.cu, gemm.cu, rows_gemm.cu --------------------------------------------- */

/* y[i] (n, rows) = f(x) * transpose(m[i]) (+ bias[i]), into (n, rows) += factor * y[0], of up to
 * MATRICES matrices of one kind. */
struct product {
    device_matrix m[MATRICES];
    const float *bias[MATRICES];
    float *y[MATRICES];
    int groups[MATRICES]; /* row groups of m[0 .. i] together */
    int count, n;
    int stride;           /* of floats and, divided by 64, of blocks */
    const float *floats;
    const code_block *blocks;
    half_activations halves; /* of many tokens; else the codes above */
    float *into;
    float factor;
    /* NULL, or which expert: experts[*choice * each_expert + first_of_expert + i] takes m[i]'s
     * place */
    const int *choice;
    const device_matrix *experts;
    int each_expert, first_of_expert;
    const float *weight_of_choice;
};
void multiply(cudaStream_t stream, const product &p);
void multiply_tiles(cudaStream_t stream, const product &p, int warps);
void multiply_rows(cudaStream_t stream, const product &p);
void multiply_tiles_at_once(cudaStream_t stream, const product &p);
void multiply_rows_at_once(cudaStream_t stream, const product &p);

/* --- ops.cu ----------------------------------------------------------------------------------- */

void normalize(cudaStream_t stream, const gwq_op_norm &o, int layer, int64_t n);
/* cos and sin from position *base on (NULL: as they are), style: enum gwq_rope_style */
void rotate(cudaStream_t stream, const gwq_op_rope &o, const int *base, int64_t n);
void activate(cudaStream_t stream, float *x, const float *up, int64_t count, int activation);
void cap(cudaStream_t stream, float *x, int64_t count, float cap);
/* x (count, each) *= sigmoid(gate (count)) */
void open_gates(cudaStream_t stream, float *x, const float *gate, int64_t count, int64_t each);
void scale(cudaStream_t stream, float *x, int64_t count, float factor);
void fill(cudaStream_t stream, float *x, int64_t count, float number);
/* x (n, dim) += factor * y (n, dim), or y (dim) */
void add(cudaStream_t stream, float *x, const float *y, int64_t n, int64_t dim, float factor,
         int broadcast);
void copy_runs(cudaStream_t stream, const float *x, int64_t stride, int64_t n, int64_t dim,
               float *out);
/* out (n, dim) = rows[i] of x */
void gather(cudaStream_t stream, const float *x, const int *rows, int64_t n, int64_t dim,
            float *out);
/* out (n, dim) = sum of weights[i, j] * x[rows[i, j]] over j, which has `used` values */
void combine(cudaStream_t stream, const float *x, const int *rows, const float *weights, int64_t n,
             int64_t used, int64_t dim, float *out);
/* count numbers from first + *base * width on (base may be NULL) */
void store(cudaStream_t stream, const float *x, int64_t count, int type, void *cache,
           int64_t first, const int *base, int64_t width);
/* As gwq_shortconv at positions from start + *base on (base may be NULL) */
void convolve(cudaStream_t stream, const gwq_op_shortconv &o, int64_t start, const int *base,
              int64_t n);

/* --- best.cu ---------------------------------------------------------------------------------- */

/* keys (k) of the largest of x (n), the largest first, of equal ones the earlier first; what is not
 * finite sets a bit of *fault. work: largest_bytes. */
size_t largest_bytes(int n, int k);
void largest(cudaStream_t stream, const float *x, int n, int k, uint64_t *keys, uint64_t *work,
             int *fault);
/* ids (k) = where the numbers of keys (k) are */
void places(cudaStream_t stream, const uint64_t *keys, int k, int *ids);

/* Where a key's number is, and the number; 0 of no number's key */
BOTH int place_of_key(uint64_t key) { return key ? (int)~(uint32_t)key : 0; }
BOTH uint32_t bits_of_key(uint64_t key) {
    const uint32_t order = (uint32_t)(key >> 32);
    return order >> 31 ? order & 0x7fffffffu : ~order;
}

/* --- choice.cu -------------------------------------------------------------------------------- */

/* As gwq_route; what is not finite sets a bit of *fault */
void route(cudaStream_t stream, const gwq_op_route &o, int n, int *fault);

/* --- attention.cu ----------------------------------------------------------------------------- */

/* start: of the first query, or added to *base. parts: NULL, or gwq_attention_bytes. */
size_t attention_bytes(int64_t n, int64_t heads, int64_t dim);
void attend(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start,
            const int *base, float *parts);
#endif
