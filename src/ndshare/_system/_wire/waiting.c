/* To be woken by another processor costs the waker more than a message itself. So who expects one soon looks again
 * and again before it goes to sleep, without the GIL, and yields the processor to whoever else wants to run. If
 * somebody did run, it stops: should that be the very process that is waited for, the two would take turns on one
 * processor for long, while who sleeps may be woken on an idle one.
 *
 * Who knows that another thread is at it rests: without the GIL, which that thread would have to wait for.
 */
#include "waiting.h"

#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/resource.h>
#include <time.h>

#define OTHERS_RAN_NS 20000  /* a yield to nobody takes a microsecond, with an interrupt ten */

int64_t
ndshare_waiting_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* How often this thread had to make room for another one. */
static long
times_preempted(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_nivcsw : 0;
}

bool
ndshare_waiting_spin(bool (*is_there)(const void *), const void *what, int microseconds)
{
    bool found;
    Py_BEGIN_ALLOW_THREADS
    int64_t now = ndshare_waiting_now(), end = now + microseconds * INT64_C(1000), before;
    long switches = times_preempted();
    while (!(found = is_there(what)) && now < end) {
        before = ndshare_waiting_now();
        sched_yield();
        now = ndshare_waiting_now();
        if (now - before > OTHERS_RAN_NS && times_preempted() != switches) {
            found = is_there(what);
            break;
        }
    }
    Py_END_ALLOW_THREADS
    return found;
}

static bool
is_readable(const void *fd)
{
    struct pollfd entry = {.fd = *(const int *)fd, .events = POLLIN};
    return poll(&entry, 1, 0) != 0;
}

PyObject *
ndshare_waiting_spin_readable(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "spin takes 2 arguments, got %zd", nargs);
    }
    int fd = PyLong_AsInt(args[0]), microseconds = PyLong_AsInt(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyBool_FromLong(ndshare_waiting_spin(is_readable, &fd, microseconds));
}

PyObject *
ndshare_waiting_rest(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
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
