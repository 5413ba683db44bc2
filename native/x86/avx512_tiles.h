/* Tile matrices with AVX-512: what avx512.c and avx512vbmi.c share. They include it after the
 * functions that turn lines into table entries. */
#ifndef GWQ_AVX512_TILES_H
#define GWQ_AVX512_TILES_H
#include "avx512.h"
#include "avx512_outliers.h"
#include "vendor.h"

#ifdef GWQ_SIMDE
#define PANEL gwq_avx2_panel
#else
#define PANEL gwq_avx512_panel
#endif

/* Those that a width does not use are not loaded. */
GWQ_INLINE void load_tables(const uint8_t *table, __m512i t[TABLES]) {
#pragma GCC unroll 4
    for (int i = 0; i < TABLES; i++) t[i] = load_once(table + 64 * i);
}

/* --- one token -------------------------------------------------------------------------------- */

GWQ_INLINE void add_rows(float scale, __m512 sum, float *y) {
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_set1_ps(scale), sum, _mm512_loadu_ps(y)));
}

GWQ_INLINE void block(int bits, int unit, quads_fn quads, int sub, scales_fn scales,
                      const uint8_t *table, const uint8_t *scale, const uint8_t *line,
                      const int8_t *q, float dx, const int16_t *bias, float *y) {
    __m512i t[TABLES];
    load_tables(table, t);
    __m512i v[8], dot[2], sum = _mm512_setzero_si512();
    __m128i s[4];
    scales(scale, s);
#pragma GCC unroll 4
    for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
#pragma GCC unroll 2
        for (int k = 0; k < sub / 4; k++) { /* 16 columns: a chain of additions stays short */
            if ((u + 4 * k) % unit == 0) quads(t, line + 8 * bits * (u + 4 * k), v);
            dot[k] = bias16(bias + u / 2 + 2 * k);
            for (int p = 0; p < 4; p++)
                add_quads(&dot[k], v[(u + 4 * k) % unit + p], q + 4 * (u + 4 * k + p));
        }
        if (sub == 8) dot[0] = _mm512_add_epi32(dot[0], dot[1]);
        sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(dot[0], widened(s[u / sub])));
    }
    add_rows(dx, floats16(sum), y);
}

/* The same for `count` (constant) tokens from token at / in->blocks on, `at` of their first block:
 * y[i] is what `block` would make of each. */
GWQ_INLINE void blocks(int bits, int unit, quads_fn quads, int sub, scales_fn scales,
                       const uint8_t *table, const uint8_t *scale, const uint8_t *line,
                       const gwq_input *in, int64_t at, const int count, float (*y)[GWQ_ROWS]) {
    __m512i t[TABLES];
    load_tables(table, t);
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int32_t *start = in->start + 4 * at;
    __m512i v[8], dot[2][4], sum[4];
    __m128i s[4];
    scales(scale, s);
    for (int i = 0; i < count; i++) sum[i] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
#pragma GCC unroll 2
        for (int k = 0; k < sub / 4; k++) {
            if ((u + 4 * k) % unit == 0) quads(t, line + 8 * bits * (u + 4 * k), v);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                dot[k][i] = _mm512_set1_epi32(start[i * 4 * in->blocks + u / 4 + k]);
                for (int p = 0; p < 4; p++)
                    add_quads(&dot[k][i], v[(u + 4 * k) % unit + p],
                              q + i * in->blocks * GWQ_BLOCK + 4 * (u + 4 * k + p));
            }
        }
        const __m512i w = widened(s[u / sub]);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            if (sub == 8) dot[0][i] = _mm512_add_epi32(dot[0][i], dot[1][i]);
            sum[i] = _mm512_add_epi32(sum[i], _mm512_mullo_epi32(dot[0][i], w));
        }
    }
    for (int i = 0; i < count; i++)
        add_rows(in->scale[at + i * in->blocks], floats16(sum[i]), y[i]);
}

