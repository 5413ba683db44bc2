/* The encoder of tile types: for each column the codes of least error, for each sub-block the scale
 * of least error. One text, compiled once per instruction set by the files that include it; without
 * fused multiply-adds, so that each of them gives the same bits.
 *
 * Eight rings (see gwq_format.h) are encoded at a time, one per lane of a vector. Arrays of the
 * caller are (columns, 8 rows of a ring, rings). */
#ifndef GWQ_ENCODE_H
#define GWQ_ENCODE_H
#include <float.h>
#include <string.h>
#include "kernels.h"

enum {
    LANES = 8,   /* rings at a time */
    RING = GWQ_RING,
    COLUMNS = GWQ_BLOCK,
    WINDOWS = 16, /* entries of a table, of the types of up to four bits */
    FACTORS = 8   /* scales that fit_scale tries toward either end of the table */
};

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t flags __attribute__((vector_size(4 * LANES))); /* comparisons: 0 or -1; codes */

GWQ_INLINE lanes all(float v) { return (lanes){0} + v; }

GWQ_INLINE lanes load(const float *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}

GWQ_INLINE flags picki(flags mask, flags a, flags b) { return (mask & a) | (~mask & b); }
GWQ_INLINE lanes pick(flags mask, lanes a, lanes b) {
    return (lanes)picki(mask, (flags)a, (flags)b);
}

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

GWQ_INLINE lanes look_up(const float *table, flags at) {
    lanes v;
    for (int l = 0; l < LANES; l++) v[l] = table[at[l]];
    return v;
}

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

/* --- codes of a column ------------------------------------------------------------------------ */

/* Without history every row stands alone: the nearest entry of a table that ascends. t / s lies
 * above entry v where it lies above the middle between v and v + 1; s may be negative, so both
 * sides are multiplied by |s|. */
GWQ_INLINE void nearest_codes(const int bits, const float *table, const lanes *t, const lanes *s,
                              flags *code, lanes *value) {
    for (int r = 0; r < RING; r++) {
        flags at = {0};
        lanes x = (lanes)((flags)t[r] ^ ((flags)s[r] & (int32_t)0x80000000u)); /* t * sign(s) */
        lanes m = magnitude(s[r]);
#pragma GCC unroll 1
        for (int v = 0; v + 1 < entries_of(bits); v++)
            at -= (flags)(x > m * (0.5f * (table[v] + table[v + 1])));
        code[r] = at;
        value[r] = s[r] * look_up(table, at);
    }
}

/* The same where the entries are `count` integers in a row: t / s is rounded. */
GWQ_INLINE void nearest_integers(const float *table, const int count, const lanes *t,
                                 const lanes *s, flags *code, lanes *value) {
    const float last = (float)(count - 1);
    for (int r = 0; r < RING; r++) {
        flags some = (flags)(s[r] != 0);
        lanes x = pick(some, t[r] / pick(some, s[r], all(1)), all(0)) - table[0];
        x = pick((flags)(x > last), all(last), pick((flags)(x > 0), x, all(0)));
        x = nearest(x);
        for (int l = 0; l < LANES; l++) code[r][l] = (int32_t)x[l];
        value[r] = s[r] * (x + table[0]);
    }
}

/* One column of a ring: t, its weights as targets; s, their scales (row scale included); w, how
 * much their squared errors count, all (8 rows). Finds the codes c[0..7] that minimise
 *
 *     sum over r of  w[r] * (t[r] - s[r] * table[window(r)])^2,
 *     window(r) = c[r] | state(c[r - 1]) << bits,   state(c) = c >> (bits - history),
 *
 * where row 0 comes after row 7, and what the codes stand for. This is a shortest path through a
 * trellis whose states are what a row passes on to the next (Viterbi). The path is closed, so it is
 * searched once for each state S that row 7 may pass on to row 0:
 *
 *     cost[0][state] = min over c of state                 of error[0][c | S << bits]
 *     cost[r][state] = min over c of state, and over seen, of error[r][c | seen << bits]
 *                                                             + cost[r - 1][seen]
 *
 * The least cost[7][S] over S wins, and its windows are read backwards from `from`. */
