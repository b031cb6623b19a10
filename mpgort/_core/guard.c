/* guard.c — a monitor's process: what it looks at may be damaged, or be cut short under its eyes.
 *
 * A page of a mapping whose file has been cut short is SIGBUS at the load, and loads are
 * everywhere: in shm/, in numpy's views of the tables. So the process has a handler for it. A fault
 * in a watched mapping lays fresh memory over it from that page to its end, and says so (`cut`);
 * the load goes on and reads zeros, which are damage like any other: they are checked before they
 * are followed. Who watches asks core_guard_cut() when he has looked, and throws away what he has
 * seen. Any other SIGBUS goes to whoever was there before.
 *
 * Rejected: to read the segment by pread only (all of shm/'s readers take pointers), and to jump
 * out of the handler (out of Python's own frames).
 *
 * A COMMAND that has to be an M, to trace, takes locks of the segment's and follows what it finds
 * as an M does. There damage may be met that shm_throw() tells of, that leads out of the segment,
 * or a lock that nobody gives back: guard_alone() makes one line and an exit status of each. */
#include "core.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define WATCHED 1024 /* mappings at once */

static struct watched {
    uint8_t *_Atomic base; /* NULL: free; last, when a place is taken */
    size_t bytes;
    _Atomic uint32_t cut;
} watched[WATCHED];
static struct sigaction before;
static bool installed;

static void on_bus(int sig, siginfo_t *info, void *where)
{
    int saved = errno;
    uint8_t *at = info->si_addr;
    for (struct watched *w = watched; info->si_code > 0 && w < watched + WATCHED; w++) {
        uint8_t *base = load_acq(&w->base); /* pairs with core_guard_watch() */
        if (base == NULL || at < base || at >= base + w->bytes)
            continue;
        uint8_t *page = at - (uintptr_t)at % PAGE;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE;
        store_rel(&w->cut, 1); /* read by the thread that faults here, when it is done */
        if (mmap(page, (size_t)(base + w->bytes - page), PROT_READ | PROT_WRITE, flags, -1, 0) ==
                MAP_FAILED &&
            mmap(page, PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
            break;
        errno = saved;
        return;
    }
    core_signal_pass(&before, sig, info, where);
    errno = saved;
}

int core_guard_watch(const struct shm_ctx *c)
{
    for (struct watched *w = watched; w < watched + WATCHED; w++) {
        if (load_rlx(&w->base) != NULL) /* changes under the GIL */
            continue;
        w->bytes = c->mapped;
        store_rlx(&w->cut, 0);
        store_rel(&w->base, c->base); /* publishes the above; pairs with on_bus() */
        if (!installed) {
            struct sigaction sa = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
            sigemptyset(&sa.sa_mask);
            installed = sigaction(SIGBUS, NULL, &before) == 0 && sigaction(SIGBUS, &sa, NULL) == 0;
        }
        return 0;
    }
    PyErr_Format(PyExc_RuntimeError, "%d segments are being looked at", WATCHED);
    return -1;
}

static struct watched *place_of(const struct shm_ctx *c)
{
    struct watched *w = watched;
    while (w < watched + WATCHED && load_rlx(&w->base) != c->base) /* as above */
        w++;
    return w < watched + WATCHED ? w : NULL;
}

void core_guard_leave(const struct shm_ctx *c)
{
    struct watched *w = place_of(c);
    if (w != NULL)
        store_rel(&w->base, NULL); /* before the mapping goes */
}

bool core_guard_cut(const struct shm_ctx *c)
{
    const struct watched *w = place_of(c);
    return w != NULL && load_acq(&w->cut);
}

/* ---- a command ------------------------------------------------------------------------------- */

static void say(const char *text)
{
    ssize_t n = write(2, text, strlen(text));
    (void)n;
}

static void on_throw(const char *text)
{
    char line[600];
    snprintf(line, sizeof line, "mpgort: the segment is damaged: %s\n", text);
    say(line);
    _exit(2);
}

static void on_signal(int sig)
{
    if (sig == SIGALRM)
        say("mpgort: no answer: the segment is damaged, or its program stands still\n");
    else
        say("mpgort: the segment is damaged: what stands in it leads out of it\n");
    _exit(2);
}

static PyObject *guard_alone(PyObject *mod, PyObject *args)
{
    static struct sigaction was[2];
    static const int sigs[2] = {SIGALRM, SIGSEGV};
    unsigned int seconds;
    if (!PyArg_ParseTuple(args, "I:guard_alone", &seconds))
        return NULL;
    bool on = shm_throw_hook == on_throw;
    struct sigaction sa = {.sa_handler = on_signal};
    sigemptyset(&sa.sa_mask);
    alarm(0);
    for (int i = 0; i < 2 && on != (seconds != 0); i++)
        sigaction(sigs[i], seconds ? &sa : &was[i], seconds ? &was[i] : NULL);
    shm_throw_hook = seconds ? on_throw : NULL;
    alarm(seconds);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"guard_alone", guard_alone, METH_VARARGS,
     "guard_alone(seconds)\n--\n\nThis process does nothing but look at a program. From here on "
     "what is found broken in a segment,\nor no end within so many seconds, is a line on stderr "
     "and the exit status 2; 0: no more."},
    {NULL},
};

int core_guard_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, functions);
}
