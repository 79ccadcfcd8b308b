/* Lending the idle slot of a key to the function that computes its new value.
 *
 * While the function runs, its thread's NumPy takes memory from a handler of ours (NEP 49): one of the blocks that
 * have the size of the value lies in the slot, the others are recycled by-value blocks. What `0.1 * new + 0.9 * old`
 * returns then is in its place already, and nothing is copied. Which one that is, the first or, where NumPy makes no
 * use of temporaries again, a later one, is learned from the call before (`turn`).
 *
 * A window is a second mapping of a slot, for such a block. It belongs to its capsule, which the slot's entry
 * and, as NumPy does it, each array that was made with the handler refer to.
 *
 *   shut ── open() ─▶ open ── a block of the right size ─▶ taken ── freed ─▶ open
 *   close(): open ─▶ shut.  Taken, and the value returned is the only thing there ─▶ published in place
 *                           Taken otherwise (the function keeps it somewhere) ─▶ detached
 *
 * Detached: the content is copied to private pages, which are moved over the window: what lies there keeps its
 * address and its content, and the slot is ours again. The entry forgets the window; it ends with its last array.
 *
 * Guarantee: nobody but who has the lock of a key ever has an array on its idle slot.
 * A fork inside the function detaches first: parent and child go on with the same content, each in its own.
 */
#define NO_IMPORT_ARRAY
#define _GNU_SOURCE
#include "lending.h"
#include "holders.h"
#include "memory.h"

#include <string.h>
#include <sys/mman.h>

#define CAPSULE_NAME "mem_handler"   /* NumPy's */
#define MOST_WINDOWS 256             /* of a process: the kernel counts mappings */
#define MOST_BLOCKS 16               /* of a call that are kept in mind */

typedef struct {
    char *base;
    size_t length, nbytes;
    _Atomic uint64_t thread;     /* that has it open, or 0; a context that the function copied may live on in another */
    bool detached;
    _Atomic bool taken;
    int turn, asked;             /* which block goes here; how many were asked for */
    void *blocks[MOST_BLOCKS];   /* the others */
    PyDataMem_Handler handler;
} window;

static _Atomic int windows;

/* Whether a block of this size is one that counts; then `number` is which one. */
static bool
counts(window *self, size_t nbytes, int *number)
{
    if (nbytes != self->nbytes || self->thread != ndshare_thread()) {
        return false;
    }
    *number = self->asked++;
    return true;
}

static bool
take(window *self, int number)
{
    return number == self->turn && !atomic_exchange(&self->taken, true);
}

static void *
keep_in_mind(window *self, int number, void *block)
{
    if (number < MOST_BLOCKS) {
        self->blocks[number] = block;
    }
    return block;
}

static void *
lent_malloc(void *context, size_t nbytes)
{
    window *self = context;
    int number;
    bool counted = counts(self, nbytes, &number);
    if (counted && take(self, number)) {
        return self->base;
    }
    void *block = ndshare_memory_blocks.malloc(ndshare_memory_blocks.ctx, nbytes);
    return counted ? keep_in_mind(self, number, block) : block;
}

static void *
lent_calloc(void *context, size_t count, size_t size)
{
    window *self = context;
    size_t nbytes;
    int number;
    bool counted = !__builtin_mul_overflow(count, size, &nbytes) && counts(self, nbytes, &number);
    if (counted && take(self, number)) {
        return memset(self->base, 0, nbytes);
    }
    void *block = ndshare_memory_blocks.calloc(ndshare_memory_blocks.ctx, count, size);
    return counted ? keep_in_mind(self, number, block) : block;
}

static void
lent_free(void *context, void *block, size_t nbytes)
{
    window *self = context;
    if (block == self->base) {
        atomic_store(&self->taken, false);
        return;
    }
    ndshare_memory_blocks.free(ndshare_memory_blocks.ctx, block, nbytes);
}

static void *
lent_realloc(void *context, void *block, size_t nbytes)
{
    window *self = context;
    if (block == NULL || block != self->base) {
        return ndshare_memory_blocks.realloc(ndshare_memory_blocks.ctx, block, nbytes);
    }
    void *moved = ndshare_memory_blocks.malloc(ndshare_memory_blocks.ctx, nbytes);
    if (moved != NULL) {
        memcpy(moved, block, nbytes < self->nbytes ? nbytes : self->nbytes);
        lent_free(context, block, 0);
    }
    return moved;
}

static window *
window_of(PyObject *capsule)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(capsule, CAPSULE_NAME);
    return handler == NULL ? NULL : handler->allocator.ctx;
}

static void
window_end(PyObject *capsule)
{
    window *self = window_of(capsule);
    munmap(self->base, self->length);
    PyMem_Free(self);
    windows--;
}

