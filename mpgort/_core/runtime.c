/* runtime.c — the verbs of proc.go for users: gopark, goready, mcall, schedule, casgstatus, …
 *
 * With gm.c (G, M, getg, acquirem) this is mpgort.runtime. Every primitive could be written with
 * these alone, in Python, with Go's contracts:
 *
 * gopark     1 the G's continuation is stored, 2 running -> waiting with its reason, curg dropped,
 *            the wait armed; 3 THEN unlockf(g, lock) runs on the scheduler's stack. From 2 on
 *            another M may ready, run and finish the G, so after 2 only unlockf's answer matters:
 *            if it is false, the M claims the wait itself (INV one-waker), and if it wins, goes on
 *            with the G at once, in the same time slice. If it loses, someone has readied the G: it
 *            is his.
 * mcall      fn(g) runs on the scheduler's stack with g still running; it has to record g and end
 *            in schedule(), execute() or park_m(), which do not return: they raise ScheduleExit,
 *            which only park() here catches.
 *
 * LOOSE. A queue may hold a goroutine once only (INV linked-once in runq.c), so globrunqput() and
 * execute() take only what casgstatus() in this process has made runnable and nobody has queued
 * since.
 *
 * The scheduler's stack (m->g0) is the code between a goroutine's yield and the next one's resume:
 * core_proc->on_g0 > 0 while a user's function runs there. */
#include "runtime.h"

static PyObject *ScheduleExit; /* raised by what does not return; derives from BaseException */

/* ---- gopark ---------------------------------------------------------------------------------- */

/* The number of a WaitReason in this program's segment: built-in ones are numbers everywhere, a
 * user's text gets its number at first use. */
static int reason_number(struct core_proc *s, PyObject *reason, unsigned *number)
{
    PyObject *key = PyObject_GetAttrString(reason, "_key");
    if (key == NULL) {
        PyErr_Format(
            PyExc_TypeError,
            "gopark: reason must be a WaitReason (WaitReason.register(\"text\")), not %.200s",
            Py_TYPE(reason)->tp_name);
        return -1;
    }
    PyObject *n = PyLong_CheckExact(key) ? key : PyDict_GetItemWithError(s->reasons, key);
    if (n == NULL && !PyErr_Occurred()) {
        const char *text = PyUnicode_AsUTF8(key);
        int r = text ? shm_reason_register(s->c, text, number) : CORE_EXC;
        if (r < 0 && r != CORE_EXC)
            core_shm_error(s->prog, r);
        else if (r >= 0 && (n = PyLong_FromUnsignedLong(*number)) != NULL) {
            PyDict_SetItem(s->reasons, key, n);
            Py_DECREF(n);
        }
    }
    Py_DECREF(key);
    if (PyErr_Occurred())
        return -1;
    *number = (unsigned)PyLong_AsUnsignedLong(n);
    return 0;
}

static int gopark_try(CorePark *pk, PyObject **result)
{
    struct core_proc *s = core_proc_cur;
    if (s != NULL && (s->curg == 0 || shm_readgstatus(s->c, s->curg) != Grunning)) {
        core_runtime_error("gopark: bad g status");
        return -1;
    }
    if (s == NULL && core_current("gopark()") == NULL)
        return -1;
    unsigned reason;
    if (reason_number(s, PyTuple_GET_ITEM(pk->a, 2), &reason) < 0)
        return -1;
    pk->u[0] = reason;
    return 0;
}

/* Running -> waiting for a wait of the user's own; the G is anyone's from here on. */
static uint64_t wait_begin(struct shm_ctx *c, shm_gref gr, unsigned reason)
{
    struct shm_g *g = shm_g(c, gr);
    uint64_t epoch = shm_wait_next(g);
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_NONE;
    g->waitkind = 0;
    g->waitobj = 0;
    shm_park_commit(c, gr, reason, epoch);
    return epoch;
}

/* Takes a parked G back to running on this M, if nobody has readied it. */
static bool take_back(struct shm_ctx *c, shm_gref gr, uint64_t epoch)
{
    if (!shm_wait_abort(c, gr, epoch, SHM_OK_VALUE))
        return false;
    if (shm_tracing(c))
        shm_trace(c, SHM_TR_UNPARK, shm_g(c, gr)->goid, shm_g(c, gr)->reason, 0);
    bool mine = shm_casgstatus(c, gr, Gwaiting, Grunnable) && shm_execute(c, gr, true);
    if (mine)
        store_rel(&c->m->inflight[SHM_IF_READY], 0); /* own word: curg names it */
    return mine;
}

