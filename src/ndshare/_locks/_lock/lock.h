/* What a lock looks like in shared memory.
 *
 *   0    pthread mutex: process-shared, robust, error-checking
 *   64   holder     thread id of who has it, 0: nobody. Written by the holder; a hint for everybody else
 *   68   holder_pid
 *   72   died       process that ended with it, until somebody has repaired what the lock protects; 0: none,
 *                   -1: it died before it could write its name
 *   76   magic
 *
 * Robust: when a thread ends, by whatever death, the kernel walks the list of the mutexes it has and marks
 * each; the next one to come gets EOWNERDEAD and the lock. The list goes through the mutexes themselves, so
 * memory of a mutex that is held must stay mapped: the module keeps a reference (`held`) while it is.
 */
#ifndef NDSHARE_LOCK_H
#define NDSHARE_LOCK_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define NDSHARE_LOCK_MAGIC 0x6b636f6cu
#define NDSHARE_LOCK_BYTES 128

typedef struct {
    union {
        pthread_mutex_t mutex;
        char room[64];
    };
    _Atomic int32_t holder, holder_pid, died;
    uint32_t magic;
} ndshare_cell;

_Static_assert(sizeof(pthread_mutex_t) <= 64 && sizeof(ndshare_cell) <= NDSHARE_LOCK_BYTES,
               "a lock has room for the mutex of this system");

typedef struct {
    PyObject *held;              /* address -> Mutex, of the mutexes threads of this process have */
    PyObject *died_error;
    PyTypeObject *mutex_type;
} ndshare_lock_state;

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    ndshare_cell *cell;
    int report;                  /* raise when a holder died, until somebody repaired */
} ndshare_mutex;

extern PyType_Spec ndshare_mutex_spec;
extern struct PyModuleDef ndshare_lock_definition;

extern _Atomic unsigned ndshare_lock_forks;   /* forks since this program began, and one */
extern int32_t ndshare_lock_pid;

int ndshare_cell_make(ndshare_cell *cell);

#endif