static PyObject *
window_make(const ndshare_store *store, Py_ssize_t key, int slot)
{
    const ndshare_entry *entry = &store->entries[key];
    window *self = windows < MOST_WINDOWS ? PyMem_Calloc(1, sizeof *self) : NULL;
    if (self == NULL) {
        return NULL;
    }
    *self = (window){.length = entry->stride, .nbytes = entry->nbytes};
    self->handler = (PyDataMem_Handler){
        NDSHARE_DICT_HANDLER, 1, {self, lent_malloc, lent_calloc, lent_realloc, lent_free}};
    /* The same pages a second time: that is what mremap does with an old size of 0. */
    void *base = mremap(ndshare_dict_data(store, key, slot), 0, self->length, MREMAP_MAYMOVE);
    if (base == MAP_FAILED) {
        PyMem_Free(self);
        return NULL;
    }
#ifdef MADV_POPULATE_WRITE
    madvise(base, self->length, MADV_POPULATE_WRITE);  /* from Linux 5.14 on; else page by page */
#endif
    self->base = base;
    PyObject *capsule = PyCapsule_New(&self->handler, CAPSULE_NAME, window_end);
    if (capsule == NULL) {
        munmap(base, self->length);
        PyMem_Free(self);
        return NULL;
    }
    windows++;
    return capsule;
}

/* The window of a slot that was begun, open, as a borrowed reference; NULL without an error if there cannot be
 * one: then the value is copied as any other. */
PyObject *
ndshare_lending_open(ndshare_store *store, Py_ssize_t key, int slot)
{
    ndshare_entry *entry = &store->entries[key];
    if (entry->window[slot] == NULL) {
        entry->window[slot] = window_make(store, key, slot);
        PyErr_Clear();
        if (entry->window[slot] == NULL) {
            return NULL;
        }
    }
    window *self = window_of(entry->window[slot]);
    self->turn = entry->turn;
    self->asked = 0;
    self->thread = ndshare_thread();
    return entry->window[slot];
}

static int
detach(window *self)
{
    self->detached = true;
    void *copy = mmap(NULL, self->length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy != MAP_FAILED) {
        memcpy(copy, self->base, self->nbytes);
        if (mremap(copy, self->length, self->length, MREMAP_MAYMOVE | MREMAP_FIXED, self->base) == self->base) {
            return 0;
        }
        munmap(copy, self->length);
    }
    /* Whatever happens, nobody may write to the slot from there. */
    mprotect(self->base, self->length, PROT_READ);
    return -1;
}

/* No further block goes to the window. 1: `value`, a new reference of the caller's, is all there is in it. 0: there
 * is nothing, or there is no more. -1: out of memory, without an error set. `value` is what fits the key, or NULL. */
int
ndshare_lending_close(ndshare_store *store, Py_ssize_t key, PyObject *capsule, PyObject *value)
{
    window *self = window_of(capsule);
    self->thread = 0;
    bool alone = false;
    void *data = NULL;
    if (value != NULL && PyArray_CheckExact(value) && Py_REFCNT(value) == 1) {
        PyArrayObject_fields *array = (PyArrayObject_fields *)value;
        alone = array->base == NULL && array->weakreflist == NULL;
        data = array->data;
    }
    for (int number = self->asked < MOST_BLOCKS ? self->asked : MOST_BLOCKS; alone && number-- > 0;) {
        if (self->blocks[number] == data && number != self->turn) {
            store->entries[key].turn = number;
            break;
        }
    }
    if (!atomic_load(&self->taken) || self->detached) {
        return 0;
    }
    return alone && data == self->base ? 1 : detach(self);
}

/* Let the entry forget a window that was detached. */
void
ndshare_lending_drop(ndshare_store *store, Py_ssize_t key, PyObject *capsule)
{
    for (int slot = 0; slot < 2; slot++) {
        if (store->entries[key].window[slot] == capsule && window_of(capsule)->detached) {
            Py_CLEAR(store->entries[key].window[slot]);
        }
    }
}

/* Before a fork. Arrays in windows of other threads stay: in the child nobody uses them. */
PyObject *
ndshare_store_recall(PyObject *object, PyObject *Py_UNUSED(unused))
{
    for (ndshare_entry *entry = ndshare_holders_first(); entry != NULL; entry = entry->next) {
        PyObject *capsule = entry->writing < 0 ? NULL : entry->window[entry->writing];
        if ((PyObject *)entry->store == object && capsule != NULL && window_of(capsule)->thread != 0) {
            window *self = window_of(capsule);
            self->thread = 0;
            if (atomic_load(&self->taken) && detach(self) < 0) {
                return PyErr_NoMemory();
            }
        }
    }
    Py_RETURN_NONE;
}
