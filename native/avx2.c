/* AVX2, FMA and F16C: every slot. */
#include <immintrin.h>
#include <math.h>
#include "tiles.h"

static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

GWQ_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
GWQ_INLINE __m256 half8(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
GWQ_INLINE float half1(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}
GWQ_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
GWQ_INLINE __m256i quad(const int8_t *q) { /* four activations in every 32-bit lane */
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

/* s += the pairwise products of biased entries and activations. The sum by assembler: gcc 12 regroups a chain of them
 * into a tree that keeps every product alive, or copies the sum before each addition. */
GWQ_INLINE void add_pairs(__m256i *s, __m256i entries, __m256i x) {
    __asm__("vpaddw %1, %0, %0" : "+x"(*s) : "x"(_mm256_maddubs_epi16(entries, x)));
}

/* --- tile types: one function per width turns a few lines of 8 rows into table entries ---------------------------- */

/* v[p]: 8 rows x columns 4p .. 4p+3, one byte each, of lines (64 bytes apart) that hold them together: 4 quads are two
 * lines at 4 bits and one at 2 bits, 8 quads are three lines at 3 bits. */
typedef void (*quads_fn)(__m256i table, const uint8_t *line, __m256i *v);
enum { QUADS4 = 4, QUADS3 = 8, QUADS2 = 4 };

GWQ_INLINE __m256i all(int byte) { return _mm256_set1_epi8((char)byte); }
GWQ_INLINE __m256i both(__m256i v, int mask) { return _mm256_and_si256(v, all(mask)); }

/* As `load`; gcc may neither repeat it nor make it an operand of another instruction. */
GWQ_INLINE __m256i load_once(const void *p) {
    __m256i v = load(p);
    __asm__("" : "+x"(v));
    return v;
}

/* Row r of the result: the row before r in the ring of 8 whose rows lie at p. */
GWQ_INLINE __m256i rows_before(const uint8_t *p) {
    int32_t last;
    memcpy(&last, p + 28, 4);
    return _mm256_blend_epi32(load(p - 4), _mm256_set1_epi32(last), 1); /* what lies before a line: a line, or scales */
}

/* Entries of the windows in the low and in the high nibbles. */
GWQ_INLINE void look_up(__m256i table, __m256i windows, __m256i *low, __m256i *high) {
    *low = _mm256_shuffle_epi8(table, both(windows, 15));
    *high = _mm256_shuffle_epi8(table, both(_mm256_srli_epi16(windows, 4), 15));
}

GWQ_INLINE void quads4(__m256i table, const uint8_t *line, __m256i *v) {
    look_up(table, load_once(line), v, v + 1);
    look_up(table, load_once(line + 64), v + 2, v + 3);
}

GWQ_INLINE void quads3(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i part[3], before, last = _mm256_setzero_si256();
    for (int k = 0; k < 3; k++) { /* the bits 3 of A, B and C are the codes of the last two quads */
        part[k] = load_once(line + 64 * k);
        last = _mm256_or_si256(last, both(_mm256_srli_epi16(part[k], 3 - k), 0x11 << k));
    }
    for (int k = 0; k < 3; k++) {
        before = rows_before(line + 64 * k);
        look_up(table, _mm256_or_si256(both(part[k], 0x77), both(_mm256_slli_epi16(before, 1), 0x88)), v + 2 * k, v + 2 * k + 1);
    }
    look_up(table, _mm256_or_si256(last, both(before, 0x88)), v + 6, v + 7); /* their topmost bits are in C as they are wanted */
}

GWQ_INLINE void quads2(__m256i table, const uint8_t *line, __m256i *v) {
    __m256i a = load_once(line), before = rows_before(line);
    look_up(table, _mm256_or_si256(both(a, 0x33), both(_mm256_slli_epi16(before, 2), 0xcc)), v, v + 2);
    look_up(table, _mm256_or_si256(both(_mm256_srli_epi16(a, 2), 0x33), both(before, 0xcc)), v + 1, v + 3);
}

/* s[k]: scale of every row for the columns 16k .. 16k+15 of the block, a signed byte; the two halves are alike. */
typedef void (*scales_fn)(const uint8_t *scale, __m256i s[4]);

GWQ_INLINE __m256i load_twice(const uint8_t *p) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p)); }

