/* The engine: a process of its own that has the model open and answers what it is asked, so that
 * its memory and its start can be measured. It is stopped while something else is timed. */
#ifndef GWQ_BENCH_ENGINE_H
#define GWQ_BENCH_ENGINE_H
#include <stdint.h>
#include <sys/types.h>

struct engine_facts {
    int64_t load_ns, first_token_ns; /* from opening the files until ready, until the first token */
    int64_t ready_ns, start_ns;      /* the same from the start of the process */
    int64_t peak_bytes;              /* of resident memory */
    int32_t same;                    /* first tokens that are those of the recording machine */
    float off;                       /* largest difference of the logits of its tokens */
};

struct engine {
    pid_t pid;
    int commands, answers;
    struct engine_facts facts;
};

/* Starts one; ends the program where the files are not sound. 0: it was interrupted. */
int engine_start(struct engine *e, const char *model, const char *record, int threads);
/* Nanoseconds of a prompt of `prompt` tokens, or of `gen` ones that are decoded after one, with
 * `depth` in the context before; -1: interrupted. */
int64_t engine_run(struct engine *e, int64_t prompt, int64_t gen, int64_t depth);
void engine_stop(struct engine *e);
#endif
