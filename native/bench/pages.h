/* Files and the page cache, as gwq_export/runtime/page_cache.py has them. */
#ifndef GWQ_BENCH_PAGES_H
#define GWQ_BENCH_PAGES_H
#include <stdint.h>

int64_t free_memory(void); /* bytes that may be taken without swapping; -1: not told */
/* Read a file through, if most of it is not in memory and there is room for it. */
void pages_bring_in(const char *path);
void pages_read_through(const char *path);
/* Put a file out of the page cache; a sentence that says why that failed, or NULL. */
const char *pages_put_out(const char *path);
#endif
