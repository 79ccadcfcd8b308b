/* Writing, by a thread that has the locks of the keys; `update` is lock, call, publish, without a way through Python. */
#define NO_IMPORT_ARRAY
#include "writing.h"
#include "arguments.h"
#include "lending.h"
#include "locks.h"
#include "memory.h"
#include "reading.h"
#include "slots.h"
#include "view.h"
#include "waiting.h"

#include <errno.h>
#include <string.h>

#define GIL_BYTES ((size_t)1 << 16)
#define PLAIN_COPY (NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY)

PyObject *
ndshare_store_fits(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = nargs == 2 ? ndshare_store_key(store, args[0]) : -1;
    if (key < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "fits takes 2 arguments, got %zd", nargs);
    }
    return PyBool_FromLong(ndshare_store_fitting(&store->entries[key], args[1]));
}

/* Copy a value into the slot that was begun. */
void
ndshare_writing_copy(ndshare_store *store, Py_ssize_t key, const void *source)
{
    size_t nbytes = store->entries[key].nbytes;
    void *target = ndshare_dict_data(store, key, store->entries[key].writing);
    if (nbytes < GIL_BYTES) {
        ndshare_slot_copy_in(target, source, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    ndshare_slot_copy_in(target, source, nbytes);
    Py_END_ALLOW_THREADS
}

/* Begin the idle slot of a key whose lock the thread has. None, or why not as `ndshare_lock_keys`, or NULL. */
PyObject *
ndshare_writing_start(ndshare_store *store, Py_ssize_t key, double end, ndshare_current *current)
{
    if (!ndshare_lock_owned(store, key)) {
        return NULL;
    }
    int error = ndshare_slot_begin(store, key, end, current);
    if (error == 0) {
        Py_RETURN_NONE;
    }
    if (error == ETIMEDOUT) {
        return ndshare_lock_failure(store, "readers", key);
    }
    if (error > 0) {
        ndshare_store_failed(key, error);
    }
    return NULL;
}

PyObject *
ndshare_store_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = nargs == 2 ? ndshare_store_key(store, args[0]) : -1;
    if (key < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "fill takes 2 arguments, got %zd", nargs);
    }
    if (!ndshare_store_fitting(&store->entries[key], args[1])) {
        PyErr_SetString(PyExc_TypeError, "the array has not the dtype and shape of its key, or is not contiguous");
        return NULL;
    }
    ndshare_slot_fill(store, key, PyArray_DATA((PyArrayObject *)args[1]));
    Py_RETURN_NONE;
}

/* Whether nobody else can have the memory of what a function returned. */
static bool
is_own(PyObject *value)
{
    return PyArray_CheckExact(value) && Py_REFCNT(value) == 1 && PyArray_BASE((PyArrayObject *)value) == NULL;
}

/* What the caller may keep of the arrays in a list, of which nobody else knows the list: each as it is, or a copy if it
 * is what was given to a function, or if somebody has it, or a part of it, besides the list. */
PyObject *
ndshare_writing_own(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1])
        || PyList_GET_SIZE(args[0]) != PyList_GET_SIZE(args[1])) {
        PyErr_SetString(PyExc_TypeError, "own takes two lists of one length");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++) {
        PyObject *array = PyList_GET_ITEM(args[0], i);
        if (array == PyList_GET_ITEM(args[1], i) || !is_own(array)) {
            PyObject *copy = PyArray_FromAny(array, NULL, 0, 0, PLAIN_COPY, NULL);
            if (copy == NULL || PyList_SetItem(args[0], i, copy) < 0) {
                return NULL;
            }
        }
    }
    Py_RETURN_NONE;
}

