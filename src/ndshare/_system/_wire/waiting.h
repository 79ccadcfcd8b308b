/* Waiting for a moment, without the GIL. */
#ifndef NDSHARE_WAITING_H
#define NDSHARE_WAITING_H

#include "extension.h"

#include <stdbool.h>
#include <stdint.h>

/* Nanoseconds of a clock that nobody sets. */
int64_t ndshare_waiting_now(void);

/* Look until it is there, or so long at most; tell whether it is. Gives up the GIL. */
bool ndshare_waiting_spin(bool (*is_there)(const void *), const void *what, int microseconds);

PyObject *ndshare_waiting_spin_readable(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_waiting_rest(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
