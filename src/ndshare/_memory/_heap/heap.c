/* The heap of this process: its lock, its tables, and the reaping of memory nobody uses any more.
 *
 * The state is process-global: arrays made through a NumPy handler outlive every module object, up to
 * and through interpreter exit. It is never torn down; the kernel takes everything back.
 */
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

ndshare_heap_state ndshare_heap;

void
ndshare_heap_lock(void)
{
    pthread_mutex_lock(&ndshare_heap.lock);
}

static void
reap(ndshare_segment *doomed)
{
    while (doomed != NULL) {
        ndshare_segment *next = doomed->next_doomed;
        ndshare_segment_destroy(doomed);
        doomed = next;
    }
}

/* Lock held. Plain stores into a line of shared memory that nobody else writes. */
static void
tell(_Atomic uint64_t *told)
{
    const size_t figures[] = {ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes, ndshare_heap.away_bytes,
                              ndshare_heap.held_bytes, ndshare_heap.held_value_bytes, ndshare_heap.cached_bytes,
                              ndshare_heap.shared_bytes};
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        atomic_store_explicit(told + i, figures[i], memory_order_relaxed);
    }
}

/* Lock held; takes it away. What is to be reaped is out of the tables, and its addresses cannot be used again
 * before munmap. */
static ndshare_segment *
unlock(void)
{
    if (ndshare_heap.told != NULL) {
        tell(ndshare_heap.told);
    }
    ndshare_segment *doomed = ndshare_heap.doomed;
    ndshare_heap.doomed = NULL;
    ndshare_heap.busy += doomed != NULL;
    pthread_mutex_unlock(&ndshare_heap.lock);
    return doomed;
}

void
ndshare_heap_unlock(void)
{
    ndshare_segment *doomed = unlock();
    if (doomed != NULL) {
        reap(doomed);
        ndshare_heap_end();
    }
}

/* Unmapping 160 MB takes 25 ms. */
void
ndshare_heap_unlock_let_go(void)
{
    size_t bytes = 0;
    for (ndshare_segment *segment = ndshare_heap.doomed; segment != NULL; segment = segment->next_doomed) {
        bytes += segment->size;
    }
    if (bytes <= (size_t)4 << 20) {
        ndshare_heap_unlock();
        return;
    }
    ndshare_segment *doomed = unlock();
    Py_BEGIN_ALLOW_THREADS
    reap(doomed);
    ndshare_heap_end();
    Py_END_ALLOW_THREADS
}

void
ndshare_heap_begin(void)
{
    ndshare_heap_lock();
    ndshare_heap.busy++;
    pthread_mutex_unlock(&ndshare_heap.lock);
}

void
ndshare_heap_end(void)
{
    ndshare_heap_lock();
    if (--ndshare_heap.busy == 0) {
        pthread_cond_broadcast(&ndshare_heap.calm);
    }
    pthread_mutex_unlock(&ndshare_heap.lock);
}

void
ndshare_heap_calm(void)
{
    while (ndshare_heap.busy > 0) {
        pthread_cond_wait(&ndshare_heap.calm, &ndshare_heap.lock);
    }
}

void
ndshare_heap_doom(ndshare_segment *segment)
{
    segment->next_doomed = ndshare_heap.doomed;
    ndshare_heap.doomed = segment;
}

uint64_t
ndshare_heap_next_uid(void)
{
    return ndshare_heap.prefix << 32 | ++ndshare_heap.counter;
}

/* Addresses: an array sorted by base; a look-up among 10,000 segments is 14 steps, an insertion moves
 * 40 kB on average (2 us) and happens once per mapping. Uids: open addressing with linear probing. */
static size_t
position(const void *address)  /* number of segments whose base is <= address */
{
    size_t low = 0, high = ndshare_heap.n_segments;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (ndshare_heap.by_address[middle]->base <= (const char *)address) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    return low;
}

ndshare_segment *
ndshare_heap_at(const void *address)
{
    size_t index = position(address);
    if (index == 0) {
        return NULL;
    }
    ndshare_segment *segment = ndshare_heap.by_address[index - 1];
    return (const char *)address < segment->base + segment->size ? segment : NULL;
}

static bool
is_copy(const ndshare_segment *segment)
{
    return segment->kind == NDSHARE_COPY;
}

static size_t
uid_slot(uint64_t uid, bool copy)
{
    uint64_t hash = (uid * 2 + copy) * 0x9E3779B97F4A7C15ull;
    return (size_t)(hash >> 20) & ndshare_heap.uid_mask;
}

ndshare_segment *
ndshare_heap_by_uid(uint64_t uid, bool copy)
{
    if (ndshare_heap.by_uid == NULL) {
        return NULL;
    }
    for (size_t i = uid_slot(uid, copy);; i = (i + 1) & ndshare_heap.uid_mask) {
        ndshare_segment *segment = ndshare_heap.by_uid[i];
        if (segment == NULL) {
            return NULL;
        }
        if (segment->uid == uid && is_copy(segment) == copy) {
            return segment;
        }
    }
}

static void
uid_insert(ndshare_segment *segment)
{
    size_t i = uid_slot(segment->uid, is_copy(segment));
    while (ndshare_heap.by_uid[i] != NULL) {
        i = (i + 1) & ndshare_heap.uid_mask;
    }
    ndshare_heap.by_uid[i] = segment;
}

