/* Into a queue and out of it: pickles that are all of a message in one call, and every receive.
 *
 * Nothing here gives up the GIL, so that no fork of Python's can copy the descriptor of a slot.
 */
#include "queue.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD_AND_TAG 9 /* of a message that is one pickle and nothing else: `parcel.BARE` */
#define LIMIT_VALID 32 /* messages, before the limit is read again */
#define MESSAGE_BYTES (112 * 1024)

/* One message without descriptors of its own. */
static ssize_t
send_bare(int sock_fd, const Py_buffer *stream, int64_t slot, int slot_fd)
{
    struct {
        ndshare_queue_head head;
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
    ndshare_queue_memory *memory = ndshare_queue_memory_of(args[2], &view);
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
        slot_fd = ndshare_queue_get_slot(memory_fd, memory, nbytes, false, &slot);
    }
    if (slot_fd == NDSHARE_QUEUE_REFUSED || (slot_fd == NDSHARE_QUEUE_FULL && memory->slots > 0)) {
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
        ndshare_queue_give_back(memory, slot_fd, slot);
    }
    result = Py_NewRef(Py_False);
done:
    PyBuffer_Release(&stream);
    PyBuffer_Release(&view);
    return result;
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
        ndshare_queue_memory *memory = ndshare_queue_memory_of(args[1], &view);
        ndshare_queue_head head = {0};
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
            ndshare_queue_set_lock(received[--count], F_UNLCK, NDSHARE_QUEUE_SLOTS + (off_t)head.slot - 1);
            close(received[count]);
            if (atomic_load(&memory->waiters) > 0) {
                ssize_t ignored = write(bell_fd, "", 1); /* a full pipe wakes them as well */
                (void)ignored;
            }
        }
        bool at_once = atomic_load(&memory->flags) & NDSHARE_QUEUE_IMMEDIATE;
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
