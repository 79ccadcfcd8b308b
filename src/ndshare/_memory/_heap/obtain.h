/* The ways to get a Block. */
#ifndef NDSHARE_OBTAIN_H
#define NDSHARE_OBTAIN_H

#include "heap.h"

PyObject *ndshare_obtain_stage(PyObject *module, PyObject *nbytes);
PyObject *ndshare_obtain_allocate(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_obtain_seal(PyObject *module, PyObject *buffer);
PyObject *ndshare_obtain_attach(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_obtain_of(PyObject *module, PyObject *array);
PyObject *ndshare_obtain_is_shared(PyObject *module, PyObject *array);
PyObject *ndshare_obtain_should_copy_out(PyObject *module, PyObject *block);

#endif
