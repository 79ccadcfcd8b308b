/* The slots of slabs that are used no more, or again. The lock is held. */
#ifndef NDSHARE_SLOTS_H
#define NDSHARE_SLOTS_H

#include "heap.h"

#define NDSHARE_NO_SLOT UINT32_MAX   /* end of the list of free slots */

ndshare_link *ndshare_slots_class(int slot_shift);                   /* the slabs with slots of that size */
ndshare_segment *ndshare_slots_find(int slot_shift);                 /* a slab with a free slot, or NULL */
void ndshare_slots_count_free(ndshare_segment *slab, ssize_t bytes); /* pages of free slots: more, or less */
void ndshare_slots_to_back(ndshare_segment *slab);
void ndshare_slots_give_back(ndshare_segment *slab, uint32_t index);
bool ndshare_slots_revive(ndshare_segment *slab, uint32_t index);
void ndshare_slots_settle(ndshare_segment *slab);                    /* no handle on the whole any more */
void ndshare_slots_trim(void);

#endif
