/* What the files of ndshare._memory._heap share: the data structures, their invariants and the locking order.
 *
 * A *segment* is one memfd, mapped once (twice at most: shared and copy-on-write) in a process.
 * A *block* is the unit that is handed out: a whole segment, or one slot of a segment that is a slab.
 *
 *   origin      OWN        made here; only here it is recycled
 *               RECEIVED   of another process; `fd` is the hold (own description, LOCK_SH) while it is used
 *               INHERITED  was OWN before a fork and this is the child: used, lent, never recycled
 *
 *   state       LIVE       somebody in this process uses it (or, for a slab, may)
 *               IDLE       own, free, its pages kept warm         lists: idle[class], idle_lru
 *               AWAY       own, free here, lent and not yet known to be back   lists: away[class], away_lru
 *               CACHED     received, no hold, only the mapping is kept         list: cache_lru
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
 * unmapping of whole segments happens outside of it (`doomed` is reaped by ndshare_heap_unlock).
 */
#ifndef NDSHARE_HEAP_H
#define NDSHARE_HEAP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { NDSHARE_VALUE = 0, NDSHARE_SHARED = 1, NDSHARE_SEALED = 2, NDSHARE_COPY = 3 };
enum { NDSHARE_OWN, NDSHARE_RECEIVED, NDSHARE_INHERITED };
enum { NDSHARE_LIVE, NDSHARE_IDLE, NDSHARE_AWAY, NDSHARE_CACHED };

#define NDSHARE_PAGE ((size_t)4096)
#define NDSHARE_CLASSES 296      /* size classes of whole segments: 8 per doubling, up to 2**47 bytes */
#define NDSHARE_SLAB_CLASSES 42  /* slot sizes 2**6 ... 2**47 */
#define NDSHARE_SLAB_SHIFT 6
#define NDSHARE_PROBES 4         /* flock probes per allocation: 1.3 us each */

typedef struct ndshare_link {
    struct ndshare_link *prev, *next;
} ndshare_link;

typedef struct {
    uint32_t users, handles;
} ndshare_counts;

enum { NDSHARE_SLOT_USED = 1, NDSHARE_SLOT_LENT = 2, NDSHARE_SLOT_PENDING = 4, NDSHARE_SLOT_FORKED = 8,
       NDSHARE_SLOT_DIRTY = 16 };

typedef struct {
    ndshare_counts counts;
    uint32_t next;   /* next free slot of the slab */
    uint32_t flags;
    uint32_t pages;  /* how many of its pages were made, from its start; slots of a page and more */
} ndshare_slot;

typedef struct ndshare_segment {
    uint64_t uid;
    size_t size;
    char *base;
    int fd;                  /* own: the memfd; received: the hold or -1 */
    ino_t inode;
    uint8_t kind, origin, state;
    bool lent;               /* whole segment (slabs: any slot) went out since the last good probe */
    bool staged;             /* made to be filled and lent: a fork does not detach it */
    bool detached;
    bool transient;          /* mapped from its hold: the mapping goes with it */
    bool readonly;
    bool punch;              /* doomed: give the pages back even if a peer keeps a mapping */
    int size_class;
    uint64_t fork_epoch;     /* last fork at which it was alive; 0: none */
    size_t resident;         /* bytes of pages this process has brought into being */
    ndshare_counts counts;   /* slabs: handles on the whole segment only */
    ndshare_link by_class;   /* idle[class], away[class]; slabs: slabs[class] */
    ndshare_link by_age;     /* idle_lru, away_lru, cache_lru */
    struct ndshare_segment *next_doomed;
    /* slabs */
    ndshare_slot *slots;
    uint32_t n_slots, n_used, n_pending, first_free;
    size_t free_bytes;       /* pages of free slots: kept warm, and capped like whole idle segments */
    int slot_shift;
} ndshare_segment;

/* What could not be done, kept as plain facts so that it can be found out without the GIL. */
typedef struct {
    int number;              /* errno; 0 for a capacity error */
    const char *doing;
    size_t asked, available;
    const char *limit;       /* name of the limit that binds; set for capacity errors */
} ndshare_error;

