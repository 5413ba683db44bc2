/* Causal attention over a KV cache, with keys cut into chunks (flash-decoding). Where the cuts are
 * depends on the positions alone, as native/cpu/attention.c has them: of every chunk c and query
 * there is in the end
 *
 *     m = largest score,   total = sum of exp(score - m),   sum = sum of exp(score - m) * v
 *
 * and merge_kernel adds them up in the order of the chunks. */
#include "attention.h"

enum {
    RUN = 128, /* keys at a time: one of each thread; and threads of a block */
    QUERIES = 4, /* rows of a key head that share the keys they read */
    CHUNK = 128, /* keys, at least */
    MOST_CHUNKS = GWQ_ATTENTION_CUT / CHUNK
};

struct chunks {
    int64_t from, keys;
    int count;
};

DEVICE chunks cut(const gwq_op_attention &o, int64_t start, int64_t n, bool parts) {
    const int64_t from = seen_by(start, o.window).from, end = start + n;
    if (!parts) return {from / RUN * RUN, end, 1};
    int64_t keys = CHUNK;
    while (end > MOST_CHUNKS * keys) keys *= 2;
    return {from / keys * keys, keys, (int)((end + keys - 1) / keys - from / keys)};
}

/* Number i of a cache */
template <int type> DEVICE float cached(const void *p, int64_t i) {
    if (type == GWQ_TYPE_F32) return ((const float *)p)[i];
    if (type == GWQ_TYPE_F16) return half_to_float(((const uint16_t *)p)[i]);
    const struct q8_0_block *b = (const struct q8_0_block *)p + i / 32;
    return half_to_float(b->scale) * (float)b->code[i % 32];
}

/* key (8) = the numbers first .. of a cache, of which `count` are there; 16 bytes at once, if the
 * cache is `aligned` */
template <int type>
DEVICE void load_key(const void *k, int64_t first, int count, bool aligned, float *key) {
    if (type == GWQ_TYPE_F16 && aligned) {
        const uint4 v = *(const uint4 *)((const uint16_t *)k + first);
        const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int w = 0; w < 4; w++) {
            key[2 * w] = half_to_float((uint16_t)word[w]);
            key[2 * w + 1] = half_to_float((uint16_t)(word[w] >> 16));
        }
    } else {
        for (int d = 0; d < 8; d++) key[d] = d < count ? cached<type>(k, first + d) : 0;
    }
}

/* score[i] = q[i] . the key that begins at number `first`, eights of products added up first: the
 * rounding of one long chain would show. q is zero beyond dim. */
template <int type, int room>
DEVICE void scores_of(const float (*q)[room], const void *k, int64_t first, int dim,
                      float *score) {
    const bool aligned = dim % 8 == 0 && ((uintptr_t)k & 15) == 0;
    for (int i = 0; i < QUERIES; i++) score[i] = 0;
#pragma unroll 2
    for (int d = 0; d < dim; d += 8) {
        float key[8];
        load_key<type>(k, first + d, dim - d, aligned, key);
#pragma unroll
        for (int i = 0; i < QUERIES; i++) {
            float sum = 0;
#pragma unroll
            for (int j = 0; j < 8; j++) sum = fmaf(q[i][d + j], key[j], sum);
            score[i] += sum;
        }
    }
}

/* Maximum and sum over the block, in every thread, in a fixed order */
DEVICE float block_most(float v, float (*of_warp)[QUERIES], int i) {
    v = most_over(v, 1, WARP);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP][i] = v;
    __syncthreads();
    for (int w = 0; w < RUN / WARP; w++) v = fmaxf(v, of_warp[w][i]);
    return v;
}
DEVICE float block_total(float v, float (*of_warp)[QUERIES], int i) {
    v = sum_over(v, 1, WARP);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP][i] = v;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < RUN / WARP; w++) total += of_warp[w][i];
    return total;
}

/* blockIdx: x, QUERIES rows of a key head (row = token * group + head of the group); y, key head;
 * z, chunk. parts: (chunk, query, dim + 2), NULL: one chunk, whose sums are the result. numbers: of
 * a head, that each thread adds up at most. */
