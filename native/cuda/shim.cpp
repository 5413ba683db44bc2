/* Fibers in the place of CUDA threads. One launch at a time; the fibers of a block wait for each
 * other at barriers and in shuffles, and hand the CPU on while they do. */
#include "shim.h"
#include <stdio.h>
#include <ucontext.h>
#include <mutex>

#if defined(GWQ_SHIM_TSAN) /* this file itself is not instrumented */
#include <sanitizer/tsan_interface.h>
#define TSAN(x) x
#else
#define TSAN(x)
#endif

namespace shim {
place thread, block, threads, blocks;

namespace {
enum { MOST = MOST_THREADS, LANES = 32, STACK = 64 << 10 };

/* What TSan is told of goes by turns: who has left a barrier may come to the next one before others
 * have left, and is not ordered before these. */
struct barrier {
    int arrived, live;
    unsigned turn;
    char order[2];
};

struct fiber {
    void *stack_top; /* where a fiber that waits has its registers */
    char *stack;
    ucontext_t context;
    void *tsan;
    place at;
    bool done;
};

std::mutex one; /* launch at a time */
fiber fibers[MOST], outside;
int count, current, idle;
bool backward;
barrier of_block, of_warp[MOST / LANES];
TSAN(char order[2];) /* [0]: what comes before a block; [1]: what its threads did */
uint64_t slot[2][MOST];
struct fragments {
    float a[8], b[4];
} fragment[2][MOST];
unsigned parity[MOST];
std::vector<copy> copies[MOST];
body kernel;
void *arguments;

/* --- switching -------------------------------------------------------------------------------- */

#if defined(__x86_64__) && !defined(GWQ_SHIM_UCONTEXT)
extern "C" void gwq_shim_switch(void **save, void *to);
asm(".text\n.globl gwq_shim_switch\n.hidden gwq_shim_switch\n.type gwq_shim_switch,@function\n"
    "gwq_shim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\n"
    "mov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
    "ret\n");
void prepare(fiber &f, void (*entry)()) {
    void **top = (void **)(f.stack + STACK);
    *--top = nullptr;       /* keeps the stack at the call as the ABI wants it */
    *--top = (void *)entry; /* where `ret` goes */
    f.stack_top = top - 6;
}
void switch_to(fiber &from, fiber &to) { gwq_shim_switch(&from.stack_top, to.stack_top); }
#else
void prepare(fiber &f, void (*entry)()) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack;
    f.context.uc_stack.ss_size = STACK;
    makecontext(&f.context, entry, 0);
}
void switch_to(fiber &from, fiber &to) { swapcontext(&from.context, &to.context); }
#endif

void go(fiber &from, fiber &to) {
    TSAN(__tsan_switch_to_fiber(to.tsan, 1)); /* 1: which orders nothing */
    switch_to(from, to);
}

void take(int i) {
    fiber &from = fibers[current];
    current = i;
    thread = fibers[i].at;
    go(from, fibers[i]);
}

/* --- waiting ---------------------------------------------------------------------------------- */

void release(barrier &b) {
    b.arrived = 0;
    b.turn++;
    idle = 0;
}

/* Wait until all threads that have not ended have come; meanwhile those of first .. first+size-1
 * run. */
void wait(barrier &b, int first, int size) {
    const unsigned turn = b.turn;
    TSAN(__tsan_release(&b.order[turn % 2]));
    idle = 0;
    if (++b.arrived == b.live) release(b);
    while (b.turn == turn) {
        if (++idle > 4 * count) stop("threads wait for some that never come");
        int next = current;
        do next = first + (next - first + 1) % size;
        while (fibers[next].done);
        if (next == current) { /* alone among these */
            do next = (next + 1) % count;
            while (fibers[next].done);
        }
        if (next != current) take(next);
    }
    TSAN(__tsan_acquire(&b.order[turn % 2]));
}

void leave(barrier &b) {
    if (--b.live && b.arrived == b.live) release(b);
}

void enter() {
    for (;;) {
        TSAN(__tsan_acquire(&order[0]));
        kernel(arguments);
        fiber &f = fibers[current];
        f.done = true;
        if (!copies[current].empty()) stop("a copy is sent that nobody awaits");
        idle = 0;
        TSAN(__tsan_release(&order[1]));
        leave(of_warp[current / LANES]);
        leave(of_block);
        for (int i = 1; i < count; i++) {
            const int next = (current + i) % count;
            if (!fibers[next].done) {
                take(next);
                break;
            }
        }
        if (of_block.live == 0 && f.done) go(f, outside);
    }
}

void begin(fiber &f) {
    if (!f.stack) {
        f.stack = (char *)malloc(STACK);
        if (!f.stack) stop("no memory");
        TSAN(f.tsan = __tsan_create_fiber(0));
        prepare(f, enter);
    }
    f.done = false;
}

void run_block() {
    of_block = {0, count, 0, {}};
    for (int w = 0; w * LANES < count; w++) {
        const int left = count - w * LANES;
        of_warp[w] = {0, left < LANES ? left : LANES, 0, {}};
    }
    for (int i = 0; i < count; i++) {
        begin(fibers[i]);
        fibers[i].at = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
        parity[i] = 0;
    }
    TSAN(__tsan_release(&order[0]));
    current = backward ? count - 1 : 0;
    thread = fibers[current].at;
    idle = 0;
    go(outside, fibers[current]);
    TSAN(__tsan_acquire(&order[1]));
}
} // namespace

