/* Attention of several threads, each with a share of the keys, heads and tokens. */
#ifndef GWQ_ATTENTION_H
#define GWQ_ATTENTION_H
#include "matrix.h"

/* Numbers of a cache that share a scale, where there are scales */
enum { GWQ_CACHE_UNIT = sizeof((struct q8_0_block *)0)->code };

/* Bytes of `count` numbers of a cache, whole units of them if they have scales */
static inline int64_t gwq_cache_bytes(int type, int64_t count) {
    if (type == GWQ_TYPE_Q8_0) return count / GWQ_CACHE_UNIT * (int64_t)sizeof(struct q8_0_block);
    return type == GWQ_TYPE_F16 ? 2 * count : 4 * count;
}

/* Arguments of gwq_attention */
typedef struct gwq_attention_job {
    const float *q;
    const char *k, *v;
    int type; /* of the cache's numbers */
    int64_t n, start, heads, kv_heads, dim, window;
    float scale, softcap;
    float *out;
    float *parts; /* NULL, or gwq_attention_bytes of them */
} gwq_attention_job;

/* Whether they can be: GWQ_E_ARGUMENT, GWQ_E_TYPE */
int gwq_attention_check(const gwq_attention_job *j);
/* Tasks, the second after all threads are done with the first: this thread's share */
void gwq_attention_share(void *p, int thread, int threads);
void gwq_attention_merge(void *p, int thread, int threads);
#endif
