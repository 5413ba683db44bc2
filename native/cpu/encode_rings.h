/* The search for the codes of a ring, which depend on each other: a shortest path through a closed
 * trellis, exactly, and with error feedback inside the ring for what a path carries along. */
#ifndef GWQ_ENCODE_RINGS_H
#define GWQ_ENCODE_RINGS_H
#include "encode_lanes.h"

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

/* The codes c[0] .. c[n-1] of a ring, as they are coded, in all rows of a vector at once. t:
 * targets; w: how much squared errors count; s: the scale. Wanted is the least
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
 * The least cost[n-1][S] over S wins. `least_cost` finds that S, `best_windows` the path from it.
 */
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
 * carries the errors of its codes along, and what a code costs is what it adds to the quadratic
 * form whose gradient the feedback is; paths are dropped as without. */
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
#endif
