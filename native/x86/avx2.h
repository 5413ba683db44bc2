/* Loads and sums that the avx2*.c files share. */
#ifndef GWQ_AVX2_H
#define GWQ_AVX2_H
#include <immintrin.h>
#include <string.h>
#include "slots.h"

GWQ_INLINE __m256i load(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

GWQ_INLINE __m256i bytes_of(int byte) { return _mm256_set1_epi8((char)byte); }
GWQ_INLINE __m256i both(__m256i v, int mask) { return _mm256_and_si256(v, bytes_of(mask)); }

/* (v >> shift) & mask of every byte, of constants: the mask takes away what a shift of 16 bits
 * brings in from the neighbouring byte. A shift below 0 is one to the left. */
GWQ_INLINE __m256i shifted(__m256i v, const int shift, const int mask) {
    return both(shift < 0 ? _mm256_slli_epi16(v, -shift) : _mm256_srli_epi16(v, shift), mask);
}

/* FP16 to float, 8 values and one */
GWQ_INLINE __m256 half8(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
GWQ_INLINE float half1(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
}

/* ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) */
GWQ_INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

/* The sums of four vectors: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)) of each */
GWQ_INLINE __m128 sums4(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
}
#endif
