/* The lock of a key. */
#ifndef NDSHARE_DICT_LOCKS_H
#define NDSHARE_DICT_LOCKS_H

#include "dict.h"

PyObject *ndshare_lock_keys(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n, double end);
PyObject *ndshare_lock_failure(const ndshare_store *store, const char *reason, Py_ssize_t key);
void ndshare_lock_free(ndshare_store *store, Py_ssize_t key);
bool ndshare_lock_owned(const ndshare_store *store, Py_ssize_t key);
void ndshare_lock_forget(ndshare_store *store);

#endif
