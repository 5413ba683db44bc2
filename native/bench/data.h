/* Random data for kernels, as gwq_export/bench/cases.py makes it: for speed only. */
#ifndef GWQ_BENCH_DATA_H
#define GWQ_BENCH_DATA_H
#include "gwq.h"

void random_bytes(void *out, uint64_t bytes);
void random_floats(float *out, int64_t count); /* -0.5 to 0.5 */
/* A matrix that the library accepts, with finite scales; outliers: share of the weights */
gwq_matrix random_matrix(int32_t type, int64_t rows, int64_t cols, double outliers);
gwq_matrix copy_of_matrix(const gwq_matrix *m); /* in memory of its own */
void free_matrix(gwq_matrix *m);
uint64_t matrix_bytes(const gwq_matrix *m); /* with its side-table */
#endif
