/* A message is a head and a body. The descriptor of its slot, if it has one, is the last one that comes with it.
 *
 * Nothing here gives up the GIL, so that no fork of Python's can copy the descriptor of a slot.
 */
#include "queue_messages.h"

#include "messages.h"
#include "queue_slots.h"

#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD_AND_TAG 9 /* of a message that is one pickle and nothing else: `parcel.BARE` */
#define MESSAGE_BYTES (112 * 1024)

/* Begins every message; `_queue.memory.HEAD` is the same in Python. */
typedef struct {
    uint8_t kind, split;
    uint16_t unused;
    uint32_t slot; /* and one; 0: none */
} head;

_Static_assert(sizeof(head) == 8, "the head Python knows");

/* One message without descriptors of its own. */
static ssize_t
send_bare(int sock_fd, const Py_buffer *stream, int64_t slot, int slot_fd)
{
    struct {
        head head;
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
    ndshare_queue queue;
    long long numbers[3]; /* sock_fd, memory_fd, nbytes */
    if (ndshare_queue_arguments(&queue, "queue_send", args, nargs, 5, numbers, 3) < 0) {
        return NULL;
    }
    Py_buffer stream;
    if (PyObject_GetBuffer(args[4], &stream, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&queue.view);
        return NULL;
    }
    int64_t slot = -1;
    int slot_fd = -1;
    if (queue.slots > 0) {
        slot_fd = ndshare_queue_get_slot(&queue, (int)numbers[1], (uint64_t)numbers[2], false, &slot);
    }
    /* What cannot be done at once goes the long way, which says what is the matter. */
    bool sent = (queue.slots == 0 || slot_fd >= 0) && send_bare((int)numbers[0], &stream, slot, slot_fd) >= 0;
    if (sent) {
        atomic_fetch_add_explicit(&queue.memory->put, 1, memory_order_relaxed);
    }
    if (slot_fd >= 0) {
        if (sent) {
            close(slot_fd);
        }
        else {
            ndshare_queue_give_back(&queue, slot_fd, slot);
        }
    }
    PyBuffer_Release(&stream);
    PyBuffer_Release(&queue.view);
    return PyBool_FromLong(sent);
}

/* Nothing was received: was that the end, or an empty message, which the kernel shows in the same way? */
static bool
is_at_end(int sock_fd)
{
    struct pollfd entry = {.fd = sock_fd, .events = POLLRDHUP};
    int waiting = 0;
    return poll(&entry, 1, 0) > 0 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR))
        && (ioctl(sock_fd, FIONREAD, &waiting) != 0 || waiting == 0);
}

PyObject *
ndshare_queue_recv(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[2]; /* sock_fd, bell_fd */
    if (ndshare_queue_arguments(&queue, "queue_recv", args, nargs, 3, numbers, 2) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    char buffer[MESSAGE_BYTES];
    Py_buffer into = {.buf = buffer, .len = sizeof buffer};
    int received[NDSHARE_MAX_FDS];
    Py_ssize_t size, count;
    do {
        int how = ndshare_message_receive((int)numbers[0], &into, MSG_DONTWAIT, received, &size, &count);
        if (how == NDSHARE_NOTHING) {
            result = Py_NewRef(Py_None);
            goto done;
        }
        if (how == NDSHARE_FAILED) {
            if (errno != 0) {
                PyErr_SetFromErrno(PyExc_OSError);
            }
            goto done;
        }
    } while (size == 0 && !is_at_end((int)numbers[0]));
    head start = {0};
    if (size > 0) {
        memcpy(&start, buffer, (size_t)size < sizeof start ? 0 : sizeof start);
        atomic_fetch_add_explicit(&queue.memory->got, 1, memory_order_relaxed);
        if (start.slot > 0 && start.slot <= queue.slots && count > 0) {
            ndshare_queue_free_slot(&queue, received[--count], (int64_t)start.slot - 1);
            if (atomic_load(&queue.memory->waiters) > 0) {
                ssize_t ignored = write((int)numbers[1], "", 1); /* a full pipe wakes them as well */
                (void)ignored;
            }
        }
        if (atomic_load(&queue.memory->flags) & NDSHARE_QUEUE_IMMEDIATE) {
            ndshare_message_close(received, count);
            atomic_fetch_add_explicit(&queue.memory->done, 1, memory_order_relaxed);
            result = PyBytes_FromStringAndSize(NULL, 0);
            goto done;
        }
    }
    if (count == 0 && start.kind == 0 && start.split == 0 && size > HEAD_AND_TAG && buffer[sizeof start] == 0) {
        result = PyBytes_FromStringAndSize(buffer + HEAD_AND_TAG, size - HEAD_AND_TAG);
    }
    else {
        PyObject *fds = ndshare_message_descriptors(received, count);
        result = fds == NULL ? NULL : Py_BuildValue("(y#N)", buffer, size, fds);
    }
done:
    PyBuffer_Release(&queue.view);
    return result;
}
