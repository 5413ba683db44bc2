/* The encoder for AVX2. */
#include "cpu/encode.h"
#include "slots.h"

void gwq_encode_avx2(const gwq_encoding *e, int64_t first, int64_t last) { encode(e, first, last); }