/* --- several tokens --------------------------------------------------------------------------- */

GWQ_INLINE void decode(int bits, int unit, quads_fn quads, const uint8_t *table,
                       const uint8_t *line, gwq_entries entries) {
    __m512i t[TABLES];
    load_tables(table, t);
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit) {
        __m512i v[8];
        quads(t, line, v);
        for (int p = 0; p < unit; p++) _mm512_storeu_si512(entries[u + p], v[p]);
    }
}

/* scales[k]: float, of the k-th sub-block */
GWQ_INLINE void decode_scales(int sub, scales_fn f, const uint8_t *scale, gwq_scales scales) {
    __m128i s[4];
    f(scale, s);
    for (int k = 0; k < GWQ_BLOCK / 4 / sub; k++)
        _mm512_storeu_ps((float *)scales[k], floats16(widened(s[k])));
}

/* Four tokens against the decoded tiles of `groups` (constant) row groups, which share every
 * activation that is loaded. Multiplications limit it: Zen 5 begins two in a cycle, on pipes of
 * their own. For a block with sub-blocks of 16 columns, a row group and a token these are 16 of
 * entries and activations, 4 with the sub-blocks' scales and one with the activations', so 10.5
 * cycles at least, which is what it takes. Anything else is done beside them: hence `start`, which
 * needs no multiplication as `bias` does. */
enum { AT_ONCE = 4 };
GWQ_INLINE void four_tokens(int sub, const struct decoded *tile, const int groups, int nb,
                            const gwq_input *in, int64_t at, struct sums *sums, int first) {
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int32_t *start = in->start + 4 * at;
    const float *dx = in->scale + at;
    for (int k = 0; k < nb; k++) {
        __m512i dot[TOGETHER][AT_ONCE];
        __m512 sum[TOGETHER][AT_ONCE];
        for (int g = 0; g < groups; g++)
            for (int i = 0; i < AT_ONCE; i++) sum[g][i] = _mm512_setzero_ps();
#pragma GCC unroll 1
        for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
#pragma GCC unroll 4
            for (int i = 0; i < AT_ONCE; i++) {
                __m512i from = _mm512_set1_epi32(start[4 * i + u / 4]);
                if (sub == 8)
                    from = _mm512_add_epi32(from, _mm512_set1_epi32(start[4 * i + u / 4 + 1]));
                for (int g = 0; g < groups; g++) dot[g][i] = from;
            }
#pragma GCC unroll 8
            for (int p = 0; p < sub; p++) {
                __m512i v[TOGETHER];
                for (int g = 0; g < groups; g++) v[g] = load_once(tile[g].entries[k][u + p]);
#pragma GCC unroll 4
                for (int i = 0; i < AT_ONCE; i++) {
                    const __m512i x = quad(q + GWQ_BLOCK * i + 4 * (u + p));
                    for (int g = 0; g < groups; g++) add_products(&dot[g][i], v[g], x);
                }
            }
            for (int g = 0; g < groups; g++) {
                __m512 scale = _mm512_loadu_ps((const float *)tile[g].scales[k][u / sub]);
#pragma GCC unroll 4
                for (int i = 0; i < AT_ONCE; i++)
                    sum[g][i] = _mm512_fmadd_ps(scale, floats16(dot[g][i]), sum[g][i]);
            }
        }
        for (int g = 0; g < groups; g++)
            for (int i = 0; i < AT_ONCE; i++) add_rows(dx[i], sum[g][i], sums[g].dense[first + i]);
        q += GWQ_PANEL * GWQ_BLOCK;
        start += 4 * GWQ_PANEL;
        dx += GWQ_PANEL;
    }
}

