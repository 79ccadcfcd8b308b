/* The heap of this process: its lock, its identity, and the reaping of memory nobody uses any more.
 *
 * The state is process-global: arrays made through a NumPy handler outlive every module object, up to
 * and through interpreter exit. It is never torn down; the kernel takes everything back.
 */
#include "heap.h"

#include <sys/random.h>
#include <time.h>
#include <unistd.h>

ndshare_heap_state ndshare_heap;

void
ndshare_heap_lock(void)
{
    pthread_mutex_lock(&ndshare_heap.lock);
}

static void
reap(ndshare_segment *doomed)
{
    while (doomed != NULL) {
        ndshare_segment *next = doomed->next_doomed;
        ndshare_segment_destroy(doomed);
        doomed = next;
    }
}

/* In a child that has just been forked Python has not yet repaired its GIL: it must not be touched. */
void
ndshare_heap_unlock_in_child(void)
{
    ndshare_segment *doomed = ndshare_heap.doomed;
    ndshare_heap.doomed = NULL;
    pthread_mutex_unlock(&ndshare_heap.lock);
    reap(doomed);
}

/* Unmapping 160 MB takes 25 ms: it happens here, after the lock is gone. The mappings are out of the
 * tables, and their addresses cannot be reused before munmap. */
void
ndshare_heap_unlock(void)
{
    ndshare_segment *doomed = ndshare_heap.doomed;
    ndshare_heap.doomed = NULL;
    pthread_mutex_unlock(&ndshare_heap.lock);
    if (doomed == NULL) {
        return;
    }
    size_t bytes = 0;
    for (ndshare_segment *segment = doomed; segment != NULL; segment = segment->next_doomed) {
        bytes += segment->size;
    }
    PyThreadState *thread = NULL;
    if (bytes > ((size_t)4 << 20) && Py_IsInitialized() && PyGILState_Check()) {
        thread = PyEval_SaveThread();
    }
    reap(doomed);
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
}

void
ndshare_heap_doom(ndshare_segment *segment)
{
    segment->next_doomed = ndshare_heap.doomed;
    ndshare_heap.doomed = segment;
}

/* 31 random bits per process: with 1,000 processes two agree with probability 2e-4, and then the
 * inode still tells their segments apart (receive.c). */
void
ndshare_heap_redraw_prefix(void)
{
    uint32_t bits = 0;
    if (getrandom(&bits, sizeof bits, GRND_NONBLOCK) != (ssize_t)sizeof bits) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        bits = (uint32_t)now.tv_nsec * 2654435761u ^ (uint32_t)getpid();
    }
    ndshare_heap.prefix = (uint64_t)(bits & 0x7fffffffu);
    ndshare_heap.counter = 0;
}

uint64_t
ndshare_heap_next_uid(void)
{
    return ndshare_heap.prefix << 32 | ++ndshare_heap.counter;
}

PyObject *
ndshare_error_raise(const ndshare_error *error)
{
    PyObject *type, *args;
    if (error->limit != NULL) {
        type = ndshare_heap.capacity_error ? ndshare_heap.capacity_error : PyExc_MemoryError;
        args = Py_BuildValue("(nns)", (Py_ssize_t)error->asked, (Py_ssize_t)error->available, error->limit);
    }
    else {
        type = ndshare_heap.segment_error ? ndshare_heap.segment_error : PyExc_OSError;
        args = Py_BuildValue("(is)", error->number, error->doing ? error->doing : "use shared memory");
    }
    if (args != NULL) {
        PyErr_SetObject(type, args);
        Py_DECREF(args);
    }
    return NULL;
}

int
ndshare_heap_start(void)
{
    static bool started = false;
    if (started) {
        return 0;
    }
    pthread_mutex_init(&ndshare_heap.lock, NULL);
    atomic_store(&ndshare_heap.low, UINTPTR_MAX);
    atomic_store(&ndshare_heap.high, 0);
    for (int i = 0; i < NDSHARE_CLASSES; i++) {
        ndshare_link_init(&ndshare_heap.idle[i]);
        ndshare_link_init(&ndshare_heap.away[i]);
    }
    for (int i = 0; i < NDSHARE_SLAB_CLASSES; i++) {
        ndshare_link_init(&ndshare_heap.slabs[i]);
    }
    ndshare_link_init(&ndshare_heap.idle_lru);
    ndshare_link_init(&ndshare_heap.away_lru);
    ndshare_link_init(&ndshare_heap.cache_lru);
    size_t cap = (size_t)8 << 30, eighth = ndshare_limits_ram() / 8;
    ndshare_heap.idle_limit = eighth < cap ? eighth : cap;
    ndshare_heap.threshold = (size_t)256 << 10;
    ndshare_heap.token_fd = ndshare_heap.token_child_fd = -1;
    ndshare_heap_redraw_prefix();
    if (ndshare_fork_start() < 0) {
        return -1;
    }
    started = true;
    return 0;
}
