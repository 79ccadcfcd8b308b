/* Mutex: the handle of a process on one lock.
 *
 * Taking it free costs a compare-and-swap; who has to wait sleeps in the kernel (futex), without the GIL, for
 * a slice of time, then looks whether a signal came: the wait itself cannot be interrupted. The slices are
 * also what saves a waiter on kernels before 5.5 whose waker was killed between waking and taking.
 *
 * A mutex knows its holder by thread id. The child of a fork has another one and an empty list of held
 * mutexes: it holds nothing, whatever its parent held.
 */
#include "lock.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 50000000L  /* how long Ctrl-C may wait */

static ndshare_lock_state *
state_of(PyObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &ndshare_lock_definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* Asked of the kernel once per thread, and anew in a forked child: a system call costs more than the lock. */
static int32_t
thread_id(void)
{
    static _Thread_local int32_t id;
    static _Thread_local unsigned known;
    unsigned forks = atomic_load_explicit(&ndshare_lock_forks, memory_order_relaxed);
    if (known != forks) {
        id = (int32_t)syscall(SYS_gettid);
        known = forks;
    }
    return id;
}

static double
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* One slice of waiting, without the GIL. `limit` in seconds from now; a negative one stands for none. */
static int
wait_slice(pthread_mutex_t *mutex, double limit)
{
    long slice = limit >= 0 && limit * 1e9 < (double)SLICE_NS ? (long)(limit * 1e9) : SLICE_NS;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += slice;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = pthread_mutex_timedlock(mutex, &until);
    Py_END_ALLOW_THREADS
    return error;
}

static void
recover(ndshare_cell *cell)
{
    int pid = atomic_load(&cell->holder_pid);
    atomic_store(&cell->died, pid != 0 ? pid : -1);
    pthread_mutex_consistent(&cell->mutex);
}

static int
give_back(ndshare_cell *cell)
{
    atomic_store_explicit(&cell->holder, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->holder_pid, 0, memory_order_relaxed);
    return pthread_mutex_unlock(&cell->mutex);
}

/* 1: taken, 0: not in time, -1: error set */
static int
take(ndshare_mutex *self, int blocking, double timeout, int repairing)
{
    ndshare_lock_state *state = state_of((PyObject *)self);
    ndshare_cell *cell = self->cell;
    if (state == NULL) {
        return -1;
    }
    int error = pthread_mutex_trylock(&cell->mutex);
    if (error == EBUSY || error == EDEADLK) {
        if (!blocking) {
            return 0;
        }
        double end = timeout < 0 ? 0 : monotonic() + timeout;
        do {
            double left = timeout < 0 ? -1 : end - monotonic();
            if (timeout >= 0 && left <= 0 && error == ETIMEDOUT) {
                return 0;
            }
            error = wait_slice(&cell->mutex, timeout < 0 ? -1 : left > 0 ? left : 0);
            if (error == ETIMEDOUT && PyErr_CheckSignals() < 0) {
                return -1;
            }
        } while (error == ETIMEDOUT);
    }
    if (error == EDEADLK) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Lock.acquire: this thread holds the lock already, and would wait for itself; "
                        "release it first, or acquire it in one place only");
        return -1;
    }
    if (error == EOWNERDEAD) {
        recover(cell);
    }
    else if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    /* Written by the holder only; a process that reads them without the lock wants a hint. */
    atomic_store_explicit(&cell->holder_pid, ndshare_lock_pid, memory_order_relaxed);
    atomic_store_explicit(&cell->holder, thread_id(), memory_order_relaxed);
    int died = atomic_load_explicit(&cell->died, memory_order_relaxed);
    if (died != 0 && self->report && !repairing) {
        give_back(cell);
        PyObject *pid = PyLong_FromLong(died);
        if (pid != NULL && state->died_error != NULL) {
            PyObject *instance = PyObject_CallOneArg(state->died_error, pid);
            if (instance != NULL) {
                PyErr_SetObject(state->died_error, instance);
                Py_DECREF(instance);
            }
        }
        Py_XDECREF(pid);
        return -1;
    }
    PyObject *key = PyLong_FromVoidPtr(cell);
    if (key == NULL || PyDict_SetItem(state->held, key, (PyObject *)self) < 0) {
        give_back(cell);
        Py_XDECREF(key);
        return -1;
    }
    Py_DECREF(key);
    return 1;
}

static PyObject *
mutex_acquire(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"blocking", "timeout", NULL};
    int blocking = 1;
    double timeout = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|pd:acquire", names, &blocking, &timeout)) {
        return NULL;
    }
    if (isnan(timeout) || (timeout < 0 && timeout != -1)) {
        PyObject *number = PyFloat_FromDouble(timeout);
        PyErr_Format(PyExc_ValueError, "Lock.acquire: timeout is %R; seconds from 0 on are allowed, and -1 for none",
                     number);
        Py_XDECREF(number);
        return NULL;
    }
    if (!blocking && timeout != -1) {
        PyErr_SetString(PyExc_ValueError, "Lock.acquire: a timeout was given with blocking=False; leave one out");
        return NULL;
    }
    int taken = take((ndshare_mutex *)self, blocking, timeout, 0);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *
mutex_acquire_damaged(PyObject *self, PyObject *Py_UNUSED(unused))
{
    int taken = take((ndshare_mutex *)self, 1, -1, 1);
    return taken < 0 ? NULL : PyBool_FromLong(atomic_load(&((ndshare_mutex *)self)->cell->died) != 0);
}

