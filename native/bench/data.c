#include "data.h"
#include <stdlib.h>
#include <string.h>
#include "say.h"

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t next(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

void random_bytes(void *out, uint64_t bytes) {
    uint8_t *to = out;
    uint64_t word;
    for (; bytes >= sizeof word; bytes -= sizeof word, to += sizeof word) {
        word = next();
        memcpy(to, &word, sizeof word);
    }
    word = next();
    memcpy(to, &word, bytes);
}

void random_floats(float *out, int64_t count) {
    for (int64_t i = 0; i < count; i++) out[i] = (float)(next() >> 40) / (1 << 24) - 0.5f;
}

/* Where the top bits of the exponents of numbers, or of scales, are: every `step` bytes from
 * `first` on, before `end` */
struct exponents {
    uint64_t first, step, end;
};

static struct exponents exponents(int32_t type, int64_t rows, uint64_t bytes) {
    const uint64_t groups = (uint64_t)(rows + GWQ_ROWS - 1) / GWQ_ROWS;
    const uint64_t head = sizeof(struct gwq_head);
    switch (type) {
    case GWQ_TYPE_F32:
        return (struct exponents){3, 4, bytes};
    case GWQ_TYPE_F16:
    case GWQ_TYPE_BF16:
        return (struct exponents){1, 2, bytes};
    case GWQ_TYPE_Q8_0:
        return (struct exponents){1, sizeof(struct q8_0_block), bytes};
    case GWQ_TYPE_Q4_0:
    case GWQ_TYPE_IQ4_NL:
        return (struct exponents){1, sizeof(struct q4_block), bytes};
    default:
        return (struct exponents){head + 1, 2, head + 2 * GWQ_ROWS * groups};
    }
}

/* The outliers of a row group within a tile, in level order; returns the record's bytes */
static uint64_t record(uint8_t *out, int64_t rows, int64_t width, double share) {
    uint8_t column[GWQ_ROWS][255], *count = out;
    const uint64_t limit = (uint64_t)(share * 0x1p32);
    int n = 0;
    memset(count, 0, GWQ_ROWS);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < width && count[r] < 255; c++)
            if (next() >> 32 < limit) column[r][count[r]++] = (uint8_t)c;
    for (int r = 0; r < GWQ_ROWS; r++) n += count[r];
    uint8_t *value = out + GWQ_ROWS, *at = value + 2 * n;
    for (int level = 0; level < 255; level++)
        for (int r = 0; r < GWQ_ROWS; r++) {
            if (count[r] <= level) continue;
            const uint16_t half = (uint16_t)((next() & 0x83ff) | 0x3800); /* +-0.5 to 1 */
            memcpy(value, &half, sizeof half);
            value += sizeof half;
            *at++ = column[r][level];
        }
    return (uint64_t)(at - out);
}

static void add_outliers(gwq_matrix *m, double share) {
    const int64_t groups = (m->rows + GWQ_ROWS - 1) / GWQ_ROWS;
    const int64_t tiles = (m->cols + GWQ_TILE - 1) / GWQ_TILE;
    const size_t most = (size_t)(groups * tiles) * (GWQ_ROWS * (1 + 3 * 255));
    uint8_t *records = allocate(most); /* pages are given when they are written */
    uint8_t *offsets = allocate(4 * (size_t)(groups + 1));
    uint64_t at = 0;
    for (int64_t g = 0; g <= groups; g++) {
        const uint32_t here = (uint32_t)at;
        memcpy(offsets + 4 * g, &here, sizeof here);
        for (int64_t t = 0; t < tiles && g < groups; t++) {
            const int64_t rows = m->rows - GWQ_ROWS * g, width = m->cols - GWQ_TILE * t;
            at += record(records + at, rows < GWQ_ROWS ? rows : GWQ_ROWS,
                         width < GWQ_TILE ? width : GWQ_TILE, share);
        }
    }
    m->outliers = memcpy(allocate(at), records, at);
    m->outlier_bytes = at;
    m->offsets = offsets;
    m->offset_bytes = 4 * (uint64_t)(groups + 1);
    release(records, most);
}

gwq_matrix random_matrix(int32_t type, int64_t rows, int64_t cols, double outliers) {
    const uint64_t bytes = gwq_matrix_bytes(type, rows, cols);
    gwq_matrix m = {.type = type, .rows = rows, .cols = cols, .data_bytes = bytes};
    uint8_t *data = allocate(bytes);
    random_bytes(data, bytes);
    const struct exponents e = exponents(type, rows, bytes);
    for (uint64_t i = e.first; i < e.end; i += e.step) data[i] &= 0xbf; /* far from infinity */
    if (e.end < bytes) { /* tiles */
        struct gwq_head *head = (struct gwq_head *)data;
        for (int i = 0; i < 16; i++) head->table[i] &= 31;
        head->exponent = 0;
        memset(head->zero, 0, sizeof head->zero);
    }
    m.data = data;
    if (outliers > 0) add_outliers(&m, outliers);
    const int status = gwq_matrix_check(&m);
    if (status) die_of(status, "random matrix");
    return m;
}

static const void *copy(const void *from, uint64_t bytes) {
    return from ? memcpy(allocate(bytes), from, bytes) : NULL;
}

gwq_matrix copy_of_matrix(const gwq_matrix *m) {
    gwq_matrix n = *m;
    n.data = copy(m->data, m->data_bytes);
    n.outliers = copy(m->outliers, m->outlier_bytes);
    n.offsets = copy(m->offsets, m->offset_bytes);
    return n;
}

void free_matrix(gwq_matrix *m) {
    release((void *)m->data, m->data_bytes);
    release((void *)m->outliers, m->outlier_bytes);
    release((void *)m->offsets, m->offset_bytes);
}

uint64_t matrix_bytes(const gwq_matrix *m) {
    return m->data_bytes + m->outlier_bytes + m->offset_bytes;
}
