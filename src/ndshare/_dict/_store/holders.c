/* Which keys a thread has, of all dicts; and who waits for whom.
 *
 * Within a dict, keys are locked in their order, which is looked at before anybody waits. Between dicts there is
 * no order. There a thread that waits for a key writes it into the cells of all keys it has (`wanted`): who waits
 * can follow the chain from key to key and see whether it leads back to itself. A chain through a dict that this
 * process does not have cannot be followed further.
 *
 * Who takes a lock clears `wanted`: what a holder that died has left there counts no more.
 *
 * A thread frees what it has taken, nobody else: so each has a chain of its own, and only the list of all dicts
 * needs a lock, which who is waiting takes.
 */
#define NO_IMPORT_ARRAY
#include "holders.h"

#include <sys/stat.h>

#define KEY_BITS 20          /* NDSHARE_DICT_MAX_KEYS */
#define LONGEST_CHAIN 64

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static ndshare_store *all;
static _Atomic uint64_t threads;
static _Thread_local uint64_t me;
static _Thread_local ndshare_entry *mine;

static void
before_fork(void)
{
    pthread_mutex_lock(&all_lock);
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&all_lock);
}

/* Once in a process, before there is a dict. */
int
ndshare_holders_prepare(void)
{
    static bool prepared;
    if (!prepared && pthread_atfork(before_fork, after_fork, after_fork) != 0) {
        PyErr_NoMemory();
        return -1;
    }
    prepared = true;
    return 0;
}

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
    pthread_mutex_lock(&all_lock);
    store->next = all;
    if (all != NULL) {
        all->previous = store;
    }
    all = store;
    pthread_mutex_unlock(&all_lock);
    return 0;
}

void
ndshare_holders_leave(ndshare_store *store)
{
    pthread_mutex_lock(&all_lock);
    if (store->previous != NULL) {
        store->previous->next = store->next;
    }
    else if (all == store) {
        all = store->next;
    }
    if (store->next != NULL) {
        store->next->previous = store->previous;
    }
    pthread_mutex_unlock(&all_lock);
}

/* A number that no other thread of this process has or had; idents of threads are used again. */
uint64_t
ndshare_thread(void)
{
    if (me == 0) {
        me = atomic_fetch_add(&threads, 1) + 1;
    }
    return me;
}

/* The chain of what this thread has. */
ndshare_entry *
ndshare_holders_first(void)
{
    return mine;
}

/* An entry that somebody has keeps its store. */
void
ndshare_holders_add(ndshare_entry *entry)
{
    entry->next = mine;
    mine = entry;
    Py_INCREF(entry->store);
}

void
ndshare_holders_remove(ndshare_entry *entry)
{
    for (ndshare_entry **link = &mine; *link != NULL; link = &(*link)->next) {
        if (*link == entry) {
            *link = entry->next;
            Py_DECREF(entry->store);
            return;
        }
    }
}

static bool
same_file(const ndshare_store *one, const ndshare_store *other)
{
    return one->inode == other->inode && one->device == other->device;
}

static Py_ssize_t
key_of(const ndshare_entry *entry)
{
    return entry - entry->store->entries;
}

static uint64_t
name_of(const ndshare_store *store, Py_ssize_t key)
{
    return store->inode << KEY_BITS | (uint64_t)key;
}

/* The last key of this dict that this thread has, or -1; a process may be attached to a dict several times. */
Py_ssize_t
ndshare_holders_last(const ndshare_store *store)
{
    Py_ssize_t last = -1;
    for (const ndshare_entry *entry = mine; entry != NULL; entry = entry->next) {
        if (same_file(entry->store, store) && key_of(entry) > last) {
            last = key_of(entry);
        }
    }
    return last;
}

/* Say in everything that this thread has that it waits for a key; with a key < 0, that it waits no more. */
void
ndshare_holders_want(const ndshare_store *store, Py_ssize_t key)
{
    uint64_t name = key < 0 ? 0 : name_of(store, key);
    for (const ndshare_entry *entry = mine; entry != NULL; entry = entry->next) {
        atomic_store(&ndshare_dict_cell_of(entry->store, key_of(entry))->wanted, name);
    }
}

/* What the holder of a key waits for; 0: nothing, or this process does not have the dict of the key. */
static uint64_t
wanted_by_holder(uint64_t name)
{
    Py_ssize_t number = (Py_ssize_t)(name & (NDSHARE_DICT_MAX_KEYS - 1));
    uint64_t wanted = 0;
    pthread_mutex_lock(&all_lock);
    const ndshare_store *there = all;
    while (there != NULL && there->inode != name >> KEY_BITS) {
        there = there->next;
    }
    if (there != NULL && number < there->count) {
        wanted = atomic_load(&ndshare_dict_cell_of(there, number)->wanted);
    }
    pthread_mutex_unlock(&all_lock);
    return wanted;
}

/* The key of this thread for which the holder of `key` waits, itself or through others; 0 if there is none. */
uint64_t
ndshare_holders_cycle(const ndshare_store *store, Py_ssize_t key)
{
    uint64_t name = name_of(store, key);
    for (int steps = 0; steps < LONGEST_CHAIN; steps++) {
        name = wanted_by_holder(name);
        if (name == 0) {
            return 0;
        }
        for (const ndshare_entry *entry = mine; entry != NULL; entry = entry->next) {
            if (name_of(entry->store, key_of(entry)) == name) {
                return name;
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
    PyObject *keys = PyList_New(0);
    for (const ndshare_entry *entry = mine; keys != NULL && entry != NULL; entry = entry->next) {
        if (entry->store == store || (anywhere && same_file(entry->store, store))) {
            PyObject *number = PyLong_FromSsize_t(key_of(entry));
            if (number == NULL || PyList_Append(keys, number) < 0) {
                Py_CLEAR(keys);
            }
            Py_XDECREF(number);
        }
    }
    if (keys != NULL && PyList_Reverse(keys) < 0) {  /* as they were taken */
        Py_CLEAR(keys);
    }
    return keys;
}
