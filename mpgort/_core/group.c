/* group.c — mpgort.Group: the handle of a block of goroutines (shm/group.c has the rules).
 *
 * The handle can be sent like any other, so a child, or whoever was given it, spawns into the group
 * from any process; only the goroutine that entered the block leaves it. What a block's end does,
 * in what order, is asyncio.TaskGroup's, and stands in Python (mpgort/_group.py): it runs once a
 * block. */
#include "proc.h"

static PyTypeObject Group_Type;

static struct shm_group *group_of(CoreHandle *h)
{
    return shm_at(&h->prog->loop, h->off);
}

/* The loop whose goroutine is the group's parent, or NULL with an exception. */
static struct core_proc *parent_of(CoreHandle *h)
{
    struct core_proc *s = core_try_begin(h->prog);
    if (s == NULL)
        return NULL;
    shm_off parent = group_of(h)->parent;
    if (parent == 0 || core_g(s, s->curg)->obj != parent) {
        PyErr_SetString(PyExc_RuntimeError, "a Group's block is left by the goroutine that "
                                            "entered it");
        return NULL;
    }
    return s;
}

static PyObject *group_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
    static char *names[] = {"limit", NULL};
    PyObject *o = Py_None;
    CoreProg *prog;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:Group", names, &o) ||
        (prog = core_current("Group()")) == NULL)
        return NULL;
    long limit = 0;
    if (o != Py_None) {
        limit = PyLong_AsLong(o);
        if (limit == -1 && PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_OverflowError))
            return PyErr_Format(PyExc_TypeError, "Group(limit=%R): an integer is needed, or None",
                                o);
        PyErr_Clear();
        if (limit < 1 || limit > INT32_MAX)
            return PyErr_Format(PyExc_ValueError, "Group(limit=%R): give 1 or more, or None", o);
    }
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    int r = c ? shm_group_new(c, (uint32_t)limit, &off) : 0;
    if (r < 0)
        core_shm_error(prog, r);
    return c && r == SHM_OK ? core_handle_wrap(prog, HANDLE_GROUP, off) : NULL;
}

static PyObject *group_spawn(PyObject *o, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    CoreHandle *h = (CoreHandle *)o;
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    struct shm_group *gr = group_of(h);
    PyObject *child = core_spawn_call(h->prog, h->off, args, n, names);
    if (child != NULL || !PyErr_ExceptionMatches(core_err.ChanError))
        return child;
    /* SHM_ECLOSED */
    uint32_t state = load_acq(&gr->state); /* final, or about to be: only for the text */
    PyErr_SetString(PyExc_RuntimeError,
                    state == SHM_GR_NEW ? "this Group has not been entered: use it in `async with`"
                    : load_acq(&gr->aborting) ? "this Group is shutting down" /* as above */
                                              : "this Group is finished");
    return NULL;
}

/* ---- the block ------------------------------------------------------------------------------- */

/* An awaitable that gives the group: it is tried, and done, at once. */
static PyObject *group_aenter(CoreHandle *h, PyObject *_)
{
    return core_park_for(PK_GROUP_ENTER, (PyObject *)h);
}

static int enter_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(h->prog);
    shm_off parent = s ? core_self_join(s) : 0;
    if (parent == 0)
        return -1;
    if (core_retried(s))
        return 0;
    if (shm_group_enter(s->c, h->off, parent) != SHM_OK) {
        PyErr_SetString(PyExc_RuntimeError, "this Group has been entered already");
        return -1;
    }
    *result = Py_NewRef(pk->a);
    return 1;
}

/* Of a goroutine with retries: it never waits. Run again, it has entered already. */
static int enter_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct shm_g *g = shm_g(c, gr);
    if (shm_group_enter(c, h->off, g->obj) != SHM_OK && group_of(h)->parent != g->obj) {
        PyErr_SetString(PyExc_RuntimeError, "this Group has been entered already");
        return CORE_EXC;
    }
    g->ok = SHM_OK_VALUE;
    g->value.tag = SHM_VAL_NONE;
    shm_wait_ended(c, g, SHM_OBJ_GROUP, h->off);
    return SHM_OK;
}

static PyObject *enter_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    shm_obj_ref_hand(c, g->waitobj);
    return core_handle_wrap(prog, HANDLE_GROUP, g->waitobj);
}

static PyObject *group_aexit(PyObject *h, PyObject *args)
{
    static PyObject *leave;
    PyObject *type, *exc, *tb;
    if (!PyArg_ParseTuple(args, "OOO:__aexit__", &type, &exc, &tb))
        return NULL;
    if (leave == NULL) {
        PyObject *mod = PyImport_ImportModule("mpgort._group");
        leave = mod ? PyObject_GetAttrString(mod, "leave") : NULL;
        Py_XDECREF(mod);
        if (leave == NULL)
            return NULL;
    }
    return PyObject_CallFunctionObjArgs(leave, h, exc, NULL);
}

static PyObject *group_exiting(CoreHandle *h, PyObject *_)
{
    struct core_proc *s = parent_of(h);
    if (s == NULL)
        return NULL;
    return PyBool_FromLong(shm_group_exiting(s->c, h->off));
}

