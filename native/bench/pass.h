/* A recorded model that runs. */
#ifndef GWQ_BENCH_PASS_H
#define GWQ_BENCH_PASS_H
#include "record.h"

struct model {
    struct record record;
    gwq_pool *pool;
    void *scratch;
    uint64_t scratch_bytes;
    int64_t pos; /* positions that the cache holds */
};

/* Opens both files and starts the threads; ends the program where that fails. */
void model_open(struct model *m, const char *model, const char *record, int threads);
/* Runs n ids after what the cache holds; returns the logits (vocab) of the last of them. */
const float *model_forward(struct model *m, const int32_t *ids, int64_t n);
/* The token of the largest logit */
int32_t model_best(struct model *m, const float *logits);
/* Whether there are passes with which a prompt of n tokens takes the calls that Python makes */
int record_has_prompt(const struct record *r, int64_t n);
#endif
