/* How the system sees this process: a few words that are compared with what they were before.
 *
 *   here      per message, at the caller's: where it is, and where its output goes
 *   standing  per map and per pool, in a worker: has a task left an alarm, a limit, another user?
 *
 * Nothing here says what has changed: that is looked for once it is known that something has.
 */
#include "standing.h"

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

struct file {
    uint64_t device, inode;
};

static struct file
file_of(int failed, const struct stat *status)
{
    struct file file = {0, 0};
    if (!failed) {
        file.device = status->st_dev;
        file.inode = status->st_ino;
    }
    return file;
}

/* os.getcwd() gives up the GIL and walks the tree: too dear per message. */
PyObject *
ndshare_standing_here(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct file files[3];
    struct stat status;
    files[0] = file_of(stat(".", &status), &status);
    files[1] = file_of(fstat(STDOUT_FILENO, &status), &status);
    files[2] = file_of(fstat(STDERR_FILENO, &status), &status);
    return PyBytes_FromStringAndSize((const char *)files, sizeof files);
}

PyObject *
ndshare_standing_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct {
        sigset_t mask;
        struct itimerval timers[3];
        struct rlimit limits[RLIM_NLIMITS];
        uid_t users[3];
        gid_t groups[3];
        pid_t group, session;
        int policy, niceness;
        struct sched_param priority;
        struct file root;
    } all;
    memset(&all, 0, sizeof all);
    sigprocmask(SIG_BLOCK, NULL, &all.mask);
    getitimer(ITIMER_REAL, &all.timers[0]);
    getitimer(ITIMER_VIRTUAL, &all.timers[1]);
    getitimer(ITIMER_PROF, &all.timers[2]);
    for (int limit = 0; limit < (int)RLIM_NLIMITS; limit++) {
        getrlimit(limit, &all.limits[limit]);
    }
    if (getresuid(&all.users[0], &all.users[1], &all.users[2]) != 0 ||
        getresgid(&all.groups[0], &all.groups[1], &all.groups[2]) != 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    all.group = getpgrp();
    all.session = getsid(0);
    all.policy = sched_getscheduler(0);
    sched_getparam(0, &all.priority);
    all.niceness = getpriority(PRIO_PROCESS, 0);
    struct stat status;
    all.root = file_of(stat("/", &status), &status);
    return PyBytes_FromStringAndSize((const char *)&all, sizeof all);
}
