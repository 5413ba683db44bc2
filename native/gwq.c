/* The public functions: check arguments, choose the instruction set's kernel, split the work over the pool. */
#include "gwq.h"
#include <stdatomic.h>
#include <string.h>
#include "kernels.h"

#ifndef GWQ_ABI_HASH
#error "build with native/build.py, which defines GWQ_ABI_HASH"
#endif

const char *gwq_abi(void) { return GWQ_ABI_HASH; }

/* --- tables ----------------------------------------------------------------------------------------------------- */

const gwq_type_row gwq_types[GWQ_K_COUNT] = {
    [GWQ_K_F32] = {GWQ_TYPE_F32, 0, 1, 4},      [GWQ_K_F16] = {GWQ_TYPE_F16, 0, 1, 2},
    [GWQ_K_BF16] = {GWQ_TYPE_BF16, 0, 1, 2},    [GWQ_K_Q8_0] = {GWQ_TYPE_Q8_0, 0, 32, sizeof(struct q8_0_block)},
    [GWQ_K_GWQ2] = {GWQ_TYPE_GWQ2, 2, 64, sizeof(struct gwq2_tile) / GWQ_TILE_BLOCKS},
    [GWQ_K_GWQ3] = {GWQ_TYPE_GWQ3, 3, 64, sizeof(struct gwq3_tile) / GWQ_TILE_BLOCKS},
    [GWQ_K_GWQ4] = {GWQ_TYPE_GWQ4, 4, 64, sizeof(struct gwq4_tile) / GWQ_TILE_BLOCKS},
    [GWQ_K_Q4_0] = {GWQ_TYPE_Q4_0, 0, 32, sizeof(struct q4_block)},
    [GWQ_K_IQ4_NL] = {GWQ_TYPE_IQ4_NL, 0, 32, sizeof(struct q4_block)},
};
_Static_assert(sizeof(struct q8_0_block) == 34 && sizeof(struct q4_block) == 18, "packed");
_Static_assert(sizeof(struct gwq_head) == 16, "packed");
_Static_assert(sizeof(struct gwq4_tile) == 4 * (48 + 4 * 128) && sizeof(struct gwq3_tile) == 4 * (24 + 3 * 128) &&
               sizeof(struct gwq2_tile) == 4 * (24 + 2 * 128), "as gwq_block_bytes says");

static const gwq_kernels *const isas[] = {
    &gwq_scalar,
#ifdef __x86_64__
    &gwq_avx2,
    &gwq_avx512,
#endif
};
enum { ISAS = sizeof isas / sizeof *isas };
static gwq_kernels merged;                          /* the chosen row, empty slots filled from the rows before it */
static const gwq_kernels *current = &gwq_scalar;

const gwq_kernels *gwq_in_use(void) { return current; }

static void overlay(gwq_kernels *to, const gwq_kernels *from) {
#define TAKE(slot) if (from->slot) to->slot = from->slot
    TAKE(isa);
    TAKE(supported);
    TAKE(quantize);
    TAKE(panel);
    for (int k = 0; k < GWQ_K_COUNT; k++) {
        TAKE(matmul[k]);
        TAKE(dequantize[k]);
    }
    TAKE(sparse);
    TAKE(rmsnorm);
    TAKE(activate);
    TAKE(softcap);
    TAKE(to_halves);
    TAKE(scores);
    TAKE(exponents);
    TAKE(mix);
    TAKE(read);
    TAKE(encode);
#undef TAKE
}

int gwq_type_index(int32_t id) {
    for (int i = 0; i < GWQ_K_COUNT; i++)
        if (gwq_types[i].id == id) return i;
    return -1;
}

const char *gwq_isa_name(int index) { return index >= 0 && index < ISAS ? isas[index]->isa : NULL; }
int gwq_isa_supported(int index) { return index >= 0 && index < ISAS && isas[index]->supported(); }
const char *gwq_isa(void) { return current->isa; }

