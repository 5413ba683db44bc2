/* As kernels_check.c: the other slots of every instruction set of this machine against the scalar
 * row. */
#include "check_support.h"

static const gwq_kernels *in_use(void) { return gwq_in_use(); }

/* Numbers with which rounding and limits show: ties, zeros, subnormal, huge, infinite, none */
static void put_wild(float *x, int64_t count, int kind) {
    for (int64_t i = 0; i < count; i++) {
        x[i] = normal();
        if (kind == 1) x[i] = (float)(below(509) - 254) / 2;
        if (kind == 2) x[i] *= 1e-39f;
        if (kind == 3) x[i] = copysignf(3e38f, x[i]);
        if (kind == 4) x[i] = 0;
        if (kind == 5) x[i] *= powf(2, (float)(below(40) - 28));
    }
    if (kind == 6) x[count / 2] = INFINITY;
    if (kind == 7) x[count / 3] = NAN;
    if (kind == 8) x[count - 1] = -1e30f;
}
enum { KINDS = 9, MOST = 600 };
static const int widths[] = {1, 3, 63, 64, 65, 129, 320, 597};
enum { WIDTHS = sizeof widths / sizeof *widths };

static void check_quantize(const float *x, int cols) {
    enum { BLOCKS = 10, LANES = 3 };
    static int8_t q[2][BLOCKS * LANES * 64];
    static float scale[2][BLOCKS * LANES];
    static int16_t bias[2][BLOCKS * LANES * 8];
    for (int i = 0; i < 2; i++) {
        const gwq_kernels *k = i ? in_use() : &gwq_scalar;
        memset(q[i], 99, sizeof q[i]);
        memset(scale[i], 99, sizeof scale[i]);
        memset(bias[i], 99, sizeof bias[i]);
        k->quantize(x, cols, LANES, q[i], scale[i], bias[i]);
    }
    same_bits(q[0], q[1], sizeof q[0], "codes of activations");
    same_bits(scale[0], scale[1], sizeof scale[0], "scales of activations");
    same_bits(bias[0], bias[1], sizeof bias[0], "bias of activations");
}

static void check_halves(const float *x, int cols) {
    uint16_t h[2][MOST];
    gwq_scalar.to_halves(x, cols, h[0]);
    in_use()->to_halves(x, cols, h[1]);
    for (int i = 0; i < cols; i++) {
        const int none = (h[1][i] & 0x7fff) > 0x7c00;
        if (x[i] == x[i] ? h[0][i] != h[1][i] : !none)
            FAIL("FP16 of %.9g is %04x, not %04x", x[i], h[1][i], h[0][i]);
    }
}

static void check_activations(const float *x, int cols, int kind) {
    static const char *const names[] = {"SiLU", "GELU", "GELU by tanh"};
    static float a[MOST], b[MOST];
    const float *up = x;
    for (int f = 0; f < 3; f++)
        for (int gated = 0; gated < 2; gated++) {
            memcpy(a, x, sizeof *a * (size_t)cols);
            memcpy(b, x, sizeof *a * (size_t)cols);
            gwq_scalar.activate(b, gated ? up : NULL, cols, f);
            in_use()->activate(a, gated ? up : NULL, cols, f);
            if (kind == 3) continue; /* where one overflows, the other need not */
            const float absolute = f == GWQ_GELU ? 2e-6f : 1e-6f;
            close_to(a, b, cols, 2e-6f, gated && kind == 5 ? 1e-2f : absolute, names[f]);
        }
    for (int k = 0; k < 2; k++) {
        const float cap = k ? 30 : 0.7f;
        memcpy(a, x, sizeof *a * (size_t)cols);
        memcpy(b, x, sizeof *a * (size_t)cols);
        gwq_scalar.softcap(b, cols, cap);
        in_use()->softcap(a, cols, cap);
        if (kind != 7) close_to(a, b, cols, 1e-6f, 1e-37f, "softcap");
    }
}

static void check_convolve(const float *x, int cols) {
    static float a[MOST], b[MOST];
    enum { TAPS = 5 };
    for (int taps = 1; taps <= TAPS; taps++) {
        const int count = cols / (TAPS + 1); /* of channels; x has weights and inputs */
        const float *u[TAPS];
        for (int j = 0; j < taps; j++) u[j] = x + (j * 2 + 1) * count / 2;
        gwq_scalar.convolve(u, x, count, taps, x + count, count, b);
        in_use()->convolve(u, x, count, taps, x + count, count, a);
        for (int i = 0; i < count; i++)
            if (b[i] == b[i]) same_bits(a + i, b + i, sizeof *a, "short convolution");
    }
}

