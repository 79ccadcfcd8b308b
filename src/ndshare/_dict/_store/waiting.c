/* Waiting for other processes: on a futex in the file, for a lock of the kernel, behind a gate. */
#define NO_IMPORT_ARRAY
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GATE_FIRST_SLICE_S 0.0002  /* a wake-up can be missed: a reader may raise `slow` anew between two looks */
#define GATE_SLICE_S 0.02

double
ndshare_monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* When a timeout ends; -1: never. */
double
ndshare_deadline(double timeout)
{
    return timeout < 0 ? -1 : ndshare_monotonic() + timeout;
}

/* Seconds until then, a slice at most; 0 or less: it is over. */
double
ndshare_left(double end, double slice)
{
    double left = end < 0 ? slice : end - ndshare_monotonic();
    return left < slice ? left : slice;
}

/* Sleep while `*word` is `seen`, without the GIL. Returns -1 with an error set when a signal handler raised. */
int
ndshare_doze(_Atomic uint32_t *word, uint32_t seen, double seconds)
{
    struct timespec limit = {(time_t)seconds, (long)((seconds - floor(seconds)) * 1e9)};
    Py_BEGIN_ALLOW_THREADS
    syscall(SYS_futex, word, FUTEX_WAIT, seen, &limit, NULL, 0);
    Py_END_ALLOW_THREADS
    return PyErr_CheckSignals();
}

/* 0, EAGAIN: somebody else has it, or another errno. */
int
ndshare_range_lock(const ndshare_store *store, int64_t start, int64_t length, short kind)
{
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    if (fcntl(store->fd, F_OFD_SETLK, &range) == 0) {
        return 0;
    }
    return errno == EACCES ? EAGAIN : errno;
}

static int
pass_gate(ndshare_store *store, Py_ssize_t key)
{
    if (pthread_mutex_trylock(&store->slow_lock) != 0) {
        return EAGAIN;
    }
    int error = ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_WRLCK);
    if (error == 0) {
        atomic_store(&ndshare_dict_cell_of(store, key)->slow, 0);
        ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_UNLCK);
    }
    pthread_mutex_unlock(&store->slow_lock);
    return error;
}

/* Wait until the slow readers of a key that are at it have their copy: 0. ETIMEDOUT: not in time. -1: a signal
 * handler raised. Or another errno. A reader may be stopped for as long as it likes. */
int
ndshare_gate_wait(ndshare_store *store, Py_ssize_t key, double end)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    for (double slice = GATE_FIRST_SLICE_S;; slice = slice < GATE_SLICE_S ? 2 * slice : GATE_SLICE_S) {
        int error = pass_gate(store, key);
        double left = ndshare_left(end, slice);
        if (error != EAGAIN || left <= 0) {
            return error == EAGAIN ? ETIMEDOUT : error;
        }
        uint32_t seen = 1;
        atomic_compare_exchange_strong(&cell->slow, &seen, 2);
        if (ndshare_doze(&cell->slow, 2, left) < 0) {
            return -1;
        }
    }
}

/* By a slow reader that has its copy. */
void
ndshare_gate_wake(ndshare_dict_cell *cell)
{
    uint32_t seen = 2;
    if (atomic_compare_exchange_strong(&cell->slow, &seen, 1)) {
        syscall(SYS_futex, &cell->slow, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}
