/* AVX2, FMA and F16C: activations, elementwise ops, attention, reading memory. */
#include <math.h>
#include "avx2.h"
#include "tiles.h"

/* 8 x 8 floats, turned over the diagonal */
GWQ_INLINE void transpose8(__m256 r[8]) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm256_shuffle_ps(a[i + k], a[i + 2 + k], 0x44);
            b[i + 2 * k + 1] = _mm256_shuffle_ps(a[i + k], a[i + 2 + k], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
    }
}

void gwq_avx2_panel(const float *x, int64_t stride, int count, int64_t width, float (*out)[GWQ_PANEL]) {
    int64_t c = 0;
    for (; c + 8 <= width; c += 8)
        for (int t = 0; t < GWQ_PANEL; t += 8) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) r[i] = t + i < count ? _mm256_loadu_ps(x + (t + i) * stride + c) : _mm256_setzero_ps();
            transpose8(r);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(&out[c + i][t], r[i]);
        }
    gwq_scalar.panel(x + c, stride, count, width - c, out + c);
}

void gwq_avx2_quantize(const float *x, int64_t cols, int8_t *q, float *scale, int16_t *bias) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK) {
        float last[GWQ_BLOCK] = {0};
        const float *from = x + b * GWQ_BLOCK;
        if (cols - b * GWQ_BLOCK < GWQ_BLOCK) {
            memcpy(last, from, (size_t)(cols - b * GWQ_BLOCK) * sizeof *x);
            from = last;
        }
        __m256 v[8], most = _mm256_setzero_ps();
        for (int i = 0; i < 8; i++) { /* max returns its second operand when the first is NaN */
            v[i] = _mm256_loadu_ps(from + 8 * i);
            most = _mm256_max_ps(_mm256_and_ps(v[i], magnitude), most);
        }
        __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        m4 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
        float d = _mm_cvtss_f32(_mm_max_ss(m4, _mm_movehdup_ps(m4))) / 127;
        __m256 inverse = _mm256_set1_ps(d > 0 ? 1 / d : 0);
        __m256i n[8];
        for (int i = 0; i < 8; i++) { /* as in scalar.c: NaN becomes 0, the clamp matters only when 1/d overflowed */
            __m256 f = _mm256_mul_ps(v[i], inverse);
            f = _mm256_and_ps(f, _mm256_cmp_ps(f, f, _CMP_ORD_Q));
            f = _mm256_max_ps(_mm256_min_ps(f, _mm256_set1_ps(127)), _mm256_set1_ps(-127));
            n[i] = _mm256_cvtps_epi32(f);
        }
        for (int i = 0; i < 8; i += 4) { /* the packs work within 128 bits: put the dwords in order afterwards */
            __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(n[i], n[i + 1]), _mm256_packs_epi32(n[i + 2], n[i + 3]));
            p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256((__m256i *)(q + 8 * i), p);
        }
        __m128i sum[2];
        for (int i = 0; i < 2; i++) { /* 32 columns: of each 16, first and second column pairs of every quad */
            __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(n[4 * i], n[4 * i + 1]), _mm256_add_epi32(n[4 * i + 2], n[4 * i + 3]));
            sum[i] = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        }
        __m128i packed = _mm_packs_epi32(sum[0], sum[1]);
        _mm_storeu_si128((__m128i *)(bias + 8 * b), _mm_mullo_epi16(packed, _mm_set1_epi16(-ENTRY_BIAS)));
        scale[b] = d;
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    __m256 s[4];
    for (int k = 0; k < 4; k++) s[k] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++)
            s[k] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * k), _mm256_loadu_ps(b + i + 8 * k), s[k]);
    for (; i + 8 <= count; i += 8) s[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

void gwq_avx2_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

/* e^x = 2^n e^r, |r| <= ln(2)/2, Taylor to r^7 (error 5e-9). e^-87 below -87; from 88.4 on n = 128, infinity. */
GWQ_INLINE __m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(89));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x); /* ln 2 in two parts, the first one short: exact */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    __m256 p = _mm256_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(factor[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

GWQ_INLINE __m256 all(float v) { return _mm256_set1_ps(v); }
GWQ_INLINE __m256 minus(__m256 x) { return _mm256_xor_ps(x, all(-0.f)); }

/* c[0] t + c[1] t^2 + ... + c[n-1] t^n */
GWQ_INLINE __m256 polynomial(const float *c, int n, __m256 t) {
    __m256 p = _mm256_mul_ps(all(c[n - 1]), t);
    for (int i = n - 2; i >= 0; i--) p = _mm256_mul_ps(_mm256_add_ps(p, all(c[i])), t);
    return p;
}

/* erfc(z) for z >= 0, within 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26) */
GWQ_INLINE __m256 erfc8(__m256 z) {
    static const float c[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f, 1.061405429f};
    __m256 t = _mm256_div_ps(all(1), _mm256_fmadd_ps(all(0.3275911f), z, all(1))), square = _mm256_mul_ps(z, z);
    __m256 e = _mm256_mul_ps(polynomial(c, 5, t), exp8(minus(square)));
    return _mm256_and_ps(e, _mm256_cmp_ps(square, all(87), _CMP_LT_OQ)); /* beyond, exp8 stays at e^-87 */
}

GWQ_INLINE __m256 activate8(const int activation, __m256 x) {
    const __m256 one = all(1);
    if (activation == GWQ_GELU) { /* 0.5 x erfc(-x / sqrt(2)), and erfc(-z) = 2 - erfc(z) */
        __m256 z = _mm256_mul_ps(x, all(0.70710678f)), tail = erfc8(_mm256_andnot_ps(all(-0.f), z));
        __m256 erfc = _mm256_blendv_ps(_mm256_sub_ps(all(2), tail), tail, z);
        return _mm256_mul_ps(_mm256_mul_ps(all(0.5f), x), erfc);
    }
    __m256 u = x;
    if (activation == GWQ_GELU_TANH) { /* (1 + tanh v) / 2 = 1 / (1 + exp(-2v)) */
        __m256 cube = _mm256_mul_ps(_mm256_mul_ps(x, x), x);
        u = _mm256_mul_ps(all(1.59576912f), _mm256_fmadd_ps(all(0.044715f), cube, x));
    }
    return _mm256_div_ps(x, _mm256_add_ps(one, exp8(minus(u))));
}

/* Up to 8 of the `count` floats at p, and zeros */
GWQ_INLINE __m256 load_some(const float *p, int64_t count) {
    if (count >= 8) return _mm256_loadu_ps(p);
    float v[8] = {0};
    memcpy(v, p, (size_t)count * sizeof *v);
    return _mm256_loadu_ps(v);
}

GWQ_INLINE void store_some(float *p, __m256 x, int64_t count) {
    if (count >= 8) {
        _mm256_storeu_ps(p, x);
        return;
    }
    float v[8];
    _mm256_storeu_ps(v, x);
    memcpy(p, v, (size_t)count * sizeof *v);
}

/* `activation` is a constant */
GWQ_INLINE void activate(float *x, const float *up, int64_t count, const int activation) {
    for (int64_t i = 0; i < count; i += 8) {
        __m256 y = activate8(activation, load_some(x + i, count - i));
        store_some(x + i, up ? _mm256_mul_ps(y, load_some(up + i, count - i)) : y, count - i);
    }
}

void gwq_avx2_activate(float *x, const float *up, int64_t count, int activation) {
    if (activation == GWQ_SILU) activate(x, up, count, GWQ_SILU);
    else if (activation == GWQ_GELU) activate(x, up, count, GWQ_GELU);
    else activate(x, up, count, GWQ_GELU_TANH);
}

/* tanh |y|: its series to y^9 up to 1/4 (error 1e-8 of it), then (1 - e) / (1 + e), e = exp(-2 |y|) */
GWQ_INLINE __m256 tanh8(__m256 y) {
    static const float c[] = {-1.f / 3, 2.f / 15, -17.f / 315, 62.f / 2835};
    const __m256 sign = _mm256_and_ps(y, all(-0.f)), one = all(1);
    y = _mm256_xor_ps(y, sign);
    __m256 e = exp8(_mm256_mul_ps(all(-2), y)), series = _mm256_fmadd_ps(polynomial(c, 4, _mm256_mul_ps(y, y)), y, y);
    __m256 t = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    return _mm256_xor_ps(_mm256_blendv_ps(t, series, _mm256_cmp_ps(y, all(0.25f), _CMP_LT_OQ)), sign);
}

void gwq_avx2_softcap(float *x, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i += 8) {
        __m256 y = tanh8(_mm256_div_ps(load_some(x + i, count - i), all(cap)));
        store_some(x + i, _mm256_mul_ps(all(cap), y), count - i);
    }
}

/* --- attention -------------------------------------------------------------------------------------------------- */

void gwq_avx2_to_halves(const float *x, int64_t count, uint16_t *out) {
    const __m256 most = _mm256_set1_ps(65504);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) { /* min and max return their second operand when the first is NaN */
        __m256 v = _mm256_min_ps(most, _mm256_max_ps(_mm256_sub_ps(_mm256_setzero_ps(), most), _mm256_loadu_ps(x + i)));
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    gwq_scalar.to_halves(x + i, count - i, out + i);
}

/* Numbers i .. i+7, or i alone, of a cache in FP16 or float; `halves` is a constant */
GWQ_INLINE __m256 cached8(const void *p, const int halves, int64_t i) {
    return halves ? half8((const uint8_t *)p + 2 * i) : _mm256_loadu_ps((const float *)p + i);
}
GWQ_INLINE float cached1(const void *p, const int halves, int64_t i) {
    return halves ? half1((const uint8_t *)p + 2 * i) : ((const float *)p)[i];
}

/* The scores of two keys, from number `at` on; dim is whole eights. */
GWQ_INLINE void two_keys(const float *const q[GWQ_QUERIES], const void *k, const int halves, int64_t at, int64_t stride, int64_t dim,
                         float (*s)[GWQ_QUERIES]) {
    __m256 sum[2][GWQ_QUERIES];
    for (int i = 0; i < GWQ_QUERIES; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8)
        for (int n = 0; n < 2; n++) {
            __m256 key = cached8(k, halves, at + n * stride + d);
            for (int i = 0; i < GWQ_QUERIES; i++) sum[n][i] = _mm256_fmadd_ps(key, _mm256_loadu_ps(q[i] + d), sum[n][i]);
        }
    for (int n = 0; n < 2; n++) {
        __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(sum[n][0], sum[n][1]), _mm256_hadd_ps(sum[n][2], sum[n][3]));
        _mm_storeu_ps(s[n], _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
    }
}

GWQ_INLINE void scores(const float *const q[GWQ_QUERIES], const void *k, const int halves, int64_t stride, int keys, int64_t dim,
                       float (*s)[GWQ_QUERIES]) {
    int64_t whole = dim & ~(int64_t)7;
    int n = 0;
    for (; n + 2 <= keys; n += 2) two_keys(q, k, halves, n * stride, stride, whole, s + n);
    if (n < keys) {
        float last[2][GWQ_QUERIES];
        two_keys(q, k, halves, n * stride, 0, whole, last); /* twice the same key */
        memcpy(s[n], last, sizeof s[n]);
    }
    for (n = 0; whole < dim && n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int64_t d = whole; d < dim; d++) s[n][i] += q[i][d] * cached1(k, halves, n * stride + d);
}

void gwq_avx2_scores(const float *const q[GWQ_QUERIES], const void *k, int halves, int64_t stride, int keys, int64_t dim,
                     float (*s)[GWQ_QUERIES]) {
    if (halves) scores(q, k, 1, stride, keys, dim, s);
    else scores(q, k, 0, stride, keys, dim, s);
}

void gwq_avx2_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    const __m256 top = _mm256_broadcast_ps((const __m128 *)most), least = _mm256_set1_ps(-87);
    __m256 total = _mm256_setzero_ps();
    for (int n = 0; n < keys; n += 2) { /* s has room for one key more */
        __m256 x = _mm256_sub_ps(_mm256_loadu_ps(s[n]), top);
        __m256 e = _mm256_and_ps(exp8(x), _mm256_cmp_ps(x, least, _CMP_GE_OQ)); /* what is far below counts as nothing */
        if (n + 1 == keys) e = _mm256_insertf128_ps(e, _mm_setzero_ps(), 1);
        _mm256_storeu_ps(s[n], e);
        total = _mm256_add_ps(total, e);
    }
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1)));
}

