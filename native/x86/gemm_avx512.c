/* Products for AVX-512. */
enum { LANES = 16, ROWS = 12 };
#include "cpu/gemm.h"
#include "slots.h"

void gwq_multiply_avx512(const gwq_multiplication *p) { multiply(p); }
