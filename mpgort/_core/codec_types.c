/* codec_types.c — the rarer types: iterators, functions, methods, cells, instances, handles, and the
 * awaitables of async generators.
 *
 * Each type is written by what it consists of and rebuilt without running code of the user's. An
 * iterator keeps its position and its sequence; a local function its code (by number), cells and
 * defaults; a plain instance (nothing about its pickling overridden, no slots, no finalizer) its
 * class and attributes. Whatever is not known here falls to the pickle (codec_pickle.c), which
 * refuses what must never cross.
 *
 * Layouts that CPython keeps private are compared by size in core_layouts_ok() before first use. */
#include "codec.h"

/* ---- tables of types, filled at start -------------------------------------------------------- */

enum {
    SEQ_LIST,
    SEQ_TUPLE,
    SEQ_STR,
    SEQ_STR_ASCII,
    SEQ_BYTES,
    SEQ_BYTEARRAY,
    SEQ_ANY,
    SEQ_REVLIST,
    N_SEQ
};
static PyTypeObject *seq_types[N_SEQ];
enum { DICT_KEYS, DICT_VALUES, DICT_ITEMS, N_DICT };
static PyTypeObject *dict_types[N_DICT];
static PyTypeObject *asend_type, *athrow_type, *wrapper_type;
#define MAX_REDUCED 40
static PyObject *reduced[MAX_REDUCED]; /* types whose own __reduce__ tells all; [0]: builtin iter */
static int n_reduced;
static PyTypeObject *callable_iterator_type, *deque_type;
static PyFunctionObject *ended[3];

PyObject *pickling_names[N_PICKLING_NAMES];

PyFunctionObject *core_ended_function(int kind)
{
    return ended[kind];
}

/* ---- plain instances ------------------------------------------------------------------------- */

/* Verdicts by type, valid while its version tag is the one they were made for. */
#define N_VERDICTS 256
static struct {
    PyTypeObject *type;
    unsigned int version;
    bool plain;
} verdicts[N_VERDICTS];

static int looks_plain(PyTypeObject *t)
{
    PyTypeObject *object = &PyBaseObject_Type;
    if (!(t->tp_flags & Py_TPFLAGS_HEAPTYPE) || t->tp_itemsize != 0 || t->tp_del != NULL ||
        t->tp_finalize != NULL || t->tp_new != object->tp_new || t->tp_dictoffset == 0)
        return false;
    Py_ssize_t size = object->tp_basicsize;
    if (t->tp_weaklistoffset > 0)
        size += (Py_ssize_t)sizeof(PyObject *);
    if (t->tp_dictoffset > 0)
        size += (Py_ssize_t)sizeof(PyObject *);
    if (t->tp_basicsize != size)
        return false;
    for (int i = 0; i < N_PICKLING_NAMES; i++)
        if (_PyType_Lookup(t, pickling_names[i]) != _PyType_Lookup(object, pickling_names[i]))
            return false;
    PyObject *r = PyObject_CallMethod(core_pickle, "has_reducer", "O", t);
    Py_XDECREF(r);
    return r == NULL ? -1 : r == Py_False;
}

int is_plain_instance(PyTypeObject *t)
{
    uint32_t i = hash_address(t) & (N_VERDICTS - 1);
    if (likely(verdicts[i].type == t && verdicts[i].version == t->tp_version_tag &&
               t->tp_version_tag != 0))
        return verdicts[i].plain;
    int plain = looks_plain(t); /* its look-ups give the type a version tag */
    if (plain < 0)
        return -1;
    verdicts[i].type = t;
    verdicts[i].version = t->tp_version_tag;
    verdicts[i].plain = plain;
    return plain;
}

static bool has_weakrefs(PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    return t->tp_weaklistoffset != 0 && PyType_SUPPORTS_WEAKREFS(t) &&
           *PyObject_GET_WEAKREFS_LISTPTR(o) != NULL;
}

static uint8_t *enc_class(struct enc *E, uint8_t *p, PyTypeObject *t)
{
    uint32_t id = global_id((PyObject *)t);
    if (id == 0)
        return NULL;
    ROOM(1 + VARINT_MAX);
    *p++ = TAG_GLOBAL;
    return put_varint(p, id);
}

static uint8_t *enc_instance(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at;
    BY_NAME(o);
    if (E->moving && has_weakrefs(o))
        return enc_refuse(E, "a %.80s with a weak reference to it does not move",
                          Py_TYPE(o)->tp_name);
    uint32_t id = global_id((PyObject *)Py_TYPE(o));
    if (id == 0) /* a class that its name does not lead to: the pickle knows what to do */
        return PyErr_Occurred() ? enc_fail(E, ENC_ERROR) : enc_pickled(E, p, o);
    E->mutables++;
    MEET(o, MEMO_CHECK, memo, at);
    PyObject *dict = PyObject_GenericGetDict(o, NULL);
    if (dict == NULL)
        return enc_fail(E, ENC_ERROR);
    /* Its dict is an object of its own only if somebody besides the instance has it. */
    bool apart = Py_REFCNT(dict) > 2 || !PyDict_CheckExact(dict);
    *p++ = (apart ? TAG_OBJECTD : TAG_OBJECT) | memo;
    *p++ = TAG_GLOBAL;
    p = put_varint(p, id);
    if (apart) {
        Py_DECREF(dict); /* the instance keeps it; its count is looked at */
        if ((p = enc_value(E, p, dict)) == NULL)
            enc_path(E, ".__dict__");
        return p;
    }
    Py_ssize_t pos = 0, n = PyDict_GET_SIZE(dict), left = n;
    PyObject *k, *v;
    p = put_varint(p, (uint64_t)n);
    while (p != NULL && PyDict_Next(dict, &pos, &k, &v)) {
        if (left-- == 0 || !PyUnicode_CheckExact(k)) {
            p = enc_refuse(E, "an instance whose attributes are no plain dict");
            break;
        }
        if ((p = enc_value(E, p, k)) != NULL && (p = enc_value(E, p, v)) == NULL)
            enc_path(E, ".%.60s", PyUnicode_AsUTF8(k));
    }
    Py_DECREF(dict);
    return p;
}

static PyObject *dec_class(struct dec *D)
{
    PyObject *t = dec_value(D);
    if (t != NULL && !PyType_Check(t)) {
        Py_DECREF(t);
        return dec_bad("an instance of what is no class");
    }
    return t;
}

