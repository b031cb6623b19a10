/* codec_array.c — NumPy's arrays and scalars: what lies in one piece and holds no objects needs no
 * pickle, which costs a hundred times what the bytes of an array of 1 KB do.
 *
 * An array is its dtype, shape, order and bytes, or in place of the bytes the part of a Buffer that
 * they are (buffer.c says when); a scalar is an array without dimensions, of which the element is
 * taken. What arrives is what NumPy's own pickle makes, but that an array has its memory. The rest
 * goes on to the pickle (_buffer.py): arrays with gaps, of objects, records or types of other
 * packages, subclasses, and in a move a view, which stays a view of its base.
 *
 * NumPy is known by what it publishes for those who build without it: the numbers of its dtypes,
 * which are part of its ABI, and `__array_struct__`. Its types are static, so they may be asked
 * once (codec_handle.c). Rejected: the buffer protocol, which has no dates, and leaves a format
 * string with each array that was asked; and the fields of an array by their offsets, for a tenth
 * of a microsecond.
 *
 * A new Buffer gets its bytes when all else is written (enc_arrays_fill): the GIL is free
 * meanwhile, and what the encoders stand in the midst of they have only borrowed. */
#include "codec.h"

enum { SCALAR = 1, FORTRAN = 2, SWAPPED = 4, READONLY = 8, PLACED = 16 };
#define DIMS_MAX 64 /* NumPy's own */

/* The struct behind __array_struct__, and its flags. */
struct interface {
    int two, nd;
    char kind;
    int itemsize, flags;
    Py_ssize_t *shape, *strides;
    void *data;
    PyObject *descr;
};
enum { IS_C = 0x1, IS_F = 0x2, IS_NATIVE = 0x200, IS_WRITEABLE = 0x400 };

/* ---- dtypes ---------------------------------------------------------------------------------- */

/* The character of each dtype by its number; '-': not plain. Those from NAMED_FROM to NAMED_TO have
 * a size or a unit, and go by their name. */
static const char chars[] = "?bBhHiIlLqQfdgFDG-SU-Mme";
enum { N_PLAIN = sizeof chars - 1, NAMED_FROM = 18, DATES_FROM = 21, NAMED_TO = 22 };
static struct {
    PyObject *dtype;
    Py_ssize_t itemsize;
} plain[N_PLAIN][2]; /* by number and byte order (1: the other one), made when asked for */

static PyObject *ndarray, *generic, *dtype_type;
enum { N_DTYPE, N_NUM, N_ITEMSIZE, N_METADATA, N_STR, N_BASE, N_ARRAY, N_STRUCT, N_NAMES };
static PyObject *names[N_NAMES];

static bool is_named(int num)
{
    return num >= NAMED_FROM && num <= NAMED_TO;
}

bool is_numpy_type(PyTypeObject *t)
{
    return !(t->tp_flags & Py_TPFLAGS_HEAPTYPE) && strncmp(t->tp_name, "numpy.", 6) == 0;
}

/* 1, 0: nobody has imported NumPy (not asked to `import` it), -1: exception. */
static int know_numpy(bool import)
{
    static const char *const text[N_NAMES] = {"dtype", "num",  "itemsize",  "metadata",
                                              "str",   "base", "__array__", "__array_struct__"};
    if (likely(ndarray != NULL))
        return 1;
    for (int i = 0; i < N_NAMES; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(text[i])) == NULL)
            return -1;
    PyObject *name = PyUnicode_FromString("numpy"), *numpy = NULL;
    if (name != NULL)
        numpy = import ? PyImport_Import(name) : PyImport_GetModule(name);
    Py_XDECREF(name);
    if (numpy == NULL)
        return PyErr_Occurred() ? -1 : 0;
    Py_XSETREF(generic, PyObject_GetAttrString(numpy, "generic"));
    Py_XSETREF(dtype_type, generic ? PyObject_GetAttrString(numpy, "dtype") : NULL);
    ndarray = dtype_type ? PyObject_GetAttrString(numpy, "ndarray") : NULL;
    Py_DECREF(numpy);
    if (ndarray == NULL && !import && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Clear(); /* its import is not through */
        return 0;
    }
    return ndarray != NULL ? 1 : -1;
}

static Py_ssize_t int_attr(PyObject *o, int name)
{
    PyObject *v = PyObject_GetAttr(o, names[name]);
    Py_ssize_t n = v != NULL ? PyLong_AsSsize_t(v) : -1;
    Py_XDECREF(v);
    return n;
}

