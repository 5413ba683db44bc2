/* Causal attention over a KV cache, of few tokens; see prompt_attention.c for many.
 *
 * Their keys are cut into chunks, so that threads share them whatever the number of
 * heads. Of every chunk c and query there is in the end
 *
 *     m = largest score,   total = sum of exp(score - m),   sum = sum of exp(score - m) * v,
 *
 * and with M the largest of all m
 *
 *     out = sum over c of exp(m - M) * sum / sum over c of exp(m - M) * total.
 *
 * Where the cuts are depends on the positions alone, not on the threads. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "attention.h"
#include "kernels.h"
#include "threads.h"

enum {
    RUN = 8, /* keys at a time: so many that the next ones, for which to wait, arrive evenly */
    CHUNK = 128, /* keys of a chunk, at least */
    MOST_CHUNKS = GWQ_ATTENTION_CUT / CHUNK,
    /* what shares the keys of a run while they are in the cache, at most: key heads, and pieces of
     * GWQ_QUERIES rows of each */
    KEY_HEADS = 8,
    PIECES = 8,
    TOGETHER = 16 /* of both, multiplied */
};

/* How the keys are cut: `count` chunks of `keys` each, the first at `from` */
struct chunks {
    int64_t from, keys, count;
};

/* Cuts are at multiples of CHUNK times a power of two, the same for every token up to a position of
 * MOST_CHUNKS times that. */
static struct chunks cut(const gwq_attention_job *j) {
    const int64_t from = gwq_seen_by(j, 0).from, end = j->start + j->n;
    if (!j->parts) return (struct chunks){from / RUN * RUN, end - from / RUN * RUN, 1};
    int64_t keys = CHUNK;
    while (end > MOST_CHUNKS * keys) keys *= 2;
    const int64_t first = from / keys;
    return (struct chunks){first * keys, keys, (end + keys - 1) / keys - first};
}

/* What a query has of a chunk: m, total, then the sums (dim) */
static float *part(const gwq_attention_job *j, int64_t chunk, int64_t query) {
    return j->parts + (chunk * j->n * j->heads + query) * (j->dim + 2);
}

/* Up to GWQ_QUERIES query rows of a key head, on their way through the keys: row r is the group's
 * head r % group of token r / group. */
struct rows {
    const float *q[GWQ_QUERIES];
    float *out[GWQ_QUERIES];
    struct gwq_seen seen[GWQ_QUERIES];
    float most[GWQ_QUERIES], total[GWQ_QUERIES];
};

/* Rows of the key head; missing ones are copies of the first, before it, with weight 0: what is
 * stored last is the row itself. Sums go to `out` if chunk is below 0. */
static void begin(const gwq_attention_job *j, int64_t kv_head, int64_t first, int copies,
                  int64_t chunk, struct rows *r) {
    for (int i = 0; i < GWQ_QUERIES; i++) {
        const int64_t row = first + (i < copies ? 0 : i - copies);
        const int64_t token = row / (j->heads / j->kv_heads);
        const int64_t query = gwq_query(j, kv_head, row);
        r->q[i] = j->q + query * j->dim;
        r->out[i] = chunk < 0 ? j->out + query * j->dim : part(j, chunk, query) + 2;
        r->seen[i] = gwq_seen_by(j, token);
        r->most[i] = -FLT_MAX;
        r->total[i] = 0;
        if (i >= copies) memset(r->out[i], 0, (size_t)j->dim * sizeof *j->out);
    }
}

/* Scores as the model wants them, -INFINITY for keys that a query does not see; raises top[i] to
 * the largest. */
static void finish_scores(const gwq_attention_job *j, const struct gwq_seen *seen, int64_t at,
                          int keys, float (*s)[GWQ_QUERIES], float *top) {
    const gwq_kernels *kernels = gwq_in_use();
    float scale = j->scale;
    if (j->softcap > 0 || !(scale > 0)) { /* 0 times what is hidden would be no number */
        for (int n = 0; n < keys; n++)
            for (int i = 0; i < GWQ_QUERIES; i++) s[n][i] *= scale;
        if (j->softcap > 0)
            kernels->softcap(s[0], (int64_t)keys * GWQ_QUERIES, j->softcap);
        scale = 1;
    }
    for (int i = 0; i < GWQ_QUERIES; i++) {
        const int64_t hidden = seen[i].from - at, end = seen[i].end - at;
        for (int n = 0; n < hidden && n < keys; n++) s[n][i] = -INFINITY;
        for (int n = end > 0 ? (int)min64(end, keys) : 0; n < keys; n++) s[n][i] = -INFINITY;
    }
    kernels->largest(s, keys, scale, top);
}

