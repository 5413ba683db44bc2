/* The KV cache, and causal attention over it. */
#include <float.h>
#include <math.h>
#include <string.h>
#include "attention.h"
#include "kernels.h"
#include "threads.h"

/* --- numbers of a cache ----------------------------------------------------------------------- */

enum { UNIT = sizeof((struct q8_0_block *)0)->code }; /* numbers of a cache that share a scale */

/* Bytes of `count` numbers of a cache, whole units of them if they have scales */
static int64_t cache_bytes(int type, int64_t count) {
    if (type == GWQ_TYPE_Q8_0) return count / UNIT * (int64_t)sizeof(struct q8_0_block);
    return type == GWQ_TYPE_F16 ? 2 * count : 4 * count;
}

/* The largest magnitude gets the code 127, or -127. A NaN makes the scale NaN, so that it is not
 * lost. */
static void to_q8_0(const float *x, struct q8_0_block *out) {
    float most = 0, sum = 0;
    for (int i = 0; i < UNIT; i++) {
        float a = fabsf(x[i]);
        most = a > most ? a : most;
        sum += a;
    }
    most = most < 127 * 65504.f ? most : 127 * 65504.f;
    float scale = sum == sum ? most / 127 : sum;
    float inverse = most > 0 ? 127 / most : 0;
    gwq_in_use()->to_halves(&scale, 1, &out->scale);
    for (int i = 0; i < UNIT; i++) {
        float v = x[i] * inverse;
        out->code[i] = (int8_t)rintf(v > -127 ? v < 127 ? v : 127 : -127);
    }
}

int gwq_cache(const float *x, int64_t count, int type, void *cache, int64_t first) {
    if (count < 0 || first < 0 || (count && (!x || !cache))) return GWQ_E_ARGUMENT;
    switch (type) {
    case GWQ_TYPE_F16:
        gwq_in_use()->to_halves(x, count, (uint16_t *)cache + first);
        return GWQ_OK;
    case GWQ_TYPE_F32:
        if (count) memcpy((float *)cache + first, x, (size_t)count * sizeof *x);
        return GWQ_OK;
    case GWQ_TYPE_Q8_0:
        if (count % UNIT || first % UNIT) return GWQ_E_ARGUMENT;
        for (int64_t i = 0; i < count / UNIT; i++)
            to_q8_0(x + i * UNIT, (struct q8_0_block *)cache + first / UNIT + i);
        return GWQ_OK;
    default:
        return GWQ_E_TYPE;
    }
}

/* --- attention -------------------------------------------------------------------------------- */

enum { RUN = 32 }; /* keys at a time */

/* The positions that a token sees: `from` on, below `end` */
struct range {
    int64_t from, end;
};

static struct range seen(const gwq_attention_job *j, int64_t token) {
    int64_t end = j->start + token + 1;
    return (struct range){j->window && end > j->window ? end - j->window : 0, end};
}

/* Scores as the model wants them, -INFINITY for keys that a query does not see; raises top[i] to
 * the largest. */
static void finish_scores(const gwq_attention_job *j, const struct range *r, int64_t at,
                          int keys, float (*s)[GWQ_QUERIES], float *top) {
    for (int n = 0; n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) s[n][i] *= j->scale;
    if (j->softcap > 0) gwq_in_use()->softcap(s[0], (int64_t)keys * GWQ_QUERIES, j->softcap);
    for (int n = 0; n < keys; n++)
        for (int i = 0; i < GWQ_QUERIES; i++) {
            float x = s[n][i];
            x = at + n >= r[i].from && at + n < r[i].end ? x : -INFINITY;
            top[i] = x > top[i] ? x : top[i];
            s[n][i] = x;
        }
}

/* Start loading a head's part of `keys` positions, `stride` bytes apart: too far for a processor to
 * foresee the next. Only for one token: several find most of it in the cache. */
static void prefetch_keys(const char *p, int64_t bytes, int64_t stride, int keys) {
    for (int n = 0; n < keys; n++) {
        uintptr_t first = (uintptr_t)p + (uint64_t)(n * stride);
        for (uintptr_t line = first / 64 * 64; line < first + (uint64_t)bytes; line += 64)
            __builtin_prefetch((const void *)line);
    }
}

/* Up to GWQ_QUERIES query rows of a key head: row r is the group's head r % group of token r /
 * group.
 *
 * Keys come in runs with a running maximum (online softmax): with m the largest score so far,
 *
 *     total = sum of exp(score - m),   out = sum of exp(score - m) * v,
 *
 * and both are multiplied by exp(m - m') when a run raises m to m'. At the end out /= total. Runs
 * start at multiples of RUN, so a row's sums do not depend on its company. */
