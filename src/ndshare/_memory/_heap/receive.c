/* Segments of other processes: mappings are kept, holds are not.
 *
 * While an array or Block of a segment lives here, one descriptor with LOCK_SH tells its owner so. When
 * the last one goes the hold is closed and the owner may recycle; the mapping stays (it needs no
 * descriptor), because the same segment comes again and mapping anew costs more than a copy.
 */
#include "receive.h"

#include "capacity.h"
#include "owners.h"
#include "pool.h"

#include <errno.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static time_t swept;       /* when the owners were last looked at, in seconds */

/* Mappings kept of what was copied out: so many in any case, so many bytes in any case, and beyond that so large a
 * part of the ordinary memory of this process. The pages are there a second time, as the copies. */
#define COPIED_FEW 16
#define COPIED_PLENTY ((size_t)64 << 20)
#define COPIED_PART 8
#define CACHED_MOST 8192   /* mappings kept without a user, where max_map_count is not smaller */

/* So many live results of one owner are kept as they came; of more, the receiver takes a copy and gives the
 * segment back: that costs less than fresh pages would cost the owner. Two are alive in any loop that
 * assigns its result to the same name. */
#define KEPT_MOST 4

static void
leave_cache(ndshare_segment *segment)
{
    ndshare_link_remove(&segment->by_age);
    ndshare_heap.cached_bytes -= segment->size;
    ndshare_heap.cached_count--;
    ndshare_heap.copied_bytes -= segment->copied ? segment->size : 0;
    ndshare_heap.copied_count -= segment->copied;
    segment->copied = false;
}

static void
drop(ndshare_segment *segment)
{
    if (segment->origin == NDSHARE_RECEIVED) {
        ndshare_owners_count(segment, -1, 0);
    }
    if (segment->state == NDSHARE_CACHED) {
        leave_cache(segment);
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
        ndshare_owners_count(segment, 0, 1);
    }
}

/* What a dead process made never does, nor what is known here under a uid that nobody else knows. */
static bool
comes_again(const ndshare_segment *segment)
{
    uint64_t prefix = segment->uid >> 32;
    size_t copied = ndshare_heap.copied_bytes + segment->size;
    if (segment->copied && ndshare_heap.copied_count >= COPIED_FEW && copied > COPIED_PLENTY
        && copied > ndshare_capacity_ordinary() / COPIED_PART) {
        return false;
    }
    return prefix != ndshare_heap.prefix && !ndshare_owners_is_gone(prefix);
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
        ndshare_owners_count(segment, 0, -1);
    }
    if (segment->detached || segment->transient || segment->kind == NDSHARE_COPY || !comes_again(segment)) {
        drop(segment);
        return;
    }
    close(segment->fd);
    segment->fd = -1;
    segment->state = NDSHARE_CACHED;
    ndshare_heap.cached_bytes += segment->size;
    ndshare_heap.cached_count++;
    ndshare_heap.copied_bytes += segment->copied ? segment->size : 0;
    ndshare_heap.copied_count += segment->copied;
    ndshare_link_push(&ndshare_heap.cache_lru, &segment->by_age);
    size_t most = ndshare_capacity_mappings() / 8;
    ndshare_receive_trim(ndshare_heap.idle_limit, most < CACHED_MOST ? most : CACHED_MOST);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    if (now.tv_sec != swept) {
        swept = now.tv_sec;
        ndshare_receive_sweep();
    }
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
        leave_cache(segment);
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

/* Map what is not known here yet, unless another thread is faster. Takes over `fd`. */
static ndshare_segment *
attach_new(uint64_t uid, size_t size, int kind, int fd, bool clash, ndshare_error *error)
{
    ndshare_segment *segment = ndshare_segment_map(fd, uid, size, kind, error);
    if (segment == NULL) {
        close(fd);
        return NULL;
    }
    segment->counts.handles = 1;
    ndshare_heap_lock();
    ndshare_segment *known = clash ? NULL : ndshare_heap_by_uid(uid, kind == NDSHARE_COPY), *found = NULL;
    if (known != NULL && (found = resolve(known, size, kind, fd)) != NULL) {
        segment->fd = -1;
        ndshare_heap_doom(segment);
    }
    else {
        if (clash || known != NULL) {
            segment->uid = ndshare_heap_next_uid();
        }
        if (ndshare_heap_add(segment) == 0) {
            found = segment;
            ndshare_owners_count(segment, 1, 0);
            enter_use(segment);
        }
        else {
            *error = (ndshare_error){.number = ENOMEM, .asked = size, .doing = "register a received segment"};
            ndshare_heap_doom(segment);
        }
    }
    ndshare_heap_unlock();
    return found;
}

ndshare_segment *
ndshare_receive_attach(uint64_t uid, size_t size, int kind, int fd, ndshare_error *error)
{
    bool clash = false;
    ndshare_heap_lock();
    ndshare_segment *known = ndshare_heap_by_uid(uid, kind == NDSHARE_COPY), *found = NULL;
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
    /* Inside of it nobody waits for the GIL: a fork waits for `busy`, and holds it. */
    PyThreadState *thread = size >= ((size_t)1 << 20) ? PyEval_SaveThread() : NULL;
    ndshare_heap_begin();
    found = attach_new(uid, size, kind, fd, clash, error);
    ndshare_heap_end();
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
    return found;
}

static bool
is_crowded(const ndshare_segment *segment)
{
    if (segment->kind != NDSHARE_VALUE || segment->origin != NDSHARE_RECEIVED) {
        return false;
    }
    if (ndshare_heap.held_count > ndshare_capacity_segments() / 2
        || ndshare_heap.n_segments > ndshare_capacity_mappings() / 4
        || ndshare_heap.held_value_bytes > ndshare_heap.idle_limit) {
        return true;
    }
    return ndshare_owners_live(segment->uid >> 32) > KEPT_MOST;
}

/* Would keeping it cost more than copying it out? */
bool
ndshare_receive_is_crowded(ndshare_segment *segment)
{
    segment->copied = is_crowded(segment);
    return segment->copied;
}

/* Of owners that nobody has told of: asked once a second at most, where memory is given back anyway. */
void
ndshare_receive_sweep(void)
{
    uint64_t prefix;
    for (size_t from = 0; ndshare_owners_next_gone(&from, &prefix);) {
        size_t before = ndshare_heap.n_owners;
        ndshare_receive_forget(prefix);
        from -= ndshare_heap.n_owners < before;  /* another one stands in its place */
    }
}

size_t
ndshare_receive_forget(uint64_t prefix)
{
    size_t dropped = 0;
    ndshare_owners_bury(prefix);
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
