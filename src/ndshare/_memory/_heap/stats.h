/* The heap in figures. */
#ifndef NDSHARE_STATS_H
#define NDSHARE_STATS_H

#include "heap.h"

PyObject *ndshare_stats(PyObject *module, PyObject *unused);
PyObject *ndshare_stats_available(PyObject *module, PyObject *unused);
PyObject *ndshare_stats_idle_bytes(PyObject *module, PyObject *unused);
PyObject *ndshare_stats_idle_limit(PyObject *module, PyObject *unused);

#endif
