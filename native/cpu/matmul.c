/* gwq_matmul: int8 codes of the activations, then row groups of all matrices shared out by
 * bytes. */
#include "matmul.h"
#include "massive.h"
#include "threads.h"

/* --- activations ------------------------------------------------------------------------------ */

void gwq_product_codes(void *p, int thread, int threads) {
    const gwq_product *j = p;
    const gwq_input *in = &j->in;
    const int64_t tiles = gwq_tiles(in->cols);
    int64_t end = gwq_share(in->n, thread + 1, threads);
    for (int64_t t = gwq_share(in->n, thread, threads); t < end; t++) {
        const int64_t at = gwq_code_at(in, t, 0), lanes = in->lanes;
        gwq_in_use()->quantize(in->x + t * in->cols, in->cols, lanes, in->q + at * GWQ_BLOCK,
                               in->scale + at, in->bias + 8 * at);
        for (int64_t b = 0; in->start && b < in->blocks; b++) {
            const int16_t *bias = in->bias + 8 * (at + b * lanes);
            int32_t *start = in->start + 4 * (at + b * lanes);
            for (int i = 0; i < 4; i++) start[i] = bias[2 * i] + bias[2 * i + 1];
        }
        j->massive[t] = (uint8_t)gwq_residual_codes(in, t, &j->residual);
        if (in->codes16)
            gwq_in_use()->quantize16(in->x + t * in->cols, in->cols,
                                     in->codes16 + t * tiles * GWQ_TILE, in->scale16 + t * tiles);
    }
    if (!in->few) return;
    const int64_t last = gwq_share(tiles, thread + 1, threads);
    for (int64_t i = gwq_share(tiles, thread, threads); i < last; i++) {
        const int64_t c = i * GWQ_TILE;
        gwq_in_use()->panel(in->x + c, in->cols, (int)in->n, min64(GWQ_TILE, in->cols - c),
                            GWQ_FEW_LANES, in->few + c * GWQ_FEW_LANES);
    }
}

/* What outliers see of x: where the instruction set multiplies those of few tokens by codes of 16
 * bits, out[t] = these codes times their scale, so that a token gets the same in a prompt. Returns
 * out, with its stride, or x. */
static const float *seen_by_outliers(const float *x, int64_t *stride, int64_t count, int64_t width,
                                     float (*out)[GWQ_TILE]) {
    if (!gwq_in_use()->quantize16) return x;
    for (int64_t t = 0; t < count; t++) {
        int16_t codes[GWQ_TILE];
        float scale;
        gwq_in_use()->quantize16(x + t * *stride, width, codes, &scale);
        for (int i = 0; i < GWQ_TILE; i++) out[t][i] = scale * codes[i];
    }
    *stride = GWQ_TILE;
    return out[0];
}

static void panel_task(void *p, int thread, int threads) {
    float buffer[GWQ_PANEL][GWQ_TILE];
    const gwq_input *in = &((gwq_product *)p)->in;
    int64_t tiles = gwq_tiles(in->cols);
    int64_t pieces = (in->n + GWQ_PANEL - 1) / GWQ_PANEL * tiles;
    int64_t end = gwq_share(pieces, thread + 1, threads);
    for (int64_t i = gwq_share(pieces, thread, threads); i < end; i++) {
        int64_t t = i / tiles * GWQ_PANEL;
        int64_t c = i % tiles * GWQ_TILE;
        int64_t count = min64(GWQ_PANEL, in->n - t);
        int64_t width = min64(GWQ_TILE, in->cols - c);
        const int lanes = gwq_panel_lanes(count);
        float *out = in->panel + t * in->cols + c * lanes;
        int64_t stride = in->cols;
        const float *x = seen_by_outliers(in->x + t * stride + c, &stride, count, width, buffer);
        gwq_in_use()->panel(x, stride, (int)count, width, lanes, out);
    }
}

/* --- products --------------------------------------------------------------------------------- */

/* Bytes of the first `groups` row groups and their outliers: what a thread's share is measured
 * in */
static uint64_t bytes_before(const gwq_matrix *m, int64_t groups) {
    uint64_t dense = m->data_bytes * (uint64_t)groups / (uint64_t)gwq_groups(m->rows);
    return dense + (m->outliers ? gwq_load_u32(m->offsets + 4 * groups) : 0);
}

/* The first row group at or after byte `target` of the matrix */
static int64_t group_at(const gwq_matrix *m, uint64_t target) {
    int64_t low = 0, high = gwq_groups(m->rows);
    while (low < high) {
        int64_t mid = (low + high) / 2;
        if (bytes_before(m, mid) < target) low = mid + 1;
        else high = mid;
    }
    return low;
}

