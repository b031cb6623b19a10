/* park.c — the park request: what an awaitable of the runtime yields to the M's loop.
 *
 * It is an iterator of one step and a value. The first step runs the operation's `try`; one that
 * has to wait yields the request itself, which comes out of the coroutine on the scheduler's stack.
 * Resumed through it (chain.c mostly goes past it), it gives `result`, raises `exc` or passes on
 * what was sent. One is made per await: they are kept in a pool, and the collector is told of few
 * (core_park_holds). */
#include "codec.h"

#define PARK_POOL 64
static CorePark *park_pool[PARK_POOL];
static int n_park_pool;
core_park_try core_park_tries[CORE_PARK_KINDS];
const char *core_park_names[CORE_PARK_KINDS];

CorePark *core_park_new(int kind)
{
    CorePark *pk;
    if (n_park_pool > 0) {
        pk = park_pool[--n_park_pool];
        _Py_NewReference((PyObject *)pk);
    } else {
        pk = PyObject_GC_New(CorePark, &CorePark_Type);
        if (pk == NULL)
            return NULL;
    }
    pk->kind = kind;
    pk->state = 0;
    pk->result = pk->exc = pk->a = pk->b = NULL;
    pk->u[0] = pk->u[1] = 0;
    return pk;
}

static int park_clear(CorePark *pk)
{
    Py_CLEAR(pk->result);
    Py_CLEAR(pk->exc);
    Py_CLEAR(pk->a);
    Py_CLEAR(pk->b);
    return 0;
}

/* `ch.send(v)` alone does nothing, which a program may take long to notice; as with a coroutine. */
SHM_COLD static void never_awaited(const CorePark *pk)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    if (PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "%s was never awaited: it has done nothing",
                         core_park_names[pk->kind]) < 0)
        PyErr_WriteUnraisable(NULL);
    PyErr_Restore(type, value, tb);
}

static void park_dealloc(CorePark *pk)
{
    if (unlikely(pk->state == 0) && pk->kind >= 0 && pk->kind < CORE_PARK_KINDS &&
        core_park_names[pk->kind] != NULL)
        never_awaited(pk);
    if (_PyObject_GC_IS_TRACKED(pk))
        PyObject_GC_UnTrack(pk);
    park_clear(pk);
    if (n_park_pool < PARK_POOL)
        park_pool[n_park_pool++] = pk;
    else
        PyObject_GC_Del(pk);
}

static int park_traverse(CorePark *pk, visitproc visit, void *arg)
{
    Py_VISIT(pk->result);
    Py_VISIT(pk->exc);
    Py_VISIT(pk->a);
    Py_VISIT(pk->b);
    return 0;
}

static PyObject *park_await(PyObject *pk)
{
    return Py_NewRef(pk);
}

/* One step of `await park`; value: what it was resumed with, NULL for None. */
static PySendResult park_step(CorePark *pk, PyObject *value, PyObject **out)
{
    PyObject *result = NULL;
    *out = NULL;
    if (pk->state == 0) {
        core_park_try try =
            pk->kind >= 0 && pk->kind < CORE_PARK_KINDS ? core_park_tries[pk->kind] : NULL;
        int r = try != NULL ? try(pk, &result) : 0;
        if (r < 0) {
            pk->state = 2;
            return PYGEN_ERROR;
        }
        if (r == 0) {
            pk->state = 1;
            *out = Py_NewRef(pk);
            return PYGEN_NEXT;
        }
        pk->state = 2;
        *out = result != NULL ? result : Py_NewRef(Py_None);
        return PYGEN_RETURN;
    }
    if (pk->state == 2) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited operation");
        return PYGEN_ERROR;
    }
    pk->state = 2;
    if (pk->exc != NULL) {
        PyObject *exc = pk->exc;
        pk->exc = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
        return PYGEN_ERROR;
    }
    if (pk->result != NULL) {
        *out = pk->result;
        pk->result = NULL;
    } else {
        *out = Py_NewRef(value != NULL ? value : Py_None);
    }
    return PYGEN_RETURN;
}

static PySendResult park_am_send(PyObject *pk, PyObject *value, PyObject **out)
{
    return park_step((CorePark *)pk, value, out);
}

static PyObject *park_result(PySendResult r, PyObject *out)
{
    if (r == PYGEN_RETURN) {
        if (out != Py_None)
            raise_stop_iteration(out); /* takes over */
        else
            Py_DECREF(out); /* NULL without an exception: StopIteration(None) */
        return NULL;
    }
    return out;
}

static PyObject *park_next(PyObject *pk)
{
    PyObject *out;
    PySendResult r = park_step((CorePark *)pk, NULL, &out);
    return park_result(r, out);
}

static PyObject *park_send(PyObject *pk, PyObject *value)
{
    PyObject *out;
    PySendResult r = park_step((CorePark *)pk, value, &out);
    if (r == PYGEN_RETURN && out == Py_None) {
        raise_stop_iteration(out);
        return NULL;
    }
    return park_result(r, out);
}

static PyMethodDef park_methods[] = {
    {"send", park_send, METH_O, "Resumes the awaiter with a value."},
    {NULL},
};
static PyAsyncMethods park_async = {.am_await = park_await, .am_send = park_am_send};

PyTypeObject CorePark_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.Park",
    .tp_basicsize = sizeof(CorePark),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = (destructor)park_dealloc,
    .tp_traverse = (traverseproc)park_traverse,
    .tp_clear = (inquiry)park_clear,
    .tp_as_async = &park_async,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = park_next,
    .tp_methods = park_methods,
    .tp_doc = "What an awaitable of the runtime yields to the scheduler.",
};

int core_park_init(PyObject *mod)
{
    if ((core_errors = PyImport_ImportModule("mpgort._errors")) == NULL ||
        core_code_init(mod) < 0 || PyType_Ready(&CorePark_Type) < 0)
        return -1;
    return PyModule_AddObjectRef(mod, "Park", (PyObject *)&CorePark_Type);
}
