/* Products for AVX2. */
#include <immintrin.h>

enum { LANES = 8, ROWS = 6 };
typedef float lanes __attribute__((vector_size(4 * LANES)));

static inline lanes fused(lanes a, lanes b, lanes c) {
    return (lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}

#include "cpu/gemm.h"
#include "slots.h"

void gwq_multiply_avx2(const gwq_multiplication *p) { multiply(p); }
