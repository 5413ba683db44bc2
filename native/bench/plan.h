/* What is measured of a file: what the options ask for, as far as it was recorded. */
#ifndef GWQ_BENCH_PLAN_H
#define GWQ_BENCH_PLAN_H
#include "options.h"
#include "record.h"

/* Fills in the lengths that the options leave open; ends the program where one was not recorded. */
void plan(struct options *o, const struct record *r);
/* Tokens decoded with each thread count, and at each depth */
int64_t plan_sweep(const struct record *r);
#endif