GWQ_INLINE void tokens(int sub, const struct decoded *tile, int groups, int nb,
                       const gwq_input *in, int64_t t, int count, int64_t b, struct sums *sums) {
    const int64_t at = gwq_code_at(in, t, b);
    for (int i = 0; i < count; i += AT_ONCE) {
        if (groups == 2) four_tokens(sub, tile, 2, nb, in, at + i, sums, i);
        else four_tokens(sub, tile, 1, nb, in, at + i, sums, i);
    }
}
#define TOKENS(SUB)                                                                              \
    static NOINLINE void tokens_sub##SUB(const struct decoded *tile, int groups, int nb,         \
                                         const gwq_input *in, int64_t t, int count, int64_t b,   \
                                         struct sums *sums) {                                    \
        tokens(SUB, tile, groups, nb, in, t, count, b, sums);                                    \
    }
TOKENS(4)
TOKENS(8)

/* On Zen 5 one row group at a time and two pages ahead, as the processor's own prefetches stop
 * where a page of 4 KB ends: faster than no prefetches, than 1 to 4 KB ahead, and than two or four
 * row groups. Zen 4 (family 19h) is slower with pages touched, and from 3 bits on with any
 * prefetch. Sapphire Rapids reads memory 1.22 to 1.25 times as fast with three row groups, 1 KB
 * ahead, and loses 2 to 8 % by touching pages. */
#define READ_AS_ON_ZEN5 .streams = 1, .ahead = 8192, .pages = 32768,
#define READ_AS_ON_ZEN4(N) .streams = 1, .ahead = N < 3 ? 4096 : 0,
#define READ_AS_ON_INTEL .streams = 3, .ahead = 1024,

/* N: bits of a code */
#define TILE_OPS_512(N)                                  \
    TILE_OPS(N)                                          \
    .outliers = outliers,                                \
    .record = record,                                    \
    .halves = gwq_avx2_halves,                           \
    .groups = 2,                                         \
    .unit = 1,                                           \
    .tables = tables##N,                                 \
    .panel = PANEL,                                      \
    .tokens = SUB##N == 4 ? tokens_sub4 : tokens_sub8,
/* Emulated, one of them is enough: each takes minutes to compile. */
#ifdef GWQ_SIMDE
#define TILE_READS(N)                                                   \
    static const tile_ops ops##N = {TILE_OPS_512(N) READ_AS_ON_INTEL}; \
    TILE_MATMUL(N)
#else
#define TILE_READS(N)                                                           \
    static const tile_ops ops##N = {TILE_OPS_512(N) READ_AS_ON_ZEN5};          \
    static const tile_ops amdfam19h##N = {TILE_OPS_512(N) READ_AS_ON_ZEN4(N)}; \
    static const tile_ops intel##N = {TILE_OPS_512(N) READ_AS_ON_INTEL};       \
    TILE_MATMUL_BY_CPU(N, ONE_TOKEN_ON(intel, N) ONE_TOKEN_ON(amdfam19h, N))
#endif
#define TILE_TYPE(N)                                                                            \
    GWQ_INLINE void block##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,   \
                             const int8_t *q, float dx, const int16_t *bias, float *y) {        \
        block(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, q, dx, bias,        \
              y);                                                                               \
    }                                                                                           \
    static NOINLINE void two##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                       const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {                 \
        blocks(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, in, at, 2, y);     \
    }                                                                                           \
    static NOINLINE void four##N(const uint8_t *table, const uint8_t *scale, const uint8_t *line,\
                        const gwq_input *in, int64_t at, float (*y)[GWQ_ROWS]) {                \
        blocks(N, QUADS##N, quads##N, SUB##N, scales##N, table, scale, line, in, at, 4, y);     \
    }                                                                                           \
    static void decode##N(const uint8_t *table, const uint8_t *line, gwq_entries entries) {     \
        decode(N, QUADS##N, quads##N, table, line, entries);                                    \
    }                                                                                           \
    static void decode_scales##N(const uint8_t *scale, gwq_scales scales) {                     \
        decode_scales(SUB##N, scales##N, scale, scales);                                        \
    }                                                                                           \
    TILE_READS(N)
#endif