static PyObject *dec_instance(struct dec *D, int tag, bool memo)
{
    uint32_t at = 0;
    if (memo && dec_remember(D, NULL, &at) < 0)
        return NULL;
    PyTypeObject *t = (PyTypeObject *)dec_class(D);
    if (t == NULL)
        return NULL;
    PyObject *o = NULL;
    int plain = is_plain_instance(t);
    if (plain == 0) {
        PyErr_Format(core_error("CodeMismatch"), "%.100s is here no class of plain instances",
                     t->tp_name);
    } else if (plain > 0 && (o = t->tp_alloc(t, 0)) != NULL) {
        if (memo)
            dec_complete(D, at, o);
        int r = -1;
        if (tag == TAG_OBJECTD) {
            PyObject *dict = dec_value(D);
            if (dict != NULL && PyDict_Check(dict))
                r = PyObject_GenericSetDict(o, dict, NULL);
            else if (dict != NULL)
                dec_bad("a __dict__ that is none");
            Py_XDECREF(dict);
        } else {
            PyObject *dict = PyObject_GenericGetDict(o, NULL);
            if (dict != NULL)
                r = dec_dict_items(D, dict, true);
            Py_XDECREF(dict);
        }
        if (r < 0)
            Py_CLEAR(o);
    }
    Py_DECREF(t);
    return o;
}

/* ---- functions and methods ------------------------------------------------------------------- */

enum {
    FN_CLOSURE = 1,
    FN_DEFAULTS = 2,
    FN_KWDEFAULTS = 4,
    FN_DICT = 8,
    FN_ANNOTATIONS = 16,
    FN_NAMES = 32,
    FN_DOC = 64,
    FN_TYPEPARAMS = 128
};

/* The parts in the order of their flags; a NULL or None part is left out. */
static int function_parts(PyFunctionObject *f, struct code_info *ci, PyObject *part[8])
{
    int flags = 0;
    PyObject *dict = f->func_dict;
    part[0] = f->func_closure;
    part[1] = f->func_defaults;
    part[2] = f->func_kwdefaults;
    part[3] = dict != NULL && PyDict_GET_SIZE(dict) > 0 ? dict : NULL;
    part[4] = f->func_annotations;
    part[5] = f->func_name != ci->func->func_name || f->func_qualname != ci->func->func_qualname
                  ? f->func_name
                  : NULL;
    part[6] = f->func_doc != ci->func->func_doc ? f->func_doc : NULL;
#if PY_VERSION_HEX >= 0x030c0000
    part[7] = f->func_typeparams;
#else
    part[7] = NULL;
#endif
    for (int i = 0; i < 8; i++)
        if (part[i] != NULL && part[i] != Py_None)
            flags |= 1 << i;
    return flags;
}

static const char *const part_names[] = {"__closure__", "__defaults__",    "__kwdefaults__",
                                         "__dict__",    "__annotations__", "__name__",
                                         "__doc__",     "__type_params__"};

/* As a tuple, but a cell that cannot be encoded is named by its variable. */
static uint8_t *enc_closure(struct enc *E, uint8_t *p, PyObject *closure, PyCodeObject *code)
{
    Py_ssize_t n = PyTuple_GET_SIZE(closure);
    ROOM(VARINT_MAX + 1);
    *p++ = TAG_TUPLE;
    p = put_varint(p, (uint64_t)n);
    for (Py_ssize_t i = 0; i < n; i++)
        if ((p = enc_value(E, p, PyTuple_GET_ITEM(closure, i))) == NULL) {
            int at = code->co_nlocalsplus - code->co_nfreevars + (int)i;
            PyObject *name = PyTuple_GET_ITEM(code->co_localsplusnames, at);
            enc_path(E, ".%.60s", PyUnicode_AsUTF8(name));
            return NULL;
        }
    return p;
}

static uint8_t *enc_function(struct enc *E, uint8_t *p, PyObject *o)
{
    uint32_t id = global_id(o), at = 0, before = E->mutables;
    uint8_t memo;
    if (id == 0 && !PyErr_Occurred() &&
        PyUnicode_CompareWithASCIIString(((PyFunctionObject *)o)->func_qualname, "<lambda>") == 0)
        id = variable_id(o); /* double = lambda x: 2 * x */
    if (id != 0) {
        *p++ = TAG_GLOBAL;
        return put_varint(p, id);
    }
    if (PyErr_Occurred())
        return enc_fail(E, ENC_ERROR);
    PyFunctionObject *f = (PyFunctionObject *)o;
    const char *why = NULL;
    struct code_info *ci = code_info_of((PyCodeObject *)f->func_code, f->func_globals, &why);
    if (ci == NULL) {
        if (why == NULL)
            return enc_fail(E, ENC_ERROR);
        return enc_pickled(E, p, o);
    }
    if (E->moving && f->func_weakreflist != NULL)
        return enc_refuse(E, "a function with a weak reference to it does not move");
    if ((id = code_info_id(ci)) == 0)
        return enc_fail(E, ENC_ERROR);
    MEET(o, 0, memo, at);
    PyObject *part[8];
    int flags = function_parts(f, ci, part);
    *p++ = TAG_FUNCTION | memo;
    *p++ = (uint8_t)flags;
    p = put_varint(p, id);
    for (int i = 0; i < 8; i++) {
        if (!(flags & 1 << i))
            continue;
        if (i == 0) {
            if ((p = enc_closure(E, p, part[0], ci->code)) == NULL)
                return NULL;
            continue;
        }
        if ((p = enc_value(E, p, part[i])) == NULL) {
            enc_path(E, ".%s", part_names[i]);
            return NULL;
        }
        if (i == 5 && (p = enc_value(E, p, f->func_qualname)) == NULL)
            return NULL;
    }
    if (memo && E->mutables != before)
        E->memo[at].flags |= MEMO_CHECK;
    return p;
}

