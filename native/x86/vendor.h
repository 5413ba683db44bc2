/* Where a row reads memory in one way on Intel's CPUs and in another elsewhere. */
#ifndef GWQ_VENDOR_H
#define GWQ_VENDOR_H

/* In the place of TILE_MATMUL: one token by the tile_ops intel##N there */
#define TILE_MATMUL_BY_VENDOR(N)                                                \
    static void matmul_gwq##N(const gwq_matrix *m, int64_t first, int64_t last, \
                              const gwq_input *in, float *y) {                  \
        if (in->n == 1 && __builtin_cpu_is("intel"))                            \
            tile_gemv(&intel##N, m, first, last, in, y);                        \
        else                                                                    \
            tile_matmul(&ops##N, m, first, last, in, y);                        \
    }
#endif
