/* The heap in figures, as a dict; segments.py gives them names and a readable form. */
#include "stats.h"

#include "capacity.h"

PyObject *
ndshare_stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused))
{
    const char *name;
    size_t available = ndshare_capacity_available(&name);
    size_t live[4] = {0}, live_count[4] = {0}, detached = 0;
    ndshare_heap_lock();
    for (size_t i = 0; i < ndshare_heap.n_segments; i++) {
        ndshare_segment *segment = ndshare_heap.by_address[i];
        if (segment->state != NDSHARE_LIVE) {
            continue;
        }
        if (segment->detached) {
            detached += segment->size;
            continue;
        }
        live[segment->kind & 3] += segment->origin == NDSHARE_OWN ? segment->resident : segment->size;
        live_count[segment->kind & 3]++;
    }
    ndshare_heap_state heap = ndshare_heap;
    ndshare_heap_unlock();
    return Py_BuildValue(
        "{sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sn sK sK sK ss sn sK}",
        "own_segments", (Py_ssize_t)heap.own_count, "own_bytes", (Py_ssize_t)heap.own_bytes,
        "shared_segments", (Py_ssize_t)live_count[NDSHARE_SHARED], "shared_bytes", (Py_ssize_t)live[NDSHARE_SHARED],
        "sealed_segments", (Py_ssize_t)live_count[NDSHARE_SEALED], "sealed_bytes", (Py_ssize_t)live[NDSHARE_SEALED],
        "value_segments", (Py_ssize_t)live_count[NDSHARE_VALUE], "value_bytes", (Py_ssize_t)live[NDSHARE_VALUE],
        "idle_segments", (Py_ssize_t)heap.idle_count, "idle_bytes",
        (Py_ssize_t)(heap.idle_bytes + heap.slot_idle_bytes),
        "lent_segments", (Py_ssize_t)heap.away_count, "lent_bytes", (Py_ssize_t)heap.away_bytes,
        "held_segments", (Py_ssize_t)heap.held_count, "held_bytes", (Py_ssize_t)heap.held_bytes,
        "cached_mappings", (Py_ssize_t)heap.cached_count, "cached_bytes", (Py_ssize_t)heap.cached_bytes,
        "idle_limit", (Py_ssize_t)heap.idle_limit,
        "fresh", (unsigned long long)heap.fresh_count, "recycled", (unsigned long long)heap.recycled_count,
        "probes", (unsigned long long)heap.probe_count,
        "limit", name, "available", (Py_ssize_t)(available > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX : available),
        "detached_bytes", (unsigned long long)detached);
}