static PyObject *dec_function(struct dec *D, bool memo)
{
    uint64_t id;
    if (D->p >= D->end)
        return dec_bad("the bytes end within a function");
    int flags = *D->p++;
    if (dec_varint(D, &id) < 0)
        return NULL;
    struct code_info *ci =
        id <= UINT32_MAX ? code_info_by_id((uint32_t)id) : dec_bad("code number");
    if (ci == NULL)
        return NULL;
    PyFunctionObject *f = (PyFunctionObject *)PyFunction_NewWithQualName(
        (PyObject *)ci->code, ci->globals, ci->code->co_qualname);
    if (f == NULL || (memo && dec_remember(D, (PyObject *)f, NULL) < 0))
        goto fail;
    if (((flags & FN_CLOSURE) != 0) != (ci->code->co_nfreevars > 0)) {
        dec_bad("a function without its closure");
        goto fail;
    }
    for (int i = 0; i < 8; i++) {
        if (!(flags & 1 << i))
            continue;
        PyObject *v = dec_value(D), **to = NULL;
        if (v == NULL)
            goto fail;
        bool good = true;
        switch (1 << i) {
        case FN_CLOSURE:
            to = &f->func_closure;
            good = PyTuple_CheckExact(v) && PyTuple_GET_SIZE(v) == ci->code->co_nfreevars;
            for (Py_ssize_t k = 0; good && k < PyTuple_GET_SIZE(v); k++)
                good = PyCell_Check(PyTuple_GET_ITEM(v, k));
            break;
        case FN_DEFAULTS:
            to = &f->func_defaults;
            good = PyTuple_CheckExact(v);
            break;
        case FN_KWDEFAULTS:
            to = &f->func_kwdefaults;
            good = PyDict_CheckExact(v);
            break;
        case FN_DICT:
            to = &f->func_dict;
            good = PyDict_Check(v);
            break;
        case FN_ANNOTATIONS:
            to = &f->func_annotations;
            good = PyDict_CheckExact(v) || (PyTuple_CheckExact(v) && PyTuple_GET_SIZE(v) % 2 == 0);
            break;
        case FN_NAMES:
            to = &f->func_name;
            good = PyUnicode_Check(v);
            break;
        case FN_DOC:
            to = &f->func_doc;
            break;
        case FN_TYPEPARAMS:
#if PY_VERSION_HEX >= 0x030c0000
            to = &f->func_typeparams;
            good = PyTuple_CheckExact(v);
#else
            good = false;
#endif
            break;
        }
        if (!good || to == NULL) {
            Py_DECREF(v);
            dec_bad("a function's %s is of the wrong type", part_names[i]);
            goto fail;
        }
        Py_XSETREF(*to, v);
        if (1 << i == FN_NAMES) {
            if ((v = dec_str(D)) == NULL)
                goto fail;
            Py_SETREF(f->func_qualname, v);
        }
    }
    return (PyObject *)f;
fail:
    Py_XDECREF(f);
    return NULL;
}

static uint8_t *enc_method(struct enc *E, uint8_t *p, PyObject *o)
{
    uint32_t at = 0, before = E->mutables;
    uint8_t memo;
    MEET(o, 0, memo, at);
    *p++ = TAG_METHOD | memo;
    if ((p = enc_value(E, p, PyMethod_GET_FUNCTION(o))) == NULL ||
        (p = enc_value(E, p, PyMethod_GET_SELF(o))) == NULL) {
        enc_path(E, ".__self__");
        return NULL;
    }
    if (memo && E->mutables != before)
        E->memo[at].flags |= MEMO_CHECK;
    return p;
}

static PyObject *dec_method(struct dec *D, bool memo)
{
    PyMethodObject *m = (PyMethodObject *)PyMethod_New(Py_None, Py_None);
    if (m == NULL || (memo && dec_remember(D, (PyObject *)m, NULL) < 0))
        goto fail;
    PyObject *v = dec_value(D);
    if (v == NULL)
        goto fail;
    Py_SETREF(m->im_func, v);
    if (!PyCallable_Check(v)) {
        dec_bad("a method of what cannot be called");
        goto fail;
    }
    if ((v = dec_value(D)) == NULL)
        goto fail;
    Py_SETREF(m->im_self, v);
    return (PyObject *)m;
fail:
    Py_XDECREF(m);
    return NULL;
}

static uint8_t *enc_cmethod(struct enc *E, uint8_t *p, PyObject *o)
{
    PyObject *self = PyCFunction_GET_SELF(o);
    uint32_t id = 0, at = 0, before = E->mutables;
    uint8_t memo;
    if (self == NULL || PyModule_Check(self)) {
        if ((id = global_id(o)) != 0) {
            *p++ = TAG_GLOBAL;
            return put_varint(p, id);
        }
        if (PyErr_Occurred())
            return enc_fail(E, ENC_ERROR);
        return enc_pickled(E, p, o);
    }
    MEET(o, 0, memo, at);
    const char *name = ((PyCFunctionObject *)o)->m_ml->ml_name;
    if (!PyType_Check(self)) {
        PyObject *n = PyUnicode_FromString(name);
        PyObject *d = n != NULL ? _PyType_Lookup(Py_TYPE(self), n) : NULL;
        Py_XDECREF(n);
        if (d == NULL || !Py_IS_TYPE(d, &PyMethodDescr_Type) ||
            ((PyMethodDescrObject *)d)->d_method != ((PyCFunctionObject *)o)->m_ml)
            return enc_refuse(E, "the method %.60s of a %.80s cannot be found again", name,
                              Py_TYPE(self)->tp_name);
    }
    *p++ = TAG_CMETHOD | memo;
    size_t len = strlen(name);
    ROOM(len + VARINT_MAX + 2);
    p = put_varint(p, len);
    memcpy(p, name, len);
    p += len;
    if ((p = enc_value(E, p, self)) == NULL) {
        enc_path(E, ".__self__");
        return NULL;
    }
    if (memo && E->mutables != before)
        E->memo[at].flags |= MEMO_CHECK;
    return p;
}

static PyObject *dec_cmethod(struct dec *D, bool memo)
{
    Py_ssize_t n;
    uint32_t at = 0;
    if ((memo && dec_remember(D, NULL, &at) < 0) || dec_count(D, 1, &n) < 0)
        return NULL;
    PyObject *name = PyUnicode_DecodeASCII((const char *)D->p, n, "replace");
    D->p += n;
    PyObject *self = name != NULL ? dec_value(D) : NULL;
    PyObject *o = NULL;
    if (self != NULL && PyType_Check(self)) {
        o = PyObject_GetAttr(self, name);
    } else if (self != NULL) {
        PyObject *d = _PyType_Lookup(Py_TYPE(self), name);
        if (d != NULL && Py_IS_TYPE(d, &PyMethodDescr_Type))
            o = PyCFunction_NewEx(((PyMethodDescrObject *)d)->d_method, self, NULL);
    }
    if (o == NULL || !PyCFunction_Check(o)) {
        PyErr_Clear();
        Py_CLEAR(o);
        dec_bad("a builtin method that is not there");
    } else if (memo) {
        dec_complete(D, at, o);
    }
    Py_XDECREF(name);
    Py_XDECREF(self);
    return o;
}

static uint8_t *enc_cell(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at;
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED, memo, at);
    *p++ = TAG_CELL | memo;
    PyObject *v = PyCell_GET(o);
    if (v == NULL) {
        *p++ = TAG_NULL;
        return p;
    }
    return enc_value(E, p, v);
}

static PyObject *dec_cell(struct dec *D, bool memo)
{
    PyObject *o = PyCell_New(NULL);
    if (o == NULL || (memo && dec_remember(D, o, NULL) < 0))
        goto fail;
    if (D->p < D->end && *D->p == TAG_NULL) {
        D->p++;
        return o;
    }
    PyObject *v = dec_value(D);
    if (v == NULL)
        goto fail;
    Py_XSETREF(((PyCellObject *)o)->ob_ref, v);
    return o;
fail:
    Py_XDECREF(o);
    return NULL;
}

