/* How a matrix lies in a device's memory. It is written once, by an upload, from the file's bytes.
 *
 * A tile matrix is cut into row groups of 16 rows, these into strips of 128 columns, a strip into
 * 16 pieces of 4 rows and 32 columns. A thread takes a piece, half a warp a strip. A row of a piece
 * is `bits` words, and the four rows' words i are 16 bytes, so that 16 threads read 256 bytes at
 * once:
 *
 *     word[bits][16 pieces][4 rows]      piece = 4 * (column / 32) + row / 4, both within the strip
 *     scale[16 pieces][subs][4 rows]     int8, -32..31; subs: 2 of 16 columns, or 1 of 32 (gwq2, 3)
 *
 * Entries are looked up by nibbles, and multiplied with activations, four at a time. The columns of
 * 16 come in the order in which the ring of gwq2 has them when its word is read as nibbles, first
 * as it is and then turned by two bits:
 *
 *     0 8 1 9   2 10 3 11   4 12 5 13   6 14 7 15
 *
 * Every type has them so, and so have the activations' codes. Four of these are a quad; 32 columns
 * are the quads 0..7, two a nibble word. With n(k) the nibble m of nibble word k, 4m its lowest
 * bit:
 *
 *   gwq4: word k = n(k), k = 0..3
 *   gwq2: word h = the ring of columns 16h.., as in the file; n(2h) = it, n(2h+1) = it turned by 2
 *   gwq3: the lowest bit of the code in n(k) is bit 4m+k of word 2; the others are bits 4m+1, 4m+2
 *         of word k/2, turned by two if k is odd
 *   gwq5: word k = the low four bits in n(k), k = 0..3; word 4 has the top bit of byte v of quad j
 *         at bit 8v + 7-j
 *   gwq6: word k has the low four bits of the quads 2k and 2k+1 in the low and high nibbles of its
 *         bytes, k = 0..3; words 4, 5 the top two of quads 4(k-4).. at bits 8v + 2(j%4)
 */
#ifndef GWQ_CUDA_LAYOUT_H
#define GWQ_CUDA_LAYOUT_H
#include "device.h"
#include "gwq.h"

enum {
    ROWS = GWQ_ROWS,
    STRIP = 128,      /* columns */
    PIECE = 32,       /* columns that a thread multiplies at a time */
    PIECES = 16,      /* of a strip */
    PIECE_ROWS = 4,
    TOGETHER = 2 * ROWS, /* rows up to a multiple of which there is memory, whatever it holds */
    BIAS = 32,        /* entries are looked up biased, 0..63 */
    PAD = STRIP       /* activations are padded to whole strips */
};

/* Kinds of matrices as kernels tell them apart: a tile type's bits, or what a row is made of */
enum kind { ROW_F32 = 10, ROW_F16, ROW_BF16, ROW_CODES };

BOTH int strip_subs(int bits) { return bits >= 4 ? 2 : 1; }
BOTH int strip_bytes(int bits) { return PIECES * (16 * bits + 4 * strip_subs(bits)); }
BOTH int ceil_div(int64_t a, int64_t b) { return (int)((a + b - 1) / b); }

/* Four entries of a table each, biased */
struct table {
    uint32_t entry[4];
};

/* A matrix as kernels get it */
struct device_matrix {
    int kind;
    int rows, cols;
    int strips;              /* of a row group; of a ggml type: of a row */
    const uint8_t *data;     /* strips; or rows of `pitch` bytes, zeros beyond cols */
    int64_t pitch;
    const uint16_t *scale;   /* ROW_CODES: FP16 (rows, strips * 4), one of each 32 columns */
    const float *row_scale;  /* (16 * row groups): 2^exponent * the file's */
    float power;             /* 2^exponent; 1 beside a ggml type */
    table entries;
    float half_power;        /* of ggml types: what makes weights FP16 numbers, 2^k */
    const uint32_t *outliers;  /* NULL, or of all rows, one after another: FP16 << 16 | column */
    const int *outlier_starts; /* (rows + 1): where those of a row begin */
};

/* Activations of half a block of 64 columns: x ~ scale * q, and of what that leaves over ~ second *
 * q of a half of the second set, which is zeros where second is 0. Both halves of a block have the
 * same scale and second: a thread reads all it needs of 32 columns, 48 bytes, from one place. */
struct alignas(16) code_half {
    int8_t q[PIECE]; /* in the order above */
    int start[2];    /* -BIAS * the sum of q, of each 16 columns */
    float scale, second;
};
struct code_block {
    code_half of[2];
};

/* Where column c of 16 stands in the order above */
BOTH int place_of(int c) {
    const int low = c & 7;
    return 4 * (low / 2) + 2 * (low & 1) + c / 8;
}

/* Activations as tensor cores take them are FP16 numbers: x / factor, the factor a power of two for
 * each token so that the largest lies between 2^14 and 2^15; what is 2^-39 of it or less is 0. Of
 * blocks of 64 columns that have a massive channel a second set of numbers holds what the first
 * one leaves over; else it is zero. Tokens are padded with zeros to whole tiles of 64, or of 16 if
 * there are no more:
 *
 *     half[tiles][2 sets][strips][tokens of a tile][16 units][8]
 *
 * Unit 4k + t has, for matrices of ggml types, the columns 32k + 8t .. of the strip, in the order
 * 0 2 1 3 4 6 5 7, so that two words of FP16 or BF16 numbers make two of what is multiplied; for
 * tile matrices it has the quads 2k and 2k+1 of the columns 32t .., so that four threads, which
 * have the four pieces of a row, read 64 bytes at once. Units lie as unit_at says: eight threads,
 * which read those of two tokens t and t + 8, then read from all banks of shared memory. */
enum { FEW_TILE = 16, TILE_TOKENS = 64, UNITS = STRIP / 8 };
BOTH int tile_of(int n) { return n > FEW_TILE ? TILE_TOKENS : FEW_TILE; }

/* Where a token's numbers of its first strip are; the next one's are tile * STRIP on, and after the
 * last strip the second set follows. */
BOTH int64_t half_row(int token, int tile, int stride) {
    return (int64_t)(token / tile) * tile * 2 * stride + token % tile * STRIP;
}
/* Words of a tile that say, by bits, which strips have a second set */
BOTH int massive_words(int stride) { return ceil_div(stride, 32 * STRIP); }
BOTH bool any_massive(const int *of_tile, int stride) {
    int bits = 0;
    for (int i = 0; i < massive_words(stride); i++) bits |= of_tile[i];
    return bits != 0;
}

BOTH int unit_at(int token, int unit) { return unit ^ (token / 8 % 2 * 4); }

/* Where column c of a strip stands for matrices of ggml types, and for tile matrices */
BOTH int row_place(int c) {
    const int low = c & 3;
    return (c & ~3) + (low == 1 ? 2 : low == 2 ? 1 : low);
}
BOTH int strip_place(int c) {
    const int place = c % PIECE / 16 * 16 + place_of(c % 16); /* in the piece's quads */
    return 32 * (place / 8) + 8 * (c / PIECE) + place % 8;
}
#endif
