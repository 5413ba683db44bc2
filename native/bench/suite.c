/* The steps of a file's measurement: those of gwq-bench --suite edge that this program knows. */
#define _GNU_SOURCE
#include "suite.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "document.h"
#include "pages.h"
#include "plan.h"
#include "say.h"
#include "sha256.h"

enum { STARTS = 3, HEAD = 1 << 20 }; /* as gwq_export/bench has them */
static const double MOST_OFF = 1; /* of a logit, by rounding on another instruction set */

struct job {
    struct options o; /* with all lengths */
    struct document d;
    struct record record;
    const char *why_not; /* there is no cold start */
};

/* --- runs ------------------------------------------------------------------------------------- */

static struct row *new_row(struct job *job, const char *step, int threads, const struct engine *e) {
    struct document *d = &job->d;
    if (d->row_count == MOST_ROWS) die("too many tests: give fewer lengths and thread counts");
    struct row *r = d->rows + d->row_count;
    *r = (struct row){.step = step, .threads = threads, .facts = e->facts, .cold_ns = -1,
                      .why_not = job->why_not, .localscore = NAN};
    struct values cold = {0};
    for (int i = 0; i < d->start_count; i++)
        if (d->starts[i].cold && d->starts[i].start_ns >= 0)
            values_add(&cold, (double)d->starts[i].start_ns);
    if (cold.count) r->cold_ns = (int64_t)values_median(&cold);
    else if (!r->why_not) r->why_not = "it was measured before the cold starts";
    values_free(&cold);
    return r;
}

static void print_row(const struct job *job, const struct row *r) {
    const struct shares s = beside_row(&r->beside);
    static int headed;
    char test[64], share[64] = "| |";
    if (!headed++) {
        puts("| model | threads | test | t/s | GB/s | roof GB/s | of roof |");
        puts("| --- | --- | --- | --- | --- | --- | --- |");
    }
    int length = snprintf(test, sizeof test, "%s%lld", r->prompt ? "pp" : "tg",
                          (long long)row_tokens(r));
    if (r->depth) snprintf(test + length, sizeof test - (size_t)length, " @ d%lld",
                           (long long)r->depth);
    if (r->gen)
        snprintf(share, sizeof share, "%.1f | %.1f | %.0f%%", s.gbps, s.roof_gbps,
                 100 * s.of_roof);
    printf("| %s | %d | %s | %.2f | %s |\n", job->record.head->type, r->threads, test,
           (double)row_tokens(r) / values_median(&r->beside.seconds), share);
    fflush(stdout);
}

/* Time one test with an engine; 0: interrupted, and what was measured by then is a row */
static int test(struct job *job, const char *step, struct engine *e, struct roof *roof,
                int64_t prompt, int64_t gen, int64_t depth) {
    struct row *r = new_row(job, step, roof->threads, e);
    r->prompt = prompt;
    r->gen = prompt ? 0 : gen;
    r->depth = depth;
    r->beside.bytes = (double)job->record.head->token_bytes * (double)(r->gen ? r->gen : 1);
    const int total = (int)job->o.repeats;
    if (engine_run(e, prompt, r->gen, depth) < 0) return 0; /* the first run warms caches */
    r->before = state_now();
    double before = roof_now(roof);
    for (int i = 0; i < total && !interrupted; i++) {
        progress(step, i, total);
        const int64_t ns = engine_run(e, prompt, r->gen, depth);
        if (ns < 0) break;
        const double after = roof_now(roof);
        beside_add(&r->beside, (double)(ns ? ns : 1) / 1e9, before, after);
        before = after;
    }
    progress(step, total, total);
    if (!r->beside.seconds.count) return 0;
    r->after = state_now();
    r->facts.peak_bytes = e->facts.peak_bytes;
    job->d.row_count++;
    for (int i = job->d.row_count - 2; r->gen && i >= 0; i--) {
        const struct row *p = job->d.rows + i; /* the last prompt of the same engine */
        if (!p->prompt || p->threads != r->threads) continue;
        const double first = values_median(&p->beside.seconds);
        const double decode = (double)r->gen / values_median(&r->beside.seconds);
        r->localscore = 10 * cbrt((double)p->prompt / first * decode / first);
        break;
    }
    print_row(job, r);
    document_save(&job->d);
    return !interrupted;
}

/* --- steps: 0 when interrupted ---------------------------------------------------------------- */

static int threads(struct job *job) {
    double most = 0;
    for (int i = 0; i < job->o.threads.count; i++) {
        struct engine e;
        struct roof *roof = roof_of((int)job->o.threads.of[i]);
        if (!roof || !engine_start(&e, job->o.model, job->o.record, roof->threads)) return 0;
        const int done = test(job, "threads", &e, roof, 0, plan_sweep(&job->record), 0);
        engine_stop(&e);
        if (!done) return 0;
        const struct row *r = job->d.rows + job->d.row_count - 1;
        const double speed = (double)r->gen / values_median(&r->beside.seconds);
        if (speed <= most) continue;
        most = speed;
        job->d.best_threads = roof->threads;
    }
    return 1;
}

