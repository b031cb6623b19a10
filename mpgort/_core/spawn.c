/* spawn.c — go and spawn: what is called, with which of spawn's own keywords, by whom.
 *
 * The keywords timeout, retries, durable and priority are taken out of the call's; what is left is
 * the function's. The goroutine itself is made in life.c; in a group, or for a queue of those that
 * have ended, its join says so before it can run. */
#include "proc.h"

bool core_callable(PyObject *fn, const char *who)
{
    if (PyCallable_Check(fn))
        return true;
    PyErr_Format(PyExc_TypeError,
                 PyCoro_CheckExact(fn)
                     ? "%s: pass the function and its arguments, not a call of it: "
                       "%s(f, x), not %s(f(x))"
                     : "%s: a function is needed, not %.200s",
                 who, PyCoro_CheckExact(fn) ? who : Py_TYPE(fn)->tp_name, who);
    if (PyCoro_CheckExact(fn)) { /* its "never awaited" warning would say the same again */
        PyObject *type, *value, *tb, *r;
        PyErr_Fetch(&type, &value, &tb);
        if ((r = PyObject_CallMethod(fn, "close", NULL)) == NULL)
            PyErr_Clear();
        Py_XDECREF(r);
        PyErr_Restore(type, value, tb);
    }
    return false;
}

uint8_t core_inherited(CoreProg *prog)
{
    shm_gref me = core_curg(prog);
    return me ? shm_g(core_ctx(prog), me)->flags & SHM_GF_BATCH : 0;
}

/* "normal" or "batch" into flags. */
static int take_priority(PyObject *kw, uint8_t *flags)
{
    PyObject *name = PyDict_GetItemString(kw, "priority");
    if (name == NULL)
        return 0;
    bool text = PyUnicode_Check(name);
    if (text && PyUnicode_CompareWithASCIIString(name, "batch") == 0) {
        *flags |= SHM_GF_BATCH;
    } else if (text && PyUnicode_CompareWithASCIIString(name, "normal") == 0) {
        *flags &= (uint8_t)~SHM_GF_BATCH;
    } else {
        PyErr_Format(text ? PyExc_ValueError : PyExc_TypeError,
                     "spawn(priority=%R): give \"normal\" or \"batch\"; for a function that takes "
                     "priority itself, use functools.partial",
                     name);
        return -1;
    }
    return PyDict_DelItemString(kw, "priority");
}

