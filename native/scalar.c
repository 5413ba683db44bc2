/* The reference: every slot, in plain C, as short as the format allows. */
#include <math.h>
#include <string.h>
#include "kernels.h"

/* IEEE half to float, exact, subnormals included. */
static float half(const uint8_t *p) {
    uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8, sign = (h & 0x8000u) << 16, magnitude = (h & 0x7fffu) << 13;
    uint32_t bits = (h & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : magnitude + 0x38000000u;
    float f;
    if (!(h & 0x7c00u)) { /* zero or subnormal: a multiple of 2^-24 */
        f = (float)(h & 0x3ffu) * 0x1p-24f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}

/* --- tile types: one function per width turns the lines of a block into codes ----------------------------------- */

typedef uint8_t codes[GWQ_ROWS][GWQ_BLOCK];

static void unpack4(const uint8_t *line, codes c) {
    for (int j = 0; j < 8; j++, line += 64)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) {
                uint8_t v = line[4 * r + i];
                c[r][8 * j + i] = v & 15;
                c[r][8 * j + 4 + i] = v >> 4;
            }
}

static void unpack3(const uint8_t *line, codes c) {
    for (int j = 0; j < 2; j++, line += 192)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++) {
                uint8_t A = line[4 * r + i], B = line[64 + 4 * r + i], C = line[128 + 4 * r + i];
                uint8_t *v = &c[r][32 * j + i];
                v[0] = A & 7, v[4] = A >> 4 & 7, v[8] = B & 7, v[12] = B >> 4 & 7, v[16] = C & 7, v[20] = C >> 4 & 7;
                v[24] = (A >> 3 & 1) | (B >> 3 & 1) << 1 | (C >> 3 & 1) << 2;
                v[28] = A >> 7 | B >> 7 << 1 | C >> 7 << 2;
            }
}

static void unpack2(const uint8_t *line, codes c) {
    for (int j = 0; j < 4; j++, line += 64)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++)
                for (int p = 0; p < 4; p++) c[r][16 * j + 4 * p + i] = line[4 * r + i] >> 2 * p & 3;
}

/* Scales of a block, for each 16 columns: a sub-block of 32 repeats its own. */
static void unpack_scales(int bits, const uint8_t *p, int s[GWQ_ROWS][4]) {
    for (int r = 0; r < GWQ_ROWS; r++) {
        if (bits == 4) {
            for (int k = 0; k < 3; k++) s[r][k] = (p[16 * k + r] & 63) - SCALE_BIAS;
            s[r][3] = (p[r] >> 6 | p[16 + r] >> 6 << 2 | p[32 + r] >> 6 << 4) - SCALE_BIAS;
        } else {
            int high = p[16 + r % 8] >> (r < 8 ? 0 : 4) & 15;
            s[r][0] = s[r][1] = (p[r] & 63) - SCALE_BIAS;
            s[r][2] = s[r][3] = (p[r] >> 6 | high << 2) - SCALE_BIAS;
        }
    }
}

typedef void (*unpack)(const uint8_t *, codes);

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* A block: its entries and the scales of each 16 columns. */
struct block {
    int entry[GWQ_ROWS][GWQ_BLOCK], scale[GWQ_ROWS][4];
};

/* Block k of a tile of nb blocks. */
static inline void decode(int bits, unpack f, const int8_t *table, const uint8_t *tile, int64_t nb, int64_t k, struct block *out) {
    codes c;
    f(tile + nb * gwq_scale_bytes(bits) + k * gwq_line_bytes(bits), c);
    unpack_scales(bits, tile + k * gwq_scale_bytes(bits), out->scale);
    for (int r = 0; r < GWQ_ROWS; r++) { /* above a code: the 4 - bits topmost bits of its neighbour's */
        const uint8_t *before = c[r / GWQ_RING * GWQ_RING + (r + GWQ_RING - 1) % GWQ_RING];
        for (int i = 0; i < GWQ_BLOCK; i++) out->entry[r][i] = table[c[r][i] | before[i] >> (2 * bits - 4) << bits];
    }
}

