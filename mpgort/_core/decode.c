/* decode.c — tagged bytes -> values: the builtin types. The rarer ones are where they are encoded.
 *
 * Nothing in the bytes is trusted: every count is compared with the bytes that are left before
 * anything of its size is made, every number with the table it points into, every type with what is
 * about to be done with it. Damage is BadContinuation; objects made so far are dropped, frames
 * among them as COMPLETED ones, which run nothing.
 *
 * A remembered tuple is filled with None before its items are read: hostile bytes may use it as a
 * dict key while it is incomplete, and hashing must find objects there. */
#include "codec.h"

void *dec_bad(const char *fmt, ...)
{
    va_list va;
    va_start(va, fmt);
    PyObject *text = PyUnicode_FromFormatV(fmt, va);
    va_end(va);
    if (text != NULL) {
        PyErr_SetObject(core_error("BadContinuation"), text);
        Py_DECREF(text);
    }
    return NULL;
}

int dec_varint(struct dec *D, uint64_t *v)
{
    uint64_t r = 0;
    for (int shift = 0; shift < 64 && D->p < D->end; shift += 7) {
        uint8_t b = *D->p++;
        r |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80) {
            *v = r;
            return 0;
        }
    }
    dec_bad("a number that does not end");
    return -1;
}

int dec_count(struct dec *D, size_t each, Py_ssize_t *n)
{
    uint64_t v;
    if (dec_varint(D, &v) < 0)
        return -1;
    if (v > (uint64_t)(D->end - D->p) / each) {
        dec_bad("a count beyond the end of the bytes");
        return -1;
    }
    *n = (Py_ssize_t)v;
    return 0;
}

int dec_remember(struct dec *D, PyObject *o, uint32_t *at)
{
    if (D->n_memo == D->memo_cap) {
        uint32_t cap = D->memo_cap * 2;
        PyObject **t = PyMem_Malloc(cap * sizeof *t);
        if (t == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        memcpy(t, D->memo, D->n_memo * sizeof *t);
        if (D->memo != D->memo_few)
            PyMem_Free(D->memo);
        D->memo = t;
        D->memo_cap = cap;
    }
    if (at != NULL)
        *at = D->n_memo;
    D->memo[D->n_memo++] = Py_XNewRef(o);
    return 0;
}

void dec_complete(struct dec *D, uint32_t at, PyObject *o)
{
    D->memo[at] = Py_XNewRef(o);
}

PyObject *dec_str(struct dec *D)
{
    PyObject *o = dec_value(D);
    if (o != NULL && !PyUnicode_CheckExact(o)) {
        Py_DECREF(o);
        return dec_bad("a str was expected");
    }
    return o;
}

#define NEED(n)                                             \
    do {                                                    \
        if ((size_t)(D->end - D->p) < (size_t)(n))          \
            return dec_bad("the bytes end within a value"); \
    } while (0)

/* A failure of the values themselves (unhashable keys, impossible code points) is damage too. */
void *dec_blame(void)
{
    if (!PyErr_ExceptionMatches(PyExc_MemoryError) && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
        return dec_bad("a value that cannot be made");
    }
    return NULL;
}

static PyObject *dec_wide_str(struct dec *D)
{
    Py_ssize_t n;
    NEED(1);
    int kind = *D->p++;
    if (kind != 2 && kind != 4)
        return dec_bad("a str of width %d", kind);
    if (dec_count(D, (size_t)kind, &n) < 0)
        return NULL;
    const uint8_t *from = D->p;
    D->p += n * kind;
    void *copy = PyMem_Malloc((size_t)(n * kind) + 1); /* the bytes need not be aligned */
    if (copy == NULL)
        return PyErr_NoMemory();
    memcpy(copy, from, (size_t)(n * kind));
    bool good = true;
    for (Py_ssize_t i = 0; kind == 4 && i < n; i++)
        good &= ((uint32_t *)copy)[i] <= 0x10ffff;
    PyObject *o = good ? PyUnicode_FromKindAndData(kind, copy, n) : dec_bad("no code point");
    PyMem_Free(copy);
    return o;
}

static PyObject *dec_tuple(struct dec *D, bool memo)
{
    Py_ssize_t n;
    if (dec_count(D, 1, &n) < 0)
        return NULL;
    PyObject *o = PyTuple_New(n);
    if (o == NULL)
        return NULL;
    if (memo) {
        for (Py_ssize_t i = 0; i < n; i++)
            PyTuple_SET_ITEM(o, i, Py_NewRef(Py_None));
        if (dec_remember(D, o, NULL) < 0)
            goto fail;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *v = dec_value(D);
        if (v == NULL)
            goto fail;
        PyObject *was = PyTuple_GET_ITEM(o, i);
        PyTuple_SET_ITEM(o, i, v);
        Py_XDECREF(was);
    }
    return o;
fail:
    Py_DECREF(o);
    return NULL;
}

static PyObject *dec_list(struct dec *D, bool memo)
{
    Py_ssize_t n;
    if (dec_count(D, 1, &n) < 0)
        return NULL;
    PyObject *o = PyList_New(memo ? 0 : n); /* with holes only if no part of it can meet it */
    if (o == NULL)
        return NULL;
    if (memo && dec_remember(D, o, NULL) < 0)
        goto fail;
    for (Py_ssize_t i = 0; !memo && i < n; i++) {
        PyObject *v = dec_value(D);
        if (v == NULL)
            goto fail;
        PyList_SET_ITEM(o, i, v);
    }
    if (!memo)
        return o;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *v = dec_value(D);
        if (v == NULL)
            goto fail;
        int r = PyList_Append(o, v);
        Py_DECREF(v);
        if (r < 0)
            goto fail;
    }
    return o;
fail:
    Py_DECREF(o);
    return NULL;
}

