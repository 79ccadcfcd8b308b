/* What a fork by the user's code does to shared memory.
 *
 * pthread_atfork and not os.register_at_fork: it also sees forks made in C, and no Python code runs
 * between the handlers, so that nobody can want the heap while it is locked for the fork. vfork + exec
 * (subprocess) runs none of it and costs nothing.
 *
 * before   - nobody makes, maps or unmaps memory any more (`busy`).
 *          - by-value memory in which arrays live is remapped MAP_PRIVATE at its address: same pages,
 *            but from now on parent and child do not see each other's writes. It is ordinary memory
 *            from then on (`detached`). Staged blocks are excepted while their Block lives: they are filled
 *            and lent by code of ndshare that does not run on in the child.
 *          - the fork token: a description of its own with LOCK_SH on a memfd of this process, which
 *            the child keeps for life. The kernel does not count a forked child as a user; the token
 *            does, over exit, exec (close-on-exec), kill and grandchildren.
 *          - shared blocks that are alive are marked with the number of this fork.
 * parent   closes its copy of the child's description.
 * child    owns nothing: own segments become INHERITED (used, lent, never recycled), what is idle is
 *          unmapped, holds are kept (their description is shared with the parent: closing is right,
 *          unlocking would unlock for both). New uids, no ledger.
 */
#include "fork.h"

#include "ledger.h"
#include "owners.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

static bool
token_prepare(void)
{
    if (ndshare_heap.token_fd < 0) {
        ndshare_heap.token_fd = memfd_create("ndshare-fork", MFD_CLOEXEC);
    }
    if (ndshare_heap.token_fd < 0) {
        return false;
    }
    ndshare_error error;
    ndshare_heap.token_child_fd = ndshare_segment_reopen(ndshare_heap.token_fd, &error);
    return ndshare_heap.token_child_fd >= 0;
}

static void
mark_slots(ndshare_segment *slab)
{
    for (uint32_t i = 0; i < slab->n_slots; i++) {
        if (slab->slots[i].flags & NDSHARE_SLOT_USED) {
            slab->slots[i].flags |= NDSHARE_SLOT_FORKED;
        }
    }
}

static void
before(void)
{
    int saved = errno;
    ndshare_heap_lock();
    ndshare_heap_calm();
    bool needed = false;
    for (size_t i = 0; i < ndshare_heap.n_segments; i++) {
        ndshare_segment *segment = ndshare_heap.by_address[i];
        bool used = segment->counts.users > 0 || segment->n_used > 0 || segment->counts.handles > 0;
        if (segment->state != NDSHARE_LIVE || !used || segment->detached) {
            continue;
        }
        if (segment->kind == NDSHARE_VALUE) {
            bool being_filled = segment->staged && segment->counts.handles > 0;
            if (segment->counts.users > 0 && !being_filled) {
                ndshare_segment_detach(segment);
            }
        }
        else if (segment->kind == NDSHARE_SHARED && segment->origin == NDSHARE_OWN) {
            segment->fork_epoch = ndshare_heap.fork_epoch + 1;
            if (segment->slots != NULL) {
                mark_slots(segment);
            }
            needed = true;
        }
    }
    if (needed) {
        ndshare_heap.fork_epoch++;
        if (!token_prepare()) {
            ndshare_heap.token_lost = ndshare_heap.fork_epoch;
        }
    }
    errno = saved;
}

static void
after_in_parent(void)
{
    int saved = errno;
    if (ndshare_heap.token_child_fd >= 0) {
        close(ndshare_heap.token_child_fd);
        ndshare_heap.token_child_fd = -1;
    }
    ndshare_heap_unlock();
    errno = saved;
}

static void
inherit(ndshare_segment *segment)
{
    if (segment->origin != NDSHARE_OWN) {
        return;
    }
    segment->origin = NDSHARE_INHERITED;
    segment->staged = false;
    for (uint32_t i = 0; segment->slots != NULL && i < segment->n_slots; i++) {
        segment->counts.users += segment->slots[i].counts.users;
        segment->counts.handles += segment->slots[i].counts.handles;
    }
}

static void
after_in_child(void)
{
    int saved = errno;
    pthread_mutex_init(&ndshare_heap.lock, NULL);
    pthread_cond_init(&ndshare_heap.calm, NULL);
    ndshare_heap_lock();
    /* The description travels on in this child: it is what tells the parent that we live. */
    ndshare_heap.token_child_fd = -1;
    if (ndshare_heap.token_fd >= 0) {
        close(ndshare_heap.token_fd);
        ndshare_heap.token_fd = -1;
    }
    ndshare_heap.fork_epoch = ndshare_heap.freed_epoch = ndshare_heap.token_lost = 0;
    for (size_t i = ndshare_heap.n_segments; i-- > 0;) {
        ndshare_segment *segment = ndshare_heap.by_address[i];
        bool used = segment->counts.users > 0 || segment->counts.handles > 0 || segment->n_used > 0;
        ndshare_link_init(&segment->by_class);
        ndshare_link_init(&segment->by_age);
        segment->shared = 0;
        if (used) {
            inherit(segment);
            continue;
        }
        ndshare_heap_remove(segment);
        segment->punch = false;
        ndshare_heap_doom(segment);
    }
    ndshare_heap_empty_lists();
    ndshare_heap.own_bytes = ndshare_heap.idle_bytes = ndshare_heap.slot_idle_bytes = ndshare_heap.shared_bytes = 0;
    ndshare_heap.away_bytes = ndshare_heap.cached_bytes = ndshare_heap.copied_bytes = 0;
    ndshare_heap.own_count = ndshare_heap.idle_count = 0;
    ndshare_heap.away_count = ndshare_heap.cached_count = ndshare_heap.copied_count = 0;
    ndshare_owners_draw_prefix();
    ndshare_owners_recount();
    ndshare_ledger_leave();
    ndshare_heap_unlock();
    errno = saved;
}

/* May a forked child still see memory that was alive at fork number `epoch`? */
bool
ndshare_fork_still_seen(uint64_t epoch)
{
    if (epoch <= ndshare_heap.token_lost) {
        return true;  /* a fork since then could not take its token (no descriptor): never again */
    }
    if (epoch <= ndshare_heap.freed_epoch || ndshare_heap.token_fd < 0) {
        return false;
    }
    if (!ndshare_segment_probe(ndshare_heap.token_fd)) {
        return true;
    }
    ndshare_heap.freed_epoch = ndshare_heap.fork_epoch;
    return false;
}

/* Without a child that lives there is no need to keep the token's file open. */
void
ndshare_fork_tidy(void)
{
    if (ndshare_heap.token_fd >= 0 && ndshare_segment_probe(ndshare_heap.token_fd)) {
        ndshare_heap.freed_epoch = ndshare_heap.fork_epoch;
        close(ndshare_heap.token_fd);
        ndshare_heap.token_fd = -1;
    }
}

int
ndshare_fork_start(void)
{
    return pthread_atfork(before, after_in_parent, after_in_child) == 0 ? 0 : -1;
}
