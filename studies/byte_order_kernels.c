/* Kernels of the study of byte orders: what a block of 64 columns costs when the bits above a code
 * come from elsewhere. One text for AVX2, AVX-512 and NEON (byte_order_vectors.h).
 *
 * A layout turns `lines` lines into `quads` vectors, each of rows x 4 columns of table entries. In
 * a block of 16 rows the quads are columns that follow one another; in one of 64 rows they are the
 * same columns of rows 16 apart, or two such sets (quad_of, group_of). Scales are the format's: 24
 * bytes for 16 rows x 64 columns. */
#include "byte_order_vectors.h"

/* Straight code, so that its instructions can be counted */
#define UNROLL _Pragma("GCC unroll 16")
/* For NEON: keeps gcc from mixing a part of a block with the next, which takes too many
 * registers */
#define FENCE __asm__ volatile("" ::: "memory")

typedef void (*layout_fn)(const V *t, const uint8_t *line, int part, V *v);

/* --- 2 bits ----------------------------------------------------------------------------------- */

INLINE void none2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part);
    for (int p = 0; p < 4; p++) v[p] = look(t[0], field(a, 2 * p, 3));
}

INLINE void row2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part), before = before8(line, part);
    V even = join(0x33, a, left(before, 2)), odd = join(0x33, right(a, 2), before);
    v[0] = look(t[0], nibble(even));
    v[2] = look(t[0], top(even));
    v[1] = look(t[0], nibble(odd));
    v[3] = look(t[0], top(odd));
}

INLINE void three2(const V *t, V a, V *v) {
    v[0] = look(t[0], nibble(a));
    v[1] = look(t[0], middle(a));
    v[2] = look(t[0], top(a));
}
INLINE void byte2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part);
    three2(t, a, v);
    v[3] = look(t[0], cross(a, 6, a));
}
INLINE void lane2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part);
    three2(t, a, v);
    v[3] = look(t[0], cross(a, 6, next4(a)));
}
INLINE void word2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part);
    three2(t, a, v);
    v[3] = look(t[0], nibble(turn(a)));
}

INLINE void pair2(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part), low = nibble(a), high = top(a);
    for (int p = 0; p < 2; p++) {
        v[p] = look(t[p], low);
        v[2 + p] = look(t[p], high);
    }
}

/* --- 3 bits ----------------------------------------------------------------------------------- */

/* The three lines, and in the nibbles of x[3] the codes whose bits are the bits 3 of the three,
 * above them anything */
INLINE void lines3(const uint8_t *line, int part, V *x) {
    for (int k = 0; k < 3; k++) x[k] = load_part(line + 64 * k + PART * part);
    x[3] = join(0x33, join(0x11, right(x[0], 3), right(x[1], 2)), right(x[2], 1));
}
INLINE void nibbles3(const V *t, V windows, V *v) {
    v[0] = look(t[0], nibble(windows));
    v[1] = look(t[0], top(windows));
}

INLINE void none3(const V *t, const uint8_t *line, int part, V *v) {
    V x[4];
    lines3(line, part, x);
    for (int k = 0; k < 4; k++) {
        v[2 * k] = look(t[0], field(x[k], 0, 7));
        v[2 * k + 1] = look(t[0], field(x[k], 4, 7));
    }
}
INLINE void row3(const V *t, const uint8_t *line, int part, V *v) {
    V x[4], before;
    lines3(line, part, x);
    for (int k = 0; k < 3; k++) {
        before = before8(line + 64 * k, part);
        nibbles3(t, join(0x77, x[k], left(before, 1)), v + 2 * k);
    }
    nibbles3(t, join(0x77, x[3], before), v + 6);
}
INLINE void lines_after(const V *t, V *x, V before, V *v) {
    nibbles3(t, join(0x77, x[0], left(before, 1)), v);
    for (int k = 1; k < 4; k++) nibbles3(t, join(0x77, x[k], left(x[k - 1], 1)), v + 2 * k);
}
INLINE void byte3(const V *t, const uint8_t *line, int part, V *v) {
    V x[4];
    lines3(line, part, x);
    lines_after(t, x, x[3], v);
}
INLINE void lane3(const V *t, const uint8_t *line, int part, V *v) {
    V x[4];
    lines3(line, part, x);
    lines_after(t, x, before4(x[3]), v);
}
/* 24 bits of three bytes, a window at every third */
INLINE void stream3(const V *t, const uint8_t *line, int part, V *v) {
    V a = load_part(line + PART * part), b = load_part(line + 64 + PART * part),
      c = load_part(line + 128 + PART * part);
    v[0] = look(t[0], nibble(a));
    v[1] = look(t[0], field(a, 3, 15));
    v[2] = look(t[0], cross(a, 6, b));
    v[3] = look(t[0], field(b, 1, 15));
    v[4] = look(t[0], top(b));
    v[5] = look(t[0], cross(b, 7, c));
    v[6] = look(t[0], middle(c));
    v[7] = look(t[0], cross(c, 5, a));
}

