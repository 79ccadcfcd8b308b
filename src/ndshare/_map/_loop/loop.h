/* Functions the files of ndshare._map._loop share. */
#ifndef NDSHARE_LOOP_H
#define NDSHARE_LOOP_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

#define PY_ARRAY_UNIQUE_SYMBOL ndshare_loop_array_api
#include <numpy/arrayobject.h>

/* The values of one share. */
typedef struct {
    PyObject *source;
    PyObject *numbers;  /* NULL; an iterator that yields the values: that of a range counts in C, while indexing
                         * one makes a few objects; or the source itself, if each item is its index */
    PyObject *made;     /* the last scalar that was made here; borrowed */
    PyObject *spare;    /* the same if nobody has kept it, else NULL */
    bool is_array;
} ndshare_values;

/* values.c */
int ndshare_values_open(ndshare_values *values, PyObject *source, Py_ssize_t first, Py_ssize_t count);
PyObject *ndshare_values_at(ndshare_values *values, Py_ssize_t index, PyObject *number);  /* new reference */
void ndshare_values_done(ndshare_values *values, PyObject *value);  /* takes it back */
void ndshare_values_close(ndshare_values *values);

/* items.c */
PyObject *ndshare_loop_run(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
