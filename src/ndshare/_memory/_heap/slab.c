/* Slabs: many shared blocks in one segment, because descriptors and mappings are scarce.
 *
 * Slots are powers of two from 64 bytes; the n-th slab of a class has 16 * 4**n slots, so that a
 * handful of descriptors carries any number of arrays. When descriptors run short, arrays of any size
 * go into slabs (pool.c has the big ones otherwise). A slab is sparse: a slot gets its pages when it is
 * handed out the first time. A freed slot that was lent waits (PENDING) until a probe of the slab says
 * that nobody holds any of it.
 */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>

#define NONE UINT32_MAX
#define SMALL_SLOT ((size_t)64 << 10)   /* below, pages are made for several slots at once */
#define RUN ((size_t)256 << 10)
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
make_slab(int shift, ndshare_error *error)
{
    size_t slot = (size_t)1 << shift, limit = ndshare_pool_descriptor_limit();
    bool fine = slot < NDSHARE_PAGE;
    ndshare_heap_lock();
    size_t own = ndshare_heap.own_count, slabs = ndshare_heap.slab_count[shift - NDSHARE_SLAB_SHIFT];
    if (own >= limit) {
        ndshare_pool_make_room(1);
    }
    ndshare_heap_unlock();
    size_t n = slots_for(shift, slabs, own > limit / 4);
    ndshare_segment *slab = NULL;
    for (;; n /= 4) {
        size_t bytes = n * slot;
        if (fine && ndshare_pool_reserve(bytes, error) < 0) {
            return NULL;
        }
        slab = ndshare_segment_make(bytes, fine, error);
        if (fine) {
            ndshare_limits_settle(bytes);
        }
        if (slab != NULL || n < 4 || n * slot / 4 < NDSHARE_PAGE || error->number == EMFILE) {
            break;  /* RLIMIT_FSIZE and RLIMIT_AS allow smaller ones */
        }
    }
    if (slab == NULL) {
        return NULL;
    }
    slab->slots = calloc(n, sizeof *slab->slots);
    if (slab->slots == NULL) {
        ndshare_segment_destroy(slab);
        *error = (ndshare_error){.number = ENOMEM, .doing = "describe the slots of a shared segment"};
        return NULL;
    }
    slab->kind = NDSHARE_SHARED;
    slab->slot_shift = shift;
    slab->n_slots = (uint32_t)n;
    for (uint32_t i = 0; i < n; i++) {
        slab->slots[i].next = i + 1 < n ? i + 1 : NONE;
    }
    if (ndshare_pool_enter(slab, error) < 0) {
        return NULL;
    }
    ndshare_heap_lock();
    ndshare_heap.slab_count[shift - NDSHARE_SLAB_SHIFT]++;
    ndshare_link_push(&ndshare_heap.slabs[shift - NDSHARE_SLAB_SHIFT], &slab->by_class);
    ndshare_heap_unlock();
    return slab;
}

static void
count_free(ndshare_segment *slab, ssize_t change)
{
    slab->free_bytes += (size_t)change;
    if (slab->state == NDSHARE_LIVE) {  /* an empty slab is counted as a whole */
        ndshare_heap.slot_idle_bytes += (size_t)change;
    }
}

static void
free_slot(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    slot->flags &= NDSHARE_SLOT_DIRTY;
    slot->next = slab->first_free;
    slab->first_free = index;
    count_free(slab, (ssize_t)(slot->pages * NDSHARE_PAGE));
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
    count_free(slab, -(ssize_t)bytes);
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
    ndshare_link_push(&ndshare_heap.slabs[slab->slot_shift - NDSHARE_SLAB_SHIFT], &slab->by_class);
}

