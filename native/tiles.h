/* The walk over a tile matrix that the SIMD files share: streams, prefetch, outlier records, token blocks.
 * Plain C without instruction-set code; a SIMD file hands in its inner functions, which are inlined. */
#ifndef GWQ_TILES_H
#define GWQ_TILES_H
#include <string.h>
#include "kernels.h"

#define GWQ_INLINE static inline __attribute__((always_inline))

enum {
    STREAMS = 4, /* row groups read at the same time: one core keeps more cache misses in flight */
    PIECE = 64,  /* outliers multiplied at once; most records fit (a tile has 41 at 1 %) */
    SLACK = 32,  /* bytes the inner functions may read past the last outlier of a piece */
    TOKENS = 16, /* tokens that share a decoded tile */
    FEW = 6,     /* up to here outliers are added token by token, like those of one token */
    GROUPS = 8   /* row groups that share a transposed piece of x */
};

GWQ_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Start loading `bytes` that are needed soon. May lie beyond the buffer: a prefetch never faults. */
GWQ_INLINE void fetch(const uint8_t *p, size_t ahead, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const void *)((uintptr_t)p + ahead + i), 0, 3);
}

/* Outliers of a record, from its 16 counts: bytes are added as four 16-bit sums (at most 1020 each). */
GWQ_INLINE int record_total(const uint8_t *count) {
    uint64_t a, b, mask = 0x00ff00ff00ff00ffu;
    memcpy(&a, count, 8);
    memcpy(&b, count + 8, 8);
    uint64_t pairs = (a & mask) + (a >> 8 & mask) + (b & mask) + (b >> 8 & mask);
    return (int)(pairs * 0x0001000100010001u >> 48);
}

/* A decoded block: 16 quads of columns, each 16 rows x 4 codes. */
typedef uint8_t gwq_codes[GWQ_BLOCK / 4][64];

/* What an instruction set does for a tile type. Constants, so that all of it is inlined into the walks below. */
typedef struct tile_ops {
    int bits;
    size_t ahead; /* bytes between a read and its prefetch */
    /* y[16] += dense part of one block: scales, lines, 64 activations q of scale dx; correction = zero * sum(q) */
    void (*block)(const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx, int32_t correction, float *y);
    /* product[k] = value[k] * x[column[k]] for k < count, and anything up to the next multiple of 16; x holds 256
     * floats, so any column may be looked up. Reads at most SLACK bytes beyond either array. */
    void (*multiply)(const uint8_t *value, const uint8_t *column, int count, const float *x, float *product);
    /* Add products to y[16], level by level from *level on, as far as whole levels lie within `have` products.
     * Returns how many were used. */
    int (*expand)(const uint8_t *count, int *level, const float *product, int have, float *y);
    void (*decode)(const uint8_t *line, gwq_codes codes);
    /* acc[i] += dense part of nb decoded blocks, b the first, for the tokens t+i, i < count <= TOKENS */
    void (*tokens)(const uint8_t *scale, const gwq_codes *codes, int nb, int zero, const gwq_input *in, int64_t t, int count,
                   int64_t b, float (*acc)[GWQ_ROWS]);
    /* out[c][t] = x[t * stride + c] for t < count <= TOKENS, c < width; zero for the other tokens */
    void (*transpose)(const float *x, int64_t stride, int count, int width, float (*out)[TOKENS]);
    /* out[i] = float of the FP16 value i < count */
    void (*halves)(const uint8_t *value, int count, float *out);
    /* bit r: row r has more than `level` outliers */
    unsigned (*above)(const uint8_t *count, int level);
    /* sum[t] += v * x[t] for t < count (8 or 16), and maybe up to 16 */
    void (*spread)(float v, const float *x, int count, float *sum);
} tile_ops;

/* --- one token -------------------------------------------------------------------------------------------------- */

struct stream {
    _Alignas(64) float dense[GWQ_ROWS];
    float sparse[GWQ_ROWS]; /* apart, so that the order of additions is the row group's own */
    float product[PIECE + 16];
    const uint8_t *tile, *record; /* the next ones */
    /* the record in hand: its first products are made, none is added yet */
    const uint8_t *count, *value, *column;
    const float *x;
    int total;
};