GWQ_INLINE void scales4(const uint8_t *scale, __m256i s[4]) {
    __m256i top = _mm256_setzero_si256();
    for (int k = 0; k < 3; k++) {
        __m256i part = load_twice(scale + 16 * k);
        s[k] = _mm256_sub_epi8(both(part, 63), all(SCALE_BIAS));
        top = _mm256_or_si256(top, both(_mm256_srli_epi16(part, 6 - 2 * k), 3 << 2 * k));
    }
    s[3] = _mm256_sub_epi8(top, all(SCALE_BIAS));
}

GWQ_INLINE void scales2(const uint8_t *scale, __m256i s[4]) {
    int64_t nibbles;
    memcpy(&nibbles, scale + 16, 8);
    __m256i low = load_twice(scale), high = _mm256_set1_epi64x(nibbles); /* rows 0 .. 7 and, above them, 8 .. 15 */
    high = both(_mm256_blend_epi32(_mm256_slli_epi16(high, 2), _mm256_srli_epi16(high, 2), 0xcc), 0x3c);
    s[0] = s[1] = _mm256_sub_epi8(both(low, 63), all(SCALE_BIAS));
    s[2] = s[3] = _mm256_sub_epi8(_mm256_or_si256(both(_mm256_srli_epi16(low, 6), 3), high), all(SCALE_BIAS));
}
#define scales3 scales2

/* 256 * scale of the rows 8h .. 8h+7, twice in each 32-bit lane. With it a block's sum just fits: 64 * 32 * 127 * 32 * 256 < 2^31. */
GWQ_INLINE __m256i spread_scales(__m256i s, int h) {
    const __m256i zeros_and_rows = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380, 0x04800480, 0x05800580,
                                                     0x06800680, 0x07800780);
    return _mm256_shuffle_epi8(s, h ? _mm256_add_epi8(zeros_and_rows, _mm256_set1_epi16(0x0800)) : zeros_and_rows);
}
#define UNIT (1.f / 256)

/* The bias of 16 columns in every 32-bit lane */
GWQ_INLINE __m256i bias16(const int16_t *bias) {
    int32_t v;
    memcpy(&v, bias, 4);
    return _mm256_set1_epi32(v);
}

/* y[8] += dx * dot */
GWQ_INLINE void add_rows(float dx, __m256i dot, float *y) {
    _mm256_store_ps(y, _mm256_fmadd_ps(_mm256_set1_ps(dx), _mm256_cvtepi32_ps(dot), _mm256_load_ps(y)));
}

GWQ_INLINE void block(int bits, int unit, quads_fn quads, scales_fn scales, const uint8_t *table, const uint8_t *scale,
                      const uint8_t *line, const int8_t *q, float dx, const int16_t *bias, float *y) {
    const __m256i t = load(table);
    __m256i s[4], v[8], dot[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}; /* rows 0 .. 7 and 8 .. 15 */
    scales(scale, s);
#pragma GCC unroll 4
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            quads(t, line + 8 * bits * u + 32 * h, v);
#pragma GCC unroll 8
            for (int p = 0; p < unit; p += 4) { /* 16 columns: their sum fits 16 bits, see kernels.h */
                __m256i sum = bias16(bias + (u + p) / 2);
                for (int i = 0; i < 4; i++) add_pairs(&sum, v[p + i], quad(q + 4 * (u + p + i)));
                dot[h] = _mm256_add_epi32(dot[h], _mm256_madd_epi16(sum, spread_scales(s[(u + p) / 4], h)));
            }
        }
    for (int h = 0; h < 2; h++) add_rows(dx, dot[h], y + 8 * h);
}

