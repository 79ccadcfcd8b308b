/* The two slots of a key: which one is current, how the other one becomes it, copies into them and out of them. */
#define NO_IMPORT_ARRAY
#include "slots.h"
#include "waiting.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define LOOKS 1000                 /* a writer has published that often during one look: not plausible */
#define LEADER_BITS 20             /* NDSHARE_DICT_MAX_KEYS */

/* From here on source, target and what else is worked with rarely stay in the caches: past them, the target's old
 * content is not fetched first, which saves a third of the traffic. 8 MB to two targets in turn: 0.37 instead of
 * 0.46 ms; copy and a sum over the copy: 0.79 instead of 1.12 ms. At 4 MB it is equal, below slower. */
#define STREAM_BYTES ((size_t)6 << 20)
#define LINE ((size_t)64)

_Atomic long ndshare_dict_countdown = -1;

void
ndshare_dict_step_taken(void)
{
    if (atomic_fetch_sub(&ndshare_dict_countdown, 1) == 0) {
        kill(getpid(), SIGKILL);
    }
}

uint64_t
ndshare_slot_seal(Py_ssize_t key, uint64_t stamp, uint64_t version)
{
    uint64_t seal = (uint64_t)key * UINT64_C(0x9e3779b97f4a7c15) + stamp;
    seal = (seal ^ (seal >> 29)) * UINT64_C(0xbf58476d1ce4e5b9) + version;
    return (seal ^ (seal >> 32)) * UINT64_C(0x94d049bb133111eb);
}

static bool
link_counts(const ndshare_store *store, uint64_t link)
{
    Py_ssize_t leader = (Py_ssize_t)(link & ((UINT64_C(1) << LEADER_BITS) - 1));
    return link == 0
        || (leader < store->count
            && atomic_load_explicit(&ndshare_dict_cell_of(store, leader)->commit, memory_order_acquire) == link);
}

/* The current slot of a key, as it was at one instant of the call. 0: found, ENODATA: no slot has a value. */
int
ndshare_slot_look(const ndshare_store *store, Py_ssize_t key, ndshare_current *out)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    for (int look = 0; look < LOOKS; look++) {
        uint64_t done[2], link[2];
        out->slot = -1;
        for (int s = 0; s < 2; s++) {
            done[s] = atomic_load_explicit(&cell->slot[s].done, memory_order_acquire);
            link[s] = atomic_load_explicit(&cell->slot[s].link, memory_order_acquire);
            if (done[s] != 0 && (out->slot < 0 || done[s] > out->stamp) && link_counts(store, link[s])) {
                out->slot = s;
                out->stamp = done[s];
            }
        }
        if (out->slot >= 0) {
            out->version = atomic_load_explicit(&cell->slot[out->slot].version, memory_order_acquire);
        }
        atomic_thread_fence(memory_order_acquire);
        bool same = true;
        for (int s = 0; s < 2; s++) {
            same = same && done[s] == atomic_load_explicit(&cell->slot[s].done, memory_order_acquire)
                && link[s] == atomic_load_explicit(&cell->slot[s].link, memory_order_acquire);
        }
        if (same) {
            return out->slot >= 0 ? 0 : ENODATA;
        }
    }
    return ENODATA;
}

/* Whether the data of what was seen are still in their slot. For use after they were read. */
bool
ndshare_slot_unchanged(const ndshare_store *store, Py_ssize_t key, const ndshare_current *seen)
{
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&ndshare_dict_cell_of(store, key)->slot[seen->slot].done, memory_order_relaxed)
        == seen->stamp;
}

/* Make the idle slot ready to be written. 0, as `ndshare_gate_wait`, or ENODATA: no slot has a value, or a stamp that
 * cannot be. The caller has the lock of the key. */
int
ndshare_slot_begin(ndshare_store *store, Py_ssize_t key, double end, ndshare_current *current)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    ndshare_entry *entry = &store->entries[key];
    int error = ndshare_slot_look(store, key, current);
    if (error != 0) {
        return error;
    }
    /* Left by one that died after its commit; its leader may lead another transaction at any time. */
    uint64_t link = atomic_load(&cell->slot[current->slot].link);
    if (link != 0) {
        atomic_compare_exchange_strong(&cell->slot[current->slot].link, &link, 0);
    }
    ndshare_slot *idle = &cell->slot[1 - current->slot];
    uint64_t begun = atomic_load(&idle->begun);
    if (begun >= NDSHARE_DICT_MOST || current->stamp >= NDSHARE_DICT_MOST) {
        return ENODATA;
    }
    ndshare_dict_step();
    atomic_store(&idle->done, 0);
    ndshare_dict_step();
    entry->stamp = (begun > current->stamp ? begun : current->stamp) + 1;
    atomic_store(&idle->begun, entry->stamp);
    ndshare_dict_step();
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&cell->slow) != 0) {
        error = ndshare_gate_wait(store, key, end);
    }
    if (error == 0) {
        entry->writing = 1 - current->slot;
        atomic_store(&idle->version, current->version + 1);
    }
    return error;
}

/* Whoever raises `waiters` before the exchange finds `wake` changed, or is woken; whoever raises it afterwards
 * looks afterwards, and sees the new value. */
