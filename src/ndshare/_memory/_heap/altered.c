/* Was an array written to? For memory that is mapped copy-on-write the kernel knows: a page that was
 * written to is a private one, and /proc/self/pagemap tells (2 ms per 160 MB, no privilege needed). That
 * only names candidates: their bytes are compared with the file, because a page may be private for
 * another array in it, or have been rewritten with equal bytes. Where pagemap cannot be read (a process
 * that is not dumpable) every page is a candidate.
 *
 * By-value memory is shared with nobody while it is used, but mapped shared, because it may be lent. Mapped anew as
 * before a fork (`detach`) it can be watched in the same way: 13 ms per 160 MB once, instead of 21 at each look.
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

/* Compares the candidates among the pages of [low, high); a run of them in one go. */
static int
scan(const char *low, const char *high, const char *base, int fd, int pagemap)
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
            return differs(low, (size_t)(high - low), fd, low - base);
        }
        for (size_t i = 0; i < (size_t)got / 8; i++, number++) {
            if ((entries[i] & PAGE_OF_FILE) || !(entries[i] & (PAGE_PRESENT | PAGE_SWAPPED))) {
                continue;
            }
            const char *start = (const char *)(number * page), *end = start + page;
            start = start < low ? low : start;
            end = end > high ? high : end;
            if (start != to) {
                int result = to == NULL ? 0 : differs(from, (size_t)(to - from), fd, from - base);
                if (result != 0) {
                    return result;
                }
                from = start;
            }
            to = end;
        }
    }
    return to == NULL ? 0 : differs(from, (size_t)(to - from), fd, from - base);
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
        result = scan(low, low + nbytes, base, fd, pagemap);
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
