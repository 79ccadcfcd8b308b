/* The loop over one share of a map: next entry, kernel(worker_id, *entry), done mask, worker's slot.
 *
 * The board is memory that all processes of a map share:
 *
 *     header                     see ndshare._system.board for the offsets; not used here
 *     slot of a worker
 *         0   state (u64)        index << 2 | IDLE, RUNNING or KILLED
 *         8   items done (u64)
 *         16  began (u64)        monotonic nanoseconds when the current item began; only if timed
 *     mask                       one byte per item: 0 not done, 1 done; other values are the caller's
 *
 * Invariants
 *  - An item whose byte is 0 when its worker ends was not finished: either the one in `state`, or one
 *    that was never begun.
 *  - `state` is RUNNING | i from before the entry of item i is fetched until its byte is written. Who
 *    wants to end an item by force swaps RUNNING | i for KILLED | i: if that succeeds, the worker does
 *    not begin another item, so the signal cannot hit one. It is done only to items that are timed.
 *
 * A slot belongs to one worker, whether a process or a thread. The atomics are for all others who look.
 */
#define NO_IMPORT_ARRAY
#include "items.h"
#include "values.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

enum { IDLE = 0, RUNNING = 1, KILLED = 2, STATE_BITS = 2 };
enum { STATE_AT = 0, COUNT_AT = 8, BEGAN_AT = 16, SLOT_BYTES = 24 };
enum { MOST_FIELDS = 30 };

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "atomics between processes must not use a lock inside one of them");

static uint64_t
now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Drops what the kernel returned. What a generator function or coroutine function returns has not run yet, and
 * never would: -1 with an exception. */
static int
drop_result(PyObject *result)
{
    if (result == Py_None) { /* of most */
        Py_DECREF(result);
        return 0;
    }
    bool coroutine = PyCoro_CheckExact(result), generator = PyGen_CheckExact(result);
    int ran = !coroutine && !generator && !PyAsyncGen_CheckExact(result);
    if (!ran) {
        if (coroutine) { /* else a warning says that nobody has awaited it */
            Py_XDECREF(PyObject_CallMethod(result, "close", NULL));
            PyErr_Clear();
        }
        PyErr_Format(PyExc_TypeError,
                     "map: the kernel returned a %.100s, so that nothing of it has run: calling a %s only makes one; "
                     "let the kernel do the work itself, without %s",
                     Py_TYPE(result)->tp_name, generator ? "generator function" : "coroutine function or async generator",
                     generator ? "yield" : "async");
    }
    Py_DECREF(result);
    return ran - 1;
}

