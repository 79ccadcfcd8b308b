/* Block: one counted reference, from Python, on a range of a segment.
 *
 * A Block is a handle: it keeps the memory from being recycled but is not a user, because whether a
 * result may be lent depends on whether *arrays* can still reach it. Keepers (the hidden bases of
 * read-only arrays) are the exception and count as arrays.
 */
#define NO_IMPORT_ARRAY
#include "array_api.h"

#include <errno.h>
#include <unistd.h>

#define PRIVATE "lend memory that is private to this process (copy-on-write, or by-value memory that was " \
                "alive at a fork), copy it instead"

PyTypeObject *ndshare_block_type;

/* Takes over one handle (keeper: one user) that the caller has counted already. */
PyObject *
ndshare_block_new(ndshare_segment *segment, char *start, size_t nbytes, bool whole, bool keeper)
{
    ndshare_block *block = PyObject_New(ndshare_block, ndshare_block_type);
    if (block == NULL) {
        ndshare_heap_lock();
        ndshare_counts *counts = whole ? &segment->counts : ndshare_counting_of(segment, start);
        *(keeper ? &counts->users : &counts->handles) -= 1;
        ndshare_counting_settle(segment, start);
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
    return (PyObject *)block;
}

static void
drop(ndshare_block *block)
{
    ndshare_heap_lock();
    ndshare_segment *segment = block->segment;
    block->segment = NULL;
    if (segment != NULL) {
        bool slab = segment->slots != NULL && segment->origin == NDSHARE_OWN;
        ndshare_counts *counts = block->whole && !block->keeper ? &segment->counts
                                                                : ndshare_counting_of(segment, block->start);
        *(block->keeper ? &counts->users : &counts->handles) -= 1;
        if (slab && block->whole) {
            if (segment->counts.handles == 0) {
                ndshare_slab_settle(segment);
            }
        }
        else {
            ndshare_counting_settle(segment, block->start);
        }
    }
    ndshare_heap_unlock();
}

static void
block_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    drop((ndshare_block *)self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static ndshare_block *
alive(PyObject *self)
{
    ndshare_block *block = (ndshare_block *)self;
    if (block->segment == NULL) {
        PyErr_SetString(PyExc_ValueError, "this Block was released; take a new one of the array or the message");
        return NULL;
    }
    return block;
}

static int
block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    ndshare_block *block = alive(self);
    if (block == NULL) {
        view->obj = NULL;
        return -1;
    }
    int result = PyBuffer_FillInfo(view, self, block->start, (Py_ssize_t)block->nbytes,
                                   block->segment->readonly, flags);
    block->exports += result == 0;
    return result;
}

static void
block_releasebuffer(PyObject *self, Py_buffer *Py_UNUSED(view))
{
    ((ndshare_block *)self)->exports--;
}

static PyObject *
block_array(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"dtype", "shape", "strides", "offset", NULL};
    PyObject *dtype, *shape, *strides = Py_None;
    Py_ssize_t offset = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|On:array", names, &dtype, &shape, &strides, &offset)
        || alive(self) == NULL) {
        return NULL;
    }
    return ndshare_adopt_array((ndshare_block *)self, dtype, shape, strides, offset);
}

static void
mark_lent(ndshare_block *block)
{
    ndshare_segment *segment = block->segment;
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
    ndshare_block *block = alive(self);
    if (block == NULL) {
        return NULL;
    }
    ndshare_error error = {.number = EPERM, .doing = PRIVATE};
    int fd = -1;
    ndshare_heap_lock();
    if (may_lend(block->segment)) {
        fd = ndshare_segment_reopen(block->segment->fd, &error);
        if (fd < 0 && error.number == EMFILE && ndshare_pool_make_room(4)) {
            ndshare_heap_unlock();  /* closes what was given up */
            ndshare_heap_lock();
            fd = ndshare_segment_reopen(block->segment->fd, &error);
        }
        if (fd >= 0) {
            mark_lent(block);
        }
    }
    ndshare_heap_unlock();
    return fd >= 0 ? PyLong_FromLong(fd) : ndshare_error_raise(&error);
}

/* A message that names several blocks of one slab carries one descriptor of it: the others are only
 * marked. The caller holds that descriptor, and this block, until the message is sent. */
static PyObject *
block_mark_lent(PyObject *self, PyObject *Py_UNUSED(unused))
{
    ndshare_block *block = alive(self);
    if (block == NULL) {
        return NULL;
    }
    ndshare_heap_lock();
    bool lendable = may_lend(block->segment);
    if (lendable) {
        mark_lent(block);
    }
    ndshare_heap_unlock();
    if (!lendable) {
        ndshare_error error = {.number = EPERM, .doing = PRIVATE};
        return ndshare_error_raise(&error);
    }
    Py_RETURN_NONE;
}

static PyObject *
block_release(PyObject *self, PyObject *Py_UNUSED(unused))
{
    if (((ndshare_block *)self)->exports > 0) {
        PyErr_SetString(PyExc_BufferError, "Block.release: a memoryview of it is alive; release that first");
        return NULL;
    }
    drop((ndshare_block *)self);
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
    case GET_RELEASED: return PyBool_FromLong(block->segment == NULL);
    default: break;
    }
    if (alive(self) == NULL) {
        return NULL;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = block->segment;
    bool lendable = may_lend(segment), own = segment->origin == NDSHARE_OWN;
    uint32_t users = ndshare_counting_of(segment, block->start)->users;
    if (block->whole && own && segment->slots != NULL) {
        users = segment->n_used;
    }
    ndshare_heap_unlock();
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
    return PyUnicode_FromFormat("<Block %s %zu bytes at %zu of segment %llx%s>", kinds[block->kind & 3],
                                block->nbytes, block->offset, (unsigned long long)block->uid,
                                block->segment ? "" : ", released");
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
    if (ndshare_block_type == NULL) {
        ndshare_block_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &block_spec, NULL);
    }
    return ndshare_block_type ? PyModule_AddType(module, ndshare_block_type) : -1;
}
