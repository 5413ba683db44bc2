/* Loads and sums that the files of this folder share. */
#ifndef GWQ_NEON_H
#define GWQ_NEON_H
#include <arm_neon.h>
#include <string.h>
#include "slots.h"

/* A loop that is written out, and one that is not */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("nounroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#define ROLLED _Pragma("GCC unroll 1")
#endif

/* The compiler does not know how an address goes on from here: it neither computes it from an
 * earlier one nor loads from it before */
#define IN_ORDER(address) __asm__ volatile("" : "+r"(address))

/* 64 bytes, and 48, by one instruction, which GCC knows from 10.3 on */
GWQ_INLINE uint8x16x4_t load64(const uint8_t *p) {
#if defined(__clang__) || __GNUC__ > 10
    return vld1q_u8_x4(p);
#else
    return (uint8x16x4_t){{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
#endif
}
GWQ_INLINE uint8x16x3_t load48(const uint8_t *p) {
#if defined(__clang__) || __GNUC__ > 10
    return vld1q_u8_x3(p);
#else
    return (uint8x16x3_t){{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32)}};
#endif
}

/* FP16 to float: 4 values, 8, and one */
GWQ_INLINE float32x4_t half4(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
GWQ_INLINE void half8(const uint8_t *p, float32x4_t out[2]) {
    const float16x8_t h = vreinterpretq_f16_u8(vld1q_u8(p));
    out[0] = vcvt_f32_f16(vget_low_f16(h));
    out[1] = vcvt_high_f32_f16(h);
}
GWQ_INLINE float half1(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

/* Signed bytes to 32 bits each */
GWQ_INLINE void widen16(int8x16_t v, int32x4_t out[4]) {
    const int16x8_t low = vmovl_s8(vget_low_s8(v)), high = vmovl_high_s8(v);
    out[0] = vmovl_s16(vget_low_s16(low));
    out[1] = vmovl_high_s16(low);
    out[2] = vmovl_s16(vget_low_s16(high));
    out[3] = vmovl_high_s16(high);
}

/* sums4(a, b, c, d)[i] = sum of the i-th vector: (0 + 1) + (2 + 3) of each */
GWQ_INLINE float32x4_t sums4(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}

/* 4 x 4 floats, turned over the diagonal */
GWQ_INLINE void transpose4(float32x4_t r[4]) {
    const float32x4_t a = vzip1q_f32(r[0], r[2]), b = vzip1q_f32(r[1], r[3]);
    const float32x4_t c = vzip2q_f32(r[0], r[2]), d = vzip2q_f32(r[1], r[3]);
    r[0] = vzip1q_f32(a, b);
    r[1] = vzip2q_f32(a, b);
    r[2] = vzip1q_f32(c, d);
    r[3] = vzip2q_f32(c, d);
}
#endif