static PyObject *group_abort(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    if (load_acq(&group_of(h)->aborting)) /* pairs with the commit that sets it */
        Py_RETURN_FALSE;
    shm_group_abort(c, h->off);
    Py_RETURN_TRUE;
}

static PyObject *group_wait(CoreHandle *h, PyObject *_)
{
    return core_park_for(PK_GROUP, (PyObject *)h);
}

static int wait_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = parent_of(h);
    if (s == NULL)
        return -1;
    if (load_acq(&group_of(h)->pending) ||
        core_retried(s)) /* pairs with the commit of the last end */
        return 0;
    *result = Py_NewRef(Py_None);
    return 1;
}

static int wait_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct shm_g *g = shm_g(c, gr);
    shm_obj_ref_hand(c, h->off);
    int r = shm_group_park(c, h->off, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    g->ok = SHM_OK_VALUE;
    g->value.tag = SHM_VAL_NONE;
    return r;
}

static PyObject *wait_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    Py_RETURN_NONE;
}

static PyObject *group_finish(CoreHandle *h, PyObject *_)
{
    struct core_proc *s = parent_of(h);
    if (s == NULL)
        return NULL;
    PyObject *errors = PyList_New(0);
    shm_off off;
    while (errors != NULL && shm_group_error(s->c, h->off, &off)) {
        PyObject *child = core_handle_wrap(h->prog, HANDLE_GOROUTINE, off);
        PyObject *exc = child ? PyObject_CallMethod(child, "exception", NULL) : NULL;
        if (exc == NULL || PyList_Append(errors, exc) < 0)
            Py_CLEAR(errors);
        Py_XDECREF(exc);
        Py_XDECREF(child);
    }
    /* Cancelled from outside too, which the errors will hide: due again, as asyncio has it. */
    struct shm_group *gr = group_of(h);
    struct shm_join *parent = shm_at(s->c, gr->parent);
    if (errors != NULL && PyList_GET_SIZE(errors) > 0 &&
        load_acq(&parent->asked) > gr->asked_before)
        store_seq(&parent->cancel, 1); /* tag: cancel; it runs, and looks at its next park */
    shm_group_finish(s->c, h->off);
    return errors;
}

static PyObject *group_repr(CoreHandle *h)
{
    static const char *states[] = {"new", "open", "exiting", "finished"};
    if (!h->prog->attached)
        return PyUnicode_FromString("<mpgort.Group of an ended runtime>");
    struct shm_group *gr = group_of(h);
    uint32_t n = load_acq(&gr->pending), state = load_acq(&gr->state); /* a glance */
    return PyUnicode_FromFormat("<mpgort.Group %s%s, %u goroutine%s>", states[state & 3],
                                load_acq(&gr->aborting) ? ", shutting down" : "", n,
                                n == 1 ? "" : "s");
}

static PyMethodDef group_methods[] = {
    {"spawn", (PyCFunction)(void (*)(void))group_spawn, METH_FASTCALL | METH_KEYWORDS,
     "spawn($self, fn, /, *args, **kwargs)\n--\n\nStarts fn(*args, **kwargs) as a child of the "
     "block; returns its handle.\n\nNever blocks: at the limit it is queued, in the order of the "
     "calls. RuntimeError\noutside the block, or once the group is shutting down."},
    {"__aenter__", (PyCFunction)group_aenter, METH_NOARGS, NULL},
    {"__aexit__", group_aexit, METH_VARARGS, NULL},
    {"_exiting", (PyCFunction)group_exiting, METH_NOARGS, NULL},
    {"_abort", (PyCFunction)group_abort, METH_NOARGS, NULL},
    {"_wait", (PyCFunction)group_wait, METH_NOARGS, NULL},
    {"_finish", (PyCFunction)group_finish, METH_NOARGS, NULL},
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyTypeObject Group_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.Group",
    .tp_doc = "Group(limit=None)\n--\n\nStructured concurrency: `async with Group() as g: "
              "g.spawn(fn, x)`.\n\nThe block ends when all its goroutines have ended. The first "
              "failure cancels the others, and\nthe block raises an ExceptionGroup. limit: how "
              "many run at once. Source: asyncio.TaskGroup.",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)group_repr,
    .tp_methods = group_methods,
};

int core_group_init(PyObject *mod)
{
    Group_Type.tp_flags &= ~(unsigned long)Py_TPFLAGS_DISALLOW_INSTANTIATION;
    Group_Type.tp_new = group_new;
    if (PyType_Ready(&Group_Type) < 0 ||
        PyModule_AddObjectRef(mod, "Group", (PyObject *)&Group_Type) < 0)
        return -1;
    core_park_tries[PK_GROUP_ENTER] = enter_try;
    core_park_ops[PK_GROUP_ENTER] = (struct core_park_op){enter_park, enter_resume, NULL};
    core_park_ops[PK_GROUP] = (struct core_park_op){wait_park, wait_resume, NULL};
    core_park_tries[PK_GROUP] = wait_try;
    return core_handle_kind(&Group_Type, HANDLE_GROUP);
}
