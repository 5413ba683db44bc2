#include "stats.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "say.h"

void values_add(struct values *v, double value) {
    if (v->count == v->room) {
        const int room = v->room ? 2 * v->room : 16;
        double *more = realloc(v->of, sizeof *more * (size_t)room);
        if (!more) die("out of memory: stop other programs");
        v->of = more;
        v->room = room;
    }
    v->of[v->count++] = value;
}

void values_free(struct values *v) {
    free(v->of);
    *v = (struct values){0};
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double values_median(const struct values *v) {
    struct values sorted = {0};
    if (!v->count) return 0;
    for (int i = 0; i < v->count; i++) values_add(&sorted, v->of[i]);
    qsort(sorted.of, (size_t)sorted.count, sizeof *sorted.of, ascending);
    const double low = sorted.of[(sorted.count - 1) / 2], high = sorted.of[sorted.count / 2];
    values_free(&sorted);
    return (low + high) / 2;
}

double values_mean(const struct values *v) {
    double sum = 0;
    for (int i = 0; i < v->count; i++) sum += v->of[i];
    return v->count ? sum / v->count : 0;
}

double values_deviation(const struct values *v) {
    const double mean = values_mean(v);
    double squares = 0;
    for (int i = 0; i < v->count; i++) squares += (v->of[i] - mean) * (v->of[i] - mean);
    return v->count ? sqrt(squares / v->count) : 0;
}
