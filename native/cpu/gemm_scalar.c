/* Products for any CPU. */
enum { LANES = 4, ROWS = 4 };
#include "gemm.h"
#include "scalar.h"

void gwq_multiply_scalar(const gwq_multiplication *p) { multiply(p); }