/* permute[mask]: byte r = how many of the mask's bits lie below r: where row r finds its product; negative: it has none */
#define RANK(m, r) ((m) >> (r) & 1 ? (uint64_t)__builtin_popcount((m) & ((1 << (r)) - 1)) : (uint64_t)128) << 8 * (r)
#define RANKS(m) RANK(m, 0) | RANK(m, 1) | RANK(m, 2) | RANK(m, 3) | RANK(m, 4) | RANK(m, 5) | RANK(m, 6) | RANK(m, 7)
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

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product, float *y) {
    __m256 y0 = _mm256_load_ps(y), y1 = _mm256_load_ps(y + 8);
    __m256i left = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)count)); /* two levels at once */
    left = _mm256_subs_epu8(left, _mm256_setr_epi32(0, 0, 0, 0, 0x01010101, 0x01010101, 0x01010101, 0x01010101));
    const float *end = product + total;
    __m256 zero = _mm256_setzero_ps();
    __asm__("" : "+x"(zero)); /* knowing it, gcc 12 makes two instructions of a blend */
    for (int level = 0; level < levels || product < end; level += 2) {
        uint32_t rows = ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(left, _mm256_setzero_si256()));
        left = _mm256_subs_epu8(left, _mm256_set1_epi8(2));
        for (int i = 0; i < 2; i++, rows >>= 16) {
            y0 = _mm256_add_ps(y0, expand8(rows & 255, product, zero));
            product += __builtin_popcount(rows & 255);
            y1 = _mm256_add_ps(y1, expand8(rows >> 8 & 255, product, zero));
            product += __builtin_popcount(rows >> 8 & 255);
        }
    }
    _mm256_store_ps(y, y0);
    _mm256_store_ps(y + 8, y1);
}

GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count, const float *x, float *product) {
    for (int k = 0; k < count; k += 8) { /* element by element: a gather instruction is slower on AMD */
        uint64_t c;
        memcpy(&c, column + k, 8);
        __m128 p[4];
        for (int i = 0; i < 4; i++) { /* the lowest two bytes; by assembler, because gcc 12 takes one instruction more for each */
            p[i] = _mm_load_ss(x + (c & 255));
            __asm__("vinsertps $16, %1, %0, %0" : "+x"(p[i]) : "m"(x[c >> 8 & 255]));
            c >>= 16;
            __asm__("" : "+r"(c));
        }
        __m256 v = _mm256_set_m128(_mm_movelh_ps(p[2], p[3]), _mm_movelh_ps(p[0], p[1]));
        _mm256_storeu_ps(product + k, _mm256_mul_ps(half8(value + 2 * k), v));
    }
}

/* --- tile types, several tokens --------------------------------------------------------------------------------- */

GWQ_INLINE void decode(int bits, int unit, quads_fn quads, const uint8_t *table, const uint8_t *line, gwq_entries entries) {
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit)
        for (int h = 0; h < 2; h++) {
            __m256i v[8];
            quads(load(table), line + 32 * h, v);
            for (int p = 0; p < unit; p++) _mm256_store_si256((__m256i *)&entries[u + p][32 * h], v[p]);
        }
}

/* scales[k]: for 16 columns 256 * scale as int16, twice for each row */
GWQ_INLINE void decode_scales(scales_fn f, const uint8_t *scale, gwq_scales scales) {
    __m256i s[4];
    f(scale, s);
    for (int k = 0; k < 4; k++)
        for (int h = 0; h < 2; h++) _mm256_store_si256((__m256i *)&scales[k][32 * h], spread_scales(s[k], h));
}

/* `count` (constant, at most AT_ONCE) tokens against nb decoded blocks: 3 tokens x 16 rows fill the 16 registers. */
enum { AT_ONCE = 3 };
GWQ_INLINE void few_tokens(const gwq_scales *scales, const gwq_entries *entries, int nb, const gwq_input *in, int64_t t, const int count,
                           int64_t b, float (*acc)[GWQ_ROWS]) {
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
            for (int i = 0; i < count; i++) s[i][0] = s[i][1] = bias16(bias + i * 8 * in->blocks + 2 * j);
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
                for (int h = 0; h < 2; h++)
                    dot[i][h] = _mm256_add_epi32(dot[i][h], _mm256_madd_epi16(s[i][h], load(&scales[k][j][32 * h])));
        }
#pragma GCC unroll 3
        for (int i = 0; i < count; i++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) add_rows(dx[i * in->blocks], dot[i][h], acc[i] + 8 * h);
    }
}