/* What is done to the rows first .. last-1 of y[i] once they are there */
static void finish_rows(const gwq_product *j, int i, int64_t first, int64_t last) {
    const int64_t rows = j->m[i]->rows;
    const float *bias = j->bias ? j->bias[i] : NULL;
    for (int64_t t = 0; t < j->in.n; t++) {
        float *y = j->y[i] + t * rows;
        for (int64_t r = first; bias && r < last; r++) y[r] += bias[r];
        for (int64_t r = first; j->into && r < last; r++)
            j->into[t * rows + r] += j->factor * y[r];
    }
}

/* y = the row groups first .. last-1 of matrix i times the activations */
static void matmul_groups(const gwq_product *j, int i, int64_t first, int64_t last) {
    const gwq_kernels *kernels = gwq_in_use();
    const gwq_matrix *m = j->m[i];
    const int kind = gwq_kind_of(m);
    kernels->matmul[kind](m, first, last, &j->in, j->y[i]);
    if (!gwq_types[kind].bits) { /* ggml types: float32 activations, outliers apart */
        if (m->outliers) kernels->sparse(m, first, last, &j->in, j->y[i]);
    } else {
        for (int64_t t = 0; t < j->in.n; t++)
            if (j->massive[t]) gwq_residual_product(m, kind, first, last, &j->residual, t, j->y[i]);
    }
    finish_rows(j, i, first * GWQ_ROWS, min64(last * GWQ_ROWS, m->rows));
}

/* The row groups that begin at the bytes from .. to-1 of all matrices, laid end to end */
static void matmul_bytes(const gwq_product *j, uint64_t from, uint64_t to) {
    uint64_t base = 0;
    for (int i = 0; i < j->count; i++) {
        const gwq_matrix *m = j->m[i];
        const int64_t groups = gwq_groups(m->rows);
        const uint64_t size = bytes_before(m, groups);
        int64_t first = from <= base ? 0 : from >= base + size ? groups : group_at(m, from - base);
        int64_t last = to <= base ? 0 : to >= base + size ? groups : group_at(m, to - base);
        if (first < last) matmul_groups(j, i, first, last);
        base += size;
    }
}

/* Where piece i of `pieces` begins: floor(total * i / pieces), without overflow */
static uint64_t piece_start(uint64_t total, uint64_t pieces, uint64_t i) {
    return total / pieces * i + total % pieces * i / pieces;
}

/* A thread's share is SHARES pieces. OWN of them are its own; whoever is done first takes the rest,
 * because a CPU that other programs use is late. One thread alone computes each row group, so the
 * result does not depend on who does. */
enum { OWN = 5, SHARES = 8 };

void gwq_product_share(void *p, int thread, int threads) {
    gwq_product *j = p;
    const uint64_t pieces = threads == 1 ? 1 : (uint64_t)threads * SHARES;
    const uint64_t own = threads == 1 ? 1 : OWN;
    uint64_t total = 0;
    for (int i = 0; i < j->count; i++) total += bytes_before(j->m[i], gwq_groups(j->m[i]->rows));
    matmul_bytes(j, piece_start(total, pieces, own * (uint64_t)thread),
                 piece_start(total, pieces, own * (uint64_t)(thread + 1)));
    for (;;) {
        uint64_t i = own * (uint64_t)threads + atomic_fetch_add(j->taken, 1);
        if (i >= pieces) return;
        matmul_bytes(j, piece_start(total, pieces, i), piece_start(total, pieces, i + 1));
    }
}

/* --- scratch ---------------------------------------------------------------------------------- */

/* Lays out the codes of in->n tokens from `at` on, unless that is NULL; returns their bytes.
 * starts: whether there is gwq_input.start. */
static size_t lay_out(gwq_input *in, int64_t lanes, int starts, uint8_t *at) {
    const size_t count = (size_t)((in->n + lanes - 1) / lanes * lanes * gwq_blocks(in->cols));
    const size_t scale = count * GWQ_BLOCK;
    const size_t bias = scale + gwq_round_up(sizeof(float) * count);
    const size_t start = bias + gwq_round_up(8 * sizeof(int16_t) * count);
    if (at) {
        in->lanes = lanes;
        in->blocks = gwq_blocks(in->cols);
        in->q = (int8_t *)at;
        in->scale = (float *)(at + scale);
        in->bias = (int16_t *)(at + bias);
        in->start = starts ? (int32_t *)(at + start) : NULL;
    }
    return starts ? start + gwq_round_up(4 * sizeof(int32_t) * count) : start;
}

