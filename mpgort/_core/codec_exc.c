/* codec_exc.c — exceptions: those in flight inside a moved frame, and those that end a goroutine.
 *
 * IN FLIGHT. A frame parked in an `except` block holds its exception in exc_state and on its stack.
 * It must come back as it was: same object for every reference, same chain of context and cause,
 * and no constructor may run (one of the user's may take other arguments than `args`). So the
 * object is allocated and its fields are filled, for every builtin layout; where a class has slots
 * of its own or says how it is pickled, the pickle has it.
 *
 * TRACEBACKS. A traceback holds frame objects, and those do not travel. What travels is what is
 * shown of them: file, name, line. The entries are rebuilt on empty frames of stand-in code
 * objects, so the text of an exception that is raised again still begins where it began. So it is
 * with results. The frames that have ended are kept by the traceback alone, and their locals with
 * them: objects of the living frame seem to be shared with somebody. enc_ghost_refs() counts those
 * references, because they vanish when the original is dropped; and so do those of the functions
 * behind the frames.
 *
 * AS RESULTS. core_exc_encode() is for the one who awaits: copies, by _exc.py, part by part. It
 * never fails for the exception's sake. */
#include "codec.h"

/* ---- builtin layouts ------------------------------------------------------------------------- */

#define FIELD(type, f) (uint16_t)offsetof(type, f)
static struct layout {
    PyObject **type;
    PyTypeObject *t;
    uint16_t field[9]; /* offsets of the object fields behind the common ones; 0 ends */
} layouts[] = {
    {&PyExc_StopIteration, NULL, {FIELD(PyStopIterationObject, value)}},
    {&PyExc_SystemExit, NULL, {FIELD(PySystemExitObject, code)}},
    {&PyExc_OSError,
     NULL,
     {FIELD(PyOSErrorObject, myerrno), FIELD(PyOSErrorObject, strerror),
      FIELD(PyOSErrorObject, filename), FIELD(PyOSErrorObject, filename2)}},
    {&PyExc_ImportError,
     NULL,
     {FIELD(PyImportErrorObject, msg), FIELD(PyImportErrorObject, name),
      FIELD(PyImportErrorObject, path)}},
    {&PyExc_AttributeError,
     NULL,
     {FIELD(PyAttributeErrorObject, obj), FIELD(PyAttributeErrorObject, name)}},
    {&PyExc_NameError, NULL, {FIELD(PyNameErrorObject, name)}},
    {&PyExc_BaseExceptionGroup,
     NULL,
     {FIELD(PyBaseExceptionGroupObject, msg), FIELD(PyBaseExceptionGroupObject, excs)}},
    {&PyExc_BaseException, NULL, {0}},
};
#define N_LAYOUTS (sizeof layouts / sizeof *layouts)

/* The layout of a class whose objects are wholly described by it, or NULL. */
static struct layout *layout_of(PyTypeObject *t)
{
    struct layout *l = layouts;
    while (!PyType_IsSubtype(t, (PyTypeObject *)*l->type))
        l++;
    PyTypeObject *base = (PyTypeObject *)*l->type;
    Py_ssize_t extra = t->tp_basicsize - base->tp_basicsize;
    bool weak = t->tp_weaklistoffset > 0 && base->tp_weaklistoffset == 0;
    if (extra != (weak ? (Py_ssize_t)sizeof(PyObject *) : 0) || t->tp_itemsize != 0)
        return NULL;
    for (int i = 0; i < N_PICKLING_NAMES; i++)
        if (_PyType_Lookup(t, pickling_names[i]) != _PyType_Lookup(base, pickling_names[i]))
            return NULL;
    if (t->tp_flags & Py_TPFLAGS_HEAPTYPE && (t->tp_del != NULL || t->tp_finalize != NULL))
        return NULL;
    return l;
}

static inline uint8_t n_fields(const struct layout *l)
{
    uint8_t n = 0;
    while (l->field[n] != 0)
        n++;
    return n;
}

static inline PyObject **field_at(PyObject *o, uint16_t offset)
{
    return (PyObject **)((char *)o + offset);
}

