/* A stand-in for CUDA, so that any machine can run the kernels: every CUDA thread is a fiber of one
 * host thread, blocks run one after another. Tests alone use it; nothing is fast here.
 *
 * A kernel that waits where not all of its threads come ends the process, with a message. Under
 * ThreadSanitizer only barriers and shuffles order memory, so that a race of two CUDA threads is
 * found whatever the order in which they ran. Memory that is not aligned as a device wants it ends
 * the process too, as native/build_cuda.py compiles it, and so does reading beyond a cudaMalloc,
 * and what a stream that is captured must not be asked for. A grid beyond CUDA's limits is an
 * error. */
#ifndef GWQ_CUDA_SHIM_H
#define GWQ_CUDA_SHIM_H
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <functional>
#include <vector>

#define __global__ static
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
#define DEVICE inline
#define BOTH inline

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

/* --- threads ---------------------------------------------------------------------------------- */

namespace shim {
struct place {
    unsigned x, y, z;
};
extern place thread, block, threads, blocks; /* of the fiber that runs */

typedef void (*body)(void *arguments);
/* Run `kernel` in every thread of a grid. */
void run(dim3 grid, dim3 block, body kernel, void *arguments);
/* Blocks and threads from the last to the first, which must not change a bit */
void reverse(bool on);

void wait_block();
/* The 8 bytes that another lane of the warp hands in */
uint64_t exchange(uint64_t mine, int other);

/* sum (4) += products of fragments of a (8) and b (4) of the warp's lanes */
void multiply_fragments(const float *a, const float *b, float *sum);

/* 16 bytes on their way; the end of a group of them, if `to` is NULL */
struct copy {
    void *to;
    const void *from;
};
std::vector<copy> &sent(); /* by the thread that runs */

/* What a stream is captured into, or NULL */
typedef std::vector<std::function<void()>> graph;
extern graph *captured;

enum { MOST_THREADS = 1024 }; /* of a block */
[[noreturn]] void stop(const char *why);
/* Whether a kernel can be started like this; what cannot be is the next cudaGetLastError. A kernel
 * is loaded where it is first started: not while a stream is captured, which ends the process. */
bool can_start(const void *kernel, dim3 grid, dim3 block);

template <class call>
void launch(const void *name, dim3 grid, dim3 block, call kernel) {
    if (!can_start(name, grid, block)) return;
    auto start = [=]() mutable {
        run(grid, block, [](void *p) { (*static_cast<call *>(p))(); }, &kernel);
    };
    if (captured) captured->push_back(start);
    else start();
}
} // namespace shim

#define threadIdx (shim::thread)
#define blockIdx (shim::block)
#define blockDim (shim::threads)
#define gridDim (shim::blocks)
#define LAUNCH(kernel, grid, block, stream, ...) \
    ((void)(stream), shim::launch((const void *)(kernel), dim3(grid), dim3(block), \
                                  [=] { kernel(__VA_ARGS__); }))

inline void __syncthreads() { shim::wait_block(); }

template <class number> number __shfl_xor_sync(uint32_t, number v, int bits) {
    uint64_t mine = 0;
    memcpy(&mine, &v, sizeof v);
    const uint64_t theirs = shim::exchange(mine, (int)(shim::thread.x % 32) ^ bits);
    memcpy(&v, &theirs, sizeof v);
    return v;
}

/* --- instructions ----------------------------------------------------------------------------- */

DEVICE uint32_t permute(uint32_t x, uint32_t y, uint32_t which) {
    const uint64_t both = (uint64_t)y << 32 | x;
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t choice = which >> 4 * i & 15;
        uint32_t byte = both >> 8 * (choice & 7) & 255;
        if (choice & 8) byte = byte & 128 ? 255 : 0;
        bytes |= byte << 8 * i;
    }
    return bytes;
}
DEVICE int dot4(uint32_t a, uint32_t b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return sum;
}
DEVICE uint32_t __funnelshift_r(uint32_t low, uint32_t high, int bits) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (bits & 31));
}
inline uint32_t here(uint32_t x) { return x; }
template <class word> word load_once(const word *p) { return *p; }
DEVICE float __int_as_float(int bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
DEVICE int __float_as_int(float f) {
    int bits;
    memcpy(&bits, &f, sizeof f);
    return bits;
}
DEVICE void atomicOr(int *word, int bits) { __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
DEVICE void atomicMax(int *word, int v) {
    int before = __atomic_load_n(word, __ATOMIC_RELAXED);
    while (before < v && !__atomic_compare_exchange_n(word, &before, v, true, __ATOMIC_RELAXED,
                                                      __ATOMIC_RELAXED)) {
    }
}

DEVICE float half_to_float(uint16_t h) {
    const float sign = h & 0x8000 ? -1.0f : 1.0f;
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexpf((float)(1024 + mantissa), exponent - 25)
                            : ldexpf((float)mantissa, -24));
}
DEVICE uint16_t half_of(float x) {
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (x != x) return 0x7fff;
    if (size < 0x1p-14f) return (uint16_t)(sign | (int)rintf(size * 0x1p24f));
    int exponent;
    const float mantissa = rintf(ldexpf(frexpf(size, &exponent), 11)); /* 1024 .. 2048 */
    return (uint16_t)(sign | (((exponent + 13) << 10) + (int)mantissa));
}

DEVICE uint32_t halves_of(float low, float high) {
    return half_of(low) | (uint32_t)half_of(high) << 16;
}
DEVICE uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t d = 0;
    for (int i = 0; i < 32; i += 16)
        d |= (uint32_t)half_of(fmaf(half_to_float((uint16_t)(a >> i)),
                                    half_to_float((uint16_t)(b >> i)),
                                    half_to_float((uint16_t)(c >> i))))
             << i;
    return d;
}
DEVICE uint32_t add_halves(uint32_t a, uint32_t b) { return fma_halves(a, 0x3c003c00u, b); }
DEVICE uint32_t multiply_halves(uint32_t a, uint32_t b) {
    return fma_halves(a, b, 0x80008000u); /* -0, which changes no zero's sign */
}

/* What tensor cores do, as mma.h has it; products are exact, and rounded when all are added. */
DEVICE void multiply_add(float *sum, const uint32_t *a, uint32_t b0, uint32_t b1) {
    float of_a[8], of_b[4];
    for (int i = 0; i < 8; i++) of_a[i] = half_to_float((uint16_t)(a[i / 2] >> 16 * (i % 2)));
    for (int i = 0; i < 4; i++)
        of_b[i] = half_to_float((uint16_t)((i < 2 ? b0 : b1) >> 16 * (i % 2)));
    shim::multiply_fragments(of_a, of_b, sum);
}

/* A copy that has been sent lands as late as it may; until then there is nothing to be read. */
DEVICE void send_copy(uint4 *to, const uint4 *from) {
    memset(to, 0xfe, sizeof *to);
    shim::sent().push_back({to, from});
}
DEVICE void end_copies() { shim::sent().push_back({nullptr, nullptr}); }
template <int still_away> void await_copies() {
    std::vector<shim::copy> &all = shim::sent();
    int ends = 0;
    for (const shim::copy &c : all) ends += !c.to;
    size_t landed = 0;
    for (; ends > still_away; landed++) {
        const shim::copy &c = all[landed];
        if (c.to) *(uint4 *)c.to = *(const uint4 *)c.from;
        else ends--;
    }
    all.erase(all.begin(), all.begin() + (long)landed);
}

#include "shim_runtime.h"
#endif
