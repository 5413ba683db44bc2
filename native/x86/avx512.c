/* AVX-512 (F, BW, DQ, VL, VNNI): tile matrices. */
#include "avx512_unpack.h"
#include "cpu/tiles.h"

static int supported(void) {
#ifdef GWQ_SIMDE
    return gwq_avx2.supported();
#else
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && gwq_avx2.supported();
#endif
}

/* --- one token -------------------------------------------------------------------------------- */

GWQ_INLINE void add_rows(float scale, __m512 sum, float *y) {
    _mm512_storeu_ps(y, _mm512_fmadd_ps(_mm512_set1_ps(scale), sum, _mm512_loadu_ps(y)));
}

GWQ_INLINE void block(int bits, int unit, quads_fn quads, int sub, scales_fn scales,
                      const uint8_t *table, const uint8_t *scale, const uint8_t *line,
                      const int8_t *q, float dx, const int16_t *bias, float *y) {
    const __m512i t = _mm512_loadu_si512(table);
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
    const __m512i t = _mm512_loadu_si512(table);
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
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
                dot[k][i] = bias16(bias + i * 8 * in->blocks + u / 2 + 2 * k);
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

GWQ_INLINE __mmask16 rows_above(__m512i count, int level) {
    return _mm512_cmpgt_epi32_mask(count, _mm512_set1_epi32(level));
}

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product,
                       float *y) {
    __m512i counts = bytes16(count);
    __m512 sum = _mm512_loadu_ps(y);
    const float *end = product + total;
    for (int level = 0; level < levels || product < end; level++) {
        __mmask16 rows = rows_above(counts, level);
        sum = _mm512_add_ps(sum, expand16(rows, product));
        product += __builtin_popcount(rows);
    }
    _mm512_storeu_ps(y, sum);
}

GWQ_INLINE int total(const uint8_t *count) {
    __m128i sums = _mm_sad_epu8(_mm_loadu_si128((const __m128i *)count), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4);
}

GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count,
                                const float *x, float *product) {
    for (int k = 0; k < count; k += 16)
        _mm512_storeu_ps(product + k,
                         _mm512_mul_ps(half16(value + 2 * k), gather16(x, bytes16(column + k))));
}

/* --- several tokens --------------------------------------------------------------------------- */

GWQ_INLINE void decode(int bits, int unit, quads_fn quads, const uint8_t *table,
                       const uint8_t *line, gwq_entries entries) {
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit) {
        __m512i v[8];
        quads(_mm512_loadu_si512(table), line, v);
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

/* `count` (constant) tokens against nb decoded blocks */
GWQ_INLINE void few_tokens(int sub, const gwq_scales *scales, const gwq_entries *entries, int nb,
                           const gwq_input *in, int64_t t, const int count, int64_t b,
                           float (*acc)[GWQ_ROWS]) {
    for (int k = 0; k < nb; k++) {
        const int64_t at = t * in->blocks + b + k;
        const int8_t *q = in->q + at * GWQ_BLOCK;
        const int16_t *bias = in->bias + 8 * at;
        __m512i dot[8];
        __m512 sum[8];
        for (int i = 0; i < count; i++) sum[i] = _mm512_setzero_ps();
        for (int u = 0; u < GWQ_BLOCK / 4; u += sub) {
            for (int i = 0; i < count; i++) {
                dot[i] = bias16(bias + 8 * i * in->blocks + u / 2);
                if (sub == 8) {
                    __m512i more = bias16(bias + 8 * i * in->blocks + u / 2 + 2);
                    dot[i] = _mm512_add_epi32(dot[i], more);
                }
            }
            for (int p = 0; p < sub; p++) {
                __m512i v = _mm512_loadu_si512(entries[k][u + p]);
                for (int i = 0; i < count; i++)
                    add_quads(&dot[i], v, q + i * in->blocks * GWQ_BLOCK + 4 * (u + p));
            }
            __m512 scale = _mm512_loadu_ps((const float *)scales[k][u / sub]);
            for (int i = 0; i < count; i++)
                sum[i] = _mm512_fmadd_ps(scale, floats16(dot[i]), sum[i]);
        }
        for (int i = 0; i < count; i++) add_rows(in->scale[at + i * in->blocks], sum[i], acc[i]);
    }
}

GWQ_INLINE void tokens(int sub, const gwq_scales *scales, const gwq_entries *entries, int nb,
                       const gwq_input *in, int64_t t, int count, int64_t b,
                       float (*acc)[GWQ_ROWS]) {
    int i = 0;
    for (; i + 8 <= count; i += 8) few_tokens(sub, scales, entries, nb, in, t + i, 8, b, acc + i);
    if (count & 4) {
        few_tokens(sub, scales, entries, nb, in, t + i, 4, b, acc + i);
        i += 4;
    }
    if (count & 2) {
        few_tokens(sub, scales, entries, nb, in, t + i, 2, b, acc + i);
        i += 2;
    }
    if (count & 1) few_tokens(sub, scales, entries, nb, in, t + i, 1, b, acc + i);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 16) {
        __m512 s = _mm512_loadu_ps(sum + t);
        _mm512_storeu_ps(sum + t, _mm512_fmadd_ps(_mm512_set1_ps(v), _mm512_loadu_ps(x + t), s));
    }
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    return rows_above(bytes16(count), level);
}

