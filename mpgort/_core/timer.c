/* timer.c — the faces of timers: Timer, Ticker, after, after_func.
 *
 * What a timer is and means stands in shm/ticker.c. A Timer with a channel and that channel are two
 * handles on one object; an after_func's Timer is a handle on another sort of object, with no
 * channel. The value that a timer will send is made when the timer is: a float as the codec writes
 * it, in place, whose last eight bytes whoever fires it replaces by the time. So a keeper, which
 * has no Python to ask, fires timers too. */
#include "proc.h"
#include <math.h>

static PyTypeObject Timer_Type, Ticker_Type;

static struct shm_ctx *ctx_of(CoreHandle *t)
{
    return core_ctx(t->prog);
}

static bool is_func(CoreHandle *t)
{
    return shm_kind(shm_at(&t->prog->loop, t->off)) == SHM_OBJ_TIMER;
}

#define NEVER_S 9e9 /* 285 years */

bool core_number(PyObject *o, const char *who, const char *what, double *number)
{
    *number = PyFloat_AsDouble(o);
    if (*number == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: %s is needed, not %.200s", who, what,
                         Py_TYPE(o)->tp_name);
        return false;
    }
    if (isnan(*number)) {
        PyErr_Format(PyExc_ValueError, "%s: %s is needed, not nan", who, what);
        return false;
    }
    return true;
}

int core_when_ns(PyObject *seconds, const char *who, uint64_t *when_ns)
{
    double s;
    if (!core_number(seconds, who, CORE_SECONDS, &s))
        return -1;
    /* Rounded up: not before. */
    *when_ns = s > NEVER_S ? UINT64_MAX : shm_now_ns() + (s > 0 ? (uint64_t)ceil(s * 1e9) : 0);
    return 0;
}

/* A ticker's first time and its period. */
static int period_ns(PyObject *seconds, const char *who, uint64_t *when_ns, uint64_t *period)
{
    if (core_when_ns(seconds, who, when_ns) < 0)
        return -1;
    double s = PyFloat_AsDouble(seconds);
    if (s <= 0) {
        PyErr_Format(PyExc_ValueError, "non-positive interval for %s", who);
        return -1;
    }
    *period = *when_ns == UINT64_MAX ? UINT64_MAX : (uint64_t)ceil(s * 1e9);
    return 0;
}

/* A new timer as a handle of that kind. */
static PyObject *make(CoreProg *prog, uint8_t kind, uint64_t when, uint64_t period)
{
    struct shm_ctx *c = core_ctx(prog);
    PyObject *zero = PyFloat_FromDouble(0.0);
    struct shm_val tick;
    shm_off off;
    if (c == NULL || zero == NULL || core_val_encode(prog, zero, &tick) < 0) {
        Py_XDECREF(zero);
        return NULL;
    }
    Py_DECREF(zero);
    if (tick.tag < sizeof(double) || tick.tag > sizeof tick.b) {
        PyErr_SetString(PyExc_SystemError, "a float does not stand in place in a message");
        return NULL;
    }
    int r = shm_timer_new(c, &tick, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    PyObject *t = core_handle_wrap(prog, kind, off);
    bool was;
    if (t != NULL && (r = shm_timer_reset(c, off, when, period, &was)) < 0) {
        core_shm_error(prog, r);
        Py_CLEAR(t);
    }
    return t;
}

static PyObject *timer_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
    static char *names[] = {"seconds", NULL};
    PyObject *s;
    CoreProg *prog;
    uint64_t when, period = 0;
    bool ticker = type == &Ticker_Type;
    if (!PyArg_ParseTupleAndKeywords(args, kw, ticker ? "O:Ticker" : "O:Timer", names, &s) ||
        (ticker ? period_ns(s, "Ticker", &when, &period) : core_when_ns(s, "Timer", &when)) < 0 ||
        (prog = core_current(ticker ? "Ticker()" : "Timer()")) == NULL)
        return NULL;
    return make(prog, ticker ? HANDLE_TICKER : HANDLE_TIMER, when, period);
}

static PyObject *timer_c(CoreHandle *t, void *_)
{
    struct shm_ctx *c = ctx_of(t);
    if (c == NULL)
        return NULL;
    if (is_func(t))
        Py_RETURN_NONE;
    shm_obj_ref_hand(c, t->off);
    return core_handle_wrap(t->prog, HANDLE_CHAN + 2, t->off); /* to receive only */
}

static PyObject *timer_stop(CoreHandle *t, PyObject *_)
{
    struct shm_ctx *c = ctx_of(t);
    if (c == NULL)
        return NULL;
    return PyBool_FromLong(is_func(t) ? shm_afterfunc_stop(c, t->off) : shm_timer_stop(c, t->off));
}

static PyObject *timer_reset(CoreHandle *t, PyObject *seconds)
{
    struct shm_ctx *c = ctx_of(t);
    uint64_t when;
    bool was;
    if (c == NULL || core_when_ns(seconds, "Timer.reset", &when) < 0)
        return NULL;
    int r = is_func(t) ? shm_afterfunc_reset(c, t->off, when, &was)
                       : shm_timer_reset(c, t->off, when, 0, &was);
    if (r < 0) {
        core_shm_error(t->prog, r);
        return NULL;
    }
    return PyBool_FromLong(was);
}

static PyObject *ticker_stop(CoreHandle *t, PyObject *_)
{
    struct shm_ctx *c = ctx_of(t);
    if (c == NULL)
        return NULL;
    shm_timer_stop(c, t->off);
    Py_RETURN_NONE;
}

