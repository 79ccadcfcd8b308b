/* The ways to get a Block: stage, allocate, seal, attach, and from an array. */
#define NO_IMPORT_ARRAY
#include "obtain.h"

#include "array.h"
#include "block.h"
#include "capacity.h"
#include "counting.h"
#include "pool.h"
#include "receive.h"
#include "room.h"
#include "supply.h"

#include <string.h>
#include <unistd.h>

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
ndshare_obtain_stage(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t nbytes;
    ndshare_error error = {0};
    bool fresh;
    if (!read_size(number, &nbytes)) {
        return NULL;
    }
    ndshare_segment *segment = ndshare_supply_whole(nbytes, NDSHARE_VALUE, true, false, &fresh, &error);
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    return ndshare_block_new(segment, segment->base, nbytes, true, false);
}

PyObject *
ndshare_obtain_allocate(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
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
    ndshare_segment *segment = ndshare_supply_shared(nbytes, &address, &dirty, false, &error);
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
ndshare_obtain_seal(PyObject *Py_UNUSED(module), PyObject *buffer)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_CONTIG_RO) < 0) {
        return NULL;
    }
    ndshare_error error = {0};
    size_t nbytes = (size_t)view.len, size;
    int size_class;
    ndshare_segment *segment = NULL;
    size = ndshare_pool_round(nbytes, &size_class);
    Py_BEGIN_ALLOW_THREADS
    ndshare_heap_begin();
    if (ndshare_room_reserve(size, &error) == 0) {
        segment = ndshare_segment_seal(view.buf, nbytes, size, &error);
        ndshare_capacity_settle(size);
    }
    if (segment != NULL) {
        segment->counts.handles = 1;
        segment = ndshare_pool_enter(segment, &error) < 0 ? NULL : segment;
    }
    ndshare_heap_end();
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    return ndshare_block_new(segment, segment->base, nbytes, true, false);
}

PyObject *
ndshare_obtain_attach(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "attach takes uid, size, kind and fd; got %zd arguments", nargs);
    }
    long number = PyLong_AsLong(args[3]);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    int fd = number < INT_MAX ? (int)number : -1;
    uint64_t uid = PyLong_AsUnsignedLongLong(args[0]);
    Py_ssize_t size = PyErr_Occurred() ? -1 : PyLong_AsSsize_t(args[1]);
    long kind = PyErr_Occurred() ? -1 : PyLong_AsLong(args[2]);
    if (size <= 0 || kind < NDSHARE_VALUE || kind > NDSHARE_COPY || fd < 0) {
        if (fd >= 0) {
            close(fd);
        }
        return PyErr_Occurred() ? NULL
            : PyErr_Format(PyExc_ValueError, "attach: size %zd, kind %ld, fd %ld; size must be positive, "
                           "kind one of VALUE, SHARED, SEALED, COPY, and fd an open descriptor",
                           size, kind, number);
    }
    ndshare_error error = {0};
    ndshare_segment *segment = ndshare_receive_attach(uid, (size_t)size, (int)kind, fd, &error);
    if (segment == NULL) {
        return ndshare_error_raise(&error);
    }
    return ndshare_block_new(segment, segment->base, segment->size, true, false);
}

PyObject *
ndshare_obtain_of(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        Py_RETURN_NONE;
    }
    char *address = ndshare_array_lowest((PyArrayObject *)object), *start = NULL;
    if (!ndshare_heap_may_hold(address)) {
        Py_RETURN_NONE;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_heap_at(address);
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
ndshare_obtain_is_shared(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        Py_RETURN_FALSE;
    }
    char *address = ndshare_array_lowest((PyArrayObject *)object);
    if (!ndshare_heap_may_hold(address)) {
        Py_RETURN_FALSE;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_heap_at(address);
    bool shared = segment != NULL && (segment->kind == NDSHARE_SHARED || segment->kind == NDSHARE_SEALED);
    ndshare_heap_unlock();
    return PyBool_FromLong(shared);
}

PyObject *
ndshare_obtain_should_copy_out(PyObject *Py_UNUSED(module), PyObject *block)
{
    ndshare_segment *segment = ndshare_block_pin(block);
    if (segment == NULL) {
        return NULL;
    }
    ndshare_heap_lock();
    bool copy = ndshare_receive_is_crowded(segment);
    ndshare_heap_unlock();
    ndshare_block_unpin(block, segment);
    return PyBool_FromLong(copy);
}
