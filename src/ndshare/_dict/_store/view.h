/* Read-only arrays on the slots. */
#ifndef NDSHARE_DICT_VIEW_H
#define NDSHARE_DICT_VIEW_H

#include "slots.h"

extern PyType_Spec ndshare_view_spec;

PyObject *ndshare_view_array(PyObject *self, Py_ssize_t key, const ndshare_current *where);
PyObject *ndshare_store_view(PyObject *self, PyObject *number);
PyObject *ndshare_view_intact(PyObject *module, PyObject *array);

#endif