int gwq_isa_select(const char *name) {
    for (int chosen = ISAS - 1; chosen >= 0; chosen--) {
        if (!isas[chosen]->supported() || (name && strcmp(name, isas[chosen]->isa))) continue;
        for (int i = 0; i <= chosen; i++)
            if (isas[i]->supported()) overlay(&merged, isas[i]);
        current = &merged;
        return GWQ_OK;
    }
    return GWQ_E_ISA;
}

/* --- matrices --------------------------------------------------------------------------------------------------- */

uint64_t gwq_matrix_bytes(int32_t type, int64_t rows, int64_t cols) {
    int k = gwq_type_index(type);
    const int64_t limit = INT32_MAX;
    if (k < 0 || rows < 1 || cols < 1 || rows > limit || cols > limit) return 0;
    if (!gwq_types[k].bits && cols % gwq_types[k].unit) return 0;
    uint64_t units = (uint64_t)((cols + gwq_types[k].unit - 1) / gwq_types[k].unit);
    uint64_t held = gwq_types[k].bits ? (uint64_t)gwq_groups(rows) : (uint64_t)rows, limit64 = UINT64_MAX / 1024;
    if (held > limit64 / units) return 0;
    return held * units * (uint64_t)gwq_types[k].unit_bytes + (gwq_types[k].bits ? gwq_head_bytes(rows) : 0);
}

/* One record: counts within the table, rows and columns within the matrix, columns of a row ascending. */
static int check_record(const gwq_matrix *m, int64_t group, int64_t tile, const uint8_t **at, const uint8_t *end) {
    const uint8_t *record = *at;
    if (end - record < GWQ_ROWS) return GWQ_E_RECORD;
    int64_t rows = m->rows - group * GWQ_ROWS, width = m->cols - tile * GWQ_TILE, total = 0;
    int last[GWQ_ROWS];
    for (int r = 0; r < GWQ_ROWS; r++) {
        if (r >= rows && record[r]) return GWQ_E_ROW;
        total += record[r];
        last[r] = -1;
    }
    if (end - record < GWQ_ROWS + 3 * total) return GWQ_E_RECORD;
    const uint8_t *column = record + GWQ_ROWS + 2 * total;
    uint64_t left[2]; /* outliers to come of each row, a byte each: files are opened faster than row by row */
    memcpy(left, record, sizeof left);
    while (left[0] | left[1])
        for (int half = 0; half < 2; half++) {
            const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
            uint64_t some = (((left[half] & low) + low) | left[half]) & ~low; /* the top bit of bytes that are not 0 */
            left[half] -= some >> 7;
            for (; some; some &= some - 1) {
                int c = *column++, *before = &last[8 * half + __builtin_ctzll(some) / 8];
                if (c >= width || c <= *before) return GWQ_E_COLUMN;
                *before = c;
            }
        }
    *at = column;
    return GWQ_OK;
}

int gwq_matrix_check(const gwq_matrix *m) {
    if (!m || !m->data) return GWQ_E_ARGUMENT;
    int k = gwq_type_index(m->type);
    if (k < 0) return GWQ_E_TYPE;
    uint64_t bytes = gwq_matrix_bytes(m->type, m->rows, m->cols);
    if (!bytes) return GWQ_E_SHAPE;
    if (bytes != m->data_bytes) return GWQ_E_SIZE;
    for (int i = 0; gwq_types[k].bits && i < (int)sizeof(struct gwq_head); i++)
        if (gwq_table(m)[i] < -ENTRY_BIAS || gwq_table(m)[i] >= ENTRY_BIAS) return GWQ_E_TABLE;
    if (!m->outliers) return m->offsets || m->outlier_bytes ? GWQ_E_ARGUMENT : GWQ_OK;
    int64_t groups = gwq_groups(m->rows), tiles = (m->cols + GWQ_TILE - 1) / GWQ_TILE;
    if (!m->offsets || m->offset_bytes != 4 * (uint64_t)(groups + 1) || m->outlier_bytes > INT32_MAX ||
        gwq_load_u32(m->offsets) != 0 || gwq_load_u32(m->offsets + 4 * groups) != m->outlier_bytes)
        return GWQ_E_OFFSETS;
    for (int64_t g = 0; g < groups; g++)
        if (gwq_load_u32(m->offsets + 4 * g + 4) > m->outlier_bytes) return GWQ_E_OFFSETS;
    const uint8_t *at = m->outliers;
    for (int64_t g = 0; g < groups; g++) {
        if (at != gwq_records(m, g)) return GWQ_E_OFFSETS;
        const uint8_t *end = gwq_records(m, g + 1);
        for (int64_t t = 0; t < tiles; t++) {
            int status = check_record(m, g, t, &at, end);
            if (status) return status;
        }
        if (at != end) return GWQ_E_RECORD;
    }
    return GWQ_OK;
}

