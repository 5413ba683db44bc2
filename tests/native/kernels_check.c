/* For a library that Python cannot load (another architecture, run by an emulator): matrices of every
 * type, in every instruction set of this machine, against the scalar row.
 *
 * Decoded weights must have the same bits. A product may differ by what float32 sums round: 4e-7 of
 * sum |w x| on either side, as tests/native/test_matmul.py derives. Prints the rows, then what is
 * wrong; ends with status 1 if something is.
 *
 *     kernels_check [SHAPES]    of that many shapes alone, from small to large */
#include "check_support.h"

static const float bound = 2 * 4e-7f;

struct shape {
    int64_t rows, cols;
};
static const struct shape shapes[] = {{1, 1},    {17, 65},   {16, 256}, {33, 129},
                                      {31, 7},   {65, 257},  {48, 576}, {17, 897}, {32, 1120}};
static const int tokens[] = {1, 2, 3, 5, 6, 7, 9, 64, 66};
enum { MOST_TOKENS = 66, MOST_ROWS = 65 };

/* --- matrices --------------------------------------------------------------------------------- */

/* Chances of an outlier out of 1000, or a pattern of its own */
enum pattern { NONE = -1, EMPTY = 0, SOME = 10, MANY = 120, FULL_ROW = 2000, LAST };
static const int patterns[] = {NONE, EMPTY, SOME, MANY, FULL_ROW, LAST};

static int is_outlier(int pattern, const struct shape *s, int64_t r, int64_t c) {
    if (pattern == FULL_ROW) return (r == s->rows / 2 && c % 256 != 255) || below(1000) < 10;
    if (pattern == LAST) return r == s->rows - 1 && c == s->cols - 1;
    return below(1000) < pattern;
}

static uint16_t random_half(void) { /* of either sign, finite, at times zero or subnormal */
    const int exponent = below(8) ? 9 + below(8) : 0;
    return (uint16_t)(below(2) << 15 | exponent << 10 | below(1024));
}

/* One record of the side-table after `at`; returns its end */
static uint8_t *put_record(int pattern, const struct shape *s, int64_t group, int64_t tile,
                           uint8_t *at) {
    uint8_t columns[16][256];
    int count[16] = {0}, total = 0;
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 256; c++) {
            const int64_t row = 16 * group + r, col = 256 * tile + c;
            if (row >= s->rows || col >= s->cols || count[r] == 255) continue;
            if (is_outlier(pattern, s, row, col)) columns[r][count[r]++] = (uint8_t)c;
        }
        at[r] = (uint8_t)count[r];
        total += count[r];
    }
    uint8_t *value = at + 16, *column = value + 2 * total;
    for (int level = 0; level < 256; level++)
        for (int r = 0; r < 16; r++)
            if (count[r] > level) {
                const uint16_t h = random_half();
                memcpy(value, &h, 2);
                value += 2;
                *column++ = columns[r][level];
            }
    return column;
}

static void put_outliers(gwq_matrix *m, int pattern) {
    if (pattern == NONE) return;
    const struct shape s = {m->rows, m->cols};
    const int64_t groups = (m->rows + 15) / 16, tiles = (m->cols + 255) / 256;
    uint8_t *table = malloc((size_t)(groups * tiles) * (16 + 3 * 4096)), *at = table;
    int32_t *offsets = guarded(4 * (size_t)(groups + 1));
    for (int64_t g = 0; g < groups; g++) {
        offsets[g] = (int32_t)(at - table);
        for (int64_t t = 0; t < tiles; t++) at = put_record(pattern, &s, g, t, at);
    }
    offsets[groups] = (int32_t)(at - table);
    m->outlier_bytes = (uint64_t)(at - table);
    m->outliers = memcpy(guarded(m->outlier_bytes), table, m->outlier_bytes);
    m->offsets = (const uint8_t *)offsets;
    m->offset_bytes = 4 * (uint64_t)(groups + 1);
    free(table);
}

