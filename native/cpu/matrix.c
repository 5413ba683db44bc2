/* Rows of matrices as floats. */
#include "matrix.h"
#include <string.h>
#include "kernels.h"
#include "threads.h"

static float half_to_float(const uint8_t *p) {
    float f;
    const gwq_matrix one = {.type = GWQ_TYPE_F16, .rows = 1, .cols = 1, .data = p, .data_bytes = 2};
    gwq_scalar.dequantize[GWQ_K_F16](&one, 0, &f);
    return f;
}

/* out (rows of the group, cols): the kernel writes the dense part, then the outliers are added.
 * What the file stores of an outlier is the difference between the weight and the dense part in its
 * place,
 *
 *     weight = dense + 2^exponent * difference, the sum rounded once to float32. */
static void dequantize_group(const gwq_matrix *m, int64_t group, float *out) {
    gwq_in_use()->dequantize[gwq_kind_of(m)](m, group, out);
    const uint8_t *record = gwq_records(m, group);
    if (!record) return;
    const float power = gwq_power(m);
    for (int64_t first = 0; first < m->cols; first += GWQ_TILE) {
        int total = 0;
        int at = 0;
        for (int r = 0; r < GWQ_ROWS; r++) total += record[r];
        const uint8_t *value = record + GWQ_ROWS;
        const uint8_t *column = value + 2 * total;
        for (int level = 0; at < total; level++)
            for (int r = 0; r < GWQ_ROWS; r++)
                if (record[r] > level) {
                    out[r * m->cols + first + column[at]] += power * half_to_float(value + 2 * at);
                    at++;
                }
        record = column + total;
    }
}

struct dequantize_job {
    const gwq_matrix *m;
    int64_t first_group, groups;
    float *out;
};

static void dequantize_task(void *p, int thread, int threads) {
    const struct dequantize_job *j = p;
    int64_t end = gwq_share(j->groups, thread + 1, threads);
    for (int64_t g = gwq_share(j->groups, thread, threads); g < end; g++)
        dequantize_group(j->m, j->first_group + g, j->out + g * GWQ_ROWS * j->m->cols);
}

int gwq_dequantize(gwq_pool *pool, const gwq_matrix *m, int64_t first, int64_t count, float *out) {
    if (!gwq_usable(m) || !out) return GWQ_E_ARGUMENT;
    /* whole row groups, so that no copy is needed; the last one may be short */
    if (first < 0 || count < 0 || first % GWQ_ROWS || first + count > m->rows) return GWQ_E_INDEX;
    if (count % GWQ_ROWS && first + count != m->rows) return GWQ_E_INDEX;
    struct dequantize_job j = {m, first / GWQ_ROWS, gwq_groups(count), out};
    gwq_pool_run(pool, dequantize_task, &j);
    return GWQ_OK;
}

int gwq_embed(const gwq_matrix *m, const int32_t *ids, int64_t n, float *group, float *out) {
    if (!gwq_usable(m) || n < 0 || (n && (!ids || !out || !group))) return GWQ_E_ARGUMENT;
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= m->rows) return GWQ_E_INDEX;
    for (int64_t i = 0; i < n; i++) {
        dequantize_group(m, ids[i] / GWQ_ROWS, group);
        const float *row = group + ids[i] % GWQ_ROWS * m->cols;
        memcpy(out + i * m->cols, row, (size_t)m->cols * sizeof *out);
    }
    return GWQ_OK;
}
