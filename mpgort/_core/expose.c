/* expose.c — the codec as Python sees it: a private interface for tests, dumps and benchmarks; and
 * the check at import that frames may move at all.
 *
 * A chain is a coroutine that stands at a Park. The functions here find that park themselves and
 * leave the caller's reference to the coroutine alone; the C interface in core.h does neither. */
#include "codec.h"

bool frames_ok;
char frames_reason[160];
static PyObject *Pinned, *Heavy;

static int enc_result(int r, const struct core_enc *e)
{
    if (r == ENC_PINNED || r == ENC_HEAVY)
        PyErr_SetString(r == ENC_PINNED ? Pinned : Heavy, e->reason);
    return r == ENC_OK ? 0 : -1;
}

static PyObject *take_bytes(int r, struct core_enc *e)
{
    PyObject *bytes = NULL;
    if (enc_result(r, e) == 0)
        bytes = PyBytes_FromStringAndSize((const char *)e->base, e->p - e->base);
    core_enc_free(e);
    return bytes;
}

static bool is_coroutine(PyObject *coro)
{
    if (!gen_is(coro))
        PyErr_SetString(PyExc_TypeError, "a coroutine was expected");
    return gen_is(coro);
}

static PyObject *py_park(PyObject *mod, PyObject *none)
{
    return (PyObject *)core_park_new(CORE_PARK_TEST);
}

static PyObject *chain_encode(PyObject *mod, PyObject *args)
{
    PyObject *coro;
    Py_ssize_t budget = -1;
    struct core_enc e;
    if (!PyArg_ParseTuple(args, "O|n:chain_encode", &coro, &budget) || !is_coroutine(coro) ||
        core_enc_init(&e) < 0)
        return NULL;
    if (budget >= 0)
        e.budget = (size_t)budget;
    e.loose = true;
    return take_bytes(core_chain_encode(coro, NULL, &e), &e);
}

static PyObject *chain_drop(PyObject *mod, PyObject *coro)
{
    if (!is_coroutine(coro))
        return NULL;
    core_chain_drop(Py_NewRef(coro));
    Py_RETURN_NONE;
}

