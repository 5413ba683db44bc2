/* Matrices inside libgwq: the table of their types, and where the parts of a tile matrix and of its
 * side-table lie (gwq_format.h draws the bytes). Pointers into a matrix that was checked before. */
#ifndef GWQ_MATRIX_H
#define GWQ_MATRIX_H
#include <stddef.h>
#include "gwq.h"

#define GWQ_INLINE static inline __attribute__((always_inline))

/* Matrix types as indices into gwq_types and into the kernel tables. */
enum gwq_kind {
    GWQ_K_F32,
    GWQ_K_F16,
    GWQ_K_BF16,
    GWQ_K_Q8_0,
    GWQ_K_GWQ2,
    GWQ_K_GWQ3,
    GWQ_K_GWQ4,
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
 *         ... scales at tile, lines at tile + nb * gwq_scale_bytes(bits)
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

/* Bytes of a block: its scales, its lines, both. matrix.c compares them with the structs. */
static inline size_t gwq_scale_bytes(int bits) { return bits == 4 ? 48 : 24; }
static inline size_t gwq_line_bytes(int bits) { return (size_t)bits * GWQ_ROWS * GWQ_BLOCK / 8; }
static inline size_t gwq_block_bytes(int bits) {
    return gwq_scale_bytes(bits) + gwq_line_bytes(bits);
}

/* Bytes before the first tile: table and row scales, rounded up to 64 */
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
           (size_t)group * (size_t)gwq_blocks(m->cols) * gwq_block_bytes(bits);
}

static inline uint32_t gwq_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* The first side-table record of a row group; NULL when the matrix has no side-table */
static inline const uint8_t *gwq_records(const gwq_matrix *m, int64_t group) {
    return m->outliers ? m->outliers + gwq_load_u32(m->offsets + 4 * group) : NULL;
}
#endif
