/* What kernels are written in: CUDA C++, or, where no CUDA compiler reads this, the same as host
 * C++ over shim.h. Names are CUDA's own but for what needs an instruction by its name. */
#ifndef GWQ_CUDA_DEVICE_H
#define GWQ_CUDA_DEVICE_H
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "shim.h"
#endif

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define BOTH __host__ __device__ __forceinline__
#define LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)

/* Four bytes of y:x, bytes 0..7, each chosen by a nibble of `which`: its lowest three bits say
 * which byte, its top bit that the byte's sign is wanted, repeated eight times. */
DEVICE uint32_t permute(uint32_t x, uint32_t y, uint32_t which) {
    uint32_t bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(x), "r"(y), "r"(which));
    return bytes;
}

/* sum + the dot product of four int8 with four int8 */
DEVICE int dot4(uint32_t a, uint32_t b, int sum) {
#if __CUDA_ARCH__ >= 610
    return __dp4a((int)a, (int)b, sum);
#else
    return sum; /* the host's pass: no kernel is compiled for older devices */
#endif
}

/* Weights are read once: they do not stay in the first-level cache, where activations do. */
DEVICE uint4 load_once(const uint4 *p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}
DEVICE uint2 load_once(const uint2 *p) {
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
DEVICE uint32_t load_once(const uint32_t *p) {
    uint32_t v;
    asm("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

DEVICE uint16_t load_once(const uint16_t *p) {
    uint16_t v;
    asm("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}

/* The same value, from which the compiler computes nothing ahead of its place */
DEVICE uint32_t here(uint32_t x) {
    asm volatile("" : "+r"(x));
    return x;
}

/* FP16 bits to float, exact */
DEVICE float half_to_float(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

/* A float to FP16 bits, to nearest even; not for numbers beyond +-65504 */
DEVICE uint16_t half_of(float x) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

/* Two FP16 numbers in a word: a * b + c, rounded once, and a + b and a * b */
DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE uint32_t add_halves(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE uint32_t multiply_halves(uint32_t a, uint32_t b) {
    uint32_t d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

/* Two floats to FP16, as `half_of`: the first in the lower half of a word */
DEVICE uint32_t halves_of(float low, float high) {
#if __CUDA_ARCH__ >= 800
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
#else
    return half_of(low) | (uint32_t)half_of(high) << 16;
#endif
}
#endif

enum { WARP = 32 };
#define ALL_LANES 0xffffffffu

/* Sum and maximum over lanes that differ in the bits of `lanes`, from `first` on, doubling: every
 * one of them gets the same bits, for floats too. */
template <class number> DEVICE number sum_over(number v, int first, int lanes) {
    for (int bit = first; bit < lanes; bit *= 2) v += __shfl_xor_sync(ALL_LANES, v, bit);
    return v;
}
DEVICE float most_over(float v, int first, int lanes) {
    for (int bit = first; bit < lanes; bit *= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, bit));
    return v;
}
#endif
