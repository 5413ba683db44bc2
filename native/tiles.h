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

/* y += dense part of one block: 16 scales, its lines, 64 activations q with scale dx, correction = zero * sum(q). */
typedef void (*block_fn)(const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx, int32_t correction, float *y);
/* product[k] = value[k] * x[column[k]] for k < count, and anything up to the next multiple of 16; x holds 256 floats, so
 * any column may be looked up. Reads at most SLACK bytes beyond either array. */
typedef void (*multiply_fn)(const uint8_t *value, const uint8_t *column, int count, const float *x, float *product);
/* Add products to y[16], level by level from *level on, as far as whole levels lie within `have` products.
 * Returns how many were used. */
typedef int (*expand_fn)(const uint8_t *count, int *level, const float *product, int have, float *y);

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
GWQ_INLINE int fill(struct stream *s, int from, const uint8_t *end, multiply_fn multiply) {
    int n = (int)least(PIECE, s->total - from);
    const uint8_t *value = s->value + 2 * from, *column = s->column + from;
    if (__builtin_expect(end - column < n + SLACK, 0)) { /* the table's last bytes: nothing may be read beyond them */
        uint8_t v[2 * PIECE + SLACK] = {0}, c[PIECE + SLACK] = {0};
        memcpy(v, value, 2 * (size_t)n);
        memcpy(c, column, (size_t)n);
        multiply(v, c, n, s->x, s->product);
    } else {
        multiply(value, column, n, s->x, s->product);
    }
    return n;
}

/* Take up the next record; x[256]: the tile's activations. */
GWQ_INLINE void take(struct stream *s, const float *x, const uint8_t *end, multiply_fn multiply) {
    s->count = s->record;
    s->total = record_total(s->count);
    s->value = s->count + GWQ_ROWS;
    s->column = s->value + 2 * s->total;
    s->record = s->column + s->total;
    s->x = x;
    fetch(s->count, 1024, 256); /* a constant: one branch less to mispredict */
    fill(s, 0, end, multiply);
}

/* Add the record in hand to the rows. Its products were made a while ago, so the loads need not wait for stores. */
GWQ_INLINE void settle(struct stream *s, const uint8_t *end, multiply_fn multiply, expand_fn expand) {
    int level = 0, done = 0, have = (int)least(PIECE, s->total);
    for (;;) {
        done += expand(s->count, &level, s->product, have, s->sparse);
        if (__builtin_expect(done >= s->total, 1)) break;
        have = fill(s, done, end, multiply);
    }
    s->total = 0;
}

GWQ_INLINE void tile_gemv(int bits, size_t ahead, block_fn block, multiply_fn multiply, expand_fn expand, const gwq_matrix *m,
                          int64_t first, int64_t last, const gwq_input *in, float *y) {
    const size_t bytes = gwq_block_bytes(bits);
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
                    for (int i = 0; i < streams; i++) {
                        const uint8_t *line = s[i].tile + 32 * nb + k * (bytes - 32);
                        fetch(line, ahead, bytes);
                        block(s[i].tile + 32 * k, line, in->q + (b + k) * GWQ_BLOCK, dx, correction, s[i].dense);
                    }
                    if (!m->outliers) continue;
                    int upto = k + 1 < nb ? (int)least(k + 1, streams) : streams;
                    for (int i = k; i < upto; i++) { /* a record after each block */
                        if (b) settle(&s[i], end, multiply, expand);
                        take(&s[i], x, end, multiply);
                    }
                }
                for (int i = 0; i < streams; i++) s[i].tile += nb * bytes;
            }
            for (int i = 0; i < streams; i++) {
                if (m->outliers) settle(&s[i], end, multiply, expand);
                int64_t row = (g + i * each) * GWQ_ROWS;
                for (int r = 0; r < least(GWQ_ROWS, m->rows - row); r++) y[row + r] = s[i].dense[r] + s[i].sparse[r];
            }
        }
        first += streams * each;
    }
}

/* --- several tokens --------------------------------------------------------------------------------------------- */

