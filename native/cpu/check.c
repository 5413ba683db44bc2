/* Matrices: the table of their types, their sizes, and the check of what a file says. No kernel is
 * called, so that the library of another device has the same check. */
#include "matrix.h"
#include <string.h>

#define TILE_ROW(bits) \
    {GWQ_TYPE_GWQ##bits, bits, GWQ_BLOCK, sizeof(struct gwq##bits##_tile) / GWQ_TILE_BLOCKS}

const gwq_type_row gwq_types[GWQ_K_COUNT] = {
    [GWQ_K_F32] = {GWQ_TYPE_F32, 0, 1, 4},
    [GWQ_K_F16] = {GWQ_TYPE_F16, 0, 1, 2},
    [GWQ_K_BF16] = {GWQ_TYPE_BF16, 0, 1, 2},
    [GWQ_K_Q8_0] = {GWQ_TYPE_Q8_0, 0, 32, sizeof(struct q8_0_block)},
    [GWQ_K_GWQ2] = TILE_ROW(2),
    [GWQ_K_GWQ3] = TILE_ROW(3),
    [GWQ_K_GWQ4] = TILE_ROW(4),
    [GWQ_K_GWQ5] = TILE_ROW(5),
    [GWQ_K_GWQ6] = TILE_ROW(6),
    [GWQ_K_Q4_0] = {GWQ_TYPE_Q4_0, 0, 32, sizeof(struct q4_block)},
    [GWQ_K_IQ4_NL] = {GWQ_TYPE_IQ4_NL, 0, 32, sizeof(struct q4_block)},
};

_Static_assert(sizeof(struct q8_0_block) == 34, "packed");
_Static_assert(sizeof(struct q4_block) == 18, "packed");
_Static_assert(sizeof(struct gwq_head) == 32, "packed");
_Static_assert(sizeof(struct gwq6_tile) == 4 * (48 + 6 * 128), "as gwq_block_bytes says");
_Static_assert(sizeof(struct gwq5_tile) == 4 * (48 + 5 * 128), "as gwq_block_bytes says");
_Static_assert(sizeof(struct gwq4_tile) == 4 * (48 + 4 * 128), "as gwq_block_bytes says");
_Static_assert(sizeof(struct gwq3_tile) == 4 * (24 + 3 * 128), "as gwq_block_bytes says");
_Static_assert(sizeof(struct gwq2_tile) == 4 * (24 + 2 * 128), "as gwq_block_bytes says");

int gwq_type_index(int32_t id) {
    for (int i = 0; i < GWQ_K_COUNT; i++)
        if (gwq_types[i].id == id) return i;
    return -1;
}

uint64_t gwq_matrix_bytes(int32_t type, int64_t rows, int64_t cols) {
    int k = gwq_type_index(type);
    if (k < 0 || rows < 1 || cols < 1 || rows > INT32_MAX || cols > INT32_MAX) return 0;
    const gwq_type_row *row = &gwq_types[k];
    if (!row->bits && cols % row->unit) return 0;
    if (row->bits) {
        uint64_t groups = (uint64_t)gwq_groups(rows);
        uint64_t bytes = gwq_group_bytes(row->bits, cols);
        if (groups > UINT64_MAX / 2 / bytes) return 0;
        return groups * bytes + gwq_head_bytes(rows);
    }
    uint64_t units = (uint64_t)((cols + row->unit - 1) / row->unit);
    if ((uint64_t)rows > UINT64_MAX / 1024 / units) return 0;
    return (uint64_t)rows * units * (uint64_t)row->unit_bytes;
}

int gwq_usable(const gwq_matrix *m) {
    return m && m->data && gwq_type_index(m->type) >= 0 &&
           m->data_bytes == gwq_matrix_bytes(m->type, m->rows, m->cols);
}

/* --- what a file says ------------------------------------------------------------------------- */

/* One record: it lies within the table, its rows and columns within the matrix, and the columns of
 * a row ascend. Moves *at behind it. */
static int check_record(const gwq_matrix *m, int64_t group, int64_t tile, const uint8_t **at,
                        const uint8_t *end) {
    const uint8_t *record = *at;
    if (end - record < GWQ_ROWS) return GWQ_E_RECORD;
    int64_t rows = m->rows - group * GWQ_ROWS;
    int64_t width = m->cols - tile * GWQ_TILE;
    int64_t total = 0;
    int last[GWQ_ROWS]; /* the last column of each row */
    for (int r = 0; r < GWQ_ROWS; r++) {
        if (r >= rows && record[r]) return GWQ_E_ROW;
        total += record[r];
        last[r] = -1;
    }
    if (end - record < GWQ_ROWS + 3 * total) return GWQ_E_RECORD;
    const uint8_t *column = record + GWQ_ROWS + 2 * total;
    uint64_t left[2]; /* outliers to come, a byte per row: 8 rows at once, to open files fast */
    memcpy(left, record, sizeof left);
    while (left[0] | left[1])
        for (int half = 0; half < 2; half++) {
            const uint64_t low = 0x7f7f7f7f7f7f7f7fu;
            uint64_t some = (((left[half] & low) + low) | left[half]) & ~low; /* top bit: not 0 */
            left[half] -= some >> 7;
            for (; some; some &= some - 1) {
                int c = *column++;
                int *before = &last[8 * half + __builtin_ctzll(some) / 8];
                if (c >= width || c <= *before) return GWQ_E_COLUMN;
                *before = c;
            }
        }
    *at = column;
    return GWQ_OK;
}

/* Offsets within the table, from 0 to its end; check_side_table sees whether the records meet
 * them */
static int check_offsets(const gwq_matrix *m, int64_t groups) {
    if (!m->offsets || m->offset_bytes != 4 * (uint64_t)(groups + 1)) return GWQ_E_OFFSETS;
    if (m->outlier_bytes > INT32_MAX) return GWQ_E_OFFSETS;
    if (gwq_load_u32(m->offsets) != 0) return GWQ_E_OFFSETS;
    if (gwq_load_u32(m->offsets + 4 * groups) != m->outlier_bytes) return GWQ_E_OFFSETS;
    for (int64_t g = 0; g < groups; g++)
        if (gwq_load_u32(m->offsets + 4 * g + 4) > m->outlier_bytes) return GWQ_E_OFFSETS;
    return GWQ_OK;
}

static int check_side_table(const gwq_matrix *m) {
    if (!m->outliers) return m->offsets || m->outlier_bytes ? GWQ_E_ARGUMENT : GWQ_OK;
    int64_t groups = gwq_groups(m->rows);
    int status = check_offsets(m, groups);
    const uint8_t *at = m->outliers;
    for (int64_t g = 0; g < groups && !status; g++) {
        if (at != gwq_records(m, g)) return GWQ_E_OFFSETS;
        const uint8_t *end = gwq_records(m, g + 1);
        for (int64_t t = 0; t < gwq_tiles(m->cols) && !status; t++)
            status = check_record(m, g, t, &at, end);
        if (!status && at != end) return GWQ_E_RECORD;
    }
    return status;
}

static int check_head(const struct gwq_head *head) {
    for (int i = 0; i < (int)sizeof head->table; i++)
        if (head->table[i] < -ENTRY_BIAS || head->table[i] >= ENTRY_BIAS) return GWQ_E_TABLE;
    if (head->exponent < -GWQ_EXPONENT || head->exponent > GWQ_EXPONENT) return GWQ_E_EXPONENT;
    return GWQ_OK;
}

int gwq_matrix_check(const gwq_matrix *m) {
    if (!m || !m->data) return GWQ_E_ARGUMENT;
    int k = gwq_type_index(m->type);
    if (k < 0) return GWQ_E_TYPE;
    uint64_t bytes = gwq_matrix_bytes(m->type, m->rows, m->cols);
    if (!bytes) return GWQ_E_SHAPE;
    if (bytes != m->data_bytes) return GWQ_E_SIZE;
    int status = gwq_types[k].bits ? check_head((const struct gwq_head *)m->data) : GWQ_OK;
    if (status) return status;
    return check_side_table(m);
}
