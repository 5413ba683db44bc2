#include "plan.h"
#include "limits.h"
#include "pass.h"
#include "say.h"

/* The set of gwq_export/bench/suite.py; prompts are as they were recorded */
enum { SWEEP = 32, GEN = 128 };
static const int64_t DEPTHS[] = {512, 2048};

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t plan_sweep(const struct record *r) { return least(SWEEP, r->head->ctx - 1); }

static void drop_zeros(struct lengths *l) {
    int kept = 0;
    for (int i = 0; i < l->count; i++)
        if (l->of[i]) l->of[kept++] = l->of[i];
    l->count = kept;
}

static void plan_prompts(struct lengths *l, const struct record *r) {
    if (l->count < 0) {
        l->count = 0;
        for (uint64_t i = 0; i < r->head->prompts.count && l->count < MOST_LENGTHS; i++)
            l->of[l->count++] = r->prompts[i];
    }
    drop_zeros(l);
    for (int i = 0; i < l->count; i++)
        if (l->of[i] > r->head->ctx || !record_has_prompt(r, l->of[i]))
            die("-p %lld: %s has no such prompt: record the model with gwq-bench MODEL.gguf"
                " --record FILE.pass -p %lld, or leave -p out (of a mixture of experts there are no"
                " prompts)", (long long)l->of[i], r->path, (long long)l->of[i]);
}

static void plan_depths(struct lengths *l, const struct record *r) {
    const int64_t ctx = r->head->ctx, after = plan_sweep(r) + 1;
    if (l->count < 0) {
        l->count = 0;
        for (size_t i = 0; i < sizeof DEPTHS / sizeof *DEPTHS; i++)
            if (DEPTHS[i] + after <= ctx) l->of[l->count++] = DEPTHS[i];
    }
    drop_zeros(l);
    for (int i = 0; i < l->count; i++)
        if (l->of[i] + after > ctx)
            die("--depth %lld: %s has room for %lld: record the model with this --depth",
                (long long)l->of[i], r->path, (long long)(ctx > after ? ctx - after : 0));
}

void plan(struct options *o, const struct record *r) {
    const int64_t most = r->head->ctx - 1;
    if (o->gen > most)
        die("-n %lld: %s has room for %lld: record the model with a larger -n", (long long)o->gen,
            r->path, (long long)most);
    if (o->gen < 0) o->gen = least(GEN, most);
    plan_prompts(&o->prompts, r);
    plan_depths(&o->depths, r);
    if (!o->gen && !o->prompts.count && !o->depths.count)
        die("nothing to measure: give -p or -n a positive number");
    if (o->threads.count < 0)
        o->threads = (struct lengths){.of = {default_threads()}, .count = 1};
}
