/* The walk over a tile matrix that the SIMD files share: streams, prefetch, outlier records, blocks
 * of tokens. Plain C without instruction-set code; a SIMD file hands in its inner functions, which
 * are inlined. */
#ifndef GWQ_TILES_H
#define GWQ_TILES_H
#include "outliers.h"

/* tile_ops.tables of those that look up one table only */
GWQ_INLINE void repeated_table(const int8_t *entry, uint8_t *table) {
    for (int i = 0; i < 64; i++) table[i] = (uint8_t)(entry[i % 16] + ENTRY_BIAS);
}

/* --- one token -------------------------------------------------------------------------------- */

/* A row group on its way through one token */
struct stream {
    _Alignas(64) float dense[GWQ_ROWS];
    const uint8_t *tile;   /* the next one */
    const uint8_t *record; /* the next one of the side-table */
};

/* The dense part of a tile of nb blocks for one token: what streams read at the same time. b: its
 * first block. */
GWQ_INLINE void gemv_tile(const tile_ops *ops, const gwq_matrix *m, const gwq_input *in, int64_t b,
                          int streams, const uint8_t *table, struct stream *s) {
    const int nb = (int)min64(GWQ_TILE_BLOCKS, in->blocks - b);
    const size_t scales = gwq_scale_bytes(ops->bits);
    const size_t lines = gwq_line_bytes(ops->bits);
    const size_t bytes = scales + lines;
    const uint8_t *tile[STREAMS];
    uint8_t copy[STREAMS][GWQ_TILE_BYTES];
    for (int i = 0; i < streams; i++)
        tile[i] = gwq_whole_tile(m, ops->bits, s[i].tile, b, copy[i]);
    for (int k = 0; k < nb; k++) {
        const size_t at = nb * scales + k * lines; /* the block's lines within the tile */
        for (int i = 0; i < streams; i++) {
            if (ops->ahead) prefetch(s[i].tile + at, ops->ahead, bytes);
            if (ops->pages) prefetch(s[i].tile + at, ops->pages, 1);
            ops->block(table, tile[i] + k * scales, tile[i] + at, in->q + (b + k) * GWQ_BLOCK,
                       in->scale[b + k], in->bias + 8 * (b + k), s[i].dense);
        }
    }
    for (int i = 0; i < streams; i++) s[i].tile += nb * bytes;
}

/* y = the row groups first .. last-1 times the one token of `in`. Up to STREAMS row groups, each
 * far from the other, are read at the same time; the outliers of each follow its tiles: among them
 * they are slower on a busy core. */
GWQ_INLINE void tile_gemv(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last,
                          const gwq_input *in, float *y) {
    const float power = gwq_power(m);
    const size_t missing = gwq_missing_bytes(ops->bits, m->cols);
    struct stream s[STREAMS];
    struct side_table side;
    _Alignas(64) uint8_t table[64 * TABLES];
    ops->tables(gwq_table(m), table);
    if (m->outliers) open_side_table(m, in, &side);
    while (first < last) {
        int streams = (int)min64(ops->streams, last - first);
        int64_t each = (last - first) / streams; /* consecutive: data and records just go on */
        for (int i = 0; i < streams; i++) {
            s[i].tile = gwq_group(m, ops->bits, first + i * each);
            if (m->outliers) s[i].record = gwq_records(m, first + i * each);
            prefetch(gwq_row_scales(m, first + i * each), 0, 64);
        }
        for (int64_t g = first; g < first + each; g++) {
            for (int i = 0; i < streams; i++) {
                prefetch(gwq_row_scales(m, g + i * each), 64, 64);
                memset(s[i].dense, 0, sizeof s[i].dense);
            }
            for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS)
                gemv_tile(ops, m, in, b, streams, table, s);
            for (int i = 0; i < streams; i++) {
                _Alignas(64) float sparse[GWQ_ROWS] = {0};
                s[i].tile -= missing;
                if (m->outliers)
                    s[i].record = ops->outliers(ops, &side, s[i].record, s[i].tile + ops->ahead,
                                                sparse);
                int64_t row = (g + i * each) * GWQ_ROWS;
                float scale[GWQ_ROWS];
                ops->halves(gwq_row_scales(m, g + i * each), GWQ_ROWS, scale);
                for (int r = 0; r < min64(GWQ_ROWS, m->rows - row); r++)
                    y[row + r] = power * (ops->unit * scale[r] * s[i].dense[r] + sparse[r]);
            }
        }
        first += streams * each;
    }
}

/* --- a few tokens ----------------------------------------------------------------------------- */

/* y = one row group times `count` (constant: 1, 2 or 4) tokens from t on, of each what one token
 * gives, to the bit */