/* The cells of a function that a module's name leads to (a decorator's wrapper) are shared with that
 * function for good. They go as "the k-th cell of that function". */
uint32_t closure_owner(PyObject *fn)
{
    uint32_t id = variable_known(fn);
    return id != 0 ? id : global_id(fn);
}

static PyObject *dec_cell_of(struct dec *D)
{
    uint64_t id, k;
    if (dec_varint(D, &id) < 0 || dec_varint(D, &k) < 0)
        return NULL;
    PyObject *fn = id <= UINT32_MAX ? global_by_id((uint32_t)id) : dec_bad("name number");
    if (fn == NULL)
        return NULL;
    PyObject *closure = PyFunction_Check(fn) ? PyFunction_GET_CLOSURE(fn) : NULL;
    PyObject *cell = NULL;
    if (closure != NULL && k < (uint64_t)PyTuple_GET_SIZE(closure))
        cell = Py_NewRef(PyTuple_GET_ITEM(closure, (Py_ssize_t)k));
    else
        PyErr_Format(core_error("CodeMismatch"), "%R has other free variables here", fn);
    Py_DECREF(fn);
    D->owner = cell != NULL ? fn : NULL;
    return cell;
}

/* ---- deque ----------------------------------------------------------------------------------- */

static uint8_t *enc_deque(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at;
    E->mutables++;
    BY_NAME(o);
    MEET(o, MEMO_CHECK, memo, at);
    PyObject *maxlen = PyObject_GetAttrString(o, "maxlen");
    PyObject *items = maxlen != NULL ? PySequence_List(o) : NULL;
    if (items == NULL) {
        Py_XDECREF(maxlen);
        return enc_fail(E, ENC_ERROR);
    }
    *p++ = TAG_DEQUE | memo;
    p = enc_value(E, p, maxlen);
    Py_ssize_t n = PyList_GET_SIZE(items);
    if (p != NULL && (size_t)(E->end - p) < VARINT_MAX)
        p = enc_grow(E, p, VARINT_MAX);
    if (p != NULL)
        p = put_varint(p, (uint64_t)n);
    for (Py_ssize_t i = 0; p != NULL && i < n; i++) {
        PyObject *v = PyList_GET_ITEM(items, i);
        Py_DECREF(v); /* the deque keeps it: its count is looked at */
        p = enc_value(E, p, v);
        Py_INCREF(v);
        if (p == NULL)
            enc_path(E, "[%zd]", i);
    }
    Py_DECREF(items);
    Py_DECREF(maxlen);
    return p;
}

static PyObject *dec_deque(struct dec *D, bool memo)
{
    uint32_t at = 0;
    Py_ssize_t n;
    if (memo && dec_remember(D, NULL, &at) < 0)
        return NULL;
    PyObject *maxlen = dec_value(D);
    if (maxlen == NULL)
        return NULL;
    PyObject *o = maxlen == Py_None || PyLong_CheckExact(maxlen)
                      ? PyObject_CallFunction((PyObject *)deque_type, "()O", maxlen)
                      : NULL;
    Py_DECREF(maxlen);
    if (o == NULL) {
        PyErr_Clear();
        return dec_bad("a deque of odd length");
    }
    if (memo)
        dec_complete(D, at, o);
    if (dec_count(D, 1, &n) < 0)
        Py_CLEAR(o);
    for (Py_ssize_t i = 0; o != NULL && i < n; i++) {
        PyObject *v = dec_value(D);
        PyObject *r = v != NULL ? PyObject_CallMethod(o, "append", "(O)", v) : NULL;
        Py_XDECREF(v);
        if (r == NULL)
            Py_CLEAR(o);
        Py_XDECREF(r);
    }
    return o;
}

/* ---- iterators ------------------------------------------------------------------------------- */

static uint8_t *enc_seqiter(struct enc *E, uint8_t *p, PyObject *o, int type)
{
    uint8_t memo;
    uint32_t at;
    SeqIter *it = (SeqIter *)o;
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED, memo, at);
    *p++ = TAG_SEQITER | memo;
    *p++ = (uint8_t)type;
    p = put_varint(p, (uint64_t)(it->index + 1));
    if (it->seq == NULL) {
        *p++ = TAG_NULL;
        return p;
    }
    return enc_value(E, p, it->seq);
}

/* A new iterator of the given type over seq; NULL without an exception if seq is of a wrong type. */
static PyObject *make_seqiter(int type, PyObject *seq)
{
    switch (type) {
    case SEQ_LIST:
        return PyList_Check(seq) ? PyList_Type.tp_iter(seq) : NULL;
    case SEQ_TUPLE:
        return PyTuple_Check(seq) ? PyTuple_Type.tp_iter(seq) : NULL;
    case SEQ_STR:
    case SEQ_STR_ASCII:
        return PyUnicode_Check(seq) ? PyUnicode_Type.tp_iter(seq) : NULL;
    case SEQ_BYTES:
        return PyBytes_Check(seq) ? PyBytes_Type.tp_iter(seq) : NULL;
    case SEQ_BYTEARRAY:
        return PyByteArray_Check(seq) ? PyByteArray_Type.tp_iter(seq) : NULL;
    case SEQ_ANY:
        return PySequence_Check(seq) ? PySeqIter_New(seq) : NULL;
    case SEQ_REVLIST: {
        PyObject *make = PyList_Check(seq)
                             ? PyObject_GetAttrString((PyObject *)&PyList_Type, "__reversed__")
                             : NULL;
        PyObject *it = make != NULL ? PyObject_CallOneArg(make, seq) : NULL;
        Py_XDECREF(make);
        return it;
    }
    }
    return NULL;
}

static PyObject *dec_seqiter(struct dec *D, bool memo)
{
    uint64_t index;
    uint32_t at = 0;
    if (D->end - D->p < 2)
        return dec_bad("the bytes end within an iterator");
    int type = *D->p++;
    if (type >= N_SEQ || (memo && dec_remember(D, NULL, &at) < 0) || dec_varint(D, &index) < 0)
        return PyErr_Occurred() ? NULL : dec_bad("an unknown iterator");
    bool ended_ = D->p < D->end && *D->p == TAG_NULL;
    PyObject *seq;
    if (ended_) {
        D->p++;
        seq = type == SEQ_STR || type == SEQ_STR_ASCII ? PyUnicode_New(0, 0)
              : type == SEQ_BYTES                      ? PyBytes_FromString("")
              : type == SEQ_BYTEARRAY                  ? PyByteArray_FromStringAndSize("", 0)
              : type == SEQ_TUPLE                      ? PyTuple_New(0)
                                                       : PyList_New(0);
    } else {
        seq = dec_value(D);
    }
    if (seq == NULL)
        return NULL;
    SeqIter *it = (SeqIter *)make_seqiter(type, seq);
    Py_DECREF(seq);
    if (it == NULL)
        return PyErr_Occurred() ? NULL : dec_bad("an iterator over the wrong type");
    if (ended_) { /* how that is marked differs: let it find out by itself */
        Py_XDECREF(Py_TYPE(it)->tp_iternext((PyObject *)it));
    } else {
        it->index = (Py_ssize_t)(index > PY_SSIZE_T_MAX ? PY_SSIZE_T_MAX : index) - 1;
        if (it->index < 0 && type != SEQ_REVLIST)
            it->index = 0;
    }
    if (memo)
        dec_complete(D, at, (PyObject *)it);
    return (PyObject *)it;
}

