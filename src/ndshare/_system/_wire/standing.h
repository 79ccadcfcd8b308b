/* How the system sees this process, in one look. */
#ifndef NDSHARE_STANDING_H
#define NDSHARE_STANDING_H

#include "extension.h"

/* here() -> bytes: identity of the working directory and of what the descriptors 1 and 2 point to. */
PyObject *ndshare_standing_here(PyObject *module, PyObject *ignored);

/* standing() -> bytes: what a task may have changed about its process. */
PyObject *ndshare_standing_all(PyObject *module, PyObject *ignored);

#endif