GWQ_INLINE void code_column(const int bits, const float *table, const lanes *t, const lanes *s,
                            const lanes *w, flags *code, lanes *value) {
    if (bits == 6) {
        nearest_integers(table, entries_of(bits), t, s, code, value);
        return;
    }
    if (bits >= 4) {
        nearest_codes(bits, table, t, s, code, value);
        return;
    }
    const int history = 4 - bits;
    const int states = 1 << history;
    const int low = (1 << bits) >> history; /* codes of a state: state * low .. + low - 1 */
    lanes error[RING][WINDOWS];
    for (int r = 0; r < RING; r++)
        for (int v = 0; v < WINDOWS; v++) {
            lanes e = t[r] - s[r] * table[v];
            error[r][v] = e * e * w[r];
        }
    lanes least = all(FLT_MAX);
    flags first = {0};          /* the S of least cost */
    flags from[4][RING][4];     /* [S][r][state]: the window of row r on the best path to `state` */
    for (int start = 0; start < states; start++) {
        lanes cost[4], next[4];
        for (int r = 0; r < RING; r++) {
            for (int state = 0; state < states; state++) {
                if (r + 1 == RING && state != start) continue;
                lanes best = all(FLT_MAX);
                flags how = {0};
                for (int c = state * low; c < (state + 1) * low; c++)
                    for (int seen = r ? 0 : start; seen < (r ? states : start + 1); seen++) {
                        lanes sum = error[r][c | seen << bits];
                        if (r) sum += cost[seen];
                        flags better = (flags)(sum < best);
                        best = pick(better, sum, best);
                        how = picki(better, (flags){0} + (c | seen << bits), how);
                    }
                next[state] = best;
                from[start][r][state] = how;
            }
            memcpy(cost, next, sizeof cost);
        }
        flags better = (flags)(cost[start] < least);
        least = pick(better, cost[start], least);
        first = picki(better, (flags){0} + start, first);
    }
    flags at = first; /* the state that row r passes on */
    for (int r = RING - 1; r >= 0; r--) {
        flags window = {0};
        for (int start = 0; start < states; start++)
            for (int state = 0; state < states; state++)
                if (r + 1 < RING || state == start) {
                    flags here = (flags)(first == start) & (flags)(at == state);
                    window = picki(here, from[start][r][state], window);
                }
        code[r] = window & ((1 << bits) - 1);
        value[r] = s[r] * look_up(table, window);
        at = window >> bits;
    }
}

/* --- scale of a sub-block --------------------------------------------------------------------- */

/* A sub-block of n columns: targets t and weights of squared errors w, (n, 8 rows); `weight` (n),
 * by which those of a column are multiplied. */
struct sub_block {
    const lanes (*t)[RING];
    const lanes (*w)[RING];
    const float *weight;
    int n;
};

/* The least and the greatest entry; 1 for a table that has none on that side of 0 */
GWQ_INLINE void table_ends(const float *table, int entries, float end[2]) {
    end[0] = end[1] = table[0];
    for (int v = 0; v < entries; v++) {
        if (table[v] < end[0]) end[0] = table[v];
        if (table[v] > end[1]) end[1] = table[v];
    }
    for (int i = 0; i < 2; i++)
        if (!end[i]) end[i] = 1;
}

/* whole (8 rows) = the largest weight of each row in units of the row scale d */
GWQ_INLINE void largest_in_units(const struct sub_block *b, const lanes *d, lanes *whole) {
    for (int r = 0; r < RING; r++) {
        lanes extreme = all(0);
        for (int c = 0; c < b->n; c++) {
            lanes t = b->t[c][r];
            flags counts = (flags)(b->w[c][r] > 0); /* an outlier does not */
            extreme = pick(counts & (flags)(magnitude(t) > magnitude(extreme)), t, extreme);
        }
        flags positive = (flags)(d[r] > 0);
        whole[r] = extreme * pick(positive, 1 / pick(positive, d[r], all(1)), all(0));
        whole[r] = pick((flags)(magnitude(whole[r]) < 1e6f), whole[r], all(0));
    }
}

