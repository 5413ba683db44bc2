/* Matrices from the file's order (gwq_format.h) to the device's (layout.h). */
#include "kernels.h"

/* --- what the file says ----------------------------------------------------------------------- */

/* A tile matrix as it lies in the file, of which the parts of a row group repeat every `group`
 * bytes. */
struct file_matrix {
    const uint8_t *tiles, *row_scales;
    int rows, cols, bits, blocks;
    int short_columns; /* that the last block stores, 0: all */
    int64_t group;
};

BOTH int scale_bytes(int bits) { return bits >= 4 ? 48 : 24; }
BOTH int line_bytes(int bits) { return 128 * bits; }

BOTH int short_scale_bytes(int bits, int columns) {
    const int sub = bits >= 4 ? 16 : 32;
    const int subs = ceil_div(columns, sub);
    return subs * sub == GWQ_BLOCK ? scale_bytes(bits) : 16 * subs;
}

/* A block of a row group: its scales, its lines and how many bytes of each are there */
struct file_block {
    const uint8_t *scales, *lines;
    int scale_count, line_count;
};

DEVICE file_block block_at(const file_matrix &f, int group, int block) {
    const int whole = scale_bytes(f.bits) + line_bytes(f.bits);
    const int first = block / GWQ_TILE_BLOCKS * GWQ_TILE_BLOCKS; /* of the tile */
    const int count = f.blocks - first < GWQ_TILE_BLOCKS ? f.blocks - first : GWQ_TILE_BLOCKS;
    const bool ends_short = f.short_columns && first + count == f.blocks;
    const int last_scales = ends_short ? short_scale_bytes(f.bits, f.short_columns)
                                       : scale_bytes(f.bits);
    const uint8_t *tile = f.tiles + group * f.group + (int64_t)first * whole;
    const bool is_short = ends_short && block + 1 == f.blocks;
    file_block b;
    b.scales = tile + (block - first) * scale_bytes(f.bits);
    b.lines = tile + (count - 1) * scale_bytes(f.bits) + last_scales +
              (block - first) * line_bytes(f.bits);
    b.scale_count = is_short ? last_scales : scale_bytes(f.bits);
    b.line_count = is_short ? 2 * f.bits * f.short_columns : line_bytes(f.bits);
    return b;
}

/* Byte i of row r in a line; 0 where the line is not stored */
DEVICE uint32_t line_byte(const file_block &b, int line, int r, int i) {
    const int at = 64 * line + 4 * r + i;
    return at < b.line_count ? b.lines[at] : 0;
}

/* The code of column c of the block, row r */
DEVICE uint32_t file_code(const file_block &b, int bits, int r, int c) {
    const int i = c % 4;
    const int p = c % 32 / 4; /* gwq3, gwq5 */
    const int q = c % 16 / 4; /* gwq2, gwq6 */
    switch (bits) {
    case 2:
        return line_byte(b, c / 16, r, i) >> 2 * q & 3;
    case 3: {
        const int line = 3 * (c / 32);
        const uint32_t x = line_byte(b, line, r, i) | line_byte(b, line + 1, r, i) << 8 |
                           line_byte(b, line + 2, r, i) << 16;
        return x >> 3 * p & 7;
    }
    case 4:
        return line_byte(b, c / 8, r, i) >> 4 * (c % 8 / 4) & 15;
    case 5: {
        const int line = 5 * (c / 32);
        return (line_byte(b, line + p / 2, r, i) >> 4 * (p % 2) & 15) |
               (line_byte(b, line + 4, r, i) >> p & 1) << 4;
    }
    default: {
        const int line = 3 * (c / 16);
        return (line_byte(b, line + q / 2, r, i) >> 4 * (q % 2) & 15) |
               (line_byte(b, line + 2, r, i) >> 2 * q & 3) << 4;
    }
    }
}

DEVICE uint32_t scale_byte(const file_block &b, int at) {
    return at < b.scale_count ? b.scales[at] : 0;
}

/* Scale k of row r of the block, without its bias */
DEVICE int file_scale(const file_block &b, int bits, int r, int k) {
    uint32_t s;
    if (bits >= 4 && k == 3)
        s = scale_byte(b, r) >> 6 | scale_byte(b, 16 + r) >> 6 << 2 |
            scale_byte(b, 32 + r) >> 6 << 4;
    else if (bits < 4 && k == 1)
        s = scale_byte(b, r) >> 6 | (scale_byte(b, 16 + r % 8) >> (r < 8 ? 0 : 4) & 15) << 2;
    else
        s = scale_byte(b, 16 * k + r) & 63;
    return (int)s - BIAS;
}