/* Products of the record in hand from entry `from` on; returns how many. */
GWQ_INLINE int fill(struct stream *s, int from, const uint8_t *end, const tile_ops *ops) {
    int n = (int)least(PIECE, s->total - from);
    const uint8_t *value = s->value + 2 * from, *column = s->column + from;
    if (__builtin_expect(end - column < n + SLACK, 0)) { /* the table's last bytes: nothing may be read beyond them */
        uint8_t v[2 * PIECE + SLACK] = {0}, c[PIECE + SLACK] = {0};
        memcpy(v, value, 2 * (size_t)n);
        memcpy(c, column, (size_t)n);
        ops->multiply(v, c, n, s->x, s->product);
    } else {
        ops->multiply(value, column, n, s->x, s->product);
    }
    return n;
}

/* Take up the next record; x[256]: the tile's activations. */
GWQ_INLINE void take(struct stream *s, const float *x, const uint8_t *end, const tile_ops *ops) {
    s->count = s->record;
    s->total = record_total(s->count);
    s->value = s->count + GWQ_ROWS;
    s->column = s->value + 2 * s->total;
    s->record = s->column + s->total;
    s->x = x;
    fetch(s->count, 1024, 256); /* a constant: one branch less to mispredict */
    fill(s, 0, end, ops);
}

/* Add the record in hand to y[16]. Its products were made a while ago, so the loads need not wait for stores. */
GWQ_INLINE void settle(struct stream *s, const uint8_t *end, const tile_ops *ops, float *y) {
    int level = 0, done = 0, have = (int)least(PIECE, s->total);
    for (;;) {
        done += ops->expand(s->count, &level, s->product, have, y);
        if (__builtin_expect(done >= s->total, 1)) break;
        have = fill(s, done, end, ops);
    }
    s->total = 0;
}

GWQ_INLINE void tile_gemv(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    const int bits = ops->bits;
    const size_t bytes = gwq_block_bytes(bits), ahead = ops->ahead;
    /* Prefetches must come at an even rate or memory idles: with outliers, three in eight are left for their turn. */
    const size_t early = m->outliers ? bytes * 5 / 8 / 64 * 64 : bytes;
    const uint8_t *end = m->outliers + m->outlier_bytes;
    struct stream s[STREAMS];
    float edge[GWQ_TILE] = {0}; /* x of the last, narrower tile */
    if (m->outliers) memcpy(edge, in->x + in->cols / GWQ_TILE * GWQ_TILE, (size_t)(in->cols % GWQ_TILE) * sizeof *edge);
    memset(s, 0, sizeof s);
    while (first < last) {
        int streams = (int)least(STREAMS, last - first);
        int64_t each = (last - first) / streams; /* consecutive groups per stream: data and records just go on */
        for (int i = 0; i < streams; i++) {
            s[i].tile = gwq_group(m, bits, first + i * each);
            s[i].record = gwq_records(m, first + i * each);
        }
        for (int64_t g = first; g < first + each; g++) {
            for (int i = 0; i < streams; i++) {
                memset(s[i].dense, 0, sizeof s[i].dense);
                memset(s[i].sparse, 0, sizeof s[i].sparse);
            }
            for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
                int nb = (int)least(GWQ_TILE_BLOCKS, in->blocks - b);
                const float *x = in->cols - b * GWQ_BLOCK < GWQ_TILE ? edge : in->x + b * GWQ_BLOCK;
                for (int k = 0; k < nb; k++) {
                    float dx = in->scale[b + k];
                    int32_t correction = in->sum[b + k] * (1 << (bits - 1));
                    size_t at = 32 * nb + k * (bytes - 32); /* the block's lines within the tile */
                    for (int i = 0; i < streams; i++) {
                        fetch(s[i].tile + at, ahead, early);
                        ops->block(s[i].tile + 32 * k, s[i].tile + at, in->q + (b + k) * GWQ_BLOCK, dx, correction, s[i].dense);
                    }
                    if (!m->outliers) continue;
                    int upto = k + 1 < nb ? (int)least(k + 1, streams) : streams;
                    for (int i = k; i < upto; i++) { /* a record after each block; the last block takes what is left */
                        if (b) settle(&s[i], end, ops, s[i].sparse);
                        for (int j = 0; j < streams; j += 2) fetch(s[j].tile + at + early, ahead, bytes - early);
                        take(&s[i], x, end, ops);
                    }
                    for (int j = 1; j < streams; j += 2) fetch(s[j].tile + at + early, ahead, bytes - early);
                }
                for (int i = 0; i < streams; i++) s[i].tile += nb * bytes;
            }
            for (int i = 0; i < streams; i++) {
                if (m->outliers) settle(&s[i], end, ops, s[i].sparse);
                int64_t row = (g + i * each) * GWQ_ROWS;
                for (int r = 0; r < least(GWQ_ROWS, m->rows - row); r++) y[row + r] = s[i].dense[r] + s[i].sparse[r];
            }
        }
        first += streams * each;
    }
}

