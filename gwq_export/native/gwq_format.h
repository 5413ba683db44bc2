/* The bytes of a gwq tensor, stated once: C, CUDA and Python (through cffi) read this text.
 * docs/format.md explains them at length.
 *
 * A matrix of N rows and K columns (K is the input width) is cut into row groups of 16 rows, a row
 * group into tiles of 256 columns, a tile into blocks of 64 columns. The last row group is padded;
 * the last block may be short. A tensor is
 *
 *     table[16]                    int8, -32..31: what a window of four bits stands for
 *     exponent                     int8, -64..64
 *     zeros[15]
 *     row_scale[16 * row groups]   FP16; 0 for a padded row
 *     zeros                        up to a multiple of 64 bytes
 *     tiles                        one after another, row group by row group
 *
 * and a tile, of as many blocks as columns remain (1 to 4),
 *
 *     scale[blocks][scale bytes]           6 bits, biased by 32, per row and sub-block of 16
 *                                          columns (gwq6, gwq5, gwq4) or 32 (gwq3, gwq2)
 *     line[blocks * lines per block][64]   bytes; byte 4*r + i of a line belongs to row r, i = 0..3
 *
 * A weight is 2^exponent * (row_scale * ((scale - 32) * entry)), computed in float32, which is
 * exact: its factors have 11 + 10 significant bits. The entry is
 *
 *     gwq2, gwq3, gwq4:  table[window]
 *     gwq5:              table[code], and -1 - table[code - 16] for the codes 16..31
 *     gwq6:              code - 32; the table is zero
 *
 * The window is the weight's code and, above it, the lowest `history` = 4 - bits bits of the code
 * of its neighbour, the next one in a ring of codes of the same row:
 *
 *     window = code | (neighbour & ((1 << history) - 1)) << bits
 *
 * so gwq4 has none, gwq3 one bit, gwq2 the neighbour's whole code. Rings are drawn below; in them a
 * window is four bits that follow one another, and the first code's bits follow the last one's.
 *
 * Which code bits lie where in a line, with c a column within the block:
 *
 *   gwq4, 8 lines:   line j: low nibble = column 8j+i, high nibble = column 8j+4+i
 *   gwq2, 4 lines:   line j: bits 2p,2p+1 = column 16j+4p+i, p = 0..3
 *         ring: the 16 codes of a row in a line; in the order of the bits of its four bytes, read
 *         as one number x, bits 2k,2k+1 of x = column 16j + 4(k%4) + k/4; window = x >> 2k & 15
 *   gwq3, 2 x 3 lines A B C: with x = A | B << 8 | C << 16
 *         bits 3p,3p+1,3p+2 of x = column 32j+4p+i, p = 0..7
 *         ring: the 8 codes of x; window = x >> 3p & 15
 *   gwq5, 2 x 5 lines: with v(p) = code of column 32j+4p+i, p = 0..7
 *         line k = (v(2k) & 15) | (v(2k+1) & 15) << 4, k = 0..3; line 4: bit p = v(p) >> 4
 *   gwq6, 4 x 3 lines: with v(p) = code of column 16j+4p+i, p = 0..3
 *         line k = (v(2k) & 15) | (v(2k+1) & 15) << 4, k = 0, 1; line 2: bits 2p,2p+1 = v(p) >> 4
 *
 * and where the scales s0, s1, .. (biased) of a row's sub-blocks:
 *
 *   gwq6, gwq5, gwq4, 48 bytes:  byte r      = s0 | (s3 & 3) << 6
 *                                byte 16 + r = s1 | (s3 >> 2 & 3) << 6
 *                                byte 32 + r = s2 | (s3 >> 4) << 6
 *   gwq3, gwq2, 24 bytes:  byte r      = s0 | (s1 & 3) << 6
 *                          byte 16 + q = s1 >> 2 of row q, in the low nibble, and of row q + 8, in
 *                                        the high one, q = 0..7
 *
 * A short block ends where its columns do: it has the lines of the first 16, 32 or 48 columns alone
 * (gwq3, gwq5: of 32, as their lines belong to 32 columns), and of its scales the first 16 bytes
 * for each sub-block that these columns touch, or all of them if they touch all.
 *
 * Outliers are FP16 values that, times 2^exponent (1 beside a ggml type), are added to what the
 * dense part holds in their place, with one rounding to float32. The side-table of a matrix has one
 * record per tile, in the order of the tiles:
 *
 *     count[16]    outliers of each row of the tile (0..255)
 *     value[n]     FP16, n = sum of count; not aligned
 *     column[n]    uint8, 0..255 within the tile
 *
 * in level order: for level 0, 1, ... the rows that have more than `level` outliers, ascending; the
 * columns of one row ascend with the level. A second array holds the byte offset of each row
 * group's first record and the total, ceil(N/16) + 1 entries, so its size and the records' follow
 * from the shape and the number of outliers alone. Both are companion tensors of ggml types beside
 * `<name>`: `<name>.outliers` (I8), `<name>.outlier_offsets` (I32).
 *
 * A tensor (experts, N, K) is one such matrix after another, its companions (experts, n) one table
 * after another.
 */
