/* goroutine.c — the face of a goroutine: its handle, gosched, sleep, goexit. How one is started is
 * spawn.c.
 *
 * A handle refers to the join object (shm/join.c): how the goroutine ended, and who waits. It lives
 * on its own counts, so a result stays for whoever comes late, and a handle can be sent
 * anywhere. */
#include "proc.h"
#include <stddef.h>

static struct shm_join *join_of(const CoreHandle *h)
{
    return shm_at(&h->prog->loop, h->off);
}

/* ---- results --------------------------------------------------------------------------------- */

PyObject *core_died(CoreProg *prog, const struct shm_val *v)
{
    struct shm_died d;
    uint32_t n;
    const uint8_t *b = shm_val_bytes(&prog->loop, v, &n);
    if (n < sizeof d)
        return PyErr_Format(core_err.BadContinuation, "a death in %u bytes", n);
    memcpy(&d, b, sizeof d);
    PyObject *stack = n == sizeof d ? Py_NewRef(Py_None)
                                    : PyUnicode_DecodeUTF8((const char *)b + sizeof d,
                                                           (Py_ssize_t)(n - sizeof d), "replace");
    if (stack == NULL)
        return NULL;
    return PyObject_CallFunction(core_err.make_death, "IiKN", (unsigned)d.m, (int)d.status,
                                 (unsigned long long)d.goid, stack);
}

/* Whether it runs no more; who had not ended when its program did has ended with it. */
static bool join_over(const CoreHandle *h)
{
    return load_acq(&join_of(h)->state) != SHM_J_PENDING || /* pairs as in join_exception() */
           load_acq(&h->prog->loop.hdr->shutdown);          /* pairs with store_rel in shutdown */
}

/* How the goroutine ended, as an exception object; NULL without one set: it has a value. */
static PyObject *join_exception(CoreProg *prog, struct shm_join *j)
{
    switch (load_acq(&j->state)) { /* pairs with the store of shm_join_finish: value is complete */
    case SHM_J_PENDING:
        return PyObject_CallFunction(core_err.Killed, "s", "the runtime was shut down");
    case SHM_J_VALUE:
        return NULL;
    case SHM_J_CANCELLED:
        return PyObject_CallNoArgs(core_err.Cancelled);
    case SHM_J_KILLED:
        if (load_acq(&j->kill) == SHM_K_TIMEOUT) /* before its state */
            return PyObject_CallFunction(PyExc_TimeoutError, "s",
                                         "the goroutine ran longer than its timeout");
        return PyObject_CallFunction(core_err.Killed, "s", "the goroutine was killed");
    case SHM_J_DIED:
        return core_died(prog, &j->value);
    default:
        return core_exc_peek(prog, &j->value);
    }
}

static PyObject *join_result(CoreProg *prog, shm_off off)
{
    struct shm_join *j = shm_at(&prog->loop, off);
    PyObject *exc = join_exception(prog, j);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
        return NULL;
    }
    return PyErr_Occurred() ? NULL : core_val_peek(prog, &j->value);
}

static int join_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(h->prog);
    if (s == NULL)
        return -1;
    if (load_acq(&join_of(h)->state) == SHM_J_PENDING || /* pairs as in join_exception() */
        core_retried(s))
        return 0;
    if (core_preempt_due(s)) { /* as core_try_done(): the result is found by the wait's object */
        struct shm_g *g = core_g(s, s->curg);
        g->value.tag = SHM_VAL_NONE;
        g->ok = SHM_OK_VALUE;
        shm_wait_ended(s->c, g, SHM_OBJ_JOIN, h->off);
        s->inhand = true;
        return 0;
    }
    *result = join_result(h->prog, h->off);
    return *result != NULL ? 1 : -1;
}

static int join_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct shm_g *g = shm_g(c, gr);
    g->value.tag = SHM_VAL_NONE;
    shm_obj_ref_hand(c, h->off);
    int r = shm_join_park(c, h->off, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    if (r == SHM_OK) { /* ended meanwhile */
        g->ok = SHM_OK_VALUE;
        shm_wait_ended(c, g, SHM_OBJ_JOIN, h->off);
    }
    return r;
}

static PyObject *join_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    return join_result(prog, g->waitobj);
}

/* ---- the handle ------------------------------------------------------------------------------ */

/* Python's word on an await in a thread that is no M: an iterator to wait with, or None. */
static PyObject *await_outside;

static PyObject *mod_set_await_outside(PyObject *mod, PyObject *fn)
{
    Py_XSETREF(await_outside, Py_NewRef(fn));
    Py_RETURN_NONE;
}