static void check_rows_of_numbers(void) {
    for (int kind = 0; kind < KINDS; kind++)
        for (int w = 0; w < WIDTHS; w++) {
            const int cols = widths[w];
            float *x = floats(cols);
            float a[MOST], b[MOST];
            put_wild(x, cols, kind);
            EACH_ROW(i) {
                check_quantize(x, cols);
                check_halves(x, cols);
                check_activations(x, cols, kind);
                check_convolve(x, cols);
                gwq_scalar.rmsnorm(x, x, 1e-5f, cols, b);
                in_use()->rmsnorm(x, x, 1e-5f, cols, a);
                if (kind != 2) close_to(a, b, cols, 2e-6f, 0, "RMS norm");
            }
            release(x, sizeof *x * (size_t)cols);
        }
}

static void check_panel(void) {
    static float a[64 * 40], b[64 * 40];
    float *x = normals(64 * 41);
    EACH_ROW(i)
        for (int count = 1; count <= 64; count += 9)
            for (int width = 1; width <= 40; width += 3) {
                const int lanes = (count + 7) / 8 * 8;
                const float *from = x + 64 * 41 - (count - 1) * 41 - width; /* to the very end */
                gwq_scalar.panel(from, 41, count, width, lanes, a);
                in_use()->panel(from, 41, count, width, lanes, b);
                same_bits(a, b, sizeof *a * (size_t)(lanes * width), "columns of activations");
            }
}

/* --- attention -------------------------------------------------------------------------------- */

static void check_cache(int type, int dim, int keys) {
    static float raw[2][41][GWQ_QUERIES], s[2][41][GWQ_QUERIES], out[2][GWQ_QUERIES][80];
    const int64_t count = (int64_t)dim * keys;
    const size_t bytes = type == GWQ_TYPE_F32 ? 4 : 2;
    const size_t size = type == GWQ_TYPE_Q8_0 ? (size_t)count / 32 * 34 : bytes * (size_t)count;
    void *cache = guarded(size);
    float *x = normals(count), *q = normals(GWQ_QUERIES * dim);
    float most[2][GWQ_QUERIES], sum[2][GWQ_QUERIES];
    if (gwq_cache(x, count, type, cache, 0)) exit(7);
    const float *queries[GWQ_QUERIES];
    for (int i = 0; i < GWQ_QUERIES; i++) queries[i] = q + i * dim;
    for (int i = 0; i < 2; i++) {
        const gwq_kernels *k = i ? in_use() : &gwq_scalar;
        float *to[GWQ_QUERIES];
        for (int j = 0; j < GWQ_QUERIES; j++) {
            to[j] = out[i][j];
            most[i][j] = -3e38f;
            for (int d = 0; d < dim; d++) out[i][j][d] = (float)d;
        }
        k->scores(queries, cache, type, dim, keys, dim, raw[i]);
        memcpy(s[i], raw[0], sizeof s[i]); /* what follows is compared by itself */
        s[i][0][1] = -INFINITY;
        k->largest(s[i], keys, 0.125f, most[i]);
        k->exponents(s[i], keys, most[i], sum[i]);
        k->mix((const float(*)[GWQ_QUERIES])s[i], cache, type, dim, keys, dim, to);
    }
    close_to(raw[1][0], raw[0][0], keys * GWQ_QUERIES, 1e-5f, 1e-4f, "scores");
    same_bits(most[0], most[1], sizeof most[0], "largest scores");
    close_to(sum[1], sum[0], GWQ_QUERIES, 2e-6f, 0, "sums of exponents");
    close_to(s[1][0], s[0][0], keys * GWQ_QUERIES, 2e-6f, 0, "exponents");
    for (int j = 0; j < GWQ_QUERIES; j++)
        close_to(out[1][j], out[0][j], dim, 2e-5f, 1e-4f, "mix of values");
    release(cache, size);
    release(x, sizeof *x * (size_t)count);
    release(q, sizeof *x * (size_t)(GWQ_QUERIES * dim));
}

/* --- export ----------------------------------------------------------------------------------- */

