/* Causal attention over the KV cache. */
#include <math.h>
#include <string.h>
#include "kernels.h"

struct attention_job {
    const float *q, *k, *v;
    int64_t n, start, heads, kv_heads, dim, window;
    float scale, softcap, *out;
};

/* One query head: keys in runs of 32 with a running maximum (online softmax), so no score buffer is needed. */
static void attend(const struct attention_job *j, int64_t token, int64_t head) {
    enum { RUN = 32 };
    int64_t end = j->start + token + 1, first = j->window && end > j->window ? end - j->window : 0;
    int64_t stride = j->kv_heads * j->dim, offset = head / (j->heads / j->kv_heads) * j->dim;
    const float *q = j->q + (token * j->heads + head) * j->dim;
    float *out = j->out + (token * j->heads + head) * j->dim, most = -INFINITY, total = 0, score[RUN];
    memset(out, 0, (size_t)j->dim * sizeof *out);
    for (int64_t at = first; at < end; at += RUN) {
        int run = (int)(end - at < RUN ? end - at : RUN);
        float top = most;
        for (int i = 0; i < run; i++) {
            score[i] = j->scale * gwq_in_use()->dot(q, j->k + (at + i) * stride + offset, j->dim);
            if (j->softcap > 0) score[i] = j->softcap * tanhf(score[i] / j->softcap);
            if (score[i] > top) top = score[i];
        }
        if (top > most) { /* what was summed so far was relative to the old maximum */
            float shrink = expf(most - top);
            total *= shrink;
            for (int64_t d = 0; d < j->dim; d++) out[d] *= shrink;
            most = top;
        }
        for (int i = 0; i < run; i++) {
            float p = expf(score[i] - most);
            total += p;
            gwq_in_use()->axpy(p, j->v + (at + i) * stride + offset, j->dim, out);
        }
    }
    for (int64_t d = 0; d < j->dim; d++) out[d] /= total;
}

static void attention_task(void *p, int thread, int threads) {
    const struct attention_job *j = p;
    /* tokens in turn: later ones see more keys */
    for (int64_t i = thread; i < j->n * j->heads; i += threads) attend(j, i % j->n, i / j->n);
}

int gwq_attention(gwq_pool *pool, const float *q, const float *k, const float *v, int64_t n, int64_t start,
                  int64_t heads, int64_t kv_heads, int64_t dim, float scale, float softcap, int64_t window, float *out) {
    if (!q || !k || !v || !out || n < 1 || start < 0 || kv_heads < 1 || heads < kv_heads || heads % kv_heads || dim < 1 || window < 0)
        return GWQ_E_ARGUMENT;
    struct attention_job j = {q, k, v, n, start, heads, kv_heads, dim, window, scale, softcap, out};
    gwq_pool_run(pool, attention_task, &j);
    return GWQ_OK;
}
