/* The ledger of a pool: one memfd, one line per process, so that N workers that check at once do not
 * each take the last gigabyte. A process writes its own line only.
 *
 *   reserved  bytes it is about to turn into pages; back to 0 when the kernel's own figures show them
 *   in_use    bytes of segments it owns; only a limit of the user (NDSHARE_MEMORY_LIMIT) needs it
 *   the rest  for `ndshare top`, which reads it in files of other processes (`_memory/watching.py` knows the same):
 *             whose line it is, and figures of its heap, told whenever the heap is left
 *
 * Reserve first, then read the others' lines: two that race see each other, and may both be refused,
 * never both be admitted. The pool clears the line of a process that died.
 */
#include "ledger.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    _Alignas(64) _Atomic uint64_t reserved;
    _Atomic uint64_t in_use;
    _Atomic uint64_t pid;
    _Atomic uint64_t told[6];   /* bytes: idle, lent, held, held by value, kept mapped, shared of its own */
} line;

_Static_assert(sizeof(line) == 128, "whole lines of the cache, and the layout Python knows");

static line alone;              /* a process without a pool has a ledger of one line */
static line *lines = &alone;
static size_t n_lines = 1, own_line = 0;

/* Innermost of all locks: nothing may unmap the ledger under a thread that adds it up. */
static pthread_mutex_t in_ledger = PTHREAD_MUTEX_INITIALIZER;

static void
clear(line *one)
{
    atomic_store(&one->reserved, 0);
    atomic_store(&one->in_use, 0);
    atomic_store(&one->pid, 0);
    for (size_t i = 0; i < sizeof one->told / sizeof *one->told; i++) {
        atomic_store(&one->told[i], 0);
    }
}

size_t
ndshare_ledger_reserve(size_t nbytes)
{
    size_t sum = 0;
    pthread_mutex_lock(&in_ledger);
    atomic_fetch_add(&lines[own_line].reserved, nbytes);
    for (size_t i = 0; i < n_lines; i++) {
        sum += atomic_load(&lines[i].reserved);
    }
    pthread_mutex_unlock(&in_ledger);
    return sum > nbytes ? sum - nbytes : 0;
}

void
ndshare_ledger_settle(size_t nbytes)
{
    pthread_mutex_lock(&in_ledger);
    uint64_t before = atomic_load(&lines[own_line].reserved), after;
    do {
        after = before > nbytes ? before - nbytes : 0;  /* cleared by mistake must not wrap around */
    } while (!atomic_compare_exchange_weak(&lines[own_line].reserved, &before, after));
    pthread_mutex_unlock(&in_ledger);
}

size_t
ndshare_ledger_own_use(size_t own_bytes)
{
    size_t sum = own_bytes;
    pthread_mutex_lock(&in_ledger);
    for (size_t i = 0; i < n_lines; i++) {
        if (i != own_line) {
            sum += atomic_load(&lines[i].in_use);
        }
    }
    pthread_mutex_unlock(&in_ledger);
    return sum;
}

void
ndshare_ledger_publish(size_t own_bytes)
{
    pthread_mutex_lock(&in_ledger);
    atomic_store_explicit(&lines[own_line].in_use, own_bytes, memory_order_relaxed);
    pthread_mutex_unlock(&in_ledger);
}

/* After a fork: the child is not the process of that line. The mapping stays, threads of the parent
 * are gone. */
void
ndshare_ledger_leave(void)
{
    ndshare_heap.told = NULL;
    pthread_mutex_init(&in_ledger, NULL);
    lines = &alone;
    n_lines = 1;
    own_line = 0;
    atomic_store(&alone.reserved, 0);
    atomic_store(&alone.in_use, 0);
}

PyObject *
ndshare_ledger_create(PyObject *Py_UNUSED(module), PyObject *slots)
{
    Py_ssize_t n = PyLong_AsSsize_t(slots);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (n < 1 || n > 1 << 20) {
        return PyErr_Format(PyExc_ValueError, "ledger_create: slots is %zd; allowed is 1 to 1048576", n);
    }
    int fd = memfd_create("ndshare-ledger", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, (off_t)((size_t)n * sizeof(line))) != 0
        || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        ndshare_error error = {.number = errno, .doing = "make the ledger of a pool"};
        if (fd >= 0) {
            close(fd);
        }
        return ndshare_error_raise(&error);
    }
    return PyLong_FromLong(fd);
}

