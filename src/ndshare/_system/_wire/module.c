/* ndshare._system._wire: what goes between processes, in C because every microsecond of it is paid per task.
 *
 * atomics         cells in shared memory
 * messages        whole messages with descriptors
 * queue_slots     the memory of a queue, the slots of a bounded one
 * queue_messages  into a queue and out of it
 * sender          whose SIGINT it was
 * shield          no Ctrl-C between two lines that belong together
 * standing        how the system sees this process
 * waiting         without sleeping, and while another thread is at it
 * here            `selective`, a filter for picklers; `die_with_parent`, `processor`
 *
 * No state but atomics: the limit of descriptors, read now and then, and those of the shield and the sender, see
 * there.
 */
#include "atomics.h"
#include "messages.h"
#include "queue_messages.h"
#include "queue_slots.h"
#include "sender.h"
#include "shield.h"
#include "standing.h"
#include "waiting.h"

#include <sched.h>
#include <sys/prctl.h>

/* Pickler.reducer_override is called for every object that is not a plain builtin: in Python it would
 * make the pickling of 100,000 small objects twice as slow. Only functions, classes, subclasses of
 * one more type (arrays), exceptions and what the pickler itself could not take apart need a decision. */
static PyObject *
selective_call(PyObject *rules, PyObject *obj)
{
    if (PyFunction_Check(obj) || PyType_Check(obj)) {
        return PyObject_CallOneArg(PyTuple_GET_ITEM(rules, 0), obj);
    }
    PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(rules, 1);
    if (Py_TYPE(obj) != base && PyType_IsSubtype(Py_TYPE(obj), base)) {
        return PyObject_CallOneArg(PyTuple_GET_ITEM(rules, 2), obj);
    }
    if (PyExceptionInstance_Check(obj)) {
        return PyObject_CallOneArg(PyTuple_GET_ITEM(rules, 3), obj);
    }
    /* The pickler looks for the class in tables: one that has no hash, because of its metaclass, is taken apart here. */
    PyTypeObject *meta = Py_TYPE(Py_TYPE(obj));
    if (meta->tp_hash != PyType_Type.tp_hash && PyObject_Hash((PyObject *)Py_TYPE(obj)) == -1) {
        PyErr_Clear();
        return PyObject_CallMethod(obj, "__reduce_ex__", "i", 5);
    }
    Py_RETURN_NOTIMPLEMENTED;
}

static PyMethodDef selective_def = {
    "selective_filter", selective_call, METH_O,
    PyDoc_STR("Call back for functions, classes, subclasses of a type, exceptions; NotImplemented for anything else."),
};

static PyObject *
selective(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 4) {
        return PyErr_Format(PyExc_TypeError, "selective takes 4 arguments, got %zd", nargs);
    }
    if (!PyCallable_Check(args[0]) || !PyType_Check(args[1]) || !PyCallable_Check(args[2]) ||
        !PyCallable_Check(args[3])) {
        return PyErr_Format(PyExc_TypeError, "selective takes (callable, type, callable, callable), got (%R, %R, %R, %R)",
                            args[0], args[1], args[2], args[3]);
    }
    PyObject *rules = PyTuple_Pack(4, args[0], args[1], args[2], args[3]);
    if (rules == NULL) {
        return NULL;
    }
    PyObject *filter = PyCFunction_New(&selective_def, rules);
    Py_DECREF(rules);
    return filter;
}

