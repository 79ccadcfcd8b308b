/* Does it fit? No lock needed. */
#ifndef NDSHARE_CAPACITY_H
#define NDSHARE_CAPACITY_H

#include "heap.h"

int ndshare_capacity_reserve(size_t nbytes, ndshare_error *error);
void ndshare_capacity_settle(size_t nbytes);      /* the pages are there, or were not made */
size_t ndshare_capacity_available(const char **limit);
size_t ndshare_capacity_choose(size_t nbytes);    /* a limit of the user; SIZE_MAX: none. Returns the former */
size_t ndshare_capacity_ram(void);
size_t ndshare_capacity_ordinary(void);           /* memory of this process that is no file, a moment ago */
size_t ndshare_capacity_mappings(void);           /* how many a process may have */
size_t ndshare_capacity_segments(void);           /* how many own ones there may be */

#endif
