/* NEON: activations as int8 and by columns, norms, reading memory. */
#include <math.h>
#include "neon.h"
#include "cpu/tiles.h"

void gwq_neon_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                    float *out) {
    int64_t c = 0;
    for (; c + 4 <= width; c += 4)
        for (int t = 0; t < lanes; t += 4) {
            float32x4_t r[4];
            for (int i = 0; i < 4; i++) {
                const float *from = x + (t + i) * stride + c;
                r[i] = t + i < count ? vld1q_f32(from) : vdupq_n_f32(0);
            }
            transpose4(r);
            for (int i = 0; i < 4; i++) vst1q_f32(out + (c + i) * lanes + t, r[i]);
        }
    gwq_scalar.panel(x + c, stride, count, width - c, lanes, out + c * lanes);
}

/* The larger of each two; what is no number does not count */
GWQ_INLINE float32x4_t larger(float32x4_t v, float32x4_t most) {
    return vbslq_f32(vcgtq_f32(v, most), v, most);
}

/* v * inverse, rounded to nearest even, as bytes. As in scalar_ops.c: NaN becomes 0, and the limits
 * matter only when 1 / scale overflowed. */
GWQ_INLINE int8x16_t codes16(const float32x4_t v[4], float inverse) {
    int16x4_t n[4];
    for (int i = 0; i < 4; i++) n[i] = vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(v[i], inverse)));
    const int8x8_t low = vqmovn_s16(vcombine_s16(n[0], n[1]));
    return vmaxq_s8(vqmovn_high_s16(low, vcombine_s16(n[2], n[3])), vdupq_n_s8(-127));
}

/* gwq_input.bias of 64 columns: sums of pairs of columns, of every other pair, of each
 * 16 columns */
GWQ_INLINE void store_bias(const int8x16_t q[4], int16_t *bias) {
    int16x8_t sum[2];
    for (int i = 0; i < 2; i++) {
        const int16x8_t a = vpaddlq_s8(q[2 * i]), b = vpaddlq_s8(q[2 * i + 1]);
        sum[i] = vpaddq_s16(vuzp1q_s16(a, b), vuzp2q_s16(a, b));
    }
    /* even of the first 16 columns, of the second; odd of both; likewise of the others */
    const int16x8_t v = vpaddq_s16(sum[0], sum[1]);
    const uint8x16_t order = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};
    const uint8x16_t turned = vqtbl1q_u8(vreinterpretq_u8_s16(v), order);
    vst1q_s16(bias, vmulq_n_s16(vreinterpretq_s16_u8(turned), -ENTRY_BIAS));
}

void gwq_neon_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                       int16_t *bias) {
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK * lanes, bias += 8 * lanes) {
        float last[GWQ_BLOCK] = {0};
        const float *from = x + b * GWQ_BLOCK;
        if (cols - b * GWQ_BLOCK < GWQ_BLOCK) {
            memcpy(last, from, (size_t)(cols - b * GWQ_BLOCK) * sizeof *x);
            from = last;
        }
        float32x4_t v[16], most = vdupq_n_f32(0);
        for (int i = 0; i < 16; i++) {
            v[i] = vld1q_f32(from + 4 * i);
            most = larger(vabsq_f32(v[i]), most);
        }
        const float d = vmaxvq_f32(most) / 127, inverse = d > 0 ? 1 / d : 0;
        int8x16_t code[4];
        for (int i = 0; i < 4; i++) {
            code[i] = codes16(v + 4 * i, inverse);
            vst1q_s8(q + 16 * i, code[i]);
        }
        store_bias(code, bias);
        scale[b * lanes] = d;
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    float32x4_t s[4];
    for (int k = 0; k < 4; k++) s[k] = vdupq_n_f32(0);
    int64_t i = 0;
    for (; i + 16 <= count; i += 16)
        for (int k = 0; k < 4; k++)
            s[k] = vfmaq_f32(s[k], vld1q_f32(a + i + 4 * k), vld1q_f32(b + i + 4 * k));
    for (; i + 4 <= count; i += 4) s[0] = vfmaq_f32(s[0], vld1q_f32(a + i), vld1q_f32(b + i));
    float sum = vaddvq_f32(vaddq_f32(vaddq_f32(s[0], s[1]), vaddq_f32(s[2], s[3])));
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

void gwq_neon_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    const float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

void gwq_neon_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                       const float *gate, int64_t count, float *out) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) { /* no vfmaq: other rows round twice */
        float32x4_t sum = vmulq_f32(vld1q_f32(weight + i), vld1q_f32(u[0] + i));
        for (int j = 1; j < taps; j++) {
            const float32x4_t w = vld1q_f32(weight + j * stride + i);
            sum = vaddq_f32(sum, vmulq_f32(w, vld1q_f32(u[j] + i)));
        }
        vst1q_f32(out + i, vmulq_f32(vld1q_f32(gate + i), sum));
    }
    if (i == count) return;
    const float *rest[GWQ_MAX_TAPS];
    for (int j = 0; j < taps; j++) rest[j] = u[j] + i;
    gwq_scalar.convolve(rest, weight + i, stride, taps, gate + i, count - i, out + i);
}

/* FMIN and FMAX pass a NaN on. */
void gwq_neon_to_halves(const float *x, int64_t count, uint16_t *out) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) {
        float32x4_t v = vmaxq_f32(vld1q_f32(x + i), vdupq_n_f32(-65504));
        v = vminq_f32(v, vdupq_n_f32(65504));
        vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(v)));
    }
    gwq_scalar.to_halves(x + i, count - i, out + i);
}

/* --- memory roof ------------------------------------------------------------------------------ */

uint64_t gwq_neon_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    const uint64_t part = bytes / (unsigned)streams & ~(uint64_t)63; /* of a stream */
    uint64_t i = part * (unsigned)streams; /* the rest */
    uint64x2_t s[4];
    for (int k = 0; k < 4; k++) s[k] = vdupq_n_u64(0);
    for (uint64_t at = 0; at < part; at += 64)
        for (int n = 0; n < streams; n++) {
            const uint8_t *p = data + (uint64_t)n * part + at;
            if (ahead) prefetch(p, (size_t)ahead, 64);
            for (int k = 0; k < 4; k++)
                s[k] = vaddq_u64(s[k], vreinterpretq_u64_u8(vld1q_u8(p + 16 * k)));
        }
    uint64_t sum = vaddvq_u64(vaddq_u64(vaddq_u64(s[0], s[1]), vaddq_u64(s[2], s[3]))), word;
    for (; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    return sum;
}
