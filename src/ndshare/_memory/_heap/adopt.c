/* Arrays on the memory of a block.
 *
 * A dense writable array is adopted: NumPy asks the handler for memory, the handler answers with the
 * address that is already there (`ndshare_handler_next`, thread-local). The array owns its data, has no
 * base, and its deallocation tells the heap. Everything else is a view: of an adopted uint8 array, or,
 * for read-only memory, of a keeper Block, so that nobody can set its WRITEABLE flag and then crash.
 */
#define NO_IMPORT_ARRAY
#include "adopt.h"

#include "array.h"
#include "counting.h"
#include "handler.h"

typedef struct {
    int ndim;
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    npy_intp below, extent;   /* first element minus lowest byte; highest byte plus one minus lowest */
    bool dense, empty;
} layout;

static int
read_numbers(PyObject *object, npy_intp *out, const char *what)
{
    /* A tuple of its own: the numbers of a list may be objects whose __index__ changes the list. */
    PyObject *sequence = PySequence_Tuple(object);
    if (sequence == NULL) {
        return -1;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(sequence);
    if (n > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "Block.array: %s has %zd entries, NumPy allows %d", what, n, NPY_MAXDIMS);
        Py_DECREF(sequence);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        out[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(sequence, i));
        if (out[i] == -1 && PyErr_Occurred()) {
            Py_DECREF(sequence);
            return -1;
        }
    }
    Py_DECREF(sequence);
    return (int)n;
}

static int
read_layout(layout *a, npy_intp itemsize, PyObject *shape, PyObject *strides)
{
    a->ndim = read_numbers(shape, a->shape, "shape");
    if (a->ndim < 0) {
        return -1;
    }
    a->empty = false;
    for (int i = 0; i < a->ndim; i++) {
        if (a->shape[i] < 0) {
            PyErr_Format(PyExc_ValueError, "Block.array: shape[%d] is %zd; it cannot be negative", i, a->shape[i]);
            return -1;
        }
        a->empty |= a->shape[i] == 0;
    }
    npy_intp step = itemsize;
    if (strides == NULL || strides == Py_None) {
        for (int i = a->ndim - 1; i >= 0; i--) {
            a->strides[i] = step;
            if (a->shape[i] > 1 && __builtin_mul_overflow(step, a->shape[i], &step)) {
                PyErr_SetString(PyExc_ValueError, "Block.array: the shape is larger than the address space");
                return -1;
            }
        }
    }
    else if (read_numbers(strides, a->strides, "strides") != a->ndim) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "Block.array: strides and shape differ in length");
        }
        return -1;
    }
    a->below = a->extent = 0;
    for (int i = 0; !a->empty && i < a->ndim; i++) {
        npy_intp reach;
        if (__builtin_mul_overflow(a->shape[i] - 1, a->strides[i], &reach)
            || (reach < 0 && __builtin_sub_overflow(a->below, reach, &a->below))
            || __builtin_add_overflow(a->extent, reach < 0 ? -reach : reach, &a->extent)) {
            PyErr_SetString(PyExc_ValueError, "Block.array: the strides reach beyond the address space");
            return -1;
        }
    }
    if (!a->empty && __builtin_add_overflow(a->extent, itemsize, &a->extent)) {
        PyErr_SetString(PyExc_ValueError, "Block.array: the strides reach beyond the address space");
        return -1;
    }
    a->dense = a->empty || (a->below == 0 && ndshare_array_is_dense(a->ndim, a->shape, a->strides, itemsize));
    return 0;
}

/* Steals the reference to `descr`. */
static PyObject *
adopt(ndshare_segment *segment, char *address, PyArray_Descr *descr, int ndim, npy_intp *shape, npy_intp *strides)
{
    if (ndshare_counting_add_user(segment, address) < 0) {
        Py_DECREF(descr);
        return NULL;
    }
    PyObject *outer = PyDataMem_SetHandler(ndshare_handler_adopting);
    if (outer == NULL) {
        Py_DECREF(descr);
        ndshare_counting_remove_user(segment, address);
        return NULL;
    }
    ndshare_handler_next = address;
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, ndim, shape, strides, NULL, 0, NULL);
    if (ndshare_handler_next != NULL) {  /* NumPy failed before it asked for memory */
        ndshare_handler_next = NULL;
        ndshare_counting_remove_user(segment, address);
    }
    PyObject *ours = PyDataMem_SetHandler(outer);
    Py_DECREF(outer);
    if (ours == NULL) {
        Py_XDECREF(array);
        return NULL;
    }
    Py_DECREF(ours);
    if (array != NULL) {
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_UPDATE_ALL);
    }
    return array;
}

/* Steals the references to `descr` and `base`. */
static PyObject *
view(char *first, PyArray_Descr *descr, layout *a, PyObject *base, bool readonly)
{
    if (base == NULL) {
        Py_DECREF(descr);
        return NULL;
    }
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, descr, a->ndim, a->shape, a->strides, first,
                                           readonly ? 0 : NPY_ARRAY_WRITEABLE, NULL);
    if (array == NULL) {
        Py_DECREF(base);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, base) < 0) {
        Py_DECREF(array);
        return NULL;
    }
    return array;
}

PyObject *
ndshare_adopt_array(ndshare_segment *segment, char *start, size_t nbytes, PyObject *dtype, PyObject *shape,
                    PyObject *strides, Py_ssize_t offset, PyObject *base)
{
    layout a;
    PyArray_Descr *descr = NULL;
    if (!PyArray_DescrConverter(dtype, &descr)) {
        goto failed;
    }
    if (PyDataType_REFCHK(descr)) {
        PyErr_Format(PyExc_TypeError, "cannot put an array of dtype %S into shared memory: its items are "
                     "Python objects or point to memory of one process; use a numeric, string (S, U) or "
                     "structured dtype", (PyObject *)descr);
        goto failed;
    }
    npy_intp itemsize = PyDataType_ELSIZE(descr);
    if (PyDataType_HASSUBARRAY(descr)) {
        PyErr_Format(PyExc_TypeError, "Block.array: dtype %S is a subarray; give its base and a longer shape",
                     (PyObject *)descr);
        goto failed;
    }
    if (read_layout(&a, itemsize, shape, strides) < 0) {
        goto failed;
    }
    if (offset < 0 || (size_t)offset > nbytes || (size_t)a.extent > nbytes - (size_t)offset) {
        PyErr_Format(PyExc_ValueError, "Block.array: %zd bytes from offset %zd do not lie in a block of %zu bytes",
                     a.extent, offset, nbytes);
        goto failed;
    }
    char *lowest = start + offset;
    if (offset > 0 && (size_t)offset == nbytes) {
        lowest = start;  /* empty: the end of a block is an address of its neighbour */
    }
    if (base != NULL) {
        return view(lowest + a.below, descr, &a, base, true);
    }
    if (a.dense && itemsize > 0) {
        return adopt(segment, lowest, descr, a.ndim, a.shape, a.strides);
    }
    npy_intp bytes = a.extent;
    base = adopt(segment, lowest, PyArray_DescrFromType(NPY_UINT8), 1, &bytes, NULL);
    return view(lowest + a.below, descr, &a, base, false);
failed:
    Py_XDECREF(descr);
    Py_XDECREF(base);
    return NULL;
}
