/* NumPy's stores promise nothing about order between processes; these do: loads acquire, stores release, and
 * compare-and-swap and add are sequentially consistent. An object that exports a writable buffer is taken with
 * the byte offset of the cell, which must lie inside and be aligned. Who waits for a cell to change sleeps in the
 * kernel (futex) without the GIL, until somebody who has changed it wakes all.
 */
#include "atomics.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

_Static_assert(ATOMIC_CHAR_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
               "atomics between processes must not use a lock inside one of them");

/* The address of a cell of `width` bytes, from the arguments (memory, offset, ...), or NULL with an error set. */
static void *
cell_at(const char *name, PyObject *const *args, Py_ssize_t nargs, Py_ssize_t wanted, Py_ssize_t width,
        Py_buffer *view)
{
    if (nargs != wanted) {
        return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, nargs);
    }
    Py_ssize_t at = PyLong_AsSsize_t(args[1]);
    if ((at == -1 && PyErr_Occurred()) || PyObject_GetBuffer(args[0], view, PyBUF_WRITABLE) < 0) {
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

#define LOAD_AND_CAS(bits)                                                                            \
    PyObject *                                                                                        \
    ndshare_atomic_load_u##bits(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) \
    {                                                                                                 \
        Py_buffer view;                                                                               \
        _Atomic uint##bits##_t *cell = cell_at("load_u" #bits, args, nargs, 2, bits / 8, &view);      \
        if (cell == NULL) {                                                                           \
            return NULL;                                                                              \
        }                                                                                             \
        uint##bits##_t value = atomic_load_explicit(cell, memory_order_acquire);                      \
        PyBuffer_Release(&view);                                                                      \
        return PyLong_FromUnsignedLongLong(value);                                                    \
    }                                                                                                 \
                                                                                                      \
    PyObject *                                                                                        \
    ndshare_atomic_cas_u##bits(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)  \
    {                                                                                                 \
        Py_buffer view;                                                                               \
        _Atomic uint##bits##_t *cell = cell_at("cas_u" #bits, args, nargs, 4, bits / 8, &view);       \
        if (cell == NULL) {                                                                           \
            return NULL;                                                                              \
        }                                                                                             \
        uint##bits##_t expected = (uint##bits##_t)PyLong_AsUnsignedLongLong(args[2]);                 \
        uint##bits##_t wanted = (uint##bits##_t)PyLong_AsUnsignedLongLong(args[3]);                   \
        int done = !PyErr_Occurred() && atomic_compare_exchange_strong(cell, &expected, wanted);      \
        PyBuffer_Release(&view);                                                                      \
        return PyErr_Occurred() ? NULL : PyBool_FromLong(done);                                       \
    }

LOAD_AND_CAS(8)
LOAD_AND_CAS(64)

PyObject *
ndshare_atomic_claim(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view, second;
    _Atomic uint8_t *cell = cell_at("claim", args, nargs, 4, 1, &view);
    if (cell == NULL) {
        return NULL;
    }
    PyObject *place[] = {args[0], args[2]};
    _Atomic uint64_t *notes = cell_at("claim", place, 2, 2, 16, &second);
    if (notes == NULL) {
        PyBuffer_Release(&view);
        return NULL;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(args[3]);
    int done = 0;
    if (!PyErr_Occurred()) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint8_t expected = 0;
        done = atomic_compare_exchange_strong(cell, &expected, 1);
        if (done) {
            uint64_t nanoseconds = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
            atomic_store_explicit(notes + 1, nanoseconds, memory_order_release);
        }
        atomic_store_explicit(notes, (uint64_t)number + 1, memory_order_release);
    }
    PyBuffer_Release(&second);
    PyBuffer_Release(&view);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(done);
}

/* The other end of `claim`: 1 and 3 become 4, unless somebody was quicker and has put 5 there. */
PyObject *
ndshare_atomic_finish(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    _Atomic uint8_t *cell = cell_at("finish", args, nargs, 2, 1, &view);
    if (cell == NULL) {
        return NULL;
    }
    uint8_t state = 1;
    while (state != 5 && !atomic_compare_exchange_weak(cell, &state, 4)) {
    }
    PyBuffer_Release(&view);
    return PyBool_FromLong(state != 5);
}

PyObject *
ndshare_atomic_store_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    _Atomic uint64_t *cell = cell_at("store_u64", args, nargs, 3, 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    unsigned long long value = PyLong_AsUnsignedLongLong(args[2]);
    int failed = value == (unsigned long long)-1 && PyErr_Occurred();
    if (!failed) {
        atomic_store_explicit(cell, (uint64_t)value, memory_order_release);
    }
    PyBuffer_Release(&view);
    return failed ? NULL : Py_NewRef(Py_None);
}

PyObject *
ndshare_atomic_add_u64(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    _Atomic uint64_t *cell = cell_at("add_u64", args, nargs, 3, 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    unsigned long long n = PyLong_AsUnsignedLongLongMask(args[2]); /* a negative number subtracts */
    int failed = n == (unsigned long long)-1 && PyErr_Occurred();
    uint64_t before = failed ? 0 : atomic_fetch_add(cell, (uint64_t)n);
    PyBuffer_Release(&view);
    return failed ? NULL : PyLong_FromUnsignedLongLong(before);
}

/* A futex has 32 bits: the half of a number that changes whenever it is counted up. */
static uint32_t *
low_half(void *cell)
{
    return (uint32_t *)cell + (__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__);
}

PyObject *
ndshare_atomic_sleep_while(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    void *cell = cell_at("sleep_while", args, nargs, 4, 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    unsigned long long seen = PyLong_AsUnsignedLongLongMask(args[2]);
    double seconds = PyFloat_AsDouble(args[3]);
    int failed = PyErr_Occurred() != NULL;
    if (!failed) {
        struct timespec limit = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
        Py_BEGIN_ALLOW_THREADS
        syscall(SYS_futex, low_half(cell), FUTEX_WAIT, (uint32_t)seen, &limit, NULL, 0);
        Py_END_ALLOW_THREADS
        failed = PyErr_CheckSignals() < 0;
    }
    PyBuffer_Release(&view);
    return failed ? NULL : Py_NewRef(Py_None);
}

PyObject *
ndshare_atomic_wake_all(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    Py_buffer view;
    void *cell = cell_at("wake_all", args, nargs, 2, 8, &view);
    if (cell == NULL) {
        return NULL;
    }
    syscall(SYS_futex, low_half(cell), FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}
