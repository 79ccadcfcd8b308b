/* Functions the files of ndshare._loop share. */
#ifndef NDSHARE_LOOP_H
#define NDSHARE_LOOP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

PyObject *ndshare_loop_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
