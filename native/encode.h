/* Codes for weights: per column the best path through the trellis, per sub-block the best scale. One text, compiled once per
 * instruction set by the files that include it; without fused multiply-adds, so every one gives the same bits.
 *
 * Eight rings (see gwq_format.h) are coded at a time, one per lane. Arrays of the caller are (columns, 8 ring rows, rings). */
#include <float.h>
#include <string.h>
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, RING = GWQ_RING, COLUMNS = GWQ_BLOCK, WINDOWS = 16, FACTORS = 8 };

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t flags __attribute__((vector_size(4 * LANES)));

INLINE lanes all(float v) { return (lanes){0} + v; }
INLINE lanes load(const float *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE lanes pick(flags mask, lanes a, lanes b) { return (lanes)((mask & (flags)a) | (~mask & (flags)b)); }
INLINE flags picki(flags mask, flags a, flags b) { return (mask & a) | (~mask & b); }
INLINE lanes magnitude(lanes v) { return (lanes)((flags)v & 0x7fffffff); }
/* to the nearest integer, even on a tie; |v| < 2^22 */
INLINE lanes nearest(lanes v) {
    lanes magic = all(0x1.8p23f);
    return v + magic - magic;
}
/* a scale */
INLINE lanes six_bits(lanes v) {
    v = nearest(v);
    return pick((flags)(v > 31), all(31), pick((flags)(v < -32), all(-32), v));
}
INLINE lanes look_up(const float *table, flags at) {
    lanes v;
    for (int l = 0; l < LANES; l++) v[l] = table[at[l]];
    return v;
}

/* One column: t, its weights as targets; s, their scales (row scale included); w, the weights of their squared errors, all
 * (8 rows). Finds the codes, a ring at a time, that have the least error, and their values. */
INLINE void code_column(const int bits, const float *table, const lanes *t, const lanes *s, const lanes *w, flags *code, lanes *value) {
    const int history = 4 - bits, states = 1 << history, low = (1 << bits) >> history; /* state: what the next row sees */
    if (!history) { /* the table ascends */
        for (int r = 0; r < RING; r++) {
            flags at = {0};
            lanes x = (lanes)((flags)t[r] ^ ((flags)s[r] & (int32_t)0x80000000u)), m = magnitude(s[r]);
            for (int v = 0; v + 1 < WINDOWS; v++) at -= (flags)(x > m * (0.5f * (table[v] + table[v + 1])));
            code[r] = at, value[r] = s[r] * look_up(table, at);
        }
        return;
    }
    lanes error[RING][WINDOWS], least = all(FLT_MAX);
    flags from[4][RING][4], first = {0}, at;
    for (int r = 0; r < RING; r++)
        for (int v = 0; v < WINDOWS; v++) {
            lanes e = t[r] - s[r] * table[v];
            error[r][v] = e * e * w[r];
        }
    for (int start = 0; start < states; start++) { /* what row 0 sees, and so what row 7 must pass on */
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
                next[state] = best, from[start][r][state] = how;
            }
            memcpy(cost, next, sizeof cost);
        }
        flags better = (flags)(cost[start] < least);
        least = pick(better, cost[start], least);
        first = picki(better, (flags){0} + start, first);
    }
    at = first;
    for (int r = RING - 1; r >= 0; r--) {
        flags window = {0};
        for (int start = 0; start < states; start++)
            for (int state = 0; state < states; state++)
                if (r + 1 < RING || state == start)
                    window = picki((flags)(first == start) & (flags)(at == state), from[start][r][state], window);
        code[r] = window & ((1 << bits) - 1);
        value[r] = s[r] * look_up(table, window);
        at = window >> bits;
    }
}

/* What a run of columns works on, eight rings of it. */
struct work {
    lanes t[COLUMNS][RING], w[COLUMNS][RING], value[COLUMNS][RING];
    flags code[COLUMNS][RING];
};

/* Integer scales -32 .. 31 of a sub-block of n columns, in units of d: the best of a few between the ones that map the
 * largest weight to either end of the table, then what least squares makes of it. weight (n): of the columns. */
