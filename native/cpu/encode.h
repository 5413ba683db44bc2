/* The encoder of tile types: for each column the codes of least error, for each sub-block the scale
 * of least error. One text, compiled once per instruction set by the files that include it; without
 * fused multiply-adds, so that each of them gives the same bits.
 *
 * A row's codes do not depend on those of other rows: 64 rows are encoded at a time, eight in the
 * lanes of a vector. Columns are taken in the order in which the neighbour of a code (see
 * gwq_format.h) comes before it. */
#ifndef GWQ_ENCODE_H
#define GWQ_ENCODE_H
#include <float.h>
#include <string.h>
#include "kernels.h"

enum {
    LANES = 8,   /* rows of a vector */
    VECTORS = 8, /* vectors at a time */
    COLUMNS = GWQ_BLOCK,
    WINDOWS = 16, /* entries of a table, of the types of up to four bits */
    STATES = 4,   /* at most: what a code passes on to the next one's window */
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

/* --- codes without history -------------------------------------------------------------------- */

/* Without history every row stands alone: the nearest entry of a table that ascends. t / s lies
 * above entry v where it lies above the middle between v and v + 1; s may be negative, so both
 * sides are multiplied by |s|. */
GWQ_INLINE void nearest_codes(const int bits, const float *table, const lanes *t, const lanes *s,
                              flags *code, lanes *value) {
    for (int r = 0; r < VECTORS; r++) {
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

/* --- codes of a ring -------------------------------------------------------------------------- */

enum { RING = GWQ_RING2, UNIT = 32 }; /* at most: codes of a ring, columns of whole rings */

/* Codes of a ring; 1 without history */
GWQ_INLINE int ring_of(int bits) { return bits == 2 ? GWQ_RING2 : bits == 3 ? GWQ_RING3 : 1; }

/* Columns that whole rings take up */
GWQ_INLINE int unit_of(int bits) { return bits == 2 ? 16 : bits == 3 ? 32 : 1; }

/* The column that is coded c-th: in a ring, backwards in the order of its bits */
GWQ_INLINE int column_of(int bits, int c) {
    if (bits > 3) return c;
    const int unit = unit_of(bits), k = unit - 1 - c % unit;
    return c / unit * unit + 4 * (k % (unit / 4)) + k / (unit / 4);
}

/* The codes c[0] .. c[n-1] of a ring of eight rows, as they are coded. t: targets; w: how much
 * squared errors count; s: the scale. Wanted is the least
 *
 *     sum over k of  w[k] * (t[k] - s * table[window(k)])^2,
 *     window(k) = c[k] | state(c[k - 1]) << bits,   state(c) = c & (states - 1),
 *
 * where 0 comes after n-1. This is a shortest path through a trellis whose states are what a code
 * passes on to the next (Viterbi). The path is closed, so it is searched once for each state S that
 * the last code may pass on to the first:
 *
 *     cost[0][state] = min over c of state                 of error[0][c | S << bits]
 *     cost[k][state] = min over c of state, and over seen, of error[k][c | seen << bits]
 *                                                             + cost[k - 1][seen]
 *
 * The least cost[n-1][S] over S wins. `least_cost` finds that S, `best_windows` the path from it. */
struct ring {
    const float *table;
    lanes t[RING], w[RING], s;
    /* with feedback among the codes of the ring: */
    const float (*gain)[RING]; /* target[k] += gain[j][k] * error[j] for j < k, or NULL */
    const lanes *before;       /* error = value - before; NULL: error = value - target */
    flags held[RING];          /* not coded: the value is the target */
};

GWQ_INLINE lanes lesser(lanes a, lanes b) {
    lanes v;
    for (int l = 0; l < LANES; l++) v[l] = a[l] < b[l] ? a[l] : b[l]; /* gcc sees one instruction */
    return v;
}

/* The least cost without feedback, and the S that has it. Of the codes of one state only the best
 * counts, whatever S is. */
GWQ_INLINE lanes least_cost(const int bits, const struct ring *g, flags *first) {
    const int n = ring_of(bits), states = 1 << (4 - bits), codes = 1 << bits;
    lanes branch[RING][STATES][STATES], least = all(FLT_MAX); /* [k][seen][state] */
    lanes value[WINDOWS];
    for (int v = 0; v < WINDOWS; v++) value[v] = g->s * g->table[v];
    *first = (flags){0};
#pragma GCC unroll 1
    for (int k = 0; k < n; k++)
        for (int seen = 0; seen < states; seen++)
            for (int state = 0; state < states; state++) {
                lanes best = all(FLT_MAX);
                for (int c = state; c < codes; c += states) {
                    lanes e = g->t[k] - value[c | seen << bits];
                    best = c < states ? e * e : lesser(e * e, best);
                }
                branch[k][seen][state] = best * g->w[k];
            }
#pragma GCC unroll 1
    for (int start = 0; start < states; start++) {
        lanes cost[STATES], next[STATES];
        memcpy(cost, branch[0][start], sizeof cost);
#pragma GCC unroll 1
        for (int k = 1; k < n; k++) {
            for (int state = 0; state < states; state++) {
                next[state] = cost[0] + branch[k][0][state];
                for (int seen = 1; seen < states; seen++)
                    next[state] = lesser(cost[seen] + branch[k][seen][state], next[state]);
            }
            memcpy(cost, next, sizeof cost);
        }
        *first = picki((flags)(cost[start] < least), (flags){0} + start, *first);
        least = lesser(cost[start], least);
    }
    return least;
}

/* What a path that ends in a state costs, and its errors so far */
struct path {
    lanes cost, error[RING];
};

/* The windows of the best path, whose first code sees the state `first`. With feedback every path
 * carries the errors of its codes along, and what a code costs is what it adds to the quadratic form
 * whose gradient the feedback is; paths are dropped as without. */
GWQ_INLINE void best_windows(const int bits, const int fed, const struct ring *g,
                             const flags first, flags *window) {
    const int n = ring_of(bits), states = 1 << (4 - bits), codes = 1 << bits;
    flags from[RING][STATES]; /* [k][state]: the window of k on the best path to it */
    struct path now[STATES], next[STATES];
    lanes value[WINDOWS];
    for (int v = 0; v < WINDOWS; v++) value[v] = g->s * g->table[v];
    for (int state = 0; state < states; state++)
        now[state].cost = pick((flags)(first == state), all(0), all(FLT_MAX));
#pragma GCC unroll 1
    for (int k = 0; k < n; k++) {
        lanes target[STATES];
        for (int state = 0; state < states; state++) {
            next[state].cost = all(FLT_MAX);
            from[k][state] = (flags){0};
        }
        for (int seen = 0; seen < states; seen++) {
            target[seen] = g->t[k];
#pragma GCC unroll 1
            for (int j = 0; fed && j < k; j++)
                target[seen] += now[seen].error[j] * g->gain[j][k];
            for (int c = 0; c < codes; c++) {
                const int state = c & (states - 1);
                lanes v = value[c | seen << bits], e = v - target[seen];
                lanes cost = e * e;
                if (fed && g->before)
                    cost = (v - g->before[k]) * (e + (g->before[k] - target[seen]));
                cost = cost * g->w[k] + now[seen].cost;
                flags better = (flags)(cost < next[state].cost);
                next[state].cost = pick(better, cost, next[state].cost);
                from[k][state] = picki(better, (flags){0} + (c | seen << bits), from[k][state]);
            }
        }
        for (int state = 0; fed && k + 1 < n && state < states; state++) {
            flags seen = from[k][state] >> bits, here[STATES];
            for (int s = 1; s < states; s++) here[s] = (flags)(seen == s);
            lanes aim = target[0];
            for (int s = 1; s < states; s++) aim = pick(here[s], target[s], aim);
#pragma GCC unroll 1
            for (int j = 0; j < k; j++) {
                lanes error = now[0].error[j];
                for (int s = 1; s < states; s++) error = pick(here[s], now[s].error[j], error);
                next[state].error[j] = error;
            }
            lanes v = pick(g->held[k], aim, g->s * look_up(g->table, from[k][state]));
            next[state].error[k] = v - (g->before ? g->before[k] : aim);
        }
        for (int state = 0; state < states; state++) {
            now[state].cost = next[state].cost;
#pragma GCC unroll 1
            for (int j = 0; fed && j <= k; j++) now[state].error[j] = next[state].error[j];
        }
    }
    flags at = first; /* the state that code k passes on; windows are read backwards */
#pragma GCC unroll 1
    for (int k = n - 1; k >= 0; k--) {
        window[k] = from[k][0];
        for (int state = 1; state < states; state++)
            window[k] = picki((flags)(at == state), from[k][state], window[k]);
        at = window[k] >> bits;
    }
}

/* Not inlined: the compiler takes minutes for copies of them. */
#define RING_TYPE(bits)                                                                     \
    static __attribute__((noinline)) lanes least_cost##bits(const struct ring *g,           \
                                                            flags *first) {                 \
        return least_cost(bits, g, first);                                                  \
    }                                                                                       \
    static __attribute__((noinline)) void windows##bits(const struct ring *g,               \
                                                        flags *window) {                    \
        flags first;                                                                        \
        least_cost##bits(g, &first);                                                        \
        if (g->gain) best_windows(bits, 1, g, first, window);                               \
        else best_windows(bits, 0, g, first, window);                                       \
    }
RING_TYPE(2)
RING_TYPE(3)

GWQ_INLINE lanes ring_cost(const int bits, const struct ring *g) {
    flags first;
    return bits == 2 ? least_cost2(g, &first) : least_cost3(g, &first);
}
GWQ_INLINE void ring_windows(const int bits, const struct ring *g, flags *window) {
    if (bits == 2) windows2(g, window);
    else windows3(g, window);
}

/* --- scale of a sub-block --------------------------------------------------------------------- */

/* A sub-block of n columns, as they are coded: targets t and weights of squared errors w, (n,
 * VECTORS); `weight` (n), by which those of a column are multiplied. */
struct sub_block {
    const lanes (*t)[VECTORS];
    const lanes (*w)[VECTORS];
    const float *weight;
    int n;
};

/* The ring of vector r that begins at c */
GWQ_INLINE void ring_at(const int bits, const float *table, const struct sub_block *b, int c,
                        int r, lanes s, struct ring *g) {
    g->table = table;
    g->s = s;
    g->gain = NULL;
    for (int k = 0; k < ring_of(bits); k++) {
        g->t[k] = b->t[c + k][r];
        g->w[k] = b->w[c + k][r] * b->weight[c + k];
    }
}

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

/* The largest entry that a ring of equal codes has: what equal weights can be in all of it */
GWQ_INLINE float equal_entry(const int bits, const float *table) {
    const int states = 1 << (4 - bits);
    float most = 1;
    for (int c = 0; c < 1 << bits; c++) {
        float v = table[c | (c & (states - 1)) << bits];
        if (v * v > most * most) most = v;
    }
    return most;
}

/* whole (VECTORS) = the largest weight of each row in units of the row scale d */
GWQ_INLINE void largest_in_units(const struct sub_block *b, const lanes *d, lanes *whole) {
    for (int r = 0; r < VECTORS; r++) {
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
    lanes up[VECTORS], down[VECTORS], s[VECTORS], value[VECTORS];
    flags code[VECTORS];
    for (int r = 0; r < VECTORS; r++) {
        up[r] = down[r] = all(0);
        s[r] = best[r] * d[r];
    }
    for (int c = 0; bits > 3 && c < b->n; c++) {
        code_column(bits, table, b->t[c], s, code, value);
        for (int r = 0; r < VECTORS; r++) {
            lanes x = value[r] * b->w[c][r] * b->weight[c];
            up[r] += x * b->t[c][r];
            down[r] += x * value[r];
        }
    }
    for (int c = 0; bits <= 3 && c < b->n; c += ring_of(bits))
        for (int r = 0; r < VECTORS; r++) {
            struct ring g;
            flags window[RING];
            ring_at(bits, table, b, c, r, s[r], &g);
            ring_windows(bits, &g, window);
            for (int k = 0; k < ring_of(bits); k++) {
                lanes v = s[r] * look_up(table, window[k]), x = v * g.w[k];
                up[r] += x * g.t[k];
                down[r] += x * v;
            }
        }
    for (int r = 0; r < VECTORS; r++) {
        flags some = (flags)(down[r] > 0);
        lanes x = pick(some, up[r] / pick(some, down[r], all(1)), all(1));
        units[r] = six_bits(best[r] * pick((flags)(magnitude(x) < 4), x, all(1)));
    }
}

/* error (VECTORS) = sum over the columns of w * weight * (t - value)^2 with the codes that the
 * scales `units` lead to */
GWQ_INLINE void squared_error(const int bits, const float *table, const struct sub_block *b,
                              const lanes *d, const lanes *units, lanes *error) {
    lanes s[VECTORS], value[VECTORS];
    flags code[VECTORS];
    for (int r = 0; r < VECTORS; r++) {
        s[r] = units[r] * d[r];
        error[r] = all(0);
    }
    for (int c = 0; bits > 3 && c < b->n; c++) {
        code_column(bits, table, b->t[c], s, code, value);
        for (int r = 0; r < VECTORS; r++) {
            lanes e = b->t[c][r] - value[r];
            error[r] += e * e * b->w[c][r] * b->weight[c];
        }
    }
    for (int c = 0; bits <= 3 && c < b->n; c += ring_of(bits))
        for (int r = 0; r < VECTORS; r++) {
            struct ring g;
            ring_at(bits, table, b, c, r, s[r], &g);
            error[r] += ring_cost(bits, &g);
        }
}

/* best (VECTORS) = the integer scales -32 .. 31 of a sub-block, in units of the row scales d
 * (VECTORS). A weight is d * scale * entry, so the scale that maps the largest weight to an end of the
 * table is
 *
 *     largest / (d * end).
 *
 * Tried are FACTORS multiples of it, from low to high, for either end; in rings also the scale that
 * suits a sub-block of equal weights, which the ends need not; then the scale of least squares for
 * the codes of the best of them. The one of least squared error wins. */
GWQ_INLINE void fit_scale(const int bits, const float *table, const struct sub_block *b,
                          const lanes *d, float low, float high, lanes *best) {
    lanes whole[VECTORS], least[VECTORS];
    float end[2];
    largest_in_units(b, d, whole);
    table_ends(table, entries_of(bits), end);
    for (int r = 0; r < VECTORS; r++) {
        least[r] = all(FLT_MAX);
        best[r] = all(0);
    }
    const int tries = 2 * FACTORS + (bits < 4);
    for (int k = 0; k <= tries; k++) {
        lanes units[VECTORS], error[VECTORS];
        if (k == tries) {
            least_squares(bits, table, b, d, best, units);
        } else if (k == 2 * FACTORS) {
            float entry = equal_entry(bits, table);
            for (int r = 0; r < VECTORS; r++) units[r] = six_bits(whole[r] / entry);
        } else {
            float factor = low + (high - low) * (float)(k % FACTORS) / (FACTORS - 1);
            for (int r = 0; r < VECTORS; r++)
                units[r] = six_bits(whole[r] * (factor / end[k / FACTORS]));
        }
        squared_error(bits, table, b, d, units, error);
        for (int r = 0; r < VECTORS; r++) {
            flags better = (flags)(error[r] < least[r]);
            least[r] = pick(better, error[r], least[r]);
            best[r] = pick(better, units[r], best[r]);
        }
    }
}

/* --- a run of columns ------------------------------------------------------------------------- */

/* What a run of columns works on, 64 rows of it, in the order in which columns are coded */
struct work {
    int column[COLUMNS];
    float weight[COLUMNS], cost[COLUMNS]; /* of the columns, see gwq_encoding */
    lanes t[COLUMNS][VECTORS]; /* targets, as earlier columns have changed them */
    lanes w[COLUMNS][VECTORS]; /* weights of squared errors, 0 for an outlier */
    lanes value[COLUMNS][VECTORS];
    flags code[COLUMNS][VECTORS];
};

/* Index of the r-th vector of the 64 rows from `row` on in arrays (columns, rows) */
GWQ_INLINE int64_t index_of(const gwq_encoding *e, const struct work *k, int c, int r,
                            int64_t row) {
    return (int64_t)k->column[c] * e->rows + row + r * LANES;
}

GWQ_INLINE void load_work(const int bits, const gwq_encoding *e, int64_t row, struct work *k) {
    for (int c = 0; c < e->columns; c++) {
        k->column[c] = column_of(bits, c);
        k->weight[c] = e->column_weight ? e->column_weight[k->column[c]] : 1;
        k->cost[c] = e->column_cost ? e->column_cost[k->column[c]] : 1;
        for (int r = 0; r < VECTORS; r++) {
            int64_t at = index_of(e, k, c, r, row);
            k->t[c][r] = load(e->target + at);
            lanes w = load(e->row_weight + row + r * LANES);
            for (int l = 0; e->outlier && l < LANES; l++)
                if (e->outlier[at + l]) w[l] = 0;
            k->w[c][r] = w;
        }
    }
}

GWQ_INLINE void store_work(const gwq_encoding *e, int64_t row, const struct work *k) {
    for (int c = 0; c < e->columns; c++)
        for (int r = 0; r < VECTORS; r++) {
            int64_t at = index_of(e, k, c, r, row);
            memcpy(e->target + at, &k->t[c][r], sizeof k->t[c][r]);
            memcpy(e->value + at, &k->value[c][r], sizeof k->value[c][r]);
            for (int l = 0; l < LANES; l++) e->code[at + l] = (uint8_t)k->code[c][r][l];
        }
}

GWQ_INLINE float gain_of(const gwq_encoding *e, const struct work *k, int c, int later) {
    return e->feedback[k->column[c] * e->columns + k->column[later]];
}

/* Column c has its values: puts the outliers' own in their place, and adds its error to the targets
 * of the columns that follow, target[k] += error * feedback[c][k]. */
GWQ_INLINE void feed_back(const gwq_encoding *e, int c, int64_t row, struct work *k) {
    for (int r = 0; r < VECTORS; r++) {
        int64_t at = index_of(e, k, c, r, row);
        lanes v = k->value[c][r];
        for (int l = 0; e->outlier && l < LANES; l++)
            if (e->outlier[at + l]) v[l] = k->t[c][r][l];
        k->value[c][r] = v;
        if (!e->feedback) continue;
        lanes error = v - (e->before ? load(e->before + at) : k->t[c][r]);
        for (int later = c + 1; later < e->columns; later++)
            k->t[later][r] += error * gain_of(e, k, c, later);
    }
}

/* Codes and values of the rings that begin at column c; s: their scales */
GWQ_INLINE void code_rings(const int bits, const gwq_encoding *e, int c, int64_t row,
                           const lanes *s, struct work *k) {
    const int n = ring_of(bits);
    const struct sub_block b = {k->t, k->w, k->cost, e->columns};
    float gain[RING][RING];
    lanes before[RING];
    for (int i = 0; e->feedback && i < n; i++)
        for (int j = 0; j < n; j++) gain[i][j] = gain_of(e, k, c + i, c + j);
    for (int r = 0; r < VECTORS; r++) {
        struct ring g;
        flags window[RING];
        ring_at(bits, e->table, &b, c, r, s[r], &g);
        g.gain = e->feedback ? (const float(*)[RING])gain : NULL;
        g.before = e->before ? before : NULL;
        for (int i = 0; i < n; i++) {
            g.held[i] = (flags)(k->w[c + i][r] == 0);
            if (e->before) before[i] = load(e->before + index_of(e, k, c + i, r, row));
        }
        ring_windows(bits, &g, window);
        for (int i = 0; i < n; i++) {
            k->code[c + i][r] = window[i] & ((1 << bits) - 1);
            k->value[c + i][r] = s[r] * look_up(e->table, window[i]);
        }
    }
}

/* sub: columns of a sub-block; low, high: see fit_scale */
GWQ_INLINE void encode_rows(const int bits, const int sub, const float low, const float high,
                            const gwq_encoding *e, int64_t row, struct work *k) {
    const int n = ring_of(bits);
    lanes d[VECTORS], units[VECTORS], s[VECTORS];
    for (int r = 0; r < VECTORS; r++) d[r] = load(e->row_scale + row + r * LANES);
    load_work(bits, e, row, k);
    for (int c = 0; c < e->columns; c += n) {
        if (c % sub == 0) {
            int8_t *scale = e->scale + (int64_t)(c / sub) * e->rows + row;
            if (e->fit) {
                int count = e->columns - c < sub ? e->columns - c : sub;
                struct sub_block b = {k->t + c, k->w + c, k->weight + c, count};
                fit_scale(bits, e->table, &b, d, low, high, units);
            }
            for (int r = 0; r < VECTORS; r++) {
                for (int l = 0; l < LANES; l++)
                    if (e->fit) scale[r * LANES + l] = (int8_t)units[r][l];
                    else units[r][l] = scale[r * LANES + l];
                s[r] = units[r] * d[r];
            }
        }
        if (n > 1) code_rings(bits, e, c, row, s, k);
        else code_column(bits, e->table, k->t[c], s, k->code[c], k->value[c]);
        for (int i = 0; i < n; i++) feed_back(e, c + i, row, k);
    }
    store_work(e, row, k);
}

/* The rows first .. last-1, both multiples of 64 */
GWQ_INLINE void encode(const gwq_encoding *e, int64_t first, int64_t last) {
    struct work work;
    for (int64_t row = first; row < last; row += LANES * VECTORS) {
        switch (e->type) {
        case GWQ_TYPE_GWQ6: encode_rows(6, 16, 0.85f, 1.1f, e, row, &work); break;
        case GWQ_TYPE_GWQ5: encode_rows(5, 16, 0.8f, 1.15f, e, row, &work); break;
        case GWQ_TYPE_GWQ4: encode_rows(4, 16, 0.75f, 1.2f, e, row, &work); break;
        case GWQ_TYPE_GWQ3: encode_rows(3, 32, 0.6f, 1.4f, e, row, &work); break;
        default: encode_rows(2, 32, 0.6f, 1.4f, e, row, &work);
        }
    }
}
#endif
