/* ndshare._node._twin: what changed in a piece of memory since its twin was made, and bringing it elsewhere.
 *
 * runs.c  comparison, run lengths, merging
 *
 * No state.
 */
#include "runs.h"

static PyMethodDef methods[] = {
    {"changes", (PyCFunction)(void (*)(void))ndshare_twin_changes, METH_FASTCALL,
     PyDoc_STR("changes(new, old) -> (runs, data)\n\n"
               "Lengths of unchanged and changed stretches in turn, and the bytes of the changed ones. `old` is a "
               "buffer of the same length, or None for zeros.")},
    {"merge", (PyCFunction)(void (*)(void))ndshare_twin_merge, METH_FASTCALL,
     PyDoc_STR("merge(target, runs, data) -> bytes\n\nWrite the changed stretches, and nothing else.")},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ndshare._node._twin",
    .m_doc = PyDoc_STR("What changed since a twin was made."),
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__twin(void)
{
    return PyModuleDef_Init(&definition);
}
