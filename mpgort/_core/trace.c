/* trace.c — the execution trace as Python sees it; the rings are shm/trace.c.
 *
 * It makes the stack of a park a number before the park, and turns events into rows. Stacks and the
 * names users give their parks stand in the code table: equal ones are one entry, and what a
 * process wrote there is read after its death. */
#include "codec.h"
#include "proc.h"

#define RING_EVENTS 32768 /* 1 MiB an M */

/* The number of a payload made by mpgort._code.trace_payload(kind, what); 0: it could not be. */
uint32_t core_intern(struct shm_ctx *c, const char *kind, PyObject *what)
{
    Py_buffer hash, payload;
    uint32_t id = 0;
    PyObject *t = PyObject_CallMethod(core_code_py, "trace_payload", "sO", kind, what);
    if (t != NULL && PyArg_ParseTuple(t, "y*y*", &hash, &payload)) {
        if (shm_code_intern(c, hash.buf, payload.buf, (size_t)payload.len, &id) < 0)
            id = 0;
        PyBuffer_Release(&hash);
        PyBuffer_Release(&payload);
    }
    Py_XDECREF(t);
    PyErr_Clear(); /* a trace without a stack is better than no program */
    return id;
}

/* Called before the goroutine whose chain is root parks in pk: the next event has its stack. */
void core_trace_stack(struct shm_ctx *c, PyObject *root, CorePark *pk)
{
    PyObject *frames = core_live_frames(root);
    if (frames == NULL) {
        PyErr_Clear();
        return;
    }
    if (pk->kind == PK_GOPARK) { /* (unlockf, lock, reason, trace_ev, traceskip) */
        PyObject *name = PyTuple_GET_ITEM(pk->a, 3);
        Py_ssize_t n = PyList_GET_SIZE(frames), skip = PyLong_AsSsize_t(PyTuple_GET_ITEM(pk->a, 4));
        if (skip > 0)
            PyList_SetSlice(frames, skip < n ? n - skip : 0, n, NULL);
        if (name != Py_None)
            c->trace_name = core_intern(c, "event", name);
    }
    c->trace_stack = core_intern(c, "stack", frames);
    Py_DECREF(frames);
    PyErr_Clear();
}

static CoreProg *prog_arg(PyObject *args, const char *who)
{
    PyObject *o = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &o))
        return NULL;
    if (o == Py_None)
        return core_current(who);
    if (Py_IS_TYPE(o, &CoreProg_Type))
        return (CoreProg *)o;
    PyErr_Format(PyExc_TypeError, "%s: a program is needed", who);
    return NULL;
}

static PyObject *mod_trace_start(PyObject *mod, PyObject *args)
{
    CoreProg *prog = prog_arg(args, "trace_start()");
    struct shm_ctx *c = prog != NULL ? core_ctx(prog) : NULL;
    if (c == NULL)
        return NULL;
    int r = shm_trace_start(c, RING_EVENTS);
    if (r == SHM_EAGAIN)
        PyErr_SetString(PyExc_RuntimeError, "tracing is on already: call trace_stop() first");
    else if (r < 0)
        core_shm_error(prog, r);
    if (r < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* The payload of a stack or name; None where there is none. */
PyObject *core_named(struct shm_ctx *c, uint32_t id)
{
    size_t n;
    uint8_t hash[16];
    const void *p = id != 0 ? shm_code_payload(c, id, &n, hash) : NULL;
    if (p == NULL)
        Py_RETURN_NONE;
    return PyObject_CallMethod(core_code_py, "trace_unpack", "y#", p, (Py_ssize_t)n);
}

static int add_row(struct shm_ctx *c, PyObject *list, PyObject *known, const struct shm_event *e)
{
    uint32_t ids[2] = {e->stack, e->what == SHM_TR_PARK ? e->arg : 0};
    PyObject *what[2] = {NULL, NULL}, *row = NULL;
    for (int i = 0; i < 2; i++) {
        PyObject *id = PyLong_FromUnsignedLong(ids[i]);
        what[i] = id != NULL ? Py_XNewRef(PyDict_GetItemWithError(known, id)) : NULL;
        if (what[i] == NULL && !PyErr_Occurred() && (what[i] = core_named(c, ids[i])) != NULL &&
            PyDict_SetItem(known, id, what[i]) < 0)
            Py_CLEAR(what[i]);
        Py_XDECREF(id);
    }
    if (what[0] != NULL && what[1] != NULL)
        row = Py_BuildValue("(KHHiKsIOO)", (unsigned long long)e->ns, e->what, e->m, (int)e->p1 - 1,
                            (unsigned long long)e->goid, shm_reason_text(c, e->reason),
                            e->what == SHM_TR_PARK ? 0 : e->arg, what[0], what[1]);
    int r = row != NULL ? PyList_Append(list, row) : -1;
    Py_XDECREF(row);
    Py_XDECREF(what[0]);
    Py_XDECREF(what[1]);
    return r;
}

static PyObject *mod_trace_stop(PyObject *mod, PyObject *args)
{
    CoreProg *prog = prog_arg(args, "trace_stop()");
    struct shm_ctx *c = prog != NULL ? core_ctx(prog) : NULL;
    if (c == NULL)
        return NULL;
    if (shm_trace_stop(c) < 0) {
        PyErr_SetString(PyExc_RuntimeError, "tracing is not on: call trace_start() first");
        return NULL;
    }
    struct shm_event *events = PyMem_Malloc(c->hdr->trace_cap * sizeof *events);
    PyObject *list = events != NULL ? PyList_New(0) : PyErr_NoMemory();
    PyObject *known = list != NULL ? PyDict_New() : NULL;
    for (uint32_t m = 0; known != NULL && m < load_acq(&c->hdr->trace_rings); m++) { /* see read */
        size_t n = shm_trace_read(c, m, events);
        for (size_t i = 0; i < n && list != NULL; i++)
            if (add_row(c, list, known, &events[i]) < 0)
                Py_CLEAR(list);
    }
    if (known == NULL)
        Py_CLEAR(list);
    Py_XDECREF(known);
    PyMem_Free(events);
    return list;
}

static PyMethodDef functions[] = {
    {"trace_start", mod_trace_start, METH_VARARGS,
     "trace_start(prog=None)\n--\n\nBegins to record what every M does. Source: Go StartTrace."},
    {"trace_stop", mod_trace_stop, METH_VARARGS,
     "trace_stop(prog=None)\n--\n\nEnds it: rows (ns, what, m, p or -1, goid, reason, other goid, "
     "stack or\nNone, name or None), M by M."},
    {NULL},
};

int core_trace_init(PyObject *mod)
{
    return PyModule_AddFunctions(mod, functions);
}
