/* The encoder of tile types: for each column the codes of least error, for each sub-block the scale
 * of least error. One text, compiled once per instruction set by the files that include it; without
 * fused multiply-adds, so that each of them gives the same bits.
 *
 * A row's codes do not depend on those of other rows: 64 rows are encoded at a time, eight or 16
 * in the lanes of a vector. Columns are taken in the order in which the neighbour of a code (see
 * gwq_format.h) comes before it. */
#ifndef GWQ_ENCODE_H
#define GWQ_ENCODE_H
#include "encode_rings.h"

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
 * (VECTORS). A weight is d * scale * entry, so the scale that maps the largest weight to an end of
 * the table is
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
