/* Dot products of bytes (Cortex-A55 and A76 on, Jetson Orin, Apple M1): tile matrices. With
 * GWQ_OLD_COMPILER, of a compiler that does not know them, NEON does the same, and then no CPU has
 * them. */
#ifdef GWQ_OLD_COMPILER
#include "neon_sums.h"
enum { AT_ONCE = 2 };
#else
#include "dotprod_sums.h"
enum { AT_ONCE = 4 };
#endif
#include "neon_tokens.h"

static int supported(void) {
#ifdef GWQ_OLD_COMPILER
    return 0;
#else
    return gwq_arm_has_dotprod();
#endif
}

TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)
TILE_TYPE(5)
TILE_TYPE(6)

/* Empty slots are NEON's (dispatch.c). */
const gwq_kernels gwq_dotprod = {
    .isa = "dotprod",
    .supported = supported,
    .matmul = {TILE_TYPES(matmul)},
};
