/* The KV cache: how its numbers are stored. */
#include <math.h>
#include <string.h>
#include "attention.h"
#include "kernels.h"

/* The largest magnitude gets the code 127, or -127. A NaN makes the scale NaN, so that it is not
 * lost. */
static void to_q8_0(const float *x, struct q8_0_block *out) {
    float most = 0, sum = 0;
    for (int i = 0; i < GWQ_CACHE_UNIT; i++) {
        float a = fabsf(x[i]);
        most = a > most ? a : most;
        sum += a;
    }
    most = most < 127 * 65504.f ? most : 127 * 65504.f;
    float scale = sum == sum ? most / 127 : sum;
    float inverse = most > 0 ? 127 / most : 0;
    gwq_in_use()->to_halves(&scale, 1, &out->scale);
    for (int i = 0; i < GWQ_CACHE_UNIT; i++) {
        float v = x[i] * inverse;
        out->code[i] = (int8_t)rintf(v > -127 ? v < 127 ? v : 127 : -127);
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
