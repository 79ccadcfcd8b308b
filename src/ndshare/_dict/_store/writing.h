/* New values. */
#ifndef NDSHARE_DICT_WRITING_H
#define NDSHARE_DICT_WRITING_H

#include "dict.h"

PyObject *ndshare_store_fits(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_begin(PyObject *self, PyObject *number);
PyObject *ndshare_store_update(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

#endif
