/* What callers pass: numbers of keys, and arrays. */
#ifndef NDSHARE_DICT_ARGUMENTS_H
#define NDSHARE_DICT_ARGUMENTS_H

#include "slots.h"

bool ndshare_store_open(const ndshare_store *store);
int ndshare_store_failed(Py_ssize_t key, int error);
Py_ssize_t ndshare_store_key(const ndshare_store *store, PyObject *number);
Py_ssize_t ndshare_store_current(const ndshare_store *store, PyObject *number, ndshare_current *current);
Py_ssize_t *ndshare_store_keys(const ndshare_store *store, PyObject *sequence, Py_ssize_t *n);
bool ndshare_store_fitting(const ndshare_entry *entry, PyObject *object);

#endif
