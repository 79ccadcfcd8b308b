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
 */
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_PARTS 128
#define MAX_FDS 253 /* SCM_MAX_FD of the kernel */

/* Highest descriptor number received so far. The kernel hands out the lowest free one, so numbers
 * near the limit mean that the process is short of them. */
static atomic_int highest_fd;

static bool
descriptors_scarce(int sock_fd)
{
    struct rlimit limit;
    int highest = atomic_load_explicit(&highest_fd, memory_order_relaxed);
    if (sock_fd > highest) {
        highest = sock_fd;
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) {
        return false;
    }
    return (rlim_t)highest + MAX_FDS + 64 > limit.rlim_cur;
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
        char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {0};

    int sock_fd = PyLong_AsInt(args[0]);
    int flags = PyLong_AsInt(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    parts = PySequence_Fast(args[1], "send_message: parts is not a sequence");
    if (parts == NULL) {
        goto done;
    }
    fds = PySequence_Fast(args[2], "send_message: fds is not a sequence");
    if (fds == NULL) {
        goto done;
    }
    Py_ssize_t nparts = PySequence_Fast_GET_SIZE(parts);
    Py_ssize_t nfds = PySequence_Fast_GET_SIZE(fds);
    if (nparts > MAX_PARTS || nfds > MAX_FDS) {
        PyErr_Format(PyExc_ValueError, "send_message: %zd parts and %zd descriptors; at most %d and %d fit",
                     nparts, nfds, MAX_PARTS, MAX_FDS);
        goto done;
    }
    for (; nviews < nparts; nviews++) {
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(parts, nviews), &views[nviews], PyBUF_SIMPLE) < 0) {
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
            slots[i] = PyLong_AsInt(PySequence_Fast_GET_ITEM(fds, i));
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
take_descriptors(struct msghdr *msg, int out[MAX_FDS])
{
    Py_ssize_t count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h != NULL; h = CMSG_NXTHDR(msg, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n && count < MAX_FDS; i++) {
            memcpy(&out[count++], CMSG_DATA(h) + i * sizeof(int), sizeof(int));
        }
    }
    return count;
}

static void
close_all(const int *fds, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        close(fds[i]);
    }
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
    union {
        char bytes[CMSG_SPACE(sizeof(int) * MAX_FDS)];
        struct cmsghdr align;
    } control;
    int received[MAX_FDS];
    PyObject *result = NULL;
    bool careful = descriptors_scarce(sock_fd);

    for (;;) {
        struct iovec iov = {view.buf, (size_t)view.len};
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
        int how = flags | MSG_CMSG_CLOEXEC | (careful ? MSG_PEEK : 0);
        ssize_t size;
        if (flags & MSG_DONTWAIT) {
            size = recvmsg(sock_fd, &msg, how);
        }
        else {
            Py_BEGIN_ALLOW_THREADS
            size = recvmsg(sock_fd, &msg, how);
            Py_END_ALLOW_THREADS
        }
        if (size < 0) {
            if (errno == EINTR) {
                if (PyErr_CheckSignals() < 0) {
                    goto done;
                }
                continue;
            }
            if (errno == EAGAIN) {
                result = Py_NewRef(Py_None);
                goto done;
            }
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
        Py_ssize_t count = take_descriptors(&msg, received);
        if (msg.msg_flags & MSG_CTRUNC) {
            close_all(received, count);
            errno = EMFILE;
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
        if (careful) {
            close_all(received, count);
            careful = false;
            continue;
        }
        if (msg.msg_flags & MSG_TRUNC) {
            close_all(received, count);
            errno = EMSGSIZE;
            PyErr_SetFromErrno(PyExc_OSError);
            goto done;
        }
        PyObject *fds = PyTuple_New(count);
        if (fds == NULL) {
            close_all(received, count);
            goto done;
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            PyTuple_SET_ITEM(fds, i, PyLong_FromLong(received[i])); /* small or fails below */
            if (PyTuple_GET_ITEM(fds, i) == NULL) {
                close_all(received, count);
                Py_DECREF(fds);
                goto done;
            }
        }
        if (count > 0) {
            atomic_store_explicit(&highest_fd, received[count - 1], memory_order_relaxed);
        }
        result = Py_BuildValue("(nN)", (Py_ssize_t)size, fds);
        if (result == NULL) {
            close_all(received, count);
        }
        goto done;
    }
done:
    PyBuffer_Release(&view);
    return result;
}
