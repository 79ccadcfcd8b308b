/* Was an array written to? For memory that is mapped copy-on-write the kernel knows: a page that was
 * written to is a private one, and /proc/self/pagemap tells (2 ms per 160 MB, no privilege needed). That
 * only names candidates: their bytes are compared with the file, because a page may be private for
 * another array in it, or have been rewritten with equal bytes. Where pagemap cannot be read (a process
 * that is not dumpable) every page is a candidate.
 *
 * By-value memory is shared with nobody while it is used, but mapped shared, because it may be lent. Mapped anew as
 * before a fork (`detach`) it can be watched in the same way: 13 ms per 160 MB once, instead of 21 at each look.
 *
 * In a child of a fork a page of before it is the parent's as well until one of them writes to it; pagemap tells that,
 * too. What was there before is read from the parent (`inherited`, `rewritten`): nothing has to be kept of it.
 *
 * For any other memory there is nothing to compare with but a copy, or 128 bits of it: `digest`.
 *
 * The caller's reference to the array keeps mapping and hold alive while the lock of the heap is not held.
 */
#define NO_IMPORT_ARRAY
#include "altered.h"

#include "array.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES 2048           /* of pagemap, read at once: 8 MiB of memory */
#define CHUNK ((size_t)32768)  /* of the file, read at once: stays in the first cache */

#define PAGE_PRESENT ((uint64_t)1 << 63)
#define PAGE_SWAPPED ((uint64_t)1 << 62)
#define PAGE_OF_FILE ((uint64_t)1 << 61)
#define PAGE_ALONE ((uint64_t)1 << 56)    /* in no other process; not set of a page that only may be in one */

/* Which pages of a mapping may have other bytes than what they are compared with. */
typedef enum {
    NOT_OF_FILE,  /* of a private mapping of a file */
    NOT_OF_BOTH,  /* of memory of before a fork */
    ALL_PAGES,    /* of the same, where the child has forked in turn: a page that both have may have been written to */
} candidates;

static bool
is_candidate(uint64_t entry, candidates which)
{
    switch (which) {
    case NOT_OF_FILE:
        return !(entry & PAGE_OF_FILE) && (entry & (PAGE_PRESENT | PAGE_SWAPPED));
    case NOT_OF_BOTH:
        return (entry & PAGE_SWAPPED) || ((entry & PAGE_PRESENT) && (entry & PAGE_ALONE));
    default:
        return (entry & (PAGE_PRESENT | PAGE_SWAPPED)) != 0;
    }
}

/* 1: differs from the file, 0: equal, -1: errno */
static int
differs(const char *address, size_t nbytes, int fd, off_t offset)
{
    char original[CHUNK];
    while (nbytes > 0) {
        size_t part = nbytes < CHUNK ? nbytes : CHUNK;
        ssize_t got = pread(fd, original, part, offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got < 0 ? errno : EIO;
            return -1;
        }
        if (memcmp(address, original, (size_t)got) != 0) {
            return 1;
        }
        address += got;
        offset += got;
        nbytes -= (size_t)got;
    }
    return 0;
}

/* Compares the candidates among the pages of [low, high) with a file that has the address `base` at its beginning; a run of
 * them in one go. */
static int
scan(const char *low, const char *high, uintptr_t base, int fd, int pagemap, candidates which)
{
    uint64_t entries[ENTRIES];
    size_t page = NDSHARE_PAGE;
    uintptr_t number = (uintptr_t)low / page, last = ((uintptr_t)high - 1) / page;
    const char *from = NULL, *to = NULL;  /* the run that has not been compared yet */
    while (number <= last) {
        size_t wanted = last - number + 1 < ENTRIES ? last - number + 1 : ENTRIES;
        ssize_t got = pread(pagemap, entries, wanted * 8, (off_t)(number * 8));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got < 8) {
            return differs(low, (size_t)(high - low), fd, (off_t)((uintptr_t)low - base));
        }
        for (size_t i = 0; i < (size_t)got / 8; i++, number++) {
            if (!is_candidate(entries[i], which)) {
                continue;
            }
            const char *start = (const char *)(number * page), *end = start + page;
            start = start < low ? low : start;
            end = end > high ? high : end;
            if (start != to) {
                int result = to == NULL ? 0 : differs(from, (size_t)(to - from), fd, (off_t)((uintptr_t)from - base));
                if (result != 0) {
                    return result;
                }
                from = start;
            }
            to = end;
        }
    }
    return to == NULL ? 0 : differs(from, (size_t)(to - from), fd, (off_t)((uintptr_t)from - base));
}