static PyObject *goroutine_await(PyObject *h)
{
    if (core_proc_cur == NULL && await_outside != NULL) {
        PyObject *it =
            PyObject_CallFunctionObjArgs(await_outside, ((CoreHandle *)h)->prog, h, NULL);
        if (it != Py_None)
            return it;
        Py_DECREF(it); /* the park request says what is wrong when it is tried */
    }
    return core_park_for(PK_JOIN, h);
}

static PyObject *goroutine_result(CoreHandle *h, PyObject *args, PyObject *kw)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    int64_t ns;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:result", names, &timeout) ||
        (ns = core_timeout_ns(timeout)) == -2 || core_ctx(h->prog) == NULL)
        return NULL;
    if (load_acq(&join_of(h)->state) != SHM_J_PENDING) /* pairs as in join_exception() */
        return join_result(h->prog, h->off);
    PyObject *pk = core_park_for(PK_JOIN, (PyObject *)h);
    PyObject *v = pk ? core_block(h->prog, (CorePark *)pk, ns) : NULL;
    Py_XDECREF(pk);
    return v;
}

static PyObject *goroutine_exception(CoreHandle *h, PyObject *_)
{
    if (core_ctx(h->prog) == NULL)
        return NULL;
    if (!join_over(h))
        Py_RETURN_NONE;
    PyObject *exc = join_exception(h->prog, join_of(h));
    if (exc == NULL && !PyErr_Occurred())
        Py_RETURN_NONE;
    return exc;
}

/* In C, where no signal's handler runs in between: what that raises is not the goroutine's end. In
 * Python code of the value's own (__setstate__) one may: a KeyboardInterrupt is taken for its. */
static PyObject *goroutine_outcome(CoreHandle *h, PyObject *_)
{
    PyObject *value = NULL, *exc = NULL;
    if (core_ctx(h->prog) != NULL) {
        exc = join_exception(h->prog, join_of(h));
        if (exc == NULL && !PyErr_Occurred())
            value = core_val_peek(h->prog, &join_of(h)->value);
    }
    if (value == NULL && exc == NULL) {
        if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
            return NULL;
        exc = core_take_exc();
    }
    PyObject *r = PyTuple_Pack(2, value ? value : Py_None, exc ? exc : Py_None);
    Py_XDECREF(value);
    Py_XDECREF(exc);
    return r;
}

static PyObject *goroutine_done(CoreHandle *h, PyObject *_)
{
    if (core_ctx(h->prog) == NULL)
        return NULL;
    return PyBool_FromLong(join_over(h));
}

static PyObject *goroutine_status(CoreHandle *h, PyObject *_)
{
    static const char *ended[] = {"", "done", "failed", "cancelled", "killed", "died"};
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    for (;;) {
        struct shm_join *j = join_of(h);
        unsigned state = load_acq(&j->state); /* as above */
        if (state != SHM_J_PENDING)
            return PyUnicode_FromString(ended[state <= SHM_J_DIED ? state : SHM_J_DIED]);
        if (join_over(h))
            return PyUnicode_FromString("killed");
        struct shm_g *g = shm_g(c, j->g);
        unsigned reason = g->reason;
        switch (shm_readgstatus(c, j->g)) {
        case Gwaiting:
            return PyUnicode_FromString(shm_reason_text(c, reason));
        case Grunning:
            return PyUnicode_FromString("running");
        case Grunnable:
            return PyUnicode_FromString("runnable");
        default: /* it ends just now: its state follows */
            break;
        }
    }
}

static PyObject *goroutine_cancel(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c == NULL ? NULL : PyBool_FromLong(shm_join_cancel(c, h->off));
}

/* Whoever is first of this and the M that starts it: life.c, start(). */
static PyObject *goroutine_withdraw(CoreHandle *h, PyObject *_)
{
    uint32_t none = 0;
    if (core_ctx(h->prog) == NULL)
        return NULL;
    return PyBool_FromLong(cas_acqrel(&join_of(h)->begun, &none, 2)); /* pairs with start() */
}

static PyObject *goroutine_withdrawn(CoreHandle *h, PyObject *_)
{
    if (core_ctx(h->prog) == NULL)
        return NULL;
    return PyBool_FromLong(load_acq(&join_of(h)->begun) == 2); /* as above */
}

static PyObject *goroutine_begun(CoreHandle *h, PyObject *_)
{
    if (core_ctx(h->prog) == NULL)
        return NULL;
    return PyBool_FromLong(load_acq(&join_of(h)->begun) == 1); /* a glance: pairs with start() */
}

static PyObject *goroutine_kill(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    shm_gref r = join_of(h)->g;
    if (shm_readgstatus(c, r) != Gdead && shm_g(c, r)->flags & SHM_GF_MAIN) {
        PyErr_SetString(PyExc_RuntimeError, "main cannot be killed");
        return NULL;
    }
    return PyBool_FromLong(shm_join_kill(c, h->off, SHM_K_KILL));
}

