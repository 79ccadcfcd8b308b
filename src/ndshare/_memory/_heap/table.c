/* Which segment does an address lie in, and which one has this uid. The lock of the heap is held.
 *
 * Addresses: an array sorted by base; a look-up among 10,000 segments is 14 steps, an insertion moves
 * 40 kB on average (2 us) and happens once per mapping. Uids: open addressing with linear probing.
 */
#include "heap.h"

#include <stdlib.h>
#include <string.h>

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
ndshare_table_at(const void *address)
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
ndshare_table_uid(uint64_t uid, bool copy)
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
ndshare_table_add(ndshare_segment *segment)
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
ndshare_table_remove(ndshare_segment *segment)
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
