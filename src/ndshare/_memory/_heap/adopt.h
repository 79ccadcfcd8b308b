/* Arrays on memory that exists already. */
#ifndef NDSHARE_ADOPT_H
#define NDSHARE_ADOPT_H

#include "heap.h"

/* The array whose lowest byte is `offset` bytes into the block of `nbytes` at `start`, on which the caller has a
 * handle. Read-only, and a view of `base`, if there is one; the reference to it is taken over in every case. */
PyObject *ndshare_adopt_array(ndshare_segment *segment, char *start, size_t nbytes, PyObject *dtype,
                              PyObject *shape, PyObject *strides, Py_ssize_t offset, PyObject *base);

#endif