PyObject *
ndshare_ledger_attach(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "ledger_attach takes a descriptor and a slot, got %zd arguments", nargs);
    }
    long fd = PyLong_AsLong(args[0]);
    Py_ssize_t slot = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    struct stat status;
    if (fstat((int)fd, &status) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    size_t n = (size_t)status.st_size / sizeof(line);
    if (slot < 0 || (size_t)slot >= n) {
        return PyErr_Format(PyExc_ValueError, "ledger_attach: slot is %zd; this ledger has %zu", slot, n);
    }
    void *base = mmap(NULL, n * sizeof(line), PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0);
    if (base == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    ndshare_heap_lock();
    pthread_mutex_lock(&in_ledger);
    line *former = lines == &alone ? NULL : lines;
    size_t length = n_lines * sizeof(line);
    if (former != NULL) {
        clear(&lines[own_line]);
    }
    lines = base;
    n_lines = n;
    own_line = (size_t)slot;
    atomic_store(&lines[own_line].reserved, 0);
    atomic_store(&lines[own_line].pid, (uint64_t)getpid());
    ndshare_heap.told = lines[own_line].told;
    pthread_mutex_unlock(&in_ledger);
    ndshare_ledger_publish(ndshare_heap.own_bytes);
    ndshare_heap_unlock();
    if (former != NULL) {
        munmap(former, length);
    }
    Py_RETURN_NONE;
}

/* Back to the line of its own: the ledger of a pool that has ended. */
PyObject *
ndshare_ledger_detach(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    ndshare_heap_lock();
    pthread_mutex_lock(&in_ledger);
    line *pool = lines == &alone ? NULL : lines;
    size_t length = n_lines * sizeof(line);
    if (pool != NULL) {
        ndshare_heap.told = NULL;
        clear(&lines[own_line]);
        lines = &alone;
        n_lines = 1;
        own_line = 0;
        atomic_store(&alone.reserved, 0);
        atomic_store(&alone.in_use, ndshare_heap.own_bytes);
    }
    pthread_mutex_unlock(&in_ledger);
    ndshare_heap_unlock();
    if (pool != NULL) {
        munmap(pool, length);
    }
    Py_RETURN_NONE;
}

PyObject *
ndshare_ledger_clear(PyObject *Py_UNUSED(module), PyObject *slot)
{
    Py_ssize_t index = PyLong_AsSsize_t(slot);
    if (index == -1 && PyErr_Occurred()) {
        return NULL;
    }
    pthread_mutex_lock(&in_ledger);
    size_t n = n_lines;
    if (index >= 0 && (size_t)index < n) {
        clear(&lines[index]);
    }
    pthread_mutex_unlock(&in_ledger);
    if (index < 0 || (size_t)index >= n) {
        return PyErr_Format(PyExc_ValueError, "ledger_clear: slot is %zd; this ledger has %zu", index, n);
    }
    Py_RETURN_NONE;
}

/* Bytes of segments of its own that the process of a line has arrays in: those that are neither idle nor with
 * others, nor made to be shared. Beside ordinary memory it is what a worker's task takes. */
PyObject *
ndshare_ledger_held(PyObject *Py_UNUSED(module), PyObject *slot)
{
    Py_ssize_t index = PyLong_AsSsize_t(slot);
    if (index == -1 && PyErr_Occurred()) {
        return NULL;
    }
    uint64_t own = 0, out = 0;
    pthread_mutex_lock(&in_ledger);
    if (index >= 0 && (size_t)index < n_lines) {
        out = atomic_load(&lines[index].told[0]) + atomic_load(&lines[index].told[1])
              + atomic_load(&lines[index].told[5]);
        own = atomic_load(&lines[index].in_use);
    }
    pthread_mutex_unlock(&in_ledger);
    return PyLong_FromUnsignedLongLong(own > out ? own - out : 0);
}