/* ---- encoding -------------------------------------------------------------------------------- */

static uint8_t *put_optional(struct enc *E, uint8_t *p, PyObject *o)
{
    ROOM(2);
    if (o == NULL) {
        *p++ = TAG_NULL;
        return p;
    }
    return enc_value(E, p, o);
}

/* Frames that have ended, met in a traceback: their references are ghosts. */
static int note_ghost(struct enc *E, PyFrameObject *f)
{
    if (f->f_frame->owner != FRAME_OWNED_BY_FRAME_OBJECT)
        return 0;
    if (E->ghosts == NULL && (E->ghosts = PyList_New(0)) == NULL)
        return -1;
    return PyList_Append(E->ghosts, (PyObject *)f);
}

/* Also on its own: __aexit__ has it as an argument. */
uint8_t *enc_traceback(struct enc *E, uint8_t *p, PyObject *tb)
{
    uint32_t n = 0, at;
    uint8_t memo;
    MEET(tb, 0, memo, at);
    for (PyTracebackObject *t = (PyTracebackObject *)tb; t != NULL; t = t->tb_next)
        n++;
    uint32_t skip = n > 100 ? n - 100 : 0; /* of a deep recursion, what is nearest to the error */
    ROOM(VARINT_MAX + 1);
    *p++ = TAG_TRACEBACK | memo;
    p = put_varint(p, n - skip);
    for (PyTracebackObject *t = (PyTracebackObject *)tb; t != NULL; t = t->tb_next) {
        if (note_ghost(E, t->tb_frame) < 0)
            return enc_fail(E, ENC_ERROR);
        if (skip > 0) {
            skip--;
            continue;
        }
        PyCodeObject *code = PyFrame_GetCode(t->tb_frame);
        int line = t->tb_lineno >= 0 ? t->tb_lineno : PyCode_Addr2Line(code, t->tb_lasti);
        Py_DECREF(code); /* the frame keeps it */
        if ((p = enc_value(E, p, code->co_filename)) == NULL ||
            (p = enc_value(E, p, code->co_name)) == NULL)
            return NULL;
        ROOM(VARINT_MAX);
        p = put_varint(p, line > 0 ? (uint64_t)line : 0);
    }
    return p;
}

uint8_t *enc_exception(struct enc *E, uint8_t *p, PyObject *o)
{
    PyBaseExceptionObject *e = (PyBaseExceptionObject *)o;
    struct layout *l = layout_of(Py_TYPE(o));
    uint32_t id = l != NULL ? global_id((PyObject *)Py_TYPE(o)) : 0, at;
    uint8_t memo;
    if (id == 0)
        return PyErr_Occurred() ? enc_fail(E, ENC_ERROR) : enc_pickled(E, p, o);
    E->mutables++;
    BY_NAME(o);
    MEET(o, MEMO_CHECK, memo, at);
    ROOM(32);
    *p++ = TAG_EXC | memo;
    p = put_varint(p, id);
    *p++ = (uint8_t)e->suppress_context;
    *p++ = n_fields(l);
    if ((p = enc_value(E, p, e->args)) == NULL || (p = put_optional(E, p, e->dict)) == NULL ||
        (p = put_optional(E, p, e->notes)) == NULL || (p = put_optional(E, p, e->cause)) == NULL ||
        (p = put_optional(E, p, e->context)) == NULL)
        goto fail;
    for (int i = 0; l->field[i] != 0; i++)
        if ((p = put_optional(E, p, *field_at(o, l->field[i]))) == NULL)
            goto fail;
    return put_optional(E, p, E->moving && e->traceback != Py_None ? e->traceback : NULL);
fail:
    enc_path(E, ".%.60s", Py_TYPE(o)->tp_name);
    return NULL;
}

