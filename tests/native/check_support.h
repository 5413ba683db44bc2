/* What kernels_check.c and ops_check.c share: random numbers, memory whose end is guarded, and the
 * count of what failed. */
#ifndef CHECK_SUPPORT_H
#define CHECK_SUPPORT_H
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "cpu/kernels.h"

static int failures;

#define FAIL(...)                                  \
    do {                                           \
        if (failures++ < 20) {                     \
            printf("%s: ", gwq_isa());             \
            printf(__VA_ARGS__);                   \
            printf("\n");                          \
        }                                          \
    } while (0)

/* Marsaglia's xorshift64 */
static uint64_t seed = 88172645463325252u;
static inline uint64_t next_random(void) {
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}
static inline int below(int n) { return (int)(next_random() >> 33) % n; }
static inline float uniform(void) { return (float)(below(1 << 20) - (1 << 19)) * 0x1p-19f; }
/* Of variance 1, nearly normal */
static inline float normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum / 2;
}

/* Memory that ends where an inaccessible page begins: one byte beyond it is a crash. */
static inline void *guarded(size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    uint8_t *p = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p + room, page, PROT_NONE)) exit(9);
    return p + room - bytes;
}
static inline void release(void *p, size_t bytes) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + page - 1) / page * page;
    munmap((uint8_t *)p + bytes - room, room + page);
}
static inline float *floats(int64_t count) { return guarded(sizeof(float) * (size_t)count); }
static inline float *normals(int64_t count) {
    float *x = floats(count);
    for (int64_t i = 0; i < count; i++) x[i] = normal();
    return x;
}
static inline float *copy_of(const float *x, int64_t count) {
    return memcpy(floats(count), x, sizeof *x * (size_t)count);
}

static inline void same_bits(const void *a, const void *b, size_t bytes, const char *what) {
    if (memcmp(a, b, bytes)) FAIL("%s: other bits", what);
}

/* |a - b| <= relative * |b| + absolute; a NaN equals a NaN */
static inline void close_to(const float *a, const float *b, int64_t count, float relative,
                            float absolute, const char *what) {
    for (int64_t i = 0; i < count; i++) {
        if (a[i] == b[i] || (isnan(a[i]) && isnan(b[i]))) continue;
        if (!(fabsf(a[i] - b[i]) <= relative * fabsf(b[i]) + absolute)) {
            FAIL("%s: number %d is %.9g, not %.9g", what, (int)i, a[i], b[i]);
            return;
        }
    }
}

/* How this CPU rounds and what it makes of NaN and subnormal numbers where nobody has asked for
 * anything: 0 is what IEEE 754 says */
static inline unsigned long float_control(void) {
    unsigned long value = 0;
#ifdef __aarch64__
    __asm__("mrs %0, fpcr" : "=r"(value));
#endif
    return value;
}

/* The names of the rows that this machine has, on one line, and the best one */
static inline void print_rows(void) {
    printf("rows:");
    for (int i = 0; gwq_isa_name(i); i++)
        if (gwq_isa_supported(i)) printf(" %s", gwq_isa_name(i));
    gwq_isa_select(NULL);
    printf("; chosen: %s; float control: %lu\n", gwq_isa(), float_control());
}

/* for each row but the scalar one, selected */
#define EACH_ROW(i)                        \
    for (int i = 1; gwq_isa_name(i); i++)  \
        if (gwq_isa_supported(i) && !gwq_isa_select(gwq_isa_name(i)))
#endif
