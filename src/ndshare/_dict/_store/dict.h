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
 * `slow`. A writer that finds `slow` raised after its `done = 0` waits until it has the gate for itself. Either
 * the reader sees `done = 0` or the writer sees `slow`.
 *
 * Locking order: keys by index, then the gate; nobody waits for a key while holding a gate. Between dicts there
 * is no order: who waits for a key says so in the cells of those it holds, and looks whether it waits for itself.
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
    _Atomic uint32_t holder, slow;            /* pid of who has the lock, for messages */
    _Atomic uint64_t wanted;                  /* what who has the lock waits for: see holders.c. 0: nothing */
} ndshare_dict_cell;

_Static_assert(sizeof(ndshare_dict_cell) <= NDSHARE_DICT_CELL && ATOMIC_LLONG_LOCK_FREE == 2,
               "a cell has its size, and atomics between processes use no lock inside one of them");

typedef struct {
    size_t offset, nbytes, stride;
    PyArray_Descr *dtype;
    int ndim;
    npy_intp *shape;
    unsigned long owner;     /* thread of this process that has the lock, 0: none */
    int writing;             /* slot that the owner has begun, or -1 */
    uint64_t stamp;          /* and its stamp */
    PyObject *window[2];     /* of the slots: see lending.c */
} ndshare_entry;

typedef struct {
    unsigned long thread;
    Py_ssize_t key;
} ndshare_held;

typedef struct ndshare_store {
    PyObject_HEAD
    PyObject *weakrefs;
    int fd;                  /* -1: closed */
    bool shut;               /* no new operation may begin */
    Py_ssize_t busy;         /* locks and operations of this process that are under way */
    char *base;
    size_t size, cells;
    Py_ssize_t count;
    ndshare_entry *entries;
    uint32_t pid;
    pthread_mutex_t slow_lock;   /* slow readers of this process, and writers that wait for slow readers */
    uint64_t device, inode;
    PyObject *fitting;       /* called with key and object: makes an array that can be stored, or raises */
    ndshare_held *held;      /* keys that threads of this process have locked */
    Py_ssize_t held_count, held_room;
    struct ndshare_store *next, *previous;   /* all of this process */
} ndshare_store;

typedef struct {
    int slot;
    uint64_t stamp, version;
} ndshare_current;

typedef struct {
    PyTypeObject *store_type, *view_type;
} ndshare_dict_state;

extern PyType_Spec ndshare_store_spec, ndshare_view_spec, ndshare_hold_spec;
extern struct PyModuleDef ndshare_dict_definition;
extern _Atomic long ndshare_dict_countdown;
extern PyDataMemAllocator ndshare_memory_blocks;

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

/* A place where tests let the process be killed; costs one load otherwise. */
void ndshare_dict_step_taken(void);
static inline void
ndshare_dict_step(void)
{
    if (atomic_load_explicit(&ndshare_dict_countdown, memory_order_relaxed) >= 0) {
        ndshare_dict_step_taken();
    }
}

/* slots.c */
int ndshare_slot_look(const ndshare_store *store, Py_ssize_t key, ndshare_current *out);
bool ndshare_slot_unchanged(const ndshare_store *store, Py_ssize_t key, const ndshare_current *seen);
int ndshare_slot_begin(ndshare_store *store, Py_ssize_t key, ndshare_current *current);
void ndshare_slot_publish(ndshare_store *store, Py_ssize_t key);
int ndshare_slot_commit(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n);
void ndshare_slot_fill(ndshare_store *store, Py_ssize_t key, const void *source);
uint64_t ndshare_slot_seal(Py_ssize_t key, uint64_t stamp, uint64_t version);

/* copy.c */
void ndshare_dict_copy(void *to, const void *from, size_t nbytes);
void ndshare_dict_copy_out(void *to, const void *from, size_t nbytes);

