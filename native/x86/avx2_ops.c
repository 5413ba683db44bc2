/* AVX2, FMA and F16C: activations as int8 and by columns, norms, attention, reading memory. */
#include <math.h>
#include "avx2.h"
#include "cpu/tiles.h"

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

void gwq_avx2_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                    float *out) {
    int64_t c = 0;
    for (; c + 8 <= width; c += 8)
        for (int t = 0; t < lanes; t += 8) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) {
                const float *from = x + (t + i) * stride + c;
                r[i] = t + i < count ? _mm256_loadu_ps(from) : _mm256_setzero_ps();
            }
            transpose8(r);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(out + (c + i) * lanes + t, r[i]);
        }
    gwq_scalar.panel(x + c, stride, count, width - c, lanes, out + c * lanes);
}

GWQ_INLINE float max8(__m256 v) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* v * inverse, rounded to nearest even. As in scalar_ops.c: NaN becomes 0, the clamp matters only
 * when 1 / scale overflowed. */
GWQ_INLINE __m256i codes8(__m256 v, __m256 inverse, float most) {
    __m256 f = _mm256_mul_ps(v, inverse);
    f = _mm256_and_ps(f, _mm256_cmp_ps(f, f, _CMP_ORD_Q));
    f = _mm256_max_ps(_mm256_min_ps(f, _mm256_set1_ps(most)), _mm256_set1_ps(-most));
    return _mm256_cvtps_epi32(f);
}

void gwq_avx2_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                       int16_t *bias) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK * lanes) {
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
        float d = max8(most) / 127;
        __m256 inverse = _mm256_set1_ps(d > 0 ? 1 / d : 0);
        __m256i n[8];
        for (int i = 0; i < 8; i++) n[i] = codes8(v[i], inverse, 127);
        /* the packs work within 128 bits: put the dwords in order afterwards */
        for (int i = 0; i < 8; i += 4) {
            __m256i p = _mm256_packs_epi16(_mm256_packs_epi32(n[i], n[i + 1]),
                                           _mm256_packs_epi32(n[i + 2], n[i + 3]));
            p = _mm256_permutevar8x32_epi32(p, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256((__m256i *)(q + 8 * i), p);
        }
        __m128i sum[2];
        /* 32 columns: of each 16, first and second column pairs of every quad */
        for (int i = 0; i < 2; i++) {
            __m256i pairs = _mm256_hadd_epi32(_mm256_add_epi32(n[4 * i], n[4 * i + 1]),
                                              _mm256_add_epi32(n[4 * i + 2], n[4 * i + 3]));
            sum[i] = _mm_add_epi32(_mm256_castsi256_si128(pairs),
                                   _mm256_extracti128_si256(pairs, 1));
        }
        __m128i packed = _mm_packs_epi32(sum[0], sum[1]);
        packed = _mm_mullo_epi16(packed, _mm_set1_epi16(-ENTRY_BIAS));
        _mm_storeu_si128((__m128i *)(bias + 8 * b * lanes), packed);
        scale[b * lanes] = d;
    }
}

void gwq_avx2_quantize16(const float *x, int64_t cols, int16_t *codes, float *scale) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t i = 0; i < gwq_tiles(cols); i++, x += GWQ_TILE, codes += GWQ_TILE) {
        const float *from = x;
        float last[GWQ_TILE];
        if (cols - i * GWQ_TILE < GWQ_TILE) {
            memset(last, 0, sizeof last);
            memcpy(last, x, (size_t)(cols - i * GWQ_TILE) * sizeof *x);
            from = last;
        }
        __m256 most = _mm256_setzero_ps(); /* max returns its second operand when one is NaN */
        for (int k = 0; k < GWQ_TILE; k += 8)
            most = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(from + k), magnitude), most);
        float d = max8(most) / 32767;
        const __m256 inverse = _mm256_set1_ps(d > 0 ? 1 / d : 0);
        for (int k = 0; k < GWQ_TILE; k += 16) {
            __m256i n = _mm256_packs_epi32(codes8(_mm256_loadu_ps(from + k), inverse, 32767),
                                           codes8(_mm256_loadu_ps(from + k + 8), inverse, 32767));
            n = _mm256_permute4x64_epi64(n, 0xd8); /* packs work within 128 bits */
            _mm256_storeu_si256((__m256i *)(codes + k), n);
        }
        scale[i] = d;
    }
}

