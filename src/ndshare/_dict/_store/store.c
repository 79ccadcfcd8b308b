/* Store: what a process has of one SharedDict; the type and its life.
 *
 * The memory stays mapped as long as anything refers to the Store, views included; the descriptor, and with it
 * the locks, ends with close(). So the mapping is of a description of its own, without a lock: a mapping keeps its
 * description, in this process and in every child of a fork that goes on after it.
 */
#define NO_IMPORT_ARRAY
#include "store.h"
#include "arguments.h"
#include "holders.h"
#include "lending.h"
#include "locks.h"
#include "reading.h"
#include "slots.h"
#include "view.h"
#include "writing.h"

#include <errno.h>
#include <fcntl.h>
#include <structmember.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALIGNMENT 64

/* One entry of the constructor: (dtype, shape). Returns the offset after its two slots, or 0 with an error. */
static size_t
entry_take(ndshare_entry *entry, PyObject *item, size_t offset)
{
    PyObject *dtype, *shape;
    if (!PyArg_ParseTuple(item, "O!O!", &PyArrayDescr_Type, &dtype, &PyTuple_Type, &shape)) {
        return 0;
    }
    entry->ndim = (int)PyTuple_GET_SIZE(shape);
    if (entry->ndim > NPY_MAXDIMS) {
        PyErr_Format(PyExc_ValueError, "%d dimensions", entry->ndim);
        return 0;
    }
    entry->shape = PyMem_Malloc(sizeof(npy_intp) * (size_t)(entry->ndim + 1));
    if (entry->shape == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    entry->dtype = (PyArray_Descr *)Py_NewRef(dtype);
    size_t nbytes = (size_t)PyDataType_ELSIZE(entry->dtype);
    for (int axis = 0; axis < entry->ndim; axis++) {
        entry->shape[axis] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, axis));
        if (entry->shape[axis] < 0 || __builtin_mul_overflow(nbytes, (size_t)entry->shape[axis], &nbytes)) {
            if (!PyErr_Occurred()) {
                PyErr_SetString(PyExc_ValueError, "a shape is negative or too large");
            }
            return 0;
        }
    }
    entry->nbytes = nbytes;
    entry->writing = -1;
    if (nbytes > (size_t)PY_SSIZE_T_MAX / 4) {
        PyErr_SetString(PyExc_ValueError, "an array is too large");
        return 0;
    }
    /* Large ones on pages of their own, so that a slot can be mapped alone. */
    size_t alignment = nbytes >= NDSHARE_DICT_LARGE ? (size_t)sysconf(_SC_PAGESIZE) : ALIGNMENT;
    entry->offset = (offset + alignment - 1) / alignment * alignment;
    entry->stride = (nbytes + alignment - 1) / alignment * alignment;
    return entry->offset + 2 * entry->stride;
}

static void
entry_drop(ndshare_entry *entry)
{
    Py_XDECREF(entry->window[0]);
    Py_XDECREF(entry->window[1]);
    Py_XDECREF(entry->dtype);
    PyMem_Free(entry->shape);
}

static char *
map_anew(int fd, size_t size)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = open(path, O_RDWR | O_CLOEXEC);
    if (own < 0) {
        return NULL;
    }
    void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0);
    int error = errno;
    close(own);
    errno = error;
    return base == MAP_FAILED ? NULL : base;
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
        self->entries[self->count].store = self;
        offset = entry_take(&self->entries[self->count], PyList_GET_ITEM(list, self->count), offset);
        if (offset == 0 || offset > (size_t)size) {
            if (!PyErr_Occurred()) {
                PyErr_Format(PyExc_ValueError, "key number %zd lies outside of the file", self->count);
            }
            self->count++;  /* taken in part */
            goto fail;
        }
    }
    self->base = map_anew(fd, self->size);
    if (self->base == NULL) {
        errno == ENOMEM ? PyErr_NoMemory() : PyErr_SetFromErrno(PyExc_OSError);
        goto fail;
    }
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
        entry_drop(&self->entries[key]);
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
    int fd = atomic_exchange(&self->fd, -1);
    if (fd >= 0) {
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
    ndshare_lock_forget(self);
    if (old >= 0) {
        close(old);
    }
    Py_RETURN_NONE;
}

