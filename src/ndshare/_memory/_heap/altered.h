/* Was an array written to? */
#ifndef NDSHARE_ALTERED_H
#define NDSHARE_ALTERED_H

#include "heap.h"

PyObject *ndshare_altered(PyObject *module, PyObject *array);
PyObject *ndshare_altered_detach(PyObject *module, PyObject *array);
PyObject *ndshare_altered_digest(PyObject *module, PyObject *array);
PyObject *ndshare_altered_inherited(PyObject *module, PyObject *array);
PyObject *ndshare_altered_rewritten(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
