/* Slabs: many shared blocks in one segment, because descriptors and mappings are scarce.
 *
 * Slots are powers of two from 64 bytes; the n-th slab of a class has 16 * 4**n slots, so that a
 * handful of descriptors carries any number of arrays. When descriptors run short, arrays of any size
 * go into slabs (pool.c has the big ones otherwise). A slab is sparse: a slot gets its pages when it is
 * handed out the first time.
 */
#include "slab.h"

#include "capacity.h"
#include "ledger.h"
#include "pool.h"
#include "room.h"
#include "slots.h"

#include <errno.h>
#include <stdlib.h>

#define SMALL_SLOT ((size_t)64 << 10)   /* below, pages are made for several slots at once */
#define RUN ((size_t)256 << 10)
#define LARGE_SLOT ((size_t)1 << 20)
#define FINE_SLAB ((size_t)4 << 20)     /* slots below a page: all pages at birth, so keep it modest */
#define PLENTY ((size_t)64 << 20)       /* as long as descriptors are not scarce */
#define SCARCE ((size_t)4 << 30)

static int
slot_shift_for(size_t nbytes)
{
    int shift = NDSHARE_SLAB_SHIFT;
    while (((size_t)1 << shift) < nbytes) {
        shift++;
    }
    return shift;
}

static size_t
slots_for(int shift, size_t slabs, bool scarce)
{
    size_t slot = (size_t)1 << shift, n = 16;
    for (size_t i = 0; i < slabs && n < ((size_t)1 << 20); i++) {
        n *= 4;
    }
    size_t most = scarce ? SCARCE : slot < NDSHARE_PAGE ? FINE_SLAB : PLENTY;
    while (n * slot > most && n > 16) {
        n /= 2;
    }
    while (n * slot < SMALL_SLOT) {
        n *= 2;
    }
    return n;
}

static ndshare_segment *
make_segment(int shift, size_t n, bool populate, ndshare_error *error)
{
    size_t bytes = n << shift;
    if (populate && ndshare_room_reserve(bytes, error) < 0) {
        return NULL;
    }
    ndshare_segment *slab = ndshare_room_make(bytes, populate, error);
    if (populate) {
        ndshare_capacity_settle(bytes);
    }
    if (slab == NULL) {
        return NULL;
    }
    slab->slots = calloc(n, sizeof *slab->slots);
    if (slab->slots == NULL) {
        ndshare_segment_destroy(slab);
        *error = (ndshare_error){.number = ENOMEM, .asked = n * sizeof *slab->slots,
                                 .doing = "describe the slots of a shared segment"};
        return NULL;
    }
    slab->kind = NDSHARE_SHARED;
    slab->slot_shift = shift;
    slab->n_slots = (uint32_t)n;
    for (uint32_t i = 0; i < n; i++) {
        slab->slots[i].next = i + 1 < n ? i + 1 : NDSHARE_NO_SLOT;
    }
    return slab;
}

/* A slab with a free slot for `nbytes`, known to the heap; false with an error. */
static bool
make_slab(int shift, size_t nbytes, ndshare_error *error)
{
    size_t slot = (size_t)1 << shift, limit = ndshare_capacity_segments();
    bool fine = slot < NDSHARE_PAGE;
    if (slot >= LARGE_SLOT) {  /* look before so much address space is taken */
        if (ndshare_room_reserve(nbytes, error) < 0) {
            return false;
        }
        ndshare_capacity_settle(nbytes);
    }
    ndshare_heap_lock();
    size_t own = ndshare_heap.own_count, slabs = ndshare_heap.slab_count[shift - NDSHARE_SLAB_SHIFT];
    if (own >= limit) {
        ndshare_pool_make_room(1);
    }
    ndshare_heap_unlock();
    ndshare_heap_begin();
    size_t n = slots_for(shift, slabs, own > limit / 4);
    ndshare_segment *slab = make_segment(shift, n, fine, error);
    while (slab == NULL && n >= 4 && n * slot / 4 >= NDSHARE_PAGE && error->number != EMFILE) {
        n /= 4;  /* RLIMIT_FSIZE and RLIMIT_AS allow smaller ones */
        slab = make_segment(shift, n, fine, error);
    }
    if (slab != NULL && ndshare_pool_enter(slab, error) < 0) {
        slab = NULL;
    }
    ndshare_heap_end();
    return slab != NULL;
}

