/* Outliers of a record with NEON: times the activations of their columns, and into their rows. */
#ifndef GWQ_NEON_OUTLIERS_H
#define GWQ_NEON_OUTLIERS_H
#include "neon.h"
#include "cpu/tiles.h"

GWQ_INLINE int total(const uint8_t *count) { return vaddlvq_u8(vld1q_u8(count)); }

/* Bit r: byte r of a comparison is set */
GWQ_INLINE unsigned mask_of(uint8x16_t set) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    uint8x16_t v = vandq_u8(set, bit);
    v = vpaddq_u8(v, v);
    v = vpaddq_u8(v, v);
    v = vpaddq_u8(v, v);
    return vgetq_lane_u16(vreinterpretq_u16_u8(v), 0);
}

GWQ_INLINE void multiply_values(const uint8_t *value, const uint8_t *column, int count,
                                const float *x, float *product) {
    for (int k = 0; k < count; k += 8) {
        float32x4_t v[2];
        half8(value + 2 * k, v);
        for (int i = 0; i < 2; i++) {
            const uint8_t *c = column + k + 4 * i;
            const float32x4_t of = {x[c[0]], x[c[1]], x[c[2]], x[c[3]]};
            vst1q_f32(product + k + 4 * i, vmulq_f32(v[i], of));
        }
    }
}

/* Four tokens of every column lie together: four columns, transposed, are four columns of every
 * token. */
GWQ_INLINE void multiply_few(const uint8_t *value, const uint8_t *column, int count,
                             const float *x, float *product, int64_t stride) {
    for (int k = 0; k < count; k += 4) {
        const float32x4_t v = half4(value + 2 * k);
        float32x4_t r[4];
        for (int i = 0; i < 4; i++) r[i] = vld1q_f32(x + GWQ_FEW_LANES * column[k + i]);
        transpose4(r);
        for (int i = 0; i < 4; i++) vst1q_f32(product + i * stride + k, vmulq_f32(v, r[i]));
    }
}

/* permute[mask]: byte r = 4 * how many of the mask's bits lie below r: where row r finds the bytes
 * of its product among eight; 128: it has none. ones[mask]: bits that are set. */
#define BELOW(m, r) (uint64_t)__builtin_popcount((m) & ((1 << (r)) - 1))
#define RANK(m, r) ((m) >> (r) & 1 ? 4 * BELOW(m, r) : (uint64_t)128) << 8 * (r)
#define RANKS(m)                                          \
    RANK(m, 0) | RANK(m, 1) | RANK(m, 2) | RANK(m, 3) |   \
    RANK(m, 4) | RANK(m, 5) | RANK(m, 6) | RANK(m, 7)
#define ONES(m) (uint8_t)__builtin_popcount(m)
#define ALL4(f, m) f(m), f((m) + 1), f((m) + 2), f((m) + 3)
#define ALL16(f, m) ALL4(f, m), ALL4(f, (m) + 4), ALL4(f, (m) + 8), ALL4(f, (m) + 12)
#define ALL64(f, m) ALL16(f, m), ALL16(f, (m) + 16), ALL16(f, (m) + 32), ALL16(f, (m) + 48)
#define ALL256(f) ALL64(f, 0), ALL64(f, 64), ALL64(f, 128), ALL64(f, 192)
static const uint64_t permute[256] = {ALL256(RANKS)};
static const uint8_t ones[256] = {ALL256(ONES)};

/* y[2] (8 rows) += the products of the rows of a mask */
GWQ_INLINE void expand8(unsigned mask, const float *product, float32x4_t y[2]) {
    const uint8x16_t within = vreinterpretq_u8_u32(vdupq_n_u32(0x03020100)); /* bytes of a float */
    const uint8x16x2_t p = {{vreinterpretq_u8_f32(vld1q_f32(product)),
                             vreinterpretq_u8_f32(vld1q_f32(product + 4))}};
    uint8x16_t at = vcombine_u8(vcreate_u8(permute[mask]), vdup_n_u8(0));
    at = vzip1q_u8(at, at);
    const uint8x16_t low = vorrq_u8(vzip1q_u8(at, at), within); /* beyond the products: 0 */
    const uint8x16_t high = vorrq_u8(vzip2q_u8(at, at), within);
    y[0] = vaddq_f32(y[0], vreinterpretq_f32_u8(vqtbl2q_u8(p, low)));
    y[1] = vaddq_f32(y[1], vreinterpretq_f32_u8(vqtbl2q_u8(p, high)));
}

GWQ_INLINE void expand(const uint8_t *count, int levels, int total, const float *product,
                       float *y) {
    float32x4_t sum[4];
    uint8x16_t left = vld1q_u8(count);
    const float *end = product + total;
    for (int h = 0; h < 4; h++) sum[h] = vld1q_f32(y + 4 * h);
    for (int level = 0; level < levels || product < end; level++) {
        const unsigned rows = mask_of(vtstq_u8(left, left));
        left = vqsubq_u8(left, vdupq_n_u8(1));
        expand8(rows & 255, product, sum);
        product += ones[rows & 255];
        expand8(rows >> 8, product, sum + 2);
        product += ones[rows >> 8];
    }
    for (int h = 0; h < 4; h++) vst1q_f32(y + 4 * h, sum[h]);
}

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    for (int t = 0; t < count; t += 4)
        vst1q_f32(sum + t, vfmaq_n_f32(vld1q_f32(sum + t), vld1q_f32(x + t), v));
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    return mask_of(vcgtq_u8(vld1q_u8(count), vdupq_n_u8((uint8_t)level)));
}
#endif