static PyObject *chain_decode(PyObject *mod, PyObject *arg)
{
    Py_buffer b;
    PyObject *park;
    if (PyObject_GetBuffer(arg, &b, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *coro = core_chain_decode(b.buf, (size_t)b.len, NULL, &park);
    PyBuffer_Release(&b);
    return coro;
}

static PyObject *step_result(PySendResult r, PyObject *out)
{
    return r == PYGEN_ERROR ? NULL : Py_BuildValue("(NN)", PyBool_FromLong(r == PYGEN_RETURN), out);
}

static PyObject *chain_send(PyObject *mod, PyObject *args)
{
    PyObject *coro, *value, *out = NULL;
    if (!PyArg_ParseTuple(args, "OO:chain_send", &coro, &value))
        return NULL;
    PySendResult r = core_chain_send(coro, gen_is(coro) ? chain_park(coro) : NULL, value, &out);
    return step_result(r, out);
}

static PyObject *chain_throw(PyObject *mod, PyObject *args)
{
    PyObject *coro, *exc, *out = NULL;
    if (!PyArg_ParseTuple(args, "OO!:chain_throw", &coro, PyExc_BaseException, &exc))
        return NULL;
    PySendResult r = core_chain_throw(coro, gen_is(coro) ? chain_park(coro) : NULL, exc, &out);
    return step_result(r, out);
}

static PyObject *value_encode(PyObject *mod, PyObject *v)
{
    struct core_enc e;
    if (core_enc_init(&e) < 0)
        return NULL;
    e.loose = true;
    return take_bytes(core_value_encode(v, &e), &e);
}

static PyObject *exc_encode(PyObject *mod, PyObject *v)
{
    struct core_enc e;
    if (!PyExceptionInstance_Check(v)) {
        PyErr_SetString(PyExc_TypeError, "an exception was expected");
        return NULL;
    }
    if (core_enc_init(&e) < 0)
        return NULL;
    e.loose = true;
    return take_bytes(core_exc_encode(v, &e), &e);
}

static PyObject *from_buffer(PyObject *arg,
                             PyObject *(*decode)(const uint8_t *, size_t, struct core_words *))
{
    Py_buffer b;
    if (PyObject_GetBuffer(arg, &b, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *v = decode(b.buf, (size_t)b.len, NULL);
    PyBuffer_Release(&b);
    return v;
}

static PyObject *value_decode(PyObject *mod, PyObject *b)
{
    return from_buffer(b, core_value_decode);
}
static PyObject *exc_decode(PyObject *mod, PyObject *b)
{
    return from_buffer(b, core_exc_decode);
}
static PyObject *frames_of(const uint8_t *p, size_t n, struct core_words *none)
{
    return core_chain_frames(p, n);
}
static PyObject *chain_frames(PyObject *mod, PyObject *b)
{
    return from_buffer(b, frames_of);
}

static PyObject *set_fast_forward(PyObject *mod, PyObject *on)
{
    fast_forward_on = PyObject_IsTrue(on) == 1;
    Py_RETURN_NONE;
}

/* n whole trips of a coroutine that parks for ever: encode, drop, decode, resume to the next
 * park. */
static PyObject *bench_trip(PyObject *mod, PyObject *args)
{
    PyObject *coro, *park, *out = NULL;
    Py_ssize_t n;
    struct core_enc e;
    if (!PyArg_ParseTuple(args, "On:bench_trip", &coro, &n) || !is_coroutine(coro) ||
        core_enc_init(&e) < 0)
        return NULL;
    park = chain_park(coro);
    Py_INCREF(coro);
    for (Py_ssize_t i = 0; i < n && coro != NULL; i++) {
        core_enc_reset(&e);
        if (enc_result(core_chain_encode(coro, park, &e), &e) < 0)
            break;
        core_chain_drop(coro);
        coro = core_chain_decode(e.base, (size_t)(e.p - e.base), NULL, &park);
        if (coro == NULL || core_chain_send(coro, park, Py_True, &out) != PYGEN_NEXT)
            break;
        park = out;
        Py_DECREF(out); /* the leaf's stack keeps it */
    }
    core_enc_free(&e);
    if (PyErr_Occurred())
        Py_CLEAR(coro);
    return coro;
}

static PyMethodDef methods[] = {
    {"park", py_park, METH_NOARGS, "An awaitable that parks and gives what it is resumed with."},
    {"chain_encode", chain_encode, METH_VARARGS,
     "chain_encode(coro, budget=-1) -> bytes. Raises Pinned or Heavy."},
    {"chain_drop", chain_drop, METH_O, "Empties an encoded chain; runs no code of it."},
    {"chain_decode", chain_decode, METH_O, "chain_decode(bytes) -> coroutine."},
    {"chain_send", chain_send, METH_VARARGS, "chain_send(coro, value) -> (done, object)."},
    {"chain_throw", chain_throw, METH_VARARGS, "chain_throw(coro, exc) -> (done, object)."},
    {"chain_frames", chain_frames, METH_O, "chain_frames(bytes) -> [(qualname, file, line)]."},
    {"value_encode", value_encode, METH_O, "value_encode(v) -> bytes."},
    {"value_decode", value_decode, METH_O, "value_decode(bytes) -> v."},
    {"exc_encode", exc_encode, METH_O, "exc_encode(exc) -> bytes."},
    {"exc_decode", exc_decode, METH_O, "exc_decode(bytes) -> exc."},
    {"set_fast_forward", set_fast_forward, METH_O, "Whether resuming may skip the park."},
    {"bench_trip", bench_trip, METH_VARARGS, "bench_trip(coro, n) -> coro after n trips."},
    {NULL},
};

/* ---- may frames move? ------------------------------------------------------------------------ */

/* A Ctrl-C is no answer: it stays raised. */
static void not_ok(const char *what)
{
    frames_ok = false;
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_Exception))
        return;
    PyObject *exc = PyErr_Occurred() ? take_exception() : NULL;
    PyObject *text = exc != NULL ? PyObject_Str(exc) : NULL;
    PyOS_snprintf(frames_reason, sizeof frames_reason, "%.60s%s%.80s", what, text ? ": " : "",
                  text != NULL ? PyUnicode_AsUTF8(text) : "");
    Py_XDECREF(text);
    Py_XDECREF(exc);
    PyErr_Clear();
}

/* Moves one known body at both of its parks and looks at what it returns. */
static void self_test(PyObject *mod)
{
    char why[120];
    if (!core_layouts_ok(why, sizeof why)) {
        not_ok(why);
        return;
    }
    /* The body refers to this module's park(), by name like any function: the import machinery
     * will put the module there in a moment anyway. */
    if (PyDict_SetItemString(PyImport_GetModuleDict(), "mpgort._core", mod) < 0) {
        not_ok("the self-test could not start");
        return;
    }
    PyObject *park_fn = PyObject_GetAttrString(mod, "park"), *park = NULL, *out = NULL;
    PyObject *coro =
        park_fn != NULL ? PyObject_CallMethod(core_code_py, "self_test", "O", park_fn) : NULL;
    Py_XDECREF(park_fn);
    struct core_enc e;
    if (coro == NULL || core_enc_init(&e) < 0) {
        Py_XDECREF(coro);
        not_ok("the self-test could not start");
        return;
    }
    frames_ok = true;
    PySendResult r = core_chain_send(coro, NULL, Py_None, &out);
    for (long i = 0; i < 2 && r == PYGEN_NEXT && coro != NULL; i++) {
        Py_DECREF(out);
        core_enc_reset(&e);
        if (core_chain_encode(coro, chain_park(coro), &e) != ENC_OK) {
            not_ok(e.reason);
            break;
        }
        core_chain_drop(coro);
        if ((coro = core_chain_decode(e.base, (size_t)(e.p - e.base), NULL, &park)) == NULL)
            break;
        PyObject *v = PyLong_FromLong(1000 + i);
        r = v != NULL ? core_chain_send(coro, park, v, &out) : PYGEN_ERROR;
        Py_XDECREF(v);
    }
    if (frames_ok && r == PYGEN_RETURN) {
        PyObject *want = Py_BuildValue("[(iis)(i)(iis)(i)]", 1, 1000, "xxxxxxxxxxxx", 1, 2, 1001,
                                       "xxxxxxxxxxxx", 2);
        if (want == NULL || PyObject_RichCompareBool(out, want, Py_EQ) != 1)
            not_ok("the self-test came to another result");
        Py_XDECREF(want);
        Py_DECREF(out);
    } else if (frames_ok) {
        not_ok("the self-test did not end");
    }
    Py_XDECREF(coro);
    core_enc_free(&e);
}

int core_expose_init(PyObject *mod)
{
    Pinned = PyErr_NewException("mpgort._core.Pinned", NULL, NULL);
    Heavy = PyErr_NewException("mpgort._core.Heavy", NULL, NULL);
    if (Pinned == NULL || Heavy == NULL || PyModule_AddObjectRef(mod, "Pinned", Pinned) < 0 ||
        PyModule_AddObjectRef(mod, "Heavy", Heavy) < 0 || PyModule_AddFunctions(mod, methods) < 0)
        return -1;
    self_test(mod);
    if (PyErr_Occurred()) {
        PyObject *type, *value, *tb;
        PyErr_Fetch(&type, &value, &tb);
        if (PyDict_DelItemString(PyImport_GetModuleDict(), "mpgort._core") < 0)
            PyErr_Clear();
        PyErr_Restore(type, value, tb);
        return -1;
    }
    return PyModule_AddObjectRef(mod, "frames_ok", frames_ok ? Py_True : Py_False) < 0 ||
                   PyModule_AddStringConstant(mod, "frames_reason", frames_reason) < 0
               ? -1
               : 0;
}