static float dot(const float *a, const float *b, int64_t count) {
    __m256 s[4];
    for (int k = 0; k < 4; k++) s[k] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 32 <= count; i += 32)
        for (int k = 0; k < 4; k++)
            s[k] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8 * k), _mm256_loadu_ps(b + i + 8 * k),
                                   s[k]);
    for (; i + 8 <= count; i += 8)
        s[0] = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s[0]);
    float sum = sum8(_mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3])));
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

void gwq_avx2_rmsnorm(const float *x, const float *weight, float eps, int64_t dim, float *out) {
    float scale = 1 / sqrtf(dot(x, x, dim) / (float)dim + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = x[i] * scale * weight[i];
}

/* --- attention -------------------------------------------------------------------------------- */

void gwq_avx2_convolve(const float *const *u, const float *weight, int64_t stride, int taps,
                       const float *gate, int64_t count, float *out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(weight + i), _mm256_loadu_ps(u[0] + i));
        for (int j = 1; j < taps; j++) {
            const __m256 w = _mm256_loadu_ps(weight + j * stride + i);
            sum = _mm256_add_ps(sum, _mm256_mul_ps(w, _mm256_loadu_ps(u[j] + i)));
        }
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_loadu_ps(gate + i), sum));
    }
    if (i == count) return;
    const float *rest[GWQ_MAX_TAPS];
    for (int j = 0; j < taps; j++) rest[j] = u[j] + i;
    gwq_scalar.convolve(rest, weight + i, stride, taps, gate + i, count - i, out + i);
}

void gwq_avx2_to_halves(const float *x, int64_t count, uint16_t *out) {
    const __m256 most = _mm256_set1_ps(65504);
    const __m256 least = _mm256_sub_ps(_mm256_setzero_ps(), most);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) { /* of a NaN, min and max return their second operand */
        __m256 v = _mm256_min_ps(most, _mm256_max_ps(least, _mm256_loadu_ps(x + i)));
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    }
    gwq_scalar.to_halves(x + i, count - i, out + i);
}

/* Numbers i .. i+7 of a cache (i % 8 == 0 if they have scales), or i alone, which has none; `type`
 * is a constant */
GWQ_INLINE __m256 cached8(const void *p, const int type, int64_t i) {
    if (type == GWQ_TYPE_F32) return _mm256_loadu_ps((const float *)p + i);
    if (type == GWQ_TYPE_F16) return half8((const uint8_t *)p + 2 * i);
    const uint8_t *block = (const uint8_t *)p + i / 32 * 34;
    __m256i codes = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(block + 2 + i % 32)));
    return _mm256_mul_ps(_mm256_set1_ps(half1(block)), _mm256_cvtepi32_ps(codes));
}
GWQ_INLINE float cached1(const void *p, const int type, int64_t i) {
    return type == GWQ_TYPE_F32 ? ((const float *)p)[i] : half1((const uint8_t *)p + 2 * i);
}

/* The scores of two keys, from number `at` on; dim is whole eights. */
GWQ_INLINE void two_keys(const float *const q[GWQ_QUERIES], const void *k, const int type,
                         int64_t at, int64_t stride, int64_t dim, float (*s)[GWQ_QUERIES]) {
    __m256 sum[2][GWQ_QUERIES];
    for (int i = 0; i < GWQ_QUERIES; i++) sum[0][i] = sum[1][i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8)
        for (int n = 0; n < 2; n++) {
            __m256 key = cached8(k, type, at + n * stride + d);
            for (int i = 0; i < GWQ_QUERIES; i++)
                sum[n][i] = _mm256_fmadd_ps(key, _mm256_loadu_ps(q[i] + d), sum[n][i]);
        }
    for (int n = 0; n < 2; n++) {
        _mm_storeu_ps(s[n], sums4(sum[n][0], sum[n][1], sum[n][2], sum[n][3]));
    }
}