PyObject *
ndshare_altered(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        return PyErr_Format(PyExc_TypeError, "altered takes an array, got %R", (PyObject *)Py_TYPE(object));
    }
    char *low, *base = NULL;
    size_t nbytes = ndshare_array_extent((PyArrayObject *)object, &low);
    if (nbytes == 0 || !ndshare_heap_may_hold(low)) {
        Py_RETURN_NONE;
    }
    int fd = -1;
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_heap_at(low);
    if (segment != NULL && (segment->kind == NDSHARE_COPY || segment->detached)
        && low + nbytes <= segment->base + segment->size) {
        fd = segment->fd;
        base = segment->base;
    }
    ndshare_heap_unlock();
    if (fd < 0) {
        Py_RETURN_NONE;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    /* Opened each time: a descriptor from before a fork shows the parent's memory. */
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap >= 0) {
        result = scan(low, low + nbytes, (uintptr_t)base, fd, pagemap, NOT_OF_FILE);
        int saved = errno;
        close(pagemap);
        errno = saved;
    }
    else {
        result = differs(low, nbytes, fd, low - base);
    }
    Py_END_ALLOW_THREADS
    if (result < 0) {
        ndshare_error error = {.number = errno, .doing = "compare an array with what was sent (pread)"};
        return ndshare_error_raise(&error);
    }
    return PyBool_FromLong(result);
}

PyObject *
ndshare_altered_detach(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        return PyErr_Format(PyExc_TypeError, "detach takes an array, got %R", (PyObject *)Py_TYPE(object));
    }
    char *low;
    bool done = false;
    if (ndshare_array_extent((PyArrayObject *)object, &low) == 0 || !ndshare_heap_may_hold(low)) {
        Py_RETURN_FALSE;
    }
    ndshare_heap_lock();
    ndshare_segment *segment = ndshare_heap_at(low);
    if (segment != NULL && segment->kind == NDSHARE_VALUE && segment->state == NDSHARE_LIVE
        && segment->counts.users > 0 && segment->fd >= 0) {
        /* Being filled, or its place noted for a message: that has to reach the file. */
        if (segment->counts.handles == 0 && !segment->detached) {
            ndshare_segment_detach(segment);
        }
        done = segment->detached;
    }
    ndshare_heap_unlock();
    return PyBool_FromLong(done);
}

/* The whole pages of an array; what lies before and behind them has its pages in common with other objects. */
static bool
whole_pages(PyObject *object, char **low, char **first, char **last, char **high)
{
    size_t nbytes = ndshare_array_extent((PyArrayObject *)object, low);
    uintptr_t page = NDSHARE_PAGE, start = (uintptr_t)*low, end = start + nbytes;
    *high = *low + nbytes;
    *first = (char *)((start + page - 1) / page * page);
    *last = (char *)(end / page * page);
    return *first < *last;
}

PyObject *
ndshare_altered_inherited(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        return PyErr_Format(PyExc_TypeError, "inherited takes an array, got %R", (PyObject *)Py_TYPE(object));
    }
    char *low, *first, *last, *high;
    if (!whole_pages(object, &low, &first, &last, &high)) {
        Py_RETURN_NONE;
    }
    bool inherited = false;
    Py_BEGIN_ALLOW_THREADS
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap >= 0) {
        uint64_t entries[ENTRIES], others = PAGE_ALONE | PAGE_SWAPPED | PAGE_OF_FILE;
        uintptr_t number = (uintptr_t)first / NDSHARE_PAGE, end = (uintptr_t)last / NDSHARE_PAGE;
        inherited = true;
        while (inherited && number < end) {
            size_t wanted = end - number < ENTRIES ? end - number : ENTRIES;
            ssize_t got = pread(pagemap, entries, wanted * 8, (off_t)(number * 8));
            inherited = got >= 8;
            for (ssize_t i = 0; i < got / 8; i++, number++) {
                inherited = inherited && !(entries[i] & others);
            }
        }
        close(pagemap);
    }
    Py_END_ALLOW_THREADS
    if (!inherited) {
        Py_RETURN_NONE;
    }
    PyObject *edges = PyBytes_FromStringAndSize(NULL, (first - low) + (high - last));
    if (edges != NULL) {
        memcpy(PyBytes_AS_STRING(edges), low, (size_t)(first - low));
        memcpy(PyBytes_AS_STRING(edges) + (first - low), last, (size_t)(high - last));
    }
    return edges;
}

