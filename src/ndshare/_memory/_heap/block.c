/* Block: one counted reference, from Python, on a range of a segment.
 *
 * A Block is a handle: it keeps the memory from being recycled but is not a user, because whether a
 * result may be lent depends on whether *arrays* can still reach it. Keepers (the hidden bases of
 * read-only arrays) are the exception and count as arrays.
 *
 * `segment` and `exports` are read and written under the lock of the heap only. Whoever uses the memory of a
 * Block without that lock pins it, because another thread, or code that is called in between, may release it.
 */
#include "block.h"

#include "adopt.h"
#include "counting.h"
#include "pool.h"
#include "slots.h"

#include <errno.h>

#define PRIVATE "lend memory that is private to this process (copy-on-write, or by-value memory that was " \
                "alive at a fork), copy it instead"

typedef struct {
    PyObject_HEAD
    ndshare_segment *segment;   /* NULL: released */
    char *start;
    size_t nbytes;
    uint64_t uid;
    size_t size, offset;
    int kind;
    bool whole;                 /* counted on the whole segment, not on one slot */
    bool keeper;                /* base of a read-only array: counts as a user */
    int exports;                /* buffers given out: no release under them */
} ndshare_block;

static PyTypeObject *block_type;

static bool
is_whole_slab(const ndshare_block *block, const ndshare_segment *segment)
{
    return block->whole && segment->slots != NULL && segment->origin == NDSHARE_OWN;
}

static ndshare_counts *
counts_of(const ndshare_block *block, ndshare_segment *segment)
{
    return is_whole_slab(block, segment) ? &segment->counts : ndshare_counting_of(segment, block->start);
}

/* Lock held: a count of the block went down. */
static void
settle(const ndshare_block *block, ndshare_segment *segment)
{
    if (!is_whole_slab(block, segment)) {
        ndshare_counting_settle(segment, block->start);
    }
    else if (segment->counts.handles == 0) {
        ndshare_slots_settle(segment);
    }
}

PyObject *
ndshare_block_new(ndshare_segment *segment, char *start, size_t nbytes, bool whole, bool keeper)
{
    ndshare_block facts = {.start = start, .whole = whole, .keeper = keeper};
    ndshare_block *block = PyObject_New(ndshare_block, block_type);
    ndshare_heap_lock();
    if (block == NULL) {
        ndshare_counts *counts = counts_of(&facts, segment);
        *(keeper ? &counts->users : &counts->handles) -= 1;
        settle(&facts, segment);
        ndshare_heap_unlock();
        return NULL;
    }
    block->segment = segment;
    block->start = start;
    block->nbytes = nbytes;
    block->uid = segment->uid;
    block->size = segment->size;
    block->offset = (size_t)(start - segment->base);
    block->kind = segment->kind;
    block->whole = whole;
    block->keeper = keeper;
    block->exports = 0;
    ndshare_heap_unlock();
    return (PyObject *)block;
}

/* False: a memoryview of it is alive. */
static bool
drop(ndshare_block *block, bool let_go)
{
    ndshare_heap_lock();
    ndshare_segment *segment = block->segment;
    bool free = block->exports == 0;
    if (free && segment != NULL) {
        block->segment = NULL;
        ndshare_counts *counts = counts_of(block, segment);
        *(block->keeper ? &counts->users : &counts->handles) -= 1;
        settle(block, segment);
    }
    let_go ? ndshare_heap_unlock_let_go() : ndshare_heap_unlock();
    return free;
}

static void
block_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    drop((ndshare_block *)self, false);
    PyObject_Free(self);
    Py_DECREF(type);
}

static void *
complain_released(void)
{
    PyErr_SetString(PyExc_ValueError, "this Block was released; take a new one of the array or the message");
    return NULL;
}

ndshare_segment *
ndshare_block_pin(PyObject *self)
{
    if (!Py_IS_TYPE(self, block_type)) {
        PyErr_Format(PyExc_TypeError, "a Block is needed, got %R", (PyObject *)Py_TYPE(self));
        return NULL;
    }
    ndshare_block *block = (ndshare_block *)self;
    ndshare_heap_lock();
    ndshare_segment *segment = block->segment;
    if (segment != NULL) {
        counts_of(block, segment)->handles++;
    }
    ndshare_heap_unlock();
    return segment != NULL ? segment : complain_released();
}

void
ndshare_block_unpin(PyObject *self, ndshare_segment *segment)
{
    ndshare_block *block = (ndshare_block *)self;
    ndshare_heap_lock();
    counts_of(block, segment)->handles--;
    settle(block, segment);
    ndshare_heap_unlock();
}

