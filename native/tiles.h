/* The walk over a tile matrix that the SIMD files share: streams, prefetch, outlier records, token blocks.
 * Plain C without instruction-set code; a SIMD file hands in its inner functions, which are inlined. */
#ifndef GWQ_TILES_H
#define GWQ_TILES_H
#include <string.h>
#include "kernels.h"

enum {
    STREAMS = 4, /* row groups read at the same time: one core keeps more cache misses in flight */
    PIECE = 64,  /* outliers whose values are converted at once */
    MOST = 16 * 255, /* outliers of a record */
    SLACK = 48,  /* bytes the inner functions may read past the last outlier */
    GROUPS = 8   /* row groups that share a piece of the activations while it is in the cache */
};

GWQ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Start loading `bytes` that are needed soon. May lie beyond the buffer: a prefetch never faults. By assembler on x86: gcc 12 orders
 * the code around its own __builtin_prefetch so that 4-bit AVX2 without outliers read a fifth slower on Zen 3. */
GWQ_INLINE void fetch(const uint8_t *p, size_t ahead, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        const char *at = (const char *)((uintptr_t)p + ahead + i);
#ifdef __x86_64__
        __asm__ volatile("prefetcht0 %0" : : "m"(*at));
#else
        __builtin_prefetch(at, 0, 3);
#endif
    }
}

/* Outliers of a record, from its 16 counts: bytes are added as four 16-bit sums (at most 1020 each). */
GWQ_INLINE int record_total(const uint8_t *count) {
    uint64_t a, b, mask = 0x00ff00ff00ff00ffu;
    memcpy(&a, count, 8);
    memcpy(&b, count + 8, 8);
    uint64_t pairs = (a & mask) + (a >> 8 & mask) + (b & mask) + (b >> 8 & mask);
    return (int)(pairs * 0x0001000100010001u >> 48);
}

/* A decoded block: 16 quads of columns, each 16 rows x 4 table entries, with ENTRY_BIAS; and what an instruction set
 * makes of its scales, for each 16 columns. */
typedef uint8_t gwq_entries[GWQ_BLOCK / 4][64];
typedef uint8_t gwq_scales[4][64];

/* What an instruction set does for a tile type. Constants, so that all of it is inlined into the walks below. */
typedef struct tile_ops {
    int bits;
    int streams;  /* row groups at the same time in a matrix without outliers; with them always STREAMS */
    size_t ahead; /* bytes between a read and its prefetch */
    float unit;   /* y of the dense part counts in these: row scales are multiplied in at the end of the row group */
    /* y[16] += dense part of a block: the table with ENTRY_BIAS (repeated 4 times), the block's scales and lines, 64
     * activations q, their scale and bias */
    void (*block)(const uint8_t *table, const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx, const int16_t *bias,
                  float *y);
    /* product[k] = value[k] * x[column[k]] for k < count, and anything up to the next multiple of 16; x holds 256
     * floats, so any column may be looked up. */
    void (*multiply)(const uint8_t *value, const uint8_t *column, int count, const float *x, float *product);
    /* Add the products of a record to y[16], level by level; `levels` of them at least, even if empty. */
    void (*expand)(const uint8_t *count, int levels, int total, const float *product, float *y);
    void (*decode)(const uint8_t *table, const uint8_t *line, gwq_entries entries);
    void (*scales)(const uint8_t *scale, gwq_scales scales);
    /* acc[i] += dense part of nb decoded blocks, b the first, for the tokens t+i, i < count <= GWQ_PANEL */
    void (*tokens)(const gwq_scales *scales, const gwq_entries *entries, int nb, const gwq_input *in, int64_t t, int count, int64_t b,
                   float (*acc)[GWQ_ROWS]);
    /* out[i] = float of the FP16 value i < count */
    void (*halves)(const uint8_t *value, int count, float *out);
    /* outliers of a record, from its 16 counts */
    int (*total)(const uint8_t *count);
    /* bit r: row r has more than `level` outliers */
    unsigned (*above)(const uint8_t *count, int level);
    /* sum[t] += v * x[t] for t < count, a multiple of 16 */
    void (*spread)(float v, const float *x, int count, float *sum);
} tile_ops;

