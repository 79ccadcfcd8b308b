/* Who uses a block: arrays (users) and Block objects (handles).
 *
 * In its owner a slot of a slab is counted by itself; everywhere else the segment is the unit, because
 * only the owner knows where its slots begin.
 */
#include "counting.h"

#include "pool.h"
#include "receive.h"
#include "slots.h"

#include <errno.h>

static bool
by_slot(const ndshare_segment *segment)
{
    return segment->slots != NULL && segment->origin == NDSHARE_OWN;
}

static uint32_t
slot_index(const ndshare_segment *segment, const void *address)
{
    return (uint32_t)((size_t)((const char *)address - segment->base) >> segment->slot_shift);
}

ndshare_counts *
ndshare_counting_of(ndshare_segment *segment, const void *address)
{
    if (by_slot(segment)) {
        return &segment->slots[slot_index(segment, address)].counts;
    }
    return &segment->counts;
}

size_t
ndshare_counting_extent(ndshare_segment *segment, const void *address, char **start)
{
    if (by_slot(segment)) {
        *start = segment->base + ((size_t)slot_index(segment, address) << segment->slot_shift);
        return (size_t)1 << segment->slot_shift;
    }
    *start = segment->base;
    return segment->size;
}

/* Call after a count went down. */
void
ndshare_counting_settle(ndshare_segment *segment, const void *address)
{
    if (by_slot(segment)) {
        uint32_t index = slot_index(segment, address);
        ndshare_slot *slot = &segment->slots[index];
        if (slot->counts.users == 0 && slot->counts.handles == 0 && (slot->flags & NDSHARE_SLOT_USED)) {
            ndshare_slots_give_back(segment, index);
        }
        return;
    }
    if (segment->counts.users != 0 || segment->counts.handles != 0) {
        return;
    }
    if (segment->origin == NDSHARE_OWN) {
        ndshare_pool_give_back(segment);
    }
    else {
        ndshare_receive_settle(segment);
    }
}

/* Count one array on the block at `address`; it must be alive, or come back from being lent. */
int
ndshare_counting_add_user(ndshare_segment *segment, const char *address)
{
    ndshare_heap_lock();
    bool alive = !by_slot(segment) || ndshare_slots_revive(segment, slot_index(segment, address));
    if (alive) {
        ndshare_counting_of(segment, address)->users++;
    }
    ndshare_heap_unlock();
    if (alive) {
        return 0;
    }
    PyObject *type = ndshare_heap.gone_error ? ndshare_heap.gone_error : PyExc_OSError;
    PyObject *args = Py_BuildValue("(is)", ESTALE, "find a shared array of this process");
    if (args != NULL) {
        PyErr_SetObject(type, args);
        Py_DECREF(args);
    }
    return -1;
}

void
ndshare_counting_remove_user(ndshare_segment *segment, const char *address)
{
    ndshare_heap_lock();
    ndshare_counting_of(segment, address)->users--;
    ndshare_counting_settle(segment, address);
    ndshare_heap_unlock();
}
