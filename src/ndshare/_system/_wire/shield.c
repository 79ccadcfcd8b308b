/* A thread that waits for a result does the pool's bookkeeping, and if that thread is the main thread, Python
 * may raise KeyboardInterrupt after any instruction: a message that was received but not yet noted, or
 * a task taken from the queue but not yet sent, would be lost, and somebody would wait for it for ever.
 *
 *   shield()    from here on SIGINT is only noted
 *   window()    ... except here, where the thread waits or runs the user's code: returns the depth
 *   curtain(n)  ... until here
 *   unshield()  what was noted takes effect: may raise
 *
 * Guarantees
 *   - Only SIGINT is held back, only while a shield is up, and never lost: Python's own handler of the
 *     moment runs as soon as the shield is down or a window is open.
 *   - The disposition that was there before is put back, unless somebody changed it meanwhile.
 *   - No effect in other threads, where Python runs no handlers.
 *   - The child of a fork begins without a shield, with the thread that has forked as its main thread.
 *
 * State: `depth`, `windows`, `installed` and `before` are written by the main thread only; the handler, which may run
 * in any thread, reads `depth`, and `before` once it is in place. None of it needs the GIL.
 */
#include "shield.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

static atomic_int depth;
static int windows;  /* that are open: within them the handler stays in place */
static atomic_bool caught;
static atomic_int handling;  /* threads that are in the handler */
static bool installed;
static struct sigaction before;
static pthread_t main_thread;
static atomic_bool main_known;

static void
on_interrupt(int number, siginfo_t *info, void *context)
{
    atomic_fetch_add(&handling, 1);
    if (atomic_load(&depth) > 0) {
        atomic_store(&caught, true);
        /* In another thread the main thread may have opened a window meanwhile: it looks at `caught` after
         * it has changed `depth`, so one of the two sees the other. */
        if (atomic_load(&depth) > 0 || !atomic_exchange(&caught, false)) {
            atomic_fetch_sub(&handling, 1);
            return;
        }
    }
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    }
    else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    }
    atomic_fetch_sub(&handling, 1);
}

static bool
in_main_thread(void)
{
    return atomic_load_explicit(&main_known, memory_order_relaxed) && pthread_equal(pthread_self(), main_thread);
}

static void
install(void)
{
    struct sigaction ours = {.sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO};
    sigemptyset(&ours.sa_mask);
    sigaction(SIGINT, &ours, &before);
    installed = true;
    if (!(before.sa_flags & SA_SIGINFO) && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN)) {
        sigaction(SIGINT, &before, NULL);  /* nothing of Python's to hold back */
        installed = false;
    }
}

static void
uninstall(void)
{
    struct sigaction now;
    if (installed) {
        installed = false;
        sigaction(SIGINT, &before, &now);
        if (now.sa_sigaction != on_interrupt) {
            sigaction(SIGINT, &now, NULL);  /* the user's code has set another one: that one counts */
        }
    }
}

/* Threads that were in the handler are not here to leave it; what was noted is the parent's. */
static void
after_fork_in_child(void)
{
    main_thread = pthread_self();
    atomic_store(&handling, 0);
    atomic_store(&depth, 0);
    atomic_store(&caught, false);
    windows = 0;
    uninstall();
}

int
ndshare_shield_start(PyObject *Py_UNUSED(module))
{
    static atomic_bool registered;
    if (!atomic_exchange(&registered, true) && pthread_atfork(NULL, NULL, after_fork_in_child) != 0) {
        PyErr_SetString(PyExc_OSError, "ndshare cannot register its fork handler");
        return -1;
    }
    return 0;
}

/* Let Python's handler run for what was noted; -1 if it raised. */
static int
deliver(void)
{
    if (atomic_exchange(&caught, false)) {
        PyErr_SetInterruptEx(SIGINT);
    }
    return PyErr_CheckSignals();
}

PyObject *
ndshare_shield_main(PyObject *Py_UNUSED(module), PyObject *ident)
{
    unsigned long number = PyLong_AsUnsignedLong(ident);
    if (number == (unsigned long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    main_thread = (pthread_t)number;
    atomic_store(&main_known, true);
    Py_RETURN_NONE;
}

PyObject *
ndshare_shield_up(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (in_main_thread()) {
        if (atomic_fetch_add(&depth, 1) == 0) {
            if (windows == 0) {
                install();
            }
            while (atomic_load(&handling) > 0) {
                sched_yield();  /* another thread has seen no shield, and says so to Python */
            }
            /* What came before is raised here, not at the first line that is shielded. */
            if (PyErr_CheckSignals() < 0) {
                atomic_store(&depth, 0);
                if (windows == 0) {
                    uninstall();
                }
                if (atomic_exchange(&caught, false)) {
                    PyErr_SetInterruptEx(SIGINT);
                }
                return NULL;
            }
        }
    }
    Py_RETURN_NONE;
}

PyObject *
ndshare_shield_down(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (in_main_thread() && atomic_load(&depth) > 0 && atomic_fetch_sub(&depth, 1) == 1) {
        if (windows == 0) {
            uninstall();
        }
        if (deliver() < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

PyObject *
ndshare_shield_window(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int saved = 0;
    if (in_main_thread() && (saved = atomic_exchange(&depth, 0)) > 0) {
        if (deliver() < 0) {
            atomic_store(&depth, saved);
            return NULL;
        }
        windows++;
    }
    return PyLong_FromLong(saved);
}

PyObject *
ndshare_shield_curtain(PyObject *Py_UNUSED(module), PyObject *number)
{
    int saved = PyLong_AsInt(number);
    if (saved == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (saved > 0 && windows > 0) {  /* not in a child that was forked in between */
        windows--;
        atomic_store(&depth, saved);
        if (PyErr_CheckSignals() < 0) {  /* came through the window, not yet raised */
            return NULL;
        }
    }
    Py_RETURN_NONE;
}