PyObject *
ndshare_altered_rewritten(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4 || !PyArray_Check(args[0]) || !PyBytes_Check(args[1])) {
        return PyErr_Format(PyExc_TypeError, "rewritten takes an array, its edges, a descriptor and a bool");
    }
    long fd = PyLong_AsLong(args[2]);
    int every = PyObject_IsTrue(args[3]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    char *low, *first, *last, *high;
    if (!whole_pages(args[0], &low, &first, &last, &high)
        || PyBytes_GET_SIZE(args[1]) != (first - low) + (high - last)) {
        return PyErr_Format(PyExc_ValueError, "rewritten: these are the edges of another array");
    }
    const char *edges = PyBytes_AS_STRING(args[1]);
    if (memcmp(edges, low, (size_t)(first - low)) != 0
        || memcmp(edges + (first - low), last, (size_t)(high - last)) != 0) {
        Py_RETURN_TRUE;
    }
    int result;
    Py_BEGIN_ALLOW_THREADS
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap >= 0) {
        result = scan(first, last, 0, (int)fd, pagemap, every ? ALL_PAGES : NOT_OF_BOTH);
        int saved = errno;
        close(pagemap);
        errno = saved;
    }
    else {
        result = differs(first, (size_t)(last - first), (int)fd, (off_t)(uintptr_t)first);
    }
    Py_END_ALLOW_THREADS
    if (result < 0) {
        ndshare_error error = {.number = errno, .doing = "compare an array with the caller's (pread)"};
        return ndshare_error_raise(&error);
    }
    return PyBool_FromLong(result);
}

static inline uint64_t
rotate(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

/* Four lanes as in xxHash 64: each step is a bijection of its lane, so that one changed word always shows. */
static void
digest(const char *data, size_t nbytes, uint64_t out[2])
{
    const uint64_t p1 = 0x9E3779B185EBCA87ull, p2 = 0xC2B2AE3D27D4EB4Full, p3 = 0x165667B19E3779F9ull;
    uint64_t lanes[4] = {p1 + p2, p2, 0, 0 - p1}, words[4];
    for (size_t left = nbytes; left > 0;) {
        size_t part = left < sizeof words ? left : sizeof words;
        if (part < sizeof words) {
            memset(words, 0, sizeof words);
        }
        memcpy(words, data, part);
        for (int i = 0; i < 4; i++) {
            lanes[i] = rotate(lanes[i] + words[i] * p2, 31) * p1;
        }
        data += part;
        left -= part;
    }
    for (int half = 0; half < 2; half++) {
        uint64_t h = nbytes + (half ? p3 : 0);
        for (int i = 0; i < 4; i++) {
            h = rotate(h ^ (rotate(lanes[i], half ? 17 * i + 1 : 7 * i + 3) * p2), 27) * p1 + p3;
        }
        h = (h ^ h >> 33) * p2;
        h = (h ^ h >> 29) * p3;
        out[half] = h ^ h >> 32;
    }
}

PyObject *
ndshare_altered_digest(PyObject *Py_UNUSED(module), PyObject *object)
{
    if (!PyArray_Check(object)) {
        return PyErr_Format(PyExc_TypeError, "digest takes an array, got %R", (PyObject *)Py_TYPE(object));
    }
    char *low;
    size_t nbytes = ndshare_array_extent((PyArrayObject *)object, &low);
    uint64_t out[2];
    Py_BEGIN_ALLOW_THREADS
    digest(low, nbytes, out);
    Py_END_ALLOW_THREADS
    return PyBytes_FromStringAndSize((const char *)out, sizeof out);
}
