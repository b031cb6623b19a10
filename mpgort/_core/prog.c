/* prog.c — mpgort._core.Program: one program's segment as one process sees it.
 *
 * It owns the mapping and the two M slots a process may have in it, and knows nothing of what the
 * goroutines do. Python's side of the processes (_run.py, _keeper.py, _m.py) stands on it.
 *
 * TWO CTXS. `loop` belongs to the thread that runs the M's loop; `aux` to all others together: they
 * use it with the GIL held and never block in it, so one slot of kind AUX serves them all. It is
 * taken at the first use (core_ctx), for most programs never have such a thread.
 *
 * FORK. A child inherits the mapping and, by their numbers, its parent's slots; using them would be
 * two writers in one slot. So every child, whoever forks it, is detached from all programs before
 * it runs anything (forget_parent): nothing of theirs that becomes garbage there is given back a
 * second time. The keeper and the workers come back by after_fork(True), and are nobody until
 * minit(). What the parent's loop holds in Python is not freed: dropping a parent's frames here
 * would run the parent's finalizers (a temporary directory would be gone under its feet).
 *
 * The descriptor belongs to the Program from create() or attach() on: growing the heap needs it
 * (posix_fallocate), so it is open exactly as long as the mapping is there.
 *
 * DETACH unmaps and gives no slot back: M0 detaches when the segment itself is at its end, the
 * keeper and the workers of a runtime when they leave those of other runtimes that they were forked
 * with. Handles that are still alive afterwards raise; buffers from view() keep the mapping until
 * the last one is released.
 *
 * NOTHING OUTLIVES M0 (INV nothing-left). The kernel sends a signal when a process's parent dies
 * (PR_SET_PDEATHSIG). The parent of a worker is the keeper, whose death alone must not end it, so:
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
 * real-time one nobody else uses; SA_RESTART keeps it from the goroutine's system calls.
 *
 * CODES. The codec's table of code objects is the segment's while a program is current in the
 * thread (core_prog_cur), else the process-local one that frame.c has set. */
#include "proc.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

CORE_TLS CoreProg *core_prog_cur;

static PyObject *errors; /* mpgort._errors */

/* ---- errors ---------------------------------------------------------------------------------- */

static PyObject *error_class(const char *name, PyObject *other)
{
    PyObject *cls = errors ? PyObject_GetAttrString(errors, name) : NULL;
    if (cls == NULL) {
        PyErr_Clear();
        cls = Py_NewRef(other);
    }
    return cls;
}

static int raise_named(const char *name, PyObject *other, PyObject *text)
{
    PyObject *cls = error_class(name, other);
    if (text != NULL)
        PyErr_SetObject(cls, text);
    Py_XDECREF(text);
    Py_DECREF(cls);
    return -1;
}

static int out_of_memory(CoreProg *prog, int err)
{
    struct shm_hdr *h = prog->loop.hdr;
    PyObject *text;
    if (err == SHM_EGFULL)
        text = PyUnicode_FromFormat(
            "all %u goroutine slots are in use: raise it with run(..., max_goroutines=%llu)",
            h->max_g, (unsigned long long)h->max_g * 4);
    else if (err == SHM_ENOMEM)
        text = PyUnicode_FromFormat(
            "the shared heap is full: %llu of %llu bytes are in use: raise it with run(..., "
            "heap_bytes=%llu)",
            (unsigned long long)load_rlx(&h->heap_committed), /* a figure for people */
            (unsigned long long)h->heap_bytes, (unsigned long long)h->heap_bytes * 4);
    else
        text = PyUnicode_FromFormat(
            "/dev/shm has no room for more than the %llu bytes this program's heap has: make it "
            "larger (docker run --shm-size=..., mount -o remount,size=... /dev/shm); "
            "heap_bytes=%llu "
            "is only the ceiling",
            (unsigned long long)load_rlx(&h->heap_committed), /* as above */
            (unsigned long long)h->heap_bytes);
    return raise_named("OutOfSharedMemory", PyExc_MemoryError, text);
}

