#define _GNU_SOURCE
#include "limits.h"
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "files.h"

enum { PATH = 1024, MOST_THREADS = 256 };

/* Path of the process's group of a controller ("": version 2), as /proc/self/cgroup has it */
static int group_path(const char *controller, char path[PATH]) {
    char line[2 * PATH];
    int found = 0;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && !found && fgets(line, sizeof line, f)) {
        char *names = strchr(line, ':'), *at = names ? strchr(names + 1, ':') : NULL;
        if (!at) continue;
        *at++ = 0;
        at[strcspn(at, "\n")] = 0;
        if (*controller ? has_word(names + 1, controller) : !names[1]) {
            snprintf(path, PATH, "%s", at);
            found = 1;
        }
    }
    if (f) fclose(f);
    return found;
}

/* Blanks and the like are octal in mountinfo */
static void unescape(char *word) {
    char *to = word;
    for (char *from = word; *from; to++) {
        int code;
        if (*from == '\\' && sscanf(from + 1, "%3o", &code) == 1 && strlen(from) >= 4) {
            *to = (char)code;
            from += 4;
        } else {
            *to = *from++;
        }
    }
    *to = 0;
}

typedef void (*visit)(const char *folder, void *arg);

/* The group's folder below `top`, and its ancestors up to that */
static void climb(char folder[2 * PATH], size_t top, visit each, void *arg) {
    for (;;) {
        each(folder, arg);
        char *slash = strrchr(folder, '/');
        if (!slash || strlen(folder) <= top) return;
        *slash = 0;
        if (strlen(folder) < top) return;
    }
}

/* Calls `each` for the folders of the process's groups of a controller, as far as mounted. */
static void groups(const char *controller, visit each, void *arg) {
    char line[4 * PATH];
    FILE *f = fopen("/proc/self/mountinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        char root[PATH], mounted[PATH], kind[64], options[PATH] = "", path[PATH];
        const char *after = strstr(line, " - ");
        if (!after || sscanf(line, "%*s %*s %*s %1023s %1023s", root, mounted) != 2) continue;
        if (sscanf(after, " - %63s %*s %1023s", kind, options) < 1) continue;
        const int second = !strcmp(kind, "cgroup2");
        if (!second && (strcmp(kind, "cgroup") || !has_word(options, controller))) continue;
        if (!group_path(second ? "" : controller, path)) continue;
        unescape(root);
        unescape(mounted);
        char folder[2 * PATH];
        const size_t length = strcmp(root, "/") ? strlen(root) : 0;
        const int below = !strstr(path, "..") && !strncmp(path, root, length) &&
                          (path[length] == '/' || !path[length]);
        const char *rest = below && strcmp(path + length, "/") ? path + length : "";
        snprintf(folder, sizeof folder, "%s%s", mounted, rest);
        climb(folder, strlen(mounted), each, arg);
    }
    if (f) fclose(f);
}

static void cpus_of(const char *folder, void *arg) {
    double quota = 0, period = 0, *least = arg;
    char text[128];
    if (!read_text(text, sizeof text, "%s/cpu.max", folder) ||
        sscanf(text, "%lf %lf", &quota, &period) != 2) {
        quota = read_number(-1, "%s/cpu.cfs_quota_us", folder);
        period = read_number(0, "%s/cpu.cfs_period_us", folder);
    }
    if (quota > 0 && period > 0 && (!*least || quota / period < *least)) *least = quota / period;
}

double group_cpus(void) {
    double least = 0;
    groups("cpu", cpus_of, &least);
    return least;
}

/* Bytes of files that a group holds, which can be dropped */
static double file_pages(const char *folder) {
    char path[3 * PATH], name[128];
    double value, own = 0, total = -1;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    FILE *f = fopen(path, "re");
    while (f && fscanf(f, "%127s %lf", name, &value) == 2) {
        if (!strcmp(name, "active_file") || !strcmp(name, "inactive_file")) own += value;
        if (!strcmp(name, "total_active_file") || !strcmp(name, "total_inactive_file"))
            total = (total < 0 ? 0 : total) + value;
    }
    if (f) fclose(f);
    return total < 0 ? own : total;
}

static void memory_of(const char *folder, void *arg) {
    double *least = arg;
    double limit = read_number(-1, "%s/memory.max", folder);
    double used = read_number(-1, "%s/memory.current", folder);
    if (limit < 0) limit = read_number(-1, "%s/memory.limit_in_bytes", folder);
    if (used < 0) used = read_number(-1, "%s/memory.usage_in_bytes", folder);
    if (limit < 0 || used < 0) return;
    const double free = fmax(0, limit - used + file_pages(folder));
    if (*least < 0 || free < *least) *least = free;
}

int64_t group_free_memory(void) {
    double least = -1;
    groups("memory", memory_of, &least);
    return least < 0x1p62 ? (int64_t)least : -1;
}

int usable_cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

int default_threads(void) {
    int cpus = usable_cpus();
    const double quota = group_cpus();
    if (quota > 0 && ceil(quota) < cpus) cpus = (int)ceil(quota);
    return cpus < 1 ? 1 : cpus > MOST_THREADS ? MOST_THREADS : cpus;
}
