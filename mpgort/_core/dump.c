/* dump.c — what a goroutine is doing, for people: the rows behind every dump, Deadlock and status.
 *
 * Nobody is stopped. A parked light goroutine's frames are read from its continuation: the bytes
 * are copied first and the status word is looked at before and after, so a goroutine that was
 * resumed meanwhile is shown without frames instead of with somebody else's. One that is at home
 * has no bytes: its M is asked (SHM_ATTN_DUMP) and leaves the frames, encoded as a value, where the
 * continuation of a light one would be (g->cont_off; nobody but its home M touches that of a home
 * goroutine). A running one is shown as running, on which M. A thread that waits (block.c) is no
 * goroutine: its row has goid 0, the slot of its process, and in the parent's place the thread's
 * number in the system. */
#include "cpython.h"
#include "prog.h"
#include <stdlib.h>
#include <string.h>

/* [(qualname, file, line), ...] of a live suspended coroutine, outermost first. */
PyObject *core_live_frames(PyObject *root)
{
    PyObject *list = PyList_New(0), *o = Py_NewRef(root);
    while (list != NULL && o != NULL) {
        const char *frame_name = PyCoro_CheckExact(o)  ? "cr_frame"
                                 : PyGen_CheckExact(o) ? "gi_frame"
                                                       : NULL;
        if (frame_name == NULL)
            break;
        PyObject *frame = PyObject_GetAttrString(o, frame_name);
        PyObject *next =
            PyObject_GetAttrString(o, PyCoro_CheckExact(o) ? "cr_await" : "gi_yieldfrom");
        if (frame != NULL && PyFrame_Check(frame)) {
            PyCodeObject *code = PyFrame_GetCode((PyFrameObject *)frame);
            PyObject *row = Py_BuildValue("(OOi)", code->co_qualname, code->co_filename,
                                          PyFrame_GetLineNumber((PyFrameObject *)frame));
            if (row == NULL || PyList_Append(list, row) < 0)
                PyErr_Clear();
            Py_XDECREF(row);
            Py_DECREF(code);
        }
        Py_XDECREF(frame);
        Py_SETREF(o, next);
    }
    Py_XDECREF(o);
    PyErr_Clear();
    return list;
}

static void dump_homes(struct core_proc *s)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    for (uint32_t i = 0; i < s->homes_cap; i++) {
        struct core_home *h = s->homes[i];
        if (h == NULL || h->root == NULL)
            continue;
        struct shm_g *g = core_g(s, h->g);
        PyObject *frames = core_live_frames(h->root);
        PyObject *note =
            frames ? Py_BuildValue("(NO)", frames, h->reason ? h->reason : Py_None) : NULL;
        core_enc_reset(&s->enc);
        s->enc.budget = SIZE_MAX;
        shm_off off;
        if (note != NULL && core_value_encode(note, &s->enc) == ENC_OK &&
            shm_cont_make(s->c, &off, s->enc.base, (uint32_t)(s->enc.p - s->enc.base), NULL, 0) ==
                0) {
            core_home_note_free(s, g);
            shm_gcont_set(s->c, g, off, (uint32_t)(s->enc.p - s->enc.base));
        }
        Py_XDECREF(note);
        PyErr_Clear();
    }
    PyErr_Restore(type, value, tb);
}

/* Also lets go of what is kept warm: its handles would hide leaks. */
void core_dump_asked(struct core_proc *s)
{
    dump_homes(s);
    core_warm_rest(s);
    core_handle_rest(s);
}

void core_home_note_free(struct core_proc *s, struct shm_g *g)
{
    shm_gcont_drop(s->c, g);
}

/* A worker, or the M0 of a program that is watched from outside: its loop may be asked. */
static bool asked(const CoreProg *prog, const struct shm_ctx *c, uint32_t i)
{
    uint32_t kind = load_acq(&c->mtab[i].kind); /* pairs with minit */
    return &c->mtab[i] != c->m && (kind == SHM_M_WORKER || (kind == SHM_M_M0 && prog->watches));
}

/* ---- who has created it ---------------------------------------------------------------------- */

/* A line's number is made once per process and place in the code: [(function, file, line)] is
 * interned as the stacks of a trace are. */
uint32_t core_site(struct core_proc *s)
{
    Frame *f = frame_of_thread(PyThreadState_Get());
    if (f == NULL)
        return 0;
    PyCodeObject *code = CODE(f);
    int at = _PyInterpreterFrame_LASTI(f);
    struct core_site *x =
        &s->sites[((uintptr_t)code >> 5 ^ (unsigned)at * 0x9E3779B1U) % CORE_SITES];
    if (likely(x->code == (PyObject *)code && x->at == at))
        return x->id;
    PyObject *what = Py_BuildValue("(OOi)", code->co_qualname, code->co_filename,
                                   PyCode_Addr2Line(code, at * (int)sizeof(_Py_CODEUNIT)));
    uint32_t id = what != NULL ? core_intern(s->c, "site", what) : 0;
    Py_XDECREF(what);
    PyErr_Clear();
    Py_XSETREF(x->code, Py_NewRef((PyObject *)code));
    x->at = at;
    x->id = id;
    return id;
}

