/* The memory of a queue, and the slots of a bounded one.
 *
 *   0    flags       1: shut down, 2: at once; 4: it went to workers, which do not have the program's __main__;
 *                    8: it ends with its last producer, 16: there was one
 *   8    waiters     who waits for a free slot; too high after a death, never too low
 *   16   slots, max_bytes, maxsize, check
 *   64   put, hint   how many messages went in: exact but for deaths; where a slot may be free
 *   128  got, done   how many came out; how many of them are done with, dropped ones included
 *   192  sizes       one per slot: bytes of the message that has it; 0: free, as far as one knows
 *
 * What both ends read, what senders write and what receivers write lie in cache lines of their own. `_queue.memory`
 * knows the same in Python.
 *
 * Every process of the queue can write here. The file is sealed, so that none can make it shorter; how many slots
 * there are follows from its length; `check` tells whether the numbers are still those it was made with. So what
 * somebody scribbles gives an error, or a queue that seems full or empty, never an access beyond the memory.
 */
#ifndef NDSHARE_QUEUE_SLOTS_H
#define NDSHARE_QUEUE_SLOTS_H

#include "extension.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define NDSHARE_QUEUE_IMMEDIATE 2
#define NDSHARE_QUEUE_CHECK UINT64_C(0x6575657571646e61)

typedef struct {
    _Atomic uint64_t flags, waiters;
    _Atomic uint64_t slots, max_bytes, maxsize, check;
    uint64_t unused[2];
    _Atomic uint64_t put, hint;
    uint64_t unused_by_senders[6];
    _Atomic uint64_t got, done;
    uint64_t unused_by_receivers[6];
    _Atomic uint64_t sizes[];
} ndshare_queue_memory;

_Static_assert(offsetof(ndshare_queue_memory, slots) == 16 && offsetof(ndshare_queue_memory, check) == 40
                   && offsetof(ndshare_queue_memory, put) == 64 && offsetof(ndshare_queue_memory, got) == 128
                   && offsetof(ndshare_queue_memory, sizes) == 192,
               "the layout Python knows");

/* A queue that is an argument of a call. */
typedef struct {
    Py_buffer view;
    ndshare_queue_memory *memory;
    uint64_t slots, max_bytes; /* read once, and checked */
} ndshare_queue;

/* Reads the arguments (memory, number, ...) of a function that takes `wanted` of them, `count` of which are numbers.
 * The caller releases `queue->view`. -1 with a Python error. */
int ndshare_queue_arguments(ndshare_queue *queue, const char *name, PyObject *const *args, Py_ssize_t nargs,
                            Py_ssize_t wanted, long long *numbers, Py_ssize_t count);

/* Why there is no slot: none is free, another process is about to take one, the kernel refused (errno is set). */
enum { NDSHARE_QUEUE_FULL = -1, NDSHARE_QUEUE_BUSY = -2, NDSHARE_QUEUE_REFUSED = -3 };

/* A descriptor that holds a free slot. In doubt the kernel is asked about every slot. */
int ndshare_queue_get_slot(const ndshare_queue *queue, int memory_fd, uint64_t nbytes, bool doubt, int64_t *slot);
/* Let go of a slot that was not used, and close its descriptor. */
void ndshare_queue_give_back(const ndshare_queue *queue, int fd, int64_t slot);
/* Let go of the slot whose message has been received. */
void ndshare_queue_free_slot(const ndshare_queue *queue, int fd, int64_t slot);

PyObject *ndshare_queue_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_spin(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_used(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