/* Bytes of any value make a matrix, but for the head and numbers that would not be finite. */
static gwq_matrix random_matrix(int32_t type, const struct shape *s, int pattern) {
    gwq_matrix m = {.type = type, .rows = s->rows, .cols = s->cols};
    m.data_bytes = gwq_matrix_bytes(type, s->rows, s->cols);
    uint8_t *p = guarded(m.data_bytes);
    m.data = p;
    for (uint64_t i = 0; i < m.data_bytes; i++) p[i] = (uint8_t)(next_random() >> 40);
    const int64_t count = s->rows * s->cols;
    const gwq_type_row *row = &gwq_types[gwq_type_index(type)];
    if (row->bits) {
        memset(p, 0, sizeof(struct gwq_head));
        for (int i = 0; i < 16 && row->bits != 6; i++) p[i] = (uint8_t)(below(64) - 32);
        p[16] = (uint8_t)(below(41) - 20);
        for (int64_t r = 0; r < (s->rows + 15) / 16 * 16; r++) {
            const uint16_t h = r < s->rows ? random_half() : 0;
            memcpy(p + 32 + 2 * r, &h, 2);
        }
    } else if (type == GWQ_TYPE_F32) {
        for (int64_t i = 0; i < count; i++) {
            const float f = normal();
            memcpy(p + 4 * i, &f, 4);
        }
    } else if (type == GWQ_TYPE_F16 || type == GWQ_TYPE_BF16) {
        for (int64_t i = 0; i < count; i++) {
            const uint16_t h = (uint16_t)(random_half() + (type == GWQ_TYPE_BF16 ? 0x2000 : 0));
            memcpy(p + 2 * i, &h, 2);
        }
    } else {
        for (uint64_t i = 0; i < m.data_bytes; i += (uint64_t)row->unit_bytes) {
            const uint16_t h = random_half();
            memcpy(p + i, &h, 2);
        }
    }
    put_outliers(&m, pattern);
    if (gwq_matrix_check(&m)) exit(8);
    return m;
}

static void forget(gwq_matrix *m) {
    release((void *)m->data, m->data_bytes);
    if (!m->outliers) return;
    release((void *)m->outliers, m->outlier_bytes);
    release((void *)m->offsets, m->offset_bytes);
}

/* --- checks ----------------------------------------------------------------------------------- */

static gwq_pool *pool;

static void product(const gwq_matrix *m, const float *x, int n, float *y) {
    const uint64_t bytes = gwq_scratch_bytes(n, m->cols);
    static uint8_t *scratch;
    static uint64_t room;
    if (bytes > room) {
        free(scratch);
        scratch = malloc(room = bytes);
    }
    const gwq_matrix *one[] = {m};
    float *out = floats(n * m->rows);
    for (int64_t i = 0; i < n * m->rows; i++) out[i] = NAN;
    if (gwq_matmul(pool, one, 1, x, n, &out, scratch, bytes)) exit(7);
    memcpy(y, out, sizeof *y * (size_t)(n * m->rows));
    release(out, sizeof *out * (size_t)(n * m->rows));
}

/* size (MOST_TOKENS, rows) = sum |w x| */
static void sizes(const gwq_matrix *m, const float *w, const float *x, float *size) {
    for (int t = 0; t < MOST_TOKENS; t++)
        for (int64_t r = 0; r < m->rows; r++) {
            double sum = 0;
            for (int64_t c = 0; c < m->cols; c++)
                sum += fabs((double)w[r * m->cols + c] * x[t * m->cols + c]);
            size[t * m->rows + r] = (float)sum;
        }
}

/* The codes that dense parts see are up to 1/2 in 127 larger than x where these are small, so their
 * sum |w x| is at most that of the weights with the largest x of the block: twice is ample for normal
 * numbers, and the massive ones below are in both. */
static void check_products(const gwq_matrix *m, const float *x, const float *want,
                           const float *size, const char *what) {
    static float y[MOST_TOKENS * MOST_ROWS], one[MOST_ROWS];
    for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++) {
        const int n = tokens[k];
        product(m, x, n, y);
        for (int64_t i = 0; i < n * m->rows; i++)
            if (!(fabsf(y[i] - want[i]) <= 2 * bound * size[i])) {
                FAIL("%s: %d tokens, number %d is %.9g, not %.9g", what, n, (int)i, y[i], want[i]);
                break;
            }
        for (int t = 0; n <= GWQ_FEW && t < n; t++) { /* a few tokens: what each gets alone */
            product(m, x + t * m->cols, 1, one);
            same_bits(one, y + t * m->rows, sizeof *y * (size_t)m->rows, what);
        }
    }
}