uint8_t *enc_rangeiter(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at;
    RangeIter *it = (RangeIter *)o;
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED, memo, at);
    *p++ = TAG_RANGEITER | memo;
    int64_t w[3];
    range_iter_get(it, w);
    ROOM(3 * VARINT_MAX + 2);
    for (int i = 0; i < 3; i++)
        p = put_varint(p, (uint64_t)w[i] << 1 ^ (uint64_t)(w[i] >> 63)); /* sign in bit 0 */
    return p;
}

static PyObject *dec_rangeiter(struct dec *D, bool memo)
{
    int64_t w[3];
    for (int i = 0; i < 3; i++) {
        uint64_t v;
        if (dec_varint(D, &v) < 0)
            return NULL;
        w[i] = (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
    }
    RangeIter *it = PyObject_New(RangeIter, &PyRangeIter_Type);
    if (it == NULL)
        return NULL;
    range_iter_set(it, w);
    if (memo && dec_remember(D, (PyObject *)it, NULL) < 0)
        Py_CLEAR(it);
    return (PyObject *)it;
}

static uint8_t *enc_dictiter(struct enc *E, uint8_t *p, PyObject *o, int type)
{
    uint8_t memo;
    uint32_t at;
    DictIter *it = (DictIter *)o;
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED, memo, at);
    *p++ = TAG_DICTITER | memo;
    *p++ = (uint8_t)type;
    if (it->dict == NULL) {
        *p++ = TAG_NULL;
        return p;
    }
    if (it->used != it->dict->ma_used)
        return enc_refuse(E, "an iterator over a dict that changed its size");
    if ((p = enc_value(E, p, (PyObject *)it->dict)) == NULL)
        return NULL;
    /* The rebuilt dict is compact: what counts is how many entries lie before the position. */
    Py_ssize_t pos = 0, before = 0;
    while (pos < it->pos && PyDict_Next((PyObject *)it->dict, &pos, NULL, NULL) && pos <= it->pos)
        before++;
    ROOM(2 * VARINT_MAX);
    p = put_varint(p, (uint64_t)before);
    return put_varint(p, (uint64_t)it->len);
}

static PyObject *dec_dictiter(struct dec *D, bool memo)
{
    uint64_t before = 0, len = 0;
    uint32_t at = 0;
    if (D->end - D->p < 2)
        return dec_bad("the bytes end within an iterator");
    int type = *D->p++;
    if (type >= N_DICT || (memo && dec_remember(D, NULL, &at) < 0))
        return PyErr_Occurred() ? NULL : dec_bad("an unknown iterator");
    bool ended_ = *D->p == TAG_NULL;
    PyObject *dict;
    if (ended_) {
        D->p++;
        dict = PyDict_New();
    } else {
        dict = dec_value(D);
    }
    if (dict == NULL)
        return NULL;
    PyObject *view = NULL;
    DictIter *it = NULL;
    if (!PyDict_CheckExact(dict) ||
        (!ended_ && (dec_varint(D, &before) < 0 || dec_varint(D, &len) < 0))) {
        if (!PyErr_Occurred())
            dec_bad("an iterator over the wrong type");
        goto done;
    }
    if (before > (uint64_t)PyDict_GET_SIZE(dict) || len > (uint64_t)PyDict_GET_SIZE(dict)) {
        dec_bad("an iterator beyond its dict");
        goto done;
    }
    static const char *const names[] = {"keys", "values", "items"};
    view = PyObject_CallMethod(dict, names[type], NULL);
    if (view == NULL || (it = (DictIter *)PyObject_GetIter(view)) == NULL)
        goto done;
    Py_ssize_t pos = 0;
    for (uint64_t i = 0; i < before; i++)
        PyDict_Next(dict, &pos, NULL, NULL);
    it->pos = pos;
    it->len = (Py_ssize_t)len;
    if (ended_)
        Py_CLEAR(it->dict);
    if (memo)
        dec_complete(D, at, (PyObject *)it);
done:
    Py_XDECREF(view);
    Py_DECREF(dict);
    return (PyObject *)it;
}

/* Builtin iterators that tell all in their own __reduce__: (callable, args[, state]). */
static uint8_t *enc_reduced(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at = 0;
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED | MEMO_OPEN, memo, at);
    PyObject *r = PyObject_CallMethod(core_pickle, "reduce", "O", o);
    if (r == NULL)
        return enc_fail_by_exception(E);
    PyObject *fn = NULL, *args = NULL, *state = Py_None;
    int which = -1;
    if (PyTuple_CheckExact(r) && PyTuple_GET_SIZE(r) >= 2) {
        fn = PyTuple_GET_ITEM(r, 0);
        args = PyTuple_GET_ITEM(r, 1);
        if (PyTuple_GET_SIZE(r) >= 3)
            state = PyTuple_GET_ITEM(r, 2);
        for (int i = 0; i < n_reduced; i++)
            if (reduced[i] == fn)
                which = i;
    }
    if (which < 0 || !PyTuple_CheckExact(args) || PyTuple_GET_SIZE(r) > 3) {
        p = enc_refuse(E, "a %.80s whose state is not known", Py_TYPE(o)->tp_name);
    } else {
        *p++ = TAG_REDUCED | memo;
        *p++ = (uint8_t)which;
        if ((p = enc_value(E, p, args)) != NULL)
            p = enc_value(E, p, state);
    }
    if (memo)
        E->memo[at].flags &= (uint8_t)~MEMO_OPEN;
    Py_DECREF(r); /* before the count is looked at; the pickle keeps what it has of it */
    return p;
}

