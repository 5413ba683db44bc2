#define _GNU_SOURCE
#include "device.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "files.h"
#include "limits.h"
#include "sensors.h"

/* What stands behind "NAME : " in a line of /proc/cpuinfo; NULL: another line */
static char *value_of(char *line, const char *name) {
    const size_t length = strlen(name);
    if (strncmp(line, name, length)) return NULL;
    char *at = line + length + strspn(line + length, " \t");
    if (*at != ':') return NULL;
    at += 1 + strspn(at + 1, " \t");
    at[strcspn(at, "\n")] = 0;
    return at;
}

static const struct utsname *system_names(void) {
    static struct utsname names;
    if (!*names.machine) uname(&names);
    return &names;
}

const char *cpu_name(void) {
    static char name[256];
    char line[512];
    const char *found = NULL;
    if (*name) return name;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && !found && fgets(line, sizeof line, f)) {
        found = value_of(line, "model name");
        if (!found) found = value_of(line, "Model");
        if (found) snprintf(name, sizeof name, "%s", found);
    }
    if (f) fclose(f);
    if (!*name) snprintf(name, sizeof name, "%s", system_names()->machine);
    return name;
}

/* Names of the cores and how many there are of each: Arm's by the number of their part */
static void cores(struct json *j) {
    enum { KINDS = 16 };
    struct {
        char name[128];
        int count;
    } kinds[KINDS] = {0};
    char line[512], name[128], maker[64] = "";
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        const char *model = value_of(line, "model name"), *part = NULL;
        const char *found = value_of(line, "CPU implementer");
        if (found) snprintf(maker, sizeof maker, "%.63s", found);
        if (!model) part = value_of(line, "CPU part");
        if (!model && !part) continue;
        if (model) snprintf(name, sizeof name, "%.127s", model);
        else if (!strcasecmp(maker, "0x41")) snprintf(name, sizeof name, "part %.100s", part);
        else snprintf(name, sizeof name, "%.40s part %.60s", maker, part);
        for (int i = 0; i < KINDS; i++) {
            if (kinds[i].count && strcmp(kinds[i].name, name)) continue;
            snprintf(kinds[i].name, sizeof kinds[i].name, "%s", name);
            kinds[i].count++;
            break;
        }
    }
    if (f) fclose(f);
    json_open(j, "cores", '{');
    for (int i = 0; i < KINDS && kinds[i].count; i++)
        json_integer(j, kinds[i].name, kinds[i].count);
    json_close(j, '}');
}

static void board(struct json *j) {
    char name[256], maker[128];
    int found = read_text(name, sizeof name, "/proc/device-tree/model");
    if (!found && read_text(maker, sizeof maker, "/sys/class/dmi/id/sys_vendor")) {
        char product[120];
        const int named = read_text(product, sizeof product, "/sys/class/dmi/id/product_name");
        snprintf(name, sizeof name, "%s%s%s", maker, named ? " " : "", named ? product : "");
        found = 1;
    }
    json_text(j, "board", found ? name : NULL);
}

static void system_name(struct json *j) {
    char line[256], name[200] = "";
    FILE *f = fopen("/etc/os-release", "re");
    while (f && !*name && fgets(line, sizeof line, f))
        if (sscanf(line, "PRETTY_NAME=\"%199[^\"\n]", name) != 1)
            sscanf(line, "PRETTY_NAME=%199[^\"\n]", name);
    if (f) fclose(f);
    json_text(j, "os", *name ? name : system_names()->sysname);
    /* a kernel's full name may say who built it */
    struct utsname names = *system_names();
    char *release = names.release;
    size_t length = strspn(release, "0123456789.");
    while (length && release[length - 1] == '.') length--;
    release[length] = 0;
    json_text(j, "kernel", length ? release : NULL);
}

static void write_clusters(struct json *j) {
    enum { MOST = 8 };
    static struct cluster found[MOST];
    const int count = clusters(found, MOST);
    json_open(j, "clusters", '[');
    for (int i = 0; i < count; i++) {
        json_open(j, NULL, '{');
        json_open(j, "cpus", '[');
        for (int k = 0; k < found[i].count; k++) json_integer(j, NULL, found[i].cpus[k]);
        json_close(j, ']');
        json_number(j, "capacity", found[i].capacity);
        json_number(j, "max_mhz", found[i].max_mhz);
        json_close(j, '}');
    }
    json_close(j, ']');
}

void device_write(struct json *j) {
    const struct state state = state_now();
    const double quota = group_cpus();
    double load = NAN;
    char profile[64];
    const long online = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);
    json_open(j, "device", '{');
    board(j);
    cores(j);
    json_text(j, "architecture", system_names()->machine);
    write_clusters(j);
    json_integer(j, "cpus", online > 0 ? online : 1);
    json_integer(j, "usable_cpus", usable_cpus());
    json_number(j, "cpu_quota", quota > 0 ? quota : NAN);
    json_integer(j, "default_threads", default_threads());
    json_number(j, "load_average", getloadavg(&load, 1) == 1 ? load : NAN);
    json_text(j, "governor", *state.governor ? state.governor : NULL);
    json_text(j, "power_mode",
              read_text(profile, sizeof profile, "/sys/firmware/acpi/platform_profile") ? profile
                                                                                         : NULL);
    if (pages > 0) json_integer(j, "memory_bytes", (int64_t)pages * sysconf(_SC_PAGESIZE));
    else json_null(j, "memory_bytes");
    json_null(j, "gpu");
    system_name(j);
    json_close(j, '}');
}