static PyObject *goroutine_id(CoreHandle *h, void *_)
{
    if (core_ctx(h->prog) == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(join_of(h)->goid);
}

static PyObject *goroutine_repr(CoreHandle *h)
{
    if (!h->prog->attached)
        return PyUnicode_FromString("<mpgort.Goroutine of an ended runtime>");
    PyObject *status = goroutine_status(h, NULL);
    if (status == NULL)
        return NULL;
    PyObject *text = PyUnicode_FromFormat("<mpgort.Goroutine %llu [%U]>",
                                          (unsigned long long)join_of(h)->goid, status);
    Py_DECREF(status);
    return text;
}

/* ---- gosched, sleep, goexit and questions ---------------------------------------------------- */

static PyObject *none_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    Py_RETURN_NONE;
}

static int sleep_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_VALUE;
    return shm_sleep_park(c, gr, pk->u[0]);
}

static int loop_try(CorePark *pk, PyObject **result)
{
    if (core_proc_cur != NULL && core_proc_cur->curg != 0)
        return 0;
    core_current("await");
    return -1;
}

static PyObject *mod_gosched(PyObject *mod, PyObject *_)
{
    return core_park_for(PK_GOSCHED, NULL);
}

static PyObject *mod_sleep(PyObject *mod, PyObject *seconds)
{
    double s;
    uint64_t when;
    if (!core_number(seconds, "sleep", CORE_SECONDS, &s))
        return NULL;
    if (s <= 0)
        return core_park_for(PK_GOSCHED, NULL);
    if (core_when_ns(seconds, "sleep", &when) < 0)
        return NULL;
    CorePark *pk = (CorePark *)core_park_for(PK_SLEEP, NULL);
    if (pk != NULL)
        pk->u[0] = when;
    return (PyObject *)pk;
}

static PyObject *mod_goexit(PyObject *mod, PyObject *_)
{
    if (core_current("goexit()") != NULL)
        PyErr_SetNone(core_err.Goexit);
    return NULL;
}

static PyObject *mod_goid(PyObject *mod, PyObject *_)
{
    CoreProg *prog = core_current("goid()");
    if (prog == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(core_g(prog->proc, prog->proc->curg)->goid);
}

static PyObject *mod_num_goroutine(PyObject *mod, PyObject *_)
{
    CoreProg *prog = core_current("num_goroutine()");
    if (prog == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(shm_gcounted(prog->proc->c));
}

static PyObject *mod_gomaxprocs(PyObject *mod, PyObject *args)
{
    PyObject *n = Py_None;
    CoreProg *prog;
    if (!PyArg_ParseTuple(args, "|O:gomaxprocs", &n) ||
        (prog = core_current("gomaxprocs()")) == NULL)
        return NULL;
    uint32_t procs, want = 0;
    if (n != Py_None) {
        int over;
        long l = PyLong_AsLongAndOverflow(n, &over);
        if (l == -1 && PyErr_Occurred())
            return PyErr_ExceptionMatches(PyExc_TypeError)
                       ? PyErr_Format(PyExc_TypeError, "gomaxprocs(%R): an integer is needed", n)
                       : NULL;
        if (over > 0 || l > SHM_MAX_P - 1)
            return PyErr_Format(PyExc_ValueError, "gomaxprocs(%S): at most %d", n, SHM_MAX_P - 1);
        want = l > 0 ? (uint32_t)l : 0;
    }
    struct shm_ctx *c = prog->proc->c;
    if (c->hdr->m0_p == SHM_MAX_P) {
        if (want > 1)
            return PyErr_Format(PyExc_RuntimeError,
                                "gomaxprocs(%u): procs=0 runs everything in one process", want);
        return PyLong_FromLong(1);
    }
    int r = shm_gomaxprocs(c, want, &procs);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return PyLong_FromUnsignedLong(procs);
}

PyObject *core_park_for(int op, PyObject *a)
{
    CorePark *pk = core_park_new(op);
    if (pk != NULL) {
        pk->a = Py_XNewRef(a);
        core_park_holds(pk, a);
    }
    return (PyObject *)pk;
}

static PyMethodDef goroutine_methods[] = {
    {"result", (PyCFunction)(void (*)(void))goroutine_result, METH_VARARGS | METH_KEYWORDS,
     "result(timeout=None)\n--\n\nThe value, for a plain thread or function, which "
     "blocks.\n\nRaises the "
     "goroutine's exception, or TimeoutError after `timeout` seconds."},
    {"exception", (PyCFunction)goroutine_exception, METH_NOARGS,
     "exception()\n--\n\nThe exception that ended it; None while it runs or if it has a value."},
    {"_outcome", (PyCFunction)goroutine_outcome, METH_NOARGS,
     "_outcome()\n--\n\n(value, None) or (None, exception) of one that has ended. A value that "
     "does "
     "not arrive,\nbecause its class is not there or its own code fails, is an exception, too."},
    {"done", (PyCFunction)goroutine_done, METH_NOARGS, "done()\n--\n\nTrue once it has ended."},
    {"_withdraw", (PyCFunction)goroutine_withdraw, METH_NOARGS,
     "_withdraw()\n--\n\nTrue: it had not begun, and never will."},
    {"_withdrawn", (PyCFunction)goroutine_withdrawn, METH_NOARGS,
     "_withdrawn()\n--\n\nTrue once _withdraw() was."},
    {"_begun", (PyCFunction)goroutine_begun, METH_NOARGS,
     "_begun()\n--\n\nTrue once an M has begun to run it."},
    {"status", (PyCFunction)goroutine_status, METH_NOARGS,
     "status()\n--\n\n\"running\", \"runnable\", the wait reason (\"chan receive\"), or how it "
     "ended: \"done\",\n\"failed\", \"cancelled\", \"killed\", \"died\"."},
    {"cancel", (PyCFunction)goroutine_cancel, METH_NOARGS,
     "cancel()\n--\n\nRaises Cancelled in it where it is parked, or at its next park; False if it "
     "has ended."},
    {"kill", (PyCFunction)goroutine_kill, METH_NOARGS,
     "kill()\n--\n\nEnds it, whatever it does: no finally block runs, `await h` raises Killed. One "
     "that never parks\nis ended with its process, which is replaced; where others are at home, a "
     "plain function that\nwaits has Killed raised first. False if it has ended."},
    CORE_HANDLE_REDUCE,
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};
static PyGetSetDef goroutine_getset[] = {
    {"id", (getter)goroutine_id, NULL, "Its number, never used again (Go's goid)."},
    {NULL},
};
static PyAsyncMethods goroutine_async = {.am_await = goroutine_await};
static PyTypeObject Goroutine_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.Goroutine",
    .tp_doc = "A handle of a goroutine, made by spawn(): `await h` gives its value or raises its "
              "exception,\nin any process, for any number of waiters; in an asyncio loop, too.",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)goroutine_repr,
    .tp_as_async = &goroutine_async,
    .tp_methods = goroutine_methods,
    .tp_getset = goroutine_getset,
};

