/* A worker ignores Ctrl-C, which the terminal sends to all processes of a program, unless its caller means it. A
 * SIGINT that the process sends itself is another matter: so do time limits that libraries and programs set for
 * their own functions (`_thread.interrupt_main`, `signal.raise_signal`, `os.kill` with its own number). A handler
 * of Python's is not told who has sent a signal: this one notes it, then lets Python's have its turn.
 *
 * What comes from `interrupt_main` is no signal at all, and has not been here.
 *
 * State: `python` is written by the main thread, before the handler is in place. The handler may run in any thread.
 */
#include "sender.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

static struct sigaction python;
static atomic_bool other;

static void
on_interrupt(int number, siginfo_t *info, void *context)
{
    if (info->si_code > 0 || info->si_pid != getpid()) {
        atomic_store(&other, true);
    }
    if (python.sa_flags & SA_SIGINFO) {
        python.sa_sigaction(number, info, context);
    }
    else if (python.sa_handler != SIG_DFL && python.sa_handler != SIG_IGN) {
        python.sa_handler(number);
    }
}

static bool
is_in_place(struct sigaction *now)
{
    return sigaction(SIGINT, NULL, now) == 0 && now->sa_sigaction == on_interrupt;
}

static void
put_in_place(const struct sigaction *now)
{
    struct sigaction ours = {.sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO};
    sigemptyset(&ours.sa_mask);
    python = *now;
    sigaction(SIGINT, &ours, NULL);
}

PyObject *
ndshare_sender_watch(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct sigaction now;
    if (!is_in_place(&now)) {
        put_in_place(&now);
    }
    Py_RETURN_NONE;
}

PyObject *
ndshare_sender_was_self(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct sigaction now;
    if (!is_in_place(&now)) {  /* `signal.signal` has put Python's in its place: who knows */
        put_in_place(&now);
        Py_RETURN_FALSE;
    }
    return PyBool_FromLong(!atomic_exchange(&other, false));
}
