/* Users and handles of a block. The lock is held, except where it says so. */
#ifndef NDSHARE_COUNTING_H
#define NDSHARE_COUNTING_H

#include "heap.h"

ndshare_counts *ndshare_counting_of(ndshare_segment *segment, const void *address);
void ndshare_counting_settle(ndshare_segment *segment, const void *address);
size_t ndshare_counting_extent(ndshare_segment *segment, const void *address, char **start);
int ndshare_counting_add_user(ndshare_segment *segment, const char *address);      /* takes the lock */
void ndshare_counting_remove_user(ndshare_segment *segment, const char *address);  /* takes the lock */

#endif
