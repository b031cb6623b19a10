/* pool.c — what the pools (_engine.py) need of C: a queue of ended goroutines, a chunk's loop, and
 * the way out of its results.
 *
 * A DoneQueue starts goroutines (`spawn`) and gives their handles back as they end (`take`): the
 * very objects that spawn returned, so whoever took part finds them in a dict. See shm/doneq.c for
 * why it is no channel.
 *
 * RUN_CHUNK is map()'s inner loop on a worker: one call per item with nothing between two calls but
 * a look at the preempt request. The length of a chunk is a guess from the items before it; where
 * the guess was bad, the request (after 10 ms) ends the chunk early, and the rest is sent back to
 * be dealt out anew.
 *
 * A DRAIN gives the reader of a map one item after the other out of the lists that chunks have sent
 * (_job.py), and holds none that it has given: a result may be large. In Python, a generator over a
 * chain over list.pop, it cost more than all else that its process does for an item. */
#include "proc.h"
#include <stddef.h>

static PyTypeObject DoneQueue_Type;

/* ---- waiting --------------------------------------------------------------------------------- */

static PyObject *take(CoreHandle *q, uint32_t most)
{
    shm_off joins[SHM_DONEQ_BATCH];
    struct shm_ctx *c = core_ctx(q->prog);
    if (c == NULL)
        return NULL;
    uint32_t n = shm_doneq_take(c, q->off, joins, most), i = 0;
    PyObject *list = PyList_New(n);
    for (; list != NULL && i < n; i++) {
        PyObject *h = core_handle_wrap(q->prog, HANDLE_GOROUTINE, joins[i]);
        if (h == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, h);
    }
    for (; i < n; i++)
        shm_obj_unref(c, joins[i]);
    return list;
}

static int doneq_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *q = (CoreHandle *)pk->a;
    shm_obj_ref_hand(c, q->off); /* the wait's; core_wait_end() gives it back */
    int r = shm_doneq_park(c, q->off, gr);
    if (r != SHM_PARKED)
        shm_obj_unref(c, q->off);
    return r;
}

static PyObject *doneq_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    Py_RETURN_NONE;
}

static PyObject *doneq_take(CoreHandle *q, PyObject *args, PyObject *kw)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    int64_t ns;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:take", names, &timeout) ||
        (ns = core_timeout_ns(timeout)) == -2)
        return NULL;
    uint64_t end = ns < 0 ? UINT64_MAX : shm_now_ns() + (uint64_t)ns;
    for (;;) {
        PyObject *list = take(q, SHM_DONEQ_BATCH);
        if (list == NULL || PyList_GET_SIZE(list) > 0 || ns == 0)
            return list;
        Py_DECREF(list);
        uint64_t now = ns < 0 ? 0 : shm_now_ns();
        PyObject *pk = core_park_for(PK_DONEQ, (PyObject *)q), *r = NULL;
        if (pk != NULL)
            r = core_block(q->prog, (CorePark *)pk,
                           ns < 0      ? -1
                           : now < end ? (int64_t)(end - now)
                                       : 0);
        Py_XDECREF(pk);
        if (r == NULL) {
            if (!PyErr_ExceptionMatches(PyExc_TimeoutError))
                return NULL;
            PyErr_Clear();
            return take(q, SHM_DONEQ_BATCH);
        }
        Py_DECREF(r);
    }
}

static PyObject *doneq_spawn(CoreHandle *q, PyObject *args)
{
    PyObject *fn, *a, *kw = NULL;
    unsigned retries = 0;
    if (!PyArg_ParseTuple(args, "OO!|O!I:spawn", &fn, &PyTuple_Type, &a, &PyDict_Type, &kw,
                          &retries))
        return NULL;
    return core_spawn(q->prog, fn, a, kw, q->off, retries);
}

static PyObject *doneq_start(CoreHandle *q, PyObject *args)
{
    PyObject *fn, *a, *kw;
    int go;
    if (!PyArg_ParseTuple(args, "OO!O!p:start", &fn, &PyTuple_Type, &a, &PyDict_Type, &kw, &go) ||
        (kw = PyDict_Copy(kw)) == NULL)
        return NULL;
    PyObject *h = core_spawn_options(q->prog, fn, a, kw, 0, q->off, go);
    Py_DECREF(kw);
    return h;
}

