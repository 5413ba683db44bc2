/* Stand-ins for cuBLAS and NVML, with the signatures that NVIDIA documents, for tests without a
 * GPU. STATUS: what every function returns. SHIFT: makes products wrong. NO_COUNTER: no energy. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#ifndef STATUS
#define STATUS 0
#endif
#ifndef NO_COUNTER
#define NO_COUNTER 0
#endif
#ifndef SHIFT
#define SHIFT 0
#endif

static float from_half(uint16_t h) {
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const float size = exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
    return h >> 15 ? -size : size;
}

static uint16_t to_half(float x) { /* of normal numbers, without rounding */
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int exponent = (int)(bits >> 23 & 255) - 127;
    if (exponent < -14) return 0;
    return (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(exponent + 15) << 10 | (bits >> 13 & 1023);
}

int cublasCreate_v2(void **handle) {
    *handle = handle;
    return STATUS;
}
int cublasDestroy_v2(void *handle) { return handle ? STATUS : 1; }

/* c (m, n) = alpha * transpose(a) * b + beta * c, all in columns */
int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                 const void *a, int atype, int lda, const void *b, int btype, int ldb,
                 const void *beta, void *c, int ctype, int ldc, int compute, int algo) {
    if (!handle || transa != 1 || transb != 0 || compute != 68 || algo != -1) return 7;
    if (atype != 2 || btype != 2 || ctype != 2 || lda < k || ldb < k || ldc < m) return 7;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float sum = 0;
            for (int l = 0; l < k; l++)
                sum += from_half(((const uint16_t *)a)[(size_t)i * lda + (l + SHIFT) % k]) *
                       from_half(((const uint16_t *)b)[(size_t)j * ldb + l]);
            uint16_t *to = (uint16_t *)c + (size_t)j * ldc + i;
            const float before = *(const float *)beta ? from_half(*to) : 0;
            *to = to_half(*(const float *)alpha * sum + *(const float *)beta * before);
        }
    return STATUS;
}

int nvmlInit_v2(void) { return STATUS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
    static int one;
    *device = &one;
    return strcmp(bus, "0000:3b:00.0") ? 6 : STATUS;
}
/* 250 W */
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    *millijoules = 250ull * (unsigned long long)(t.tv_sec % 100000 * 1000 + t.tv_nsec / 1000000);
    return device && !NO_COUNTER ? STATUS : 3;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    *milliwatts = 250000;
    return device ? STATUS : 2;
}
