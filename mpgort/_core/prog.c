/* prog.c — mpgort._core.Program: one program's segment as one process sees it: how it is made,
 * mapped and left. How an M comes and goes in it is mstart.c, what the keeper does with it
 * keeper.c, what is seen of it stats.c.
 *
 * It owns the mapping and the two M slots a process may have in it, and knows nothing of what the
 * goroutines do. Python's side of the processes (_host.py, _keeper.py, _m.py) stands on it.
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
 * would run the parent's finalizers (a temporary directory would be gone under its feet). Any other
 * child gives up the mapping (after_fork(False)), so that the segment does not live as long as it
 * does; an array that it has from there keeps it. One that comes back to the loop it was forked
 * under ends there, core_forked_end().
 *
 * The descriptor belongs to the Program from create() or attach() on: growing the heap needs it
 * (posix_fallocate), so it is open exactly as long as the mapping is there.
 *
 * DETACH unmaps and gives no slot back: M0 detaches when the segment itself is at its end, the
 * keeper and the workers of a runtime when they leave those of other runtimes that they were forked
 * with. Handles that are still alive afterwards raise; buffers from view() keep the mapping until
 * the last one is released.
 *
 * CODES. The codec's table of code objects is the segment's while a program is current in the
 * thread (core_prog_cur), else the process-local one that frame.c has set. */
#include "prog.h"
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

CORE_TLS CoreProg *core_prog_cur;

/* ---- ctxs ------------------------------------------------------------------------------------ */

