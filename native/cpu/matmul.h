/* A product of matrices and activations, in steps that a thread takes with others. */
#ifndef GWQ_MATMUL_H
#define GWQ_MATMUL_H
#include <stdatomic.h>
#include "kernels.h"

static inline size_t gwq_round_up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

typedef struct gwq_product {
    const gwq_matrix *const *m; /* (count) */
    float *const *y;            /* (count) */
    int count;
    gwq_input in;
    gwq_input residual;          /* codes that count for the tokens that are `massive` */
    uint8_t *massive;            /* (n) */
    atomic_uint_fast64_t *taken; /* pieces that somebody has begun, 0 at first; shared */
    const float *const *bias;    /* NULL, or (count): NULL, or (rows of m[i]) that y[i] gets */
    float *into;                 /* NULL, or (n, rows): gets factor * y[0] */
    float factor;
} gwq_product;

/* Whether matrices, results, in.x and in.n can be. *tiles: whether a matrix is of a tile type;
 * *outliers: whether one has some. GWQ_E_ARGUMENT. */
int gwq_product_check(const gwq_product *j, int *tiles, int *outliers);
/* Bytes of scratch for the codes of n tokens */
size_t gwq_product_bytes(int64_t n, int64_t cols);
/* Lay out the codes of in.x (in.n, in.cols), and what outliers want of a few tokens, in scratch;
 * returns where they end, 64-byte aligned. */
uint8_t *gwq_product_scratch(gwq_product *j, int outliers, void *scratch);
/* Tasks: codes of this thread's tokens; row groups of all matrices, shared out by bytes. What the
 * second does may be done with a gwq_product for each thread, of which only `taken` is shared. */
void gwq_product_codes(void *p, int thread, int threads);
void gwq_product_share(void *p, int thread, int threads);
#endif
