/* The heap of this process: its figures and lists, its lock, and which segment an address or uid belongs to.
 *
 * Invariants
 *   - A block is LIVE exactly while users + handles > 0; users are arrays, handles are Block objects.
 *   - What was lent is reused only after flock(LOCK_EX | LOCK_NB) succeeded on the owner's descriptor,
 *     followed by LOCK_UN under the same lock of the heap: a lock kept would make the next lending fail.
 *   - A hold is released by close, never by LOCK_UN: a forked child shares its description. Nothing is
 *     mapped from a hold, because a mapping keeps its description, and the lock, alive.
 *   - Memory a forked child may still see (`fork_epoch`) is reused only when the fork token is free.
 *   - `detached` memory (remapped copy-on-write at a fork) is ordinary memory: never lent, never reused.
 *   - Where memory belongs is decided by its address, never by a size.
 *
 * Locking order: the GIL, then heap.lock. Nobody waits for the GIL while holding heap.lock; mapping and
 * unmapping of whole segments happens outside of it (`doomed` is reaped by ndshare_heap_unlock). Whoever does that
 * is counted as `busy`, and a fork waits for him: its child would otherwise keep descriptors nobody knows of.
 * The GIL protects nothing here; who holds it is known by where the call comes from, never asked.
 *
 * The files, each with a header that says what the others may call, from the roof to the ground:
 *
 *   module.c    what Python sees
 *   obtain.c    the ways to get a Block          handler.c  NEP 49
 *   block.c     the Python handle                adopt.c    arrays on existing memory
 *   altered.c   was an array written to          copying.c  large copies        stats.c  figures
 *   supply.c    memory for a request             slab.c     small blocks out of slabs
 *   counting.c  arrays and handles per block     room.c     room for fresh pages
 *   receive.c   segments of other processes      slots.c    slots of a slab that come back
 *   pool.c      whole segments by size class     fork.c     what a fork does
 *   capacity.c  does it fit                      ledger.c   reservations of a pool
 *   owners.c    who made them, do they live      array.c    an array's bytes
 *   heap.c      lock, tables, reaping            segment.c  one memfd
 */
#ifndef NDSHARE_HEAP_H
#define NDSHARE_HEAP_H

#include "segment.h"

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>

#define NDSHARE_CLASSES 296      /* size classes of whole segments: 8 per doubling, up to 2**47 bytes */
#define NDSHARE_SLAB_CLASSES 42  /* slot sizes 2**6 ... 2**47 */
#define NDSHARE_SLAB_SHIFT 6

typedef struct {
    uint64_t prefix;                 /* upper half of the uids of its segments */
    uint32_t mapped, live;           /* segments mapped here; of those, by-value ones in use */
    bool gone;
} ndshare_owner;

typedef struct {
    pthread_mutex_t lock;
    atomic_uintptr_t low, high;      /* every mapping ever made lies within: the test without a lock */
    ndshare_segment **by_address;
    size_t n_segments, cap_segments;
    ndshare_segment **by_uid;
    size_t uid_mask;
    /* pool.c, slots.c, slab.c */
    ndshare_link idle[NDSHARE_CLASSES], away[NDSHARE_CLASSES];
    ndshare_link idle_lru, away_lru, cache_lru;
    ndshare_link slabs[NDSHARE_SLAB_CLASSES];
    uint32_t slab_count[NDSHARE_SLAB_CLASSES];
    ndshare_segment *doomed;
    pthread_cond_t calm;
    size_t busy;                     /* threads that make, map or unmap memory without the lock */
    size_t own_bytes, idle_bytes, slot_idle_bytes, away_bytes, held_bytes, held_value_bytes, cached_bytes, copied_bytes;
    size_t shared_bytes;             /* of its own: shared arrays with a segment to themselves */
    size_t own_count, idle_count, away_count, held_count, cached_count, copied_count;
    size_t idle_limit;
    atomic_size_t threshold;         /* of the by-value handler, in bytes */
    uint64_t fresh_count, recycled_count, probe_count;
    uint64_t prefix;
    uint32_t counter;
    _Atomic uint64_t *told;          /* ledger.c: where figures are put for whoever watches; NULL: nowhere */
    /* fork.c */
    int token_fd, token_child_fd;
    uint64_t fork_epoch, freed_epoch;
    uint64_t token_lost;             /* up to this fork nothing is ever reused: it had no token */
    ndshare_owner *owners;
    size_t n_owners, cap_owners;
    PyObject *capacity_error, *segment_error, *gone_error;
} ndshare_heap_state;

extern ndshare_heap_state ndshare_heap;

void ndshare_heap_start(size_t idle_limit);
void ndshare_heap_empty_lists(void);               /* lock held, or nobody else knows the heap */
void ndshare_heap_lock(void);
void ndshare_heap_unlock(void);
void ndshare_heap_unlock_let_go(void);             /* lets the GIL go while much is unmapped */
void ndshare_heap_begin(void);                     /* takes the lock: memory is made or mapped without it */
void ndshare_heap_end(void);                       /* takes the lock: and is in the tables, or gone */
void ndshare_heap_calm(void);                      /* lock held: waits until nobody does */
uint64_t ndshare_heap_next_uid(void);              /* lock held */

/* The tables; lock held. */
int ndshare_heap_add(ndshare_segment *segment);
void ndshare_heap_remove(ndshare_segment *segment);
void ndshare_heap_doom(ndshare_segment *segment);  /* out of the tables already */
ndshare_segment *ndshare_heap_at(const void *address);
ndshare_segment *ndshare_heap_by_uid(uint64_t uid, bool copy);

static inline bool
ndshare_heap_may_hold(const void *address)
{
    return (uintptr_t)address >= atomic_load_explicit(&ndshare_heap.low, memory_order_relaxed)
        && (uintptr_t)address < atomic_load_explicit(&ndshare_heap.high, memory_order_relaxed);
}

PyObject *ndshare_error_raise(const ndshare_error *error);

#endif
