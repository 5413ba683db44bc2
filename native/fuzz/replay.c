/* Runs a target's inputs, the files that are named, without a fuzzer: for compilers that have none.
 */
#include <stdio.h>
#include <stdlib.h>
#include "input.h"

enum { MOST = 1 << 22 };

int main(int argc, char **argv) {
    static uint8_t buffer[MOST];
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) return 2;
        const size_t size = fread(buffer, 1, MOST, f);
        fclose(f);
        uint8_t *input = block(size);
        memcpy(input, buffer, size);
        LLVMFuzzerTestOneInput(input, size);
        free(input);
    }
    fprintf(stderr, "%d inputs\n", argc - 1);
    return 0;
}
