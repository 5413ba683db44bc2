/* AVX-VNNI, of CPUs without AVX-512 (Alder Lake, N100 and their kind): tile matrices. One
 * instruction multiplies and adds what takes AVX2 two, into sums of 32 bits.
 *
 * With GWQ_SIMDE, as tests compile it, AVX2 does the same; with GWQ_OLD_COMPILER too, of a compiler
 * that does not know the instruction, and then no CPU has it. */
#include <cpuid.h>
#include "avx2.h"
#include "slots.h"

static int supported(void) {
#if defined GWQ_OLD_COMPILER
    return 0;
#elif defined GWQ_SIMDE
    return gwq_avx2.supported();
#else
    unsigned a = 0, b, c, d; /* leaf 7, 1: not every compiler's __builtin_cpu_supports knows it */
    return gwq_avx2.supported() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1;
#endif
}

/* --- what avx2_tiles.h wants ------------------------------------------------------------------ */

GWQ_INLINE __m256i first_sum(__m256i bias) {
    return _mm256_madd_epi16(bias, _mm256_set1_epi16(1));
}

GWQ_INLINE void add_products(__m256i *sum, __m256i entries, __m256i x) {
#if defined GWQ_SIMDE || defined GWQ_OLD_COMPILER
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

/* As with AVX-512, measured on Zen 5 */
TILE_TYPE(2, 1, 8192)
TILE_TYPE(3, 1, 8192)
TILE_TYPE(4, 1, 8192)
TILE_TYPE(5, 1, 8192)
TILE_TYPE(6, 1, 8192)

const gwq_kernels gwq_avxvnni = {
    .isa = "avxvnni",
    .supported = supported,
    .matmul = {[GWQ_K_GWQ2] = matmul_gwq2,
               [GWQ_K_GWQ3] = matmul_gwq3,
               [GWQ_K_GWQ4] = matmul_gwq4,
               [GWQ_K_GWQ5] = matmul_gwq5,
               [GWQ_K_GWQ6] = matmul_gwq6},
};