int dec_dict_items(struct dec *D, PyObject *o, bool attributes)
{
    Py_ssize_t n;
    if (dec_count(D, 2, &n) < 0)
        return -1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *k = dec_value(D), *v;
        if (k == NULL)
            return -1;
        if (attributes) {
            if (!PyUnicode_CheckExact(k)) {
                Py_DECREF(k);
                dec_bad("an attribute whose name is no str");
                return -1;
            }
            PyUnicode_InternInPlace(&k);
        }
        if ((v = dec_value(D)) == NULL) {
            Py_DECREF(k);
            return -1;
        }
        int r = PyDict_SetItem(o, k, v);
        Py_DECREF(k);
        Py_DECREF(v);
        if (r < 0) {
            dec_blame();
            return -1;
        }
    }
    return 0;
}

static PyObject *dec_dict(struct dec *D, bool memo)
{
    PyObject *o = PyDict_New();
    if (o != NULL && ((memo && dec_remember(D, o, NULL) < 0) || dec_dict_items(D, o, false) < 0))
        Py_CLEAR(o);
    return o;
}

static PyObject *dec_set(struct dec *D, bool memo, bool frozen)
{
    Py_ssize_t n;
    uint32_t at;
    PyObject *o = frozen ? PyFrozenSet_New(NULL) : PySet_New(NULL);
    if (o == NULL || (memo && dec_remember(D, frozen ? NULL : o, &at) < 0) ||
        dec_count(D, 1, &n) < 0)
        goto fail;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *v = dec_value(D);
        if (v == NULL)
            goto fail;
        int r = PySet_Add(o, v);
        Py_DECREF(v);
        if (r < 0) {
            dec_blame();
            goto fail;
        }
    }
    if (memo && frozen)
        dec_complete(D, at, o);
    return o;
fail:
    Py_XDECREF(o);
    return NULL;
}

/* Values without a part that could be an object of this blob. */
static PyObject *dec_flat(struct dec *D, int tag)
{
    Py_ssize_t n;
    int16_t i16;
    int32_t i32;
    int64_t i64;
    double d[2];
    const uint8_t *from;
    switch (tag) {
    case TAG_INT16:
        NEED(2);
        memcpy(&i16, D->p, 2);
        D->p += 2;
        return PyLong_FromLong(i16);
    case TAG_INT32:
        NEED(4);
        memcpy(&i32, D->p, 4);
        D->p += 4;
        return PyLong_FromLong(i32);
    case TAG_INT64:
        NEED(8);
        memcpy(&i64, D->p, 8);
        D->p += 8;
        return PyLong_FromLongLong(i64);
    case TAG_FLOAT:
        NEED(8);
        memcpy(d, D->p, 8);
        D->p += 8;
        return PyFloat_FromDouble(d[0]);
    case TAG_COMPLEX:
        NEED(16);
        memcpy(d, D->p, 16);
        D->p += 16;
        return PyComplex_FromDoubles(d[0], d[1]);
    case TAG_STRW:
        return dec_wide_str(D);
    }
    if (dec_count(D, 1, &n) < 0)
        return NULL;
    from = D->p;
    D->p += n;
    switch (tag) {
    case TAG_INTBIG:
        return _PyLong_FromByteArray(from, (size_t)n, 1, 1);
    case TAG_STR:
        return PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, from, n);
    case TAG_BYTES:
        return PyBytes_FromStringAndSize((const char *)from, n);
    default:
        return PyByteArray_FromStringAndSize((const char *)from, n);
    }
}

