/* The command line. */
#ifndef GWQ_BENCH_OPTIONS_H
#define GWQ_BENCH_OPTIONS_H
#include <stdint.h>

enum { MOST_LENGTHS = 16 };

struct lengths {
    int64_t of[MOST_LENGTHS];
    int count; /* -1: not given */
};

struct options {
    const char *model, *record, *out;
    int kernels, check;
    struct lengths prompts, depths, threads;
    int64_t gen, repeats; /* gen: -1, not given */
    const char *ops, *types, *shapes; /* lists for --kernels, NULL: all */
};

/* Ends the program for --help, --version and what cannot be. */
struct options options_of(int count, char **arguments);
#endif