static PyObject *dec_reduced(struct dec *D, bool memo)
{
    uint32_t at = 0;
    if (D->end - D->p < 2)
        return dec_bad("the bytes end within an iterator");
    int which = *D->p++;
    if (which >= n_reduced || (memo && dec_remember(D, NULL, &at) < 0))
        return PyErr_Occurred() ? NULL : dec_bad("an unknown iterator");
    PyObject *args = dec_value(D), *state = args != NULL ? dec_value(D) : NULL, *o = NULL;
    if (state != NULL) {
        if (!PyTuple_CheckExact(args))
            dec_bad("arguments that are no tuple");
        else
            o = PyObject_CallMethod(core_pickle, "rebuild", "OOO", reduced[which], args, state);
        if (o == NULL && PyErr_ExceptionMatches(PyExc_Exception) &&
            !PyErr_ExceptionMatches(PyExc_MemoryError)) {
            PyErr_Clear();
            dec_bad("an iterator that cannot be made");
        }
    }
    Py_XDECREF(args);
    Py_XDECREF(state);
    if (o != NULL && memo)
        dec_complete(D, at, o);
    return o;
}

/* ---- awaitables of async generators ---------------------------------------------------------- */

PyObject *awaited_by(PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    if (t == asend_type)
        return ((AsyncGenASend *)o)->gen;
    if (t == athrow_type)
        return ((AsyncGenAThrow *)o)->gen;
    if (t == wrapper_type)
        return ((CoroWrapper *)o)->coro;
    return NULL;
}

/* (generator, what is sent or thrown, state): asend and athrow have one shape, a wrapper only the
 * first part of it. */
static uint8_t *enc_awaitable(struct enc *E, uint8_t *p, PyObject *o, int tag)
{
    uint8_t memo;
    uint32_t at;
    AsyncGenASend *a = (AsyncGenASend *)o;
    if (!E->moving)
        return enc_refuse(E, "a %.80s never crosses", Py_TYPE(o)->tp_name);
    E->mutables++;
    MEET(o, MEMO_CHECK | MEMO_UNNAMED, memo, at);
    *p++ = (uint8_t)tag | memo;
    if (tag == TAG_COROWRAP)
        return enc_value(E, p, ((CoroWrapper *)o)->coro);
    *p++ = (uint8_t)a->state;
    if (a->state == 0 && enc_dropped_with(E, (PyGenObject *)o) < 0)
        return NULL; /* to be closed at the drop: 3.13 warns of one that was never awaited */
    if ((p = enc_value(E, p, a->gen)) == NULL)
        return NULL;
    ROOM(2);
    if (a->sendval == NULL) {
        *p++ = TAG_NULL;
        return p;
    }
    return enc_value(E, p, a->sendval);
}

static PyObject *dec_awaitable(struct dec *D, int tag, bool memo)
{
    PyTypeObject *t = tag == TAG_ASEND    ? asend_type
                      : tag == TAG_ATHROW ? athrow_type
                                          : wrapper_type;
    int state = 0;
    if (D->end - D->p < 2)
        return dec_bad("the bytes end within an awaitable");
    if (tag != TAG_COROWRAP && (state = *D->p++) > 2)
        return dec_bad("an awaitable in no known state");
    AsyncGenASend *a = (AsyncGenASend *)_PyObject_GC_New(t);
    if (a == NULL)
        return NULL;
    a->gen = NULL;
    if (tag != TAG_COROWRAP) {
        a->sendval = NULL;
        a->state = state;
    }
    PyObject_GC_Track(a);
    if (memo && dec_remember(D, (PyObject *)a, NULL) < 0)
        goto fail;
    if ((a->gen = dec_value(D)) == NULL)
        goto fail;
    if (tag == TAG_COROWRAP ? !PyCoro_CheckExact(a->gen) : !PyAsyncGen_CheckExact(a->gen)) {
        dec_bad("an awaitable of what is no generator");
        goto fail;
    }
    if (tag == TAG_COROWRAP)
        return (PyObject *)a;
    if (D->p < D->end && *D->p == TAG_NULL) {
        D->p++;
        return (PyObject *)a;
    }
    if ((a->sendval = dec_value(D)) == NULL)
        goto fail;
    if (tag == TAG_ATHROW && !PyTuple_CheckExact(a->sendval)) {
        dec_bad("what is thrown is no tuple");
        goto fail;
    }
    return (PyObject *)a;
fail:
    if (tag != TAG_COROWRAP)
        a->state = 2; /* else 3.13 warns that it was never awaited */
    Py_DECREF(a);
    return NULL;
}

/* ---- range, slice, complex, module ----------------------------------------------------------- */

static uint8_t *enc_triple(struct enc *E, uint8_t *p, PyObject *o, int tag)
{
    uint8_t memo;
    uint32_t at = 0, before = E->mutables;
    MEET(o, MEMO_OPEN, memo, at);
    PyObject *part[3];
    if (tag == TAG_SLICE) {
        PySliceObject *s = (PySliceObject *)o;
        part[0] = Py_NewRef(s->start);
        part[1] = Py_NewRef(s->stop);
        part[2] = Py_NewRef(s->step);
    } else {
        static const char *const names[] = {"start", "stop", "step"};
        for (int i = 0; i < 3; i++)
            if ((part[i] = PyObject_GetAttrString(o, names[i])) == NULL) {
                while (i-- > 0)
                    Py_DECREF(part[i]);
                return enc_fail(E, ENC_ERROR);
            }
    }
    *p++ = (uint8_t)tag | memo;
    for (int i = 0; i < 3; i++) {
        Py_DECREF(part[i]); /* o keeps it; its count is looked at */
        if (p != NULL)
            p = enc_value(E, p, part[i]);
    }
    if (memo) {
        E->memo[at].flags &= (uint8_t)~MEMO_OPEN;
        if (E->mutables != before)
            E->memo[at].flags |= MEMO_CHECK;
    }
    return p;
}

static PyObject *dec_triple(struct dec *D, int tag, bool memo)
{
    PyObject *part[3] = {NULL, NULL, NULL}, *o = NULL;
    uint32_t at = 0;
    if (memo && dec_remember(D, NULL, &at) < 0)
        return NULL;
    for (int i = 0; i < 3; i++)
        if ((part[i] = dec_value(D)) == NULL)
            goto done;
    if (tag == TAG_SLICE) {
        o = PySlice_New(part[0], part[1], part[2]);
    } else if (PyLong_CheckExact(part[0]) && PyLong_CheckExact(part[1]) &&
               PyLong_CheckExact(part[2])) {
        o = PyObject_CallFunctionObjArgs((PyObject *)&PyRange_Type, part[0], part[1], part[2],
                                         NULL);
        if (o == NULL && PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
            dec_bad("a range with step 0");
        }
    } else {
        dec_bad("a range of no ints");
    }
    if (o != NULL && memo)
        dec_complete(D, at, o);
done:
    for (int i = 0; i < 3; i++)
        Py_XDECREF(part[i]);
    return o;
}

