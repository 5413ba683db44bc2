#include "roof.h"
#include <sys/mman.h>
#include <string.h>
#include "pages.h"
#include "say.h"

enum {
    WORKING_SET = 400 << 20,
    SPARE = 4, /* at most this part of the free memory */
    COUNTS = 16 /* of threads that have a roof */
};
static const int STREAMS[] = {1, 2, 3, 4, 8};
static const int DISTANCES[] = {0, 512, 1024, 2048, 4096}; /* bytes prefetched ahead */

static uint8_t *buffer;
static uint64_t size;
static struct roof made[COUNTS];
static int count;

int roof_streams(int way) { return STREAMS[way / 5]; }
int roof_ahead(int way) { return DISTANCES[way % 5]; }
int roof_count(void) { return count; }
const struct roof *roof_made(int i) { return made + i; }

uint64_t working_set(void) {
    enum { LEAST = 1 << 20 };
    const int64_t free = free_memory();
    if (free < 0 || free / SPARE > WORKING_SET) return WORKING_SET;
    return free / SPARE > LEAST ? (uint64_t)(free / SPARE) : LEAST;
}

static double take(struct roof *r, int way) {
    uint64_t sum;
    const int64_t start = now();
    const int status = gwq_read(r->pool, buffer, size, roof_streams(way), roof_ahead(way), &sum);
    if (status) die_of(status, "the memory roof");
    const double rate = (double)size / (double)(now() - start);
    values_add(&r->rates[way], rate);
    return rate;
}

/* The ROOF_BEST ways with the highest medians */
static void choose(struct roof *r) {
    for (int i = 0; i < ROOF_BEST; i++) {
        double most = -1;
        for (int way = 0; way < ROOF_WAYS; way++) {
            int taken = 0;
            for (int k = 0; k < i; k++) taken |= r->best[k] == way;
            const double rate = values_median(&r->rates[way]);
            if (taken || rate <= most) continue;
            most = rate;
            r->best[i] = way;
        }
    }
}

struct roof *roof_of(int threads) {
    for (int i = 0; i < count; i++)
        if (made[i].threads == threads) return made + i;
    if (count == COUNTS) die("-t: give at most %d thread counts", COUNTS);
    if (!buffer) {
        size = working_set();
        buffer = allocate((size + 4095) / 4096 * 4096);
        madvise(buffer, size, MADV_DONTFORK); /* no part of an engine's memory */
        memset(buffer, 1, size);              /* the system gives pages when they are written */
    }
    struct roof *r = made + count;
    r->threads = threads;
    const int status = gwq_pool_new(threads, &r->pool);
    if (status) die_of(status, "threads");
    for (int done = 0; done < ROOF_WAYS * ROOF_ROUNDS; done++) {
        progress("memory roof", done, ROOF_WAYS * ROOF_ROUNDS);
        if (interrupted) return NULL;
        take(r, done % ROOF_WAYS);
    }
    progress("memory roof", ROOF_WAYS * ROOF_ROUNDS, ROOF_WAYS * ROOF_ROUNDS);
    choose(r);
    count++;
    return r;
}

double roof_now(struct roof *r) {
    double most = 0;
    for (int i = 0; i < ROOF_BEST; i++) {
        const double rate = take(r, r->best[i]);
        most = rate > most ? rate : most;
    }
    return most;
}

void beside_add(struct beside *b, double seconds, double before, double after) {
    values_add(&b->seconds, seconds);
    values_add(&b->limits, (before + after) / 2);
}

struct shares beside_row(const struct beside *b) {
    struct values rates = {0}, shares = {0};
    for (int i = 0; i < b->seconds.count; i++) {
        const double rate = b->bytes / b->seconds.of[i] / 1e9;
        values_add(&rates, rate);
        values_add(&shares, rate / b->limits.of[i]);
    }
    const struct shares found = {values_median(&rates), values_median(&b->limits),
                                 values_median(&shares)};
    values_free(&rates);
    values_free(&shares);
    return found;
}
