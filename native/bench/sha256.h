#ifndef GWQ_BENCH_SHA256_H
#define GWQ_BENCH_SHA256_H
#include <stdint.h>

/* SHA-256 (FIPS 180-4) of `bytes` bytes. */
void sha256(const uint8_t *data, uint64_t bytes, uint8_t out[32]);
#endif
