/* New values. */
#ifndef NDSHARE_DICT_WRITING_H
#define NDSHARE_DICT_WRITING_H

#include "slots.h"

PyObject *ndshare_writing_start(ndshare_store *store, Py_ssize_t key, double end, ndshare_current *current);
void ndshare_writing_copy(ndshare_store *store, Py_ssize_t key, const void *source);
PyObject *ndshare_writing_own(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_fits(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_fill(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_store_update(PyObject *self, PyObject *const *args, Py_ssize_t nargs);

#endif
