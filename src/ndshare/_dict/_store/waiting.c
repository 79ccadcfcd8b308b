/* Sleeping until a value changes, on a futex in the file. */
#define NO_IMPORT_ARRAY
#include "dict.h"

#include <linux/futex.h>
#include <math.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define VALUE_SLICE_S 0.2    /* how long a value stays unnoticed whose writer died before it could wake anybody */

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

PyObject *
ndshare_store_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_store *store = (ndshare_store *)self;
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "wait takes 3 arguments, got %zd", nargs);
    }
    Py_ssize_t key = ndshare_store_key(store, args[0]);
    unsigned long long version = PyLong_AsUnsignedLongLong(args[1]);
    double timeout = PyFloat_AsDouble(args[2]);
    if (key < 0 || PyErr_Occurred()) {
        return NULL;
    }
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    double end = timeout < 0 ? -1 : ndshare_monotonic() + timeout;
    for (;;) {
        ndshare_current current;
        uint32_t seen = atomic_load(&cell->wake);
        atomic_store(&cell->waiters, 1);
        if (ndshare_slot_look(store, key, &current) != 0) {
            ndshare_store_damaged(key);
            return NULL;
        }
        if (current.version > version) {
            return PyLong_FromUnsignedLongLong(current.version);
        }
        double left = end < 0 ? VALUE_SLICE_S : end - ndshare_monotonic();
        if (left <= 0) {
            Py_RETURN_NONE;
        }
        store->busy++;
        int raised = ndshare_doze(&cell->wake, seen, left < VALUE_SLICE_S ? left : VALUE_SLICE_S);
        store->busy--;
        if (raised < 0 || !ndshare_store_open(store)) {
            return NULL;
        }
    }
}
