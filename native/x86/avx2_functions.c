/* AVX2 and FMA: the exponential function, and what is made of it: SiLU, GELU, soft caps,
 * softmax. */
#include "avx2.h"

/* e^x = 2^n e^r, |r| <= ln(2)/2, Taylor to r^7 (error 5e-9). e^-87 below -87; from 88.4 on n = 128,
 * infinity. */
GWQ_INLINE __m256 exp8(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87)), _mm256_set1_ps(89));
    __m256 halvings = _mm256_mul_ps(x, _mm256_set1_ps(0x1.715476p+0f)); /* x / ln 2 */
    __m256 n = _mm256_round_ps(halvings, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* r = x - n ln 2, with ln 2 in two parts, the first one short: its product is exact */
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e4p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.7f7d1cp-20f), r);
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    __m256 p = _mm256_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(factor[i]));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

GWQ_INLINE __m256 all(float v) { return _mm256_set1_ps(v); }
GWQ_INLINE __m256 minus(__m256 x) { return _mm256_xor_ps(x, all(-0.f)); }

/* c[0] t + c[1] t^2 + ... + c[n-1] t^n */
GWQ_INLINE __m256 polynomial(const float *c, int n, __m256 t) {
    __m256 p = _mm256_mul_ps(all(c[n - 1]), t);
    for (int i = n - 2; i >= 0; i--) p = _mm256_mul_ps(_mm256_add_ps(p, all(c[i])), t);
    return p;
}

/* erfc(z) for z >= 0, within 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions,
 * 7.1.26) */
GWQ_INLINE __m256 erfc8(__m256 z) {
    static const float c[] = {0.254829592f, -0.284496736f, 1.421413741f, -1.453152027f,
                              1.061405429f};
    __m256 t = _mm256_div_ps(all(1), _mm256_fmadd_ps(all(0.3275911f), z, all(1)));
    __m256 square = _mm256_mul_ps(z, z);
    __m256 e = _mm256_mul_ps(polynomial(c, 5, t), exp8(minus(square)));
    __m256 in_range = _mm256_cmp_ps(square, all(87), _CMP_LT_OQ); /* beyond, exp8 stays at e^-87 */
    return _mm256_and_ps(e, in_range);
}

GWQ_INLINE __m256 activate8(const int activation, __m256 x) {
    const __m256 one = all(1);
    if (activation == GWQ_GELU) { /* 0.5 x erfc(-x / sqrt(2)), and erfc(-z) = 2 - erfc(z) */
        __m256 z = _mm256_mul_ps(x, all(0.70710678f));
        __m256 tail = erfc8(_mm256_andnot_ps(all(-0.f), z));
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

/* tanh |y|: its series to y^9 up to 1/4 (error 1e-8 of it), then (1 - e) / (1 + e), e = exp(-2
 * |y|) */
GWQ_INLINE __m256 tanh8(__m256 y) {
    static const float c[] = {-1.f / 3, 2.f / 15, -17.f / 315, 62.f / 2835};
    const __m256 sign = _mm256_and_ps(y, all(-0.f)), one = all(1);
    y = _mm256_xor_ps(y, sign);
    __m256 e = exp8(_mm256_mul_ps(all(-2), y));
    __m256 series = _mm256_fmadd_ps(polynomial(c, 4, _mm256_mul_ps(y, y)), y, y);
    __m256 t = _mm256_div_ps(_mm256_sub_ps(one, e), _mm256_add_ps(one, e));
    __m256 small = _mm256_cmp_ps(y, all(0.25f), _CMP_LT_OQ);
    return _mm256_xor_ps(_mm256_blendv_ps(t, series, small), sign);
}

void gwq_avx2_softcap(float *x, int64_t count, float cap) {
    for (int64_t i = 0; i < count; i += 8) {
        __m256 y = tanh8(_mm256_div_ps(load_some(x + i, count - i), all(cap)));
        store_some(x + i, _mm256_mul_ps(all(cap), y), count - i);
    }
}

void gwq_avx2_largest(float (*s)[GWQ_QUERIES], int keys, float scale, float *most) {
    const __m256 factor = _mm256_set1_ps(scale);
    __m256 top = _mm256_broadcast_ps((const __m128 *)most); /* of every other key */
    int n = 0;
    for (; n + 2 <= keys; n += 2) { /* of a NaN, max returns its second operand */
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(s[n]), factor);
        _mm256_storeu_ps(s[n], v);
        top = _mm256_max_ps(v, top);
    }
    __m128 both = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    if (n < keys) {
        __m128 v = _mm_mul_ps(_mm_loadu_ps(s[n]), _mm256_castps256_ps128(factor));
        _mm_storeu_ps(s[n], v);
        both = _mm_max_ps(v, both);
    }
    _mm_storeu_ps(most, both);
}

void gwq_avx2_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    const __m256 top = _mm256_broadcast_ps((const __m128 *)most);
    const __m256 least = _mm256_set1_ps(-87);
    __m256 total = _mm256_setzero_ps();
    for (int n = 0; n < keys; n += 2) { /* s has room for one key more */
        __m256 x = _mm256_sub_ps(_mm256_loadu_ps(s[n]), top);
        __m256 counts = _mm256_cmp_ps(x, least, _CMP_GE_OQ); /* what is far below is nothing */
        __m256 e = _mm256_and_ps(exp8(x), counts);
        if (n + 1 == keys) e = _mm256_insertf128_ps(e, _mm_setzero_ps(), 1);
        _mm256_storeu_ps(s[n], e);
        total = _mm256_add_ps(total, e);
    }
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1)));
}