static PyMethodDef functions[] = {
    {"set_await_outside", mod_set_await_outside, METH_O,
     "set_await_outside(fn)\n--\n\nfn(prog, h) -> iterator or None: what `await h` is in a thread "
     "that is no M."},
    {"gosched", mod_gosched, METH_NOARGS,
     "gosched()\n--\n\nAwaitable: lets others run; goes to the tail of the global queue. Source: "
     "Go Gosched."},
    {"sleep", mod_sleep, METH_O,
     "sleep(seconds)\n--\n\nAwaitable: pauses at least `seconds`. Source: Go timeSleep."},
    {"goexit", mod_goexit, METH_NOARGS,
     "goexit()\n--\n\nEnds the calling goroutine after its finally blocks. Source: Go Goexit."},
    {"goid", mod_goid, METH_NOARGS, "goid()\n--\n\nThe calling goroutine's number; main is 1."},
    {"num_goroutine", mod_num_goroutine, METH_NOARGS,
     "num_goroutine()\n--\n\nGoroutines that exist now, main included. Source: Go NumGoroutine."},
    {"gomaxprocs", mod_gomaxprocs, METH_VARARGS,
     "gomaxprocs(n=None)\n--\n\nThe number of Ps (1 with procs=0), as it was before; n: changes "
     "it. Source: Go GOMAXPROCS."},
    {NULL},
};

int core_goroutine_init(PyObject *mod)
{
    if (PyType_Ready(&Goroutine_Type) < 0 || PyModule_AddFunctions(mod, functions) < 0 ||
        PyModule_AddObjectRef(mod, "Goroutine", (PyObject *)&Goroutine_Type) < 0)
        return -1;
    core_park_ops[PK_GOSCHED] = (struct core_park_op){NULL, none_resume, NULL};
    core_park_ops[PK_SLEEP] = (struct core_park_op){sleep_park, none_resume, NULL};
    core_park_ops[PK_JOIN] = (struct core_park_op){join_park, join_resume, NULL};
    core_park_tries[PK_GOSCHED] = core_park_tries[PK_SLEEP] = core_park_tries[PK_FOREVER] =
        loop_try;
    core_park_tries[PK_JOIN] = join_try;
    core_park_names[PK_GOSCHED] = "gosched() or sleep()";
    core_park_names[PK_SLEEP] = "sleep()";
    return core_handle_kind(&Goroutine_Type, HANDLE_GOROUTINE);
}