static PyObject *dec_ref(struct dec *D)
{
    uint64_t i;
    if (dec_varint(D, &i) < 0)
        return NULL;
    if (i >= D->n_memo || D->memo[i] == NULL)
        return dec_bad("a reference to what is not there");
    return Py_NewRef(D->memo[i]);
}

static PyObject *dec_tagged(struct dec *D, int tag, bool memo)
{
    PyObject *o;
    switch (tag) {
    case TAG_TRUE:
        return Py_NewRef(Py_True);
    case TAG_FALSE:
        return Py_NewRef(Py_False);
    case TAG_ELLIPSIS:
        return Py_NewRef(Py_Ellipsis);
    case TAG_NOTIMPLEMENTED:
        return Py_NewRef(Py_NotImplemented);
    case TAG_INT16:
    case TAG_INT32:
    case TAG_INT64:
    case TAG_INTBIG:
    case TAG_FLOAT:
    case TAG_COMPLEX:
    case TAG_STR:
    case TAG_STRW:
    case TAG_BYTES:
    case TAG_BYTEARRAY:
        o = dec_flat(D, tag);
        if (o != NULL && memo && dec_remember(D, o, NULL) < 0)
            Py_CLEAR(o);
        return o;
    case TAG_REF:
        return dec_ref(D);
    case TAG_PARK:
        if (!D->moving)
            return dec_bad("a park request in a value");
        if (D->park != NULL)
            return Py_NewRef(D->park);
        D->park = core_park_new(CORE_PARK_RESUMED);
        if (D->park != NULL)
            D->park->state = 1;
        return (PyObject *)D->park;
    }
    if (++D->depth > DEPTH_MAX + 8)
        return dec_bad("nested too deeply");
    switch (tag) {
    case TAG_TUPLE:
        o = dec_tuple(D, memo);
        break;
    case TAG_LIST:
        o = dec_list(D, memo);
        break;
    case TAG_DICT:
        o = dec_dict(D, memo);
        break;
    case TAG_SET:
    case TAG_FROZENSET:
        o = dec_set(D, memo, tag == TAG_FROZENSET);
        break;
    case TAG_GEN:
        o = dec_gen(D, memo);
        break;
    case TAG_EXC:
        o = dec_exception(D, memo);
        break;
    default:
        o = dec_other(D, tag, memo);
    }
    D->depth--;
    return o;
}

PyObject *dec_value(struct dec *D)
{
    if (unlikely(D->p >= D->end))
        return dec_bad("the bytes end early");
    uint8_t tag = *D->p++;
    if (tag >= TAG_SMALL && tag < TAG_MEMO)
        return PyLong_FromLong(tag - TAG_SMALL + SMALL_MIN);
    if (tag == TAG_NONE)
        return Py_NewRef(Py_None);
    if (tag == TAG_STR) {
        Py_ssize_t n;
        if (dec_count(D, 1, &n) < 0)
            return NULL;
        D->p += n;
        return PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, D->p - n, n);
    }
    return dec_tagged(D, tag & ~TAG_MEMO, (tag & TAG_MEMO) != 0);
}

/* ---- one blob -------------------------------------------------------------------------------- */

int core_words_open(struct core_words *W, const uint64_t *h, uint32_t n)
{
    W->n = n;
    W->next = 0;
    W->w = n <= sizeof W->few / sizeof *W->few ? W->few : PyMem_Malloc(n * sizeof *h);
    if (W->w == NULL) {
        W->n = 0;
        PyErr_NoMemory();
        return -1;
    }
    if (n > 0)
        memcpy(W->w, h, n * sizeof *h);
    return 0;
}

void core_words_close(struct core_words *W)
{
    if (W->w != W->few)
        PyMem_Free(W->w);
    W->w = NULL;
    W->n = 0;
}

/* The words come in the order of the tags, but those of the pickle, which is read first,
 * come last. */
