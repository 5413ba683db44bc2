/* Numbers that were measured, one after another. */
#ifndef GWQ_BENCH_STATS_H
#define GWQ_BENCH_STATS_H

struct values {
    double *of;
    int count, room;
};

void values_add(struct values *v, double value);
void values_free(struct values *v);
/* 0 of none */
double values_median(const struct values *v);
double values_mean(const struct values *v);
double values_deviation(const struct values *v); /* of the population */
#endif
