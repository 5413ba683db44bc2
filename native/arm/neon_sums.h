/* What neon_tiles.h wants, with the vectors of every 64-bit ARM CPU: products of bytes in 16 bits,
 * of which eight may be added up (8 * 32 * 127 < 2^15). dotprod_sums.h has its own. */
#ifndef GWQ_NEON_SUMS_H
#define GWQ_NEON_SUMS_H
#include "neon.h"

enum { TELESCOPE = 0 };

/* Sums of 4 rows: of the rows 0 and 1, of the rows 2 and 3; of each row its four columns apart */
typedef struct {
    int16x8_t half[2];
} running;

GWQ_INLINE void begin(running *r) { (void)r; }

/* Four activations in every 32-bit lane; `lane` is a constant */
GWQ_INLINE int8x16_t quad(int8x16_t x, const int lane) {
    const int32x4_t v = vreinterpretq_s32_s8(x);
    switch (lane) {
    case 0: return vreinterpretq_s8_s32(vdupq_laneq_s32(v, 0));
    case 1: return vreinterpretq_s8_s32(vdupq_laneq_s32(v, 1));
    case 2: return vreinterpretq_s8_s32(vdupq_laneq_s32(v, 2));
    default: return vreinterpretq_s8_s32(vdupq_laneq_s32(v, 3));
    }
}

GWQ_INLINE void add(running *r, int8x16_t entries, int8x16_t x, const int lane, const int first) {
    const int8x16_t four = quad(x, lane);
    if (first) {
        r->half[0] = vmull_s8(vget_low_s8(entries), vget_low_s8(four));
        r->half[1] = vmull_high_s8(entries, four);
    } else {
        r->half[0] = vmlal_s8(r->half[0], vget_low_s8(entries), vget_low_s8(four));
        r->half[1] = vmlal_high_s8(r->half[1], entries, four);
    }
}

GWQ_INLINE int32x4_t sum_of(running *r, const int sub, const int biased, const int16_t *bias) {
    if (sub == 8) /* 32 columns: the next addition would not fit */
        return vpaddq_s32(vpaddlq_s16(r->half[0]), vpaddlq_s16(r->half[1]));
    int16x8_t pairs = vpaddq_s16(r->half[0], r->half[1]);
    if (biased) { /* as gwq_input.bias says: the result fits, whatever overflowed */
        int32_t two;
        memcpy(&two, bias, sizeof two);
        pairs = vaddq_s16(pairs, vreinterpretq_s16_s32(vdupq_n_s32(two)));
    }
    return vpaddlq_s16(pairs);
}
#endif
