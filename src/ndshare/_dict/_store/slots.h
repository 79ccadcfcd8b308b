/* The two slots of a key. */
#ifndef NDSHARE_DICT_SLOTS_H
#define NDSHARE_DICT_SLOTS_H

#include "dict.h"

typedef struct {
    int slot;
    uint64_t stamp, version;
} ndshare_current;

int ndshare_slot_look(const ndshare_store *store, Py_ssize_t key, ndshare_current *out);
bool ndshare_slot_unchanged(const ndshare_store *store, Py_ssize_t key, const ndshare_current *seen);
int ndshare_slot_begin(ndshare_store *store, Py_ssize_t key, double end, ndshare_current *current);
void ndshare_slot_publish(ndshare_store *store, Py_ssize_t key);
int ndshare_slot_commit(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n);
void ndshare_slot_fill(ndshare_store *store, Py_ssize_t key, const void *source);
uint64_t ndshare_slot_seal(Py_ssize_t key, uint64_t stamp, uint64_t version);
void ndshare_slot_copy_in(void *to, const void *from, size_t nbytes);
void ndshare_slot_copy_out(void *to, const void *from, size_t nbytes);

extern _Atomic long ndshare_dict_countdown;

/* A place where tests let the process be killed; costs one load otherwise. */
void ndshare_dict_step_taken(void);
static inline void
ndshare_dict_step(void)
{
    if (atomic_load_explicit(&ndshare_dict_countdown, memory_order_relaxed) >= 0) {
        ndshare_dict_step_taken();
    }
}

#endif
