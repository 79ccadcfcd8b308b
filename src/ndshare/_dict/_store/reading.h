/* Private copies, and waiting for newer values. */
#ifndef NDSHARE_DICT_READING_H
#define NDSHARE_DICT_READING_H

#include "dict.h"

PyObject *ndshare_store_load(PyObject *self, PyObject *number);
PyObject *ndshare_store_snapshot(PyObject *self, PyObject *keys);
PyObject *ndshare_store_version(PyObject *self, PyObject *number);
PyObject *ndshare_store_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

#endif