/* --- a block ---------------------------------------------------------------------------------- */

/* What a vector of a layout holds in a block of `groups` x 16 rows */
INLINE int group_of(int groups, int bits, int mixed, int p) {
    if (groups == 1) return 0;
    return bits == 2 || mixed ? p % 4 : p / 2;
}
INLINE int quad_of(int groups, int bits, int mixed, int p) {
    if (groups == 1) return p;
    return bits == 2 ? 0 : mixed ? p / 4 : p % 2;
}

/* y[16 groups] += dx * block. scale: 24 bytes of each group; q: 64 activations, their sums biased
 * (AVX2, AVX-512) as in gwq_input. */
#define WALK INLINE void walk(const int bits, const int groups, const int mixed, layout_fn layout, \
    const uint8_t *table, const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx,    \
    const int16_t *bias, float *y)

#if defined(__AVX512BW__)
INLINE V bias16(const int16_t *bias) {
    int32_t v;
    memcpy(&v, bias, 4);
    return _mm512_madd_epi16(_mm512_set1_epi32(v), _mm512_set1_epi16(1));
}
INLINE void dot(V *sum, V entries, const int8_t *x) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(*sum)
            : "v"(entries), "m"(*(const int8_t(*)[4])x));
}
INLINE void scales_of(const uint8_t *scale, V s[2]) {
    const __m128i less = _mm_set1_epi8(32);
    __m128i low = _mm_loadu_si128((const __m128i *)scale);
    __m128i high = _mm_loadl_epi64((const __m128i *)(scale + 16));
    high = _mm_unpacklo_epi64(_mm_slli_epi16(high, 2), _mm_srli_epi16(high, 2));
    high = _mm_and_si128(high, _mm_set1_epi8(0x3c));
    __m128i first = _mm_and_si128(low, _mm_set1_epi8(63));
    __m128i second = _mm_and_si128(_mm_srli_epi16(low, 6), _mm_set1_epi8(3));
    s[0] = _mm512_cvtepi8_epi32(_mm_sub_epi8(first, less));
    s[1] = _mm512_cvtepi8_epi32(_mm_sub_epi8(_mm_or_si128(second, high), less));
}
WALK {
    const V t[2] = {load_table(table), load_table(table + 64)};
    const int quads = bits == 2 ? 4 : 8, unit = quads / groups, lines = bits == 2 ? 1 : 3;
    V s[4][2], total[4], v[8];
    UNROLL for (int g = 0; g < groups; g++) {
        scales_of(scale + 24 * g, s[g]);
        total[g] = _mm512_setzero_si512();
    }
    UNROLL for (int j = 0; j < 2; j++) { /* 32 columns; chains of two for one group */
        V sum[4][2];
        UNROLL for (int g = 0; g < groups; g++)
            UNROLL for (int k = 0; k < 2; k++) sum[g][k] = bias16(bias + 4 * j + 2 * k);
        UNROLL for (int u = 0; u < 8; u += unit, line += 64 * lines) {
            layout(t, line, 0, v);
            UNROLL for (int p = 0; p < quads; p++) {
                int quad = u + quad_of(groups, bits, mixed, p);
                dot(&sum[group_of(groups, bits, mixed, p)][quad / 4], v[p], q + 32 * j + 4 * quad);
            }
        }
        UNROLL for (int g = 0; g < groups; g++) {
            V both = _mm512_add_epi32(sum[g][0], sum[g][1]);
            total[g] = _mm512_add_epi32(total[g], _mm512_mullo_epi32(both, s[g][j]));
        }
    }
    UNROLL for (int g = 0; g < groups; g++) {
        __m512 sums = _mm512_cvtepi32_ps(total[g]), before = _mm512_loadu_ps(y + 16 * g);
        _mm512_storeu_ps(y + 16 * g, _mm512_fmadd_ps(_mm512_set1_ps(dx), sums, before));
    }
}