static int slot_of(const gwq_matrix *m) {
    int k = gwq_type_index(m->type);
    return k < 0 ? 0 : k; /* never negative for a usable matrix; says so to the compiler */
}

/* What every op asks of a matrix that was checked before. */
static int usable(const gwq_matrix *m) {
    return m && m->data && gwq_type_index(m->type) >= 0 && m->data_bytes == gwq_matrix_bytes(m->type, m->rows, m->cols);
}

static float half_to_float(const uint8_t *p) {
    float f;
    const gwq_matrix one = {.type = GWQ_TYPE_F16, .rows = 1, .cols = 1, .data = p, .data_bytes = 2};
    gwq_scalar.dequantize[GWQ_K_F16](&one, 0, &f);
    return f;
}

/* out (rows of the group, cols): dense part by kernel, outliers added. */
static void dequantize_group(const gwq_matrix *m, int64_t group, float *out) {
    current->dequantize[slot_of(m)](m, group, out);
    const uint8_t *record = gwq_records(m, group);
    if (!record) return;
    for (int64_t first = 0; first < m->cols; first += GWQ_TILE) {
        int total = 0, at = 0;
        for (int r = 0; r < GWQ_ROWS; r++) total += record[r];
        const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
        for (int level = 0; at < total; level++)
            for (int r = 0; r < GWQ_ROWS; r++)
                if (record[r] > level) {
                    out[r * m->cols + first + column[at]] += half_to_float(value + 2 * at);
                    at++;
                }
        record = column + total;
    }
}

/* --- splitting work --------------------------------------------------------------------------------------------- */

struct dequantize_job {
    const gwq_matrix *m;
    int64_t first_group, groups;
    float *out;
};

static void dequantize_task(void *p, int thread, int threads) {
    const struct dequantize_job *j = p;
    for (int64_t g = gwq_share(j->groups, thread, threads); g < gwq_share(j->groups, thread + 1, threads); g++)
        dequantize_group(j->m, j->first_group + g, j->out + g * GWQ_ROWS * j->m->cols);
}

int gwq_dequantize(gwq_pool *pool, const gwq_matrix *m, int64_t first, int64_t count, float *out) {
    if (!usable(m) || !out) return GWQ_E_ARGUMENT;
    /* whole row groups, so that no copy is needed; the last one may be short */
    if (first < 0 || count < 0 || first % GWQ_ROWS || first + count > m->rows) return GWQ_E_INDEX;
    if (count % GWQ_ROWS && first + count != m->rows) return GWQ_E_INDEX;
    struct dequantize_job j = {m, first / GWQ_ROWS, gwq_groups(count), out};
    gwq_pool_run(pool, dequantize_task, &j);
    return GWQ_OK;
}

int gwq_embed(const gwq_matrix *m, const int32_t *ids, int64_t n, float *group, float *out) {
    if (!usable(m) || (n && (!ids || !out || !group)) || n < 0) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->rows) return GWQ_E_INDEX;
    for (int64_t i = 0; i < n; i++) {
        dequantize_group(m, ids[i] / GWQ_ROWS, group);
        memcpy(out + i * m->cols, group + ids[i] % GWQ_ROWS * m->cols, (size_t)m->cols * sizeof *out);
    }
    return GWQ_OK;
}