/* out[i][0 .. 8*count-1] += sum of s[key][i] * v[key], count (constant) is 1 or 2 */
GWQ_INLINE void mix_columns(const float (*s)[GWQ_QUERIES], const void *v, const int halves, int64_t stride, int keys, const int count,
                            float *const out[GWQ_QUERIES], int64_t d) {
    __m256 sum[GWQ_QUERIES][2];
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) sum[i][c] = _mm256_loadu_ps(out[i] + d + 8 * c);
    for (int n = 0; n < keys; n++) {
        __m256 value[2];
        for (int c = 0; c < count; c++) value[c] = cached8(v, halves, n * stride + d + 8 * c);
        for (int i = 0; i < GWQ_QUERIES; i++) {
            __m256 p = _mm256_broadcast_ss(&s[n][i]);
            for (int c = 0; c < count; c++) sum[i][c] = _mm256_fmadd_ps(p, value[c], sum[i][c]);
        }
    }
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) _mm256_storeu_ps(out[i] + d + 8 * c, sum[i][c]);
}

GWQ_INLINE void mix(const float (*s)[GWQ_QUERIES], const void *v, const int halves, int64_t stride, int keys, int64_t dim,
                    float *const out[GWQ_QUERIES]) {
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) mix_columns(s, v, halves, stride, keys, 2, out, d);
    if (d + 8 <= dim) mix_columns(s, v, halves, stride, keys, 1, out, d), d += 8;
    for (; d < dim; d++)
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int n = 0; n < keys; n++) out[i][d] += s[n][i] * cached1(v, halves, n * stride + d);
}

void gwq_avx2_mix(const float (*s)[GWQ_QUERIES], const void *v, int halves, int64_t stride, int keys, int64_t dim,
                  float *const out[GWQ_QUERIES]) {
    if (halves) mix(s, v, 1, stride, keys, dim, out);
    else mix(s, v, 0, stride, keys, dim, out);
}

/* --- memory roof ------------------------------------------------------------------------------------------------ */

uint64_t gwq_avx2_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    uint64_t part = bytes / (unsigned)streams & ~(uint64_t)63, i = part * (unsigned)streams, sum = 0, word;
    __m256i a = _mm256_setzero_si256(), b = a;
    for (uint64_t at = 0; at < part; at += 64)
        for (int s = 0; s < streams; s++) {
            const uint8_t *p = data + (uint64_t)s * part + at;
            if (ahead) fetch(p, (size_t)ahead, 64);
            a = _mm256_add_epi64(a, load(p));
            b = _mm256_add_epi64(b, load(p + 32));
        }
    for (; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    uint64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, _mm256_add_epi64(a, b));
    return sum + lane[0] + lane[1] + lane[2] + lane[3];
}
