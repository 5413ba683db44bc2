/* NEON: products of queries with cached keys, and sums of cached values. */
#include "neon.h"
#include "cpu/tiles.h"

/* Numbers i .. i+7 of a cache (i % 8 == 0 if they have scales), or i alone, which has none; `type`
 * is a constant */
GWQ_INLINE void cached8(const void *p, const int type, int64_t i, float32x4_t out[2]) {
    if (type == GWQ_TYPE_F32) {
        out[0] = vld1q_f32((const float *)p + i);
        out[1] = vld1q_f32((const float *)p + i + 4);
    } else if (type == GWQ_TYPE_F16) {
        half8((const uint8_t *)p + 2 * i, out);
    } else {
        const uint8_t *block = (const uint8_t *)p + i / 32 * (int64_t)sizeof(struct q8_0_block);
        const int16x8_t n = vmovl_s8(vreinterpret_s8_u8(vld1_u8(block + 2 + i % 32)));
        const float scale = half1(block);
        out[0] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(n))), scale);
        out[1] = vmulq_n_f32(vcvtq_f32_s32(vmovl_high_s16(n)), scale);
    }
}
GWQ_INLINE float cached1(const void *p, const int type, int64_t i) {
    return type == GWQ_TYPE_F32 ? ((const float *)p)[i] : half1((const uint8_t *)p + 2 * i);
}

/* The scores of two keys, from number `at` on; dim is whole eights. */
GWQ_INLINE void two_keys(const float *const q[GWQ_QUERIES], const void *k, const int type,
                         int64_t at, int64_t stride, int64_t dim, float (*s)[GWQ_QUERIES]) {
    float32x4_t sum[2][GWQ_QUERIES];
    for (int i = 0; i < GWQ_QUERIES; i++) sum[0][i] = sum[1][i] = vdupq_n_f32(0);
    for (int64_t d = 0; d < dim; d += 8) {
        float32x4_t key[2][2];
        for (int n = 0; n < 2; n++) cached8(k, type, at + n * stride + d, key[n]);
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int c = 0; c < 2; c++) {
                const float32x4_t query = vld1q_f32(q[i] + d + 4 * c);
                for (int n = 0; n < 2; n++) sum[n][i] = vfmaq_f32(sum[n][i], key[n][c], query);
            }
    }
    for (int n = 0; n < 2; n++)
        vst1q_f32(s[n], sums4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
}

GWQ_INLINE void scores(const float *const q[GWQ_QUERIES], const void *k, const int type,
                       int64_t stride, int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    const int64_t whole = dim & ~(int64_t)7;
    int n = 0;
    for (; n + 2 <= keys; n += 2) two_keys(q, k, type, n * stride, stride, whole, s + n);
    if (n < keys) {
        float last[2][GWQ_QUERIES];
        two_keys(q, k, type, n * stride, 0, whole, last); /* twice the same key */
        memcpy(s[n], last, sizeof s[n]);
    }
    for (n = 0; whole < dim && n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int64_t d = whole; d < dim; d++)
                s[n][i] += q[i][d] * cached1(k, type, n * stride + d);
}

void gwq_neon_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                     int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) scores(q, k, GWQ_TYPE_F32, stride, keys, dim, s);
    else if (type == GWQ_TYPE_F16) scores(q, k, GWQ_TYPE_F16, stride, keys, dim, s);
    else scores(q, k, GWQ_TYPE_Q8_0, stride, keys, dim, s);
}

/* out[i][d .. d+8*count-1] += sum of s[key][i] * v[key], count (constant) is 1 or 2 */
GWQ_INLINE void mix_columns(const float (*s)[GWQ_QUERIES], const void *v, const int type,
                            int64_t stride, int keys, const int count,
                            float *const out[GWQ_QUERIES], int64_t d) {
    float32x4_t sum[GWQ_QUERIES][4];
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < 2 * count; c++) sum[i][c] = vld1q_f32(out[i] + d + 4 * c);
    for (int n = 0; n < keys; n++) {
        const float32x4_t p = vld1q_f32(s[n]);
        float32x4_t value[4];
        for (int c = 0; c < count; c++) cached8(v, type, n * stride + d + 8 * c, value + 2 * c);
        for (int c = 0; c < 2 * count; c++) {
            sum[0][c] = vfmaq_laneq_f32(sum[0][c], value[c], p, 0);
            sum[1][c] = vfmaq_laneq_f32(sum[1][c], value[c], p, 1);
            sum[2][c] = vfmaq_laneq_f32(sum[2][c], value[c], p, 2);
            sum[3][c] = vfmaq_laneq_f32(sum[3][c], value[c], p, 3);
        }
    }
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < 2 * count; c++) vst1q_f32(out[i] + d + 4 * c, sum[i][c]);
}

GWQ_INLINE void mix(const float (*s)[GWQ_QUERIES], const void *v, const int type, int64_t stride,
                    int keys, int64_t dim, float *const out[GWQ_QUERIES]) {
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) mix_columns(s, v, type, stride, keys, 2, out, d);
    if (d + 8 <= dim) {
        mix_columns(s, v, type, stride, keys, 1, out, d);
        d += 8;
    }
    for (; d < dim; d++)
        for (int i = 0; i < GWQ_QUERIES; i++)
            for (int n = 0; n < keys; n++) out[i][d] += s[n][i] * cached1(v, type, n * stride + d);
}

void gwq_neon_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys,
                  int64_t dim, float *const out[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) mix(s, v, GWQ_TYPE_F32, stride, keys, dim, out);
    else if (type == GWQ_TYPE_F16) mix(s, v, GWQ_TYPE_F16, stride, keys, dim, out);
    else mix(s, v, GWQ_TYPE_Q8_0, stride, keys, dim, out);
}

GWQ_INLINE void from_cache(const void *cache, const int type, int64_t first, int64_t count,
                           float *out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        float32x4_t v[2];
        cached8(cache, type, first + i, v);
        vst1q_f32(out + i, v[0]);
        vst1q_f32(out + i + 4, v[1]);
    }
    for (; i < count; i++) out[i] = cached1(cache, type, first + i);
}

void gwq_neon_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out) {
    if (type == GWQ_TYPE_F32) from_cache(cache, GWQ_TYPE_F32, first, count, out);
    else if (type == GWQ_TYPE_F16) from_cache(cache, GWQ_TYPE_F16, first, count, out);
    else from_cache(cache, GWQ_TYPE_Q8_0, first, count, out);
}