static uint8_t *enc_module(struct enc *E, uint8_t *p, PyObject *o)
{
    PyObject *name = PyModule_GetNameObject(o);
    PyObject *found = name != NULL ? PyImport_GetModule(name) : NULL;
    if (found != o) {
        Py_XDECREF(name);
        Py_XDECREF(found);
        if (PyErr_Occurred())
            PyErr_Clear();
        return enc_refuse(E, "a module that is not in sys.modules");
    }
    Py_DECREF(found);
    Py_ssize_t n;
    const char *text = PyUnicode_AsUTF8AndSize(name, &n);
    if (text == NULL) {
        Py_DECREF(name);
        return enc_fail(E, ENC_ERROR);
    }
    p = (size_t)(E->end - p) < (size_t)n + VARINT_MAX + 1
            ? enc_grow(E, p, (size_t)n + VARINT_MAX + 1)
            : p;
    if (p != NULL) {
        *p++ = TAG_MODULE;
        p = put_varint(p, (uint64_t)n);
        memcpy(p, text, (size_t)n);
        p += n;
    }
    Py_DECREF(name);
    return p;
}

static PyObject *dec_module(struct dec *D)
{
    Py_ssize_t n;
    if (dec_count(D, 1, &n) < 0)
        return NULL;
    PyObject *name = PyUnicode_DecodeUTF8((const char *)D->p, n, "replace");
    D->p += n;
    if (name == NULL)
        return NULL;
    PyObject *m = PyImport_GetModule(name);
    if (m == NULL && !PyErr_Occurred())
        m = PyObject_CallMethod(core_code_py, "import_module", "O", name);
    Py_DECREF(name);
    return m;
}

/* ---- dispatch -------------------------------------------------------------------------------- */

/* list.append and its like, which a call in progress has on the stack. */
static uint8_t *enc_named(struct enc *E, uint8_t *p, PyObject *o)
{
    uint32_t id = global_id(o);
    if (id == 0)
        return PyErr_Occurred() ? enc_fail(E, ENC_ERROR) : enc_pickled(E, p, o);
    *p++ = TAG_GLOBAL;
    return put_varint(p, id);
}

/* ROOM(32) was made by enc_value(). */
uint8_t *enc_other(struct enc *E, uint8_t *p, PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    if (t == &PyCell_Type)
        return enc_cell(E, p, o);
    for (int i = 0; i < N_SEQ; i++)
        if (seq_types[i] == t)
            return enc_seqiter(E, p, o, i);
    for (int i = 0; i < N_DICT; i++)
        if (dict_types[i] == t)
            return enc_dictiter(E, p, o, i);
    if (t == &PyFunction_Type)
        return enc_function(E, p, o);
    if (t == &PyMethod_Type)
        return enc_method(E, p, o);
    if (PyType_Check(o)) {
        uint8_t *q = enc_class(E, p, (PyTypeObject *)o);
        if (q != NULL || E->status != ENC_OK || PyErr_Occurred())
            return q != NULL || E->status != ENC_OK ? q : enc_fail(E, ENC_ERROR);
        return enc_pickled(E, p, o);
    }
    int plain = is_plain_instance(t);
    if (plain != 0)
        return plain > 0 ? enc_instance(E, p, o) : enc_fail(E, ENC_ERROR);
    if (PyExceptionInstance_Check(o))
        return enc_exception(E, p, o);
    if (PyCFunction_CheckExact(o))
        return enc_cmethod(E, p, o);
    if (t == &PyMethodDescr_Type || t == &PyWrapperDescr_Type || t == &PyClassMethodDescr_Type ||
        t == &PyGetSetDescr_Type || t == &PyMemberDescr_Type)
        return enc_named(E, p, o);
    if (t == asend_type)
        return enc_awaitable(E, p, o, TAG_ASEND);
    if (t == athrow_type)
        return enc_awaitable(E, p, o, TAG_ATHROW);
    if (t == wrapper_type)
        return enc_awaitable(E, p, o, TAG_COROWRAP);
    if (t == &PyRange_Type)
        return enc_triple(E, p, o, TAG_RANGE);
    if (t == &PySlice_Type)
        return enc_triple(E, p, o, TAG_SLICE);
    if (t == &PyComplex_Type) {
        uint8_t memo;
        uint32_t at;
        MEET(o, 0, memo, at);
        Py_complex c = ((PyComplexObject *)o)->cval;
        *p++ = TAG_COMPLEX | memo;
        memcpy(p, &c.real, 8);
        memcpy(p + 8, &c.imag, 8);
        return p + 16;
    }
    if (o == Py_Ellipsis || o == Py_NotImplemented) {
        *p++ = o == Py_Ellipsis ? TAG_ELLIPSIS : TAG_NOTIMPLEMENTED;
        return p;
    }
    if (E->moving && t == &PyTraceBack_Type)
        return enc_traceback(E, p, o);
    if (t == deque_type)
        return enc_deque(E, p, o);
    if (PyModule_CheckExact(o))
        return enc_module(E, p, o);
    if (t == callable_iterator_type)
        return enc_reduced(E, p, o);
    for (int i = 1; i < n_reduced; i++)
        if (reduced[i] == (PyObject *)t)
            return enc_reduced(E, p, o);
    if (E->moving && t == &CorePark_Type && enc_is_park(E, o)) {
        *p++ = TAG_PARK;
        return p;
    }
    if (t == &CorePark_Type)
        return enc_refuse(E, "an operation that was made and not yet awaited does not move");
    return enc_pickled(E, p, o);
}

PyObject *dec_other(struct dec *D, int tag, bool memo)
{
    uint64_t v;
    PyObject *o;
    switch (tag) {
    case TAG_CELL:
        return dec_cell(D, memo);
    case TAG_SEQITER:
        return dec_seqiter(D, memo);
    case TAG_RANGEITER:
        return dec_rangeiter(D, memo);
    case TAG_DICTITER:
        return dec_dictiter(D, memo);
    case TAG_REDUCED:
        return dec_reduced(D, memo);
    case TAG_HANDLE:
        return dec_handle(D, memo);
    case TAG_METHOD:
        return dec_method(D, memo);
    case TAG_CMETHOD:
        return dec_cmethod(D, memo);
    case TAG_FUNCTION:
        return dec_function(D, memo);
    case TAG_OBJECT:
    case TAG_OBJECTD:
        return dec_instance(D, tag, memo);
    case TAG_ASEND:
    case TAG_ATHROW:
    case TAG_COROWRAP:
        return D->moving ? dec_awaitable(D, tag, memo) : dec_bad("an awaitable in a value");
    case TAG_SLICE:
    case TAG_RANGE:
        return dec_triple(D, tag, memo);
    case TAG_TRACEBACK:
        return D->moving ? dec_traceback(D, memo) : dec_bad("a traceback in a value");
    case TAG_CELLOF:
        return dec_cell_of(D);
    case TAG_DEQUE:
        return dec_deque(D, memo);
    case TAG_MODULE:
        return dec_module(D);
    case TAG_GLOBAL:
        if (dec_varint(D, &v) < 0)
            return NULL;
        return v <= UINT32_MAX ? global_by_id((uint32_t)v) : dec_bad("name number out of range");
    case TAG_PICKLE:
        if (dec_varint(D, &v) < 0)
            return NULL;
        if (D->pickled == NULL || v >= (uint64_t)PyList_GET_SIZE(D->pickled))
            return dec_bad("a pickled object that is not there");
        o = Py_NewRef(PyList_GET_ITEM(D->pickled, (Py_ssize_t)v));
        if (memo && dec_remember(D, o, NULL) < 0)
            Py_CLEAR(o);
        return o;
    }
    return dec_bad("unknown tag %d", tag);
}