static __attribute__((noinline)) void tokens(const gwq_scales *scales, const gwq_entries *entries, int nb, const gwq_input *in,
                                             int64_t t, int count, int64_t b, float (*acc)[GWQ_ROWS]) {
    int i = 0;
    for (; i + 3 <= count; i += 3) few_tokens(scales, entries, nb, in, t + i, 3, b, acc + i);
    if (count - i == 2) few_tokens(scales, entries, nb, in, t + i, 2, b, acc + i);
    if (count - i == 1) few_tokens(scales, entries, nb, in, t + i, 1, b, acc + i);
}

/* 8 x 8 floats, turned over the diagonal */
GWQ_INLINE void transpose8(__m256 r[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm256_shuffle_ps(a[i + k], a[i + 2 + k], 0x44);
            b[i + 2 * k + 1] = _mm256_shuffle_ps(a[i + k], a[i + 2 + k], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

static void panel(const float *x, int64_t stride, int count, int64_t width, float (*out)[GWQ_PANEL]) {
    int64_t c = 0;
    for (; c + 8 <= width; c += 8)
        for (int t = 0; t < GWQ_PANEL; t += 8) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) r[i] = t + i < count ? _mm256_loadu_ps(x + (t + i) * stride + c) : _mm256_setzero_ps();
            transpose8(r);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(&out[c + i][t], r[i]);
        }
    gwq_scalar.panel(x + c, stride, count, width - c, out + c);
}

void gwq_avx2_halves(const uint8_t *value, int count, float *out) {
    int k = 0;
    for (; k + 8 <= count; k += 8) _mm256_storeu_ps(out + k, half8(value + 2 * k));
    for (; k < count; k++) out[k] = half1(value + 2 * k);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 8)
        _mm256_store_ps(sum + t, _mm256_fmadd_ps(_mm256_set1_ps(v), _mm256_loadu_ps(x + t), _mm256_load_ps(sum + t)));
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    __m128i c = _mm_loadu_si128((const __m128i *)count), l = _mm_set1_epi8((char)level);
    return 0xffffu ^ (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(c, l), c));
}

GWQ_INLINE void tile_dequantize(const tile_ops *ops, const gwq_matrix *m, int64_t group, float *out) {
    const size_t bytes = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits);
    const uint8_t *tile = gwq_group(m, ops->bits, group);
    int64_t rows = least(GWQ_ROWS, m->rows - group * GWQ_ROWS), blocks = gwq_blocks(m->cols), nb;
    _Alignas(64) gwq_entries entries;
    _Alignas(64) gwq_scales scales;
    _Alignas(64) uint8_t table[64];
    float d[GWQ_ROWS];
    gwq_avx2_halves(gwq_row_scales(m, group), GWQ_ROWS, d);
    biased_table(m, table);
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * (bytes + lines)) {
        nb = least(GWQ_TILE_BLOCKS, blocks - b);
        for (int64_t k = 0; k < nb; k++) {
            ops->decode(table, tile + nb * bytes + k * lines, entries);
            ops->scales(tile + k * bytes, scales);
            int64_t first = (b + k) * GWQ_BLOCK, width = least(GWQ_BLOCK, m->cols - first);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c += 8) { /* 8 columns are two quads */
                    uint32_t low, high;
                    int16_t scale;
                    memcpy(&low, &entries[c / 4][4 * r], 4);
                    memcpy(&high, &entries[c / 4 + 1][4 * r], 4);
                    memcpy(&scale, &scales[c / 16][4 * r], 2);
                    __m256i v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)((uint64_t)high << 32 | low)));
                    v = _mm256_sub_epi32(v, _mm256_set1_epi32(ENTRY_BIAS));
                    __m256 f = _mm256_mul_ps(_mm256_set1_ps(d[r] * ((float)scale * UNIT)), _mm256_cvtepi32_ps(v));
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