/* What cannot be a state of the cells, whatever died when: (key, field), or None. */
static PyObject *
store_check(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_store *self = (ndshare_store *)object;
    uint64_t txn = atomic_load((_Atomic uint64_t *)(self->base + NDSHARE_DICT_TXN));
    if (txn >= NDSHARE_DICT_MOST) {
        return Py_BuildValue("(is)", 0, "transactions");
    }
    for (Py_ssize_t key = 0; key < self->count; key++) {
        ndshare_dict_cell *cell = ndshare_dict_cell_of(self, key);
        ndshare_current current;
        if (ndshare_slot_look(self, key, &current) != 0) {
            return Py_BuildValue("(ns)", key, "done");
        }
        for (int s = 0; s < 2; s++) {
            const char *field = NULL;
            for (int try = 0; try < 100; try++) {  /* somebody may be writing */
                field = NULL;
                uint64_t done = atomic_load(&cell->slot[s].done), begun = atomic_load(&cell->slot[s].begun);
                uint64_t link = atomic_load(&cell->slot[s].link), version = atomic_load(&cell->slot[s].version);
                uint64_t seal = atomic_load(&cell->seal[s]);
                if (begun >= NDSHARE_DICT_MOST) {
                    return Py_BuildValue("(ns)", key, "begun");
                }
                if (done != 0 && done != begun) {
                    field = "begun";
                }
                else if (done != 0 && seal != ndshare_slot_seal(key, done, version)) {
                    field = "seal";
                }
                else if (done != 0 && link != 0) {
                    uint64_t now = atomic_load((_Atomic uint64_t *)(self->base + NDSHARE_DICT_TXN));
                    uint64_t leader = link & (NDSHARE_DICT_MAX_KEYS - 1), id = link / NDSHARE_DICT_MAX_KEYS;
                    if (leader >= (uint64_t)self->count || id == 0 || id > (now > txn ? now : txn)) {
                        field = "link";
                    }
                }
                if (field == NULL || atomic_load(&cell->slot[s].done) == 0) {
                    field = NULL;
                    break;
                }
            }
            if (field != NULL) {
                return Py_BuildValue("(ns)", key, field);
            }
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
store_held(PyObject *self, PyObject *Py_UNUSED(unused))
{
    return ndshare_holders_keys((ndshare_store *)self, false);
}

static PyObject *
get_fd(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(((ndshare_store *)self)->fd);
}

static PyObject *
get_busy(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((ndshare_store *)self)->busy);
}

static PyObject *
get_shutting(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((ndshare_store *)self)->shut);
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
    {"load", ndshare_store_load, METH_O, PyDoc_STR("load(key)\n\nA private copy.")},
    {"snapshot", ndshare_store_snapshot, METH_O, PyDoc_STR("snapshot(keys) -> (copies, versions)\n\nAt one instant.")},
    {"version", ndshare_store_version, METH_O, PyDoc_STR("version(key)")},
    {"view", ndshare_store_view, METH_O, PyDoc_STR("view(key)\n\nThe current slot, read-only.")},
    {"fits", (PyCFunction)(void (*)(void))ndshare_store_fits, METH_FASTCALL,
     PyDoc_STR("fits(key, object)\n\nWhether `put` takes it for the key.")},
    {"fill", (PyCFunction)(void (*)(void))ndshare_store_fill, METH_FASTCALL,
     PyDoc_STR("fill(key, array)\n\nThe first value, before the file has a name.")},
    {"wait", (PyCFunction)(void (*)(void))ndshare_store_wait, METH_FASTCALL,
     PyDoc_STR("wait(key, version, timeout) -> version or None")},
    {"held", store_held, METH_NOARGS, PyDoc_STR("held()\n\nKeys that this thread has locked.")},
    {"update", (PyCFunction)(void (*)(void))ndshare_store_update, METH_FASTCALL,
     PyDoc_STR("update(key, new, func, copy, timeout) -> array, or as `Hold.take` if the lock is not to be had")},
    {"recall", ndshare_store_recall, METH_NOARGS,
     PyDoc_STR("recall()\n\nBefore a fork: no array of this thread lies in a slot any more.")},
    {"check", store_check, METH_NOARGS, PyDoc_STR("check() -> None or (key, field)")},
    {"shut", store_shut, METH_NOARGS, PyDoc_STR("shut()\n\nRefuse what begins from now on.")},
    {"close", store_close, METH_NOARGS, PyDoc_STR("close()\n\nGive up the descriptor.")},
    {"adopt", store_adopt, METH_O, PyDoc_STR("adopt(fd)\n\nIn a forked child: its own descriptor, or -1.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef store_members[] = {
    {"fitting", T_OBJECT, offsetof(ndshare_store, fitting), 0, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(ndshare_store, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef store_getters[] = {
    {"fd", get_fd, NULL, PyDoc_STR("Of the file, with its locks; -1: closed."), NULL},
    {"busy", get_busy, NULL, PyDoc_STR("How many operations of this process need the descriptor."), NULL},
    {"shutting", get_shutting, NULL, PyDoc_STR("Whether what begins now is refused."), NULL},
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