static inline void tile_dequantize(int bits, unpack f, const gwq_matrix *m, int64_t group, float *out) {
    const uint8_t *tile = gwq_group(m, bits, group);
    int64_t rows = min64(GWQ_ROWS, m->rows - group * GWQ_ROWS), blocks = gwq_blocks(m->cols), nb;
    struct block e;
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * gwq_block_bytes(bits)) {
        nb = min64(GWQ_TILE_BLOCKS, blocks - b);
        for (int64_t k = 0; k < nb; k++) {
            decode(bits, f, gwq_table(m), tile, nb, k, &e);
            int64_t first = (b + k) * GWQ_BLOCK, width = min64(GWQ_BLOCK, m->cols - first);
            for (int64_t r = 0; r < rows; r++) {
                float d = half(gwq_row_scales(m, group) + 2 * r);
                for (int64_t i = 0; i < width; i++) /* as floats: so a zero has the sign of its factors */
                    out[r * m->cols + first + i] = d * ((float)e.scale[r][i / 16] * (float)e.entry[r][i]);
            }
        }
    }
}

static void sparse(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    for (int64_t g = first; g < last; g++) {
        const uint8_t *record = gwq_records(m, g);
        for (int64_t c = 0; c < m->cols; c += GWQ_TILE) {
            int total = 0, k = 0;
            for (int r = 0; r < GWQ_ROWS; r++) total += record[r];
            const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
            for (int level = 0; k < total; level++)
                for (int r = 0; r < GWQ_ROWS; r++) {
                    if (record[r] <= level) continue;
                    float v = half(value + 2 * k);
                    int64_t col = c + column[k++];
                    for (int64_t t = 0; t < in->n; t++) y[t * m->rows + g * GWQ_ROWS + r] += v * in->x[t * in->cols + col];
                }
            record = column + total;
        }
    }
}

static inline void tile_matmul(int bits, unpack f, const gwq_matrix *m, int64_t first, int64_t last,
                               const gwq_input *in, float *y) {
    struct block e;
    for (int64_t g = first; g < last; g++) {
        const uint8_t *tile = gwq_group(m, bits, g);
        int64_t rows = min64(GWQ_ROWS, m->rows - g * GWQ_ROWS), nb;
        for (int64_t t = 0; t < in->n; t++)
            for (int64_t r = 0; r < rows; r++) y[t * m->rows + g * GWQ_ROWS + r] = 0;
        for (int64_t b = 0; b < in->blocks; b += nb, tile += nb * gwq_block_bytes(bits)) {
            nb = min64(GWQ_TILE_BLOCKS, in->blocks - b);
            for (int64_t k = 0; k < nb; k++) {
                decode(bits, f, gwq_table(m), tile, nb, k, &e);
                for (int64_t t = 0; t < in->n; t++) {
                    const int8_t *q = in->q + (t * in->blocks + b + k) * GWQ_BLOCK;
                    float dx = in->scale[t * in->blocks + b + k];
                    for (int64_t r = 0; r < rows; r++) {
                        int32_t sum = 0;
                        for (int i = 0; i < GWQ_BLOCK; i++) sum += e.scale[r][i / 16] * e.entry[r][i] * q[i];
                        y[t * m->rows + g * GWQ_ROWS + r] += dx * (float)sum;
                    }
                }
            }
        }
        for (int64_t t = 0; t < in->n; t++)
            for (int64_t r = 0; r < rows; r++) y[t * m->rows + g * GWQ_ROWS + r] *= half(gwq_row_scales(m, g) + 2 * r);
    }
    if (m->outliers) sparse(m, first, last, in, y);
}

#define TILE_TYPE(bits)                                                                                        \
    static void dequantize_gwq##bits(const gwq_matrix *m, int64_t group, float *out) {                         \
        tile_dequantize(bits, unpack##bits, m, group, out);                                                    \
    }                                                                                                          \
    static void matmul_gwq##bits(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) { \
        tile_matmul(bits, unpack##bits, m, first, last, in, y);                                                \
    }
TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)

/* --- stock types: one function per type turns `count` columns from `first` on, a multiple of 32, into floats ------- */

enum { UNIT = 32, STRIP = 16 }; /* columns decoded at once, and the tokens they are used for */

