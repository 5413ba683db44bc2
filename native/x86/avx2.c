/* AVX2, FMA and F16C: tile matrices, and the row of all that the other avx2_*.c hold. */
#include <cpuid.h>
#include "avx2_sums.h"
#include "avx2_tiles.h"
#include "vendor.h"

static int supported(void) {
    unsigned a, b, c = 0, d; /* leaf 1: Clang's __builtin_cpu_supports does not know f16c */
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

void gwq_avx2_halves(const uint8_t *value, int count, float *out) {
    int k = 0;
    for (; k + 8 <= count; k += 8) _mm256_storeu_ps(out + k, half8(value + 2 * k));
    for (; k < count; k++) out[k] = half1(value + 2 * k);
}

GWQ_INLINE void tile_dequantize(const tile_ops *ops, const gwq_matrix *m, int64_t group,
                                float *out) {
    const size_t bytes = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits);
    const uint8_t *tile = gwq_group(m, ops->bits, group);
    int64_t rows = min64(GWQ_ROWS, m->rows - group * GWQ_ROWS), blocks = gwq_blocks(m->cols), nb;
    _Alignas(64) gwq_entries entries;
    _Alignas(64) gwq_scales scales;
    _Alignas(64) uint8_t table[64 * TABLES];
    uint8_t copy[GWQ_TILE_BYTES];
    float d[GWQ_ROWS];
    gwq_avx2_halves(gwq_row_scales(m, group), GWQ_ROWS, d);
    for (int r = 0; r < GWQ_ROWS; r++) d[r] *= gwq_power(m);
    ops->tables(gwq_table(m), table);
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * (bytes + lines)) {
        nb = min64(GWQ_TILE_BLOCKS, blocks - b);
        const uint8_t *whole = gwq_whole_tile(m, ops->bits, tile, b, copy);
        for (int64_t k = 0; k < nb; k++) {
            ops->decode(table, whole + nb * bytes + k * lines, entries);
            ops->scales(whole + k * bytes, scales);
            int64_t first = (b + k) * GWQ_BLOCK, width = min64(GWQ_BLOCK, m->cols - first);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c += 8) { /* 8 columns are two quads */
                    uint32_t low, high;
                    int16_t scale;
                    memcpy(&low, &entries[c / 4][4 * r], 4);
                    memcpy(&high, &entries[c / 4 + 1][4 * r], 4);
                    memcpy(&scale, &scales[c / 16][4 * r], 2);
                    int64_t eight = (int64_t)((uint64_t)high << 32 | low);
                    __m256i v = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(eight));
                    v = _mm256_sub_epi32(v, _mm256_set1_epi32(ENTRY_BIAS));
                    __m256 factor = _mm256_set1_ps(d[r] * ((float)scale * UNIT));
                    __m256 f = _mm256_mul_ps(factor, _mm256_cvtepi32_ps(v));
                    float *to = out + r * m->cols + first + c, last[8];
                    if (width - c >= 8) {
                        _mm256_storeu_ps(to, f);
                    } else {
                        _mm256_storeu_ps(last, f);
                        memcpy(to, last, (size_t)(width - c) * sizeof *to);
                    }
                }
        }
    }
}

#define DEQUANTIZE(N)                                                              \
    static void dequantize_gwq##N(const gwq_matrix *m, int64_t group, float *out) { \
        tile_dequantize(&ops##N, m, group, out);                                    \
    }

/* Three row groups at a time, 1 KB ahead: tuned on Zen 3, and on Sapphire Rapids 1.4 to 1.5 times
 * as fast as one, 8 KB ahead; touching pages costs 15 % there. At 3 bits one row group is faster on
 * Zen 3, three are on Sapphire Rapids. */
TILE_TYPE(2, 3, 1024)
DEQUANTIZE(2)
TILE_FUNCTIONS(3)
static const tile_ops ops3 = TILE_OPS_256(3, 1, 1024);
static const tile_ops intel3 = TILE_OPS_256(3, 3, 1024);
TILE_MATMUL_BY_CPU(3, ONE_TOKEN_ON(intel, 3))
DEQUANTIZE(3)
TILE_TYPE(4, 3, 1024)
DEQUANTIZE(4)
TILE_TYPE(5, 3, 1024)
DEQUANTIZE(5)
TILE_TYPE(6, 3, 1024)
DEQUANTIZE(6)

/* --- the row ---------------------------------------------------------------------------------- */

#define GGML_TYPES(slot)                    \
    [GWQ_K_F32] = gwq_avx2_##slot##_f32,    \
    [GWQ_K_F16] = gwq_avx2_##slot##_f16,    \
    [GWQ_K_BF16] = gwq_avx2_##slot##_bf16,  \
    [GWQ_K_Q8_0] = gwq_avx2_##slot##_q8_0

const gwq_kernels gwq_avx2 = {
    .isa = "avx2",
    .supported = supported,
    .quantize = gwq_avx2_quantize,
    .panel = gwq_avx2_panel,
    .matmul = {GGML_TYPES(matmul), TILE_TYPES(matmul)},
    .dequantize = {GGML_TYPES(dequantize), TILE_TYPES(dequantize)},
    .rmsnorm = gwq_avx2_rmsnorm,
    .activate = gwq_avx2_activate,
    .softcap = gwq_avx2_softcap,
    .convolve = gwq_avx2_convolve,
    .to_halves = gwq_avx2_to_halves,
    .scores = gwq_avx2_scores,
    .largest = gwq_avx2_largest,
    .exponents = gwq_avx2_exponents,
    .mix = gwq_avx2_mix,
    .from_cache = gwq_avx2_from_cache,
    .products = gwq_avx2_products,
    .weigh = gwq_avx2_weigh,
    .read = gwq_avx2_read_memory,
    .encode = gwq_encode_avx2,
    .multiply = gwq_multiply_avx2,
};