/* References to `o` from what only ghosts keep. */
Py_ssize_t enc_ghost_refs(struct enc *E, PyObject *o)
{
    Py_ssize_t n = 0;
    for (Py_ssize_t i = 0; E->ghosts != NULL && i < PyList_GET_SIZE(E->ghosts); i++)
        n += enc_refs_from(PyList_GET_ITEM(E->ghosts, i), o, false);
    /* A frame refers to the function it was made from; a rebuilt one to the template instead. A
     * function that only frames refer to takes its closure along when they go. */
    for (uint32_t i = 0; i < E->n_gens; i++) {
        if (!gen_is((PyObject *)E->gens[i]))
            continue;
        PyObject *fn = (PyObject *)FUNC(GEN_FRAME(E->gens[i]));
        Py_ssize_t same = 0;
        bool first = true;
        if (fn == NULL || fn == o) {
            n += fn == o;
            continue;
        }
        for (uint32_t k = 0; k < E->n_gens; k++) {
            if (gen_is((PyObject *)E->gens[k]) && (PyObject *)FUNC(GEN_FRAME(E->gens[k])) == fn) {
                same++;
                first = first && k >= i;
            }
        }
        if (first && same == Py_REFCNT(fn))
            n += enc_refs_from(fn, o, false);
    }
    return n;
}

/* ---- decoding -------------------------------------------------------------------------------- */

static int dec_optional(struct dec *D, PyObject **to)
{
    if (D->p < D->end && *D->p == TAG_NULL) {
        D->p++;
        return 0;
    }
    PyObject *v = dec_value(D);
    if (v == NULL)
        return -1;
    Py_XSETREF(*to, v);
    return 0;
}

/* A traceback that shows these entries: a list of (file, name, line), outermost first. */
static PyObject *traceback_of(PyObject *none, PyObject *entries)
{
    if (!PyList_CheckExact(entries))
        return dec_bad("a traceback of odd parts");
    PyObject *tb = Py_NewRef(Py_None);
    for (Py_ssize_t i = PyList_GET_SIZE(entries) - 1; i >= 0 && tb != NULL; i--) {
        PyObject *file, *name, *globals = PyDict_New();
        int line;
        if (globals == NULL ||
            !PyArg_ParseTuple(PyList_GET_ITEM(entries, i), "UUi", &file, &name, &line)) {
            Py_XDECREF(globals);
            Py_CLEAR(tb);
            break;
        }
        PyCodeObject *code = PyCode_NewEmpty("", "", line > 0 ? line : 0);
        if (code != NULL) { /* one object for all entries: the next encoding refers to it, too */
            Py_SETREF(code->co_filename, Py_NewRef(file));
            Py_SETREF(code->co_name, Py_NewRef(name));
            Py_SETREF(code->co_qualname, Py_NewRef(name));
        }
        PyFrameObject *frame =
            code != NULL ? PyFrame_New(PyThreadState_Get(), code, globals, NULL) : NULL;
        PyObject *outer = frame != NULL ? PyObject_CallFunction((PyObject *)&PyTraceBack_Type,
                                                                "OOii", tb, frame, 0, line)
                                        : NULL;
        Py_DECREF(globals);
        Py_XDECREF(code);
        Py_XDECREF(frame);
        Py_SETREF(tb, outer);
    }
    return tb;
}
static PyMethodDef traceback_of_def = {"traceback_of", traceback_of, METH_O, NULL};

PyObject *dec_traceback(struct dec *D, bool memo)
{
    Py_ssize_t n;
    uint32_t at = 0;
    if ((memo && dec_remember(D, NULL, &at) < 0) || dec_count(D, 3, &n) < 0)
        return NULL;
    if (n == 0)
        return dec_bad("a traceback of nothing");
    PyObject *entries = PyList_New(0);
    for (Py_ssize_t i = 0; entries != NULL && i < n; i++) {
        uint64_t line;
        PyObject *file = dec_str(D), *name = file != NULL ? dec_str(D) : NULL;
        PyObject *entry = NULL;
        if (name != NULL && dec_varint(D, &line) == 0)
            entry = Py_BuildValue("(OOi)", file, name, line > INT_MAX ? 0 : (int)line);
        Py_XDECREF(file);
        Py_XDECREF(name);
        if (entry == NULL || PyList_Append(entries, entry) < 0)
            Py_CLEAR(entries);
        Py_XDECREF(entry);
    }
    PyObject *tb = entries != NULL ? traceback_of(NULL, entries) : NULL;
    Py_XDECREF(entries);
    if (tb != NULL && memo)
        dec_complete(D, at, tb);
    return tb;
}

