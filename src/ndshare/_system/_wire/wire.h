/* Functions the files of ndshare._system._wire share. */
#ifndef NDSHARE_WIRE_H
#define NDSHARE_WIRE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

#if PY_VERSION_HEX < 0x030D0000
#define PyLong_AsInt _PyLong_AsInt
#endif

PyObject *ndshare_shield_main(PyObject *module, PyObject *ident);
PyObject *ndshare_shield_up(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_down(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_window(PyObject *module, PyObject *ignored);
PyObject *ndshare_shield_curtain(PyObject *module, PyObject *number);

#define NDSHARE_MAX_FDS 253 /* SCM_MAX_FD of the kernel */

/* How a receive ended. */
enum { NDSHARE_RECEIVED = 1, NDSHARE_NOTHING = 0, NDSHARE_FAILED = -1 };

/* For `look_first`, beside true and false: whether a message is looked at before it is received. */
enum { NDSHARE_IF_SCARCE = -1 };

int ndshare_receive(int sock_fd, const Py_buffer *view, int flags, int look_first, int received[NDSHARE_MAX_FDS],
                    Py_ssize_t *size, Py_ssize_t *count);
PyObject *ndshare_descriptor_tuple(const int received[NDSHARE_MAX_FDS], Py_ssize_t count);

int64_t ndshare_now_ns(void);

/* Look until it is there, or so long at most; tell whether it is. Gives up the GIL. */
bool ndshare_spin(bool (*is_there)(const void *), const void *what, int microseconds);

PyObject *ndshare_queue_take(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_send(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_recv(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_spin(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_queue_used(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

PyObject *ndshare_message_send(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_message_recv(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

PyObject *ndshare_message_recv_all(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_rest(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_message_spin(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

PyObject *ndshare_atomic_cas_u8(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_cas_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_load_u8(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_store_u8(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_add_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_load_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *ndshare_atomic_store_u64(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
