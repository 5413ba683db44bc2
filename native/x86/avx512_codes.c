/* AVX-512: activations as int8 and by columns. (SIMDe lacks comparisons to masks: with it AVX2's
 * functions are used.) */
#include "avx512.h"

/* The largest of 16 floats, none below 0 or NaN */
GWQ_INLINE float largest(__m512 v) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

void gwq_avx512_quantize(const float *x, int64_t cols, int64_t lanes, int8_t *q, float *scale,
                         int16_t *bias) {
    /* the packs work within 128 bits: put the dwords in order afterwards */
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t b = 0; b < gwq_blocks(cols); b++, q += GWQ_BLOCK * lanes, bias += 8 * lanes) {
        float last[GWQ_BLOCK] = {0};
        const float *from = x + b * GWQ_BLOCK;
        if (cols - b * GWQ_BLOCK < GWQ_BLOCK) {
            memcpy(last, from, (size_t)(cols - b * GWQ_BLOCK) * sizeof *x);
            from = last;
        }
        __m512 v[4], most = _mm512_setzero_ps();
        for (int i = 0; i < 4; i++) { /* max returns its second operand when the first is NaN */
            v[i] = _mm512_loadu_ps(from + 16 * i);
            most = _mm512_max_ps(_mm512_abs_ps(v[i]), most);
        }
        const float d = largest(most) / 127;
        const __m512 inverse = _mm512_set1_ps(d > 0 ? 1 / d : 0);
        __m512i n[4];
        /* as in scalar_ops.c: NaN becomes 0, the clamp matters only when 1/d overflowed */
        for (int i = 0; i < 4; i++) {
            __m512 f = _mm512_mul_ps(v[i], inverse);
            f = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(f, f, _CMP_ORD_Q), f);
            f = _mm512_max_ps(_mm512_min_ps(f, _mm512_set1_ps(127)), _mm512_set1_ps(-127));
            n[i] = _mm512_cvtps_epi32(f);
        }
        __m512i codes = _mm512_packs_epi16(_mm512_packs_epi32(n[0], n[1]),
                                           _mm512_packs_epi32(n[2], n[3]));
        codes = _mm512_permutexvar_epi32(order, codes);
        _mm512_storeu_si512(q, codes);
        /* 16 columns in 128 bits: sums of two neighbours, then of every other one of these, which
         * end up in the first dword */
        __m512i sums = _mm512_maddubs_epi16(_mm512_set1_epi8(1), codes);
        sums = _mm512_add_epi16(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
        sums = _mm512_add_epi16(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB));
        sums = _mm512_mullo_epi16(sums, _mm512_set1_epi16(-ENTRY_BIAS));
        sums = _mm512_permutexvar_epi32(order, sums);
        _mm_storeu_si128((__m128i *)bias, _mm512_castsi512_si128(sums));
        scale[b * lanes] = d;
    }
}

/* 16 x 16 floats, turned over the diagonal */
GWQ_INLINE void transpose16(__m512 r[16]) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) /* b[i + k]: lane l holds column 4l + k of the rows i .. i+3 */
        for (int k = 0; k < 2; k++) {
            b[i + 2 * k] = _mm512_shuffle_ps(a[i + k], a[i + 2 + k], 0x44);
            b[i + 2 * k + 1] = _mm512_shuffle_ps(a[i + k], a[i + 2 + k], 0xee);
        }
    for (int k = 0; k < 4; k++) { /* lanes 0 and 2, and 1 and 3, of two; then of four */
        const __m512 even[2] = {_mm512_shuffle_f32x4(b[k], b[4 + k], 0x88),
                                _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0x88)};
        const __m512 odd[2] = {_mm512_shuffle_f32x4(b[k], b[4 + k], 0xdd),
                               _mm512_shuffle_f32x4(b[8 + k], b[12 + k], 0xdd)};
        r[k] = _mm512_shuffle_f32x4(even[0], even[1], 0x88);
        r[4 + k] = _mm512_shuffle_f32x4(odd[0], odd[1], 0x88);
        r[8 + k] = _mm512_shuffle_f32x4(even[0], even[1], 0xdd);
        r[12 + k] = _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd);
    }
}

void gwq_avx512_panel(const float *x, int64_t stride, int count, int64_t width, int lanes,
                      float *out) {
    const int64_t whole = lanes % 16 ? 0 : width / 16 * 16;
    for (int t = 0; whole && t < lanes; t += 16)
        for (int64_t c = 0; c < whole; c += 16) {
            __m512 r[16];
            for (int i = 0; i < 16; i++) {
                const float *from = x + (t + i) * stride + c;
                r[i] = t + i < count ? _mm512_loadu_ps(from) : _mm512_setzero_ps();
            }
            transpose16(r);
            for (int i = 0; i < 16; i++) _mm512_storeu_ps(out + (c + i) * lanes + t, r[i]);
        }
    gwq_avx2_panel(x + whole, stride, count, width - whole, lanes, out + whole * lanes);
}
