/* Room for fresh pages, and for the descriptors of their segments. */
#include "room.h"

#include "capacity.h"
#include "fork.h"
#include "pool.h"
#include "receive.h"
#include "slots.h"

#include <errno.h>

/* Reserve; if it does not fit, first give up what is only kept for speed. */
int
ndshare_room_reserve(size_t nbytes, ndshare_error *error)
{
    if (ndshare_capacity_reserve(nbytes, error) == 0) {
        return 0;
    }
    ndshare_heap_lock();
    size_t idle = ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes, cached = ndshare_heap.cached_bytes;
    size_t own = ndshare_heap.own_bytes;
    ndshare_pool_shrink(idle > nbytes ? idle - nbytes : 0);
    if (own - ndshare_heap.own_bytes < nbytes) {
        ndshare_slots_trim();
        ndshare_pool_shrink(0);
    }
    if (cached > 0) {
        ndshare_receive_trim(0, 0);
    }
    bool changed = ndshare_heap.doomed != NULL || ndshare_heap.own_bytes != own;
    ndshare_heap_unlock();
    return changed ? ndshare_capacity_reserve(nbytes, error) : -1;
}

ndshare_segment *
ndshare_room_make(size_t size, bool populate, ndshare_error *error)
{
    ndshare_segment *segment = ndshare_segment_make(size, populate, error);
    if (segment == NULL && (error->number == EMFILE || error->number == ENFILE)) {
        ndshare_heap_lock();
        bool room = ndshare_pool_make_room(8);
        ndshare_heap_unlock();
        segment = room ? ndshare_segment_make(size, populate, error) : NULL;
    }
    return segment;
}

size_t
ndshare_room_trim(void)
{
    size_t before = ndshare_heap.own_bytes;
    ndshare_fork_tidy();
    ndshare_pool_trim_away();
    ndshare_slots_trim();
    ndshare_pool_trim_idle();
    ndshare_receive_trim(0, 0);
    return before - ndshare_heap.own_bytes;
}
