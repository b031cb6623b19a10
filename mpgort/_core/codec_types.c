/* codec_types.c — the rarer types that are no iterators and no code: instances, ranges, slices,
 * modules, classes; and which file writes the others (enc_other, dec_other).
 *
 * A plain instance (nothing about its pickling overridden, no slots, no finalizer) is its class and
 * attributes, and is rebuilt without running code of the user's. Whatever is not known here falls
 * to the pickle (codec_pickle.c), which refuses what must never cross. */
#include "codec.h"

PyObject *pickling_names[N_PICKLING_NAMES];

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

static int is_plain_instance(PyTypeObject *t)
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

bool has_weakrefs(PyObject *o)
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
    int anew = module_is_new(o);
    if (anew != 0) {
        Py_DECREF(name);
        return anew < 0 ? enc_fail(E, ENC_ERROR) : enc_pickled(E, p, o);
    }
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
    if (PyModule_CheckExact(o))
        return enc_module(E, p, o);
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
    case TAG_ARRAY:
        return dec_array(D, memo);
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

int core_types_init(void)
{
    static const char *const names[N_PICKLING_NAMES] = {"__reduce_ex__",  "__reduce__",
                                                        "__getstate__",   "__setstate__",
                                                        "__getnewargs__", "__getnewargs_ex__"};
    for (int i = 0; i < N_PICKLING_NAMES; i++)
        if ((pickling_names[i] = PyUnicode_InternFromString(names[i])) == NULL)
            return -1;
    return core_iters_init();
}