static int starts(struct job *job) {
    for (int i = 0; i < 2 * STARTS; i++) {
        struct start *s = job->d.starts + job->d.start_count;
        struct engine e;
        *s = (struct start){.cold = i < STARTS, .ready_ns = -1, .start_ns = -1};
        progress("starts", i, 2 * STARTS);
        if (s->cold) s->why_not = job->why_not = pages_put_out(job->o.model);
        else pages_read_through(job->o.model);
        if (!s->why_not) {
            if (!engine_start(&e, job->o.model, job->o.record, job->d.best_threads)) return 0;
            s->ready_ns = e.facts.ready_ns;
            s->start_ns = e.facts.start_ns;
            engine_stop(&e);
        }
        job->d.start_count++;
        if (interrupted) return 0;
    }
    progress("starts", 2 * STARTS, 2 * STARTS);
    return 1;
}

static void compare_first(struct job *job, const struct engine *e) {
    const struct record_head *h = job->record.head;
    struct document *d = &job->d;
    const int all = (int)h->first.count;
    d->checked = 1;
    d->same = e->facts.same;
    d->off = (double)e->facts.off;
    say("%d of the first %d tokens are those of the machine that recorded the model (%s there, %s"
        " here); logits differ by at most %.2g", d->same, all, h->isa, gwq_isa(), d->off);
}

static int speed(struct job *job) {
    struct engine e;
    struct roof *roof = roof_of(job->d.best_threads);
    if (!roof) return 0;
    if (!pages_put_out(job->o.model)) pages_read_through(job->o.model); /* as after a start */
    if (!engine_start(&e, job->o.model, job->o.record, roof->threads)) return 0;
    compare_first(job, &e);
    int going = 1;
    for (int i = 0; i < job->o.prompts.count && going; i++)
        going = test(job, "speed", &e, roof, job->o.prompts.of[i], 0, 0);
    if (going && job->o.gen) going = test(job, "speed", &e, roof, 0, job->o.gen, 0);
    engine_stop(&e);
    return going;
}

static int depth(struct job *job) {
    struct engine e;
    struct roof *roof = roof_of(job->d.best_threads);
    if (!roof || !engine_start(&e, job->o.model, job->o.record, roof->threads)) return 0;
    int going = 1;
    for (int i = 0; i < job->o.depths.count && going; i++)
        going = test(job, "depth", &e, roof, 0, plan_sweep(&job->record), job->o.depths.of[i]);
    engine_stop(&e);
    return going;
}

static int (*const RUN[STEPS])(struct job *) = {threads, starts, speed, depth};
static const struct step STEP_ROWS[STEPS] = {
    {"threads", "thread sweep", "waiting", NULL, NAN},
    {"starts", "from start to first token", "waiting", NULL, NAN},
    {"speed", "prompts and decoding", "waiting", NULL, NAN},
    {"depth", "depth of the context", "waiting", NULL, NAN},
};

static void skip(struct job *job) {
    struct step *s = job->d.steps;
    if (job->o.threads.count < 2) s[STEP_THREADS].why = "there is one thread count to try";
    if (!job->o.gen && !job->o.prompts.count) s[STEP_SPEED].why = "-p and -n leave it out";
    if (!job->o.depths.count) s[STEP_DEPTH].why = "the record has no room for it";
    for (int i = 0; i < STEPS; i++)
        if (s[i].why) s[i].state = "skipped";
}

static void prepare(struct job *job) {
    struct record *r = &job->record;
    const time_t now_is = time(NULL);
    record_read(r, job->o.record);
    record_map_model(r, job->o.model);
    sha256(r->model.bytes, r->model.size < HEAD ? r->model.size : HEAD, job->d.head_sha);
    record_unmap_model(r); /* what is mapped cannot be put out of memory */
    plan(&job->o, r);
    job->d.best_threads = (int)job->o.threads.of[0];
    job->d.out = job->o.out;
    job->d.model_path = job->o.model;
    job->d.record = r;
    strftime(job->d.created, sizeof job->d.created, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now_is));
    memcpy(job->d.steps, STEP_ROWS, sizeof STEP_ROWS);
    skip(job);
}

/* Only what is decoded first; returns the exit status. */
static int check(struct job *job) {
    struct engine e;
    if (!engine_start(&e, job->o.model, job->o.record, job->d.best_threads)) return INTERRUPTED;
    compare_first(job, &e);
    engine_stop(&e);
    if (!(job->d.off <= MOST_OFF))
        die("more than rounding: copy %s and %s again, and see that this program is of the same"
            " version", job->o.model, job->o.record);
    return 0;
}

int measure_file(const struct options *o) {
    static struct job job;
    job.o = *o;
    prepare(&job);
    if (o->check) return check(&job);
    for (int i = 0; i < STEPS; i++) {
        struct step *s = job.d.steps + i;
        if (s->why) continue;
        say("step %d of %d: %s", i + 1, STEPS, s->title);
        const int64_t start = now();
        const int done = RUN[i](&job);
        s->state = done ? "done" : "interrupted";
        s->seconds = (double)((now() - start) / 1000000) / 1e3;
        document_save(&job.d);
        if (done) continue;
        if (job.o.out) say("what was measured is in %s", job.o.out);
        return INTERRUPTED;
    }
    return 0;
}
