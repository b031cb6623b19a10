/* chan.c — the face of a channel: type Chan, nilchan, the awaitables of send and recv.
 *
 * What a channel is and how peers meet stands in shm/chan.c; this file turns Python values into
 * bytes and back and says which exception an outcome is. An awaitable is a park request: its `try`
 * runs when it is awaited, so an operation that need not wait never leaves the coroutine.
 *
 * A send encodes its value once, in the try: the bytes stay in the request (u[0], u[1] hold one
 * shm_val) until the park takes them over, so a value that cannot cross fails at the call, and what
 * the sender changes after the call is not seen.
 *
 * Views of one direction are handles of the same channel: they are equal and hash alike, but for
 * their kind in bytes. */
#include "sync.h"
#include <stddef.h>

enum { DIR_BOTH = 0, DIR_SEND = 1, DIR_RECV = 2 };

/* Chan and its two views, by direction: the codec knows a handle's kind by its type. */
static PyTypeObject chan_types[3];
#define Chan_Type chan_types[DIR_BOTH]
static CoreHandle *nilchan;

static uint8_t dir_of(const CoreHandle *ch)
{
    return (uint8_t)(ch->kind - HANDLE_CHAN);
}

static struct shm_chan *hchan(CoreHandle *ch)
{
    return shm_at(&ch->prog->loop, ch->off);
}

static PyObject *chan_error(const char *text)
{
    PyErr_SetString(core_err.ChanError, text);
    return NULL;
}

/* ---- operations ------------------------------------------------------------------------------ */

static int send_try(CorePark *pk, PyObject **result)
{
    CoreHandle *ch = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(ch->prog);
    struct shm_val v;
    if (s == NULL || core_val_encode(ch->prog, pk->b, &v) < 0)
        return -1;
    Py_CLEAR(pk->b);
    if (core_retried(s)) {
        memcpy(pk->u, &v, sizeof v);
        return 0;
    }
    struct shm_g *g = core_g(s, s->curg);
    int r = shm_chan_trysend(s->c, ch->off, &v);
    if (r == SHM_EAGAIN && s->curhome == NULL && shm_chan_send_soon(s->c, ch->off))
        r = shm_chan_trysend(s->c, ch->off, &v);
    if (r == SHM_EAGAIN) {
        memcpy(pk->u, &v, sizeof v);
        return 0;
    }
    if (r < 0) {
        shm_val_drop(s->c, &v);
        if (r == SHM_ECLOSED)
            chan_error("send on closed channel");
        else
            core_shm_error(ch->prog, r);
        return -1;
    }
    g->ok = SHM_OK_VALUE;
    g->value.tag = SHM_VAL_NONE;
    return core_try_done(s, pk, result);
}

static void send_drop(struct shm_ctx *c, CorePark *pk)
{
    struct shm_val v;
    memcpy(&v, pk->u, sizeof v);
    shm_val_drop(c, &v);
}

static int send_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *ch = (CoreHandle *)pk->a;
    struct shm_g *g = shm_g(c, gr);
    struct shm_val v;
    memcpy(&v, pk->u, sizeof v);
    shm_obj_ref_hand(c, ch->off);
    int r = shm_chan_send_park(c, ch->off, &v, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, ch->off);
    if (r < 0)
        shm_val_drop(c, &v);
    if (r != SHM_OK && r != SHM_ECLOSED)
        return r;
    g->ok = r == SHM_OK;
    g->value.tag = SHM_VAL_NONE;
    return SHM_OK;
}

static PyObject *send_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_VALUE)
        Py_RETURN_NONE;
    shm_val_drop(c, &g->value); /* what was not sent */
    g->value.tag = SHM_VAL_NONE;
    return chan_error("send on closed channel");
}

