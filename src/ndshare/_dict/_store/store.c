/* Store: what a process has of one SharedDict; the type and its life.
 *
 * The memory stays mapped as long as anything refers to the Store, views included; the descriptor, and with it
 * the locks, ends with close().
 */
#define NO_IMPORT_ARRAY
#include "dict.h"

#include <errno.h>
#include <structmember.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT 64

bool
ndshare_store_open(ndshare_store *store)
{
    if (store->shut) {
        PyErr_SetString(PyExc_ValueError, "the SharedDict is closed; attach to it again by its name");
        return false;
    }
    return true;
}

int
ndshare_store_damaged(Py_ssize_t key)
{
    PyErr_Format(PyExc_LookupError, "key number %zd has no value: another program has damaged the file", key);
    return -1;
}

Py_ssize_t
ndshare_store_key(ndshare_store *store, PyObject *number)
{
    Py_ssize_t key = PyLong_AsSsize_t(number);
    if ((key == -1 && PyErr_Occurred()) || !ndshare_store_open(store)) {
        return -1;
    }
    if (key < 0 || key >= store->count) {
        PyErr_Format(PyExc_IndexError, "key number %zd of %zd", key, store->count);
        return -1;
    }
    return key;
}

/* The number of a key, and what is current there. */
Py_ssize_t
ndshare_store_current(ndshare_store *store, PyObject *number, ndshare_current *current)
{
    Py_ssize_t key = ndshare_store_key(store, number);
    if (key >= 0 && ndshare_slot_look(store, key, current) != 0) {
        return ndshare_store_damaged(key);
    }
    return key;
}

/* The numbers of a sequence. A closed store is no reason to refuse: locks must be given back. */
Py_ssize_t *
ndshare_store_keys(ndshare_store *store, PyObject *sequence, Py_ssize_t *n)
{
    PyObject *fast = PySequence_Fast(sequence, "keys is not a sequence");
    if (fast == NULL) {
        return NULL;
    }
    *n = PySequence_Fast_GET_SIZE(fast);
    Py_ssize_t *keys = PyMem_Malloc(sizeof *keys * (size_t)(*n + 1));
    if (keys == NULL) {
        PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; keys != NULL && i < *n; i++) {
        keys[i] = PyLong_AsSsize_t(PySequence_Fast_GET_ITEM(fast, i));
        if (store->fd < 0 || (keys[i] == -1 && PyErr_Occurred()) || keys[i] < 0 || keys[i] >= store->count) {
            if (!PyErr_Occurred() && (store->fd >= 0 || ndshare_store_open(store))) {
                PyErr_Format(PyExc_IndexError, "key number %zd of %zd", keys[i], store->count);
            }
            PyMem_Free(keys);
            keys = NULL;
        }
    }
    Py_DECREF(fast);
    return keys;
}