#elif defined(__AVX2__)
INLINE V four(const void *x) {
    int32_t v;
    memcpy(&v, x, 4);
    return _mm256_set1_epi32(v);
}
INLINE void add_pairs(V *sum, V entries, V x) {
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(_mm256_maddubs_epi16(entries, x)));
}
WALK {
    const V t[2] = {load_table(table), load_table(table + 64)};
    const int quads = bits == 2 ? 4 : 8, unit = quads / groups, lines = bits == 2 ? 1 : 3;
    const int set = unit > 4 ? unit : 4; /* quads between two uses of the scales, at least 4 */
    V s[4][4];
    UNROLL for (int g = 0; g < groups; g++) scales2(scale + 24 * g, s[g]);
    UNROLL for (int h = 0; h < 2; h++) {
        V total[4], v[8];
        UNROLL for (int g = 0; g < groups; g++) total[g] = _mm256_setzero_si256();
        UNROLL for (int first = 0; first < 16; first += set) {
            V sum[4][2];
            UNROLL for (int g = 0; g < groups; g++)
                UNROLL for (int k = 0; k < set / 4; k++) sum[g][k] = four(bias + first / 2 + 2 * k);
            UNROLL for (int u = first; u < first + set; u += unit) {
                layout(t, line + 64 * (lines * u / unit), h, v);
                UNROLL for (int p = 0; p < quads; p++) {
                    int quad = u + quad_of(groups, bits, mixed, p);
                    add_pairs(&sum[group_of(groups, bits, mixed, p)][(quad - first) / 4], v[p],
                              four(q + 4 * quad));
                }
            }
            UNROLL for (int g = 0; g < groups; g++)
                UNROLL for (int k = 0; k < set / 4; k++) {
                    V scaled = _mm256_madd_epi16(sum[g][k], spread_scales(s[g][first / 4 + k], h));
                    total[g] = _mm256_add_epi32(total[g], scaled);
                }
        }
        UNROLL for (int g = 0; g < groups; g++) {
            float *to = y + 16 * g + 8 * h;
            __m256 dots = _mm256_cvtepi32_ps(total[g]);
            _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_set1_ps(dx), dots, _mm256_loadu_ps(to)));
        }
    }
}
#undef UNIT
#define UNIT (1.f / 256)

#else
/* Entries are signed here, and the bias is not needed. */
INLINE void scales_of(const uint8_t *scale, int8x16_t s[2]) {
    const uint8x16_t less = vdupq_n_u8(32);
    uint8x16_t low = vld1q_u8(scale);
    uint8x8_t nibbles = vld1_u8(scale + 16);
    uint8x16_t high = vcombine_u8(vand_u8(nibbles, vdup_n_u8(15)), vshr_n_u8(nibbles, 4));
    s[0] = vreinterpretq_s8_u8(vsubq_u8(vandq_u8(low, vdupq_n_u8(63)), less));
    s[1] = vreinterpretq_s8_u8(vsubq_u8(vsliq_n_u8(vshrq_n_u8(low, 6), high, 2), less));
}
INLINE int32x4_t widened(int8x16_t s, int part) {
    int16x8_t half = part < 2 ? vmovl_s8(vget_low_s8(s)) : vmovl_high_s8(s);
    return part % 2 ? vmovl_high_s16(half) : vmovl_s16(vget_low_s16(half));
}
INLINE int32x4_t dot(int32x4_t sum, V entries, int8x16_t x, int quad) {
    int8x16_t v = vreinterpretq_s8_u8(entries);
    switch (quad & 3) {
    case 0: return vdotq_laneq_s32(sum, v, x, 0);
    case 1: return vdotq_laneq_s32(sum, v, x, 1);
    case 2: return vdotq_laneq_s32(sum, v, x, 2);
    default: return vdotq_laneq_s32(sum, v, x, 3);
    }
}
WALK {
    (void)bias;
    const V t[2] = {load_table(table), load_table(table + 64)};
    const int quads = bits == 2 ? 4 : 8, unit = quads / groups, lines = bits == 2 ? 1 : 3;
    int8x16_t s[4][2], x[4];
    UNROLL for (int g = 0; g < groups; g++) scales_of(scale + 24 * g, s[g]);
    UNROLL for (int k = 0; k < 4; k++) x[k] = vld1q_s8(q + 16 * k);
    UNROLL for (int part = 0; part < PARTS; part++) {
        V v[8];
        int32x4_t total[4] = {0};
        UNROLL for (int j = 0; j < 2; j++) {
            int32x4_t sum[4];
            UNROLL for (int g = 0; g < groups; g++) sum[g] = vdupq_n_s32(0);
            UNROLL for (int u = 8 * j; u < 8 * j + 8; u += unit) {
                FENCE;
                layout(t, line + 64 * (lines * u / unit), part, v);
                UNROLL for (int p = 0; p < quads; p++) {
                    int quad = u + quad_of(groups, bits, mixed, p);
                    int32x4_t *to = &sum[group_of(groups, bits, mixed, p)];
                    *to = dot(*to, v[p], x[quad / 4], quad);
                }
            }
            UNROLL for (int g = 0; g < groups; g++)
                total[g] = j ? vmlaq_s32(total[g], sum[g], widened(s[g][j], part))
                             : vmulq_s32(sum[g], widened(s[g][j], part));
        }
        UNROLL for (int g = 0; g < groups; g++) {
            float *to = y + 16 * g + 4 * part;
            vst1q_f32(to, vfmaq_n_f32(vld1q_f32(to), vcvtq_f32_s32(total[g]), dx));
        }
    }
}
#endif

