#define _GNU_SOURCE
#include "document.h"
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "device.h"
#include "json.h"
#include "say.h"

int64_t row_tokens(const struct row *r) { return r->prompt ? r->prompt : r->gen; }

const char *file_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void software(struct json *j) {
    json_open(j, "software", '{');
    json_text(j, "gwq_export", GWQ_VERSION);
    json_text(j, "python", "none");
    json_text(j, "isa", gwq_isa());
    json_null(j, "xllamacpp");
    json_close(j, '}');
}

static void model(struct json *j, const struct document *d) {
    const struct record_head *h = d->record->head;
    char hex[65];
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", d->head_sha[i]);
    json_open(j, "model", '{');
    json_text(j, "name", h->name);
    json_text(j, "file", file_name(d->model_path));
    json_text(j, "type", h->type);
    json_integer(j, "bytes", (int64_t)h->file_bytes);
    json_integer(j, "params", h->params);
    json_integer(j, "context", h->context);
    json_text(j, "sha256_head", hex);
    json_close(j, '}');
}

static void missing(struct json *j, const char *sensor, const char *why) {
    json_open(j, NULL, '{');
    json_text(j, "sensor", sensor);
    json_text(j, "why", why);
    json_close(j, '}');
}

static void sensors(struct json *j) {
    const struct state s = state_now();
    json_open(j, "sensors", '{');
    json_open(j, "meters", '[');
    json_close(j, ']');
    json_open(j, "missing", '[');
    missing(j, "energy", PROGRAM " reads no meters");
    missing(j, "throttling", PROGRAM " does not read it: see clock rates and temperature");
    if (isnan(s.mhz)) missing(j, "clock rate", "the system does not tell it");
    if (isnan(s.celsius)) missing(j, "temperature", "the system does not tell it");
    json_close(j, ']');
    json_close(j, '}');
}

static void steps(struct json *j, const struct document *d) {
    json_open(j, "steps", '[');
    for (int i = 0; i < STEPS; i++) {
        const struct step *s = d->steps + i;
        json_open(j, NULL, '{');
        json_text(j, "step", s->name);
        json_text(j, "title", s->title);
        json_text(j, "state", s->state);
        json_number(j, "seconds", s->seconds);
        json_text(j, "why", s->why);
        json_close(j, '}');
    }
    json_close(j, ']');
}

/* What the device decodes beside what the recording machine did */
static void checked(struct json *j, const struct document *d) {
    if (!d->checked) return;
    json_open(j, "checked", '{');
    json_text(j, "isa", d->record->head->isa);
    json_integer(j, "tokens", (int64_t)d->record->head->first.count);
    json_integer(j, "same", d->same);
    json_number(j, "logits_differ_by", d->off);
    json_close(j, '}');
}

static void nanoseconds(struct json *j, const char *key, int64_t ns) {
    if (ns < 0) json_null(j, key);
    else json_integer(j, key, ns);
}

static void starts(struct json *j, const struct document *d) {
    json_open(j, "starts", '[');
    for (int i = 0; i < d->start_count; i++) {
        const struct start *s = d->starts + i;
        json_open(j, NULL, '{');
        json_text(j, "engine", "gwq");
        json_truth(j, "cold", s->cold);
        nanoseconds(j, "ready_ns", s->ready_ns);
        nanoseconds(j, "start_ns", s->start_ns);
        json_text(j, "why_not", s->why_not);
        json_close(j, '}');
    }
    json_close(j, ']');
}

static void speeds(struct json *j, const struct row *r) {
    struct values speed = {0};
    for (int i = 0; i < r->beside.seconds.count; i++)
        values_add(&speed, (double)row_tokens(r) / r->beside.seconds.of[i]);
    json_values(j, "samples_ts", &speed, 1, 0, 0);
    json_values(j, "samples_ns", &r->beside.seconds, 1e9, 0, 1);
    json_number(j, "median_ts", values_median(&speed));
    json_number(j, "avg_ts", values_mean(&speed));
    json_number(j, "stddev_ts", values_deviation(&speed));
    json_integer(j, "avg_ns", (int64_t)(1e9 * values_mean(&r->beside.seconds)));
    json_integer(j, "stddev_ns", (int64_t)(1e9 * values_deviation(&r->beside.seconds)));
    values_free(&speed);
}

