/* One share of a map: its entries, the kernel, the done mask, the worker's slot. */
#ifndef NDSHARE_LOOP_ITEMS_H
#define NDSHARE_LOOP_ITEMS_H

#include "loop.h"

PyObject *ndshare_items_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_items_drop(PyObject *module, PyObject *result);

#endif
