/* AVX-512: attention. */
#include "avx512.h"
#include "avx2.h"

enum { KEYS = 4 }; /* whose scores are summed together */

/* The first of 16 floats, as many as `some` has bits, and zeros */
GWQ_INLINE __m512 some_floats(const float *p, __mmask16 some) {
#ifdef GWQ_SIMDE
    float f[16] = {0};
    for (int l = 0; l < 16; l++)
        if (some >> l & 1) f[l] = p[l];
    return _mm512_loadu_ps(f);
#else
    return _mm512_maskz_loadu_ps(some, p);
#endif
}

GWQ_INLINE void store_floats(float *p, __mmask16 some, __m512 v) {
#ifdef GWQ_SIMDE
    float f[16];
    _mm512_storeu_ps(f, v);
    for (int l = 0; l < 16; l++)
        if (some >> l & 1) p[l] = f[l];
#else
    _mm512_mask_storeu_ps(p, some, v);
#endif
}

GWQ_INLINE __mmask16 first(int64_t count) {
    return (__mmask16)(count >= 16 ? 0xffff : (1 << count) - 1);
}

/* Numbers i .. i+15 of a cache, as many as `some` has bits, and zeros; `type` is a constant. With
 * scales they are 16, and i % 16 == 0. */
GWQ_INLINE __m512 cached16(const void *p, const int type, int64_t i, __mmask16 some) {
    if (type == GWQ_TYPE_F32) return some_floats((const float *)p + i, some);
    if (type == GWQ_TYPE_F16) {
        const uint8_t *at = (const uint8_t *)p + 2 * i;
        uint8_t last[32] = {0};
        if (some == 0xffff) return half16(at);
        memcpy(last, at, 2 * (size_t)__builtin_popcount(some));
        return half16(last);
    }
    const uint8_t *block = (const uint8_t *)p + i / 32 * 34;
    const __m128i codes = _mm_loadu_si128((const __m128i *)(block + 2 + i % 32));
    return _mm512_mul_ps(_mm512_set1_ps(half1(block)), floats16(widened(codes)));
}

/* Of up to KEYS keys, the first at number `at`; missing ones are the last one once more. */
GWQ_INLINE __m512 four_keys(const float *const q[GWQ_QUERIES], const void *k, const int type,
                            int64_t at, int64_t stride, int keys, int64_t dim) {
    __m512 sum[KEYS][GWQ_QUERIES], query[GWQ_QUERIES];
    for (int n = 0; n < KEYS; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) sum[n][i] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 16) {
        const __mmask16 some = first(dim - d);
        for (int i = 0; i < GWQ_QUERIES; i++) query[i] = some_floats(q[i] + d, some);
        for (int n = 0; n < KEYS; n++) {
            const int64_t key = n < keys ? n : keys - 1;
            __m512 v = cached16(k, type, at + key * stride + d, some);
            for (int i = 0; i < GWQ_QUERIES; i++)
                sum[n][i] = _mm512_fmadd_ps(v, query[i], sum[n][i]);
        }
    }
    return sums16((const __m512(*)[4])sum);
}

GWQ_INLINE void scores(const float *const q[GWQ_QUERIES], const void *k, const int type,
                       int64_t stride, int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    int n = 0;
    for (; n + KEYS <= keys; n += KEYS)
        _mm512_storeu_ps(s[n], four_keys(q, k, type, n * stride, stride, KEYS, dim));
    if (n < keys)
        store_floats(s[n], first((keys - n) * GWQ_QUERIES),
                     four_keys(q, k, type, n * stride, stride, keys - n, dim));
}

void gwq_avx512_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                       int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) scores(q, k, GWQ_TYPE_F32, stride, keys, dim, s);
    else if (type == GWQ_TYPE_F16) scores(q, k, GWQ_TYPE_F16, stride, keys, dim, s);
    else scores(q, k, GWQ_TYPE_Q8_0, stride, keys, dim, s);
}

/* out[i][0 .. 16*count-1] += sum of s[key][i] * v[key], count (constant) is 1 or 4; of the last
 * vector only `some` */
GWQ_INLINE void mix_columns(const float (*s)[GWQ_QUERIES], const void *v, const int type,
                            int64_t stride, int keys, const int count, __mmask16 some,
                            float *const out[GWQ_QUERIES], int64_t d) {
    __m512 sum[GWQ_QUERIES][4];
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) sum[i][c] = some_floats(out[i] + d + 16 * c, some);
    for (int n = 0; n < keys; n++) {
        __m512 value[4];
        for (int c = 0; c < count; c++)
            value[c] = cached16(v, type, n * stride + d + 16 * c, some);
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int c = 0; c < count; c++)
                sum[i][c] = _mm512_fmadd_ps(_mm512_set1_ps(s[n][i]), value[c], sum[i][c]);
    }
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) store_floats(out[i] + d + 16 * c, some, sum[i][c]);
}

GWQ_INLINE void mix(const float (*s)[GWQ_QUERIES], const void *v, const int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]) {
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) mix_columns(s, v, type, stride, keys, 4, 0xffff, out, d);
    for (; d < dim; d += 16) mix_columns(s, v, type, stride, keys, 1, first(dim - d), out, d);
}

void gwq_avx512_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) mix(s, v, GWQ_TYPE_F32, stride, keys, dim, out);
    else if (type == GWQ_TYPE_F16) mix(s, v, GWQ_TYPE_F16, stride, keys, dim, out);
    else mix(s, v, GWQ_TYPE_Q8_0, stride, keys, dim, out);
}

#ifndef GWQ_SIMDE /* lacks roundscale */
/* As exp8 of avx2_functions.c */
GWQ_INLINE __m512 exp16(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87)), _mm512_set1_ps(89));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(0x1.715476p+0f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.62e4p-1f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0x1.7f7d1cp-20f), r);
    static const float factor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 1.f / 2, 1, 1};
    __m512 p = _mm512_set1_ps(1.f / 5040);
    for (int i = 0; i < 7; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(factor[i]));
    __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23)));
}

void gwq_avx512_exponents(float (*s)[GWQ_QUERIES], int keys, const float *most, float *sum) {
    const __m512 top = _mm512_broadcast_f32x4(_mm_loadu_ps(most));
    __m512 total = _mm512_setzero_ps();
    for (int n = 0; n < keys; n += KEYS) {
        const __mmask16 some = first((int64_t)(keys - n) * GWQ_QUERIES);
        const __m512 x = _mm512_sub_ps(some_floats(s[n], some), top);
        /* what is far below is nothing */
        const __mmask16 counts = _mm512_mask_cmp_ps_mask(some, x, _mm512_set1_ps(-87), _CMP_GE_OQ);
        const __m512 e = _mm512_maskz_mov_ps(counts, exp16(x));
        store_floats(s[n], some, e);
        total = _mm512_add_ps(total, e);
    }
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(total),
                                      _mm512_extractf32x8_ps(total, 1));
    _mm_storeu_ps(sum, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#endif
