/* select.c — the face of select: the cases as a user writes them, and `default`.
 *
 * What a select is stands in shm/select.c. A case is named by what would be awaited alone: the
 * bound method ch.recv or ch.recv_ok, the pair (ch.send, v), or default. So the cases are looked at
 * by identity of the C function behind the method (core_chan_method), never called.
 *
 * One request object (Select) holds everything between the call and the park: the channels, the
 * values (until the try has encoded them, once, as in chan.c), and the array of shm_case that the
 * segment's side reads. It frees what was not handed over, so no path needs to.
 *
 * A case's tag says its place in the call and whether it wants (value, ok): all that the resume, on
 * another M, must know to make the pair (index, value). Nil channels are never ready and are left
 * out; without any other case the park is one for ever. */
#include "proc.h"

#define TAG(index, op) ((uint32_t)(index) << 8 | (uint32_t)(op))
#define TAG_INDEX(tag) ((tag) >> 8)
#define TAG_OP(tag) ((int)((tag) & 0xff))

typedef struct {
    PyObject_VAR_HEAD CoreProg *prog; /* of the channels, owned; NULL: all are nil */
    uint32_t n;                       /* cases that have a channel */
    uint32_t unsent;      /* of those, the first so many have an encoded value to drop */
    int32_t defaults;     /* the place of default, -1: none */
    struct shm_case cs[]; /* then a struct held per case */
} Select;
struct held {
    PyObject *ch, *v; /* v: NULL once it is encoded */
};

static PyObject *the_default;

static struct held *held_of(Select *sel)
{
    return (struct held *)(void *)(sel->cs + Py_SIZE(sel));
}

static void select_dealloc(Select *sel)
{
    struct held *h = held_of(sel);
    struct shm_ctx *c = sel->unsent > 0 && sel->prog->attached ? core_ctx(sel->prog) : NULL;
    PyObject_GC_UnTrack(sel);
    for (uint32_t i = 0; i < sel->n; i++) {
        if (c != NULL && i < sel->unsent && sel->cs[i].dir == SHM_DIR_SEND)
            shm_val_drop(c, &sel->cs[i].v);
        Py_XDECREF(h[i].ch);
        Py_XDECREF(h[i].v);
    }
    Py_XDECREF((PyObject *)sel->prog);
    PyObject_GC_Del(sel);
}

static int select_traverse(Select *sel, visitproc visit, void *arg)
{
    struct held *h = held_of(sel);
    for (uint32_t i = 0; i < sel->n; i++) {
        Py_VISIT(h[i].ch);
        Py_VISIT(h[i].v);
    }
    return 0;
}

static PyTypeObject Select_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.Select",
    .tp_basicsize = offsetof(Select, cs),
    .tp_itemsize = sizeof(struct shm_case) + sizeof(struct held),
    .tp_dealloc = (destructor)select_dealloc,
    .tp_traverse = (traverseproc)select_traverse,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
};

/* ---- what a case may be ---------------------------------------------------------------------- */

static int not_a_case(Py_ssize_t i, PyObject *o)
{
    CoreHandle *ch;
    if (PyTuple_Check(o) && PyTuple_GET_SIZE(o) > 0)
        PyErr_Format(PyExc_TypeError,
                     "select: case %zd: a pair is (ch.send, value), not a tuple of %zd that begins "
                     "with %.100R",
                     i, PyTuple_GET_SIZE(o), PyTuple_GET_ITEM(o, 0));
    else if (PyObject_TypeCheck(o, &CorePark_Type) || PyCoro_CheckExact(o))
        PyErr_Format(PyExc_TypeError,
                     "select: case %zd is a call: pass the method itself, ch.recv or "
                     "(ch.send, value), without calling it",
                     i);
    else if (core_is_chan(o))
        PyErr_Format(PyExc_TypeError,
                     "select: case %zd is a channel: say ch.recv, ch.recv_ok or (ch.send, value)",
                     i);
    else if (core_chan_method(o, &ch) == PK_SEND)
        PyErr_Format(PyExc_TypeError, "select: case %zd: a send needs its value: (ch.send, value)",
                     i);
    else
        PyErr_Format(PyExc_TypeError,
                     "select: case %zd is %.100R: a case is ch.recv, ch.recv_ok, (ch.send, value) "
                     "or default",
                     i, o);
    return -1;
}

