/* Hold: the locks of keys for the length of a `with` block, however it is left.
 *
 * Python may raise KeyboardInterrupt after any of its instructions: behind the call that has taken a lock, and at the
 * first instruction of an `__exit__` in Python. Here the lock is noted where it is taken, and leaving is one call.
 */
#define NO_IMPORT_ARRAY
#include "hold.h"
#include "arguments.h"
#include "locks.h"
#include "slots.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    ndshare_store *store;
    PyObject *arrays;     /* a list of those on the idle slots, or None: nothing to publish */
    Py_ssize_t *keys, n;
    bool held;
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
    self->arrays = Py_NewRef(Py_None);
    return 0;
}

static PyObject *
hold_take(PyObject *object, PyObject *number)
{
    ndshare_hold *self = (ndshare_hold *)object;
    double timeout = PyFloat_AsDouble(number);
    if ((timeout == -1 && PyErr_Occurred()) || !ndshare_store_open(self->store)) {
        return NULL;
    }
    PyObject *result = ndshare_lock_keys(self->store, self->keys, self->n, timeout);
    self->held = self->held || result == Py_None;
    return result;
}

static PyObject *
hold_free(PyObject *object, PyObject *Py_UNUSED(unused))
{
    ndshare_hold *self = (ndshare_hold *)object;
    PyObject *arrays = self->arrays;
    self->arrays = Py_NewRef(Py_None);
    for (Py_ssize_t i = 0; PyList_Check(arrays) && i < PyList_GET_SIZE(arrays); i++) {
        if (PyArray_Check(PyList_GET_ITEM(arrays, i))) {  /* from now on others read there */
            PyArray_CLEARFLAGS((PyArrayObject *)PyList_GET_ITEM(arrays, i), NPY_ARRAY_WRITEABLE);
        }
    }
    for (Py_ssize_t i = self->n - 1; self->held && i >= 0; i--) {
        ndshare_lock_free(self->store, self->keys[i]);
    }
    self->held = false;
    Py_DECREF(arrays);
    Py_RETURN_NONE;
}

/* Publish, if there is anything and the block was left normally, and free the locks. */
static PyObject *
hold_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_hold *self = (ndshare_hold *)object;
    bool failed = false;
    if (nargs > 0 && args[0] == Py_None && self->arrays != Py_None) {
        bool ready = self->held;
        for (Py_ssize_t i = 0; ready && i < self->n; i++) {
            const ndshare_entry *entry = &self->store->entries[self->keys[i]];
            ready = entry->owner == PyThread_get_thread_ident() && entry->writing >= 0;
        }
        if (ready) {
            ndshare_slot_commit(self->store, self->keys, self->n);
        }
        else {
            PyObject *raised = PyObject_CallMethod(object, "_refuse", NULL);
            failed = raised == NULL;
            Py_XDECREF(raised);
        }
    }
    PyObject *kind, *value, *traceback;
    PyErr_Fetch(&kind, &value, &traceback);
    Py_DECREF(hold_free(object, NULL));
    PyErr_Restore(kind, value, traceback);
    return failed ? NULL : Py_NewRef(Py_None);
}

static void
hold_dealloc(PyObject *object)
{
    ndshare_hold *self = (ndshare_hold *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->store != NULL) {
        Py_DECREF(hold_free(object, NULL));
    }
    Py_XDECREF(self->store);
    Py_XDECREF(self->arrays);
    PyMem_Free(self->keys);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef hold_methods[] = {
    {"take", hold_take, METH_O, PyDoc_STR("take(timeout) -> None or (reason, key, holder, held)\n\n"
               "All of the locks or none, because of a timeout, the order or a deadlock.")},
    {"free", hold_free, METH_NOARGS, PyDoc_STR("free()\n\nFree the locks that were taken; publish nothing.")},
    {"__exit__", (PyCFunction)(void (*)(void))hold_exit, METH_FASTCALL,
     PyDoc_STR("Publish the arrays, unless there was an exception, and free the locks.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef hold_members[] = {
    {"arrays", T_OBJECT, offsetof(ndshare_hold, arrays), 0, NULL},
    {"held", T_BOOL, offsetof(ndshare_hold, held), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot hold_slots[] = {
    {Py_tp_init, hold_init},
    {Py_tp_dealloc, hold_dealloc},
    {Py_tp_methods, hold_methods},
    {Py_tp_members, hold_members},
    {Py_tp_doc, (void *)PyDoc_STR("Hold(store, keys)\n\nLocks of keys, which ascend.")},
    {0, NULL},
};

PyType_Spec ndshare_hold_spec = {
    .name = "ndshare._dict._store.Hold",
    .basicsize = sizeof(ndshare_hold),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = hold_slots,
};
