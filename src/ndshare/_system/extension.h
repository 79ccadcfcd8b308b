/* What the C extensions of ndshare have in common; every file of them includes it before anything else.
 *
 * A module.c ends with NDSHARE_EXTENSION, which makes the slots, the definition and the init function:
 *
 *     NDSHARE_EXTENSION(_twin, ndshare_twin_definition, Py_MOD_GIL_NOT_USED, ndshare_extension_plain,
 *                       .m_name = "ndshare._node._twin", .m_methods = methods)
 *
 * Its parts: the last name of the module, the name of the definition, whether the module needs the GIL
 * (Py_MOD_GIL_NOT_USED only if its files say what guards their state without it), the function that fills
 * a new module, and the fields of the definition.
 *
 * Shared memory, descriptors and signal handlers belong to the process, not to an interpreter: subinterpreters
 * are refused.
 */
#ifndef NDSHARE_EXTENSION_H
#define NDSHARE_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if PY_VERSION_HEX < 0x030D0000
#define PyLong_AsInt _PyLong_AsInt
#define NDSHARE_GIL_SLOT(use)
#else
#define NDSHARE_GIL_SLOT(use) {Py_mod_gil, use},
#endif

#if PY_VERSION_HEX < 0x030C0000
#define NDSHARE_INTERPRETERS_SLOT
#else
/* Any interpreter may load it, so that ndshare_extension_refuse is reached and says why it may not. */
#define NDSHARE_INTERPRETERS_SLOT {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif

/* In a table of methods: a function that takes its arguments as an array. */
#define NDSHARE_FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL

/* Fills a module that needs no more than its methods. */
static inline int
ndshare_extension_plain(PyObject *Py_UNUSED(module))
{
    return 0;
}

static inline int
ndshare_extension_refuse(PyObject *module)
{
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        return 0;
    }
    PyErr_Format(PyExc_ImportError, "%s was imported in a subinterpreter; ndshare works in the main interpreter of a "
                 "process only, as its memory belongs to the process: import it there, or use processes",
                 PyModule_GetName(module));
    return -1;
}

#define NDSHARE_EXTENSION(last_name, definition, gil, fill, ...)                              \
    extern struct PyModuleDef definition;                                                     \
    static PyModuleDef_Slot definition##_slots[] = {                                          \
        {Py_mod_exec, ndshare_extension_refuse},                                              \
        {Py_mod_exec, fill},                                                                  \
        NDSHARE_INTERPRETERS_SLOT                                                             \
        NDSHARE_GIL_SLOT(gil)                                                                 \
        {0, NULL},                                                                            \
    };                                                                                        \
    struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_slots = definition##_slots, __VA_ARGS__}; \
    PyMODINIT_FUNC                                                                            \
    PyInit_##last_name(void)                                                                  \
    {                                                                                         \
        return PyModuleDef_Init(&definition);                                                 \
    }

#endif
