/* Writing, by a thread that has the locks of the keys. */
#define NO_IMPORT_ARRAY
#include "dict.h"

#include <errno.h>
#include <string.h>

#define GIL_BYTES ((size_t)1 << 16)

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
        ndshare_dict_copy(target, source, nbytes);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    ndshare_dict_copy(target, source, nbytes);
    Py_END_ALLOW_THREADS
}

int
ndshare_store_start(ndshare_store *store, Py_ssize_t key, ndshare_current *current)
{
    if (!ndshare_store_owned(store, key)) {
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
