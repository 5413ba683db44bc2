/* Matrices inside libgwq: the table of their types, and where the parts of a tile matrix and of its
 * side-table lie (gwq_format.h draws the bytes). Pointers into a matrix that was checked before. */
#ifndef GWQ_MATRIX_H
#define GWQ_MATRIX_H
#include <stddef.h>
#include <string.h>
#include "gwq.h"

#define GWQ_INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

/* Matrix types as indices into gwq_types and into the kernel tables. */
enum gwq_kind {
    GWQ_K_F32,
    GWQ_K_F16,
    GWQ_K_BF16,
    GWQ_K_Q8_0,
    GWQ_K_GWQ2,
    GWQ_K_GWQ3,
    GWQ_K_GWQ4,
    GWQ_K_GWQ5,
    GWQ_K_GWQ6,
    GWQ_K_Q4_0,
    GWQ_K_IQ4_NL,
    GWQ_K_COUNT
};

typedef struct gwq_type_row {
    int32_t id;         /* enum gwq_type */
    int32_t bits;       /* bits of a tile type's code, 0 for a ggml type */
    int32_t unit;       /* columns per storage unit: 64 of tiles, 32 of block types, 1 otherwise */
    int32_t unit_bytes; /* bytes per unit of one row; tiles: of the 16 rows of a row group */
} gwq_type_row;

extern const gwq_type_row gwq_types[GWQ_K_COUNT];

int gwq_type_index(int32_t id);      /* enum gwq_kind of an enum gwq_type; -1: no matrix type */
int gwq_usable(const gwq_matrix *m); /* whether type, shape and length fit together */

/* The kind of a usable matrix. Never negative, which tells the compiler that it may index with
 * it. */
static inline int gwq_kind_of(const gwq_matrix *m) {
    int k = gwq_type_index(m->type);
    return k < 0 ? 0 : k;
}

GWQ_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* Tile geometry. A kernel walks a row group tile by tile:
 *
 *     const uint8_t *tile = gwq_group(m, bits, group);
 *     for (block = 0; block < blocks; block += nb) {
 *         nb = min64(GWQ_TILE_BLOCKS, blocks - block);
 *         whole = gwq_whole_tile(m, bits, tile, block, copy);
 *         ... scales at whole, lines at whole + nb * gwq_scale_bytes(bits)
 *         tile += nb * gwq_block_bytes(bits);
 *     }
 */
enum {
    ENTRY_BIAS = 32, /* added to a table entry -32..31 where a kernel wants it unsigned */
    SCALE_BIAS = 32  /* added to a scale -32..31 as it is stored */
};

static inline int64_t gwq_blocks(int64_t cols) { return (cols + GWQ_BLOCK - 1) / GWQ_BLOCK; }
static inline int64_t gwq_tiles(int64_t cols) { return (cols + GWQ_TILE - 1) / GWQ_TILE; }
static inline int64_t gwq_groups(int64_t rows) { return (rows + GWQ_ROWS - 1) / GWQ_ROWS; }

/* Bytes of a block: its scales, its lines, both. check.c compares them with the structs. */
static inline size_t gwq_scale_bytes(int bits) { return bits >= 4 ? 48 : 24; }
static inline size_t gwq_line_bytes(int bits) { return (size_t)bits * GWQ_ROWS * GWQ_BLOCK / 8; }
static inline size_t gwq_block_bytes(int bits) {
    return gwq_scale_bytes(bits) + gwq_line_bytes(bits);
}
enum { GWQ_TILE_BYTES = sizeof(struct gwq6_tile) }; /* at most */

/* Columns that the last block of a row group stores where it is short, else 0 */
static inline int gwq_short_columns(int bits, int64_t cols) {
    int unit = bits % 2 ? 32 : 16; /* columns whose lines belong together */
    int stored = ((int)(cols % GWQ_BLOCK) + unit - 1) / unit * unit;
    return stored < GWQ_BLOCK ? stored : 0;
}