static int recv_try(CorePark *pk, PyObject **result)
{
    CoreHandle *ch = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(ch->prog);
    if (s == NULL)
        return -1;
    if (core_retried(s))
        return 0;
    struct shm_g *g = core_g(s, s->curg);
    struct shm_val v; /* not g's: it is written before the channel lets go of it (reap.c) */
    int r = shm_chan_tryrecv(s->c, ch->off, &v);
    if (r == SHM_EAGAIN && s->curhome == NULL && shm_chan_recv_soon(s->c, ch->off))
        r = shm_chan_tryrecv(s->c, ch->off, &v);
    if (r == SHM_EAGAIN)
        return 0;
    if (r != SHM_OK && r != SHM_ECLOSED)
        return core_shm_error(ch->prog, r);
    g->ok = r == SHM_OK;
    if (!g->ok)
        v.tag = SHM_VAL_NONE;
    g->value = v;
    return core_try_done(s, pk, result);
}

static int recv_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *ch = (CoreHandle *)pk->a;
    struct shm_g *g = shm_g(c, gr);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    shm_obj_ref_hand(c, ch->off);
    int r = shm_chan_recv_park(c, ch->off, &v, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, ch->off);
    if (r != SHM_OK && r != SHM_ECLOSED)
        return r;
    g->ok = r == SHM_OK;
    g->value = v;
    if (!g->ok)
        g->value.tag = SHM_VAL_NONE;
    return SHM_OK;
}

static PyObject *recv_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    return core_val_take(prog, &g->value); /* closed: no value, None */
}

static PyObject *recv_ok_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    bool ok = g->ok == SHM_OK_VALUE;
    PyObject *v = core_val_take(prog, &g->value);
    if (v == NULL)
        return NULL;
    PyObject *t = PyTuple_Pack(2, v, ok ? Py_True : Py_False);
    Py_DECREF(v);
    return t;
}

static PyObject *anext_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_VALUE)
        return core_val_take(prog, &g->value);
    PyErr_SetNone(PyExc_StopAsyncIteration);
    return NULL;
}

static int forever_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    uint64_t epoch = shm_wait_next(g);
    g->waitkind = 0;
    g->ok = SHM_OK_NONE;
    g->value.tag = SHM_VAL_NONE;
    shm_park_commit(c, gr, (unsigned)pk->u[0], epoch);
    return SHM_PARKED;
}

static PyObject *none_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    Py_RETURN_NONE;
}

PyObject *core_park_forever(unsigned reason)
{
    CorePark *pk = core_park_new(PK_FOREVER);
    if (pk != NULL)
        pk->u[0] = reason;
    return (PyObject *)pk;
}

/* ---- methods --------------------------------------------------------------------------------- */

static bool may(CoreHandle *ch, uint8_t dir)
{
    if (dir_of(ch) == DIR_BOTH || dir_of(ch) == dir)
        return true;
    PyErr_SetString(PyExc_TypeError, dir == DIR_SEND ? "send on a receive-only channel"
                                                     : "receive on a send-only channel");
    return false;
}

static PyObject *chan_send(CoreHandle *ch, PyObject *v)
{
    if (!may(ch, DIR_SEND))
        return NULL;
    if (ch->prog == NULL)
        return core_park_forever(SHM_WR_CHAN_SEND_NIL);
    CorePark *pk = core_park_new(PK_SEND);
    if (pk != NULL) {
        pk->a = Py_NewRef((PyObject *)ch);
        pk->b = Py_NewRef(v);
        core_park_holds(pk, v);
    }
    return (PyObject *)pk;
}

static PyObject *recv_any(CoreHandle *ch, int op)
{
    if (!may(ch, DIR_RECV))
        return NULL;
    if (ch->prog == NULL)
        return core_park_forever(SHM_WR_CHAN_RECV_NIL);
    return core_park_for(op, (PyObject *)ch);
}
static PyObject *chan_recv(CoreHandle *ch, PyObject *_)
{
    return recv_any(ch, PK_RECV);
}
static PyObject *chan_recv_ok(CoreHandle *ch, PyObject *_)
{
    return recv_any(ch, PK_RECV_OK);
}
static PyObject *chan_anext(PyObject *ch)
{
    return recv_any((CoreHandle *)ch, PK_ANEXT);
}