typedef struct {
    pthread_mutex_t lock;
    atomic_uintptr_t low, high;      /* every mapping ever made lies within: the test without a lock */
    /* table.c */
    ndshare_segment **by_address;
    size_t n_segments, cap_segments;
    ndshare_segment **by_uid;
    size_t uid_mask, uid_filled;
    /* pool.c, slab.c */
    ndshare_link idle[NDSHARE_CLASSES], away[NDSHARE_CLASSES];
    ndshare_link idle_lru, away_lru, cache_lru;
    ndshare_link slabs[NDSHARE_SLAB_CLASSES];
    uint32_t slab_count[NDSHARE_SLAB_CLASSES];
    ndshare_segment *doomed;
    size_t own_bytes, idle_bytes, slot_idle_bytes, away_bytes, held_bytes, held_value_bytes, cached_bytes;
    size_t own_count, idle_count, away_count, held_count, cached_count;
    size_t idle_limit;
    size_t threshold;
    uint64_t fresh_count, recycled_count, probe_count;
    uint64_t prefix;
    uint32_t counter;
    /* fork.c */
    int token_fd, token_child_fd;
    uint64_t fork_epoch, freed_epoch;
    uint64_t token_lost;             /* up to this fork nothing is ever reused: it had no token */
    /* receive.c: live by-value segments per owner */
    struct { uint64_t prefix; uint32_t live; } *owners;
    size_t n_owners, cap_owners;
    PyObject *capacity_error, *segment_error, *gone_error;
} ndshare_heap_state;

extern ndshare_heap_state ndshare_heap;

/* heap.c: the lock, the lists, start */
int ndshare_heap_start(void);
void ndshare_heap_lock(void);
void ndshare_heap_unlock(void);
void ndshare_heap_unlock_in_child(void);
void ndshare_heap_doom(ndshare_segment *segment);  /* lock held; out of the tables already */
void ndshare_heap_redraw_prefix(void);
uint64_t ndshare_heap_next_uid(void);
PyObject *ndshare_error_raise(const ndshare_error *error);

static inline void
ndshare_link_init(ndshare_link *link)
{
    link->prev = link->next = link;
}

static inline void
ndshare_link_remove(ndshare_link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    ndshare_link_init(link);
}

static inline void
ndshare_link_push(ndshare_link *head, ndshare_link *link)
{
    link->next = head->next;
    link->prev = head;
    head->next->prev = link;
    head->next = link;
}

#define NDSHARE_OF(link, field) ((ndshare_segment *)((char *)(link) - offsetof(ndshare_segment, field)))

/* segment.c: one memfd, system calls only, no lock needed */
ndshare_segment *ndshare_segment_make(size_t size, bool populate, ndshare_error *error);
ndshare_segment *ndshare_segment_map(int fd, uint64_t uid, size_t size, int kind, ndshare_error *error);
ndshare_segment *ndshare_segment_seal(const char *const *parts, const size_t *sizes, size_t count,
                                      size_t size, ndshare_error *error);
int ndshare_segment_populate(ndshare_segment *segment, size_t offset, size_t nbytes, ndshare_error *error);
int ndshare_segment_reopen(int fd, ndshare_error *error);   /* own description, LOCK_SH */
bool ndshare_segment_probe(int fd);
void ndshare_segment_punch(ndshare_segment *segment, size_t offset, size_t nbytes);
void ndshare_segment_destroy(ndshare_segment *segment);

/* table.c: address -> segment and uid -> segment; lock held */
int ndshare_table_add(ndshare_segment *segment);
void ndshare_table_remove(ndshare_segment *segment);
ndshare_segment *ndshare_table_at(const void *address);
ndshare_segment *ndshare_table_uid(uint64_t uid, bool copy);

static inline bool
ndshare_table_may_hold(const void *address)
{
    return (uintptr_t)address >= atomic_load_explicit(&ndshare_heap.low, memory_order_relaxed)
        && (uintptr_t)address < atomic_load_explicit(&ndshare_heap.high, memory_order_relaxed);
}

/* pool.c: whole segments, recycled by size class */
size_t ndshare_pool_round(size_t nbytes, int *size_class);
ndshare_segment *ndshare_pool_take_idle(size_t nbytes, int kind);   /* lock held; NULL: none */
ndshare_segment *ndshare_pool_take(size_t nbytes, int kind, bool staged, bool in_handler, bool *fresh,
                                   ndshare_error *error);           /* no lock; counts.handles = 1 */
int ndshare_pool_reserve(size_t nbytes, ndshare_error *error);            /* no lock; see limits.c */
int ndshare_pool_enter(ndshare_segment *segment, ndshare_error *error);  /* no lock */
void ndshare_pool_give_back(ndshare_segment *segment);              /* lock held; nobody uses it */
void ndshare_pool_wake(ndshare_segment *segment);                   /* lock held; IDLE or AWAY -> LIVE */
void ndshare_pool_forget(ndshare_segment *segment, bool punch);     /* lock held; destroy */
void ndshare_pool_shrink(size_t idle_limit);                        /* lock held; all idle memory */
bool ndshare_pool_make_room(size_t count);                          /* lock held; descriptors */
size_t ndshare_pool_trim(void);                                     /* lock held; bytes given back */
size_t ndshare_pool_descriptor_limit(void);