GWQ_INLINE void few_tokens_group(const tile_ops *ops, const gwq_matrix *m, int64_t group,
                                 const gwq_input *in, const struct side_table *side, int64_t t,
                                 const int count, const uint8_t *table, float *y) {
    const size_t scales = gwq_scale_bytes(ops->bits);
    const size_t lines = gwq_line_bytes(ops->bits);
    const uint8_t *tile = gwq_group(m, ops->bits, group);
    const uint8_t *record = gwq_records(m, group);
    const float power = gwq_power(m);
    uint8_t copy[GWQ_TILE_BYTES];
    _Alignas(64) float dense[4][GWQ_ROWS], sparse[4][GWQ_ROWS];
    memset(dense, 0, sizeof dense);
    memset(sparse, 0, sizeof sparse);
    for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
        const int nb = (int)min64(GWQ_TILE_BLOCKS, in->blocks - b);
        const uint8_t *whole = gwq_whole_tile(m, ops->bits, tile, b, copy);
        for (int k = 0; k < nb; k++) {
            const uint8_t *scale = whole + k * scales, *line = whole + nb * scales + k * lines;
            const int64_t at = t * in->blocks + b + k;
            if (!t) prefetch(tile + nb * scales + k * lines, ops->ahead, scales + lines);
            if (count == 4) ops->four(table, scale, line, in, at, dense);
            if (count == 2) ops->two(table, scale, line, in, at, dense);
            if (count == 1)
                ops->block(table, scale, line, in->q + at * GWQ_BLOCK, in->scale[at],
                           in->bias + 8 * at, dense[0]);
        }
        tile += nb * (scales + lines);
        if (m->outliers)
            record = ops->record(ops, side, record, b / GWQ_TILE_BLOCKS, t, count, sparse);
    }
    const int64_t row = group * GWQ_ROWS;
    float scale[GWQ_ROWS];
    ops->halves(gwq_row_scales(m, group), GWQ_ROWS, scale);
    for (int i = 0; i < count; i++) {
        float *to = y + (t + i) * m->rows + row;
        for (int k = 0; k < min64(GWQ_ROWS, m->rows - row); k++) {
            to[k] = power * (ops->unit * scale[k] * dense[i][k] + sparse[i][k]);
        }
    }
}

/* y = the row groups first .. last-1 times up to GWQ_FEW tokens: some row groups for four of them,
 * for two, for one, while they are in the cache. */
GWQ_INLINE void tile_few(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last,
                         const gwq_input *in, float *y) {
    _Alignas(64) uint8_t table[64 * TABLES];
    struct side_table side;
    ops->tables(gwq_table(m), table);
    if (m->outliers) open_side_table(m, in, &side);
    for (int64_t piece = first; piece < last; piece += GROUPS) {
        const int64_t end = min64(piece + GROUPS, last);
        int64_t t = 0;
        for (; t + 4 <= in->n; t += 4)
            for (int64_t g = piece; g < end; g++)
                few_tokens_group(ops, m, g, in, &side, t, 4, table, y);
        for (; t + 2 <= in->n; t += 2)
            for (int64_t g = piece; g < end; g++)
                few_tokens_group(ops, m, g, in, &side, t, 2, table, y);
        for (int64_t g = piece; t < in->n && g < end; g++)
            few_tokens_group(ops, m, g, in, &side, t, 1, table, y);
    }
}

/* --- many tokens ------------------------------------------------------------------------------ */

GWQ_INLINE void finish_rows(float power, const float *restrict scale, const float *restrict dense,
                            const float *restrict sparse, float *restrict out) {
    for (int r = 0; r < GWQ_ROWS; r++) out[r] = power * (scale[r] * dense[r] + sparse[r]);
}

/* y of the tokens t .. t+count-1 and the row groups first .. first+groups-1, whose sums these are:
 * token by token, because rows of y may be so far apart that all lie in the same set of the cache.
 * sparse: the outliers' sums, by gwq_panel_lanes(count), or NULL */
GWQ_INLINE void finish_sums(const tile_ops *ops, const gwq_matrix *m, int64_t first, int groups,
                            const struct sums *s, const float (*sparse)[GWQ_ROWS * GWQ_PANEL],
                            int64_t t, int count, float *y) {
    static const float none[GWQ_PANEL][GWQ_ROWS];
    _Alignas(64) float turned[TOGETHER][GWQ_PANEL][GWQ_ROWS], scale[TOGETHER][GWQ_ROWS];
    const int64_t row = first * GWQ_ROWS;
    const float power = gwq_power(m);
    for (int i = 0; i < groups; i++) {
        if (sparse)
            ops->panel(sparse[i], gwq_panel_lanes(count), GWQ_ROWS, (count + 7) / 8 * 8, GWQ_ROWS,
                       turned[i][0]);
        ops->halves(gwq_row_scales(m, first + i), GWQ_ROWS, scale[i]);
        for (int r = 0; r < GWQ_ROWS; r++) scale[i][r] *= ops->unit;
    }
    for (int j = 0; j < count; j++)
        for (int i = 0; i < groups; i++) {
            const float *outliers = sparse ? turned[i][j] : none[j];
            float *to = y + (t + j) * m->rows + row + i * GWQ_ROWS;
            const int64_t rows = m->rows - row - i * GWQ_ROWS;
            if (rows >= GWQ_ROWS) {
                finish_rows(power, scale[i], s[i].dense[j], outliers, to);
            } else {
                float out[GWQ_ROWS];
                finish_rows(power, scale[i], s[i].dense[j], outliers, out);
                memcpy(to, out, (size_t)rows * sizeof *out);
            }
        }
}

