/* The largest of many numbers, for sampling and for the choice of experts. */
#include <math.h>
#include <stdint.h>
#include "gwq.h"

enum { RUN = 64 }; /* numbers that are compared at once */

static int all_finite(const float *x, int64_t n) {
    int wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong |= x[i] - x[i] != 0; /* infinity - infinity is NaN */
    return !wrong;
}

/* Whether number a stands behind number b: it is smaller, or equal and later */
static int behind(const float *x, int32_t a, int32_t b) {
    return x[a] < x[b] || (x[a] == x[b] && a > b);
}

/* heap (count): no number stands before its parent at (i - 1) / 2; puts `id` in the place of
 * heap[at] and lets it sink */
static void sink(const float *x, int32_t *heap, int64_t count, int64_t at, int32_t id) {
    for (int64_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && behind(x, heap[child + 1], heap[child])) child++;
        if (!behind(x, heap[child], id)) break;
        heap[at] = heap[child];
    }
    heap[at] = id;
}

int gwq_top(const float *x, int64_t n, int64_t k, int32_t *ids) {
    if (!x || !ids || k < 1 || k > n || n > INT32_MAX) return GWQ_E_ARGUMENT;
    if (!all_finite(x, n)) return GWQ_E_FINITE;
    /* ids is a heap with the number to go next at the top */
    for (int64_t i = 0; i < k; i++) ids[i] = (int32_t)i;
    for (int64_t i = k / 2; i-- > 0;) sink(x, ids, k, i, ids[i]);
    for (int64_t i = k; i < n; i += RUN) {
        const int64_t end = n - i < RUN ? n : i + RUN;
        const float least = x[ids[0]];
        int any = 0;
        for (int64_t j = i; j < end; j++) any |= x[j] > least;
        for (int64_t j = i; any && j < end; j++)
            if (x[j] > x[ids[0]]) sink(x, ids, k, 0, (int32_t)j);
    }
    for (int64_t last = k - 1; last > 0; last--) { /* the top goes behind what is left */
        int32_t id = ids[last];
        ids[last] = ids[0];
        sink(x, ids, last, 0, id);
    }
    return GWQ_OK;
}

static void ascending(int32_t *ids, int64_t count) {
    for (int64_t i = 1; i < count; i++) {
        const int32_t id = ids[i];
        int64_t at = i;
        for (; at > 0 && ids[at - 1] > id; at--) ids[at] = ids[at - 1];
        ids[at] = id;
    }
}

int gwq_route(const float *scores, int64_t n, int64_t experts, int64_t used, int normed,
              int32_t *chosen, float *weights) {
    if (!scores || !chosen || !weights || n < 1 || experts < 1) return GWQ_E_ARGUMENT;
    if (used < 1 || used > experts || used > GWQ_MAX_USED) return GWQ_E_ARGUMENT;
    for (int64_t t = 0; t < n; t++, scores += experts, chosen += used, weights += used) {
        int status = gwq_top(scores, experts, used, chosen);
        if (status) return status;
        const float most = scores[chosen[0]];
        ascending(chosen, used);
        float of_all = 0, of_chosen = 0;
        for (int64_t i = 0; i < experts; i++) of_all += expf(scores[i] - most);
        for (int64_t i = 0; i < used; i++)
            of_chosen += weights[i] = expf(scores[chosen[i]] - most);
        for (int64_t i = 0; i < used; i++) weights[i] /= normed ? of_chosen : of_all;
    }
    return GWQ_OK;
}
