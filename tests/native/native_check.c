/* For a library that Python cannot load (another architecture, run by an emulator): decodes a
 * matrix and multiplies it.
 *
 *     native_check TYPE ROWS COLS N  data outliers offsets x
 *
 * prints weights (ROWS, COLS), then y (N, ROWS), float32. */
#include <stdio.h>
#include <stdlib.h>
#include "gwq.h"

static void *read_file(const char *path, uint64_t *bytes) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) exit(3);
    *bytes = (uint64_t)ftell(f);
    rewind(f);
    void *p = malloc(*bytes + 1);
    if (!p || fread(p, 1, *bytes, f) != *bytes) exit(3);
    fclose(f);
    return p;
}

int main(int argc, char **argv) {
    if (argc != 9) return 2;
    gwq_matrix m = {.type = (int32_t)strtol(argv[1], 0, 10)};
    m.rows = atol(argv[2]);
    m.cols = atol(argv[3]);
    int64_t n = atol(argv[4]);
    uint64_t x_bytes;
    m.data = read_file(argv[5], &m.data_bytes);
    m.outliers = read_file(argv[6], &m.outlier_bytes);
    m.offsets = read_file(argv[7], &m.offset_bytes);
    const float *x = read_file(argv[8], &x_bytes);
    if (!m.outlier_bytes) m.outliers = m.offsets = NULL, m.offset_bytes = 0;
    if (gwq_matrix_check(&m) || gwq_isa_select(NULL)) return 4;
    gwq_pool *pool;
    if (gwq_pool_new(2, &pool)) return 5;
    float *w = malloc((size_t)(m.rows * m.cols) * 4), *y = malloc((size_t)(n * m.rows) * 4);
    uint64_t bytes = gwq_scratch_bytes(n, m.cols);
    void *scratch = malloc(bytes);
    const gwq_matrix *matrices[] = {&m};
    if (gwq_dequantize(pool, &m, 0, m.rows, w)) return 6;
    if (gwq_matmul(pool, matrices, 1, x, n, &y, scratch, bytes)) return 6;
    gwq_pool_free(pool);
    fwrite(w, 4, (size_t)(m.rows * m.cols), stdout);
    fwrite(y, 4, (size_t)(n * m.rows), stdout);
    fprintf(stderr, "%s\n", gwq_isa());
    return 0;
}
