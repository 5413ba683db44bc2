/* Where a row reads memory in one way on some CPUs and in another elsewhere. */
#ifndef GWQ_VENDOR_H
#define GWQ_VENDOR_H

#define ONE_TOKEN_ON(CPU, N) \
    if (in->n == 1 && __builtin_cpu_is(#CPU)) return tile_gemv(&CPU##N, m, first, last, in, y);

/* In the place of TILE_MATMUL: one token by the tile_ops CPU##N on such CPUs, one or two lines of
 * ONE_TOKEN_ON */
#define TILE_MATMUL_BY_CPU(N, CPUS)                                             \
    static void matmul_gwq##N(const gwq_matrix *m, int64_t first, int64_t last, \
                              const gwq_input *in, float *y) {                  \
        CPUS                                                                    \
        tile_matmul(&ops##N, m, first, last, in, y);                            \
    }
#endif