static inline void f32_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    memcpy(w, row + 4 * first, (size_t)count * sizeof *w);
}
static inline void f16_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    for (int64_t i = 0; i < count; i++) w[i] = half(row + 2 * (first + i));
}
static inline void bf16_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)row[2 * (first + i)] << 16 | (uint32_t)row[2 * (first + i) + 1] << 24;
        memcpy(w + i, &bits, 4);
    }
}
static inline void q8_0_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    const uint8_t *block = row + first / UNIT * 34;
    for (int64_t i = 0; i < count; i++) w[i] = half(block) * (float)(int8_t)block[2 + i];
}
static inline void q4_floats(const float *level, const uint8_t *block, float *w) {
    float d = half(block);
    for (int i = 0; i < UNIT / 2; i++) {
        w[i] = d * level[block[2 + i] & 15];
        w[UNIT / 2 + i] = d * level[block[2 + i] >> 4];
    }
}
static inline void q4_0_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    static const float level[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    (void)count; /* always a whole block */
    q4_floats(level, row + first / UNIT * 18, w);
}
static inline void iq4_nl_floats(const uint8_t *row, int64_t first, int64_t count, float *w) {
    static const float level[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    (void)count;
    q4_floats(level, row + first / UNIT * 18, w);
}

typedef void (*floats)(const uint8_t *, int64_t, int64_t, float *);

static inline void stock_dequantize(floats f, const gwq_matrix *m, int64_t group, float *out) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    for (int64_t r = group * GWQ_ROWS; r < min64(m->rows, (group + 1) * GWQ_ROWS); r++, out += m->cols)
        for (int64_t i = 0; i < m->cols; i += UNIT)
            f((const uint8_t *)m->data + (size_t)r * stride, i, min64(UNIT, m->cols - i), out + i);
}

static inline void stock_matmul(floats f, const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    for (int64_t r = first * GWQ_ROWS; r < min64(m->rows, last * GWQ_ROWS); r++)
        for (int64_t t = 0; t < in->n; t += STRIP) {
            float w[UNIT], sum[STRIP][8] = {{0}}; /* eight partial sums: the rounding error of one long chain would show */
            int64_t tokens = min64(STRIP, in->n - t);
            for (int64_t i = 0; i < m->cols; i += UNIT) {
                int64_t count = min64(UNIT, m->cols - i);
                f((const uint8_t *)m->data + (size_t)r * stride, i, count, w);
                for (int64_t s = 0; s < tokens; s++) {
                    const float *x = in->x + (t + s) * m->cols + i;
                    for (int64_t k = 0; k < count; k++) sum[s][k % 8] += w[k] * x[k];
                }
            }
            for (int64_t s = 0; s < tokens; s++)
                y[(t + s) * m->rows + r] = ((sum[s][0] + sum[s][1]) + (sum[s][2] + sum[s][3])) + ((sum[s][4] + sum[s][5]) + (sum[s][6] + sum[s][7]));
        }
}

#define STOCK_TYPE(name)                                                                                       \
    static void dequantize_##name(const gwq_matrix *m, int64_t group, float *out) {                            \
        stock_dequantize(name##_floats, m, group, out);                                                            \
    }                                                                                                          \
    static void matmul_##name(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {    \
        stock_matmul(name##_floats, m, first, last, in, y);                                                        \
    }
STOCK_TYPE(f32)
STOCK_TYPE(f16)
STOCK_TYPE(bf16)
STOCK_TYPE(q8_0)
STOCK_TYPE(q4_0)
STOCK_TYPE(iq4_nl)

/* --- activations and elementwise ops ---------------------------------------------------------------------------- */

static void quantize(const float *x, int64_t cols, int8_t *q, float *scale, int16_t *bias) {
    for (int64_t b = 0; b < gwq_blocks(cols); b++) {
        int64_t first = b * GWQ_BLOCK, width = min64(GWQ_BLOCK, cols - first);
        float most = 0;
        for (int64_t i = 0; i < width; i++) {
            float a = fabsf(x[first + i]);
            if (a > most) most = a;
        }
        float d = most / 127, inverse = d > 0 ? 1 / d : 0;
        for (int i = 0; i < 8; i++) bias[8 * b + i] = 0;
        for (int64_t i = 0; i < GWQ_BLOCK; i++) {
            float v = i < width ? rintf(x[first + i] * inverse) : 0;
            v = v > 127 ? 127 : v < -127 ? -127 : v; /* only when 1/d overflowed */
            q[first + i] = (int8_t)(v == v ? v : 0);
            int16_t *part = bias + 8 * b + i / 16 * 2 + i % 4 / 2;
            *part = (int16_t)(*part - ENTRY_BIAS * q[first + i]);
        }
        scale[b] = d;
    }
}