static PyObject *
mutex_mark_repaired(PyObject *self, PyObject *Py_UNUSED(unused))
{
    atomic_store(&((ndshare_mutex *)self)->cell->died, 0);
    Py_RETURN_NONE;
}

static PyObject *
mutex_release(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_cell *cell = ((ndshare_mutex *)self)->cell;
    ndshare_lock_state *state = state_of(self);
    if (state == NULL) {
        return NULL;
    }
    if (atomic_load_explicit(&cell->holder, memory_order_relaxed) != thread_id()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Lock.release: this thread does not hold the lock; only the thread that acquired it may "
                        "release it, and a forked child does not hold what its parent holds");
        return NULL;
    }
    /* The entry goes first: once the lock is free another thread of this process may make its own. */
    PyObject *key = PyLong_FromVoidPtr(cell), *keeper = NULL;
    if (key == NULL) {
        return NULL;
    }
    keeper = Py_XNewRef(PyDict_GetItemWithError(state->held, key));
    if (keeper != NULL) {
        (void)PyDict_DelItem(state->held, key);
    }
    Py_DECREF(key);
    int error = give_back(cell);
    Py_XDECREF(keeper);
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *
mutex_locked(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_cell *cell = ((ndshare_mutex *)self)->cell;
    if (atomic_load(&cell->holder) == 0) {
        Py_RETURN_FALSE;
    }
    /* Somebody has it, or died with it. */
    int error = pthread_mutex_trylock(&cell->mutex);
    if (error == EOWNERDEAD) {
        recover(cell);
    }
    if (error == EOWNERDEAD || error == 0) {
        give_back(cell);
        Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyObject *
mutex_enter(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return take((ndshare_mutex *)self, 1, -1, 0) < 0 ? NULL : Py_NewRef(self);
}

static PyObject *
mutex_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    return mutex_release(self, NULL);
}

static PyObject *
mutex_holder(PyObject *self, void *Py_UNUSED(closure))
{
    ndshare_cell *cell = ((ndshare_mutex *)self)->cell;
    return PyLong_FromLong(atomic_load(&cell->holder) == 0 ? 0 : atomic_load(&cell->holder_pid));
}

static PyObject *
mutex_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"memory", "report_death", NULL};
    PyObject *memory;
    int report = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:Mutex", names, &memory, &report)) {
        return NULL;
    }
    ndshare_mutex *self = (ndshare_mutex *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &self->view, PyBUF_WRITABLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->cell = self->view.buf;
    self->report = report;
    if (self->view.len < NDSHARE_LOCK_BYTES || (uintptr_t)self->view.buf % 64 != 0
        || self->cell->magic != NDSHARE_LOCK_MAGIC) {
        PyErr_Format(PyExc_ValueError, "a lock was looked for in %zd bytes of memory and is not there; make "
                     "locks with ndshare.lock()", self->view.len);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int
mutex_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((ndshare_mutex *)self)->view.obj);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
mutex_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&((ndshare_mutex *)self)->view);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef mutex_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))mutex_acquire, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("acquire($self, /, blocking=True, timeout=-1)\n--\n\n"
               "Take the lock; False if it could not be had (in time).\n\n"
               "Parameters\n----------\n"
               "blocking : bool\n    Whether to wait for it.\n"
               "timeout : float\n    Seconds to wait at most; -1 stands for no limit.\n\n"
               "Raises\n------\n"
               "RuntimeError\n    If this thread holds it already and would wait for itself.\n"
               "OwnerDiedError\n    If a holder died and deaths are reported. The lock is not held then.\n")},
    {"release", mutex_release, METH_NOARGS,
     PyDoc_STR("release($self, /)\n--\n\nFree the lock.\n\n"
               "Raises\n------\nRuntimeError\n    If this thread does not hold it.\n")},
    {"locked", mutex_locked, METH_NOARGS,
     PyDoc_STR("locked($self, /)\n--\n\nTell whether anybody holds the lock; may be out of date at once.")},
    {"_acquire_damaged", mutex_acquire_damaged, METH_NOARGS, PyDoc_STR("Take it; whether a holder has died.")},
    {"_mark_repaired", mutex_mark_repaired, METH_NOARGS, PyDoc_STR("Forget that a holder died.")},
    {"__enter__", mutex_enter, METH_NOARGS, PyDoc_STR("Take the lock.")},
    {"__exit__", (PyCFunction)(void (*)(void))mutex_exit, METH_FASTCALL, PyDoc_STR("Free the lock.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mutex_getters[] = {
    {"_holder", mutex_holder, NULL, PyDoc_STR("Process that has it, 0 if none."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot mutex_slots[] = {
    {Py_tp_new, mutex_new},
    {Py_tp_dealloc, mutex_dealloc},
    {Py_tp_traverse, mutex_traverse},
    {Py_tp_methods, mutex_methods},
    {Py_tp_getset, mutex_getters},
    {Py_tp_doc, (void *)PyDoc_STR("A lock in shared memory.")},
    {0, NULL},
};

PyType_Spec ndshare_mutex_spec = {
    .name = "ndshare._locks._lock.Mutex",
    .basicsize = sizeof(ndshare_mutex),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = mutex_slots,
};
