/* Segments of other processes: mappings are kept, holds are not.
 *
 * While an array or Block of a segment lives here, one descriptor with LOCK_SH tells its owner so. When
 * the last one goes the hold is closed and the owner may recycle; the mapping stays (it needs no
 * descriptor), because the same segment comes again and mapping anew costs more than a copy.
 */
#include "receive.h"

#include "capacity.h"
#include "pool.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHED_MOST 8192   /* mappings kept without a user, where max_map_count is not smaller */

/* Live by-value segments per owner: a handful of entries, found by a plain search. */
static void
count(const ndshare_segment *segment, int change)
{
    uint64_t prefix = segment->uid >> 32;
    for (size_t i = 0; i < ndshare_heap.n_owners; i++) {
        if (ndshare_heap.owners[i].prefix == prefix) {
            ndshare_heap.owners[i].live += (uint32_t)change;
            if (ndshare_heap.owners[i].live == 0) {
                ndshare_heap.owners[i] = ndshare_heap.owners[--ndshare_heap.n_owners];
            }
            return;
        }
    }
    if (change < 0) {
        return;
    }
    if (ndshare_heap.n_owners == ndshare_heap.cap_owners) {
        size_t cap = ndshare_heap.cap_owners ? ndshare_heap.cap_owners * 2 : 16;
        void *grown = realloc(ndshare_heap.owners, cap * sizeof *ndshare_heap.owners);
        if (grown == NULL) {
            return;  /* only the policy of should_copy_out suffers */
        }
        ndshare_heap.owners = grown;
        ndshare_heap.cap_owners = cap;
    }
    ndshare_heap.owners[ndshare_heap.n_owners].prefix = prefix;
    ndshare_heap.owners[ndshare_heap.n_owners++].live = 1;
}

/* So many live results of one owner are kept as they came; of more, the receiver takes a copy and gives the
 * segment back: that costs less than fresh pages would cost the owner. Two are alive in any loop that
 * assigns its result to the same name. */
#define KEPT_MOST 4

static void
drop(ndshare_segment *segment)
{
    if (segment->state == NDSHARE_CACHED) {
        ndshare_link_remove(&segment->by_age);
        ndshare_heap.cached_bytes -= segment->size;
        ndshare_heap.cached_count--;
    }
    ndshare_heap_remove(segment);
    segment->punch = false;
    ndshare_heap_doom(segment);
}

size_t
ndshare_receive_trim(size_t bytes, size_t count)
{
    size_t before = ndshare_heap.cached_bytes;
    while ((ndshare_heap.cached_bytes > bytes || ndshare_heap.cached_count > count)
           && ndshare_heap.cache_lru.prev != &ndshare_heap.cache_lru) {
        drop(NDSHARE_OF(ndshare_heap.cache_lru.prev, by_age));
    }
    return before - ndshare_heap.cached_bytes;
}

static void
enter_use(ndshare_segment *segment)
{
    segment->state = NDSHARE_LIVE;
    ndshare_heap.held_count++;
    ndshare_heap.held_bytes += segment->size;
    if (segment->kind == NDSHARE_VALUE) {
        ndshare_heap.held_value_bytes += segment->size;
        count(segment, 1);
    }
}

void
ndshare_receive_settle(ndshare_segment *segment)
{
    if (segment->origin == NDSHARE_INHERITED) {
        drop(segment);
        return;
    }
    ndshare_heap.held_count--;
    ndshare_heap.held_bytes -= segment->size;
    if (segment->kind == NDSHARE_VALUE) {
        ndshare_heap.held_value_bytes -= segment->size;
        count(segment, -1);
    }
    if (segment->detached || segment->transient || segment->kind == NDSHARE_COPY) {
        drop(segment);
        return;
    }
    close(segment->fd);
    segment->fd = -1;
    segment->state = NDSHARE_CACHED;
    ndshare_heap.cached_bytes += segment->size;
    ndshare_heap.cached_count++;
    ndshare_link_push(&ndshare_heap.cache_lru, &segment->by_age);
    size_t most = ndshare_capacity_mappings() / 8;
    ndshare_receive_trim(ndshare_heap.idle_limit, most < CACHED_MOST ? most : CACHED_MOST);
}

/* The segment is known here: use its mapping. NULL: it is another file under the same uid (two
 * processes drew the same prefix), or nothing this process can still vouch for: a by-value segment that was
 * being sent when this process was forked has no hold here, and its owner reuses it when the message is gone. */
