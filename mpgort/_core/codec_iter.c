/* codec_iter.c — iterators, deques, and the awaitables of async generators.
 *
 * An iterator is its position and its sequence; one of the builtin functions and of itertools what
 * its own __reduce__ says; an awaitable its generator, what is sent or thrown, and its state. None
 * of them has a layout that CPython's headers show (cpython.h declares them): their sizes are
 * compared in core_layouts_ok() before the first use. */
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

PyFunctionObject *core_ended_function(int kind)
{
    return ended[kind];
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

PyObject *dec_deque(struct dec *D, bool memo)
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

/* A new iterator of the given type over seq; NULL without an exception if seq is of a wrong
 * type. */
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

PyObject *dec_seqiter(struct dec *D, bool memo)
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

PyObject *dec_rangeiter(struct dec *D, bool memo)
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

PyObject *dec_dictiter(struct dec *D, bool memo)
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

PyObject *dec_reduced(struct dec *D, bool memo)
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

PyObject *dec_awaitable(struct dec *D, int tag, bool memo)
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

/* ---- dispatch -------------------------------------------------------------------------------- */

static bool is_reduced(PyTypeObject *t)
{
    for (int i = 1; i < n_reduced; i++)
        if (reduced[i] == (PyObject *)t)
            return true;
    return t == callable_iterator_type;
}

bool is_iterator_type(PyTypeObject *t)
{
    for (int i = 0; i < N_SEQ; i++)
        if (seq_types[i] == t)
            return true;
    for (int i = 0; i < N_DICT; i++)
        if (dict_types[i] == t)
            return true;
    return t == asend_type || t == athrow_type || t == wrapper_type || t == deque_type ||
           is_reduced(t);
}

uint8_t *enc_iterator(struct enc *E, uint8_t *p, PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    for (int i = 0; i < N_SEQ; i++)
        if (seq_types[i] == t)
            return enc_seqiter(E, p, o, i);
    for (int i = 0; i < N_DICT; i++)
        if (dict_types[i] == t)
            return enc_dictiter(E, p, o, i);
    if (t == asend_type)
        return enc_awaitable(E, p, o, TAG_ASEND);
    if (t == athrow_type)
        return enc_awaitable(E, p, o, TAG_ATHROW);
    if (t == wrapper_type)
        return enc_awaitable(E, p, o, TAG_COROWRAP);
    return t == deque_type ? enc_deque(E, p, o) : enc_reduced(E, p, o);
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

int core_iters_init(void)
{
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
