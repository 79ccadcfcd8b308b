/* ndshare._memory._heap: recycled shared memory, counted by the kernel, under NumPy's allocator interface.
 *
 * heap.h says how it works and what the files are for.
 */
#include "extension.h"

#include "altered.h"
#include "array.h"
#include "block.h"
#include "capacity.h"
#include "copying.h"
#include "fork.h"
#include "handler.h"
#include "ledger.h"
#include "obtain.h"
#include "owners.h"
#include "pool.h"
#include "receive.h"
#include "room.h"
#include "stats.h"

static PyObject *
configure(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "configure takes three exception classes, got %zd", nargs);
    }
    if (ndshare_heap.capacity_error == NULL) {  /* at import, before there are threads; never changed */
        ndshare_heap.capacity_error = Py_NewRef(args[0]);
        ndshare_heap.segment_error = Py_NewRef(args[1]);
        ndshare_heap.gone_error = Py_NewRef(args[2]);
    }
    Py_RETURN_NONE;
}

static PyObject *
trim(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    ndshare_heap_lock();
    size_t bytes = ndshare_room_trim();
    ndshare_heap_unlock_let_go();
    return PyLong_FromSize_t(bytes);
}

static bool
read_size(PyObject *number, size_t *out)
{
    Py_ssize_t value = PyNumber_AsSsize_t(number, NULL);
    if (value < 0 && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "a limit of %zd bytes was given; it cannot be negative", value);
    }
    *out = (size_t)value;
    return value >= 0;
}

static PyObject *
set_idle_limit(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t limit;
    if (!read_size(number, &limit)) {
        return NULL;
    }
    ndshare_heap_lock();
    size_t before = ndshare_heap.idle_limit;
    ndshare_heap.idle_limit = limit;
    ndshare_pool_shrink(limit);
    ndshare_heap_unlock_let_go();
    return PyLong_FromSize_t(before);
}

static PyObject *
set_threshold(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t threshold;
    if (!read_size(number, &threshold)) {
        return NULL;
    }
    size_t before = atomic_exchange(&ndshare_heap.threshold, threshold > NDSHARE_PAGE ? threshold : NDSHARE_PAGE);
    return PyLong_FromSize_t(before);
}

static PyObject *
set_memory_limit(PyObject *Py_UNUSED(module), PyObject *number)
{
    size_t limit = SIZE_MAX;
    if (number != Py_None && !read_size(number, &limit)) {
        return NULL;
    }
    size_t before = ndshare_capacity_choose(limit);
    return before == SIZE_MAX ? Py_NewRef(Py_None) : PyLong_FromSize_t(before);
}

/* A dead process's segments never come again; the mappings kept of them are what still holds the pages. */
static PyObject *
forget_owner(PyObject *Py_UNUSED(module), PyObject *number)
{
    uint64_t prefix = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred()) {
        return NULL;
    }
    ndshare_heap_lock();
    size_t dropped = ndshare_receive_forget(prefix);
    ndshare_heap_unlock_let_go();
    return PyLong_FromSize_t(dropped);
}

static PyObject *
owner_prefix(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    return PyLong_FromUnsignedLongLong(ndshare_heap.prefix);
}