static int add_case(Select *sel, Py_ssize_t i, PyObject *o)
{
    CoreHandle *ch = NULL;
    PyObject *v = NULL;
    if (o == the_default) {
        if (sel->defaults >= 0) {
            PyErr_Format(PyExc_TypeError, "select: case %zd: there is a default already, case %d",
                         i, sel->defaults);
            return -1;
        }
        sel->defaults = (int32_t)i;
        return 0;
    }
    int op = 0;
    if (PyTuple_Check(o) && PyTuple_GET_SIZE(o) == 2) {
        v = PyTuple_GET_ITEM(o, 1);
        op = core_chan_method(PyTuple_GET_ITEM(o, 0), &ch);
    } else if (!PyTuple_Check(o)) {
        op = core_chan_method(o, &ch);
    }
    if (op == -1) {
        PyObject *exc = core_take_exc();
        PyErr_Format(PyExc_TypeError, "select: case %zd: %S", i, exc);
        Py_DECREF(exc);
        return -1;
    }
    if (op == 0 || (op == PK_SEND) != (v != NULL)) {
        if (Py_IS_TYPE(o, &CorePark_Type))
            ((CorePark *)o)->state = 2; /* that it is not awaited would say the same again */
        return not_a_case(i, o);
    }
    if (ch->prog == NULL)
        return 0;
    if (sel->prog != NULL && sel->prog != ch->prog) {
        PyErr_Format(PyExc_RuntimeError, "select: case %zd: its channel is of another runtime", i);
        return -1;
    }
    if (sel->prog == NULL)
        sel->prog = (CoreProg *)Py_NewRef((PyObject *)ch->prog);
    struct held *h = &held_of(sel)[sel->n];
    h->ch = Py_NewRef((PyObject *)ch);
    h->v = Py_XNewRef(v);
    sel->cs[sel->n] = (struct shm_case){
        .ch = ch->off,
        .dir = op == PK_SEND ? SHM_DIR_SEND : SHM_DIR_RECV,
        .tag = TAG(i, op),
        .v.tag = SHM_VAL_NONE,
    };
    sel->n++;
    return 0;
}

static PyObject *too_many(Py_ssize_t n)
{
    return PyErr_Format(PyExc_ValueError,
                        "select: %zd cases, at most %d are possible: let several goroutines each "
                        "wait for some of them and send on to one channel",
                        n, SHM_SELECT_MAX);
}

static PyObject *mod_select(PyObject *mod, PyObject *const *args, Py_ssize_t n)
{
    if (n == 0)
        return core_park_forever(SHM_WR_SELECT_NO_CASES);
    if (n > SHM_SELECT_MAX + 1) /* one may be default */
        return too_many(n);
    Select *sel = PyObject_GC_NewVar(Select, &Select_Type, n);
    if (sel == NULL)
        return NULL;
    sel->prog = NULL;
    sel->n = sel->unsent = 0;
    sel->defaults = -1;
    PyObject_GC_Track(sel);
    for (Py_ssize_t i = 0; i < n; i++)
        if (add_case(sel, i, args[i]) < 0) {
            Py_DECREF(sel);
            return NULL;
        }
    PyObject *pk = sel->n > SHM_SELECT_MAX            ? too_many(n)
                   : sel->n == 0 && sel->defaults < 0 ? core_park_forever(SHM_WR_SELECT)
                                                      : core_park_for(PK_SELECT, (PyObject *)sel);
    Py_DECREF(sel);
    return pk;
}

/* ---- try, park, resume ----------------------------------------------------------------------- */

/* The outcome of a select that need not wait, as resume() finds it: the tag where a wait would have
 * its block. */
static void put_result(struct shm_g *g, uint32_t tag, bool ok, const struct shm_val *v)
{
    g->waitkind = 0;
    g->waitobj = tag;
    g->ok = ok;
    g->value.tag = SHM_VAL_NONE;
    if (ok && TAG_OP(tag) != PK_SEND)
        g->value = *v;
}

static int encode_values(Select *sel)
{
    struct held *h = held_of(sel);
    for (uint32_t i = 0; i < sel->n; i++) {
        if (h[i].v != NULL) {
            if (core_val_encode(sel->prog, h[i].v, &sel->cs[i].v) < 0)
                return -1;
            Py_CLEAR(h[i].v); /* nothing but the goroutine's own frame holds it from here on */
        }
        sel->unsent = i + 1;
    }
    return 0;
}

/* Case `which` is done: its value is the channel's. */
static void put_done(Select *sel, struct shm_g *g, uint32_t which, int r, const struct shm_val *v)
{
    if (r == SHM_OK)
        sel->cs[which].v.tag = SHM_VAL_NONE;
    put_result(g, sel->cs[which].tag, r == SHM_OK, v);
}

/* SHM_OK: a case, or default, is done; SHM_EAGAIN: none is ready. */
static int look(struct shm_ctx *c, Select *sel, struct shm_g *g)
{
    struct shm_val v;
    uint32_t which = 0;
    int r = sel->n > 0 ? shm_select_try(c, sel->cs, sel->n, &which, &v) : SHM_EAGAIN;
    if (r == SHM_EAGAIN && sel->defaults >= 0)
        put_result(g, TAG(sel->defaults, 0), true, &(struct shm_val){.tag = SHM_VAL_NONE});
    else if (r == SHM_OK || r == SHM_ECLOSED)
        put_done(sel, g, which, r, &v);
    else
        return r;
    return SHM_OK;
}

