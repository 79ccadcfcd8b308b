/* The lock of a key, the gate of a key, and waiting for a new value.
 *
 * The lock is a byte-range lock of the open file description, which the kernel frees when the last process
 * that has the description ends. Threads of one process share the description: `owner` keeps them apart.
 * There is no timed lock of this kind, so who waits sleeps on a futex that the holder advances when it frees the lock,
 * for a slice of time at most: a holder that dies advances nothing.
 */
#define NO_IMPORT_ARRAY
#include "dict.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <pythread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LOCK_SLICE_S 0.02    /* how long a lock may stay unnoticed after its holder died */
#define VALUE_SLICE_S 0.2    /* the same for a value whose writer died before it could wake anybody */

int
ndshare_range_lock(const ndshare_store *store, int64_t start, int64_t length, short kind, bool wait)
{
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    for (;;) {
        if (fcntl(store->fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &range) == 0) {
            return 0;
        }
        if (errno != EINTR) {
            return errno;
        }
    }
}

/* Wait until the slow readers of a key that are at it have their copy. */
int
ndshare_gate_wait(ndshare_store *store, Py_ssize_t key)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&store->slow_lock);
    error = ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_WRLCK, true);
    if (error == 0) {
        atomic_store(&ndshare_dict_cell_of(store, key)->slow, 0);
        ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_UNLCK, false);
    }
    pthread_mutex_unlock(&store->slow_lock);
    Py_END_ALLOW_THREADS
    return error;
}

static double
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Sleep while `*word` is `seen`, without the GIL. Returns -1 with an error set when a signal handler raised. */
static int
doze(_Atomic uint32_t *word, uint32_t seen, double seconds)
{
    struct timespec limit = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    Py_BEGIN_ALLOW_THREADS
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

bool
ndshare_store_owned(ndshare_store *store, Py_ssize_t key)
{
    if (store->entries[key].owner == PyThread_get_thread_ident()) {
        return true;
    }
    PyErr_Format(PyExc_RuntimeError, "key number %zd is to be written by a thread that does not have its lock", key);
    return false;
}

/* 0: taken, EAGAIN: somebody else has it, or another errno */
static int
try_lock(ndshare_store *store, Py_ssize_t key)
{
    ndshare_entry *entry = &store->entries[key];
    if (entry->owner != 0) {
        return EAGAIN;
    }
    int error = ndshare_range_lock(store, NDSHARE_DICT_LOCKS + key, 1, F_WRLCK, false);
    if (error != 0) {
        return error == EACCES ? EAGAIN : error;
    }
    entry->owner = PyThread_get_thread_ident();
    entry->writing = -1;
    atomic_store_explicit(&ndshare_dict_cell_of(store, key)->holder, store->pid, memory_order_relaxed);
    store->busy++;
    ndshare_dict_step();
    return 0;
}

static void
unlock(ndshare_store *store, Py_ssize_t key)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    ndshare_dict_step();
    store->entries[key].owner = 0;
    store->entries[key].writing = -1;
    store->busy--;
    atomic_store_explicit(&cell->holder, 0, memory_order_relaxed);
    ndshare_range_lock(store, NDSHARE_DICT_LOCKS + key, 1, F_UNLCK, false);
    if (atomic_exchange(&cell->lock_waiters, 0) != 0) {
        atomic_fetch_add(&cell->freed, 1);  /* after the exchange: see notify() */
        syscall(SYS_futex, &cell->freed, FUTEX_WAKE, 1, NULL, NULL, 0);
    }
}

