/* Atomic reads and writes on memory that several processes map.
 *
 * NumPy's stores promise nothing about order between processes; these do: loads acquire, stores
 * release, and compare-and-swap and add are sequentially consistent. An object that exports a
 * writable buffer is taken with the byte offset of the cell, which must lie inside and be aligned.
 */
#include "wire.h"

#include <stdatomic.h>
#include <stdint.h>

_Static_assert(ATOMIC_CHAR_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "atomics between processes must not use a lock inside one of them");

/* The address of a cell of `width` bytes at `offset`, or NULL with an error set. */
static void *
cell_at(PyObject *memory, PyObject *offset, Py_ssize_t width, Py_buffer *view)
{
    Py_ssize_t at = PyLong_AsSsize_t(offset);
    if (at == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (PyObject_GetBuffer(memory, view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    char *address = (char *)view->buf + at;
    if (at < 0 || at > view->len - width || (uintptr_t)address % (uintptr_t)width != 0) {
        PyErr_Format(PyExc_ValueError, "offset %zd: no aligned cell of %zd bytes there in a buffer of %zd",
                     at, width, view->len);
        PyBuffer_Release(view);
        return NULL;
    }
    return address;
}

static int
check_count(const char *name, Py_ssize_t got, Py_ssize_t wanted)
{
    if (got != wanted) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, got);
        return -1;
    }
    return 0;
}

PyObject *
ndshare_atomic_cas_u8(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("cas_u8", nargs, 4) < 0) {
        return NULL;
    }
    int expected = PyLong_AsInt(args[2]), wanted = PyLong_AsInt(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    _Atomic uint8_t *cell = cell_at(args[0], args[1], 1, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint8_t seen = (uint8_t)expected;
    int done = atomic_compare_exchange_strong(cell, &seen, (uint8_t)wanted);
    PyBuffer_Release(&view);
    return PyBool_FromLong(done);
}

PyObject *
ndshare_atomic_cas_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("cas_u64", nargs, 4) < 0) {
        return NULL;
    }
    unsigned long long expected = PyLong_AsUnsignedLongLong(args[2]), wanted = PyLong_AsUnsignedLongLong(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    _Atomic uint64_t *cell = cell_at(args[0], args[1], 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint64_t seen = (uint64_t)expected;
    int done = atomic_compare_exchange_strong(cell, &seen, (uint64_t)wanted);
    PyBuffer_Release(&view);
    return PyBool_FromLong(done);
}

PyObject *
ndshare_atomic_load_u8(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("load_u8", nargs, 2) < 0) {
        return NULL;
    }
    _Atomic uint8_t *cell = cell_at(args[0], args[1], 1, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint8_t value = atomic_load_explicit(cell, memory_order_acquire);
    PyBuffer_Release(&view);
    return PyLong_FromLong(value);
}

PyObject *
ndshare_atomic_store_u8(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("store_u8", nargs, 3) < 0) {
        return NULL;
    }
    int value = PyLong_AsInt(args[2]);
    if (value == -1 && PyErr_Occurred()) {
        return NULL;
    }
    _Atomic uint8_t *cell = cell_at(args[0], args[1], 1, &view);
    if (cell == NULL) {
        return NULL;
    }
    atomic_store_explicit(cell, (uint8_t)value, memory_order_release);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

PyObject *
ndshare_atomic_add_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("add_u64", nargs, 3) < 0) {
        return NULL;
    }
    unsigned long long n = PyLong_AsUnsignedLongLongMask(args[2]); /* a negative number subtracts */
    if (PyErr_Occurred()) {
        return NULL;
    }
    _Atomic uint64_t *cell = cell_at(args[0], args[1], 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint64_t old = atomic_fetch_add(cell, (uint64_t)n);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(old);
}

PyObject *
ndshare_atomic_load_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("load_u64", nargs, 2) < 0) {
        return NULL;
    }
    _Atomic uint64_t *cell = cell_at(args[0], args[1], 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint64_t value = atomic_load_explicit(cell, memory_order_acquire);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(value);
}

PyObject *
ndshare_atomic_store_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    if (check_count("store_u64", nargs, 3) < 0) {
        return NULL;
    }
    unsigned long long value = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    _Atomic uint64_t *cell = cell_at(args[0], args[1], 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    atomic_store_explicit(cell, (uint64_t)value, memory_order_release);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}