static PyMethodDef methods[] = {
    {"configure", NDSHARE_FAST(configure), PyDoc_STR("configure(capacity_error, segment_error, gone_error)\n--\n\n"
                                             "The exception classes to raise.")},
    {"stage", ndshare_obtain_stage, METH_O,
     PyDoc_STR("stage(nbytes)\n--\n\nA by-value block to fill and lend.")},
    {"allocate", NDSHARE_FAST(ndshare_obtain_allocate), PyDoc_STR("allocate(nbytes, zero)\n--\n\nA shared block.")},
    {"seal", ndshare_obtain_seal, METH_O,
     PyDoc_STR("seal(buffer)\n--\n\nA copy of the buffer that nobody can write to.")},
    {"block_of", ndshare_obtain_of, METH_O,
     PyDoc_STR("block_of(array)\n--\n\n(Block, offset of the lowest byte), or None for ordinary memory.")},
    {"is_shared", ndshare_obtain_is_shared, METH_O, PyDoc_STR("is_shared(array)\n--\n\n"
        "Tell whether the memory of an array is shared.\n\nPage: docs/arrays.md.\n\n"
        "Parameters\n----------\n"
        "array : object\n    Anything; what is no ndarray is not shared.\n\n"
        "Returns\n-------\n"
        "bool\n    True for arrays in shared memory and for views of them, however they were made.\n")},
    {"attach", NDSHARE_FAST(ndshare_obtain_attach),
     PyDoc_STR("attach(uid, size, kind, fd)\n--\n\nBlock of a received segment; takes over `fd`.")},
    {"should_copy_out", ndshare_obtain_should_copy_out, METH_O,
     PyDoc_STR("should_copy_out(block)\n--\n\nTrue when keeping the block costs more than copying it.")},
    {"forget_owner", forget_owner, METH_O,
     PyDoc_STR("forget_owner(prefix)\n--\n\nUnmap what is kept of a process that is gone.")},
    {"owner_prefix", owner_prefix, METH_NOARGS, PyDoc_STR("owner_prefix()\n--\n\nUpper half of own uids.")},
    {"make_handler", ndshare_handler_make, METH_O,
     PyDoc_STR("make_handler(kind)\n--\n\nA capsule for set_handler.")},
    {"set_handler", ndshare_handler_set, METH_O,
     PyDoc_STR("set_handler(capsule)\n--\n\nNumPy's allocator in this context; returns the one before.")},
    {"current_handler", ndshare_handler_current, METH_NOARGS, PyDoc_STR("current_handler()\n--\n\n")},
    {"altered", ndshare_altered, METH_O,
     PyDoc_STR("altered(array)\n--\n\nWhether copy-on-write memory differs from what was sent; None for other memory.")},
    {"detach", ndshare_altered_detach, METH_O,
     PyDoc_STR("detach(array)\n--\n\nMap by-value memory copy-on-write in place; False for other memory.")},
    {"digest", ndshare_altered_digest, METH_O,
     PyDoc_STR("digest(array)\n--\n\n128 bits of the bytes from the first to the last, gaps included.")},
    {"inherited", ndshare_altered_inherited, METH_O,
     PyDoc_STR("inherited(array)\n--\n\nThe bytes before and behind the whole pages of an array, if its pages are still "
               "those of the process that this one was forked from; None if they are not, or nobody can tell.")},
    {"rewritten", NDSHARE_FAST(ndshare_altered_rewritten),
     PyDoc_STR("rewritten(array, edges, fd, every)\n--\n\nWhether an array differs from what it was when inherited() was "
               "asked; fd: the memory of that process; every: this process has forked since.")},
    {"copy", NDSHARE_FAST(ndshare_copying_copy),
     PyDoc_STR("copy(target, source, threads)\n--\n\nCopy an array that lies dense, like the target; False for others.")},
    {"trim", trim, METH_NOARGS, PyDoc_STR("trim()\n--\n\nGive idle memory back; bytes.")},
    {"available", ndshare_stats_available, METH_NOARGS,
     PyDoc_STR("available()\n--\n\nHow many bytes more would fit, and the name of the limit that binds.")},
    {"idle_bytes", ndshare_stats_idle_bytes, METH_NOARGS,
     PyDoc_STR("idle_bytes()\n--\n\nThe same as in stats(), without asking the kernel.")},
    {"idle_limit", ndshare_stats_idle_limit, METH_NOARGS, PyDoc_STR("idle_limit()\n--\n\n")},
    {"stats", ndshare_stats, METH_NOARGS, PyDoc_STR("stats()\n--\n\n")},
    {"set_idle_limit", set_idle_limit, METH_O, PyDoc_STR("set_idle_limit(nbytes)\n--\n\nReturns the former one.")},
    {"set_memory_limit", set_memory_limit, METH_O,
     PyDoc_STR("set_memory_limit(nbytes)\n--\n\nShared memory this process, or its pool, may have; None: no limit.")},
    {"set_threshold", set_threshold, METH_O, PyDoc_STR("set_threshold(nbytes)\n--\n\nReturns the former one.")},
    {"ledger_create", ndshare_ledger_create, METH_O, PyDoc_STR("ledger_create(slots)\n--\n\nA descriptor.")},
    {"ledger_detach", ndshare_ledger_detach, METH_NOARGS,
     PyDoc_STR("ledger_detach()\n--\n\nLeave the ledger of a pool.")},
    {"ledger_attach", NDSHARE_FAST(ndshare_ledger_attach), PyDoc_STR("ledger_attach(fd, slot)\n--\n\n")},
    {"ledger_held", ndshare_ledger_held, METH_O,
     PyDoc_STR("ledger_held(slot)\n--\n\nBytes of segments of its own that a process has arrays in.")},
    {"ledger_clear", ndshare_ledger_clear, METH_O, PyDoc_STR("ledger_clear(slot)\n--\n\n")},
    {NULL, NULL, 0, NULL},
};

/* Once in the life of the process, however many module objects there are. */
static int
start(void)
{
    static bool started = false;
    if (!started) {
        size_t cap = (size_t)8 << 30, eighth = ndshare_capacity_ram() / 8;
        ndshare_heap_start(eighth < cap ? eighth : cap);
        ndshare_owners_draw_prefix();
        started = ndshare_fork_start() == 0;
    }
    return started ? 0 : -1;
}

static int
module_exec(PyObject *module)
{
    import_array1(-1);
    if (start() < 0) {
        PyErr_SetString(PyExc_OSError, "ndshare cannot register its fork handlers");
        return -1;
    }
    if (ndshare_handler_start() < 0 || ndshare_block_start(module) < 0) {
        return -1;
    }
    return PyModule_AddIntConstant(module, "VALUE", NDSHARE_VALUE) < 0
        || PyModule_AddIntConstant(module, "SHARED", NDSHARE_SHARED) < 0
        || PyModule_AddIntConstant(module, "SEALED", NDSHARE_SEALED) < 0
        || PyModule_AddIntConstant(module, "COPY", NDSHARE_COPY) < 0 ? -1 : 0;
}

NDSHARE_EXTENSION(_heap, ndshare_heap_definition, Py_MOD_GIL_NOT_USED, module_exec,
                  .m_name = "ndshare._memory._heap",
                  .m_doc = PyDoc_STR("Recycled shared memory."),
                  .m_methods = methods)
