/* error.c — what is raised: the classes of mpgort._errors, and what an error of the segment, a
 * panic, a death and a deadlock are as exceptions. The longer texts are Python's (_traceback.py),
 * which hands its functions over (_hooks). */
#include "codec.h"
#include "proc.h"
#include <errno.h>
#include <string.h>

struct core_err core_err;

/* The exception now set, as an object, for a throw into the goroutine. */
PyObject *core_take_exc(void)
{
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    if (tb != NULL)
        PyException_SetTraceback(exc, tb);
    Py_XDECREF(type);
    Py_XDECREF(tb);
    return exc;
}

int core_raise(PyObject *exc)
{
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
    return -1;
}

/* ---- errors of the segment ------------------------------------------------------------------- */

static int raise_text(PyObject *cls, PyObject *text)
{
    if (text != NULL)
        PyErr_SetObject(cls, text);
    Py_XDECREF(text);
    return -1;
}

static int out_of_memory(CoreProg *prog, int err)
{
    struct shm_hdr *h = prog->loop.hdr;
    struct shm_ctx *c = core_ctx(prog);
    PyObject *text;
    if (c == NULL)
        return -1;
    uint64_t used = load_rlx(&h->heap_committed); /* a figure for people */
    uint64_t enough = (used + c->wanted) * 2;
    if (err == SHM_EGFULL)
        text = PyUnicode_FromFormat(
            "all %u goroutine slots are in use: raise it with run(..., max_goroutines=%llu)",
            h->max_g, (unsigned long long)h->max_g * 4);
    else if (err == SHM_ENOMEM)
        text = PyUnicode_FromFormat(
            "the shared heap has no room for %llu bytes more, %llu of %llu are in use: raise it "
            "with run(..., heap_bytes=%llu)",
            (unsigned long long)c->wanted, (unsigned long long)used,
            (unsigned long long)h->heap_bytes,
            (unsigned long long)(enough > h->heap_bytes * 4 ? enough : h->heap_bytes * 4));
    else
        text = PyUnicode_FromFormat(
            "/dev/shm has no room for more than the %llu bytes this program's heap has: make it "
            "larger (docker run --shm-size=..., mount -o remount,size=... /dev/shm); "
            "heap_bytes=%llu is only the ceiling",
            (unsigned long long)used, (unsigned long long)h->heap_bytes);
    return raise_text(core_err.OutOfSharedMemory, text);
}

int core_shm_error(CoreProg *prog, int err)
{
    int saved = errno;
    switch (err) {
    case SHM_ENOMEM:
    case SHM_ENOSPC:
    case SHM_EGFULL:
        if (prog != NULL && prog->loop.hdr != NULL)
            return out_of_memory(prog, err);
        return raise_text(
            core_err.OutOfSharedMemory,
            PyUnicode_FromFormat("/dev/shm: %s: make it larger (docker run --shm-size=...) "
                                 "or ask for less: max_goroutines, heap_bytes",
                                 shm_strerror(err)));
    case SHM_EBADSEG:
        return raise_text(core_err.BadSegment, PyUnicode_FromString(shm_strerror(err)));
    case SHM_ECLOSED:
        return raise_text(core_err.ChanError, PyUnicode_FromString(shm_strerror(err)));
    case SHM_EDEAD:
        return raise_text(core_err.Killed, PyUnicode_FromString("the runtime was shut down"));
    case SHM_ETIME:
        PyErr_SetNone(PyExc_TimeoutError);
        return -1;
    case SHM_EFULL:
        PyErr_Format(PyExc_RuntimeError,
                     "a table of the segment is full: %d processes and threads, "
                     "or the code objects or wait reasons it has room for",
                     SHM_MAX_M);
        return -1;
    case SHM_ESYS:
        errno = saved;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    default:
        PyErr_Format(PyExc_RuntimeError, "%s", shm_strerror(err));
        return -1;
    }
}

int core_bad_segment(const char *why)
{
    PyErr_SetString(core_err.BadSegment, why);
    return -1;
}

int core_detached(void)
{
    PyErr_SetString(core_err.Killed, "the runtime of this object was shut down");
    return -1;
}

/* ---- ends ------------------------------------------------------------------------------------ */

/* The panic that ended the program, as an exception object; NULL without one set: there is none. */
PyObject *core_failure(CoreProg *prog)
{
    struct shm_hdr *hdr = prog->loop.hdr;
    if (load_acq(&hdr->panic) == 2) { /* pairs with store_rel in panic() */
        PyObject *cause = NULL;
        if (hdr->panic_how == SHM_J_DIED)
            cause = core_died(prog, &hdr->panic_val);
        else if (hdr->panic_val.tag != SHM_VAL_NONE)
            cause = core_exc_peek(prog, &hdr->panic_val);
        if (cause == NULL)
            PyErr_Clear();
        PyObject *e =
            PyObject_CallFunction(core_err.make_panic, "KO", (unsigned long long)hdr->panic_goid,
                                  cause ? cause : Py_None);
        Py_XDECREF(cause);
        return e;
    }
    return NULL;
}

PyObject *core_deadlock(struct core_proc *s)
{
    return PyObject_CallFunction(core_err.make_deadlock, "OO", (PyObject *)s->prog,
                                 s->main_goexit ? Py_True : Py_False);
}

/* ---- the module's part ----------------------------------------------------------------------- */

static PyObject *mod_hooks(PyObject *mod, PyObject *args)
{
    PyObject *a, *p, *d, *l;
    if (!PyArg_ParseTuple(args, "OOOO:_hooks", &a, &p, &d, &l))
        return NULL;
    Py_XSETREF(core_err.await_it, Py_NewRef(a));
    Py_XSETREF(core_err.make_panic, Py_NewRef(p));
    Py_XSETREF(core_err.make_death, Py_NewRef(d));
    Py_XSETREF(core_err.make_deadlock, Py_NewRef(l));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_hooks", mod_hooks, METH_VARARGS, NULL},
    {NULL},
};

int core_error_init(PyObject *mod)
{
    const struct {
        const char *name;
        PyObject **to;
    } names[] = {
        {"ChanError", &core_err.ChanError},
        {"Closed", &core_err.Closed},
        {"Cancelled", &core_err.Cancelled},
        {"Killed", &core_err.Killed},
        {"SerializationError", &core_err.SerializationError},
        {"BadContinuation", &core_err.BadContinuation},
        {"BadSegment", &core_err.BadSegment},
        {"OutOfSharedMemory", &core_err.OutOfSharedMemory},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].to = PyObject_GetAttrString(core_errors, names[i].name)) == NULL)
            return -1;
    core_err.Goexit = PyErr_NewException("mpgort._core.Goexit", PyExc_BaseException, NULL);
    if (core_err.Goexit == NULL || PyModule_AddObjectRef(mod, "Goexit", core_err.Goexit) < 0)
        return -1;
    return PyModule_AddFunctions(mod, functions);
}