static PyObject *chan_aiter(PyObject *ch)
{
    return may((CoreHandle *)ch, DIR_RECV) ? Py_NewRef(ch) : NULL;
}

bool core_is_chan(PyObject *o)
{
    return PyObject_TypeCheck(o, &Chan_Type);
}

int core_chan_method(PyObject *o, CoreHandle **ch)
{
    if (!PyCFunction_Check(o) || PyCFunction_GET_SELF(o) == NULL ||
        !core_is_chan(PyCFunction_GET_SELF(o)))
        return 0;
    PyCFunction f = PyCFunction_GET_FUNCTION(o);
    int op = f == (PyCFunction)chan_send      ? PK_SEND
             : f == (PyCFunction)chan_recv    ? PK_RECV
             : f == (PyCFunction)chan_recv_ok ? PK_RECV_OK
                                              : 0;
    *ch = (CoreHandle *)PyCFunction_GET_SELF(o);
    return op != 0 && !may(*ch, op == PK_SEND ? DIR_SEND : DIR_RECV) ? -1 : op;
}

static PyObject *chan_close(CoreHandle *ch, PyObject *_)
{
    if (dir_of(ch) == DIR_RECV) {
        PyErr_SetString(PyExc_TypeError, "close of a receive-only channel");
        return NULL;
    }
    if (ch->prog == NULL)
        return chan_error("close of nil channel");
    struct shm_ctx *c = core_ctx(ch->prog);
    if (c == NULL)
        return NULL;
    int r = shm_chan_close(c, ch->off);
    if (r == SHM_ECLOSED)
        return chan_error("close of closed channel");
    if (r < 0) {
        core_shm_error(ch->prog, r);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *chan_put(CoreHandle *ch, PyObject *args, PyObject *kw)
{
    static char *names[] = {"v", "timeout", NULL};
    PyObject *v, *timeout = Py_None;
    int64_t ns;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O|O:put", names, &v, &timeout) ||
        !may(ch, DIR_SEND) || (ns = core_timeout_ns(timeout)) == -2)
        return NULL;
    if (ch->prog == NULL)
        return chan_error("put on nil channel waits for ever: use await nilchan.send(v)");
    struct shm_ctx *c = core_ctx(ch->prog);
    struct shm_val val;
    if (c == NULL || core_val_encode(ch->prog, v, &val) < 0)
        return NULL;
    int r = shm_chan_trysend(c, ch->off, &val);
    if (r == SHM_OK)
        Py_RETURN_NONE;
    if (r != SHM_EAGAIN) {
        shm_val_drop(c, &val);
        if (r == SHM_ECLOSED)
            return chan_error("send on closed channel");
        core_shm_error(ch->prog, r);
        return NULL;
    }
    CorePark *pk = core_park_new(PK_SEND);
    if (pk == NULL) {
        shm_val_drop(c, &val);
        return NULL;
    }
    pk->a = Py_NewRef((PyObject *)ch);
    memcpy(pk->u, &val, sizeof val);
    PyObject *res = core_block(ch->prog, pk, ns);
    Py_DECREF(pk);
    return res;
}

static PyObject *chan_get(CoreHandle *ch, PyObject *args, PyObject *kw)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    int64_t ns;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:get", names, &timeout) || !may(ch, DIR_RECV) ||
        (ns = core_timeout_ns(timeout)) == -2)
        return NULL;
    if (ch->prog == NULL)
        return chan_error("get on nil channel waits for ever: use await nilchan.recv()");
    struct shm_ctx *c = core_ctx(ch->prog);
    struct shm_val val;
    if (c == NULL)
        return NULL;
    int r = shm_chan_tryrecv(c, ch->off, &val);
    if (r == SHM_OK)
        return core_val_take(ch->prog, &val);
    if (r == SHM_EAGAIN) {
        PyObject *pk = core_park_for(PK_RECV_OK, (PyObject *)ch);
        PyObject *t = pk ? core_block(ch->prog, (CorePark *)pk, ns) : NULL;
        Py_XDECREF(pk);
        if (t == NULL)
            return NULL;
        PyObject *v = PyTuple_GET_ITEM(t, 1) == Py_True ? Py_NewRef(PyTuple_GET_ITEM(t, 0)) : NULL;
        Py_DECREF(t);
        if (v != NULL)
            return v;
        r = SHM_ECLOSED;
    }
    if (r == SHM_ECLOSED)
        PyErr_SetString(core_err.Closed, "channel is closed and drained");
    else
        core_shm_error(ch->prog, r);
    return NULL;
}

