/* pdeath.c — INV nothing-left: no process of a program outlives M0. The kernel sends a signal when
 * a process's parent dies (PR_SET_PDEATHSIG). The parent of a worker is the keeper, whose death
 * alone must not end it, so:
 *   1 the handler looks at M0's pidfd, which every process has inherited: readable, M0 is dead,
 *     _exit;
 *   2 M0 lives: the keeper was killed, init is the parent now and no further signal will come, so
 *     the handler starts a timer that sends the same signal every 200 ms, and each looks again at
 *     1;
 *   3 the parent may have died before the signal was asked for: arm_pdeathsig() does 1 once by
 *     itself.
 * Rejected: a thread that waits for the pidfd (os.fork() warns in a process that has threads),
 * making M0 a subreaper (the caller's own daemons would become its children). Only
 * async-signal-safe calls stand in the handler: poll, timer_settime, _exit. The signal is a
 * real-time one nobody else uses; SA_RESTART keeps it from the goroutine's system calls. */
#include "core.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PDEATH_LOOK_NS 200000000L

static struct {
    int pidfd;
    timer_t timer;
} pdeath;

static bool pidfd_dead(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

static void on_pdeath(int sig)
{
    (void)sig;
    int saved = errno;
    if (pidfd_dead(pdeath.pidfd))
        _exit(0);
    struct itimerspec each = {.it_value.tv_nsec = PDEATH_LOOK_NS,
                              .it_interval.tv_nsec = PDEATH_LOOK_NS};
    timer_settime(pdeath.timer, 0, &each, NULL);
    errno = saved;
}

PyDoc_STRVAR(
    arm_pdeathsig_doc,
    "arm_pdeathsig(m0_pidfd, parent)\n--\n\n"
    "From now on this process ends when the process behind m0_pidfd does, even if the parent "
    "has ended before it. `parent` is the pid of the process that made this one.");
static PyObject *arm_pdeathsig(PyObject *self, PyObject *args)
{
    int pidfd, parent;
    if (!PyArg_ParseTuple(args, "ii", &pidfd, &parent))
        return NULL;
    int sig = SIGRTMAX - 3;
    pdeath.pidfd = pidfd;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = sig};
    struct sigaction sa = {.sa_handler = on_pdeath, .sa_flags = SA_RESTART};
    sigset_t set;
    sigemptyset(&sa.sa_mask);
    sigemptyset(&set);
    sigaddset(&set, sig);
    if (timer_create(CLOCK_MONOTONIC, &ev, &pdeath.timer) < 0) {
        PyObject *why = Py_BuildValue("(is)", errno,
                                      "no timer for a process of the program: each counts as a "
                                      "pending signal: raise ulimit -i");
        if (why != NULL)
            PyErr_SetObject(PyExc_OSError, why);
        Py_XDECREF(why);
        return NULL;
    }
    if (sigaction(sig, &sa, NULL) < 0 || sigprocmask(SIG_UNBLOCK, &set, NULL) < 0 ||
        prctl(PR_SET_PDEATHSIG, (unsigned long)sig, 0UL, 0UL, 0UL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (getppid() != parent)
        on_pdeath(sig);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"arm_pdeathsig", arm_pdeathsig, METH_VARARGS, arm_pdeathsig_doc},
    {NULL},
};

int core_pdeath_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, functions);
}
