#define _GNU_SOURCE
#include "sensors.h"
#include <fnmatch.h>
#include <glob.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "files.h"

#define CPUS "/sys/devices/system/cpu"

/* Of zones and chips, the first row that matches is the processors'; of several that match, the
 * hottest (gwq_export/sensors/thermal.py) */
static const char *const OF_PROCESSORS[][9] = {
    {"x86_pkg_temp", "coretemp Package*", "k10temp Tctl", "zenpower Tdie"},
    {"tj-therm", "tj_therm", "tj-thermal", "tj_thermal"},
    {"cpu*", "*-cpu-*", "*_cpu_*", "*-cpu_*", "*_cpu-*", "cluster*", "big*", "tsens_tz_sensor*"},
    {"soc*", "package*", "*bcm2835*", "coretemp*", "k10temp*", "macsmc*"},
};
enum { RANKS = sizeof OF_PROCESSORS / sizeof *OF_PROCESSORS };

static int rank_of(const char *name) {
    for (int rank = 0; rank < RANKS; rank++)
        for (const char *const *p = OF_PROCESSORS[rank]; *p; p++)
            if (!fnmatch(*p, name, FNM_CASEFOLD)) return rank;
    return RANKS;
}

struct hottest {
    int rank;
    double celsius;
};

static void consider(struct hottest *h, const char *name, double milli) {
    const double celsius = milli / 1000;
    const int rank = rank_of(name);
    if (celsius < 1 || celsius > 150 || rank == RANKS || rank > h->rank) return;
    if (rank < h->rank || celsius > h->celsius) *h = (struct hottest){rank, celsius};
}

static double celsius(void) {
    struct hottest found = {RANKS, NAN};
    glob_t g = {0};
    char name[256];
    if (!glob("/sys/class/thermal/thermal_zone[0-9]*", 0, NULL, &g))
        for (size_t i = 0; i < g.gl_pathc; i++)
            if (read_text(name, 128, "%s/type", g.gl_pathv[i]))
                consider(&found, name, read_number(NAN, "%s/temp", g.gl_pathv[i]));
    globfree(&g);
    if (!glob("/sys/class/hwmon/hwmon[0-9]*/temp[0-9]*_input", 0, NULL, &g))
        for (size_t i = 0; i < g.gl_pathc; i++) {
            char *path = g.gl_pathv[i], label[128] = "";
            const double milli = read_number(NAN, "%s", path);
            path[strlen(path) - strlen("_input")] = 0;
            const int labelled = read_text(label, sizeof label, "%s_label", path);
            *strrchr(path, '/') = 0;
            if (!read_text(name, 128, "%s/name", path)) *name = 0;
            if (labelled) snprintf(name + strlen(name), 128, " %s", label);
            consider(&found, name, milli);
        }
    globfree(&g);
    return found.celsius;
}

struct state state_now(void) {
    struct state s = {.mhz = NAN, .celsius = celsius()};
    double fastest = -1;
    glob_t g = {0};
    char governor[32];
    if (!glob(CPUS "/cpufreq/policy[0-9]*", 0, NULL, &g))
        for (size_t i = 0; i < g.gl_pathc; i++) {
            const char *path = g.gl_pathv[i];
            const double most = read_number(0, "%s/cpuinfo_max_freq", path);
            if (most > fastest) s.mhz = read_number(NAN, "%s/scaling_cur_freq", path) / 1000;
            fastest = fmax(fastest, most);
            if (!read_text(governor, sizeof governor, "%s/scaling_governor", path)) continue;
            const size_t length = strlen(s.governor);
            if (!strstr(s.governor, governor) && length + sizeof governor < sizeof s.governor)
                snprintf(s.governor + length, sizeof s.governor - length, "%s%s",
                         length ? "+" : "", governor);
        }
    globfree(&g);
    return s;
}

/* --- clusters --------------------------------------------------------------------------------- */

struct cpu {
    int number;
    double capacity, mhz, speed;
};

static int faster(const void *a, const void *b) {
    const struct cpu *x = a, *y = b;
    return x->speed != y->speed ? (x->speed < y->speed) - (x->speed > y->speed)
                                : x->number - y->number;
}

int clusters(struct cluster *found, int most) {
    static struct cpu cpus[MOST_CPUS];
    int count = 0, known = 1, made = 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set)) return 0;
    for (int i = 0; i < MOST_CPUS; i++) {
        if (!CPU_ISSET(i, &set)) continue;
        struct cpu *c = cpus + count++;
        c->number = i;
        c->capacity = read_number(NAN, CPUS "/cpu%d/cpu_capacity", i);
        c->mhz = read_number(NAN, CPUS "/cpu%d/cpufreq/cpuinfo_max_freq", i) / 1000;
        known &= c->capacity > 0;
    }
    for (int i = 0; i < count; i++) {
        const double speed = known ? cpus[i].capacity : cpus[i].mhz;
        cpus[i].speed = speed > 0 ? speed : 0;
    }
    qsort(cpus, (size_t)count, sizeof *cpus, faster);
    for (int i = 0; i < count; i++) {
        const double like = known ? 1 : 0.9; /* favoured cores differ by some percent */
        struct cluster *last = found + made - 1;
        const double top = made ? (known ? last->capacity : last->max_mhz) : 0;
        if (!made || (made < most && cpus[i].speed < like * top)) {
            last = found + made++;
            *last = (struct cluster){.capacity = known ? cpus[i].capacity : NAN,
                                     .max_mhz = cpus[i].mhz};
        }
        last->cpus[last->count++] = cpus[i].number;
    }
    return made;
}
