/* The encoder for NEON. */
#define GWQ_ENCODE_LANES 4
#include "cpu/encode.h"
#include "slots.h"

void gwq_encode_neon(const gwq_encoding *e, int64_t first, int64_t last) { encode(e, first, last); }
