/* gm.c — G and M as Python objects, and who they are here: getg, acquirem, releasem.
 *
 * A G is (program, gref, goid): what getg() returns and unlockf and mcall's fn are given. It counts
 * nothing and keeps nobody alive; two are equal if they name one goroutine, and one that has been
 * sent over a channel is the receiver's program's. So each verb asks for the status of a G by its
 * generation before it touches it: that may have ended, and the slot be another's.
 *
 * m.locks: acquirem() counts; while it is > 0 nothing parks, and a preempt request, which is a
 * level, waits until releasem() brings it to 0. */
#include "runtime.h"

PyObject *core_runtime_error(const char *text)
{
    PyErr_SetString(PyExc_RuntimeError, text);
    return NULL;
}

/* ---- G -------------------------------------------------------------------------------------- */

PyObject *core_g_make(CoreProg *prog, shm_gref gr, uint64_t goid)
{
    CoreG *o = PyObject_New(CoreG, &core_G_Type);
    if (o != NULL) {
        o->prog = (CoreProg *)Py_NewRef((PyObject *)prog);
        o->g = gr;
        o->goid = goid;
    }
    return (PyObject *)o;
}

static void g_dealloc(CoreG *o)
{
    Py_DECREF(o->prog);
    PyObject_Free(o);
}

const char *core_status_name(unsigned st)
{
    switch (st) {
    case Gidle:
        return "Gidle";
    case Grunnable:
        return "Grunnable";
    case Grunning:
        return "Grunning";
    case Gwaiting:
        return "Gwaiting";
    case Gdead:
        return "Gdead";
    default:
        return "unknown status";
    }
}

static PyObject *g_repr(CoreG *o)
{
    const char *st =
        o->prog->attached ? core_status_name(shm_readgstatus(&o->prog->loop, o->g)) : "ended";
    return PyUnicode_FromFormat("<mpgort.runtime.G %llu %s>", (unsigned long long)o->goid, st);
}

static PyObject *g_status(CoreG *o, void *_)
{
    if (core_ctx(o->prog) == NULL)
        return NULL;
    return PyLong_FromLong(shm_readgstatus(&o->prog->loop, o->g));
}

static PyObject *g_goid(CoreG *o, void *_)
{
    return PyLong_FromUnsignedLongLong(o->goid);
}

static PyObject *g_reduce(CoreG *o, PyObject *_)
{
    PyObject *mod = PyImport_ImportModule("mpgort._core");
    PyObject *f = mod ? PyObject_GetAttrString(mod, "_g_from") : NULL;
    Py_XDECREF(mod);
    return f ? Py_BuildValue("N(KK)", f, (unsigned long long)o->g, (unsigned long long)o->goid)
             : NULL;
}

static PyObject *g_from(PyObject *mod, PyObject *args)
{
    unsigned long long g, goid;
    if (!PyArg_ParseTuple(args, "KK", &g, &goid))
        return NULL;
    if (core_prog_cur == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "a G arrived where no runtime is");
        return NULL;
    }
    if (shm_gidx(g) == 0 || shm_gidx(g) >= core_prog_cur->loop.hdr->max_g) {
        PyErr_SetString(core_err.BadContinuation, "a G out of the table's range");
        return NULL;
    }
    return core_g_make(core_prog_cur, g, goid);
}

static PyObject *g_richcompare(PyObject *a, PyObject *b, int op)
{
    if (!Py_IS_TYPE(b, &core_G_Type) || (op != Py_EQ && op != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    CoreG *x = (CoreG *)a, *y = (CoreG *)b;
    return PyBool_FromLong((x->prog == y->prog && x->goid == y->goid) == (op == Py_EQ));
}

static Py_hash_t g_hash(CoreG *o)
{
    return (Py_hash_t)o->goid;
}

static PyMethodDef g_methods[] = {{"__reduce__", (PyCFunction)g_reduce, METH_NOARGS, NULL}, {NULL}};
static PyGetSetDef g_getset[] = {
    {"goid", (getter)g_goid, NULL, "Its number."},
    {"status", (getter)g_status, NULL, "Gidle, Grunnable, Grunning, Gwaiting or Gdead, now."},
    {NULL},
};
PyTypeObject core_G_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.runtime.G",
    .tp_doc = "A goroutine as the scheduler knows it: what getg() returns and unlockf is given.",
    .tp_basicsize = sizeof(CoreG),
    .tp_dealloc = (destructor)g_dealloc,
    .tp_repr = (reprfunc)g_repr,
    .tp_hash = (hashfunc)g_hash,
    .tp_richcompare = g_richcompare,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .tp_methods = g_methods,
    .tp_getset = g_getset,
};

CoreG *core_g_arg(PyObject *o, const char *who)
{
    if (Py_IS_TYPE(o, &core_G_Type))
        return core_ctx(((CoreG *)o)->prog) ? (CoreG *)o : NULL;
    PyErr_Format(PyExc_TypeError, "%s: a G is needed (as getg() returns), not %.200s", who,
                 Py_TYPE(o)->tp_name);
    return NULL;
}

/* ---- M -------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD CoreProg *prog;
    uint32_t index;
} MObject;

static void m_dealloc(MObject *o)
{
    Py_DECREF(o->prog);
    PyObject_Free(o);
}
static struct shm_m *m_of(MObject *o)
{
    return &o->prog->loop.mtab[o->index];
}
static PyObject *m_repr(MObject *o)
{
    return PyUnicode_FromFormat("<mpgort.runtime.M %u>", o->index);
}
static PyTypeObject M_Type;

static PyObject *m_richcompare(PyObject *a, PyObject *b, int op)
{
    if (!Py_IS_TYPE(b, &M_Type) || (op != Py_EQ && op != Py_NE))
        Py_RETURN_NOTIMPLEMENTED;
    MObject *x = (MObject *)a, *y = (MObject *)b;
    return PyBool_FromLong((x->prog == y->prog && x->index == y->index) == (op == Py_EQ));
}
static Py_hash_t m_hash(MObject *o)
{
    return (Py_hash_t)o->index;
}
static PyObject *m_id(MObject *o, void *_)
{
    return PyLong_FromUnsignedLong(o->index);
}
static PyObject *m_locks(MObject *o, void *_)
{
    if (core_ctx(o->prog) == NULL)
        return NULL;
    return PyLong_FromUnsignedLong(load_rlx(&m_of(o)->locks)); /* a glance */
}
static PyObject *m_pid(MObject *o, void *_)
{
    if (core_ctx(o->prog) == NULL)
        return NULL;
    return PyLong_FromUnsignedLong(load_rlx(&m_of(o)->pid)); /* a glance */
}
static PyGetSetDef m_getset[] = {
    {"id", (getter)m_id, NULL, "Slot in the M table."},
    {"locks", (getter)m_locks, NULL, "How many acquirem() are not yet released."},
    {"pid", (getter)m_pid, NULL, "Process id."},
    {NULL},
};
static PyTypeObject M_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.runtime.M",
    .tp_doc = "An M: one OS process (M0: the thread of run) that executes goroutines.",
    .tp_basicsize = sizeof(MObject),
    .tp_dealloc = (destructor)m_dealloc,
    .tp_repr = (reprfunc)m_repr,
    .tp_hash = (hashfunc)m_hash,
    .tp_richcompare = m_richcompare,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .tp_getset = m_getset,
};

