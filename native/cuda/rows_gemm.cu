/* Products of matrices of FP16, BF16 and 8-bit codes and many tokens, by tensor cores. Weights that
 * are not FP16 numbers are rounded to such, after a power of two that makes the largest of the
 * matrix one of 2^13 .. 2^14; float32 matrices are multiplied as few tokens are. */
#include "gemm.h"

/* 8 columns of a row, and their scale if they are codes */
template <int kind> struct eight {
    uint4 numbers;
    uint16_t scale;
};
template <> struct eight<ROW_CODES> {
    uint2 numbers;
    uint16_t scale;
};

/* The 32 columns number `at` of a row and of its scales, of which thread t has eight */
template <int kind>
DEVICE void load_eight(const uint8_t *row, const uint16_t *scales, int at, eight<kind> *w) {
    const int t = (int)threadIdx.x % 4;
    if constexpr (kind == ROW_CODES) {
        w->numbers = load_once((const uint2 *)row + 4 * at + t);
        w->scale = load_once(scales + at);
    } else {
        w->numbers = load_once((const uint4 *)row + 4 * at + t);
    }
}

DEVICE float of_bf16(uint32_t word, int upper) {
    return __int_as_float((int)(upper ? word & 0xffff0000u : word << 16));
}

/* halves (4): the eight numbers, in the order of layout.h */
template <int kind>
DEVICE void halves_from(const eight<kind> &w, float power, uint32_t *halves) {
    if constexpr (kind == ROW_CODES) {
        const float scale = power * half_to_float(w.scale);
        const uint32_t scales = halves_of(scale, scale);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t bytes = (i < 2 ? w.numbers.x : w.numbers.y) ^ 0x80808080u;
            const uint32_t over = permute(bytes, 0x64646464u, i % 2 ? 0x4341u : 0x4240u);
            halves[i] = multiply_halves(add_halves(over, 0xe480e480u), scales); /* -1152 */
        }
    } else {
        const uint32_t word[4] = {w.numbers.x, w.numbers.y, w.numbers.z, w.numbers.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t first = word[i / 2 * 2], second = word[i / 2 * 2 + 1];
            const uint32_t which = i % 2 ? 0x7632u : 0x5410u;
            if (kind == ROW_F16) halves[i] = permute(first, second, which);
            else
                halves[i] = halves_of(power * of_bf16(first, i % 2),
                                      power * of_bf16(second, i % 2));
        }
    }
}

/* Two rows of each of a warp's row groups, of each the eight columns that are multiplied next. A
 * unit here is 32 columns of a row, eight for each of the four threads t. */
template <int kind> struct plain_rows {
    const uint8_t *data; /* of the first row */
    int64_t pitch;
    const uint16_t *scales;
    int units; /* of a row */
    float power;
    eight<kind> rows[GEMM_GROUPS][2];

    DEVICE plain_rows(const device_matrix &m, int group)
        : pitch(m.pitch), units(ceil_div(m.cols, PIECE)), power(m.half_power) {
        const int64_t row = group * ROWS + (int)threadIdx.x % WARP / 4 * 2;
        data = m.data + row * pitch;
        scales = kind == ROW_CODES ? m.scale + row * units : nullptr;
#pragma unroll
        for (int i = 0; i < GEMM_GROUPS; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) load(i, r, 0);
    }

    DEVICE void load(int i, int r, int unit) {
        load_eight<kind>(data + (i * ROWS + r) * pitch, scales + (i * ROWS + r) * units, unit,
                         &rows[i][r]);
    }

    DEVICE void fragments(int pair, int strip, int then, uint32_t (*a)[2][4]) {
        const int unit = pair + 1 < PAIRS ? PAIRS * strip + pair + 1 : PAIRS * then;
        const int loaded = unit < units ? unit : units - 1; /* beyond the last one x is 0 */
#pragma unroll
        for (int i = 0; i < GEMM_GROUPS; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                uint32_t halves[4];
                halves_from<kind>(rows[i][r], power, halves);
                load(i, r, loaded);
#pragma unroll
                for (int k = 0; k < 4; k++) a[i][k / 2][k % 2 * 2 + r] = halves[k];
            }
    }
};

template <int kind>
__global__ void __launch_bounds__(GEMM_THREADS, 2) rows_gemm_kernel(product p) {
    __shared__ uint4 x[2 * STRIP_UNITS];
    const gemm_place at = place_of_warp(p);
    const device_matrix m = matrix_of(p, at.which);
    plain_rows<kind> w(m, at.group);
    gemm_sums sum = {};
    multiply_strips(p, m.strips, x, w, sum);

    const float back = 1 / m.half_power;
    const float unit[GEMM_GROUPS][2] = {{back, back}, {back, back}};
    finish_sums(p, at, m, unit, sum);
}

void multiply_rows_at_once(cudaStream_t stream, const product &p) {
    const dim3 grid = gemm_grid(p);
    switch (p.m[0].kind) {
    case ROW_F16: return LAUNCH(rows_gemm_kernel<ROW_F16>, grid, GEMM_THREADS, stream, p);
    case ROW_BF16: return LAUNCH(rows_gemm_kernel<ROW_BF16>, grid, GEMM_THREADS, stream, p);
    default: return LAUNCH(rows_gemm_kernel<ROW_CODES>, grid, GEMM_THREADS, stream, p);
    }
}
