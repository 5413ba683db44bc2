/* What an instruction set does for a tile type: the functions that it hands to the walks of tiles.h
 * and outliers.h. */
#ifndef GWQ_TILE_OPS_H
#define GWQ_TILE_OPS_H
#include <string.h>
#include "kernels.h"

enum {
    STREAMS = 4,     /* row groups read at the same time, at most: more cache misses in flight */
    PIECE = 64,      /* outliers whose values are converted at once */
    MOST = 16 * 255, /* outliers of a record */
    SLACK = 48,      /* bytes the inner functions may read past the last outlier */
    RECORDS_AHEAD = 1536, /* bytes between a side-table record and its prefetch */
    WHILE_RECORD = 256, /* bytes that memory delivers while a side-table record is added */
    TABLES = 4,      /* of 64 bytes, at most: what windows are looked up in */
    GROUPS = 8,      /* row groups that share a few tokens while these are in the cache */
    PIECE_GROUPS = 32, /* row groups that share a panel while it is in the cache */
    PANEL_BYTES = 262144, /* of a panel, that row groups use one after the other */
    TOGETHER = 2     /* row groups decoded, and their results stored, together */
};

/* Start loading `bytes` that are needed soon. They may lie beyond the buffer: a prefetch never
 * faults. By assembler on x86: gcc 12 orders the code around its own __builtin_prefetch so that
 * 4-bit AVX2 without outliers read a fifth slower on Zen 3. */
GWQ_INLINE void prefetch(const uint8_t *p, size_t ahead, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) {
        const char *at = (const char *)((uintptr_t)p + ahead + i);
#ifdef __x86_64__
        __asm__ volatile("prefetcht0 %0" : : "m"(*at));
#else
        __builtin_prefetch(at, 0, 3);
#endif
    }
}

/* A decoded block: 16 quads of columns, each 16 rows x 4 table entries, with ENTRY_BIAS; and what
 * an instruction set makes of its scales, for each 16 columns. */
typedef uint8_t gwq_entries[GWQ_BLOCK / 4][64];
typedef uint8_t gwq_scales[4][64];

/* A decoded tile */
struct decoded {
    _Alignas(64) gwq_entries entries[GWQ_TILE_BLOCKS];
    gwq_scales scales[GWQ_TILE_BLOCKS];
};

/* The dense sums of one row group and up to GWQ_PANEL tokens */
struct sums {
    _Alignas(64) float dense[GWQ_PANEL][GWQ_ROWS];
};

/* The outliers of a matrix and up to GWQ_FEW tokens on their way */
struct side_table {
    const gwq_input *in;
    const uint8_t *end;
    /* Most records have no more outliers in all, and no row of them more than `levels`: with that
     * many, loops are alike for the CPU's branch prediction. */
    int total, levels;
    float edge[GWQ_TILE]; /* x of the last token and the last tile, if that is a narrow one */
};

/* Constants, so that all of it is inlined into the walks. */
typedef struct tile_ops {
    int bits;
    int streams;  /* row groups at the same time, at most STREAMS */
    int groups;   /* that `tokens` takes at most: up to TOGETHER */
    size_t ahead; /* bytes between a read and its prefetch, of one token 0 for none */
    /* of one token, bytes between a read and the first touch of its page, or 0: where pages have
     * 4 KB, as a file's do, the processor finds their addresses meanwhile, which may take longer
     * than memory itself */
    size_t pages;
    float unit;   /* of y's dense part; row scales are multiplied in at the end of the row group */

    /* table, TABLES * 64 bytes: a matrix's 16 entries with ENTRY_BIAS, as `block`, `two`, `four`
     * and `decode` want them */
    void (*tables)(const int8_t *entry, uint8_t *table);
    /* y[16] += dense part of a block: the matrix's tables, the block's scales and lines, 64
     * activations q, their scale dx and their bias */
    void (*block)(const uint8_t *table, const uint8_t *scale, const uint8_t *line, const int8_t *q,
                  float dx, const int16_t *bias, float *y);
    /* y[i] as `block` makes it of token i of two, of four: `at` is the first token's block in q,
     * scale and bias */
    void (*two)(const uint8_t *table, const uint8_t *scale, const uint8_t *line,
                const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]);
    void (*four)(const uint8_t *table, const uint8_t *scale, const uint8_t *line,
                 const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]);
    /* Outliers, either by `multiply`, `multiply_few` and `expand` (float_group, float_record of
     * outliers.h), or as an instruction set does it: */
    /* sum[16] += those of the row group whose first record `first` is, for the one token of `in`;
     * returns the next row group's. next_tile: what is read after it, and is to be loaded
     * meanwhile, WHILE_RECORD bytes for each record, or memory would idle. */
    const uint8_t *(*outliers)(const struct tile_ops *ops, const struct side_table *side,
                               const uint8_t *first, const uint8_t *next_tile, float *sum);
    /* sum[k] += those of the i-th tile, whose record it is, for token t + k, k < count (constant:
     * 1, 2 or 4), to the bit what `outliers` adds for one; returns the next record */
    const uint8_t *(*record)(const struct tile_ops *ops, const struct side_table *side,
                             const uint8_t *record, int64_t i, int64_t t, int count,
                             float (*sum)[GWQ_ROWS]);
    /* product[k] = value[k] * x[column[k]] for k < count, and anything up to the next multiple of
     * 16; x holds 256 floats, so any column may be looked up */
    void (*multiply)(const uint8_t *value, const uint8_t *column, int count, const float *x,
                     float *product);
    /* product[t * stride + k] = value[k] * x[GWQ_FEW_LANES * column[k] + t] for k < count and
     * t < 4, otherwise as `multiply` */
    void (*multiply_few)(const uint8_t *value, const uint8_t *column, int count, const float *x,
                         float *product, int64_t stride);
    /* y[16] += the products of a record, level by level; `levels` of them at least, even if
     * empty */
    void (*expand)(const uint8_t *count, int levels, int total, const float *product, float *y);

    /* entries of a block from its lines; what `tokens` wants of its scales */
    void (*decode)(const uint8_t *table, const uint8_t *line, gwq_entries entries);
    void (*scales)(const uint8_t *scale, gwq_scales scales);
    /* sums[g].dense[i] += dense part of a tile of nb blocks, b the first, of row group g < groups
     * <= `groups` for token t + i, i < count <= GWQ_PANEL, t a multiple of that; and anything up to
     * the next multiple of 4 */
    void (*tokens)(const struct decoded *tile, int groups, int nb, const gwq_input *in, int64_t t,
                   int count, int64_t b, struct sums *sums);

    /* out[i] = float of the FP16 value i < count */
    void (*halves)(const uint8_t *value, int count, float *out);
    /* outliers of a record, from its 16 counts */
    int (*total)(const uint8_t *count);
    /* bit r: row r has more than `level` outliers */
    unsigned (*above)(const uint8_t *count, int level);
    /* sum[t] += v * x[t] for t < count: 8 or a multiple of 16 */
    void (*spread)(float v, const float *x, int count, float *sum);
    /* As gwq_kernels.panel */
    void (*panel)(const float *x, int64_t stride, int count, int64_t width, int lanes, float *out);
} tile_ops;
#endif
