/* The heap as NumPy's allocator (NEP 49).
 *
 *   value    in workers: blocks from the threshold on are by-value segments, so that what a function
 *            returns can be lent; smaller ones go to NumPy's own handler with its cache of small blocks
 *   shared   in `with shared_memory():`: blocks of any size are shared
 *   adopt    arrays made on memory that exists already (adopt.c)
 *
 * Guarantees: nothing is refused (what does not fit a segment comes from NumPy's own handler); where
 * memory belongs is decided by its address, never by the size NumPy passes; freeing ordinary memory
 * outside of the range of all mappings takes no lock; nothing gives up the GIL, because NumPy relies on it (an
 * array that is being resized has no memory until realloc has returned). All three free and reallocate alike.
 */
#define NO_IMPORT_ARRAY
#include "handler.h"

#include "array.h"
#include "capacity.h"
#include "counting.h"
#include "pool.h"
#include "supply.h"

#include <malloc.h>
#include <string.h>

enum { MODE_VALUE, MODE_SHARED, MODE_ADOPT };

#define CAPSULE_NAME "mem_handler"

_Thread_local void *ndshare_handler_next;
PyObject *ndshare_handler_adopting;
static PyDataMemAllocator ordinary;   /* NumPy's default handler */

static void
handle_to_user(ndshare_segment *segment, const void *address)
{
    ndshare_heap_lock();
    ndshare_counts *counts = ndshare_counting_of(segment, address);
    counts->handles--;
    counts->users++;
    ndshare_heap_unlock();
}

/* A zeroed block that would fill much of the memory is most likely meant to stay sparse. */
static bool
is_huge_zeros(size_t nbytes)
{
    if (nbytes < ((size_t)64 << 20)) {
        return false;
    }
    const char *name;
    return nbytes > ndshare_capacity_available(&name) / 4;
}

static void *
take_value(size_t nbytes, bool zero)
{
    ndshare_error error = {0};
    bool fresh = false;
    ndshare_segment *segment;
    if (zero && is_huge_zeros(nbytes)) {
        ndshare_heap_lock();
        segment = ndshare_pool_take_idle(nbytes, NDSHARE_VALUE);
        ndshare_heap_unlock();
    }
    else {
        segment = ndshare_supply_whole(nbytes, NDSHARE_VALUE, false, true, &fresh, &error);
    }
    if (segment == NULL) {
        return NULL;
    }
    char *base = segment->base;
    if (zero && !fresh) {
        memset(base, 0, nbytes);
    }
    handle_to_user(segment, base);
    return base;
}

static void *
take_shared(size_t nbytes, bool zero)
{
    ndshare_error error = {0};
    char *address;
    bool dirty;
    ndshare_segment *segment = ndshare_supply_shared(nbytes, &address, &dirty, true, &error);
    if (segment == NULL) {
        return NULL;
    }
    if (zero && dirty) {
        memset(address, 0, nbytes);
    }
    handle_to_user(segment, address);
    return address;
}

static void *
value_malloc(void *Py_UNUSED(ctx), size_t size)
{
    void *block = NULL;
    if (size >= ndshare_heap.threshold) {
        block = take_value(size, false);
    }
    return block ? block : ordinary.malloc(ordinary.ctx, size);
}

static void *
value_calloc(void *Py_UNUSED(ctx), size_t count, size_t size)
{
    size_t nbytes;
    void *block = NULL;
    if (!__builtin_mul_overflow(count, size, &nbytes) && nbytes >= ndshare_heap.threshold) {
        block = take_value(nbytes, true);
    }
    return block ? block : ordinary.calloc(ordinary.ctx, count, size);
}

static void *
shared_malloc(void *Py_UNUSED(ctx), size_t size)
{
    void *block = take_shared(size, false);
    return block ? block : ordinary.malloc(ordinary.ctx, size);
}

static void *
shared_calloc(void *Py_UNUSED(ctx), size_t count, size_t size)
{
    size_t nbytes;
    void *block = __builtin_mul_overflow(count, size, &nbytes) ? NULL : take_shared(nbytes, true);
    return block ? block : ordinary.calloc(ordinary.ctx, count, size);
}

static void *
adopt_malloc(void *Py_UNUSED(ctx), size_t size)
{
    void *address = ndshare_handler_next;
    ndshare_handler_next = NULL;
    return address ? address : ordinary.malloc(ordinary.ctx, size);
}

/* Asked for dtypes that must be initialized, such as U: what is adopted is. */
static void *
adopt_calloc(void *Py_UNUSED(ctx), size_t count, size_t size)
{
    void *address = ndshare_handler_next;
    ndshare_handler_next = NULL;
    return address ? address : ordinary.calloc(ordinary.ctx, count, size);
}

