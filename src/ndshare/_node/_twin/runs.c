/* Comparison of memory with its twin, byte by byte, as lengths of runs.
 *
 *     runs   unchanged, changed, unchanged, changed, ...   each a number of bytes, 7 bits per byte, low first
 *     data   the changed bytes, one run after the other
 *
 * Invariants
 *  - A byte that is the same in both is in no run: a gap, however short, may be what another share writes.
 *  - `merge` looks at all lengths before it writes the first byte: a damaged message changes nothing.
 *
 * Bytes are compared, never numbers: NaN and -0.0 are what their bits are.
 */
#include "runs.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    unsigned char *at;
    size_t used, room;
} growing;

static int
ensure(growing *buffer, size_t more)
{
    if (buffer->used + more <= buffer->room) {
        return 0;
    }
    size_t room = buffer->room * 2 > buffer->used + more ? buffer->room * 2 : buffer->used + more;
    unsigned char *at = realloc(buffer->at, room);
    if (at == NULL) {
        return -1;
    }
    buffer->at = at;
    buffer->room = room;
    return 0;
}

static int
put_length(growing *runs, size_t n)
{
    if (ensure(runs, 10) < 0) {
        return -1;
    }
    while (n >= 0x80) {
        runs->at[runs->used++] = (unsigned char)(n | 0x80);
        n >>= 7;
    }
    runs->at[runs->used++] = (unsigned char)n;
    return 0;
}

static uint64_t
word(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* The bits in which eight bytes differ. */
static uint64_t
difference(const unsigned char *new, const unsigned char *old, size_t i)
{
    return old == NULL ? word(new + i) : word(new + i) ^ word(old + i);
}

static int
byte_differs(const unsigned char *new, const unsigned char *old, size_t i)
{
    return new[i] != (old == NULL ? 0 : old[i]);
}

static size_t
skip_same(const unsigned char *new, const unsigned char *old, size_t i, size_t n)
{
    while (i + 8 <= n && difference(new, old, i) == 0) {
        i += 8;
    }
    while (i < n && !byte_differs(new, old, i)) {
        i++;
    }
    return i;
}

static size_t
skip_changed(const unsigned char *new, const unsigned char *old, size_t i, size_t n)
{
    const uint64_t low = 0x0101010101010101u, high = 0x8080808080808080u;
    while (i + 8 <= n) {
        uint64_t bits = difference(new, old, i);
        if ((bits - low) & ~bits & high) {  /* one of its bytes is zero */
            break;
        }
        i += 8;
    }
    while (i < n && byte_differs(new, old, i)) {
        i++;
    }
    return i;
}

static int
find(const unsigned char *new, const unsigned char *old, size_t n, growing *runs, char *data, size_t *changed)
{
    size_t end = 0, used = 0;
    while (end < n) {
        size_t start = skip_same(new, old, end, n);
        if (start == n) {
            break;
        }
        size_t before = end;
        end = skip_changed(new, old, start, n);
        if (put_length(runs, start - before) < 0 || put_length(runs, end - start) < 0) {
            return -1;
        }
        memcpy(data + used, new + start, end - start);
        used += end - start;
    }
    *changed = used;
    return 0;
}

PyObject *
ndshare_twin_changes(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "changes takes two buffers, got %zd arguments", nargs);
    }
    Py_buffer new = {0}, old = {0};
    growing runs = {0};
    PyObject *result = NULL, *data = NULL;
    size_t changed = 0;
    if (PyObject_GetBuffer(args[0], &new, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (args[1] != Py_None && PyObject_GetBuffer(args[1], &old, PyBUF_SIMPLE) < 0) {
        goto done;
    }
    if (old.obj != NULL && old.len != new.len) {
        PyErr_Format(PyExc_ValueError, "changes: %zd bytes and a twin of %zd; they must be as long", new.len, old.len);
        goto done;
    }
    /* As much as there can be; pages that are not written to are never made. */
    data = PyBytes_FromStringAndSize(NULL, new.len);
    if (data == NULL) {
        goto done;
    }
    int status;
    char *room = PyBytes_AS_STRING(data);
    Py_BEGIN_ALLOW_THREADS
    status = find(new.buf, old.buf, (size_t)new.len, &runs, room, &changed);
    Py_END_ALLOW_THREADS
    if (status < 0) {
        PyErr_NoMemory();
        goto done;
    }
    if (_PyBytes_Resize(&data, (Py_ssize_t)changed) < 0) {
        goto done;
    }
    result = Py_BuildValue("y#O", runs.used ? (char *)runs.at : "", (Py_ssize_t)runs.used, data);
done:
    free(runs.at);
    Py_XDECREF(data);
    if (old.obj != NULL) {
        PyBuffer_Release(&old);
    }
    PyBuffer_Release(&new);
    return result;
}

/* The next length of `runs`; -1 if they end within one, or it is not to be believed. */
static Py_ssize_t
next_length(const unsigned char *runs, size_t size, size_t *at)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 63 && *at < size; shift += 7) {
        unsigned char byte = runs[(*at)++];
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            return value > PY_SSIZE_T_MAX / 4 ? -1 : (Py_ssize_t)value;
        }
    }
    return -1;
}

/* Goes through all runs; writes only if `target` is given. 0 if they fit the target and use up the data. */
static int
walk(unsigned char *target, size_t room, const unsigned char *runs, size_t size, const unsigned char *data,
     size_t left)
{
    size_t at = 0, place = 0;
    while (at < size) {
        Py_ssize_t gap = next_length(runs, size, &at);
        Py_ssize_t length = gap < 0 ? -1 : next_length(runs, size, &at);
        if (length < 0 || (size_t)gap > room - place || (size_t)length > room - place - (size_t)gap
            || (size_t)length > left) {
            return -1;
        }
        place += (size_t)gap;
        if (target != NULL) {
            memcpy(target + place, data, (size_t)length);
        }
        place += (size_t)length;
        data += length;
        left -= (size_t)length;
    }
    return left == 0 ? 0 : -1;
}

PyObject *
ndshare_twin_merge(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        return PyErr_Format(PyExc_TypeError, "merge takes three buffers, got %zd arguments", nargs);
    }
    Py_buffer target = {0}, runs = {0}, data = {0};
    PyObject *result = NULL;
    if (PyObject_GetBuffer(args[0], &target, PyBUF_WRITABLE) < 0
        || PyObject_GetBuffer(args[1], &runs, PyBUF_SIMPLE) < 0
        || PyObject_GetBuffer(args[2], &data, PyBUF_SIMPLE) < 0) {
        goto done;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = walk(NULL, (size_t)target.len, runs.buf, (size_t)runs.len, data.buf, (size_t)data.len);
    if (status == 0) {
        walk(target.buf, (size_t)target.len, runs.buf, (size_t)runs.len, data.buf, (size_t)data.len);
    }
    Py_END_ALLOW_THREADS
    if (status < 0) {
        PyErr_Format(PyExc_ValueError, "merge: %zd bytes of runs do not fit %zd bytes of data and a target of %zd",
                     runs.len, data.len, target.len);
        goto done;
    }
    result = PyLong_FromSsize_t(data.len);
done:
    if (data.obj != NULL) {
        PyBuffer_Release(&data);
    }
    if (runs.obj != NULL) {
        PyBuffer_Release(&runs);
    }
    if (target.obj != NULL) {
        PyBuffer_Release(&target);
    }
    return result;
}