/* keylock.c */
int ndshare_range_lock(const ndshare_store *store, int64_t start, int64_t length, short kind, bool wait);
int ndshare_gate_wait(ndshare_store *store, Py_ssize_t key);
PyObject *ndshare_lock_keys(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, double timeout);
void ndshare_lock_free(ndshare_store *store, Py_ssize_t key);
PyObject *ndshare_store_acquire(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_release(PyObject *self, PyObject *keys);
bool ndshare_store_owned(ndshare_store *store, Py_ssize_t key);
void ndshare_store_forget(ndshare_store *store);

/* holders.c */
int ndshare_holders_join(ndshare_store *store, int fd);
void ndshare_holders_leave(ndshare_store *store);
int ndshare_holders_add(ndshare_store *store, Py_ssize_t key);
void ndshare_holders_remove(ndshare_store *store, Py_ssize_t key);
bool ndshare_holders_any(void);
Py_ssize_t ndshare_holders_last(const ndshare_store *store);
void ndshare_holders_want(const ndshare_store *store, Py_ssize_t key);
uint64_t ndshare_holders_cycle(const ndshare_store *store, Py_ssize_t key);
bool ndshare_holders_descends(const ndshare_store *store, Py_ssize_t key, uint64_t link);
PyObject *ndshare_holders_keys(const ndshare_store *store, bool anywhere);
PyObject *ndshare_store_held(PyObject *self, PyObject *unused);

/* waiting.c */
double ndshare_monotonic(void);
int ndshare_doze(_Atomic uint32_t *word, uint32_t seen, double seconds);
PyObject *ndshare_store_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* entry.c */
size_t ndshare_entry_take(ndshare_entry *entry, PyObject *item, size_t offset);
void ndshare_entry_drop(ndshare_entry *entry);

/* store.c */
bool ndshare_store_open(ndshare_store *store);
Py_ssize_t ndshare_store_key(ndshare_store *store, PyObject *number);
Py_ssize_t ndshare_store_current(ndshare_store *store, PyObject *number, ndshare_current *current);
Py_ssize_t *ndshare_store_keys(ndshare_store *store, PyObject *sequence, Py_ssize_t *n);
int ndshare_store_damaged(Py_ssize_t key);

/* check.c */
PyObject *ndshare_store_check(PyObject *self, PyObject *unused);

/* reading.c */
PyObject *ndshare_store_load(PyObject *self, PyObject *number);
PyObject *ndshare_store_snapshot(PyObject *self, PyObject *keys);
PyObject *ndshare_store_version(PyObject *self, PyObject *number);

/* writing.c */
bool ndshare_store_fitting(const ndshare_entry *entry, PyObject *object);
int ndshare_store_start(ndshare_store *store, Py_ssize_t key, ndshare_current *current);
void ndshare_store_copy_in(ndshare_store *store, Py_ssize_t key, int slot, const void *source);
PyObject *ndshare_store_fits(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_begin(PyObject *self, PyObject *number);

/* updating.c */
PyObject *ndshare_store_update(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

/* memory.c */
int ndshare_memory_configure(PyObject *capsule);
PyObject *ndshare_memory_recycled(void);
PyObject *ndshare_memory_set(PyObject *handler);
int ndshare_memory_restore(PyObject *before);
PyObject *ndshare_store_empty(ndshare_store *store, Py_ssize_t key);

/* lending.c */
PyObject *ndshare_lending_open(ndshare_store *store, Py_ssize_t key, int slot);
int ndshare_lending_close(PyObject *window, PyObject *value);
void ndshare_lending_drop(ndshare_store *store, Py_ssize_t key, PyObject *window);
PyObject *ndshare_store_recall(PyObject *self, PyObject *unused);

/* view.c */
PyObject *ndshare_store_array(PyObject *self, Py_ssize_t key, const ndshare_current *where, bool writable);
PyObject *ndshare_store_view(PyObject *self, PyObject *number);
PyObject *ndshare_view_intact(PyObject *module, PyObject *array);

#endif
