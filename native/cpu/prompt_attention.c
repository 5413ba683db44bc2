/* Attention of many tokens: keys and values become floats once for many queries.
 *
 * A block of keys meets GWQ_MANY queries of a key head at a time, a panel. Of every query there is
 * so far
 *
 *     most = largest score,   total = sum of exp(score - most),   sum = sum of exp(score - most) *
 * v
 *
 * (online softmax). Blocks begin at multiples of their length and add to a query's sums in order,
 * so what a query gets does not depend on its company. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "attention.h"
#include "kernels.h"
#include "threads.h"

enum {
    KEYS = 32, /* of a block */
    TILE = 8,  /* keys whose products take no longer than those of fewer */
    PANELS = 4, /* that share a block, at most */
    FLOATS = GWQ_ATTENTION_HEAD * GWQ_MANY, /* of all of these, (dim, GWQ_MANY) */
    ITEMS = 6 /* for each thread, at least, as far as panels go: threads take them in turns */
};

/* GWQ_MANY rows of a key head, on their way through the keys; those beyond the last are zeros. */
struct panel {
    int64_t row; /* the first */
    int rows;
    struct gwq_seen first, last; /* what its first token sees, and its last one */
    float (*q)[GWQ_MANY];   /* (dim, GWQ_MANY), scaled */
    float (*sum)[GWQ_MANY]; /* the same */
    float most[GWQ_MANY], total[GWQ_MANY];
};

/* What a thread computes with */
struct space {
    float k[KEYS * GWQ_ATTENTION_HEAD], v[KEYS * GWQ_ATTENTION_HEAD]; /* (KEYS, dim) */
    float q[FLOATS], sum[FLOATS];
    float s[KEYS][GWQ_MANY];
};

static void begin(const gwq_attention_job *j, int64_t kv_head, struct panel *p, float *rows) {
    const int64_t group = j->heads / j->kv_heads;
    p->first = gwq_seen_by(j, p->row / group);
    p->last = gwq_seen_by(j, (p->row + p->rows - 1) / group);
    for (int i = 0; i < p->rows; i++) {
        const float *q = j->q + gwq_query(j, kv_head, p->row + i) * j->dim;
        for (int64_t d = 0; d < j->dim; d++) rows[i * j->dim + d] = j->scale * q[d];
    }
    gwq_in_use()->panel(rows, j->dim, p->rows, j->dim, GWQ_MANY, p->q[0]);
    memset(p->sum, 0, sizeof *p->sum * (size_t)j->dim);
    for (int i = 0; i < GWQ_MANY; i++) {
        p->most[i] = -FLT_MAX;
        p->total[i] = 0;
    }
}

/* Scores of keys from position `at` on that a row does not see become -INFINITY. */
static void hide(const gwq_attention_job *j, const struct panel *p, int64_t at, int keys,
                 float (*s)[GWQ_MANY]) {
    const int64_t group = j->heads / j->kv_heads;
    if (p->last.from <= at && at + keys <= p->first.end) return;
    for (int i = 0; i < p->rows; i++) {
        const struct gwq_seen seen = gwq_seen_by(j, (p->row + i) / group);
        for (int n = 0; n < keys && n < seen.from - at; n++) s[n][i] = -INFINITY;
        for (int n = seen.end > at ? (int)min64(seen.end - at, keys) : 0; n < keys; n++)
            s[n][i] = -INFINITY;
    }
}

