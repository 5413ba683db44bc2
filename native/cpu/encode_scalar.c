/* The encoder for any CPU. */
#include "encode.h"
#include "scalar.h"

void gwq_encode_scalar(const gwq_encoding *e, int64_t first, int64_t last) {
    encode(e, first, last);
}
