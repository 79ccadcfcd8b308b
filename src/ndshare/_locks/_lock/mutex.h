/* Mutex: the handle of a process on one lock. */
#ifndef NDSHARE_MUTEX_H
#define NDSHARE_MUTEX_H

#include "extension.h"

typedef struct {
    PyObject *held;              /* address -> Mutex, of the mutexes threads of this process have */
    PyObject *died_error;
    PyTypeObject *mutex_type;
} ndshare_lock_state;

extern PyType_Spec ndshare_mutex_spec;
extern struct PyModuleDef ndshare_lock_definition;

#endif