struct matmul_job {
    const gwq_matrix *const *m;
    float *const *y;
    int count;
    gwq_input in, second; /* the second's codes count for tokens that are `massive` */
    uint8_t *massive;     /* (n) */
    atomic_uint_fast64_t taken; /* pieces of matmul_task that somebody has begun */
};

static void quantize_task(void *p, int thread, int threads) {
    const struct matmul_job *j = p;
    const gwq_input *in = &j->in;
    for (int64_t t = gwq_share(in->n, thread, threads); t < gwq_share(in->n, thread + 1, threads); t++) {
        current->quantize(in->x + t * in->cols, in->cols, in->q + t * in->blocks * GWQ_BLOCK, in->scale + t * in->blocks,
                         in->bias + 8 * t * in->blocks);
        j->massive[t] = (uint8_t)gwq_second_codes(in, t, &j->second);
    }
}

static void panel_task(void *p, int thread, int threads) {
    const gwq_input *in = &((struct matmul_job *)p)->in;
    int64_t tiles = (in->cols + GWQ_TILE - 1) / GWQ_TILE, pieces = (in->n + GWQ_PANEL - 1) / GWQ_PANEL * tiles;
    for (int64_t i = gwq_share(pieces, thread, threads); i < gwq_share(pieces, thread + 1, threads); i++) {
        int64_t t = i / tiles * GWQ_PANEL, c = i % tiles * GWQ_TILE;
        int64_t count = in->n - t < GWQ_PANEL ? in->n - t : GWQ_PANEL, width = in->cols - c < GWQ_TILE ? in->cols - c : GWQ_TILE;
        float *out = in->panel + (t / GWQ_PANEL * in->cols + c) * GWQ_PANEL;
        current->panel(in->x + t * in->cols + c, in->cols, (int)count, width, (float(*)[GWQ_PANEL])out);
    }
}

/* Bytes of the first `groups` row groups, side-table included: what a thread's share is measured in. */
static uint64_t bytes_before(const gwq_matrix *m, int64_t groups) {
    return m->data_bytes * (uint64_t)groups / (uint64_t)gwq_groups(m->rows) + (m->outliers ? gwq_load_u32(m->offsets + 4 * groups) : 0);
}

/* First row group at or after byte `target` of the matrix. */
static int64_t group_at(const gwq_matrix *m, uint64_t target) {
    int64_t low = 0, high = gwq_groups(m->rows);
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (bytes_before(m, mid) < target) low = mid + 1;
        else high = mid;
    }
    return low;
}

/* The row groups from byte `from` to byte `to` of all matrices. */
static void matmul_bytes(const struct matmul_job *j, uint64_t from, uint64_t to) {
    uint64_t base = 0;
    for (int i = 0; i < j->count; i++) {
        const gwq_matrix *m = j->m[i];
        uint64_t size = bytes_before(m, gwq_groups(m->rows));
        int64_t first = from <= base ? 0 : from >= base + size ? gwq_groups(m->rows) : group_at(m, from - base);
        int64_t last = to <= base ? 0 : to >= base + size ? gwq_groups(m->rows) : group_at(m, to - base);
        if (first < last) {
            current->matmul[slot_of(m)](m, first, last, &j->in, j->y[i]);
            if (m->outliers && !gwq_types[slot_of(m)].bits) current->sparse(m, first, last, &j->in, j->y[i]);
            for (int64_t t = 0; gwq_types[slot_of(m)].bits && t < j->in.n; t++)
                if (j->massive[t]) gwq_second_product(m, slot_of(m), first, last, &j->second, t, j->y[i]);
        }
        base += size;
    }
}

/* Five eighths of a thread's share are its own; the rest is for whoever comes first, as a CPU that others use is late. A
 * result is of one row group, so it does not matter who computes it. */