#define TILE_TYPE(bits, streams, ahead)                                                                              \
    GWQ_INLINE void block##bits(const uint8_t *table, const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx, \
                                const int16_t *bias, float *y) {                                                     \
        block(bits, QUADS##bits, quads##bits, scales##bits, table, scale, line, q, dx, bias, y);                     \
    }                                                                                                                \
    static void decode##bits(const uint8_t *table, const uint8_t *line, gwq_entries entries) {                       \
        decode(bits, QUADS##bits, quads##bits, table, line, entries);                                                \
    }                                                                                                                \
    static void decode_scales##bits(const uint8_t *scale, gwq_scales scales) { decode_scales(scales##bits, scale, scales); } \
    static const tile_ops ops##bits = {bits, streams, ahead, UNIT, block##bits, multiply_values, expand, decode##bits, \
                                       decode_scales##bits, tokens, gwq_avx2_halves, above, spread};               \
    static void dequantize_gwq##bits(const gwq_matrix *m, int64_t group, float *out) {                               \
        tile_dequantize(&ops##bits, m, group, out);                                                                  \
    }                                                                                                                \
    static void matmul_gwq##bits(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {  \
        tile_matmul(&ops##bits, m, first, last, in, y);                                                              \
    }
TILE_TYPE(2, 3, 1024)
TILE_TYPE(3, 3, 1024)
TILE_TYPE(4, 3, 1024)

/* --- stock types: one function per type adds 32 columns to a row's sums ------------------------------------------- */

/* sum[2] += weights of a unit of 32 columns * x[4] */
typedef void (*unit_fn)(const uint8_t *unit, const __m256 x[4], __m256 sum[2]);
/* w = the 32 weights of a unit */
typedef void (*floats_fn)(const uint8_t *unit, __m256 w[4]);

GWQ_INLINE void f32_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) w[i] = _mm256_castsi256_ps(load(p + 32 * i));
}
GWQ_INLINE void f16_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) w[i] = half8(p + 16 * i);
}
GWQ_INLINE void bf16_floats(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) {
        __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p + 16 * i)));
        w[i] = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    }
}
GWQ_INLINE void q8_0_codes(const uint8_t *p, __m256 w[4]) {
    for (int i = 0; i < 4; i++) w[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p + 2 + 8 * i))));
}
GWQ_INLINE void q8_0_floats(const uint8_t *p, __m256 w[4]) {
    __m256 d = _mm256_set1_ps(half1(p));
    q8_0_codes(p, w);
    for (int i = 0; i < 4; i++) w[i] = _mm256_mul_ps(d, w[i]);
}

GWQ_INLINE void plain_unit(floats_fn floats, const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    __m256 w[4];
    floats(p, w);
    for (int i = 0; i < 4; i++) sum[i % 2] = _mm256_fmadd_ps(w[i], x[i], sum[i % 2]);
}
GWQ_INLINE void f32_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) { plain_unit(f32_floats, p, x, sum); }
GWQ_INLINE void f16_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) { plain_unit(f16_floats, p, x, sum); }
GWQ_INLINE void bf16_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) { plain_unit(bf16_floats, p, x, sum); }
GWQ_INLINE void q8_0_unit(const uint8_t *p, const __m256 x[4], __m256 sum[2]) {
    __m256 d = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_loadu_si64(p)));
    __m256 w[4];
    q8_0_codes(p, w);
    __m256 s = _mm256_mul_ps(w[0], x[0]);
    for (int i = 1; i < 4; i++) s = _mm256_fmadd_ps(w[i], x[i], s);
    sum[0] = _mm256_fmadd_ps(d, s, sum[0]);
}

/* One token, `rows` (constant) far-apart rows at the same time: y[k] = dot of the row at row[k] with x. */
GWQ_INLINE void stock_rows(unit_fn unit, size_t unit_bytes, const int rows, const uint8_t *const *row, int64_t cols,
                           const float *x, float *y) {
    enum { AHEAD = 1024 };
    __m256 sum[STREAMS][2], v[4];
    int64_t units = cols / 32, rest = cols % 32;
    for (int k = 0; k < rows; k++) sum[k][0] = sum[k][1] = _mm256_setzero_ps();
    for (int64_t u = 0; u < units; u++) {
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(x + 32 * u + 8 * i);
        for (int k = 0; k < rows; k++) {
            const uint8_t *p = row[k] + (size_t)u * unit_bytes;
            fetch(p, AHEAD, unit_bytes);
            unit(p, v, sum[k]);
        }
    }
    if (rest) { /* never q8_0, whose rows are whole units */
        float last[32] = {0};
        memcpy(last, x + 32 * units, (size_t)rest * sizeof *x);
        for (int i = 0; i < 4; i++) v[i] = _mm256_loadu_ps(last + 8 * i);
        for (int k = 0; k < rows; k++) {
            uint8_t w[128] = {0};
            memcpy(w, row[k] + (size_t)units * unit_bytes, (size_t)rest * (unit_bytes / 32));
            unit(w, v, sum[k]);
        }
    }
    for (int k = 0; k < rows; k++) y[k] = sum8(_mm256_add_ps(sum[k][0], sum[k][1]));
}