static void reading(struct json *j, const struct row *r, int64_t token_bytes) {
    const struct shares found = beside_row(&r->beside);
    if (r->gen) json_integer(j, "bytes_per_token", token_bytes);
    else json_null(j, "bytes_per_token");
    json_number(j, "gbps", r->gen ? found.gbps : NAN);
    json_number(j, "roof_gbps", found.roof_gbps);
    json_number(j, "of_roof", r->gen ? found.of_roof : NAN);
}

static void conditions(struct json *j, const struct row *r) {
    static const char *const NOTHING[] = {
        "throttled", "meter", "watts", "idle_watts", "joules_per_token", "tokens_per_joule",
        "times_as_fast", "times_as_fast_q1", "times_as_fast_q3", "power_mode", NULL,
    };
    json_text(j, "governor", *r->after.governor ? r->after.governor : NULL);
    json_number(j, "mhz_before", r->before.mhz);
    json_number(j, "mhz_after", r->after.mhz);
    json_number(j, "celsius_before", r->before.celsius);
    json_number(j, "celsius_after", r->after.celsius);
    json_nulls(j, NOTHING);
    json_open(j, "throttled_why", '[');
    json_close(j, ']');
    json_open(j, "energy", '[');
    json_close(j, ']');
}

static void row(struct json *j, const struct document *d, const struct row *r) {
    const struct record_head *h = d->record->head;
    char engine[64];
    snprintf(engine, sizeof engine, "gwq-%s", gwq_isa());
    json_open(j, NULL, '{');
    json_text(j, "step", r->step);
    json_text(j, "build_commit", GWQ_VERSION);
    json_text(j, "cpu_info", cpu_name());
    json_text(j, "gpu_info", "");
    json_text(j, "backends", engine);
    json_text(j, "model_filename", file_name(d->model_path));
    json_text(j, "model_type", h->type);
    json_integer(j, "model_size", (int64_t)h->file_bytes);
    json_integer(j, "model_n_params", h->params);
    json_integer(j, "n_batch", h->batch);
    json_integer(j, "n_threads", r->threads);
    json_null(j, "cpus");
    json_text(j, "type_k", h->cache);
    json_text(j, "type_v", h->cache);
    json_integer(j, "n_prompt", r->prompt);
    json_integer(j, "n_gen", r->gen);
    json_integer(j, "n_depth", r->depth);
    speeds(j, r);
    reading(j, r, h->token_bytes);
    json_integer(j, "load_ns", r->facts.load_ns);
    json_integer(j, "first_token_ns", r->facts.first_token_ns);
    json_integer(j, "ready_ns", r->facts.ready_ns);
    json_integer(j, "start_ns", r->facts.start_ns);
    nanoseconds(j, "start_cold_ns", r->cold_ns);
    json_text(j, "why_not_cold", r->why_not);
    json_integer(j, "peak_bytes", r->facts.peak_bytes);
    json_number(j, "localscore", r->localscore);
    conditions(j, r);
    json_close(j, '}');
}

void write_roofs(struct json *j) {
    json_open(j, "roof", '[');
    for (int i = 0; i < roof_count(); i++)
        for (int way = 0; way < ROOF_WAYS; way++) {
            json_open(j, NULL, '{');
            json_integer(j, "threads", roof_made(i)->threads);
            json_integer(j, "streams", roof_streams(way));
            json_integer(j, "ahead", roof_ahead(way));
            json_number(j, "gbps", values_median(&roof_made(i)->rates[way]));
            json_close(j, '}');
        }
    json_close(j, ']');
}

void document_save(const struct document *d) {
    if (!d->out) return;
    struct json j = {.to = save_begin(d->out), .first = 1};
    int complete = 1;
    for (int i = 0; i < STEPS; i++)
        complete &= !strcmp(d->steps[i].state, "done") || !strcmp(d->steps[i].state, "skipped");
    json_open(&j, NULL, '{');
    json_text(&j, "schema", "gwq-bench/edge");
    json_integer(&j, "version", 1);
    json_text(&j, "created", d->created);
    json_text(&j, "suite", "native");
    json_truth(&j, "complete", complete);
    software(&j);
    device_write(&j);
    model(&j, d);
    sensors(&j);
    steps(&j, d);
    starts(&j, d);
    json_open(&j, "rows", '[');
    for (int i = 0; i < d->row_count; i++) row(&j, d, d->rows + i);
    json_close(&j, ']');
    if (d->best_threads) json_integer(&j, "best_threads", d->best_threads);
    else json_null(&j, "best_threads");
    json_null(&j, "sustained");
    checked(&j, d);
    write_roofs(&j);
    json_close(&j, '}');
    save_end(j.to, d->out);
}