static PyObject *
die_with_parent(PyObject *Py_UNUSED(module), PyObject *number)
{
    int signal_number = PyLong_AsInt(number);
    if (signal_number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (prctl(PR_SET_PDEATHSIG, signal_number) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* Number of the processor that the calling thread runs on. */
static PyObject *
processor(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(sched_getcpu());
}

static PyMethodDef methods[] = {
    {"send_message", NDSHARE_FAST(ndshare_message_send),
     PyDoc_STR("send_message(sock_fd, parts, fds, flags) -> bool\n\nOne message; False if it would block.")},
    {"recv_message", NDSHARE_FAST(ndshare_message_recv),
     PyDoc_STR("recv_message(sock_fd, buffer, flags) -> (nbytes, fds) | None\n\n"
               "One message into `buffer`; None if it would block, (0, ()) at the end of the stream.")},
    {"recv_answers", NDSHARE_FAST(ndshare_message_recv_answers),
     PyDoc_STR("recv_answers(sock_fd, buffer, most, out) -> int\n\n"
               "Append up to `most` waiting messages (kind, status, number, seconds, body, fds) to the list `out`.\n"
               "0: that was all; EAGAIN: there may be more; EPIPE: the end; else an errno.")},
    {"queue_enter", NDSHARE_FAST(ndshare_queue_enter),
     PyDoc_STR("queue_enter(memory, own_fd) -> int\n\n"
               "The number of this process in a bounded queue, for as long as `own_fd` is open; 0: there is none left.")},
    {"queue_take", NDSHARE_FAST(ndshare_queue_take),
     PyDoc_STR("queue_take(memory, member, charge) -> bool\n\n"
               "Take a slot for a message that counts for `charge` bytes; False if the queue is full.")},
    {"queue_pass", NDSHARE_FAST(ndshare_queue_pass),
     PyDoc_STR("queue_pass(memory, member, charge)\n\nThe message is in the socket: the slot goes with it.")},
    {"queue_give_back", NDSHARE_FAST(ndshare_queue_give_back),
     PyDoc_STR("queue_give_back(memory, member, charge)\n\nLet go of the slot of a message that is not sent.")},
    {"queue_mend", NDSHARE_FAST(ndshare_queue_mend),
     PyDoc_STR("queue_mend(memory, own_fd, into_fd, out_fd, member) -> int\n\n"
               "Free the slots that were lost with dead processes: how many; 0 also if it cannot be told now.")},
    {"queue_send", NDSHARE_FAST(ndshare_queue_send),
     PyDoc_STR("queue_send(memory, sock_fd, member, charge, is_accepted, stream) -> bool\n\n"
               "Send one pickle, with a slot if the queue is bounded; False if that cannot be done at once.\n"
               "What was accepted before has its slot, and is counted.")},
    {"queue_recv", NDSHARE_FAST(ndshare_queue_recv),
     PyDoc_STR("queue_recv(memory, sock_fd, bell_fd, member) -> (message, fds) | stream | None\n\n"
               "The next message, its slot given back; bytes if it is one pickle and nothing else.\n"
               "None if there is none, (b'', ()) at the end, b'' if it was dropped: the queue was shut down at once.")},
    {"queue_spin", NDSHARE_FAST(ndshare_queue_spin),
     PyDoc_STR("queue_spin(memory, microseconds) -> bool\n\n"
               "Return when a slot is free, or the time is over: whether one is.")},
    {"queue_used", NDSHARE_FAST(ndshare_queue_used),
     PyDoc_STR("queue_used(memory) -> int\n\nHow many slots of a bounded queue are in use, or lost.")},
    {"rest", NDSHARE_FAST(ndshare_waiting_rest),
     PyDoc_STR("rest(fd, count, period_ms, most_ms)\n\n"
               "Return when `fd` is readable, or the number at `count` has not changed for a period.")},
    {"sleep_while", NDSHARE_FAST(ndshare_atomic_sleep_while),
     PyDoc_STR("sleep_while(memory, offset, seen, seconds)\n\n"
               "Return when the number at `offset` is not `seen`, somebody wakes all, or the time is over.")},
    {"wake_all", NDSHARE_FAST(ndshare_atomic_wake_all),
     PyDoc_STR("wake_all(memory, offset)\n\nWake who sleeps while the number there is what it was.")},
    {"spin", NDSHARE_FAST(ndshare_waiting_spin_readable),
     PyDoc_STR("spin(fd, microseconds)\n\n"
               "Return when `fd` is readable, the time is over, or another thread wanted the processor.")},
    {"cas_u8", NDSHARE_FAST(ndshare_atomic_cas_u8),
     PyDoc_STR("cas_u8(buffer, offset, expected, new) -> bool")},
    {"claim", NDSHARE_FAST(ndshare_atomic_claim),
     PyDoc_STR("claim(buffer, offset, notes, number) -> bool\n\n"
               "Change a byte from 0 to 1, if it is 0; note at `notes` that all up to `number` were looked at,\n"
               "and behind it the monotonic nanoseconds of the last change.")},
    {"finish", NDSHARE_FAST(ndshare_atomic_finish),
     PyDoc_STR("finish(buffer, offset) -> bool\n\n"
               "Change a byte that was claimed to 4; False if it has been changed to 5 before.")},
    {"cas_u64", NDSHARE_FAST(ndshare_atomic_cas_u64),
     PyDoc_STR("cas_u64(buffer, offset, expected, new) -> bool")},
    {"load_u8", NDSHARE_FAST(ndshare_atomic_load_u8),
     PyDoc_STR("load_u8(buffer, offset) -> int")},
    {"add_u64", NDSHARE_FAST(ndshare_atomic_add_u64),
     PyDoc_STR("add_u64(buffer, offset, n) -> int\n\nThe value before.")},
    {"load_u64", NDSHARE_FAST(ndshare_atomic_load_u64),
     PyDoc_STR("load_u64(buffer, offset) -> int")},
    {"store_u64", NDSHARE_FAST(ndshare_atomic_store_u64),
     PyDoc_STR("store_u64(buffer, offset, value)")},
    {"die_with_parent", die_with_parent, METH_O,
     PyDoc_STR("die_with_parent(signal)\n\nThe signal this process gets when the *thread* that forked it ends.")},
    {"shield_main", ndshare_shield_main, METH_O,
     PyDoc_STR("shield_main(ident)\n\nSay which thread is the main thread.")},
    {"shield", ndshare_shield_up, METH_NOARGS,
     PyDoc_STR("shield()\n\nFrom here on Ctrl-C is only noted.")},
    {"unshield", ndshare_shield_down, METH_NOARGS,
     PyDoc_STR("unshield()\n\nEnd of a shield; may raise what was held back.")},
    {"window", ndshare_shield_window, METH_NOARGS,
     PyDoc_STR("window() -> int\n\nLet Ctrl-C through for a while; may raise what was held back.")},
    {"curtain", ndshare_shield_curtain, METH_O,
     PyDoc_STR("curtain(n)\n\nEnd of a window; n is what window() gave.")},
    {"watch_sender", ndshare_sender_watch, METH_NOARGS,
     PyDoc_STR("watch_sender()\n\nFrom now on note who sends SIGINT.")},
    {"sent_by_self", ndshare_sender_was_self, METH_NOARGS,
     PyDoc_STR("sent_by_self() -> bool\n\nWhether all SIGINT since the last call were of this process itself.")},
    {"here", ndshare_standing_here, METH_NOARGS,
     PyDoc_STR("here() -> bytes\n\nIdentity of the working directory and of what descriptors 1 and 2 point to.")},
    {"standing", ndshare_standing_all, METH_NOARGS,
     PyDoc_STR("standing() -> bytes\n\nSignal mask, timers, limits, users, priorities and root of this process.")},
    {"processor", processor, METH_NOARGS,
     PyDoc_STR("processor() -> int\n\nNumber of the processor that the calling thread runs on; -1: not known.")},
    {"selective", NDSHARE_FAST(selective),
     PyDoc_STR("selective(on_named, base, on_subclass, on_exception)\n\n"
               "A fast filter for Pickler.reducer_override: on_named gets functions and classes, on_subclass\n"
               "instances of subclasses of base, on_exception exceptions.")},
    {NULL, NULL, 0, NULL},
};

NDSHARE_EXTENSION(_wire, ndshare_wire_definition, Py_MOD_GIL_NOT_USED, ndshare_shield_start,
                  .m_name = "ndshare._system._wire",
                  .m_doc = PyDoc_STR("Messages, descriptors and atomics between processes."),
                  .m_methods = methods)