/* 0: taken, EAGAIN: not in time, -1: Python error set */
static int
lock_one(ndshare_store *store, Py_ssize_t key, double end)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    int error = try_lock(store, key);
    while (error == EAGAIN) {
        double left = end < 0 ? LOCK_SLICE_S : end - monotonic();
        if (left <= 0) {
            return EAGAIN;
        }
        uint32_t seen = atomic_load(&cell->freed);
        atomic_store(&cell->lock_waiters, 1);
        error = try_lock(store, key);
        if (error == EAGAIN) {
            /* Counted as busy, so that nobody closes the file under it. */
            store->busy++;
            int raised = doze(&cell->freed, seen, left < LOCK_SLICE_S ? left : LOCK_SLICE_S);
            store->busy--;
            if (raised < 0 || !ndshare_store_open(store)) {
                return -1;
            }
            error = try_lock(store, key);
        }
        if (error == 0) {
            atomic_store(&cell->lock_waiters, 1);  /* others may be waiting still: wake one of them later */
        }
    }
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

PyObject *
ndshare_store_acquire(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "acquire takes 2 arguments, got %zd", nargs);
    }
    double timeout = PyFloat_AsDouble(args[1]);
    if ((timeout == -1 && PyErr_Occurred()) || !ndshare_store_open(store)) {
        return NULL;
    }
    Py_ssize_t n;
    Py_ssize_t *keys = ndshare_store_keys(store, args[0], &n);
    if (keys == NULL) {
        return NULL;
    }
    double end = timeout < 0 ? -1 : monotonic() + timeout;
    PyObject *result = NULL;
    Py_ssize_t taken = 0;
    int how = 0;
    while (taken < n && (how = lock_one(store, keys[taken], end)) == 0) {
        taken++;
    }
    if (taken == n) {
        result = Py_NewRef(Py_None);
    }
    else {
        uint32_t holder = atomic_load(&ndshare_dict_cell_of(store, keys[taken])->holder);
        if (how == EAGAIN) {
            result = Py_BuildValue("(nI)", keys[taken], holder);
        }
        while (taken > 0) {
            unlock(store, keys[--taken]);
        }
    }
    PyMem_Free(keys);
    return result;
}

PyObject *
ndshare_store_release(PyObject *self, PyObject *sequence)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t n;
    Py_ssize_t *keys = ndshare_store_keys(store, sequence, &n);
    if (keys == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = n - 1; i >= 0; i--) {
        if (store->entries[keys[i]].owner == PyThread_get_thread_ident()) {
            unlock(store, keys[i]);
        }
    }
    PyMem_Free(keys);
    Py_RETURN_NONE;
}

/* In the child of a fork: nobody here has anything. */
void
ndshare_store_forget(ndshare_store *store)
{
    for (Py_ssize_t key = 0; key < store->count; key++) {
        store->entries[key].owner = 0;
        store->entries[key].writing = -1;
    }
    store->busy = 0;
    store->pid = (uint32_t)getpid();
    pthread_mutex_init(&store->slow_lock, NULL);
}

PyObject *
ndshare_store_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "wait takes 3 arguments, got %zd", nargs);
    }
    Py_ssize_t key = ndshare_store_key(store, args[0]);
    unsigned long long version = PyLong_AsUnsignedLongLong(args[1]);
    double timeout = PyFloat_AsDouble(args[2]);
    if (key < 0 || PyErr_Occurred()) {
        return NULL;
    }
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    double end = timeout < 0 ? -1 : monotonic() + timeout;
    for (;;) {
        ndshare_current current;
        uint32_t seen = atomic_load(&cell->wake);
        atomic_store(&cell->waiters, 1);
        if (ndshare_slot_look(store, key, &current) != 0) {
            ndshare_store_damaged(key);
            return NULL;
        }
        if (current.version > version) {
            return PyLong_FromUnsignedLongLong(current.version);
        }
        double left = end < 0 ? VALUE_SLICE_S : end - monotonic();
        if (left <= 0) {
            Py_RETURN_NONE;
        }
        store->busy++;
        int raised = doze(&cell->wake, seen, left < VALUE_SLICE_S ? left : VALUE_SLICE_S);
        store->busy--;
        if (raised < 0 || !ndshare_store_open(store)) {
            return NULL;
        }
    }
}
