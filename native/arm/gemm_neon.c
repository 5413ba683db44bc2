/* Products for NEON. */
enum { LANES = 4, ROWS = 12 };
#include "cpu/gemm.h"
#include "slots.h"

void gwq_multiply_neon(const gwq_multiplication *p) { multiply(p); }
