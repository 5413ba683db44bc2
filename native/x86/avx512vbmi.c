/* AVX-512 with VBMI (Ice Lake, Zen 4 and later): tile matrices, their windows looked up by
 * permutations of 64 bytes. */
#include "cpu/tiles.h"
#include "avx512vbmi_unpack.h"
#include "avx512_tiles.h"

static int supported(void) {
#ifdef GWQ_SIMDE
    return gwq_avx512.supported();
#else
    return __builtin_cpu_supports("avx512vbmi") && gwq_avx512.supported();
#endif
}

TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)
TILE_TYPE(5)
TILE_TYPE(6)

const gwq_kernels gwq_avx512vbmi = {
    .isa = "avx512vbmi",
    .supported = supported,
    .matmul = {TILE_TYPES(matmul)},
};
