/* The heap as NumPy's allocator (NEP 49). */
#ifndef NDSHARE_HANDLER_H
#define NDSHARE_HANDLER_H

#include "heap.h"

/* The address NumPy's next allocation in this thread returns: how memory is adopted by public means. */
extern _Thread_local void *ndshare_handler_next;
extern PyObject *ndshare_handler_adopting;

int ndshare_handler_start(void);
PyObject *ndshare_handler_make(PyObject *module, PyObject *kind);
PyObject *ndshare_handler_set(PyObject *module, PyObject *capsule);
PyObject *ndshare_handler_current(PyObject *module, PyObject *unused);

#endif
