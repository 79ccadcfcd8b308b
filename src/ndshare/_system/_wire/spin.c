/* Waiting without sleeping, for a moment.
 *
 * To be woken by another processor costs the waker more than a message itself. So who expects one soon looks again
 * and again before it goes to sleep, without the GIL, and yields the processor to whoever else wants to run. If
 * somebody did run, it stops: should that be the very process that is waited for, the two would take turns on one
 * processor for long, while who sleeps may be woken on an idle one.
 */
#include "wire.h"

#include <poll.h>
#include <sched.h>
#include <sys/resource.h>
#include <time.h>

#define OTHERS_RAN_NS 20000  /* a yield to nobody takes a microsecond, with an interrupt ten */

int64_t
ndshare_now_ns(void)
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
ndshare_spin(bool (*is_there)(const void *), const void *what, int microseconds)
{
    bool found;
    Py_BEGIN_ALLOW_THREADS
    int64_t now = ndshare_now_ns(), end = now + microseconds * INT64_C(1000), before;
    long switches = times_preempted();
    while (!(found = is_there(what)) && now < end) {
        before = ndshare_now_ns();
        sched_yield();
        now = ndshare_now_ns();
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
ndshare_message_spin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "spin takes 2 arguments, got %zd", nargs);
    }
    int fd = PyLong_AsInt(args[0]);
    int microseconds = PyLong_AsInt(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyBool_FromLong(ndshare_spin(is_readable, &fd, microseconds));
}