GWQ_INLINE void stock_gemv(unit_fn unit, size_t unit_bytes, const gwq_matrix *m, int64_t first, int64_t last,
                           const gwq_input *in, float *y) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    int64_t row = first * GWQ_ROWS, end = least(m->rows, last * GWQ_ROWS), each = (end - row) / STREAMS;
    const uint8_t *p[STREAMS];
    for (int64_t i = 0; i < each; i++) {
        float sum[STREAMS];
        for (int k = 0; k < STREAMS; k++) p[k] = (const uint8_t *)m->data + (size_t)(row + k * each + i) * stride;
        stock_rows(unit, unit_bytes, STREAMS, p, m->cols, in->x, sum);
        for (int k = 0; k < STREAMS; k++) y[row + k * each + i] = sum[k];
    }
    for (row += STREAMS * each; row < end; row++) {
        p[0] = (const uint8_t *)m->data + (size_t)row * stride;
        stock_rows(unit, unit_bytes, 1, p, m->cols, in->x, y + row);
    }
}

/* out (cols) = weights of a row, from p on */
GWQ_INLINE void stock_row(floats_fn floats, size_t unit_bytes, const uint8_t *p, int64_t cols, float *out) {
    __m256 w[4];
    for (; cols >= 32; cols -= 32, p += unit_bytes, out += 32) {
        floats(p, w);
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(out + 8 * i, w[i]);
    }
    if (cols) {
        uint8_t last[128] = {0};
        float f[32];
        memcpy(last, p, (size_t)cols * (unit_bytes / 32));
        floats(last, w);
        for (int i = 0; i < 4; i++) _mm256_storeu_ps(f + 8 * i, w[i]);
        memcpy(out, f, (size_t)cols * sizeof *out);
    }
}

GWQ_INLINE void stock_dequantize(floats_fn floats, size_t unit_bytes, const gwq_matrix *m, int64_t group, float *out) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    for (int64_t r = group * GWQ_ROWS; r < least(m->rows, (group + 1) * GWQ_ROWS); r++, out += m->cols)
        stock_row(floats, unit_bytes, (const uint8_t *)m->data + (size_t)r * stride, m->cols, out);
}

/* --- stock types, several tokens: convert 16 rows x CHUNK columns once, then 4 rows x 3 tokens in registers ------- */

enum { CHUNK = 256 };

/* y[i * stride + r] += w[r] . x[i] over `cols` columns, r < 4, i < count (constant, at most 3) */
GWQ_INLINE void four_rows(const float (*w)[CHUNK], const float *x, int64_t cols, int64_t width, const int count, int rows,
                          float *y, int64_t stride) {
    __m256 sum[3][4];
    for (int i = 0; i < count; i++)
        for (int r = 0; r < 4; r++) sum[i][r] = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + 8 <= width; c += 8) {
        __m256 v[3];
        for (int i = 0; i < count; i++) v[i] = _mm256_loadu_ps(x + i * cols + c);
        for (int r = 0; r < 4; r++) {
            __m256 f = _mm256_load_ps(w[r] + c);
            for (int i = 0; i < count; i++) sum[i][r] = _mm256_fmadd_ps(f, v[i], sum[i][r]);
        }
    }
    for (int i = 0; i < count; i++) {
        if (c < width) { /* the weights beyond `width` are zero */
            float last[8] = {0};
            memcpy(last, x + i * cols + c, (size_t)(width - c) * sizeof *x);
            for (int r = 0; r < 4; r++)
                sum[i][r] = _mm256_fmadd_ps(_mm256_load_ps(w[r] + c), _mm256_loadu_ps(last), sum[i][r]);
        }
        __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(sum[i][0], sum[i][1]), _mm256_hadd_ps(sum[i][2], sum[i][3]));
        float four[4];
        _mm_storeu_ps(four, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
        for (int r = 0; r < rows; r++) y[i * stride + r] += four[r];
    }
}

