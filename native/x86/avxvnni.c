/* AVX-VNNI and GFNI, of CPUs without AVX-512 (Alder Lake, N100 and their kind): tile matrices. One
 * instruction multiplies and adds what takes AVX2 two, into sums of 32 bits, and one shifts and
 * masks bytes.
 *
 * With GWQ_SIMDE, as tests compile it, AVX2 does the same; with GWQ_OLD_COMPILER too, of a compiler
 * that does not know the instructions, and then no CPU has them. */
#include <cpuid.h>
#include "avx2.h"
#if defined GWQ_SIMDE || defined GWQ_OLD_COMPILER
#define EMULATED
#endif

static int supported(void) {
#if defined GWQ_OLD_COMPILER
    return 0;
#elif defined GWQ_SIMDE
    return gwq_avx2.supported();
#else
    unsigned a = 0, b, c, d; /* leaf 7, 1: not every compiler's __builtin_cpu_supports knows it */
    return gwq_avx2.supported() && __builtin_cpu_supports("gfni") &&
           __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#endif
}

/* --- what avx2_tiles.h wants ------------------------------------------------------------------ */

#ifdef EMULATED
GWQ_INLINE __m256i bits_at(__m256i v, const int shift, const int mask) {
    return shifted(v, shift, mask);
}
#else
/* A bit matrix for every byte: its byte 7 - i has the bits of v that add up to bit i. */
#define ROW(i) (uint64_t)(mask >> (i) & 1 && (i) + shift >= 0 && (i) + shift < 8 \
                              ? 1 << ((i) + shift) : 0) << 8 * (7 - (i))
GWQ_INLINE __m256i bits_at(__m256i v, const int shift, const int mask) {
    if (!shift) return both(v, mask);
    const uint64_t m = ROW(0) | ROW(1) | ROW(2) | ROW(3) | ROW(4) | ROW(5) | ROW(6) | ROW(7);
    return _mm256_gf2p8affine_epi64_epi8(v, _mm256_set1_epi64x((int64_t)m), 0);
}
#undef ROW
#endif

GWQ_INLINE __m256i first_sum(__m256i bias) {
    return _mm256_madd_epi16(bias, _mm256_set1_epi16(1));
}

GWQ_INLINE void add_products(__m256i *sum, __m256i entries, __m256i x) {
#ifdef EMULATED
    __m256i pairs = _mm256_maddubs_epi16(entries, x); /* entries < 64: they fit */
    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#else
    *sum = _mm256_dpbusd_avx_epi32(*sum, entries, x);
#endif
}

GWQ_INLINE __m256i spread_scales(__m256i s, int h) {
    __m128i rows = _mm256_castsi256_si128(s);
    return _mm256_cvtepi8_epi32(h ? _mm_unpackhi_epi64(rows, rows) : rows);
}
#define UNIT 1.f

GWQ_INLINE __m256i weighted(__m256i sum, __m256i scales) {
    return _mm256_mullo_epi32(sum, scales);
}

#include "avx2_tiles.h"

/* Three row groups at a time, 1 KB ahead: on Sapphire Rapids 1.04 to 1.07 times as fast as 4 KB
 * ahead, and 1.3 to 1.4 times as one row group, 8 KB ahead. Zen 5 is faster with one, but it has
 * AVX-512. */
TILE_TYPE(2, 3, 1024)
TILE_TYPE(3, 3, 1024)
TILE_TYPE(4, 3, 1024)
TILE_TYPE(5, 3, 1024)
TILE_TYPE(6, 3, 1024)

const gwq_kernels gwq_avxvnni = {
    .isa = "avxvnni",
    .supported = supported,
    .matmul = {TILE_TYPES(matmul)},
};
