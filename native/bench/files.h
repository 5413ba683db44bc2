/* Small files of the system: a text or a number in each. */
#ifndef GWQ_BENCH_FILES_H
#define GWQ_BENCH_FILES_H
#include <stddef.h>

/* The text of a file whose path is made by a format, without blanks at its end; whether it is there
 * and not empty */
int read_text(char *text, size_t size, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Its number; `missing` where there is none */
double read_number(double missing, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Whether a word is one of a list that commas separate */
int has_word(const char *list, const char *word);
#endif
