/* ctxtree.c — the faces of a context: Context, its cancel function, background.
 *
 * What a context is stands in shm/context.c. A Context and its CancelFunc are two handles on one
 * object; the background is the handle on none. An error is made anew each time it is asked for: a
 * shared exception object would keep the traceback, and so the frames, of whoever raised it
 * last. */
#include "proc.h"
#include <math.h>

static PyTypeObject Context_Type, Cancel_Type;
static CoreHandle *background;
static PyObject *canceled, *deadline_exceeded; /* the exception types */
static PyObject *nilchan;

static struct shm_context *ctx_at(CoreHandle *x)
{
    return shm_at(&x->prog->loop, x->off);
}

/* ---- asking ---------------------------------------------------------------------------------- */

/* SHM_CTX_*, or -1 with an exception. */
static int state_of(CoreHandle *x, shm_off *why)
{
    if (x->prog == NULL)
        return SHM_CTX_LIVE;
    struct shm_ctx *c = core_ctx(x->prog);
    return c ? (int)shm_context_state(c, x->off, why) : -1;
}

static PyObject *error(int state)
{
    if (state < 0)
        return NULL;
    if (state == SHM_CTX_LIVE)
        Py_RETURN_NONE;
    return PyObject_CallNoArgs(state == SHM_CTX_DEADLINE ? deadline_exceeded : canceled);
}

static PyObject *context_err(CoreHandle *x, PyObject *_)
{
    return error(state_of(x, NULL));
}

static PyObject *context_done(CoreHandle *x, PyObject *_)
{
    struct shm_ctx *c = x->prog ? core_ctx(x->prog) : NULL;
    shm_off ch = 0;
    if (x->prog != NULL) {
        if (c == NULL)
            return NULL;
        int r = shm_context_done(c, x->off, &ch);
        if (r < 0) {
            core_shm_error(x->prog, r);
            return NULL;
        }
    }
    if (ch == 0)
        return Py_NewRef(nilchan);
    return core_handle_wrap(x->prog, HANDLE_CHAN + 2, ch); /* to receive only */
}

static PyObject *context_deadline(CoreHandle *x, PyObject *_)
{
    if (x->prog == NULL)
        Py_RETURN_NONE;
    if (core_ctx(x->prog) == NULL)
        return NULL;
    uint64_t ns = ctx_at(x)->deadline_ns; /* never changes */
    if (ns == UINT64_MAX)
        Py_RETURN_NONE;
    return PyFloat_FromDouble((double)ns / 1e9);
}

static PyObject *context_value(CoreHandle *x, PyObject *key)
{
    if (x->prog == NULL)
        Py_RETURN_NONE;
    struct shm_ctx *c = core_ctx(x->prog);
    if (c == NULL)
        return NULL;
    /* Those above live as long as this handle, and their keys and values never change. */
    for (shm_off off = x->off; off;) {
        const struct shm_context *at = shm_at(c, off);
        if (at->isvalue) {
            PyObject *k = core_val_peek(x->prog, &at->key);
            int same = k ? PyObject_RichCompareBool(k, key, Py_EQ) : -1;
            Py_XDECREF(k);
            if (same != 0)
                return same < 0 ? NULL : core_val_peek(x->prog, &at->value);
        }
        off = at->parent;
    }
    Py_RETURN_NONE;
}

static PyObject *context_repr(CoreHandle *x)
{
    static const char *const states[] = {"live", "canceled", "deadline exceeded"};
    if (x->prog == NULL)
        return PyUnicode_FromString("mpgort.context.background()");
    if (!x->prog->attached)
        return PyUnicode_FromFormat("<%s of an ended runtime>", Py_TYPE(x)->tp_name);
    int state = state_of(x, NULL);
    return state < 0 ? NULL
                     : PyUnicode_FromFormat("<%s %llu %s>", Py_TYPE(x)->tp_name,
                                            (unsigned long long)x->off, states[state]);
}

static PyObject *context_reduce(CoreHandle *x, PyObject *_)
{
    if (x->prog == NULL)
        return PyUnicode_FromString("background");
    return core_handle_reduce((PyObject *)x, NULL);
}

/* ---- making ---------------------------------------------------------------------------------- */

/* The program in which a child of `parent` is made; *off: parent's object, 0 the background. */
static CoreProg *prog_of(PyObject *parent, const char *who, shm_off *off)
{
    if (parent == Py_None) {
        PyErr_Format(PyExc_TypeError,
                     "%s: cannot create context from nil parent: begin with context.background()",
                     who);
        return NULL;
    }
    if (Py_TYPE(parent) != &Context_Type) {
        PyErr_Format(PyExc_TypeError, "%s: a context is needed, not %.200s", who,
                     Py_TYPE(parent)->tp_name);
        return NULL;
    }
    CoreHandle *x = (CoreHandle *)parent;
    CoreProg *prog = x->prog ? x->prog : core_current(who);
    *off = x->off;
    return prog && core_ctx(prog) ? prog : NULL;
}

