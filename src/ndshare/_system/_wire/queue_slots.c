/* A slot is a number in a ledger: so many were ever taken, so many were ever given back, and the difference is in use.
 * A sender takes one, passes it on with its message, and the receiver gives it back; no descriptor goes with it.
 *
 *     sender                                 socket                    receiver
 *     sending + 1 ─ take ─ send ─ sending - 1   │   receiving + 1 ─ receive ─ give back ─ receiving - 1
 *
 * Each process writes into an entry of its own what it holds and the socket does not. That the process lives, the
 * kernel knows: it holds a lock (F_OFD_SETLK) on the byte FIRST_ENTRY + number of the memory's file. So what is in use
 * and neither in the socket nor held by the living was lost with the dead: `mend` counts, and gives it back.
 *
 * Invariants
 *   - Taken is counted before a message is sent, given back after it was received. So whoever is killed, wherever,
 *     slots can be lost, never made: the bounds hold.
 *   - A slot is in `sending` from before it is taken until after its message is in the socket; a call has counted in
 *     `receiving` from before it receives until its slot is given back. `mend` reads `sending`, then the socket, then
 *     `receiving`, and gives up if anything was taken or given back meanwhile: it never misses a slot that is in use.
 *   - Counters only grow, but those of the entries. What somebody scribbles can stop a queue or open its bounds.
 */
#include "queue_slots.h"

#include "waiting.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#define FIRST_ENTRY ((off_t)1 << 40)
#define MENDING ((off_t)2) /* who reads the socket from behind its front does it alone */
#define EMPTY_MOST 64 /* messages without content, as others may have sent */
#define RELAXED memory_order_relaxed

int
ndshare_queue_arguments(ndshare_queue *queue, const char *name, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t wanted, long long *numbers, Py_ssize_t count)
{
    if (nargs != wanted) {
        PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        numbers[i] = PyLong_AsLongLong(args[i + 1]);
        if (numbers[i] == -1 && PyErr_Occurred()) {
            return -1;
        }
    }
    if (PyObject_GetBuffer(args[0], &queue->view, PyBUF_WRITABLE) < 0) {
        return -1;
    }
    size_t length = (size_t)queue->view.len;
    ndshare_queue_memory *memory = queue->memory = queue->view.buf;
    if (length >= sizeof *memory && (uintptr_t)memory % sizeof(uint64_t) == 0) {
        queue->entries = (length - sizeof *memory) / sizeof memory->entries[0];
        queue->max_bytes = atomic_load_explicit(&memory->max_bytes, RELAXED);
        queue->maxsize = atomic_load_explicit(&memory->maxsize, RELAXED);
        if ((3 * queue->max_bytes ^ 5 * queue->maxsize ^ NDSHARE_QUEUE_CHECK)
                == atomic_load_explicit(&memory->check, RELAXED)
            && (queue->entries > 0 || !ndshare_queue_is_bounded(queue))) {
            return 0;
        }
    }
    PyBuffer_Release(&queue->view);
    PyErr_Format(PyExc_ValueError, "%s: %zu bytes are not the memory of a queue, or another process has overwritten "
                 "its numbers; make a new queue", name, length);
    return -1;
}

ndshare_queue_entry *
ndshare_queue_entry_of(const ndshare_queue *queue, long long member)
{
    return &queue->memory->entries[member > 0 && (uint64_t)member < queue->entries ? member : 0];
}

/* How much of a bound is in use. What somebody scribbled may be less than nothing. */
static uint64_t
used(_Atomic uint64_t *taken, _Atomic uint64_t *freed)
{
    uint64_t in = atomic_load(taken), out = atomic_load(freed);
    return in > out ? in - out : 0;
}

/* Take so much of a bound. `freed` is read after `taken`: what is in use is overrated at worst. */
static bool
take(_Atomic uint64_t *taken, _Atomic uint64_t *freed, uint64_t amount, uint64_t most)
{
    uint64_t in = atomic_load(taken);
    do {
        uint64_t out = atomic_load(freed), there = in > out ? in - out : 0;
        if (amount > most || there > most - amount) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(taken, &in, in + amount));
    return true;
}

static void
count_sending(ndshare_queue_entry *entry, uint64_t charge, bool more)
{
    atomic_fetch_add(&entry->sending, more ? 1 : (uint64_t)-1);
    if (charge > 0) {
        atomic_fetch_add(&entry->sending_bytes, more ? charge : -charge);
    }
}

bool
ndshare_queue_get_slot(const ndshare_queue *queue, ndshare_queue_entry *entry, uint64_t charge)
{
    ndshare_queue_memory *memory = queue->memory;
    count_sending(entry, charge, true);
    if (take(&memory->taken, &memory->freed, 1, queue->maxsize > 0 ? queue->maxsize : UINT64_MAX)) {
        if (queue->max_bytes == 0 || take(&memory->taken_bytes, &memory->freed_bytes, charge, queue->max_bytes)) {
            return true;
        }
        atomic_fetch_add(&memory->freed, 1);
    }
    count_sending(entry, charge, false);
    return false;
}

