/* One large copy by several threads. */
#ifndef NDSHARE_COPYING_H
#define NDSHARE_COPYING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ndshare_copying_copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
