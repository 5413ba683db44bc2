/* Products for AVX-512. */
#include <immintrin.h>

enum { LANES = 16, ROWS = 12 };
typedef float lanes __attribute__((vector_size(4 * LANES)));

static inline lanes fused(lanes a, lanes b, lanes c) {
    return (lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}

#include "cpu/gemm.h"
#include "slots.h"

void gwq_multiply_avx512(const gwq_multiplication *p) { multiply(p); }