void
ndshare_queue_pass_slot(ndshare_queue_entry *entry, uint64_t charge)
{
    count_sending(entry, charge, false);
}

void
ndshare_queue_free_slot(const ndshare_queue *queue, uint64_t charge)
{
    if (charge > 0) {
        atomic_fetch_add(&queue->memory->freed_bytes, charge);
    }
    atomic_fetch_add(&queue->memory->freed, 1);
}

void
ndshare_queue_return_slot(const ndshare_queue *queue, ndshare_queue_entry *entry, uint64_t charge)
{
    ndshare_queue_free_slot(queue, charge);
    count_sending(entry, charge, false);
}

/* ---- who lives */

static int
set_lock(int fd, short kind, off_t at)
{
    struct flock lock = {.l_type = kind, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Does another description than this one hold the byte? In doubt it does. */
static bool
is_locked(int fd, off_t at)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};
    return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static bool
holds(ndshare_queue_entry *entry)
{
    return (atomic_load(&entry->sending) | atomic_load(&entry->sending_bytes) | atomic_load(&entry->receiving)) != 0;
}

/* Under the lock of the entry: forget what a dead process had, but not that there was something. */
static void
clear(ndshare_queue_memory *memory, size_t number)
{
    ndshare_queue_entry *entry = &memory->entries[number];
    if (holds(entry)) {
        atomic_fetch_add(&memory->suspicions, 1);
        atomic_store(&entry->sending, 0);
        atomic_store(&entry->sending_bytes, 0);
        atomic_store(&entry->receiving, 0);
    }
}

/* An entry for whoever keeps `own_fd`, a description of the memory's file that nobody else has; 0: all are in use. */
PyObject *
ndshare_queue_enter(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long own_fd;
    if (ndshare_queue_arguments(&queue, "queue_enter", args, nargs, 2, &own_fd, 1) < 0) {
        return NULL;
    }
    size_t member = 1;
    while (member < queue.entries && set_lock((int)own_fd, F_WRLCK, FIRST_ENTRY + (off_t)member) != 0) {
        member++;
    }
    if (member < queue.entries) {
        clear(queue.memory, member);
        uint64_t members = atomic_load(&queue.memory->members);
        while (members <= member && !atomic_compare_exchange_weak(&queue.memory->members, &members, member + 1)) {
        }
    }
    else {
        member = 0;
    }
    PyBuffer_Release(&queue.view);
    return PyLong_FromSize_t(member);
}

/* ---- what was lost */

typedef struct {
    uint64_t slots, bytes;
} amount;

/* What is in the socket, whose front others may take meanwhile: then `mend` gives up. -1: it cannot be told. */
static int
count_socket(int sock_fd, amount *there)
{
    int waiting = 0, from = 0, empty = 0, status = 0;
    if (ioctl(sock_fd, FIONREAD, &waiting) != 0) {
        return -1;
    }
    while (from < waiting) { /* what is sent from now on is in `sending` already */
        ndshare_queue_head head;
        if (setsockopt(sock_fd, SOL_SOCKET, SO_PEEK_OFF, &from, sizeof from) != 0) {
            status = -1;
            break;
        }
        ssize_t length = recv(sock_fd, &head, sizeof head, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
        if (length < 0 && errno == EAGAIN) {
            break;
        }
        if (length < 0 || (length == 0 && ++empty > EMPTY_MOST)) {
            status = -1;
            break;
        }
        if (length >= (ssize_t)sizeof head && head.has_slot != 0) {
            there->slots++;
            there->bytes += head.charge;
        }
        from += (int)length;
    }
    int never = -1;
    if (waiting > 0) {
        setsockopt(sock_fd, SOL_SOCKET, SO_PEEK_OFF, &never, sizeof never);
    }
    return status;
}

static bool
is_member(int own_fd, size_t number, long long member)
{
    return number == 0 || (long long)number == member || is_locked(own_fd, FIRST_ENTRY + (off_t)number);
}

/* Give back to one bound what was taken and is nowhere; false if others have changed it meanwhile. */
static bool
give_back_lost(uint64_t taken, uint64_t freed, uint64_t held, _Atomic uint64_t *counter, uint64_t *lost)
{
    *lost = taken > freed && taken - freed > held ? taken - freed - held : 0;
    return *lost == 0 || atomic_compare_exchange_strong(counter, &freed, freed + *lost);
}

/* Slots are lost with a process that holds something, no other way. Turn those that are dead into suspicions. */
static bool
has_suspicions(const ndshare_queue *queue, int own_fd, size_t members, long long member)
{
    ndshare_queue_memory *memory = queue->memory;
    for (size_t i = 1; i < members; i++) {
        if (holds(&memory->entries[i]) && !is_member(own_fd, i, member)
            && set_lock(own_fd, F_WRLCK, FIRST_ENTRY + (off_t)i) == 0) {
            clear(memory, i);
            set_lock(own_fd, F_UNLCK, FIRST_ENTRY + (off_t)i);
        }
    }
    return atomic_load(&memory->suspicions) != atomic_load(&memory->mended);
}

static uint64_t
mend(const ndshare_queue *queue, int own_fd, int into_fd, int out_fd, long long member)
{
    ndshare_queue_memory *memory = queue->memory;
    uint64_t known = atomic_load(&memory->members), members = known < 1 ? 1 : known, lost = 0, lost_bytes = 0;
    members = members > queue->entries ? queue->entries : members;
    if (!has_suspicions(queue, own_fd, members, member)) {
        return 0;
    }
    uint64_t suspicions = atomic_load(&memory->suspicions), mended = atomic_load(&memory->mended);
    uint64_t taken = atomic_load(&memory->taken), freed = atomic_load(&memory->freed),
             taken_bytes = atomic_load(&memory->taken_bytes), freed_bytes = atomic_load(&memory->freed_bytes);
    amount held = {0, 0};
    for (size_t i = 0; i < members; i++) {
        ndshare_queue_entry *entry = &memory->entries[i];
        held.slots += atomic_load(&entry->sending);
        held.bytes += atomic_load(&entry->sending_bytes);
    }
    if (count_socket(into_fd, &held) < 0 || count_socket(out_fd, &held) < 0) { /* after a shutdown they go back */
        return 0;
    }
    for (size_t i = 0; i < members; i++) {
        if (atomic_load(&memory->entries[i].receiving) != 0) {
            return 0;
        }
    }
    if (taken != atomic_load(&memory->taken) || freed != atomic_load(&memory->freed)
        || taken_bytes != atomic_load(&memory->taken_bytes) || freed_bytes != atomic_load(&memory->freed_bytes)
        || known != atomic_load(&memory->members)
        || !give_back_lost(taken_bytes, freed_bytes, held.bytes, &memory->freed_bytes, &lost_bytes)
        || !give_back_lost(taken, freed, held.slots, &memory->freed, &lost)) {
        return 0; /* with traffic no slot can be told from those that move: later */
    }
    atomic_compare_exchange_strong(&memory->mended, &mended, suspicions);
    return lost > 0 ? lost : lost_bytes > 0;
}

PyObject *
ndshare_queue_mend(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[4]; /* own_fd, into_fd, out_fd, member */
    if (ndshare_queue_arguments(&queue, "queue_mend", args, nargs, 5, numbers, 4) < 0) {
        return NULL;
    }
    uint64_t lost = 0;
    if (set_lock((int)numbers[0], F_WRLCK, MENDING) == 0) {
        lost = mend(&queue, (int)numbers[0], (int)numbers[1], (int)numbers[2], numbers[3]);
        set_lock((int)numbers[0], F_UNLCK, MENDING);
    }
    PyBuffer_Release(&queue.view);
    return PyLong_FromUnsignedLongLong(lost);
}

/* ---- for messages that Python sends */

static int
of_one_slot(ndshare_queue *queue, const char *name, PyObject *const *args, Py_ssize_t nargs, long long *numbers)
{
    return ndshare_queue_arguments(queue, name, args, nargs, 3, numbers, 2); /* member, charge */
}

PyObject *
ndshare_queue_take(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[2];
    if (of_one_slot(&queue, "queue_take", args, nargs, numbers) < 0) {
        return NULL;
    }
    bool taken = ndshare_queue_get_slot(&queue, ndshare_queue_entry_of(&queue, numbers[0]), (uint64_t)numbers[1]);
    PyBuffer_Release(&queue.view);
    return PyBool_FromLong(taken);
}

PyObject *
ndshare_queue_pass(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[2];
    if (of_one_slot(&queue, "queue_pass", args, nargs, numbers) < 0) {
        return NULL;
    }
    ndshare_queue_pass_slot(ndshare_queue_entry_of(&queue, numbers[0]), (uint64_t)numbers[1]);
    PyBuffer_Release(&queue.view);
    Py_RETURN_NONE;
}

PyObject *
ndshare_queue_give_back(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long numbers[2];
    if (of_one_slot(&queue, "queue_give_back", args, nargs, numbers) < 0) {
        return NULL;
    }
    ndshare_queue_return_slot(&queue, ndshare_queue_entry_of(&queue, numbers[0]), (uint64_t)numbers[1]);
    PyBuffer_Release(&queue.view);
    Py_RETURN_NONE;
}

PyObject *
ndshare_queue_used(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    if (ndshare_queue_arguments(&queue, "queue_used", args, nargs, 1, NULL, 0) < 0) {
        return NULL;
    }
    uint64_t slots = used(&queue.memory->taken, &queue.memory->freed);
    PyBuffer_Release(&queue.view);
    return PyLong_FromUnsignedLongLong(slots);
}

static bool
looks_free(const void *what)
{
    const ndshare_queue *queue = what;
    return used(&queue->memory->taken, &queue->memory->freed) < queue->maxsize;
}

/* Who finds a slot without having slept need not be woken. */
PyObject *
ndshare_queue_spin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    ndshare_queue queue;
    long long microseconds;
    if (ndshare_queue_arguments(&queue, "queue_spin", args, nargs, 2, &microseconds, 1) < 0) {
        return NULL;
    }
    bool found = ndshare_waiting_spin(looks_free, &queue, (int)microseconds);
    PyBuffer_Release(&queue.view);
    return PyBool_FromLong(found);
}