static PyObject *ticker_reset(CoreHandle *t, PyObject *seconds)
{
    struct shm_ctx *c = ctx_of(t);
    uint64_t when, period;
    bool was;
    if (c == NULL || period_ns(seconds, "Ticker.reset", &when, &period) < 0)
        return NULL;
    int r = shm_timer_reset(c, t->off, when, period, &was);
    if (r < 0) {
        core_shm_error(t->prog, r);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *timer_repr(CoreHandle *t)
{
    return PyUnicode_FromFormat(t->prog->attached ? "<%s %llu>" : "<%s of an ended runtime>",
                                Py_TYPE(t)->tp_name, (unsigned long long)t->off);
}

/* ---- the module's part ----------------------------------------------------------------------- */

static PyObject *mod_after(PyObject *mod, PyObject *seconds)
{
    uint64_t when;
    CoreProg *prog;
    if (core_when_ns(seconds, "after", &when) < 0 || (prog = core_current("after()")) == NULL)
        return NULL;
    return make(prog, HANDLE_CHAN + 2, when, 0);
}

/* after_func(seconds, fn, *args, **kwargs) */
static PyObject *mod_after_func(PyObject *mod, PyObject *args, PyObject *kw)
{
    uint64_t when;
    CoreProg *prog;
    shm_gref g;
    shm_off off;
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n < 2) {
        PyErr_SetString(PyExc_TypeError, "after_func: seconds and a function are needed");
        return NULL;
    }
    PyObject *fn = PyTuple_GET_ITEM(args, 1);
    if (core_when_ns(PyTuple_GET_ITEM(args, 0), "after_func", &when) < 0 ||
        !core_callable(fn, "after_func") || (prog = core_current("after_func()")) == NULL)
        return NULL;
    PyObject *rest = PyTuple_GetSlice(args, 2, n);
    if (rest == NULL || core_gnew(prog, fn, rest, kw, 0, SHM_GF_GO, &g) < 0) {
        Py_XDECREF(rest);
        return NULL;
    }
    Py_DECREF(rest);
    struct shm_ctx *c = core_ctx(prog);
    int r = shm_afterfunc_new(c, g, when, &off);
    if (r < 0) {
        core_gdrop(c, g);
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_TIMER, off);
}

static PyMethodDef timer_methods[] = {
    {"stop", (PyCFunction)timer_stop, METH_NOARGS,
     "stop()\n--\n\nTrue if it was active, or had fired and nobody had received its value, which "
     "is then\ndropped. After it nothing is received, no function is started. Source: Go 1.23 "
     "Timer.Stop."},
    {"reset", (PyCFunction)timer_reset, METH_O,
     "reset(seconds)\n--\n\nLets it fire (once) `seconds` from now, whatever it was to do; returns "
     "what stop()\nwould have. Source: Go 1.23 Timer.Reset."},
    CORE_HANDLE_REDUCE,
    {NULL},
};

static PyMethodDef ticker_methods[] = {
    {"stop", (PyCFunction)ticker_stop, METH_NOARGS,
     "stop()\n--\n\nNo more ticks; .c is not closed. Source: Go Ticker.Stop."},
    {"reset", (PyCFunction)ticker_reset, METH_O,
     "reset(seconds)\n--\n\nA new period; the next tick comes after one. Raises ValueError if it "
     "is not positive."},
    CORE_HANDLE_REDUCE,
    {NULL},
};

static PyGetSetDef timer_getset[] = {
    {"c", (getter)timer_c, NULL,
     "The channel on which time.monotonic() arrives when it fires; None of an after_func.", NULL},
    {NULL},
};

static PyTypeObject Timer_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.Timer",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)timer_repr,
    .tp_doc =
        "Timer(seconds)\n--\n\nSends time.monotonic() on .c once, `seconds` from now. Infinite: "
        "never. Nobody need stop\nit: one that nobody can reach is gone. Source: Go "
        "time.NewTimer, with the meaning of 1.23.",
    .tp_methods = timer_methods,
    .tp_getset = timer_getset,
};

static PyTypeObject Ticker_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.Ticker",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)timer_repr,
    .tp_doc =
        "Ticker(seconds)\n--\n\nSends time.monotonic() on .c every `seconds`; ticks for which "
        "nobody is ready are dropped.\n\nRaises ValueError \"non-positive interval for "
        "Ticker\". Source: Go time.NewTicker.",
    .tp_methods = ticker_methods,
    .tp_getset = timer_getset,
};

static PyMethodDef functions[] = {
    {"after", mod_after, METH_O,
     "after(seconds)\n--\n\nA channel on which time.monotonic() arrives once, `seconds` from "
     "now.\n\n"
     "Source: Go time.After."},
    {"after_func", (PyCFunction)(void (*)(void))mod_after_func, METH_VARARGS | METH_KEYWORDS,
     "after_func(seconds, fn, /, *args, **kwargs)\n--\n\nStarts fn(*args, **kwargs) as by go(), "
     "`seconds` from now, unless the Timer that it returns\nis stopped before. Source: Go "
     "time.AfterFunc."},
    {NULL},
};

int core_timer_init(PyObject *mod)
{
    PyTypeObject *types[] = {&Timer_Type, &Ticker_Type};
    for (uint8_t i = 0; i < 2; i++) {
        types[i]->tp_flags &= ~Py_TPFLAGS_DISALLOW_INSTANTIATION;
        types[i]->tp_new = timer_new;
        if (PyType_Ready(types[i]) < 0 || core_handle_kind(types[i], HANDLE_TIMER + i) < 0 ||
            PyModule_AddObjectRef(mod, i ? "Ticker" : "Timer", (PyObject *)types[i]) < 0)
            return -1;
    }
    return PyModule_AddFunctions(mod, functions);
}
