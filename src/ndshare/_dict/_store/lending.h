/* The idle slot as memory of what an update function makes. */
#ifndef NDSHARE_DICT_LENDING_H
#define NDSHARE_DICT_LENDING_H

#include "dict.h"

PyObject *ndshare_lending_open(ndshare_store *store, Py_ssize_t key, int slot);
int ndshare_lending_close(ndshare_store *store, Py_ssize_t key, PyObject *window, PyObject *value);
void ndshare_lending_drop(ndshare_store *store, Py_ssize_t key, PyObject *window);
PyObject *ndshare_store_recall(PyObject *self, PyObject *unused);

#endif
