/* gwq_encode: checks, and the split over the pool. */
#include <math.h>
#include "encode.h"
#include "threads.h"

static void encode_task(void *arg, int thread, int threads) {
    const gwq_encoding *e = arg;
    const int64_t together = LANES * VECTORS;
    int64_t before = e->first / together, count = e->last / together - before;
    int64_t end = before + gwq_share(count, thread + 1, threads);
    for (int64_t i = before + gwq_share(count, thread, threads); i < end; i++)
        gwq_in_use()->encode(e, i * together, (i + 1) * together);
}

int gwq_encode(gwq_pool *pool, const gwq_encoding *e) {
    if (!e || !e->table || !e->row_scale || !e->row_weight) return GWQ_E_ARGUMENT;
    if (!e->target || !e->scale || !e->code || !e->value) return GWQ_E_ARGUMENT;
    if (e->fit && !e->column_weight) return GWQ_E_ARGUMENT;
    int bits = bits_of(e->type);
    if (!bits) return GWQ_E_TYPE;
    if (e->columns < 1 || e->columns > COLUMNS) return GWQ_E_SHAPE;
    if (e->columns % unit_of(bits)) return GWQ_E_SHAPE;
    if (e->rows < 1 || e->rows % (LANES * VECTORS) || e->rows > INT32_MAX) return GWQ_E_SHAPE;
    if (e->first < 0 || e->first >= e->last || e->last > e->rows) return GWQ_E_SHAPE;
    if (e->first % (LANES * VECTORS) || e->last % (LANES * VECTORS)) return GWQ_E_SHAPE;
    for (int v = 0; v < entries_of(bits); v++)
        if (!(fabsf(e->table[v]) <= 128)) return GWQ_E_TABLE;
    gwq_pool_run(pool, encode_task, (void *)e);
    return GWQ_OK;
}
