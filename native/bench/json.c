#include "json.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Bytes of the UTF-8 character at p, 0 if there is none */
static int character(const unsigned char *p) {
    static const struct {
        unsigned char mask, lead, low, high; /* and what the second byte may be */
        int size;
    } ROWS[] = {
        {0xff, 0xe0, 0xa0, 0xbf, 3}, {0xff, 0xed, 0x80, 0x9f, 3}, {0xff, 0xf0, 0x90, 0xbf, 4},
        {0xff, 0xf4, 0x80, 0x8f, 4}, {0xf0, 0xe0, 0x80, 0xbf, 3}, {0xfc, 0xf0, 0x80, 0xbf, 4},
        {0xe0, 0xc0, 0x80, 0xbf, 2},
    };
    if (*p < 0x80) return 1;
    if (*p == 0xc0 || *p == 0xc1) return 0;
    for (int i = 0; i < (int)(sizeof ROWS / sizeof *ROWS); i++) {
        if ((*p & ROWS[i].mask) != ROWS[i].lead) continue;
        if (p[1] < ROWS[i].low || p[1] > ROWS[i].high) return 0;
        for (int k = 2; k < ROWS[i].size; k++)
            if ((p[k] & 0xc0) != 0x80) return 0;
        return ROWS[i].size;
    }
    return 0;
}

static void quoted(FILE *to, const char *text) {
    fputc('"', to);
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        const int size = character(p);
        if (*p == '"' || *p == '\\') fprintf(to, "\\%c", *p);
        else if (*p < 0x20) fprintf(to, "\\u%04x", *p);
        else if (size) fwrite(p, 1, (size_t)size, to);
        else fputc('?', to);
        p += size ? size : 1;
    }
    fputc('"', to);
}

static void before(struct json *j, const char *key) {
    if (!j->first) fputc(',', j->to);
    if (j->depth) fprintf(j->to, "\n%*s", 2 * j->depth, "");
    j->first = 0;
    if (!key) return;
    quoted(j->to, key);
    fputs(": ", j->to);
}

void json_open(struct json *j, const char *key, char bracket) {
    before(j, key);
    fputc(bracket, j->to);
    j->depth++;
    j->first = 1;
}

void json_close(struct json *j, char bracket) {
    j->depth--;
    if (!j->first) fprintf(j->to, "\n%*s", 2 * j->depth, "");
    fputc(bracket, j->to);
    j->first = 0;
}

void json_text(struct json *j, const char *key, const char *text) {
    before(j, key);
    if (text) quoted(j->to, text);
    else fputs("null", j->to);
}

void json_integer(struct json *j, const char *key, int64_t value) {
    before(j, key);
    fprintf(j->to, "%" PRId64, value);
}

void json_number(struct json *j, const char *key, double value) {
    before(j, key);
    if (isfinite(value)) fprintf(j->to, "%.10g", value);
    else fputs("null", j->to);
}

void json_truth(struct json *j, const char *key, int value) {
    before(j, key);
    fputs(value ? "true" : "false", j->to);
}

void json_null(struct json *j, const char *key) { json_text(j, key, NULL); }

void json_nulls(struct json *j, const char *const *keys) {
    for (; *keys; keys++) json_null(j, *keys);
}

void json_values(struct json *j, const char *key, const struct values *v, double factor,
                 int divided, int whole) {
    json_open(j, key, '[');
    for (int i = 0; i < v->count; i++) {
        const double value = divided ? factor / v->of[i] : factor * v->of[i];
        if (whole) json_integer(j, NULL, (int64_t)value);
        else json_number(j, NULL, value);
    }
    json_close(j, ']');
}
