/* The memory of a queue, and the slots of a bounded one.
 *
 *   0    flags       1: shut down, 2: at once; 4: it went to workers, which do not have the program's __main__
 *   8    waiters     who waits for a free slot; too high after a death, never too low
 *   16   slots, max_bytes, maxsize
 *   64   put, hint   how many messages went in: exact but for deaths; where a slot may be free
 *   128  got         how many came out
 *   192  sizes       one per slot: bytes of the message that has it; 0: free, as far as one knows
 *
 * What both ends read, what senders write and what receivers write lie in cache lines of their own.
 *
 * A slot is held by a lock (F_OFD_SETLK) on one byte of the memory's file, SLOTS + number. The description that
 * has the lock travels with the message and is closed by the receiver. So the kernel knows which slots are
 * free, whoever dies; the sizes say where to look, and what is in flight.
 *
 * Invariants
 *   - Only the holder of a slot writes its size: after it has got the lock, and 0 before it lets go.
 *     A size that is not 0 without a lock is that of a dead process.
 *   - Under max_bytes sizes are added up and slots are taken by one process at a time: lock on byte ADMISSION.
 *   - No function here gives up the GIL, so that no fork of Python's can copy the descriptor of a slot:
 *     the copy would keep the slot.
 */
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SLOTS ((off_t)1 << 40)
#define ADMISSION ((off_t)2)
#define ADMISSION_WAIT_NS 20000000 /* then the queue counts as full for the moment: its holder was stopped */
#define IMMEDIATE 2
#define HEAD_AND_TAG 9 /* of a message that is one pickle and nothing else: `parcel.BARE` */
#define LIMIT_VALID 32 /* messages, before the limit is read again */
#define MESSAGE_BYTES (112 * 1024)

typedef struct {
    _Atomic uint64_t flags, waiters;
    uint64_t slots, max_bytes, maxsize;
    uint64_t unused[3];
    _Atomic uint64_t put, hint;
    uint64_t unused_by_senders[6];
    _Atomic uint64_t got;
    uint64_t unused_by_receivers[7];
    _Atomic uint64_t sizes[];
} queue_memory;

/* Begins every message; `_queue_memory.HEAD` is the same in Python. */
typedef struct {
    uint8_t kind, split;
    uint16_t unused;
    uint32_t slot; /* and one; 0: none */
} message_head;

_Static_assert(sizeof(message_head) == 8 && offsetof(queue_memory, slots) == 16 && offsetof(queue_memory, put) == 64
                   && offsetof(queue_memory, got) == 128 && offsetof(queue_memory, sizes) == 192,
               "the layouts Python knows");

static queue_memory *
memory_of(PyObject *object, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    queue_memory *memory = view->buf;
    if ((size_t)view->len < sizeof *memory
        || memory->slots > ((size_t)view->len - sizeof *memory) / sizeof memory->sizes[0]) {
        PyErr_Format(PyExc_ValueError, "%zd bytes are not the memory of a queue", view->len);
        PyBuffer_Release(view);
        return NULL;
    }
    return memory;
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
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = SLOTS + (off_t)number, .l_len = 1};
    *end = number + 1;
    if (fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) {
        return false;
    }
    if (lock.l_len > 0 && (uint64_t)(lock.l_start + lock.l_len - SLOTS) > number) {
        *end = (uint64_t)(lock.l_start + lock.l_len - SLOTS);
    }
    return true;
}

static uint64_t
bytes_in_flight(const queue_memory *memory)
{
    uint64_t total = 0;
    for (uint64_t i = 0; i < memory->slots; i++) {
        total += atomic_load_explicit(&memory->sizes[i], memory_order_relaxed);
    }
    return total;
}

static bool
try_slot(queue_memory *memory, int fd, uint64_t number, uint64_t nbytes)
{
    if (set_lock(fd, F_WRLCK, SLOTS + (off_t)number) != 0) {
        return false;
    }
    atomic_store(&memory->sizes[number], nbytes);
    atomic_store_explicit(&memory->hint, number + 1, memory_order_relaxed);
    return true;
}

