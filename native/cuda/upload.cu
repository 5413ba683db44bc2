/* Matrices into the device's memory. */
#include <stdlib.h>
#include <string.h>
#include "context.h"

static const char SIGN[8] = "gwqcuda"; /* begins a handle, so that another matrix is refused */

struct handle {
    char sign[8];
    device_matrix m;
    void *memory;   /* data, scales and entries of all kinds */
    void *outliers; /* NULL without */
};

const device_matrix *uploaded(const gwq_matrix *m) {
    if (!m || !m->data || memcmp(m->data, SIGN, sizeof SIGN)) return nullptr;
    return &((const handle *)m->data)->m;
}

static size_t rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

static int kind_of(int type) {
    switch (type) {
    case GWQ_TYPE_GWQ2: return 2;
    case GWQ_TYPE_GWQ3: return 3;
    case GWQ_TYPE_GWQ4: return 4;
    case GWQ_TYPE_GWQ5: return 5;
    case GWQ_TYPE_GWQ6: return 6;
    case GWQ_TYPE_F32: return ROW_F32;
    case GWQ_TYPE_F16: return ROW_F16;
    case GWQ_TYPE_BF16: return ROW_BF16;
    default: return ROW_CODES; /* Q8_0, Q4_0, IQ4_NL */
    }
}

/* Bytes of data, and of the scales behind it; fills in what follows from type and shape */
static void measure(const gwq_matrix *host, device_matrix *m, size_t *data, size_t *scales) {
    const int64_t padded = ceil_div(host->cols, PIECE) * (int64_t)PIECE;
    const int64_t groups = ceil_div(host->rows, TOGETHER) * (TOGETHER / ROWS);
    m->kind = kind_of(host->type);
    m->rows = (int)host->rows;
    m->cols = (int)host->cols;
    m->power = 1;
    m->strips = ceil_div(host->cols, STRIP);
    if (m->kind < ROW_F32) {
        *data = rounded((size_t)groups * (size_t)m->strips * (size_t)strip_bytes(m->kind));
        *scales = (size_t)groups * ROWS * sizeof(float);
        return;
    }
    m->pitch = padded * (m->kind == ROW_F32 ? 4 : m->kind == ROW_CODES ? 1 : 2);
    *data = rounded((size_t)(groups * ROWS * m->pitch));
    *scales = m->kind == ROW_CODES ? (size_t)(groups * ROWS * (padded / PIECE)) * 2 : 0;
}

/* What makes weights of a magnitude up to `most` FP16 numbers up to 2^14 */
static float half_power_of(float most) {
    int exponent;
    if (!(most > 0 && most <= FLT_MAX)) return 1;
    frexpf(most, &exponent);
    return ldexpf(1, 14 - (exponent > -80 ? exponent : -80));
}

static int put_data(const gwq_matrix *host, handle *h, size_t data, size_t scales) {
    const cudaStream_t stream = gwq_context.stream;
    void *file = nullptr;
    TRY_CUDA(cudaMalloc(&h->memory, data + scales));
    h->m.data = (const uint8_t *)h->memory;
    const size_t end = rounded(host->data_bytes);
    TRY_CUDA(cudaMalloc(&file, end + sizeof(int)));
    int *most = (int *)((char *)file + end);
    float largest = 0; /* of the weights */
    int status = status_of(
        cudaMemcpyAsync(file, host->data, host->data_bytes, cudaMemcpyHostToDevice, stream));
    if (!status && h->m.kind < ROW_F32) {
        const struct gwq_head *head = (const struct gwq_head *)host->data;
        h->m.power = ldexpf(1, head->exponent);
        h->m.row_scale = (const float *)((char *)h->memory + data);
        for (int i = 0; i < 16; i++)
            h->m.entries.entry[i / 4] |= (uint32_t)(head->table[i] + BIAS) << 8 * (i % 4);
        repack_tiles(stream, (const uint8_t *)file, head->exponent, h->m);
    } else if (!status) {
        if (scales) h->m.scale = (const uint16_t *)((char *)h->memory + data);
        status = status_of(cudaMemsetAsync(most, 0, sizeof *most, stream));
        repack_rows(stream, (const uint8_t *)file, host->type, h->m, most);
        if (!status)
            status = status_of(
                cudaMemcpyAsync(&largest, most, sizeof *most, cudaMemcpyDeviceToHost, stream));
    }
    if (!status) status = status_of(cudaGetLastError());
    if (!status) status = status_of(cudaStreamSynchronize(stream));
    h->m.half_power = half_power_of(largest);
    cudaFree(file);
    return status;
}

/* --- outliers --------------------------------------------------------------------------------- */

static int offset_at(const gwq_matrix *m, int64_t group) {
    const uint8_t *p = m->offsets + 4 * group;
    return (int)(p[0] | p[1] << 8 | p[2] << 16 | (uint32_t)p[3] << 24);
}

/* Records of a checked side-table to rows: with `entries`, starts (rows + 1) says where a row
 * begins, and moves on; without, they are counted into starts[row + 1]. */