/* A matrix's table as `block` and `decode` want it. */
GWQ_INLINE void biased_table(const gwq_matrix *m, uint8_t *table) {
    for (int i = 0; i < 64; i++) table[i] = (uint8_t)(gwq_table(m)[i % 16] + ENTRY_BIAS);
}

/* --- one token -------------------------------------------------------------------------------------------------- */

/* A side-table record. */
struct record {
    const uint8_t *count, *value, *column, *next;
    int total;
};

GWQ_INLINE struct record record_at(const uint8_t *p, const tile_ops *ops) {
    int total = ops->total(p);
    return (struct record){p, p + GWQ_ROWS, p + GWQ_ROWS + 2 * total, p + GWQ_ROWS + 3 * total, total};
}

/* product[k] = outlier k of the record * x[its column], and anything up to `usual` and a little more; x[256]: the
 * tile's activations. */
GWQ_INLINE void multiply(const struct record *r, int usual, const uint8_t *end, const float *x, const tile_ops *ops,
                         float *product) {
    int n = r->total > usual ? r->total : usual; /* mostly `usual`, so that the CPU predicts the loop */
    if (__builtin_expect(end - r->value < 3 * n + SLACK, 0)) { /* nothing may be read beyond the table */
        uint8_t v[2 * SLACK] = {0}, c[SLACK] = {0};
        n = r->total & ~15;
        memcpy(v, r->value + 2 * n, 2 * (size_t)(r->total - n));
        memcpy(c, r->column + n, (size_t)(r->total - n));
        ops->multiply(v, c, 16, x, product + n);
    }
    ops->multiply(r->value, r->column, n, x, product);
}

/* A row group on its way through one token. */
struct stream {
    _Alignas(64) float dense[GWQ_ROWS];
    float sparse[GWQ_ROWS]; /* apart, so that the order of additions is the row group's own */
    const uint8_t *tile;    /* the next one */
    struct record in_hand;  /* its products are made, none is added yet: the loads need not wait for stores */
    float product[MOST + 32];
};

GWQ_INLINE void settle(struct stream *s, int levels, const tile_ops *ops) {
    ops->expand(s->in_hand.count, levels, s->in_hand.total, s->product, s->sparse);
}

