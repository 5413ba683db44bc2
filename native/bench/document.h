/* What is measured of a file, and the document that is made of it: gwq_export/data/edge.schema.json
 * says what is in it. */
#ifndef GWQ_BENCH_DOCUMENT_H
#define GWQ_BENCH_DOCUMENT_H
#include "engine.h"
#include "json.h"
#include "record.h"
#include "roof.h"
#include "sensors.h"

enum { MOST_ROWS = 128, MOST_STARTS = 16 };

struct row {
    const char *step;
    int threads;
    int64_t prompt, gen, depth;
    struct beside beside;
    struct engine_facts facts;
    int64_t cold_ns;      /* -1: there was no cold start */
    const char *why_not;  /* then */
    struct state before, after;
    double localscore;    /* NaN: no prompt to go with it */
};

struct start {
    int cold;
    int64_t ready_ns, start_ns; /* -1: it was not possible */
    const char *why_not;
};

enum step_number { STEP_THREADS, STEP_STARTS, STEP_SPEED, STEP_DEPTH, STEPS };
struct step {
    const char *name, *title, *state, *why; /* why: NULL, or of one that was left out */
    double seconds;                         /* NaN: not begun */
};

struct document {
    const char *out; /* NULL: it is not written */
    const char *model_path;
    const struct record *record;
    uint8_t head_sha[32]; /* of the model's first MiB */
    char created[32];
    struct step steps[STEPS];
    struct row rows[MOST_ROWS];
    struct start starts[MOST_STARTS];
    int row_count, start_count, best_threads; /* 0: not known */
    int checked, same; /* tokens that are those of the recording machine */
    double off;        /* largest difference of the logits of its tokens */
};

int64_t row_tokens(const struct row *r);
const char *file_name(const char *path); /* without folders */
/* Write everything so far under its name, whole; ends the program where that is not possible. */
void document_save(const struct document *d);

/* A file that is whole under its final name: write into `save_begin`, then `save_end`. */
FILE *save_begin(const char *path);
void save_end(FILE *f, const char *path);
/* See that a file can be written, before the long work. */
void save_check(const char *path);
/* "roof" of results */
void write_roofs(struct json *j);
#endif