/* The tokens t .. t+count-1, of a panel, against the row groups first .. first+groups-1, with what
 * outliers add */
GWQ_INLINE void gemm_piece(const tile_ops *ops, const gwq_matrix *m, int64_t first, int groups,
                           const gwq_input *in, int64_t t, int count, const uint8_t *table,
                           const float (*sparse)[GWQ_ROWS * GWQ_PANEL], float *y) {
    const size_t per_block = gwq_scale_bytes(ops->bits);
    const size_t lines = gwq_line_bytes(ops->bits);
    const size_t bytes = per_block + lines;
    uint8_t copy[GWQ_TILE_BYTES];
    struct decoded decoded[TOGETHER];
    struct sums s[TOGETHER];
    for (int i = 0; i < groups; i++) memset(s[i].dense, 0, sizeof s[i].dense);
    for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
        int nb = (int)min64(GWQ_TILE_BLOCKS, in->blocks - b);
        for (int i = 0; i < groups; i++) {
            const uint8_t *tile = gwq_group(m, ops->bits, first + i) + b * bytes;
            prefetch(tile, nb * bytes, nb * bytes); /* the group's next tile */
            tile = gwq_whole_tile(m, ops->bits, tile, b, copy);
            for (int k = 0; k < nb; k++) {
                ops->decode(table, tile + nb * per_block + k * lines, decoded[i].entries[k]);
                ops->scales(tile + k * per_block, decoded[i].scales[k]);
            }
        }
        for (int i = 0; i < groups; i += ops->groups)
            ops->tokens(decoded + i, (int)min64(ops->groups, groups - i), nb, in, t, count, b,
                        s + i);
    }
    finish_sums(ops, m, first, groups, s, sparse, t, count, y);
}

/* sum[i] = the outliers of the row group first + i, i < groups, for the tokens t .. t+count-1 */
GWQ_INLINE void piece_outliers(const tile_ops *ops, const gwq_matrix *m, int64_t first, int groups,
                               const gwq_input *in, int64_t t, int count,
                               float (*sum)[GWQ_ROWS * GWQ_PANEL]) {
    const float *panel = in->panel + t * in->cols;
    const int lanes = gwq_panel_lanes(count);
    if (lanes == 8) panel_outliers(ops, m, first, groups, panel, 8, sum);
    else if (lanes == 16) panel_outliers(ops, m, first, groups, panel, 16, sum);
    else if (lanes == 32) panel_outliers(ops, m, first, groups, panel, 32, sum);
    else panel_outliers(ops, m, first, groups, panel, GWQ_PANEL, sum);
}

GWQ_INLINE void tile_gemm(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last,
                          const gwq_input *in, float *y) {
    _Alignas(64) uint8_t table[64 * TABLES];
    _Alignas(64) float sparse[PIECE_GROUPS][GWQ_ROWS * GWQ_PANEL];
    ops->tables(gwq_table(m), table);
    for (int64_t piece = first; piece < last; piece += PIECE_GROUPS) {
        const int64_t end = min64(piece + PIECE_GROUPS, last);
        for (int64_t t = 0; t < in->n; t += GWQ_PANEL) {
            const int count = (int)min64(GWQ_PANEL, in->n - t);
            if (m->outliers)
                piece_outliers(ops, m, piece, (int)(end - piece), in, t, count, sparse);
            for (int64_t g = piece; g < end; g += TOGETHER)
                gemm_piece(ops, m, g, (int)min64(TOGETHER, end - g), in, t, count, table,
                           m->outliers ? sparse + (g - piece) : NULL, y);
        }
    }
}

GWQ_INLINE void tile_matmul(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last,
                            const gwq_input *in, float *y) {
    if (in->n == 1) tile_gemv(ops, m, first, last, in, y);
    else if (in->n <= GWQ_FEW) tile_few(ops, m, first, last, in, y);
    else tile_gemm(ops, m, first, last, in, y);
}

/* --- what a SIMD file makes of it, for the codes of N bits ------------------------------------ */

/* Members of its tile_ops that go by their names */
#define TILE_OPS(N)               \
    .bits = N,                    \
    .block = block##N,            \
    .two = two##N,                \
    .four = four##N,              \
    .decode = decode##N,          \
    .scales = decode_scales##N,   \
    .total = total,               \
    .above = above,               \
    .spread = spread,
#define TILE_MATMUL(N)                                                         \
    static void matmul_gwq##N(const gwq_matrix *m, int64_t first, int64_t last, \
                              const gwq_input *in, float *y) {                 \
        tile_matmul(&ops##N, m, first, last, in, y);                           \
    }
/* A slot of the row: slot_gwq2, ... */
#define TILE_TYPES(slot)          \
    [GWQ_K_GWQ2] = slot##_gwq2,   \
    [GWQ_K_GWQ3] = slot##_gwq3,   \
    [GWQ_K_GWQ4] = slot##_gwq4,   \
    [GWQ_K_GWQ5] = slot##_gwq5,   \
    [GWQ_K_GWQ6] = slot##_gwq6
#endif
