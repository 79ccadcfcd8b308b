/* What callers of a Store pass, checked; and what is said if something fails. */
#define NO_IMPORT_ARRAY
#include "arguments.h"

#include <errno.h>

bool
ndshare_store_open(const ndshare_store *store)
{
    if (store->shut) {
        PyErr_SetString(PyExc_ValueError, "the SharedDict is closed; attach to it again by its name");
        return false;
    }
    return true;
}

/* Raise for an errno; returns -1. ENODATA: what is in the cells of the key cannot be. */
int
ndshare_store_failed(Py_ssize_t key, int error)
{
    if (error == ENODATA) {
        PyErr_Format(PyExc_LookupError, "key number %zd has no value: another program has damaged the file", key);
    }
    else {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return -1;
}

Py_ssize_t
ndshare_store_key(const ndshare_store *store, PyObject *number)
{
    Py_ssize_t key = PyLong_AsSsize_t(number);
    if ((key == -1 && PyErr_Occurred()) || !ndshare_store_open(store)) {
        return -1;
    }
    if (key < 0 || key >= store->count) {
        PyErr_Format(PyExc_IndexError, "key number %zd of %zd", key, store->count);
        return -1;
    }
    return key;
}

/* The number of a key, and what is current there. */
Py_ssize_t
ndshare_store_current(const ndshare_store *store, PyObject *number, ndshare_current *current)
{
    Py_ssize_t key = ndshare_store_key(store, number);
    if (key >= 0 && ndshare_slot_look(store, key, current) != 0) {
        return ndshare_store_failed(key, ENODATA);
    }
    return key;
}

/* The numbers of a sequence. A closed store is no reason to refuse: locks must be given back. */
Py_ssize_t *
ndshare_store_keys(const ndshare_store *store, PyObject *sequence, Py_ssize_t *n)
{
    PyObject *fast = PySequence_Tuple(sequence);
    if (fast == NULL) {
        return NULL;
    }
    *n = PyTuple_GET_SIZE(fast);
    Py_ssize_t *keys = PyMem_Malloc(sizeof *keys * (size_t)(*n + 1));
    if (keys == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; keys != NULL && i < *n; i++) {
        keys[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(fast, i));
        if (store->fd < 0 || (keys[i] == -1 && PyErr_Occurred()) || keys[i] < 0 || keys[i] >= store->count) {
            if (!PyErr_Occurred() && (store->fd >= 0 || ndshare_store_open(store))) {
                PyErr_Format(PyExc_IndexError, "key number %zd of %zd", keys[i], store->count);
            }
            PyMem_Free(keys);
            keys = NULL;
        }
    }
    Py_DECREF(fast);
    return keys;
}

/* Whether an object is an array that can be copied into the slot of a key byte by byte. */
bool
ndshare_store_fitting(const ndshare_entry *entry, PyObject *object)
{
    if (!PyArray_Check(object)) {
        return false;
    }
    PyArrayObject *array = (PyArrayObject *)object;
    return PyArray_NDIM(array) == entry->ndim && PyArray_IS_C_CONTIGUOUS(array)
        && PyArray_CompareLists(PyArray_DIMS(array), entry->shape, entry->ndim)
        && (PyArray_DESCR(array) == entry->dtype
            || (PyArray_ISNOTSWAPPED(array) && PyArray_DESCR(array)->type_num == entry->dtype->type_num
                && PyTypeNum_ISNUMBER(entry->dtype->type_num) && PyArray_EquivTypes(PyArray_DESCR(array), entry->dtype)));
}
