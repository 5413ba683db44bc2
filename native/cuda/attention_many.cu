/* Causal attention of many queries by tensor cores. Queries, and shares of a softmax, are rounded
 * to FP16, as which keys and values are read; sums and the softmax are in float32.
 *
 * A block of threads has 64 rows of a key head (row = token * group + head of the group), a warp 16
 * of them, and goes over the keys 32 at a time (FlashAttention): of what it has seen of a row it
 * keeps the largest score, the sum of exp(score - largest), and the values' sum with these weights.
 * With lane = 4g + t, a thread has the rows g and g + 8 of its warp. */
#include "attention.h"
#include "mma.h"

enum {
    MANY_WARPS = 4,
    MANY_THREADS = MANY_WARPS * WARP,
    MANY_ROWS = 16 * MANY_WARPS,
    MANY_KEYS = 32,
    KEY_EIGHTS = MANY_KEYS / 8
};

/* Where unit `unit`, 8 numbers of a key or value, lies in its row of shared memory: eight threads,
 * which read units of two keys side by side or one unit of keys two apart, read from all banks. */
DEVICE int swizzled(int key, int unit) { return unit ^ (key & 2) ^ (((key >> 2 ^ key) & 1) << 2); }

/* 8 numbers of a Q8_0 cache from `first` on, as FP16 */
DEVICE uint4 halves_of_codes(const void *cache, int64_t first) {
    const struct q8_0_block *b = (const struct q8_0_block *)cache + first / 32;
    const float scale = half_to_float(b->scale);
    const int8_t *code = b->code + first % 32;
    uint32_t word[4];
    for (int i = 0; i < 4; i++)
        word[i] = halves_of(scale * (float)code[2 * i], scale * (float)code[2 * i + 1]);
    return {word[0], word[1], word[2], word[3]};
}

/* Send a head's rows at .. of a cache, `count` of which are there, into `to`; others are zeros.
 * dims: numbers of a row in shared memory, of which a head has o.dim. */
template <int type, int dims>
DEVICE void send_rows(const gwq_op_attention &o, const void *cache, int64_t kv_head, int64_t at,
                      int count, uint4 *to) {
    enum { ROW_UNITS = dims / 8 };
#pragma unroll 1
    for (int i = 0; i < MANY_KEYS * ROW_UNITS / MANY_THREADS; i++) {
        const int which = i * MANY_THREADS + (int)threadIdx.x;
        const int key = which / ROW_UNITS, unit = which % ROW_UNITS;
        uint4 *place = to + key * ROW_UNITS + swizzled(key, unit);
        if (key >= count || 8 * unit >= o.dim) {
            *place = {0, 0, 0, 0};
            continue;
        }
        const int64_t first = ((at + key) * o.kv_heads + kv_head) * o.dim + 8 * unit;
        if constexpr (type == GWQ_TYPE_F16)
            send_copy(place, (const uint4 *)((const uint16_t *)cache + first));
        else
            *place = halves_of_codes(cache, first);
    }
}

/* Two rows of queries as fragments: of each 32 columns two steps, of which a thread has the columns
 * 8t .. 8t+3 and 8t+4 .. 8t+7. factor (2): what their scores are to be multiplied with */
template <int dims>
DEVICE void load_queries(const gwq_op_attention &o, const int64_t *query, uint32_t (*a)[2][4],
                         float *factor) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float x[dims / 4], most = 0;
#pragma unroll
        for (int i = 0; i < dims / 4; i++) {
            const int d = i / 8 * 32 + 8 * t + i % 8;
            x[i] = query[r] >= 0 && d < o.dim ? o.q[query[r] * o.dim + d] : 0;
            most = fmaxf(most, fabsf(x[i])); /* passes over NaN */
        }
        factor[r] = power_below(most_over(most, 1, 4));
        const float inverse = 1 / factor[r];