/* slab.c: many small blocks in one segment */
ndshare_segment *ndshare_slab_take(size_t nbytes, char **address, bool *dirty, ndshare_error *error);
void ndshare_slab_give_back(ndshare_segment *slab, uint32_t index); /* lock held */
void ndshare_slab_trim_all(void);                                   /* lock held */
bool ndshare_slab_revive(ndshare_segment *slab, uint32_t index);    /* lock held */
void ndshare_slab_settle(ndshare_segment *slab);                     /* lock held */

/* counting.c: users and handles of a block; lock held */
ndshare_counts *ndshare_counting_of(ndshare_segment *segment, const void *address);
void ndshare_counting_settle(ndshare_segment *segment, const void *address);
size_t ndshare_counting_extent(ndshare_segment *segment, const void *address, char **start);

/* receive.c: segments of other processes */
void ndshare_receive_settle(ndshare_segment *segment);              /* lock held; nobody uses it */
void ndshare_receive_count(const ndshare_segment *segment, int change);
size_t ndshare_receive_trim(size_t bytes, size_t count);            /* lock held */
PyObject *ndshare_receive_attach(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_receive_should_copy_out(PyObject *module, PyObject *block);
PyObject *ndshare_receive_forget_owner(PyObject *module, PyObject *prefix);

/* limits.c: does it fit? */
int ndshare_limits_reserve(size_t nbytes, ndshare_error *error);
void ndshare_limits_settle(size_t nbytes);
size_t ndshare_limits_available(const char **limit);
size_t ndshare_limits_ram(void);
size_t ndshare_limits_mappings(void);

/* ledger.c: reservations of the processes of one pool */
size_t ndshare_ledger_reserve(size_t nbytes);   /* what the others have reserved */
void ndshare_ledger_settle(size_t nbytes);
size_t ndshare_ledger_own_use(size_t own_bytes);
void ndshare_ledger_publish(size_t own_bytes);
void ndshare_ledger_leave(void);
PyObject *ndshare_ledger_create(PyObject *module, PyObject *slots);
PyObject *ndshare_ledger_detach(PyObject *module, PyObject *ignored);
PyObject *ndshare_ledger_attach(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_ledger_clear(PyObject *module, PyObject *slot);

/* fork.c */
int ndshare_fork_start(void);
bool ndshare_fork_still_seen(uint64_t epoch);   /* lock held; a forked child may see memory of then */
void ndshare_fork_tidy(void);                   /* lock held */
void ndshare_fork_detach(ndshare_segment *segment);  /* lock held; remap copy-on-write, in place */

/* handler.c: NEP 49 */
int ndshare_handler_start(PyObject *module);
ndshare_segment *ndshare_handler_take_shared(size_t nbytes, char **address, bool *dirty, bool in_handler,
                                            ndshare_error *error);
PyObject *ndshare_handler_make(PyObject *module, PyObject *kind);
PyObject *ndshare_handler_set(PyObject *module, PyObject *capsule);
PyObject *ndshare_handler_current(PyObject *module, PyObject *unused);

/* adopt.c: arrays on blocks */
typedef struct ndshare_block ndshare_block;
PyObject *ndshare_adopt_array(ndshare_block *block, PyObject *dtype, PyObject *shape, PyObject *strides,
                              Py_ssize_t offset);

/* The address NumPy's next allocation in this thread returns: how memory is adopted by public means. */
extern _Thread_local void *ndshare_handler_next;
extern PyObject *ndshare_handler_adopting;

/* block.c */
struct ndshare_block {
    PyObject_HEAD
    ndshare_segment *segment;   /* NULL: released */
    char *start;
    size_t nbytes;
    uint64_t uid;
    size_t size, offset;
    int kind;
    bool whole;                 /* counted on the whole segment, not on one slot */
    bool keeper;                /* base of a read-only array: counts as a user */
    int exports;                /* buffers given out: no release under them */
};

extern PyTypeObject *ndshare_block_type;
int ndshare_block_start(PyObject *module);
PyObject *ndshare_block_new(ndshare_segment *segment, char *start, size_t nbytes, bool whole, bool keeper);

/* obtain.c: the ways to get one */
PyObject *ndshare_block_stage(PyObject *module, PyObject *nbytes);
PyObject *ndshare_block_allocate(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_block_of(PyObject *module, PyObject *array);
PyObject *ndshare_block_seal(PyObject *module, PyObject *buffer);
PyObject *ndshare_block_is_shared(PyObject *module, PyObject *array);

/* altered.c: was an array written to? */
PyObject *ndshare_altered(PyObject *module, PyObject *array);
PyObject *ndshare_detach(PyObject *module, PyObject *array);
PyObject *ndshare_digest(PyObject *module, PyObject *array);

/* copying.c */
PyObject *ndshare_copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* stats.c */
PyObject *ndshare_stats(PyObject *module, PyObject *unused);

#endif