/* fn(a, b), or fn(a), of the user's on the scheduler's stack. Go's schedule() throws if m.locks is
 * not 0 after it: no goroutine could ever park on this M again. */
static PyObject *call_on_g0(struct core_proc *s, PyObject *fn, PyObject *a, PyObject *b)
{
    s->on_g0++;
    PyObject *res = PyObject_CallFunctionObjArgs(fn, a, b, NULL);
    s->on_g0--;
    if (load_rlx(&s->c->m->locks) > 0) { /* own word */
        store_rlx(&s->c->m->locks, 0);
        if (res != NULL || PyErr_ExceptionMatches(ScheduleExit)) {
            Py_CLEAR(res);
            core_runtime_error("schedule: holding locks");
        }
    }
    return res;
}

static int gopark_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    struct core_proc *s = core_proc_cur;
    PyObject *unlockf = PyTuple_GET_ITEM(pk->a, 0), *lock = PyTuple_GET_ITEM(pk->a, 1);
    unsigned reason = (unsigned)pk->u[0];
    PyObject *o = NULL;
    if (unlockf != Py_None && (o = core_g_make(s->prog, gr, shm_g(c, gr)->goid)) == NULL)
        return CORE_EXC;
    if (reason != SHM_WR_SLEEP && c->p != NULL) {
        /* Go: "timers expire while two goroutines keep the scheduler busy". */
        uint32_t ran;
        shm_checktimers(c, c->p, shm_now_ns(), &ran);
    }
    uint64_t epoch = wait_begin(c, gr, reason);
    if (unlockf == Py_None)
        return SHM_PARKED;
    PyObject *answer = call_on_g0(s, unlockf, o, lock);
    Py_DECREF(o);
    if (answer == NULL && PyErr_ExceptionMatches(ScheduleExit)) {
        PyErr_Clear();
        return SHM_PARKED; /* schedule() and execute() do not return: nobody has said false */
    }
    int yes = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (yes > 0)
        return SHM_PARKED;
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    bool mine = take_back(c, gr, epoch);
    PyErr_Restore(type, value, tb);
    if (mine)
        return yes < 0 ? CORE_EXC : SHM_OK;
    if (yes < 0)
        PyErr_WriteUnraisable(unlockf);
    return SHM_PARKED;
}

static PyObject *value_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    return core_val_take(prog, &g->value);
}

static PyObject *mod_gopark(PyObject *mod, PyObject *args, PyObject *kw)
{
    static char *names[] = {"unlockf", "lock", "reason", "trace_ev", "traceskip", NULL};
    PyObject *unlockf, *lock, *reason, *trace_ev = Py_None;
    int traceskip = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "OOO|Oi:gopark", names, &unlockf, &lock, &reason,
                                     &trace_ev, &traceskip))
        return NULL;
    if (unlockf != Py_None && !PyCallable_Check(unlockf)) {
        PyErr_Format(PyExc_TypeError,
                     "gopark: unlockf must be a function (g, lock) or None, not %.200s",
                     Py_TYPE(unlockf)->tp_name);
        return NULL;
    }
    PyObject *t = Py_BuildValue("(OOOOi)", unlockf, lock, reason, trace_ev, traceskip);
    PyObject *pk = t ? core_park_for(PK_GOPARK, t) : NULL;
    Py_XDECREF(t);
    return pk;
}

static PyObject *mod_goready(PyObject *mod, PyObject *args, PyObject *kw)
{
    static char *names[] = {"g", "value", NULL};
    CoreG *o;
    PyObject *v = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O!|O:goready", names, &core_G_Type, &o, &v))
        return NULL;
    struct shm_ctx *c = core_ctx(o->prog);
    if (c == NULL)
        return NULL;
    struct shm_g *g = shm_g(c, o->g);
    struct shm_val val = {.tag = SHM_VAL_NONE};
    if (v != NULL && v != Py_None && core_val_encode(o->prog, v, &val) < 0)
        return NULL;
    uint64_t w = load_acq(&g->wait); /* pairs with shm_wait_arm: g is complete if it is armed */
    bool user = g->op == PK_GOPARK || g->op == PK_MCALL;
    if (shm_readgstatus(c, o->g) != Gwaiting || !user || SHM_W_STATE(w) != SHM_W_ARMED ||
        !shm_wait_give(c, o->g, SHM_W_EPOCH(w), &val)) {
        shm_val_drop(c, &val);
        return core_runtime_error("bad g->status in ready");
    }
    shm_ready(c, o->g, true);
    Py_RETURN_NONE;
}