/* `outliers` is a constant: whether there are any. */
GWQ_INLINE void gemv(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, const int outliers,
                     float *y) {
    const size_t scales = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits), bytes = scales + lines, ahead = ops->ahead;
    /* Prefetches must come at an even rate or memory idles: with outliers, three in eight are left for their turn. */
    const size_t early = outliers ? bytes * 5 / 8 / 64 * 64 : bytes;
    const uint8_t *end = m->outliers + m->outlier_bytes;
    /* What most records have, so that loops are alike for the CPU's branch prediction. */
    const int64_t records = gwq_groups(m->rows) * ((in->cols + GWQ_TILE - 1) / GWQ_TILE);
    const int mean = (int)((int64_t)m->outlier_bytes / records - GWQ_ROWS) / 3;
    const int usual = (int)least(MOST, (mean + mean / 8 + 7) / 8 * 8), levels = mean / 8 + 2;
    struct stream s[STREAMS];
    _Alignas(64) uint8_t table[64];
    biased_table(m, table);
    float edge[GWQ_TILE] = {0}; /* x of the last, narrower tile */
    if (outliers) memcpy(edge, in->x + in->cols / GWQ_TILE * GWQ_TILE, (size_t)(in->cols % GWQ_TILE) * sizeof *edge);
    while (first < last) {
        int streams = (int)least(outliers ? STREAMS : ops->streams, last - first);
        int64_t each = (last - first) / streams; /* consecutive groups per stream: data and records just go on */
        for (int i = 0; i < streams; i++) {
            s[i].tile = gwq_group(m, ops->bits, first + i * each);
            s[i].in_hand.next = gwq_records(m, first + i * each);
            fetch(gwq_row_scales(m, first + i * each), 0, 64);
        }
        for (int64_t g = first; g < first + each; g++) {
            for (int i = 0; i < streams; i++) {
                fetch(gwq_row_scales(m, g + i * each), 64, 64);
                memset(s[i].dense, 0, sizeof s[i].dense);
                memset(s[i].sparse, 0, sizeof s[i].sparse);
            }
            for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
                int nb = (int)least(GWQ_TILE_BLOCKS, in->blocks - b);
                const float *x = in->cols - b * GWQ_BLOCK < GWQ_TILE ? edge : in->x + b * GWQ_BLOCK;
                for (int k = 0; k < nb; k++) {
                    size_t at = nb * scales + k * lines; /* the block's lines within the tile */
                    for (int i = 0; i < streams; i++) {
                        fetch(s[i].tile + at, ahead, early);
                        ops->block(table, s[i].tile + k * scales, s[i].tile + at, in->q + (b + k) * GWQ_BLOCK, in->scale[b + k],
                                   in->bias + 8 * (b + k), s[i].dense);
                    }
                    if (!outliers) continue;
                    int upto = k + 1 < nb ? (int)least(k + 1, streams) : streams;
                    for (int i = k; i < upto; i++) { /* a record after each block; the last block takes what is left */
                        if (b) settle(&s[i], levels, ops);
                        for (int j = 0; j < streams; j += 2) fetch(s[j].tile + at + early, ahead, bytes - early);
                        s[i].in_hand = record_at(s[i].in_hand.next, ops);
                        fetch(s[i].in_hand.next, 192, 192); /* constants: no loop to mispredict */
                        multiply(&s[i].in_hand, usual, end, x, ops, s[i].product);
                    }
                    for (int j = 1; j < streams; j += 2) fetch(s[j].tile + at + early, ahead, bytes - early);
                }
                for (int i = 0; i < streams; i++) s[i].tile += nb * bytes;
            }
            for (int i = 0; i < streams; i++) {
                if (outliers) settle(&s[i], levels, ops);
                int64_t row = (g + i * each) * GWQ_ROWS;
                float scale[GWQ_ROWS];
                ops->halves(gwq_row_scales(m, g + i * each), GWQ_ROWS, scale);
                for (int r = 0; r < least(GWQ_ROWS, m->rows - row); r++)
                    y[row + r] = ops->unit * scale[r] * s[i].dense[r] + s[i].sparse[r];
            }
        }
        first += streams * each;
    }
}

GWQ_INLINE void tile_gemv(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    if (m->outliers) gemv(ops, m, first, last, in, 1, y);
    else gemv(ops, m, first, last, in, 0, y);
}

/* --- several tokens --------------------------------------------------------------------------------------------- */

/* sum[r][t] += value * x[column][t] over a record, for t < count (constant); returns the next record. */
GWQ_INLINE const uint8_t *record_tokens(const uint8_t *record, const float (*x)[GWQ_PANEL], const int count, const tile_ops *ops,
                                        float (*sum)[GWQ_PANEL]) {
    float v[PIECE];
    unsigned total = (unsigned)record_total(record), k = 0;
    const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
    for (int level = 0; k < total; level++)
        for (unsigned rows = ops->above(record, level); rows; rows &= rows - 1, k++) {
            if (k % PIECE == 0) ops->halves(value + 2 * k, (int)least(PIECE, total - k), v);
            ops->spread(v[k % PIECE], x[column[k]], count, sum[__builtin_ctz(rows)]);
        }
    return column + total;
}

/* The same for up to GWQ_FEW tokens, one after another: x[token][column], sum[token][row]. */
GWQ_INLINE const uint8_t *record_few(const uint8_t *record, const uint8_t *end, const float (*x)[GWQ_TILE], int count,
                                     const tile_ops *ops, float (*sum)[GWQ_ROWS]) {
    _Alignas(64) float product[2][MOST + 32];
    struct record r = record_at(record, ops);
    for (int j = 0; j <= count; j++) { /* one token behind: the loads need not wait for stores */
        if (j < count) multiply(&r, 0, end, x[j], ops, product[j % 2]);
        if (j) ops->expand(r.count, 0, r.total, product[(j - 1) % 2], sum[j - 1]);
    }
    return r.next;
}