/* What is to be populated so that a slot has pages for `nbytes`: of small slots that have none a run in one go. */
static size_t
missing_pages(const ndshare_segment *slab, uint32_t index, size_t nbytes, size_t *offset)
{
    size_t slot = (size_t)1 << slab->slot_shift;
    size_t wanted = (nbytes + NDSHARE_PAGE - 1) / NDSHARE_PAGE, have = slab->slots[index].pages;
    if (slot < NDSHARE_PAGE || wanted <= have) {
        return 0;
    }
    *offset = ((size_t)index << slab->slot_shift) + have * NDSHARE_PAGE;
    if (have > 0 || slot >= SMALL_SLOT) {
        return (wanted - have) * NDSHARE_PAGE;
    }
    size_t bytes = 0;
    for (uint32_t i = index; i < slab->n_slots && bytes < RUN && slab->slots[i].pages == 0; i++) {
        bytes += slot;
    }
    return bytes;
}

/* The pages are there. Those of the slots that follow wait there for whoever takes them; who has taken one in
 * the meantime has seen to its pages himself. */
static void
note_pages(ndshare_segment *slab, uint32_t index, size_t bytes)
{
    size_t slot = (size_t)1 << slab->slot_shift, made = bytes < slot ? bytes : slot;
    slab->slots[index].pages += (uint32_t)(made / NDSHARE_PAGE);
    for (uint32_t i = index + 1; i < index + bytes / slot; i++) {
        ndshare_slot *next = &slab->slots[i];
        if (next->pages == 0 && !(next->flags & (NDSHARE_SLOT_USED | NDSHARE_SLOT_PENDING))) {
            next->pages = (uint32_t)(slot / NDSHARE_PAGE);
            ndshare_slots_count_free(slab, (ssize_t)slot);
            made += slot;
        }
    }
    slab->resident += made;
    ndshare_heap.own_bytes += made;
    ndshare_ledger_publish(ndshare_heap.own_bytes);
}

static int
give_pages(ndshare_segment *slab, size_t offset, size_t bytes, ndshare_error *error)
{
    if (ndshare_room_reserve(bytes, error) < 0) {
        return -1;
    }
    int result = ndshare_segment_populate(slab, offset, bytes, error);
    ndshare_capacity_settle(bytes);
    return result;
}

ndshare_segment *
ndshare_slab_take(size_t nbytes, char **address, bool *dirty, ndshare_error *error)
{
    int shift = slot_shift_for(nbytes ? nbytes : 1);
    ndshare_segment *slab;
    ndshare_heap_lock();
    while ((slab = ndshare_slots_find(shift)) == NULL) {
        ndshare_heap_unlock();
        if (!make_slab(shift, nbytes, error)) {
            return NULL;
        }
        ndshare_heap_lock();
    }
    uint32_t index = slab->first_free;
    ndshare_slot *slot = &slab->slots[index];
    slab->first_free = slot->next;
    if (slab->state == NDSHARE_IDLE) {
        ndshare_pool_wake(slab);
    }
    slab->n_used++;
    ndshare_slots_count_free(slab, -(ssize_t)(slot->pages * NDSHARE_PAGE));
    *dirty = (slot->flags & NDSHARE_SLOT_DIRTY) != 0;
    slot->flags = NDSHARE_SLOT_USED | NDSHARE_SLOT_DIRTY;
    slot->counts.handles = 1;
    if (slab->first_free == NDSHARE_NO_SLOT) {
        ndshare_slots_to_back(slab);
    }
    size_t offset = 0, bytes = missing_pages(slab, index, nbytes, &offset);
    ndshare_heap_unlock();
    *address = slab->base + ((size_t)index << shift);
    if (bytes > 0) {
        bool made = give_pages(slab, offset, bytes, error) == 0;
        ndshare_heap_lock();
        if (made) {
            note_pages(slab, index, bytes);
        }
        else {
            slot->counts.handles = 0;
            ndshare_slots_give_back(slab, index);
            slab = NULL;
        }
        ndshare_heap_unlock();
    }
    return slab;
}