GWQ_INLINE void scores(const float *const q[GWQ_QUERIES], const void *k, const int type,
                       int64_t stride, int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    int64_t whole = dim & ~(int64_t)7;
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

void gwq_avx2_scores(const float *const q[GWQ_QUERIES], const void *k, int type, int64_t stride,
                     int keys, int64_t dim, float (*s)[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) scores(q, k, GWQ_TYPE_F32, stride, keys, dim, s);
    else if (type == GWQ_TYPE_F16) scores(q, k, GWQ_TYPE_F16, stride, keys, dim, s);
    else scores(q, k, GWQ_TYPE_Q8_0, stride, keys, dim, s);
}

/* out[i][0 .. 8*count-1] += sum of s[key][i] * v[key], count (constant) is 1 or 2 */
GWQ_INLINE void mix_columns(const float (*s)[GWQ_QUERIES], const void *v, const int type,
                            int64_t stride, int keys, const int count,
                            float *const out[GWQ_QUERIES], int64_t d) {
    __m256 sum[GWQ_QUERIES][2];
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) sum[i][c] = _mm256_loadu_ps(out[i] + d + 8 * c);
    for (int n = 0; n < keys; n++) {
        __m256 value[2];
        for (int c = 0; c < count; c++) value[c] = cached8(v, type, n * stride + d + 8 * c);
        for (int i = 0; i < GWQ_QUERIES; i++) {
            __m256 p = _mm256_broadcast_ss(&s[n][i]);
            for (int c = 0; c < count; c++) sum[i][c] = _mm256_fmadd_ps(p, value[c], sum[i][c]);
        }
    }
    for (int i = 0; i < GWQ_QUERIES; i++)
        for (int c = 0; c < count; c++) _mm256_storeu_ps(out[i] + d + 8 * c, sum[i][c]);
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

void gwq_avx2_mix(const float (*s)[GWQ_QUERIES], const void *v, int type, int64_t stride, int keys,
                  int64_t dim, float *const out[GWQ_QUERIES]) {
    if (type == GWQ_TYPE_F32) mix(s, v, GWQ_TYPE_F32, stride, keys, dim, out);
    else if (type == GWQ_TYPE_F16) mix(s, v, GWQ_TYPE_F16, stride, keys, dim, out);
    else mix(s, v, GWQ_TYPE_Q8_0, stride, keys, dim, out);
}

GWQ_INLINE void from_cache(const void *cache, const int type, int64_t first, int64_t count,
                           float *out) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(out + i, cached8(cache, type, first + i));
    for (; i < count; i++) out[i] = cached1(cache, type, first + i);
}

void gwq_avx2_from_cache(const void *cache, int type, int64_t first, int64_t count, float *out) {
    if (type == GWQ_TYPE_F32) from_cache(cache, GWQ_TYPE_F32, first, count, out);
    else if (type == GWQ_TYPE_F16) from_cache(cache, GWQ_TYPE_F16, first, count, out);
    else from_cache(cache, GWQ_TYPE_Q8_0, first, count, out);
}

/* --- memory roof ------------------------------------------------------------------------------ */

uint64_t gwq_avx2_read_memory(const uint8_t *data, uint64_t bytes, int streams, int ahead) {
    const uint64_t part = bytes / (unsigned)streams & ~(uint64_t)63; /* of a stream */
    uint64_t i = part * (unsigned)streams; /* the rest */
    __m256i a = _mm256_setzero_si256(), b = a;
    for (uint64_t at = 0; at < part; at += 64)
        for (int s = 0; s < streams; s++) {
            const uint8_t *p = data + (uint64_t)s * part + at;
            if (ahead) prefetch(p, (size_t)ahead, 64);
            a = _mm256_add_epi64(a, load(p));
            b = _mm256_add_epi64(b, load(p + 32));
        }
    uint64_t sum = 0, word;
    for (; i + 8 <= bytes; i += 8) {
        memcpy(&word, data + i, 8);
        sum += word;
    }
    uint64_t lane[4];
    _mm256_storeu_si256((__m256i *)lane, _mm256_add_epi64(a, b));
    return sum + lane[0] + lane[1] + lane[2] + lane[3];
}
