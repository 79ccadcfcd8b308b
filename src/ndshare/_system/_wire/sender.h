/* Whose SIGINT it was: this process's own, or somebody's. */
#ifndef NDSHARE_SENDER_H
#define NDSHARE_SENDER_H

#include "extension.h"

PyObject *ndshare_sender_watch(PyObject *module, PyObject *ignored);
PyObject *ndshare_sender_was_self(PyObject *module, PyObject *ignored);

#endif
