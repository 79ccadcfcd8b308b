/* What a fork by the user's code does to shared memory. */
#ifndef NDSHARE_FORK_H
#define NDSHARE_FORK_H

#include "heap.h"

int ndshare_fork_start(void);
bool ndshare_fork_still_seen(uint64_t epoch);   /* lock held; a forked child may see memory of then */
void ndshare_fork_tidy(void);                   /* lock held */

#endif