struct shm_ctx *core_ctx(CoreProg *prog)
{
    if (!prog->attached) {
        core_detached();
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

/* Of what has just been looked at, or is going to be. */
static bool sound(const CoreProg *p)
{
    bool cut = p->guarded && core_guard_cut(&p->loop);
    if (cut)
        core_bad_segment("it was cut short while it was looked at");
    return !cut;
}

bool core_prog_usable(CoreProg *p)
{
    char why[SHM_WHY_BYTES];
    if (!p->attached)
        return core_detached() == 0;
    if (!sound(p))
        return false;
    return !p->watches || shm_seg_look(&p->loop, why) == SHM_OK || core_bad_segment(why) == 0;
}

PyObject *core_prog_seen(CoreProg *p, PyObject *o)
{
    if (o != NULL && !sound(p))
        Py_CLEAR(o);
    return o;
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
    p->known = Py_NewRef(Py_None);
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
    store_rel(&p->loop.hdr->deadlock_on, 1); /* pairs with shm_looks_dead() */
    return (PyObject *)p;
}

PyDoc_STRVAR(
    attach_doc,
    "attach(fd, watches=False, guarded=False)\n--\n\nMaps an existing segment and takes fd "
    "over. watches: for reading only, without an M slot.\nguarded (implied): it may be cut "
    "short meanwhile. Raises BadSegment if it is none, damaged, another\nuser's or open to "
    "others.");
static PyObject *prog_attach(PyObject *cls, PyObject *args)
{
    int fd, watches = 0, guarded = 0;
    char why[SHM_WHY_BYTES];
    if (!PyArg_ParseTuple(args, "i|pp", &fd, &watches, &guarded))
        return NULL;
    CoreProg *p = prog_new((PyTypeObject *)cls);
    if (p == NULL)
        return NULL;
    int r = watches ? shm_seg_watch(&p->loop, fd, why) : shm_seg_attach(&p->loop, fd, why);
    if (r < 0) {
        if (r == SHM_EBADSEG)
            core_bad_segment(why);
        else
            core_shm_error(NULL, r);
        Py_DECREF(p);
        return NULL;
    }
    p->watches = watches;
    p->guarded = watches || guarded;
    if (p->guarded && core_guard_watch(&p->loop) < 0) {
        shm_seg_detach(&p->loop);
        Py_DECREF(p);
        return NULL;
    }
    p->attached = true;
    return (PyObject *)p;
}

static void unmap(CoreProg *p)
{
    if (p->loop.base == NULL || p->attached || p->exports > 0)
        return;
    int fd = p->loop.fd;
    if (p->guarded)
        core_guard_leave(&p->loop);
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
    unmap(p);
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
    Py_XDECREF(p->known);
    Py_TYPE(p)->tp_free((PyObject *)p);
}

static int prog_getbuffer(PyObject *o, Py_buffer *b, int flags)
{
    CoreProg *p = (CoreProg *)o;
    if (!p->attached)
        return core_detached();
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

enum { A_FD, A_PID0, A_PROCS, A_SHUTDOWN, A_NAME, A_ID, A_M0_SLOT, A_ATTACHED };
static PyObject *prog_get(CoreProg *p, void *which)
{
    if ((intptr_t)which == A_ATTACHED)
        return PyBool_FromLong(p->attached);
    if (!core_prog_usable(p))
        return NULL;
    struct shm_hdr *h = p->loop.hdr;
    switch ((intptr_t)which) {
    case A_FD:
        return PyLong_FromLong(p->loop.fd);
    case A_PID0:
        return PyLong_FromUnsignedLong(h->pid0);
    case A_PROCS:
        return PyLong_FromUnsignedLong(load_rlx(&h->nprocs));
    case A_M0_SLOT:
        return PyLong_FromUnsignedLong(h->m0_slot);
    case A_SHUTDOWN:
        return PyBool_FromLong(load_acq(&h->shutdown) != 0); /* pairs with shutdown() */
    case A_ID:
        return PyUnicode_FromFormat("%u-%llu", h->pid0, (unsigned long long)h->start_ns);
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

static PyObject *get_known(CoreProg *p, void *closure)
{
    return Py_NewRef(p->known);
}
static int set_known(CoreProg *p, PyObject *v, void *closure)
{
    static uint64_t last;
    Py_XSETREF(p->known, Py_NewRef(v ? v : Py_None));
    p->known_id = v != NULL && v != Py_None ? ++last : 0;
    core_codes_changed();
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
    GET("id", A_ID, "as no other program of this machine has, since it was booted"),
    GET("attached", A_ATTACHED, "the mapping is there"),
    {"tick", (getter)get_tick, (setter)set_tick,
     "called by M0 about every 100 ms, whatever it waits for", NULL},
    {"known", (getter)get_known, (setter)set_known,
     "what the workers have as __main__, if this is M0 and there are any", NULL},
    {"max_tasks", (getter)get_limit, (setter)set_limit, "goroutines after which a worker retires",
     NULL},
    {"max_rss", (getter)get_limit, (setter)set_limit, "bytes at which a worker retires", (void *)1},
    {NULL},
};

/* This file's; then those of the others, put behind by core_prog_init(). */
static PyMethodDef prog_methods[40] = {
    PROG_METHOD(create, METH_VARARGS | METH_CLASS),
    PROG_METHOD(attach, METH_VARARGS | METH_CLASS),
    PROG_METHOD(detach, METH_NOARGS),
    PROG_METHOD(after_fork, METH_VARARGS),
    PROG_METHOD(view, METH_NOARGS),
    {"pickled", (PyCFunction)core_pickled, METH_NOARGS,
     "pickled()\n--\n\nThe Dict of the handles that were pickled: each has a name there."},
};

static void add_methods(const PyMethodDef *more)
{
    PyMethodDef *to = prog_methods;
    while (to->ml_name != NULL)
        to++;
    while (more->ml_name != NULL)
        *to++ = *more++;
}

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
    if (local_codes.intern == NULL) {
        add_methods(core_prog_mstart);
        add_methods(core_prog_keeper);
        add_methods(core_prog_look);
        local_codes = core_codes;
        core_codes = (struct core_codes){codes_intern, codes_payload};
        if ((errno = pthread_atfork(NULL, NULL, forget_parent)) != 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    return PyModule_AddFunctions(mod, functions) < 0 ? -1 : PyModule_AddType(mod, &CoreProg_Type);
}
