/* SIGBUS in a map of a file that was cut short. The handler does what is safe in one: it looks at
 * atomics, and maps zeros over pages by a system call. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "gwq_maps.h"

enum { MAPS = 1024 };

/* start is set last and cleared first: a range that the handler sees is whole */
static struct {
    atomic_uintptr_t start; /* 0: nothing is watched here */
    atomic_uintptr_t end;   /* of its last page */
    atomic_ullong faults;
    atomic_int taken;
} maps[MAPS];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct sigaction before;
static uintptr_t page; /* bytes */
static int installed;

/* What would have happened without this handler. */
static void as_before(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        /* the instruction runs once more, and the system deals with it */
        struct sigaction usual;
        memset(&usual, 0, sizeof usual);
        usual.sa_handler = SIG_DFL;
        sigaction(number, &usual, NULL);
    }
}

static void handle(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < MAPS && info->si_code == BUS_ADRERR; i++) {
        uintptr_t start = atomic_load(&maps[i].start);
        uintptr_t end = atomic_load(&maps[i].end);
        if (!start || at < start || at >= end) continue;
        uintptr_t first = at & ~(page - 1);
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap((void *)first, end - first, PROT_READ, flags, -1, 0) == MAP_FAILED) break;
        atomic_fetch_add(&maps[i].faults, 1);
        return;
    }
    as_before(number, info, context);
}

static void install(void) {
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = handle;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    page = (uintptr_t)sysconf(_SC_PAGESIZE);
    installed = sigaction(SIGBUS, &ours, &before) == 0;
}

int gwq_map_watch(const void *start, uint64_t bytes, int *map) {
    pthread_once(&once, install);
    if (!start || !bytes || !map || (uintptr_t)start & (page - 1)) return GWQ_E_ARGUMENT;
    if (!installed) return GWQ_E_MEMORY;
    for (int i = 0; i < MAPS; i++) {
        int free = 0;
        if (!atomic_compare_exchange_strong(&maps[i].taken, &free, 1)) continue;
        atomic_store(&maps[i].faults, 0);
        atomic_store(&maps[i].end, ((uintptr_t)start + bytes + page - 1) & ~(page - 1));
        atomic_store(&maps[i].start, (uintptr_t)start);
        *map = i;
        return GWQ_OK;
    }
    return GWQ_E_MEMORY;
}

uint64_t gwq_map_faults(int map) {
    return map >= 0 && map < MAPS ? atomic_load(&maps[map].faults) : 0;
}

void gwq_map_forget(int map) {
    if (map < 0 || map >= MAPS) return;
    atomic_store(&maps[map].start, 0);
    atomic_store(&maps[map].taken, 0);
}
