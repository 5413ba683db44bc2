/* The reference for activations, norms, attention and reading memory. */
#include <math.h>
#include "scalar.h"

void gwq_scalar_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                         int16_t *bias) {
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK * lanes, bias += 8 * lanes) {
        int64_t first = b * GWQ_BLOCK;
        int64_t width = min64(GWQ_BLOCK, cols - first);
        float most = 0;
        for (int64_t i = 0; i < width; i++) {
            float a = fabsf(x[first + i]);
            if (a > most) most = a;
        }
        float d = most / 127;
        float inverse = d > 0 ? 1 / d : 0;
        for (int i = 0; i < 8; i++) bias[i] = 0;
        for (int64_t i = 0; i < GWQ_BLOCK; i++) {
            float v = i < width ? rintf(x[first + i] * inverse) : 0;
            v = v > 127 ? 127 : v < -127 ? -127 : v; /* only when 1/d overflowed */
            q[i] = (int8_t)(v == v ? v : 0);
            int16_t *part = bias + i / 16 * 2 + i % 4 / 2;
            *part = (int16_t)(*part - ENTRY_BIAS * q[i]);
        }
        scale[b * lanes] = d;
    }
}

void gwq_scalar_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                      float *out) {
    for (int64_t c = 0; c < width; c++)
        for (int t = 0; t < lanes; t++) out[c * lanes + t] = t < count ? x[t * stride + c] : 0;
}

static float dot(const float *a, const float *b, int64_t count) {
    float s[8] = {0};
    for (int64_t i = 0; i < count; i++) s[i % 8] += a[i] * b[i];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

void gwq_scalar_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

/* GELU: x P(X < x) for a normal X, = x/2 erfc(-x / sqrt(2)). Its approximation by tanh:
 * x/2 (1 + tanh u) with u = sqrt(2 / pi) (x + 0.044715 x^3), = x / (1 + exp(-2u)). */
void gwq_scalar_activate(float *x, const float *up, int64_t count, int activation) {
    for (int64_t i = 0; i < count; i++) {
        float v = x[i], y;
        if (activation == GWQ_SILU) y = v / (1 + expf(-v));
        else if (activation == GWQ_GELU) y = 0.5f * v * erfcf(v * -0.70710678f);
        else y = v / (1 + expf(-1.59576912f * (v + 0.044715f * v * v * v)));
        x[i] = up ? y * up[i] : y;
    }
}

void gwq_scalar_softcap(float *x, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i++) x[i] = cap * tanhf(x[i] / cap);
}

void gwq_scalar_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                         const float *gate, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        float sum = weight[i] * u[0][i];
        for (int j = 1; j < taps; j++) sum += weight[j * stride + i] * u[j][i];
        out[i] = gate[i] * sum;
    }
}

static uint16_t to_half(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    uint32_t sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000) return (uint16_t)(sign | 0x7e00);  /* NaN */
    if (u >= 0x477ff000) return (uint16_t)(sign | 0x7bff); /* what would round beyond 65504 */
    if (u >= 0x38800000) { /* normal: 10 bits of mantissa, the rest to nearest even */
        uint32_t rounded = (u + 0xfff + (u >> 13 & 1)) >> 13;
        return (uint16_t)(sign | (rounded - (112 << 10)));
    }
    float y;
    memcpy(&y, &u, 4);
    return (uint16_t)(sign | (uint32_t)rintf(y * 0x1p24f)); /* subnormals: units of 2^-24 */
}

void gwq_scalar_to_halves(const float *x, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = to_half(x[i]);
}

/* --- attention -------------------------------------------------------------------------------- */

/* Number i of a cache */
static float cached(const void *p, int type, int64_t i) {
    if (type == GWQ_TYPE_Q8_0) {
        const uint8_t *block = (const uint8_t *)p + i / 32 * sizeof(struct q8_0_block);
        return half(block) * (float)(int8_t)block[2 + i % 32];
    }
    return type == GWQ_TYPE_F16 ? half((const uint8_t *)p + 2 * i) : ((const float *)p)[i];
}

void gwq_scalar_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                       int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    for (int n = 0; n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) {
            s[n][i] = 0;
            for (int64_t d = 0; d < dim; d++) s[n][i] += q[i][d] * cached(k, type, n * stride + d);
        }
}

void gwq_scalar_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most) {
    for (int n = 0; n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) {
            s[n][i] *= scale;
            most[i] = s[n][i] > most[i] ? s[n][i] : most[i];
        }
}

void gwq_scalar_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    for (int i = 0; i < GWQ_QUERIES; i++) {
        sum[i] = 0;
        for (int n = 0; n < keys; n++) {
            s[n][i] = expf(s[n][i] - most[i]);
            sum[i] += s[n][i];
        }
    }
}

void gwq_scalar_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]) {
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int n = 0; n < keys; n++)
            for (int64_t d = 0; d < dim; d++)
                out[i][d] += s[n][i] * cached(v, type, n * stride + d);
}

void gwq_scalar_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = cached(cache, type, first + i);
}

/* --- memory roof ------------------------------------------------------------------------------ */

/* Plain C reads one stream. */
uint64_t gwq_scalar_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    (void)streams, (void)ahead;
    uint64_t sum = 0, word;
    for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    return sum;
}
