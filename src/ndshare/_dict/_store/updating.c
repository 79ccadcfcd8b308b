/* Update of one key: lock, call, publish, free, without a way through Python. */
#define NO_IMPORT_ARRAY
#include "dict.h"

#define PLAIN_COPY (NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_ENSUREARRAY)

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
            ndshare_dict_copy_out(to, from, nbytes);
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
    if (!ndshare_store_owned(store, key)) {  /* in the child of a fork inside the function */
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