#ifdef __aarch64__
#define MARK(text) __asm__ volatile("// " text ::: "memory")
#else
#define MARK(text) __asm__ volatile("# " text ::: "memory")
#endif

/* y[16 GROUPS] += the product of `blocks` blocks, one after another: scales, then lines */
#define KERNEL(LAYOUT, BITS, GROUPS, MIXED, NAME)                                              \
    __attribute__((visibility("default"), noinline)) void NAME(                                \
        const uint8_t *table, const int16_t *bias, const uint8_t *p, const int8_t *q,          \
        const float *dx, float *y, int64_t blocks) {                                           \
        for (int64_t i = 0; i < blocks; i++, p += (24 + 128 * BITS) * GROUPS) {                \
            MARK("LLVM-MCA-BEGIN " #NAME);                                                     \
            walk(BITS, GROUPS, MIXED, LAYOUT, table, p, p + 24 * GROUPS, q + 64 * i, dx[i],    \
                 bias + 8 * i, y);                                                             \
            MARK("LLVM-MCA-END");                                                              \
        }                                                                                      \
    }
KERNEL(none2, 2, 1, 0, none2_columns)
KERNEL(row2, 2, 1, 0, row2_columns)
KERNEL(byte2, 2, 1, 0, byte2_columns)
KERNEL(byte2, 2, 4, 0, byte2_rows)
KERNEL(pair2, 2, 1, 0, pair2_columns)
KERNEL(pair2, 2, 4, 0, pair2_rows)
KERNEL(lane2, 2, 4, 0, lane2_rows)
KERNEL(word2, 2, 1, 0, word2_columns)
KERNEL(word2, 2, 4, 0, word2_mixed)
KERNEL(none3, 3, 1, 0, none3_columns)
KERNEL(row3, 3, 1, 0, row3_columns)
KERNEL(byte3, 3, 1, 0, byte3_columns)
KERNEL(byte3, 3, 4, 0, byte3_rows)
KERNEL(lane3, 3, 4, 0, lane3_rows)
KERNEL(stream3, 3, 1, 0, stream3_columns)
KERNEL(stream3, 3, 4, 1, stream3_mixed)

typedef void kernel(const uint8_t *, const int16_t *, const uint8_t *, const int8_t *,
                    const float *, float *, int64_t);

/* For timing: the call of a kernel, again and again */
__attribute__((visibility("default"))) void again(int64_t times, kernel *f, const uint8_t *table,
                                                  const int16_t *bias, const uint8_t *p,
                                                  const int8_t *q, const float *dx, float *y,
                                                  int64_t blocks) {
    for (int64_t i = 0; i < times; i++) f(table, bias, p, q, dx, y, blocks);
}