#pragma unroll
        for (int i = 0; i < dims / 4; i += 2)
            a[i / 8][i / 4 % 2][i / 2 % 2 * 2 + r] = halves_of(x[i] * inverse, x[i + 1] * inverse);
    }
}

/* score (KEY_EIGHTS, 4): row g at keys 8n + 2t and 8n + 2t + 1, then row g + 8 */
template <int dims>
DEVICE void scores_of(const uint32_t (*a)[2][4], const uint4 *keys, float (*score)[4]) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < KEY_EIGHTS; n++) {
        const int key = 8 * n + g;
        for (int j = 0; j < 4; j++) score[n][j] = 0;
#pragma unroll
        for (int pair = 0; pair < dims / 32; pair++) {
            const uint4 b = keys[key * (dims / 8) + swizzled(key, 4 * pair + t)];
            multiply_add(score[n], a[pair][0], b.x, b.y);
            multiply_add(score[n], a[pair][1], b.z, b.w);
        }
    }
}

DEVICE uint32_t many_word(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* sum (dims / 64, 8, 4) += the shares of the keys times their values: with eighth i of 64 columns a
 * thread has the columns 16t + i and 16t + 8 + i of both rows */
template <int dims>
DEVICE void add_values(const float (*share)[4], const uint4 *values, float (*sum)[8][4]) {
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
#pragma unroll
    for (int step = 0; step < KEY_EIGHTS / 2; step++) {
        uint32_t a[4];
        for (int i = 0; i < 4; i++) {
            const float *two = share[2 * step + i / 2] + i % 2 * 2;
            a[i] = halves_of(two[0], two[1]);
        }
#pragma unroll
        for (int half = 0; half < dims / 64; half++) {
            uint4 v[4];
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const int key = 16 * step + 2 * t + k % 2 + k / 2 * 8;
                v[k] = values[key * (dims / 8) + swizzled(key, 8 * half + g)];
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const uint32_t which = i % 2 ? 0x7632u : 0x5410u; /* upper or lower numbers */
                multiply_add(sum[half][i], a,
                             permute(many_word(v[0], i / 2), many_word(v[1], i / 2), which),
                             permute(many_word(v[2], i / 2), many_word(v[3], i / 2), which));
            }
        }
    }
}

/* blockIdx: x, 64 rows, the last ones first, as they see the most keys; y, key head. dims: o.dim
 * rounded up to 64s; caps: whether there is a o.softcap, which takes as long as all the rest. */