static int check_parts(PyBaseExceptionObject *e)
{
    bool good = e->args != NULL && PyTuple_CheckExact(e->args) &&
                (e->dict == NULL || PyDict_Check(e->dict)) &&
                (e->cause == NULL || PyExceptionInstance_Check(e->cause)) &&
                (e->context == NULL || PyExceptionInstance_Check(e->context));
    if (!good)
        dec_bad("an exception of odd parts");
    return good ? 0 : -1;
}

static int check_group(PyBaseExceptionGroupObject *g)
{
    bool good = g->msg != NULL && PyUnicode_Check(g->msg) && g->excs != NULL &&
                PyTuple_CheckExact(g->excs) && PyTuple_GET_SIZE(g->excs) > 0;
    for (Py_ssize_t i = 0; good && i < PyTuple_GET_SIZE(g->excs); i++)
        good = PyExceptionInstance_Check(PyTuple_GET_ITEM(g->excs, i));
    if (!good)
        dec_bad("an exception group of odd parts");
    return good ? 0 : -1;
}

PyObject *dec_exception(struct dec *D, bool memo)
{
    uint64_t id;
    if (dec_varint(D, &id) < 0)
        return NULL;
    PyTypeObject *t =
        id <= UINT32_MAX ? (PyTypeObject *)global_by_id((uint32_t)id) : dec_bad("name number");
    if (t == NULL)
        return NULL;
    struct layout *l = PyType_Check(t) && PyType_IsSubtype(t, (PyTypeObject *)PyExc_BaseException)
                           ? layout_of(t)
                           : NULL;
    if (l == NULL || D->end - D->p < 2 || D->p[1] != n_fields(l)) {
        Py_DECREF(t);
        return dec_bad("an exception of a class that is none");
    }
    PyBaseExceptionObject *e = (PyBaseExceptionObject *)t->tp_alloc(t, 0);
    Py_DECREF(t);
    if (e == NULL)
        return NULL;
    if (l->field[0] != 0 && PyType_IsSubtype(Py_TYPE(e), (PyTypeObject *)PyExc_OSError))
        ((PyOSErrorObject *)e)->written = -1;
    e->args = PyTuple_New(0);
    e->suppress_context = D->p[0] != 0;
    D->p += 2;
    if (memo && dec_remember(D, (PyObject *)e, NULL) < 0)
        goto fail;
    if (dec_optional(D, &e->args) < 0 || check_parts(e) < 0 || dec_optional(D, &e->dict) < 0 ||
        check_parts(e) < 0 || dec_optional(D, &e->notes) < 0 || dec_optional(D, &e->cause) < 0 ||
        check_parts(e) < 0 || dec_optional(D, &e->context) < 0 || check_parts(e) < 0)
        goto fail;
    for (int i = 0; l->field[i] != 0; i++)
        if (dec_optional(D, field_at((PyObject *)e, l->field[i])) < 0)
            goto fail;
    if (PyType_IsSubtype(Py_TYPE(e), (PyTypeObject *)PyExc_BaseExceptionGroup) &&
        check_group((PyBaseExceptionGroupObject *)e) < 0)
        goto fail;
    if (dec_optional(D, &e->traceback) < 0)
        goto fail;
    if (e->traceback != NULL && !PyTraceBack_Check(e->traceback)) {
        Py_CLEAR(e->traceback);
        dec_bad("a traceback that is none");
        goto fail;
    }
    return (PyObject *)e;
fail:
    if (e->args == NULL || !PyTuple_CheckExact(e->args))
        Py_XSETREF(e->args, PyTuple_New(0));
    Py_DECREF(e);
    return NULL;
}

/* ---- results --------------------------------------------------------------------------------- */

/* encode(o, keep) for _exc.exc_rows(): `keep` says that the bytes will be sent; then the handles
 * in them are the whole blob's. */
