/* Whole messages and descriptors over SOCK_SEQPACKET sockets.
 *
 * The standard library can do the same with socket.sendmsg and recvmsg, at three to five times the
 * price per message: it builds lists of tuples, makes a new bytes object, and gives up the GIL even
 * for calls that cannot block. Under load the last point decides: a thread that drains a hundred
 * waiting messages would have to win the GIL back a hundred times.
 *
 * Guarantees
 *   - A call with MSG_DONTWAIT never gives up the GIL and never blocks.
 *   - A blocking call gives it up, and runs Python's signal handlers when interrupted.
 *   - Descriptors arrive close-on-exec. If the process is short of descriptors, the message is looked
 *     at first and left in the socket (EMFILE): a receive that fails half-way would lose arrays.
 *   - What came with an empty or truncated message is closed.
 *
 * Several threads may be at it at once, with or without the GIL; each needs a buffer of its own.
 */
#include "messages.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_PARTS 128
#define LIMIT_VALID 32 /* messages, before the limit is read again */

/* Are the highest numbers in use? The kernel hands out the lowest, so this means that few are left. Asked before
 * every message: what came may be kept for long, while the program opens files of its own. */
static bool
descriptors_may_lack(void)
{
    static _Atomic rlim_t last;
    static atomic_uint age;
    rlim_t limit = atomic_load_explicit(&last, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&age, 1, memory_order_relaxed) % LIMIT_VALID == 0 || limit == 0) {
        struct rlimit now;
        if (getrlimit(RLIMIT_NOFILE, &now) != 0) {
            return true;
        }
        limit = now.rlim_cur;
        atomic_store_explicit(&last, limit, memory_order_relaxed);
    }
    if (limit == RLIM_INFINITY) {
        return false;
    }
    if (limit <= NDSHARE_MAX_FDS + 1) {
        return true;
    }
    rlim_t probed = limit - NDSHARE_MAX_FDS - 1;
    return fcntl(probed < INT_MAX ? (int)probed : INT_MAX, F_GETFD) >= 0;
}

PyObject *
ndshare_message_send(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "send_message takes 4 arguments, got %zd", nargs);
    }
    PyObject *result = NULL, *parts = NULL, *fds = NULL;
    Py_buffer views[MAX_PARTS];
    Py_ssize_t nviews = 0;
    struct iovec iov[MAX_PARTS];
    union {
        char bytes[CMSG_SPACE(sizeof(int) * NDSHARE_MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {0};

    int sock_fd = PyLong_AsInt(args[0]);
    int flags = PyLong_AsInt(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    parts = PySequence_Tuple(args[1]); /* of a list a copy: without the GIL others may change it meanwhile */
    if (parts == NULL) {
        goto done;
    }
    fds = PySequence_Tuple(args[2]);
    if (fds == NULL) {
        goto done;
    }
    Py_ssize_t nparts = PyTuple_GET_SIZE(parts);
    Py_ssize_t nfds = PyTuple_GET_SIZE(fds);
    if (nparts > MAX_PARTS || nfds > NDSHARE_MAX_FDS) {
        PyErr_Format(PyExc_ValueError, "send_message: %zd parts and %zd descriptors; at most %d and %d fit",
                     nparts, nfds, MAX_PARTS, NDSHARE_MAX_FDS);
        goto done;
    }
    for (; nviews < nparts; nviews++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(parts, nviews), &views[nviews], PyBUF_SIMPLE) < 0) {
            goto done;
        }
        iov[nviews].iov_base = views[nviews].buf;
        iov[nviews].iov_len = (size_t)views[nviews].len;
    }
    msg.msg_iov = iov;
    msg.msg_iovlen = (size_t)nparts;
    if (nfds > 0) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
        memset(control.bytes, 0, msg.msg_controllen);
        struct cmsghdr *header = CMSG_FIRSTHDR(&msg);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
        int *slots = (int *)CMSG_DATA(header);
        for (Py_ssize_t i = 0; i < nfds; i++) {
            slots[i] = PyLong_AsInt(PyTuple_GET_ITEM(fds, i));
            if (slots[i] == -1 && PyErr_Occurred()) {
                goto done;
            }
        }
    }
    for (;;) {
        ssize_t sent;
        if (flags & MSG_DONTWAIT) {
            sent = sendmsg(sock_fd, &msg, flags | MSG_NOSIGNAL);
        }
        else {
            Py_BEGIN_ALLOW_THREADS
            sent = sendmsg(sock_fd, &msg, flags | MSG_NOSIGNAL);
            Py_END_ALLOW_THREADS
        }
        if (sent >= 0) {
            result = Py_NewRef(Py_True);
            goto done;
        }
        if (errno == EINTR) {
            if (PyErr_CheckSignals() < 0) {
                goto done;
            }
            continue;
        }
        if (errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS) {
            result = Py_NewRef(Py_False);
            goto done;
        }
        PyErr_SetFromErrno(PyExc_OSError);
        goto done;
    }
done:
    while (nviews > 0) {
        PyBuffer_Release(&views[--nviews]);
    }
    Py_XDECREF(parts);
    Py_XDECREF(fds);
    return result;
}

/* Number of descriptors in the message; their numbers are copied to `out`. */
static Py_ssize_t
take_descriptors(struct msghdr *msg, int out[NDSHARE_MAX_FDS])
{
    Py_ssize_t count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h != NULL; h = CMSG_NXTHDR(msg, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n && count < NDSHARE_MAX_FDS; i++) {
            memcpy(&out[count++], CMSG_DATA(h) + i * sizeof(int), sizeof(int));
        }
    }
    return count;
}

void
ndshare_message_close(const int *fds, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        close(fds[i]);
    }
}