/* Bytes of that block's scales, and of its lines */
static inline size_t gwq_short_scale_bytes(int bits, int columns) {
    int sub = bits >= 4 ? 16 : 32;
    int subs = (columns + sub - 1) / sub;
    return subs * sub == GWQ_BLOCK ? gwq_scale_bytes(bits) : 16 * (size_t)subs;
}
static inline size_t gwq_short_line_bytes(int bits, int columns) {
    return (size_t)bits * GWQ_ROWS * (size_t)columns / 8;
}

/* Bytes that a short last block lacks; 0 where it is whole */
static inline size_t gwq_missing_bytes(int bits, int64_t cols) {
    int columns = gwq_short_columns(bits, cols);
    if (!columns) return 0;
    return gwq_block_bytes(bits) - gwq_short_scale_bytes(bits, columns) -
           gwq_short_line_bytes(bits, columns);
}

static inline size_t gwq_group_bytes(int bits, int64_t cols) {
    return (size_t)gwq_blocks(cols) * gwq_block_bytes(bits) - gwq_missing_bytes(bits, cols);
}

/* Bytes before the first tile: head and row scales, rounded up to 64 */
static inline size_t gwq_head_bytes(int64_t rows) {
    size_t row_scales = 2 * GWQ_ROWS * (size_t)gwq_groups(rows);
    return (sizeof(struct gwq_head) + row_scales + 63) & ~(size_t)63;
}

static inline const int8_t *gwq_table(const gwq_matrix *m) {
    return ((const struct gwq_head *)m->data)->table;
}

/* The 16 FP16 row scales of a row group */
static inline const uint8_t *gwq_row_scales(const gwq_matrix *m, int64_t group) {
    return (const uint8_t *)m->data + sizeof(struct gwq_head) + 2 * GWQ_ROWS * (size_t)group;
}

/* The first tile of a row group */
static inline const uint8_t *gwq_group(const gwq_matrix *m, int bits, int64_t group) {
    return (const uint8_t *)m->data + gwq_head_bytes(m->rows) +
           (size_t)group * gwq_group_bytes(bits, m->cols);
}

/* The tile that begins at `block` of a row group. Where its last block is short: a copy in which
 * zeros stand for what the block lacks. */
GWQ_INLINE const uint8_t *gwq_whole_tile(const gwq_matrix *m, int bits, const uint8_t *tile,
                                         int64_t block, uint8_t copy[GWQ_TILE_BYTES]) {
    const int64_t blocks = gwq_blocks(m->cols) - block;
    if (blocks > GWQ_TILE_BLOCKS) return tile;
    const int columns = gwq_short_columns(bits, m->cols);
    if (!columns) return tile;
    const size_t nb = (size_t)blocks;
    const size_t scales = (nb - 1) * gwq_scale_bytes(bits) + gwq_short_scale_bytes(bits, columns);
    const size_t lines = (nb - 1) * gwq_line_bytes(bits) + gwq_short_line_bytes(bits, columns);
    memset(copy, 0, nb * gwq_block_bytes(bits));
    memcpy(copy, tile, scales);
    memcpy(copy + nb * gwq_scale_bytes(bits), tile + scales, lines);
    return copy;
}

/* 2^exponent of a tile matrix; 1 for a ggml type */
static inline float gwq_power(const gwq_matrix *m) {
    const int32_t first = 0xffffff; /* three letters of a FourCC: GWQ */
    if ((m->type & first) != (GWQ_TYPE_GWQ2 & first)) return 1;
    uint32_t bits = (uint32_t)(127 + ((const struct gwq_head *)m->data)->exponent) << 23;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint32_t gwq_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The first side-table record of a row group; NULL when the matrix has no side-table */
static inline const uint8_t *gwq_records(const gwq_matrix *m, int64_t group) {
    return m->outliers ? m->outliers + gwq_load_u32(m->offsets + 4 * group) : NULL;
}
#endif
