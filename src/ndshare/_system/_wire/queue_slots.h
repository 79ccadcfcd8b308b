/* The memory of a queue, and the slots of a bounded one.
 *
 *   0    flags       1: shut down, 2: at once; 4: it went to workers, which do not have the program's __main__;
 *                    8: it ends with its last producer, 16: there was one
 *   8    waiters     who waits for a free slot; too high after a death, never too low
 *   16   max_bytes, maxsize, check
 *   64   put, and of a bounded queue: how many slots and bytes were ever taken
 *   128  got, done   how many came out; how many of them are done with, dropped ones included
 *        freed       slots and bytes that were ever given back
 *   192  members     how many entries below have been in use
 *        suspicions  how many of them were taken over from the dead who held something, mended: for how many of
 *                    these what was lost is given back
 *   256  entries     one per process of a bounded queue: what it holds and the socket does not
 *
 * What both ends read, what senders write and what receivers write lie in cache lines of their own. `_queue.memory`
 * knows the same in Python.
 *
 * Every process of the queue can write here. The file is sealed, so that none can make it shorter; `check` tells
 * whether the numbers are still those it was made with. So what somebody scribbles gives an error, or a queue that
 * seems full or empty, never an access beyond the memory.
 */
#ifndef NDSHARE_QUEUE_SLOTS_H
#define NDSHARE_QUEUE_SLOTS_H

#include "extension.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define NDSHARE_QUEUE_IMMEDIATE 2
#define NDSHARE_QUEUE_CHECK UINT64_C(0x6575657571646e61)

/* Of one process. Entry 0 is shared by those that could not get one: nobody counts as dead there. */
typedef struct {
    _Atomic uint64_t sending, sending_bytes; /* slots it has, of messages that are not in the socket yet */
    _Atomic uint64_t receiving;              /* calls that may have a message, and have not given back its slot */
    uint64_t unused[5];
} ndshare_queue_entry;

typedef struct {
    _Atomic uint64_t flags, waiters;
    _Atomic uint64_t max_bytes, maxsize, check;
    uint64_t unused[3];
    _Atomic uint64_t put, taken, taken_bytes;
    uint64_t unused_by_senders[5];
    _Atomic uint64_t got, done, freed, freed_bytes;
    uint64_t unused_by_receivers[4];
    _Atomic uint64_t members, suspicions, mended;
    uint64_t unused_by_members[5];
    ndshare_queue_entry entries[];
} ndshare_queue_memory;

_Static_assert(offsetof(ndshare_queue_memory, max_bytes) == 16 && offsetof(ndshare_queue_memory, check) == 32
                   && offsetof(ndshare_queue_memory, put) == 64 && offsetof(ndshare_queue_memory, got) == 128
                   && offsetof(ndshare_queue_memory, members) == 192
                   && offsetof(ndshare_queue_memory, entries) == 256 && sizeof(ndshare_queue_entry) == 64,
               "the layout Python knows");

/* Begins every message; `_queue.memory.HEAD` is the same in Python. */
typedef struct {
    uint8_t kind, split;
    uint16_t unused;
    uint32_t has_slot; /* 1, in a bounded queue */
    uint64_t charge;   /* bytes it counts for, in a queue that is bounded in bytes */
} ndshare_queue_head;

_Static_assert(sizeof(ndshare_queue_head) == 16, "the head Python knows");

/* A queue that is an argument of a call. */
typedef struct {
    Py_buffer view;
    ndshare_queue_memory *memory;
    uint64_t maxsize, max_bytes; /* read once, and checked; both 0: without bounds */
    size_t entries;
} ndshare_queue;

/* Reads the arguments (memory, number, ...) of a function that takes `wanted` of them, `count` of which are numbers.
 * The caller releases `queue->view`. -1 with a Python error. */
int ndshare_queue_arguments(ndshare_queue *queue, const char *name, PyObject *const *args, Py_ssize_t nargs,
                            Py_ssize_t wanted, long long *numbers, Py_ssize_t count);

static inline bool
ndshare_queue_is_bounded(const ndshare_queue *queue)
{
    return queue->maxsize != 0 || queue->max_bytes != 0;
}

/* The entry of a process; what is no number of one is the common entry. */
ndshare_queue_entry *ndshare_queue_entry_of(const ndshare_queue *queue, long long member);
/* Take a slot for a message that counts for so many bytes; false: the queue is full. */
bool ndshare_queue_get_slot(const ndshare_queue *queue, ndshare_queue_entry *entry, uint64_t charge);
/* The message is in the socket: its slot is with it. */
void ndshare_queue_pass_slot(ndshare_queue_entry *entry, uint64_t charge);
/* Give back the slot of a message that is not sent. */
void ndshare_queue_return_slot(const ndshare_queue *queue, ndshare_queue_entry *entry, uint64_t charge);
/* Give back the slot of a message that was received. */
void ndshare_queue_free_slot(const ndshare_queue *queue, uint64_t charge);

PyObject *ndshare_queue_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_pass(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_give_back(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_enter(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_mend(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_used(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_spin(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