/* ---- start ----------------------------------------------------------------------------------- */

static PyTypeObject *type_of_iter(PyObject *seq)
{
    PyObject *it = seq != NULL ? PyObject_GetIter(seq) : NULL;
    Py_XDECREF(seq);
    if (it == NULL)
        return NULL;
    PyTypeObject *t = Py_TYPE(it); /* static types: they live on */
    Py_DECREF(it);
    return t;
}

/* Sizes of what cpython.h declares, against what this interpreter has. */
bool core_layouts_ok(char *why, size_t n)
{
    const struct {
        PyTypeObject *type;
        size_t size;
    } known[] = {
        {seq_types[SEQ_LIST], sizeof(SeqIter)},      {seq_types[SEQ_TUPLE], sizeof(SeqIter)},
        {seq_types[SEQ_STR], sizeof(SeqIter)},       {seq_types[SEQ_STR_ASCII], sizeof(SeqIter)},
        {seq_types[SEQ_BYTES], sizeof(SeqIter)},     {seq_types[SEQ_BYTEARRAY], sizeof(SeqIter)},
        {seq_types[SEQ_ANY], sizeof(SeqIter)},       {seq_types[SEQ_REVLIST], sizeof(SeqIter)},
        {&PyRangeIter_Type, sizeof(RangeIter)},      {dict_types[DICT_KEYS], sizeof(DictIter)},
        {dict_types[DICT_VALUES], sizeof(DictIter)}, {dict_types[DICT_ITEMS], sizeof(DictIter)},
        {asend_type, sizeof(AsyncGenASend)},         {athrow_type, sizeof(AsyncGenAThrow)},
        {wrapper_type, sizeof(CoroWrapper)},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((size_t)known[i].type->tp_basicsize != known[i].size) {
            PyOS_snprintf(why, n, "this interpreter's %.60s has another layout",
                          known[i].type->tp_name);
            return false;
        }
    size_t frame = offsetof(PyGenObject, gi_iframe) + offsetof(Frame, localsplus);
    PyTypeObject *const gens[] = {&PyCoro_Type, &PyGen_Type, &PyAsyncGen_Type};
    for (int i = 0; i < 3; i++)
        if ((size_t)gens[i]->tp_basicsize != frame) {
            PyOS_snprintf(why, n, "this interpreter's %.60s has another layout", gens[i]->tp_name);
            return false;
        }
    PyCodeObject *code = PyCode_NewEmpty("", "", 1);
    void *asked = NULL;
    bool same = code != NULL && code_set_extra(code, code_extra_at, code) == 0 &&
                code_get_extra(code, code_extra_at, &asked) == 0 &&
                code_extra(code, code_extra_at) == asked;
    PyErr_Clear();
    Py_XDECREF(code);
    if (!same)
        PyOS_snprintf(why, n, "this interpreter's code objects have another layout");
    return same;
}

int core_types_init(void)
{
    static const char *const names[N_PICKLING_NAMES] = {"__reduce_ex__",  "__reduce__",
                                                        "__getstate__",   "__setstate__",
                                                        "__getnewargs__", "__getnewargs_ex__"};
    for (int i = 0; i < N_PICKLING_NAMES; i++)
        if ((pickling_names[i] = PyUnicode_InternFromString(names[i])) == NULL)
            return -1;
    seq_types[SEQ_LIST] = type_of_iter(PyList_New(0));
    seq_types[SEQ_TUPLE] = type_of_iter(PyTuple_New(0));
    seq_types[SEQ_STR] = type_of_iter(PyUnicode_FromString("\xce\xb1"));
    seq_types[SEQ_STR_ASCII] = type_of_iter(PyUnicode_FromString("a"));
    seq_types[SEQ_BYTES] = type_of_iter(PyBytes_FromString(""));
    seq_types[SEQ_BYTEARRAY] = type_of_iter(PyByteArray_FromStringAndSize("", 0));
    seq_types[SEQ_ANY] = &PySeqIter_Type;
    PyObject *empty = PyList_New(0), *rev = empty ? make_seqiter(SEQ_REVLIST, empty) : NULL;
    seq_types[SEQ_REVLIST] = rev != NULL ? Py_TYPE(rev) : NULL;
    Py_XDECREF(rev);
    Py_XDECREF(empty);
    dict_types[DICT_KEYS] = &PyDictIterKey_Type;
    dict_types[DICT_VALUES] = &PyDictIterValue_Type;
    dict_types[DICT_ITEMS] = &PyDictIterItem_Type;
    for (int i = 0; i < N_SEQ; i++)
        if (seq_types[i] == NULL)
            return -1;
    PyObject *a = NULL, *b = NULL, *c = NULL;
    PyObject *samples = PyObject_CallMethod(core_code_py, "samples", NULL);
    PyObject *f[3], *list, *deque;
    if (samples == NULL || !PyArg_ParseTuple(samples, "OOOO!O!O!O!O!", &a, &b, &c, &PyFunction_Type,
                                             &f[0], &PyFunction_Type, &f[1], &PyFunction_Type,
                                             &f[2], &PyList_Type, &list, &PyType_Type, &deque))
        return -1;
    deque_type = (PyTypeObject *)Py_NewRef(deque);
    asend_type = Py_TYPE(a);
    athrow_type = Py_TYPE(b);
    wrapper_type = Py_TYPE(c);
    for (int i = 0; i < 3; i++)
        ended[i] = (PyFunctionObject *)Py_NewRef(f[i]);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list) && n_reduced < MAX_REDUCED; i++)
        reduced[n_reduced++] = Py_NewRef(PyList_GET_ITEM(list, i));
    Py_DECREF(samples);
    callable_iterator_type = &PyCallIter_Type;
    return 0;
}
