/* Writes JSON, with commas where they belong. `key` is NULL in a list. */
#ifndef GWQ_BENCH_JSON_H
#define GWQ_BENCH_JSON_H
#include <stdint.h>
#include <stdio.h>
#include "stats.h"

struct json {
    FILE *to;
    int depth, first; /* the next thing is the first one of what was opened last */
};

void json_open(struct json *j, const char *key, char bracket); /* '{' or '[' */
void json_close(struct json *j, char bracket);                 /* '}' or ']' */
void json_text(struct json *j, const char *key, const char *text); /* NULL: null */
void json_integer(struct json *j, const char *key, int64_t value);
void json_number(struct json *j, const char *key, double value); /* NaN: null */
void json_truth(struct json *j, const char *key, int value);
void json_null(struct json *j, const char *key);
void json_nulls(struct json *j, const char *const *keys); /* that end in NULL */
/* factor * each of the values, or factor / each; whole: as integers */
void json_values(struct json *j, const char *key, const struct values *v, double factor,
                 int divided, int whole);
#endif