/* units = best * sum(w t v) / sum(w v^2), v being the values of the codes that `best` leads to: the
 * scale of least squared error for these codes */
GWQ_INLINE void least_squares(const int bits, const float *table, const struct sub_block *b,
                              const lanes *d, const lanes *best, lanes *units) {
    lanes up[RING], down[RING], s[RING], value[RING];
    flags code[RING];
    for (int r = 0; r < RING; r++) {
        up[r] = down[r] = all(0);
        s[r] = best[r] * d[r];
    }
    for (int c = 0; c < b->n; c++) {
        code_column(bits, table, b->t[c], s, b->w[c], code, value);
        for (int r = 0; r < RING; r++) {
            lanes x = value[r] * b->w[c][r] * b->weight[c];
            up[r] += x * b->t[c][r];
            down[r] += x * value[r];
        }
    }
    for (int r = 0; r < RING; r++) {
        flags some = (flags)(down[r] > 0);
        lanes x = pick(some, up[r] / pick(some, down[r], all(1)), all(1));
        units[r] = six_bits(best[r] * pick((flags)(magnitude(x) < 4), x, all(1)));
    }
}

/* error (8 rows) = sum over the columns of w * weight * (t - value)^2 with the codes that the
 * scales `units` lead to */
GWQ_INLINE void squared_error(const int bits, const float *table, const struct sub_block *b,
                              const lanes *d, const lanes *units, lanes *error) {
    lanes s[RING], value[RING];
    flags code[RING];
    for (int r = 0; r < RING; r++) {
        s[r] = units[r] * d[r];
        error[r] = all(0);
    }
    for (int c = 0; c < b->n; c++) {
        code_column(bits, table, b->t[c], s, b->w[c], code, value);
        for (int r = 0; r < RING; r++) {
            lanes e = b->t[c][r] - value[r];
            error[r] += e * e * b->w[c][r] * b->weight[c];
        }
    }
}

/* best (8 rows) = the integer scales -32 .. 31 of a sub-block, in units of the row scales d (8
 * rows). A weight is d * scale * entry, so the scale that maps the largest weight to an end of the
 * table is
 *
 *     largest / (d * end).
 *
 * Tried are FACTORS multiples of it, from low to high, for either end; then the scale of least
 * squares for the codes of the best of them. The one of least squared error wins. */
GWQ_INLINE void fit_scale(const int bits, const float *table, const struct sub_block *b,
                          const lanes *d, float low, float high, lanes *best) {
    lanes whole[RING], least[RING];
    float end[2];
    largest_in_units(b, d, whole);
    table_ends(table, entries_of(bits), end);
    for (int r = 0; r < RING; r++) {
        least[r] = all(FLT_MAX);
        best[r] = all(0);
    }
    for (int k = 0; k <= 2 * FACTORS; k++) {
        lanes units[RING], error[RING];
        if (k == 2 * FACTORS) {
            least_squares(bits, table, b, d, best, units);
        } else {
            float factor = low + (high - low) * (float)(k % FACTORS) / (FACTORS - 1);
            for (int r = 0; r < RING; r++)
                units[r] = six_bits(whole[r] * (factor / end[k / FACTORS]));
        }
        squared_error(bits, table, b, d, units, error);
        for (int r = 0; r < RING; r++) {
            flags better = (flags)(error[r] < least[r]);
            least[r] = pick(better, error[r], least[r]);
            best[r] = pick(better, units[r], best[r]);
        }
    }
}

/* --- a run of columns ------------------------------------------------------------------------- */

/* What a run of columns works on, eight rings of it */
struct work {
    lanes t[COLUMNS][RING]; /* targets, as earlier columns have changed them */
    lanes w[COLUMNS][RING]; /* weights of squared errors, 0 for an outlier */
    lanes value[COLUMNS][RING];
    flags code[COLUMNS][RING];
};

/* Index of the eight rings from `ring` on in arrays (columns, 8, rings) */
GWQ_INLINE int64_t index_of(const gwq_encoding *e, int c, int r, int64_t ring) {
    return ((int64_t)c * RING + r) * e->rings + ring;
}

