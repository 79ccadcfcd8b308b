/* Block: one counted reference, from Python, on a range of a segment. */
#ifndef NDSHARE_BLOCK_H
#define NDSHARE_BLOCK_H

#include "heap.h"

int ndshare_block_start(PyObject *module);

/* Takes over one handle (keeper: one user) that the caller has counted already. */
PyObject *ndshare_block_new(ndshare_segment *segment, char *start, size_t nbytes, bool whole, bool keeper);

/* The segment with one more handle, so that it stays; NULL with an exception if that is no Block, or a released
 * one. */
ndshare_segment *ndshare_block_pin(PyObject *block);
void ndshare_block_unpin(PyObject *block, ndshare_segment *segment);

#endif
