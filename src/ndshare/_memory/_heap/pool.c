/* Whole segments, recycled by size class.
 *
 * Fresh pages cost fourteen times a copy, so what was used once is kept: what nobody else ever saw goes
 * to `idle` and is taken last-in-first-out (its cache lines are warm); what was lent goes to `away` and
 * is taken after a probe. At most four probes per allocation: the three most recently freed (a task
 * loop gets its own segment back) and the oldest, which moves to the front when it is still out.
 */
#include "heap.h"

#include <errno.h>
#include <sys/resource.h>

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

/* How many own segments there may be: each takes a descriptor and a mapping, and neither is ours alone. */
size_t
ndshare_pool_descriptor_limit(void)
{
    struct rlimit limit;
    size_t mappings = ndshare_limits_mappings() / 4;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return mappings;
    }
    size_t descriptors = (size_t)limit.rlim_cur / 4;
    return descriptors < mappings ? descriptors : mappings;
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

void
ndshare_pool_forget(ndshare_segment *segment, bool punch)
{
    leave_lists(segment);
    ndshare_heap.slot_idle_bytes -= segment->free_bytes;
    if (segment->slots != NULL) {
        ndshare_link_remove(&segment->by_class);
        ndshare_heap.slab_count[segment->slot_shift - NDSHARE_SLAB_SHIFT]--;
    }
    ndshare_table_remove(segment);
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
    for (; link != head && probes < NDSHARE_PROBES - 1; link = link->next, probes++) {
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
    for (int i = 0; i < NDSHARE_PROBES; i++) {
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

/* Reserve; if it does not fit, first give up what is only kept for speed. */
int
ndshare_pool_reserve(size_t nbytes, ndshare_error *error)
{
    if (ndshare_limits_reserve(nbytes, error) == 0) {
        return 0;
    }
    ndshare_heap_lock();
    size_t idle = ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes, cached = ndshare_heap.cached_bytes;
    size_t own = ndshare_heap.own_bytes;
    ndshare_pool_shrink(idle > nbytes ? idle - nbytes : 0);
    if (own - ndshare_heap.own_bytes < nbytes) {
        ndshare_slab_trim_all();
        ndshare_pool_shrink(0);
    }
    if (cached > 0) {
        ndshare_receive_trim(0, 0);
    }
    bool changed = ndshare_heap.doomed != NULL || ndshare_heap.own_bytes != own;
    ndshare_heap_unlock();
    return changed ? ndshare_limits_reserve(nbytes, error) : -1;
}

static ndshare_segment *
make_fresh(size_t size, ndshare_error *error)
{
    PyThreadState *thread = NULL;
    if (size >= ((size_t)1 << 20) && PyGILState_Check()) {
        thread = PyEval_SaveThread();
    }
    ndshare_segment *segment = NULL;
    if (ndshare_pool_reserve(size, error) == 0) {
        segment = ndshare_segment_make(size, true, error);
        if (segment == NULL && (error->number == EMFILE || error->number == ENFILE)) {
            ndshare_heap_lock();
            bool room = ndshare_pool_make_room(8);
            ndshare_heap_unlock();
            segment = room ? ndshare_segment_make(size, true, error) : NULL;
        }
        ndshare_limits_settle(size);
    }
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    return segment;
}

ndshare_segment *
ndshare_pool_take(size_t nbytes, int kind, bool staged, bool in_handler, bool *fresh, ndshare_error *error)
{
    if (nbytes > (size_t)1 << 46) {
        *error = (ndshare_error){.asked = nbytes, .available = (size_t)1 << 46, .limit = "address space"};
        return NULL;
    }
    size_t limit = ndshare_pool_descriptor_limit();
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
    segment = make_fresh(size, error);
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

/* A fresh segment becomes known: from here on its memory is found by address. */
int
ndshare_pool_enter(ndshare_segment *segment, ndshare_error *error)
{
    ndshare_heap_lock();
    segment->uid = ndshare_heap_next_uid();
    if (ndshare_table_add(segment) < 0) {
        ndshare_heap_unlock();
        ndshare_segment_destroy(segment);
        *error = (ndshare_error){.number = ENOMEM, .doing = "register a shared segment"};
        return -1;
    }
    ndshare_heap.own_count++;
    ndshare_heap.own_bytes += segment->resident;
    ndshare_heap.fresh_count++;
    ndshare_ledger_publish(ndshare_heap.own_bytes);
    ndshare_heap_unlock();
    return 0;
}

size_t
ndshare_pool_trim(void)
{
    size_t before = ndshare_heap.own_bytes;
    for (ndshare_link *link = ndshare_heap.away_lru.prev; link != &ndshare_heap.away_lru;) {
        ndshare_segment *segment = NDSHARE_OF(link, by_age);
        link = link->prev;
        if (is_back(segment)) {
            ndshare_pool_forget(segment, true);
        }
    }
    ndshare_slab_trim_all();
    while (ndshare_heap.idle_lru.prev != &ndshare_heap.idle_lru) {  /* those without pages too */
        ndshare_pool_forget(NDSHARE_OF(ndshare_heap.idle_lru.prev, by_age), true);
    }
    return before - ndshare_heap.own_bytes;
}
