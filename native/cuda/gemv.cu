/* Products of tile matrices and int8 activations, for one token and a few.
 *
 * A block of threads has a row group, half a warp of it a strip at a time: a thread multiplies 4
 * rows with 32 columns, whose sums over four columns are one instruction (DP4A). Integers are
 * exact, and all that is added in float32 has a fixed order, which the number of tokens does not
 * change: results are the same bits alone and together, and every time. */
#include "decode.h"
#include "kernels.h"
#include "outliers.h"

/* An integer below 2^22 in magnitude is added to the bits of MAGIC, 1.5 * 2^23, whose last bit
 * counts 1: that is a float minus MAGIC, sooner than by a conversion. A piece's is at most 32
 * columns * 32 * 32 * 127 = 4161536. */
#define MAGIC 12582912.0f
enum { MAGIC_BITS = 0x4b400000 };

DEVICE int byte_of(uint32_t word, int i) { return (int8_t)(word >> 8 * i); }

/* The activations that a thread needs at a time */
struct piece_codes {
    uint32_t q[8];
    int start[2];
    float scale, second;
};

DEVICE void load_codes(const code_half *h, piece_codes *c) {
    const uint4 *words = (const uint4 *)h;
    const uint4 first = words[0], others = words[1], rest = words[2];
    c->q[0] = first.x, c->q[1] = first.y, c->q[2] = first.z, c->q[3] = first.w;
    c->q[4] = others.x, c->q[5] = others.y, c->q[6] = others.z, c->q[7] = others.w;
    c->start[0] = (int)rest.x, c->start[1] = (int)rest.y;
    c->scale = __int_as_float((int)rest.z), c->second = __int_as_float((int)rest.w);
}

template <int bits> struct piece {
    uint4 word[bits];
    uint32_t scale[2];
};

template <int bits> DEVICE void load_piece(const uint8_t *strip, int at, piece<bits> *p) {
    const uint4 *words = (const uint4 *)strip + at;
    const uint8_t *scales = strip + 16 * PIECES * bits;
#pragma unroll
    for (int i = 0; i < bits; i++) p->word[i] = load_once(words + PIECES * i);
    if (strip_subs(bits) == 2) {
        const uint2 s = load_once((const uint2 *)scales + at);
        p->scale[0] = s.x;
        p->scale[1] = s.y;
    } else {
        p->scale[0] = load_once((const uint32_t *)scales + at);
    }
}

/* A row's scales in a piece, one of each sub */
template <int bits> DEVICE void scales_of(const piece<bits> &w, int r, int *scale) {
#pragma unroll
    for (int i = 0; i < strip_subs(bits); i++) scale[i] = byte_of(w.scale[i], r);
}

/* sum + factor * (the integer sums of a row of a piece, times its scales) */
template <int bits>
DEVICE float scaled(int dot, int other, const int *scale, float factor, float sum) {
    int total = MAGIC_BITS;
    if (strip_subs(bits) == 2) {
        total += dot * scale[0];
        total += other * scale[1];
    } else {
        total += (dot + other) * scale[0];
    }
    return fmaf(factor, __int_as_float(total) - MAGIC, sum);
}

/* Row r of a piece. What is computed from it for both sets of codes is computed twice: to keep it
 * would take more registers than there are. */
template <int bits> DEVICE void words_of(const piece<bits> &w, int r, uint32_t *word) {
#pragma unroll
    for (int i = 0; i < bits; i++) word[i] = here(row_of(w.word[i], r));
}

/* sum (4) += the piece times one token's activations, row by row */
template <int bits>
DEVICE void add_alone(const table &t, const piece<bits> &w, const piece_codes &c, float *sum) {
#pragma unroll
    for (int r = 0; r < PIECE_ROWS; r++) {
        uint32_t word[bits], quads[8];
        int scale[2], dot = c.start[0], other = c.start[1];
        words_of<bits>(w, r, word);
        if (bits <= 4) {
            nibbles_of<bits>(word, quads);
#pragma unroll
            for (int k = 0; k < 2; k++) {
                dot = look_up_dot(t, quads[k], c.q + 2 * k, dot);
                other = look_up_dot(t, quads[2 + k], c.q + 4 + 2 * k, other);
            }
        } else {
            decode<bits>(t, word, quads);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                dot = dot4(quads[k], c.q[k], dot);
                other = dot4(quads[4 + k], c.q[4 + k], other);
            }
        }
        scales_of<bits>(w, r, scale);
        sum[r] = scaled<bits>(dot, other, scale, c.scale, sum[r]);
    }
}

/* A piece's entries and scales, decoded for several tokens */
struct decoded {
    uint32_t quads[PIECE_ROWS][8];
    int scale[PIECE_ROWS][2];
};

template <int bits> DEVICE void decode_piece(const table &t, const piece<bits> &w, decoded *d) {
#pragma unroll
    for (int r = 0; r < PIECE_ROWS; r++) {
        uint32_t word[bits];
        words_of<bits>(w, r, word);
        decode<bits>(t, word, d->quads[r]);
        scales_of<bits>(w, r, d->scale[r]);
#pragma unroll
        for (int i = 0; i < strip_subs(bits); i++) /* or every token would take them out anew */
            d->scale[r][i] = (int)here((uint32_t)d->scale[r][i]);
    }
}

