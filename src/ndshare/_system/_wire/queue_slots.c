/* The slots of a bounded queue.
 *
 * A slot is held by a lock (F_OFD_SETLK) on one byte of the memory's file, NDSHARE_QUEUE_SLOTS + number. The
 * description that has the lock travels with the message and is closed by the receiver. So the kernel knows which
 * slots are free, whoever dies; the sizes say where to look, and what is in flight.
 *
 * Invariants
 *   - Only the holder of a slot writes its size: after it has got the lock, and 0 before it lets go.
 *     A size that is not 0 without a lock is that of a dead process.
 *   - Under max_bytes sizes are added up and slots are taken by one process at a time: lock on byte ADMISSION.
 *   - Nothing that has a slot in hand gives up the GIL, so that no fork of Python's can copy the descriptor of a slot:
 *     the copy would keep the slot.
 */
#include "queue.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define ADMISSION ((off_t)2)
#define ADMISSION_WAIT_NS 20000000 /* then the queue counts as full for the moment: its holder was stopped */

ndshare_queue_memory *
ndshare_queue_memory_of(PyObject *object, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    ndshare_queue_memory *memory = view->buf;
    if ((size_t)view->len < sizeof *memory
        || memory->slots > ((size_t)view->len - sizeof *memory) / sizeof memory->sizes[0]) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not the memory of a queue", view->len);
        PyBuffer_Release(view);
        return NULL;
    }
    return memory;
}

int
ndshare_queue_set_lock(int fd, short kind, off_t at)
{
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Is slot `number` held by another description? Then `*end` is the first slot behind the range held with it. */
static bool
is_held(int fd, uint64_t number, uint64_t *end)
{
    off_t at = NDSHARE_QUEUE_SLOTS + (off_t)number;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    *end = number + 1;
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
        return false;
    }
    if (lock.l_len > 0 && (uint64_t)(lock.l_start + lock.l_len - NDSHARE_QUEUE_SLOTS) > number) {
        *end = (uint64_t)(lock.l_start + lock.l_len - NDSHARE_QUEUE_SLOTS);
    }
    return true;
}

static uint64_t
bytes_in_flight(const ndshare_queue_memory *memory)
{
    uint64_t total = 0;
    for (uint64_t i = 0; i < memory->slots; i++) {
        total += atomic_load_explicit(&memory->sizes[i], memory_order_relaxed);
    }
    return total;
}

static bool
try_slot(ndshare_queue_memory *memory, int fd, uint64_t number, uint64_t nbytes)
{
    if (ndshare_queue_set_lock(fd, F_WRLCK, NDSHARE_QUEUE_SLOTS + (off_t)number) != 0) {
        return false;
    }
    atomic_store(&memory->sizes[number], nbytes);
    atomic_store_explicit(&memory->hint, number + 1, memory_order_relaxed);
    return true;
}

static int64_t
find_slot(ndshare_queue_memory *memory, int fd, uint64_t nbytes, bool doubt)
{
    uint64_t count = memory->slots, limit = memory->max_bytes;
    if (limit == 0 || bytes_in_flight(memory) + nbytes <= limit) {
        uint64_t start = atomic_load_explicit(&memory->hint, memory_order_relaxed) % count;
        for (uint64_t k = 0; k < count; k++) {
            uint64_t i = start + k < count ? start + k : start + k - count;
            if (atomic_load_explicit(&memory->sizes[i], memory_order_relaxed) == 0
                && try_slot(memory, fd, i, nbytes)) {
                return (int64_t)i;
            }
        }
    }
    if (!doubt) {
        return -1;
    }
    /* It looks full. Is it, or did somebody die? Nobody else takes slots meanwhile if bytes are counted. */
    int64_t free_slot = -1;
    for (uint64_t i = 0, end; i < count; i = end) {
        if (is_held(fd, i, &end)) {
            continue;
        }
        if (limit == 0) {
            if (try_slot(memory, fd, i, nbytes)) {
                return (int64_t)i;
            }
        }
        else {
            atomic_store(&memory->sizes[i], 0);
            free_slot = (int64_t)i;
        }
    }
    if (free_slot >= 0 && bytes_in_flight(memory) + nbytes <= limit
        && try_slot(memory, fd, (uint64_t)free_slot, nbytes)) {
        return free_slot;
    }
    return -1;
}