static void
heap_free(void *Py_UNUSED(ctx), void *block, size_t size)
{
    if (ndshare_heap_may_hold(block)) {
        ndshare_heap_lock();
        ndshare_segment *segment = ndshare_heap_at(block);
        if (segment != NULL) {
            ndshare_counting_of(segment, block)->users--;
            ndshare_counting_settle(segment, block);
            ndshare_heap_unlock();
            return;
        }
        ndshare_heap_unlock();
    }
    ordinary.free(ordinary.ctx, block, size);
}

/* Ordinary memory that grows: on the way up into a segment, where that is what the handler is for. */
static void *
regrow_ordinary(int mode, void *block, size_t size)
{
    void *moved = mode == MODE_VALUE && size >= ndshare_heap.threshold ? take_value(size, false) : NULL;
    if (moved == NULL) {
        return ordinary.realloc(ordinary.ctx, block, size);
    }
    size_t had = malloc_usable_size(block);
    memcpy(moved, block, had < size ? had : size);
    ordinary.free(ordinary.ctx, block, SIZE_MAX);  /* no bucket of NumPy's cache of small blocks */
    return moved;
}

static void *
heap_realloc(void *ctx, void *block, size_t size)
{
    int mode = (int)(intptr_t)ctx;
    if (block == NULL) {
        return mode == MODE_SHARED ? shared_malloc(ctx, size) : value_malloc(ctx, size);
    }
    if (!ndshare_heap_may_hold(block)) {
        return regrow_ordinary(mode, block, size);
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_heap_at(block);
    if (segment == NULL) {
        ndshare_heap_unlock();
        return regrow_ordinary(mode, block, size);
    }
    char *start;
    size_t extent = ndshare_counting_extent(segment, block, &start);
    size_t room = extent - (size_t)((char *)block - start);
    ndshare_counts *counts = ndshare_counting_of(segment, block);
    bool lent = segment->lent
        && (segment->slots == NULL || segment->counts.handles > 0
            || (segment->slots[(start - segment->base) >> segment->slot_shift].flags & NDSHARE_SLOT_LENT));
    /* In place only where nobody else can have anything in the part that is gained. */
    bool alone = counts->users == 1 && counts->handles == 0 && !lent && segment->origin == NDSHARE_OWN
              && !segment->detached && start == (char *)block && segment->fork_epoch == 0;
    bool shared = segment->kind == NDSHARE_SHARED;
    ndshare_heap_unlock();
    if (alone && size <= room && (size >= room / 4 || (shared && room <= NDSHARE_PAGE))) {
        return block;
    }
    void *moved = NULL;
    if (shared) {
        moved = take_shared(size, false);
    }
    else if (mode != MODE_ADOPT && size >= ndshare_heap.threshold) {
        moved = take_value(size, false);
    }
    if (moved == NULL && (moved = ordinary.malloc(ordinary.ctx, size)) == NULL) {
        return NULL;
    }
    memcpy(moved, block, room < size ? room : size);
    heap_free(ctx, block, 0);
    return moved;
}

#define HANDLER(label, mode, take, take_zeroed) \
    {label, 1, {(void *)(intptr_t)mode, take, take_zeroed, heap_realloc, heap_free}}

static PyDataMem_Handler value_handler = HANDLER("ndshare_value", MODE_VALUE, value_malloc, value_calloc);
static PyDataMem_Handler shared_handler = HANDLER("ndshare_shared", MODE_SHARED, shared_malloc, shared_calloc);
static PyDataMem_Handler adopt_handler = HANDLER("ndshare_adopt", MODE_ADOPT, adopt_malloc, adopt_calloc);

/* A new capsule each time: its identity tells one `with shared_memory():` from another. */
PyObject *
ndshare_handler_make(PyObject *Py_UNUSED(module), PyObject *kind)
{
    long wanted = PyLong_AsLong(kind);
    if (wanted == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (wanted != NDSHARE_VALUE && wanted != NDSHARE_SHARED) {
        return PyErr_Format(PyExc_ValueError, "make_handler: kind is %ld; allowed are VALUE and SHARED", wanted);
    }
    return PyCapsule_New(wanted == NDSHARE_VALUE ? &value_handler : &shared_handler, CAPSULE_NAME, NULL);
}

PyObject *
ndshare_handler_set(PyObject *Py_UNUSED(module), PyObject *capsule)
{
    return PyDataMem_SetHandler(capsule == Py_None ? NULL : capsule);
}

PyObject *
ndshare_handler_current(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyDataMem_GetHandler();
}

int
ndshare_handler_start(void)
{
    PyDataMem_Handler *handler = PyCapsule_GetPointer(PyDataMem_DefaultHandler, CAPSULE_NAME);
    if (handler == NULL) {
        return -1;
    }
    ordinary = handler->allocator;
    if (ndshare_handler_adopting == NULL) {
        /* Never released: arrays made with it live through interpreter exit. */
        ndshare_handler_adopting = PyCapsule_New(&adopt_handler, CAPSULE_NAME, NULL);
    }
    return ndshare_handler_adopting ? 0 : -1;
}