/* (ctx, cancel) */
static PyObject *make(CoreProg *prog, shm_off parent, uint64_t deadline)
{
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    int r = shm_context_new(c, parent, deadline, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    PyObject *x = core_handle_wrap(prog, HANDLE_CONTEXT, off), *cancel = NULL, *pair = NULL;
    if (x != NULL) {
        shm_obj_ref_hand(c, off);
        cancel = core_handle_wrap(prog, HANDLE_CANCEL, off);
    }
    if (cancel != NULL)
        pair = PyTuple_Pack(2, x, cancel);
    Py_XDECREF(x);
    Py_XDECREF(cancel);
    return pair;
}

static PyObject *mod_with_cancel(PyObject *mod, PyObject *parent)
{
    shm_off off;
    CoreProg *prog = prog_of(parent, "with_cancel", &off);
    return prog ? make(prog, off, UINT64_MAX) : NULL;
}

static PyObject *mod_with_timeout(PyObject *mod, PyObject *args)
{
    PyObject *parent, *seconds;
    shm_off off;
    uint64_t when;
    CoreProg *prog;
    if (!PyArg_ParseTuple(args, "OO:with_timeout", &parent, &seconds) ||
        core_when_ns(seconds, "with_timeout", &when) < 0 ||
        (prog = prog_of(parent, "with_timeout", &off)) == NULL)
        return NULL;
    return make(prog, off, when);
}

static PyObject *mod_with_deadline(PyObject *mod, PyObject *args)
{
    PyObject *parent, *when;
    double t;
    shm_off off;
    if (!PyArg_ParseTuple(args, "OO:with_deadline", &parent, &when))
        return NULL;
    if (!core_number(when, "with_deadline", "a time of time.monotonic()", &t))
        return NULL;
    CoreProg *prog = prog_of(parent, "with_deadline", &off);
    return prog ? make(prog, off,
                       t > 1.8e10 ? UINT64_MAX
                       : t > 0    ? (uint64_t)ceil(t * 1e9)
                                  : 1)
                : NULL;
}

static PyObject *mod_with_value(PyObject *mod, PyObject *args)
{
    PyObject *parent, *key, *value;
    shm_off off, at;
    struct shm_val k, v;
    if (!PyArg_ParseTuple(args, "OOO:with_value", &parent, &key, &value))
        return NULL;
    CoreProg *prog = prog_of(parent, "with_value", &off);
    if (prog == NULL)
        return NULL;
    if (key == Py_None) {
        PyErr_SetString(PyExc_TypeError, "with_value: nil key: None cannot be one");
        return NULL;
    }
    if (core_val_encode(prog, key, &k) < 0)
        return NULL;
    struct shm_ctx *c = core_ctx(prog);
    if (core_val_encode(prog, value, &v) < 0) {
        shm_val_drop(c, &k);
        return NULL;
    }
    int r = shm_context_value(c, off, &k, &v, &at);
    if (r < 0) {
        shm_val_drop(c, &k);
        shm_val_drop(c, &v);
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_CONTEXT, at);
}

static PyObject *mod_cause(PyObject *mod, PyObject *ctx)
{
    if (Py_TYPE(ctx) != &Context_Type) {
        PyErr_Format(PyExc_TypeError, "cause: a context is needed, not %.200s",
                     Py_TYPE(ctx)->tp_name);
        return NULL;
    }
    CoreHandle *x = (CoreHandle *)ctx;
    shm_off why = 0;
    int state = state_of(x, &why);
    if (state <= SHM_CTX_LIVE)
        return error(state);
    /* Its own cause or one's above: complete before the state, and never changed. */
    const struct shm_context *w = shm_at(&x->prog->loop, why);
    return w->cause.tag == SHM_VAL_NONE ? error(state) : core_exc_peek(x->prog, &w->cause);
}

static PyObject *cancel_call(CoreHandle *x, PyObject *args, PyObject *kw)
{
    static char *names[] = {"cause", NULL};
    PyObject *cause = Py_None;
    struct shm_val val = {.tag = SHM_VAL_NONE};
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:cancel", names, &cause))
        return NULL;
    if (cause != Py_None && !PyExceptionInstance_Check(cause)) {
        PyErr_Format(PyExc_TypeError, "cancel: a cause is an exception, not %.200s",
                     Py_TYPE(cause)->tp_name);
        return NULL;
    }
    int state = state_of(x, NULL);
    if (state != SHM_CTX_LIVE) {
        if (state < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    if (cause != Py_None && core_exc_store(x->prog, cause, &val) < 0)
        return NULL;
    shm_context_cancel(core_ctx(x->prog), x->off, SHM_CTX_CANCELED, &val);
    Py_RETURN_NONE;
}

/* ---- the module's part ----------------------------------------------------------------------- */

static PyMethodDef context_methods[] = {
    {"done", (PyCFunction)context_done, METH_NOARGS,
     "done()\n--\n\nThe channel that is closed when the context is cancelled; nilchan if it never "
     "can be.\nMade when it is asked for first."},
    {"err", (PyCFunction)context_err, METH_NOARGS,
     "err()\n--\n\nNone, or an exception equal to context.CANCELED or context.DEADLINE_EXCEEDED. "
     "Takes no lock."},
    {"deadline", (PyCFunction)context_deadline, METH_NOARGS,
     "deadline()\n--\n\nWhen it will be cancelled, in time.monotonic(); None: at no set time."},
    {"value", (PyCFunction)context_value, METH_O,
     "value(key)\n--\n\nA copy of the value that with_value set nearest above for a key equal to "
     "this; or None."},
    {"__reduce__", (PyCFunction)context_reduce, METH_NOARGS, NULL},
    {NULL},
};

static PyMethodDef cancel_methods[] = {
    CORE_HANDLE_REDUCE,
    {NULL},
};

static PyTypeObject Context_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.context.Context",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)context_repr,
    .tp_doc =
        "A context: carries a deadline, a cancellation and values, the same in every process. "
        "Made by\nbackground, with_cancel, with_deadline, with_timeout and with_value.",
    .tp_methods = context_methods,
};

static PyTypeObject Cancel_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.context.CancelFunc",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)context_repr,
    .tp_call = (ternaryfunc)cancel_call,
    .tp_doc =
        "cancel(cause=None) cancels the context it was returned with and all below it. Only the "
        "first call\ncounts; from any process. cause: an exception, for context.cause().",
    .tp_methods = cancel_methods,
};

static PyMethodDef functions[] = {
    {"with_cancel", mod_with_cancel, METH_O,
     "with_cancel(parent)\n--\n\n(ctx, cancel): ctx ends when cancel() is called or its parent "
     "ends."
     "\n\nRaises TypeError for None. Source: Go context.WithCancelCause."},
    {"with_timeout", mod_with_timeout, METH_VARARGS,
     "with_timeout(parent, seconds)\n--\n\n(ctx, cancel): with_deadline, `seconds` from now."},
    {"with_deadline", mod_with_deadline, METH_VARARGS,
     "with_deadline(parent, t)\n--\n\n(ctx, cancel): ctx ends at t (time.monotonic()), at its "
     "parent's deadline, when cancel()\nis called or its parent ends, whatever comes first."},
    {"with_value", mod_with_value, METH_VARARGS,
     "with_value(parent, key, value)\n--\n\nA context in which value(key) is a copy of value.\n\n"
     "Raises TypeError for a key or parent None; SerializationError if one cannot cross."},
    {"cause", mod_cause, METH_O,
     "cause(ctx)\n--\n\nWhy it was cancelled: what was given to cancel(), here or above, else "
     "ctx.err()."},
    {NULL},
};

int core_ctxtree_init(PyObject *mod)
{
    PyObject *errors = PyImport_ImportModule("mpgort._errors");
    if (errors == NULL || (canceled = PyObject_GetAttrString(errors, "Canceled")) == NULL ||
        (deadline_exceeded = PyObject_GetAttrString(errors, "DeadlineExceeded")) == NULL ||
        (nilchan = PyObject_GetAttrString(mod, "nilchan")) == NULL)
        return -1;
    Py_DECREF(errors);
    if (PyType_Ready(&Context_Type) < 0 || PyType_Ready(&Cancel_Type) < 0 ||
        core_handle_kind(&Context_Type, HANDLE_CONTEXT) < 0 ||
        core_handle_kind(&Cancel_Type, HANDLE_CANCEL) < 0 ||
        (background = PyObject_New(CoreHandle, &Context_Type)) == NULL)
        return -1;
    background->prog = NULL;
    background->off = 0;
    background->kind = HANDLE_CONTEXT;
    background->weakrefs = NULL;
    core_handle_nil(HANDLE_CONTEXT, (PyObject *)background);
    if (PyModule_AddObjectRef(mod, "Context", (PyObject *)&Context_Type) < 0 ||
        PyModule_AddObjectRef(mod, "CancelFunc", (PyObject *)&Cancel_Type) < 0 ||
        PyModule_AddObjectRef(mod, "background", (PyObject *)background) < 0)
        return -1;
    return PyModule_AddFunctions(mod, functions);
}