static PyObject *mod_done_queue(PyObject *mod, PyObject *prog)
{
    if (!PyObject_TypeCheck(prog, &CoreProg_Type))
        return PyErr_Format(PyExc_TypeError, "a Program is needed, not %R", prog);
    struct shm_ctx *c = core_ctx((CoreProg *)prog);
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_doneq_new(c, &off);
    if (r < 0) {
        core_shm_error((CoreProg *)prog, r);
        return NULL;
    }
    return core_handle_wrap((CoreProg *)prog, HANDLE_DONEQ, off);
}

/* ---- a chunk --------------------------------------------------------------------------------- */

static PyObject *mod_run_chunk(PyObject *mod, PyObject *args)
{
    PyObject *fn, *items, *results;
    Py_ssize_t i;
    int star;
    if (!PyArg_ParseTuple(args, "OO!nO!p:run_chunk", &fn, &PyList_Type, &items, &i, &PyList_Type,
                          &results, &star))
        return NULL;
    struct core_proc *s = core_proc_cur;
    for (; i < PyList_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(items, i));
        PyObject *v;
        if (star) {
            PyObject *t = PySequence_Tuple(item); /* starmap takes any iterable */
            v = t ? PyObject_CallObject(fn, t) : NULL;
            Py_XDECREF(t);
        } else {
            v = PyObject_CallOneArg(fn, item);
        }
        Py_DECREF(item);
        if (v == NULL)
            return NULL;
        int r = PyList_Append(results, v);
        Py_DECREF(v);
        if (r < 0)
            return NULL;
        if (s != NULL && core_preempt_due(s)) {
            i++;
            break;
        }
    }
    return PyLong_FromSsize_t(i);
}

typedef struct {
    PyObject_HEAD PyObject *parts; /* an iterator: lists */
    PyObject *list;                /* or NULL: its items [at, ...) are still to be given */
    Py_ssize_t at;
} Drain;

static PyObject *drain_new(PyTypeObject *type, PyObject *args, PyObject *kw)
{
    PyObject *parts;
    if (!PyArg_ParseTuple(args, "O:Drain", &parts))
        return NULL;
    if (!PyIter_Check(parts))
        return PyErr_Format(PyExc_TypeError, "an iterator is needed, not %R", parts);
    Drain *d = (Drain *)type->tp_alloc(type, 0);
    if (d != NULL)
        d->parts = Py_NewRef(parts);
    return (PyObject *)d;
}

/* Another thread may have been here while this one waited for its list: both lists count. */
static int drain_more(Drain *d)
{
    PyObject *parts = Py_XNewRef(d->parts);
    PyObject *list = parts ? Py_TYPE(parts)->tp_iternext(parts) : NULL;
    int r = 0;
    Py_XDECREF(parts);
    if (list == NULL)
        return -1;
    if (!PyList_CheckExact(list)) {
        PyErr_Format(PyExc_TypeError, "a list is needed, not %R", list);
        r = -1;
    } else if (d->list == NULL) {
        d->list = Py_NewRef(list);
        d->at = 0;
    } else {
        Py_ssize_t end = PyList_GET_SIZE(d->list);
        r = PyList_SetSlice(d->list, end, end, list);
    }
    Py_DECREF(list);
    return r;
}

static PyObject *drain_next(Drain *d)
{
    while (d->list == NULL || d->at == PyList_GET_SIZE(d->list)) {
        Py_CLEAR(d->list);
        if (drain_more(d) < 0)
            return NULL;
    }
    PyObject *item = PyList_GET_ITEM(d->list, d->at);
    PyList_SET_ITEM(d->list, d->at++, Py_NewRef(Py_None));
    return item;
}

static PyObject *drain_close(Drain *d, PyObject *unused)
{
    Py_CLEAR(d->list);
    return PyObject_CallMethod(d->parts, "close", NULL);
}

static int drain_traverse(Drain *d, visitproc visit, void *arg)
{
    Py_VISIT(d->parts);
    Py_VISIT(d->list);
    return 0;
}

