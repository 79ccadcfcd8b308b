/* What a lock looks like in shared memory.
 *
 *   0    pthread mutex: process-shared, robust, error-checking
 *   64   holder     thread id of who has it, 0: nobody. Written by the holder; a hint for everybody else
 *   68   holder_pid
 *   72   died       process that ended with it, until somebody has repaired what the lock protects; 0: none,
 *                   -1: it died before it could write its name
 *   76   magic
 *
 * Robust: when a thread ends, by whatever death, the kernel walks the list of the mutexes it has and marks
 * each; the next one to come gets EOWNERDEAD and the lock. The list goes through the mutexes themselves, so
 * memory of a mutex that is held must stay mapped: that is the caller's duty.
 *
 * Nothing here knows of Python. Any thread may call it; what is not atomic belongs to the holder.
 */
#ifndef NDSHARE_CELL_H
#define NDSHARE_CELL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NDSHARE_CELL_MAGIC 0x6b636f6cu
#define NDSHARE_CELL_BYTES 128

typedef struct {
    union {
        pthread_mutex_t mutex;
        char room[64];
    };
    _Atomic int32_t holder, holder_pid, died;
    uint32_t magic;
} ndshare_cell;

_Static_assert(sizeof(pthread_mutex_t) <= 64 && sizeof(ndshare_cell) <= NDSHARE_CELL_BYTES,
               "a lock has room for the mutex of this system");

/* Learn who this process is, and hear of forks; once per process. An errno, or 0. */
int ndshare_cell_start(void);
/* A new lock, free. An errno, or 0. */
int ndshare_cell_make(ndshare_cell *cell);
/* Take it if it is free: 0, else EBUSY, EDEADLK (this thread has it) or another errno. */
int ndshare_cell_try(ndshare_cell *cell);
/* Wait for it, at most so long: 0, else ETIMEDOUT, EDEADLK or another errno. Neither the wall clock nor who sets it
 * matters. Cannot be interrupted. */
int ndshare_cell_wait(ndshare_cell *cell, int64_t nanoseconds);
/* Let go of it: an errno, or 0. */
int ndshare_cell_give_back(ndshare_cell *cell);
/* Whether the calling thread has it. */
bool ndshare_cell_is_mine(const ndshare_cell *cell);

int64_t ndshare_cell_now(void);

#endif
