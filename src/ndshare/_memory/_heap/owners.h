/* The processes that made segments: this one and others, what of theirs is mapped here, and whether they live. */
#ifndef NDSHARE_OWNERS_H
#define NDSHARE_OWNERS_H

#include "heap.h"

/* The upper half of the uids of its segments names a process. The lock is held. */
void ndshare_owners_draw_prefix(void);                      /* for this process: at start, and after a fork */
void ndshare_owners_count(const ndshare_segment *segment, int mapped, int live);
void ndshare_owners_recount(void);                          /* in a forked child */
uint32_t ndshare_owners_live(uint64_t prefix);              /* by-value segments in use here */
void ndshare_owners_bury(uint64_t prefix);                  /* it is gone: somebody knows */
bool ndshare_owners_is_gone(uint64_t prefix);               /* quickly: a zombie lives */
bool ndshare_owners_next_gone(size_t *from, uint64_t *prefix);  /* thoroughly, of those with mappings here */

#endif
