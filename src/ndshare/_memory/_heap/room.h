/* Room for fresh pages: what does not fit fits perhaps without what is only kept for speed. Takes the lock. */
#ifndef NDSHARE_ROOM_H
#define NDSHARE_ROOM_H

#include "heap.h"

int ndshare_room_reserve(size_t nbytes, ndshare_error *error);  /* see capacity.h; settle it */
ndshare_segment *ndshare_room_make(size_t size, bool populate, ndshare_error *error);
size_t ndshare_room_trim(void);                                 /* lock held; bytes given back */

#endif
