/* Atomic reads and writes on memory that several processes map. */
#ifndef NDSHARE_ATOMICS_H
#define NDSHARE_ATOMICS_H

#include "extension.h"

PyObject *ndshare_atomic_cas_u8(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_claim(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_finish(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_cas_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_load_u8(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_load_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_store_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_add_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

PyObject *ndshare_atomic_sleep_while(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_wake_all(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