/* Sets plain[num][swapped]; -1: exception. */
static int know_plain(int num, bool swapped)
{
    if (likely(plain[num][swapped].dtype != NULL))
        return 0;
    PyObject *d = PyObject_CallFunction(dtype_type, "C", chars[num]);
    if (d != NULL && swapped)
        Py_SETREF(d, PyObject_CallMethod(d, "newbyteorder", NULL));
    Py_ssize_t n = d != NULL ? int_attr(d, N_ITEMSIZE) : -1;
    if (n < 0) {
        Py_XDECREF(d);
        return -1;
    }
    plain[num][swapped].itemsize = n;
    Py_XSETREF(plain[num][swapped].dtype, d);
    return 0;
}

/* The number of a plain dtype, -1: it is not one, -2: exception. */
static int number_of(PyObject *dtype)
{
    Py_ssize_t num = int_attr(dtype, N_NUM);
    if (num == -1 && PyErr_Occurred())
        return -2;
    if (num < 0 || num >= N_PLAIN || chars[num] == '-')
        return -1;
    if (!is_named((int)num)) {
        if (know_plain((int)num, false) < 0)
            return -2;
        if (likely(plain[num][false].dtype == dtype))
            return (int)num;
    }
    PyObject *metadata = PyObject_GetAttr(dtype, names[N_METADATA]);
    Py_XDECREF(metadata);
    return metadata == NULL ? -2 : metadata == Py_None ? (int)num : -1;
}

/* ---- encoding -------------------------------------------------------------------------------- */

struct array {
    PyObject *dtype, *capsule; /* which owns `is`, and the array's memory */
    const struct interface *is;
    Py_ssize_t bytes;
    int num, flags;
};

/* In a move only what has its memory, or lies in a Buffer, is an array by itself. */
static int has_base(PyObject *o, const struct array *a)
{
    PyObject *base = PyObject_GetAttr(o, names[N_BASE]);
    Py_XDECREF(base);
    return base == NULL ? -1 : base != Py_None && !core_buffer_holds(a->is->data, a->bytes);
}

/* Whether o goes by the tag: 1 and *a, 0, -1: exception. *a is to be let go of in any case. */
static int look_at(struct enc *E, PyObject *o, struct array *a)
{
    int r = know_numpy(false);
    if (r <= 0)
        return r;
    bool array = Py_TYPE(o) == (PyTypeObject *)ndarray;
    if (!array && !PyType_IsSubtype(Py_TYPE(o), (PyTypeObject *)generic))
        return 0;
    if ((a->dtype = PyObject_GetAttr(o, names[N_DTYPE])) == NULL)
        return -1;
    a->num = number_of(a->dtype);
    if (a->num < 0)
        return a->num == -1 ? 0 : -1;
    if (!array && is_named(a->num) && a->num < DATES_FROM)
        return 0; /* text: an element ends before its last NULs */
    /* A scalar has __array_struct__, too, but there NumPy crashes where it gets no memory. */
    PyObject *of = array ? Py_NewRef(o) : PyObject_CallMethodNoArgs(o, names[N_ARRAY]);
    a->capsule = of != NULL ? PyObject_GetAttr(of, names[N_STRUCT]) : NULL;
    Py_XDECREF(of);
    const struct interface *is = a->capsule ? PyCapsule_GetPointer(a->capsule, NULL) : NULL;
    if (is == NULL)
        return -1;
    if (is->two != 2 || is->nd > DIMS_MAX || is->itemsize <= 0 || !(is->flags & (IS_C | IS_F)))
        return 0;
    a->is = is;
    size_t bytes = (size_t)is->itemsize; /* of an empty array the product may wrap before it is 0 */
    for (int i = 0; i < is->nd; i++)
        bytes *= (size_t)is->shape[i];
    a->bytes = (Py_ssize_t)bytes;
    a->flags = (is->flags & IS_C ? 0 : FORTRAN) | (is->flags & IS_NATIVE ? 0 : SWAPPED) |
               (!array                     ? SCALAR
                : is->flags & IS_WRITEABLE ? 0
                                           : READONLY);
    if (array && E->moving)
        return has_weakrefs(o) ? 0 : (r = has_base(o, a)) < 0 ? -1 : !r;
    return 1;
}

static uint8_t *put_bytes(struct enc *E, uint8_t *p, const void *b, Py_ssize_t n)
{
    ROOM((size_t)n + VARINT_MAX);
    p = put_varint(p, (uint64_t)n);
    memcpy(p, b, (size_t)n);
    return p + n;
}