int
ndshare_message_receive(int sock_fd, const Py_buffer *view, int flags, int received[NDSHARE_MAX_FDS],
                        Py_ssize_t *size, Py_ssize_t *count)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int) * NDSHARE_MAX_FDS)];
        struct cmsghdr align;
    } control;
    bool careful = descriptors_may_lack();

    for (;;) {
        struct iovec iov = {view->buf, (size_t)view->len};
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
        int how = flags | MSG_CMSG_CLOEXEC | (careful ? MSG_PEEK : 0);
        if (careful) { /* somebody who was killed may have left another place to look at than the front */
            int front = -1;
            setsockopt(sock_fd, SOL_SOCKET, SO_PEEK_OFF, &front, sizeof front);
        }
        if (flags & MSG_DONTWAIT) {
            *size = recvmsg(sock_fd, &msg, how);
        }
        else {
            Py_BEGIN_ALLOW_THREADS
            *size = recvmsg(sock_fd, &msg, how);
            Py_END_ALLOW_THREADS
        }
        if (*size < 0) {
            if (errno == EAGAIN) {
                return NDSHARE_NOTHING;
            }
            if (errno != EINTR) {
                return NDSHARE_FAILED;
            }
            if (PyErr_CheckSignals() < 0) {
                errno = 0;
                return NDSHARE_FAILED;
            }
            continue;
        }
        *count = take_descriptors(&msg, received);
        if (msg.msg_flags & MSG_CTRUNC) {
            ndshare_message_close(received, *count);
            errno = EMFILE;
            return NDSHARE_FAILED;
        }
        if (careful) {
            ndshare_message_close(received, *count);
            careful = false;
            continue;
        }
        if (msg.msg_flags & MSG_TRUNC) {
            ndshare_message_close(received, *count);
            errno = EMSGSIZE;
            return NDSHARE_FAILED;
        }
        if (*size == 0) { /* the end, or a message that is none: nobody would close what came with it */
            ndshare_message_close(received, *count);
            *count = 0;
        }
        return NDSHARE_RECEIVED;
    }
}

PyObject *
ndshare_message_descriptors(const int received[NDSHARE_MAX_FDS], Py_ssize_t count)
{
    PyObject *fds = PyTuple_New(count);
    for (Py_ssize_t i = 0; fds != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLong(received[i]);
        if (number == NULL) {
            Py_CLEAR(fds);
            break;
        }
        PyTuple_SET_ITEM(fds, i, number);
    }
    if (fds == NULL) {
        ndshare_message_close(received, count);
    }
    return fds;
}

PyObject *
ndshare_message_recv(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "recv_message takes 3 arguments, got %zd", nargs);
    }
    int sock_fd = PyLong_AsInt(args[0]);
    int flags = PyLong_AsInt(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[1], &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    int received[NDSHARE_MAX_FDS];
    Py_ssize_t size, count;
    PyObject *result = NULL;
    switch (ndshare_message_receive(sock_fd, &view, flags, received, &size, &count)) {
    case NDSHARE_NOTHING:
        result = Py_NewRef(Py_None);
        break;
    case NDSHARE_RECEIVED: {
        PyObject *fds = ndshare_message_descriptors(received, count);
        result = fds == NULL ? NULL : Py_BuildValue("(nN)", size, fds);
        break;
    }
    default:
        if (errno != 0) {
            PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    PyBuffer_Release(&view);
    return result;
}

/* Head of every message between a caller and its workers; `_frames.HEAD` is the same in Python. */
typedef struct __attribute__((packed)) {
    uint8_t kind;
    uint8_t status;
    uint16_t records;
    uint32_t number;
    float seconds;
} head;

PyObject *
ndshare_message_recv_answers(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "recv_answers takes 4 arguments, got %zd", nargs);
    }
    int sock_fd = PyLong_AsInt(args[0]);
    long most = PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (!PyList_Check(args[3])) {
        return PyErr_Format(PyExc_TypeError, "recv_answers: %R is not a list", args[3]);
    }
    Py_buffer view;
    if (PyObject_GetBuffer(args[1], &view, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    PyObject *result = NULL;
    for (long n = 0; n < most; n++) {
        int received[NDSHARE_MAX_FDS];
        Py_ssize_t size, count;
        int how = ndshare_message_receive(sock_fd, &view, MSG_DONTWAIT, received, &size, &count);
        if (how == NDSHARE_FAILED && errno == ECONNRESET) {
            continue; /* said once, before what is still in the queue */
        }
        if (how == NDSHARE_FAILED && errno == 0) {
            goto done;
        }
        if (how != NDSHARE_RECEIVED || size == 0) {
            result = PyLong_FromLong(how == NDSHARE_NOTHING ? 0 : how == NDSHARE_FAILED ? errno : EPIPE);
            goto done;
        }
        if ((size_t)size < sizeof(head)) {
            ndshare_message_close(received, count);
            PyErr_Format(PyExc_ValueError, "recv_answers: a message of %zd bytes has no head", size);
            goto done;
        }
        head h;
        memcpy(&h, view.buf, sizeof h);
        PyObject *fds = ndshare_message_descriptors(received, count);
        if (fds == NULL) {
            goto done;
        }
        PyObject *message = Py_BuildValue("(iiIfy#N)", h.kind, h.status, h.number, h.seconds,
                                          (const char *)view.buf + sizeof h, size - (Py_ssize_t)sizeof h, fds);
        if (message == NULL || PyList_Append(args[3], message) < 0) {
            ndshare_message_close(received, count);
            Py_XDECREF(message);
            goto done;
        }
        Py_DECREF(message);
    }
    result = PyLong_FromLong(EAGAIN);
done:
    PyBuffer_Release(&view);
    return result;
}
