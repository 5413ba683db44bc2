/* Outliers with AVX-512. Their activations come from codes of 16 bits (gwq_input.codes16). Those of
 * a tile are eight registers, in which permutations look up 32 columns at once; loads would take
 * one each. */
#ifndef GWQ_AVX512_OUTLIERS_H
#define GWQ_AVX512_OUTLIERS_H
#include "avx512.h"
#include "avx2_products.h"

/* Codes of 32 columns */
GWQ_INLINE __m512i codes_of(const int16_t *codes, __m512i column) {
    const __mmask32 bit6 = _mm512_test_epi16_mask(column, _mm512_set1_epi16(64));
    const __mmask32 bit7 = _mm512_test_epi16_mask(column, _mm512_set1_epi16(128));
    __m512i v[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) /* a permutation takes the low six bits */
        v[k] = _mm512_permutex2var_epi16(_mm512_loadu_si512(codes + 64 * k), column,
                                         _mm512_loadu_si512(codes + 64 * k + 32));
    v[0] = _mm512_mask_blend_epi16(bit6, v[0], v[1]);
    v[2] = _mm512_mask_blend_epi16(bit6, v[2], v[3]);
    return _mm512_mask_blend_epi16(bit7, v[0], v[2]);
}

/* Rows of which the bytes of `count` are above `level` */
GWQ_INLINE __mmask16 rows_above(__m128i count, int level) {
    const __m128i l = _mm_set1_epi8((char)level);
#ifdef GWQ_SIMDE
    return (__mmask16)(0xffff ^ _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(count, l), count)));
#else
    return _mm_cmpgt_epu8_mask(count, l);
#endif
}

/* take[i], 16 of them: the numbers i, i + 1, ... */
static const int32_t take[32] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10,
                                 11, 12, 13, 14, 15, 15, 15, 15, 15, 15, 15,
                                 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};

/* A record of at most 16 outliers: their products stay in a register. sum[i][row] += scale * what
 * token i has in that row. codes, scale: of the first token; of the next, `tiles` tiles further. */
GWQ_INLINE void add_sixteen(const uint8_t *record, int total, const int16_t *codes,
                            const float *scale, int64_t tiles, const int count, __m512 *sum) {
    const uint8_t *value = record + GWQ_ROWS;
    const __m512 v = first_halves(value, total);
    const __m512i column = words32(first_bytes(value + 2 * total, total));
    const __m128i counts = _mm_loadu_si128((const __m128i *)record);
    __mmask16 rows = rows_above(counts, 0);
    __m512 product[4], s[4];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) {
        __m512i code = codes_of(codes + i * tiles * GWQ_TILE, column);
        product[i] = _mm512_mul_ps(v, floats_of_words(_mm512_castsi512_si256(code)));
        s[i] = expanded(rows, product[i]);
    }
    int next = __builtin_popcount(rows);
    for (int level = 1; level < 3 || next < total; level++) { /* mostly three at most */
        rows = rows_above(counts, level);
        const __m512i order = _mm512_loadu_si512(take + next);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            __m512 rest = _mm512_permutexvar_ps(order, product[i]);
            s[i] = _mm512_add_ps(s[i], expanded(rows, rest));
        }
        next += __builtin_popcount(rows);
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(scale[i * tiles]), s[i], sum[i]);
}

/* The same of any number */
GWQ_INLINE void add_many(const uint8_t *record, int total, const int16_t *codes,
                         const float *scale, int64_t tiles, const int count, __m512 *sum) {
    float product[4][MOST + 32];
    const uint8_t *value = record + GWQ_ROWS, *column = value + 2 * total;
    for (int k = 0; k < total; k += 32) {
        const int some = (int)min64(32, total - k);
        const __m512i c = words32(first_bytes(column + k, some));
        const __m512 low = first_halves(value + 2 * k, some < 16 ? some : 16);
        const __m512 high = first_halves(value + 2 * k + 32, some < 16 ? 0 : some - 16);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++) {
            __m512i code = codes_of(codes + i * tiles * GWQ_TILE, c);
            __m512 x = floats_of_words(_mm512_castsi512_si256(code));
            _mm512_storeu_ps(product[i] + k, _mm512_mul_ps(low, x));
            x = floats_of_words(_mm512_extracti64x4_epi64(code, 1));
            _mm512_storeu_ps(product[i] + k + 16, _mm512_mul_ps(high, x));
        }
    }
    const __m128i counts = _mm_loadu_si128((const __m128i *)record);
    __m512 s[4];
