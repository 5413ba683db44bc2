/* Tile matrices in vectors of 32 bytes, 8 rows each: what avx2.c and avxvnni.c share. They differ
 * in how they take bits out of bytes, multiply and add up 16 columns, and define, before they
 * include this:
 *   bits_at(v, shift, mask)        (v >> shift) & mask of every byte, of constants; a shift below 0
 *                                  is one to the left
 *   first_sum(bias)                what a sum begins with, of the bias in every 32-bit lane
 *   add_products(&sum, entries, x) sum += products of biased entries and four activations
 *   spread_scales(s, h)            scales of the rows 8h .. 8h+7, in 1 / UNIT
 *   weighted(sum, scales)          their products in every 32-bit lane */
#ifndef GWQ_AVX2_TILES_H
#define GWQ_AVX2_TILES_H
#include "avx2_outliers.h"
#include "avx2_unpack.h"
#include "cpu/tiles.h"

/* The 4 bytes at p, activations or the bias of 16 columns, in every 32-bit lane */
GWQ_INLINE __m256i quad(const void *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return _mm256_set1_epi32(v);
}

/* As `quad`, loaded for one half of the rows alone: those of 32 columns
 * are too many to keep for both, and gcc 12 would store them to the stack and load them again. */
GWQ_INLINE __m256i quad_of_half(const void *p, const int h) {
    __m256i v;
    /* h keeps the two apart */
    __asm__("vpbroadcastd %1, %0 # %2" : "=x"(v) : "m"(*(const int32_t(*)[1])p), "g"(h));
    return v;
}

/* --- tile types, one token -------------------------------------------------------------------- */

/* y[8] += dx * dot */
GWQ_INLINE void add_rows(float dx, __m256i dot, float *y) {
    __m256 sum = _mm256_load_ps(y);
    _mm256_store_ps(y, _mm256_fmadd_ps(_mm256_set1_ps(dx), _mm256_cvtepi32_ps(dot), sum));
}

GWQ_INLINE void block(int bits, int unit, quads_fn quads, scales_fn scales, const uint8_t *table,
                      const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx,
                      const int16_t *bias, float *y) {
    const __m256i t = load(table);
    __m256i s[4], v[8];
    __m256i dot[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}; /* rows 0 .. 7, 8 .. 15 */
    scales(scale, s);
#pragma GCC unroll 4
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            quads(t, line + 8 * bits * u + 32 * h, v);
#pragma GCC unroll 8
            for (int p = 0; p < unit; p += 4) { /* 16 columns */
                const int8_t *x = q + 4 * (u + p);
                const int16_t *start = bias + (u + p) / 2;
                __m256i sum = first_sum(unit > 4 ? quad_of_half(start, h) : quad(start));
                for (int i = 0; i < 4; i++) {
                    __m256i four = unit > 4 ? quad_of_half(x + 4 * i, h) : quad(x + 4 * i);
                    add_products(&sum, v[p + i], four);
                }
                __m256i scaled = weighted(sum, spread_scales(s[(u + p) / 4], h));
                dot[h] = _mm256_add_epi32(dot[h], scaled);
            }
        }
    for (int h = 0; h < 2; h++) add_rows(dx, dot[h], y + 8 * h);
}

/* The same for `count` (constant) tokens from token at / in->blocks on, `at` of their first block:
 * y[i] is what `block` would make of each. */
GWQ_INLINE void blocks(int bits, int unit, quads_fn quads, scales_fn scales, const uint8_t *table,
                       const uint8_t *scale, const uint8_t *line, const gwq_input *in, int64_t at,
                       const int count, float (*y)[GWQ_ROWS]) {
    const __m256i t = load(table);
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
    __m256i s[4];
    scales(scale, s);
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
        __m256i v[8], dot[4];
        for (int i = 0; i < count; i++) dot[i] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int u = 0; u < GWQ_BLOCK / 4; u += unit) {
            quads(t, line + 8 * bits * u + 32 * h, v);
#pragma GCC unroll 2
            for (int p = 0; p < unit; p += 4) {
                const __m256i factor = spread_scales(s[(u + p) / 4], h);
#pragma GCC unroll 4
                for (int i = 0; i < count; i++) {
                    const int8_t *x = q + i * in->blocks * GWQ_BLOCK + 4 * (u + p);
                    __m256i sum = first_sum(quad(bias + i * 8 * in->blocks + (u + p) / 2));
                    for (int k = 0; k < 4; k++) add_products(&sum, v[p + k], quad(x + 4 * k));
                    dot[i] = _mm256_add_epi32(dot[i], weighted(sum, factor));
                }
            }
        }
        for (int i = 0; i < count; i++)
            add_rows(in->scale[at + i * in->blocks], dot[i], y[i] + 8 * h);
    }
}

/* --- tile types, several tokens --------------------------------------------------------------- */

GWQ_INLINE void decode(int bits, int unit, quads_fn quads, const uint8_t *table,
                       const uint8_t *line, gwq_entries entries) {
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit)
        for (int h = 0; h < 2; h++) {
            __m256i v[8];
            quads(load(table), line + 32 * h, v);
            for (int p = 0; p < unit; p++)
                _mm256_store_si256((__m256i *)&entries[u + p][32 * h], v[p]);
        }
}

