/* gwq_encode: checks, split over the pool; and the encoder for any CPU. */
#include <math.h>
#include "encode.h"

void gwq_encode_any(const gwq_encoding *e, int64_t first, int64_t last) { encode(e, first, last); }

static void part(void *arg, int thread, int threads) {
    const gwq_encoding *e = arg;
    int64_t count = e->rings / LANES;
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; i++)
        gwq_in_use()->encode(e, i * LANES, (i + 1) * LANES);
}

int gwq_encode(gwq_pool *pool, const gwq_encoding *e) {
    if (!e || !e->table || !e->row_scale || !e->row_weight || !e->target || !e->scale || !e->code || !e->value) return GWQ_E_ARGUMENT;
    if (e->fit && !e->column_weight) return GWQ_E_ARGUMENT;
    if (e->type != GWQ_TYPE_GWQ4 && e->type != GWQ_TYPE_GWQ3 && e->type != GWQ_TYPE_GWQ2) return GWQ_E_TYPE;
    if (e->columns < 1 || e->columns > COLUMNS || e->rings < 1 || e->rings % LANES || e->rings > INT32_MAX) return GWQ_E_SHAPE;
    for (int v = 0; v < WINDOWS; v++)
        if (!(fabsf(e->table[v]) <= 128)) return GWQ_E_TABLE;
    gwq_pool_run(pool, part, (void *)e);
    return GWQ_OK;
}
