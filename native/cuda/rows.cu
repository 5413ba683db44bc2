/* Rows of a matrix as floats: exactly what gwq_format.h says. */
#include "decode.h"
#include "kernels.h"

/* out (32): the weights of row r of a piece, without outliers */
template <int bits>
DEVICE void piece_floats(const device_matrix &m, const uint8_t *strip, int piece, int r,
                         float row_scale, float *out) {
    const int subs = strip_subs(bits);
    uint32_t word[bits];
    uint32_t quads[8];
    for (int i = 0; i < bits; i++)
        word[i] = ((const uint32_t *)strip)[4 * (PIECES * i + piece) + r];
    decode<bits>(m.entries, word, quads);
    const int8_t *scale = (const int8_t *)strip + 16 * PIECES * bits + 4 * subs * piece + r;
    for (int c = 0; c < PIECE; c++) {
        const int place = 16 * (c / 16) + place_of(c % 16);
        const int entry = (int)(quads[place / 4] >> 8 * (place % 4) & 255) - BIAS;
        const float s = (float)scale[subs == 2 ? 4 * (c / 16) : 0];
        out[c] = row_scale * (s * (float)entry); /* as floats: a zero has its factors' sign */
    }
}

/* out (32): columns 32 * piece .. of a row of a ggml type */
DEVICE void row_floats(const device_matrix &m, int row, int piece, float *out) {
    const uint8_t *data = m.data + row * m.pitch;
    for (int i = 0; i < PIECE; i++) {
        const int c = PIECE * piece + i;
        if (m.kind == ROW_F32)
            out[i] = ((const float *)data)[c];
        else if (m.kind == ROW_F16)
            out[i] = half_to_float(((const uint16_t *)data)[c]);
        else if (m.kind == ROW_BF16)
            out[i] = __int_as_float((int)((uint32_t)((const uint16_t *)data)[c] << 16));
        else
            out[i] = half_to_float(m.scale[row * (m.pitch / 32) + piece]) *
                     (float)((const int8_t *)data)[c];
    }
}

/* A block of threads for every row */
__global__ void rows_kernel(device_matrix m, const int *ids, const int *base, int first,
                            float *out) {
    const int row = ids ? ids[blockIdx.x] : first + (base ? *base : 0) + (int)blockIdx.x;
    out += (int64_t)blockIdx.x * m.cols;
    if (row < 0 || row >= m.rows) return; /* the host has checked what it knows */
    for (int p = (int)threadIdx.x; p < ceil_div(m.cols, PIECE); p += (int)blockDim.x) {
        float w[PIECE];
        const int piece = 4 * (p % 4) + row % ROWS / 4;
        const int r = row % 4;
        if (m.kind >= ROW_F32) {
            row_floats(m, row, p, w);
        } else {
            const float scale = m.row_scale[row];
            const uint8_t *strip = m.data + ((int64_t)(row / ROWS) * m.strips + p / 4) *
                                                strip_bytes(m.kind);
            if (m.kind == 2) piece_floats<2>(m, strip, piece, r, scale, w);
            else if (m.kind == 3) piece_floats<3>(m, strip, piece, r, scale, w);
            else if (m.kind == 4) piece_floats<4>(m, strip, piece, r, scale, w);
            else if (m.kind == 5) piece_floats<5>(m, strip, piece, r, scale, w);
            else piece_floats<6>(m, strip, piece, r, scale, w);
        }
        for (int c = 0; c < PIECE && PIECE * p + c < m.cols; c++) out[PIECE * p + c] = w[c];
    }
    if (!m.outliers) return;
    __syncthreads();
    for (int i = m.outlier_starts[row] + (int)threadIdx.x; i < m.outlier_starts[row + 1];
         i += (int)blockDim.x) {
        const uint32_t outlier = m.outliers[i];
        out[outlier & 0xffff] += m.power * half_to_float((uint16_t)(outlier >> 16));
    }
}

void rows_to_floats(cudaStream_t stream, const device_matrix &m, const int *ids, const int *base,
                    int first, int count, float *out) {
    const int pieces = ceil_div(m.cols, PIECE);
    const int threads = pieces > 128 ? 128 : ceil_div(pieces, WARP) * WARP;
    LAUNCH(rows_kernel, count, threads, stream, m, ids, base, first, out);
}
