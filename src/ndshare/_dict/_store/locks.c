/* The lock of a key.
 *
 * The lock is a byte-range lock of the open file description, which the kernel frees when the last process
 * that has the description ends. Threads of one process share the description: `owner` keeps them apart, who has set
 * it may ask the kernel.
 * There is no timed lock of this kind, so who waits sleeps on a futex that the holder advances when it frees the lock,
 * for a slice of time at most: a holder that dies advances nothing.
 */
#define NO_IMPORT_ARRAY
#include "locks.h"
#include "arguments.h"
#include "holders.h"
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOCK_SLICE_S 0.02    /* how long a lock may stay unnoticed after its holder died */
#define CYCLE_SLICES 2       /* seen that often in a row, it is no state that passes */
#define LATE_CYCLE_SLICES 50 /* if nobody else in the cycle has seen it: some have not all dicts of it */

/* Whether this thread has the lock; else an error. */
bool
ndshare_lock_owned(const ndshare_store *store, Py_ssize_t key)
{
    if (store->entries[key].owner == ndshare_thread()) {
        return true;
    }
    PyErr_Format(PyExc_RuntimeError, "key number %zd is to be written by a thread that does not have its lock", key);
    return false;
}

/* 0: taken, EAGAIN: somebody else has it, ECANCELED: the dict is closed, or another errno */
static int
try_lock(ndshare_store *store, Py_ssize_t key)
{
    ndshare_entry *entry = &store->entries[key];
    uint64_t nobody = 0;
    if (!atomic_compare_exchange_strong(&entry->owner, &nobody, ndshare_thread())) {
        return EAGAIN;
    }
    store->busy++;  /* SYNC POINT close: counted first, then looked. Who closes does the reverse */
    int error = store->shut ? ECANCELED : ndshare_range_lock(store, NDSHARE_DICT_LOCKS + key, 1, F_WRLCK);
    if (error != 0) {
        store->busy--;
        entry->owner = 0;
        return error;
    }
    entry->writing = -1;
    ndshare_holders_add(entry);
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    atomic_store_explicit(&cell->wanted, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->holder, store->pid, memory_order_relaxed);
    ndshare_dict_step();
    return 0;
}

/* Free the lock of a key, if this thread has it. The caller has a reference to the store. */
void
ndshare_lock_free(ndshare_store *store, Py_ssize_t key)
{
    ndshare_entry *entry = &store->entries[key];
    if (entry->owner != ndshare_thread()) {
        return;
    }
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    ndshare_dict_step();
    entry->writing = -1;
    ndshare_holders_remove(entry);
    atomic_store_explicit(&cell->holder, 0, memory_order_relaxed);
    ndshare_range_lock(store, NDSHARE_DICT_LOCKS + key, 1, F_UNLCK);
    entry->owner = 0;  /* only now: the next thread asks the kernel with the same description */
    if (atomic_exchange(&cell->lock_waiters, 0) != 0) {
        atomic_fetch_add(&cell->freed, 1);  /* after the exchange: see notify() */
        syscall(SYS_futex, &cell->freed, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
    store->busy--;
}

/* 0: taken, EAGAIN: not in time, EDEADLK: its holder waits for this thread, -1: Python error set */
static int
lock_one(ndshare_store *store, Py_ssize_t key, double end)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    int error = try_lock(store, key), seen_cycles = 0;
    bool nested = error == EAGAIN && ndshare_holders_first() != NULL;
    while (error == EAGAIN) {
        double left = ndshare_left(end, LOCK_SLICE_S);
        if (left <= 0) {
            break;
        }
        uint32_t seen = atomic_load(&cell->freed);
        atomic_store(&cell->lock_waiters, 1);
        if (nested) {
            ndshare_holders_want(store, key);
        }
        error = try_lock(store, key);
        if (error == EAGAIN) {
            error = ndshare_doze(&cell->freed, seen, left) < 0 ? -1 : try_lock(store, key);
        }
        if (error == 0) {
            atomic_store(&cell->lock_waiters, 1);  /* others may be waiting still: wake one of them later */
        }
        if (error == EAGAIN && nested) {
            uint64_t link = ndshare_holders_cycle(store, key);
            seen_cycles = link == 0 ? 0 : seen_cycles + 1;
            if (seen_cycles >= (ndshare_holders_descends(store, key, link) ? CYCLE_SLICES : LATE_CYCLE_SLICES)) {
                error = EDEADLK;
            }
        }
    }
    if (nested) {
        ndshare_holders_want(store, -1);
    }
    if (error <= 0 || error == EAGAIN || error == EDEADLK) {
        return error;
    }
    if (error != ECANCELED || ndshare_store_open(store)) {
        ndshare_store_failed(key, error);
    }
    return -1;
}

/* Why a key cannot be had: (reason, key, pid of the holder, keys of this dict that this thread has). */
PyObject *
ndshare_lock_failure(const ndshare_store *store, const char *reason, Py_ssize_t key)
{
    uint32_t holder = atomic_load(&ndshare_dict_cell_of(store, key)->holder);
    return Py_BuildValue("(snIN)", reason, key, holder, ndshare_holders_keys(store, true));
}

/* None, or why not. The keys ascend. */
PyObject *
ndshare_lock_keys(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, double end)
{
    if (n > 0 && keys[0] <= ndshare_holders_last(store)) {
        return ndshare_lock_failure(store, "order", keys[0]);
    }
    Py_ssize_t taken = 0;
    int how = 0;
    while (taken < n && (how = lock_one(store, keys[taken], end)) == 0) {
        taken++;
    }
    if (taken == n) {
        Py_RETURN_NONE;
    }
    PyObject *result = how < 0 ? NULL : ndshare_lock_failure(store, how == EDEADLK ? "deadlock" : "timeout", keys[taken]);
    while (taken > 0) {
        ndshare_lock_free(store, keys[--taken]);
    }
    return result;
}

/* In the child of a fork: nobody here has anything. */
void
ndshare_lock_forget(ndshare_store *store)
{
    for (Py_ssize_t key = 0; key < store->count; key++) {
        ndshare_holders_remove(&store->entries[key]);
        store->entries[key].owner = 0;
        store->entries[key].writing = -1;
    }
    store->busy = 0;
    store->pid = (uint32_t)getpid();
    pthread_mutex_init(&store->slow_lock, NULL);
}
