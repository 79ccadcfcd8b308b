/* Whole segments, recycled by size class. The lock is held, except where it says so. */
#ifndef NDSHARE_POOL_H
#define NDSHARE_POOL_H

#include "heap.h"

size_t ndshare_pool_round(size_t nbytes, int *size_class);               /* no lock needed */
int ndshare_pool_enter(ndshare_segment *segment, ndshare_error *error);  /* takes the lock */
ndshare_segment *ndshare_pool_take_idle(size_t nbytes, int kind);        /* NULL: none; else one handle */
void ndshare_pool_give_back(ndshare_segment *segment);                   /* nobody uses it */
void ndshare_pool_wake(ndshare_segment *segment);                        /* IDLE or AWAY -> LIVE */
void ndshare_pool_forget(ndshare_segment *segment, bool punch);          /* destroy */
void ndshare_pool_shrink(size_t idle_limit);                             /* all idle memory */
bool ndshare_pool_make_room(size_t count);                               /* descriptors */
void ndshare_pool_trim_away(void);                                       /* what has come back unnoticed */
void ndshare_pool_trim_idle(void);

#endif
