/* Whole segments, recycled by size class.
 *
 * Fresh pages cost fourteen times a copy, so what was used once is kept: what nobody else ever saw goes
 * to `idle` and is taken last-in-first-out (its cache lines are warm); what was lent goes to `away` and
 * is taken after a probe. At most four probes per allocation: the three most recently freed (a task
 * loop gets its own segment back) and the oldest, which moves to the front when it is still out.
 */
#include "pool.h"

#include "fork.h"
#include "ledger.h"

#include <errno.h>

#define PROBES 4  /* of flock per allocation: 1.3 us each */

size_t
ndshare_pool_round(size_t nbytes, int *size_class)
{
    size_t pages = nbytes / NDSHARE_PAGE + (nbytes % NDSHARE_PAGE != 0);
    if (pages <= 8) {
        pages = pages ? pages : 1;
        *size_class = (int)pages - 1;
        return pages * NDSHARE_PAGE;
    }
    int exponent = 63 - __builtin_clzll(pages - 1);
    size_t step = (size_t)1 << (exponent - 3);
    size_t eighths = (pages + step - 1) / step;  /* 9 ... 16 */
    *size_class = 8 + (exponent - 3) * 8 + (int)(eighths - 9);
    return eighths * step * NDSHARE_PAGE;
}

static void
leave_lists(ndshare_segment *segment)
{
    if (segment->state == NDSHARE_IDLE) {
        ndshare_heap.idle_bytes -= segment->resident;
        ndshare_heap.slot_idle_bytes += segment->free_bytes;
        ndshare_heap.idle_count--;
    }
    else if (segment->state == NDSHARE_AWAY) {
        ndshare_heap.away_bytes -= segment->resident;
        ndshare_heap.away_count--;
    }
    else {
        return;
    }
    if (segment->slots == NULL) {  /* a slab stays in the list of its class */
        ndshare_link_remove(&segment->by_class);
    }
    ndshare_link_remove(&segment->by_age);
}

void
ndshare_pool_wake(ndshare_segment *segment)
{
    leave_lists(segment);
    segment->state = NDSHARE_LIVE;
}

/* Lock held. What was made to be shared is told apart from what a program takes for itself. */
static void
count_shared(ndshare_segment *segment)
{
    if (segment->kind == NDSHARE_SHARED && segment->slots == NULL) {
        segment->shared = segment->resident;
        ndshare_heap.shared_bytes += segment->shared;
    }
}

static void
discount_shared(ndshare_segment *segment)
{
    ndshare_heap.shared_bytes -= segment->shared;
    segment->shared = 0;
}

void
ndshare_pool_forget(ndshare_segment *segment, bool punch)
{
    leave_lists(segment);
    discount_shared(segment);
    ndshare_heap.slot_idle_bytes -= segment->free_bytes;
    if (segment->slots != NULL) {
        ndshare_link_remove(&segment->by_class);
        ndshare_heap.slab_count[segment->slot_shift - NDSHARE_SLAB_SHIFT]--;
    }
    ndshare_heap_remove(segment);
    ndshare_heap.own_bytes -= segment->resident;
    ndshare_heap.own_count--;
    ndshare_ledger_publish(ndshare_heap.own_bytes);
    segment->punch = punch;
    ndshare_heap_doom(segment);
}

static bool
is_back(ndshare_segment *segment)
{
    ndshare_heap.probe_count++;
    if (!ndshare_segment_probe(segment->fd)) {
        return false;
    }
    segment->lent = false;
    return true;
}

static ndshare_segment *
probe_away(int size_class)
{
    ndshare_link *head = &ndshare_heap.away[size_class], *link = head->next;
    int probes = 0;
    for (; link != head && probes < PROBES - 1; link = link->next, probes++) {
        ndshare_segment *segment = NDSHARE_OF(link, by_class);
        if (is_back(segment)) {
            return segment;
        }
    }
    if (link == head) {
        return NULL;
    }
    ndshare_segment *oldest = NDSHARE_OF(head->prev, by_class);
    if (is_back(oldest)) {
        return oldest;
    }
    ndshare_link_remove(&oldest->by_class);
    ndshare_link_push(head, &oldest->by_class);
    return NULL;
}

ndshare_segment *
ndshare_pool_take_idle(size_t nbytes, int kind)
{
    int size_class;
    ndshare_pool_round(nbytes, &size_class);
    ndshare_segment *segment = NULL;
    for (int c = size_class; c <= size_class + 2 && segment == NULL && c < NDSHARE_CLASSES; c++) {
        if (ndshare_heap.idle[c].next != &ndshare_heap.idle[c]) {
            segment = NDSHARE_OF(ndshare_heap.idle[c].next, by_class);
        }
    }
    for (int c = size_class; c <= size_class + 1 && segment == NULL && c < NDSHARE_CLASSES; c++) {
        segment = probe_away(c);
    }
    if (segment != NULL) {
        ndshare_pool_wake(segment);
        segment->kind = (uint8_t)kind;
        count_shared(segment);
        segment->fork_epoch = 0;
        segment->counts.handles = 1;
        ndshare_heap.recycled_count++;
    }
    return segment;
}

