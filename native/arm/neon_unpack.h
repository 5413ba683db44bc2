/* Lines and scales of a tile with NEON: one function per width turns a few lines of 4 rows into
 * table entries, one turns a block's scales into signed bytes. Entries and activations are signed
 * here, so nothing is biased but the codes of gwq6. */
#ifndef GWQ_NEON_UNPACK_H
#define GWQ_NEON_UNPACK_H
#include "neon.h"

/* v[p]: 4 rows x columns 4p .. 4p+3, one byte each, of the lines that hold them together: 4 quads
 * are one line at 2 bits and three at 6 bits, 2 quads are one at 4 bits, 8 quads are three lines at
 * 3 bits and five at 5 bits. a: what these lines have of the 4 rows. */
typedef void (*quads_fn)(int8x16_t table, const uint8x16_t *a, int8x16_t *v);
enum { QUADS6 = 4, QUADS5 = 8, QUADS4 = 2, QUADS3 = 8, QUADS2 = 4 };
enum { LINES = 5 }; /* of `a`, at most */

/* Lines that hold `unit` quads of codes of so many bits */
GWQ_INLINE int lines_of(const int bits, const int unit) { return bits * unit / 8; }

/* a[h]: 4 rows of these lines, h < rows: 2 or 4 */
GWQ_INLINE void load_lines(const int count, const int rows, const uint8_t *line,
                           uint8x16_t a[4][LINES]) {
    for (int l = 0; l < count; l++, line += 64) {
        if (rows == 4) {
            const uint8x16x4_t all = load64(line);
            for (int h = 0; h < 4; h++) a[h][l] = all.val[h];
        } else {
            for (int h = 0; h < 2; h++) a[h][l] = vld1q_u8(line + 16 * h);
        }
    }
}

GWQ_INLINE uint8x16_t nibble(uint8x16_t v) { return vandq_u8(v, vdupq_n_u8(15)); }

/* The matrix's table, as `signed_table` of neon_tiles.h lays it out */
GWQ_INLINE void quads4(int8x16_t table, const uint8x16_t *a, int8x16_t *v) {
    v[0] = vqtbl1q_s8(table, nibble(a[0]));
    v[1] = vqtbl1q_s8(table, vshrq_n_u8(a[0], 4));
}

/* Windows that begin at bit `shift` of a byte of a and end in the byte of next */
#define ACROSS(a, shift, next) nibble(vsliq_n_u8(vshrq_n_u8(a, shift), next, 8 - (shift)))

/* 24 bits, a window at every third */
GWQ_INLINE void quads3(int8x16_t table, const uint8x16_t *a, int8x16_t *v) {
    v[0] = vqtbl1q_s8(table, nibble(a[0]));
    v[1] = vqtbl1q_s8(table, nibble(vshrq_n_u8(a[0], 3)));
    v[2] = vqtbl1q_s8(table, ACROSS(a[0], 6, a[1]));
    v[3] = vqtbl1q_s8(table, nibble(vshrq_n_u8(a[1], 1)));
    v[4] = vqtbl1q_s8(table, vshrq_n_u8(a[1], 4));
    v[5] = vqtbl1q_s8(table, ACROSS(a[1], 7, a[2]));
    v[6] = vqtbl1q_s8(table, nibble(vshrq_n_u8(a[2], 2)));
    v[7] = vqtbl1q_s8(table, ACROSS(a[2], 5, a[0]));
}

/* 32 bits, a window at every second: three lie within a byte, the fourth within the bytes turned by
 * six bits */
GWQ_INLINE void quads2(int8x16_t table, const uint8x16_t *a, int8x16_t *v) {
    const uint32x4_t w = vreinterpretq_u32_u8(a[0]);
    const uint8x16_t turned = vreinterpretq_u8_u32(vsliq_n_u32(vshrq_n_u32(w, 6), w, 26));
    v[0] = vqtbl1q_s8(table, nibble(a[0]));
    v[1] = vqtbl1q_s8(table, nibble(vshrq_n_u8(a[0], 2)));
    v[2] = vqtbl1q_s8(table, vshrq_n_u8(a[0], 4));
    v[3] = vqtbl1q_s8(table, nibble(turned));
}

/* Entries of nibbles: the table's where bit p of a byte of `high` is 0, else its mirror image's,
 * -1 - e, which are the same bits inverted */
GWQ_INLINE int8x16_t either_half(int8x16_t table, uint8x16_t low, uint8x16_t high, int p) {
    const int8x16_t upper = vreinterpretq_s8_u8(vtstq_u8(high, vdupq_n_u8((uint8_t)(1 << p))));
    return veorq_s8(vqtbl1q_s8(table, low), upper);
}

GWQ_INLINE void quads5(int8x16_t table, const uint8x16_t *a, int8x16_t *v) {
    UNROLL for (int k = 0; k < 4; k++) { /* bit p of line 4: of quad p */
        v[2 * k] = either_half(table, nibble(a[k]), a[4], 2 * k);
        v[2 * k + 1] = either_half(table, vshrq_n_u8(a[k], 4), a[4], 2 * k + 1);
    }
}

/* Codes, 0 .. 63, which are entries with ENTRY_BIAS */
GWQ_INLINE void quads6(int8x16_t table, const uint8x16_t *a, int8x16_t *v) {
    const uint8x16_t mask = vdupq_n_u8(0x3f), high = a[2];
    (void)table;
    /* the top bits come in above four others, and what comes with them is masked; a[0] and a[1]
     * last, as an insertion overwrites its first operand */
    v[1] = vreinterpretq_s8_u8(
        vandq_u8(vsliq_n_u8(vshrq_n_u8(a[0], 4), vshrq_n_u8(high, 2), 4), mask));
    v[0] = vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8(a[0], high, 4), mask));
    v[3] = vreinterpretq_s8_u8(vsliq_n_u8(vshrq_n_u8(a[1], 4), vshrq_n_u8(high, 6), 4));
    v[2] = vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8(a[1], vshrq_n_u8(high, 4), 4), mask));
}

/* s[k]: scale of every row for the k-th sub-block of a block, with SCALE_BIAS, 0 .. 63. An
 * insertion (sri) keeps the upper bits of its first operand, so the top bits of three bytes, one
 * after the other, make up the last scale. */
typedef void (*scales_fn)(const uint8_t *scale, uint8x16_t s[4]);
enum { SUB6 = 4, SUB5 = 4, SUB4 = 4, SUB3 = 8, SUB2 = 8 }; /* quads of a sub-block */

GWQ_INLINE void scales4(const uint8_t *scale, uint8x16_t s[4]) {
    const uint8x16x3_t part = load48(scale);
    for (int k = 0; k < 3; k++) s[k] = vandq_u8(part.val[k], vdupq_n_u8(63));
    const uint8x16_t top = vsriq_n_u8(part.val[2], part.val[1], 2);
    s[3] = vshrq_n_u8(vsriq_n_u8(top, part.val[0], 4), 2);
}

GWQ_INLINE void scales2(const uint8_t *scale, uint8x16_t s[4]) {
    const uint8x16_t low = vld1q_u8(scale);
    const uint8x8_t nibbles = vld1_u8(scale + 16); /* of the rows 0 .. 7 and, above them, 8 .. 15 */
    const uint8x16_t high = vcombine_u8(vshl_n_u8(nibbles, 4), nibbles); /* in the upper half */
    s[0] = vandq_u8(low, vdupq_n_u8(63));
    s[1] = vshrq_n_u8(vsriq_n_u8(high, low, 4), 2);
}
#define scales3 scales2
#define scales5 scales4
#define scales6 scales4
#endif