/* Start loading `bytes` of `keys` positions that are `stride` bytes apart, into the second-level
 * cache: the first has no room for them. */
static void prefetch_keys(const char *p, int64_t bytes, int64_t stride, int64_t keys) {
    for (int64_t n = 0; n < keys; n++) {
        uintptr_t first = (uintptr_t)p + (uint64_t)(n * stride);
        for (uintptr_t line = first / 64 * 64; line < first + (uint64_t)bytes; line += 64)
            __builtin_prefetch((const void *)line, 0, 2);
    }
}

/* A run of keys, with a running maximum (online softmax): sums so far are multiplied by exp(m - m')
 * where the run raises m to m'. k, v: of the head at the run's first position. */
static void attend_run(const gwq_attention_job *j, struct rows *r, int copies, int64_t at, int keys,
                       const char *k, const char *v) {
    const gwq_kernels *kernels = gwq_in_use();
    const int64_t stride = j->kv_heads * j->dim;
    float s[RUN + 1][GWQ_QUERIES];
    float top[GWQ_QUERIES], sum[GWQ_QUERIES];
    kernels->scores(r->q, k, j->type, stride, keys, j->dim, s);
    memcpy(top, r->most, sizeof top);
    finish_scores(j, r->seen, at, keys, s, top);
    for (int i = copies; i < GWQ_QUERIES; i++) {
        if (top[i] == r->most[i]) continue;
        const float shrink = expf(r->most[i] - top[i]);
        float *out = r->out[i]; /* by itself, so that the loop becomes one of vectors */
        const int64_t dim = j->dim;
        r->total[i] *= shrink;
        for (int64_t d = 0; d < dim; d++) out[d] *= shrink;
    }
    memcpy(r->most, top, sizeof top);
    kernels->exponents(s, keys, r->most, sum);
    for (int i = 0; i < GWQ_QUERIES; i++) r->total[i] += sum[i];
    for (int n = 0; copies && n < keys; n++)
        for (int i = 0; i < copies; i++) s[n][i] = 0;
    kernels->mix((const float(*)[GWQ_QUERIES])s, v, j->type, stride, keys, j->dim, r->out);
}

/* Store what the rows have: sums of a chunk, or the result */
static void finish(const gwq_attention_job *j, const struct rows *r, int copies, int64_t chunk) {
    for (int i = copies; i < GWQ_QUERIES; i++) {
        if (chunk >= 0) {
            r->out[i][-2] = r->most[i];
            r->out[i][-1] = r->total[i];
        } else {
            for (int64_t d = 0; d < j->dim; d++) r->out[i][d] /= r->total[i];
        }
    }
}

/* What one thread does at a time: the pieces first .. first+pieces-1 of the key heads kv ..
 * kv+kvs-1, over one chunk. */
struct item {
    int64_t chunk, kv, first;
    int kvs, pieces;
};

/* Runs start at multiples of their length, so a row's sums do not depend on its company. */
static void attend(const gwq_attention_job *j, const struct chunks *c, const struct item *o) {
    const int64_t all = j->n * (j->heads / j->kv_heads); /* rows of a key head */
    const int64_t head = gwq_cache_bytes(j->type, j->dim);
    const int64_t position = gwq_cache_bytes(j->type, j->kv_heads * j->dim);
    const int64_t chunk = c->count > 1 ? o->chunk : -1;
    struct rows r[TOGETHER];
    int copies[PIECES];
    for (int i = 0; i < o->pieces; i++) {
        const int64_t row = (o->first + i) * GWQ_QUERIES;
        copies[i] = GWQ_QUERIES - (int)min64(GWQ_QUERIES, all - row);
        for (int h = 0; h < o->kvs; h++)
            begin(j, o->kv + h, row, copies[i], chunk, &r[h * o->pieces + i]);
    }
    const int64_t from = r->seen[0].from / RUN * RUN;
    const int64_t end = r[o->pieces - 1].seen[GWQ_QUERIES - 1].end;
    const int64_t last = min64(c->from + (o->chunk + 1) * c->keys, end);
    int64_t at = c->from + o->chunk * c->keys;
    at = from > at ? from : at;
    const char *k = j->k + o->kv * head + at * position, *v = j->v + o->kv * head + at * position;
    for (; at < last; at += RUN, k += RUN * position, v += RUN * position) {
        const int keys = (int)min64(last - at, RUN);
        const int64_t next = min64(last - at - RUN, RUN);
        prefetch_keys(v, o->kvs * head, position, keys);
        prefetch_keys(k + RUN * position, o->kvs * head, position, next);
        for (int h = 0; h < o->kvs; h++)
            for (int i = 0; i < o->pieces; i++)
                attend_run(j, &r[h * o->pieces + i], copies[i], at, keys, k + h * head,
                           v + h * head);
    }
    for (int h = 0; h < o->kvs; h++)
        for (int i = 0; i < o->pieces; i++) finish(j, &r[h * o->pieces + i], copies[i], chunk);
}