static void panel(const float *x, int64_t stride, int count, int64_t width, float (*out)[GWQ_PANEL]) {
    for (int64_t c = 0; c < width; c++)
        for (int t = 0; t < GWQ_PANEL; t++) out[c][t] = t < count ? x[t * stride + c] : 0;
}

static float dot(const float *a, const float *b, int64_t count) {
    float sum[8] = {0};
    for (int64_t i = 0; i < count; i++) sum[i % 8] += a[i] * b[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

static void rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

static void activate(float *x, const float *up, int64_t count, int activation) {
    for (int64_t i = 0; i < count; i++) {
        float v = x[i], y;
        if (activation == GWQ_SILU) y = v / (1 + expf(-v));
        else if (activation == GWQ_GELU) y = 0.5f * v * erfcf(v * -0.70710678f);
        else y = v / (1 + expf(-1.59576912f * (v + 0.044715f * v * v * v))); /* (1 + tanh u) / 2 = 1 / (1 + exp(-2u)) */
        x[i] = up ? y * up[i] : y;
    }
}

static void softcap(float *x, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i++) x[i] = cap * tanhf(x[i] / cap);
}

static uint16_t to_half(float x) {
    uint32_t u, sign;
    memcpy(&u, &x, 4);
    sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return (uint16_t)(sign | 0x7e00);                     /* NaN */
    if (u >= 0x477ff000) return (uint16_t)(sign | 0x7bff);                    /* what would round beyond 65504 */
    if (u >= 0x38800000) return (uint16_t)(sign | (((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10))); /* to nearest even */
    float y;
    memcpy(&y, &u, 4);
    return (uint16_t)(sign | (uint32_t)rintf(y * 0x1p24f)); /* subnormals count in units of 2^-24 */
}

static void to_halves(const float *x, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = to_half(x[i]);
}

static float number(const void *p, int type, int64_t i) {
    if (type == GWQ_TYPE_Q8_0) {
        const uint8_t *block = (const uint8_t *)p + i / UNIT * 34;
        return half(block) * (float)(int8_t)block[2 + i % UNIT];
    }
    return type == GWQ_TYPE_F16 ? half((const uint8_t *)p + 2 * i) : ((const float *)p)[i];
}

static void scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride, int keys, int64_t dim,
                   float (*s)[GWQ_QUERIES]) {
    for (int n = 0; n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) {
            s[n][i] = 0;
            for (int64_t d = 0; d < dim; d++) s[n][i] += q[i][d] * number(k, type, n * stride + d);
        }
}

static void exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    for (int i = 0; i < GWQ_QUERIES; i++) {
        sum[i] = 0;
        for (int n = 0; n < keys; n++) sum[i] += s[n][i] = expf(s[n][i] - most[i]);
    }
}

static void mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys, int64_t dim,
                float *const out[GWQ_QUERIES]) {
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int n = 0; n < keys; n++)
            for (int64_t d = 0; d < dim; d++) out[i][d] += s[n][i] * number(v, type, n * stride + d);
}

static uint64_t read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    (void)streams, (void)ahead; /* plain C reads one stream */
    uint64_t sum = 0, word;
    for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    return sum;
}

static int always(void) { return 1; }

const gwq_kernels gwq_scalar = {
    .isa = "scalar",
    .supported = always,
    .quantize = quantize,
    .panel = panel,
    .matmul = {matmul_f32, matmul_f16, matmul_bf16, matmul_q8_0, matmul_gwq2, matmul_gwq3, matmul_gwq4,
               matmul_q4_0, matmul_iq4_nl},
    .sparse = sparse,
    .dequantize = {dequantize_f32, dequantize_f16, dequantize_bf16, dequantize_q8_0, dequantize_gwq2, dequantize_gwq3,
                   dequantize_gwq4, dequantize_q4_0, dequantize_iq4_nl},
    .rmsnorm = rmsnorm,
    .activate = activate,
    .softcap = softcap,
    .to_halves = to_halves,
    .scores = scores,
    .exponents = exponents,
    .mix = mix,
    .read = read_memory,
    .encode = gwq_encode_any,
};
