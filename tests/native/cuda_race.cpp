/* Runs kernels of the CUDA library over the shim, for ThreadSanitizer: a product of every kind, for
 * few tokens and many, with massive channels and outliers; attention; a choice; a norm. An argument
 * `race` or `late_race` runs a kernel that has one, which must be found. */
#include <stdio.h>
#include <string.h>
#include <vector>
#include "cuda/kernels.h"

__global__ void race_kernel(float *x) {
    __shared__ float of_block[64];
    of_block[threadIdx.x] = x[threadIdx.x];
    /* no barrier */
    x[threadIdx.x] = of_block[threadIdx.x ^ 1];
}

/* The numbers are read in time, and written again too soon */
__global__ void late_race_kernel(float *x) {
    __shared__ float of_block[64];
    of_block[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float other = of_block[threadIdx.x ^ 33];
    of_block[threadIdx.x] = other;
    __syncthreads();
    x[threadIdx.x] = of_block[threadIdx.x];
}

static std::vector<float> numbers(size_t count) {
    std::vector<float> x(count);
    for (size_t i = 0; i < count; i++) x[i] = (float)((int)(i * 97 % 251) - 125) / 125;
    return x;
}

/* A matrix in the device's order, of any bytes that mean something: codes, scales and outliers */
struct matrix {
    device_matrix m = {};
    std::vector<uint4> data;
    std::vector<float> row_scale;
    std::vector<uint16_t> scale;
    std::vector<uint32_t> outliers;
    std::vector<int> starts;

    matrix(int kind, int rows, int cols) {
        const int together = ceil_div(rows, TOGETHER) * TOGETHER, groups = together / ROWS;
        m.kind = kind;
        m.rows = rows;
        m.cols = cols;
        m.power = m.half_power = 1;
        m.strips = ceil_div(cols, STRIP);
        m.pitch = cols * (kind == ROW_F32 ? 4 : kind == ROW_CODES ? 1 : 2);
        const bool tiles = kind < ROW_F32;
        const size_t bytes = tiles ? (size_t)groups * m.strips * strip_bytes(kind)
                                   : (size_t)together * m.pitch;
        data.resize(bytes / 16 + 1);
        if (tiles)
            for (size_t i = 0; i < bytes; i++) ((uint8_t *)data.data())[i] = (uint8_t)(i * 7);
        row_scale.assign((size_t)groups * ROWS, 0.01f);
        scale.assign((size_t)together * cols / 32, 0x2000);
        for (int r = 0; r <= rows; r++) starts.push_back(5 * r);
        for (int i = 0; i < 5 * rows; i++)
            outliers.push_back(0x3c000000u | (uint32_t)(i * 31 % cols));
        for (int i = 0; i < 4; i++) m.entries.entry[i] = 0x3f201000u + (uint32_t)i;
        m.data = (const uint8_t *)data.data();
        m.row_scale = row_scale.data();
        m.scale = scale.data();
        m.outliers = outliers.data();
        m.outlier_starts = starts.data();
    }
};

/* f(x) of `tokens` tokens in a matrix's form, times the matrix */
static void product_of(const matrix &w, int tokens) {
    enum { COLUMNS = 640, OUT = 40 };
    const int tile = tile_of(tokens), padded = ceil_div(tokens, tile) * tile;
    std::vector<float> x = numbers((size_t)tokens * COLUMNS), weight = numbers(COLUMNS);
    std::vector<float> floats(x.size()), factors((size_t)padded);
    std::vector<float> y((size_t)tokens * OUT), into(y.size());
    std::vector<code_block> blocks(2 * x.size() / GWQ_BLOCK);
    std::vector<uint4> halves((size_t)padded * COLUMNS / 4), columns(halves.size());
    std::vector<int> massive((size_t)(padded / tile * massive_words(COLUMNS)));
    x[100] = 5000; /* massive */
    activations a = {};
    a.x = x.data();
    a.n = tokens;
    a.cols = a.stride = COLUMNS;
    a.before = GWQ_BEFORE_NORM;
    a.weight = weight.data();
    a.floats = floats.data();
    a.blocks = blocks.data();
    half_activations h = {};
    h.order = form_of(w.m.kind, tokens);
    h.tokens = padded;
    h.tile = tile;
    h.factors = factors.data();
    h.halves = (uint16_t *)halves.data();
    h.massive = massive.data();
    h.columns = tokens > FEW_TILE ? (uint16_t *)columns.data() : nullptr;
    if (h.order == AS_CODES) prepare(0, a);
    else prepare_halves(0, a, h);
    product p = {};
    p.m[0] = w.m;
    p.y[0] = y.data();
    p.bias[0] = weight.data();
    p.into = into.data();
    p.factor = 1;
    p.groups[0] = ceil_div(OUT, ROWS);
    p.count = 1;
    p.n = tokens;
    p.stride = COLUMNS;
    p.floats = floats.data();
    p.blocks = blocks.data();
    p.halves = h;
    multiply(0, p);
}

static void products() {
    enum { COLUMNS = 640, OUT = 40 };
    const int kinds[] = {2, 3, 4, 5, 6, ROW_F32, ROW_F16, ROW_BF16, ROW_CODES};
    for (int kind : kinds) {
        matrix w(kind, OUT, COLUMNS);
        std::vector<float> out(OUT * COLUMNS);
        for (int tokens : {5, 12, 20, 70}) product_of(w, tokens);
        rows_to_floats(0, w.m, nullptr, nullptr, 0, OUT, out.data());
    }
}

static void attention() {
    enum { TOKENS = 3, HEADS = 4, KV_HEADS = 2, DIM = 40, KEYS = 300 };
    std::vector<float> q = numbers(TOKENS * HEADS * DIM), kv = numbers(KEYS * KV_HEADS * DIM);
    std::vector<float> out(q.size());
    std::vector<float> parts(attention_bytes(TOKENS, HEADS, DIM) / sizeof(float));
    gwq_op_attention o = {q.data(), kv.data(), kv.data(),   GWQ_TYPE_F32, HEADS,     KV_HEADS,
                          DIM,      0,         0.125f, 30, out.data()};
    attend(0, o, TOKENS, KEYS - TOKENS, nullptr, parts.data());
    attend(0, o, TOKENS, KEYS - TOKENS, nullptr, nullptr); /* several runs of keys in a block */
    enum { MANY = 40 }; /* queries, for tensor cores */
    std::vector<float> queries = numbers(MANY * HEADS * DIM), many_out(queries.size());
    std::vector<uint4> cache(KEYS * KV_HEADS * DIM / 8 + 1);
    store(0, kv.data(), KEYS * KV_HEADS * DIM, GWQ_TYPE_F16, cache.data(), 0, nullptr, 0);
    o.q = queries.data();
    o.k = o.v = cache.data();
    o.type = GWQ_TYPE_F16;
    o.out = many_out.data();
    attend(0, o, MANY, KEYS - MANY, nullptr, nullptr);
}

static void others() {
    std::vector<float> x = numbers(4096), weights(8);
    std::vector<uint8_t> cache(4096 * 2);
    int ids[8], fault = 0;
    store(0, x.data(), 4096, GWQ_TYPE_Q8_0, cache.data(), 0, nullptr, 0);
    std::vector<uint64_t> keys(8), work(largest_bytes(4000, 8) / sizeof(uint64_t));
    largest(0, x.data(), 4000, 8, keys.data(), work.data(), &fault);
    places(0, keys.data(), 8, ids);
    gwq_op_route o = {x.data(), 64, 4, 1, ids, weights.data()};
    route(0, o, 2, &fault);
    gwq_op_norm n = {x.data(), x.data() + 2048, nullptr, 1e-5f, 1024, x.data()};
    normalize(0, n, 1, 2);
}

int main(int count, char **words) {
    if (count > 1) {
        std::vector<float> x = numbers(64);
        float *const data = x.data();
        if (!strcmp(words[1], "race")) LAUNCH(race_kernel, 1, 64, 0, data);
        else LAUNCH(late_race_kernel, 1, 64, 0, data);
        return 0;
    }
    products();
    attention();
    others();
    puts("done");
    return 0;
}
