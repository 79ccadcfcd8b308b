/* Many small blocks in one segment. */
#ifndef NDSHARE_SLAB_H
#define NDSHARE_SLAB_H

#include "heap.h"

/* Takes the lock; one handle on the slot. */
ndshare_segment *ndshare_slab_take(size_t nbytes, char **address, bool *dirty, ndshare_error *error);

#endif