static bool words_take(struct core_words *W, uint64_t word)
{
    for (uint32_t i = 0; W != NULL && i < W->n; i++) {
        uint32_t at = W->next + i < W->n ? W->next + i : W->next + i - W->n;
        if (W->w[at] == word) {
            W->w[at] = 0;
            W->next = at + 1 < W->n ? at + 1 : 0;
            return true;
        }
    }
    return false;
}

PyObject *dec_handle_word(struct core_words *W, uint8_t kind, uint64_t off)
{
    const struct core_handle_type *h = core_handle_type_of(kind);
    if (h == NULL || off > OFFSET_MASK)
        return dec_bad("a handle of no known kind");
    if (off != 0 && !words_take(W, (uint64_t)kind << 56 | off)) /* 0: nil, which nobody counts */
        return dec_bad("a handle that these bytes do not hold");
    return h->make(kind, off);
}

int dec_begin(struct dec *D, const uint8_t *p, size_t n, struct core_words *W, uint8_t magic)
{
    D->words = W;
    D->moving = magic == BLOB_MAGIC_CHAIN;
    D->depth = 0;
    D->memo = D->memo_few;
    D->memo_cap = sizeof D->memo_few / sizeof *D->memo_few;
    D->gens = D->gens_few;
    D->gens_cap = sizeof D->gens_few / sizeof *D->gens_few;
    D->n_memo = D->n_gens = 0;
    D->pickled = NULL;
    D->park = NULL;
    D->owner = NULL;
    D->p = p;
    D->end = p + n;
    if (n < 3 || p[0] != magic || p[1] > BLOB_PICKLE_HANDLES) {
        dec_bad("not a %s of this Python version", D->moving ? "continuation" : "value");
        return -1;
    }
    D->p += 2;
    if (p[1] == BLOB_BARE)
        return 0;
    uint32_t len;
    if (n < 7)
        goto bad;
    memcpy(&len, p + n - 4, 4);
    if (len > n - 6)
        goto bad;
    D->end = p + n - 4 - len;
    D->pickled = dec_pickle((const char *)D->end, len, p[1] == BLOB_PICKLE_HANDLES, W);
    if (D->pickled == NULL)
        return -1;
    if (PyList_CheckExact(D->pickled))
        return 0;
    Py_CLEAR(D->pickled);
bad:
    dec_bad("a pickle that is none");
    return -1;
}

PyObject *dec_end(struct dec *D, PyObject *root)
{
    if (root != NULL && D->p != D->end) {
        Py_CLEAR(root);
        dec_bad("%zd bytes too many", D->end - D->p);
    }
    for (uint32_t i = 0; i < D->n_gens; i++) {
        if (root != NULL)
            D->gens[i].g->gi_frame_state = D->gens[i].state;
        Py_DECREF(D->gens[i].g);
    }
    for (uint32_t i = 0; i < D->n_memo; i++)
        Py_XDECREF(D->memo[i]);
    Py_XDECREF(D->pickled);
    if (D->memo != D->memo_few)
        PyMem_Free(D->memo);
    if (D->gens != D->gens_few)
        PyMem_Free(D->gens);
    return root;
}

PyObject *core_value_decode(const uint8_t *p, size_t n, struct core_words *W)
{
    struct dec D;
    if (dec_begin(&D, p, n, W, BLOB_MAGIC_VALUE) < 0)
        return NULL;
    return dec_end(&D, dec_value(&D));
}

PyObject *core_value_decode_small(const uint8_t *p, size_t n)
{
    if (n < 3 || p[0] != BLOB_MAGIC_VALUE || p[1] != BLOB_BARE)
        return NULL;
    uint8_t tag = p[2];
    if (n == 3) {
        if (tag >= TAG_SMALL && tag < TAG_MEMO)
            return PyLong_FromLong(tag - TAG_SMALL + SMALL_MIN);
        return tag == TAG_NONE    ? Py_NewRef(Py_None)
               : tag == TAG_TRUE  ? Py_NewRef(Py_True)
               : tag == TAG_FALSE ? Py_NewRef(Py_False)
                                  : NULL;
    }
    if (n == 11 && tag == TAG_INT64) {
        int64_t v;
        memcpy(&v, p + 3, 8);
        return PyLong_FromLongLong(v);
    }
    if (n == 11 && tag == TAG_FLOAT) {
        double v;
        memcpy(&v, p + 3, 8);
        return PyFloat_FromDouble(v);
    }
    if (tag == TAG_STR && n < 0x80 && p[3] == n - 4)
        return PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, p + 4, (Py_ssize_t)n - 4);
    return NULL;
}
