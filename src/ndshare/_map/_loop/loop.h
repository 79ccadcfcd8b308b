/* What all files of ndshare._map._loop include: Python and NumPy. */
#ifndef NDSHARE_LOOP_H
#define NDSHARE_LOOP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PY_ARRAY_UNIQUE_SYMBOL ndshare_loop_array_api
#include <numpy/arrayobject.h>

#endif