/* The Buffer `to` gets its bytes in the end: enc_arrays_fill(). */
static int fill_later(struct enc *E, PyObject *capsule, PyObject *to)
{
    if (E->unfilled == NULL && (E->unfilled = PyList_New(0)) == NULL)
        return -1;
    return PyList_Append(E->unfilled, capsule) < 0 ? -1 : PyList_Append(E->unfilled, to);
}

void enc_arrays_fill(struct enc *E)
{
    for (Py_ssize_t i = 0; E->unfilled != NULL && i < PyList_GET_SIZE(E->unfilled); i += 2) {
        const struct interface *is = PyCapsule_GetPointer(PyList_GET_ITEM(E->unfilled, i), NULL);
        core_buffer_fill(PyList_GET_ITEM(E->unfilled, i + 1), is->data);
    }
}

static uint8_t *put_name(struct enc *E, uint8_t *p, const struct array *a)
{
    if (!is_named(a->num))
        return put_bytes(E, p, "", 0);
    Py_ssize_t n;
    PyObject *name = PyObject_GetAttr(a->dtype, names[N_STR]);
    const char *text = name != NULL ? PyUnicode_AsUTF8AndSize(name, &n) : NULL;
    p = text != NULL ? put_bytes(E, p, text, n) : enc_fail(E, ENC_ERROR);
    Py_XDECREF(name);
    return p;
}

/* Finds where the bytes are, or are to be; as core_buffer_place(). */
static int place(struct enc *E, struct array *a, struct core_place *at)
{
    PyObject *fresh = NULL;
    int r = core_buffer_place(E, a->is->data, a->bytes, a->flags & READONLY, at, &fresh);
    if (r > 0 && fresh != NULL)
        r = fill_later(E, a->capsule, fresh) < 0 ? -1 : r;
    Py_XDECREF(fresh);
    if (r > 0)
        a->flags |= PLACED | (at->readonly ? READONLY : 0);
    else if (!E->moving && is_named(a->num) && a->num >= DATES_FROM)
        a->flags &= ~READONLY; /* of dates a pickle does not say it */
    return r;
}

static uint8_t *enc_array(struct enc *E, uint8_t *p, PyObject *o, struct array *a)
{
    uint8_t memo;
    uint32_t at;
    bool array = !(a->flags & SCALAR);
    struct core_place where;
    E->mutables += array;
    MEET(o, array ? MEMO_CHECK : 0, memo, at);
    int placed = array ? place(E, a, &where) : 0;
    if (placed < 0)
        return enc_fail(E, ENC_ERROR);
    ROOM(3);
    *p++ = TAG_ARRAY | memo;
    *p++ = (uint8_t)a->flags;
    *p++ = (uint8_t)a->num;
    if ((p = put_name(E, p, a)) == NULL)
        return NULL;
    ROOM((size_t)(a->is->nd + 1) * VARINT_MAX);
    p = put_varint(p, (uint64_t)a->is->nd);
    for (int i = 0; i < a->is->nd; i++)
        p = put_varint(p, (uint64_t)a->is->shape[i]);
    if (placed == 0)
        return put_bytes(E, p, a->is->data, a->bytes);
    uint64_t words[2] = {where.word, (uint64_t)where.start};
    return put_bytes(E, p, words, sizeof words);
}

uint8_t *enc_numpy(struct enc *E, uint8_t *p, PyObject *o)
{
    struct array a = {0};
    BY_NAME(o);
    int r = look_at(E, o, &a);
    p = r > 0 ? enc_array(E, p, o, &a) : r < 0 ? enc_fail(E, ENC_ERROR) : enc_other(E, p, o);
    Py_XDECREF(a.dtype);
    Py_XDECREF(a.capsule);
    return p;
}

/* ---- decoding -------------------------------------------------------------------------------- */

static PyObject *dec_dtype(struct dec *D, int num, int flags, Py_ssize_t *itemsize)
{
    Py_ssize_t n;
    if (dec_count(D, 1, &n) < 0 || num >= N_PLAIN || chars[num] == '-' || (n > 0) != is_named(num))
        return PyErr_Occurred() ? NULL : dec_bad("an array of no known dtype");
    if (n == 0) {
        bool swapped = (flags & SWAPPED) != 0;
        if (know_plain(num, swapped) < 0)
            return NULL;
        *itemsize = plain[num][swapped].itemsize;
        return Py_NewRef(plain[num][swapped].dtype);
    }
    PyObject *name = PyUnicode_DecodeLatin1((const char *)D->p, n, NULL);
    D->p += n;
    PyObject *d = name != NULL ? PyObject_CallOneArg(dtype_type, name) : NULL;
    Py_XDECREF(name);
    if (d == NULL)
        return dec_blame();
    int found = number_of(d);
    *itemsize = found >= 0 ? int_attr(d, N_ITEMSIZE) : 0;
    if (found == num && *itemsize > 0)
        return d;
    Py_DECREF(d);
    return PyErr_Occurred() ? NULL : dec_bad("an array of another dtype than it says");
}

