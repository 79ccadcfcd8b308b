/* Slots of slabs: which are free, which wait until nobody holds them any more, and whose pages are kept.
 *
 * A freed slot that was lent waits (PENDING) until a probe of the slab says that nobody holds any of it.
 */
#include "slots.h"

#include "fork.h"
#include "pool.h"

#define PROBES 4  /* of flock per allocation: 1.3 us each */

ndshare_link *
ndshare_slots_class(int slot_shift)
{
    return &ndshare_heap.slabs[slot_shift - NDSHARE_SLAB_SHIFT];
}

void
ndshare_slots_count_free(ndshare_segment *slab, ssize_t bytes)
{
    slab->free_bytes += (size_t)bytes;
    if (slab->state == NDSHARE_LIVE) {  /* an empty slab is counted as a whole */
        ndshare_heap.slot_idle_bytes += (size_t)bytes;
    }
}

static void
free_slot(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    slot->flags &= NDSHARE_SLOT_DIRTY;
    slot->next = slab->first_free;
    slab->first_free = index;
    ndshare_slots_count_free(slab, (ssize_t)(slot->pages * NDSHARE_PAGE));
}

/* Give the pages of a free slot back to the system. */
static void
punch_slot(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    size_t bytes = (size_t)slot->pages * NDSHARE_PAGE;
    if (bytes == 0) {
        return;
    }
    ndshare_segment_punch(slab, (size_t)index << slab->slot_shift, (size_t)1 << slab->slot_shift);
    ndshare_slots_count_free(slab, -(ssize_t)bytes);
    slot->pages = 0;
    slot->flags &= ~(uint32_t)NDSHARE_SLOT_DIRTY;
    slab->resident -= bytes;
    ndshare_heap.own_bytes -= bytes;
}

/* Slabs with free slots stand in front of those without. */
static void
to_front(ndshare_segment *slab)
{
    ndshare_link_remove(&slab->by_class);
    ndshare_link_push(ndshare_slots_class(slab->slot_shift), &slab->by_class);
}

void
ndshare_slots_to_back(ndshare_segment *slab)
{
    ndshare_link_remove(&slab->by_class);
    ndshare_link_push(ndshare_slots_class(slab->slot_shift)->prev, &slab->by_class);
}

static void
rest_if_empty(ndshare_segment *slab)
{
    if (slab->n_used == 0 && slab->n_pending == 0 && slab->counts.handles == 0
        && slab->state == NDSHARE_LIVE) {
        slab->state = NDSHARE_IDLE;
        ndshare_heap.slot_idle_bytes -= slab->free_bytes;
        ndshare_heap.idle_bytes += slab->resident;
        ndshare_heap.idle_count++;
        ndshare_link_push(&ndshare_heap.idle_lru, &slab->by_age);
    }
}

/* A handle on the whole slab means that a message which names slots of it is being unpacked. */
static bool
probe(ndshare_segment *slab)
{
    if (slab->counts.handles != 0) {
        return false;
    }
    if (slab->fork_epoch != 0 && ndshare_fork_still_seen(slab->fork_epoch)) {
        return false;
    }
    ndshare_heap.probe_count++;
    if (!ndshare_segment_probe(slab->fd)) {
        return false;
    }
    slab->lent = false;
    slab->fork_epoch = 0;
    for (uint32_t i = 0; i < slab->n_slots; i++) {
        ndshare_slot *slot = &slab->slots[i];
        if (slot->flags & NDSHARE_SLOT_PENDING) {
            free_slot(slab, i);
        }
        else {
            slot->flags &= ~(uint32_t)(NDSHARE_SLOT_LENT | NDSHARE_SLOT_FORKED);
        }
    }
    slab->n_pending = 0;
    to_front(slab);
    return true;
}

ndshare_segment *
ndshare_slots_find(int shift)
{
    ndshare_link *head = ndshare_slots_class(shift);
    if (head->next == head) {
        return NULL;
    }
    ndshare_segment *first = NDSHARE_OF(head->next, by_class);
    if (first->first_free != NDSHARE_NO_SLOT) {
        return first;
    }
    int probes = 0, looked = 0;
    for (ndshare_link *link = head->next; link != head && probes < PROBES && looked < 256; looked++) {
        ndshare_segment *slab = NDSHARE_OF(link, by_class);
        link = link->next;
        if (slab->n_pending == 0) {
            continue;
        }
        if (probe(slab)) {
            return slab;
        }
        ndshare_slots_to_back(slab);
        probes++;
    }
    return NULL;
}

void
ndshare_slots_give_back(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    slab->n_used--;
    slot->flags &= ~(uint32_t)NDSHARE_SLOT_USED;
    if (slot->flags & (NDSHARE_SLOT_LENT | NDSHARE_SLOT_FORKED)) {
        slot->flags |= NDSHARE_SLOT_PENDING;
        slab->n_pending++;
        if (slab->n_used == 0 && slab->first_free == NDSHARE_NO_SLOT) {
            probe(slab);
        }
    }
    else {
        free_slot(slab, index);
        to_front(slab);
        if (ndshare_heap.slot_idle_bytes > ndshare_heap.idle_limit) {
            punch_slot(slab, index);
        }
    }
    rest_if_empty(slab);
    ndshare_pool_shrink(ndshare_heap.idle_limit);
}

/* A message brought an array home whose owner had let it go in the meantime. */
bool
ndshare_slots_revive(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    if (slot->flags & NDSHARE_SLOT_USED) {
        return true;
    }
    if (!(slot->flags & NDSHARE_SLOT_PENDING)) {
        return false;
    }
    slot->flags = (slot->flags & ~(uint32_t)NDSHARE_SLOT_PENDING) | NDSHARE_SLOT_USED;
    slab->n_pending--;
    slab->n_used++;
    return true;
}

void
ndshare_slots_trim(void)
{
    for (int c = 0; c < NDSHARE_SLAB_CLASSES; c++) {
        for (ndshare_link *link = ndshare_heap.slabs[c].next; link != &ndshare_heap.slabs[c];) {
            ndshare_segment *slab = NDSHARE_OF(link, by_class);
            link = link->next;
            if (slab->state == NDSHARE_IDLE) {
                continue;  /* goes as a whole, when idle memory is shrunk */
            }
            if (slab->n_pending > 0) {
                probe(slab);
            }
            for (uint32_t i = slab->first_free; i != NDSHARE_NO_SLOT && slab->free_bytes > 0; i = slab->slots[i].next) {
                punch_slot(slab, i);
            }
            rest_if_empty(slab);
        }
    }
}

/* The last handle on the whole slab is gone. */
void
ndshare_slots_settle(ndshare_segment *slab)
{
    if (slab->n_used == 0 && slab->n_pending > 0) {
        probe(slab);
    }
    rest_if_empty(slab);
    ndshare_pool_shrink(ndshare_heap.idle_limit);
}
