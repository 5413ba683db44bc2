/* What products of many tokens share, whatever the matrix: a block of threads has 64 tokens, whose
 * FP16 numbers come into shared memory a strip of 128 columns at a time, and each of its warps has
 * two row groups of 16. With lane = 4g + t, a thread has the rows 2g and 2g+1 of both, and of the
 * sums those with the tokens 8 * (2t) + n and 8 * (2t+1) + n, n = 0 .. 7. */
#ifndef GWQ_CUDA_GEMM_H
#define GWQ_CUDA_GEMM_H
#include "fragments.h"
#include "kernels.h"
#include "mma.h"
#include "outliers.h"

enum {
    GEMM_WARPS = 4,
    GEMM_THREADS = GEMM_WARPS * WARP,
    GEMM_GROUPS = 2, /* row groups of a warp */
    GEMM_EIGHTS = TILE_TOKENS / 8,
    STRIP_UNITS = TILE_TOKENS * UNITS
};

/* The sums of a thread: GEMM_GROUPS x 8 products of fragments */
typedef float gemm_sums[GEMM_GROUPS][GEMM_EIGHTS][4];

/* Where a warp works: row groups `group` and the next, which may not be there */
struct gemm_place {
    int which, group;
    bool there;
};

DEVICE gemm_place place_of_warp(const product &p) {
    int pair = (int)blockIdx.y * GEMM_WARPS + (int)threadIdx.x / WARP;
    int which = 0, pairs;
    for (;;) {
        pairs = ceil_div(p.m[which].rows, GEMM_GROUPS * ROWS);
        if (pair < pairs || which == p.count - 1) break;
        pair -= pairs;
        which++;
    }
    const bool there = pair < pairs; /* else the last one's work is done again, and forgotten */
    return {which, GEMM_GROUPS * (there ? pair : pairs - 1), there};
}

/* Send a strip of 64 tokens into shared memory, both from where this thread begins. */
DEVICE void send_strip(const uint4 *from, uint4 *to) {
#pragma unroll
    for (int i = 0; i < STRIP_UNITS; i += GEMM_THREADS) send_copy(to + i, from + i);
}

/* What a block of threads multiplies with: the strips of its tokens, first all, then those that
 * have a second set, which is numbered on. */
struct gemm_tokens {
    const uint4 *x;     /* where this thread begins to send; a strip has STRIP_UNITS */
    const int *massive; /* by bits, which strips */
    int strips;
};

DEVICE gemm_tokens tokens_of(const product &p, int strips) {
    const int64_t tile = blockIdx.x;
    const uint16_t *first = p.halves.halves + half_row((int)tile * TILE_TOKENS, TILE_TOKENS,
                                                       p.stride);
    return {(const uint4 *)first + threadIdx.x, p.halves.massive + tile * massive_words(p.stride),
            strips};
}

/* What comes after strip s; 2 * strips or more: nothing */
DEVICE int strip_after(const int *massive, int strips, int s) {
    s++;
    while (s >= strips && s < 2 * strips) {
        const int at = s - strips;
        const uint32_t bits = (uint32_t)massive[at / 32] >> at % 32;
        if (bits & 1) break;
        s += bits ? 1 : 32 - at % 32;
    }
    return s;
}

/* Where a thread reads unit 4 * pair + t of token 8g in shared memory */
DEVICE int unit_of_thread(int pair) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
    return 8 * g * UNITS + unit_at(8 * g, 4 * pair + t);
}

/* sum += two steps of all row groups with all tokens. a (GEMM_GROUPS, 2, 4): of the columns of a
 * pair of units, which begin at x */
DEVICE void multiply_pair(const uint4 *x, const uint32_t (*a)[2][4], gemm_sums &sum) {
#pragma unroll
    for (int n = 0; n < GEMM_EIGHTS; n++) {
        const uint4 b = x[n * UNITS];
#pragma unroll
        for (int i = 0; i < GEMM_GROUPS; i++) {
            multiply_add(sum[i][n], a[i][0], b.x, b.y);
            multiply_add(sum[i][n], a[i][1], b.z, b.w);
        }
    }
}

/* sum = a warp's products over all strips and, where tokens have one, their second set. x: shared
 * memory for two strips; the next one's numbers are on their way while one is multiplied.
 *
 * weights: those of the warp's rows, which it reads itself: weights.fragments(pair, strip, then, a)
 * makes a (GEMM_GROUPS, 2, 4) of a pair of units of `strip`, and sends for what comes next, of
 * `then` once this strip is done. */
