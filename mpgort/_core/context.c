/* context.c — the context variables of goroutines: which context is entered, and how it crosses.
 *
 * Goroutines that set none share one empty context; only one that has some pays for its own: its
 * items end the continuation (SHM_GF_CONTEXT). What of a context cannot cross (its value cannot, or
 * nothing leads to the variable in another process) a new goroutine does without. One that has such
 * a variable and parks stays at home: it would find another value there, and nobody would say so.
 *
 * KNOWN CONTEXTS. To encode a context costs some ten microseconds of Python (each variable's module
 * is looked for), at every park of a program whose main has set one variable. But a context's
 * variables are one immutable mapping, replaced as a whole by each set(): copies share it, and as
 * long as it is the same object it has the same bytes. So mappings whose bytes were made once, and
 * bytes of which a context was made once, are kept, if all values are immutable and no handles. A
 * goroutine that moves back and forth with its request's id never runs Python for it. The one value
 * that programs change in place is decimal's context: where it is the default, and so left out, its
 * repr is kept as well, and says whether it still is. */
#include "codec.h"
#include "proc.h"

#define KNOWN 64 /* a power of two */

/* Direct-mapped: a newcomer takes the place. */
static struct {
    PyObject *vars; /* the mapping; held, so that its address stays its own */
    PyObject *bytes;
    PyObject *sums, *state; /* decimal's context among the values, as it was: its repr; or NULL */
    bool whole;             /* nothing was left out */
} written[KNOWN];           /* by the address of vars */
static struct {
    PyObject *bytes;
    PyObject *ctx; /* what was made of them; never entered */
} made[KNOWN];     /* by bytes */

bool core_context_empty(PyObject *ctx)
{
    return ctx == NULL || context_n_vars(ctx) == 0;
}

/* Enters ctx (a new reference is taken) instead of what the loop has entered now. */
int core_context_switch(struct core_proc *s, PyObject *ctx)
{
    if (s->ctx == ctx)
        return 0;
    if (s->ctx != NULL) {
        if (PyContext_Exit(s->ctx) < 0)
            return -1;
        Py_CLEAR(s->ctx);
    }
    if (ctx != NULL) {
        if (PyContext_Enter(ctx) < 0)
            return -1;
        s->ctx = Py_NewRef(ctx);
    }
    return 0;
}

/* Back to the empty context that all share; one that a goroutine has written to is its own now. */
int core_context_base(struct core_proc *s)
{
    if (s->ctx == s->base_ctx && core_context_empty(s->ctx))
        return 0;
    if (s->ctx == s->base_ctx) {
        PyObject *fresh = PyContext_New();
        if (fresh == NULL)
            return -1;
        Py_XSETREF(s->base_ctx, fresh);
    }
    return core_context_switch(s, s->base_ctx);
}

/* ---- known contexts -------------------------------------------------------------------------- */

static unsigned place_of_bytes(const uint8_t *p, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x9E3779B97F4A7C15ull;
    return h >> 32 & (KNOWN - 1);
}

static unsigned place_of_vars(PyObject *vars)
{
    return hash_address(vars) & (KNOWN - 1);
}

/* No value of it can change, or is a handle, whose references somebody counts. */
static bool immutable(PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    if (t == &PyTuple_Type) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(o); i++)
            if (!immutable(PyTuple_GET_ITEM(o, i)))
                return false;
        return true;
    }
    return o == Py_None || t == &PyLong_Type || t == &PyUnicode_Type || t == &PyBytes_Type ||
           t == &PyFloat_Type || t == &PyBool_Type;
}

/* The answer of _code.py: what crosses of a context, why something does not, decimal's context. */
static PyObject *ask_items(PyObject *ctx, bool all)
{
    return PyObject_CallMethod(core_code_py, "context_items", "OO", ctx, all ? Py_True : Py_False);
}

/* The bytes of a context with these items that may be kept, or NULL. To keep it is never needed:
 * what fails here is forgotten. */
static PyObject *keepable(PyObject *items, const uint8_t *p, size_t n)
{
    if (!immutable(items))
        return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)p, (Py_ssize_t)n);
    PyErr_Clear();
    return bytes;
}

static void keep_written(PyObject *vars, PyObject *bytes, PyObject *sums, bool whole)
{
    unsigned i = place_of_vars(vars);
    PyObject *state = sums != NULL ? PyObject_Repr(sums) : NULL;
    if (sums != NULL && state == NULL) {
        PyErr_Clear();
        return;
    }
    Py_XSETREF(written[i].vars, Py_NewRef(vars));
    Py_XSETREF(written[i].bytes, Py_NewRef(bytes));
    Py_XSETREF(written[i].sums, Py_XNewRef(sums));
    Py_XSETREF(written[i].state, state);
    written[i].whole = whole;
}

/* What place i holds is still so: decimal's context changes in place. */
static bool as_written(unsigned i)
{
    if (written[i].sums == NULL)
        return true;
    PyObject *state = PyObject_Repr(written[i].sums);
    bool same = state != NULL && PyUnicode_Compare(state, written[i].state) == 0;
    PyErr_Clear();
    Py_XDECREF(state);
    return same;
}