static void walk_outliers(const gwq_matrix *m, int *starts, uint32_t *entries) {
    for (int64_t group = 0; group * ROWS < m->rows; group++) {
        const uint8_t *record = m->outliers + offset_at(m, group);
        for (int64_t first = 0; first < m->cols; first += GWQ_TILE) {
            int total = 0, at = 0;
            for (int r = 0; r < ROWS; r++) total += record[r];
            const uint8_t *value = record + ROWS, *column = value + 2 * total;
            for (int level = 0; at < total; level++)
                for (int r = 0; r < ROWS; r++) {
                    if (record[r] <= level) continue;
                    const int64_t row = group * ROWS + r;
                    const uint32_t bits = value[2 * at] | (uint32_t)value[2 * at + 1] << 8;
                    const uint32_t place = (uint32_t)(first + column[at]);
                    if (entries) entries[starts[row]++] = bits << 16 | place;
                    else starts[row + 1]++;
                    at++;
                }
            record = column + total;
        }
    }
}

/* Bytes of the starts of rows, and of these and the outliers behind them */
static int measure_outliers(const gwq_matrix *host, size_t *starts, size_t *bytes) {
    *starts = *bytes = 0;
    if (!host->outliers) return GWQ_OK;
    if (host->cols > GWQ_CUDA_COLUMNS) return GWQ_E_COLUMN;
    const size_t rows = (size_t)host->rows;
    const size_t records = (size_t)ceil_div(rows, ROWS) * (size_t)ceil_div(host->cols, GWQ_TILE);
    const size_t count = (size_t)(host->outlier_bytes - ROWS * records) / 3;
    *starts = rounded(4 * (rows + 1));
    *bytes = *starts + 4 * count;
    return GWQ_OK;
}

static int put_outliers(const gwq_matrix *host, handle *h, size_t *bytes) {
    const size_t rows = (size_t)host->rows;
    size_t starts_bytes;
    TRY(measure_outliers(host, &starts_bytes, bytes));
    if (!*bytes) return GWQ_OK;
    int *starts = (int *)calloc(1, *bytes);
    if (!starts) return GWQ_E_MEMORY;
    walk_outliers(host, starts, nullptr);
    for (size_t r = 0; r < rows; r++) starts[r + 1] += starts[r];
    walk_outliers(host, starts, (uint32_t *)((char *)starts + starts_bytes));
    memmove(starts + 1, starts, 4 * rows); /* each has moved on to the next row's */
    starts[0] = 0;
    int status = status_of(cudaMalloc(&h->outliers, *bytes));
    if (!status)
        status = status_of(cudaMemcpyAsync(h->outliers, starts, *bytes, cudaMemcpyHostToDevice,
                                           gwq_context.stream));
    if (!status) status = status_of(cudaStreamSynchronize(gwq_context.stream));
    h->m.outlier_starts = (const int *)h->outliers;
    h->m.outliers = (const uint32_t *)((char *)h->outliers + starts_bytes);
    free(starts);
    return status;
}

/* --- the ABI ---------------------------------------------------------------------------------- */

static int check_host(const gwq_matrix *host) {
    TRY(gwq_matrix_check(host));
    return host->cols <= GWQ_CUDA_WIDEST ? GWQ_OK : GWQ_E_SHAPE;
}

static void drop(handle *h) {
    cudaFree(h->memory);
    cudaFree(h->outliers);
    memset(h, 0, sizeof *h);
    free(h);
}

int gwq_cuda_upload_bytes(const gwq_matrix *host, uint64_t *bytes) {
    if (!bytes) return GWQ_E_ARGUMENT;
    TRY(check_host(host));
    device_matrix m = {};
    size_t data, scales, starts, outliers;
    measure(host, &m, &data, &scales);
    TRY(measure_outliers(host, &starts, &outliers));
    *bytes = data + scales + outliers;
    return GWQ_OK;
}

int gwq_cuda_upload(const gwq_matrix *host, gwq_matrix *out, uint64_t *bytes) {
    if (!out) return GWQ_E_ARGUMENT;
    TRY(check_host(host));
    std::lock_guard<std::mutex> hold(gwq_lock);
    TRY(ready());
    handle *h = (handle *)calloc(1, sizeof *h);
    if (!h) return GWQ_E_MEMORY;
    size_t data, scales, outliers = 0;
    measure(host, &h->m, &data, &scales);
    int status = put_data(host, h, data, scales);
    if (!status) status = put_outliers(host, h, &outliers);
    if (status) {
        drop(h);
        return status;
    }
    memcpy(h->sign, SIGN, sizeof SIGN);
    gwq_context.generation++;
    memset(out, 0, sizeof *out);
    out->type = host->type;
    out->rows = host->rows;
    out->cols = host->cols;
    out->data = h;
    out->data_bytes = host->data_bytes;
    if (bytes) *bytes = data + scales + outliers;
    return GWQ_OK;
}

void gwq_cuda_forget(gwq_matrix *m) {
    std::lock_guard<std::mutex> hold(gwq_lock);
    if (!uploaded(m) || ready()) return;
    gwq_context.generation++;
    drop((handle *)m->data);
    m->data = nullptr;
}
