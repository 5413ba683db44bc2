/* gwq_encode: checks, and the split over the pool. */
#include <math.h>
#include "encode.h"
#include "threads.h"

static void encode_task(void *arg, int thread, int threads) {
    const gwq_encoding *e = arg;
    int64_t count = e->rings / LANES;
    int64_t end = gwq_share(count, thread + 1, threads);
    for (int64_t i = gwq_share(count, thread, threads); i < end; i++)
        gwq_in_use()->encode(e, i * LANES, (i + 1) * LANES);
}

int gwq_encode(gwq_pool *pool, const gwq_encoding *e) {
    if (!e || !e->table || !e->row_scale || !e->row_weight) return GWQ_E_ARGUMENT;
    if (!e->target || !e->scale || !e->code || !e->value) return GWQ_E_ARGUMENT;
    if (e->fit && !e->column_weight) return GWQ_E_ARGUMENT;
    int bits = bits_of(e->type);
    if (!bits) return GWQ_E_TYPE;
    if (e->columns < 1 || e->columns > COLUMNS) return GWQ_E_SHAPE;
    if (e->rings < 1 || e->rings % LANES || e->rings > INT32_MAX) return GWQ_E_SHAPE;
    for (int v = 0; v < entries_of(bits); v++)
        if (!(fabsf(e->table[v]) <= 128)) return GWQ_E_TABLE;
    gwq_pool_run(pool, encode_task, (void *)e);
    return GWQ_OK;
}