[[noreturn]] void stop(const char *why) {
    fprintf(stderr, "shim: %s\n", why);
    abort();
}

void reverse(bool on) { backward = on; }

void run(dim3 grid, dim3 size, body fn, void *args) {
    std::lock_guard<std::mutex> hold(one);
    blocks = {grid.x, grid.y, grid.z};
    threads = {size.x, size.y, size.z};
    count = (int)(size.x * size.y * size.z);
    if (count < 1 || count > MOST) stop("a block of too many threads");
    kernel = fn;
    arguments = args;
    TSAN(outside.tsan = __tsan_get_current_fiber());
    const long long all = (long long)grid.x * grid.y * grid.z;
    for (long long i = 0; i < all; i++) {
        const unsigned at = (unsigned)(backward ? all - 1 - i : i);
        block = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
        run_block();
    }
}

void wait_block() { wait(of_block, 0, count); }

uint64_t exchange(uint64_t mine, int other) {
    const int warp = current / LANES;
    const int first = warp * LANES;
    uint64_t *slots = slot[parity[current]++ % 2];
    slots[current] = mine;
    if (first + LANES > count) stop("a shuffle in a warp that is not whole");
    wait(of_warp[warp], first, LANES);
    return slots[first + other];
}

/* Lane 4g + t has of a the rows g and g+8, of b the column g, both at 2t, 2t+1, 2t+8, 2t+9 of 16;
 * of the sums rows g and g+8, columns 2t and 2t+1. */
void multiply_fragments(const float *a, const float *b, float *sum) {
    const int warp = current / LANES, first = warp * LANES;
    const int g = (current - first) / 4, t = current % 4;
    fragments *all = fragment[parity[current]++ % 2];
    memcpy(all[current].a, a, sizeof all->a);
    memcpy(all[current].b, b, sizeof all->b);
    if (first + LANES > count) stop("a product in a warp that is not whole");
    wait(of_warp[warp], first, LANES);
    for (int i = 0; i < 4; i++) {
        double total = sum[i];
        for (int k = 0; k < 16; k++) {
            const int at = k / 2 % 4, part = k % 2 + 2 * (k / 8);
            const float *row = all[first + 4 * g + at].a + (part % 2 + part / 2 * 4 + i / 2 * 2);
            total += (double)*row * all[first + 4 * (2 * t + i % 2) + at].b[part];
        }
        sum[i] = (float)total;
    }
}

std::vector<copy> &sent() { return copies[current]; }
} // namespace shim
