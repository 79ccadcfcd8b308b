/* Memory for a request: a slot of a slab, or a segment of its own. */
#include "supply.h"

#include "capacity.h"
#include "pool.h"
#include "room.h"
#include "slab.h"

#include <errno.h>

#define MOST ((size_t)1 << 46)
#define LET_GO ((size_t)1 << 20)      /* what takes longer than others should wait for the GIL */
#define SLAB_MOST ((size_t)1 << 20)   /* larger shared arrays get a segment of their own */

/* Size classes, and the numbers of slots and pages, end here. */
static bool
is_possible(size_t nbytes, ndshare_error *error)
{
    *error = (ndshare_error){.asked = nbytes, .available = MOST, .limit = "address space"};
    return nbytes <= MOST;
}

/* A segment of its own with all its pages, and known to the heap. */
static ndshare_segment *
make_fresh(size_t nbytes, int kind, bool staged, ndshare_error *error)
{
    int size_class;
    size_t size = ndshare_pool_round(nbytes, &size_class);
    ndshare_segment *segment = NULL;
    ndshare_heap_begin();
    if (ndshare_room_reserve(size, error) == 0) {
        segment = ndshare_room_make(size, true, error);
        ndshare_capacity_settle(size);
    }
    if (segment != NULL) {
        segment->kind = (uint8_t)kind;
        segment->size_class = size_class;
        segment->staged = staged;
        segment->counts.handles = 1;
        segment = ndshare_pool_enter(segment, error) < 0 ? NULL : segment;
    }
    ndshare_heap_end();
    return segment;
}

ndshare_segment *
ndshare_supply_whole(size_t nbytes, int kind, bool staged, bool in_handler, bool *fresh, ndshare_error *error)
{
    if (!is_possible(nbytes, error)) {
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
    /* Inside of it nobody waits for the GIL: a fork waits for `busy`, and holds it. */
    PyThreadState *thread = nbytes >= LET_GO && !in_handler ? PyEval_SaveThread() : NULL;
    segment = make_fresh(nbytes, kind, staged, error);
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    *fresh = segment != NULL;
    return segment;
}

/* Descriptors are: larger arrays share a segment, too. */
static bool
scarce(void)
{
    ndshare_heap_lock();
    size_t own = ndshare_heap.own_count;
    ndshare_heap_unlock();
    return own > ndshare_capacity_segments() / 2;
}

ndshare_segment *
ndshare_supply_shared(size_t nbytes, char **address, bool *dirty, bool in_handler, ndshare_error *error)
{
    if (!is_possible(nbytes, error)) {
        return NULL;
    }
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
