/* A message is a head and a body. What it takes of a bounded queue is in its head. */
#include "queue_messages.h"

#include "messages.h"
#include "queue_slots.h"

#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD_AND_TAG (sizeof(ndshare_queue_head) + 1) /* of a message that is one pickle and nothing else: `parcel.BARE` */
#define MESSAGE_BYTES (112 * 1024)

PyObject *
ndshare_queue_send(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[4]; /* sock_fd, member, charge, is_accepted */
    if (ndshare_queue_arguments(&queue, "queue_send", args, nargs, 6, numbers, 4) < 0) {
        return NULL;
    }
    Py_buffer stream;
    if (PyObject_GetBuffer(args[5], &stream, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&queue.view);
        return NULL;
    }
    bool is_bounded = ndshare_queue_is_bounded(&queue), is_accepted = numbers[3] != 0, sent = false;
    uint64_t charge = (uint64_t)numbers[2];
    ndshare_queue_entry *entry = is_bounded ? ndshare_queue_entry_of(&queue, numbers[1]) : NULL;
    /* What cannot be done at once goes the long way, which says what is the matter. */
    if (is_accepted || !is_bounded || ndshare_queue_get_slot(&queue, entry, charge)) {
        struct {
            ndshare_queue_head head;
            char tag;
        } start = {.head = {.has_slot = is_bounded, .charge = charge}};
        struct iovec iov[2] = {{&start, HEAD_AND_TAG}, {stream.buf, (size_t)stream.len}};
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
        sent = sendmsg((int)numbers[0], &msg, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
        if (sent && !is_accepted) {
            atomic_fetch_add_explicit(&queue.memory->put, 1, memory_order_relaxed);
        }
        if (sent && is_bounded) {
            ndshare_queue_pass_slot(entry, charge);
        }
        else if (!sent && is_bounded && !is_accepted) {
            ndshare_queue_return_slot(&queue, entry, charge);
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

/* Receive one message, which counts as taken out. 0: there is none, or it is in `into`; -1 with a Python error. */
static int
receive(const ndshare_queue *queue, int sock_fd, int bell_fd, Py_buffer *into, int *fds, Py_ssize_t *size,
        Py_ssize_t *count, int *how)
{
    do {
        *how = ndshare_message_receive(sock_fd, into, MSG_DONTWAIT, fds, size, count);
        if (*how == NDSHARE_NOTHING) {
            return 0;
        }
        if (*how == NDSHARE_FAILED) {
            if (errno != 0) {
                PyErr_SetFromErrno(PyExc_OSError);
            }
            return -1;
        }
    } while (*size == 0 && !is_at_end(sock_fd));
    if (*size > 0) {
        ndshare_queue_head start = {0};
        memcpy(&start, into->buf, (size_t)*size < sizeof start ? 0 : sizeof start);
        if (start.has_slot != 0 && ndshare_queue_is_bounded(queue)) {
            ndshare_queue_free_slot(queue, start.charge);
            if (atomic_load(&queue->memory->waiters) > 0) {
                ssize_t ignored = write(bell_fd, "", 1); /* a full pipe wakes them as well */
                (void)ignored;
            }
        }
        atomic_fetch_add_explicit(&queue->memory->got, 1, memory_order_relaxed);
    }
    return 0;
}

PyObject *
ndshare_queue_recv(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[3]; /* sock_fd, bell_fd, member */
    if (ndshare_queue_arguments(&queue, "queue_recv", args, nargs, 4, numbers, 3) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    char buffer[MESSAGE_BYTES];
    Py_buffer into = {.buf = buffer, .len = sizeof buffer};
    int received[NDSHARE_MAX_FDS], how;
    Py_ssize_t size, count;
    ndshare_queue_entry *entry = ndshare_queue_is_bounded(&queue) ? ndshare_queue_entry_of(&queue, numbers[2]) : NULL;
    if (entry != NULL) {
        atomic_fetch_add(&entry->receiving, 1);
    }
    int status = receive(&queue, (int)numbers[0], (int)numbers[1], &into, received, &size, &count, &how);
    if (entry != NULL) {
        atomic_fetch_sub(&entry->receiving, 1);
    }
    if (status < 0) {
        goto done;
    }
    if (how == NDSHARE_NOTHING) {
        result = Py_NewRef(Py_None);
        goto done;
    }
    if (size > 0 && atomic_load(&queue.memory->flags) & NDSHARE_QUEUE_IMMEDIATE) {
        ndshare_message_close(received, count);
        atomic_fetch_add_explicit(&queue.memory->done, 1, memory_order_relaxed);
        result = PyBytes_FromStringAndSize(NULL, 0);
        goto done;
    }
    ndshare_queue_head start = {.kind = 1};
    memcpy(&start, buffer, (size_t)size < sizeof start ? 0 : sizeof start);
    if (count == 0 && start.kind == 0 && start.split == 0 && size > (Py_ssize_t)HEAD_AND_TAG
        && buffer[sizeof start] == 0) {
        result = PyBytes_FromStringAndSize(buffer + HEAD_AND_TAG, size - (Py_ssize_t)HEAD_AND_TAG);
    }
    else {
        PyObject *fds = ndshare_message_descriptors(received, count);
        result = fds == NULL ? NULL : Py_BuildValue("(y#N)", buffer, size, fds);
    }
done:
    PyBuffer_Release(&queue.view);
    return result;
}