/* Call the function; the result lies in the slot that was begun (`*here`), or somewhere else. */
static PyObject *
call(ndshare_store *store, Py_ssize_t key, PyObject *given, PyObject *func, bool copy, bool lend, bool *here)
{
    const ndshare_entry *entry = &store->entries[key];
    /* The copy and what the function makes have one size each time: recycled blocks instead of fresh pages. */
    PyObject *memory = lend ? ndshare_memory_recycled() : NULL;
    PyObject *before = ndshare_memory_set(memory);
    if (memory != NULL && before == NULL) {
        return NULL;
    }
    PyObject *number = PyLong_FromSsize_t(key), *value = NULL, *window = NULL;
    PyObject *old = number == NULL ? NULL
                  : copy ? ndshare_store_load((PyObject *)store, number)
                         : ndshare_store_view((PyObject *)store, number);
    Py_XDECREF(number);
    bool failed = false;
    if (old != NULL && memory != NULL) {
        window = ndshare_lending_open(store, key, entry->writing);
        if (window != NULL) {
            Py_INCREF(window);
            PyObject *ours = PyDataMem_SetHandler(window);
            failed = ours == NULL;
            Py_XDECREF(ours);
        }
    }
    if (old != NULL && !failed) {
        PyObject *words[] = {NULL, given, old};
        value = PyObject_Vectorcall(func, words + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(old);
    if (ndshare_memory_restore(before) < 0) {
        Py_CLEAR(value);
    }
    if (window != NULL) {
        /* Bytes of another dtype, shape or order may lie there; then they are cast as what lies elsewhere. */
        bool fits = value != NULL && ndshare_store_fitting(entry, value);
        int how = ndshare_lending_close(store, key, window, fits ? value : NULL);
        ndshare_lending_drop(store, key, window);
        Py_DECREF(window);
        *here = how > 0;
        if (how < 0 && value != NULL) {
            Py_CLEAR(value);
            PyErr_NoMemory();
        }
    }
    return value;
}

/* What the caller of `update` gets. Steals `value`. */
static PyObject *
result_of(ndshare_store *store, Py_ssize_t key, PyObject *given, PyObject *value, bool copy, bool here,
          const ndshare_current *now)
{
    PyObject *result;
    if (!copy) {
        result = ndshare_view_array((PyObject *)store, key, now);
    }
    else if (!here && value != given && is_own(value)) {
        return value;
    }
    else {
        result = here ? ndshare_memory_empty(store, key, false) : PyArray_FromAny(value, NULL, 0, 0, PLAIN_COPY, NULL);
        if (result != NULL && here) {
            size_t nbytes = store->entries[key].nbytes;
            void *to = PyArray_DATA((PyArrayObject *)result), *from = ndshare_dict_data(store, key, now->slot);
            Py_BEGIN_ALLOW_THREADS
            ndshare_slot_copy_out(to, from, nbytes);
            Py_END_ALLOW_THREADS
        }
    }
    Py_DECREF(value);
    return result;
}

/* What a function returned as an array that can be copied byte by byte. Steals `value`. */
static PyObject *
fitted(ndshare_store *store, Py_ssize_t key, PyObject *value)
{
    const ndshare_entry *entry = &store->entries[key];
    if (!ndshare_store_fitting(entry, value)) {
        PyObject *fitting = Py_XNewRef(store->fitting);
        PyObject *cast = fitting == NULL ? NULL : PyObject_CallFunction(fitting, "nO", key, value);
        Py_XDECREF(fitting);
        Py_SETREF(value, cast);
        if (value == NULL ? !PyErr_Occurred() : !ndshare_store_fitting(entry, value)) {
            PyErr_SetString(PyExc_RuntimeError, "the store does not know how to cast");
            Py_CLEAR(value);
        }
    }
    return value;
}

static PyObject *
update_locked(ndshare_store *store, Py_ssize_t key, PyObject *given, PyObject *func, bool copy, double end)
{
    ndshare_entry *entry = &store->entries[key];
    ndshare_current current;
    bool lend = entry->nbytes >= NDSHARE_DICT_LARGE, here = false;
    PyObject *begun = lend ? ndshare_writing_start(store, key, end, &current) : Py_NewRef(Py_None);
    if (begun != Py_None) {
        return begun;
    }
    Py_DECREF(begun);
    PyObject *value = call(store, key, given, func, copy, lend, &here);
    if (value == NULL) {
        return NULL;
    }
    if (!ndshare_lock_owned(store, key)) {  /* in the child of a fork inside the function */
        Py_DECREF(value);
        return NULL;
    }
    if (!here) {
        value = fitted(store, key, value);
        if (value == NULL) {
            return NULL;
        }
        begun = entry->writing < 0 ? ndshare_writing_start(store, key, end, &current) : Py_NewRef(Py_None);
        if (begun != Py_None) {
            Py_DECREF(value);
            return begun;
        }
        Py_DECREF(begun);
        ndshare_writing_copy(store, key, PyArray_DATA((PyArrayObject *)value));
    }
    ndshare_current now = {entry->writing, entry->stamp, current.version + 1};
    ndshare_slot_publish(store, key);
    return result_of(store, key, given, value, copy, here, &now);
}

PyObject *
ndshare_store_update(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = nargs == 5 ? ndshare_store_key(store, args[0]) : -1;
    if (key < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "update takes 5 arguments, got %zd", nargs);
    }
    int copy = PyObject_IsTrue(args[3]);
    double timeout = PyFloat_AsDouble(args[4]);
    if (copy < 0 || (timeout == -1 && PyErr_Occurred())) {
        return NULL;
    }
    double end = ndshare_deadline(timeout);
    PyObject *result = ndshare_lock_keys(store, &key, 1, end);
    if (result != Py_None) {
        return result;
    }
    Py_DECREF(result);
    result = update_locked(store, key, args[1], args[2], copy != 0, end);
    ndshare_lock_free(store, key);
    return result;
}
