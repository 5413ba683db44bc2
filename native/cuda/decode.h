/* Pieces of a tile matrix to entries, in registers. An entry comes biased by BIAS, four to a word,
 * in the order of layout.h. */
#ifndef GWQ_CUDA_DECODE_H
#define GWQ_CUDA_DECODE_H
#include "layout.h"

/* (a where mask) | (b elsewhere), which is one instruction */
DEVICE uint32_t blend(uint32_t mask, uint32_t a, uint32_t b) { return (a & mask) | (b & ~mask); }

/* Entries of the nibbles 0-3 and 4-7. PRMT has eight bytes to choose from, so each half of the
 * table is asked; a nibble whose top bit belongs to the other half chooses a sign, which is 0, as
 * biased entries are not negative. */
DEVICE void look_up(const table &t, uint32_t nibbles, uint32_t *quads) {
    const uint32_t other = nibbles ^ 0x88888888u;
    quads[0] = permute(t.entry[0], t.entry[1], nibbles) | permute(t.entry[2], t.entry[3], other);
    quads[1] = permute(t.entry[0], t.entry[1], nibbles >> 16) |
               permute(t.entry[2], t.entry[3], other >> 16);
}

DEVICE uint32_t turned(uint32_t x, int bits) { return __funnelshift_r(x, x, bits); }

/* n (4) = the nibble words of a row of a piece: windows, but of gwq5 the low four bits of codes */
template <int bits> DEVICE void nibbles_of(const uint32_t *word, uint32_t *n) {
    if (bits == 2) {
        n[0] = word[0];
        n[1] = turned(word[0], 2);
        n[2] = word[1];
        n[3] = turned(word[1], 2);
    } else if (bits == 3) {
        /* A window's top bit is the lowest one of the code four columns on: in the word beside it,
         * in the same nibble for n(0) and n(2); for n(1) and n(3) in the next one, or, of the odd
         * nibbles, in the one before. */
        const uint32_t middle = 0x66666666u, every = 0x88888888u, odd = 0x80808080u;
        const uint32_t low = word[2];
        n[0] = blend(every, low << 2, blend(middle, word[0], low));
        n[1] = blend(odd, low << 5, blend(middle, turned(word[0], 2), low >> 1));
        n[2] = blend(every, low, blend(middle, word[1], low >> 2));
        n[3] = blend(odd, low << 7, blend(middle, turned(word[1], 2), low >> 3));
    } else {
        for (int k = 0; k < 4; k++) n[k] = word[k];
    }
}

/* word (bits): of one row of a piece; quads (2): the entries of its quads 2k and 2k+1 */
template <int bits>
DEVICE void decode_two(const table &t, const uint32_t *word, int k, uint32_t *quads) {
    if (bits < 6) {
        uint32_t n[4];
        nibbles_of<bits>(word, n);
        look_up(t, n[k], quads);
    }
    if (bits == 5) {
#pragma unroll
        for (int i = 0; i < 2; i++) { /* -1 - entry is 63 - entry with the bias: all bits turned */
            const uint32_t top = word[4] << (2 * k + i); /* of bytes */
            const uint32_t mirrored = permute(top, 0, 0xba98u);
            quads[i] ^= mirrored & 0x3f3f3f3fu;
        }
    }
    if (bits == 6) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int j = 2 * k + i;
            const uint32_t low = word[k] >> 4 * i;
            const uint32_t both = word[4 + j / 4];
            const uint32_t top = j % 4 == 3 ? both >> 2 : both << (4 - 2 * (j % 4));
            quads[i] = blend(0x0f0f0f0fu, low, top) & 0x3f3f3f3fu;
        }
    }
}

/* quads (8): all 32 entries of a row of a piece */
template <int bits> DEVICE void decode(const table &t, const uint32_t *word, uint32_t *quads) {
#pragma unroll
    for (int k = 0; k < 4; k++) decode_two<bits>(t, word, k, quads + 2 * k);
}

/* sum + the dot product of the entries of a nibble word with eight activations: as `decode` and two
 * dot4, but both halves of the table are multiplied, which spares joining them */
DEVICE int look_up_dot(const table &t, uint32_t nibbles, const uint32_t *q, int sum) {
    const uint32_t other = nibbles ^ 0x88888888u;
    sum = dot4(permute(t.entry[0], t.entry[1], nibbles), q[0], sum);
    sum = dot4(permute(t.entry[2], t.entry[3], other), q[0], sum);
    sum = dot4(permute(t.entry[0], t.entry[1], nibbles >> 16), q[1], sum);
    return dot4(permute(t.entry[2], t.entry[3], other >> 16), q[1], sum);
}

/* Component r of the four rows */
DEVICE uint32_t row_of(const uint4 &v, int r) {
    return r == 0 ? v.x : r == 1 ? v.y : r == 2 ? v.z : v.w;
}
#endif
