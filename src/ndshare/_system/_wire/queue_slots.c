/* A slot is held by a lock (F_OFD_SETLK) on one byte of the memory's file, FIRST_SLOT + number. The description that
 * has the lock travels with the message and is closed by the receiver. So the kernel knows which slots are free,
 * whoever dies; the sizes say where to look, and what is in flight.
 *
 * Invariants
 *   - Only the holder of a slot writes its size: after it has got the lock, and 0 before it lets go.
 *     A size that is not 0 without a lock is that of a dead process.
 *   - Under max_bytes sizes are added up and slots are taken by one process at a time: lock on byte ADMISSION.
 *   - Nothing that has the descriptor of a slot in hand gives up the GIL (or, without a GIL, its thread state), so
 *     that no fork of Python's can copy it: the copy would keep the slot.
 */
#include "queue_slots.h"

#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define FIRST_SLOT ((off_t)1 << 40)
#define ADMISSION ((off_t)2)
#define ADMISSION_WAIT_NS 20000000 /* then the queue counts as full for the moment: its holder was stopped */
#define ADMISSION_PAUSE_NS 50000

int
ndshare_queue_arguments(ndshare_queue *queue, const char *name, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t wanted, long long *numbers, Py_ssize_t count)
{
    if (nargs != wanted) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyLong_AsLongLong(args[i + 1]);
        if (numbers[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (PyObject_GetBuffer(args[0], &queue->view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    size_t length = (size_t)queue->view.len;
    ndshare_queue_memory *memory = queue->memory = queue->view.buf;
    if (length >= sizeof *memory && (uintptr_t)memory % sizeof(uint64_t) == 0) {
        queue->slots = (length - sizeof *memory) / sizeof memory->sizes[0];
        queue->max_bytes = atomic_load_explicit(&memory->max_bytes, memory_order_relaxed);
        uint64_t slots = atomic_load_explicit(&memory->slots, memory_order_relaxed),
                 maxsize = atomic_load_explicit(&memory->maxsize, memory_order_relaxed);
        if (slots == queue->slots
            && (slots ^ 3 * queue->max_bytes ^ 5 * maxsize ^ NDSHARE_QUEUE_CHECK)
                   == atomic_load_explicit(&memory->check, memory_order_relaxed)) {
            return 0;
        }
    }
    PyBuffer_Release(&queue->view);
    PyErr_Format(PyExc_ValueError, "%s: %zu bytes are not the memory of a queue, or another process has overwritten "
                 "its numbers; make a new queue", name, length);
    return -1;
}

static int
set_lock(int fd, short kind, off_t at)
{
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Is slot `number` held by another description? Then `*end` is the first slot behind the range held with it. */
static bool
is_held(int fd, uint64_t number, uint64_t *end)
{
    off_t at = FIRST_SLOT + (off_t)number;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    *end = number + 1;
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
        return false;
    }
    if (lock.l_len > 0 && (uint64_t)(lock.l_start + lock.l_len - FIRST_SLOT) > number) {
        *end = (uint64_t)(lock.l_start + lock.l_len - FIRST_SLOT);
    }
    return true;
}

static uint64_t
size_of(const ndshare_queue *queue, uint64_t number)
{
    return atomic_load_explicit(&queue->memory->sizes[number], memory_order_relaxed);
}

/* Is there room for so many bytes beside those in flight? What somebody scribbled may be more than fits a sum. */
static bool
has_room(const ndshare_queue *queue, uint64_t nbytes)
{
    uint64_t left = queue->max_bytes;
    if (nbytes > left) {
        return false;
    }
    left -= nbytes;
    for (uint64_t i = 0, size; i < queue->slots; i++) {
        if ((size = size_of(queue, i)) > left) {
            return false;
        }
        left -= size;
    }
    return true;
}

static bool
try_slot(const ndshare_queue *queue, int fd, uint64_t number, uint64_t nbytes)
{
    if (set_lock(fd, F_WRLCK, FIRST_SLOT + (off_t)number) != 0) {
        return false;
    }
    atomic_store(&queue->memory->sizes[number], nbytes);
    atomic_store_explicit(&queue->memory->hint, number + 1, memory_order_relaxed);
    return true;
}

static int64_t
find_slot(const ndshare_queue *queue, int fd, uint64_t nbytes, bool doubt)
{
    uint64_t count = queue->slots;
    if (queue->max_bytes == 0 || has_room(queue, nbytes)) {
        uint64_t start = atomic_load_explicit(&queue->memory->hint, memory_order_relaxed) % count;
        for (uint64_t k = 0; k < count; k++) {
            uint64_t i = start + k < count ? start + k : start + k - count;
            if (size_of(queue, i) == 0 && try_slot(queue, fd, i, nbytes)) {
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
        if (queue->max_bytes == 0) {
            if (try_slot(queue, fd, i, nbytes)) {
                return (int64_t)i;
            }
        }
        else {
            atomic_store(&queue->memory->sizes[i], 0);
            free_slot = (int64_t)i;
        }
    }
    if (free_slot >= 0 && has_room(queue, nbytes) && try_slot(queue, fd, (uint64_t)free_slot, nbytes)) {
        return free_slot;
    }
    return -1;
}

int
ndshare_queue_get_slot(const ndshare_queue *queue, int memory_fd, uint64_t nbytes, bool doubt, int64_t *slot)
{
    if (queue->slots == 0) {
        return NDSHARE_QUEUE_FULL;
    }
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return NDSHARE_QUEUE_REFUSED;
    }
    if (queue->max_bytes == 0) {
        *slot = find_slot(queue, fd, 1, doubt);
    }
    else if (set_lock(fd, F_WRLCK, ADMISSION) == 0) {
        *slot = find_slot(queue, fd, nbytes > 0 ? nbytes : 1, doubt);
        set_lock(fd, F_UNLCK, ADMISSION);
    }
    else {
        close(fd);
        return NDSHARE_QUEUE_BUSY;
    }
    if (*slot < 0) {
        close(fd);
        return NDSHARE_QUEUE_FULL;
    }
    return fd;
}

void
ndshare_queue_give_back(const ndshare_queue *queue, int fd, int64_t slot)
{
    atomic_store(&queue->memory->sizes[slot], 0);
    close(fd);
}

void
ndshare_queue_free_slot(const ndshare_queue *queue, int fd, int64_t slot)
{
    /* Unlocked, not only closed: the sender may not have closed its descriptor of the same description yet. */
    atomic_store(&queue->memory->sizes[slot], 0);
    set_lock(fd, F_UNLCK, FIRST_SLOT + (off_t)slot);
    close(fd);
}

PyObject *
ndshare_queue_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[3]; /* memory_fd, nbytes, doubt */
    if (ndshare_queue_arguments(&queue, "queue_take", args, nargs, 4, numbers, 3) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    int64_t slot;
    int fd;
    int64_t end = 0;
    while ((fd = ndshare_queue_get_slot(&queue, (int)numbers[0], (uint64_t)numbers[1], numbers[2] != 0, &slot))
           == NDSHARE_QUEUE_BUSY) {
        int64_t now = ndshare_waiting_now();
        end = end == 0 ? now + ADMISSION_WAIT_NS : end;
        if (now > end) {
            break;
        }
        struct timespec pause = {0, ADMISSION_PAUSE_NS};
        Py_BEGIN_ALLOW_THREADS /* no descriptor is in hand */
        nanosleep(&pause, NULL);
        Py_END_ALLOW_THREADS
    }
    if (fd == NDSHARE_QUEUE_REFUSED) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    else if (fd < 0) {
        result = Py_NewRef(Py_None);
    }
    else {
        result = Py_BuildValue("(Li)", (long long)slot, fd);
        if (result == NULL) {
            ndshare_queue_give_back(&queue, fd, slot);
        }
    }
    PyBuffer_Release(&queue.view);
    return result;
}

PyObject *
ndshare_queue_used(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long memory_fd;
    if (ndshare_queue_arguments(&queue, "queue_used", args, nargs, 2, &memory_fd, 1) < 0) {
        return NULL;
    }
    uint64_t used = 0;
    for (uint64_t i = 0, end; i < queue.slots; i = end) {
        if (is_held((int)memory_fd, i, &end)) {
            used += (end < queue.slots ? end : queue.slots) - i;
        }
    }
    PyBuffer_Release(&queue.view);
    return PyLong_FromUnsignedLongLong(used);
}

static bool
looks_free(const void *what)
{
    const ndshare_queue *queue = what;
    for (uint64_t i = 0; i < queue->slots; i++) {
        if (size_of(queue, i) == 0) {
            return true;
        }
    }
    return false;
}

/* Who finds a slot without having slept need not be woken. */
PyObject *
ndshare_queue_spin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long microseconds;
    if (ndshare_queue_arguments(&queue, "queue_spin", args, nargs, 2, &microseconds, 1) < 0) {
        return NULL;
    }
    bool found = ndshare_waiting_spin(looks_free, &queue, (int)microseconds);
    PyBuffer_Release(&queue.view);
    return PyBool_FromLong(found);
}
