/* Where NumPy takes the memory of large values from: by-value blocks of ndshare's heap, which are recycled.
 *
 * Copies of a value, and what functions make of it, have one size each time: recycled blocks, instead of pages that
 * the kernel has to clear anew, halve the time. Where memory comes from somewhere else on purpose, as in
 * `shared_memory()`, that is left alone.
 */
#define NO_IMPORT_ARRAY
#include "memory.h"

#include <string.h>

#define CAPSULE_NAME "mem_handler"        /* NumPy's */
#define HUGE_BYTES ((size_t)4 << 20)      /* from here on NumPy asks for huge pages, and fresh memory costs little */

PyDataMemAllocator ndshare_memory_blocks;
static PyObject *recycling;

int
ndshare_memory_configure(PyObject *capsule)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(capsule, CAPSULE_NAME);
    if (handler == NULL) {
        return -1;
    }
    ndshare_memory_blocks = handler->allocator;
    Py_XSETREF(recycling, Py_NewRef(capsule));
    return 0;
}

/* The handler of by-value blocks, borrowed, where it may be set; else NULL without an error. */
PyObject *
ndshare_memory_recycled(void)
{
    PyObject *current = PyDataMem_GetHandler();
    PyDataMem_Handler *handler = current == NULL ? NULL : PyCapsule_GetPointer(current, CAPSULE_NAME);
    bool ours = handler != NULL
             && (current == PyDataMem_DefaultHandler || handler->allocator.malloc == ndshare_memory_blocks.malloc
                 || strcmp(handler->name, NDSHARE_DICT_HANDLER) == 0);
    Py_XDECREF(current);
    PyErr_Clear();
    return ours ? recycling : NULL;
}

/* Set a handler; returns the one before, for `restore`. NULL: nothing was set, with an error unless `handler` is NULL. */
PyObject *
ndshare_memory_set(PyObject *handler)
{
    return handler == NULL ? NULL : PyDataMem_SetHandler(handler);
}

/* Set the handler from before again, if there is one, and keep the current error. */
int
ndshare_memory_restore(PyObject *before)
{
    if (before == NULL) {
        return 0;
    }
    PyObject *error, *value, *traceback;
    PyErr_Fetch(&error, &value, &traceback);
    PyObject *ours = PyDataMem_SetHandler(before);
    Py_DECREF(before);
    if (ours == NULL) {
        Py_XDECREF(error);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
        return -1;
    }
    Py_DECREF(ours);
    PyErr_Restore(error, value, traceback);
    return 0;
}

/* A new private array for a value of a key; `brief`: it is filled, and soon given back. */
PyObject *
ndshare_memory_empty(const ndshare_store *store, Py_ssize_t key, bool brief)
{
    const ndshare_entry *entry = &store->entries[key];
    bool recycle = entry->nbytes >= NDSHARE_DICT_LARGE && (brief || entry->nbytes < HUGE_BYTES);
    PyObject *before = ndshare_memory_set(recycle ? ndshare_memory_recycled() : NULL);
    if (before == NULL && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *array = PyArray_Empty(entry->ndim, entry->shape, (PyArray_Descr *)Py_NewRef(entry->dtype), 0);
    if (ndshare_memory_restore(before) < 0) {
        Py_CLEAR(array);
    }
    return array;
}
