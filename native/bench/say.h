/* What the program says on stderr, how it ends, and whether Ctrl-C was pressed. */
#ifndef GWQ_BENCH_SAY_H
#define GWQ_BENCH_SAY_H
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#define PROGRAM "gwq-bench-native"
#define PRINTS(at) __attribute__((format(printf, at, at + 1)))

/* Exit statuses, as of all commands: what the user can mend, a fault of ours, Ctrl-C */
enum { MENDABLE = 2, OURS = 1, INTERRUPTED = 130 };

extern volatile sig_atomic_t interrupted; /* Ctrl-C was pressed */
void listen_to_interrupts(void);

/* A line, "PROGRAM: error: ...", and the end: what is wrong, and what to do */
_Noreturn void die(const char *format, ...) PRINTS(1);
/* What a status of the library means; ends the program, with `what` in front */
_Noreturn void die_of(int status, const char *what);

void say(const char *format, ...) PRINTS(1);
/* A step of something that takes long: on a terminal in one line that changes */
void progress(const char *phase, int done, int total);

/* Zeros, 64-byte aligned; ends the program where there are none. `release` takes as many bytes. */
void *allocate(size_t bytes);
void release(void *memory, size_t bytes);
int64_t now(void);            /* nanoseconds of the monotonic clock */
#endif
