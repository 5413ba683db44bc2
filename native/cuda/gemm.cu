/* Products of tile matrices and many tokens, by tensor cores. Weights are decoded in registers, as
 * products of entry and scale; activations are FP16 numbers (layout.h). Nothing of that is rounded
 * but the activations, to 11 bits. Sums have the order of the columns, then of the outliers. */
#include "gemm.h"

/* Two rows of each of a warp's row groups */
template <int bits> struct tile_rows {
    table entries;
    const uint8_t *data; /* of the first row group */
    uint32_t apart;      /* row groups */
    two_rows<bits> rows[GEMM_GROUPS];

    DEVICE tile_rows(const device_matrix &m, int group)
        : entries(table_of(m)), apart((uint32_t)(m.strips * strip_bytes(bits))) {
        data = m.data + group * (int64_t)apart;
#pragma unroll
        for (int i = 0; i < GEMM_GROUPS; i++) load_rows<bits>(data + i * apart, &rows[i]);
    }

    DEVICE void fragments(int pair, int, int then, uint32_t (*a)[2][4]) {
        const uint8_t *of_next = data + (uint32_t)(then * strip_bytes(bits));
#pragma unroll
        for (int i = 0; i < GEMM_GROUPS; i++) {
            fragments_of<bits>(entries, rows[i], pair, a[i]);
            load_rows_of<bits>(of_next + i * apart, pair, &rows[i]);
        }
    }
};

template <int bits> __global__ void __launch_bounds__(GEMM_THREADS, 2) gemm_kernel(product p) {
    __shared__ uint4 x[2 * STRIP_UNITS];
    const gemm_place at = place_of_warp(p);
    const device_matrix m = matrix_of(p, at.which);
    tile_rows<bits> w(m, at.group);
    gemm_sums sum = {};
    multiply_strips(p, m.strips, x, w, sum);

    float unit[GEMM_GROUPS][2];
    for (int i = 0; i < GEMM_GROUPS; i++)
        for (int r = 0; r < 2; r++) {
            const int row = (at.group + i) * ROWS + (int)threadIdx.x % WARP / 4 * 2 + r;
            unit[i][r] = row < m.rows ? m.row_scale[row] / m.power : 0; /* the file's */
        }
    finish_sums(p, at, m, unit, sum);
}

/* --- 7 to 16 tokens: eight warps for a row group, as in gemv.cu ------------------------------- */

/* eights: of tokens. Sums of a warp's share of the strips, in the order of warps. */
template <int bits, int eights>
__global__ void __launch_bounds__(256, 2) few_kernel(product p, int first) {
    enum { TOKENS = 8 * eights };
    __shared__ float of_warp[8][TOKENS][ROWS];
    __shared__ float of_outliers[TOKENS][ROWS];
    const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    const int warp = (int)threadIdx.x / WARP;
    const int warps = (int)blockDim.x / WARP;
    int which = 0;
    while ((int)blockIdx.x >= p.groups[which]) which++;
    const int group = (int)blockIdx.x - (which ? p.groups[which - 1] : 0);
    const device_matrix m = matrix_of(p, which);
    const table entries = table_of(m);
    const uint8_t *data = m.data + (int64_t)group * m.strips * strip_bytes(bits);
    const int tile = p.halves.tile;
    const int token = first + eights * g;
    const uint4 *x = (const uint4 *)(p.halves.halves + half_row(token, tile, p.stride)) + t;
    const int *massive = p.halves.massive + token / tile * massive_words(p.stride);
    const int swap = unit_at(token, 0) / 4; /* pairs, in every other eight tokens */
    float sum[eights][4] = {};
#pragma unroll 1
    for (int s = warp; s < 2 * m.strips; s += warps) {
        const int strip = s < m.strips ? s : s - m.strips;
        if (s >= m.strips && !(massive[strip / 32] >> strip % 32 & 1)) continue;
        two_rows<bits> w;
        load_rows<bits>(data + (int64_t)strip * strip_bytes(bits), &w);
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            uint32_t a[2][4];
            fragments_of<bits>(entries, w, pair, a);
#pragma unroll
            for (int n = 0; n < eights; n++) {
                const uint4 b = x[((int64_t)s * tile + n) * UNITS + 4 * (pair ^ swap)];
                multiply_add(sum[n], a[0], b.x, b.y);
                multiply_add(sum[n], a[1], b.z, b.w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < eights; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            of_warp[warp][eights * (2 * t + j % 2) + n][2 * g + j / 2] = sum[n][j];
    if (m.outliers) {
#pragma unroll
        for (int i = 0; i < TOKENS; i += 8) {
            const int some = p.n - first - i; /* others' numbers are not there */
            if (some >= 8)
                add_outliers<8>(m, group, p.floats, p.stride, first + i, of_outliers + i);
            else
                for (int k = 0; k < some; k++)
                    add_outliers<1>(m, group, p.floats, p.stride, first + i + k,
                                    of_outliers + i + k);
        }
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < TOKENS * ROWS; i += (int)blockDim.x) {
        const int token = i / ROWS;
        const int row = group * ROWS + i % ROWS;
        if (row >= m.rows || first + token >= p.n) continue;
        float y = 0;
        for (int k = 0; k < warps; k++) y += of_warp[k][token][i % ROWS];
        y = m.row_scale[row] * (p.halves.factors[first + token] * y);
        if (m.outliers) y += of_outliers[token][i % ROWS];
        finish_row(p, which, first + token, row, m.rows, y);
    }
}

template <int bits> static void multiply_bits(cudaStream_t stream, product p) {
    const int n = p.n, rest = n % TILE_TOKENS;
    const int apart = rest <= FEW_TILE ? rest : 0; /* tokens for which a tile would be a waste */
    p.n = n - apart;
    if (p.n) LAUNCH(gemm_kernel<bits>, gemm_grid(p), GEMM_THREADS, stream, p);
    const int first = p.n;
    p.n = n;
    if (apart)
        LAUNCH((few_kernel<bits, FEW_TILE / 8>), (unsigned)p.groups[p.count - 1], 256, stream, p,
               first);
}

void multiply_tiles_at_once(cudaStream_t stream, const product &p) {
    switch (p.m[0].kind) {
    case 2: return multiply_bits<2>(stream, p);
    case 3: return multiply_bits<3>(stream, p);
    case 4: return multiply_bits<4>(stream, p);
    case 5: return multiply_bits<5>(stream, p);
    default: return multiply_bits<6>(stream, p);
    }
}
