/* NEON: the exponential function, and what is made of it: SiLU, GELU, soft caps, softmax. */
#include "neon.h"

GWQ_INLINE float32x4_t all(float v) { return vdupq_n_f32(v); }

/* e^x = 2^n e^r, |r| <= ln(2)/2, Taylor to r^7 (error 5e-9). e^-87 below -87; from 88.4 on n = 128,
 * infinity. */
GWQ_INLINE float32x4_t exp4(float32x4_t x) {
    x = vminnmq_f32(vmaxnmq_f32(x, all(-87)), all(89));
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, all(0x1.715476p+0f))); /* x / ln 2 */
    /* r = x - n ln 2, with ln 2 in two parts, the first one short: its product is exact */
    float32x4_t r = vfmsq_f32(x, n, all(0x1.62e4p-1f));
    r = vfmsq_f32(r, n, all(0x1.7f7d1cp-20f));
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    float32x4_t p = all(1.f / 5040);
    for (int i = 0; i < 7; i++) p = vfmaq_f32(all(factor[i]), p, r);
    const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127));
    return vmulq_f32(p, vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
}

/* c[0] t + c[1] t^2 + ... + c[n-1] t^n */
GWQ_INLINE float32x4_t polynomial(const float *c, int n, float32x4_t t) {
    float32x4_t p = vmulq_f32(all(c[n - 1]), t);
    for (int i = n - 2; i >= 0; i--) p = vmulq_f32(vaddq_f32(p, all(c[i])), t);
    return p;
}

/* What is not in the mask becomes 0 */
GWQ_INLINE float32x4_t where(uint32x4_t mask, float32x4_t v) {
    return vreinterpretq_f32_u32(vandq_u32(mask, vreinterpretq_u32_f32(v)));
}

/* erfc(z) for z >= 0, within 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions,
 * 7.1.26) */
GWQ_INLINE float32x4_t erfc4(float32x4_t z) {
    static const float c[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f,
                              1.061405429f};
    const float32x4_t t = vdivq_f32(all(1), vfmaq_f32(all(1), all(0.3275911f), z));
    const float32x4_t square = vmulq_f32(z, z);
    const float32x4_t e = vmulq_f32(polynomial(c, 5, t), exp4(vnegq_f32(square)));
    return where(vcltq_f32(square, all(87)), e); /* beyond, exp4 stays at e^-87 */
}

GWQ_INLINE float32x4_t activate4(const int activation, float32x4_t x) {
    if (activation == GWQ_GELU) { /* 0.5 x erfc(-x / sqrt(2)), and erfc(-z) = 2 - erfc(z) */
        const float32x4_t z = vmulq_f32(x, all(0.70710678f)), tail = erfc4(vabsq_f32(z));
        const float32x4_t erfc = vbslq_f32(vcltzq_f32(z), tail, vsubq_f32(all(2), tail));
        return vmulq_f32(vmulq_f32(all(0.5f), x), erfc);
    }
    float32x4_t u = x;
    if (activation == GWQ_GELU_TANH) { /* (1 + tanh v) / 2 = 1 / (1 + exp(-2v)) */
        const float32x4_t cube = vmulq_f32(vmulq_f32(x, x), x);
        u = vmulq_f32(all(1.59576912f), vfmaq_f32(x, all(0.044715f), cube));
    }
    return vdivq_f32(x, vaddq_f32(all(1), exp4(vnegq_f32(u))));
}

/* Up to 4 of the `count` floats at p, and zeros */
GWQ_INLINE float32x4_t load_some(const float *p, int64_t count) {
    if (count >= 4) return vld1q_f32(p);
    float v[4] = {0};
    memcpy(v, p, (size_t)count * sizeof *v);
    return vld1q_f32(v);
}

GWQ_INLINE void store_some(float *p, float32x4_t x, int64_t count) {
    if (count >= 4) {
        vst1q_f32(p, x);
        return;
    }
    float v[4];
    vst1q_f32(v, x);
    memcpy(p, v, (size_t)count * sizeof *v);
}

/* `activation` is a constant */
GWQ_INLINE void activate(float *x, const float *up, int64_t count, const int activation) {
    for (int64_t i = 0; i < count; i += 4) {
        const float32x4_t y = activate4(activation, load_some(x + i, count - i));
        store_some(x + i, up ? vmulq_f32(y, load_some(up + i, count - i)) : y, count - i);
    }
}

void gwq_neon_activate(float *x, const float *up, int64_t count, int activation) {
    if (activation == GWQ_SILU) activate(x, up, count, GWQ_SILU);
    else if (activation == GWQ_GELU) activate(x, up, count, GWQ_GELU);
    else activate(x, up, count, GWQ_GELU_TANH);
}

/* tanh y: of |y| its series to y^9 up to 1/4 (error 1e-8 of it), then (1 - e) / (1 + e), e = exp(-2
 * |y|) */
GWQ_INLINE float32x4_t tanh4(float32x4_t x) {
    static const float c[] = {-1.f / 3, 2.f / 15, -17.f / 315, 62.f / 2835};
    const float32x4_t y = vabsq_f32(x), one = all(1);
    const float32x4_t e = exp4(vmulq_f32(all(-2), y));
    const float32x4_t series = vfmaq_f32(y, polynomial(c, 4, vmulq_f32(y, y)), y);
    const float32x4_t t = vdivq_f32(vsubq_f32(one, e), vaddq_f32(one, e));
    const float32x4_t size = vbslq_f32(vcltq_f32(y, all(0.25f)), series, t);
    return vbslq_f32(vdupq_n_u32(0x80000000u), x, size); /* with the sign of x */
}

void gwq_neon_softcap(float *x, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i += 4) {
        const float32x4_t y = tanh4(vdivq_f32(load_some(x + i, count - i), all(cap)));
        store_some(x + i, vmulq_f32(all(cap), y), count - i);
    }
}

void gwq_neon_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most) {
    float32x4_t top = vld1q_f32(most);
    for (int n = 0; n < keys; n++) {
        const float32x4_t v = vmulq_n_f32(vld1q_f32(s[n]), scale);
        vst1q_f32(s[n], v);
        top = vbslq_f32(vcgtq_f32(v, top), v, top); /* what is no number does not count */
    }
    vst1q_f32(most, top);
}

void gwq_neon_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    const float32x4_t top = vld1q_f32(most);
    float32x4_t total = all(0);
    for (int n = 0; n < keys; n++) {
        const float32x4_t x = vsubq_f32(vld1q_f32(s[n]), top);
        const float32x4_t e = where(vcgeq_f32(x, all(-87)), exp4(x)); /* far below is nothing */
        vst1q_f32(s[n], e);
        total = vaddq_f32(total, e);
    }
    vst1q_f32(sum, total);
}