template <int type, int dims, int caps>
__global__ void __launch_bounds__(MANY_THREADS, 2)
    attend_many_kernel(gwq_op_attention o, int64_t n, int64_t start) {
    __shared__ uint4 keys[MANY_KEYS * dims / 8], values[MANY_KEYS * dims / 8];
    const int g = (int)threadIdx.x % WARP / 4, t = (int)threadIdx.x % 4;
    const int64_t group = o.heads / o.kv_heads, kv_head = blockIdx.y;
    const int64_t first = (int64_t)(gridDim.x - 1 - blockIdx.x) * MANY_ROWS;
    const int64_t after = (first + MANY_ROWS - 1) / group; /* token of the last row */
    const int64_t end = start + (after < n ? after + 1 : n);
    int64_t query[2];
    range seen[2];
    for (int r = 0; r < 2; r++) {
        const int64_t row = first + (int)threadIdx.x / WARP * 16 + g + 8 * r;
        const int64_t token = row / group;
        query[r] = token < n ? token * o.heads + kv_head * group + row % group : -1;
        seen[r] = token < n ? seen_by(start + token, o.window) : range{0, 0};
    }
    uint32_t a[dims / 32][2][4];
    float factor[2];
    load_queries<dims>(o, query, a, factor);
    float most[2] = {-FLT_MAX, -FLT_MAX}, total[2] = {}, sum[dims / 64][8][4] = {};

    int64_t at = seen_by(start + first / group, o.window).from / MANY_KEYS * MANY_KEYS;
    int count = end - at < MANY_KEYS ? (int)(end - at) : (int)MANY_KEYS;
    send_rows<type, dims>(o, o.k, kv_head, at, count, keys);
    end_copies();
#pragma unroll 1
    while (at < end) {
        send_rows<type, dims>(o, o.v, kv_head, at, count, values);
        end_copies();
        await_copies<1>();
        __syncthreads(); /* the keys have come */
        float score[KEY_EIGHTS][4], shrink[2];
        scores_of<dims>(a, keys, score);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = most[r];
            const float scale = o.scale * factor[r];
            const int from = (int)(seen[r].from - at), beyond = (int)(seen[r].end - at);
#pragma unroll
            for (int i = 0; i < 2 * KEY_EIGHTS; i++) {
                float &s = score[i / 2][i % 2 + 2 * r];
                const int key = 8 * (i / 2) + 2 * t + i % 2;
                s *= scale;
                if (caps) s = capped(s, o.softcap);
                if (key < from || key >= beyond) s = -INFINITY;
                top = fmaxf(top, s);
            }
            top = most_over(top, 1, 4);
            shrink[r] = expf(most[r] - top);
            most[r] = top;
            total[r] *= shrink[r];
#pragma unroll
            for (int i = 0; i < 2 * KEY_EIGHTS; i++) {
                float &s = score[i / 2][i % 2 + 2 * r];
                s = expf(s - top);
                total[r] += s;
            }
        }
#pragma unroll
        for (int i = 0; i < dims / 64 * 32; i++) sum[i / 32][i / 4 % 8][i % 4] *= shrink[i % 4 / 2];
        await_copies<0>();
        __syncthreads(); /* the values have come, and nobody reads the keys any more */
        at += MANY_KEYS;
        count = end - at < MANY_KEYS ? (int)(end - at) : (int)MANY_KEYS;
        if (at < end) send_rows<type, dims>(o, o.k, kv_head, at, count, keys);
        end_copies();
        add_values<dims>(score, values, sum);
        __syncthreads(); /* nobody reads the values any more */
    }
    await_copies<0>();
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const float all = sum_over(total[r], 1, 4);
        if (query[r] < 0) continue;
        float *out = o.out + query[r] * o.dim;
#pragma unroll
        for (int i = 0; i < dims / 64 * 16; i++) {
            const int d = i / 16 * 64 + 16 * t + i % 16;
            if (d < o.dim) out[d] = sum[i / 16][i % 8][2 * r + i / 8 % 2] / all;
        }
    }
}

template <int type, int dims>
static void attend_dims(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start) {
    const int64_t rows = n * (o.heads / o.kv_heads); /* of a key head */
    const dim3 grid((unsigned)ceil_div(rows, MANY_ROWS), (unsigned)o.kv_heads);
    if (o.softcap > 0)
        LAUNCH((attend_many_kernel<type, dims, 1>), grid, MANY_THREADS, stream, o, n, start);
    else
        LAUNCH((attend_many_kernel<type, dims, 0>), grid, MANY_THREADS, stream, o, n, start);
}

template <int type>
static void attend_type(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start) {
    if (o.dim <= 64) attend_dims<type, 64>(stream, o, n, start);
    else attend_dims<type, 128>(stream, o, n, start);
}

bool attend_many(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start) {
    const bool aligned = ((uintptr_t)o.k | (uintptr_t)o.v) % 16 == 0; /* for copies of 16 bytes */
    if (n <= FEW || o.dim % 8 || o.dim > 128 || o.type == GWQ_TYPE_F32) return false;
    if (o.type == GWQ_TYPE_F16 && !aligned) return false;
    if (o.type == GWQ_TYPE_F16) attend_type<GWQ_TYPE_F16>(stream, o, n, start);
    else attend_type<GWQ_TYPE_Q8_0>(stream, o, n, start);
    return true;
}