static PyObject *do_go(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw, shm_off group)
{
    if (!core_callable(fn, "go") ||
        core_newproc(prog, fn, args, kw, 0, SHM_GF_GO | core_inherited(prog)) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *core_spawn(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw, shm_off doneq,
                     uint32_t retries)
{
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    if (c == NULL || !core_callable(fn, "submit"))
        return NULL;
    int r = shm_join_new(c, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    shm_doneq_attach(c, doneq, off);
    if (retries > 0 && (r = shm_retry_new(c, off, retries)) < 0)
        core_shm_error(prog, r);
    if (r < 0 || core_newproc(prog, fn, args, kw, off, 0) < 0) {
        shm_doneq_detach(c, off);
        shm_obj_unref(c, off);
        shm_obj_unref(c, off);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_GOROUTINE, off);
}

/* How often, from an int of 0 or more; -1: exception. */
static int64_t retries_of(PyObject *o)
{
    long long n = PyLong_Check(o) ? PyLong_AsLongLong(o) : -1;
    if (n >= 0)
        return n < INT32_MAX ? n : INT32_MAX;
    if (!PyLong_Check(o) || !PyErr_Occurred())
        PyErr_Format(PyLong_Check(o) ? PyExc_ValueError : PyExc_TypeError,
                     "spawn(retries=%R): give a number of 0 or more; for a function that takes "
                     "retries itself, use functools.partial",
                     o);
    return -1;
}

PyObject *core_spawn_options(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw,
                             shm_off group, shm_off doneq, bool go)
{
    if (!core_callable(fn, go ? "go" : "spawn"))
        return NULL;
    uint8_t flags = core_inherited(prog) | (go ? SHM_GF_GO : 0);
    int64_t timeout_ns = -1, retries = 0;
    if (!go && kw != NULL && PyDict_GET_SIZE(kw) > 0) { /* a dict of this call's own */
        PyObject *durable = PyDict_GetItemString(kw, "durable");
        if (durable != NULL) {
            int yes = PyObject_IsTrue(durable);
            if (yes < 0 || PyDict_DelItemString(kw, "durable") < 0)
                return NULL;
            flags |= yes ? SHM_GF_DURABLE : 0;
        }
        if (take_priority(kw, &flags) < 0)
            return NULL;
        PyObject *timeout = PyDict_GetItemString(kw, "timeout");
        if (timeout != NULL && ((timeout_ns = core_timeout_ns(timeout)) == -2 ||
                                PyDict_DelItemString(kw, "timeout") < 0))
            return NULL;
        PyObject *n = PyDict_GetItemString(kw, "retries");
        if (n != NULL && ((retries = retries_of(n)) < 0 || PyDict_DelItemString(kw, "retries") < 0))
            return NULL;
    }
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_join_new(c, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    if (group != 0)
        shm_join_group(c, off, group);
    if (doneq != 0)
        shm_doneq_attach(c, doneq, off);
    /* The handle first: its reference stands in this M's table if the M dies after the start. */
    PyObject *h = core_handle_wrap(prog, HANDLE_GOROUTINE, off);
    if (h != NULL && retries > 0)
        r = shm_retry_new(c, off, (uint32_t)retries);
    if (h != NULL && r == SHM_OK && timeout_ns >= 0)
        r = shm_join_deadline(c, off, shm_now_ns() + (uint64_t)timeout_ns);
    if (r < 0)
        core_shm_error(prog, r);
    if (h == NULL || r < 0 || core_newproc(prog, fn, args, kw, off, flags) < 0) {
        if (doneq != 0)
            shm_doneq_detach(c, off);
        shm_obj_unref(c, off);
        Py_CLEAR(h);
    }
    return h;
}

static PyObject *do_spawn(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw, shm_off group)
{
    return core_spawn_options(prog, fn, args, kw, group, 0, false);
}

typedef PyObject *starter(CoreProg *, PyObject *, PyObject *, PyObject *, shm_off);

/* fn, *args, **kwargs of the public go and spawn. */
static PyObject *from_call(starter *f, const char *who, CoreProg *prog, shm_off group,
                           PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    if (n < 1) {
        PyErr_Format(PyExc_TypeError, "%s: a function is needed", who);
        return NULL;
    }
    if (prog == NULL && (prog = core_current(who)) == NULL)
        return NULL;
    PyObject *rest = PyTuple_New(n - 1), *kw = NULL, *res = NULL;
    if (rest == NULL)
        return NULL;
    for (Py_ssize_t i = 1; i < n; i++)
        PyTuple_SET_ITEM(rest, i - 1, Py_NewRef(args[i]));
    if (names != NULL && PyTuple_GET_SIZE(names) > 0) {
        if ((kw = PyDict_New()) == NULL)
            goto end;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); i++)
            if (PyDict_SetItem(kw, PyTuple_GET_ITEM(names, i), args[n + i]) < 0)
                goto end;
    }
    res = f(prog, args[0], rest, kw, group);
end:
    Py_DECREF(rest);
    Py_XDECREF(kw);
    return res;
}

static PyObject *mod_go(PyObject *mod, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return from_call(do_go, "go", NULL, 0, args, n, names);
}
static PyObject *mod_spawn(PyObject *mod, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return from_call(do_spawn, "spawn", NULL, 0, args, n, names);
}

PyObject *core_spawn_call(CoreProg *prog, shm_off group, PyObject *const *args, Py_ssize_t n,
                          PyObject *names)
{
    return from_call(do_spawn, "spawn", prog, group, args, n, names);
}

static PyObject *start_in(starter *f, PyObject *a)
{
    CoreProg *prog;
    PyObject *fn, *args, *kw;
    if (!PyArg_ParseTuple(a, "O!OO!O!", &CoreProg_Type, &prog, &fn, &PyTuple_Type, &args,
                          &PyDict_Type, &kw))
        return NULL;
    PyObject *copy = PyDict_Copy(kw);
    PyObject *res = copy ? f(prog, fn, args, copy, 0) : NULL;
    Py_XDECREF(copy);
    return res;
}
static PyObject *mod_go_in(PyObject *mod, PyObject *args)
{
    return start_in(do_go, args);
}
static PyObject *mod_spawn_in(PyObject *mod, PyObject *args)
{
    return start_in(do_spawn, args);
}

static PyMethodDef functions[] = {
    {"go", (PyCFunction)(void (*)(void))mod_go, METH_FASTCALL | METH_KEYWORDS,
     "go($module, fn, /, *args, **kwargs)\n--\n\nStarts fn(*args, **kwargs) as a goroutine, as "
     "Go's go statement.\n\nArguments pass by value. An exception that leaves it is a panic and "
     "ends the program.\nRaises TypeError, SerializationError, OutOfSharedMemory. Source: Go "
     "newproc."},
    {"spawn", (PyCFunction)(void (*)(void))mod_spawn, METH_FASTCALL | METH_KEYWORDS,
     "spawn($module, fn, /, *args, **kwargs)\n--\n\nAs go, but returns a handle to await, which "
     "gets the value or exception.\n\ntimeout=s: killed s seconds from now (TimeoutError). "
     "durable=True: never heavy, its\ncontinuation is in shared memory at every park. retries=n: "
     "when its worker dies it is run\nagain from its last await, or its start, n times at most: "
     "what was awaited is neither repeated\nnor lost; plain calls since then may be repeated. What "
     "cannot be stored is a SerializationError\nat the await. priority=\"batch\": runs when "
     "nothing else is to; \"normal\"; by default its creator's.\nThese keywords are spawn's own: "
     "use functools.partial for a function's."},
    {"go_in", mod_go_in, METH_VARARGS, NULL},
    {"spawn_in", mod_spawn_in, METH_VARARGS, NULL},
    {NULL},
};

int core_spawn_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, functions);
}