#ifndef GWQ_FORMAT_H
#define GWQ_FORMAT_H
#include <stdint.h>

enum gwq_geometry {
    GWQ_FORMAT_VERSION = 2, /* a reader accepts the version it was built for, no other */
    GWQ_ROWS = 16,          /* rows of a row group */
    GWQ_RING2 = 16,         /* codes of a ring of gwq2 */
    GWQ_RING3 = 8,          /* codes of a ring of gwq3 */
    GWQ_BLOCK = 64,         /* columns of a block */
    GWQ_TILE_BLOCKS = 4,    /* blocks of a full tile */
    GWQ_TILE = 256,         /* columns of a full tile */
    GWQ_EXPONENT = 64       /* the largest magnitude of an exponent */
};

/* GGUF type ids: ggml's own, and for ours the FourCC of the name (little-endian). */
enum gwq_type {
    GWQ_TYPE_F32 = 0,
    GWQ_TYPE_F16 = 1,
    GWQ_TYPE_Q4_0 = 2,
    GWQ_TYPE_Q8_0 = 8,
    GWQ_TYPE_IQ4_NL = 20,
    GWQ_TYPE_I8 = 24,
    GWQ_TYPE_I32 = 26,
    GWQ_TYPE_BF16 = 30,
    GWQ_TYPE_GWQ2 = 0x32515747,
    GWQ_TYPE_GWQ3 = 0x33515747,
    GWQ_TYPE_GWQ4 = 0x34515747,
    GWQ_TYPE_GWQ5 = 0x35515747,
    GWQ_TYPE_GWQ6 = 0x36515747
};

/* The head of a tensor; row_scale[16 * row groups] follows. */
struct gwq_head {
    int8_t table[16];
    int8_t exponent;
    uint8_t zero[15];
};

/* Full tiles, of four blocks: scale[block][byte], line[line][byte]. */
struct gwq6_tile {
    uint8_t scale[4][48];
    uint8_t line[48][64]; /* 12 of each block */
};
struct gwq5_tile {
    uint8_t scale[4][48];
    uint8_t line[40][64]; /* 10 of each block */
};
struct gwq4_tile {
    uint8_t scale[4][48];
    uint8_t line[32][64]; /* 8 of each block */
};
struct gwq3_tile {
    uint8_t scale[4][24];
    uint8_t line[24][64]; /* 6 of each block */
};
struct gwq2_tile {
    uint8_t scale[4][24];
    uint8_t line[16][64]; /* 4 of each block */
};

/* ggml's blocks of 32 columns: a weight is scale (FP16) times what its code stands for. */
struct q8_0_block {
    uint16_t scale;
    int8_t code[32];
};
struct q4_block { /* q4_0 and iq4_nl, which differ in what a code stands for */
    uint16_t scale;
    uint8_t code[16]; /* byte i: column i in the low nibble, column 16 + i in the high one */
};
#endif
