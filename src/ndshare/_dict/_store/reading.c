/* Reading: private copies without a lock, of one key or of several at one instant; waiting for newer values. */
#define NO_IMPORT_ARRAY
#include "reading.h"
#include "arguments.h"
#include "memory.h"
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define GATE_REST_S 0.0005          /* between two tries to pass the gates */
#define GIL_BYTES ((size_t)1 << 16) /* below, giving the GIL up costs more than the copy */
#define VALUE_SLICE_S 0.2    /* how long a value stays unnoticed whose writer died before it could wake anybody */

static void
copy_out(ndshare_store *store, Py_ssize_t key, const ndshare_current *from, PyObject *to)
{
    size_t nbytes = store->entries[key].nbytes;
    void *target = PyArray_DATA((PyArrayObject *)to);
    const char *source = ndshare_dict_data(store, key, from->slot);
    if (nbytes < GIL_BYTES) {
        memcpy(target, source, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    ndshare_slot_copy_out(target, source, nbytes);
    Py_END_ALLOW_THREADS
}

/* Where the values of several keys lie that were all current at one instant. EAGAIN: they change too fast. */
static int
look_at_all(const ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, ndshare_current *found, Py_ssize_t tries)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        if (ndshare_slot_look(store, keys[i], &found[i]) != 0) {
            return ENODATA;
        }
    }
    while (n > 1 && tries-- > 0) {
        bool same = true;
        for (Py_ssize_t i = 0; i < n; i++) {
            ndshare_current now;
            if (ndshare_slot_look(store, keys[i], &now) != 0) {
                return ENODATA;
            }
            same = same && now.stamp == found[i].stamp;
            found[i] = now;
        }
        if (same) {
            return 0;
        }
    }
    return n > 1 ? EAGAIN : 0;
}

/* Lock or unlock the gates of all keys, neighbours together: the kernel keeps a list of ranges. */
static int
gates(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, short kind)
{
    for (Py_ssize_t i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && keys[next] == keys[next - 1] + 1; next++) {
        }
        int error = ndshare_range_lock(store, NDSHARE_DICT_GATES + keys[i], next - i, kind);
        if (error != 0) {
            return error;
        }
    }
    return 0;
}

/* No writer that begins now writes before this is over; each that is at it publishes at most once. A slot may
 * be marked as begun meanwhile, by a writer that waits: its data are still what was found. EAGAIN: a writer looks
 * at one of the gates. */
static int
read_behind_gates(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, ndshare_current *found, PyObject **to)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&store->slow_lock);
    error = gates(store, keys, n, F_RDLCK);
    bool passed = error == 0;
    if (passed) {
        for (Py_ssize_t i = 0; i < n; i++) {
            atomic_store(&ndshare_dict_cell_of(store, keys[i])->slow, 1);
        }
        atomic_thread_fence(memory_order_seq_cst);
        error = look_at_all(store, keys, n, found, 2 * n + 16);
        error = error == EAGAIN ? ENODATA : error;  /* cannot be */
    }
    for (Py_ssize_t i = 0; error == 0 && i < n; i++) {
        ndshare_slot_copy_out(PyArray_DATA((PyArrayObject *)to[i]), ndshare_dict_data(store, keys[i], found[i].slot),
                              store->entries[keys[i]].nbytes);
    }
    gates(store, keys, n, F_UNLCK);
    pthread_mutex_unlock(&store->slow_lock);
    for (Py_ssize_t i = 0; passed && i < n; i++) {
        ndshare_gate_wake(ndshare_dict_cell_of(store, keys[i]));
    }
    Py_END_ALLOW_THREADS
    return error;
}

static int
read_once(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, ndshare_current *found, PyObject **to)
{
    int error = look_at_all(store, keys, n, found, 2);
    for (Py_ssize_t i = 0; error == 0 && i < n; i++) {
        copy_out(store, keys[i], &found[i], to[i]);
    }
    for (Py_ssize_t i = 0; error == 0 && i < n; i++) {
        if (!ndshare_slot_unchanged(store, keys[i], &found[i])) {
            error = EAGAIN;
        }
    }
    return error;
}

/* 0, or -1 with an error set. */
static int
read_all(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, ndshare_current *found, PyObject **to)
{
    int error = read_once(store, keys, n, found, to);
    while (error == EAGAIN) {
        error = read_once(store, keys, n, found, to);
        if (error == EAGAIN) {
            store->busy++;
            bool closed = store->fd < 0;
            error = closed ? 0 : read_behind_gates(store, keys, n, found, to);
            store->busy--;
            if (closed) {
                ndshare_store_open(store);
                return -1;
            }
        }
        _Atomic uint32_t never = 0;
        if (error == EAGAIN && ndshare_doze(&never, 0, GATE_REST_S) < 0) {
            return -1;
        }
    }
    return error == 0 ? 0 : ndshare_store_failed(keys[0], error);
}

PyObject *
ndshare_store_load(PyObject *self, PyObject *number)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = ndshare_store_key(store, number);
    if (key < 0) {
        return NULL;
    }
    ndshare_current found;
    PyObject *array = ndshare_memory_empty(store, key, false);
    if (array != NULL && read_all(store, &key, 1, &found, &array) < 0) {
        Py_CLEAR(array);
    }
    return array;
}

PyObject *
ndshare_store_snapshot(PyObject *self, PyObject *sequence)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t n;
    Py_ssize_t *keys = ndshare_store_keys(store, sequence, &n);
    if (keys == NULL) {
        return NULL;
    }
    ndshare_current *found = PyMem_Malloc(sizeof *found * (size_t)(n + 1));
    PyObject *list = PyList_New(n), *versions = PyList_New(n), *result = NULL;
    if (found == NULL || list == NULL || versions == NULL) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *array = ndshare_memory_empty(store, keys[i], false);
        if (array == NULL) {
            goto done;
        }
        PyList_SET_ITEM(list, i, array);
    }
    if (n > 0 && read_all(store, keys, n, found, PySequence_Fast_ITEMS(list)) < 0) {
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *version = PyLong_FromUnsignedLongLong(found[i].version);
        if (version == NULL) {
            goto done;
        }
        PyList_SET_ITEM(versions, i, version);
    }
    result = PyTuple_Pack(2, list, versions);
done:
    PyMem_Free(found);
    PyMem_Free(keys);
    Py_XDECREF(list);
    Py_XDECREF(versions);
    return result;
}

PyObject *
ndshare_store_version(PyObject *self, PyObject *number)
{
    ndshare_store *store = (ndshare_store *)self;
    ndshare_current current;
    if (ndshare_store_current(store, number, &current) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(current.version);
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
    double end = ndshare_deadline(timeout);
    for (;;) {
        ndshare_current current;
        uint32_t seen = atomic_load(&cell->wake);
        atomic_store(&cell->waiters, 1);
        if (ndshare_slot_look(store, key, &current) != 0) {
            ndshare_store_failed(key, ENODATA);
            return NULL;
        }
        if (current.version > version) {
            return PyLong_FromUnsignedLongLong(current.version);
        }
        double left = ndshare_left(end, VALUE_SLICE_S);
        if (left <= 0) {
            Py_RETURN_NONE;
        }
        if (ndshare_doze(&cell->wake, seen, left) < 0 || !ndshare_store_open(store)) {
            return NULL;
        }
    }
}
