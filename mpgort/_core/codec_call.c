/* codec_call.c — functions, methods and cells.
 *
 * A function of a module goes by its name. A local one is its code (by number), cells, defaults and
 * what else differs from what its code alone would give. A cell that several frames and closures
 * share is one object, remembered; the cells of a function that a module's name leads to (a
 * decorator's wrapper) are shared with that function for good, and go as its k-th cell. */
#include "codec.h"

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

uint8_t *enc_function(struct enc *E, uint8_t *p, PyObject *o)
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
    int by_value = code_by_value(ci);
    if (by_value != 0)
        return by_value > 0 ? enc_pickled(E, p, o) : enc_fail(E, ENC_ERROR);
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

PyObject *dec_function(struct dec *D, bool memo)
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

uint8_t *enc_method(struct enc *E, uint8_t *p, PyObject *o)
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

PyObject *dec_method(struct dec *D, bool memo)
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

uint8_t *enc_cmethod(struct enc *E, uint8_t *p, PyObject *o)
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

PyObject *dec_cmethod(struct dec *D, bool memo)
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

uint8_t *enc_cell(struct enc *E, uint8_t *p, PyObject *o)
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

PyObject *dec_cell(struct dec *D, bool memo)
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

/* The cells of a function that a module's name leads to (a decorator's wrapper) are shared with
 * that function for good. They go as "the k-th cell of that function". */
uint32_t closure_owner(PyObject *fn)
{
    uint32_t id = variable_known(fn);
    return id != 0 ? id : global_id(fn);
}

PyObject *dec_cell_of(struct dec *D)
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
