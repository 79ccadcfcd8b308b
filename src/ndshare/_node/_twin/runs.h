/* Comparison of memory with its twin, and merging: what the module offers. */
#ifndef NDSHARE_TWIN_RUNS_H
#define NDSHARE_TWIN_RUNS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ndshare_twin_changes(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_twin_merge(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
