/* AVX-512 (F, BW, DQ, VL, VNNI): tile matrices.
 *
 * With GWQ_SIMDE the same code compiles for any x86 CPU, slowly, for the tests. */
#ifdef GWQ_SIMDE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#else
#include <immintrin.h>
#endif
#include "tiles.h"

static int supported(void) {
#ifdef GWQ_SIMDE
    return gwq_avx2.supported();
#else
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && gwq_avx2.supported();
#endif
}

/* acc += products of four neighbouring unsigned codes and activations, per 32-bit lane. By assembler, because gcc 12
 * copies the accumulator before and after the intrinsic when it lives in an array. */
GWQ_INLINE void add_quads(__m512i *acc, __m512i codes, const int8_t *x) {
#ifdef GWQ_SIMDE
    int32_t v;
    memcpy(&v, x, 4);
    *acc = _mm512_dpbusd_epi32(*acc, codes, _mm512_set1_epi32(v));
#else
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*acc) : "v"(codes), "m"(*(const int8_t(*)[4])x));
#endif
}

/* Sixteen values each; SIMDe 0.7.4 lacks these five. */
#ifdef GWQ_SIMDE
GWQ_INLINE __m512 half16(const uint8_t *p) {
    float f[16];
    gwq_avx2_halves(p, 16, f);
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512 floats16(__m512i v) {
    int32_t n[16];
    float f[16];
    _mm512_storeu_si512(n, v);
    for (int i = 0; i < 16; i++) f[i] = (float)n[i];
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512i bytes16(const uint8_t *p) {
    int32_t v[16];
    for (int i = 0; i < 16; i++) v[i] = p[i];
    return _mm512_loadu_si512(v);
}
GWQ_INLINE __m512 gather16(const float *x, __m512i index) {
    int32_t at[16];
    float f[16];
    _mm512_storeu_si512(at, index);
    for (int i = 0; i < 16; i++) f[i] = x[at[i]];
    return _mm512_loadu_ps(f);
}
GWQ_INLINE __m512 expand16(__mmask16 rows, const float *p) {
    float f[16] = {0};
    for (int r = 0; r < 16; r++)
        if (rows >> r & 1) f[r] = *p++;
    return _mm512_loadu_ps(f);
}
#else
GWQ_INLINE __m512 half16(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
GWQ_INLINE __m512 floats16(__m512i v) { return _mm512_cvtepi32_ps(v); }
GWQ_INLINE __m512i bytes16(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
GWQ_INLINE __m512 gather16(const float *x, __m512i index) { return _mm512_i32gather_ps(index, x, 4); }
GWQ_INLINE __m512 expand16(__mmask16 rows, const float *p) { return _mm512_maskz_expand_ps(rows, _mm512_loadu_ps(p)); }
#endif

/* --- one function per width turns a few lines into codes ---------------------------------------------------------- */

/* v[p]: 16 rows x columns 4p .. 4p+3, one byte each, of the lines that hold them together: one line of 2 quads at 4
 * bits, one of 4 quads at 2 bits, three of 8 quads at 3 bits. */
typedef void (*quads_fn)(const uint8_t *line, __m512i *v);
enum { QUADS4 = 2, QUADS3 = 8, QUADS2 = 4 };

GWQ_INLINE __m512i shifted(__m512i v, int shift) { return shift ? _mm512_srli_epi16(v, (unsigned)shift) : v; }
GWQ_INLINE __m512i field(__m512i v, int shift, int mask) {
    return _mm512_and_si512(shifted(v, shift), _mm512_set1_epi8((char)mask));
}

GWQ_INLINE void quads4(const uint8_t *line, __m512i *v) {
    __m512i a = _mm512_loadu_si512(line);
    v[0] = field(a, 0, 15), v[1] = field(a, 4, 15);
}

GWQ_INLINE void quads3(const uint8_t *line, __m512i *v) {
    __m512i a = _mm512_loadu_si512(line), b = _mm512_loadu_si512(line + 64), c = _mm512_loadu_si512(line + 128);
    const __m512i low = _mm512_set1_epi8(3), all = _mm512_set1_epi8(7);
    v[0] = field(a, 0, 7), v[1] = field(a, 3, 7);
    v[2] = field(b, 0, 7), v[3] = field(b, 3, 7);
    v[4] = field(c, 0, 7), v[5] = field(c, 3, 7);
    /* 0xca: where the first operand is set the second one, elsewhere the third */
    v[6] = _mm512_and_si512(_mm512_ternarylogic_epi32(low, shifted(a, 6), shifted(c, 4), 0xca), all);
    v[7] = _mm512_and_si512(_mm512_ternarylogic_epi32(low, shifted(b, 6), shifted(c, 5), 0xca), all);
}

GWQ_INLINE void quads2(const uint8_t *line, __m512i *v) {
    __m512i a = _mm512_loadu_si512(line);
    v[0] = field(a, 0, 3), v[1] = field(a, 2, 3), v[2] = field(a, 4, 3), v[3] = field(a, 6, 3);
}

/* y[16] += scale * dx * dot */
GWQ_INLINE void add_rows(const uint8_t *scale, float dx, __m512i dot, float *y) {
    __m512 d = _mm512_mul_ps(half16(scale), _mm512_set1_ps(dx));
    _mm512_storeu_ps(y, _mm512_fmadd_ps(d, floats16(dot), _mm512_loadu_ps(y)));
}

GWQ_INLINE void block(int bits, int unit, quads_fn quads, const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx,
                      int32_t sum, float *y) {
    __m512i v[8], dot[2] = {_mm512_set1_epi32(-sum * (1 << (bits - 1))), _mm512_setzero_si512()}; /* two: one waits for itself */
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit) {
        quads(line, v);
        for (int p = 0; p < unit; p++) add_quads(&dot[p % 2], v[p], q + 4 * (u + p));
    }
    add_rows(scale, dx, _mm512_add_epi32(dot[0], dot[1]), y);
}

GWQ_INLINE __mmask16 rows_above(__m512i count, int level) { return _mm512_cmpgt_epi32_mask(count, _mm512_set1_epi32(level)); }

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product, float *y) {
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

GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count, const float *x,
                                float *product) {
    for (int k = 0; k < count; k += 16)
        _mm512_storeu_ps(product + k, _mm512_mul_ps(half16(value + 2 * k), gather16(x, bytes16(column + k))));
}

/* --- several tokens ----------------------------------------------------------------------------------------------- */

GWQ_INLINE void decode(int bits, int unit, quads_fn quads, const uint8_t *line, gwq_codes codes) {
    for (int u = 0; u < GWQ_BLOCK / 4; u += unit, line += 8 * bits * unit) {
        __m512i v[8];
        quads(line, v);
        for (int p = 0; p < unit; p++) _mm512_storeu_si512(codes[u + p], v[p]);
    }
}

/* `count` (constant) tokens against nb decoded blocks */
GWQ_INLINE void few_tokens(const uint8_t *scale, const gwq_codes *codes, int nb, int zero, const gwq_input *in, int64_t t,
                           const int count, int64_t b, float (*acc)[GWQ_ROWS]) {
    for (int k = 0; k < nb; k++) {
        const int8_t *q = in->q + (t * in->blocks + b + k) * GWQ_BLOCK;
        __m512i dot[8];
        for (int i = 0; i < count; i++) dot[i] = _mm512_set1_epi32(-zero * in->sum[(t + i) * in->blocks + b + k]);
        for (int u = 0; u < GWQ_BLOCK / 4; u++) {
            __m512i v = _mm512_loadu_si512(codes[k][u]);
            for (int i = 0; i < count; i++) add_quads(&dot[i], v, q + i * in->blocks * GWQ_BLOCK + 4 * u);
        }
        for (int i = 0; i < count; i++) add_rows(scale + 32 * k, in->scale[(t + i) * in->blocks + b + k], dot[i], acc[i]);
    }
}

static __attribute__((noinline)) void tokens(const uint8_t *scale, const gwq_codes *codes, int nb, int zero, const gwq_input *in,
                                             int64_t t, int count, int64_t b, float (*acc)[GWQ_ROWS]) {
    int i = 0;
    for (; i + 8 <= count; i += 8) few_tokens(scale, codes, nb, zero, in, t + i, 8, b, acc + i);
    if (count & 4) few_tokens(scale, codes, nb, zero, in, t + i, 4, b, acc + i), i += 4;
    if (count & 2) few_tokens(scale, codes, nb, zero, in, t + i, 2, b, acc + i), i += 2;
    if (count & 1) few_tokens(scale, codes, nb, zero, in, t + i, 1, b, acc + i);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 16)
        _mm512_storeu_ps(sum + t, _mm512_fmadd_ps(_mm512_set1_ps(v), _mm512_loadu_ps(x + t), _mm512_loadu_ps(sum + t)));
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) { return rows_above(bytes16(count), level); }

#define TILE_TYPE(bits, ahead)                                                                                      \
    static void block##bits(const uint8_t *scale, const uint8_t *line, const int8_t *q, float dx, int32_t sum,        \
                            float *y) {                                                                             \
        block(bits, QUADS##bits, quads##bits, scale, line, q, dx, sum, y);                                          \
    }                                                                                                               \
    static void decode##bits(const uint8_t *line, gwq_codes codes) { decode(bits, QUADS##bits, quads##bits, line, codes); } \
    static const tile_ops ops##bits = {bits, ahead, block##bits, multiply_values, expand, decode##bits, tokens, gwq_avx2_transpose, \
                                       gwq_avx2_halves, above, spread};                                             \
    static void matmul_gwq##bits(const gwq_matrix *m, int64_t first, int64_t last, const gwq_input *in, float *y) { \
        tile_matmul(&ops##bits, m, first, last, in, y);                                                             \
    }
TILE_TYPE(2, 1024)
TILE_TYPE(3, 1536)
TILE_TYPE(4, 1536)

/* Empty slots are AVX2's (gwq.c): there memory or plain float arithmetic is the limit. */
const gwq_kernels gwq_avx512 = {
    .isa = "avx512",
    .supported = supported,
    .matmul = {[GWQ_K_GWQ2] = matmul_gwq2, [GWQ_K_GWQ3] = matmul_gwq3, [GWQ_K_GWQ4] = matmul_gwq4},
};
