#ifndef GWQ_BENCH_SUITE_H
#define GWQ_BENCH_SUITE_H
#include "options.h"

/* Measure a file, as the options say; returns the exit status. */
int measure_file(const struct options *o);
/* Measure kernels (kernels.c). */
int measure_kernels(const struct options *o);
#endif