static void attend(const gwq_attention_job *j, int64_t kv_head, int64_t first, int rows) {
    const gwq_kernels *kernels = gwq_in_use();
    const int64_t group = j->heads / j->kv_heads;
    const int64_t stride = j->kv_heads * j->dim;
    const char *k = j->k + cache_bytes(j->type, kv_head * j->dim);
    const char *v = j->v + cache_bytes(j->type, kv_head * j->dim);
    const int64_t part = cache_bytes(j->type, j->dim); /* bytes of a head */
    const int64_t step = cache_bytes(j->type, stride); /* bytes of a position */
    const float *q[GWQ_QUERIES];
    float *out[GWQ_QUERIES];
    float s[RUN + 1][GWQ_QUERIES];
    float most[GWQ_QUERIES], total[GWQ_QUERIES] = {0}, sum[GWQ_QUERIES];
    struct range r[GWQ_QUERIES];
    /* Missing rows are copies of the first, before it, with weight 0: what is stored last is the
     * row itself. */
    const int copies = GWQ_QUERIES - rows;
    for (int i = 0; i < GWQ_QUERIES; i++) {
        int64_t row = first + (i < copies ? 0 : i - copies);
        int64_t token = row / group;
        q[i] = j->q + (token * j->heads + kv_head * group + row % group) * j->dim;
        out[i] = j->out + (q[i] - j->q);
        r[i] = seen(j, token);
        most[i] = -FLT_MAX;
    }
    const int64_t end = r[GWQ_QUERIES - 1].end;
    for (int i = copies; i < GWQ_QUERIES; i++) memset(out[i], 0, (size_t)j->dim * sizeof **out);
    for (int64_t at = r[0].from / RUN * RUN; at < end; at += RUN) {
        int64_t left = end - at;
        int keys = (int)min64(left, RUN);
        int next = (int)min64(left - keys, RUN); /* keys of the next run */
        float top[GWQ_QUERIES];
        if (j->n == 1) prefetch_keys(v + at * step, part, step, keys);
        kernels->scores(q, k + at * step, j->type, stride, keys, j->dim, s);
        memcpy(top, most, sizeof top);
        finish_scores(j, r, at, keys, s, top);
        for (int i = copies; i < GWQ_QUERIES; i++) {
            float shrink = expf(most[i] - top[i]);
            if (shrink == 1) continue;
            total[i] *= shrink;
            for (int64_t d = 0; d < j->dim; d++) out[i][d] *= shrink;
        }
        memcpy(most, top, sizeof most);
        kernels->exponents(s, keys, most, sum);
        for (int i = 0; i < GWQ_QUERIES; i++) total[i] += sum[i];
        for (int n = 0; copies && n < keys; n++)
            for (int i = 0; i < copies; i++) s[n][i] = 0;
        if (j->n == 1) prefetch_keys(k + (at + RUN) * step, part, step, next);
        kernels->mix((const float(*)[GWQ_QUERIES])s, v + at * step, j->type, stride, keys, j->dim,
                     out);
    }
    for (int i = copies; i < GWQ_QUERIES; i++)
        for (int64_t d = 0; d < j->dim; d++) out[i][d] /= total[i];
}

void gwq_attention_share(void *p, int thread, int threads) {
    const gwq_attention_job *j = p;
    const int64_t rows = j->n * (j->heads / j->kv_heads); /* of a key head */
    const int64_t pieces = (rows + GWQ_QUERIES - 1) / GWQ_QUERIES;
    for (int64_t i = thread; i < pieces * j->kv_heads; i += threads) { /* later tokens see more */
        int64_t first = i / j->kv_heads * GWQ_QUERIES;
        attend(j, i % j->kv_heads, first, (int)min64(GWQ_QUERIES, rows - first));
    }
}

int gwq_attention_check(const gwq_attention_job *j) {
    if (!j->q || !j->k || !j->v || !j->out || j->n < 1 || j->start < 0 || j->dim < 1)
        return GWQ_E_ARGUMENT;
    if (j->window < 0 || j->kv_heads < 1 || j->heads < j->kv_heads || j->heads % j->kv_heads)
        return GWQ_E_ARGUMENT;
    const int plain = j->type == GWQ_TYPE_F16 || j->type == GWQ_TYPE_F32;
    return plain || (j->type == GWQ_TYPE_Q8_0 && j->dim % UNIT == 0) ? GWQ_OK : GWQ_E_TYPE;
}

int gwq_attention(gwq_pool *pool, const float *q, const void *k, const void *v, int type, int64_t n,
                  int64_t start, int64_t heads, int64_t kv_heads, int64_t dim, float scale,
                  float softcap, int64_t window, float *out) {
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
    };
    int status = gwq_attention_check(&j);
    if (!status) gwq_pool_run(pool, gwq_attention_share, &j);
    return status;
}
