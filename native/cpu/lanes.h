/* Vectors of LANES floats for texts that are compiled once per instruction set. A file defines
 * LANES before it includes this. */
#ifndef GWQ_LANES_H
#define GWQ_LANES_H
#include <string.h>
#include "kernels.h"

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t flags __attribute__((vector_size(4 * LANES))); /* comparisons: 0 or -1 */

/* v - 0 is v, also where v is -0, so that a compiler leaves it out; v + 0 is not. */
GWQ_INLINE lanes all(float v) { return v - (lanes){0}; }

GWQ_INLINE lanes load(const float *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}

/* a * b + c, rounded once: one instruction where there is one */
GWQ_INLINE lanes fused(lanes a, lanes b, lanes c) {
    lanes v;
    for (int l = 0; l < LANES; l++) v[l] = __builtin_fmaf(a[l], b[l], c[l]);
    return v;
}

GWQ_INLINE flags picki(flags mask, flags a, flags b) { return (mask & a) | (~mask & b); }
GWQ_INLINE lanes pick(flags mask, lanes a, lanes b) {
    return (lanes)picki(mask, (flags)a, (flags)b);
}
#endif
