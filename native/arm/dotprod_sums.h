/* What neon_tiles.h wants, with dot products (sdot): four products of bytes are added to a sum of
 * 32 bits. The sums go on from the first sub-block of a block to its last, because to begin at
 * zero is an instruction: with A[k] the sum up to sub-block k, and s[k] the scales,
 *
 *     sum over k of s[k] * (A[k] - A[k - 1]) = sum over k of (s[k] - s[k + 1]) * A[k],
 *     s[last + 1] = 0.
 *
 * That fits: 63 * 64 * 32 * 127 * 4 < 2^31. */
#ifndef GWQ_DOTPROD_SUMS_H
#define GWQ_DOTPROD_SUMS_H
#include "neon.h"

enum { TELESCOPE = 1 };
typedef int32x4_t running; /* of 4 rows */

GWQ_INLINE void begin(running *r) { *r = vdupq_n_s32(0); }

/* `lane` is a constant: which of the four quads of activations in x */
GWQ_INLINE void add(running *r, int8x16_t entries, int8x16_t x, const int lane, const int first) {
    (void)first;
    switch (lane) {
    case 0: *r = vdotq_laneq_s32(*r, entries, x, 0); break;
    case 1: *r = vdotq_laneq_s32(*r, entries, x, 1); break;
    case 2: *r = vdotq_laneq_s32(*r, entries, x, 2); break;
    default: *r = vdotq_laneq_s32(*r, entries, x, 3);
    }
}

GWQ_INLINE int32x4_t sum_of(running *r, const int sub, const int biased, const int16_t *bias) {
    (void)sub;
    if (biased) *r = vaddq_s32(*r, vdupq_n_s32(bias[0] + bias[1]));
    return *r;
}
#endif
