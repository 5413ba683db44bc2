/* The encoder for AVX-512. */
#define GWQ_ENCODE_LANES 16
#include "cpu/encode.h"
#include "slots.h"

void gwq_encode_avx512(const gwq_encoding *e, int64_t first, int64_t last) {
    encode(e, first, last);
}