static bool
get_admission(int fd)
{
    struct timespec pause = {0, 50000};
    int64_t end = ndshare_now_ns() + ADMISSION_WAIT_NS;
    while (ndshare_queue_set_lock(fd, F_WRLCK, ADMISSION) != 0) {
        if (ndshare_now_ns() > end) {
            return false;
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

int
ndshare_queue_get_slot(int memory_fd, ndshare_queue_memory *memory, uint64_t nbytes, bool doubt, int64_t *slot)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return NDSHARE_QUEUE_REFUSED;
    }
    *slot = -1;
    if (memory->max_bytes == 0) {
        *slot = find_slot(memory, fd, 1, doubt);
    }
    else if (get_admission(fd)) {
        *slot = find_slot(memory, fd, nbytes > 0 ? nbytes : 1, doubt);
        ndshare_queue_set_lock(fd, F_UNLCK, ADMISSION);
    }
    if (*slot < 0) {
        close(fd);
        return NDSHARE_QUEUE_FULL;
    }
    return fd;
}

void
ndshare_queue_give_back(ndshare_queue_memory *memory, int fd, int64_t slot)
{
    atomic_store(&memory->sizes[slot], 0);
    close(fd);
}

PyObject *
ndshare_queue_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "queue_take takes 4 arguments, got %zd", nargs);
    }
    int memory_fd = PyLong_AsInt(args[0]);
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(args[2]);
    int doubt = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    ndshare_queue_memory *memory = ndshare_queue_memory_of(args[1], &view);
    if (memory == NULL) {
        return NULL;
    }
    PyObject *result = NULL;
    int64_t slot;
    int fd = ndshare_queue_get_slot(memory_fd, memory, nbytes, doubt, &slot);
    if (fd == NDSHARE_QUEUE_REFUSED) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    else if (fd == NDSHARE_QUEUE_FULL) {
        result = Py_NewRef(Py_None);
    }
    else {
        result = Py_BuildValue("(Li)", (long long)slot, fd);
        if (result == NULL) {
            ndshare_queue_give_back(memory, fd, slot);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

PyObject *
ndshare_queue_used(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "queue_used takes 2 arguments, got %zd", nargs);
    }
    int memory_fd = PyLong_AsInt(args[0]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    ndshare_queue_memory *memory = ndshare_queue_memory_of(args[1], &view);
    if (memory == NULL) {
        return NULL;
    }
    uint64_t used = 0;
    for (uint64_t i = 0, end; i < memory->slots; i = end) {
        if (is_held(memory_fd, i, &end)) {
            used += (end < memory->slots ? end : memory->slots) - i;
        }
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(used);
}

static bool
looks_free(const void *queue)
{
    const ndshare_queue_memory *memory = queue;
    for (uint64_t i = 0; i < memory->slots; i++) {
        if (atomic_load_explicit(&memory->sizes[i], memory_order_relaxed) == 0) {
            return true;
        }
    }
    return false;
}

/* Who finds a slot without having slept need not be woken. */
PyObject *
ndshare_queue_spin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "queue_spin takes 2 arguments, got %zd", nargs);
    }
    int microseconds = PyLong_AsInt(args[1]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    ndshare_queue_memory *memory = ndshare_queue_memory_of(args[0], &view);
    if (memory == NULL) {
        return NULL;
    }
    bool found = ndshare_spin(looks_free, memory, microseconds);
    PyBuffer_Release(&view);
    return PyBool_FromLong(found);
}
