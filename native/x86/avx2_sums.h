/* What avx2_unpack.h and avx2_tiles.h want, with AVX2. avxvnni.c has its own. */
#ifndef GWQ_AVX2_SUMS_H
#define GWQ_AVX2_SUMS_H
#include "avx2.h"

GWQ_INLINE __m256i bits_at(__m256i v, const int shift, const int mask) {
    return shifted(v, shift, mask);
}

/* 16 columns fit 16 bits, thanks to the bias (gwq_input): two sums in every 32-bit lane. */
GWQ_INLINE __m256i first_sum(__m256i bias) { return bias; }

/* By assembler: gcc 12 regroups a chain of these sums into a tree that keeps every product alive,
 * or copies the sum before each addition. */
GWQ_INLINE void add_products(__m256i *sum, __m256i entries, __m256i x) {
    __asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(_mm256_maddubs_epi16(entries, x)));
}

/* 256 * scale of the rows 8h .. 8h+7, twice in each 32-bit lane. With it a block's sum just fits:
 * 64 * 32 * 127 * 32 * 256 < 2^31. */
GWQ_INLINE __m256i spread_scales(__m256i s, int h) {
    const __m256i low = _mm256_setr_epi32(0x00800080, 0x01800180, 0x02800280, 0x03800380,
                                          0x04800480, 0x05800580, 0x06800680, 0x07800780);
    const __m256i high = _mm256_add_epi8(low, _mm256_set1_epi16(0x0800));
    return _mm256_shuffle_epi8(s, h ? high : low); /* an index of 0x80 gives a zero byte */
}
#define UNIT (1.f / 256)

GWQ_INLINE __m256i weighted(__m256i sum, __m256i scales) { return _mm256_madd_epi16(sum, scales); }
#endif
