/* Functions the files of ndshare._node._twin share. */
#ifndef NDSHARE_TWIN_H
#define NDSHARE_TWIN_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ndshare_twin_changes(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_twin_merge(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
