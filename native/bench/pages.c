#define _GNU_SOURCE
#include "pages.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "limits.h"

enum { AT_ONCE = 1 << 17 }; /* bytes of a read */
static const double LEFT = 0.05; /* share of the file that may stay in memory of a cold start */

int64_t free_memory(void) {
    char line[128];
    long long kb = -1;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && kb < 0 && fgets(line, sizeof line, f)) sscanf(line, "MemAvailable: %lld kB", &kb);
    if (f) fclose(f);
    const int64_t granted = group_free_memory();
    const int64_t free = kb < 0 ? -1 : (int64_t)kb * 1024;
    return free < 0 || (granted >= 0 && granted < free) ? granted : free;
}

void pages_read_through(const char *path) {
    static char buffer[AT_ONCE];
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return; /* whoever opens it says so */
    while (read(file, buffer, sizeof buffer) > 0) continue;
    close(file);
}

/* Share of a file's pages that are in memory; 1 where the system does not tell */
static double resident(int file, size_t size) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (size + page - 1) / page;
    double share = 1;
    unsigned char *in = malloc(pages);
    void *map = size ? mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
    if (in && map != MAP_FAILED && !mincore(map, size, in)) {
        size_t count = 0;
        for (size_t i = 0; i < pages; i++) count += in[i] & 1;
        share = (double)count / (double)pages;
    }
    if (map != MAP_FAILED) munmap(map, size);
    free(in);
    return share;
}

void pages_bring_in(const char *path) {
    struct stat found;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    const int64_t room = free_memory();
    if (!fstat(file, &found) && (room < 0 || found.st_size < room) &&
        resident(file, (size_t)found.st_size) < 0.5)
        pages_read_through(path);
    close(file);
}

const char *pages_put_out(const char *path) {
    struct stat found;
    const char *why = NULL;
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &found)) return "the file cannot be opened";
    fsync(file); /* pages that are not on the disk yet would stay, too */
    if (posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED))
        why = "the file cannot be put out of the page cache";
    else if (resident(file, (size_t)found.st_size) > LEFT)
        why = "the file stays in the page cache: another program has it open, or its file system"
              " keeps files in memory";
    close(file);
    return why;
}