template <int bits> DEVICE void add_decoded(const decoded &d, const piece_codes &c, float *sum) {
#pragma unroll
    for (int r = 0; r < PIECE_ROWS; r++) {
        int dot = c.start[0], other = c.start[1];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            dot = dot4(d.quads[r][k], c.q[k], dot);
            other = dot4(d.quads[r][4 + k], c.q[4 + k], other);
        }
        sum[r] = scaled<bits>(dot, other, d.scale[r], c.scale, sum[r]);
    }
}

/* sum (tokens, 4) += the piece times activations. codes: of the first token, the others' are `each`
 * apart, the second set `second` on */
template <int bits, int tokens>
DEVICE void add_piece(const table &t, const piece<bits> &w, const code_half *codes, int each,
                      int64_t second, float (*sum)[PIECE_ROWS]) {
    decoded d;
    if (tokens > 1) decode_piece<bits>(t, w, &d);
    bool more;
#pragma unroll 1
    do { /* once more if a token has a massive channel here: the others' second codes are zeros */
        more = false;
#pragma unroll
        for (int i = 0; i < tokens; i++) {
            piece_codes c;
            load_codes(codes + (int64_t)i * each, &c);
            if (tokens > 1) add_decoded<bits>(d, c, sum[i]);
            else add_alone<bits>(t, w, c, sum[i]);
            more = more || c.second != 0;
        }
        codes += second;
    } while (more);
}

/* Blocks of 256 threads that a multiprocessor should have room for. With room for three, 80
 * registers a thread, the table of gwq3 and gwq5 would not stay where PRMT can read it. */
constexpr int blocks_wanted(int bits, int tokens) { return tokens == 1 && bits % 2 == 0 ? 3 : 2; }

/* y of the tokens first .. first+tokens-1 */
template <int bits, int tokens>
__global__ void __launch_bounds__(256, blocks_wanted(bits, tokens))
    gemv_kernel(product p, int first) {
    __shared__ float of_warp[8][tokens][ROWS];
    __shared__ float of_outliers[tokens][ROWS];
    const int lane = (int)threadIdx.x % WARP;
    const int warp = (int)threadIdx.x / WARP;
    const int warps = (int)blockDim.x / WARP;
    const int at = lane % PIECES;
    const int column = at / 4; /* of the strip, in pieces */
    int which = 0;
    while ((int)blockIdx.x >= p.groups[which]) which++;
    const int group = (int)blockIdx.x - (which ? p.groups[which - 1] : 0);
    const device_matrix m = matrix_of(p, which);
    table entries; /* from another lane, or ptxas would keep it where PRMT cannot read it */
    for (int i = 0; i < 4; i++)
        entries.entry[i] = __shfl_xor_sync(ALL_LANES, m.entries.entry[i], 1);
    const int each = p.stride / PIECE; /* of a token */
    const int64_t second = (int64_t)p.n * each;
    const code_half *codes = p.blocks->of + (int64_t)first * each + column;
    const uint8_t *data = m.data + (int64_t)group * m.strips * strip_bytes(bits);
    float sum[tokens][PIECE_ROWS] = {};

#pragma unroll 1
    for (int s = 2 * warp + lane / PIECES; s < m.strips; s += 2 * warps) {
        piece<bits> w;
        load_piece<bits>(data + (int64_t)s * strip_bytes(bits), at, &w);
        add_piece<bits, tokens>(entries, w, codes + 4 * s, each, second, sum);
    }
#pragma unroll
    for (int t = 0; t < tokens; t++)
#pragma unroll
        for (int r = 0; r < PIECE_ROWS; r++) {
            const float v = sum_over(sum[t][r], 4, WARP);
            if (lane < 4) of_warp[warp][t][PIECE_ROWS * lane + r] = v;
        }
    if (m.outliers) add_outliers<tokens>(m, group, p.floats, p.stride, first, of_outliers);
    __syncthreads();
    for (int i = (int)threadIdx.x; i < tokens * ROWS; i += (int)blockDim.x) {
        const int t = i / ROWS;
        const int row = group * ROWS + i % ROWS;
        if (row >= m.rows) continue;
        float y = 0;
        for (int k = 0; k < warps; k++) y += of_warp[k][t][i % ROWS];
        y *= m.row_scale[row];
        if (m.outliers) y += of_outliers[t][i % ROWS];
        finish_row(p, which, first + t, row, m.rows, y);
    }
}

template <int bits> static void multiply_bits(cudaStream_t stream, const product &p, int warps) {
    const unsigned grid = (unsigned)p.groups[p.count - 1], threads = (unsigned)(warps * WARP);
    int t = 0;
    for (; p.n - t >= 4; t += 4) LAUNCH((gemv_kernel<bits, 4>), grid, threads, stream, p, t);
    for (; p.n - t >= 2; t += 2) LAUNCH((gemv_kernel<bits, 2>), grid, threads, stream, p, t);
    for (; p.n - t >= 1; t += 1) LAUNCH((gemv_kernel<bits, 1>), grid, threads, stream, p, t);
}

void multiply_tiles(cudaStream_t stream, const product &p, int warps) {
    switch (p.m[0].kind) {
    case 2: return multiply_bits<2>(stream, p, warps);
    case 3: return multiply_bits<3>(stream, p, warps);
    case 4: return multiply_bits<4>(stream, p, warps);
    case 5: return multiply_bits<5>(stream, p, warps);
    default: return multiply_bits<6>(stream, p, warps);
    }
}
