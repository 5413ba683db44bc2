/* The memory roof, measured as gwq_export/bench/roof.py does. */
#ifndef GWQ_BENCH_ROOF_H
#define GWQ_BENCH_ROOF_H
#include "gwq.h"
#include "stats.h"

enum { ROOF_WAYS = 25, ROOF_ROUNDS = 3, ROOF_BEST = 3 };

struct roof {
    gwq_pool *pool;
    int threads;
    struct values rates[ROOF_WAYS]; /* GB/s of each way of reading */
    int best[ROOF_BEST];
};

int roof_streams(int way);
int roof_ahead(int way);

uint64_t working_set(void); /* bytes that are read in turn, so that no cache serves them */
/* The roof of so many threads, measured when it is first asked for; NULL: interrupted. */
struct roof *roof_of(int threads);
double roof_now(struct roof *r); /* the best rate at this moment, GB/s */
/* Those made so far: their number, and the i-th */
int roof_count(void);
const struct roof *roof_made(int i);

/* Timed runs of something that reads so many bytes, each with the roof before and after it */
struct beside {
    double bytes;
    struct values seconds, limits;
};
struct shares {
    double gbps, roof_gbps, of_roof; /* medians */
};
void beside_add(struct beside *b, double seconds, double before, double after);
struct shares beside_row(const struct beside *b);
#endif