void gwq_attention_share(void *p, int thread, int threads) {
    const gwq_attention_job *j = p;
    const struct chunks c = cut(j);
    const int64_t rows = j->n * (j->heads / j->kv_heads); /* of a key head */
    const int64_t pieces = (rows + GWQ_QUERIES - 1) / GWQ_QUERIES;
    /* pieces and key heads of an item: as leave work for all threads */
    const int64_t together = min64(pieces, PIECES);
    int64_t kvs = (c.count * j->kv_heads + threads - 1) / threads;
    kvs = min64(min64(kvs, min64(KEY_HEADS, TOGETHER / together)), j->kv_heads);
    const int64_t blocks = (j->kv_heads + kvs - 1) / kvs;
    const int64_t batches = (pieces + together - 1) / together;
    for (int64_t i = thread; i < batches * blocks * c.count; i += threads) { /* later see more */
        struct item o = {
            .chunk = i % c.count,
            .kv = i / c.count % blocks * kvs,
            .first = i / (blocks * c.count) * together,
        };
        o.kvs = (int)min64(kvs, j->kv_heads - o.kv);
        o.pieces = (int)min64(together, pieces - o.first);
        attend(j, &c, &o);
    }
}

void gwq_attention_merge(void *p, int thread, int threads) {
    const gwq_attention_job *j = p;
    const struct chunks c = cut(j);
    if (c.count == 1) return;
    const int64_t end = gwq_share(j->n * j->heads, thread + 1, threads);
    for (int64_t query = gwq_share(j->n * j->heads, thread, threads); query < end; query++) {
        float *out = j->out + query * j->dim;
        float most = -FLT_MAX, total = 0;
        for (int64_t k = 0; k < c.count; k++) most = fmaxf(most, part(j, k, query)[0]);
        memset(out, 0, (size_t)j->dim * sizeof *out);
        for (int64_t k = 0; k < c.count; k++) {
            const float *of = part(j, k, query);
            const float weight = expf(of[0] - most);
            total += weight * of[1];
            for (int64_t d = 0; d < j->dim; d++) out[d] += weight * of[2 + d];
        }
        for (int64_t d = 0; d < j->dim; d++) out[d] /= total;
    }
}

int gwq_attention_check(const gwq_attention_job *j) {
    if (!j->q || !j->k || !j->v || !j->out || j->n < 1 || j->start < 0 || j->dim < 1)
        return GWQ_E_ARGUMENT;
    if (j->window < 0 || j->kv_heads < 1 || j->heads < j->kv_heads || j->heads % j->kv_heads)
        return GWQ_E_ARGUMENT;
    const int plain = j->type == GWQ_TYPE_F16 || j->type == GWQ_TYPE_F32;
    const int codes = j->type == GWQ_TYPE_Q8_0 && j->dim % GWQ_CACHE_UNIT == 0;
    return plain || codes ? GWQ_OK : GWQ_E_TYPE;
}

uint64_t gwq_attention_bytes(int64_t n, int64_t heads, int64_t dim) {
    if (n < 1 || n > GWQ_FEW || heads < 1 || heads > 65536 || dim < 1 || dim > 65536) return 0;
    return (uint64_t)(MOST_CHUNKS * n * heads * (dim + 2)) * sizeof(float);
}

int gwq_attention(gwq_pool *pool, const float *q, const void *k, const void *v, int type, int64_t n,
                  int64_t start, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                  float softcap, int64_t window, float *out, void *scratch) {
    gwq_attention_job j = {
        .q = q,
        .k = k,
        .v = v,
        .type = type,
        .n = n,
        .start = start,
        .heads = heads,
        .kv_heads = kv_heads,
        .dim = dim,
        .window = window,
        .scale = scale,
        .softcap = softcap,
        .out = out,
        .parts = n <= GWQ_FEW ? scratch : NULL,
    };
    int status = gwq_attention_check(&j);
    if (status) return status;
    if (n > GWQ_FEW && dim <= GWQ_ATTENTION_HEAD) {
        atomic_uint_fast64_t taken = 0;
        j.taken = &taken;
        gwq_pool_run(pool, gwq_prompt_attention_share, &j);
        return GWQ_OK;
    }
    gwq_pool_run(pool, gwq_attention_share, &j);
    gwq_attention_merge(&j, 0, 1);
    return GWQ_OK;
}
