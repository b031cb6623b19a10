/* atomicint.c — sync.AtomicInt: a 64-bit number in the segment (struct shm_atomic). It waits for
 * nothing and has no lock; each call is one instruction, sequentially consistent, as Go's
 * sync/atomic. */
#include "sync.h"

static _Atomic int64_t *cell(CoreHandle *h)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? &((struct shm_atomic *)shm_at(c, h->off))->value : NULL;
}

bool core_int64(PyObject *o, const char *who, int64_t *v)
{
    *v = PyLong_AsLongLong(o);
    if (*v != -1 || !PyErr_Occurred())
        return true;
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_OverflowError, "%s: a number too large for 64 bits", who);
    else if (PyErr_ExceptionMatches(PyExc_TypeError))
        PyErr_Format(PyExc_TypeError, "%s: an integer is needed, not %.200s", who,
                     Py_TYPE(o)->tp_name);
    return false;
}

static PyObject *atomic_load_(CoreHandle *h, PyObject *_)
{
    _Atomic int64_t *a = cell(h);
    return a ? PyLong_FromLongLong(load_seq(a)) : NULL;
}
static PyObject *atomic_store_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !core_int64(arg, "AtomicInt.store", &v))
        return NULL;
    store_seq(a, v);
    Py_RETURN_NONE;
}
static PyObject *atomic_add_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !core_int64(arg, "AtomicInt.add", &v))
        return NULL;
    return PyLong_FromLongLong((int64_t)((uint64_t)add_seq(a, v) + (uint64_t)v));
}
static PyObject *atomic_swap_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !core_int64(arg, "AtomicInt.swap", &v))
        return NULL;
    return PyLong_FromLongLong(xchg_seq(a, v));
}
static PyObject *atomic_cas_(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    _Atomic int64_t *a = cell(h);
    int64_t old, new;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "cas takes two numbers, old and new");
        return NULL;
    }
    if (a == NULL || !core_int64(args[0], "AtomicInt.cas", &old) ||
        !core_int64(args[1], "AtomicInt.cas", &new))
        return NULL;
    return PyBool_FromLong(cas_seq(a, &old, new));
}

static PyObject *atomic_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"value", NULL};
    PyObject *o = NULL;
    int64_t value = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|O:AtomicInt", names, &o) ||
        (o != NULL && !core_int64(o, "AtomicInt", &value)))
        return NULL;
    CoreProg *prog = core_current("AtomicInt()");
    struct shm_ctx *c = prog ? core_ctx(prog) : NULL;
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_atomic_new(c, value, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_ATOMIC, off);
}

static PyObject *atomic_repr(CoreHandle *h)
{
    const char *name = Py_TYPE(h)->tp_name;
    if (!h->prog->attached)
        return PyUnicode_FromFormat("<%s of an ended runtime>", name);
    return PyUnicode_FromFormat("<%s %lld>", name, (long long)load_seq(cell(h)));
}

static PyMethodDef atomic_methods[] = {
    M("load", atomic_load_, METH_NOARGS, "load()\n--\n\nThe value."),
    M("store", atomic_store_, METH_O, "store($self, value, /)\n--\n\nSets it."),
    M("add", atomic_add_, METH_O,
      "add($self, n, /)\n--\n\nAdds n, wrapping as 64 bits do, and returns the new value."),
    M("swap", atomic_swap_, METH_O, "swap($self, value, /)\n--\n\nSets it, returns the old one."),
    M("cas", atomic_cas_, METH_FASTCALL,
      "cas($self, old, new, /)\n--\n\nSets it to new if it is old; True if so."),
    CORE_HANDLE_REDUCE,
    {NULL},
};

static PyTypeObject type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.sync.AtomicInt",
    .tp_doc = "AtomicInt(value=0)\n--\n\nA 64-bit number that all goroutines may change. Source: "
              "Go atomic.Int64.",
    CORE_HANDLE_SLOTS,
    .tp_repr = (reprfunc)atomic_repr,
    .tp_methods = atomic_methods,
};
static const struct sync_made made = {HANDLE_ATOMIC, atomic_new};

int core_atomicint_init(PyObject *mod)
{
    return core_sync_types(mod, &type, &made, 1);
}