static int
block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    ndshare_block *block = (ndshare_block *)self;
    ndshare_heap_lock();
    bool alive = block->segment != NULL, readonly = alive && block->segment->readonly;
    block->exports += alive;
    ndshare_heap_unlock();
    view->obj = NULL;
    if (!alive) {
        complain_released();
        return -1;
    }
    int result = PyBuffer_FillInfo(view, self, block->start, (Py_ssize_t)block->nbytes, readonly, flags);
    if (result < 0) {
        ndshare_heap_lock();
        block->exports--;
        ndshare_heap_unlock();
    }
    return result;
}

static void
block_releasebuffer(PyObject *self, Py_buffer *Py_UNUSED(view))
{
    ndshare_heap_lock();
    ((ndshare_block *)self)->exports--;
    ndshare_heap_unlock();
}

/* The hidden base of a read-only array. */
static PyObject *
keeper(const ndshare_block *block, ndshare_segment *segment)
{
    if (ndshare_counting_add_user(segment, block->start) < 0) {
        return NULL;
    }
    return ndshare_block_new(segment, block->start, block->nbytes, block->whole, true);
}

static PyObject *
block_array(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "shape", "strides", "offset", NULL};
    ndshare_block *block = (ndshare_block *)self;
    PyObject *dtype, *shape, *strides = Py_None, *base = NULL, *array = NULL;
    Py_ssize_t offset = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|On:array", names, &dtype, &shape, &strides, &offset)) {
        return NULL;
    }
    ndshare_segment *segment = ndshare_block_pin(self);
    if (segment == NULL) {
        return NULL;
    }
    if (!segment->readonly || (base = keeper(block, segment)) != NULL) {
        array = ndshare_adopt_array(segment, block->start, block->nbytes, dtype, shape, strides, offset, base);
    }
    ndshare_block_unpin(self, segment);
    return array;
}

static void
mark_lent(const ndshare_block *block, ndshare_segment *segment)
{
    segment->lent = true;
    if (segment->slots == NULL || segment->origin != NDSHARE_OWN) {
        return;
    }
    size_t first = block->whole ? 0 : block->offset >> segment->slot_shift;
    size_t last = block->whole ? segment->n_slots : first + 1;
    for (size_t i = first; i < last; i++) {
        if (segment->slots[i].flags & NDSHARE_SLOT_USED) {
            segment->slots[i].flags |= NDSHARE_SLOT_LENT;
        }
    }
}

static bool
may_lend(const ndshare_segment *segment)
{
    return !segment->detached && segment->kind != NDSHARE_COPY && segment->fd >= 0;
}

/* Marked before and opened under the lock: no probe can come in between. */
static PyObject *
block_lend(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_block *block = (ndshare_block *)self;
    ndshare_segment *segment = ndshare_block_pin(self);
    if (segment == NULL) {
        return NULL;
    }
    ndshare_error error = {.number = EPERM, .doing = PRIVATE};
    int fd = -1;
    ndshare_heap_lock();
    if (may_lend(segment)) {
        fd = ndshare_segment_reopen(segment->fd, &error);
        if (fd < 0 && error.number == EMFILE && ndshare_pool_make_room(4)) {
            ndshare_heap_unlock();  /* closes what was given up */
            ndshare_heap_lock();
            fd = may_lend(segment) ? ndshare_segment_reopen(segment->fd, &error) : -1;
        }
        if (fd >= 0) {
            mark_lent(block, segment);
        }
    }
    ndshare_heap_unlock();
    ndshare_block_unpin(self, segment);
    return fd >= 0 ? PyLong_FromLong(fd) : ndshare_error_raise(&error);
}

/* A message that names several blocks of one slab carries one descriptor of it: the others are only
 * marked. The caller holds that descriptor, and this block, until the message is sent. */
static PyObject *
block_mark_lent(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_segment *segment = ndshare_block_pin(self);
    if (segment == NULL) {
        return NULL;
    }
    ndshare_heap_lock();
    bool lendable = may_lend(segment);
    if (lendable) {
        mark_lent((ndshare_block *)self, segment);
    }
    ndshare_heap_unlock();
    ndshare_block_unpin(self, segment);
    if (!lendable) {
        ndshare_error error = {.number = EPERM, .doing = PRIVATE};
        return ndshare_error_raise(&error);
    }
    Py_RETURN_NONE;
}

static PyObject *
block_release(PyObject *self, PyObject *Py_UNUSED(unused))
{
    if (!drop((ndshare_block *)self, true)) {
        PyErr_SetString(PyExc_BufferError, "Block.release: a memoryview of it is alive; release that first");
        return NULL;
    }
    Py_RETURN_NONE;
}