static int select_try(CorePark *pk, PyObject **result)
{
    Select *sel = (Select *)pk->a;
    CoreProg *prog = sel->prog ? sel->prog : core_current("await");
    struct core_proc *s = prog ? core_try_begin(prog) : NULL;
    if (s == NULL || encode_values(sel) < 0)
        return -1;
    if (core_retried(s))
        return 0;
    int r = look(s->c, sel, core_g(s, s->curg));
    if (r == SHM_EAGAIN)
        return 0;
    return r == SHM_OK ? core_try_done(s, pk, result) : core_shm_error(prog, r);
}

static int select_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    Select *sel = (Select *)pk->a;
    struct shm_val v;
    uint32_t which;
    if (sel->defaults >= 0) /* of a goroutine with retries */
        return look(c, sel, shm_g(c, gr));
    int r = shm_select_park(c, sel->cs, sel->n, gr, &which, &v);
    if (r == SHM_PARKED) {
        sel->unsent = 0; /* the values are the wait's */
        return r;
    }
    if (r != SHM_OK && r != SHM_ECLOSED)
        return r;
    put_done(sel, shm_g(c, gr), which, r, &v);
    return SHM_OK;
}

static PyObject *select_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    uint32_t tag = (uint32_t)g->waitobj;
    if (g->waitkind == SHM_WAIT_SELECT)
        shm_select_done(c, core_gref(c, g), &tag);
    if (TAG_OP(tag) == PK_SEND && g->ok != SHM_OK_VALUE) {
        PyErr_SetString(core_err.ChanError, "send on closed channel");
        return NULL;
    }
    PyObject *v = core_val_take(prog, &g->value); /* closed, sent, default: None */
    if (v == NULL)
        return NULL;
    if (TAG_OP(tag) == PK_RECV_OK)
        return Py_BuildValue("I(NO)", TAG_INDEX(tag), v,
                             g->ok == SHM_OK_VALUE ? Py_True : Py_False);
    return Py_BuildValue("IN", TAG_INDEX(tag), v);
}

/* ---- default --------------------------------------------------------------------------------- */

static PyObject *default_repr(PyObject *_)
{
    return PyUnicode_FromString("mpgort.default");
}

static PyObject *default_reduce(PyObject *o, PyObject *_)
{
    return PyUnicode_FromString("default");
}

/* It crosses as a handle that refers to nothing. */
static uint64_t default_word(PyObject *o)
{
    return 0;
}
static PyObject *default_make(uint8_t kind, uint64_t off)
{
    return Py_NewRef(the_default);
}
static PyMethodDef default_methods[] = {
    {"__reduce__", default_reduce, METH_NOARGS, NULL},
    {NULL},
};
static PyTypeObject Default_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.Default",
    .tp_doc = "The type of default, the case of select that is chosen when no other is ready.",
    .tp_basicsize = sizeof(PyObject),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .tp_repr = default_repr,
    .tp_methods = default_methods,
};

static PyMethodDef functions[] = {
    {"select", (PyCFunction)(void (*)(void))mod_select, METH_FASTCALL,
     "select($module, /, *cases)\n--\n\nAwaitable: waits until one of the cases can go on, does it "
     "and gives (index, value).\n\n"
     "A case is a bound method, not a call: ch.recv (value: None once closed and drained),\n"
     "ch.recv_ok (value: a pair), (ch.send, v) (value: None), or default, which is chosen when no\n"
     "other is ready. Of several that are ready each is as likely as the other; a nil channel "
     "never\n"
     "is. Without a case it waits for ever. Raises TypeError for what is no case, ChanError\n"
     "\"send on closed channel\", SerializationError. Source: Go selectgo."},
    {NULL},
};

int core_select_init(PyObject *mod)
{
    static const struct core_handle_type handle = {
        &Default_Type,
        HANDLE_DEFAULT,
        default_word,
        default_make,
    };
    if (PyType_Ready(&Select_Type) < 0 || PyType_Ready(&Default_Type) < 0 ||
        (the_default = PyObject_New(PyObject, &Default_Type)) == NULL ||
        PyModule_AddObjectRef(mod, "default", the_default) < 0 ||
        PyModule_AddFunctions(mod, functions) < 0)
        return -1;
    core_park_tries[PK_SELECT] = select_try;
    core_park_names[PK_SELECT] = "select()";
    core_park_ops[PK_SELECT] = (struct core_park_op){select_park, select_resume, NULL};
    return core_handle_register(&handle);
}
