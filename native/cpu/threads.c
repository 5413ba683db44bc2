/* The pool: the caller is thread 0; the others wait for the next task, spinning briefly and then
 * asleep. Several callers may share a pool: a run holds it from start to end. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include "threads.h"

enum {
    SPIN = 4000, /* pauses, about 20 us: longer than the gap between two ops of a token */
    MAX_THREADS = 256
};

struct gwq_pool {
    int threads;
    pthread_mutex_t caller; /* one run at a time */
    pthread_mutex_t lock;   /* guards sleeping and waking */
    pthread_cond_t wake, done, all_met;
    atomic_uint epoch;    /* number of the current run */
    atomic_int remaining; /* workers that have not finished it */
    atomic_int sleepers;
    atomic_int caller_sleeps;
    atomic_int stop;
    atomic_int met;           /* threads that have come to the current meeting */
    atomic_uint meetings;     /* that are over */
    atomic_int meeting_sleepers;
    gwq_task fn;
    void *arg;
    pthread_t ids[MAX_THREADS];
    int started;
};

struct start {
    gwq_pool *pool;
    int thread;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void *worker(void *p) {
    struct start s = *(struct start *)p;
    free(p);
    gwq_pool *pool = s.pool;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < SPIN; i++) {
            if (atomic_load_explicit(&pool->epoch, memory_order_acquire) != seen) break;
            pause_cpu();
        }
        if (atomic_load(&pool->epoch) == seen) {
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->sleepers, 1);
            while (atomic_load(&pool->epoch) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        seen++;
        if (atomic_load(&pool->stop)) return NULL;
        pool->fn(pool->arg, s.thread, pool->threads);
        if (atomic_fetch_sub(&pool->remaining, 1) == 1 && atomic_load(&pool->caller_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
    }
}

static void release_workers(gwq_pool *pool) {
    /* sequentially consistent: a worker that is about to sleep sees it */
    atomic_fetch_add(&pool->epoch, 1);
    if (atomic_load(&pool->sleepers)) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->lock);
    }
}

void gwq_pool_run(gwq_pool *pool, gwq_task fn, void *arg) {
    if (!pool || pool->threads == 1) {
        fn(arg, 0, 1);
        return;
    }
    pthread_mutex_lock(&pool->caller);
    pool->fn = fn;
    pool->arg = arg;
    atomic_store(&pool->remaining, pool->threads - 1);
    release_workers(pool);
    fn(arg, 0, pool->threads);
    for (int i = 0; i < SPIN; i++) {
        if (!atomic_load_explicit(&pool->remaining, memory_order_acquire)) break;
        pause_cpu();
    }
    if (atomic_load(&pool->remaining)) {
        pthread_mutex_lock(&pool->lock);
        atomic_store(&pool->caller_sleeps, 1);
        while (atomic_load(&pool->remaining)) pthread_cond_wait(&pool->done, &pool->lock);
        atomic_store(&pool->caller_sleeps, 0);
        pthread_mutex_unlock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->caller);
}

int gwq_pool_threads(const gwq_pool *pool) { return pool ? pool->threads : 1; }

void gwq_pool_meet(gwq_pool *pool) {
    if (!pool || pool->threads == 1) return;
    const unsigned meeting = atomic_load(&pool->meetings);
    if (atomic_fetch_add(&pool->met, 1) == pool->threads - 1) {
        atomic_store(&pool->met, 0);
        /* sequentially consistent: a thread that is about to sleep sees it */
        atomic_fetch_add(&pool->meetings, 1);
        if (atomic_load(&pool->meeting_sleepers)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_broadcast(&pool->all_met);
            pthread_mutex_unlock(&pool->lock);
        }
        return;
    }
    for (int i = 0; i < SPIN; i++) {
        if (atomic_load_explicit(&pool->meetings, memory_order_acquire) != meeting) return;
        pause_cpu();
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->meeting_sleepers, 1);
    while (atomic_load(&pool->meetings) == meeting)
        pthread_cond_wait(&pool->all_met, &pool->lock);
    atomic_fetch_sub(&pool->meeting_sleepers, 1);
    pthread_mutex_unlock(&pool->lock);
}

int gwq_pool_new(int threads, gwq_pool **out) {
    if (!out || threads < 1 || threads > MAX_THREADS) return GWQ_E_ARGUMENT;
    gwq_pool *pool = calloc(1, sizeof *pool);
    if (!pool) return GWQ_E_MEMORY;
    pool->threads = threads;
    pthread_mutex_init(&pool->caller, NULL);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    pthread_cond_init(&pool->all_met, NULL);
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    /* kernels use up to 100 KB, more than some systems give a thread */
    pthread_attr_setstacksize(&attr, 1 << 20);
    int status = GWQ_OK;
    for (int t = 1; t < threads && !status; t++) {
        struct start *s = malloc(sizeof *s);
        if (s) *s = (struct start){pool, t};
        if (!s || pthread_create(&pool->ids[t], &attr, worker, s)) {
            free(s);
            status = GWQ_E_MEMORY;
        } else {
            pool->started = t;
        }
    }
    pthread_attr_destroy(&attr);
    if (status) gwq_pool_free(pool);
    else *out = pool;
    return status;
}

void gwq_pool_free(gwq_pool *pool) {
    if (!pool) return;
    atomic_store(&pool->stop, 1);
    release_workers(pool);
    for (int t = 1; t <= pool->started; t++) pthread_join(pool->ids[t], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->done);
    pthread_cond_destroy(&pool->all_met);
    pthread_mutex_destroy(&pool->lock);
    pthread_mutex_destroy(&pool->caller);
    free(pool);
}
