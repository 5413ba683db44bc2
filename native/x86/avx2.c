/* AVX2, FMA and F16C: tile matrices, and the row of all that the other avx2_*.c hold. */
#include "avx2.h"
#include "avx2_unpack.h"
#include "cpu/tiles.h"

static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

/* Four activations in every 32-bit lane */
GWQ_INLINE __m256i quad(const int8_t *q) {
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

/* The 4 bytes at p in every 32-bit lane, loaded for one half of the rows alone: those of 32 columns
 * are too many to keep for both, and gcc 12 would store them to the stack and load them again. */
GWQ_INLINE __m256i quad_of_half(const void *p, const int h) {
    __m256i v;
    /* h keeps the two apart */
    __asm__("vpbroadcastd %1, %0 # %2" : "=x"(v) : "m"(*(const int32_t(*)[1])p), "g"(h));
    return v;
}

/* s += the pairwise products of biased entries and activations. The sum by assembler: gcc 12
 * regroups a chain of them into a tree that keeps every product alive, or copies the sum before
 * each addition. */
GWQ_INLINE void add_pairs(__m256i *s, __m256i entries, __m256i x) {
    __asm__("vpaddw %1, %0, %0" : "+x"(*s) : "x"(_mm256_maddubs_epi16(entries, x)));
}

/* --- tile types, one token -------------------------------------------------------------------- */

/* The bias of 16 columns in every 32-bit lane */
GWQ_INLINE __m256i bias16(const int16_t *bias) {
    int32_t v;
    memcpy(&v, bias, 4);
    return _mm256_set1_epi32(v);
}

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
            for (int p = 0; p < unit; p += 4) { /* 16 columns fit 16 bits: gwq_input's bias */
                const int8_t *x = q + 4 * (u + p);
                const int16_t *start = bias + (u + p) / 2;
                __m256i sum = unit > 4 ? quad_of_half(start, h) : bias16(start);
                for (int i = 0; i < 4; i++) {
                    __m256i four = unit > 4 ? quad_of_half(x + 4 * i, h) : quad(x + 4 * i);
                    add_pairs(&sum, v[p + i], four);
                }
                __m256i scaled = _mm256_madd_epi16(sum, spread_scales(s[(u + p) / 4], h));
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
                    __m256i sum = bias16(bias + i * 8 * in->blocks + (u + p) / 2);
                    for (int k = 0; k < 4; k++) add_pairs(&sum, v[p + k], quad(x + 4 * k));
                    dot[i] = _mm256_add_epi32(dot[i], _mm256_madd_epi16(sum, factor));
                }
            }
        }
        for (int i = 0; i < count; i++)
            add_rows(in->scale[at + i * in->blocks], dot[i], y[i] + 8 * h);
    }
}

/* permute[mask]: byte r = how many of the mask's bits lie below r: where row r finds its product;
 * negative: it has none */
#define BELOW(m, r) (uint64_t)__builtin_popcount((m) & ((1 << (r)) - 1))
#define RANK(m, r) ((m) >> (r) & 1 ? BELOW(m, r) : (uint64_t)128) << 8 * (r)
#define RANKS(m)                                          \
    RANK(m, 0) | RANK(m, 1) | RANK(m, 2) | RANK(m, 3) |   \
    RANK(m, 4) | RANK(m, 5) | RANK(m, 6) | RANK(m, 7)
#define RANKS4(m) RANKS(m), RANKS((m) + 1), RANKS((m) + 2), RANKS((m) + 3)
#define RANKS16(m) RANKS4(m), RANKS4((m) + 4), RANKS4((m) + 8), RANKS4((m) + 12)
#define RANKS64(m) RANKS16(m), RANKS16((m) + 16), RANKS16((m) + 32), RANKS16((m) + 48)
static const uint64_t permute[256] = {RANKS64(0), RANKS64(64), RANKS64(128), RANKS64(192)};

GWQ_INLINE __m256 expand8(unsigned mask, const float *product, __m256 zero) {
    __m256i order = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)&permute[mask]));
    __m256 v = _mm256_loadu_ps(product);
    __asm__("" : "+x"(v)); /* as an operand in memory it takes half as long again on Zen 3 */
    v = _mm256_permutevar8x32_ps(v, order);
    return _mm256_blendv_ps(v, zero, _mm256_castsi256_ps(order));
}

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product,
                       float *y) {
    __m256 y0 = _mm256_load_ps(y), y1 = _mm256_load_ps(y + 8);
    __m128i left = _mm_loadu_si128((const __m128i *)count);
    const float *end = product + total;
    __m256 zero = _mm256_setzero_ps();
    __asm__("" : "+x"(zero)); /* knowing it, gcc 12 makes two instructions of a blend */
    for (int level = 0; level < levels || product < end; level++) {
        __m128i none = _mm_cmpeq_epi8(left, _mm_setzero_si128());
        unsigned rows = 0xffffu ^ (unsigned)_mm_movemask_epi8(none);
        left = _mm_subs_epu8(left, _mm_set1_epi8(1));
        y0 = _mm256_add_ps(y0, expand8(rows & 255, product, zero));
        product += __builtin_popcount(rows & 255);
        y1 = _mm256_add_ps(y1, expand8(rows >> 8, product, zero));
        product += __builtin_popcount(rows >> 8);
    }
    _mm256_store_ps(y, y0);
    _mm256_store_ps(y + 8, y1);
}