/* ---- mcall ----------------------------------------------------------------------------------- */

static int mcall_try(CorePark *pk, PyObject **result)
{
    struct core_proc *s = core_proc_cur;
    if (s != NULL && s->curg != 0)
        return 0;
    if (s != NULL)
        core_runtime_error("runtime: mcall called on m->g0 stack");
    else
        core_current("mcall()");
    return -1;
}

/* Gs that casgstatus() made runnable and that are in no queue. */
static int loose_add(CoreProg *prog, shm_gref gr)
{
    struct core_proc *s = core_proc_get(prog);
    if (s == NULL || (s->loose == NULL && (s->loose = PySet_New(NULL)) == NULL))
        return -1;
    PyObject *k = PyLong_FromUnsignedLongLong(gr);
    int r = k ? PySet_Add(s->loose, k) : -1;
    Py_XDECREF(k);
    return r;
}

static bool loose_take(CoreProg *prog, shm_gref gr)
{
    PyObject *k = prog->proc && prog->proc->loose ? PyLong_FromUnsignedLongLong(gr) : NULL;
    int r = k ? PySet_Discard(prog->proc->loose, k) : 0;
    Py_XDECREF(k);
    if (r < 0)
        PyErr_Clear();
    return r == 1;
}

/* What execute() was asked to run, by an fn that did not end there, is loose again. */
static void unexecute(struct core_proc *s)
{
    if (s->exec_next != 0 && loose_add(s->prog, s->exec_next) < 0)
        PyErr_Clear();
    s->exec_next = 0;
}

/* Brings a G that fn left anywhere back to running here, to raise the mistake in it. */
static bool recover(struct core_proc *s, shm_gref gr)
{
    struct shm_ctx *c = s->c;
    switch (shm_readgstatus(c, gr)) {
    case Grunning:
        store_rlx(&c->m->curg, gr); /* own word; fn may have dropped it */
        return true;
    case Gwaiting:
        return take_back(c, gr, SHM_W_EPOCH(load_acq(&shm_g(c, gr)->wait))); /* own wait */
    case Grunnable:
        return loose_take(s->prog, gr) && shm_execute(c, gr, true);
    default:
        return false;
    }
}

static int mcall_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    struct core_proc *s = core_proc_cur;
    PyObject *fn = pk->a;
    struct shm_g *g = shm_g(c, gr);
    PyObject *o = core_g_make(s->prog, gr, g->goid);
    if (o == NULL)
        return CORE_EXC;
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_NONE;
    g->waitkind = 0;
    PyObject *res = call_on_g0(s, fn, o, NULL);
    Py_DECREF(o);
    if (res == NULL && PyErr_ExceptionMatches(ScheduleExit)) {
        PyErr_Clear();
        return SHM_PARKED;
    }
    if (res != NULL)
        core_runtime_error("runtime: mcall function returned");
    Py_XDECREF(res);
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    unexecute(s);
    bool mine = recover(s, gr);
    PyErr_Restore(type, value, tb);
    if (mine)
        return CORE_EXC;
    PyErr_WriteUnraisable(fn);
    return SHM_PARKED;
}

static PyObject *mod_mcall(PyObject *mod, PyObject *fn)
{
    if (core_proc_cur != NULL && core_proc_cur->on_g0 > 0)
        return core_runtime_error("runtime: mcall called on m->g0 stack");
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "mcall: a function (g) is needed, not %.200s",
                     Py_TYPE(fn)->tp_name);
        return NULL;
    }
    return core_park_for(PK_MCALL, fn);
}

/* The loop of this thread while a user's function runs on its scheduler stack. */
static struct core_proc *on_g0(const char *what)
{
    if (core_proc_cur != NULL && core_proc_cur->on_g0 > 0)
        return core_proc_cur;
    PyErr_Format(PyExc_RuntimeError,
                 "%s: only on the scheduler's stack (in fn of mcall or in unlockf)", what);
    return NULL;
}

static PyObject *mod_schedule(PyObject *mod, PyObject *_)
{
    if (on_g0("schedule") != NULL)
        PyErr_SetNone(ScheduleExit);
    return NULL;
}