template <class weights>
DEVICE void multiply_strips(const product &p, int strips, uint4 *x, weights &w, gemm_sums &sum) {
    const gemm_tokens tokens = tokens_of(p, strips);
    const int even = unit_of_thread(0), odd = unit_of_thread(1) - 4; /* pairs, and less 4 * pair */
    int now = 0; /* where strip s lies */
    send_strip(tokens.x, x + threadIdx.x);
    end_copies();
#pragma unroll 1
    for (int s = 0, next; s < 2 * strips; s = next) {
        await_copies<0>();
        __syncthreads(); /* strip s has come, and nobody reads the one before any more */
        next = strip_after(tokens.massive, strips, s);
        if (next < 2 * strips)
            send_strip(tokens.x + (int64_t)next * STRIP_UNITS,
                       x + (now ^ STRIP_UNITS) + threadIdx.x);
        end_copies();
        const int strip = s < strips ? s : s - strips;
        const int then = next < strips ? next : next < 2 * strips ? next - strips : 0;
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            uint32_t a[GEMM_GROUPS][2][4];
            w.fragments(pair, strip, then, a);
            multiply_pair(x + now + (pair % 2 ? odd : even) + 4 * pair, a, sum);
        }
        now ^= STRIP_UNITS;
    }
    await_copies<0>();
}

DEVICE uint32_t word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* sum += a row group's outliers times 64 tokens, 16 outliers at a time, each of which has a column
 * of the fragment for itself: an outlier's number in its row, else zeros. They lie row after row.
 * x: of column 0, this thread's 8 tokens */
DEVICE void add_group_outliers(const device_matrix &m, int group, const uint16_t *x,
                               float (*sum)[4]) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
    int start[3]; /* of this thread's rows, and their end */
    for (int i = 0; i < 3; i++) {
        const int row = group * ROWS + 2 * g + i;
        start[i] = m.outlier_starts[row < m.rows ? row : m.rows];
    }
    const int after = (group + 1) * ROWS;
    const int end = m.outlier_starts[after < m.rows ? after : m.rows];
#pragma unroll 1
    for (int at = m.outlier_starts[group * ROWS]; at < end; at += 16) {
        uint32_t a[4] = {};
        uint4 b[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int i = at + 2 * t + k % 2 + 8 * (k / 2);
            const uint32_t outlier = i < end ? load_once(m.outliers + i) : 0;
            const uint32_t value = k % 2 ? outlier & 0xffff0000u : outlier >> 16;
            a[k / 2 * 2] |= i >= start[0] && i < start[1] ? value : 0;
            a[k / 2 * 2 + 1] |= i >= start[1] && i < start[2] ? value : 0;
            b[k] = load_once((const uint4 *)(x + (int64_t)(outlier & 0xffff) * TILE_TOKENS));
        }
#pragma unroll
        for (int n = 0; n < GEMM_EIGHTS; n++) {
            const uint32_t which = n % 2 ? 0x7632u : 0x5410u; /* the upper or the lower halves */
            multiply_add(sum[n], a, permute(word_of(b[0], n / 2), word_of(b[1], n / 2), which),
                         permute(word_of(b[2], n / 2), word_of(b[3], n / 2), which));
        }
    }
}

/* What remains to be done with a warp's sums. unit[i][r]: what the sums of row 2g + r of group i
 * are to be multiplied with so that a weight is one of m.power */
DEVICE void finish_sums(const product &p, const gemm_place &at, const device_matrix &m,
                        const float (*unit)[2], gemm_sums &sum) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
    const int first = (int)blockIdx.x * TILE_TOKENS;
    const int *massive = p.halves.massive + blockIdx.x * massive_words(p.stride);
    const int sets = any_massive(massive, p.stride) ? 2 : 1;
#pragma unroll
    for (int i = 0; i < GEMM_GROUPS; i++) {
#pragma unroll
        for (int n = 0; n < GEMM_EIGHTS; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][n][j] *= unit[i][j / 2];
        if (!m.outliers || (at.group + i) * ROWS >= m.rows) continue;
        const uint16_t *x = p.halves.columns + GEMM_EIGHTS * g;
        for (int set = 0; set < sets; set++)
            add_group_outliers(
                m, at.group + i,
                x + (int64_t)(2 * blockIdx.x + set) * p.stride * TILE_TOKENS, sum[i]);
    }
    if (!at.there) return;
#pragma unroll
    for (int n = 0; n < GEMM_EIGHTS; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int token = first + GEMM_EIGHTS * (2 * t + c) + n;
            if (token >= p.n) continue;
            const float factor = p.halves.factors[token];
#pragma unroll
            for (int i = 0; i < GEMM_GROUPS; i++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = (at.group + i) * ROWS + 2 * g + r;
                    if (row < m.rows)
                        finish_row(p, at.which, token, row, m.rows,
                                   m.power * (factor * sum[i][n][2 * r + c]));
                }
        }
}

/* Blocks of threads of a product: x, of 64 tokens, so that those that read the same weights run
 * together; y, of 4 warps */
inline dim3 gemm_grid(const product &p) {
    int pairs = 0;
    for (int i = 0; i < p.count; i++) pairs += ceil_div(p.m[i].rows, GEMM_GROUPS * ROWS);
    return dim3((unsigned)ceil_div(p.n, TILE_TOKENS), (unsigned)ceil_div(pairs, GEMM_WARPS));
}
#endif