/* A decoded block: 16 quads of columns, each 16 rows x 4 codes. */
typedef uint8_t gwq_codes[GWQ_BLOCK / 4][64];
typedef void (*decode_fn)(const uint8_t *line, gwq_codes codes);
/* acc[i][16] += dense part of `nb` blocks for tokens t+i, i < count <= TOKENS; scale[nb][16] FP16, block b on. */
typedef void (*tokens_fn)(const uint8_t *scale, const gwq_codes *codes, int nb, int zero, const gwq_input *in, int64_t t,
                          int count, int64_t b, float (*acc)[GWQ_ROWS]);
/* out[c][t] = x[t * stride + c] for t < count <= TOKENS, c < width; zero for the other tokens. */
typedef void (*transpose_fn)(const float *x, int64_t stride, int count, int width, float (*out)[TOKENS]);
/* out[i] = float of the FP16 value i < count */
typedef void (*halves_fn)(const uint8_t *value, int count, float *out);
/* Bit r: row r has more than `level` outliers. */
typedef unsigned (*above_fn)(const uint8_t *count, int level);

/* sum[r][t] += value * x[column][t] over a record; returns the next one. */
GWQ_INLINE const uint8_t *record_tokens(const uint8_t *record, const float (*x)[TOKENS], halves_fn halves, above_fn above,
                                        float (*sum)[TOKENS]) {
    float v[PIECE];
    int total = record_total(record), k = 0;
    const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
    for (int level = 0; k < total; level++)
        for (unsigned rows = above(record, level); rows; rows &= rows - 1, k++) {
            if (k % PIECE == 0) halves(value + 2 * k, (int)least(PIECE, total - k), v);
            float w = v[k % PIECE], *to = sum[__builtin_ctz(rows)];
            const float *from = x[column[k]];
            for (int t = 0; t < TOKENS; t++) to[t] += w * from[t];
        }
    return column + total;
}

GWQ_INLINE void tile_gemm(int bits, decode_fn decode, tokens_fn tokens, transpose_fn transpose, halves_fn halves, above_fn above,
                          const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    const size_t bytes = gwq_block_bytes(bits);
    _Alignas(64) float dense[GROUPS][TOKENS][GWQ_ROWS], sparse[GROUPS][GWQ_ROWS][TOKENS], x[GWQ_TILE][TOKENS];
    _Alignas(64) gwq_codes codes[GWQ_TILE_BLOCKS];
    for (int64_t g = first; g < last; g += GROUPS)
        for (int64_t t = 0; t < in->n; t += TOKENS) {
            int groups = (int)least(GROUPS, last - g), count = (int)least(TOKENS, in->n - t);
            const uint8_t *record[GROUPS];
            for (int i = 0; i < groups; i++) record[i] = gwq_records(m, g + i);
            memset(dense, 0, sizeof dense);
            memset(sparse, 0, sizeof sparse);
            for (int64_t b = 0; b < in->blocks; b += GWQ_TILE_BLOCKS) {
                int nb = (int)least(GWQ_TILE_BLOCKS, in->blocks - b), width = (int)least(GWQ_TILE, in->cols - b * GWQ_BLOCK);
                if (m->outliers) transpose(in->x + t * in->cols + b * GWQ_BLOCK, in->cols, count, width, x);
                for (int i = 0; i < groups; i++) {
                    const uint8_t *tile = gwq_group(m, bits, g + i) + b * bytes;
                    fetch(tile, nb * bytes, nb * bytes); /* the group's next tile, wanted after the other groups' */
                    for (int k = 0; k < nb; k++) decode(tile + 32 * nb + k * (bytes - 32), codes[k]);
                    tokens(tile, codes, nb, 1 << (bits - 1), in, t, count, b, dense[i]);
                    if (record[i]) record[i] = record_tokens(record[i], x, halves, above, sparse[i]);
                }
            }
            for (int i = 0; i < groups; i++)
                for (int j = 0; j < count; j++)
                    for (int r = 0; r < least(GWQ_ROWS, m->rows - (g + i) * GWQ_ROWS); r++)
                        y[(t + j) * m->rows + (g + i) * GWQ_ROWS + r] = dense[i][j][r] + sparse[i][r][j];
        }
}

/* --- what avx512.c takes from avx2.c ---------------------------------------------------------------------------- */

void gwq_avx2_transpose(const float *x, int64_t stride, int count, int width, float (*out)[TOKENS]);
void gwq_avx2_halves(const uint8_t *value, int count, float *out);
#endif
