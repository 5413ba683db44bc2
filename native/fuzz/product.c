/* A matrix of a file, checked, then multiplied by a few tokens with one of the instruction sets. */
#include <stdlib.h>
#include "input.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int64_t TOKENS[] = {1, 1, 2, 3, 5, 6, 7, 8, 9, 17};
    struct input in = {data, size};
    struct given g;
    take_isa(&in);
    const int64_t n = TOKENS[take(&in) % (sizeof TOKENS / sizeof *TOKENS)];
    const int count = 1 + take(&in) % 2;
    take_matrix(&in, &g);
    if (!gwq_matrix_check(&g.m)) {
        const gwq_matrix *m[] = {&g.m, &g.m};
        const uint64_t bytes = gwq_scratch_bytes(n, g.m.cols);
        float *x = take_floats(&in, n * g.m.cols), *y[2];
        void *scratch = block(bytes);
        for (int k = 0; k < count; k++) y[k] = block((size_t)(n * g.m.rows) * sizeof **y);
        expect(!gwq_matmul(NULL, m, count, x, n, y, scratch, bytes),
               "what is checked can be multiplied");
        for (int k = 0; k < count; k++) free(y[k]);
        free(scratch);
        free(x);
    }
    free_given(&g);
    return 0;
}