static int drain_clear(Drain *d)
{
    Py_CLEAR(d->parts);
    Py_CLEAR(d->list);
    return 0;
}

static void drain_dealloc(Drain *d)
{
    PyObject_GC_UnTrack(d);
    drain_clear(d);
    Py_TYPE(d)->tp_free(d);
}

static PyMethodDef drain_methods[] = {
    {"close", (PyCFunction)drain_close, METH_NOARGS,
     "close()\n--\n\nNothing more is given: closes parts, a generator."},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};

static PyTypeObject Drain_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.Drain",
    .tp_doc =
        "Drain(parts)\n--\n\nThe items of the lists that the iterator `parts` gives, each "
        "forgotten as it\nis given. An exception of parts is raised; the next call asks again.",
    .tp_basicsize = sizeof(Drain),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .tp_new = drain_new,
    .tp_dealloc = (destructor)drain_dealloc,
    .tp_traverse = (traverseproc)drain_traverse,
    .tp_clear = (inquiry)drain_clear,
    .tp_iter = PyObject_SelfIter,
    .tp_iternext = (iternextfunc)drain_next,
    .tp_methods = drain_methods,
};

/* What exc_encode() has made on a worker: its numbers are those of the program's table. */
static PyObject *mod_exc_from(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    Py_buffer b;
    if (!PyArg_ParseTuple(args, "O!y*:exc_from", &CoreProg_Type, &prog, &b))
        return NULL;
    struct core_entered was = core_enter(prog);
    PyObject *exc = core_exc_decode(b.buf, (size_t)b.len, NULL);
    core_leave(was);
    PyBuffer_Release(&b);
    return exc;
}

/* ---- the module's part ----------------------------------------------------------------------- */

static PyMethodDef doneq_methods[] = {
    {"spawn", (PyCFunction)doneq_spawn, METH_VARARGS,
     "spawn(fn, args, kwargs={}, retries=0)\n--\n\nStarts fn(*args, **kwargs); the handle comes "
     "out of take() once it has ended."},
    {"start", (PyCFunction)doneq_start, METH_VARARGS,
     "start(fn, args, kwargs, go)\n--\n\nThe same, kwargs being read as those of the public spawn, "
     "or with `go` as those of go."},
    {"take", (PyCFunction)(void (*)(void))doneq_take, METH_VARARGS | METH_KEYWORDS,
     "take(timeout=None)\n--\n\nHandles of goroutines that have ended, in that order; waits for "
     "the first.\n\nAn empty list after `timeout` seconds. For plain threads and functions."},
    CORE_HANDLE_REDUCE,
    {NULL},
};

static PyTypeObject DoneQueue_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.DoneQueue",
    .tp_doc = "Goroutines, and their ends in the order in which they came.",
    CORE_HANDLE_SLOTS,
    .tp_methods = doneq_methods,
};

static PyMethodDef functions[] = {
    {"done_queue", mod_done_queue, METH_O, "done_queue(prog)\n--\n\nA new DoneQueue."},
    {"run_chunk", mod_run_chunk, METH_VARARGS,
     "run_chunk(fn, items, start, results, star)\n--\n\nAppends fn(item), or fn(*item), to results "
     "for items[start:], until a preemption\nis due. Returns how far it came; after an exception "
     "len(results) says so."},
    {"exc_from", mod_exc_from, METH_VARARGS,
     "exc_from(prog, bytes)\n--\n\nThe exception that exc_encode() has written in that program."},
    {NULL},
};

int core_pool_init(PyObject *mod)
{
    if (PyType_Ready(&DoneQueue_Type) < 0 || PyType_Ready(&Drain_Type) < 0 ||
        PyModule_AddFunctions(mod, functions) < 0 ||
        PyModule_AddObjectRef(mod, "DoneQueue", (PyObject *)&DoneQueue_Type) < 0 ||
        PyModule_AddObjectRef(mod, "Drain", (PyObject *)&Drain_Type) < 0)
        return -1;
    core_park_ops[PK_DONEQ] = (struct core_park_op){doneq_park, doneq_resume, NULL};
    return core_handle_kind(&DoneQueue_Type, HANDLE_DONEQ);
}