/* N: bits of a code; COUNT: row groups at the same time; AHEAD: bytes of prefetch; APART: outliers
 * after the dense part */
#define TILE_TYPE(N, COUNT, AHEAD, APART)                                                       \
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
    static __attribute__((noinline)) void tokens##N(                                            \
        const gwq_scales *scales, const gwq_entries *entries, int nb, const gwq_input *in,      \
        int64_t t, int count, int64_t b, float (*acc)[GWQ_ROWS]) {                              \
        tokens(SUB##N, scales, entries, nb, in, t, count, b, acc);                              \
    }                                                                                           \
    static const tile_ops ops##N = {                                                            \
        .bits = N,                                                                              \
        .streams = COUNT,                                                                       \
        .apart = APART,                                                                         \
        .ahead = AHEAD,                                                                         \
        .unit = 1,                                                                              \
        .block = block##N,                                                                      \
        .two = two##N,                                                                          \
        .four = four##N,                                                                        \
        .multiply = multiply_values,                                                            \
        .expand = expand,                                                                       \
        .decode = decode##N,                                                                    \
        .scales = decode_scales##N,                                                             \
        .tokens = tokens##N,                                                                    \
        .halves = gwq_avx2_halves,                                                              \
        .total = total,                                                                         \
        .above = above,                                                                         \
        .spread = spread,                                                                       \
    };                                                                                          \
    static void matmul_gwq##N(const gwq_matrix *m, int64_t first, int64_t last,                 \
                              const gwq_input *in, float *y) {                                  \
        tile_matmul(&ops##N, m, first, last, in, y);                                            \
    }
/* On Zen 4 with 4 KB pages. The processor's own prefetches keep up with one row group, and what is
 * asked for beside them only gets in their way. At two and three bits the loops are longer than the
 * reading takes. */
TILE_TYPE(2, STREAMS, 1024, 0)
TILE_TYPE(3, STREAMS, 1536, 0)
TILE_TYPE(4, 1, 0, 1)
TILE_TYPE(5, 1, 0, 1)
TILE_TYPE(6, 1, 0, 1)

/* Empty slots are AVX2's (dispatch.c): there memory or plain float arithmetic is the limit. */
const gwq_kernels gwq_avx512 = {
    .isa = "avx512",
    .supported = supported,
    .matmul = {[GWQ_K_GWQ2] = matmul_gwq2,
               [GWQ_K_GWQ3] = matmul_gwq3,
               [GWQ_K_GWQ4] = matmul_gwq4,
               [GWQ_K_GWQ5] = matmul_gwq5,
               [GWQ_K_GWQ6] = matmul_gwq6},
    .encode = gwq_encode_avx512,
    .multiply = gwq_multiply_avx512,
};
