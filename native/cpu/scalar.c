/* The reference in plain C, as short as the format allows: tile matrices, outliers, and the row of
 * all that the other scalar_*.c hold. */
#include "scalar.h"

/* --- tile types: one function per width turns the lines of a block into windows --------------- */

typedef uint8_t windows[GWQ_ROWS][GWQ_BLOCK];
typedef void (*unpack_fn)(const uint8_t *line, windows c);

static void unpack4(const uint8_t *line, windows c) {
    for (int j = 0; j < 8; j++, line += 64)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) {
                uint8_t v = line[4 * r + i];
                c[r][8 * j + i] = v & 15;
                c[r][8 * j + 4 + i] = v >> 4;
            }
}

static void unpack3(const uint8_t *line, windows c) {
    for (int j = 0; j < 2; j++, line += 192)
        for (int at = 0; at < 64; at++) {
            uint32_t x = line[at] | (uint32_t)line[64 + at] << 8 | (uint32_t)line[128 + at] << 16;
            x |= x << 24; /* the first code follows the last */
            for (int p = 0; p < 8; p++) c[at / 4][32 * j + 4 * p + at % 4] = x >> 3 * p & 15;
        }
}

static void unpack2(const uint8_t *line, windows c) {
    for (int j = 0; j < 4; j++, line += 64)
        for (int r = 0; r < 16; r++) {
            uint64_t x = gwq_load_u32(line + 4 * r);
            x |= x << 32;
            for (int k = 0; k < 16; k++) c[r][16 * j + 4 * (k % 4) + k / 4] = x >> 2 * k & 15;
        }
}

static void unpack5(const uint8_t *line, windows c) {
    for (int j = 0; j < 2; j++, line += 320)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++)
                for (int p = 0; p < 8; p++) {
                    const uint8_t *v = line + 4 * r + i;
                    int low = v[64 * (p / 2)] >> 4 * (p % 2) & 15;
                    c[r][32 * j + 4 * p + i] = (uint8_t)(low | (v[256] >> p & 1) << 4);
                }
}

static void unpack6(const uint8_t *line, windows c) {
    for (int j = 0; j < 4; j++, line += 192)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++)
                for (int p = 0; p < 4; p++) {
                    const uint8_t *v = line + 4 * r + i;
                    int low = v[64 * (p / 2)] >> 4 * (p % 2) & 15;
                    c[r][16 * j + 4 * p + i] = (uint8_t)(low | (v[128] >> 2 * p & 3) << 4);
                }
}

/* Scales of a block, for each 16 columns: a sub-block of 32 repeats its own. */
static void unpack_scales(int bits, const uint8_t *p, int s[GWQ_ROWS][4]) {
    for (int r = 0; r < GWQ_ROWS; r++) {
        if (bits >= 4) {
            for (int k = 0; k < 3; k++) s[r][k] = (p[16 * k + r] & 63) - SCALE_BIAS;
            s[r][3] = (p[r] >> 6 | p[16 + r] >> 6 << 2 | p[32 + r] >> 6 << 4) - SCALE_BIAS;
        } else {
            int high = p[16 + r % 8] >> (r < 8 ? 0 : 4) & 15;
            s[r][0] = s[r][1] = (p[r] & 63) - SCALE_BIAS;
            s[r][2] = s[r][3] = (p[r] >> 6 | high << 2) - SCALE_BIAS;
        }
    }
}

/* A block: its entries, and its scales for each 16 columns */
struct block {
    int entry[GWQ_ROWS][GWQ_BLOCK];
    int scale[GWQ_ROWS][4];
};

/* What a window stands for */
static inline int entry(int bits, const int8_t *table, int window) {
    if (bits == 6) return window - 32;
    if (bits == 5) return window & 16 ? -1 - table[window & 15] : table[window];
    return table[window];
}

/* Block k of a tile of nb blocks */
static inline void decode(int bits, unpack_fn unpack, const int8_t *table, const uint8_t *tile,
                          int64_t nb, int64_t k, struct block *out) {
    windows c;
    unpack(tile + nb * gwq_scale_bytes(bits) + k * gwq_line_bytes(bits), c);
    unpack_scales(bits, tile + k * gwq_scale_bytes(bits), out->scale);
    for (int r = 0; r < GWQ_ROWS; r++)
        for (int i = 0; i < GWQ_BLOCK; i++) out->entry[r][i] = entry(bits, table, c[r][i]);
}

static inline void tile_dequantize(int bits, unpack_fn unpack, const gwq_matrix *m, int64_t group,
                                   float *out) {
    const uint8_t *tile = gwq_group(m, bits, group);
    const int64_t rows = min64(GWQ_ROWS, m->rows - group * GWQ_ROWS);
    const int64_t blocks = gwq_blocks(m->cols);
    const float power = gwq_power(m);
    int64_t nb;
    struct block e;
    uint8_t copy[GWQ_TILE_BYTES];
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * gwq_block_bytes(bits)) {
        nb = min64(GWQ_TILE_BLOCKS, blocks - b);
        const uint8_t *whole = gwq_whole_tile(m, bits, tile, b, copy);
        for (int64_t k = 0; k < nb; k++) {
            decode(bits, unpack, gwq_table(m), whole, nb, k, &e);
            int64_t first = (b + k) * GWQ_BLOCK;
            int64_t width = min64(GWQ_BLOCK, m->cols - first);
            for (int64_t r = 0; r < rows; r++) {
                float d = power * half(gwq_row_scales(m, group) + 2 * r);
                float *to = out + r * m->cols + first;
                for (int64_t i = 0; i < width; i++) /* as floats: a zero has its factors' sign */
                    to[i] = d * ((float)e.scale[r][i / 16] * (float)e.entry[r][i]);
            }
        }
    }
}

