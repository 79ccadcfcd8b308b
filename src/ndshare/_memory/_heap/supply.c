/* Memory for a request: a slot of a slab, or a segment of its own. */
#include "supply.h"

#include "capacity.h"
#include "pool.h"
#include "room.h"
#include "slab.h"

#include <errno.h>

#define SLAB_MOST ((size_t)1 << 20)   /* larger shared arrays get a segment of their own */

static ndshare_segment *
make_fresh(size_t size, bool in_handler, ndshare_error *error)
{
    PyThreadState *thread = size >= ((size_t)1 << 20) && !in_handler ? PyEval_SaveThread() : NULL;
    ndshare_segment *segment = NULL;
    if (ndshare_room_reserve(size, error) == 0) {
        segment = ndshare_room_make(size, true, error);
        ndshare_capacity_settle(size);
    }
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    return segment;
}

ndshare_segment *
ndshare_supply_whole(size_t nbytes, int kind, bool staged, bool in_handler, bool *fresh, ndshare_error *error)
{
    if (nbytes > (size_t)1 << 46) {
        *error = (ndshare_error){.asked = nbytes, .available = (size_t)1 << 46, .limit = "address space"};
        return NULL;
    }
    size_t limit = ndshare_capacity_segments();
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_pool_take_idle(nbytes, kind);
    if (segment != NULL) {
        segment->staged = staged;
        ndshare_heap_unlock();
        *fresh = false;
        return segment;
    }
    bool crowded = ndshare_heap.own_count >= limit && !ndshare_pool_make_room(1);
    ndshare_heap_unlock();
    if (crowded && in_handler) {
        *error = (ndshare_error){.number = EMFILE, .doing = "make a shared segment"};
        return NULL;
    }
    int size_class;
    size_t size = ndshare_pool_round(nbytes, &size_class);
    segment = make_fresh(size, in_handler, error);
    if (segment == NULL) {
        return NULL;
    }
    segment->kind = (uint8_t)kind;
    segment->size_class = size_class;
    segment->staged = staged;
    segment->counts.handles = 1;
    *fresh = true;
    if (ndshare_pool_enter(segment, error) < 0) {
        return NULL;
    }
    return segment;
}

static bool
scarce(void)
{
    return ndshare_heap.own_count > ndshare_capacity_segments() / 2;
}

ndshare_segment *
ndshare_supply_shared(size_t nbytes, char **address, bool *dirty, bool in_handler, ndshare_error *error)
{
    if (nbytes <= SLAB_MOST || scarce()) {
        return ndshare_slab_take(nbytes, address, dirty, error);
    }
    bool fresh;
    ndshare_segment *segment = ndshare_supply_whole(nbytes, NDSHARE_SHARED, false, in_handler, &fresh, error);
    if (segment != NULL) {
        *address = segment->base;
        *dirty = !fresh;
    }
    return segment;
}
