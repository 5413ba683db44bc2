/* Products of matrices of ggml types, all in float32. A warp has a row, a lane 8 columns at a
 * time. Sums have a fixed order, whatever the number of tokens. */
#include "kernels.h"
#include "outliers.h"

enum { LANE_COLUMNS = 8, ROW_WARPS = 4 };

/* w (2) = the numbers of a word; bfloat16 is the upper half of a float */
template <int kind> DEVICE void two_of(uint32_t word, float *w) {
    w[0] = kind == ROW_F16 ? half_to_float((uint16_t)word) : __int_as_float((int)(word << 16));
    w[1] = kind == ROW_F16 ? half_to_float((uint16_t)(word >> 16))
                           : __int_as_float((int)(word & 0xffff0000u));
}

/* w (8) = columns 8 * at .. of a row; row_scale: that of ROW_CODES, else not read */
template <int kind> DEVICE void load_columns(const uint8_t *row, const uint16_t *row_scale, int at,
                                             float *w) {
    if (kind == ROW_F32) {
        for (int half = 0; half < 2; half++) {
            const uint4 v = load_once((const uint4 *)row + 2 * at + half);
            w[4 * half] = __int_as_float((int)v.x);
            w[4 * half + 1] = __int_as_float((int)v.y);
            w[4 * half + 2] = __int_as_float((int)v.z);
            w[4 * half + 3] = __int_as_float((int)v.w);
        }
    } else if (kind == ROW_CODES) {
        const uint2 v = load_once((const uint2 *)row + at);
        const float scale = half_to_float(row_scale[at / 4]);
        for (int i = 0; i < 4; i++) {
            w[i] = scale * (float)(int8_t)(v.x >> 8 * i);
            w[4 + i] = scale * (float)(int8_t)(v.y >> 8 * i);
        }
    } else {
        const uint4 v = load_once((const uint4 *)row + at);
        two_of<kind>(v.x, w);
        two_of<kind>(v.y, w + 2);
        two_of<kind>(v.z, w + 4);
        two_of<kind>(v.w, w + 6);
    }
}

template <int kind, int tokens>
__global__ void __launch_bounds__(ROW_WARPS *WARP, 4) rows_gemv_kernel(product p, int first) {
    __shared__ float of_rows[tokens][ROWS];
    __shared__ float of_outliers[tokens][ROWS];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    int which = 0;
    while ((int)blockIdx.x >= p.groups[which]) which++;
    const int group = (int)blockIdx.x - (which ? p.groups[which - 1] : 0);
    const device_matrix m = matrix_of(p, which);
    const float *x = p.floats + (int64_t)first * p.stride;
    const int pieces = ceil_div(m.cols, PIECE) * PIECE / LANE_COLUMNS;
    for (int r = warp; r < ROWS; r += ROW_WARPS) {
        const int64_t row = (int64_t)group * ROWS + r;
        float sum[tokens] = {};
        if (row < m.rows) {
            const uint8_t *data = m.data + row * m.pitch;
            const uint16_t *scale = kind == ROW_CODES ? m.scale + row * (m.pitch / PIECE) : nullptr;
#pragma unroll 1
            for (int at = lane; at < pieces; at += WARP) {
                float w[LANE_COLUMNS];
                load_columns<kind>(data, scale, at, w);
#pragma unroll
                for (int t = 0; t < tokens; t++) {
                    const float4 *v = (const float4 *)(x + (int64_t)t * p.stride) + 2 * at;
                    const float4 a = v[0], b = v[1];
                    sum[t] = fmaf(w[0], a.x, sum[t]);
                    sum[t] = fmaf(w[1], a.y, sum[t]);
                    sum[t] = fmaf(w[2], a.z, sum[t]);
                    sum[t] = fmaf(w[3], a.w, sum[t]);
                    sum[t] = fmaf(w[4], b.x, sum[t]);
                    sum[t] = fmaf(w[5], b.y, sum[t]);
                    sum[t] = fmaf(w[6], b.z, sum[t]);
                    sum[t] = fmaf(w[7], b.w, sum[t]);
                }
            }
        }
#pragma unroll
        for (int t = 0; t < tokens; t++) {
            const float v = sum_over(sum[t], 1, WARP);
            if (lane == 0) of_rows[t][r] = v;
        }
    }
    if (m.outliers) add_outliers<tokens>(m, group, p.floats, p.stride, first, of_outliers);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < tokens * ROWS; i += (int)blockDim.x) {
        const int t = i / ROWS;
        const int row = group * ROWS + i % ROWS;
        if (row >= m.rows) continue;
        float y = of_rows[t][i % ROWS];
        if (m.outliers) y += of_outliers[t][i % ROWS];
        finish_row(p, which, first + t, row, m.rows, y);
    }
}

template <int kind> static void multiply_kind(cudaStream_t stream, const product &p) {
    const unsigned grid = (unsigned)p.groups[p.count - 1], threads = ROW_WARPS * WARP;
    int t = 0;
    for (; p.n - t >= 8; t += 8) LAUNCH((rows_gemv_kernel<kind, 8>), grid, threads, stream, p, t);
    for (; p.n - t >= 2; t += 2) LAUNCH((rows_gemv_kernel<kind, 2>), grid, threads, stream, p, t);
    for (; p.n - t >= 1; t += 1) LAUNCH((rows_gemv_kernel<kind, 1>), grid, threads, stream, p, t);
}

void multiply_rows(cudaStream_t stream, const product &p) {
    switch (p.m[0].kind) {
    case ROW_F32: return multiply_kind<ROW_F32>(stream, p);
    case ROW_F16: return multiply_kind<ROW_F16>(stream, p);
    case ROW_BF16: return multiply_kind<ROW_BF16>(stream, p);
    default: return multiply_kind<ROW_CODES>(stream, p);
    }
}

/* Warps of a row group. A warp takes two strips at a time; of a matrix of 4096 x 4096 each should
 * take two turns, so that there are enough loads on their way: a multiprocessor of an H200 needs
 * 25 KB of them, and a thread of gwq4 has 72 bytes. */
static int warps_of(const product &p) {
    const int strips = p.m[0].strips;
    return strips > 16 ? 8 : strips > 4 ? 4 : strips > 2 ? 2 : 1;
}

void multiply(cudaStream_t stream, const product &p) {
    const int kind = p.m[0].kind;
    const form order = form_of(kind, p.n);
    if (order == AS_STRIPS) multiply_tiles_at_once(stream, p);
    else if (order == AS_ROWS) multiply_rows_at_once(stream, p);
    else if (kind < ROW_F32) multiply_tiles(stream, p, warps_of(p));
    else multiply_rows(stream, p);
}
