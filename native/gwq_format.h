/* The bytes of a gwq tensor, stated once: C, CUDA and Python (through cffi) read this text.
 *
 * A matrix of N rows and K columns (K is the input width) is cut into row groups of 16 rows, a row group into
 * tiles of 256 columns, a tile into blocks of 64 columns. Tiles lie one after another, row group by row group.
 * The last row group and the last block are padded with weights of value zero; the last tile of a row group has
 * only as many blocks as columns remain (1 to 4), with the same order of parts inside:
 *
 *     scale[blocks][16]                  FP16, one per block and row
 *     line[blocks * lines per block][64] bytes; byte 4*r + i of a line belongs to row r, i = 0..3
 *
 * A weight is scale * (code - zero), computed in float32 (exact: 11 + 4 significant bits), zero = 2^(bits-1).
 * Which code bits lie where in a line, with c a column within the block:
 *
 *   gwq4, 8 lines:   line j: low nibble = column 8j+i, high nibble = column 8j+4+i
 *   gwq2, 4 lines:   line j: bits 2p,2p+1 = column 16j+4p+i, p = 0..3
 *   gwq3, 2 x 3 lines A B C: with v(p) = code of column 32j+4p+i, p = 0..7
 *         A = v0 | v1 << 3 | (v6 & 3) << 6
 *         B = v2 | v3 << 3 | (v7 & 3) << 6
 *         C = v4 | v5 << 3 | (v6 >> 2) << 6 | (v7 >> 2) << 7
 *
 * Outliers are exact FP16 values. Their dense code is `zero`, so adding the side-table equals replacing. The
 * side-table of a matrix has one record per tile, in the order of the tiles:
 *
 *     count[16]    outliers of each row of the tile (0..255)
 *     value[n]     FP16, n = sum of count; not aligned
 *     column[n]    uint8, 0..255 within the tile
 *
 * in level order: for level 0, 1, ... the rows that have more than `level` outliers, ascending; the columns of one
 * row ascend with the level. A second array holds the byte offset of each row group's first record and the total,
 * ceil(N/16) + 1 entries, so its size and the records' follow from the shape and the number of outliers alone.
 * Both are companion tensors of stock types beside `<name>`: `<name>.outliers` (I8), `<name>.outlier_offsets` (I32).
 */
#ifndef GWQ_FORMAT_H
#define GWQ_FORMAT_H
#include <stdint.h>

enum gwq_geometry {
    GWQ_FORMAT_VERSION = 0, /* 0: before the freeze; a reader accepts the version it was built for, no other */
    GWQ_ROWS = 16,          /* rows of a row group */
    GWQ_BLOCK = 64,         /* columns that share a scale */
    GWQ_TILE_BLOCKS = 4,    /* blocks of a full tile */
    GWQ_TILE = 256          /* columns of a full tile */
};

/* GGUF type ids: stock ones as in ggml, ours the FourCC of the name (little-endian). */
enum gwq_type {
    GWQ_TYPE_F32 = 0,
    GWQ_TYPE_F16 = 1,
    GWQ_TYPE_Q8_0 = 8,
    GWQ_TYPE_I8 = 24,
    GWQ_TYPE_I32 = 26,
    GWQ_TYPE_BF16 = 30,
    GWQ_TYPE_GWQ2 = 0x32515747,
    GWQ_TYPE_GWQ3 = 0x33515747,
    GWQ_TYPE_GWQ4 = 0x34515747
};

struct gwq4_tile {
    uint16_t scale[4][16];
    uint8_t line[32][64];
};
struct gwq3_tile {
    uint16_t scale[4][16];
    uint8_t line[24][64];
};
struct gwq2_tile {
    uint16_t scale[4][16];
    uint8_t line[16][64];
};
struct q8_0_block {
    uint16_t scale;
    int8_t code[32];
};
#endif