/* A tuple; *bytes: as given, times all that is in it. */
static PyObject *dec_shape(struct dec *D, Py_ssize_t *bytes)
{
    Py_ssize_t nd, n = *bytes;
    uint64_t dim;
    bool large = false, empty = false;
    if (dec_count(D, 1, &nd) < 0)
        return NULL;
    PyObject *shape = nd <= DIMS_MAX ? PyTuple_New(nd) : dec_bad("an array of %zd dimensions", nd);
    for (Py_ssize_t i = 0; shape != NULL && i < nd; i++) {
        PyObject *v = dec_varint(D, &dim) == 0 ? PyLong_FromUnsignedLongLong(dim) : NULL;
        if (v == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SET_ITEM(shape, i, v);
        empty |= dim == 0;
        large |= __builtin_mul_overflow(n, dim, &n);
    }
    *bytes = empty ? 0 : n;
    if (shape != NULL && large && !empty) {
        Py_DECREF(shape);
        return dec_bad("an array beyond all memory");
    }
    return shape;
}

static int fill(PyObject *a, const uint8_t *from, Py_ssize_t n)
{
    PyObject *capsule = PyObject_GetAttr(a, names[N_STRUCT]);
    const struct interface *is = capsule != NULL ? PyCapsule_GetPointer(capsule, NULL) : NULL;
    if (is != NULL)
        memcpy(is->data, from, (size_t)n);
    Py_XDECREF(capsule);
    return is != NULL ? 0 : -1;
}

static PyObject *element(PyObject *a) /* takes a over */
{
    PyObject *none = PyTuple_New(0), *v = none != NULL ? PyObject_GetItem(a, none) : NULL;
    Py_XDECREF(none);
    Py_DECREF(a);
    return v != NULL ? v : dec_blame();
}

/* The array, or its element, of n bytes that are `from`, or are where that says. */
static PyObject *make(struct dec *D, int flags, PyObject *dtype, PyObject *shape,
                      const uint8_t *from, Py_ssize_t n)
{
    PyObject *buffer = Py_NewRef(Py_None);
    if (flags & PLACED) {
        uint64_t words[2];
        memcpy(words, from, sizeof words);
        struct core_place at = {words[0], (Py_ssize_t)words[1], flags & READONLY};
        Py_SETREF(buffer, core_buffer_placed(D->words, at, n));
        if (buffer == NULL)
            return NULL;
    }
    PyObject *a = PyObject_CallFunction(ndarray, "OOOiOs", shape, dtype, buffer, 0, Py_None,
                                        flags & FORTRAN ? "F" : "C");
    Py_DECREF(buffer);
    if (a == NULL)
        return dec_blame();
    if (!(flags & PLACED) && fill(a, from, n) < 0)
        Py_CLEAR(a);
    if (a != NULL && flags & READONLY) {
        PyObject *done = PyObject_CallMethod(a, "setflags", "O", Py_False);
        if (done == NULL)
            Py_CLEAR(a);
        Py_XDECREF(done);
    }
    return a != NULL && flags & SCALAR ? element(a) : a;
}

PyObject *dec_array(struct dec *D, bool memo)
{
    if (D->end - D->p < 2)
        return dec_bad("the bytes end within an array");
    int flags = *D->p++, num = *D->p++;
    Py_ssize_t bytes = 0, n;
    if (know_numpy(true) < 0)
        return NULL;
    PyObject *dtype = dec_dtype(D, num, flags, &bytes), *o = NULL;
    PyObject *shape = dtype != NULL ? dec_shape(D, &bytes) : NULL;
    if (shape != NULL && dec_count(D, 1, &n) == 0) {
        const uint8_t *from = D->p;
        D->p += n;
        if (n == (flags & PLACED ? 16 : bytes))
            o = make(D, flags, dtype, shape, from, bytes);
        else
            dec_bad("an array of another size than its shape");
    }
    Py_XDECREF(dtype);
    Py_XDECREF(shape);
    if (o != NULL && memo && dec_remember(D, o, NULL) < 0)
        Py_CLEAR(o);
    return o;
}
