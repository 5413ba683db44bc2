/* A product of a random matrix, again and again, for studies/arm_instructions to count instructions
 * of:
 *
 *     arm_instructions_ours ROW TYPE ROWS COLUMNS TOKENS OUTLIERS_PER_1000 TIMES */
#include <stdlib.h>
#include <string.h>
#include "cpu/matmul.h"

static unsigned state = 1;
static unsigned next_random(void) {
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

/* Records whose counts, columns and values are as a file's: levels of rows, columns ascending */
static uint8_t *put_record(int per_1000, uint8_t *at) {
    uint8_t columns[16][256];
    int count[16] = {0}, total = 0;
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 256 && count[r] < 255; c++)
            if ((int)(next_random() % 1000) < per_1000) columns[r][count[r]++] = (uint8_t)c;
        at[r] = (uint8_t)count[r];
        total += count[r];
    }
    uint8_t *value = at + 16, *column = value + 2 * total;
    memset(value, 0, 2 * (size_t)total);
    for (int level = 0; level < 256; level++)
        for (int r = 0; r < 16; r++)
            if (count[r] > level) *column++ = columns[r][level];
    return column;
}

int main(int argc, char **argv) {
    if (argc != 8 || gwq_isa_select(argv[1])) return 2;
    gwq_matrix m = {.type = (int32_t)strtol(argv[2], 0, 10)};
    m.rows = atol(argv[3]);
    m.cols = atol(argv[4]);
    const int64_t n = atol(argv[5]), groups = m.rows / 16, tiles = (m.cols + 255) / 256;
    const int per_1000 = atoi(argv[6]);
    m.data_bytes = gwq_matrix_bytes(m.type, m.rows, m.cols);
    uint8_t *data = calloc(m.data_bytes, 1);
    m.data = data;
    for (uint64_t i = 32; i < m.data_bytes; i++) data[i] = (uint8_t)(next_random() % 100);
    if (per_1000) {
        uint8_t *table = malloc((size_t)(groups * tiles) * (16 + 3 * 4096)), *at = table;
        int32_t *offsets = calloc((size_t)groups + 1, sizeof *offsets);
        for (int64_t g = 0; g < groups; g++) {
            for (int64_t t = 0; t < tiles; t++) at = put_record(per_1000, at);
            offsets[g + 1] = (int32_t)(at - table);
        }
        m.outliers = table;
        m.outlier_bytes = (uint64_t)(at - table);
        m.offsets = (const uint8_t *)offsets;
        m.offset_bytes = 4 * (uint64_t)(groups + 1);
    }
    if (gwq_matrix_check(&m)) return 3;
    float *x = malloc(sizeof *x * (size_t)(n * m.cols)), *y = malloc(sizeof *y * (size_t)(n * m.rows));
    for (int64_t i = 0; i < n * m.cols; i++) x[i] = (float)(next_random() % 200) - 100;
    gwq_product job = {.in = {.n = n, .cols = m.cols, .x = x}};
    void *scratch = malloc(gwq_scratch_bytes(n, m.cols));
    job.in.panel = (float *)gwq_product_scratch(&job, per_1000 > 0, scratch);
    gwq_product_codes(&job, 0, 1);
    for (int64_t t = 0; n > GWQ_FEW && t < n; t += GWQ_PANEL)
        gwq_in_use()->panel(x + t * m.cols, m.cols, (int)min64(GWQ_PANEL, n - t), m.cols, GWQ_PANEL,
                            job.in.panel + t * m.cols);
    for (int i = atoi(argv[7]); i > 0; i--)
        gwq_in_use()->matmul[gwq_kind_of(&m)](&m, 0, groups, &job.in, y);
    return 0;
}
