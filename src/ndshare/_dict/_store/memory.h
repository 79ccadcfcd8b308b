/* Where the memory of large values comes from. */
#ifndef NDSHARE_DICT_MEMORY_H
#define NDSHARE_DICT_MEMORY_H

#include "dict.h"

extern PyDataMemAllocator ndshare_memory_blocks;

int ndshare_memory_configure(PyObject *capsule);
PyObject *ndshare_memory_recycled(void);
PyObject *ndshare_memory_set(PyObject *handler);
int ndshare_memory_restore(PyObject *before);
PyObject *ndshare_memory_empty(const ndshare_store *store, Py_ssize_t key, bool brief);

#endif
