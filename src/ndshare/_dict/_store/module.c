/* ndshare._dict._store: the part of SharedDict that decides between processes.
 *
 * dict.h     the layout in the file, the order of the stores; what a process keeps of it
 * waiting    sleeping until a value changes; locks of the kernel, gates
 * slots      which slot is current, publishing, commit of several; copies into slots and out of them
 * holders    which keys a thread has, who waits for whom
 * arguments  numbers of keys, arrays that fit
 * locks      locks of keys
 * memory     where the memory of large values comes from
 * view       read-only arrays on the slots
 * lending    the idle slot as memory of what an update function makes
 * reading    copies, snapshots, waiting for newer values
 * writing    beginning a slot, update
 * hold       locks for the length of a block, new values published together
 * store      the type
 *
 * A file includes the headers of those above it only.
 */
#include "extension.h"

#include "hold.h"
#include "holders.h"
#include "memory.h"
#include "slots.h"
#include "store.h"
#include "view.h"
#include "writing.h"

static PyObject *
kill_after(PyObject *Py_UNUSED(module), PyObject *number)
{
    long steps = PyLong_AsLong(number);
    if (steps == -1 && PyErr_Occurred()) {
        return NULL;
    }
    atomic_store(&ndshare_dict_countdown, steps);
    Py_RETURN_NONE;
}

static PyObject *
set_memory(PyObject *Py_UNUSED(module), PyObject *handler)
{
    if (ndshare_memory_configure(handler) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"intact", ndshare_view_intact, METH_O,
     PyDoc_STR("intact(array) -> bool or None\n\nWhether a view shows what it was made for; None: not a view.")},
    {"kill_after", kill_after, METH_O,
     PyDoc_STR("kill_after(steps)\n\nFor tests: kill this process after that many steps of writing; -1: never.")},
    {"own", (PyCFunction)(void (*)(void))ndshare_writing_own, METH_FASTCALL,
     PyDoc_STR("own(arrays, given)\n\nReplace what is not the list's alone, or is what was given, by copies.")},
    {"set_memory", set_memory, METH_O,
     PyDoc_STR("set_memory(handler)\n\nWhere NumPy takes blocks from while an update function runs.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    import_array1(-1);
    if (ndshare_holders_prepare() < 0) {
        return -1;
    }
    ndshare_dict_state *state = PyModule_GetState(module);
    state->store_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ndshare_store_spec, NULL);
    state->view_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &ndshare_view_spec, NULL);
    if (state->store_type == NULL || state->view_type == NULL || PyModule_AddType(module, state->store_type) < 0) {
        return -1;
    }
    PyObject *hold = PyType_FromModuleAndSpec(module, &ndshare_hold_spec, NULL);
    int added = hold == NULL ? -1 : PyModule_AddType(module, (PyTypeObject *)hold);
    Py_XDECREF(hold);
    if (added < 0) {
        return -1;
    }
    return PyModule_AddIntConstant(module, "CELL_BYTES", NDSHARE_DICT_CELL) < 0
        || PyModule_AddIntConstant(module, "LARGE_BYTES", NDSHARE_DICT_LARGE) < 0
        || PyModule_AddIntConstant(module, "MAX_KEYS", NDSHARE_DICT_MAX_KEYS) < 0 ? -1 : 0;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    ndshare_dict_state *state = PyModule_GetState(module);
    Py_VISIT(state->store_type);
    Py_VISIT(state->view_type);
    return 0;
}

static int
module_clear(PyObject *module)
{
    ndshare_dict_state *state = PyModule_GetState(module);
    Py_CLEAR(state->store_type);
    Py_CLEAR(state->view_type);
    return 0;
}

NDSHARE_EXTENSION(_store, ndshare_dict_definition, Py_MOD_GIL_NOT_USED, module_exec,
                  .m_name = "ndshare._dict._store",
                  .m_doc = PyDoc_STR("Two slots per key, in a file that several processes map."),
                  .m_size = sizeof(ndshare_dict_state),
                  .m_methods = methods,
                  .m_traverse = module_traverse,
                  .m_clear = module_clear)
