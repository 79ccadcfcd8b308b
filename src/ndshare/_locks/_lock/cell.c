/* Taking it free costs a compare-and-swap; who has to wait sleeps in the kernel (futex).
 *
 * A mutex knows its holder by thread id. The child of a fork has another one and an empty list of held mutexes: it
 * holds nothing, whatever its parent held.
 */
#define _GNU_SOURCE
#include "cell.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS INT64_C(1000000000)
#define PAUSE_NS 1000000 /* between two attempts, where the C library cannot wait by the monotonic clock */

/* glibc 2.30; without it locks are asked again and again. */
extern int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
    __attribute__((weak));

static _Atomic unsigned forks = 1; /* since this program began, and one */
static _Atomic int32_t own_pid;

static void
after_fork_in_child(void)
{
    atomic_store(&own_pid, (int32_t)getpid());
    atomic_fetch_add(&forks, 1);
}

int
ndshare_cell_start(void)
{
    int32_t nobody = 0;
    if (!atomic_compare_exchange_strong(&own_pid, &nobody, (int32_t)getpid())) {
        return 0;
    }
    return pthread_atfork(NULL, NULL, after_fork_in_child);
}

/* Asked of the kernel once per thread, and anew in a forked child: a system call costs more than the lock. */
static int32_t
thread_id(void)
{
    static _Thread_local int32_t id;
    static _Thread_local unsigned known;
    unsigned now = atomic_load_explicit(&forks, memory_order_relaxed);
    if (known != now) {
        id = (int32_t)syscall(SYS_gettid);
        known = now;
    }
    return id;
}

int64_t
ndshare_cell_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS + now.tv_nsec;
}

int
ndshare_cell_make(ndshare_cell *cell)
{
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error != 0) {
        return error;
    }
    error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (error == 0) {
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    if (error == 0) {
        error = pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK);
    }
    if (error == 0) {
        memset(cell, 0, sizeof *cell);
        error = pthread_mutex_init(&cell->mutex, &attributes);
        cell->magic = NDSHARE_CELL_MAGIC;
    }
    pthread_mutexattr_destroy(&attributes);
    return error;
}

/* What pthreads answered, once the lock is in order and bears the name of its holder. */
static int
taken(ndshare_cell *cell, int error)
{
    if (error == EOWNERDEAD) {
        int pid = atomic_load(&cell->holder_pid);
        atomic_store(&cell->died, pid != 0 ? pid : -1);
        error = pthread_mutex_consistent(&cell->mutex);
    }
    if (error == 0) {
        /* A process that reads them without the lock wants a hint. */
        atomic_store_explicit(&cell->holder_pid, atomic_load_explicit(&own_pid, memory_order_relaxed),
                              memory_order_relaxed);
        atomic_store_explicit(&cell->holder, thread_id(), memory_order_relaxed);
    }
    return error;
}

int
ndshare_cell_try(ndshare_cell *cell)
{
    return taken(cell, pthread_mutex_trylock(&cell->mutex));
}

int
ndshare_cell_wait(ndshare_cell *cell, int64_t nanoseconds)
{
    int64_t end = ndshare_cell_now() + nanoseconds;
    if (pthread_mutex_clocklock != NULL) {
        struct timespec until = {end / NS, end % NS};
        return taken(cell, pthread_mutex_clocklock(&cell->mutex, CLOCK_MONOTONIC, &until));
    }
    int error;
    while ((error = pthread_mutex_trylock(&cell->mutex)) == EBUSY) {
        if (ndshare_cell_now() >= end) {
            return ETIMEDOUT;
        }
        nanosleep(&(struct timespec){0, PAUSE_NS}, NULL);
    }
    return taken(cell, error);
}

int
ndshare_cell_give_back(ndshare_cell *cell)
{
    atomic_store_explicit(&cell->holder, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->holder_pid, 0, memory_order_relaxed);
    return pthread_mutex_unlock(&cell->mutex);
}

bool
ndshare_cell_is_mine(const ndshare_cell *cell)
{
    return atomic_load_explicit(&cell->holder, memory_order_relaxed) == thread_id();
}