/* The same for the codes of a product and those of the residuals, which are multiplied token by
 * token */
static size_t lay_out_codes(gwq_input *in, gwq_input *residual, uint8_t *at) {
    const size_t bytes = lay_out(in, in->n > GWQ_FEW ? GWQ_PANEL : 1, in->n > 1, at);
    *residual = (gwq_input){.n = in->n, .cols = in->cols, .x = in->x};
    return bytes + lay_out(residual, 1, 0, at ? at + bytes : NULL);
}

/* Bytes of gwq_input.few or of codes16 and scale16, what outliers want of up to GWQ_FEW tokens:
 * two bytes and a scale for each of the tokens are less than the lanes of floats, or than x */
static size_t few_bytes(int64_t n, int64_t cols) {
    const size_t count = (size_t)(gwq_tiles(cols) * GWQ_TILE) * GWQ_FEW_LANES;
    return n <= GWQ_FEW ? sizeof(float) * count : 0;
}

/* Lay out one or the other */
static void few_at(uint8_t *at, gwq_input *in) {
    if (gwq_in_use()->quantize16) {
        in->codes16 = (int16_t *)at;
        in->scale16 = (float *)(in->codes16 + in->n * gwq_tiles(in->cols) * GWQ_TILE);
    } else if (in->n > 1) {
        in->few = (float *)at;
    }
}

size_t gwq_product_bytes(int64_t n, int64_t cols) {
    gwq_input in = {.n = n, .cols = cols}, residual;
    return 64 + lay_out_codes(&in, &residual, NULL) + few_bytes(n, cols) + gwq_round_up((size_t)n);
}

uint8_t *gwq_product_scratch(gwq_product *j, int outliers, void *scratch) {
    const int64_t n = j->in.n, cols = j->in.cols;
    uint8_t *at = (uint8_t *)gwq_round_up((size_t)scratch);
    at += lay_out_codes(&j->in, &j->residual, at);
    if (outliers && few_bytes(n, cols)) few_at(at, &j->in);
    at += few_bytes(n, cols);
    j->massive = at;
    return at + gwq_round_up((size_t)n);
}

int gwq_product_check(const gwq_product *j, int *tiles, int *outliers) {
    *tiles = *outliers = 0;
    if (!j->m || !j->y || !j->in.x || j->count < 1 || j->in.n < 1) return GWQ_E_ARGUMENT;
    for (int i = 0; i < j->count; i++) {
        const gwq_matrix *m = j->m[i];
        if (!gwq_usable(m) || !j->y[i] || m->cols != j->m[0]->cols) return GWQ_E_ARGUMENT;
        *tiles |= gwq_types[gwq_kind_of(m)].bits;
        *outliers |= m->outliers != NULL;
    }
    return GWQ_OK;
}

/* That, and panels */
uint64_t gwq_scratch_bytes(int64_t n, int64_t cols) {
    if (n < 1 || cols < 1 || n > INT32_MAX || cols > INT32_MAX) return 0;
    const int64_t rest = n % GWQ_PANEL, lanes = n - rest + (rest ? gwq_panel_lanes(rest) : 0);
    return gwq_product_bytes(n, cols) + (n > GWQ_FEW ? sizeof(float) * (size_t)(lanes * cols) : 0);
}

int gwq_matmul(gwq_pool *pool, const gwq_matrix *const *m, int count, const float *x, int64_t n,
               float *const *y, void *scratch, uint64_t scratch_bytes) {
    int tiles, outliers;
    atomic_uint_fast64_t taken = 0;
    gwq_product j = {.m = m, .y = y, .count = count, .in = {.n = n, .x = x}, .taken = &taken};
    int status = gwq_product_check(&j, &tiles, &outliers);
    if (status) return status;
    j.in.cols = m[0]->cols;
    if (tiles) {
        if (!scratch || scratch_bytes < gwq_scratch_bytes(n, j.in.cols)) return GWQ_E_SCRATCH;
        uint8_t *panel = gwq_product_scratch(&j, outliers, scratch);
        j.in.panel = (float *)panel;
        if (n == 1) gwq_product_codes(&j, 0, 1);
        else gwq_pool_run(pool, gwq_product_codes, &j);
        if (outliers && n > GWQ_FEW) gwq_pool_run(pool, panel_task, &j);
    }
    gwq_pool_run(pool, gwq_product_share, &j);
    return GWQ_OK;
}