static PyObject *view(CoreHandle *ch, uint8_t dir)
{
    if (!may(ch, dir))
        return NULL;
    if (ch->prog == NULL || dir_of(ch) == dir)
        return Py_NewRef((PyObject *)ch);
    struct shm_ctx *c = core_ctx(ch->prog);
    if (c == NULL)
        return NULL;
    shm_obj_ref_hand(c, ch->off);
    return core_handle_wrap(ch->prog, (uint8_t)(HANDLE_CHAN + dir), ch->off);
}
static PyObject *chan_send_only(CoreHandle *ch, PyObject *_)
{
    return view(ch, DIR_SEND);
}
static PyObject *chan_recv_only(CoreHandle *ch, PyObject *_)
{
    return view(ch, DIR_RECV);
}

static PyObject *chan_as_queue(PyObject *ch, PyObject *_)
{
    CoreProg *prog = ((CoreHandle *)ch)->prog;
    PyObject *unfinished = prog == NULL
                               ? Py_NewRef(Py_None)
                               : core_sync_in(prog, HANDLE_WAITGROUP, SHM_SY_WAITGROUP, 0, 0);
    PyObject *mod = unfinished ? PyImport_ImportModule("mpgort._queue") : NULL;
    PyObject *q = mod ? PyObject_CallMethod(mod, "Queue", "OO", ch, unfinished) : NULL;
    Py_XDECREF(mod);
    Py_XDECREF(unfinished);
    return q;
}

static Py_ssize_t chan_len(PyObject *self)
{
    CoreHandle *ch = (CoreHandle *)self;
    if (ch->prog == NULL)
        return 0;
    if (core_ctx(ch->prog) == NULL)
        return -1;
    struct shm_chan *h = hchan(ch);
    /* A timer's passes for unbuffered. A glance: pairs with the stores under the lock. */
    return h->timer ? 0 : load_acq(&h->qcount);
}

static PyObject *chan_cap(CoreHandle *ch, void *_)
{
    if (ch->prog == NULL)
        return PyLong_FromLong(0);
    if (core_ctx(ch->prog) == NULL)
        return NULL;
    return PyLong_FromUnsignedLong(hchan(ch)->timer ? 0 : hchan(ch)->cap); /* as chan_len() */
}

static PyObject *chan_repr(CoreHandle *ch)
{
    if (ch->prog == NULL)
        return PyUnicode_FromString("<mpgort.nilchan>");
    const char *dir = dir_of(ch) == DIR_SEND   ? " send-only"
                      : dir_of(ch) == DIR_RECV ? " recv-only"
                                               : "";
    if (!ch->prog->attached)
        return PyUnicode_FromFormat("<mpgort.Chan of an ended runtime%s>", dir);
    struct shm_chan *h = hchan(ch);
    return PyUnicode_FromFormat("<mpgort.Chan %llu%s len=%u cap=%u%s>", (unsigned long long)h->id,
                                dir, h->timer ? 0 : load_acq(&h->qcount),
                                h->timer ? 0 : h->cap, /* as len() */
                                load_acq(&h->closed) ? " closed" : "");
}

static PyObject *chan_reduce(CoreHandle *ch, PyObject *_)
{
    if (ch->prog == NULL)
        return PyUnicode_FromString("nilchan");
    return core_handle_reduce((PyObject *)ch, NULL);
}

