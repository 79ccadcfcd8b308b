/* Which keys the calling thread has, and who waits for whom. */
#ifndef NDSHARE_DICT_HOLDERS_H
#define NDSHARE_DICT_HOLDERS_H

#include "dict.h"

int ndshare_holders_prepare(void);
int ndshare_holders_join(ndshare_store *store, int fd);
void ndshare_holders_leave(ndshare_store *store);

uint64_t ndshare_thread(void);
ndshare_entry *ndshare_holders_first(void);
void ndshare_holders_add(ndshare_entry *entry);
void ndshare_holders_remove(ndshare_entry *entry);
Py_ssize_t ndshare_holders_last(const ndshare_store *store);
void ndshare_holders_want(const ndshare_store *store, Py_ssize_t key);
uint64_t ndshare_holders_cycle(const ndshare_store *store, Py_ssize_t key);
bool ndshare_holders_descends(const ndshare_store *store, Py_ssize_t key, uint64_t link);
PyObject *ndshare_holders_keys(const ndshare_store *store, bool anywhere);

#endif
