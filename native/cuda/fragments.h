/* Two rows of a piece, decoded for tensor cores. An entry times its scale is an integer of at most
 * 1024 in magnitude, which FP16 holds exactly. */
#ifndef GWQ_CUDA_FRAGMENTS_H
#define GWQ_CUDA_FRAGMENTS_H
#include "decode.h"

enum { PAIRS = 4 }; /* of quads that 32 columns have: two steps of a tensor core's 16 columns */

/* Rows 2g and 2g+1 of a strip, of its piece of columns t, as a strip has them (layout.h): lanes
 * 4g + t read all of it, 8 bytes each at a time. */
template <int bits> struct two_rows {
    uint2 word[bits];
    uint2 scale; /* of each sub, those of four rows of which these are two */
};

/* The last pair of quads that wants word i; a scale's is the last of all */
BOTH int last_pair(int bits, int i) {
    return bits == 2 || (bits == 3 && i < 2) ? 2 * i + 1
           : bits == 6 && i == 4             ? 1
           : i < 4 && bits > 3               ? i
                                             : PAIRS - 1;
}

/* The words whose last pair is `pair`, so that they are on their way while the others are in use */
template <int bits> DEVICE void load_rows_of(const uint8_t *strip, int pair, two_rows<bits> *w) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
    const uint8_t *scales = strip + 16 * PIECES * bits;
    const int piece = 4 * t + g / 2;
#pragma unroll
    for (int i = 0; i < bits; i++)
        if (last_pair(bits, i) == pair)
            w->word[i] = load_once((const uint2 *)strip + 2 * PIECES * i + 8 * t + g);
    if (pair < PAIRS - 1) return;
    if (strip_subs(bits) == 2) w->scale = load_once((const uint2 *)scales + piece);
    else w->scale.x = load_once((const uint32_t *)scales + piece);
}

template <int bits> DEVICE void load_rows(const uint8_t *strip, two_rows<bits> *w) {
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) load_rows_of<bits>(strip, pair, w);
}

/* FP16 numbers of two bytes, the lower or the upper ones: 1024 + byte, whose bits are at hand */
DEVICE uint32_t over_1024(uint32_t bytes, int upper) {
    return permute(bytes, 0x64646464u, upper ? 0x4342u : 0x4140u);
}

/* The scales of a row, and what the bias of entries adds to products with them, each twice */
struct half_scale {
    uint32_t scale, start;
};

/* r: 0 or 1, of the two rows; sub: of the piece */
template <int bits> DEVICE half_scale scale_of(const two_rows<bits> &w, int r, int sub) {
    const int g = (int)threadIdx.x % WARP / 4;
    const uint32_t four = strip_subs(bits) == 2 && sub ? w.scale.y : w.scale.x;
    const uint32_t bytes = (four >> g % 2 * 16) ^ 0x80808080u; /* scale + 128 */
    half_scale s;
    s.scale = add_halves(permute(bytes, 0x64646464u, r ? 0x4141u : 0x4040u),
                         0xe480e480u); /* -1152 */
    s.start = multiply_halves(s.scale, 0xe420e420u); /* -1024 - BIAS */
    return s;
}

/* a (2, 4): the fragments of both rows in the quads 2 * pair and 2 * pair + 1 */
template <int bits>
DEVICE void fragments_of(const table &t, const two_rows<bits> &w, int pair, uint32_t (*a)[4]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t word[bits], quads[2];
#pragma unroll
        for (int i = 0; i < bits; i++) word[i] = r ? w.word[i].y : w.word[i].x;
        decode_two<bits>(t, word, pair, quads);
        const half_scale s = scale_of<bits>(w, r, pair / 2);
#pragma unroll
        for (int q = 0; q < 2; q++)
#pragma unroll
            for (int upper = 0; upper < 2; upper++)
                a[q][2 * upper + r] = fma_halves(over_1024(quads[q], upper), s.scale, s.start);
    }
}

/* The table from another lane, or ptxas would keep it where PRMT cannot read it */
DEVICE table table_of(const device_matrix &m) {
    table entries;
    for (int i = 0; i < 4; i++)
        entries.entry[i] = __shfl_xor_sync(ALL_LANES, m.entries.entry[i], 1);
    return entries;
}
#endif