/* The sums of one row group and up to GWQ_PANEL tokens. */
struct sums {
    _Alignas(64) float dense[GWQ_PANEL][GWQ_ROWS];
    _Alignas(64) float few[GWQ_FEW][GWQ_ROWS];     /* outliers, up to GWQ_FEW tokens */
    _Alignas(64) float sparse[GWQ_ROWS][GWQ_PANEL]; /* outliers, more tokens */
};

/* The tokens t .. t+count-1 against the row groups first .. first+groups-1. */
GWQ_INLINE void gemm_piece(const tile_ops *ops, const gwq_matrix *m, int64_t first, int groups, const gwq_input *in, int64_t t, int count,
                           const uint8_t *table, float *y) {
    const size_t per_block = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits), bytes = per_block + lines;
    const int few = in->n <= GWQ_FEW;
    _Alignas(64) gwq_entries entries[GWQ_TILE_BLOCKS];
    _Alignas(64) gwq_scales scales[GWQ_TILE_BLOCKS];
    float x[GWQ_FEW][GWQ_TILE];
    const uint8_t *record[GROUPS];
    struct sums s[GROUPS];
    memset(s, 0, (size_t)groups * sizeof *s);
    memset(x, 0, sizeof x);
    for (int i = 0; i < groups; i++) record[i] = gwq_records(m, first + i);
    for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
        int nb = (int)least(GWQ_TILE_BLOCKS, in->blocks - b);
        int64_t column = b * GWQ_BLOCK, width = least(GWQ_TILE, in->cols - column);
        for (int j = 0; m->outliers && few && j < count; j++)
            memcpy(x[j], in->x + (t + j) * in->cols + column, (size_t)width * sizeof **x);
        const float(*panel)[GWQ_PANEL] = (const float(*)[GWQ_PANEL])(in->panel + (t / GWQ_PANEL * in->cols + column) * GWQ_PANEL);
        for (int i = 0; i < groups; i++) {
            const uint8_t *tile = gwq_group(m, ops->bits, first + i) + b * bytes;
            fetch(tile, nb * bytes, nb * bytes); /* the group's next tile, wanted after the other groups' */
            for (int k = 0; k < nb; k++) {
                ops->decode(table, tile + nb * per_block + k * lines, entries[k]);
                ops->scales(tile + k * per_block, scales[k]);
            }
            ops->tokens(scales, entries, nb, in, t, count, b, s[i].dense);
            if (!m->outliers) continue;
            if (few) record[i] = record_few(record[i], m->outliers + m->outlier_bytes, (const float(*)[GWQ_TILE])x, count, ops, s[i].few);
            else if (count <= 16) record[i] = record_tokens(record[i], panel, 16, ops, s[i].sparse);
            else if (count <= 32) record[i] = record_tokens(record[i], panel, 32, ops, s[i].sparse);
            else record[i] = record_tokens(record[i], panel, GWQ_PANEL, ops, s[i].sparse);
        }
    }
    for (int i = 0; i < groups; i++) {
        int64_t row = (first + i) * GWQ_ROWS, rows = least(GWQ_ROWS, m->rows - row);
        float scale[GWQ_ROWS];
        ops->halves(gwq_row_scales(m, first + i), GWQ_ROWS, scale);
        for (int r = 0; r < GWQ_ROWS; r++) scale[r] *= ops->unit;
        for (int j = 0; j < count; j++)
            for (int r = 0; r < rows; r++)
                y[(t + j) * m->rows + row + r] = scale[r] * s[i].dense[j][r] + (few ? s[i].few[j][r] : s[i].sparse[r][j]);
    }
}

GWQ_INLINE void tile_gemm(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    _Alignas(64) uint8_t table[64];
    biased_table(m, table);
    for (int64_t g = first; g < last; g += GROUPS)
        for (int64_t t = 0; t < in->n; t += GWQ_PANEL)
            gemm_piece(ops, m, g, (int)least(GROUPS, last - g), in, t, (int)least(GWQ_PANEL, in->n - t), table, y);
}

GWQ_INLINE void tile_matmul(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    if (in->n == 1) tile_gemv(ops, m, first, last, in, y);
    else tile_gemm(ops, m, first, last, in, y);
}

/* --- what avx512.c takes from avx2.c ---------------------------------------------------------------------------- */

void gwq_avx2_halves(const uint8_t *value, int count, float *out);
#endif
