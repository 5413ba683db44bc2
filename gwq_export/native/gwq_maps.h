/* libgwq: files that are cut short while they are mapped.
 *
 * A page of a map that its file does not reach any more, or that the disk does not give, cannot be
 * read: the system sends SIGBUS, which ends the process. In a range that is watched, such a page
 * and all behind it become zeros instead and are counted, so that what is computed goes on and can
 * be thrown away. The first call of gwq_map_watch sets the handler; a SIGBUS anywhere else goes to
 * the one that was there before.
 *  */
#ifndef GWQ_MAPS_H
#define GWQ_MAPS_H
#include "gwq.h"
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Watch `bytes` bytes of a map of a file, from its first page on. *map: what to call it.
 * GWQ_E_MEMORY: too many are watched, or the handler cannot be set. */
int gwq_map_watch(const void *start, uint64_t bytes, int *map);
/* How often pages of a watched map could not be read, so far; 0 for one that is not watched. */
uint64_t gwq_map_faults(int map);
/* Watch a map no longer. To be called before it is unmapped: its pages may be another's then. */
void gwq_map_forget(int map);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
