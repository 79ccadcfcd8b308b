/* ndshare._locks._lock: a lock in shared memory that the kernel frees when its holder dies.
 *
 * cell   the lock in shared memory
 * mutex  the type
 * here   the module, and `make`: a new lock in given memory
 */
#include "extension.h"

#include "cell.h"
#include "mutex.h"

#include <errno.h>

static PyObject *
make(PyObject *Py_UNUSED(module), PyObject *memory)
{
    Py_buffer view;
    if (PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    int error = EINVAL;
    if (view.len >= NDSHARE_CELL_BYTES && (uintptr_t)view.buf % 64 == 0) {
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
    if (ndshare_cell_start() != 0) {
        PyErr_SetString(PyExc_OSError, "ndshare cannot register its fork handler");
        return -1;
    }
    state->held = PyDict_New();
    state->mutex_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ndshare_mutex_spec, NULL);
    if (state->held == NULL || state->mutex_type == NULL) {
        return -1;
    }
    return PyModule_AddType(module, state->mutex_type) < 0
        || PyModule_AddIntConstant(module, "NBYTES", NDSHARE_CELL_BYTES) < 0 ? -1 : 0;
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

NDSHARE_EXTENSION(_lock, ndshare_lock_definition, Py_MOD_GIL_NOT_USED, module_exec,
                  .m_name = "ndshare._locks._lock",
                  .m_doc = PyDoc_STR("Locks that the kernel frees when their holder dies."),
                  .m_size = sizeof(ndshare_lock_state),
                  .m_methods = methods,
                  .m_traverse = module_traverse,
                  .m_clear = module_clear)