GWQ_INLINE void stock_gemm(floats_fn floats, size_t unit_bytes, const gwq_matrix *m, int64_t first, int64_t last,
                           const gwq_input *in, float *y) {
    size_t stride = m->data_bytes / (uint64_t)m->rows;
    _Alignas(64) float w[GWQ_ROWS][CHUNK];
    for (int64_t g = first; g < last; g++) {
        int64_t row = g * GWQ_ROWS;
        int rows = (int)least(GWQ_ROWS, m->rows - row);
        for (int64_t t = 0; t < in->n; t++) memset(y + t * m->rows + row, 0, (size_t)rows * sizeof *y);
        for (int64_t c = 0; c < m->cols; c += CHUNK) {
            int64_t width = least(CHUNK, m->cols - c);
            memset(w, 0, rows < GWQ_ROWS || width < CHUNK ? sizeof w : 0);
            for (int r = 0; r < rows; r++) {
                const uint8_t *p = (const uint8_t *)m->data + (size_t)(row + r) * stride + (size_t)(c / 32) * unit_bytes;
                fetch(p, CHUNK / 32 * unit_bytes, CHUNK / 32 * unit_bytes);
                stock_row(floats, unit_bytes, p, width, w[r]);
            }
            for (int64_t t = 0; t < in->n; t += 3)
                for (int r = 0; r < rows; r += 4) {
                    const float *x = in->x + t * in->cols + c;
                    float *to = y + t * m->rows + row + r;
                    int four = (int)least(4, rows - r);
                    if (in->n - t >= 3) four_rows(w + r, x, in->cols, width, 3, four, to, m->rows);
                    else if (in->n - t == 2) four_rows(w + r, x, in->cols, width, 2, four, to, m->rows);
                    else four_rows(w + r, x, in->cols, width, 1, four, to, m->rows);
                }
        }
    }
}