static PyObject *
store_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    int fd;
    Py_ssize_t size, cells, data;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "innnO!:Store", &fd, &size, &cells, &data, &PyList_Type, &list)) {
        return NULL;
    }
    ndshare_store *self = (ndshare_store *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->fd = -1;
    self->size = (size_t)size;
    self->cells = (size_t)cells;
    self->pid = (uint32_t)getpid();
    pthread_mutex_init(&self->slow_lock, NULL);
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (size < 0 || cells < 0 || data < 0 || n > NDSHARE_DICT_MAX_KEYS || cells % NDSHARE_DICT_CELL != 0
        || data % ALIGNMENT != 0 || cells > data || n * NDSHARE_DICT_CELL > data - cells || data > size) {
        PyErr_SetString(PyExc_ValueError, "the parts of the file overlap or lie outside");
        goto fail;
    }
    self->entries = PyMem_Calloc((size_t)n + 1, sizeof *self->entries);
    if (self->entries == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    size_t offset = (size_t)data;
    for (; self->count < n; self->count++) {
        offset = ndshare_entry_take(&self->entries[self->count], PyList_GET_ITEM(list, self->count), offset);
        if (offset == 0 || offset > (size_t)size) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_ValueError, "key number %zd lies outside of the file", self->count);
            }
            self->count++;  /* taken in part */
            goto fail;
        }
    }
    void *base = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto fail;
    }
    self->base = base;
    if (ndshare_holders_join(self, fd) < 0) {
        goto fail;
    }
    self->fd = fd;
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static void
store_dealloc(PyObject *object)
{
    ndshare_store *self = (ndshare_store *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    ndshare_holders_leave(self);
    if (self->fd >= 0) {
        close(self->fd);
    }
    if (self->base != NULL) {
        munmap(self->base, self->size);
    }
    for (Py_ssize_t key = 0; self->entries != NULL && key < self->count; key++) {
        ndshare_entry_drop(&self->entries[key]);
    }
    PyMem_Free(self->entries);
    Py_XDECREF(self->fitting);
    pthread_mutex_destroy(&self->slow_lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
store_shut(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ((ndshare_store *)self)->shut = true;
    Py_RETURN_NONE;
}

static PyObject *
store_close(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_store *self = (ndshare_store *)object;
    self->shut = true;
    if (self->fd >= 0) {
        int fd = self->fd;
        self->fd = -1;
        close(fd);
    }
    Py_RETURN_NONE;
}

/* In the child of a fork: from now on its own description, or, with -1, none. */
static PyObject *
store_adopt(PyObject *object, PyObject *number)
{
    ndshare_store *self = (ndshare_store *)object;
    int fd = (int)PyLong_AsLong(number);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    int old = self->fd;
    self->fd = fd;
    self->shut = self->shut || fd < 0;
    ndshare_store_forget(self);
    if (old >= 0) {
        close(old);
    }
    Py_RETURN_NONE;
}

static PyObject *
get_persistent(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(
        atomic_load((_Atomic uint32_t *)(((ndshare_store *)self)->base + NDSHARE_DICT_PERSISTENT)) != 0);
}

static int
set_persistent(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0) {
        return -1;
    }
    atomic_store((_Atomic uint32_t *)(((ndshare_store *)self)->base + NDSHARE_DICT_PERSISTENT), (uint32_t)truth);
    return 0;
}

static PyMethodDef store_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))ndshare_store_acquire, METH_FASTCALL,
     PyDoc_STR("acquire(keys, timeout) -> None or (reason, key, holder, held)\n\n"
               "Lock keys, which ascend; all of them or none, because of a timeout, the order or a deadlock.")},
    {"release", ndshare_store_release, METH_O, PyDoc_STR("release(keys)\n\nFree their locks.")},
    {"load", ndshare_store_load, METH_O, PyDoc_STR("load(key)\n\nA private copy.")},
    {"snapshot", ndshare_store_snapshot, METH_O, PyDoc_STR("snapshot(keys) -> (copies, versions)\n\nAt one instant.")},
    {"version", ndshare_store_version, METH_O, PyDoc_STR("version(key)")},
    {"view", ndshare_store_view, METH_O, PyDoc_STR("view(key)\n\nThe current slot, read-only.")},
    {"fits", (PyCFunction)(void (*)(void))ndshare_store_fits, METH_FASTCALL,
     PyDoc_STR("fits(key, object)\n\nWhether `put` takes it for the key.")},
    {"fill", (PyCFunction)(void (*)(void))ndshare_store_fill, METH_FASTCALL,
     PyDoc_STR("fill(key, array)\n\nThe first value, before the file has a name.")},
    {"put", (PyCFunction)(void (*)(void))ndshare_store_put, METH_FASTCALL,
     PyDoc_STR("put(keys, arrays)\n\nWrite and publish, as one store.")},
    {"begin", ndshare_store_begin, METH_O, PyDoc_STR("begin(key)\n\nThe idle slot with a copy of the value.")},
    {"wait", (PyCFunction)(void (*)(void))ndshare_store_wait, METH_FASTCALL,
     PyDoc_STR("wait(key, version, timeout) -> version or None")},
    {"held", ndshare_store_held, METH_NOARGS, PyDoc_STR("held()\n\nKeys that this thread has locked.")},
    {"update", (PyCFunction)(void (*)(void))ndshare_store_update, METH_FASTCALL,
     PyDoc_STR("update(key, new, func, copy, timeout) -> array, or as acquire if the lock is not to be had")},
    {"recall", ndshare_store_recall, METH_NOARGS,
     PyDoc_STR("recall()\n\nBefore a fork: no array of this thread lies in a slot any more.")},
    {"check", ndshare_store_check, METH_NOARGS, PyDoc_STR("check() -> None or (key, field)")},
    {"shut", store_shut, METH_NOARGS, PyDoc_STR("shut()\n\nRefuse what begins from now on.")},
    {"close", store_close, METH_NOARGS, PyDoc_STR("close()\n\nGive up the descriptor.")},
    {"adopt", store_adopt, METH_O, PyDoc_STR("adopt(fd)\n\nIn a forked child: its own descriptor, or -1.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef store_members[] = {
    {"fd", T_INT, offsetof(ndshare_store, fd), READONLY, NULL},
    {"busy", T_PYSSIZET, offsetof(ndshare_store, busy), READONLY, NULL},
    {"fitting", T_OBJECT, offsetof(ndshare_store, fitting), 0, NULL},
    {"shutting", T_BOOL, offsetof(ndshare_store, shut), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ndshare_store, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef store_getters[] = {
    {"persistent", get_persistent, set_persistent, PyDoc_STR("Whether it outlives its users."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot store_slots[] = {
    {Py_tp_new, store_new},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {Py_tp_members, store_members},
    {Py_tp_getset, store_getters},
    {Py_tp_doc, (void *)PyDoc_STR("Store(fd, size, cells, data, [(dtype, shape), ...])")},
    {0, NULL},
};

PyType_Spec ndshare_store_spec = {
    .name = "ndshare._dict._store.Store",
    .basicsize = sizeof(ndshare_store),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = store_slots,
};
