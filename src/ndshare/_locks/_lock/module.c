/* ndshare._locks._lock: a lock in shared memory that the kernel frees when its holder dies.
 *
 * lock.h    the layout in shared memory
 * mutex.c   the type
 * here      the module, and `make`: a new lock in given memory
 */
#include "lock.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

_Atomic unsigned ndshare_lock_forks = 1;
int32_t ndshare_lock_pid;

static void
after_fork_in_child(void)
{
    ndshare_lock_pid = (int32_t)getpid();
    atomic_fetch_add(&ndshare_lock_forks, 1);
}

int
ndshare_cell_make(ndshare_cell *cell)
{
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error != 0) {
        return error;
    }
    error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (error == 0) {
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    if (error == 0) {
        error = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    }
    if (error == 0) {
        memset(cell, 0, sizeof *cell);
        error = pthread_mutex_init(&cell->mutex, &attributes);
        cell->magic = NDSHARE_LOCK_MAGIC;
    }
    pthread_mutexattr_destroy(&attributes);
    return error;
}

static PyObject *
make(PyObject *Py_UNUSED(module), PyObject *memory)
{
    Py_buffer view;
    if (PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    int error = EINVAL;
    if (view.len >= NDSHARE_LOCK_BYTES && (uintptr_t)view.buf % 64 == 0) {
        error = ndshare_cell_make(view.buf);
    }
    PyBuffer_Release(&view);
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *
configure(PyObject *module, PyObject *died_error)
{
    ndshare_lock_state *state = PyModule_GetState(module);
    Py_XSETREF(state->died_error, Py_NewRef(died_error));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"make", make, METH_O,
     PyDoc_STR("make(memory)\n--\n\nMake a new lock, free, in NBYTES bytes of shared memory, aligned to 64.")},
    {"configure", configure, METH_O, PyDoc_STR("configure(died_error)\n--\n\nThe exception class to raise.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    ndshare_lock_state *state = PyModule_GetState(module);
    if (ndshare_lock_pid == 0) {
        ndshare_lock_pid = (int32_t)getpid();
        if (pthread_atfork(NULL, NULL, after_fork_in_child) != 0) {
            PyErr_SetString(PyExc_OSError, "ndshare cannot register its fork handler");
            return -1;
        }
    }
    state->held = PyDict_New();
    state->mutex_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ndshare_mutex_spec, NULL);
    if (state->held == NULL || state->mutex_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->mutex_type) < 0
        || PyModule_AddIntConstant(module, "NBYTES", NDSHARE_LOCK_BYTES) < 0 ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    ndshare_lock_state *state = PyModule_GetState(module);
    Py_VISIT(state->held);
    Py_VISIT(state->died_error);
    Py_VISIT(state->mutex_type);
    return 0;
}

/* `held` is left out on purpose: the memory of what is held must stay mapped, through interpreter exit. */
static int
module_clear(PyObject *module)
{
    ndshare_lock_state *state = PyModule_GetState(module);
    Py_CLEAR(state->died_error);
    Py_CLEAR(state->mutex_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

struct PyModuleDef ndshare_lock_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ndshare._locks._lock",
    .m_doc = PyDoc_STR("Locks that the kernel frees when their holder dies."),
    .m_size = sizeof(ndshare_lock_state),
    .m_methods = methods,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC
PyInit__lock(void)
{
    return PyModuleDef_Init(&ndshare_lock_definition);
}
