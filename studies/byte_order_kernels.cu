// CUDA side of the study of byte orders: the dense part of UNITS units (one line of gwq2, three of
// gwq3) of 8 rows by one thread, which has the rows of a ring in its own registers. Two sizes of
// UNITS are compiled, and the difference counted. Tables are read by PRMT, which takes nibbles, or
// lie in shared memory.
#include <stdint.h>

struct table { // 16 entries of int8, or twice 16
    uint32_t t[8];
};

__device__ __forceinline__ uint32_t look4(const uint32_t *t, uint32_t low, uint32_t which) {
    return __byte_perm(__byte_perm(t[0], t[1], low), __byte_perm(t[2], t[3], low), which);
}
// v[0], v[1]: entries of the nibbles 0-3 and 4-7
__device__ __forceinline__ void look8(const uint32_t *t, uint32_t windows, uint32_t *v) {
    uint32_t low = windows & 0x77777777, which = (windows >> 1 & 0x44444444) | 0x32103210;
    v[0] = look4(t, low, which);
    v[1] = look4(t, low >> 16, which >> 16);
}
__device__ __forceinline__ void look8_short(const uint32_t *t, uint32_t codes, uint32_t *v) {
    v[0] = __byte_perm(t[0], t[1], codes);
    v[1] = __byte_perm(t[0], t[1], codes >> 16);
}
// Nibbles of x, and above them those of y
__device__ __forceinline__ uint32_t packed(uint32_t x, uint32_t y) {
    return (x & 0x0f0f0f0f) | (y << 4 & 0xf0f0f0f0);
}
__device__ __forceinline__ uint32_t cross(uint32_t a, int n, uint32_t b) {
    uint32_t mask = 0x01010101 * ((1 << (8 - n)) - 1);
    return (a >> n & mask) | (b << (8 - n) & ~mask);
}

// x: the lines' words of the row, before: of the row before it; v: four columns of a row each
// (columns), or two columns of two rows
struct none2 {
    enum { lines = 1 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        look8_short(t.t, x[0] & 0x33333333, v);
        look8_short(t.t, x[0] >> 2 & 0x33333333, v + 2);
    }
};
struct row2 {
    enum { lines = 1 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *before,
                                   uint32_t *v) {
        look8(t.t, (x[0] & 0x33333333) | (before[0] << 2 & 0xcccccccc), v);
        look8(t.t, (x[0] >> 2 & 0x33333333) | (before[0] & 0xcccccccc), v + 2);
    }
};
struct byte2 {
    enum { lines = 1 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        look8(t.t, x[0], v);
        look8(t.t, (x[0] >> 2 & 0x3f3f3f3f) | (x[0] << 6 & 0xc0c0c0c0), v + 2);
    }
};
struct word2 {
    enum { lines = 1 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        look8(t.t, x[0], v);
        look8(t.t, __funnelshift_r(x[0], x[0], 2), v + 2);
    }
};
struct pair2 {
    enum { lines = 1 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        look8(t.t, x[0], v);
        look8(t.t + 4, x[0], v + 2);
    }
};
// All four codes of a byte by one look into shared memory: 256 words, or 1024 where the last window
// has two bits of the next byte
extern __shared__ uint32_t words[];
struct byte_shared2 {
    enum { lines = 1 };
    static __device__ void entries(const table &, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        for (int i = 0; i < 4; i++) v[i] = words[x[0] >> 8 * i & 255];
    }
};
struct word_shared2 {
    enum { lines = 1 };
    static __device__ void entries(const table &, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        for (int i = 0; i < 4; i++) v[i] = words[__funnelshift_r(x[0], x[0], 8 * i) & 1023];
    }
};

__device__ __forceinline__ uint32_t last3(const uint32_t *x) {
    return (x[0] >> 3 & 0x11111111) | (x[1] >> 2 & 0x22222222) | (x[2] >> 1 & 0x44444444);
}
__device__ __forceinline__ uint32_t window3(uint32_t x, uint32_t before) {
    return (x & 0x77777777) | (before << 1 & 0x88888888);
}
struct none3 {
    enum { lines = 3 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        for (int k = 0; k < 3; k++) look8_short(t.t, x[k] & 0x77777777, v + 2 * k);
        look8_short(t.t, last3(x), v + 6);
    }
};
struct row3 {
    enum { lines = 3 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *before,
                                   uint32_t *v) {
        for (int k = 0; k < 3; k++) look8(t.t, window3(x[k], before[k]), v + 2 * k);
        look8(t.t, last3(x) | (before[2] & 0x88888888), v + 6);
    }
};
struct byte3 {
    enum { lines = 3 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        uint32_t last = last3(x);
        look8(t.t, window3(x[0], last), v);
        look8(t.t, window3(x[1], x[0]), v + 2);
        look8(t.t, window3(x[2], x[1]), v + 4);
        look8(t.t, window3(last, x[2]), v + 6);
    }
};
struct stream3 {
    enum { lines = 3 };
    static __device__ void entries(const table &t, const uint32_t *x, const uint32_t *,
                                   uint32_t *v) {
        uint32_t a = x[0], b = x[1], c = x[2];
        look8(t.t, packed(a, a >> 3), v);
        look8(t.t, packed(cross(a, 6, b), b >> 1), v + 2);
        look8(t.t, packed(b >> 4, cross(b, 7, c)), v + 4);
        look8(t.t, packed(c >> 2, cross(c, 5, a)), v + 6);
    }
};

// line: half lines of 8 rows, one after another; q: the activations in the order of v, for all rows
template <class layout, int UNITS>
__device__ __forceinline__ void units(table t, const uint4 *line, const uint4 *q, int *y) {
    int sum[8] = {0};
    const int quads = 4 * (layout::lines == 3 ? 2 : 1);
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        uint32_t x[8][3], act[8], v[8];
#pragma unroll
        for (int k = 0; k < layout::lines; k++) {
            uint4 low = line[0], high = line[1];
            line += 4;
            x[0][k] = low.x, x[1][k] = low.y, x[2][k] = low.z, x[3][k] = low.w;
            x[4][k] = high.x, x[5][k] = high.y, x[6][k] = high.z, x[7][k] = high.w;
        }
#pragma unroll
        for (int k = 0; k < quads; k += 4) {
            uint4 four = *q++;
            act[k] = four.x, act[k + 1] = four.y, act[k + 2] = four.z, act[k + 3] = four.w;
        }
#pragma unroll
        for (int r = 0; r < 8; r++) {
            layout::entries(t, x[r], x[(r + 7) & 7], v);
#pragma unroll
            for (int p = 0; p < quads; p++) sum[r] = __dp4a((int)v[p], (int)act[p], sum[r]);
        }
    }
#pragma unroll
    for (int r = 0; r < 8; r++) y[r] = sum[r];
}

#define KERNEL(LAYOUT)                                                                      \
    extern "C" __global__ void LAYOUT##_1(table t, const uint4 *line, const uint4 *q, int *y) { \
        units<LAYOUT, 1>(t, line, q, y);                                                    \
    }                                                                                       \
    extern "C" __global__ void LAYOUT##_3(table t, const uint4 *line, const uint4 *q, int *y) { \
        units<LAYOUT, 3>(t, line, q, y);                                                    \
    }
KERNEL(none2)
KERNEL(row2)
KERNEL(byte2)
KERNEL(word2)
KERNEL(pair2)
KERNEL(byte_shared2)
KERNEL(word_shared2)
KERNEL(none3)
KERNEL(row3)
KERNEL(byte3)
KERNEL(stream3)