enum { OWN = 5, SHARES = 8 };

static void matmul_task(void *p, int thread, int threads) {
    struct matmul_job *j = p;
    uint64_t total = 0, own, pieces = threads == 1 ? 1 : (uint64_t)threads * SHARES;
    for (int i = 0; i < j->count; i++) total += bytes_before(j->m[i], gwq_groups(j->m[i]->rows));
#define PIECE_START(i) (total / pieces * (i) + total % pieces * (i) / pieces)
    own = threads == 1 ? 1 : OWN;
    matmul_bytes(j, PIECE_START(own * (uint64_t)thread), PIECE_START(own * (uint64_t)(thread + 1)));
    for (uint64_t i; (i = atomic_fetch_add(&j->taken, 1) + own * (uint64_t)threads) < pieces;)
        matmul_bytes(j, PIECE_START(i), PIECE_START(i + 1));
#undef PIECE_START
}

static size_t round_up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Codes of n tokens with their scales and biases */
static size_t code_bytes(int64_t n, int64_t blocks) {
    return (size_t)(n * blocks) * GWQ_BLOCK + round_up(sizeof(float) * (size_t)(n * blocks)) + round_up(8 * sizeof(int16_t) * (size_t)(n * blocks));
}

/* An input without codes yet, for which there is room from `at` on */
static gwq_input input_at(uint8_t *at, const float *x, int64_t n, int64_t cols) {
    gwq_input in = {.n = n, .cols = cols, .blocks = gwq_blocks(cols), .x = x, .q = (int8_t *)at};
    in.scale = (float *)(at + n * in.blocks * GWQ_BLOCK);
    in.bias = (int16_t *)((uint8_t *)in.scale + round_up(sizeof(float) * (size_t)(n * in.blocks)));
    return in;
}

uint64_t gwq_scratch_bytes(int64_t n, int64_t cols) {
    if (n < 1 || cols < 1 || n > INT32_MAX || cols > INT32_MAX) return 0;
    size_t panels = n > GWQ_FEW ? ((size_t)n + GWQ_PANEL - 1) / GWQ_PANEL * GWQ_PANEL * (size_t)cols : 0;
    return 64 + 2 * code_bytes((int64_t)n, gwq_blocks(cols)) + round_up((size_t)n) + sizeof(float) * panels;
}

int gwq_matmul(gwq_pool *pool, const gwq_matrix *const *m, int count, const float *x, int64_t n, float *const *y,
               void *scratch, uint64_t scratch_bytes) {
    if (!m || !y || !x || count < 1 || n < 1) return GWQ_E_ARGUMENT;
    int tiles = 0, outliers = 0;
    for (int i = 0; i < count; i++) {
        outliers |= m[i] && m[i]->outliers;
        if (!usable(m[i]) || !y[i] || m[i]->cols != m[0]->cols) return GWQ_E_ARGUMENT;
        tiles |= gwq_types[slot_of(m[i])].bits;
    }
    int64_t cols = m[0]->cols, blocks = gwq_blocks(cols);
    struct matmul_job j = {.m = m, .y = y, .count = count, .in = {.n = n, .cols = cols, .blocks = blocks, .x = x}};
    if (tiles) {
        if (!scratch || scratch_bytes < gwq_scratch_bytes(n, cols)) return GWQ_E_SCRATCH;
        uint8_t *at = (uint8_t *)round_up((size_t)scratch);
        j.in = input_at(at, x, n, cols), at += code_bytes(n, blocks);
        j.second = input_at(at, x, n, cols), at += code_bytes(n, blocks);
        j.massive = at, at += round_up((size_t)n);
        if (n == 1) quantize_task(&j, 0, 1);
        else gwq_pool_run(pool, quantize_task, &j);
        j.in.panel = (float *)at;
        if (outliers && n > GWQ_FEW) gwq_pool_run(pool, panel_task, &j);
    }
    gwq_pool_run(pool, matmul_task, &j);
    return GWQ_OK;
}
