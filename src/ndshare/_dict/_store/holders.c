/* Which thread of this process has which keys, of all dicts; and who waits for whom.
 *
 * Within a dict, keys are locked in their order, which is looked at before anybody waits. Between dicts there is
 * no order. There a thread that waits for a key writes it into the cells of all keys it has (`wanted`): who waits
 * can follow the chain from key to key and see whether it leads back to itself. A chain through a dict that this
 * process does not have cannot be followed further.
 *
 * Who takes a lock clears `wanted`: what a holder that died has left there counts no more.
 *
 * Everything here happens with the GIL. */
#define NO_IMPORT_ARRAY
#include "holders.h"

#include <errno.h>
#include <pythread.h>
#include <sys/stat.h>

#define KEY_BITS 20          /* NDSHARE_DICT_MAX_KEYS */
#define LONGEST_CHAIN 64

static ndshare_store *all;

int
ndshare_holders_join(ndshare_store *store, int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    store->device = (uint64_t)status.st_dev;
    store->inode = (uint64_t)status.st_ino;
    store->next = all;
    if (all != NULL) {
        all->previous = store;
    }
    all = store;
    return 0;
}

void
ndshare_holders_leave(ndshare_store *store)
{
    if (store->previous != NULL) {
        store->previous->next = store->next;
    }
    else if (all == store) {
        all = store->next;
    }
    if (store->next != NULL) {
        store->next->previous = store->previous;
    }
    PyMem_Free(store->held);
}

int
ndshare_holders_add(ndshare_store *store, Py_ssize_t key)
{
    if (store->held_count == store->held_room) {
        Py_ssize_t room = 2 * store->held_room + 8;
        ndshare_held *grown = PyMem_Realloc(store->held, sizeof *grown * (size_t)room);
        if (grown == NULL) {
            return ENOMEM;
        }
        store->held = grown;
        store->held_room = room;
    }
    store->held[store->held_count++] = (ndshare_held){PyThread_get_thread_ident(), key};
    return 0;
}

void
ndshare_holders_remove(ndshare_store *store, Py_ssize_t key)
{
    /* From the end: given back in the reverse order. */
    for (Py_ssize_t i = store->held_count - 1; i >= 0; i--) {
        if (store->held[i].key == key) {
            store->held[i] = store->held[--store->held_count];
            return;
        }
    }
}

/* Whether this thread has any key of any dict. */
bool
ndshare_holders_any(void)
{
    unsigned long me = PyThread_get_thread_ident();
    for (const ndshare_store *store = all; store != NULL; store = store->next) {
        for (Py_ssize_t i = 0; i < store->held_count; i++) {
            if (store->held[i].thread == me) {
                return true;
            }
        }
    }
    return false;
}

static bool
same_file(const ndshare_store *one, const ndshare_store *other)
{
    return one->inode == other->inode && one->device == other->device;
}

/* The last key of this dict that this thread has, or -1; a process may be attached to a dict several times. */
Py_ssize_t
ndshare_holders_last(const ndshare_store *store)
{
    unsigned long me = PyThread_get_thread_ident();
    Py_ssize_t last = -1;
    for (const ndshare_store *one = all; one != NULL; one = one->next) {
        for (Py_ssize_t i = 0; i < one->held_count && same_file(one, store); i++) {
            if (one->held[i].thread == me && one->held[i].key > last) {
                last = one->held[i].key;
            }
        }
    }
    return last;
}

static uint64_t
name_of(const ndshare_store *store, Py_ssize_t key)
{
    return store->inode << KEY_BITS | (uint64_t)key;
}

/* Say in everything that this thread has that it waits for a key; with a key < 0, that it waits no more. */
void
ndshare_holders_want(const ndshare_store *store, Py_ssize_t key)
{
    unsigned long me = PyThread_get_thread_ident();
    uint64_t name = key < 0 ? 0 : name_of(store, key);
    for (const ndshare_store *one = all; one != NULL; one = one->next) {
        for (Py_ssize_t i = 0; i < one->held_count; i++) {
            if (one->held[i].thread == me) {
                atomic_store(&ndshare_dict_cell_of(one, one->held[i].key)->wanted, name);
            }
        }
    }
}

/* The key of this thread for which the holder of `key` waits, itself or through others; 0 if there is none. */
uint64_t
ndshare_holders_cycle(const ndshare_store *store, Py_ssize_t key)
{
    unsigned long me = PyThread_get_thread_ident();
    uint64_t name = name_of(store, key);
    for (int steps = 0; steps < LONGEST_CHAIN; steps++) {
        const ndshare_store *there = all;
        while (there != NULL && there->inode != name >> KEY_BITS) {
            there = there->next;
        }
        Py_ssize_t number = (Py_ssize_t)(name & (NDSHARE_DICT_MAX_KEYS - 1));
        if (there == NULL || number >= there->count) {
            return 0;
        }
        name = atomic_load(&ndshare_dict_cell_of(there, number)->wanted);
        if (name == 0) {
            return 0;
        }
        for (const ndshare_store *one = all; one != NULL; one = one->next) {
            for (Py_ssize_t i = 0; i < one->held_count; i++) {
                if (one->held[i].thread == me && name_of(one, one->held[i].key) == name) {
                    return name;
                }
            }
        }
    }
    return 0;
}

/* Every cycle has a link from a later key to an earlier one: there it is cut first. */
bool
ndshare_holders_descends(const ndshare_store *store, Py_ssize_t key, uint64_t link)
{
    return name_of(store, key) < link;
}

/* Numbers of the keys that this thread has, through this store or through any that is of the same file. */
PyObject *
ndshare_holders_keys(const ndshare_store *store, bool anywhere)
{
    unsigned long me = PyThread_get_thread_ident();
    PyObject *keys = PyList_New(0);
    for (const ndshare_store *one = all; keys != NULL && one != NULL; one = one->next) {
        for (Py_ssize_t i = 0; i < one->held_count && (one == store || (anywhere && same_file(one, store))); i++) {
            PyObject *number = one->held[i].thread == me ? PyLong_FromSsize_t(one->held[i].key) : NULL;
            if (number != NULL && PyList_Append(keys, number) < 0) {
                Py_CLEAR(keys);
            }
            Py_XDECREF(number);
            if (keys == NULL || PyErr_Occurred()) {
                Py_CLEAR(keys);
                return NULL;
            }
        }
    }
    return keys;
}

PyObject *
ndshare_store_held(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return ndshare_holders_keys((ndshare_store *)self, false);
}