static ndshare_segment *
resolve(ndshare_segment *segment, size_t size, int kind, int fd)
{
    struct stat status;
    if (segment->size < size || fstat(fd, &status) != 0 || status.st_ino != segment->inode
        || (segment->detached && kind != NDSHARE_COPY)
        || (segment->origin == NDSHARE_INHERITED && segment->kind == NDSHARE_VALUE)) {
        return NULL;
    }
    if (segment->origin == NDSHARE_OWN) {
        if (segment->state == NDSHARE_AWAY) {
            ndshare_pool_wake(segment);
        }
        else if (segment->state == NDSHARE_IDLE) {
            return NULL;
        }
        segment->lent = true;  /* the sender may still have it */
        segment->staged = false;  /* from here on arrays may live in it, which a fork has to detach */
        if (segment->slots == NULL && segment->kind != NDSHARE_SEALED) {
            segment->kind = (uint8_t)kind;
        }
        close(fd);
    }
    else if (segment->state == NDSHARE_CACHED) {
        ndshare_link_remove(&segment->by_age);
        ndshare_heap.cached_bytes -= segment->size;
        ndshare_heap.cached_count--;
        if (segment->kind != NDSHARE_SEALED) {
            segment->kind = (uint8_t)kind;
        }
        segment->fd = fd;
        enter_use(segment);
    }
    else {
        close(fd);
    }
    segment->counts.handles++;
    return segment;
}

ndshare_segment *
ndshare_receive_attach(uint64_t uid, size_t size, int kind, int fd, ndshare_error *error)
{
    bool copy = kind == NDSHARE_COPY, clash = false;
    ndshare_heap_lock();
    ndshare_segment *known = ndshare_heap_by_uid(uid, copy), *found = NULL;
    if (known != NULL) {
        found = resolve(known, size, kind, fd);
        if (found == NULL && known->state == NDSHARE_CACHED) {
            drop(known);
        }
        else if (found == NULL) {
            clash = true;  /* keep both: the newcomer gets a uid of ours, known to nobody */
        }
    }
    ndshare_heap_unlock();
    if (found != NULL) {
        return found;
    }
    PyThreadState *thread = size >= ((size_t)1 << 20) ? PyEval_SaveThread() : NULL;
    ndshare_segment *segment = ndshare_segment_map(fd, uid, size, kind, error);
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    if (segment == NULL) {
        close(fd);
        return NULL;
    }
    segment->counts.handles = 1;
    ndshare_heap_lock();
    known = clash ? NULL : ndshare_heap_by_uid(uid, copy);
    if (known != NULL && (found = resolve(known, size, kind, fd)) != NULL) {
        segment->fd = -1;  /* another thread was faster; its mapping is the one */
        ndshare_heap_doom(segment);
    }
    else {
        if (clash || known != NULL) {
            segment->uid = ndshare_heap_next_uid();
        }
        if (ndshare_heap_add(segment) == 0) {
            found = segment;
            enter_use(segment);
        }
        else {
            *error = (ndshare_error){.number = ENOMEM, .doing = "register a received segment"};
            ndshare_heap_doom(segment);
        }
    }
    ndshare_heap_unlock();
    return found;
}

/* Would keeping it cost more than copying it out? */
bool
ndshare_receive_is_crowded(const ndshare_segment *segment)
{
    if (segment->kind != NDSHARE_VALUE || segment->origin != NDSHARE_RECEIVED) {
        return false;
    }
    if (ndshare_heap.held_count > ndshare_capacity_segments() / 2
        || ndshare_heap.n_segments > ndshare_capacity_mappings() / 4
        || ndshare_heap.held_value_bytes > ndshare_heap.idle_limit) {
        return true;
    }
    for (size_t i = 0; i < ndshare_heap.n_owners; i++) {
        if (ndshare_heap.owners[i].prefix == segment->uid >> 32) {
            return ndshare_heap.owners[i].live > KEPT_MOST;
        }
    }
    return false;
}

size_t
ndshare_receive_forget(uint64_t prefix)
{
    size_t dropped = 0;
    for (ndshare_link *link = ndshare_heap.cache_lru.next; link != &ndshare_heap.cache_lru;) {
        ndshare_segment *segment = NDSHARE_OF(link, by_age);
        link = link->next;
        if (segment->uid >> 32 == prefix) {
            drop(segment);
            dropped++;
        }
    }
    return dropped;
}