static PyObject *mod_execute(PyObject *mod, PyObject *args)
{
    PyObject *a;
    int inherit = 0;
    if (!PyArg_ParseTuple(args, "O|p:execute", &a, &inherit))
        return NULL;
    struct core_proc *s = on_g0("execute");
    CoreG *o = s ? core_g_arg(a, "execute") : NULL;
    if (o == NULL)
        return NULL;
    unsigned st = shm_readgstatus(s->c, o->g);
    if (st != Grunnable) {
        PyErr_Format(PyExc_RuntimeError,
                     "execute: bad g->status: goroutine %llu is %s, not Grunnable",
                     (unsigned long long)o->goid, core_status_name(st));
        return NULL;
    }
    if (!loose_take(s->prog, o->g))
        return core_runtime_error("execute: the goroutine is in a queue already");
    s->exec_next = o->g;
    s->exec_inherit = inherit;
    PyErr_SetNone(ScheduleExit);
    return NULL;
}

static PyObject *mod_park_m(PyObject *mod, PyObject *a)
{
    struct core_proc *s = on_g0("park_m");
    CoreG *o = s ? core_g_arg(a, "park_m") : NULL;
    if (o == NULL)
        return NULL;
    if (shm_readgstatus(s->c, o->g) != Grunning || load_rlx(&s->c->m->curg) != o->g) /* own word */
        return core_runtime_error("park_m: bad g status: it does not run on this M");
    wait_begin(s->c, o->g, SHM_WR_NONE);
    PyErr_SetNone(ScheduleExit);
    return NULL;
}

static PyObject *mod_dropg(PyObject *mod, PyObject *_)
{
    struct core_proc *s = on_g0("dropg");
    if (s == NULL)
        return NULL;
    store_rlx(&s->c->m->curg, 0); /* own word, read by dumps */
    Py_RETURN_NONE;
}

static PyObject *mod_globrunqput(PyObject *mod, PyObject *a)
{
    CoreG *o = core_g_arg(a, "globrunqput");
    struct shm_ctx *c = o ? core_ctx(o->prog) : NULL;
    if (c == NULL)
        return NULL;
    unsigned st = shm_readgstatus(c, o->g);
    if (st != Grunnable) {
        PyErr_Format(PyExc_RuntimeError, "globrunqput: goroutine %llu is %s, not Grunnable",
                     (unsigned long long)o->goid, core_status_name(st));
        return NULL;
    }
    if (!loose_take(o->prog, o->g))
        return core_runtime_error("globrunqput: the goroutine is in a queue already");
    struct shm_g *g = shm_g(c, o->g);
    if (g->home_m1 != 0)
        shm_homeqput(c, &c->mtab[g->home_m1 - 1], o->g);
    else
        shm_globrunqput(c, o->g);
    shm_wakep(c);
    Py_RETURN_NONE;
}

static bool legal(unsigned from, unsigned to)
{
    return (from == Grunning && (to == Gwaiting || to == Grunnable)) ||
           (from == Gwaiting && to == Grunnable) || (from == Grunnable && to == Grunning);
}

