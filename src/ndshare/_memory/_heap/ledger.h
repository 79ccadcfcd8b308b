/* Reservations of the processes of one pool, in memory that they share. */
#ifndef NDSHARE_LEDGER_H
#define NDSHARE_LEDGER_H

#include "heap.h"

size_t ndshare_ledger_reserve(size_t nbytes);   /* what the others have reserved */
void ndshare_ledger_settle(size_t nbytes);
size_t ndshare_ledger_own_use(size_t own_bytes);
void ndshare_ledger_publish(size_t own_bytes);
void ndshare_ledger_leave(void);

PyObject *ndshare_ledger_create(PyObject *module, PyObject *slots);
PyObject *ndshare_ledger_detach(PyObject *module, PyObject *unused);
PyObject *ndshare_ledger_attach(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_ledger_clear(PyObject *module, PyObject *slot);
PyObject *ndshare_ledger_held(PyObject *module, PyObject *slot);

#endif