/* scales[k]: `spread_scales` of 16 columns */
GWQ_INLINE void decode_scales(scales_fn f, const uint8_t *scale, gwq_scales scales) {
    __m256i s[4];
    f(scale, s);
    for (int k = 0; k < 4; k++)
        for (int h = 0; h < 2; h++)
            _mm256_store_si256((__m256i *)&scales[k][32 * h], spread_scales(s[k], h));
}

/* `count` (constant, at most AT_ONCE) tokens against nb decoded blocks: 3 tokens x 16 rows fill the
 * 16 registers. */
enum { AT_ONCE = 3 };
GWQ_INLINE void few_tokens(const gwq_scales *scales, const gwq_entries *entries, int nb,
                           const gwq_input *in, int64_t t, const int count, int64_t b,
                           float (*acc)[GWQ_ROWS]) {
    const int64_t at = gwq_code_at(in, t, b);
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
    const float *dx = in->scale + at;
    for (int k = 0; k < nb; k++, q += GWQ_PANEL * GWQ_BLOCK, bias += 8 * GWQ_PANEL,
             dx += GWQ_PANEL) {
        __m256i dot[AT_ONCE][2];
        for (int i = 0; i < count; i++) dot[i][0] = dot[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
        for (int j = 0; j < 4; j++) { /* 16 columns */
            const uint8_t *v = entries[k][4 * j];
            __m256i s[AT_ONCE][2];
#pragma GCC unroll 3
            for (int i = 0; i < count; i++)
                s[i][0] = s[i][1] = first_sum(quad(bias + 8 * i + 2 * j));
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                const __m256i v0 = load_once(v + 64 * p), v1 = load_once(v + 64 * p + 32);
#pragma GCC unroll 3
                for (int i = 0; i < count; i++) {
                    __m256i x = quad(q + GWQ_BLOCK * i + 16 * j + 4 * p);
                    add_products(&s[i][0], v0, x);
                    add_products(&s[i][1], v1, x);
                }
            }
#pragma GCC unroll 3
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    __m256i scaled = weighted(s[i][h], load(&scales[k][j][32 * h]));
                    dot[i][h] = _mm256_add_epi32(dot[i][h], scaled);
                }
        }
#pragma GCC unroll 3
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) add_rows(dx[i], dot[i][h], acc[i] + 8 * h);
    }
}

static NOINLINE void tokens(const struct decoded *tile, int groups, int nb, const gwq_input *in,
                            int64_t t, int count, int64_t b, struct sums *sums) {
    const gwq_scales *scales = tile->scales;
    const gwq_entries *entries = tile->entries;
    float(*acc)[GWQ_ROWS] = sums->dense;
    int i = 0;
    (void)groups; /* 1 */
    for (; count - i >= 3 && count - i != 4; i += 3) /* a single token would take as long as two */
        few_tokens(scales, entries, nb, in, t + i, 3, b, acc + i);
    for (; i + 2 <= count; i += 2) few_tokens(scales, entries, nb, in, t + i, 2, b, acc + i);
    if (i < count) few_tokens(scales, entries, nb, in, t + i, 1, b, acc + i);
}

/* N: bits of a code */
#define TILE_FUNCTIONS(N)                                                                       \
    GWQ_INLINE void block##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,   \
                             const int8_t *q, float dx, const int16_t *bias, float *y) {        \
        block(N, QUADS##N, quads##N, scales##N, table, scale, line, q, dx, bias, y);            \
    }                                                                                           \
    static NOINLINE void two##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                       const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {                 \
        blocks(N, QUADS##N, quads##N, scales##N, table, scale, line, in, at, 2, y);             \
    }                                                                                           \
    static NOINLINE void four##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                        const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {                \
        blocks(N, QUADS##N, quads##N, scales##N, table, scale, line, in, at, 4, y);             \
    }                                                                                           \
    static void decode##N(const uint8_t *table, const uint8_t *line, gwq_entries entries) {     \
        decode(N, QUADS##N, quads##N, table, line, entries);                                    \
    }                                                                                           \
    static void decode_scales##N(const uint8_t *scale, gwq_scales scales) {                     \
        decode_scales(scales##N, scale, scales);                                                \
    }

/* COUNT: row groups at the same time; AHEAD: bytes of prefetch */
#define TILE_OPS_256(N, COUNT, AHEAD)  \
    {                                  \
        TILE_OPS(N)                    \
        .outliers = float_outliers,    \
        .record = float_record,        \
        .multiply = multiply_values,   \
        .multiply_few = multiply_few,  \
        .expand = expand,              \
        .halves = gwq_avx2_halves,     \
        .streams = COUNT,              \
        .ahead = AHEAD,                \
        .groups = 1,                   \
        .unit = UNIT,                  \
        .tables = repeated_table,      \
        .panel = gwq_avx2_panel,       \
        .tokens = tokens,              \
    }

#define TILE_TYPE(N, COUNT, AHEAD)                                 \
    TILE_FUNCTIONS(N)                                              \
    static const tile_ops ops##N = TILE_OPS_256(N, COUNT, AHEAD);  \
    TILE_MATMUL(N)
#endif