int core_shm_error(CoreProg *prog, int err)
{
    int saved = errno;
    switch (err) {
    case SHM_ENOMEM:
    case SHM_ENOSPC:
    case SHM_EGFULL:
        if (prog != NULL && prog->loop.hdr != NULL)
            return out_of_memory(prog, err);
        return raise_named(
            "OutOfSharedMemory", PyExc_MemoryError,
            PyUnicode_FromFormat("/dev/shm: %s: make it larger (docker run --shm-size=...) "
                                 "or ask for less: max_goroutines, heap_bytes",
                                 shm_strerror(err)));
    case SHM_EBADSEG:
        return raise_named("BadSegment", PyExc_ValueError, PyUnicode_FromString(shm_strerror(err)));
    case SHM_ECLOSED:
        return raise_named("ChanError", PyExc_RuntimeError,
                           PyUnicode_FromString(shm_strerror(err)));
    case SHM_EDEAD:
        return raise_named("Killed", PyExc_RuntimeError,
                           PyUnicode_FromString("the runtime was shut down"));
    case SHM_ETIME:
        PyErr_SetNone(PyExc_TimeoutError);
        return -1;
    case SHM_EFULL:
        PyErr_Format(PyExc_RuntimeError,
                     "a table of the segment is full: %d processes and threads, "
                     "or the code objects or wait reasons it has room for",
                     SHM_MAX_M);
        return -1;
    case SHM_ESYS:
        errno = saved;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    default:
        PyErr_Format(PyExc_RuntimeError, "%s", shm_strerror(err));
        return -1;
    }
}

static int detached(void)
{
    return raise_named("Killed", PyExc_RuntimeError,
                       PyUnicode_FromString("the runtime of this object was shut down"));
}

/* ---- ctxs ------------------------------------------------------------------------------------ */

struct shm_ctx *core_ctx(CoreProg *prog)
{
    if (!prog->attached) {
        detached();
        return NULL;
    }
    if (core_proc_cur != NULL && core_proc_cur->prog == prog && prog->loop_thread != 0)
        return &prog->loop;
    if (prog->watches)
        return &prog->loop;
    if (!prog->aux_on) {
        shm_ctx_copy(&prog->aux, &prog->loop);
        int r = shm_minit(&prog->aux, SHM_M_AUX);
        if (r < 0) {
            core_shm_error(prog, r);
            return NULL;
        }
        prog->aux_on = true;
    }
    return &prog->aux;
}

static struct core_codes local_codes;

static uint32_t codes_intern(const uint8_t hash[16], const void *payload, size_t n)
{
    if (core_prog_cur == NULL)
        return local_codes.intern(hash, payload, n);
    struct shm_ctx *c = core_ctx(core_prog_cur);
    uint32_t id;
    if (c == NULL)
        return 0;
    int r = shm_code_intern(c, hash, payload, n, &id);
    return r < 0 ? (core_shm_error(core_prog_cur, r), 0) : id;
}

static const void *codes_payload(uint32_t id, size_t *n, uint8_t hash[16])
{
    if (core_prog_cur == NULL)
        return local_codes.payload(id, n, hash);
    struct shm_ctx *c = core_ctx(core_prog_cur);
    if (c == NULL) {
        PyErr_Clear();
        return NULL;
    }
    return shm_code_payload(c, id, n, hash);
}

/* ---- INV nothing-left ------------------------------------------------------------------------ */

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
    if (timer_create(CLOCK_MONOTONIC, &ev, &pdeath.timer) < 0 || sigaction(sig, &sa, NULL) < 0 ||
        sigprocmask(SIG_UNBLOCK, &set, NULL) < 0 ||
        prctl(PR_SET_PDEATHSIG, (unsigned long)sig, 0UL, 0UL, 0UL) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (getppid() != parent)
        on_pdeath(sig);
    Py_RETURN_NONE;
}

/* ---- life ------------------------------------------------------------------------------------ */

static CoreProg *all; /* under the GIL */

/* In the child, within fork(). */
static void forget_parent(void)
{
    for (CoreProg *p = all; p != NULL; p = p->next) {
        if (!p->attached)
            continue;
        shm_ctx_forked(&p->loop);
        p->attached = p->aux_on = p->is_m0 = false;
        p->forked = true;
        p->loop_thread = 0;
        p->proc = NULL; /* left as it is: see FORK above */
    }
    core_proc_cur = NULL;
    core_prog_cur = NULL; /* who enters one renews the codec's cache */
}

static CoreProg *prog_new(PyTypeObject *type)
{
    CoreProg *p = (CoreProg *)type->tp_alloc(type, 0);
    if (p == NULL)
        return NULL;
    p->tick = Py_NewRef(Py_None);
    p->handles = PyDict_New();
    p->next = all;
    all = p;
    if (p->handles == NULL)
        Py_CLEAR(p);
    return p;
}

PyDoc_STRVAR(
    create_doc,
    "create(fd, procs, max_goroutines, heap_bytes, heavy_bytes, migrate, scrub, shake, "
    "name)\n--\n\n"
    "Sizes, formats and maps the empty shared-memory object fd, which it takes over; the caller "
    "becomes M0.");
