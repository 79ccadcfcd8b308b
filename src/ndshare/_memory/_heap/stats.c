/* The heap in figures, as a dict; segments.py gives them names and a readable form.
 *
 * What is mapped is asked of the kernel, because no count of ours knows it: received memory is in the page tables as
 * far as it was read, memory of before a fork as far as it was not written to. /proc/self/smaps tells per mapping, and
 * each mapping of shared memory is put down to what it is here; what is not of the heap (dicts, queues, boards, other
 * libraries) is `other`. Two milliseconds and more: not for hot paths.
 */
#include "stats.h"

#include "capacity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OWN, HELD, CACHED, DETACHED, OTHER, NOTHING };

typedef struct {
    size_t resident[NOTHING], proportional[NOTHING];
} mapped;

static bool
is_shared_memory(const char *path)
{
    static const char *const starts[] = {"/memfd:", "/dev/shm/", "/dev/zero (deleted)", "/SYSV"};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        if (strncmp(path, starts[i], strlen(starts[i])) == 0) {
            return true;
        }
    }
    return false;
}

static int
kind_at(const void *address)
{
    ndshare_heap_lock();
    const ndshare_segment *segment = ndshare_heap_at(address);
    int kind = segment == NULL ? OTHER
             : segment->detached ? DETACHED
             : segment->origin == NDSHARE_OWN ? OWN
             : segment->state == NDSHARE_CACHED ? CACHED : HELD;
    ndshare_heap_unlock();
    return kind;
}

static bool
measure(mapped *sums)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    if (file == NULL) {
        return false;
    }
    char *line = NULL;
    size_t room = 0, rss = 0, pss = 0, amount;
    int kind = NOTHING;
    while (getline(&line, &room, file) > 0) {
        uintptr_t start;
        int path = 0;
        if (sscanf(line, "%lx-%*x %*s %*x %*x:%*x %*u %n", &start, &path) == 1 && path > 0) {
            kind = is_shared_memory(line + path) ? kind_at((void *)start) : NOTHING;
        }
        else if (kind == NOTHING) {
            continue;
        }
        else if (sscanf(line, "Rss: %zu", &amount) == 1) {
            rss = amount;
        }
        else if (sscanf(line, "Pss: %zu", &amount) == 1) {
            pss = amount;
        }
        else if (sscanf(line, "Anonymous: %zu", &amount) == 1) {  /* written to copy-on-write: not shared any more */
            sums->resident[kind] += (rss > amount ? rss - amount : 0) * 1024;
            sums->proportional[kind] += (pss > amount ? pss - amount : 0) * 1024;
        }
    }
    free(line);
    fclose(file);
    return true;
}

static size_t
sum(const size_t *sizes)
{
    size_t all = 0;
    for (int kind = 0; kind < NOTHING; kind++) {
        all += sizes[kind];
    }
    return all;
}

PyObject *
ndshare_stats_available(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    const char *name;
    size_t available = ndshare_capacity_available(&name);
    return Py_BuildValue("ns", (Py_ssize_t)(available > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX : available), name);
}

PyObject *
ndshare_stats_idle_limit(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    ndshare_heap_lock();
    size_t limit = ndshare_heap.idle_limit;
    ndshare_heap_unlock();
    return PyLong_FromSize_t(limit);
}

PyObject *
ndshare_stats_idle_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    ndshare_heap_lock();
    size_t idle = ndshare_heap.idle_bytes + ndshare_heap.slot_idle_bytes;
    ndshare_heap_unlock();
    return PyLong_FromSize_t(idle);
}

PyObject *
ndshare_stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    const char *name;
    mapped sums = {0};
    bool measured;
    size_t available;
    Py_BEGIN_ALLOW_THREADS
    available = ndshare_capacity_available(&name);
    measured = measure(&sums);
    Py_END_ALLOW_THREADS
    size_t live[4] = {0}, live_count[4] = {0}, sizes[NOTHING] = {0}, own_detached = 0, held = 0;
    ndshare_heap_lock();
    for (size_t i = 0; i < ndshare_heap.n_segments; i++) {
        const ndshare_segment *segment = ndshare_heap.by_address[i];
        bool own = segment->origin == NDSHARE_OWN;
        if (segment->state != NDSHARE_LIVE) {
            sizes[own ? OWN : CACHED] += own ? segment->resident : segment->size;
            continue;
        }
        held += !own;
        size_t bytes = own ? segment->resident : segment->size;
        sizes[segment->detached ? DETACHED : own ? OWN : HELD] += bytes;
        if (segment->detached) {
            own_detached += own ? bytes : 0;
            continue;
        }
        live[segment->kind & 3] += bytes;
        live_count[segment->kind & 3]++;
    }
    ndshare_heap_state heap = ndshare_heap;
    ndshare_heap_unlock();
    if (!measured) {  /* not allowed to look, as a process that changed its user is not */
        memcpy(sums.resident, sizes, sizeof sizes);
        memcpy(sums.proportional, sizes, sizeof sizes);
    }
    return Py_BuildValue(
        "{sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sK sK sK ss sn sn sn sn sn}",
        "own_segments", (Py_ssize_t)heap.own_count, "own_bytes", (Py_ssize_t)(heap.own_bytes - own_detached),
        "shared_segments", (Py_ssize_t)live_count[NDSHARE_SHARED], "shared_bytes", (Py_ssize_t)live[NDSHARE_SHARED],
        "sealed_segments", (Py_ssize_t)live_count[NDSHARE_SEALED], "sealed_bytes", (Py_ssize_t)live[NDSHARE_SEALED],
        "value_segments", (Py_ssize_t)live_count[NDSHARE_VALUE], "value_bytes", (Py_ssize_t)live[NDSHARE_VALUE],
        "idle_segments", (Py_ssize_t)heap.idle_count, "idle_bytes",
        (Py_ssize_t)(heap.idle_bytes + heap.slot_idle_bytes),
        "lent_segments", (Py_ssize_t)heap.away_count, "lent_bytes", (Py_ssize_t)heap.away_bytes,
        "held_segments", (Py_ssize_t)held, "held_bytes", (Py_ssize_t)sums.resident[HELD],
        "cached_mappings", (Py_ssize_t)heap.cached_count, "cached_bytes", (Py_ssize_t)sums.resident[CACHED],
        "idle_limit", (Py_ssize_t)heap.idle_limit,
        "fresh", (unsigned long long)heap.fresh_count, "recycled", (unsigned long long)heap.recycled_count,
        "probes", (unsigned long long)heap.probe_count,
        "limit", name, "available", (Py_ssize_t)(available > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX : available),
        "detached_bytes", (Py_ssize_t)sums.resident[DETACHED], "other_bytes", (Py_ssize_t)sums.resident[OTHER],
        "mapped_bytes", (Py_ssize_t)sum(sums.resident), "proportional_bytes", (Py_ssize_t)sum(sums.proportional));
}
