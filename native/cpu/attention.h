/* Attention of several threads, each with a share of the heads and tokens. */
#ifndef GWQ_ATTENTION_H
#define GWQ_ATTENTION_H
#include "gwq.h"

/* Arguments of gwq_attention */
typedef struct gwq_attention_job {
    const float *q;
    const char *k, *v;
    int type; /* of the cache's numbers */
    int64_t n, start, heads, kv_heads, dim, window;
    float scale, softcap;
    float *out;
} gwq_attention_job;

/* Whether they can be: GWQ_E_ARGUMENT, GWQ_E_TYPE */
int gwq_attention_check(const gwq_attention_job *j);
/* Task: this thread's share */
void gwq_attention_share(void *p, int thread, int threads);
#endif