/* Calls the kernel for one entry, a tuple of any length. 0, or -1 with an exception. */
static int
call_entry(PyObject *kernel, PyObject *worker_id, PyObject *entry)
{
    if (!PyTuple_Check(entry)) {
        PyErr_Format(PyExc_TypeError, "iterate() of a functor must yield tuples, got %.200s",
                     Py_TYPE(entry)->tp_name);
        return -1;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(entry);
    PyObject *result;
    if (n <= MOST_FIELDS) {
        PyObject *stack[MOST_FIELDS + 2]; /* the first is the callee's, see PY_VECTORCALL_ARGUMENTS_OFFSET */
        stack[1] = worker_id;
        for (Py_ssize_t k = 0; k < n; k++) {
            stack[k + 2] = PyTuple_GET_ITEM(entry, k);
        }
        result = PyObject_Vectorcall(kernel, stack + 1, (size_t)(n + 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    else {
        PyObject *args = PyTuple_New(n + 1);
        if (args == NULL) {
            return -1;
        }
        PyTuple_SET_ITEM(args, 0, Py_NewRef(worker_id));
        for (Py_ssize_t k = 0; k < n; k++) {
            PyTuple_SET_ITEM(args, k + 1, Py_NewRef(PyTuple_GET_ITEM(entry, k)));
        }
        result = PyObject_Call(kernel, args, NULL);
        Py_DECREF(args);
    }
    return result == NULL ? -1 : drop_result(result);
}

/* The same as `call_entry` for item `index` of something that can be indexed. */
static int
call_value(PyObject *kernel, PyObject *worker_id, ndshare_values *values, Py_ssize_t index)
{
    PyObject *number = PyLong_FromSsize_t(index);
    if (number == NULL) {
        return -1;
    }
    PyObject *value = ndshare_values_at(values, index, number), *result = NULL;
    if (value != NULL) {
        PyObject *stack[4] = {NULL, worker_id, number, value};
        result = PyObject_Vectorcall(kernel, stack + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
        ndshare_values_done(values, value);
    }
    Py_DECREF(number);
    return result == NULL ? -1 : drop_result(result);
}

/* drop(result): for loops in Python. */
PyObject *
ndshare_items_drop(PyObject *Py_UNUSED(module), PyObject *result)
{
    if (drop_result(Py_NewRef(result)) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* run(kernel, worker_id, source, by_index, board, slot, mask, first, count, timed)
 *     -> (how many were finished, killed?)
 *
 * An exception of the kernel or of the source stays set as the Python error; how far the loop came is
 * then read from the slot's state. */
PyObject *
ndshare_items_run(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 10) {
        return PyErr_Format(PyExc_TypeError, "run takes 10 arguments, got %zd", nargs);
    }
    PyObject *kernel = args[0], *worker_id = args[1], *source = args[2];
    int by_index = PyObject_IsTrue(args[3]), timed = PyObject_IsTrue(args[9]);
    Py_ssize_t slot_at = PyLong_AsSsize_t(args[5]), mask_at = PyLong_AsSsize_t(args[6]);
    Py_ssize_t first = PyLong_AsSsize_t(args[7]), count = PyLong_AsSsize_t(args[8]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_buffer board;
    if (PyObject_GetBuffer(args[4], &board, PyBUF_WRITABLE) < 0) {
        return NULL;
    }
    if (slot_at < 0 || slot_at > board.len - SLOT_BYTES || slot_at % 8 != 0 || mask_at < 0 || first < 0 || count < 0
        || first > board.len - mask_at || count > board.len - mask_at - first) {
        PyErr_Format(PyExc_ValueError, "run: slot %zd, mask %zd, items %zd + %zd do not lie in a board of %zd bytes",
                     slot_at, mask_at, first, count, board.len);
        PyBuffer_Release(&board);
        return NULL;
    }
    if (!by_index && !PyIter_Check(source)) {
        PyErr_Format(PyExc_TypeError, "iterate() of a functor must return an iterator, got %.200s",
                     Py_TYPE(source)->tp_name);
        PyBuffer_Release(&board);
        return NULL;
    }
    ndshare_values values = {0};
    if (by_index && ndshare_values_open(&values, source, first, count) < 0) {
        PyBuffer_Release(&board);
        return NULL;
    }
    char *slot = (char *)board.buf + slot_at;
    _Atomic uint64_t *state = (_Atomic uint64_t *)(slot + STATE_AT), *done = (_Atomic uint64_t *)(slot + COUNT_AT);
    _Atomic uint64_t *began = (_Atomic uint64_t *)(slot + BEGAN_AT);
    _Atomic uint8_t *mask = (_Atomic uint8_t *)board.buf + mask_at + first;
    uint64_t total = atomic_load_explicit(done, memory_order_relaxed);
    iternextfunc next = by_index ? NULL : Py_TYPE(source)->tp_iternext;
    Py_ssize_t k = 0;
    int failed = 0, killed = 0;

    if (count > 0) {
        if (timed) {
            atomic_store_explicit(began, now_ns(), memory_order_release);
        }
        uint64_t before = atomic_load(state);
        do {
            killed = (before & KILLED) != 0;  /* in the item that has just failed */
        } while (!killed && !atomic_compare_exchange_weak(state, &before, (uint64_t)first << STATE_BITS | RUNNING));
    }
    while (k < count && !killed) {
        if (by_index) {
            failed = call_value(kernel, worker_id, &values, first + k) < 0;
        }
        else {
            PyObject *entry = next(source);
            if (entry == NULL) { /* the end, or an error */
                failed = PyErr_Occurred() != NULL;
                if (!failed) {
                    break;
                }
            }
            else {
                failed = call_entry(kernel, worker_id, entry) < 0;
                Py_DECREF(entry);
            }
        }
        if (failed) {
            break;
        }
        uint64_t running = (uint64_t)(first + k) << STATE_BITS | RUNNING;
        atomic_store_explicit(mask + k, 1, memory_order_release);
        atomic_store_explicit(done, ++total, memory_order_release);
        k++;
        if (timed && k < count) { /* before the new index: who looks in between believes the old item younger */
            atomic_store_explicit(began, now_ns(), memory_order_release);
        }
        uint64_t then = k < count ? (uint64_t)(first + k) << STATE_BITS | RUNNING : IDLE;
        if (!timed) { /* nobody ends an item by force */
            atomic_store_explicit(state, then, memory_order_release);
        }
        else if (!atomic_compare_exchange_strong(state, &running, then)) {
            killed = (running & KILLED) != 0;
            if (!killed) { /* a child that the kernel forked has come back from it and was here before */
                atomic_store(state, then);
            }
        }
    }
    PyBuffer_Release(&board);
    ndshare_values_close(&values);
    if (failed) {
        return NULL;
    }
    return Py_BuildValue("(nO)", k, killed ? Py_True : Py_False);
}