static PyObject *prog_create(PyObject *cls, PyObject *args)
{
    int fd, scrub;
    unsigned int procs, max_g, heavy, migrate, shake;
    unsigned long long heap;
    const char *name;
    if (!PyArg_ParseTuple(args, "iIIKIIpIs", &fd, &procs, &max_g, &heap, &heavy, &migrate, &scrub,
                          &shake, &name))
        return NULL;
    CoreProg *p = prog_new((PyTypeObject *)cls);
    if (p == NULL)
        return NULL;
    struct shm_opts o = {.nprocs = procs,
                         .max_goroutines = max_g,
                         .heap_bytes = heap,
                         .migrate = migrate,
                         .scrub = (uint32_t)scrub,
                         .shake = shake,
                         .heavy_bytes = heavy,
                         .name = name};
    int r = shm_seg_create(&p->loop, fd, &o);
    if (r < 0) {
        core_shm_error(NULL, r);
        Py_DECREF(p);
        return NULL;
    }
    p->attached = p->is_m0 = true;
    /* From now on the last M to go idle asks M0 to look, unless somebody outside is counted
     * (hold). */
    store_rel(&p->loop.hdr->deadlock_on, 1); /* pairs with looks_dead() */
    return (PyObject *)p;
}

PyDoc_STRVAR(attach_doc, "attach(fd)\n--\n\nMaps an existing segment and takes fd over. Raises "
                         "BadSegment if it is not one.");
static PyObject *prog_attach(PyObject *cls, PyObject *args)
{
    int fd, watches = 0;
    if (!PyArg_ParseTuple(args, "i|p", &fd, &watches))
        return NULL;
    CoreProg *p = prog_new((PyTypeObject *)cls);
    if (p == NULL)
        return NULL;
    int r = shm_seg_attach(&p->loop, fd);
    if (r < 0) {
        core_shm_error(NULL, r);
        Py_DECREF(p);
        return NULL;
    }
    p->attached = true;
    p->watches = watches;
    return (PyObject *)p;
}

static void unmap(CoreProg *p)
{
    if (p->loop.base == NULL || p->attached || p->exports > 0)
        return;
    int fd = p->loop.fd;
    shm_seg_detach(&p->loop);
    close(fd);
}

PyDoc_STRVAR(detach_doc, "detach()\n--\n\nUnmaps; handles raise from here on. Slots that are taken "
                         "end with the segment.");
static PyObject *prog_detach(CoreProg *p, PyObject *noargs)
{
    if (!p->attached)
        Py_RETURN_NONE;
    if (p->loop_thread != 0) {
        PyErr_SetString(PyExc_RuntimeError, "detach while the program's loop runs");
        return NULL;
    }
    core_proc_free(p);
    p->aux_on = false;
    p->attached = false;
    unmap(p);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    after_fork_doc,
    "after_fork(stay)\n--\n\n"
    "In a forked child, where all handles raise. stay: the child is going to be an M of the "
    "program, and they are of use again.");
static PyObject *prog_after_fork(CoreProg *p, PyObject *args)
{
    int stay;
    if (!PyArg_ParseTuple(args, "p", &stay))
        return NULL;
    if (!p->forked)
        Py_RETURN_NONE;
    p->forked = false;
    p->attached = stay;
    Py_XSETREF(p->tick, Py_NewRef(Py_None));
    Py_RETURN_NONE;
}

static void prog_dealloc(CoreProg *p)
{
    if (p->weakrefs != NULL)
        PyObject_ClearWeakRefs((PyObject *)p);
    CoreProg **at = &all;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    core_proc_free(p);
    p->attached =
        false; /* a slot that is still taken ends with the segment, or with this process */
    unmap(p);
    Py_XDECREF(p->handles);
    Py_XDECREF(p->tick);
    Py_TYPE(p)->tp_free((PyObject *)p);
}

/* ---- an M's life ----------------------------------------------------------------------------- */

static bool usable(CoreProg *p)
{
    if (!p->attached)
        detached();
    return p->attached;
}

PyDoc_STRVAR(
    minit_doc,
    "minit(kind)\n--\n\nTakes an M slot (M_M0, M_WORKER, M_KEEPER) for this process's loop.");
static PyObject *prog_minit(CoreProg *p, PyObject *args)
{
    unsigned int kind;
    if (!PyArg_ParseTuple(args, "I", &kind) || !usable(p))
        return NULL;
    int r = shm_minit(&p->loop, kind);
    if (r < 0) {
        core_shm_error(p, r);
        return NULL;
    }
    if (kind == SHM_M_WORKER)
        core_failpoint_arm();
    return PyLong_FromUnsignedLong(p->loop.m->index);
}

