/* What a SharedDict looks like in its file, and what a process keeps of it.
 *
 *   0        header, 128 bytes: magic, format, sizes, digest; from 64 on what changes: persistent, transactions
 *   128      directory: keys, dtypes, shapes as JSON. Never changed
 *   cells    one per key, 128 bytes each: everything about the key that changes
 *   data     two slots per key, aligned to 64 bytes
 *
 * A slot holds a value of its key. Who writes holds the lock of the key, and writes the slot that is not
 * current:
 *
 *   done = 0; begun = stamp                 from here on nobody takes the slot for a value
 *   the data
 *   version; seal; link = 0; done = stamp   the last store publishes, with release
 *
 * Stamps only grow and are never used twice. A reader takes the slot with the largest stamp, copies, and looks
 * whether `done` is still that stamp: then nobody has begun to write there meanwhile.
 *
 * SYNC POINT publish: `done` is stored with release by the writer, loaded with acquire by readers.
 *
 * Several keys are published by one store. Each slot's `link` names a transaction: a number, and the key that
 * leads it, the first of its keys. A slot with a link counts only while its leader's `commit` is that link.
 *
 *   per key: the data; link = X; done = stamp      not yet a value
 *   leader: commit = X                              now all of them are
 *   per key: link = 0; leader: settled = X          so that the leader may lead the next one
 *
 * Who finds commit != settled under the leader's lock settles first, for its predecessor has died. A number is
 * never used twice, so a transaction that died before its commit never counts.
 *
 * SYNC POINT commit: stored with release by the writer, loaded with acquire by readers.
 *
 * A reader that was overtaken twice holds the gate of the key (a shared lock on a byte of the file) and raises
 * `slow`. A writer that finds `slow` raised after its `done = 0` waits until it has the gate for itself, as long
 * as it may; then it gives the slot up, as one that died. Either the reader sees `done = 0` or the writer sees `slow`.
 *
 * Locking order: keys by index, then the gate; nobody waits for a key while holding a gate. Between dicts there
 * is no order: who waits for a key says so in the cells of those it holds, and looks whether it waits for itself.
 *
 * Within a process nothing here relies on the GIL: a key belongs to one thread at a time (`owner`), each thread knows
 * what it has, and who uses the descriptor is counted (`busy`) before it looks whether it may (`shut`).
 */
#ifndef NDSHARE_DICT_H
#define NDSHARE_DICT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PY_ARRAY_UNIQUE_SYMBOL ndshare_dict_array_api
#include <numpy/arrayobject.h>

#define NDSHARE_DICT_PERSISTENT 64   /* offset of a uint32 */
#define NDSHARE_DICT_TXN 72          /* offset of a uint64 */
#define NDSHARE_DICT_CELL 128
#define NDSHARE_DICT_HANDLER "ndshare_slot"       /* name of the handlers of lending.c */
#define NDSHARE_DICT_MAX_KEYS (1 << 20)
#define NDSHARE_DICT_MOST (UINT64_C(1) << 43)      /* stamps and transactions: nobody writes that often */
#define NDSHARE_DICT_LARGE ((size_t)256 << 10)    /* from here on, slots are whole pages */
#define NDSHARE_DICT_LOCKS (INT64_C(1) << 60)                            /* byte of the lock of key 0 */
#define NDSHARE_DICT_GATES (NDSHARE_DICT_LOCKS + (INT64_C(1) << 24))     /* byte of the gate of key 0 */

typedef struct {
    _Atomic uint64_t begun, done, link, version;
} ndshare_slot;

typedef struct {
    _Atomic uint64_t commit, settled;
    ndshare_slot slot[2];
    _Atomic uint64_t seal[2];                 /* of stamp and version, to find damage when attaching */
    _Atomic uint32_t wake, waiters;           /* futex: grows when waiters are woken */
    _Atomic uint32_t freed, lock_waiters;     /* the same, of the lock */
    _Atomic uint32_t holder;                  /* pid of who has the lock, for messages */
    _Atomic uint32_t slow;                    /* 1: somebody reads behind the gate. 2: and a writer sleeps on this */
    _Atomic uint64_t wanted;                  /* what who has the lock waits for: see holders.c. 0: nothing */
} ndshare_dict_cell;

_Static_assert(sizeof(ndshare_dict_cell) <= NDSHARE_DICT_CELL && ATOMIC_LLONG_LOCK_FREE == 2,
               "a cell has its size, and atomics between processes use no lock inside one of them");

struct ndshare_store;

/* What a process knows of a key. From `writing` on only the thread that has the lock touches it. */
typedef struct ndshare_entry {
    struct ndshare_store *store;
    size_t offset, nbytes, stride;
    PyArray_Descr *dtype;
    int ndim;
    npy_intp *shape;
    _Atomic uint64_t owner;  /* thread of this process that has the lock, or is about to take it; 0: none */
    int writing;             /* slot that the owner has begun, or -1 */
    uint64_t stamp;          /* and its stamp */
    PyObject *window[2];     /* of the slots, and which block goes there: see lending.c */
    int turn;
    struct ndshare_entry *next;  /* that the same thread has */
} ndshare_entry;

typedef struct ndshare_store {
    PyObject_HEAD
    PyObject *weakrefs;
    _Atomic int fd;              /* -1: closed */
    _Atomic bool shut;           /* no new operation may begin */
    _Atomic Py_ssize_t busy;     /* locks, and operations with the descriptor, of this process that are under way */
    char *base;
    size_t size, cells;
    Py_ssize_t count;
    ndshare_entry *entries;
    uint32_t pid;
    pthread_mutex_t slow_lock;   /* slow readers of this process, and writers that look for slow readers */
    uint64_t device, inode;
    PyObject *fitting;           /* called with key and object: makes an array that can be stored, or raises */
    struct ndshare_store *next, *previous;   /* all of this process: see holders.c */
} ndshare_store;

typedef struct {
    PyTypeObject *store_type, *view_type;
} ndshare_dict_state;

extern struct PyModuleDef ndshare_dict_definition;

static inline ndshare_dict_cell *
ndshare_dict_cell_of(const ndshare_store *store, Py_ssize_t key)
{
    return (ndshare_dict_cell *)(store->base + store->cells + (size_t)key * NDSHARE_DICT_CELL);
}

static inline char *
ndshare_dict_data(const ndshare_store *store, Py_ssize_t key, int slot)
{
    return store->base + store->entries[key].offset + (size_t)slot * store->entries[key].stride;
}

#endif