void
ndshare_pool_shrink(size_t idle_limit)
{
    while (ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes > idle_limit
           && ndshare_heap.idle_lru.prev != &ndshare_heap.idle_lru) {
        ndshare_pool_forget(NDSHARE_OF(ndshare_heap.idle_lru.prev, by_age), true);
    }
}

/* Free at least `count` descriptors of own segments nobody here uses; the oldest first. An AWAY segment
 * is simply let go: whoever has it keeps the memory. */
bool
ndshare_pool_make_room(size_t count)
{
    while (count > 0) {
        if (ndshare_heap.away_lru.prev != &ndshare_heap.away_lru) {
            ndshare_pool_forget(NDSHARE_OF(ndshare_heap.away_lru.prev, by_age), false);
        }
        else if (ndshare_heap.idle_lru.prev != &ndshare_heap.idle_lru) {
            ndshare_pool_forget(NDSHARE_OF(ndshare_heap.idle_lru.prev, by_age), true);
        }
        else {
            return false;
        }
        count--;
    }
    return true;
}

/* Memory that came back unnoticed is idle memory: look at the oldest before the cap is exceeded. */
static void
collect_returned(void)
{
    for (int i = 0; i < PROBES; i++) {
        size_t idle = ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes;
        if (ndshare_heap.away_bytes + idle <= ndshare_heap.idle_limit
            || ndshare_heap.away_lru.prev == &ndshare_heap.away_lru) {
            return;
        }
        ndshare_segment *oldest = NDSHARE_OF(ndshare_heap.away_lru.prev, by_age);
        if (is_back(oldest)) {
            ndshare_pool_forget(oldest, true);
        }
        else {
            ndshare_link_remove(&oldest->by_age);
            ndshare_link_push(&ndshare_heap.away_lru, &oldest->by_age);
        }
    }
}

void
ndshare_pool_give_back(ndshare_segment *segment)
{
    segment->staged = false;
    discount_shared(segment);
    if (segment->detached || segment->kind == NDSHARE_SEALED
        || (segment->fork_epoch != 0 && ndshare_fork_still_seen(segment->fork_epoch))) {
        ndshare_pool_forget(segment, false);  /* others keep their mappings, and with them the pages */
        return;
    }
    if (segment->fork_epoch != 0) {  /* the child is gone, but it may have lent this on to somebody */
        segment->lent = true;
        segment->fork_epoch = 0;
    }
    if (segment->lent) {
        segment->state = NDSHARE_AWAY;
        ndshare_heap.away_bytes += segment->resident;
        ndshare_heap.away_count++;
        ndshare_link_push(&ndshare_heap.away[segment->size_class], &segment->by_class);
        ndshare_link_push(&ndshare_heap.away_lru, &segment->by_age);
        collect_returned();
        return;
    }
    segment->state = NDSHARE_IDLE;
    ndshare_heap.idle_bytes += segment->resident;
    ndshare_heap.idle_count++;
    ndshare_link_push(&ndshare_heap.idle[segment->size_class], &segment->by_class);
    ndshare_link_push(&ndshare_heap.idle_lru, &segment->by_age);
    ndshare_pool_shrink(ndshare_heap.idle_limit);
}

/* A fresh segment becomes known: from here on its memory is found by address. */
int
ndshare_pool_enter(ndshare_segment *segment, ndshare_error *error)
{
    ndshare_heap_lock();
    segment->uid = ndshare_heap_next_uid();
    if (ndshare_heap_add(segment) < 0) {
        ndshare_heap_unlock();
        *error = (ndshare_error){.number = ENOMEM, .asked = segment->size, .doing = "register a shared segment"};
        ndshare_segment_destroy(segment);
        return -1;
    }
    if (segment->slots != NULL) {
        int shift = segment->slot_shift - NDSHARE_SLAB_SHIFT;
        ndshare_heap.slab_count[shift]++;
        ndshare_link_push(&ndshare_heap.slabs[shift], &segment->by_class);
    }
    ndshare_heap.own_count++;
    ndshare_heap.own_bytes += segment->resident;
    count_shared(segment);
    ndshare_heap.fresh_count++;
    ndshare_ledger_publish(ndshare_heap.own_bytes);
    ndshare_heap_unlock();
    return 0;
}

void
ndshare_pool_trim_away(void)
{
    for (ndshare_link *link = ndshare_heap.away_lru.prev; link != &ndshare_heap.away_lru;) {
        ndshare_segment *segment = NDSHARE_OF(link, by_age);
        link = link->prev;
        if (is_back(segment)) {
            ndshare_pool_forget(segment, true);
        }
    }
}

/* All of them, and those without pages too. */
void
ndshare_pool_trim_idle(void)
{
    while (ndshare_heap.idle_lru.prev != &ndshare_heap.idle_lru) {
        ndshare_pool_forget(NDSHARE_OF(ndshare_heap.idle_lru.prev, by_age), true);
    }
}