static void sparse(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in,
                   float *y) {
    const float power = gwq_power(m);
    for (int64_t g = first; g < last; g++) {
        const uint8_t *record = gwq_records(m, g);
        for (int64_t c = 0; c < m->cols; c += GWQ_TILE) {
            int total = 0;
            int k = 0;
            for (int r = 0; r < GWQ_ROWS; r++) total += record[r];
            const uint8_t *value = record + GWQ_ROWS;
            const uint8_t *column = value + 2 * total;
            for (int level = 0; k < total; level++)
                for (int r = 0; r < GWQ_ROWS; r++) {
                    if (record[r] <= level) continue;
                    float v = power * half(value + 2 * k);
                    int64_t row = g * GWQ_ROWS + r;
                    int64_t col = c + column[k];
                    k++;
                    for (int64_t t = 0; t < in->n; t++)
                        y[t * m->rows + row] += v * in->x[t * in->cols + col];
                }
            record = column + total;
        }
    }
}

static inline void tile_matmul(int bits, unpack_fn unpack, const gwq_matrix *m, int64_t first,
                               int64_t last, const gwq_input *in, float *y) {
    const float power = gwq_power(m);
    struct block e;
    uint8_t copy[GWQ_TILE_BYTES];
    for (int64_t g = first; g < last; g++) {
        const uint8_t *tile = gwq_group(m, bits, g);
        float *out = y + g * GWQ_ROWS;
        int64_t rows = min64(GWQ_ROWS, m->rows - g * GWQ_ROWS);
        int64_t nb;
        for (int64_t t = 0; t < in->n; t++)
            for (int64_t r = 0; r < rows; r++) out[t * m->rows + r] = 0;
        for (int64_t b = 0; b < in->blocks; b += nb, tile += nb * gwq_block_bytes(bits)) {
            nb = min64(GWQ_TILE_BLOCKS, in->blocks - b);
            const uint8_t *whole = gwq_whole_tile(m, bits, tile, b, copy);
            for (int64_t k = 0; k < nb; k++) {
                decode(bits, unpack, gwq_table(m), whole, nb, k, &e);
                for (int64_t t = 0; t < in->n; t++) {
                    const int64_t at = gwq_code_at(in, t, b + k);
                    const int8_t *q = in->q + at * GWQ_BLOCK;
                    float dx = in->scale[at];
                    for (int64_t r = 0; r < rows; r++) {
                        int32_t sum = 0;
                        for (int i = 0; i < GWQ_BLOCK; i++)
                            sum += e.scale[r][i / 16] * e.entry[r][i] * q[i];
                        out[t * m->rows + r] += dx * (float)sum;
                    }
                }
            }
        }
        for (int64_t t = 0; t < in->n; t++)
            for (int64_t r = 0; r < rows; r++)
                out[t * m->rows + r] *= power * half(gwq_row_scales(m, g) + 2 * r);
    }
    if (m->outliers) sparse(m, first, last, in, y);
}

#define TILE_TYPE(bits)                                                                     \
    static void dequantize_gwq##bits(const gwq_matrix *m, int64_t group, float *out) {      \
        tile_dequantize(bits, unpack##bits, m, group, out);                                 \
    }                                                                                       \
    static void matmul_gwq##bits(const gwq_matrix *m, int64_t first, int64_t last,          \
                                 const gwq_input *in, float *y) {                           \
        tile_matmul(bits, unpack##bits, m, first, last, in, y);                             \
    }
TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)
TILE_TYPE(5)
TILE_TYPE(6)

/* --- the row ---------------------------------------------------------------------------------- */

static int always(void) { return 1; }

#define GGML_TYPES(slot)                         \
    [GWQ_K_F32] = gwq_scalar_##slot##_f32,       \
    [GWQ_K_F16] = gwq_scalar_##slot##_f16,       \
    [GWQ_K_BF16] = gwq_scalar_##slot##_bf16,     \
    [GWQ_K_Q8_0] = gwq_scalar_##slot##_q8_0,     \
    [GWQ_K_Q4_0] = gwq_scalar_##slot##_q4_0,     \
    [GWQ_K_IQ4_NL] = gwq_scalar_##slot##_iq4_nl
#define TILE_TYPES(slot)          \
    [GWQ_K_GWQ2] = slot##_gwq2,   \
    [GWQ_K_GWQ3] = slot##_gwq3,   \
    [GWQ_K_GWQ4] = slot##_gwq4,   \
    [GWQ_K_GWQ5] = slot##_gwq5,   \
    [GWQ_K_GWQ6] = slot##_gwq6

const gwq_kernels gwq_scalar = {
    .isa = "scalar",
    .supported = always,
    .quantize = gwq_scalar_quantize,
    .panel = gwq_scalar_panel,
    .matmul = {GGML_TYPES(matmul), TILE_TYPES(matmul)},
    .sparse = sparse,
    .dequantize = {GGML_TYPES(dequantize), TILE_TYPES(dequantize)},
    .rmsnorm = gwq_scalar_rmsnorm,
    .activate = gwq_scalar_activate,
    .softcap = gwq_scalar_softcap,
    .convolve = gwq_scalar_convolve,
    .to_halves = gwq_scalar_to_halves,
    .scores = gwq_scalar_scores,
    .largest = gwq_scalar_largest,
    .exponents = gwq_scalar_exponents,
    .mix = gwq_scalar_mix,
    .from_cache = gwq_scalar_from_cache,
    .products = gwq_scalar_products,
    .weigh = gwq_scalar_weigh,
    .read = gwq_scalar_read_memory,
    .encode = gwq_encode_scalar,
    .multiply = gwq_multiply_scalar,
};
