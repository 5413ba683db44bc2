/* Rows of single kernels: GB/s, share of the memory roof, operations per second. */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>
#include "cases.h"
#include "device.h"
#include "document.h"
#include "limits.h"
#include "say.h"
#include "suite.h"

enum {
    MOST_CASES = 256,
    SAMPLE_NS = 20000000 /* a sample repeats its call until it has taken so long */
};

struct kernel_row {
    struct kernel_case of;
    int threads;
    double operations;
    struct beside beside;
};

/* Seconds per call */
static double sample(struct built *b, gwq_pool *pool) {
    const int64_t start = now();
    int64_t count = 0;
    do {
        run_case(b, pool);
        count++;
    } while (now() - start < SAMPLE_NS);
    return (double)(now() - start) / 1e9 / (double)count;
}

static void write_row(struct json *j, const struct kernel_row *r) {
    const struct shares s = beside_row(&r->beside);
    const double median = values_median(&r->beside.seconds);
    const int product = r->of.op != CASE_ATTENTION;
    const double weights = (double)r->of.rows * (double)r->of.cols * (double)r->of.tokens;
    json_open(j, NULL, '{');
    json_text(j, "op", op_name(r->of.op));
    json_text(j, "type", type_name(r->of.type));
    json_open(j, "shape", '[');
    json_integer(j, NULL, r->of.rows);
    json_integer(j, NULL, r->of.cols);
    json_close(j, ']');
    json_number(j, "outliers", r->of.outliers);
    json_integer(j, "tokens", r->of.tokens);
    json_text(j, "isa", gwq_isa());
    json_integer(j, "threads", r->threads);
    json_integer(j, "ns", (int64_t)(1e9 * median));
    json_number(j, "gbps", s.gbps);
    json_number(j, "roof_gbps", s.roof_gbps);
    json_number(j, "of_roof", s.of_roof);
    json_number(j, "gflops", r->operations / median / 1e9);
    json_number(j, "gweights", product ? weights / median / 1e9 : NAN);
    json_values(j, "samples_ns", &r->beside.seconds, 1e9, 0, 1);
    json_text(j, "cpu_info", cpu_name());
    json_text(j, "gpu_info", "");
    json_close(j, '}');
}

static void save(const char *out, const struct kernel_row *rows, int count) {
    if (!out) return;
    struct json j = {.to = save_begin(out), .first = 1};
    json_open(&j, NULL, '{');
    json_open(&j, "rows", '[');
    for (int i = 0; i < count; i++) write_row(&j, rows + i);
    json_close(&j, ']');
    write_roofs(&j);
    json_close(&j, '}');
    save_end(j.to, out);
}

static void print(const struct kernel_row *r, int first) {
    const struct shares s = beside_row(&r->beside);
    const double median = values_median(&r->beside.seconds);
    if (first) {
        puts("| op | type | rows x columns | tokens | outliers | isa | threads | us | GB/s |"
             " roof GB/s | of roof | GFLOP/s |");
        puts("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    }
    printf("| %s | %s | %lldx%lld | %lld | %.1f%% | %s | %d | %.0f | %.1f | %.1f | %.0f%% | %.1f"
           " |\n",
           op_name(r->of.op), type_name(r->of.type), (long long)r->of.rows, (long long)r->of.cols,
           (long long)r->of.tokens, 100 * r->of.outliers, gwq_isa(), r->threads, 1e6 * median,
           s.gbps, s.roof_gbps, 100 * s.of_roof, r->operations / median / 1e9);
    fflush(stdout);
}

/* Time a case; 0: interrupted before there was anything */
static int measure(struct kernel_row *row, struct built *b, struct roof *roof, int64_t repeats) {
    *row = (struct kernel_row){.of = b->of, .threads = roof->threads, .operations = b->operations,
                               .beside.bytes = (double)b->bytes};
    run_case(b, roof->pool);
    double before = roof_now(roof);
    for (int64_t i = 0; i < repeats && !interrupted; i++) {
        const double seconds = sample(b, roof->pool), after = roof_now(roof);
        beside_add(&row->beside, seconds, before, after);
        before = after;
    }
    return row->beside.seconds.count > 0;
}

int measure_kernels(const struct options *o) {
    static struct kernel_case cases[MOST_CASES];
    static struct kernel_row rows[MOST_CASES * MOST_LENGTHS];
    const struct lengths counts =
        o->threads.count < 0 ? (struct lengths){.of = {default_threads()}, .count = 1} : o->threads;
    const int count = cases_of(o, cases, MOST_CASES), total = count * counts.count;
    int done = 0;
    for (int i = 0; i < count && !interrupted; i++) {
        struct built b = build_case(cases + i, working_set());
        for (int t = 0; t < counts.count && !interrupted; t++) {
            struct roof *roof = roof_of((int)counts.of[t]);
            if (!roof) break;
            progress("kernels", done, total);
            if (!measure(rows + done, &b, roof, o->repeats)) break;
            progress("kernels", total, total);
            print(rows + done, done == 0);
            done++;
        }
        free_case(&b);
    }
    save(o->out, rows, done);
    if (!interrupted) return 0;
    if (o->out) say("what was measured is in %s", o->out);
    return INTERRUPTED;
}
