/* Functions of one number. */
#ifndef GWQ_CUDA_FUNCTIONS_H
#define GWQ_CUDA_FUNCTIONS_H
#include "device.h"
#include "gwq.h"

/* By enum gwq_activation, the formulas of gwq.h. GELU: x P(X < x) for a normal X, = x/2 erfc(-x /
 * sqrt(2)). Its approximation by tanh: x/2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3),
 * = x / (1 + exp(-2u)). */
DEVICE float activated(float x, int activation) {
    if (activation == GWQ_SILU) return x / (1 + expf(-x));
    if (activation == GWQ_GELU) return 0.5f * x * erfcf(x * -0.70710678f);
    return x / (1 + expf(-1.59576912f * (x + 0.044715f * x * x * x)));
}

/* 2^k, k so that |x| / 2^k lies between 2^14 and 2^15 for the largest x, as FP16 numbers go to
 * 65504; NaN beside an infinity */
DEVICE float power_below(float most) {
    if (!(most <= FLT_MAX)) return NAN;
    const int exponent = (__float_as_int(most) >> 23) - 127; /* of 0: -127 */
    const int k = (exponent > -100 ? exponent : -100) - 14;
    return __int_as_float((k + 127) << 23);
}

DEVICE float capped(float x, float cap) { return cap * tanhf(x / cap); }
#endif
