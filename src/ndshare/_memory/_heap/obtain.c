/* The ways to get a Block: stage, allocate, seal, and from an array. */
#define NO_IMPORT_ARRAY
#include "array_api.h"

#include <string.h>

static bool
read_size(PyObject *number, size_t *nbytes)
{
    Py_ssize_t value = PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (value == -1 && PyErr_Occurred()) {
        return false;
    }
    if (value < 0) {
        PyErr_Format(PyExc_ValueError, "a block of %zd bytes was asked for; a size cannot be negative", value);
        return false;
    }
    *nbytes = (size_t)value;
    return true;
}

PyObject *
ndshare_block_stage(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t nbytes;
    ndshare_error error = {0};
    bool fresh;
    if (!read_size(number, &nbytes)) {
        return NULL;
    }
    ndshare_segment *segment = ndshare_pool_take(nbytes, NDSHARE_VALUE, true, false, &fresh, &error);
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    return ndshare_block_new(segment, segment->base, nbytes, true, false);
}

PyObject *
ndshare_block_allocate(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    size_t nbytes;
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "allocate takes nbytes and zero, got %zd arguments", nargs);
    }
    int zero = PyObject_IsTrue(args[1]);
    if (zero < 0 || !read_size(args[0], &nbytes)) {
        return NULL;
    }
    ndshare_error error = {0};
    char *address;
    bool dirty;
    ndshare_segment *segment = ndshare_handler_take_shared(nbytes, &address, &dirty, false, &error);
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    if (zero && dirty) {
        Py_BEGIN_ALLOW_THREADS
        memset(address, 0, nbytes);
        Py_END_ALLOW_THREADS
    }
    return ndshare_block_new(segment, address, nbytes, segment->slots == NULL, false);
}

PyObject *
ndshare_block_seal(PyObject *Py_UNUSED(module), PyObject *buffer)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_CONTIG_RO) < 0) {
        return NULL;
    }
    ndshare_error error = {0};
    const char *part = view.buf;
    size_t nbytes = (size_t)view.len, size;
    int size_class;
    ndshare_segment *segment = NULL;
    size = ndshare_pool_round(nbytes, &size_class);
    Py_BEGIN_ALLOW_THREADS
    if (ndshare_pool_reserve(size, &error) == 0) {
        segment = ndshare_segment_seal(&part, &nbytes, 1, size, &error);
        ndshare_limits_settle(size);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (segment != NULL) {
        segment->counts.handles = 1;
        if (ndshare_pool_enter(segment, &error) < 0) {
            segment = NULL;
        }
    }
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    return ndshare_block_new(segment, segment->base, nbytes, true, false);
}

/* Lowest address of the array's memory. That of an empty one may be the end of its block, which is
 * the start of the neighbour: ask the array that owns the memory instead. */
static char *
lowest_byte(PyArrayObject *array)
{
    if (PyArray_SIZE(array) == 0) {
        PyObject *owner = (PyObject *)array;
        while (PyArray_BASE((PyArrayObject *)owner) != NULL && PyArray_Check(PyArray_BASE((PyArrayObject *)owner))) {
            owner = PyArray_BASE((PyArrayObject *)owner);
        }
        array = (PyArrayObject *)owner;
    }
    char *address = PyArray_BYTES(array);
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        address += reach < 0 && PyArray_DIM(array, i) > 0 ? reach : 0;
    }
    return address;
}

PyObject *
ndshare_block_of(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        Py_RETURN_NONE;
    }
    char *address = lowest_byte((PyArrayObject *)object), *start = NULL;
    if (!ndshare_table_may_hold(address)) {
        Py_RETURN_NONE;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_table_at(address);
    if (segment == NULL || segment->detached || segment->kind == NDSHARE_COPY) {
        ndshare_heap_unlock();
        Py_RETURN_NONE;
    }
    size_t nbytes = ndshare_counting_extent(segment, address, &start);
    ndshare_counts *counts = ndshare_counting_of(segment, address);
    if (counts->users == 0 && counts->handles == 0) {
        ndshare_heap_unlock();
        Py_RETURN_NONE;  /* not ours to touch any more: an address left in a dead view */
    }
    counts->handles++;
    bool whole = segment->slots == NULL || segment->origin != NDSHARE_OWN;
    ndshare_heap_unlock();
    PyObject *block = ndshare_block_new(segment, start, nbytes, whole, false);
    if (block == NULL) {
        return NULL;
    }
    PyObject *offset = PyLong_FromSsize_t(address - start);
    PyObject *pair = offset ? PyTuple_Pack(2, block, offset) : NULL;
    Py_XDECREF(offset);
    Py_DECREF(block);
    return pair;
}

PyObject *
ndshare_block_is_shared(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        Py_RETURN_FALSE;
    }
    char *address = lowest_byte((PyArrayObject *)object);
    if (!ndshare_table_may_hold(address)) {
        Py_RETURN_FALSE;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_table_at(address);
    bool shared = segment != NULL && (segment->kind == NDSHARE_SHARED || segment->kind == NDSHARE_SEALED);
    ndshare_heap_unlock();
    return PyBool_FromLong(shared);
}
