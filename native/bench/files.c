#include "files.h"
#include <ctype.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int read_path(char *text, size_t size, const char *format, va_list arguments) {
    char path[4096];
    vsnprintf(path, sizeof path, format, arguments);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    const ssize_t got = read(file, text, size - 1);
    close(file);
    size_t length = got > 0 ? strnlen(text, (size_t)got) : 0; /* device trees end in a zero */
    while (length && isspace((unsigned char)text[length - 1])) length--;
    text[length] = 0;
    return length > 0;
}

int read_text(char *text, size_t size, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const int found = read_path(text, size, format, arguments);
    va_end(arguments);
    return found;
}

double read_number(double missing, const char *format, ...) {
    char text[64], *end;
    va_list arguments;
    va_start(arguments, format);
    const int found = read_path(text, sizeof text, format, arguments);
    va_end(arguments);
    const double value = found ? strtod(text, &end) : missing;
    return found && !*end ? value : missing;
}

int has_word(const char *list, const char *word) {
    const size_t length = strlen(word);
    for (const char *at = list; at; at = strchr(at, ','), at = at ? at + 1 : NULL)
        if (!strncmp(at, word, length) && (at[length] == ',' || !at[length])) return 1;
    return 0;
}