static void
to_back(ndshare_segment *slab)
{
    ndshare_link_remove(&slab->by_class);
    ndshare_link_push(ndshare_heap.slabs[slab->slot_shift - NDSHARE_SLAB_SHIFT].prev, &slab->by_class);
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

static ndshare_segment *
find_slab(int shift)
{
    ndshare_link *head = &ndshare_heap.slabs[shift - NDSHARE_SLAB_SHIFT];
    if (head->next == head) {
        return NULL;
    }
    ndshare_segment *first = NDSHARE_OF(head->next, by_class);
    if (first->first_free != NONE) {
        return first;
    }
    int probes = 0, looked = 0;
    for (ndshare_link *link = head->next; link != head && probes < NDSHARE_PROBES && looked < 256; looked++) {
        ndshare_segment *slab = NDSHARE_OF(link, by_class);
        link = link->next;
        if (slab->n_pending == 0) {
            continue;
        }
        if (probe(slab)) {
            return slab;
        }
        to_back(slab);
        probes++;
    }
    return NULL;
}

static size_t
missing_pages(ndshare_segment *slab, uint32_t index, size_t nbytes, size_t *offset)
{
    size_t slot = (size_t)1 << slab->slot_shift;
    if (slot < NDSHARE_PAGE) {
        return 0;
    }
    ndshare_slot *first = &slab->slots[index];
    size_t wanted = (nbytes + NDSHARE_PAGE - 1) / NDSHARE_PAGE, have = first->pages;
    if (wanted <= have) {
        return 0;
    }
    *offset = ((size_t)index << slab->slot_shift) + have * NDSHARE_PAGE;
    size_t bytes = (wanted - have) * NDSHARE_PAGE;
    if (have == 0 && slot < SMALL_SLOT) {  /* a run of untouched slots in one go */
        bytes = 0;
        for (uint32_t i = index; i < slab->n_slots && bytes < RUN && slab->slots[i].pages == 0; i++) {
            slab->slots[i].pages = (uint32_t)(slot / NDSHARE_PAGE);
            bytes += slot;
            if (i != index) {
                count_free(slab, (ssize_t)slot);
            }
        }
        return bytes;
    }
    first->pages = (uint32_t)wanted;
    return bytes;
}

/* The pages could not be had: what was written down about them is taken back. */
static void
forget_pages(ndshare_segment *slab, uint32_t index, uint32_t had, size_t bytes)
{
    size_t slot = (size_t)1 << slab->slot_shift;
    slab->slots[index].pages = had;
    for (uint32_t i = index + 1; had == 0 && slot < SMALL_SLOT && i < index + bytes / slot; i++) {
        if (!(slab->slots[i].flags & NDSHARE_SLOT_USED) && slab->slots[i].pages > 0) {
            slab->slots[i].pages = 0;
            count_free(slab, -(ssize_t)slot);
        }
    }
    slab->resident -= bytes;
    ndshare_heap.own_bytes -= bytes;
}

static int
give_pages(ndshare_segment *slab, size_t offset, size_t bytes, ndshare_error *error)
{
    PyThreadState *thread = NULL;
    if (bytes >= ((size_t)1 << 20) && PyGILState_Check()) {
        thread = PyEval_SaveThread();
    }
    int result = ndshare_pool_reserve(bytes, error);
    if (result == 0) {
        result = ndshare_segment_populate(slab, offset, bytes, error);
        ndshare_limits_settle(bytes);
    }
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    return result;
}

ndshare_segment *
ndshare_slab_take(size_t nbytes, char **address, bool *dirty, ndshare_error *error)
{
    int shift = slot_shift_for(nbytes ? nbytes : 1);
    ndshare_segment *slab;
    ndshare_heap_lock();
    while ((slab = find_slab(shift)) == NULL) {
        ndshare_heap_unlock();
        if (make_slab(shift, error) == NULL) {
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
    count_free(slab, -(ssize_t)(slot->pages * NDSHARE_PAGE));
    *dirty = (slot->flags & NDSHARE_SLOT_DIRTY) != 0;
    slot->flags = NDSHARE_SLOT_USED | NDSHARE_SLOT_DIRTY;
    slot->counts.handles = 1;
    if (slab->first_free == NONE) {
        to_back(slab);
    }
    uint32_t had = slot->pages;
    size_t offset = 0, bytes = missing_pages(slab, index, nbytes, &offset);
    slab->resident += bytes;
    ndshare_heap.own_bytes += bytes;
    ndshare_ledger_publish(ndshare_heap.own_bytes);
    ndshare_heap_unlock();
    *address = slab->base + ((size_t)index << shift);
    if (bytes > 0 && give_pages(slab, offset, bytes, error) < 0) {
        ndshare_heap_lock();
        forget_pages(slab, index, had, bytes);
        slot->counts.handles = 0;
        ndshare_slab_give_back(slab, index);
        ndshare_heap_unlock();
        return NULL;
    }
    return slab;
}

void
ndshare_slab_give_back(ndshare_segment *slab, uint32_t index)
{
    ndshare_slot *slot = &slab->slots[index];
    slab->n_used--;
    slot->flags &= ~(uint32_t)NDSHARE_SLOT_USED;
    if (slot->flags & (NDSHARE_SLOT_LENT | NDSHARE_SLOT_FORKED)) {
        slot->flags |= NDSHARE_SLOT_PENDING;
        slab->n_pending++;
        if (slab->n_used == 0 && slab->first_free == NONE) {
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
ndshare_slab_revive(ndshare_segment *slab, uint32_t index)
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
ndshare_slab_trim_all(void)
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
            for (uint32_t i = slab->first_free; i != NONE && slab->free_bytes > 0; i = slab->slots[i].next) {
                punch_slot(slab, i);
            }
            rest_if_empty(slab);
        }
    }
}

/* The last handle on the whole slab is gone. */
void
ndshare_slab_settle(ndshare_segment *slab)
{
    if (slab->n_used == 0 && slab->n_pending > 0) {
        probe(slab);
    }
    rest_if_empty(slab);
    ndshare_pool_shrink(ndshare_heap.idle_limit);
}
