/* Products for any CPU. */
#include <math.h>

enum { LANES = 4, ROWS = 4 };
typedef float lanes __attribute__((vector_size(4 * LANES)));

static inline lanes fused(lanes a, lanes b, lanes c) {
    lanes v;
    for (int l = 0; l < LANES; l++) v[l] = fmaf(a[l], b[l], c[l]);
    return v;
}

#include "gemm.h"
#include "scalar.h"

void gwq_multiply_scalar(const gwq_multiplication *p) { multiply(p); }