static void check_matrix(int32_t type, const struct shape *s, int pattern) {
    gwq_matrix m = random_matrix(type, s, pattern);
    const int64_t count = s->rows * s->cols;
    char what[80];
    snprintf(what, sizeof what, "type %d, %d x %d, outliers %d", type, (int)s->rows, (int)s->cols,
             pattern);
    float *w = floats(count), *other = floats(count), *x = normals(MOST_TOKENS * s->cols);
    for (int t = 0; pattern == SOME && t < 3; t++) /* massive activations */
        x[t * s->cols + s->cols / 3] = t % 2 ? 5000.f : -70000.f;
    float want[MOST_TOKENS * MOST_ROWS], size[MOST_TOKENS * MOST_ROWS];
    gwq_isa_select("scalar");
    if (gwq_dequantize(pool, &m, 0, s->rows, w)) exit(7);
    product(&m, x, MOST_TOKENS, want);
    sizes(&m, w, x, size);
    EACH_ROW(i) {
        memset(other, 255, sizeof *other * (size_t)count);
        if (gwq_dequantize(pool, &m, 0, s->rows, other)) exit(7);
        same_bits(w, other, sizeof *w * (size_t)count, what);
        check_products(&m, x, want, size, what);
    }
    release(w, sizeof *w * (size_t)count);
    release(other, sizeof *w * (size_t)count);
    release(x, sizeof *x * (size_t)(MOST_TOKENS * s->cols));
    forget(&m);
}

/* Largest entries, scales and activations, their signs equal or not: the worst cases of 16-bit and of
 * 32-bit sums. `some`: columns of the largest entry, else the smallest. */
static void check_extremes(int bits) {
    const struct shape s = {16, 256};
    const int32_t type = gwq_types[GWQ_K_GWQ2 + bits - 2].id;
    gwq_matrix m = random_matrix(type, &s, NONE);
    uint8_t *p = (uint8_t *)m.data, *tile = p + 64;
    const size_t scales = 4 * gwq_scale_bytes(bits), lines = 4 * gwq_line_bytes(bits);
    static float x[9 * 256], want[9 * 16], y[9 * 16];
    for (int i = 0; i < 16; i++) {
        const int top = (i & ((1 << (bits < 4 ? bits : 4)) - 1)) != 0;
        p[i] = (uint8_t)(bits == 6 ? 0 : top ? 31 : -32);
        p[32 + 2 * i] = 0;
        p[33 + 2 * i] = 0x3c; /* 1 */
    }
    p[16] = 0;
    for (int v = 0; v < 16; v++) {
        memset(tile, v & 1 ? 255 : 0, scales);
        memset(tile + scales, v & 2 ? 255 : 0, lines);
        for (int i = 0; i < 9 * 256; i++)
            x[i] = v & 4 ? 127 : v & 8 ? (i % 2 ? 127 : -127) : (i % 4 < 2 ? 127 : -127);
        gwq_isa_select("scalar");
        product(&m, x, 9, want);
        EACH_ROW(i) {
            for (int n = 1; n <= 9; n++) {
                product(&m, x, n, y);
                close_to(y, want, 16 * n, 1e-6f, 1e-6f * 256 * 127 * 1024, "extremes");
            }
        }
    }
    forget(&m);
}

int main(int argc, char **argv) {
    const size_t most = sizeof shapes / sizeof *shapes;
    const size_t some = argc > 1 ? (size_t)atoi(argv[1]) : most;
    print_rows();
    if (gwq_pool_new(1, &pool)) return 5;
    for (int k = 0; k < GWQ_K_COUNT; k++)
        for (size_t i = 0; i < some && i < most; i++) {
            const gwq_type_row *type = &gwq_types[k];
            if (!type->bits && shapes[i].cols % type->unit) continue;
            for (size_t j = 0; j < sizeof patterns / sizeof *patterns; j++)
                if (i < 2 || j == 0 || (i + j) % 3 == 0) /* all of the small ones */
                    check_matrix(type->id, &shapes[i], patterns[j]);
        }
    for (int bits = 2; bits <= 6; bits++) check_extremes(bits);
    gwq_pool_free(pool);
    return failures > 0;
}
