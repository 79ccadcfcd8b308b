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

#include <errno.h>
#include <string.h>

#define GIL_BYTES ((size_t)1 << 16)
#define PLAIN_COPY (NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY)

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

static bool
check_fits(const ndshare_entry *entry, PyObject *object)
{
    if (!ndshare_store_fitting(entry, object)) {
        PyErr_SetString(PyExc_TypeError, "the array has not the dtype and shape of its key, or is not contiguous");
        return false;
    }
    return true;
}

void
ndshare_store_copy_in(ndshare_store *store, Py_ssize_t key, int slot, const void *source)
{
    size_t nbytes = store->entries[key].nbytes;
    void *target = ndshare_dict_data(store, key, slot);
    if (nbytes < GIL_BYTES) {
        ndshare_slot_copy_in(target, source, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    ndshare_slot_copy_in(target, source, nbytes);
    Py_END_ALLOW_THREADS
}

int
ndshare_store_start(ndshare_store *store, Py_ssize_t key, ndshare_current *current)
{
    if (!ndshare_lock_owned(store, key)) {
        return -1;
    }
    int error = ndshare_slot_begin(store, key, current);
    if (error == ENODATA) {
        return ndshare_store_damaged(key);
    }
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

PyObject *
ndshare_store_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = nargs == 2 ? ndshare_store_key(store, args[0]) : -1;
    if (key < 0) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "fill takes 2 arguments, got %zd", nargs);
    }
    if (!check_fits(&store->entries[key], args[1])) {
        return NULL;
    }
    ndshare_slot_fill(store, key, PyArray_DATA((PyArrayObject *)args[1]));
    Py_RETURN_NONE;
}

/* Write all and publish them by one store. */
PyObject *
ndshare_store_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "put takes 2 arguments, got %zd", nargs);
    }
    PyObject *result = NULL, *arrays = PySequence_Fast(args[1], "put: arrays is not a sequence");
    Py_ssize_t n;
    Py_ssize_t *keys = arrays == NULL ? NULL : ndshare_store_keys(store, args[0], &n);
    if (keys == NULL) {
        Py_XDECREF(arrays);
        return NULL;
    }
    if (PySequence_Fast_GET_SIZE(arrays) != n) {
        PyErr_SetString(PyExc_ValueError, "put: as many arrays as keys are needed");
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!check_fits(&store->entries[keys[i]], PySequence_Fast_GET_ITEM(arrays, i))) {
            goto done;
        }
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        ndshare_current current;
        if (ndshare_store_start(store, keys[i], &current) < 0) {
            goto done;
        }
        ndshare_store_copy_in(store, keys[i], store->entries[keys[i]].writing,
                PyArray_DATA((PyArrayObject *)PySequence_Fast_GET_ITEM(arrays, i)));
    }
    if (n > 0) {
        ndshare_slot_commit(store, keys, n);
    }
    result = Py_NewRef(Py_None);
done:
    Py_DECREF(arrays);
    PyMem_Free(keys);
    return result;
}

/* The idle slot, with a copy of the current value, to be worked on in place. */
PyObject *
ndshare_store_begin(PyObject *self, PyObject *number)
{
    ndshare_store *store = (ndshare_store *)self;
    Py_ssize_t key = ndshare_store_key(store, number);
    ndshare_current current;
    if (key < 0 || ndshare_store_start(store, key, &current) < 0) {
        return NULL;
    }
    int slot = store->entries[key].writing;
    ndshare_store_copy_in(store, key, slot, ndshare_dict_data(store, key, current.slot));
    ndshare_current where = {slot, store->entries[key].stamp, current.version + 1};
    return ndshare_store_array(self, key, &where, true);
}

/* Whether nobody else can have the memory of what a function returned. */
static bool
is_own(PyObject *value)
{
    return PyArray_CheckExact(value) && Py_REFCNT(value) == 1 && PyArray_BASE((PyArrayObject *)value) == NULL;
}

/* Call the function; the result lies in the slot that was begun (`*here`), or somewhere else. */
static PyObject *
call(ndshare_store *store, Py_ssize_t key, PyObject *given, PyObject *func, bool copy, bool lend, bool *here)
{
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
        window = ndshare_lending_open(store, key, store->entries[key].writing);
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
        int how = ndshare_lending_close(window, value);
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
        result = ndshare_store_array((PyObject *)store, key, now, false);
    }
    else if (!here && value != given && is_own(value)) {
        return value;
    }
    else {
        result = here ? ndshare_store_empty(store, key) : PyArray_FromAny(value, NULL, 0, 0, PLAIN_COPY, NULL);
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

static PyObject *
update_locked(ndshare_store *store, Py_ssize_t key, PyObject *given, PyObject *func, bool copy)
{
    ndshare_entry *entry = &store->entries[key];
    ndshare_current current;
    bool lend = entry->nbytes >= NDSHARE_DICT_LARGE, here = false;
    if (lend && ndshare_store_start(store, key, &current) < 0) {
        return NULL;
    }
    PyObject *value = call(store, key, given, func, copy, lend, &here);
    if (value == NULL) {
        return NULL;
    }
    if (!ndshare_lock_owned(store, key)) {  /* in the child of a fork inside the function */
        Py_DECREF(value);
        return NULL;
    }
    if (!here) {
        if (!ndshare_store_fitting(entry, value)) {
            if (store->fitting == NULL) {
                PyErr_SetString(PyExc_RuntimeError, "the store does not know how to cast");
                Py_DECREF(value);
                return NULL;
            }
            PyObject *fitted = PyObject_CallFunction(store->fitting, "nO", key, value);
            Py_SETREF(value, fitted);
            if (value == NULL) {
                return NULL;
            }
            if (!ndshare_store_fitting(entry, value)) {
                PyErr_SetString(PyExc_RuntimeError, "what was cast does not fit");
                Py_DECREF(value);
                return NULL;
            }
        }
        if (entry->writing < 0 && ndshare_store_start(store, key, &current) < 0) {
            Py_DECREF(value);
            return NULL;
        }
        ndshare_store_copy_in(store, key, entry->writing, PyArray_DATA((PyArrayObject *)value));
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
    PyObject *result = ndshare_lock_keys(store, &key, 1, timeout);
    if (result != Py_None) {
        return result;
    }
    Py_DECREF(result);
    result = update_locked(store, key, args[1], args[2], copy != 0);
    ndshare_lock_free(store, key);
    return result;
}
