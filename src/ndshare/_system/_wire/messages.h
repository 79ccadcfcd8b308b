/* Whole messages and descriptors over SOCK_SEQPACKET sockets. */
#ifndef NDSHARE_MESSAGES_H
#define NDSHARE_MESSAGES_H

#include "extension.h"

#define NDSHARE_MAX_FDS 253 /* SCM_MAX_FD of the kernel */

/* How a receive ended. */
enum { NDSHARE_RECEIVED = 1, NDSHARE_NOTHING = 0, NDSHARE_FAILED = -1 };

/* One message into `view`; its descriptors to `received`. NDSHARE_FAILED: errno is set, or, if it is 0, a Python error. */
int ndshare_message_receive(int sock_fd, const Py_buffer *view, int flags, int received[NDSHARE_MAX_FDS],
                            Py_ssize_t *size, Py_ssize_t *count);
/* A tuple of the descriptors, which are closed if it cannot be made. */
PyObject *ndshare_message_descriptors(const int received[NDSHARE_MAX_FDS], Py_ssize_t count);
void ndshare_message_close(const int *fds, Py_ssize_t count);

PyObject *ndshare_message_send(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_message_recv(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_message_recv_answers(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