#define STOCK_TYPE(name, unit_bytes)                                                                                 \
    static void dequantize_##name(const gwq_matrix *m, int64_t group, float *out) {                                  \
        stock_dequantize(name##_floats, unit_bytes, m, group, out);                                                  \
    }                                                                                                                \
    static void matmul_##name(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) {     \
        if (in->n == 1) stock_gemv(name##_unit, unit_bytes, m, first, last, in, y);                                  \
        else stock_gemm(name##_floats, unit_bytes, m, first, last, in, y);                                           \
    }
STOCK_TYPE(f32, 128)
STOCK_TYPE(f16, 64)
STOCK_TYPE(bf16, 64)
STOCK_TYPE(q8_0, 34)

/* --- activations and elementwise ops ----------------------------------------------------------------------------- */

static void quantize(const float *x, int64_t cols, int8_t *q, float *scale, int16_t *bias) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK) {
        float last[GWQ_BLOCK] = {0};
        const float *from = x + b * GWQ_BLOCK;
        if (cols - b * GWQ_BLOCK < GWQ_BLOCK) {
            memcpy(last, from, (size_t)(cols - b * GWQ_BLOCK) * sizeof *x);
            from = last;
        }
        __m256 v[8], most = _mm256_setzero_ps();
        for (int i = 0; i < 8; i++) { /* max returns its second operand when the first is NaN */
            v[i] = _mm256_loadu_ps(from + 8 * i);
            most = _mm256_max_ps(_mm256_and_ps(v[i], magnitude), most);
        }
        __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        m4 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
        float d = _mm_cvtss_f32(_mm_max_ss(m4, _mm_movehdup_ps(m4))) / 127;
        __m256 inverse = _mm256_set1_ps(d > 0 ? 1 / d : 0);
        __m256i n[8];
        for (int i = 0; i < 8; i++) { /* as in scalar.c: NaN becomes 0, the clamp matters only when 1/d overflowed */
            __m256 f = _mm256_mul_ps(v[i], inverse);
            f = _mm256_and_ps(f, _mm256_cmp_ps(f, f, _CMP_ORD_Q));
            f = _mm256_max_ps(_mm256_min_ps(f, _mm256_set1_ps(127)), _mm256_set1_ps(-127));
            n[i] = _mm256_cvtps_epi32(f);
        }
        for (int i = 0; i < 8; i += 4) { /* the packs work within 128 bits: put the dwords in order afterwards */
            __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(n[i], n[i + 1]), _mm256_packs_epi32(n[i + 2], n[i + 3]));
            p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256((__m256i *)(q + 8 * i), p);
        }
        __m128i sum[2];
        for (int i = 0; i < 2; i++) { /* 32 columns: of each 16, first and second column pairs of every quad */
            __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(n[4 * i], n[4 * i + 1]), _mm256_add_epi32(n[4 * i + 2], n[4 * i + 3]));
            sum[i] = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        }
        __m128i packed = _mm_packs_epi32(sum[0], sum[1]);
        _mm_storeu_si128((__m128i *)(bias + 8 * b), _mm_mullo_epi16(packed, _mm_set1_epi16(-ENTRY_BIAS)));
        scale[b] = d;
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    __m256 s[4];
    for (int k = 0; k < 4; k++) s[k] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++)
            s[k] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * k), _mm256_loadu_ps(b + i + 8 * k), s[k]);
    for (; i + 8 <= count; i += 8) s[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

static void axpy(float a, const float *x, int64_t count, float *y) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(y + i, _mm256_fmadd_ps(_mm256_set1_ps(a), _mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < count; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

/* e^x = 2^n e^r, |r| <= ln(2)/2, Taylor to r^7 (error 5e-9). e^-87 below -87; from 88.4 on n = 128, infinity. */
GWQ_INLINE __m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(89));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x); /* ln 2 in two parts, the first one short: exact */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    __m256 p = _mm256_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(factor[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

GWQ_INLINE __m256 silu8(__m256 gate, __m256 up) {
    const __m256 one = _mm256_set1_ps(1);
    __m256 e = exp8(_mm256_xor_ps(gate, _mm256_set1_ps(-0.f)));
    return _mm256_mul_ps(_mm256_div_ps(gate, _mm256_add_ps(one, e)), up);
}

static void silu_mul(float *gate, const float *up, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(gate + i, silu8(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == count) return;
    float g[8] = {0}, u[8] = {0};
    memcpy(g, gate + i, (size_t)(count - i) * sizeof *g);
    memcpy(u, up + i, (size_t)(count - i) * sizeof *u);
    _mm256_storeu_ps(g, silu8(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(gate + i, g, (size_t)(count - i) * sizeof *g);
}

static uint64_t read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    uint64_t part = bytes / (unsigned)streams & ~(uint64_t)63, i = part * (unsigned)streams, sum = 0, word;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (uint64_t at = 0; at < part; at += 64)
        for (int s = 0; s < streams; s++) {
            const uint8_t *p = data + (uint64_t)s * part + at;
            if (ahead) fetch(p, (size_t)ahead, 64);
            a = _mm256_add_epi64(a, load(p));
            b = _mm256_add_epi64(b, load(p + 32));
        }
    for (; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    uint64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, _mm256_add_epi64(a, b));
    return sum + lane[0] + lane[1] + lane[2] + lane[3];
}

const gwq_kernels gwq_avx2 = {
    .isa = "avx2",
    .supported = supported,
    .quantize = quantize,
    .panel = panel,
    .matmul = {matmul_f32, matmul_f16, matmul_bf16, matmul_q8_0, matmul_gwq2, matmul_gwq3, matmul_gwq4},
    .dequantize = {dequantize_f32, dequantize_f16, dequantize_bf16, dequantize_q8_0, dequantize_gwq2, dequantize_gwq3,
                   dequantize_gwq4},
    .rmsnorm = rmsnorm,
    .silu_mul = silu_mul,
    .dot = dot,
    .axpy = axpy,
    .read = read_memory,
    .encode = gwq_encode_avx2,
};