/* --- what kernels want ------------------------------------------------------------------------ */

/* Column of nibble m of nibble word k: the inverse of place_of */
DEVICE int column_of(int k, int m) {
    const int place = 8 * (k % 2) + m;
    const int v = place % 4;
    return 16 * (k / 2) + 2 * (place / 4) + v / 2 + 8 * (v % 2);
}

/* Word i of a row of a piece; code(c) is that of its column c, 0 .. 31 */
template <class codes> DEVICE uint32_t piece_word(int bits, int i, codes code) {
    uint32_t word = 0;
    for (int m = 0; m < 8; m++) {
        if (bits == 2) { /* a ring's codes by their place in it */
            const int k = 2 * m;
            word |= code(16 * i + 4 * (k % 4) + k / 4) << 4 * m;
            word |= code(16 * i + 4 * ((k + 1) % 4) + (k + 1) / 4) << (4 * m + 2);
        } else if (bits == 3 && i < 2) {
            const uint32_t first = code(column_of(2 * i, m)) >> 1;
            const uint32_t second = code(column_of(2 * i + 1, m)) >> 1;
            word |= first << (4 * m + 1);
            word |= (second & 1) << (4 * m + 3) | second >> 1 << (4 * m + 4) % 32;
        } else if (bits == 3) {
            for (int k = 0; k < 4; k++) word |= (code(column_of(k, m)) & 1) << (4 * m + k);
        } else if (bits == 4 || (bits == 5 && i < 4)) {
            word |= (code(column_of(i, m)) & 15) << 4 * m;
        } else if (bits == 5) { /* m is the quad */
            for (int v = 0; v < 4; v++)
                word |= code(column_of(m / 2, 4 * (m % 2) + v)) >> 4 << (8 * v + 7 - m);
        } else if (i < 4) { /* byte m / 2, its low nibble of quad 2i, its high one of quad 2i+1 */
            word |= (code(column_of(i, m / 2 + 4 * (m % 2))) & 15) << 4 * m;
        } else { /* byte m % 4, quads 4 * (i - 4) + 2 * (m / 4) and the next */
            for (int j = 0; j < 2; j++) {
                const int quad = 4 * (i - 4) + 2 * (m / 4) + j;
                word |= code(column_of(quad / 2, 4 * (quad % 2) + m % 4)) >> 4
                        << (8 * (m % 4) + 2 * (quad % 4));
            }
        }
    }
    return word;
}

/* A thread for every 4 bytes of the strips */
__global__ void repack_tiles_kernel(file_matrix f, device_matrix to, int exponent) {
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int bits = f.bits;
    const int words = strip_bytes(bits) / 4;
    const int groups = ceil_div(f.rows, ROWS);
    if (at < (int64_t)groups * ROWS) { /* 2^exponent is a normal number, so the product is exact */
        const uint8_t *p = f.row_scales + 2 * at;
        const float power = __int_as_float((127 + exponent) << 23);
        const_cast<float *>(to.row_scale)[at] = power * half_to_float((uint16_t)(p[0] | p[1] << 8));
    }
    if (at >= (int64_t)groups * to.strips * words) return;
    const int64_t strip = at / words;
    const int in_strip = (int)(at % words);
    const int group = (int)(strip / to.strips);
    const int first = (int)(strip % to.strips) * STRIP;
    uint32_t word = 0;
    if (in_strip < 4 * PIECES * bits) {
        const int i = in_strip / (4 * PIECES);
        const int piece = in_strip / 4 % PIECES;
        const int row = 4 * (piece % 4) + in_strip % 4;
        const int column = first + PIECE * (piece / 4);
        if (column / GWQ_BLOCK < f.blocks) {
            const file_block b = block_at(f, group, column / GWQ_BLOCK);
            word = piece_word(bits, i, [&](int c) {
                return file_code(b, bits, row, column % GWQ_BLOCK + c);
            });
        }
    } else {
        const int subs = strip_subs(bits);
        const int k = in_strip - 4 * PIECES * bits;
        const int piece = k / subs;
        const int column = first + PIECE * (piece / 4);
        if (column / GWQ_BLOCK < f.blocks) {
            const file_block b = block_at(f, group, column / GWQ_BLOCK);
            const int sub = subs * (column % GWQ_BLOCK / PIECE) + k % subs;
            for (int r = 0; r < 4; r++) {
                const int scale = file_scale(b, bits, 4 * (piece % 4) + r, sub);
                word |= (uint32_t)(scale & 255) << 8 * r;
            }
        }
    }
    ((uint32_t *)to.data)[at] = word;
}