static PyObject *mod_casgstatus(PyObject *mod, PyObject *args)
{
    PyObject *a;
    unsigned from, to;
    if (!PyArg_ParseTuple(args, "OII:casgstatus", &a, &from, &to))
        return NULL;
    CoreG *o = core_g_arg(a, "casgstatus");
    struct shm_ctx *c = o ? core_ctx(o->prog) : NULL;
    if (c == NULL)
        return NULL;
    unsigned st = shm_readgstatus(c, o->g);
    if (st != from || !legal(from, to)) {
        PyErr_Format(PyExc_RuntimeError, "casgstatus: %s -> %s: %s, goroutine %llu is in %s",
                     core_status_name(from), core_status_name(to),
                     st != from ? "bad old status" : "illegal move", (unsigned long long)o->goid,
                     core_status_name(st));
        return NULL;
    }
    struct shm_g *g = shm_g(c, o->g);
    uint64_t w = load_acq(&g->wait); /* pairs with shm_wait_arm */
    if (from == Gwaiting &&
        !(SHM_W_STATE(w) == SHM_W_ARMED && shm_wait_abort(c, o->g, SHM_W_EPOCH(w), SHM_OK_VALUE)))
        return core_runtime_error(
            "casgstatus: Gwaiting -> Grunnable: somebody else is readying it");
    uint64_t epoch = shm_wait_next(g);
    if (to == Gwaiting && core_proc_cur != NULL && core_proc_cur->on_g0 > 0) {
        shm_park_commit(c, o->g, g->reason, epoch);
        Py_RETURN_NONE;
    }
    if (!shm_casgstatus(c, o->g, from, to)) {
        PyErr_Format(PyExc_RuntimeError, "casgstatus: %s -> %s: goroutine %llu has ended",
                     core_status_name(from), core_status_name(to), (unsigned long long)o->goid);
        return NULL;
    }
    if (from == Gwaiting)
        store_rel(&c->m->inflight[SHM_IF_READY], 0); /* own word: loose from here on */
    if (to == Grunnable && loose_add(o->prog, o->g) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"gopark", (PyCFunction)(void (*)(void))mod_gopark, METH_VARARGS | METH_KEYWORDS,
     "gopark(unlockf, lock, reason, trace_ev=None, traceskip=0)\n--\n\nAwaitable: puts the "
     "goroutine into Gwaiting, then calls unlockf(g, lock) on the scheduler's stack.\n\nIf that "
     "returns a false value, the goroutine goes on at once; if it raises, the await "
     "raises.\nReturns the value goready() passed. Source: Go proc.go gopark, park_m."},
    {"goready", (PyCFunction)(void (*)(void))mod_goready, METH_VARARGS | METH_KEYWORDS,
     "goready(g, value=None)\n--\n\nMakes a goroutine parked in gopark or mcall runnable; from any "
     "process.\n\nRaises RuntimeError \"bad g->status in ready\" otherwise. Source: Go proc.go "
     "ready."},
    {"mcall", mod_mcall, METH_O,
     "mcall(fn)\n--\n\nAwaitable: leaves the goroutine and calls fn(g) on the scheduler's "
     "stack.\n\nfn records "
     "g and ends in schedule(), execute() or park_m(), which do not return.\nSource: Go mcall."},
    {"schedule", mod_schedule, METH_NOARGS,
     "schedule()\n--\n\nOn the scheduler's stack: finds the next goroutine and runs it. Does not "
     "return."},
    {"execute", mod_execute, METH_VARARGS,
     "execute(g, inherit_time=False)\n--\n\nOn the scheduler's stack: runs g next, which must be "
     "Grunnable. Does not return."},
    {"park_m", mod_park_m, METH_O,
     "park_m(g)\n--\n\nOn the scheduler's stack: g to Gwaiting, then schedule(). Does not return."},
    {"dropg", mod_dropg, METH_NOARGS,
     "dropg()\n--\n\nOn the scheduler's stack: this M runs no goroutine now."},
    {"globrunqput", mod_globrunqput, METH_O,
     "globrunqput(g)\n--\n\nPuts a Grunnable g at the tail of the global queue (an at-home one: of "
     "its M's)."},
    {"casgstatus", mod_casgstatus, METH_VARARGS,
     "casgstatus(g, old, new)\n--\n\nMoves g's status; RuntimeError naming the statuses if it is "
     "not in `old` or the move is illegal."},
    {NULL},
};

int core_runtime_init(PyObject *mod)
{
    ScheduleExit = PyErr_NewException("mpgort._core.ScheduleExit", PyExc_BaseException, NULL);
    if (ScheduleExit == NULL || PyModule_AddFunctions(mod, functions) < 0)
        return -1;
    /* ("", "chan receive (nil chan)", ...): text by number, for WaitReason. */
    PyObject *texts = PyTuple_New(SHM_WR_USER);
    if (texts == NULL)
        return -1;
    for (unsigned i = 0; i < SHM_WR_USER; i++) {
        PyObject *t = PyUnicode_FromString(shm_reason_text(NULL, i));
        if (t == NULL)
            return -1;
        PyTuple_SET_ITEM(texts, i, t);
    }
    int r = PyModule_AddObjectRef(mod, "wait_reasons", texts);
    Py_DECREF(texts);
    core_park_ops[PK_GOPARK] = (struct core_park_op){gopark_park, value_resume, NULL};
    core_park_ops[PK_MCALL] = (struct core_park_op){mcall_park, value_resume, NULL};
    core_park_tries[PK_GOPARK] = gopark_try;
    core_park_tries[PK_MCALL] = mcall_try;
    return r;
}
