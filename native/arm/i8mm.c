/* Products of small matrices of bytes (Cortex-A710, Neoverse V1 and N2, Apple M2, and later): tile
 * matrices, as with dot products but for many tokens. With GWQ_OLD_COMPILER, of a compiler that
 * does not know the instructions, NEON does the same, and then no CPU has them. */
#ifdef GWQ_OLD_COMPILER
#include "neon_sums.h"
enum { AT_ONCE = 2 };
#include "neon_tokens.h"
#else
#include "dotprod_sums.h"
#include "i8mm_tokens.h"
#endif

static int supported(void) {
#ifdef GWQ_OLD_COMPILER
    return 0;
#else
    return gwq_arm_has_dotprod() && gwq_arm_has_i8mm();
#endif
}

TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)
TILE_TYPE(5)
TILE_TYPE(6)

/* Empty slots are NEON's (dispatch.c). */
const gwq_kernels gwq_i8mm = {
    .isa = "i8mm",
    .supported = supported,
    .matmul = {TILE_TYPES(matmul)},
};
