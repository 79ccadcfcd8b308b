/* What the files of a queue share: the layout of its memory, the head of its messages, its slots.
 *
 *   0    flags       1: shut down, 2: at once; 4: it went to workers, which do not have the program's __main__
 *   8    waiters     who waits for a free slot; too high after a death, never too low
 *   16   slots, max_bytes, maxsize
 *   64   put, hint   how many messages went in: exact but for deaths; where a slot may be free
 *   128  got         how many came out
 *   192  sizes       one per slot: bytes of the message that has it; 0: free, as far as one knows
 *
 * What both ends read, what senders write and what receivers write lie in cache lines of their own.
 */
#ifndef NDSHARE_QUEUE_H
#define NDSHARE_QUEUE_H

#include "wire.h"

#include <stdatomic.h>
#include <stddef.h>
#include <sys/types.h>

#define NDSHARE_QUEUE_IMMEDIATE 2
#define NDSHARE_QUEUE_SLOTS ((off_t)1 << 40)

typedef struct {
    _Atomic uint64_t flags, waiters;
    uint64_t slots, max_bytes, maxsize;
    uint64_t unused[3];
    _Atomic uint64_t put, hint;
    uint64_t unused_by_senders[6];
    _Atomic uint64_t got;
    uint64_t unused_by_receivers[7];
    _Atomic uint64_t sizes[];
} ndshare_queue_memory;

/* Begins every message; `_queue_memory.HEAD` is the same in Python. */
typedef struct {
    uint8_t kind, split;
    uint16_t unused;
    uint32_t slot; /* and one; 0: none */
} ndshare_queue_head;

_Static_assert(sizeof(ndshare_queue_head) == 8, "the head Python knows");
_Static_assert(offsetof(ndshare_queue_memory, slots) == 16 && offsetof(ndshare_queue_memory, put) == 64
                   && offsetof(ndshare_queue_memory, got) == 128 && offsetof(ndshare_queue_memory, sizes) == 192,
               "the layout Python knows");

/* Why there is no slot. */
enum { NDSHARE_QUEUE_FULL = -1, NDSHARE_QUEUE_REFUSED = -2 };

/* The memory in a buffer, which stays in `view`; NULL with a Python error. */
ndshare_queue_memory *ndshare_queue_memory_of(PyObject *object, Py_buffer *view);
/* A descriptor that holds a free slot. In doubt the kernel is asked about every slot. REFUSED: errno is set. */
int ndshare_queue_get_slot(int memory_fd, ndshare_queue_memory *memory, uint64_t nbytes, bool doubt, int64_t *slot);
/* Let go of a slot, and close the descriptor. */
void ndshare_queue_give_back(ndshare_queue_memory *memory, int fd, int64_t slot);
/* F_OFD_SETLK on one byte of a file. */
int ndshare_queue_set_lock(int fd, short kind, off_t at);

#endif
