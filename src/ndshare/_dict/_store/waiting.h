/* Sleeping, and locks of the kernel. */
#ifndef NDSHARE_DICT_WAITING_H
#define NDSHARE_DICT_WAITING_H

#include "dict.h"

double ndshare_monotonic(void);
double ndshare_deadline(double timeout);
double ndshare_left(double end, double slice);
int ndshare_doze(_Atomic uint32_t *word, uint32_t seen, double seconds);
int ndshare_range_lock(const ndshare_store *store, int64_t start, int64_t length, short kind);
int ndshare_gate_wait(ndshare_store *store, Py_ssize_t key, double end);
void ndshare_gate_wake(ndshare_dict_cell *cell);

#endif
