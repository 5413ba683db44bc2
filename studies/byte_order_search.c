/* The search of the study of byte orders: as native/cpu/encode.h, for any shape of a ring.
 *
 * A group is what is coded together: `rows` x `columns` weights, cell k of which lies in row
 * row[k] and column column[k], columns ascending. Either it is a ring of windows,
 *
 *     window(k) = c[k] | (c[k - 1] >> (bits - history)) << bits,     cell 0 after the last one,
 *     value(k) = table[window(k)],
 *
 * searched by Viterbi's algorithm once for each state that closes it; or a book of `words`, tried
 * one by one: value(k) = table[word * cells + k].
 *
 * Eight groups lie side by side, one per lane. Arrays are (columns, rows, groups). */
#include <float.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 8, CELLS = 16, STATES = 4, SUB = 32, FACTORS = 8 };
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t flags __attribute__((vector_size(4 * LANES)));

typedef struct {
    int rows, columns, bits, history, words;
    int row[CELLS], column[CELLS];
    const float *table;
} coding;

#define INLINE static inline __attribute__((always_inline))

INLINE lanes all(float v) { return (lanes){0} + v; }
INLINE flags picki(flags m, flags a, flags b) { return (m & a) | (~m & b); }
INLINE lanes pick(flags m, lanes a, lanes b) { return (lanes)picki(m, (flags)a, (flags)b); }
INLINE lanes magnitude(lanes v) { return (lanes)((flags)v & 0x7fffffff); }
INLINE lanes load(const float *p) {
    lanes v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE lanes six_bits(lanes v) {
    lanes magic = all(0x1.8p23f);
    v = v + magic - magic;
    return pick((flags)(v > 31), all(31), pick((flags)(v < -32), all(-32), v));
}

/* A group's best: what it costs, and of each cell its window or word, its value, and its error,
 * which is that beside the target that the errors before it in its row have moved. */
typedef struct {
    lanes cost, value[CELLS], error[CELLS];
    flags index[CELLS];
} path;

/* The target of cell k. gain[a][b]: what column b's target takes of column a's error; or NULL */
INLINE lanes moved(const coding *c, const lanes *t, const float *gain, const lanes *error, int k) {
    lanes v = t[k];
    for (int j = 0; gain && j < k; j++)
        if (c->row[j] == c->row[k]) v += error[j] * gain[c->column[j] * c->columns + c->column[k]];
    return v;
}

INLINE void take(flags better, const path *from, path *to, int cells) {
    to->cost = pick(better, from->cost, to->cost);
    for (int k = 0; k < cells; k++) {
        to->value[k] = pick(better, from->value[k], to->value[k]);
        to->error[k] = pick(better, from->error[k], to->error[k]);
        to->index[k] = picki(better, from->index[k], to->index[k]);
    }
}

static void search_book(const coding *c, const lanes *t, const lanes *s, const float *w,
                        const float *gain, path *best) {
    const int cells = c->rows * c->columns;
    path p;
    best->cost = all(FLT_MAX);
    for (int word = 0; word < c->words; word++) {
        p.cost = all(0);
        for (int k = 0; k < cells; k++) {
            p.value[k] = s[k] * c->table[word * cells + k];
            p.error[k] = p.value[k] - moved(c, t, gain, p.error, k);
            p.cost += p.error[k] * p.error[k] * w[c->column[k]];
            p.index[k] = (flags){0} + word;
        }
        take((flags)(p.cost < best->cost), &p, best, cells);
    }
}

/* Without feedback inside the group: what cell k costs does not depend on the path so far, so the
 * best window of every state is kept and read backwards. */
INLINE void search_plain(const int bits, const int history, const coding *c, const lanes *t,
                         const lanes *s, const float *w, path *best) {
    const int cells = c->rows * c->columns, states = 1 << history, low = (1 << bits) >> history;
    const int windows = 1 << (bits + history);
    lanes cost[CELLS][16], least = all(FLT_MAX);
    flags how[STATES][CELLS][STATES], first = {0}, at;
    for (int k = 0; k < cells; k++)
        for (int v = 0; v < windows; v++) {
            lanes e = s[k] * c->table[v] - t[k];
            cost[k][v] = e * e * w[c->column[k]];
        }
    for (int start = 0; start < states; start++) {
        lanes now[STATES] = {{0}}, next[STATES] = {{0}};
        for (int k = 0; k < cells; k++) {
            for (int state = 0; state < states; state++) {
                lanes lowest = all(FLT_MAX);
                flags window = {0};
                for (int seen = k ? 0 : start; seen < (k ? states : start + 1); seen++)
                    for (int code = state * low; code < (state + 1) * low; code++) {
                        int v = code | seen << bits;
                        lanes sum = k ? cost[k][v] + now[seen] : cost[k][v];
                        flags better = (flags)(sum < lowest);
                        lowest = pick(better, sum, lowest);
                        window = picki(better, (flags){0} + v, window);
                    }
                next[state] = lowest;
                how[start][k][state] = window;
            }
            memcpy(now, next, sizeof now);
        }
        flags better = (flags)(now[start] < least);
        least = pick(better, now[start], least);
        first = picki(better, (flags){0} + start, first);
    }
    best->cost = least;
    at = first;
    for (int k = cells - 1; k >= 0; k--) {
        flags window = {0};
        for (int start = 0; start < states; start++)
            for (int state = 0; state < states; state++)
                window = picki((first == start) & (at == state), how[start][k][state], window);
        lanes entry;
        for (int l = 0; l < LANES; l++) entry[l] = c->table[window[l]];
        best->index[k] = window;
        best->value[k] = s[k] * entry;
        best->error[k] = best->value[k] - t[k];
        at = window >> bits;
    }
}

/* With feedback: every state keeps the path that leads to it, with its errors. */
INLINE void search_fed(const int bits, const int history, const coding *c, const lanes *t,
                       const lanes *s, const float *w, const float *gain, path *best) {
    const int cells = c->rows * c->columns, states = 1 << history, low = (1 << bits) >> history;
    path now[STATES], next[STATES];
    best->cost = all(FLT_MAX);
    for (int start = 0; start < states; start++) {
        for (int k = 0; k < cells; k++) {
            const float weight = w[c->column[k]];
            lanes target[STATES];
            for (int seen = 0; seen < (k ? states : 1); seen++)
                target[seen] = moved(c, t, gain, now[seen].error, k);
            for (int state = 0; state < states; state++) {
                if (k + 1 == cells && state != start) continue;
                lanes least = all(FLT_MAX), value = all(0), error = all(0);
                flags index = {0}, from = {0};
                for (int seen = k ? 0 : start; seen < (k ? states : start + 1); seen++)
                    for (int code = state * low; code < (state + 1) * low; code++) {
                        lanes v = s[k] * c->table[code | seen << bits];
                        lanes e = v - target[k ? seen : 0];
                        lanes cost = e * e * weight;
                        if (k) cost += now[seen].cost;
                        flags better = (flags)(cost < least);
                        least = pick(better, cost, least);
                        value = pick(better, v, value);
                        error = pick(better, e, error);
                        index = picki(better, (flags){0} + (code | seen << bits), index);
                    }
                path *to = next + state;
                from = index >> bits;
                if (k) *to = now[0];
                for (int seen = 1; k && seen < states; seen++)
                    take(from == seen, now + seen, to, k);
                to->cost = least;
                to->value[k] = value;
                to->error[k] = error;
                to->index[k] = index;
            }
            memcpy(now, next, sizeof now[0] * states);
        }
        take((flags)(now[start].cost < best->cost), now + start, best, cells);
    }
}

INLINE void search_ring(const int bits, const int history, const coding *c, const lanes *t,
                        const lanes *s, const float *w, const float *gain, path *best) {
    if (gain) search_fed(bits, history, c, t, s, w, gain, best);
    else search_plain(bits, history, c, t, s, w, best);
}

static void search(const coding *c, const lanes *t, const lanes *s, const float *w,
                   const float *gain, path *best) {
    if (c->words) search_book(c, t, s, w, gain, best);
    else if (c->bits == 2 && c->history == 2) search_ring(2, 2, c, t, s, w, gain, best);
    else if (c->bits == 3 && c->history == 1) search_ring(3, 1, c, t, s, w, gain, best);
    else search_ring(c->bits, 0, c, t, s, w, gain, best);
}

/* One sub-block of n columns of eight groups of rows: t (columns, rows) */
typedef struct {
    const coding *c;
    int n;
    const lanes (*t)[CELLS];
    const float *weight; /* (n) of the columns */
    const lanes *d;      /* (rows): row scales */
} sub_block;

/* up, down (rows) = sum(weight t v), sum(weight v^2), error = sum(weight (t - v)^2) */
static void sums(const sub_block *b, const lanes *units, lanes *up, lanes *down, lanes *error) {
    const coding *c = b->c;
    for (int r = 0; r < c->rows; r++) up[r] = down[r] = error[r] = all(0);
    for (int first = 0; first < b->n; first += c->columns) {
        lanes t[CELLS], s[CELLS];
        path p;
        for (int k = 0; k < c->rows * c->columns; k++) {
            t[k] = b->t[first + c->column[k]][c->row[k]];
            s[k] = units[c->row[k]] * b->d[c->row[k]];
        }
        search(c, t, s, b->weight + first, 0, &p);
        for (int k = 0; k < c->rows * c->columns; k++) {
            int r = c->row[k];
            lanes x = p.value[k] * b->weight[first + c->column[k]], e = t[k] - p.value[k];
            up[r] += x * t[k];
            down[r] += x * p.value[k];
            error[r] += e * e * b->weight[first + c->column[k]];
        }
    }
}

static lanes whole_error(const sub_block *b, const lanes *units) {
    lanes up[CELLS], down[CELLS], error[CELLS], sum = all(0);
    sums(b, units, up, down, error);
    for (int r = 0; r < b->c->rows; r++) sum += error[r];
    return sum;
}

/* As fit_scale of native/cpu/encode.h: FACTORS multiples toward either end, then least squares.
 * There each row takes its best of them as if the others had kept theirs. `rounds` more: row after
 * row, all of them again while the others stay, by the error of the whole group. */
static void fit_scale(const sub_block *b, const float end[2], int rounds, lanes *best) {
    const int rows = b->c->rows;
    lanes whole[CELLS], least[CELLS], units[CELLS], up[CELLS], down[CELLS], error[CELLS];
    for (int r = 0; r < rows; r++) {
        lanes extreme = all(0);
        for (int c = 0; c < b->n; c++) {
            lanes t = b->t[c][r];
            extreme = pick((flags)(magnitude(t) > magnitude(extreme)), t, extreme);
        }
        flags positive = (flags)(b->d[r] > 0);
        whole[r] = extreme * pick(positive, 1 / pick(positive, b->d[r], all(1)), all(0));
        least[r] = all(FLT_MAX);
        best[r] = all(0);
    }
    for (int k = 0; k <= 2 * FACTORS; k++) {
        if (k == 2 * FACTORS) {
            sums(b, best, up, down, error);
            for (int r = 0; r < rows; r++) {
                flags some = (flags)(down[r] > 0);
                lanes x = pick(some, up[r] / pick(some, down[r], all(1)), all(1));
                units[r] = six_bits(best[r] * pick((flags)(magnitude(x) < 4), x, all(1)));
            }
        } else {
            float factor = 0.6f + 0.8f * (float)(k % FACTORS) / (FACTORS - 1);
            for (int r = 0; r < rows; r++)
                units[r] = six_bits(whole[r] * (factor / end[k / FACTORS]));
        }
        sums(b, units, up, down, error);
        for (int r = 0; r < rows; r++) {
            flags better = (flags)(error[r] < least[r]);
            least[r] = pick(better, error[r], least[r]);
            best[r] = pick(better, units[r], best[r]);
        }
    }
    lanes now = rounds ? whole_error(b, best) : all(0);
    for (int at = 0; at < rounds * rows * 2 * FACTORS; at++) {
        int r = at / (2 * FACTORS) % rows, k = at % (2 * FACTORS);
        float factor = 0.6f + 0.8f * (float)(k % FACTORS) / (FACTORS - 1);
        memcpy(units, best, sizeof units);
        units[r] = six_bits(whole[r] * (factor / end[k / FACTORS]));
        lanes error_now = whole_error(b, units);
        flags better = (flags)(error_now < now);
        now = pick(better, error_now, now);
        best[r] = pick(better, units[r], best[r]);
    }
}

/* Codes of n columns (a multiple of c->columns, at most SUB) of `groups` groups of rows (a multiple
 * of 8). target (n, rows, groups): in, as the feedback leaves it out. end: ends of the table.
 * row_scale (rows, groups). fit_weight (n): of the columns where scales are fitted; NULL: all
 * scales are 1. cost_weight (n): likewise where codes are chosen. gain (n, n) or NULL:
 * target[b] += gain[a][b] error[a]. rounds: see fit_scale. joint: 0 where the codes of a group are
 * chosen as if its columns did not feed back to each other. Out: scale (rows, groups), index,
 * value, error (as target). */
void encode(const coding *c, int n, int rounds, int joint, int64_t groups, float *target,
            const float *end, const float *row_scale, const float *fit_weight,
            const float *cost_weight, const float *gain, float *scale, uint8_t *index, float *value,
            float *error) {
    for (int64_t g = 0; g < groups; g += LANES) {
        lanes t[SUB][CELLS], d[CELLS], units[CELLS];
        for (int r = 0; r < c->rows; r++) {
            d[r] = load(row_scale + r * groups + g);
            units[r] = all(1);
            for (int k = 0; k < n; k++) t[k][r] = load(target + (k * c->rows + r) * groups + g);
        }
        sub_block b = {c, n, (const lanes(*)[CELLS])t, fit_weight, d};
        if (fit_weight) fit_scale(&b, end, rounds, units);
        for (int r = 0; r < c->rows; r++) memcpy(scale + r * groups + g, units + r, sizeof *units);
        for (int first = 0; first < n; first += c->columns) {
            lanes at[CELLS], s[CELLS];
            float inner[CELLS * CELLS];
            path p;
            for (int k = 0; k < c->rows * c->columns; k++) {
                at[k] = t[first + c->column[k]][c->row[k]];
                s[k] = units[c->row[k]] * d[c->row[k]];
            }
            for (int a = 0; gain && a < c->columns; a++)
                for (int i = 0; i < c->columns; i++)
                    inner[a * c->columns + i] = gain[(first + a) * n + first + i];
            const float *among = gain && c->columns > 1 ? inner : 0;
            search(c, at, s, cost_weight + first, joint ? among : 0, &p);
            for (int k = 0; among && k < c->rows * c->columns; k++)
                p.error[k] = p.value[k] - moved(c, at, among, p.error, k);
            for (int k = 0; k < c->rows * c->columns; k++) {
                int r = c->row[k], column = first + c->column[k];
                int64_t to = ((int64_t)column * c->rows + r) * groups + g;
                memcpy(value + to, p.value + k, sizeof *p.value);
                memcpy(error + to, p.error + k, sizeof *p.error);
                for (int l = 0; l < LANES; l++) index[to + l] = (uint8_t)p.index[k][l];
                for (int later = first + c->columns; gain && later < n; later++)
                    t[later][r] += p.error[k] * gain[column * n + later];
            }
        }
        for (int r = 0; r < c->rows; r++)
            for (int k = 0; k < n; k++)
                memcpy(target + (k * c->rows + r) * groups + g, &t[k][r], sizeof t[k][r]);
    }
}
