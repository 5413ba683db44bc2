/* The encoder for any CPU. */
#include "encode.h"

void gwq_encode_any(const gwq_encoding *e, int64_t first, int64_t last) { encode(e, first, last); }
