/* Into a queue and out of it: pickles that are all of a message in one call, and every receive. */
#ifndef NDSHARE_QUEUE_MESSAGES_H
#define NDSHARE_QUEUE_MESSAGES_H

#include "extension.h"

PyObject *ndshare_queue_send(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_recv(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
