/* The norm or activation that comes before a product, number by number. */
#ifndef GWQ_CUDA_BEFORE_H
#define GWQ_CUDA_BEFORE_H
#include "functions.h"
#include "kernels.h"
#include "norms.h"

/* What the whole token says, found by all threads of a block */
DEVICE moments moments_before(const activations &a, int token) {
    if (a.before != GWQ_BEFORE_NORM) return {0, 1};
    return moments_of(a.x + (int64_t)token * a.cols, a.cols, a.eps, a.layer);
}

/* f(x) at column c of a token */
DEVICE float before(const activations &a, int token, int c, const moments &norm) {
    const int64_t at = (int64_t)token * a.cols + c;
    const float x = a.x[at];
    if (a.before == GWQ_BEFORE_NORM)
        return normalized(x, norm, a.weight[c], a.shift ? a.shift[c] : 0, a.layer);
    if (a.before == GWQ_BEFORE_ACTIVATION)
        return activated(x, a.activation) * (a.up ? a.up[at] : 1);
    return x;
}
#endif
