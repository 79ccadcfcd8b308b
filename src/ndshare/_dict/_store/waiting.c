/* Waiting for other processes: on a futex in the file, for a lock of the kernel, behind a gate. */
#define NO_IMPORT_ARRAY
#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

double
ndshare_monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
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

int
ndshare_range_lock(const ndshare_store *store, int64_t start, int64_t length, short kind, bool wait)
{
    struct flock range = {.l_type = kind, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
    for (;;) {
        if (fcntl(store->fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &range) == 0) {
            return 0;
        }
        if (errno != EINTR) {
            return errno;
        }
    }
}

/* Wait until the slow readers of a key that are at it have their copy. */
int
ndshare_gate_wait(ndshare_store *store, Py_ssize_t key)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&store->slow_lock);
    error = ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_WRLCK, true);
    if (error == 0) {
        atomic_store(&ndshare_dict_cell_of(store, key)->slow, 0);
        ndshare_range_lock(store, NDSHARE_DICT_GATES + key, 1, F_UNLCK, false);
    }
    pthread_mutex_unlock(&store->slow_lock);
    Py_END_ALLOW_THREADS
    return error;
}
