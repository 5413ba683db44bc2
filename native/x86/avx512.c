/* AVX-512 (F, BW, DQ, VL, VNNI): tile matrices. */
#include "cpu/tiles.h"
#include "avx512_unpack.h"
#include "avx512_tiles.h"

static int supported(void) {
#ifdef GWQ_SIMDE
    return gwq_avx2.supported();
#else
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && gwq_avx2.supported();
#endif
}

TILE_TYPE(2)
TILE_TYPE(3)
TILE_TYPE(4)
TILE_TYPE(5)
TILE_TYPE(6)

/* Empty slots are AVX2's (dispatch.c). */
const gwq_kernels gwq_avx512 = {
    .isa = "avx512",
    .supported = supported,
    .quantize16 = gwq_avx2_quantize16,
    .matmul = {TILE_TYPES(matmul), [GWQ_K_F32] = gwq_avx512_matmul_f32,
               [GWQ_K_F16] = gwq_avx512_matmul_f16, [GWQ_K_BF16] = gwq_avx512_matmul_bf16,
               [GWQ_K_Q8_0] = gwq_avx512_matmul_q8_0},
    .scores = gwq_avx512_scores,
    .mix = gwq_avx512_mix,
    .products = gwq_avx512_products,
    .weigh = gwq_avx512_weigh,
#ifndef GWQ_SIMDE
    .quantize = gwq_avx512_quantize,
    .panel = gwq_avx512_panel,
    .exponents = gwq_avx512_exponents,
#endif
    .encode = gwq_encode_avx512,
    .multiply = gwq_multiply_avx512,
};