static PyObject *encode_part(PyObject *capsule, PyObject *args)
{
    struct core_enc *out = PyCapsule_GetPointer(capsule, NULL), one;
    PyObject *o, *bytes = NULL;
    int keep;
    if (out == NULL || !PyArg_ParseTuple(args, "Op", &o, &keep) || core_enc_init(&one) < 0)
        return NULL;
    one.loose = out->loose;
    if (core_value_encode(o, &one) == ENC_OK)
        bytes = PyBytes_FromStringAndSize((const char *)one.base, one.p - one.base);
    if (bytes != NULL && keep && enc_handles_of(out, &one) < 0)
        Py_CLEAR(bytes);
    core_enc_free(&one);
    return bytes;
}
static PyMethodDef encode_part_def = {"encode", encode_part, METH_VARARGS, NULL};

/* decode(bytes): capsule: the words of the whole blob. Without (a try, to see whether it can be
 * made) an exception that has handles in it is refused, and goes by its parts. */
static PyObject *decode_part(PyObject *capsule, PyObject *bytes)
{
    struct core_words *W = NULL;
    if (capsule != NULL && (W = PyCapsule_GetPointer(capsule, NULL)) == NULL)
        return NULL;
    if (!PyBytes_CheckExact(bytes))
        return dec_bad("an exception without bytes");
    return core_value_decode((const uint8_t *)PyBytes_AS_STRING(bytes),
                             (size_t)PyBytes_GET_SIZE(bytes), W);
}
static PyMethodDef decode_part_def = {"decode", decode_part, METH_O, NULL};

int core_exc_encode(PyObject *exc, struct core_enc *e)
{
    uint32_t nh = e->nh;
    PyObject *capsule = PyCapsule_New(e, NULL, NULL), *rows = NULL;
    PyObject *encode = capsule != NULL ? PyCFunction_New(&encode_part_def, capsule) : NULL;
    PyObject *decode = encode != NULL ? PyCFunction_New(&decode_part_def, NULL) : NULL;
    if (decode != NULL)
        rows = PyObject_CallMethod(core_exc_py, "exc_rows", "OOO", exc, encode, decode);
    Py_XDECREF(capsule);
    Py_XDECREF(encode);
    Py_XDECREF(decode);
    int r = rows != NULL ? core_value_encode(rows, e) : ENC_ERROR;
    Py_XDECREF(rows);
    if (r != ENC_OK)
        core_enc_let(e, nh);
    return r;
}

PyObject *core_exc_decode(const uint8_t *p, size_t n, struct core_words *W)
{
    PyObject *v = core_value_decode(p, n, W), *pid, *rows, *exc = NULL, *make_tb = NULL;
    PyObject *capsule = v != NULL && W != NULL ? PyCapsule_New(W, NULL, NULL) : NULL;
    PyObject *decode = v != NULL && (W == NULL || capsule != NULL)
                           ? PyCFunction_New(&decode_part_def, capsule)
                           : NULL;
    Py_XDECREF(capsule);
    if (decode != NULL)
        make_tb = PyCFunction_New(&traceback_of_def, NULL);
    if (make_tb != NULL && PyTuple_CheckExact(v) && PyTuple_GET_SIZE(v) == 2 &&
        PyArg_ParseTuple(v, "O!O!", &PyLong_Type, &pid, &PyList_Type, &rows))
        exc = PyObject_CallMethod(core_exc_py, "exc_made", "OOOO", pid, rows, decode, make_tb);
    else if (make_tb != NULL)
        dec_bad("an exception of odd parts");
    if (exc != NULL && !PyExceptionInstance_Check(exc)) {
        Py_CLEAR(exc);
        dec_bad("an exception that is none");
    }
    if (exc == NULL && v != NULL && PyErr_ExceptionMatches(PyExc_Exception) &&
        !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        PyErr_Clear(); /* the rows are not what exc_rows() makes */
        dec_bad("an exception of odd parts");
    }
    Py_XDECREF(make_tb);
    Py_XDECREF(decode);
    Py_XDECREF(v);
    return exc;
}
