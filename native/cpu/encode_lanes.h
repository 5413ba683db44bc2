/* Vectors of the encoder, eight or 16 rows in each, and the codes of types without history: the
 * nearest entry of the table. */
#ifndef GWQ_ENCODE_LANES_H
#define GWQ_ENCODE_LANES_H
#include <float.h>
#include "kernels.h"

#ifndef GWQ_ENCODE_LANES /* an instruction set may ask for 16 */
#define GWQ_ENCODE_LANES 8
#endif
enum {
    LANES = GWQ_ENCODE_LANES, /* rows of a vector */
    VECTORS = 64 / LANES,     /* vectors at a time */
    COLUMNS = GWQ_BLOCK,
    WINDOWS = 16, /* entries of a table, of the types of up to four bits */
    STATES = 4,   /* at most: what a code passes on to the next one's window */
    FACTORS = 8   /* scales that fit_scale tries toward either end of the table */
};

#include "lanes.h"

GWQ_INLINE lanes magnitude(lanes v) { return (lanes)((flags)v & 0x7fffffff); }

/* To the nearest integer, even on a tie; |v| < 2^22 */
GWQ_INLINE lanes nearest(lanes v) {
    lanes magic = all(0x1.8p23f);
    return v + magic - magic;
}

/* To the nearest integer that a scale can be, -32 .. 31 */
GWQ_INLINE lanes six_bits(lanes v) {
    v = nearest(v);
    return pick((flags)(v > 31), all(31), pick((flags)(v < -32), all(-32), v));
}

/* table[at] of a table of n = 16 or 32 entries */
GWQ_INLINE lanes look_up_n(const float *table, const int n, flags at) {
    lanes v = {0};
#ifdef __clang__ /* has no __builtin_shuffle */
    (void)n;
    for (int l = 0; l < LANES; l++) v[l] = table[at[l]];
#else
    for (int i = 0; i < n; i += 2 * LANES) { /* two vectors of entries are one shuffle */
        lanes low = load(table + i), high = n > LANES ? load(table + i + LANES) : low;
        lanes here = __builtin_shuffle(low, high, at);
        v = i ? pick((flags)(at >= i), here, v) : here;
    }
#endif
    return v;
}
GWQ_INLINE lanes look_up(const float *table, flags at) { return look_up_n(table, WINDOWS, at); }

/* Bits of a tile type's code, 0 for any other type */
GWQ_INLINE int bits_of(int32_t type) {
    switch (type) {
    case GWQ_TYPE_GWQ2: return 2;
    case GWQ_TYPE_GWQ3: return 3;
    case GWQ_TYPE_GWQ4: return 4;
    case GWQ_TYPE_GWQ5: return 5;
    case GWQ_TYPE_GWQ6: return 6;
    default: return 0;
    }
}

/* Entries of a type's table */
GWQ_INLINE int entries_of(int bits) { return bits > 4 ? 1 << bits : WINDOWS; }

/* --- codes without history -------------------------------------------------------------------- */

/* Without history every row stands alone: the nearest entry of a table that ascends. t / s lies
 * above entry v where it lies above the middle between v and v + 1; s may be negative, so both
 * sides are multiplied by |s|. */
GWQ_INLINE void nearest_codes(const int bits, const float *table, const lanes *t, const lanes *s,
                              flags *code, lanes *value) {
    const int n = entries_of(bits);
    float middle[32];
    for (int v = 0; v + 1 < n; v++) middle[v] = 0.5f * (table[v] + table[v + 1]);
    middle[n - 1] = 0;
    for (int r = 0; r < VECTORS; r++) {
        flags at = {0};
        lanes x = (lanes)((flags)t[r] ^ ((flags)s[r] & (int32_t)0x80000000u)); /* t * sign(s) */
        lanes m = magnitude(s[r]);
        for (int half = n / 2; half; half /= 2) { /* the middles ascend */
            lanes here = look_up_n(middle, n, at + (half - 1));
            at += (flags)(x > m * here) & half;
        }
        code[r] = at;
        value[r] = s[r] * look_up_n(table, n, at);
    }
}

/* The same where the entries are `count` integers in a row: t / s is rounded. */
GWQ_INLINE void nearest_integers(const float *table, const int count, const lanes *t,
                                 const lanes *s, flags *code, lanes *value) {
    const float last = (float)(count - 1);
    for (int r = 0; r < VECTORS; r++) {
        flags some = (flags)(s[r] != 0);
        lanes x = pick(some, t[r] / pick(some, s[r], all(1)), all(0)) - table[0];
        x = pick((flags)(x > last), all(last), pick((flags)(x > 0), x, all(0)));
        x = nearest(x);
        for (int l = 0; l < LANES; l++) code[r][l] = (int32_t)x[l];
        value[r] = s[r] * (x + table[0]);
    }
}

/* Codes of a column of a type without history, and what they stand for: t, its weights as targets;
 * s, their scales (row scale included); all (VECTORS). */
GWQ_INLINE void code_column(const int bits, const float *table, const lanes *t, const lanes *s,
                            flags *code, lanes *value) {
    if (bits == 6) nearest_integers(table, entries_of(bits), t, s, code, value);
    else nearest_codes(bits, table, t, s, code, value);
}
#endif