GWQ_INLINE int total(const uint8_t *count) {
    __m128i sums = _mm_sad_epu8(_mm_loadu_si128((const __m128i *)count), _mm_setzero_si128());
    return _mm_cvtsi128_si32(sums) + _mm_extract_epi16(sums, 4);
}

/* Element by element: a gather instruction is slower on AMD. By assembler, because gcc 12 takes one
 * instruction more for each. */
GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count,
                                const float *x, float *product) {
    for (int k = 0; k < count; k += 8) {
        uint64_t c;
        memcpy(&c, column + k, 8);
        __m128 p[4];
        for (int i = 0; i < 4; i++) { /* the lowest two bytes of c */
            p[i] = _mm_load_ss(x + (c & 255));
            __asm__("vinsertps $16, %1, %0, %0" : "+x"(p[i]) : "m"(x[c >> 8 & 255]));
            c >>= 16;
            __asm__("" : "+r"(c));
        }
        __m256 v = _mm256_set_m128(_mm_movelh_ps(p[2], p[3]), _mm_movelh_ps(p[0], p[1]));
        _mm256_storeu_ps(product + k, _mm256_mul_ps(half8(value + 2 * k), v));
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

/* scales[k]: for 16 columns 256 * scale as int16, twice for each row */
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
    const int64_t at = t * in->blocks + b;
    const int8_t *q = in->q + at * GWQ_BLOCK;
    const int16_t *bias = in->bias + 8 * at;
    const float *dx = in->scale + at;
    for (int k = 0; k < nb; k++, q += GWQ_BLOCK, bias += 8, dx++) {
        __m256i dot[AT_ONCE][2];
        for (int i = 0; i < count; i++) dot[i][0] = dot[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
        for (int j = 0; j < 4; j++) { /* 16-bit sums over 16 columns, see `block` */
            const uint8_t *v = entries[k][4 * j];
            __m256i s[AT_ONCE][2];
#pragma GCC unroll 3
            for (int i = 0; i < count; i++)
                s[i][0] = s[i][1] = bias16(bias + i * 8 * in->blocks + 2 * j);
#pragma GCC unroll 4
            for (int p = 0; p < 4; p++) {
                const __m256i v0 = load_once(v + 64 * p), v1 = load_once(v + 64 * p + 32);
#pragma GCC unroll 3
                for (int i = 0; i < count; i++) {
                    __m256i x = quad(q + i * in->blocks * GWQ_BLOCK + 16 * j + 4 * p);
                    add_pairs(&s[i][0], v0, x);
                    add_pairs(&s[i][1], v1, x);
                }
            }
#pragma GCC unroll 3
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int h = 0; h < 2; h++) {
                    __m256i scaled = _mm256_madd_epi16(s[i][h], load(&scales[k][j][32 * h]));
                    dot[i][h] = _mm256_add_epi32(dot[i][h], scaled);
                }
        }
#pragma GCC unroll 3
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) add_rows(dx[i * in->blocks], dot[i][h], acc[i] + 8 * h);
    }
}

static __attribute__((noinline)) void tokens(const gwq_scales *scales, const gwq_entries *entries,
                                             int nb, const gwq_input *in, int64_t t, int count,
                                             int64_t b, float (*acc)[GWQ_ROWS]) {
    int i = 0;
    for (; i + 3 <= count; i += 3) few_tokens(scales, entries, nb, in, t + i, 3, b, acc + i);
    if (count - i == 2) few_tokens(scales, entries, nb, in, t + i, 2, b, acc + i);
    if (count - i == 1) few_tokens(scales, entries, nb, in, t + i, 1, b, acc + i);
}

void gwq_avx2_halves(const uint8_t *value, int count, float *out) {
    int k = 0;
    for (; k + 8 <= count; k += 8) _mm256_storeu_ps(out + k, half8(value + 2 * k));
    for (; k < count; k++) out[k] = half1(value + 2 * k);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 8) {
        __m256 s = _mm256_load_ps(sum + t);
        _mm256_store_ps(sum + t, _mm256_fmadd_ps(_mm256_set1_ps(v), _mm256_loadu_ps(x + t), s));
    }
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    __m128i c = _mm_loadu_si128((const __m128i *)count), l = _mm_set1_epi8((char)level);
    return 0xffffu ^ (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(c, l), c));
}