static int chan_bool(PyObject *ch)
{
    return 1;
} /* though len() may be 0 */

/* ---- the module's part ----------------------------------------------------------------------- */

static PyObject *chan_new(CoreProg *prog, PyObject *size)
{
    struct shm_ctx *c = core_ctx(prog);
    if (c == NULL)
        return NULL;
    int64_t n = 0;
    if (size != NULL && !core_int64(size, "chan", &n))
        return NULL;
    if (n < 0 || n > UINT32_MAX / 32) {
        PyErr_Format(PyExc_ValueError, "chan: size out of range: %lld (0 to %u messages)",
                     (long long)n, UINT32_MAX / 32);
        return NULL;
    }
    shm_off off;
    int r = shm_chan_new(c, (uint32_t)n, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_CHAN, off);
}

static PyObject *mod_chan(PyObject *mod, PyObject *args, PyObject *kw)
{
    static char *names[] = {"size", NULL};
    PyObject *size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:chan", names, &size))
        return NULL;
    CoreProg *prog = core_current("chan()");
    return prog ? chan_new(prog, size) : NULL;
}

static PyObject *mod_chan_in(PyObject *mod, PyObject *args)
{
    CoreProg *prog;
    PyObject *size = NULL;
    if (!PyArg_ParseTuple(args, "O!|O:chan_in", &CoreProg_Type, &prog, &size))
        return NULL;
    return chan_new(prog, size);
}

static PyMethodDef chan_methods[] = {
    {"send", (PyCFunction)chan_send, METH_O,
     "send(v)\n--\n\nAwaitable: sends v by value.\n\n"
     "Waits while the buffer is full (unbuffered: until a receiver takes it). Raises ChanError\n"
     "\"send on closed channel\"; SerializationError if v cannot cross. Source: Go chansend."},
    {"recv", (PyCFunction)chan_recv, METH_NOARGS,
     "recv()\n--\n\nAwaitable: the next value, or None "
     "once the channel is closed and drained.\n\nSource: Go chanrecv."},
    {"recv_ok", (PyCFunction)chan_recv_ok, METH_NOARGS,
     "recv_ok()\n--\n\nAwaitable: (value, True), or "
     "(None, False) once the channel is closed and drained."},
    {"close", (PyCFunction)chan_close, METH_NOARGS,
     "close()\n--\n\nCloses the channel: receivers drain "
     "the buffer, then get None; senders raise ChanError.\n\nRaises ChanError \"close of closed "
     "channel\". Source: Go closechan."},
    {"put", (PyCFunction)(void (*)(void))chan_put, METH_VARARGS | METH_KEYWORDS,
     "put(v, timeout=None)\n--\n\nSends from a plain thread or function, which blocks.\n\nRaises "
     "TimeoutError after `timeout` seconds, ChanError if the channel is closed."},
    {"get", (PyCFunction)(void (*)(void))chan_get, METH_VARARGS | METH_KEYWORDS,
     "get(timeout=None)\n--\n\nReceives in a plain thread or function, which blocks.\n\nRaises "
     "TimeoutError after `timeout` seconds, Closed once the channel is closed and drained."},
    {"send_only", (PyCFunction)chan_send_only, METH_NOARGS,
     "send_only()\n--\n\nThe same channel, for "
     "sending only: TypeError on receive."},
    {"recv_only", (PyCFunction)chan_recv_only, METH_NOARGS,
     "recv_only()\n--\n\nThe same channel, for "
     "receiving only: TypeError on send and close."},
    {"as_queue", chan_as_queue, METH_NOARGS,
     "as_queue()\n--\n\nThe same channel with the methods of multiprocessing.Queue: put and get "
     "with block and timeout,\nput_nowait, get_nowait, qsize, empty, full; raises queue.Empty, "
     "queue.Full."},
    {"__reduce__", (PyCFunction)chan_reduce, METH_NOARGS, NULL},
    {"__class_getitem__", Py_GenericAlias, METH_O | METH_CLASS, NULL},
    {NULL},
};
static PyGetSetDef chan_getset[] = {
    {"cap", (getter)chan_cap, NULL, "Messages the buffer holds."},
    {NULL},
};
static PyAsyncMethods chan_async = {.am_aiter = chan_aiter, .am_anext = chan_anext};
static PySequenceMethods chan_sequence = {.sq_length = chan_len};
static PyNumberMethods chan_number = {.nb_bool = chan_bool};
#define CHAN_TYPE(name, doc, base)                     \
    {                                                  \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = name, \
        .tp_doc = doc,                                 \
        .tp_base = base,                               \
        CORE_HANDLE_SLOTS,                             \
        .tp_repr = (reprfunc)chan_repr,                \
        .tp_as_async = &chan_async,                    \
        .tp_as_sequence = &chan_sequence,              \
        .tp_as_number = &chan_number,                  \
        .tp_methods = chan_methods,                    \
        .tp_getset = chan_getset,                      \
    }
