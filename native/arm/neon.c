/* NEON, which every 64-bit ARM CPU has: tile matrices, and the row of all that the other files of
 * this folder hold. */
#include "neon_sums.h"
enum { AT_ONCE = 2 };
#include "neon_tokens.h"

static int always(void) { return 1; }

void gwq_neon_halves(const uint8_t *value, int count, float *out) {
    for (int k = 0; k + 4 <= count; k += 4) vst1q_f32(out + k, half4(value + 2 * k));
    for (int k = count & ~3; k < count; k++) out[k] = half1(value + 2 * k);
}

/* out[0 .. width-1] = factor * entries, of one row and one quad of columns; as floats, because a
 * zero has its factors' sign */
GWQ_INLINE void store_quad(const int bits, const uint8_t *entries, float factor, int64_t width,
                           float *out) {
    int32_t four;
    memcpy(&four, entries, 4);
    int16x8_t v = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    if (bits == 6) v = vsubq_s16(v, vdupq_n_s16(ENTRY_BIAS));
    const float32x4_t f = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), factor);
    if (width >= 4) {
        vst1q_f32(out, f);
    } else if (width > 0) {
        float last[4];
        vst1q_f32(last, f);
        memcpy(out, last, (size_t)width * sizeof *out);
    }
}

GWQ_INLINE void tile_dequantize(const tile_ops *ops, const int sub, scales_fn scales,
                                const gwq_matrix *m, int64_t group, float *out) {
    const size_t bytes = gwq_scale_bytes(ops->bits), lines = gwq_line_bytes(ops->bits);
    const uint8_t *tile = gwq_group(m, ops->bits, group);
    const int64_t rows = min64(GWQ_ROWS, m->rows - group * GWQ_ROWS), blocks = gwq_blocks(m->cols);
    _Alignas(64) gwq_entries entries;
    _Alignas(64) uint8_t table[64 * TABLES];
    uint8_t copy[GWQ_TILE_BYTES];
    int64_t nb;
    float d[GWQ_ROWS];
    gwq_neon_halves(gwq_row_scales(m, group), GWQ_ROWS, d);
    for (int r = 0; r < GWQ_ROWS; r++) d[r] *= gwq_power(m);
    ops->tables(gwq_table(m), table);
    for (int64_t b = 0; b < blocks; b += nb, tile += nb * (bytes + lines)) {
        nb = min64(GWQ_TILE_BLOCKS, blocks - b);
        const uint8_t *whole = gwq_whole_tile(m, ops->bits, tile, b, copy);
        for (int64_t k = 0; k < nb; k++) {
            const int64_t first = (b + k) * GWQ_BLOCK, width = min64(GWQ_BLOCK, m->cols - first);
            uint8x16_t s[4];
            int8_t scale[4][GWQ_ROWS];
            ops->decode(table, whole + nb * bytes + k * lines, entries);
            scales(whole + k * bytes, s);
            for (int i = 0; i < GWQ_BLOCK / 4 / sub; i++)
                vst1q_s8(scale[i], vsubq_s8(vreinterpretq_s8_u8(s[i]), vdupq_n_s8(SCALE_BIAS)));
            for (int64_t r = 0; r < rows; r++)
                for (int64_t c = 0; c < width; c += 4)
                    store_quad(ops->bits, &entries[c / 4][4 * r], d[r] * scale[c / 4 / sub][r],
                               width - c, out + r * m->cols + first + c);
        }
    }
}

#define DEQUANTIZE(N)                                                              \
    static void dequantize_gwq##N(const gwq_matrix *m, int64_t group, float *out) { \
        tile_dequantize(&ops##N, SUB##N, scales##N, m, group, out);                 \
    }

TILE_TYPE(2)
DEQUANTIZE(2)
TILE_TYPE(3)
DEQUANTIZE(3)
TILE_TYPE(4)
DEQUANTIZE(4)
TILE_TYPE(5)
DEQUANTIZE(5)
TILE_TYPE(6)
DEQUANTIZE(6)

/* --- the row ---------------------------------------------------------------------------------- */

#define GGML_TYPES(slot)                    \
    [GWQ_K_F32] = gwq_neon_##slot##_f32,    \
    [GWQ_K_F16] = gwq_neon_##slot##_f16,    \
    [GWQ_K_BF16] = gwq_neon_##slot##_bf16,  \
    [GWQ_K_Q8_0] = gwq_neon_##slot##_q8_0

const gwq_kernels gwq_neon = {
    .isa = "neon",
    .supported = always,
    .quantize = gwq_neon_quantize,
    .panel = gwq_neon_panel,
    .matmul = {GGML_TYPES(matmul), TILE_TYPES(matmul)},
    .dequantize = {GGML_TYPES(dequantize), TILE_TYPES(dequantize)},
    .rmsnorm = gwq_neon_rmsnorm,
    .activate = gwq_neon_activate,
    .softcap = gwq_neon_softcap,
    .convolve = gwq_neon_convolve,
    .to_halves = gwq_neon_to_halves,
    .scores = gwq_neon_scores,
    .largest = gwq_neon_largest,
    .exponents = gwq_neon_exponents,
    .mix = gwq_neon_mix,
    .from_cache = gwq_neon_from_cache,
    .products = gwq_neon_products,
    .weigh = gwq_neon_weigh,
    .read = gwq_neon_read_memory,
    .encode = gwq_encode_neon,
    .multiply = gwq_multiply_neon,
};
