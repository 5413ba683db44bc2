#define _GNU_SOURCE
#include "engine.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "pass.h"
#include "say.h"

struct command {
    int64_t prompt, gen, depth;
};
struct answer {
    int64_t prompt_ns, gen_ns, peak_bytes;
};

/* --- the engine's side ------------------------------------------------------------------------ */

/* Largest resident memory so far, bytes */
static int64_t peak(void) {
    char line[256];
    long long kb = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && !kb && fgets(line, sizeof line, f)) sscanf(line, "VmHWM: %lld kB", &kb);
    if (f) fclose(f);
    return (int64_t)kb * 1024;
}

static struct answer run(struct model *m, const struct command *c, int64_t *kept) {
    const int32_t *ids = m->record.ids;
    if (*kept != c->depth) {
        m->pos = 0;
        if (c->depth) model_forward(m, ids, c->depth);
        *kept = c->depth;
    }
    m->pos = c->depth; /* states have gone on, which costs no time */
    const int64_t start = now();
    const float *logits = model_forward(m, ids + c->depth, c->prompt);
    const int64_t middle = now();
    for (int64_t i = 0; i < c->gen; i++) {
        const int32_t id = model_best(m, logits);
        logits = model_forward(m, &id, 1);
    }
    return (struct answer){middle - start, now() - middle, peak()};
}

/* Compute the logits after what the recording machine has decoded. */
static void compare_first(struct model *m, struct engine_facts *facts) {
    const struct record *r = &m->record;
    m->pos = 0;
    const float *logits = model_forward(m, r->ids, r->head->first_prompt);
    for (uint64_t i = 0;;) {
        const struct record_first *there = r->first + i;
        const float off = fabsf(logits[there->id] - there->logit);
        facts->same += model_best(m, logits) == there->id;
        facts->off = off <= facts->off ? facts->off : off; /* a NaN stays */
        if (++i == r->head->first.count) break; /* the context may be full */
        logits = model_forward(m, &there->id, 1);
    }
}

static void send(int to, const void *data, size_t size) {
    if (write(to, data, size) != (ssize_t)size) _exit(OURS); /* less than a pipe takes at once */
}

_Noreturn static void serve(const char *model, const char *record, int threads, int64_t started,
                            int commands, int answers) {
    static struct model m;
    struct engine_facts facts = {0};
    struct command c;
    int64_t kept = 0;
    const int64_t start = now();
    model_open(&m, model, record, threads);
    const int64_t ready = now();
    model_best(&m, model_forward(&m, m.record.ids, 1));
    const int64_t token = now();
    compare_first(&m, &facts);
    facts.load_ns = ready - start;
    facts.first_token_ns = token - start;
    facts.ready_ns = ready - started;
    facts.start_ns = token - started;
    facts.peak_bytes = peak();
    send(answers, &facts, sizeof facts);
    while (read(commands, &c, sizeof c) == (ssize_t)sizeof c) {
        const struct answer a = run(&m, &c, &kept);
        send(answers, &a, sizeof a);
    }
    _exit(0);
}

/* --- this side -------------------------------------------------------------------------------- */

/* Reads an answer; 0: interrupted. Ends the program where the engine has ended. */
static int receive(struct engine *e, void *data, size_t size) {
    for (size_t got = 0; got < size;) {
        const ssize_t n = read(e->answers, (char *)data + got, size - got);
        if (n > 0) {
            got += (size_t)n;
        } else if (interrupted) {
            return 0;
        } else if (n == 0 || errno != EINTR) {
            int status = 0;
            waitpid(e->pid, &status, 0);
            if (WIFEXITED(status) && WEXITSTATUS(status)) exit(WEXITSTATUS(status)); /* it said */
            die("the engine was ended by signal %d: where memory is short, use smaller -p, -n and"
                " --depth, or a smaller model", WIFSIGNALED(status) ? WTERMSIG(status) : 0);
        }
    }
    kill(e->pid, SIGSTOP);
    return 1;
}

int engine_start(struct engine *e, const char *model, const char *record, int threads) {
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) || pipe2(from, O_CLOEXEC))
        die("no pipe can be made (%s): close other programs", strerror(errno));
    fflush(NULL);
    const int64_t started = now();
    const pid_t parent = getpid();
    const pid_t pid = fork();
    if (pid < 0) die("no process can be started (%s): close other programs", strerror(errno));
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a stopped process must not outlive its parent */
        if (getppid() != parent) _exit(OURS);
        signal(SIGINT, SIG_IGN);
        close(to[1]);
        close(from[0]);
        serve(model, record, threads, started, to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    *e = (struct engine){.pid = pid, .commands = to[1], .answers = from[0]};
    if (receive(e, &e->facts, sizeof e->facts)) return 1;
    engine_stop(e);
    return 0;
}

int64_t engine_run(struct engine *e, int64_t prompt, int64_t gen, int64_t depth) {
    const struct command c = {prompt ? prompt : 1, gen, depth};
    struct answer a;
    kill(e->pid, SIGCONT);
    if (write(e->commands, &c, sizeof c) != (ssize_t)sizeof c && errno != EPIPE) return -1;
    if (!receive(e, &a, sizeof a)) return -1;
    e->facts.peak_bytes = a.peak_bytes;
    return prompt ? a.prompt_ns : a.gen_ns;
}

void engine_stop(struct engine *e) {
    if (e->pid <= 0) return;
    kill(e->pid, SIGKILL);
    waitpid(e->pid, NULL, 0);
    close(e->commands);
    close(e->answers);
    e->pid = 0;
}