GWQ_INLINE void tile_dequantize(const tile_ops *ops, const gwq_matrix *m, int64_t group,
                                float *out) {
    const size_t bytes = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits);
    const uint8_t *tile = gwq_group(m, ops->bits, group);
    int64_t rows = min64(GWQ_ROWS, m->rows - group * GWQ_ROWS), blocks = gwq_blocks(m->cols), nb;
    _Alignas(64) gwq_entries entries;
    _Alignas(64) gwq_scales scales;
    _Alignas(64) uint8_t table[64];
    uint8_t copy[GWQ_TILE_BYTES];
    float d[GWQ_ROWS];
    gwq_avx2_halves(gwq_row_scales(m, group), GWQ_ROWS, d);
    for (int r = 0; r < GWQ_ROWS; r++) d[r] *= gwq_power(m);
    biased_table(m, table);
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * (bytes + lines)) {
        nb = min64(GWQ_TILE_BLOCKS, blocks - b);
        const uint8_t *whole = gwq_whole_tile(m, ops->bits, tile, b, copy);
        for (int64_t k = 0; k < nb; k++) {
            ops->decode(table, whole + nb * bytes + k * lines, entries);
            ops->scales(whole + k * bytes, scales);
            int64_t first = (b + k) * GWQ_BLOCK, width = min64(GWQ_BLOCK, m->cols - first);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c += 8) { /* 8 columns are two quads */
                    uint32_t low, high;
                    int16_t scale;
                    memcpy(&low, &entries[c / 4][4 * r], 4);
                    memcpy(&high, &entries[c / 4 + 1][4 * r], 4);
                    memcpy(&scale, &scales[c / 16][4 * r], 2);
                    int64_t eight = (int64_t)((uint64_t)high << 32 | low);
                    __m256i v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight));
                    v = _mm256_sub_epi32(v, _mm256_set1_epi32(ENTRY_BIAS));
                    __m256 factor = _mm256_set1_ps(d[r] * ((float)scale * UNIT));
                    __m256 f = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(v));
                    float *to = out + r * m->cols + first + c, last[8];
                    if (width - c >= 8) {
                        _mm256_storeu_ps(to, f);
                    } else {
                        _mm256_storeu_ps(last, f);
                        memcpy(to, last, (size_t)(width - c) * sizeof *to);
                    }
                }
        }
    }
}

/* N: bits of a code; COUNT: row groups at the same time; AHEAD: bytes of prefetch */
#define TILE_TYPE(N, COUNT, AHEAD)                                                              \
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
    }                                                                                           \
    static const tile_ops ops##N = {                                                            \
        .bits = N,                                                                              \
        .streams = COUNT,                                                                       \
        .apart = 1,                                                                             \
        .ahead = AHEAD,                                                                         \
        .unit = UNIT,                                                                           \
        .block = block##N,                                                                      \
        .two = two##N,                                                                          \
        .four = four##N,                                                                        \
        .multiply = multiply_values,                                                            \
        .expand = expand,                                                                       \
        .decode = decode##N,                                                                    \
        .scales = decode_scales##N,                                                             \
        .tokens = tokens,                                                                       \
        .halves = gwq_avx2_halves,                                                              \
        .total = total,                                                                         \
        .above = above,                                                                         \
        .spread = spread,                                                                       \
    };                                                                                          \
    static void dequantize_gwq##N(const gwq_matrix *m, int64_t group, float *out) {             \
        tile_dequantize(&ops##N, m, group, out);                                                \
    }                                                                                           \
    static void matmul_gwq##N(const gwq_matrix *m, int64_t first, int64_t last,                 \
                              const gwq_input *in, float *y) {                                  \
        tile_matmul(&ops##N, m, first, last, in, y);                                            \
    }
TILE_TYPE(2, 3, 1024)
TILE_TYPE(3, 1, 1024)
TILE_TYPE(4, 3, 1024)
TILE_TYPE(5, 3, 1024)
TILE_TYPE(6, 3, 1024)

/* --- the row ---------------------------------------------------------------------------------- */

#define GGML_TYPES(slot)                    \
    [GWQ_K_F32] = gwq_avx2_##slot##_f32,    \
    [GWQ_K_F16] = gwq_avx2_##slot##_f16,    \
    [GWQ_K_BF16] = gwq_avx2_##slot##_bf16,  \
    [GWQ_K_Q8_0] = gwq_avx2_##slot##_q8_0
#define TILE_TYPES(slot)          \
    [GWQ_K_GWQ2] = slot##_gwq2,   \
    [GWQ_K_GWQ3] = slot##_gwq3,   \
    [GWQ_K_GWQ4] = slot##_gwq4,   \
    [GWQ_K_GWQ5] = slot##_gwq5,   \
    [GWQ_K_GWQ6] = slot##_gwq6

const gwq_kernels gwq_avx2 = {
    .isa = "avx2",
    .supported = supported,
    .quantize = gwq_avx2_quantize,
    .panel = gwq_avx2_panel,
    .matmul = {GGML_TYPES(matmul), TILE_TYPES(matmul)},
    .dequantize = {GGML_TYPES(dequantize), TILE_TYPES(dequantize)},
    .rmsnorm = gwq_avx2_rmsnorm,
    .activate = gwq_avx2_activate,
    .softcap = gwq_avx2_softcap,
    .to_halves = gwq_avx2_to_halves,
    .scores = gwq_avx2_scores,
    .exponents = gwq_avx2_exponents,
    .mix = gwq_avx2_mix,
    .read = gwq_avx2_read_memory,
    .encode = gwq_encode_avx2,
    .multiply = gwq_multiply_avx2,
};
