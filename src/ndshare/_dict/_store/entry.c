/* What a process knows of one key: where its slots are, dtype and shape. */
#define NO_IMPORT_ARRAY
#include "dict.h"

#include <unistd.h>

#define ALIGNMENT 64

/* One entry of the constructor: (dtype, shape). Returns the offset after its two slots, or 0 with an error. */
size_t
ndshare_entry_take(ndshare_entry *entry, PyObject *item, size_t offset)
{
    PyObject *dtype, *shape;
    if (!PyArg_ParseTuple(item, "O!O!", &PyArrayDescr_Type, &dtype, &PyTuple_Type, &shape)) {
        return 0;
    }
    entry->ndim = (int)PyTuple_GET_SIZE(shape);
    if (entry->ndim > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "%d dimensions", entry->ndim);
        return 0;
    }
    entry->shape = PyMem_Malloc(sizeof(npy_intp) * (size_t)(entry->ndim + 1));
    if (entry->shape == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    entry->dtype = (PyArray_Descr *)Py_NewRef(dtype);
    size_t nbytes = (size_t)PyDataType_ELSIZE(entry->dtype);
    for (int axis = 0; axis < entry->ndim; axis++) {
        entry->shape[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis));
        if (entry->shape[axis] < 0 || __builtin_mul_overflow(nbytes, (size_t)entry->shape[axis], &nbytes)) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "a shape is negative or too large");
            }
            return 0;
        }
    }
    entry->nbytes = nbytes;
    entry->writing = -1;
    if (nbytes > (size_t)PY_SSIZE_T_MAX / 4) {
        PyErr_SetString(PyExc_ValueError, "an array is too large");
        return 0;
    }
    /* Large ones on pages of their own, so that a slot can be mapped alone. */
    size_t alignment = nbytes >= NDSHARE_DICT_LARGE ? (size_t)sysconf(_SC_PAGESIZE) : ALIGNMENT;
    entry->offset = (offset + alignment - 1) / alignment * alignment;
    entry->stride = (nbytes + alignment - 1) / alignment * alignment;
    return entry->offset + 2 * entry->stride;
}

void
ndshare_entry_drop(ndshare_entry *entry)
{
    Py_XDECREF(entry->window[0]);
    Py_XDECREF(entry->window[1]);
    Py_XDECREF(entry->dtype);
    PyMem_Free(entry->shape);
}
