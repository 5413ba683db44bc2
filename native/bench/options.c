#define _GNU_SOURCE
#include "options.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "say.h"

static const char HELP[] =
    "usage: " PROGRAM " MODEL.gguf [MODEL.pass] [options]\n"
    "       " PROGRAM " --kernels [options]\n"
    "\n"
    "Tokens per second of a GGUF file, or GB/s of the kernels, against the memory roof: what\n"
    "gwq-bench measures, on devices without Python. MODEL.pass is the model's forward pass; a\n"
    "machine with Python writes it: gwq-bench MODEL.gguf --record MODEL.pass\n"
    "\n"
    "  -p N,N        prompt tokens, of the lengths that were recorded (default: all; 0: none)\n"
    "  -n N          generated tokens (default: 128, or what was recorded; 0: none)\n"
    "  --depth N,N   tokens in the context before 32 generated ones (default: 512,2048, or what\n"
    "                was recorded; 0: none)\n"
    "  -t N,N        thread counts, the fastest of which is used (default: one for each CPU that\n"
    "                this process may use)\n"
    "  -r N          repetitions (default: 3; with --kernels 5)\n"
    "  --check       measure nothing: compare the first tokens with those of the machine that\n"
    "                recorded the model\n"
    "  --kernels     measure the kernels on random data instead of a file; of these only\n"
    "  --ops A,B       gemv, gemm, attention\n"
    "  --types A,B     gwq4, f16, ...\n"
    "  --shapes A,B    2048x2048, 4096x11008\n"
    "  --out FILE    write the results as JSON, too\n"
    "  --version     print the version\n"
    "  -h, --help    print this\n"
    "\n"
    "Exit status: 0 success, 2 what you can mend, 1 a fault of ours, 130 after Ctrl-C, when --out\n"
    "has what was measured by then.\n";

static int64_t number(const char *flag, const char *text, int64_t least, int64_t most,
                      const char **end) {
    char *stop;
    const long long value = strtoll(text, &stop, 10);
    if (stop == text || (*stop && *stop != ',') || value < least || value > most ||
        (*stop && !end))
        die("%s %s: give a number from %lld to %lld%s", flag, text, (long long)least,
            (long long)most, end ? ", or several with commas between them" : "");
    if (end) *end = *stop ? stop + 1 : stop;
    return value;
}

static struct lengths lengths(const char *flag, const char *text, int64_t least, int64_t most) {
    struct lengths l = {.count = 0};
    const char *at = text;
    do {
        if (l.count == MOST_LENGTHS) die("%s %s: give at most %d", flag, text, MOST_LENGTHS);
        l.of[l.count++] = number(flag, at, least, most, &at);
    } while (*at);
    return l;
}

static void check(const struct options *o) {
    if (!!o->model == o->kernels)
        die("give either MODEL.gguf with its MODEL.pass, or --kernels; see " PROGRAM " --help");
    if (o->check && (o->kernels || o->out))
        die("--check measures nothing: leave out --kernels and --out");
    if (!o->kernels && (o->ops || o->types || o->shapes))
        die("--ops, --types and --shapes choose kernels: give --kernels instead of a file");
    if (o->kernels && (o->prompts.count >= 0 || o->depths.count >= 0 || o->gen >= 0))
        die("-p, -n and --depth belong to a file: leave them out beside --kernels");
}

/* MODEL.pass beside MODEL.gguf */
static const char *beside(const char *model) {
    char *path;
    const char *end = strrchr(model, '.');
    const int length = (int)(end && !strcmp(end, ".gguf") ? (size_t)(end - model) : strlen(model));
    if (asprintf(&path, "%.*s.pass", length, model) < 0) die("out of memory");
    return path;
}

struct options options_of(int count, char **arguments) {
    const int64_t tokens = 1 << 24, threads = 256, runs = 1000;
    struct options o = {.prompts.count = -1, .depths.count = -1, .threads.count = -1, .gen = -1};
    for (int i = 1; i < count; i++) {
        const char *flag = arguments[i], *next = i + 1 < count ? arguments[i + 1] : NULL;
        if (!strcmp(flag, "-h") || !strcmp(flag, "--help")) {
            fputs(HELP, stdout);
            exit(0);
        }
        if (!strcmp(flag, "--version")) {
            puts(PROGRAM " " GWQ_VERSION);
            exit(0);
        }
        if (!strcmp(flag, "--kernels") || !strcmp(flag, "--check")) {
            *(flag[2] == 'k' ? &o.kernels : &o.check) = 1;
            continue;
        }
        if (*flag != '-') {
            if (o.record) die("%s: give one model and its record", flag);
            *(o.model ? &o.record : &o.model) = flag;
            continue;
        }
        const struct {
            const char *name, **text;
        } texts[] = {{"--out", &o.out}, {"--ops", &o.ops}, {"--types", &o.types},
                     {"--shapes", &o.shapes}, {"-m", &o.model}};
        int known = !strcmp(flag, "-p") || !strcmp(flag, "-n") || !strcmp(flag, "-t") ||
                    !strcmp(flag, "-r") || !strcmp(flag, "--depth") || !strcmp(flag, "--threads");
        for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
            if (strcmp(flag, texts[k].name)) continue;
            known = 1;
            *texts[k].text = next;
        }
        if (!known) die("%s is no option; see " PROGRAM " --help", flag);
        if (!next) die("%s: give its value behind it; see " PROGRAM " --help", flag);
        if (!strcmp(flag, "-p")) o.prompts = lengths(flag, next, 0, tokens);
        if (!strcmp(flag, "--depth")) o.depths = lengths(flag, next, 0, tokens);
        if (flag[1] == 't' || !strcmp(flag, "--threads"))
            o.threads = lengths(flag, next, 1, threads);
        if (!strcmp(flag, "-n")) o.gen = number(flag, next, 0, tokens, NULL);
        if (!strcmp(flag, "-r")) o.repeats = number(flag, next, 1, runs, NULL);
        i++;
    }
    check(&o);
    if (o.model && access(o.model, R_OK))
        die("%s cannot be opened (%s): give the path of a .gguf file", o.model, strerror(errno));
    if (o.model && !o.record) o.record = beside(o.model);
    if (!o.repeats) o.repeats = o.kernels ? 5 : 3;
    return o;
}
