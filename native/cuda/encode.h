/* Activations to int8 codes, a block of 64 columns by a warp. */
#ifndef GWQ_CUDA_ENCODE_H
#define GWQ_CUDA_ENCODE_H
#include "layout.h"

/* Codes of 64 numbers, two of each lane (columns lane and 32 + lane): scale = largest / 127, q =
 * x / scale to nearest even. Returns the scale. */
DEVICE float encode(const float *x, int *q) {
    const float most = most_over(fmaxf(fabsf(x[0]), fabsf(x[1])), 1, WARP); /* passes over NaN */
    const float scale = fmaxf(most, 0.0f) / 127;
    const float inverse = scale > 0 ? 1 / scale : 0;
    for (int i = 0; i < 2; i++) {
        float v = rintf(x[i] * inverse);
        v = v > 127 ? 127 : v < -127 ? -127 : v; /* only when 1 / scale overflowed */
        q[i] = v == v ? (int)v : 0;
    }
    return scale;
}

/* A block of numbers in which one is so large that the codes of the others say little gets a second
 * set of codes, of what the first leaves over (native/cpu/massive.c has the bound):
 *
 *     64 / 12 > 0.1 * (sum of q^2 - 127^2) */
DEVICE bool massive(const int *q) {
    const int squares = sum_over(q[0] * q[0] + q[1] * q[1], 1, WARP);
    return squares < 127 * 127 + 64 * 10 / 12;
}

/* q (2): codes of what the codes `before` leave over. Returns their scale; 0: none are needed */
DEVICE float encode_rest(const float *x, float scale, const int *before, int *q) {
    if (!(scale > 0) || !massive(before)) return 0;
    const float rest[2] = {x[0] - scale * (float)before[0], x[1] - scale * (float)before[1]};
    const float most = most_over(fmaxf(fabsf(rest[0]), fabsf(rest[1])), 1, WARP);
    if (!(most > 1e-4f * scale)) return 0; /* the codes hold it all, or it is not finite */
    return encode(rest, q);
}
#endif
