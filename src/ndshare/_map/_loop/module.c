/* ndshare._map._loop: the inner loop of `map`, in C because it is paid for every item.
 *
 * items.c   one share: entries, kernel, done mask, slot
 * values.c  the values of a share that are taken by their index
 *
 * No state.
 */
#include "items.h"

static PyMethodDef methods[] = {
    {"run", (PyCFunction)(void (*)(void))ndshare_items_run, METH_FASTCALL,
     PyDoc_STR("run(kernel, worker_id, source, by_index, board, slot, mask, first, count, timed)\n"
               "    -> (items, killed)\n\n"
               "Call the kernel for the entries of one share. `source` is indexed, or else an iterator of tuples.")},
    {"drop", ndshare_items_drop, METH_O,
     PyDoc_STR("drop(result)\n\nRefuse what a kernel has returned if nothing of the kernel has run for it.")},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *Py_UNUSED(module))
{
    import_array1(-1);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ndshare._map._loop",
    .m_doc = PyDoc_STR("The inner loop of map."),
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__loop(void)
{
    return PyModuleDef_Init(&definition);
}