/* Room for one more, before anything is changed. */
static int
reserve(void)
{
    if (ndshare_heap.n_segments == ndshare_heap.cap_segments) {
        size_t cap = ndshare_heap.cap_segments ? ndshare_heap.cap_segments * 2 : 64;
        ndshare_segment **grown = realloc(ndshare_heap.by_address, cap * sizeof *grown);
        if (grown == NULL) {
            return -1;
        }
        ndshare_heap.by_address = grown;
        ndshare_heap.cap_segments = cap;
    }
    if (ndshare_heap.by_uid == NULL || (ndshare_heap.n_segments + 1) * 2 > ndshare_heap.uid_mask) {
        size_t size = ndshare_heap.by_uid ? (ndshare_heap.uid_mask + 1) * 2 : 256;
        ndshare_segment **grown = calloc(size, sizeof *grown);
        if (grown == NULL) {
            return -1;
        }
        free(ndshare_heap.by_uid);
        ndshare_heap.by_uid = grown;
        ndshare_heap.uid_mask = size - 1;
        for (size_t i = 0; i < ndshare_heap.n_segments; i++) {
            uid_insert(ndshare_heap.by_address[i]);
        }
    }
    return 0;
}

int
ndshare_heap_add(ndshare_segment *segment)
{
    if (reserve() < 0) {
        return -1;
    }
    size_t index = position(segment->base);
    memmove(ndshare_heap.by_address + index + 1, ndshare_heap.by_address + index,
            (ndshare_heap.n_segments - index) * sizeof *ndshare_heap.by_address);
    ndshare_heap.by_address[index] = segment;
    ndshare_heap.n_segments++;
    uid_insert(segment);
    if ((uintptr_t)segment->base < atomic_load(&ndshare_heap.low)) {
        atomic_store(&ndshare_heap.low, (uintptr_t)segment->base);
    }
    if ((uintptr_t)segment->base + segment->size > atomic_load(&ndshare_heap.high)) {
        atomic_store(&ndshare_heap.high, (uintptr_t)segment->base + segment->size);
    }
    return 0;
}

/* Deletion moves the followers of the gap back, so that no tombstones pile up. */
static void
uid_remove(const ndshare_segment *segment)
{
    size_t mask = ndshare_heap.uid_mask, gap = uid_slot(segment->uid, is_copy(segment));
    while (ndshare_heap.by_uid[gap] != segment) {
        if (ndshare_heap.by_uid[gap] == NULL) {
            return;
        }
        gap = (gap + 1) & mask;
    }
    for (size_t i = (gap + 1) & mask;; i = (i + 1) & mask) {
        ndshare_segment *follower = ndshare_heap.by_uid[i];
        if (follower == NULL) {
            break;
        }
        size_t home = uid_slot(follower->uid, is_copy(follower));
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            ndshare_heap.by_uid[gap] = follower;
            gap = i;
        }
    }
    ndshare_heap.by_uid[gap] = NULL;
}

void
ndshare_heap_remove(ndshare_segment *segment)
{
    size_t index = position(segment->base);
    if (index == 0 || ndshare_heap.by_address[index - 1] != segment) {
        return;
    }
    memmove(ndshare_heap.by_address + index - 1, ndshare_heap.by_address + index,
            (ndshare_heap.n_segments - index) * sizeof *ndshare_heap.by_address);
    ndshare_heap.n_segments--;
    uid_remove(segment);
}

PyObject *
ndshare_error_raise(const ndshare_error *error)
{
    PyObject *type, *args;
    if (error->limit != NULL || error->number == ENOMEM) {
        const char *limit = error->limit ? error->limit : "address space of this process, or the number of its mappings";
        type = ndshare_heap.capacity_error ? ndshare_heap.capacity_error : PyExc_MemoryError;
        args = Py_BuildValue("(nns)", (Py_ssize_t)error->asked, (Py_ssize_t)error->available, limit);
    }
    else {
        type = ndshare_heap.segment_error ? ndshare_heap.segment_error : PyExc_OSError;
        args = Py_BuildValue("(is)", error->number, error->doing ? error->doing : "use shared memory");
    }
    if (args != NULL) {
        PyErr_SetObject(type, args);
        Py_DECREF(args);
    }
    return NULL;
}

void
ndshare_heap_empty_lists(void)
{
    for (int i = 0; i < NDSHARE_CLASSES; i++) {
        ndshare_link_init(&ndshare_heap.idle[i]);
        ndshare_link_init(&ndshare_heap.away[i]);
    }
    for (int i = 0; i < NDSHARE_SLAB_CLASSES; i++) {
        ndshare_link_init(&ndshare_heap.slabs[i]);
        ndshare_heap.slab_count[i] = 0;
    }
    ndshare_link_init(&ndshare_heap.idle_lru);
    ndshare_link_init(&ndshare_heap.away_lru);
    ndshare_link_init(&ndshare_heap.cache_lru);
}

void
ndshare_heap_start(size_t idle_limit)
{
    ndshare_segment_start();
    pthread_mutex_init(&ndshare_heap.lock, NULL);
    pthread_cond_init(&ndshare_heap.calm, NULL);
    atomic_store(&ndshare_heap.low, UINTPTR_MAX);
    atomic_store(&ndshare_heap.high, 0);
    ndshare_heap_empty_lists();
    ndshare_heap.idle_limit = idle_limit;
    ndshare_heap.threshold = (size_t)256 << 10;
    ndshare_heap.token_fd = ndshare_heap.token_child_fd = -1;
}