static void check_encode(int32_t type, int columns, int fit, int fed) {
    enum { ROWS = 64, CELLS = 64 * ROWS };
    static float table[64], d[ROWS], weight[ROWS], of_column[64], feedback[64 * 64], aim[CELLS];
    static float target[2][CELLS], value[2][CELLS];
    static int8_t scale[2][4 * ROWS];
    static uint8_t code[2][CELLS], held[CELLS];
    const int entries = type == GWQ_TYPE_GWQ6 ? 64 : type == GWQ_TYPE_GWQ5 ? 32 : 16;
    for (int v = 0; v < 64; v++) table[v] = (float)(v - 32) * (entries == 64 ? 1 : 64.f / entries);
    if (entries == 16 && type != GWQ_TYPE_GWQ4)
        for (int v = 0; v < 16; v++) table[v] = (float)(v * 7 % 16 * 4 - 32 + v % 3);
    for (int i = 0; i < ROWS; i++) {
        d[i] = i == 5 ? 0 : 0.001f * (float)(1 + below(100));
        weight[i] = 0.5f + fabsf(uniform());
        of_column[i] = 0.1f + fabsf(uniform());
    }
    for (int i = 0; i < 64 * 64; i++) feedback[i] = 0.1f * uniform();
    for (int i = 0; i < CELLS; i++) {
        aim[i] = normal();
        held[i] = below(100) == 0;
    }
    for (int i = 0; i < 2; i++) {
        memcpy(target[i], aim, sizeof aim);
        for (int k = 0; k < 4 * ROWS; k++) scale[i][k] = (int8_t)(k * 37 % 64 - 32);
        const gwq_encoding e = {
            .type = type,
            .columns = columns,
            .rows = ROWS,
            .last = ROWS,
            .fit = fit,
            .table = table,
            .row_scale = d,
            .row_weight = weight,
            .column_weight = of_column,
            .column_cost = fed ? of_column : NULL,
            .outlier = fed ? held : NULL,
            .feedback = fed ? feedback : NULL,
            .before = fed > 1 ? aim : NULL,
            .target = target[i],
            .scale = scale[i],
            .code = code[i],
            .value = value[i],
        };
        const gwq_kernels *k = i ? in_use() : &gwq_scalar;
        memset(code[i], 77, sizeof code[i]);
        k->encode(&e, 0, ROWS);
    }
    same_bits(code[0], code[1], sizeof code[0], "codes");
    same_bits(value[0], value[1], sizeof *value[0] * (size_t)(columns * ROWS), "values of codes");
    same_bits(target[0], target[1], sizeof target[0], "targets");
    same_bits(scale[0], scale[1], sizeof scale[0], "scales");
}

static void check_multiply(int m, int n, int k, int add, int turned) {
    float *a = normals(m * k), *b = normals(k * n), *out[2];
    for (int i = 0; i < 2; i++) {
        out[i] = floats(m * n);
        for (int j = 0; j < m * n; j++) out[i][j] = (float)j;
        const gwq_multiplication p = {
            .m = m,
            .n = n,
            .k = k,
            .a = a,
            .a_row = turned ? 1 : k,
            .a_column = turned ? m : 1,
            .b = b,
            .b_row = turned ? 1 : n,
            .b_column = turned ? k : 1,
            .out = out[i],
            .out_row = n,
            .add = add,
        };
        const gwq_kernels *kernels = i ? in_use() : &gwq_scalar;
        kernels->multiply(&p);
    }
    same_bits(out[0], out[1], sizeof(float) * (size_t)(m * n), "products of float matrices");
    release(a, sizeof *a * (size_t)(m * k));
    release(b, sizeof *b * (size_t)(k * n));
    for (int i = 0; i < 2; i++) release(out[i], sizeof(float) * (size_t)(m * n));
}

static void check_read(void) {
    uint8_t *p = guarded(4096);
    for (int i = 0; i < 4096; i++) p[i] = (uint8_t)next_random();
    EACH_ROW(i)
        for (int streams = 1; streams <= 8; streams++)
            if (in_use()->read(p, 4096, streams, 256) != gwq_scalar.read(p, 4096, 1, 0))
                FAIL("memory is read wrongly in %d streams", streams);
}

int main(void) {
    static const int32_t caches[] = {GWQ_TYPE_F32, GWQ_TYPE_F16, GWQ_TYPE_Q8_0};
    print_rows();
    check_rows_of_numbers();
    check_panel();
    check_read();
    EACH_ROW(i) {
        for (int c = 0; c < 3; c++)
            for (int keys = 1; keys <= 40; keys += 13) {
                check_cache(caches[c], 64, keys);
                if (caches[c] != GWQ_TYPE_Q8_0) check_cache(caches[c], 77, keys);
            }
        for (int bits = 2; bits <= 6; bits++)
            for (int fit = 0; fit < 2; fit++)
                check_encode(gwq_types[GWQ_K_GWQ2 + bits - 2].id, bits < 4 ? 32 : 35, fit,
                             fit ? bits % 3 : 2);
        check_multiply(1, 1, 1, 0, 0);
        check_multiply(13, 17, 193, 1, 0);
        check_multiply(29, 40, 400, 0, 1);
    }
    return failures > 0;
}
