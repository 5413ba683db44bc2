/* What the kernels of the study of byte orders are written in: a part of a line of 64 bytes, with
 * AVX2 (two parts), AVX-512 (one) or NEON with dot products (four). A part holds rows x 4 columns.
 *
 *   nibble, top, middle   bits 0-3, 4-7, 2-5 of each byte
 *   field(v, n, m)        (v >> n) & m of each byte
 *   join(m, a, b)         the bits of a where the mask is set, elsewhere those of b
 *   cross(a, n, b)        bits n-7 of a, and above them bits of b, to four
 *   turn(v)               every 32 bits turned right by 6
 *   before8(line, part)   of each row the row before it in a ring of 8
 *   next4, before4        the row after or before it in a ring of the 4 rows of 16 bytes
 */
#ifndef BYTE_ORDER_VECTORS_H
#define BYTE_ORDER_VECTORS_H
#include <stdint.h>
#include <string.h>
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512BW__)
#include <immintrin.h>
enum { PARTS = 1, PART = 64, PART_ROWS = 16 };
typedef __m512i V;
INLINE V load_part(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE V load_table(const uint8_t *p) { return _mm512_loadu_si512(p); }
INLINE V all_bytes(int m) { return _mm512_set1_epi8((char)m); }
INLINE V and(V a, V b) { return _mm512_and_si512(a, b); }
INLINE V right(V v, int n) { return _mm512_srli_epi16(v, n); }
INLINE V left(V v, int n) { return _mm512_slli_epi16(v, n); }
INLINE V look(V table, V at) { return _mm512_shuffle_epi8(table, at); }
INLINE V join(int m, V a, V b) { return _mm512_ternarylogic_epi32(all_bytes(m), a, b, 0xca); }
INLINE V next4(V v) { return _mm512_shuffle_epi32(v, 0x39); }
INLINE V before4(V v) { return _mm512_shuffle_epi32(v, 0x93); }
INLINE V turn(V v) { return _mm512_ror_epi32(v, 6); }
INLINE V before8(const uint8_t *line, int part) {
    const V rows = _mm512_setr_epi32(7, 0, 1, 2, 3, 4, 5, 6, 15, 8, 9, 10, 11, 12, 13, 14);
    return _mm512_permutexvar_epi32(rows, load_part(line + PART * part));
}

#elif defined(__AVX2__)
#include "x86/avx2_sums.h"
#include "x86/avx2_unpack.h"
enum { PARTS = 2, PART = 32, PART_ROWS = 8 };
typedef __m256i V;
INLINE V load_part(const uint8_t *p) { return load_once(p); }
INLINE V load_table(const uint8_t *p) { return load(p); }
INLINE V all_bytes(int m) { return _mm256_set1_epi8((char)m); }
INLINE V and(V a, V b) { return _mm256_and_si256(a, b); }
INLINE V right(V v, int n) { return _mm256_srli_epi16(v, n); }
INLINE V left(V v, int n) { return _mm256_slli_epi16(v, n); }
INLINE V look(V table, V at) { return _mm256_shuffle_epi8(table, at); }
INLINE V join(int m, V a, V b) {
    return _mm256_or_si256(and(a, all_bytes(m)), and(b, all_bytes(~m)));
}
INLINE V next4(V v) { return _mm256_shuffle_epi32(v, 0x39); }
INLINE V before4(V v) { return _mm256_shuffle_epi32(v, 0x93); }
INLINE V turn(V v) { return _mm256_or_si256(_mm256_srli_epi32(v, 6), _mm256_slli_epi32(v, 26)); }
INLINE V before8(const uint8_t *line, int part) {
    const uint8_t *p = line + PART * part;
    int32_t last;
    memcpy(&last, p + 28, 4);
    V rows = load(p - 4); /* what lies before a line: a line, or scales */
    return _mm256_blend_epi32(rows, _mm256_set1_epi32(last), 1);
}

#else
#include <arm_neon.h>
enum { PARTS = 4, PART = 16, PART_ROWS = 4 };
typedef uint8x16_t V;
INLINE V load_part(const uint8_t *p) { return vld1q_u8(p); }
INLINE V load_table(const uint8_t *p) { return vld1q_u8(p); }
INLINE V all_bytes(int m) { return vdupq_n_u8((uint8_t)m); }
INLINE V and(V a, V b) { return vandq_u8(a, b); }
INLINE V right(V v, int n) { return v >> n; }
INLINE V left(V v, int n) { return v << n; }
INLINE V look(V table, V at) { return vqtbl1q_u8(table, at); }
INLINE V join(int m, V a, V b) { return vbslq_u8(all_bytes(m), a, b); }
INLINE V next4(V v) { return vextq_u8(v, v, 4); }
INLINE V before4(V v) { return vextq_u8(v, v, 12); }
INLINE V turn(V v) {
    uint32x4_t w = vreinterpretq_u32_u8(v);
    return vreinterpretq_u8_u32(vsliq_n_u32(vshrq_n_u32(w, 6), w, 26));
}
INLINE V before8(const uint8_t *line, int part) {
    return vextq_u8(load_part(line + PART * (part ^ 1)), load_part(line + PART * part), 12);
}
#endif

INLINE V field(V v, int n, int m) {
    V shifted = n ? right(v, n) : v;
#ifdef __aarch64__ /* shifts by bytes leave nothing above */
    if (n && m == 255 >> n) return shifted;
#endif
    return and(shifted, all_bytes(m));
}
INLINE V nibble(V v) { return field(v, 0, 15); }
INLINE V top(V v) { return field(v, 4, 15); }
INLINE V middle(V v) { return field(v, 2, 15); }
#ifdef __aarch64__
#define cross(a, n, b) nibble(vsliq_n_u8(right(a, n), b, 8 - (n)))
#else
#define cross(a, n, b) nibble(join((1 << (8 - (n))) - 1, right(a, n), left(b, 8 - (n))))
#endif
#endif
