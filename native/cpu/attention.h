/* Attention of several threads, each with a share of the keys, heads and tokens. */
#ifndef GWQ_ATTENTION_H
#define GWQ_ATTENTION_H
#include <stdatomic.h>
#include "matrix.h"

/* Numbers of a cache that share a scale, where there are scales */
enum { GWQ_CACHE_UNIT = sizeof((struct q8_0_block *)0)->code };

/* Bytes of `count` numbers of a cache, whole units of them if they have scales */
static inline int64_t gwq_cache_bytes(int type, int64_t count) {
    if (type == GWQ_TYPE_Q8_0) return count / GWQ_CACHE_UNIT * (int64_t)sizeof(struct q8_0_block);
    return type == GWQ_TYPE_F16 ? 2 * count : 4 * count;
}

enum {
    /* up to so many numbers of a head, keys of a prompt become floats once for many queries */
    GWQ_ATTENTION_HEAD = 256
};

/* Arguments of gwq_attention */
typedef struct gwq_attention_job {
    const float *q;
    const char *k, *v;
    int type; /* of the cache's numbers */
    int64_t n, start, heads, kv_heads, dim, window;
    float scale, softcap;
    float *out;
    float *parts; /* NULL, or gwq_attention_bytes of them */
    atomic_uint_fast64_t *taken; /* items that threads have begun, 0 at first; of a prompt */
} gwq_attention_job;

/* The positions that a token sees: `from` on, below `end` */
struct gwq_seen {
    int64_t from, end;
};

static inline struct gwq_seen gwq_seen_by(const gwq_attention_job *j, int64_t token) {
    int64_t end = j->start + token + 1;
    return (struct gwq_seen){j->window && end > j->window ? end - j->window : 0, end};
}

/* The rows of a key head are its group's queries, token by token: row r is head r % group of token
 * r / group. Returns which of j's (n, heads) queries that is. */
static inline int64_t gwq_query(const gwq_attention_job *j, int64_t kv_head, int64_t row) {
    const int64_t group = j->heads / j->kv_heads;
    return row / group * j->heads + kv_head * group + row % group;
}

/* Whether they can be: GWQ_E_ARGUMENT, GWQ_E_TYPE */
int gwq_attention_check(const gwq_attention_job *j);
/* Tasks, the second after all threads are done with the first: this thread's share */
void gwq_attention_share(void *p, int thread, int threads);
void gwq_attention_merge(void *p, int thread, int threads);
/* All of it, of more than GWQ_FEW tokens with heads of up to GWQ_ATTENTION_HEAD numbers */
void gwq_prompt_attention_share(void *p, int thread, int threads);
#endif