/* A block of keys for a panel */
static void attend(const gwq_attention_job *j, struct panel *p, int64_t at, int keys,
                   struct space *w) {
    const gwq_kernels *kernels = gwq_in_use();
    float shrink[GWQ_MANY];
    if (at + keys <= p->first.from || at >= p->last.end) return;
    keys = (int)min64(keys, p->last.end - at);
    kernels->products(w->k, j->dim, 1, (keys + TILE - 1) / TILE * TILE, j->dim,
                      p->rows, (const float(*)[GWQ_MANY])p->q, NULL, w->s);
    if (j->softcap > 0) kernels->softcap(w->s[0], (int64_t)keys * GWQ_MANY, j->softcap);
    hide(j, p, at, keys, w->s);
    kernels->weigh(w->s, keys, p->rows, p->most, p->total, shrink);
    kernels->products(w->v, 1, j->dim, j->dim, keys, p->rows,
                      (const float(*)[GWQ_MANY])w->s, shrink, p->sum);
}

/* Store sum / total; rows: room for (GWQ_MANY, dim rounded up to 16) floats */
static void finish(const gwq_attention_job *j, int64_t kv_head, const struct panel *p,
                   float *rows) {
    const int64_t width = (j->dim + 15) / 16 * 16;
    gwq_in_use()->panel(p->sum[0], GWQ_MANY, (int)j->dim, GWQ_MANY, (int)width, rows);
    for (int i = 0; i < p->rows; i++) {
        float *out = j->out + gwq_query(j, kv_head, p->row + i) * j->dim;
        const float *sum = rows + i * width;
        for (int64_t d = 0; d < j->dim; d++) out[d] = sum[d] / p->total[i];
    }
}

/* The panels that begin at row `first` of a key head, `count` of them */
static void attend_panels(const gwq_attention_job *j, int64_t kv_head, int64_t first, int count,
                          struct space *w) {
    const int64_t all = j->n * (j->heads / j->kv_heads);
    struct panel p[PANELS];
    for (int i = 0; i < count; i++) {
        p[i].row = first + i * GWQ_MANY;
        p[i].rows = (int)min64(GWQ_MANY, all - p[i].row);
        p[i].q = (float(*)[GWQ_MANY])(w->q + i * j->dim * GWQ_MANY);
        p[i].sum = (float(*)[GWQ_MANY])(w->sum + i * j->dim * GWQ_MANY);
        begin(j, kv_head, p + i, w->k);
    }
    const int64_t end = p[count - 1].last.end;
    for (int64_t at = p[0].first.from / KEYS * KEYS; at < end; at += KEYS) {
        const int keys = (int)min64(KEYS, end - at);
        for (int n = 0; n < keys; n++) {
            const int64_t number = ((at + n) * j->kv_heads + kv_head) * j->dim;
            gwq_in_use()->from_cache(j->k, j->type, number, j->dim, w->k + n * j->dim);
            gwq_in_use()->from_cache(j->v, j->type, number, j->dim, w->v + n * j->dim);
        }
        if (keys < KEYS) /* up to whole tiles */
            memset(w->k + keys * j->dim, 0, sizeof *w->k * (size_t)((KEYS - keys) * j->dim));
        for (int i = 0; i < count; i++) attend(j, p + i, at, keys, w);
    }
    for (int i = 0; i < count; i++) finish(j, kv_head, p + i, w->k);
}

void gwq_prompt_attention_share(void *arg, int thread, int threads) {
    (void)thread;
    _Alignas(64) struct space w;
    const gwq_attention_job *j = arg;
    const int64_t rows = j->n * (j->heads / j->kv_heads); /* of a key head */
    const int64_t panels = (rows + GWQ_MANY - 1) / GWQ_MANY;
    int64_t together = min64(PANELS, GWQ_ATTENTION_HEAD / j->dim);
    while (together > 1 && panels * j->kv_heads < ITEMS * threads * together) together--;
    const int64_t batches = (panels + together - 1) / together;
    for (;;) {
        const int64_t i = (int64_t)atomic_fetch_add(j->taken, 1);
        if (i >= batches * j->kv_heads) return;
        const int64_t first = (batches - 1 - i / j->kv_heads) * together; /* later ones see more */
        attend_panels(j, i % j->kv_heads, first * GWQ_MANY,
                      (int)min64(together, panels - first), &w);
    }
}
