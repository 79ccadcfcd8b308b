/* Numbers of keys, as callers pass them. */
#ifndef NDSHARE_DICT_ARGUMENTS_H
#define NDSHARE_DICT_ARGUMENTS_H

#include "slots.h"

bool ndshare_store_open(ndshare_store *store);
int ndshare_store_damaged(Py_ssize_t key);
Py_ssize_t ndshare_store_key(ndshare_store *store, PyObject *number);
Py_ssize_t ndshare_store_current(ndshare_store *store, PyObject *number, ndshare_current *current);
Py_ssize_t *ndshare_store_keys(ndshare_store *store, PyObject *sequence, Py_ssize_t *n);

#endif