/* ---- getg, acquirem, releasem ---------------------------------------------------------------- */

static PyObject *mod_getg(PyObject *mod, PyObject *_)
{
    struct core_proc *s = core_proc_cur;
    if (s == NULL || s->curg == 0)
        Py_RETURN_NONE;
    return core_g_make(s->prog, s->curg, core_g(s, s->curg)->goid);
}

static PyObject *mod_acquirem(PyObject *mod, PyObject *_)
{
    struct core_proc *s = core_proc_cur;
    if (s == NULL)
        return (PyObject *)core_current("acquirem()");
    MObject *m = PyObject_New(MObject, &M_Type);
    if (m == NULL)
        return NULL;
    m->prog = (CoreProg *)Py_NewRef((PyObject *)s->prog);
    m->index = s->c->m1 - 1;
    own_add(&s->c->m->locks, 1); /* owner only */
    return (PyObject *)m;
}

static PyObject *mod_releasem(PyObject *mod, PyObject *a)
{
    struct core_proc *s = core_proc_cur;
    if (s == NULL)
        return (PyObject *)core_current("releasem()");
    if (!Py_IS_TYPE(a, &M_Type) || ((MObject *)a)->prog != s->prog ||
        ((MObject *)a)->index + 1 != s->c->m1)
        return core_runtime_error("releasem: not this goroutine's M");
    if (load_rlx(&s->c->m->locks) == 0) /* own word */
        return core_runtime_error("releasem: m.locks is 0");
    store_rlx(&s->c->m->locks, load_rlx(&s->c->m->locks) - 1); /* own word */
    Py_RETURN_NONE;
}

static PyObject *mod_request_preempt(PyObject *mod, PyObject *_)
{
    struct core_proc *s = core_proc_cur;
    if (s == NULL || s->c->p == NULL)
        return (PyObject *)core_current("preempt()");
    store_rlx(&s->c->p->preempt, 1); /* a level, read by shm_preempt_requested */
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"getg", mod_getg, METH_NOARGS,
     "getg()\n--\n\nThe running goroutine as a G; None on the scheduler's stack and outside."},
    {"acquirem", mod_acquirem, METH_NOARGS,
     "acquirem()\n--\n\nPins the goroutine to its M until releasem(m): m.locks + 1, nothing may "
     "park."},
    {"releasem", mod_releasem, METH_O,
     "releasem(m)\n--\n\nm.locks - 1; at 0 a waiting preempt request takes effect at the next "
     "await."},
    {"_request_preempt", mod_request_preempt, METH_NOARGS, NULL},
    {"_g_from", g_from, METH_VARARGS, NULL},
    {NULL},
};

int core_gm_init(PyObject *mod)
{
    if (PyType_Ready(&core_G_Type) < 0 || PyType_Ready(&M_Type) < 0 ||
        PyModule_AddFunctions(mod, functions) < 0 ||
        PyModule_AddObjectRef(mod, "G", (PyObject *)&core_G_Type) < 0 ||
        PyModule_AddObjectRef(mod, "M", (PyObject *)&M_Type) < 0)
        return -1;
    const struct {
        const char *name;
        int value;
    } numbers[] = {{"Gidle", Gidle},       {"Grunnable", Grunnable},
                   {"Grunning", Grunning}, {"Gwaiting", Gwaiting},
                   {"Gdead", Gdead},       {"GF_COUNTED", SHM_GF_COUNTED}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(mod, numbers[i].name, numbers[i].value) < 0)
            return -1;
    return 0;
}