#pragma GCC unroll 4
    for (int i = 0; i < count; i++) s[i] = _mm512_setzero_ps();
    for (int level = 0, next = 0; next < total; level++) {
        const __mmask16 rows = rows_above(counts, level);
#pragma GCC unroll 4
        for (int i = 0; i < count; i++)
            s[i] = _mm512_add_ps(s[i], expand16(rows, product[i] + next));
        next += __builtin_popcount(rows);
    }
#pragma GCC unroll 4
    for (int i = 0; i < count; i++)
        sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(scale[i * tiles]), s[i], sum[i]);
}

/* sum[i] += a record, of the tile-th tile, for token t + i, i < count (constant); returns the next
 * record */
GWQ_INLINE const uint8_t *add_record(const uint8_t *record, const gwq_input *in, int64_t tile,
                                     int64_t t, const int count, size_t ahead, __m512 *sum) {
    const int n = total(record);
    const int64_t tiles = gwq_tiles(in->cols), at = t * tiles + tile;
    const int16_t *codes = in->codes16 + at * GWQ_TILE;
    const float *scale = in->scale16 + at;
    if (ahead) prefetch(record, RECORDS_AHEAD, n <= 16 ? 64 : GWQ_ROWS + 3 * (size_t)n);
    if (n <= 16) add_sixteen(record, n, codes, scale, tiles, count, sum);
    else add_many(record, n, codes, scale, tiles, count, sum);
    return record + GWQ_ROWS + 3 * n;
}

/* As tile_ops.outliers */
GWQ_INLINE const uint8_t *outliers(const tile_ops *ops, const struct side_table *side,
                                   const uint8_t *first, const uint8_t *next_tile, float *sum) {
    const int64_t tiles = gwq_tiles(side->in->cols);
    __m512 s = _mm512_loadu_ps(sum);
    for (int64_t i = 0; i < tiles; i++) {
        prefetch(next_tile, i * WHILE_RECORD, WHILE_RECORD);
        first = add_record(first, side->in, i, 0, 1, ops->ahead, &s);
    }
    _mm512_storeu_ps(sum, s);
    return first;
}

/* As tile_ops.record */
GWQ_INLINE const uint8_t *record(const tile_ops *ops, const struct side_table *side,
                                 const uint8_t *first, int64_t i, int64_t t, const int count,
                                 float (*sum)[GWQ_ROWS]) {
    __m512 s[4] = {0};
#pragma GCC unroll 4
    for (int k = 0; k < count; k++) s[k] = _mm512_loadu_ps(sum[k]);
    first = add_record(first, side->in, i, t, count, ops->ahead, s);
#pragma GCC unroll 4
    for (int k = 0; k < count; k++) _mm512_storeu_ps(sum[k], s[k]);
    return first;
}

/* --- of many tokens --------------------------------------------------------------------------- */

GWQ_INLINE void spread(float v, const float *x, int count, float *sum) {
    if (count == 8) {
        __m256 s = _mm256_fmadd_ps(_mm256_set1_ps(v), _mm256_loadu_ps(x), _mm256_loadu_ps(sum));
        _mm256_storeu_ps(sum, s);
        return;
    }
    for (int t = 0; t < count; t += 16) {
        __m512 s = _mm512_loadu_ps(sum + t);
        _mm512_storeu_ps(sum + t, _mm512_fmadd_ps(_mm512_set1_ps(v), _mm512_loadu_ps(x + t), s));
    }
}

GWQ_INLINE unsigned above(const uint8_t *count, int level) {
    return rows_above(_mm_loadu_si128((const __m128i *)count), level);
}
#endif