static PyTypeObject chan_types[3] = {
    CHAN_TYPE("mpgort.Chan",
              "A channel of Go, shared by all processes of the program; made by chan(size).\n\n"
              "Handles of one channel are equal and hash alike in every process.",
              NULL),
    CHAN_TYPE("mpgort.SendChan", "The sending side of a Chan.", &Chan_Type),
    CHAN_TYPE("mpgort.RecvChan", "The receiving side of a Chan.", &Chan_Type),
};

static PyMethodDef functions[] = {
    {"chan", (PyCFunction)(void (*)(void))mod_chan, METH_VARARGS | METH_KEYWORDS,
     "chan(size=0)\n--\n\nA new channel whose buffer holds `size` messages.\n\nRaises "
     "OutOfSharedMemory when the heap is full. Source: Go makechan."},
    {"chan_in", mod_chan_in, METH_VARARGS, NULL},
    {NULL},
};

int core_chan_init(PyObject *mod)
{
    for (int dir = DIR_BOTH; dir <= DIR_RECV; dir++)
        if (PyType_Ready(&chan_types[dir]) < 0)
            return -1;
    if (PyModule_AddFunctions(mod, functions) < 0 ||
        PyModule_AddObjectRef(mod, "Chan", (PyObject *)&Chan_Type) < 0)
        return -1;
    nilchan = PyObject_New(CoreHandle, &Chan_Type);
    if (nilchan == NULL)
        return -1;
    nilchan->prog = NULL;
    nilchan->off = 0;
    nilchan->slot = 0;
    nilchan->kind = HANDLE_CHAN;
    nilchan->weakrefs = NULL;
    if (PyModule_AddObjectRef(mod, "nilchan", (PyObject *)nilchan) < 0)
        return -1;
    core_park_ops[PK_SEND] = (struct core_park_op){send_park, send_resume, send_drop};
    core_park_ops[PK_RECV] = (struct core_park_op){recv_park, recv_resume, NULL};
    core_park_ops[PK_RECV_OK] = (struct core_park_op){recv_park, recv_ok_resume, NULL};
    core_park_ops[PK_ANEXT] = (struct core_park_op){recv_park, anext_resume, NULL};
    core_park_ops[PK_FOREVER] = (struct core_park_op){forever_park, none_resume, NULL};
    core_park_tries[PK_SEND] = send_try;
    core_park_names[PK_SEND] = "Chan.send()";
    core_park_names[PK_RECV] = "Chan.recv()";
    core_park_names[PK_RECV_OK] = "Chan.recv_ok()";
    core_park_tries[PK_RECV] = core_park_tries[PK_RECV_OK] = core_park_tries[PK_ANEXT] = recv_try;
    for (uint8_t dir = DIR_BOTH; dir <= DIR_RECV; dir++) {
        if (core_handle_kind(&chan_types[dir], (uint8_t)(HANDLE_CHAN + dir)) < 0)
            return -1;
        core_handle_nil((uint8_t)(HANDLE_CHAN + dir), (PyObject *)nilchan);
    }
    return 0;
}
