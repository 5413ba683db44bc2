/* What a query of causal attention sees. */
#ifndef GWQ_CUDA_ATTENTION_H
#define GWQ_CUDA_ATTENTION_H
#include "functions.h"
#include "kernels.h"

struct range {
    int64_t from, end;
};

/* The positions that a query sees */
DEVICE range seen_by(int64_t position, int64_t window) {
    const int64_t end = position + 1;
    return {window && end > window ? end - window : 0, end};
}

/* Many queries by tensor cores (attention_many.cu); false: nothing is started, as they cannot take
 * heads or a cache like these */
bool attend_many(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start);
#endif