static int64_t
find_slot(queue_memory *memory, int fd, uint64_t nbytes, bool doubt)
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
    struct timespec now, pause = {0, 50000};
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t end = now.tv_sec * INT64_C(1000000000) + now.tv_nsec + ADMISSION_WAIT_NS;
    while (set_lock(fd, F_WRLCK, ADMISSION) != 0) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec * INT64_C(1000000000) + now.tv_nsec > end) {
            return false;
        }
        nanosleep(&pause, NULL);
    }
    return true;
}

enum { FULL = -1, REFUSED = -2 };

/* A descriptor that holds a free slot; FULL, or REFUSED with errno. In doubt the kernel is asked about every slot. */
static int
take(int memory_fd, queue_memory *memory, uint64_t nbytes, bool doubt, int64_t *slot)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", memory_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return REFUSED;
    }
    *slot = -1;
    if (memory->max_bytes == 0) {
        *slot = find_slot(memory, fd, 1, doubt);
    }
    else if (get_admission(fd)) {
        *slot = find_slot(memory, fd, nbytes > 0 ? nbytes : 1, doubt);
        set_lock(fd, F_UNLCK, ADMISSION);
    }
    if (*slot < 0) {
        close(fd);
        return FULL;
    }
    return fd;
}

static void
give_back(queue_memory *memory, int fd, int64_t slot)
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
    queue_memory *memory = memory_of(args[1], &view);
    if (memory == NULL) {
        return NULL;
    }
    PyObject *result = NULL;
    int64_t slot;
    int fd = take(memory_fd, memory, nbytes, doubt, &slot);
    if (fd == REFUSED) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    else if (fd == FULL) {
        result = Py_NewRef(Py_None);
    }
    else {
        result = Py_BuildValue("(Li)", (long long)slot, fd);
        if (result == NULL) {
            give_back(memory, fd, slot);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

/* One message without descriptors of its own. */
static ssize_t
send_bare(int sock_fd, const Py_buffer *stream, int64_t slot, int slot_fd)
{
    struct {
        message_head head;
        char tag;
    } start = {.head = {.slot = (uint32_t)(slot + 1)}};
    struct iovec iov[2] = {{&start, sizeof start.head + 1}, {stream->buf, (size_t)stream->len}};
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    if (slot_fd >= 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &slot_fd, sizeof(int));
    }
    return sendmsg(sock_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

PyObject *
ndshare_queue_send(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 5) {
        return PyErr_Format(PyExc_TypeError, "queue_send takes 5 arguments, got %zd", nargs);
    }
    int sock_fd = PyLong_AsInt(args[0]);
    int memory_fd = PyLong_AsInt(args[1]);
    unsigned long long nbytes = PyLong_AsUnsignedLongLong(args[4]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view, stream;
    queue_memory *memory = memory_of(args[2], &view);
    if (memory == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(args[3], &stream, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&view);
        return NULL;
    }
    PyObject *result = NULL;
    int64_t slot = -1;
    int slot_fd = -1;
    if (memory->slots > 0) {
        slot_fd = take(memory_fd, memory, nbytes, false, &slot);
    }
    if (slot_fd == REFUSED || (slot_fd == FULL && memory->slots > 0)) {
        result = Py_NewRef(Py_False); /* the long way says what is the matter */
        goto done;
    }
    if (send_bare(sock_fd, &stream, slot, slot_fd) >= 0) {
        atomic_fetch_add_explicit(&memory->put, 1, memory_order_relaxed);
        if (slot_fd >= 0) {
            close(slot_fd);
        }
        result = Py_NewRef(Py_True);
        goto done;
    }
    if (slot_fd >= 0) {
        give_back(memory, slot_fd, slot);
    }
    result = Py_NewRef(Py_False);
done:
    PyBuffer_Release(&stream);
    PyBuffer_Release(&view);
    return result;
}

static bool
looks_free(const queue_memory *memory)
{
    for (uint64_t i = 0; i < memory->slots; i++) {
        if (atomic_load_explicit(&memory->sizes[i], memory_order_relaxed) == 0) {
            return true;
        }
    }
    return false;
}

/* As in messages.c: who finds a slot without having slept need not be woken. */
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
    queue_memory *memory = memory_of(args[0], &view);
    if (memory == NULL) {
        return NULL;
    }
    bool found = false;
    Py_BEGIN_ALLOW_THREADS
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t end = now.tv_sec * INT64_C(1000000000) + now.tv_nsec + microseconds * INT64_C(1000);
    while (!(found = looks_free(memory))) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (now.tv_sec * INT64_C(1000000000) + now.tv_nsec > end) {
            break;
        }
        sched_yield();
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    return PyBool_FromLong(found);
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
    queue_memory *memory = memory_of(args[1], &view);
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

/* Are the highest numbers in use? The kernel hands out the lowest, so this means that few are left. What comes
 * out of a queue may be kept for long, while the program opens files of its own: unlike between a pool and its
 * workers, the number of the last descriptor that was received does not tell. */
static bool
descriptors_may_lack(void)
{
    static struct rlimit limit; /* the GIL is held */
    static unsigned age;
    if (age++ % LIMIT_VALID == 0 && getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return true;
    }
    if (limit.rlim_cur == RLIM_INFINITY) {
        return false;
    }
    if (limit.rlim_cur <= NDSHARE_MAX_FDS + 1) {
        return true;
    }
    rlim_t probed = limit.rlim_cur - NDSHARE_MAX_FDS - 1;
    return fcntl(probed < INT_MAX ? (int)probed : INT_MAX, F_GETFD) >= 0;
}

PyObject *
ndshare_queue_recv(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "queue_recv takes 3 arguments, got %zd", nargs);
    }
    int sock_fd = PyLong_AsInt(args[0]);
    int bell_fd = PyLong_AsInt(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    char buffer[MESSAGE_BYTES];
    Py_buffer into = {.buf = buffer, .len = sizeof buffer};
    int received[NDSHARE_MAX_FDS];
    Py_ssize_t size, count;
    switch (ndshare_receive(sock_fd, &into, MSG_DONTWAIT, descriptors_may_lack(), received, &size, &count)) {
    case NDSHARE_NOTHING:
        Py_RETURN_NONE;
    case NDSHARE_FAILED:
        return errno != 0 ? PyErr_SetFromErrno(PyExc_OSError) : NULL;
    default:
        break;
    }
    if (size > 0) {
        Py_buffer view;
        queue_memory *memory = memory_of(args[1], &view);
        message_head head = {0};
        memcpy(&head, buffer, (size_t)size < sizeof head ? 0 : sizeof head);
        if (memory == NULL) {
            for (Py_ssize_t i = 0; i < count; i++) {
                close(received[i]);
            }
            return NULL;
        }
        atomic_fetch_add_explicit(&memory->got, 1, memory_order_relaxed);
        if (head.slot > 0 && head.slot <= memory->slots && count > 0) {
            atomic_store(&memory->sizes[head.slot - 1], 0);
            /* Unlocked, not only closed: the sender may not have closed its descriptor of the same description yet. */
            set_lock(received[--count], F_UNLCK, SLOTS + (off_t)head.slot - 1);
            close(received[count]);
            if (atomic_load(&memory->waiters) > 0) {
                ssize_t ignored = write(bell_fd, "", 1); /* a full pipe wakes them as well */
                (void)ignored;
            }
        }
        bool at_once = atomic_load(&memory->flags) & IMMEDIATE;
        PyBuffer_Release(&view);
        if (at_once) {
            for (Py_ssize_t i = 0; i < count; i++) {
                close(received[i]);
            }
            return PyBytes_FromStringAndSize(NULL, 0);
        }
        if (count == 0 && head.kind == 0 && size > HEAD_AND_TAG && buffer[sizeof head] == 0) {
            return PyBytes_FromStringAndSize(buffer + HEAD_AND_TAG, size - HEAD_AND_TAG);
        }
    }
    PyObject *fds = ndshare_descriptor_tuple(received, count);
    return fds == NULL ? NULL : Py_BuildValue("(y#N)", buffer, size, fds);
}