/* ---- crossing -------------------------------------------------------------------------------- */

/* The exception that is set says why an item of a context cannot cross. */
static void left_out(PyObject *item, struct core_enc *e)
{
    PyObject *exc = take_exception();
    PyObject *why = PyUnicode_FromFormat("context variable %S: %S", PyTuple_GET_ITEM(item, 1), exc);
    const char *text = why != NULL ? PyUnicode_AsUTF8(why) : NULL;
    PyOS_snprintf(e->reason, sizeof e->reason, "%s", text != NULL ? text : "a context variable");
    PyErr_Clear();
    Py_XDECREF(why);
    Py_XDECREF(exc);
}

/* *whole: nothing is left out; else e->reason says what, and why. */
static int encode(PyObject *answer, struct core_enc *e, bool *whole)
{
    PyObject *items = PyTuple_GET_ITEM(answer, 0), *lost = PyTuple_GET_ITEM(answer, 1);
    *whole = lost == Py_None;
    if (!*whole)
        PyOS_snprintf(e->reason, sizeof e->reason, "%s", PyUnicode_AsUTF8(lost));
    PyObject *kept = PyList_New(0);
    for (Py_ssize_t i = 0; kept != NULL && i < PyTuple_GET_SIZE(items); i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        struct core_enc one;
        if (core_enc_init(&one) < 0) {
            Py_CLEAR(kept);
            break;
        }
        int r = core_value_encode(item, &one); /* alone first: one that cannot cross is left out */
        core_enc_free(&one);
        if (r == ENC_OK ? PyList_Append(kept, item) < 0
                        : !PyErr_ExceptionMatches(core_error("SerializationError")))
            Py_CLEAR(kept);
        else if (r != ENC_OK) {
            *whole = false;
            left_out(item, e);
        }
    }
    int r = kept != NULL ? core_value_encode(kept, e) : ENC_ERROR;
    Py_XDECREF(kept);
    return r;
}

static int decode(const uint8_t *p, size_t n, struct core_words *W)
{
    PyObject *items = core_value_decode(p, n, W);
    PyObject *r =
        items != NULL ? PyObject_CallMethod(core_code_py, "context_set", "O", items) : NULL;
    Py_XDECREF(items);
    Py_XDECREF(r);
    return r != NULL ? 0 : -1;
}

/* Appends what of ctx can cross to e: ENC_OK, or ENC_ERROR with an exception. all: only if that is
 * all of it; else ENC_PINNED, and e->reason says why. */
int core_context_put(PyObject *ctx, struct core_enc *e, bool all)
{
    PyObject *vars = context_vars(ctx), *bytes;
    unsigned i = place_of_vars(vars);
    if (written[i].vars == vars && (written[i].whole || !all) && as_written(i))
        return core_enc_append(e, PyBytes_AS_STRING(written[i].bytes),
                               (size_t)PyBytes_GET_SIZE(written[i].bytes));
    PyObject *answer = ask_items(ctx, all);
    if (answer == NULL)
        return ENC_ERROR;
    size_t from = (size_t)(e->p - e->base), budget = e->budget;
    e->budget = SIZE_MAX;
    bool whole = true;
    int r = encode(answer, e, &whole);
    e->budget = budget;
    if (r == ENC_OK && all && !whole)
        r = ENC_PINNED;
    if (r == ENC_OK && (bytes = keepable(PyTuple_GET_ITEM(answer, 0), e->base + from,
                                         (size_t)(e->p - e->base) - from)) != NULL) {
        PyObject *sums = PyTuple_GET_ITEM(answer, 2);
        keep_written(vars, bytes, sums != Py_None ? sums : NULL, whole);
        Py_DECREF(bytes);
    }
    Py_DECREF(answer);
    return r;
}

/* Enters a fresh context with the variables in these bytes: 0, or -1 with an exception. */
int core_context_enter(struct core_proc *s, const uint8_t *p, size_t n, struct core_words *W)
{
    unsigned i = place_of_bytes(p, n);
    PyObject *bytes = made[i].bytes;
    bool knew = bytes != NULL && (size_t)PyBytes_GET_SIZE(bytes) == n &&
                memcmp(PyBytes_AS_STRING(bytes), p, n) == 0;
    PyObject *ctx = knew ? PyContext_Copy(made[i].ctx) : PyContext_New(), *copy;
    int r = ctx == NULL ? -1 : core_context_switch(s, ctx);
    PyObject *answer = NULL;
    if (r == 0 && !knew && (r = decode(p, n, W)) == 0 && (answer = ask_items(ctx, true)) != NULL &&
        (bytes = keepable(PyTuple_GET_ITEM(answer, 0), p, n)) != NULL) {
        if ((copy = PyContext_Copy(ctx)) != NULL) {
            Py_XSETREF(made[i].bytes, Py_NewRef(bytes));
            Py_XSETREF(made[i].ctx, copy);
            keep_written(context_vars(ctx), bytes, NULL, true);
        }
        PyErr_Clear();
        Py_DECREF(bytes);
    } else if (r == 0) {
        PyErr_Clear();
    }
    Py_XDECREF(answer);
    Py_XDECREF(ctx);
    return r;
}