static void
notify(ndshare_dict_cell *cell)
{
    if (atomic_exchange(&cell->waiters, 0) != 0) {
        atomic_fetch_add(&cell->wake, 1);
        syscall(SYS_futex, &cell->wake, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    }
}

static void
finish(ndshare_store *store, Py_ssize_t key, uint64_t link)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    ndshare_entry *entry = &store->entries[key];
    ndshare_slot *slot = &cell->slot[entry->writing];
    uint64_t version = atomic_load_explicit(&slot->version, memory_order_relaxed);
    ndshare_dict_step();
    atomic_store_explicit(&cell->seal[entry->writing], ndshare_slot_seal(key, entry->stamp, version),
                          memory_order_relaxed);
    atomic_store_explicit(&slot->link, link, memory_order_release);
    ndshare_dict_step();
    atomic_store_explicit(&slot->done, entry->stamp, memory_order_release);  /* SYNC POINT publish */
    ndshare_dict_step();
}

void
ndshare_slot_publish(ndshare_store *store, Py_ssize_t key)
{
    finish(store, key, 0);
    store->entries[key].writing = -1;
    notify(ndshare_dict_cell_of(store, key));
    ndshare_dict_step();
}

static void
unlink_slots(ndshare_store *store, Py_ssize_t key, uint64_t link)
{
    for (int s = 0; s < 2; s++) {
        uint64_t expected = link;
        atomic_compare_exchange_strong(&ndshare_dict_cell_of(store, key)->slot[s].link, &expected, 0);
    }
}

/* Publish the slots begun of all keys, which ascend and whose locks the caller has, by one store. 0, or ENODATA: the
 * number of the last transaction cannot be. */
int
ndshare_slot_commit(ndshare_store *store, const Py_ssize_t *keys, Py_ssize_t n)
{
    if (n == 1) {
        ndshare_slot_publish(store, keys[0]);
        return 0;
    }
    ndshare_dict_cell *leader = ndshare_dict_cell_of(store, keys[0]);
    _Atomic uint64_t *numbers = (_Atomic uint64_t *)(store->base + NDSHARE_DICT_TXN);
    if (atomic_load(numbers) >= NDSHARE_DICT_MOST) {
        return ENODATA;
    }
    uint64_t last = atomic_load(&leader->commit);
    if (last != atomic_load(&leader->settled)) {
        for (Py_ssize_t key = 0; key < store->count; key++) {
            unlink_slots(store, key, last);
        }
        atomic_store(&leader->settled, last);
    }
    uint64_t link = (atomic_fetch_add(numbers, 1) + 1) << LEADER_BITS | (uint64_t)keys[0];
    for (Py_ssize_t i = 0; i < n; i++) {
        finish(store, keys[i], link);
    }
    atomic_store(&leader->commit, link);  /* SYNC POINT commit */
    for (Py_ssize_t i = 0; i < n; i++) {
        ndshare_dict_step();
        unlink_slots(store, keys[i], link);
        store->entries[keys[i]].writing = -1;
    }
    ndshare_dict_step();
    atomic_store(&leader->settled, link);
    for (Py_ssize_t i = 0; i < n; i++) {
        notify(ndshare_dict_cell_of(store, keys[i]));
    }
    ndshare_dict_step();
    return 0;
}

/* The first value, before anybody else can see the file. */
void
ndshare_slot_fill(ndshare_store *store, Py_ssize_t key, const void *source)
{
    ndshare_dict_cell *cell = ndshare_dict_cell_of(store, key);
    memcpy(ndshare_dict_data(store, key, 0), source, store->entries[key].nbytes);
    atomic_store_explicit(&cell->slot[0].begun, 1, memory_order_relaxed);
    atomic_store_explicit(&cell->slot[0].version, 1, memory_order_relaxed);
    atomic_store_explicit(&cell->seal[0], ndshare_slot_seal(key, 1, 1), memory_order_relaxed);
    atomic_store_explicit(&cell->slot[0].done, 1, memory_order_release);
}

static void
copy(char *to, const char *from, size_t nbytes)
{
#ifdef __SSE2__
    if (nbytes >= STREAM_BYTES) {
        size_t head = (LINE - (uintptr_t)to % LINE) % LINE, lines = (nbytes - head) / LINE;
        memcpy(to, from, head);
        to += head;
        from += head;
        nbytes -= head + lines * LINE;
        for (; lines > 0; lines--, to += LINE, from += LINE) {
            const __m128i *source = (const __m128i *)from;
            __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
            __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
            __m128i *target = (__m128i *)to;
            _mm_stream_si128(target, a);
            _mm_stream_si128(target + 1, b);
            _mm_stream_si128(target + 2, c);
            _mm_stream_si128(target + 3, d);
        }
        _mm_sfence();  /* these stores keep no order with the one that publishes, unless told to */
    }
#endif
    memcpy(to, from, nbytes);
}

/* In two halves while a test counts steps, so that it can end the process between them. */
void
ndshare_slot_copy_in(void *to, const void *from, size_t nbytes)
{
    if (atomic_load_explicit(&ndshare_dict_countdown, memory_order_relaxed) < 0) {
        copy(to, from, nbytes);
        return;
    }
    ndshare_dict_step();
    copy(to, from, nbytes / 2);
    ndshare_dict_step();
    copy((char *)to + nbytes / 2, (const char *)from + nbytes / 2, nbytes - nbytes / 2);
    ndshare_dict_step();
}

/* A private copy; the source may be overwritten meanwhile. */
void
ndshare_slot_copy_out(void *to, const void *from, size_t nbytes)
{
    copy(to, from, nbytes);
}
