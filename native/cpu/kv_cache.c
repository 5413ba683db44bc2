/* The KV cache: how its numbers are stored. */
#include <string.h>
#include "attention.h"
#include "kernels.h"

/* The largest magnitude gets the code 127, or -127. A NaN makes the scale NaN, so that it is not
 * lost. The loops are such that compilers make vectors of them: magnitudes are compared as the
 * integers that their bits are, NaN above all, and rounded to nearest even by a large number. */
static void to_q8_0(const float *x, struct q8_0_block *out) {
    int32_t bits[GWQ_CACHE_UNIT], largest = 0;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < GWQ_CACHE_UNIT; i++) {
        const int32_t a = bits[i] & 0x7fffffff;
        largest = a > largest ? a : largest;
    }
    float most;
    memcpy(&most, &largest, sizeof most);
    most = most > 127 * 65504.f ? 127 * 65504.f : most; /* not a NaN */
    const float scale = most / 127;
    const float inverse = most > 0 ? 127 / most : 0;
    gwq_in_use()->to_halves(&scale, 1, &out->scale);
    for (int i = 0; i < GWQ_CACHE_UNIT; i++) {
        float v = x[i] * inverse;
        v = v > -127 ? v : -127;
        v = v < 127 ? v : 127;
        out->code[i] = (int8_t)(int32_t)(v + 0x1.8p23f - 0x1.8p23f);
    }
}

int gwq_cache(const float *x, int64_t count, int type, void *cache, int64_t first) {
    if (count < 0 || first < 0 || (count && (!x || !cache))) return GWQ_E_ARGUMENT;
    switch (type) {
    case GWQ_TYPE_F16:
        gwq_in_use()->to_halves(x, count, (uint16_t *)cache + first);
        return GWQ_OK;
    case GWQ_TYPE_F32:
        if (count) memcpy((float *)cache + first, x, (size_t)count * sizeof *x);
        return GWQ_OK;
    case GWQ_TYPE_Q8_0:
        if (count % GWQ_CACHE_UNIT || first % GWQ_CACHE_UNIT) return GWQ_E_ARGUMENT;
        for (int64_t i = 0; i < count / GWQ_CACHE_UNIT; i++)
            to_q8_0(x + i * GWQ_CACHE_UNIT,
                    (struct q8_0_block *)cache + first / GWQ_CACHE_UNIT + i);
        return GWQ_OK;
    default:
        return GWQ_E_TYPE;
    }
}
