/* Segments of other processes. */
#ifndef NDSHARE_RECEIVE_H
#define NDSHARE_RECEIVE_H

#include "heap.h"

/* Takes the lock, and `fd` in every case. One handle on the whole segment. The GIL is let go. */
ndshare_segment *ndshare_receive_attach(uint64_t uid, size_t size, int kind, int fd, ndshare_error *error);

/* The lock is held. */
void ndshare_receive_settle(ndshare_segment *segment);          /* nobody uses it */
bool ndshare_receive_is_crowded(ndshare_segment *segment);
size_t ndshare_receive_trim(size_t bytes, size_t count);
size_t ndshare_receive_forget(uint64_t prefix);                 /* the owner is gone, and so is what is kept of it */
void ndshare_receive_sweep(void);                               /* look for owners that are */

#endif
