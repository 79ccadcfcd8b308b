/* NumPy's C API, imported once in module.c for all files that see this header. */
#ifndef NDSHARE_ARRAY_API_H
#define NDSHARE_ARRAY_API_H

#include "heap.h"

#define PY_ARRAY_UNIQUE_SYMBOL ndshare_heap_array_api
#include <numpy/arrayobject.h>

/* altered.c: the bytes from an array's first to its last, gaps of its strides included. */
size_t ndshare_array_extent(PyArrayObject *array, char **low);

#endif