void core_sites_free(struct core_proc *s)
{
    for (uint32_t i = 0; i < CORE_SITES; i++)
        Py_CLEAR(s->sites[i].code);
}

/* Asks the Ms that have goroutines at home for their frames; waits for them, bounded. */
static void ask_homes(CoreProg *prog, struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with minit */
    if (n > SHM_MAX_M)
        n = SHM_MAX_M;
    if (core_proc_cur != NULL && core_proc_cur->prog == prog)
        core_dump_asked(core_proc_cur);
    for (uint32_t i = 0; i < n; i++)
        if (asked(prog, c, i)) {
            or_seq(&c->mtab[i].attn, SHM_ATTN_DUMP); /* seen before it sleeps: tag idle-dance */
            shm_notewakeup(&c->mtab[i].note);
        }
    uint64_t end = shm_now_ns() + 100000000;
    for (uint32_t i = 0; i < n; i++)
        while (asked(prog, c, i) && shm_now_ns() < end &&
               load_acq(&c->mtab[i].attn) & SHM_ATTN_DUMP) { /* pairs with attend */
            _Atomic uint32_t never = 0;
            Py_BEGIN_ALLOW_THREADS
                shm_futex_wait(&never, 0, 200000);
            Py_END_ALLOW_THREADS
        }
}

/* The frames of a waiting or runnable G, or None: (list, home reason or None). */
static PyObject *parked_frames(CoreProg *prog, struct shm_ctx *c, struct shm_g *g, uint64_t st)
{
    shm_off off = g->cont_off;
    uint32_t n = g->cont_len;
    bool home = g->home_m1 != 0, started = g->flags & SHM_GF_STARTED,
         ctx = g->flags & SHM_GF_CONTEXT;
    uint64_t size = c->hdr->size;
    if (off == 0 || (!home && !started) || off >= size || n > size - off || n > 64u << 20)
        Py_RETURN_NONE;
    uint8_t *copy = PyMem_Malloc(n + 1);
    if (copy == NULL)
        return PyErr_NoMemory();
    memcpy(copy, shm_at(c, off), n);
    PyObject *v = NULL;
    if (load_acq(&g->status) == st &&
        g->cont_off == off) { /* still the same park: pairs with execute */
        uint32_t m = 0;
        if (ctx && n >= sizeof m) {
            memcpy(&m, copy + n - sizeof m, sizeof m);
            n -= m <= n - sizeof m ? m + (uint32_t)sizeof m : 0;
        }
        CoreProg *was = core_prog_cur;
        core_prog_cur = prog;
        if (was != prog)
            core_codes_changed();
        if (home) {
            v = core_value_decode(copy, n, NULL);
        } else {
            PyObject *frames = core_chain_frames(copy, n);
            v = frames ? Py_BuildValue("(NO)", frames, Py_None) : NULL;
        }
        core_prog_cur = was;
        if (was != prog)
            core_codes_changed();
    }
    PyMem_Free(copy);
    if (v == NULL) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    return v;
}

static PyObject *mod_goroutines(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    if (!PyArg_ParseTuple(args, "O!:goroutines", &CoreProg_Type, &prog))
        return NULL;
    struct shm_ctx *c = core_prog_usable(prog) ? core_ctx(prog) : NULL;
    if (c == NULL)
        return NULL;
    ask_homes(prog, c);
    PyObject *list = PyList_New(0);
    uint64_t n = load_acq(&c->hdr->g_next); /* pairs with the add of shm_gnew */
    if (n > load_acq(&c->hdr->g_committed)) /* pages first; a watcher trusts neither */
        n = load_acq(&c->hdr->g_committed);
    uint32_t now_ms = (uint32_t)((shm_now_ns() - c->hdr->start_ns) / 1000000);
    for (uint64_t i = 1; list != NULL && i < n; i++) {
        struct shm_g *g = &c->gtab[i];
        uint64_t st =
            load_acq(&g->status); /* pairs with casgstatus: the fields are those of this move */
        unsigned status = SHM_ST_STATUS(st);
        bool unborn = status == Gwaiting && !(g->flags & SHM_GF_STARTED) &&
                      g->reason == SHM_WR_SLEEP; /* a pending after_func */
        bool thread = (g->flags & (SHM_GF_OUTSIDE | SHM_GF_COUNTED)) == SHM_GF_OUTSIDE;
        if (status == Gidle || status == Gdead || unborn || (thread && status != Gwaiting))
            continue;
        unsigned m1 = status == Grunning ? SHM_ST_M1(st) : g->home_m1;
        PyObject *frames =
            status == Grunning || thread ? Py_NewRef(Py_None) : parked_frames(prog, c, g, st);
        PyObject *site = frames != NULL ? core_named(c, shm_g_site(g)) : NULL;
        PyObject *row =
            site == NULL
                ? NULL
                : Py_BuildValue("(KisdiiOkO)", thread ? 0 : (unsigned long long)g->goid, status,
                                status == Gwaiting ? shm_reason_text(c, g->reason) : "",
                                status == Gwaiting ? (now_ms - g->since_ms) / 1000.0 : 0.0,
                                (int)m1 - 1, g->home_why, frames, (unsigned long)g->parent, site);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
        Py_XDECREF(frames);
        Py_XDECREF(site);
    }
    return core_prog_seen(prog, list);
}

