/* Products of float matrices for the export: one text, compiled once per instruction set by the
 * files that include it, each of which gives the same bits.
 *
 * Before that, such a file defines LANES (floats of a vector) and ROWS (rows of a tile of the
 * result, which is 2 * LANES columns wide). */
#ifndef GWQ_GEMM_H
#define GWQ_GEMM_H
#include "lanes.h"

enum {
    WIDTH = 2 * LANES,         /* columns of a tile */
    DEPTH = GWQ_GEMM_DEPTH, /* terms of a run */
    TILES = 384 / ROWS         /* tiles, one below the other, that share a strip of b */
};

/* The result's rows and columns are cut into tiles, the terms of its sums into runs. Of a run, the
 * rows of a that belong to TILES tiles are packed, then one strip of b after another. */
struct packed {
    float a[TILES][DEPTH * ROWS]; /* of each tile (depth, ROWS) */
    float b[DEPTH * WIDTH];       /* (depth, WIDTH) */
};

/* Terms of a run where a sum has k of them. Which these are decides the last bits. They are those
 * of MKL's AVX2 products, so files stay as they were when these computed them. */
GWQ_INLINE int64_t run_length(int64_t k) {
    return k > 2 * DEPTH ? DEPTH : k > DEPTH ? k / 2 : k;
}

typedef float four __attribute__((vector_size(16)));
typedef int32_t places __attribute__((vector_size(16)));

/* The 4 x 4 numbers x[i * across + k] to out[k * width + i] */
GWQ_INLINE void turn(const float *x, int64_t across, const int width, float *out) {
#ifdef __clang__ /* has no __builtin_shuffle */
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 4; i++) out[k * width + i] = x[i * across + k];
#else
    four row[4];
    for (int i = 0; i < 4; i++) memcpy(row + i, x + i * across, sizeof *row);
    four low = __builtin_shuffle(row[0], row[1], (places){0, 4, 1, 5});
    four high = __builtin_shuffle(row[0], row[1], (places){2, 6, 3, 7});
    four low2 = __builtin_shuffle(row[2], row[3], (places){0, 4, 1, 5});
    four high2 = __builtin_shuffle(row[2], row[3], (places){2, 6, 3, 7});
    row[0] = __builtin_shuffle(low, low2, (places){0, 1, 4, 5});
    row[1] = __builtin_shuffle(low, low2, (places){2, 3, 6, 7});
    row[2] = __builtin_shuffle(high, high2, (places){0, 1, 4, 5});
    row[3] = __builtin_shuffle(high, high2, (places){2, 3, 6, 7});
    for (int k = 0; k < 4; k++) memcpy(out + k * width, row + k, sizeof *row);
#endif
}

/* out[k * width + i] = x[i * across + k * along] for i < count, 0 for the other i < width */
GWQ_INLINE void pack(const float *x, int64_t across, int64_t along, int count, const int width,
                     int depth, float *out) {
    if (count < width) memset(out, 0, sizeof *out * (size_t)depth * (size_t)width);
    if (across == 1 && count == width) {
        for (int k = 0; k < depth; k++) memcpy(out + k * width, x + k * along, sizeof *x * width);
        return;
    }
    int turned = 0, k;
    if (along == 1)
        for (; turned + 4 <= count; turned += 4) {
            const float *from = x + turned * across;
            for (k = 0; k + 4 <= depth; k += 4)
                turn(from + k, across, width, out + k * width + turned);
            for (; k < depth; k++)
                for (int i = 0; i < 4; i++) out[k * width + turned + i] = from[i * across + k];
        }
    for (int i = turned; i < count; i++)
        for (k = 0; k < depth; k++) out[k * width + i] = x[i * across + k * along];
}

/* Asks for what `pack` is going to read, where it lies in lines of memory */
GWQ_INLINE void ask_for(const float *x, int64_t across, int64_t along, int count, int depth) {
    enum { LINE = 16 }; /* floats */
    const int by_rows = along == 1;
    const int lines = by_rows ? count : depth, length = by_rows ? depth : count;
    const int64_t next = by_rows ? across : along;
    if (across != 1 && along != 1) return;
    for (int i = 0; i < lines; i++)
        for (int k = 0; k < length; k += LINE) __builtin_prefetch(x + i * next + k, 0, 2);
}

/* tile = a b, for packed a (depth, ROWS) and b (depth, WIDTH) */
GWQ_INLINE void multiply_tile(int depth, const float *a, const float *b, lanes tile[ROWS][2]) {
    lanes sum[ROWS][2];
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (lanes){0};
    for (int k = 0; k < depth; k++) {
        lanes left, right;
        memcpy(&left, b + k * WIDTH, sizeof left);
        memcpy(&right, b + k * WIDTH + LANES, sizeof right);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            lanes x = all(a[k * ROWS + r]);
            sum[r][0] = fused(x, left, sum[r][0]);
            sum[r][1] = fused(x, right, sum[r][1]);
        }
    }
    memcpy(tile, sum, sizeof sum);
}

/* The first rows x columns numbers of a tile to out, or added to what is there */
GWQ_INLINE void store_tile(const lanes tile[ROWS][2], int rows, int columns, int add, float *out,
                           int64_t stride) {
    for (int r = 0; r < rows; r++, out += stride) {
        lanes line[2];
        memcpy(line, tile[r], sizeof line);
        if (add) {
            lanes old[2] = {{0}};
            memcpy(old, out, sizeof *out * (size_t)columns);
            for (int i = 0; i < 2; i++) line[i] = old[i] + line[i];
        }
        memcpy(out, line, sizeof *out * (size_t)columns);
    }
}

GWQ_INLINE int at_most(int64_t count, int most) { return count < most ? (int)count : most; }

/* See gwq_multiply */
GWQ_INLINE void multiply(const gwq_multiplication *p) {
    struct packed packed;
    const int64_t length = run_length(p->k);
    for (int64_t k = 0; k < p->k; k += length) {
        const int depth = at_most(p->k - k, (int)length);
        for (int64_t row = 0; row < p->m; row += TILES * ROWS) {
            const int rows = at_most(p->m - row, TILES * ROWS);
            for (int r = 0; r < rows; r += ROWS)
                pack(p->a + (row + r) * p->a_row + k * p->a_column, p->a_row, p->a_column,
                     at_most(rows - r, ROWS), ROWS, depth, packed.a[r / ROWS]);
            for (int64_t column = 0; column < p->n; column += WIDTH) {
                const int columns = at_most(p->n - column, WIDTH);
                const float *b = p->b + k * p->b_row + column * p->b_column;
                pack(b, p->b_column, p->b_row, columns, WIDTH, depth, packed.b);
                const float *next = b + WIDTH * p->b_column;
                if (columns == WIDTH)
                    ask_for(next, p->b_column, p->b_row, at_most(p->n - column - WIDTH, WIDTH),
                            depth);
                for (int r = 0; r < rows; r += ROWS) {
                    float *out = p->out + (row + r) * p->out_row + column;
                    const int height = at_most(rows - r, ROWS);
                    lanes tile[ROWS][2];
                    multiply_tile(depth, packed.a[r / ROWS], packed.b, tile);
                    if (columns == WIDTH) /* the compiler knows the length of a line */
                        store_tile(tile, height, WIDTH, k || p->add, out, p->out_row);
                    else
                        store_tile(tile, height, columns, k || p->add, out, p->out_row);
                }
            }
        }
    }
}
#endif
