/* Hold: the locks of keys for the length of a `with` block, however it is left.
 *
 * Python may raise KeyboardInterrupt after any of its instructions: behind the call that has taken a lock, and at the
 * first instruction of an `__exit__` in Python. Here the lock is noted where it is taken, and leaving is one call.
 *
 * The arrays of a block are private memory. Its values go into the slots when the block is left, so that whatever is
 * made of the arrays, views, memoryviews, pointers, reaches nothing that others read, before or after.
 */
#define NO_IMPORT_ARRAY
#include "hold.h"
#include "arguments.h"
#include "holders.h"
#include "locks.h"
#include "memory.h"
#include "waiting.h"
#include "writing.h"

#include <errno.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    ndshare_store *store;
    _Atomic uint64_t thread;  /* that has the locks, 0: none. The rest is of this thread */
    double end;               /* when waiting ends, -1: never */
    Py_ssize_t *keys, n;
    PyObject **arrays;        /* of the block, one per key, their memory is their base; NULL: nothing to publish */
} ndshare_hold;

static int
hold_init(PyObject *object, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    ndshare_hold *self = (ndshare_hold *)object;
    PyObject *store, *numbers;
    if (!PyArg_ParseTuple(args, "OO:Hold", &store, &numbers)) {
        return -1;
    }
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(object), &ndshare_dict_definition);
    ndshare_dict_state *state = module == NULL ? NULL : PyModule_GetState(module);
    if (state == NULL || self->store != NULL || !PyObject_TypeCheck(store, state->store_type)) {
        PyErr_SetString(PyExc_TypeError, "Hold takes a Store, once");
        return -1;
    }
    self->keys = ndshare_store_keys((ndshare_store *)store, numbers, &self->n);
    if (self->keys == NULL) {
        return -1;
    }
    self->store = (ndshare_store *)Py_NewRef(store);
    return 0;
}

static PyObject *
hold_take(PyObject *object, PyObject *number)
{
    ndshare_hold *self = (ndshare_hold *)object;
    double timeout = PyFloat_AsDouble(number);
    if (timeout == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (self->store == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a Hold whose __init__ was not called has no locks to take");
        return NULL;
    }
    if (!ndshare_store_open(self->store)) {
        return NULL;
    }
    double end = ndshare_deadline(timeout);
    PyObject *result = ndshare_lock_keys(self->store, self->keys, self->n, end);
    if (result == Py_None) {
        self->end = end;
        self->thread = ndshare_thread();
    }
    return result;
}

static bool
is_mine(ndshare_hold *self)
{
    if (self->thread == ndshare_thread()) {
        return true;
    }
    PyErr_SetString(PyExc_RuntimeError, "this thread has not taken the locks of this Hold");
    return false;
}

static PyArrayObject *
memory_of(PyObject *array)
{
    return (PyArrayObject *)PyArray_BASE((PyArrayObject *)array);
}

/* From now on they are read-only: writing into them would have no effect on the dict. */
static void
drop_arrays(ndshare_hold *self)
{
    PyObject **arrays = self->arrays;
    self->arrays = NULL;
    for (Py_ssize_t i = 0; arrays != NULL && i < self->n; i++) {
        if (arrays[i] != NULL) {
            PyArray_CLEARFLAGS(memory_of(arrays[i]), NPY_ARRAY_WRITEABLE);
            PyArray_CLEARFLAGS((PyArrayObject *)arrays[i], NPY_ARRAY_WRITEABLE);
            Py_DECREF(arrays[i]);
        }
    }
    PyMem_Free(arrays);
}

/* An array on private memory with a copy of the current value. The memory is of an array of its own, so that the one
 * that is given out can be neither resized nor, afterwards, made writable. */
static PyObject *
private_copy(ndshare_store *store, Py_ssize_t key, const ndshare_current *current)
{
    const ndshare_entry *entry = &store->entries[key];
    PyObject *memory = ndshare_memory_empty(store, key, true);
    if (memory == NULL) {
        return NULL;
    }
    void *to = PyArray_DATA((PyArrayObject *)memory), *from = ndshare_dict_data(store, key, current->slot);
    Py_BEGIN_ALLOW_THREADS
    ndshare_slot_copy_out(to, from, entry->nbytes);
    Py_END_ALLOW_THREADS
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(entry->dtype), entry->ndim,
                                           entry->shape, NULL, to, NPY_ARRAY_CARRAY, NULL);
    if (array == NULL) {
        Py_DECREF(memory);
    }
    else if (PyArray_SetBaseObject((PyArrayObject *)array, memory) < 0) {
        Py_CLEAR(array);
    }
    return array;
}

static PyObject *
hold_begin(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_hold *self = (ndshare_hold *)object;
    if (!is_mine(self)) {
        return NULL;
    }
    drop_arrays(self);
    self->arrays = PyMem_Calloc((size_t)self->n + 1, sizeof *self->arrays);
    PyObject *arrays = PyList_New(self->n);
    if (self->arrays == NULL || arrays == NULL) {
        Py_XDECREF(arrays);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        ndshare_current current;
        PyObject *begun = ndshare_writing_start(self->store, self->keys[i], self->end, &current);
        if (begun != Py_None) {
            Py_DECREF(arrays);
            return begun;
        }
        Py_DECREF(begun);
        self->arrays[i] = private_copy(self->store, self->keys[i], &current);
        if (self->arrays[i] == NULL) {
            Py_DECREF(arrays);
            return NULL;
        }
        PyList_SET_ITEM(arrays, i, Py_NewRef(self->arrays[i]));
    }
    return arrays;
}

