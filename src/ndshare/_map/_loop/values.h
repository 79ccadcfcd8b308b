/* The values of a share that are taken by their index. */
#ifndef NDSHARE_LOOP_VALUES_H
#define NDSHARE_LOOP_VALUES_H

#include "loop.h"

#include <stdbool.h>

/* The values of one share. */
typedef struct {
    PyObject *source;
    PyObject *numbers;  /* NULL; an iterator that yields the values: that of a range counts in C, while indexing
                         * one makes a few objects; or the source itself, if each item is its index */
    PyObject *made;     /* the last scalar that was made here; borrowed */
    PyObject *spare;    /* the same if nobody has kept it, else NULL */
    bool is_array;
} ndshare_values;

int ndshare_values_open(ndshare_values *values, PyObject *source, Py_ssize_t first, Py_ssize_t count);
PyObject *ndshare_values_at(ndshare_values *values, Py_ssize_t index, PyObject *number);  /* new reference */
void ndshare_values_done(ndshare_values *values, PyObject *value);  /* takes it back */
void ndshare_values_close(ndshare_values *values);

#endif
