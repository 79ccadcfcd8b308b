/* Looking at the cells of a file that somebody else has made. */
#define NO_IMPORT_ARRAY
#include "dict.h"

/* What cannot be a state of the cells, whatever died when: (key, field), or None. */
PyObject *
ndshare_store_check(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_store *self = (ndshare_store *)object;
    uint64_t txn = atomic_load((_Atomic uint64_t *)(self->base + NDSHARE_DICT_TXN));
    for (Py_ssize_t key = 0; key < self->count; key++) {
        ndshare_dict_cell *cell = ndshare_dict_cell_of(self, key);
        ndshare_current current;
        if (ndshare_slot_look(self, key, &current) != 0) {
            return Py_BuildValue("(ns)", key, "done");
        }
        for (int s = 0; s < 2; s++) {
            const char *field = NULL;
            for (int try = 0; try < 100; try++) {  /* somebody may be writing */
                field = NULL;
                uint64_t done = atomic_load(&cell->slot[s].done), begun = atomic_load(&cell->slot[s].begun);
                uint64_t link = atomic_load(&cell->slot[s].link), version = atomic_load(&cell->slot[s].version);
                uint64_t seal = atomic_load(&cell->seal[s]);
                if (done != 0 && done != begun) {
                    field = "begun";
                }
                else if (done != 0 && seal != ndshare_slot_seal(key, done, version)) {
                    field = "seal";
                }
                else if (done != 0 && link != 0) {
                    uint64_t now = atomic_load((_Atomic uint64_t *)(self->base + NDSHARE_DICT_TXN));
                    uint64_t leader = link & (NDSHARE_DICT_MAX_KEYS - 1), id = link / NDSHARE_DICT_MAX_KEYS;
                    if (leader >= (uint64_t)self->count || id == 0 || id > (now > txn ? now : txn)) {
                        field = "link";
                    }
                }
                if (field == NULL || atomic_load(&cell->slot[s].done) == 0) {
                    field = NULL;
                    break;
                }
            }
            if (field != NULL) {
                return Py_BuildValue("(ns)", key, field);
            }
        }
    }
    Py_RETURN_NONE;
}