template <int type, int numbers>
__global__ void __launch_bounds__(RUN, numbers == 4 ? 3 : 4)
    attend_kernel(gwq_op_attention o, int64_t n, int64_t start, const int *base, float *parts) {
    __shared__ float q[QUERIES][RUN * numbers];
    __shared__ float p[RUN][QUERIES];
    __shared__ float most_of[RUN / WARP][QUERIES], total_of[RUN / WARP][QUERIES];
    if (base) start += *base;
    const chunks c = cut(o, start, n, parts != nullptr);
    if ((int)blockIdx.z >= c.count) return;
    const int dim = (int)o.dim;
    const int64_t group = o.heads / o.kv_heads, kv_head = blockIdx.y;
    const int64_t stride = o.kv_heads * o.dim;
    const int thread = (int)threadIdx.x;
    int64_t query[QUERIES];
    range seen[QUERIES];
    for (int i = 0; i < QUERIES; i++) {
        const int64_t row = (int64_t)blockIdx.x * QUERIES + i;
        const int64_t token = row / group;
        query[i] = token < n ? token * o.heads + kv_head * group + row % group : -1;
        seen[i] = token < n ? seen_by(start + token, o.window) : range{0, 0};
        for (int d = thread; d < (dim + 7) / 8 * 8; d += RUN)
            q[i][d] = query[i] < 0 || d >= dim ? 0 : o.q[query[i] * o.dim + d];
    }
    int64_t end = 0; /* of what the rows see together; the first sees the earliest position */
    for (int i = 0; i < QUERIES; i++) end = seen[i].end > end ? seen[i].end : end;
    int64_t at = c.from + (int64_t)blockIdx.z * c.keys;
    if (c.count > 1 || parts) end = end < at + c.keys ? end : at + c.keys;
    if (seen[0].from / RUN * RUN > at) at = seen[0].from / RUN * RUN;

    float most[QUERIES], total[QUERIES], sum[QUERIES][numbers] = {};
    for (int i = 0; i < QUERIES; i++) {
        most[i] = -FLT_MAX;
        total[i] = 0;
    }
    __syncthreads();
    for (; at < end; at += RUN) {
        const int keys = end - at < RUN ? (int)(end - at) : (int)RUN;
        float score[QUERIES];
        const int64_t position = at + (thread < keys ? thread : 0);
        scores_of<type, RUN * numbers>(q, o.k, position * stride + kv_head * o.dim, dim, score);
        float shrink[QUERIES];
        /* p of the run before is read until all threads come to the first barrier in here */
        for (int i = 0; i < QUERIES; i++) {
            score[i] *= o.scale;
            if (o.softcap > 0) score[i] = capped(score[i], o.softcap);
            if (thread >= keys || position < seen[i].from || position >= seen[i].end)
                score[i] = -INFINITY;
            const float top = fmaxf(most[i], block_most(score[i], most_of, i));
            shrink[i] = expf(most[i] - top);
            most[i] = top;
            p[thread][i] = expf(score[i] - top);
            total[i] = total[i] * shrink[i] + block_total(p[thread][i], total_of, i);
        }
        for (int j = 0; j < numbers; j++)
            for (int i = 0; i < QUERIES; i++) sum[i][j] *= shrink[i];
#pragma unroll 4
        for (int key = 0; key < keys; key++) {
            const int64_t first = (at + key) * stride + kv_head * o.dim;
#pragma unroll
            for (int j = 0; j < numbers; j++) {
                const int d = thread + RUN * j;
                const float v = d < dim ? cached<type>(o.v, first + d) : 0;
#pragma unroll
                for (int i = 0; i < QUERIES; i++) sum[i][j] = fmaf(p[key][i], v, sum[i][j]);
            }
        }
    }
    for (int i = 0; i < QUERIES; i++) {
        if (query[i] < 0) continue;
        float *out = o.out + query[i] * o.dim;
        if (parts) {
            out = parts + ((int64_t)blockIdx.z * n * o.heads + query[i]) * (o.dim + 2) + 2;
            if (thread == 0) {
                out[-2] = most[i];
                out[-1] = total[i];
            }
        }
        for (int j = 0; j < numbers; j++)
            if (thread + RUN * j < dim)
                out[thread + RUN * j] = parts ? sum[i][j] : sum[i][j] / total[i];
    }
}

/* A block of threads for every query */
__global__ void merge_kernel(gwq_op_attention o, int64_t n, int64_t start, const int *base,
                             const float *parts) {
    if (base) start += *base;
    const int count = cut(o, start, n, true).count;
    const int64_t query = blockIdx.x;
    const int64_t each = n * o.heads * (o.dim + 2);
    const float *part = parts + query * (o.dim + 2);
    float most = -FLT_MAX, total = 0;
    for (int c = 0; c < count; c++) most = fmaxf(most, part[c * each]);
    for (int c = 0; c < count; c++) total += expf(part[c * each] - most) * part[c * each + 1];
    for (int d = (int)threadIdx.x; d < o.dim; d += (int)blockDim.x) {
        float sum = 0;
        for (int c = 0; c < count; c++)
            sum += expf(part[c * each] - most) * part[c * each + 2 + d];
        o.out[query * o.dim + d] = sum / total;
    }
}

size_t attention_bytes(int64_t n, int64_t heads, int64_t dim) {
    return (size_t)(MOST_CHUNKS * n * heads * (dim + 2)) * sizeof(float);
}

template <int type>
static void attend_type(cudaStream_t stream, dim3 grid, const gwq_op_attention &o, int64_t n,
                        int64_t start, const int *base, float *parts) {
    if (o.dim <= RUN)
        LAUNCH((attend_kernel<type, 1>), grid, RUN, stream, o, n, start, base, parts);
    else if (o.dim <= 2 * RUN)
        LAUNCH((attend_kernel<type, 2>), grid, RUN, stream, o, n, start, base, parts);
    else
        LAUNCH((attend_kernel<type, 4>), grid, RUN, stream, o, n, start, base, parts);
}

void attend(cudaStream_t stream, const gwq_op_attention &o, int64_t n, int64_t start,
            const int *base, float *parts) {
    static_assert(GWQ_CUDA_HEAD == 4 * RUN, "as many numbers as threads add up");
    if (!parts && !base && attend_many(stream, o, n, start)) return;
    const int64_t rows = n * (o.heads / o.kv_heads); /* of a key head */
    const dim3 grid((unsigned)ceil_div(rows, QUERIES), (unsigned)o.kv_heads,
                    parts ? MOST_CHUNKS : 1);
    if (o.type == GWQ_TYPE_F32) attend_type<GWQ_TYPE_F32>(stream, grid, o, n, start, base, parts);
    else if (o.type == GWQ_TYPE_F16)
        attend_type<GWQ_TYPE_F16>(stream, grid, o, n, start, base, parts);
    else attend_type<GWQ_TYPE_Q8_0>(stream, grid, o, n, start, base, parts);
    if (!parts) return;
    const unsigned queries = (unsigned)(n * o.heads);
    LAUNCH(merge_kernel, queries, RUN, stream, o, n, start, base, parts);
}