static int
commit(ndshare_hold *self)
{
    int error = self->n > 0 ? ndshare_slot_commit(self->store, self->keys, self->n) : 0;
    return error == 0 ? 0 : ndshare_store_failed(self->keys[0], error);
}

/* Write all and publish them by one store. */
static PyObject *
hold_put(PyObject *object, PyObject *sequence)
{
    ndshare_hold *self = (ndshare_hold *)object;
    PyObject *result = NULL, *arrays = is_mine(self) ? PySequence_Tuple(sequence) : NULL;
    if (arrays == NULL) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(arrays) != self->n) {
        PyErr_SetString(PyExc_ValueError, "put: as many arrays as keys are needed");
        goto done;
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        if (!ndshare_store_fitting(&self->store->entries[self->keys[i]], PyTuple_GET_ITEM(arrays, i))) {
            PyErr_SetString(PyExc_TypeError, "put: an array has not the dtype and shape of its key, or is not contiguous");
            goto done;
        }
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        ndshare_current current;
        result = ndshare_writing_start(self->store, self->keys[i], self->end, &current);
        if (result != Py_None) {
            goto done;
        }
        Py_CLEAR(result);
        ndshare_writing_copy(self->store, self->keys[i], PyArray_DATA((PyArrayObject *)PyTuple_GET_ITEM(arrays, i)));
    }
    result = commit(self) < 0 ? NULL : Py_NewRef(Py_None);
done:
    Py_DECREF(arrays);
    return result;
}

static PyObject *
hold_free(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_hold *self = (ndshare_hold *)object;
    if (self->thread == ndshare_thread()) {
        drop_arrays(self);
        for (Py_ssize_t i = self->n - 1; i >= 0; i--) {
            ndshare_lock_free(self->store, self->keys[i]);
        }
        self->thread = 0;
    }
    Py_RETURN_NONE;
}

/* 0, -1 with an error set, or 1: this is not the thread, or not the process, that has begun the slots. */
static int
publish(ndshare_hold *self)
{
    if (self->thread != ndshare_thread()) {
        return 1;
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        const ndshare_entry *entry = &self->store->entries[self->keys[i]];
        if (entry->owner != ndshare_thread() || entry->writing < 0 || self->arrays[i] == NULL) {
            return 1;
        }
        if ((size_t)PyArray_NBYTES(memory_of(self->arrays[i])) != entry->nbytes) {
            PyErr_SetString(PyExc_RuntimeError, "the memory of an array of a `locked` block was resized; nothing is published");
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < self->n; i++) {
        ndshare_writing_copy(self->store, self->keys[i], PyArray_DATA(memory_of(self->arrays[i])));
    }
    return commit(self);
}

/* Publish, if there is anything and the block was left normally, and free the locks. */
static PyObject *
hold_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_hold *self = (ndshare_hold *)object;
    int failed = nargs > 0 && args[0] == Py_None && self->arrays != NULL ? publish(self) : 0;
    if (failed > 0) {
        PyObject *raised = PyObject_CallMethod(object, "_refuse", NULL);
        Py_XDECREF(raised);
        failed = raised == NULL ? -1 : 0;
    }
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    Py_DECREF(hold_free(object, NULL));
    PyErr_Restore(kind, value, traceback);
    return failed < 0 ? NULL : Py_NewRef(Py_None);
}

static void
hold_dealloc(PyObject *object)
{
    ndshare_hold *self = (ndshare_hold *)object;
    PyTypeObject *type = Py_TYPE(object);
    Py_DECREF(hold_free(object, NULL));
    drop_arrays(self);
    Py_XDECREF(self->store);
    PyMem_Free(self->keys);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
get_held(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(((ndshare_hold *)self)->thread != 0);
}

static PyMethodDef hold_methods[] = {
    {"take", hold_take, METH_O,
     PyDoc_STR("take(timeout) -> None or (reason, key, holder, held)\n\n"
               "All of the locks or none, because of a timeout, the order or a deadlock.")},
    {"begin", hold_begin, METH_NOARGS,
     PyDoc_STR("begin() -> [array, ...], or why not as `take`\n\nPrivate copies, which leaving the block publishes.")},
    {"put", hold_put, METH_O,
     PyDoc_STR("put(arrays) -> None, or why not as `take`\n\nWrite and publish, as one store.")},
    {"free", hold_free, METH_NOARGS, PyDoc_STR("free()\n\nFree the locks that were taken; publish nothing.")},
    {"__exit__", (PyCFunction)(void (*)(void))hold_exit, METH_FASTCALL,
     PyDoc_STR("Publish the arrays, unless there was an exception, and free the locks.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef hold_getters[] = {
    {"held", get_held, NULL, PyDoc_STR("Whether a thread has the locks through this."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot hold_slots[] = {
    {Py_tp_init, hold_init},
    {Py_tp_dealloc, hold_dealloc},
    {Py_tp_methods, hold_methods},
    {Py_tp_getset, hold_getters},
    {Py_tp_doc, (void *)PyDoc_STR("Hold(store, keys)\n\nLocks of keys, which ascend.")},
    {0, NULL},
};

PyType_Spec ndshare_hold_spec = {
    .name = "ndshare._dict._store.Hold",
    .basicsize = sizeof(ndshare_hold),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = hold_slots,
};
