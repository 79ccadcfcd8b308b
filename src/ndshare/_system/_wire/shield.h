/* Ctrl-C must not strike between two lines that belong together. */
#ifndef NDSHARE_SHIELD_H
#define NDSHARE_SHIELD_H

#include "extension.h"

/* Hear of forks; for a new module. */
int ndshare_shield_start(PyObject *module);

PyObject *ndshare_shield_main(PyObject *module, PyObject *ident);
PyObject *ndshare_shield_up(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_down(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_window(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_curtain(PyObject *module, PyObject *number);

#endif