/* --- several tokens --------------------------------------------------------------------------------------------- */

/* sum[r][t] += value * x[column][t] over a record, for t < count (constant); returns the next record. */
GWQ_INLINE const uint8_t *record_tokens(const uint8_t *record, const float (*x)[TOKENS], const int count, const tile_ops *ops,
                                        float (*sum)[TOKENS]) {
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

GWQ_INLINE void tile_gemm(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    const size_t bytes = gwq_block_bytes(ops->bits);
    const uint8_t *end = m->outliers + m->outlier_bytes;
    _Alignas(64) float dense[GROUPS][TOKENS][GWQ_ROWS], sparse[GROUPS][16][16]; /* [token][row] for a few tokens, */
    _Alignas(64) float x[GWQ_TILE * TOKENS]; /* [token][column] likewise; for more [row][token], [column][token] */
    _Alignas(64) gwq_codes codes[GWQ_TILE_BLOCKS];
    struct stream s[FEW];
    memset(x, 0, sizeof x);
    for (int64_t g = first; g < last; g += GROUPS)
        for (int64_t t = 0; t < in->n; t += TOKENS) {
            int groups = (int)least(GROUPS, last - g), count = (int)least(TOKENS, in->n - t), few = count <= FEW;
            const uint8_t *record[GROUPS];
            for (int i = 0; i < groups; i++) record[i] = gwq_records(m, g + i);
            memset(dense, 0, sizeof dense);
            memset(sparse, 0, sizeof sparse);
            for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
                int nb = (int)least(GWQ_TILE_BLOCKS, in->blocks - b), width = (int)least(GWQ_TILE, in->cols - b * GWQ_BLOCK);
                const float *from = in->x + t * in->cols + b * GWQ_BLOCK;
                if (m->outliers && !few) ops->transpose(from, in->cols, count, width, (float(*)[TOKENS])x);
                for (int j = 0; m->outliers && few && j < count; j++)
                    memcpy(x + j * GWQ_TILE, from + j * in->cols, (size_t)width * sizeof *x);
                for (int i = 0; i < groups; i++) {
                    const uint8_t *tile = gwq_group(m, ops->bits, g + i) + b * bytes;
                    fetch(tile, nb * bytes, nb * bytes); /* the group's next tile, wanted after the other groups' */
                    for (int k = 0; k < nb; k++) ops->decode(tile + 32 * nb + k * (bytes - 32), codes[k]);
                    ops->tokens(tile, codes, nb, 1 << (ops->bits - 1), in, t, count, b, dense[i]);
                    if (!m->outliers) continue;
                    if (few) {
                        for (int j = 0; j < count; j++) {
                            s[j].record = record[i];
                            take(&s[j], x + j * GWQ_TILE, end, ops);
                        }
                        for (int j = 0; j < count; j++) settle(&s[j], end, ops, sparse[i][j]);
                        record[i] = s[0].record;
                    } else if (count <= 8) {
                        record[i] = record_tokens(record[i], (const float(*)[TOKENS])x, 8, ops, sparse[i]);
                    } else {
                        record[i] = record_tokens(record[i], (const float(*)[TOKENS])x, TOKENS, ops, sparse[i]);
                    }
                }
            }
            for (int i = 0; i < groups; i++)
                for (int j = 0; j < count; j++)
                    for (int r = 0; r < least(GWQ_ROWS, m->rows - (g + i) * GWQ_ROWS); r++)
                        y[(t + j) * m->rows + (g + i) * GWQ_ROWS + r] = dense[i][j][r] + (few ? sparse[i][j][r] : sparse[i][r][j]);
        }
}

GWQ_INLINE void tile_matmul(const tile_ops *ops, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    if (in->n == 1) tile_gemv(ops, m, first, last, in, y);
    else tile_gemm(ops, m, first, last, in, y);
}

/* --- what avx512.c takes from avx2.c ---------------------------------------------------------------------------- */

void gwq_avx2_transpose(const float *x, int64_t stride, int count, int width, float (*out)[TOKENS]);
void gwq_avx2_halves(const uint8_t *value, int count, float *out);
#endif