PyDoc_STRVAR(mexit_doc, "mexit()\n--\n\nGives this process's slots back.");
static PyObject *prog_mexit(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    core_proc_free(p);
    if (p->aux_on)
        shm_mexit(&p->aux);
    p->aux_on = false;
    if (p->loop.m != NULL) {
        if (p->loop.p != NULL)
            shm_releasep(&p->loop);
        shm_mexit(&p->loop);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_kick_fd_doc,
             "set_kick_fd(fd)\n--\n\nThe keeper's eventfd: written to when it must look up.");
static PyObject *prog_set_kick_fd(CoreProg *p, PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i", &fd))
        return NULL;
    p->loop.kick_fd = p->aux.kick_fd = fd;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(calibrate_doc,
             "calibrate()\n--\n\nMeasures what a wake costs on this machine (under 2 ms).");
static PyObject *prog_calibrate(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
        shm_calibrate(&p->loop);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(work_doc,
             "work()\n--\n\nRuns goroutines until the program ends or this worker retires.");
static PyObject *prog_work(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    store_rel(&p->loop.m->looping, 1); /* own word, read by the keeper after a death */
    if (core_m_loop(p) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(run_main_doc,
             "run_main(fn, args, kwargs)\n--\n\nRuns fn(*args, **kwargs) as goroutine 1 here.");
static PyObject *prog_run_main(CoreProg *p, PyObject *args)
{
    PyObject *fn, *a, *kw;
    if (!PyArg_ParseTuple(args, "OO!O!", &fn, &PyTuple_Type, &a, &PyDict_Type, &kw) || !usable(p))
        return NULL;
    return core_main_loop(p, fn, a, kw);
}

/* ---- the keeper's part ----------------------------------------------------------------------- */

/* Slot + 1 of the worker with this pid, 0: it has none (not yet, or no more). */
static uint32_t slot_of(struct shm_ctx *c, uint32_t pid)
{
    for (uint32_t i = 0; i < c->hdr->max_m; i++) {
        struct shm_m *m = &c->mtab[i];
        /* acq: pairs with minit's CAS; the pid is stored after it, so it may be seen one look
         * later. */
        if (load_acq(&m->kind) == SHM_M_WORKER && load_acq(&m->pid) == pid)
            return i + 1;
    }
    return 0;
}

PyDoc_STRVAR(slot_of_doc, "slot_of(pid)\n--\n\nThe M slot of the worker with this pid, or -1.");
static PyObject *prog_slot_of(CoreProg *p, PyObject *args)
{
    unsigned int pid;
    if (!PyArg_ParseTuple(args, "I", &pid) || !usable(p))
        return NULL;
    return PyLong_FromLong((long)slot_of(&p->loop, pid) - 1);
}

PyDoc_STRVAR(
    keeper_wait_doc,
    "keeper_wait(m0_pidfd, children)\n--\n\n"
    "One round of sysmon. children: list of (slot or -1, pid, pidfd). Returns the index of one "
    "that has died, or WAIT_M0_DIED, WAIT_NOTHING, WAIT_SHUTDOWN, WAIT_SPARE, or WAIT_KILL less "
    "the index of one that is to be killed.");
static PyObject *prog_keeper_wait(CoreProg *p, PyObject *args)
{
    int m0, r;
    PyObject *list;
    if (!PyArg_ParseTuple(args, "iO!", &m0, &PyList_Type, &list) || !usable(p))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(list);
    struct shm_child *kids = PyMem_New(struct shm_child, (size_t)n + 1);
    if (kids == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        int slot;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "iii", &slot, &kids[i].pid,
                              &kids[i].pidfd)) {
            PyMem_Free(kids);
            return NULL;
        }
        kids[i].m1 = slot >= 0 ? (uint32_t)slot + 1 : slot_of(&p->loop, (uint32_t)kids[i].pid);
    }
    Py_BEGIN_ALLOW_THREADS
        r = shm_sysmon(&p->loop, m0, kids, (int)n);
    Py_END_ALLOW_THREADS
    PyMem_Free(kids);
    return PyLong_FromLong(r);
}

static void notify(struct shm_ctx *c, struct shm_m *m, uint32_t attn)
{
    or_seq(&m->attn, attn); /* before the note: who wakes by it, or is about to sleep, sees it */
    shm_notewakeup(&m->note);
}

PyDoc_STRVAR(recycle_doc,
             "recycle(slot, pid)\n--\n\nAsks the worker of that slot, if it is still this "
             "process, to leave: it takes no more\ngoroutines and goes when nothing is at home.");
static PyObject *prog_recycle(CoreProg *p, PyObject *args)
{
    unsigned int slot, pid;
    if (!PyArg_ParseTuple(args, "II", &slot, &pid) || !usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    /* It may have gone just now, and its successor be asked: that one leaves as well. */
    if (slot < load_acq(&c->hdr->max_m) && load_acq(&c->mtab[slot].kind) == SHM_M_WORKER &&
        load_acq(&c->mtab[slot].pid) == pid) /* pair with minit's */
        notify(c, &c->mtab[slot], SHM_ATTN_RECYCLE);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(kill_again_doc,
             "kill_again(slot)\n--\n\nNew keeper only: what its predecessor was to kill "
             "this M for is looked at anew.");
static PyObject *prog_kill_again(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I", &slot) || !usable(p))
        return NULL;
    if (slot >= p->loop.hdr->max_m)
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    p->loop.mtab[slot].kill_ns = 0; /* the keeper's own word */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(kill_check_doc, "kill_check(slot)\n--\n\nThe process of this M is stopped: is the "
                             "goroutine it is to be killed for there?");
static PyObject *prog_kill_check(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I", &slot) || !usable(p))
        return NULL;
    if (slot >= p->loop.hdr->max_m)
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    return PyBool_FromLong(shm_kill_check(&p->loop, slot + 1));
}

PyDoc_STRVAR(
    reap_doc,
    "reap(slot, wait_status)\n--\n\n"
    "Keeper only: the process of this M slot has ended. Ends the goroutines that were running or "
    "at home there, gives everything else back. True: it had come to its loop.");
static PyObject *prog_reap(CoreProg *p, PyObject *args)
{
    unsigned int slot;
    int status;
    if (!PyArg_ParseTuple(args, "Ii", &slot, &status) || !usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    if (slot >= c->hdr->max_m)
        return PyErr_Format(PyExc_ValueError, "no M slot %u", slot);
    bool looping =
        load_acq(&c->mtab[slot].looping); /* a dead M's word: nobody writes it any more */
    shm_reap(c, &c->mtab[slot], status);
    return PyBool_FromLong(looping);
}

PyDoc_STRVAR(replaced_doc, "replaced()\n--\n\nKeeper only: counts a worker that takes another's "
                           "place.");
static PyObject *prog_replaced(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    add_acqrel(&p->loop.hdr->replaced, 1);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(shutdown_doc,
             "shutdown()\n--\n\nEnds the program: every M leaves its loop at its next look.");
static PyObject *prog_shutdown(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    store_rel(&c->hdr->shutdown, 1); /* pairs with the load_acq in attend(), findrunnable, sysmon */
    for (uint32_t i = 0; i < c->hdr->max_m; i++)
        if (load_acq(&c->mtab[i].kind) != SHM_M_FREE) /* pairs with minit's CAS */
            notify(c, &c->mtab[i], SHM_ATTN_SHUTDOWN);
    if (c->kick_fd >= 0) {
        uint64_t one = 1;
        ssize_t n = write(c->kick_fd, &one, sizeof one);
        (void)n; /* full: it is awake anyhow */
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    forget_doc,
    "forget()\n--\n\nDrops the goroutines that the program's end found at home in this process.");
static PyObject *prog_forget(CoreProg *p, PyObject *noargs)
{
    if (p->loop_thread == 0)
        core_proc_free(p);
    Py_RETURN_NONE;
}

/* ---- looking at it --------------------------------------------------------------------------- */

PyDoc_STRVAR(
    drain_wait_doc,
    "drain_wait(seconds)\n--\n\n"
    "True when no goroutine runs or can run again and no timer is pending, nobody from outside "
    "being counted; False if that takes longer. M0 only, while no loop runs in it.");
static PyObject *prog_drain_wait(CoreProg *p, PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "d", &seconds) || !usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    /* Clear, look, sleep: the last M that falls asleep after our look sets the note. */
    shm_noteclear(&c->m->note);
    if (shm_checkdead(c))
        Py_RETURN_TRUE;
    Py_BEGIN_ALLOW_THREADS
        shm_notetsleep(&c->m->note, (int64_t)(seconds * 1e9));
    Py_END_ALLOW_THREADS
    and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_CHECKDEAD);
    return PyBool_FromLong(shm_checkdead(c));
}

PyDoc_STRVAR(
    hold_doc,
    "hold(n)\n--\n\nAdds n to the outside wakers that keep a program without work from being "
    "taken for a deadlock.");
static PyObject *prog_hold(CoreProg *p, PyObject *args)
{
    int n;
    if (!PyArg_ParseTuple(args, "i", &n) || !usable(p))
        return NULL;
    add_acqrel(&p->loop.hdr->externs, (uint32_t)n); /* pairs with the load in shm_checkdead */
    Py_RETURN_NONE;
}

PyDoc_STRVAR(slots_doc,
             "slots()\n--\n\nThe M slots in use: list of (slot, kind, pid, goid it runs or 0).");
static PyObject *prog_slots(CoreProg *p, PyObject *noargs)
{
    if (!usable(p))
        return NULL;
    struct shm_ctx *c = &p->loop;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list != NULL && i < c->hdr->max_m; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_acq(&m->kind); /* pairs with minit's CAS */
        if (kind == SHM_M_FREE)
            continue;
        uint64_t g = load_acq(&m->curg); /* a look from outside: the goid may be the next one's */
        uint64_t goid = g != 0 && shm_gidx(g) < c->hdr->max_g ? shm_g(c, g)->goid : 0;
        PyObject *row = Py_BuildValue("IIIK", i, kind, load_acq(&m->pid), (unsigned long long)goid);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

/* Each run of clang-format lays them out in another way. */
/* clang-format off */
#define COUNTERS(X) \
    X(allocs) X(frees) X(alloc_bytes) X(free_bytes) X(cont_allocs) X(cont_frees) X(spawned) \
    X(finished) X(parks) X(readies) X(executed) X(steals) X(stolen) \
    X(wakes) X(useful_wakes) X(useless_wakes) X(sleeps) X(moves) X(home_parks) \
    X(offloads) X(busy_ns) X(panics) X(preempted)
/* clang-format on */

static int put(PyObject *d, const char *key, unsigned long long v)
{
    PyObject *o = PyLong_FromUnsignedLongLong(v);
    int r = o != NULL ? PyDict_SetItemString(d, key, o) : -1;
    Py_XDECREF(o);
    return r;
}

PyDoc_STRVAR(
    stats_doc,
    "stats()\n--\n\nThe counters summed over all Ms ever, the heap's figures, and under 'ms' a row "
    "per living M.");
static PyObject *prog_stats(CoreProg *p, PyObject *noargs)
{
    struct shm_ctx *c = core_ctx(p);
    if (c == NULL)
        return NULL;
    PyObject *d = PyDict_New(), *rows = PyList_New(0);
    if (d == NULL || rows == NULL)
        goto fail;
    /* Each counter has one writer; relaxed: the sums are of about now, not of one instant. */
#define X(name)                                      \
    {                                                \
        unsigned long long sum = 0;                  \
        for (uint32_t i = 0; i < c->hdr->max_m; i++) \
            sum += load_rlx(&c->mtab[i].st.name);    \
        if (put(d, #name, sum) < 0)                  \
            goto fail;                               \
    }
    COUNTERS(X)
#undef X
    struct shm_heap_stats hs;
    shm_heap_stats(c, &hs);
    if (put(d, "live_blocks", hs.live_blocks) < 0 || put(d, "live_bytes", hs.live_bytes) < 0 ||
        put(d, "live_conts", hs.live_conts) < 0 || put(d, "committed", hs.committed) < 0 ||
        put(d, "large_bytes", hs.large_bytes) < 0 || put(d, "heap_bytes", c->hdr->heap_bytes) < 0 ||
        put(d, "deaths", load_acq(&c->hdr->deaths)) < 0 || /* as above */
        put(d, "replacements", load_acq(&c->hdr->replaced)) < 0 ||
        put(d, "recycled", load_acq(&c->hdr->recycled)) < 0 ||
        put(d, "procs", c->hdr->nprocs) < 0 || put(d, "wake_cost_ns", c->hdr->wake_cost_ns) < 0)
        goto fail;
    for (uint32_t i = 0; i < c->hdr->max_m; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_acq(&m->kind); /* pairs with minit's CAS */
        if (kind == SHM_M_FREE)
            continue;
        PyObject *row = PyDict_New();
        int bad = row == NULL || put(row, "slot", i) < 0 || put(row, "kind", kind) < 0 ||
                  put(row, "pid", load_acq(&m->pid)) < 0;
#define X(name) bad = bad || put(row, #name, load_rlx(&m->st.name)) < 0; /* as above */
        COUNTERS(X)
#undef X
        bad = bad || PyList_Append(rows, row) < 0;
        Py_XDECREF(row);
        if (bad)
            goto fail;
    }
    if (PyDict_SetItemString(d, "ms", rows) < 0)
        goto fail;
    Py_DECREF(rows);
    return d;
fail:
    Py_XDECREF(d);
    Py_XDECREF(rows);
    return NULL;
}

PyDoc_STRVAR(reason_text_doc, "reason_text(reason)\n--\n\nThe text of a wait reason's number.");
static PyObject *prog_reason_text(CoreProg *p, PyObject *o)
{
    struct shm_ctx *c = core_ctx(p);
    unsigned long n = PyLong_AsUnsignedLong(o);
    if (c == NULL || PyErr_Occurred())
        return NULL;
    const char *text = shm_reason_text(c, (unsigned)n);
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

PyDoc_STRVAR(schedtrace_doc, "schedtrace()\n--\n\nGo's SCHED line of the program now.");
static PyObject *prog_schedtrace(CoreProg *p, PyObject *noargs)
{
    char buf[8192];
    if (!usable(p))
        return NULL;
    return PyUnicode_FromStringAndSize(buf, (Py_ssize_t)shm_schedtrace(&p->loop, buf, sizeof buf));
}

static void collect(void *list, const char *text)
{
    PyObject *s = PyUnicode_FromString(text);
    if (s == NULL || PyList_Append(list, s) < 0)
        PyErr_Clear();
    Py_XDECREF(s);
}

PyDoc_STRVAR(check_doc, "check(quiet)\n--\n\nWalks the segment; a list of texts, one per breach of "
                        "an invariant. quiet: the "
                        "program has ended, nothing may be left.");
static PyObject *prog_check(CoreProg *p, PyObject *args)
{
    int quiet;
    if (!PyArg_ParseTuple(args, "p", &quiet) || !usable(p))
        return NULL;
    PyObject *list = PyList_New(0);
    if (list != NULL)
        shm_check(&p->loop, quiet, collect, list);
    return list;
}

PyDoc_STRVAR(layout_doc,
             "layout()\n--\n\nThe segment's structs: list of (table, field, dtype, offset, size).");
static PyObject *prog_layout(PyObject *cls, PyObject *noargs)
{
    size_t n;
    const struct shm_field *f = shm_layout(&n);
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (size_t i = 0; list != NULL && i < n; i++) {
        PyObject *row =
            Py_BuildValue("sssII", f[i].table, f[i].field, f[i].dtype, f[i].offset, f[i].size);
        if (row == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, row);
    }
    return list;
}

static int prog_getbuffer(PyObject *o, Py_buffer *b, int flags)
{
    CoreProg *p = (CoreProg *)o;
    if (!p->attached)
        return detached();
    if (PyBuffer_FillInfo(b, o, p->loop.base, (Py_ssize_t)p->loop.mapped, 1, flags) < 0)
        return -1;
    p->exports++;
    return 0;
}

void core_unexport(CoreProg *p)
{
    p->exports--;
    unmap(p);
}

static void prog_releasebuffer(PyObject *o, Py_buffer *b)
{
    core_unexport((CoreProg *)o);
}

PyDoc_STRVAR(
    view_doc,
    "view()\n--\n\nThe whole mapping as a read-only memoryview. Reading a page that has no "
    "memory yet gives it some: stay below what the header says is committed.");
static PyObject *prog_view(PyObject *p, PyObject *noargs)
{
    return PyMemoryView_FromObject(p);
}

/* ---- attributes ------------------------------------------------------------------------------ */

enum { A_FD, A_PID0, A_PROCS, A_SHUTDOWN, A_NAME, A_M0_SLOT, A_ATTACHED };
static PyObject *prog_get(CoreProg *p, void *which)
{
    if ((intptr_t)which == A_ATTACHED)
        return PyBool_FromLong(p->attached);
    if (!usable(p))
        return NULL;
    struct shm_hdr *h = p->loop.hdr;
    switch ((intptr_t)which) {
    case A_FD:
        return PyLong_FromLong(p->loop.fd);
    case A_PID0:
        return PyLong_FromUnsignedLong(h->pid0);
    case A_PROCS:
        return PyLong_FromUnsignedLong(h->nprocs);
    case A_M0_SLOT:
        return PyLong_FromUnsignedLong(h->m0_slot);
    case A_SHUTDOWN:
        return PyBool_FromLong(load_acq(&h->shutdown) != 0); /* pairs with shutdown() */
    default:
        return PyUnicode_DecodeUTF8(h->name, (Py_ssize_t)strnlen(h->name, sizeof h->name),
                                    "replace");
    }
}

static PyObject *get_tick(CoreProg *p, void *closure)
{
    return Py_NewRef(p->tick);
}
static int set_tick(CoreProg *p, PyObject *v, void *closure)
{
    Py_XSETREF(p->tick, Py_NewRef(v ? v : Py_None));
    return 0;
}

static PyObject *get_limit(CoreProg *p, void *rss)
{
    return PyLong_FromUnsignedLongLong(rss ? p->max_rss : p->max_tasks);
}
static int set_limit(CoreProg *p, PyObject *v, void *rss)
{
    unsigned long long n = v ? PyLong_AsUnsignedLongLong(v) : 0;
    if (PyErr_Occurred())
        return -1;
    *(rss ? &p->max_rss : &p->max_tasks) = n;
    return 0;
}

#define GET(name, which, doc) {name, (getter)prog_get, NULL, doc, (void *)(intptr_t)which}
static PyGetSetDef prog_getset[] = {
    GET("fd", A_FD, "descriptor of the segment"),
    GET("pid0", A_PID0, "pid of M0"),
    GET("procs", A_PROCS, "number of worker Ps"),
    GET("m0_slot", A_M0_SLOT, "M slot of M0"),
    GET("ended", A_SHUTDOWN, "shutdown has been asked for"),
    GET("name", A_NAME, "the program's name"),
    GET("attached", A_ATTACHED, "the mapping is there"),
    {"tick", (getter)get_tick, (setter)set_tick,
     "called by M0 about every 100 ms, whatever it waits for", NULL},
    {"max_tasks", (getter)get_limit, (setter)set_limit, "goroutines after which a worker retires",
     NULL},
    {"max_rss", (getter)get_limit, (setter)set_limit, "bytes at which a worker retires", (void *)1},
    {NULL},
};

#define METHOD(name, flags) {#name, (PyCFunction)(void *)prog_##name, flags, name##_doc}
static PyMethodDef prog_methods[] = {
    METHOD(create, METH_VARARGS | METH_CLASS),
    METHOD(attach, METH_VARARGS | METH_CLASS),
    METHOD(detach, METH_NOARGS),
    METHOD(after_fork, METH_VARARGS),
    METHOD(minit, METH_VARARGS),
    METHOD(mexit, METH_NOARGS),
    METHOD(set_kick_fd, METH_VARARGS),
    METHOD(calibrate, METH_NOARGS),
    METHOD(work, METH_NOARGS),
    METHOD(run_main, METH_VARARGS),
    METHOD(slot_of, METH_VARARGS),
    METHOD(keeper_wait, METH_VARARGS),
    METHOD(kill_check, METH_VARARGS),
    METHOD(recycle, METH_VARARGS),
    METHOD(kill_again, METH_VARARGS),
    METHOD(reap, METH_VARARGS),
    METHOD(replaced, METH_NOARGS),
    METHOD(shutdown, METH_NOARGS),
    METHOD(forget, METH_NOARGS),
    METHOD(drain_wait, METH_VARARGS),
    METHOD(hold, METH_VARARGS),
    METHOD(slots, METH_NOARGS),
    METHOD(stats, METH_NOARGS),
    METHOD(schedtrace, METH_NOARGS),
    METHOD(reason_text, METH_O),
    METHOD(check, METH_VARARGS),
    METHOD(layout, METH_NOARGS | METH_STATIC),
    METHOD(view, METH_NOARGS),
    {NULL},
};

static PyBufferProcs prog_buffer = {prog_getbuffer, prog_releasebuffer};

PyTypeObject CoreProg_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.Program",
    .tp_basicsize = sizeof(CoreProg),
    .tp_dealloc = (destructor)prog_dealloc,
    .tp_as_buffer = &prog_buffer,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One program's segment as this process sees it.",
    .tp_weaklistoffset = offsetof(CoreProg, weakrefs),
    .tp_methods = prog_methods,
    .tp_getset = prog_getset,
};

PyDoc_STRVAR(current_doc,
             "current()\n--\n\nThe program whose goroutine the calling thread runs, or None.");
static PyObject *current(PyObject *self, PyObject *noargs)
{
    return Py_NewRef(core_prog_cur ? (PyObject *)core_prog_cur : Py_None);
}

static PyMethodDef functions[] = {
    {"current", current, METH_NOARGS, current_doc},
    {"arm_pdeathsig", arm_pdeathsig, METH_VARARGS, arm_pdeathsig_doc},
    {NULL},
};

int core_prog_init(PyObject *mod)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"M_M0", SHM_M_M0},           {"M_WORKER", SHM_M_WORKER}, {"M_KEEPER", SHM_M_KEEPER},
        {"M_AUX", SHM_M_AUX},         {"WAIT_M0_DIED", -1},       {"WAIT_NOTHING", -2},
        {"WAIT_SHUTDOWN", -3},        {"WAIT_SPARE", -4},         {"WAIT_KILL", SHM_SYSMON_KILL},
        {"MAX_PROCS", SHM_MAX_P - 1},
    };
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(mod, constants[i].name, constants[i].value) < 0)
            return -1;
    if (errors == NULL && (errors = PyImport_ImportModule("mpgort._errors")) == NULL)
        return -1;
    if (local_codes.intern == NULL) {
        local_codes = core_codes;
        core_codes = (struct core_codes){codes_intern, codes_payload};
        if ((errno = pthread_atfork(NULL, NULL, forget_parent)) != 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    return PyModule_AddFunctions(mod, functions) < 0 ? -1 : PyModule_AddType(mod, &CoreProg_Type);
}