GWQ_INLINE void load_work(const gwq_encoding *e, int64_t ring, struct work *k) {
    for (int c = 0; c < e->columns; c++)
        for (int r = 0; r < RING; r++) {
            int64_t at = index_of(e, c, r, ring);
            k->t[c][r] = load(e->target + at);
            lanes w = load(e->row_weight + r * e->rings + ring);
            for (int l = 0; e->outlier && l < LANES; l++)
                if (e->outlier[at + l]) w[l] = 0;
            k->w[c][r] = w;
        }
}

GWQ_INLINE void store_work(const gwq_encoding *e, int64_t ring, const struct work *k) {
    for (int c = 0; c < e->columns; c++)
        for (int r = 0; r < RING; r++) {
            int64_t at = index_of(e, c, r, ring);
            memcpy(e->target + at, &k->t[c][r], sizeof k->t[c][r]);
            memcpy(e->value + at, &k->value[c][r], sizeof k->value[c][r]);
            for (int l = 0; l < LANES; l++) e->code[at + l] = (uint8_t)k->code[c][r][l];
        }
}

/* Column c has its values: puts the outliers' own in their place, and adds its error to the targets
 * of the columns that follow, target[k] += error * feedback[c][k]. */
GWQ_INLINE void feed_back(const gwq_encoding *e, int c, int64_t ring, struct work *k) {
    for (int r = 0; r < RING; r++) {
        int64_t at = index_of(e, c, r, ring);
        lanes v = k->value[c][r];
        for (int l = 0; e->outlier && l < LANES; l++)
            if (e->outlier[at + l]) v[l] = k->t[c][r][l];
        k->value[c][r] = v;
        if (!e->feedback) continue;
        lanes error = v - (e->before ? load(e->before + at) : k->t[c][r]);
        for (int later = c + 1; later < e->columns; later++)
            k->t[later][r] += error * e->feedback[c * e->columns + later];
    }
}

/* sub: columns of a sub-block; low, high: see fit_scale */
GWQ_INLINE void encode_rings(const int bits, const int sub, const float low, const float high,
                             const gwq_encoding *e, int64_t ring, struct work *k) {
    const int64_t rings = e->rings;
    lanes d[RING], units[RING], s[RING];
    for (int r = 0; r < RING; r++) d[r] = load(e->row_scale + r * rings + ring);
    load_work(e, ring, k);
    for (int c = 0; c < e->columns; c++) {
        if (c % sub == 0) {
            int8_t *scale = e->scale + (int64_t)(c / sub) * RING * rings + ring;
            int n = e->columns - c < sub ? e->columns - c : sub;
            if (e->fit) {
                struct sub_block b = {k->t + c, k->w + c, e->column_weight + c, n};
                fit_scale(bits, e->table, &b, d, low, high, units);
            }
            for (int r = 0; r < RING; r++) {
                for (int l = 0; l < LANES; l++)
                    if (e->fit) scale[r * rings + l] = (int8_t)units[r][l];
                    else units[r][l] = scale[r * rings + l];
                s[r] = units[r] * d[r];
            }
        }
        code_column(bits, e->table, k->t[c], s, k->w[c], k->code[c], k->value[c]);
        feed_back(e, c, ring, k);
    }
    store_work(e, ring, k);
}

/* The rings first .. last-1, both multiples of 8 */
GWQ_INLINE void encode(const gwq_encoding *e, int64_t first, int64_t last) {
    struct work work;
    for (int64_t ring = first; ring < last; ring += LANES) {
        switch (e->type) {
        case GWQ_TYPE_GWQ6: encode_rings(6, 16, 0.85f, 1.1f, e, ring, &work); break;
        case GWQ_TYPE_GWQ5: encode_rings(5, 16, 0.8f, 1.15f, e, ring, &work); break;
        case GWQ_TYPE_GWQ4: encode_rings(4, 16, 0.75f, 1.2f, e, ring, &work); break;
        case GWQ_TYPE_GWQ3: encode_rings(3, 32, 0.6f, 1.4f, e, ring, &work); break;
        default: encode_rings(2, 32, 0.6f, 1.4f, e, ring, &work);
        }
    }
}
#endif
