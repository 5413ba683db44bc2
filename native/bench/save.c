/* Files that are whole under their final names. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "document.h"
#include "say.h"

static const char *part_of(const char *path) {
    static char part[PATH_MAX + 8];
    if (snprintf(part, sizeof part, "%s.part", path) >= PATH_MAX)
        die("--out %s: give a shorter path", path);
    return part;
}

_Noreturn static void cannot(const char *path) {
    die("--out %s cannot be written (%s): choose another name, or see to the permissions and the"
        " free space of its folder", path, strerror(errno));
}

FILE *save_begin(const char *path) {
    FILE *f = fopen(part_of(path), "we");
    if (!f) cannot(path);
    return f;
}

void save_end(FILE *f, const char *path) {
    const char *part = part_of(path);
    fputc('\n', f);
    int failed = fflush(f) || ferror(f) || fsync(fileno(f));
    const int why = errno;
    failed |= fclose(f) != 0;
    if (!failed && !rename(part, path)) return;
    errno = failed ? why : errno;
    unlink(part);
    cannot(path);
}

void save_check(const char *path) {
    struct stat found;
    if (!stat(path, &found) && !S_ISREG(found.st_mode))
        die("--out %s is a folder or a device: give the name of a file", path);
    fclose(save_begin(path));
    unlink(part_of(path));
}
