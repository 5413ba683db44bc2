/* Products for AVX2. */
enum { LANES = 8, ROWS = 6 };
#include "cpu/gemm.h"
#include "slots.h"

void gwq_multiply_avx2(const gwq_multiplication *p) { multiply(p); }
