/* Walks over the side-table of a tile matrix, record by record, for one token, a few and many.
 * Plain C, as tiles.h. */
#ifndef GWQ_OUTLIERS_H
#define GWQ_OUTLIERS_H
#include "tile_ops.h"

/* Outliers of a record, from its 16 counts: bytes are added as four 16-bit sums (at most 1020
 * each), which the multiplication adds up in its top 16 bits. */
GWQ_INLINE int record_total(const uint8_t *count) {
    const uint64_t mask = 0x00ff00ff00ff00ffu;
    uint64_t a, b;
    memcpy(&a, count, 8);
    memcpy(&b, count + 8, 8);
    uint64_t pairs = (a & mask) + (a >> 8 & mask) + (b & mask) + (b >> 8 & mask);
    return (int)(pairs * 0x0001000100010001u >> 48);
}

/* Once for a matrix and its tokens */
GWQ_INLINE void open_side_table(const gwq_matrix *m, const gwq_input *in, struct side_table *side) {
    const int64_t records = gwq_groups(m->rows) * gwq_tiles(m->cols);
    const int mean = (int)((int64_t)m->outlier_bytes / records - GWQ_ROWS) / 3;
    const int64_t whole = in->cols / GWQ_TILE * GWQ_TILE;
    side->in = in;
    side->end = m->outliers + m->outlier_bytes;
    side->total = (int)min64(MOST, (mean + mean / 8 + 7) / 8 * 8);
    side->levels = mean / 8 + 2;
    memset(side->edge, 0, sizeof side->edge);
    memcpy(side->edge, in->x + (in->n - 1) * in->cols + whole,
           (size_t)(in->cols - whole) * sizeof *in->x);
}

/* --- activations in float32 ------------------------------------------------------------------- */

/* A side-table record and where the next one begins */
struct record {
    const uint8_t *count, *value, *column, *next;
    int total;
};

GWQ_INLINE struct record record_at(const uint8_t *p, const tile_ops *ops) {
    int total = ops->total(p);
    return (struct record){
        .count = p,
        .value = p + GWQ_ROWS,
        .column = p + GWQ_ROWS + 2 * total,
        .next = p + GWQ_ROWS + 3 * total,
        .total = total,
    };
}

/* product[k] = outlier k of the record * x[its column], and anything up to the usual number and a
 * little more; x[256]: the tile's activations. With `stride` (constant) the same of four tokens,
 * product[t * stride + k]; x: of gwq_input.few. */
GWQ_INLINE void multiply(const tile_ops *ops, const struct side_table *side, const struct record *r,
                         const float *x, float *product, const int64_t stride) {
    int n = r->total > side->total ? r->total : side->total; /* mostly the latter */
    if (__builtin_expect(side->end - r->value < 3 * n + SLACK, 0)) { /* do not read beyond it */
        uint8_t v[2 * SLACK] = {0}, c[SLACK] = {0};
        n = r->total & ~15;
        memcpy(v, r->value + 2 * n, 2 * (size_t)(r->total - n));
        memcpy(c, r->column + n, (size_t)(r->total - n));
        if (stride) ops->multiply_few(v, c, 16, x, product + n, stride);
        else ops->multiply(v, c, 16, x, product + n);
    }
    if (stride) ops->multiply_few(r->value, r->column, n, x, product, stride);
    else ops->multiply(r->value, r->column, n, x, product);
}

/* x of token t and the i-th tile: 256 numbers */
GWQ_INLINE const float *tile_x(const struct side_table *side, int64_t t, int64_t i) {
    const gwq_input *in = side->in;
    const int narrow = in->cols - i * GWQ_TILE < GWQ_TILE;
    return narrow ? side->edge : in->x + t * in->cols + i * GWQ_TILE;
}

/* As tile_ops.outliers */
GWQ_INLINE const uint8_t *float_outliers(const tile_ops *ops, const struct side_table *side,
                                         const uint8_t *first, const uint8_t *next_tile,
                                         float *sum) {
    const int64_t tiles = gwq_tiles(side->in->cols);
    float product[2][MOST + 32];
    struct record r = {.next = first}, before;
    for (int64_t i = 0; i <= tiles; i++) { /* sums are a tile behind: loads wait for no store */
        before = r;
        prefetch(next_tile, i * WHILE_RECORD, WHILE_RECORD);
        if (i < tiles) {
            r = record_at(r.next, ops);
            prefetch(r.count, RECORDS_AHEAD, (size_t)(r.next - r.count));
            multiply(ops, side, &r, tile_x(side, 0, i), product[i % 2], 0);
        }
        if (i) ops->expand(before.count, side->levels, before.total, product[(i - 1) % 2], sum);
    }
    return r.next;
}

/* As tile_ops.record. Only the last token is ever alone, whose edge there is. */
GWQ_INLINE const uint8_t *float_record(const tile_ops *ops, const struct side_table *side,
                                       const uint8_t *record, int64_t i, int64_t t, const int count,
                                       float (*sum)[GWQ_ROWS]) {
    float product[4][MOST + 32];
    const struct record r = record_at(record, ops);
    const float *few = side->in->few + i * GWQ_TILE * GWQ_FEW_LANES + t;
    if (count == 1) multiply(ops, side, &r, tile_x(side, t, i), product[0], 0);
    else multiply(ops, side, &r, few, product[0], MOST + 32);
    for (int k = 0; k < count; k++)
        ops->expand(r.count, side->levels, r.total, product[k], sum[k]);
    return r.next;
}

/* --- many tokens ------------------------------------------------------------------------------ */

/* sum[r * lanes + t] += value * x[column * lanes + t] over a record, for t < lanes (constant);
 * returns the next record. */
GWQ_INLINE const uint8_t *record_tokens(const uint8_t *record, const float *x, const int lanes,
                                        const tile_ops *ops, float *sum) {
    float v[PIECE];
    unsigned total = (unsigned)record_total(record), k = 0;
    const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
    for (int level = 0; k < total; level++)
        for (unsigned rows = ops->above(record, level); rows; rows &= rows - 1, k++) {
            if (k % PIECE == 0) ops->halves(value + 2 * k, (int)min64(PIECE, total - k), v);
            ops->spread(v[k % PIECE], x + column[k] * lanes, lanes,
                        sum + __builtin_ctz(rows) * lanes);
        }
    return column + total;
}

/* sum[i] (GWQ_ROWS, lanes) = the outliers of the row group first + i, i < groups, for a panel. All
 * row groups go through some tiles before the next ones, whose columns stay in the cache meanwhile.
 * lanes: constant */
GWQ_INLINE void panel_outliers(const tile_ops *ops, const gwq_matrix *m, int64_t first, int groups,
                               const float *panel, const int lanes,
                               float (*sum)[GWQ_ROWS * GWQ_PANEL]) {
    const int64_t tiles = gwq_tiles(m->cols), some = PANEL_BYTES / (4 * GWQ_TILE * lanes);
    const uint8_t *record[PIECE_GROUPS];
    for (int i = 0; i < groups; i++) {
        record[i] = gwq_records(m, first + i);
        memset(sum[i], 0, sizeof(float) * GWQ_ROWS * (size_t)lanes);
    }
    for (int64_t b = 0; b < tiles; b += some)
        for (int i = 0; i < groups; i++)
            for (int64_t k = b; k < min64(b + some, tiles); k++)
                record[i] = record_tokens(record[i], panel + k * GWQ_TILE * lanes, lanes, ops,
                                          sum[i]);
}
#endif
