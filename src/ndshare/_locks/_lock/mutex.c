/* Who has to wait does so without the GIL, for a slice of time, then looks whether a signal came: the wait itself
 * cannot be interrupted. The slices are also what saves a waiter on kernels before 5.5 whose waker was killed between
 * waking and taking.
 *
 * Without the GIL: what is in shared memory is guarded by the lock itself; an entry of `held` is made and removed by
 * the holder only, and the dict has a lock of its own; the rest of the state is set before the module can be used.
 */
#include "mutex.h"

#include "cell.h"

#include <errno.h>
#include <math.h>

#define SLICE_NS INT64_C(50000000) /* how long Ctrl-C may wait */
#define LONGEST_S 1e9

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    ndshare_cell *cell;
    int report;                  /* raise when a holder died, until somebody repaired */
} mutex;

static ndshare_lock_state *
state_of(PyObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &ndshare_lock_definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* Wait in slices; `timeout` in seconds, a negative one stands for none. What `ndshare_cell_wait` gives, or -1 with a
 * Python error: a signal handler has raised. */
static int
wait(ndshare_cell *cell, double timeout)
{
    int64_t end = timeout < 0 ? INT64_MAX : ndshare_cell_now() + (int64_t)(fmin(timeout, LONGEST_S) * 1e9);
    for (;;) {
        int64_t left = end - ndshare_cell_now();
        int error;
        Py_BEGIN_ALLOW_THREADS
        error = ndshare_cell_wait(cell, left > SLICE_NS ? SLICE_NS : left > 0 ? left : 0);
        Py_END_ALLOW_THREADS
        if (error != ETIMEDOUT || left <= 0) {
            return error;
        }
        if (PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
}

static void
raise_death(ndshare_lock_state *state, int pid)
{
    PyObject *instance = PyObject_CallFunction(state->died_error, "i", pid);
    if (instance != NULL) {
        PyErr_SetObject(state->died_error, instance);
        Py_DECREF(instance);
    }
}

/* 1: taken, 0: not in time, -1: error set */
static int
take(mutex *self, int blocking, double timeout, int repairing)
{
    ndshare_lock_state *state = state_of((PyObject *)self);
    ndshare_cell *cell = self->cell;
    if (state == NULL) {
        return -1;
    }
    int error = ndshare_cell_try(cell);
    if (error == EBUSY || error == EDEADLK) {
        if (!blocking) {
            return 0;
        }
        error = wait(cell, timeout);
    }
    if (error == ETIMEDOUT) {
        return 0;
    }
    if (error == EDEADLK) {
        PyErr_SetString(PyExc_RuntimeError,
                        "Lock.acquire: this thread holds the lock already, and would wait for itself; "
                        "release it first, or acquire it in one place only");
        return -1;
    }
    if (error != 0) {
        if (error > 0) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        return -1;
    }
    int died = atomic_load_explicit(&cell->died, memory_order_relaxed);
    if (died != 0 && self->report && !repairing) {
        ndshare_cell_give_back(cell);
        raise_death(state, died);
        return -1;
    }
    PyObject *key = PyLong_FromVoidPtr(cell);
    if (key == NULL || PyDict_SetItem(state->held, key, (PyObject *)self) < 0) {
        ndshare_cell_give_back(cell);
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
    int taken = take((mutex *)self, blocking, timeout, 0);
    return taken < 0 ? NULL : PyBool_FromLong(taken);
}

static PyObject *
mutex_acquire_damaged(PyObject *self, PyObject *Py_UNUSED(unused))
{
    int taken = take((mutex *)self, 1, -1, 1);
    return taken < 0 ? NULL : PyBool_FromLong(atomic_load(&((mutex *)self)->cell->died) != 0);
}

static PyObject *
mutex_mark_repaired(PyObject *self, PyObject *Py_UNUSED(unused))
{
    atomic_store(&((mutex *)self)->cell->died, 0);
    Py_RETURN_NONE;
}

static PyObject *
mutex_release(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_cell *cell = ((mutex *)self)->cell;
    ndshare_lock_state *state = state_of(self);
    if (state == NULL) {
        return NULL;
    }
    if (!ndshare_cell_is_mine(cell)) {
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
    int error = ndshare_cell_give_back(cell);
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
    ndshare_cell *cell = ((mutex *)self)->cell;
    if (atomic_load(&cell->holder) == 0) {
        Py_RETURN_FALSE;
    }
    /* Somebody has it, or died with it. */
    if (ndshare_cell_try(cell) != 0) {
        Py_RETURN_TRUE;
    }
    ndshare_cell_give_back(cell);
    Py_RETURN_FALSE;
}

static PyObject *
mutex_enter(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return take((mutex *)self, 1, -1, 0) < 0 ? NULL : Py_NewRef(self);
}

static PyObject *
mutex_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(nargs))
{
    return mutex_release(self, NULL);
}

static PyObject *
mutex_holder(PyObject *self, void *Py_UNUSED(closure))
{
    ndshare_cell *cell = ((mutex *)self)->cell;
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
    mutex *self = (mutex *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(memory, &self->view, PyBUF_WRITABLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->cell = self->view.buf;
    self->report = report;
    if (self->view.len < NDSHARE_CELL_BYTES || (uintptr_t)self->view.buf % 64 != 0
        || self->cell->magic != NDSHARE_CELL_MAGIC) {
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
    Py_VISIT(((mutex *)self)->view.obj);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
mutex_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyBuffer_Release(&((mutex *)self)->view);
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
    .basicsize = sizeof(mutex),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = mutex_slots,
};
