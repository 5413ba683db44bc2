/* What a fuzzer's bytes are taken apart into: numbers, and a matrix as it might lie in a file.
 *
 * Every array lies in a heap block of exactly its size, so that AddressSanitizer sees the first
 * byte that is read or written beyond it. */
#ifndef GWQ_FUZZ_INPUT_H
#define GWQ_FUZZ_INPUT_H
#include "cpu/matrix.h"

struct input {
    const uint8_t *at;
    size_t left;
};

static inline uint8_t take(struct input *in) { return in->left ? (in->left--, *in->at++) : 0; }
static inline int take_16(struct input *in) {
    const int low = take(in);
    return low | take(in) << 8;
}

/* Ends the program, which the fuzzer calls a crash, where the library breaks a promise. */
void expect(int holds, const char *promise);
/* A block of exactly so many bytes that starts at a multiple of 64 */
void *block(size_t bytes);

/* The instruction set that the next byte names, of those that this machine has */
void take_isa(struct input *in);

/* The matrix that the bytes describe, 40 x 600 at most, and room for it:
 *
 *     type, rows, columns (2 bytes), flags, damage
 *     `damage` % 4 times: array, position (2 bytes), value
 *     side-table, then the tensor's bytes
 */
struct given {
    gwq_matrix m;
    uint8_t *of_data; /* block that m.data lies in */
    uint8_t *outliers, *offsets;
};
void take_matrix(struct input *in, struct given *g);
void free_given(struct given *g);
/* Bytes of `count` numbers, those that are left and then pseudo-random ones */
void take_bytes(struct input *in, uint8_t *out, size_t count);
/* Numbers as hidden states are, now and then infinite or NaN */
float *take_floats(struct input *in, int64_t count);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#endif