INLINE void fit_scale(const int bits, const float *table, const lanes (*t)[RING], const lanes (*w)[RING], const float *weight, int n,
                      const lanes *d, float low, float high, lanes *best) {
    lanes extreme[RING], inverse[RING], least[RING];
    flags code[RING];
    for (int r = 0; r < RING; r++) {
        extreme[r] = all(0), least[r] = all(FLT_MAX), best[r] = all(0);
        for (int c = 0; c < n; c++)
            extreme[r] = pick((flags)(w[c][r] > 0) & (flags)(magnitude(t[c][r]) > magnitude(extreme[r])), t[c][r], extreme[r]);
        inverse[r] = pick((flags)(d[r] > 0), 1 / pick((flags)(d[r] > 0), d[r], all(1)), all(0));
    }
    float end[2] = {table[0], table[0]};
    for (int v = 0; v < WINDOWS; v++) {
        if (table[v] < end[0]) end[0] = table[v];
        if (table[v] > end[1]) end[1] = table[v];
    }
    for (int i = 0; i < 2; i++)
        if (!end[i]) end[i] = 1; /* a table that does not reach there */
    for (int k = 0; k < 2 * FACTORS + 1; k++) {
        lanes units[RING], s[RING], error[RING], value[RING];
        for (int r = 0; r < RING; r++) {
            float factor = low + (high - low) * (float)(k % FACTORS) / (FACTORS - 1);
            lanes whole = extreme[r] * inverse[r]; /* the largest weight in units of d */
            units[r] = six_bits(pick((flags)(magnitude(whole) < 1e6f), whole, all(0)) * (factor / end[k / FACTORS & 1]));
        }
        if (k == 2 * FACTORS) { /* least squares */
            lanes up[RING], down[RING];
            for (int r = 0; r < RING; r++) up[r] = down[r] = all(0), s[r] = best[r] * d[r];
            for (int c = 0; c < n; c++) {
                code_column(bits, table, t[c], s, w[c], code, value);
                for (int r = 0; r < RING; r++) {
                    lanes x = value[r] * w[c][r] * weight[c];
                    up[r] += x * t[c][r], down[r] += x * value[r];
                }
            }
            for (int r = 0; r < RING; r++) {
                lanes x = pick((flags)(down[r] > 0), up[r] / pick((flags)(down[r] > 0), down[r], all(1)), all(1));
                units[r] = six_bits(best[r] * pick((flags)(magnitude(x) < 4), x, all(1)));
            }
        }
        for (int r = 0; r < RING; r++) s[r] = units[r] * d[r], error[r] = all(0);
        for (int c = 0; c < n; c++) {
            code_column(bits, table, t[c], s, w[c], code, value);
            for (int r = 0; r < RING; r++) {
                lanes e = t[c][r] - value[r];
                error[r] += e * e * w[c][r] * weight[c];
            }
        }
        for (int r = 0; r < RING; r++) {
            flags better = (flags)(error[r] < least[r]);
            least[r] = pick(better, error[r], least[r]);
            best[r] = pick(better, units[r], best[r]);
        }
    }
}

INLINE void encode_rings(const int bits, const int sub, const float low, const float high, const gwq_encoding *e, int64_t ring, struct work *k) {
    const int64_t rings = e->rings;
    lanes d[RING], units[RING], s[RING];
    for (int r = 0; r < RING; r++) d[r] = load(e->row_scale + r * rings + ring);
    for (int c = 0; c < e->columns; c++)
        for (int r = 0; r < RING; r++) {
            int64_t at = ((int64_t)c * RING + r) * rings + ring;
            k->t[c][r] = load(e->target + at);
            lanes w = load(e->row_weight + r * rings + ring);
            for (int l = 0; e->outlier && l < LANES; l++)
                if (e->outlier[at + l]) w[l] = 0;
            k->w[c][r] = w;
        }
    for (int c = 0; c < e->columns; c++) {
        if (c % sub == 0) {
            int8_t *scale = e->scale + (int64_t)(c / sub) * RING * rings + ring;
            int n = e->columns - c < sub ? e->columns - c : sub;
            if (e->fit) fit_scale(bits, e->table, k->t + c, k->w + c, e->column_weight + c, n, d, low, high, units);
            for (int r = 0; r < RING; r++) {
                for (int l = 0; l < LANES; l++)
                    if (e->fit) scale[r * rings + l] = (int8_t)units[r][l];
                    else units[r][l] = scale[r * rings + l];
                s[r] = units[r] * d[r];
            }
        }
        code_column(bits, e->table, k->t[c], s, k->w[c], k->code[c], k->value[c]);
        for (int r = 0; r < RING; r++) {
            int64_t at = ((int64_t)c * RING + r) * rings + ring;
            lanes v = k->value[c][r];
            for (int l = 0; e->outlier && l < LANES; l++)
                if (e->outlier[at + l]) v[l] = k->t[c][r][l]; /* held out exactly */
            k->value[c][r] = v;
            if (!e->feedback) continue;
            lanes error = v - (e->before ? load(e->before + at) : k->t[c][r]);
            for (int later = c + 1; later < e->columns; later++)
                k->t[later][r] += error * e->feedback[c * e->columns + later];
        }
    }
    for (int c = 0; c < e->columns; c++)
        for (int r = 0; r < RING; r++) {
            int64_t at = ((int64_t)c * RING + r) * rings + ring;
            memcpy(e->target + at, &k->t[c][r], sizeof k->t[c][r]);
            memcpy(e->value + at, &k->value[c][r], sizeof k->value[c][r]);
            for (int l = 0; l < LANES; l++) e->code[at + l] = (uint8_t)k->code[c][r][l];
        }
}

/* The rings first .. last-1, both multiples of 8. */
INLINE void encode(const gwq_encoding *e, int64_t first, int64_t last) {
    struct work work;
    for (int64_t ring = first; ring < last; ring += LANES) {
        if (e->type == GWQ_TYPE_GWQ4) encode_rings(4, 16, 0.75f, 1.2f, e, ring, &work);
        else if (e->type == GWQ_TYPE_GWQ3) encode_rings(3, 32, 0.6f, 1.4f, e, ring, &work);
        else encode_rings(2, 32, 0.6f, 1.4f, e, ring, &work);
    }
}