enum { GET_UID, GET_KIND, GET_SIZE, GET_OFFSET, GET_NBYTES, GET_USERS, GET_LENDABLE, GET_OWN, GET_RELEASED };

static PyObject *
block_get(PyObject *self, void *which)
{
    ndshare_block *block = (ndshare_block *)self;
    switch ((int)(intptr_t)which) {
    case GET_UID: return PyLong_FromUnsignedLongLong(block->uid);
    case GET_KIND: return PyLong_FromLong(block->kind);
    case GET_SIZE: return PyLong_FromSize_t(block->size);
    case GET_OFFSET: return PyLong_FromSize_t(block->offset);
    case GET_NBYTES: return PyLong_FromSize_t(block->nbytes);
    default: break;
    }
    bool lendable = false, own = false;
    uint32_t users = 0;
    ndshare_heap_lock();
    ndshare_segment *segment = block->segment;
    if (segment != NULL) {
        lendable = may_lend(segment);
        own = segment->origin == NDSHARE_OWN;
        users = is_whole_slab(block, segment) ? segment->n_used
                                              : ndshare_counting_of(segment, block->start)->users;
    }
    ndshare_heap_unlock();
    if ((intptr_t)which == GET_RELEASED) {
        return PyBool_FromLong(segment == NULL);
    }
    if (segment == NULL) {
        return complain_released();
    }
    switch ((int)(intptr_t)which) {
    case GET_USERS: return PyLong_FromUnsignedLong(users);
    case GET_OWN: return PyBool_FromLong(own);
    default: return PyBool_FromLong(lendable);
    }
}

static PyObject *
block_repr(PyObject *self)
{
    static const char *const kinds[] = {"value", "shared", "sealed", "copy"};
    ndshare_block *block = (ndshare_block *)self;
    ndshare_heap_lock();
    bool released = block->segment == NULL;
    ndshare_heap_unlock();
    return PyUnicode_FromFormat("<Block %s %zu bytes at %zu of segment %llx%s>", kinds[block->kind & 3],
                                block->nbytes, block->offset, (unsigned long long)block->uid,
                                released ? ", released" : "");
}

static PyMethodDef block_methods[] = {
    {"array", (PyCFunction)(void (*)(void))block_array, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("array(dtype, shape, strides=None, offset=0)\n--\n\n"
               "Array whose lowest byte is `offset` bytes into the block. It keeps the memory by itself.")},
    {"lend", block_lend, METH_NOARGS,
     PyDoc_STR("lend()\n--\n\nNew descriptor of the segment that holds it; close it after sending.")},
    {"mark_lent", block_mark_lent, METH_NOARGS,
     PyDoc_STR("mark_lent()\n--\n\nAs `lend`, but another block's descriptor of the segment travels.")},
    {"release", block_release, METH_NOARGS, PyDoc_STR("release()\n--\n\nDrop this reference now; idempotent.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef block_getset[] = {
    {"uid", block_get, NULL, PyDoc_STR("Identity of the segment."), (void *)GET_UID},
    {"kind", block_get, NULL, PyDoc_STR("VALUE, SHARED, SEALED or COPY."), (void *)GET_KIND},
    {"size", block_get, NULL, PyDoc_STR("Bytes of the whole segment."), (void *)GET_SIZE},
    {"offset", block_get, NULL, PyDoc_STR("Where the block starts in its segment, in bytes."), (void *)GET_OFFSET},
    {"nbytes", block_get, NULL, PyDoc_STR("Bytes of the block."), (void *)GET_NBYTES},
    {"users", block_get, NULL, PyDoc_STR("Arrays of this process on the block."), (void *)GET_USERS},
    {"lendable", block_get, NULL, PyDoc_STR("False for memory that is private to this process."),
     (void *)GET_LENDABLE},
    {"own", block_get, NULL, PyDoc_STR("True if this process made the segment and recycles it."), (void *)GET_OWN},
    {"released", block_get, NULL, PyDoc_STR("True once `release` was called."), (void *)GET_RELEASED},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot block_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("One counted reference on a range of a shared segment.")},
    {Py_tp_dealloc, block_dealloc},
    {Py_tp_repr, block_repr},
    {Py_tp_methods, block_methods},
    {Py_tp_getset, block_getset},
    {Py_bf_getbuffer, block_getbuffer},
    {Py_bf_releasebuffer, block_releasebuffer},
    {0, NULL},
};

static PyType_Spec block_spec = {
    .name = "ndshare._memory._heap.Block",
    .basicsize = sizeof(ndshare_block),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = block_slots,
};

int
ndshare_block_start(PyObject *module)
{
    if (block_type == NULL) {
        block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    }
    return block_type ? PyModule_AddType(module, block_type) : -1;
}
