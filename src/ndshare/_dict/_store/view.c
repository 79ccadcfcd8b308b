/* Read-only arrays on the slots themselves. Their base keeps the memory mapped, knows what was to be seen there, and
 * lets nobody make them writable. */
#define NO_IMPORT_ARRAY
#include "view.h"
#include "arguments.h"
#include "slots.h"

typedef struct {
    PyObject_HEAD
    PyObject *store;
    Py_ssize_t key;
    ndshare_current where;
} ndshare_view;

static ndshare_dict_state *
state_of(PyObject *store)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(store), &ndshare_dict_definition);
    return module == NULL ? NULL : PyModule_GetState(module);
}

PyObject *
ndshare_view_array(PyObject *self, Py_ssize_t key, const ndshare_current *where)
{
    ndshare_store *store = (ndshare_store *)self;
    ndshare_entry *entry = &store->entries[key];
    ndshare_dict_state *state = state_of(self);
    if (state == NULL) {
        return NULL;
    }
    ndshare_view *view = (ndshare_view *)state->view_type->tp_alloc(state->view_type, 0);
    if (view == NULL) {
        return NULL;
    }
    view->store = Py_NewRef(self);
    view->key = key;
    view->where = *where;
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(entry->dtype), entry->ndim,
                                           entry->shape, NULL, ndshare_dict_data(store, key, where->slot),
                                           NPY_ARRAY_CARRAY_RO, NULL);
    if (array == NULL) {
        Py_DECREF(view);
        return NULL;
    }
    if (PyArray_SetBaseObject((PyArrayObject *)array, (PyObject *)view) < 0) {
        Py_CLEAR(array);
    }
    return array;
}

PyObject *
ndshare_store_view(PyObject *self, PyObject *number)
{
    ndshare_store *store = (ndshare_store *)self;
    ndshare_current current;
    Py_ssize_t key = ndshare_store_current(store, number, &current);
    if (key < 0) {
        return NULL;
    }
    return ndshare_view_array(self, key, &current);
}

/* Whether a view, or a view of it, still shows what it was made for; None if it is no view of a slot. */
PyObject *
ndshare_view_intact(PyObject *module, PyObject *array)
{
    ndshare_dict_state *state = PyModule_GetState(module);
    while (array != NULL && PyArray_Check(array)) {
        array = PyArray_BASE((PyArrayObject *)array);
    }
    if (array == NULL || !Py_IS_TYPE(array, state->view_type)) {
        Py_RETURN_NONE;
    }
    ndshare_view *view = (ndshare_view *)array;
    return PyBool_FromLong(ndshare_slot_unchanged((ndshare_store *)view->store, view->key, &view->where));
}

static void
view_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(((ndshare_view *)self)->store);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot view_slots[] = {
    {Py_tp_dealloc, view_dealloc},
    {Py_tp_doc, (void *)PyDoc_STR("Keeps the memory below an array.")},
    {0, NULL},
};

PyType_Spec ndshare_view_spec = {
    .name = "ndshare._dict._store.View",
    .basicsize = sizeof(ndshare_view),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = view_slots,
};
