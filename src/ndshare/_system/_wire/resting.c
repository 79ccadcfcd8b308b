/* Sleep while another thread is at it: without the GIL, which that thread would have to wait for. */
#include "wire.h"

#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>

PyObject *
ndshare_rest(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "rest takes 4 arguments, got %zd", nargs);
    }
    int fd = PyLong_AsInt(args[0]), period_ms = PyLong_AsInt(args[2]), most_ms = PyLong_AsInt(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len < (Py_ssize_t)sizeof(uint64_t) || (uintptr_t)view.buf % sizeof(uint64_t) != 0) {
        PyBuffer_Release(&view);
        return PyErr_Format(PyExc_ValueError, "rest: the count needs eight aligned bytes");
    }
    const _Atomic uint64_t *count = view.buf;
    Py_BEGIN_ALLOW_THREADS
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    uint64_t before, now = atomic_load(count);
    do {
        before = now;
        if (poll(&entry, 1, period_ms < most_ms ? period_ms : most_ms) != 0) {
            break; /* readable, or a signal, which another thread deals with */
        }
        most_ms -= period_ms;
        now = atomic_load(count);
    } while (now != before && most_ms > 0);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}
