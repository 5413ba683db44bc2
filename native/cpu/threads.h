/* Tasks on the threads of a pool. */
#ifndef GWQ_THREADS_H
#define GWQ_THREADS_H
#include "gwq.h"

typedef void (*gwq_task)(void *arg, int thread, int threads);

/* Run fn(arg, thread, threads) on every thread of the pool and wait; NULL: on the caller alone. */
void gwq_pool_run(gwq_pool *pool, gwq_task fn, void *arg);

int gwq_pool_threads(const gwq_pool *pool);

/* Within a run, by all its threads: wait until the last of them has come. */
void gwq_pool_meet(gwq_pool *pool);

/* The first of `count` things that are this thread's share; the next thread's first is its end. */
static inline int64_t gwq_share(int64_t count, int thread, int threads) {
    return count * thread / threads;
}
#endif