void repack_tiles(cudaStream_t stream, const uint8_t *file, int exponent, const device_matrix &to) {
    const int bits = to.kind;
    const int groups = ceil_div(to.rows, ROWS);
    const int unit = bits % 2 ? 32 : 16;
    const int stored = ceil_div(to.cols % GWQ_BLOCK, unit) * unit;
    file_matrix f;
    f.row_scales = file + sizeof(struct gwq_head);
    f.tiles = file + (sizeof(struct gwq_head) + 2 * ROWS * (int64_t)groups + 63) / 64 * 64;
    f.rows = to.rows;
    f.cols = to.cols;
    f.bits = bits;
    f.blocks = ceil_div(to.cols, GWQ_BLOCK);
    f.short_columns = stored < GWQ_BLOCK ? stored : 0;
    f.group = (int64_t)f.blocks * (scale_bytes(bits) + line_bytes(bits));
    if (f.short_columns)
        f.group -= scale_bytes(bits) - short_scale_bytes(bits, f.short_columns) +
                   line_bytes(bits) - 2 * bits * f.short_columns;
    const int64_t words = (int64_t)groups * to.strips * strip_bytes(bits) / 4;
    LAUNCH(repack_tiles_kernel, ceil_div(words, 256), 256, stream, f, to, exponent);
}

/* --- ggml types ------------------------------------------------------------------------------- */

/* 16 bytes of a row. Returns the largest magnitude of BF16 numbers or, at most, of codes. */
DEVICE float repack_piece(const uint8_t *file, int type, int64_t file_row, const device_matrix &to,
                          int64_t row, int64_t piece) {
    const uint8_t *from = file + row * file_row;
    uint8_t *out = (uint8_t *)to.data + row * to.pitch + 16 * piece;
    if (to.kind != ROW_CODES) {
        float most = 0;
        for (int i = 0; i < 16; i++)
            out[i] = 16 * piece + i < file_row ? from[16 * piece + i] : 0;
        for (int i = 0; to.kind == ROW_BF16 && i < 16; i += 2)
            most = fmaxf(most, fabsf(__int_as_float(out[i] << 16 | out[i + 1] << 24)));
        return most;
    }
    const int8_t level[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
    const bool whole = type == GWQ_TYPE_Q8_0;
    const int64_t block = piece / 2; /* 32 columns */
    uint16_t scale = 0;
    if (block * 32 < to.cols) {
        const uint8_t *b = from + block * (whole ? 34 : 18);
        scale = (uint16_t)(b[0] | b[1] << 8);
        for (int i = 0; i < 16; i++) {
            const int half = (int)(piece % 2);
            const int code = whole ? b[2 + 16 * half + i] : b[2 + i] >> 4 * half & 15;
            out[i] = (uint8_t)(whole                      ? code
                               : type == GWQ_TYPE_IQ4_NL ? level[code]
                                                          : code - 8);
        }
    } else {
        for (int i = 0; i < 16; i++) out[i] = 0;
    }
    if (piece % 2 == 0) const_cast<uint16_t *>(to.scale)[row * (to.pitch / 32) + block] = scale;
    return 128 * fabsf(half_to_float(scale));
}

/* A thread for every 16 bytes of a row */
__global__ void repack_rows_kernel(const uint8_t *file, int type, int64_t file_row,
                                   device_matrix to, int *most) {
    const int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const int64_t pieces = to.pitch / 16;
    float of_warp = 0;
    if (at < pieces * to.rows)
        of_warp = repack_piece(file, type, file_row, to, at / pieces, at % pieces);
    of_warp = most_over(of_warp, 1, WARP);
    if (threadIdx.x % WARP == 0 && of_warp > 0) atomicMax(most, __float_as_int(of_warp));
}

void repack_rows(cudaStream_t stream, const uint8_t *file, int type, const device_matrix &to,
                 int *most) {
    const int64_t cols = to.cols;
    const int64_t file_row = type == GWQ_TYPE_F32    ? 4 * cols
                             : type == GWQ_TYPE_Q8_0 ? cols / 32 * 34
                             : to.kind == ROW_CODES  ? cols / 32 * 18
                                                     : 2 * cols;
    const int64_t pieces = to.pitch / 16 * to.rows;
    LAUNCH(repack_rows_kernel, ceil_div(pieces, 256), 256, stream, file, type, file_row, to,
           most);
}
