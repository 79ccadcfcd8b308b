/* NumPy's C API, imported once in module.c for all files that see this header, and where an array lies. */
#ifndef NDSHARE_ARRAY_H
#define NDSHARE_ARRAY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL ndshare_heap_array_api
#include <numpy/arrayobject.h>

#include <stdbool.h>
#include <stddef.h>

/* The bytes from an array's first to its last, gaps of its strides included. */
size_t ndshare_array_extent(PyArrayObject *array, char **low);

/* Lowest address of the memory an array lies in, or was made in if it is empty. */
char *ndshare_array_lowest(PyArrayObject *array);

/* Whether the elements lie side by side without a gap, in whatever order. */
bool ndshare_array_is_dense(int ndim, const npy_intp *shape, const npy_intp *strides, npy_intp itemsize);

#endif