/* What a leaked goroutine waits on, which nobody touches any more. */
static PyObject *waited_on(const struct shm_ctx *c, shm_off off)
{
    static const char *const locks[] = {
        "",          "sync.Mutex", "sync.RWMutex",  "sync.WaitGroup",
        "sync.Once", "sync.Cond",  "sync.Semaphore"};
    const struct shm_obj *o = off ? shm_at(c, off) : NULL;
    const struct shm_chan *ch = (const void *)o;
    const struct shm_sema *sy = (const void *)o;
    unsigned long long at = off, holder;
    switch (o ? shm_kind(o) : 0) {
    case SHM_OBJ_CHAN:
        return PyUnicode_FromFormat("channel %llu with %u of %u values", (unsigned long long)ch->id,
                                    load_acq(&ch->qcount), ch->cap);
    case SHM_OBJ_JOIN:
        return PyUnicode_FromFormat(
            "goroutine %llu", (unsigned long long)((const struct shm_join *)(const void *)o)->goid);
    case SHM_OBJ_SEMA:
        holder = load_acq(&sy->word) >> 8;
        if (sy->what > SHM_SY_SEMAPHORE)
            break;
        if (holder && (sy->what == SHM_SY_MUTEX || sy->what == SHM_SY_RWMUTEX))
            return PyUnicode_FromFormat("%s locked by goroutine %llu", locks[sy->what], holder);
        return PyUnicode_FromString(locks[sy->what]);
    case SHM_OBJ_GROUP:
        return PyUnicode_FromString("a group");
    case 0:
        return PyUnicode_FromString("nothing");
    }
    return PyUnicode_FromFormat("object %llx", at);
}

static PyObject *mod_leaks(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    struct shm_leak *leaks;
    size_t n;
    int r;
    if (!PyArg_ParseTuple(args, "O!:leaks", &CoreProg_Type, &prog))
        return NULL;
    struct shm_ctx *c = core_prog_usable(prog) ? core_ctx(prog) : NULL;
    if (c == NULL)
        return NULL;
    ask_homes(prog, c);
    Py_BEGIN_ALLOW_THREADS
        r = shm_leaks(c, &leaks, &n);
    Py_END_ALLOW_THREADS
    if (r < 0)
        return PyErr_NoMemory();
    PyObject *found = PyDict_New();
    for (size_t i = 0; found != NULL && i < n; i++) {
        PyObject *goid = PyLong_FromUnsignedLongLong(leaks[i].goid),
                 *on = waited_on(c, leaks[i].on);
        if (goid == NULL || on == NULL || PyDict_SetItem(found, goid, on) < 0)
            Py_CLEAR(found);
        Py_XDECREF(goid);
        Py_XDECREF(on);
    }
    free(leaks);
    return core_prog_seen(prog, found);
}

static PyObject *mod_failure(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    if (!PyArg_ParseTuple(args, "O!:failure", &CoreProg_Type, &prog))
        return NULL;
    if (core_ctx(prog) == NULL)
        return NULL;
    PyObject *e = core_failure(prog);
    if (e == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return e;
}

static PyMethodDef functions[] = {
    {"goroutines", mod_goroutines, METH_VARARGS,
     "goroutines(prog)\n--\n\nRows (goid, status, wait reason, seconds waiting, m or -1, home_why, "
     "(frames, home reason) or None, parent,\n(qualname, file, line) of the line that created it, "
     "or None), frames as a list of those, outermost\nfirst; for a thread that waits goid is 0, "
     "and parent its number in the system."},
    {"leaks", mod_leaks, METH_VARARGS,
     "leaks(prog)\n--\n\nParked goroutines that nothing reachable can ready: goid -> what it waits "
     "on, as text."},
    {"failure", mod_failure, METH_VARARGS,
     "failure(prog)\n--\n\nThe panic that ended the program, as an exception; or None."},
    {NULL},
};

int core_dump_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, functions);
}
