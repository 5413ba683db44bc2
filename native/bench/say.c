#include "say.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include "gwq.h"

volatile sig_atomic_t interrupted;
static int line_open; /* progress stands on the terminal's last line */

static void on_interrupt(int signal) {
    (void)signal;
    interrupted = 1;
}

void listen_to_interrupts(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt; /* no SA_RESTART: reads return */
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void end_line(void) {
    if (line_open) fputs("\r\033[K", stderr);
    line_open = 0;
}

void say(const char *format, ...) {
    va_list arguments;
    end_line();
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

void die(const char *format, ...) {
    va_list arguments;
    end_line();
    fputs(PROGRAM ": error: ", stderr);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(MENDABLE);
}

void die_of(int status, const char *what) {
    switch (status) {
    case GWQ_E_MEMORY:
        die("%s: out of memory, or no more threads can be started: use fewer with -t", what);
    case GWQ_E_FINITE:
        die("%s: a number is not finite: the file is damaged, copy it again", what);
    case GWQ_E_INDEX:
    case GWQ_E_ARGUMENT:
    case GWQ_E_TYPE:
        die("%s: operations that do not fit together: record the model again", what);
    default:
        end_line();
        fprintf(stderr, PROGRAM ": fault %d in %s: please report it\n", status, what);
        exit(OURS);
    }
}

void progress(const char *phase, int done, int total) {
    if (isatty(STDERR_FILENO)) {
        fprintf(stderr, "\r\033[K%s %d/%d", phase, done, total);
        line_open = 1;
        if (done == total) end_line();
    } else if (done == 0) {
        fprintf(stderr, "%s: %d\n", phase, total);
    }
    fflush(stderr);
}

enum { LARGE = 1 << 24 }; /* bytes from which the system gives pages when they are first written */

void *allocate(size_t bytes) {
    void *memory = NULL;
    if (bytes >= LARGE) {
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) memory = NULL;
    } else if (!posix_memalign(&memory, 64, bytes ? bytes : 1)) {
        memset(memory, 0, bytes);
    }
    if (!memory)
        die("out of memory: %zu bytes are needed; stop other programs, or use a smaller model",
            bytes);
    return memory;
}

void release(void *memory, size_t bytes) {
    if (memory && bytes >= LARGE) munmap(memory, bytes);
    else free(memory);
}

int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
