/* codec_handle.c — how objects of each type are written, asked once per type; and handles, which
 * are written as the word of what they stand for.
 *
 * The answer to "how" is kept by the type's address, direct-mapped: types that are looked for here
 * are static and live on, and any other that comes to a place, even one that was freed and whose
 * address is another's now, is HOW_OTHER in both lives.
 *
 * HANDLES COUNT. Bytes that hold a handle's word hold a reference on its object. The bytes of a
 * goroutine mostly replace older bytes of the same goroutine with the same words in the same order:
 * then the references of those are theirs (core_enc.had, cont.c), and nothing is counted. */
#include "codec.h"

#define MAX_HANDLES 32
static struct core_handle_type handle_types[MAX_HANDLES];
static int n_handle_types;

int core_handle_register(const struct core_handle_type *t)
{
    if (n_handle_types == MAX_HANDLES || t->kind == 0 || t->kind > 127 ||
        core_handle_type_of(t->kind) != NULL) {
        PyErr_Format(PyExc_SystemError, "handle type %s cannot be registered", t->type->tp_name);
        return -1;
    }
    handle_types[n_handle_types++] = *t;
    return 0;
}

const struct core_handle_type *core_handle_type_of(uint8_t kind)
{
    for (int i = 0; i < n_handle_types; i++)
        if (handle_types[i].kind == kind)
            return &handle_types[i];
    return NULL;
}

/* ---- how ------------------------------------------------------------------------------------- */

struct type_how type_hows[N_TYPE_HOWS];

static uint8_t how_builtin(PyTypeObject *t)
{
    static const struct {
        PyTypeObject *type;
        uint8_t how;
    } known[] = {
        {&PyLong_Type, HOW_INT},
        {&PyUnicode_Type, HOW_STR},
        {&PyFloat_Type, HOW_FLOAT},
        {&PyBool_Type, HOW_BOOL},
        {&PyBytes_Type, HOW_BYTES},
        {&PyTuple_Type, HOW_TUPLE},
        {&PyList_Type, HOW_MUTABLE},
        {&PyDict_Type, HOW_MUTABLE},
        {&PySet_Type, HOW_MUTABLE},
        {&PyByteArray_Type, HOW_MUTABLE},
        {&PyCoro_Type, HOW_GEN},
        {&PyGen_Type, HOW_GEN},
        {&PyAsyncGen_Type, HOW_GEN},
        {&PyFrozenSet_Type, HOW_FROZENSET},
        {&PyRangeIter_Type, HOW_RANGEITER},
        {&PyCell_Type, HOW_CELL},
        {&CorePark_Type, HOW_PARK},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].type == t)
            return known[i].how;
    return t == Py_TYPE(Py_None) ? HOW_NONE : is_iterator_type(t) ? HOW_ITER : HOW_OTHER;
}

const struct type_how *type_how_ask(PyTypeObject *type, uint32_t i)
{
    const struct core_handle_type *h = handle_types;
    while (h < handle_types + n_handle_types && h->type != type)
        h++;
    bool handle = h < handle_types + n_handle_types;
    type_hows[i].type = type;
    type_hows[i].handle = handle ? h : NULL;
    type_hows[i].how = handle ? HOW_HANDLE : how_builtin(type);
    return &type_hows[i];
}

/* ---- handles --------------------------------------------------------------------------------- */

static int words_grow(struct core_enc *out)
{
    uint32_t cap = out->hcap ? out->hcap * 2 : 16;
    uint64_t *t = realloc(out->h, cap * sizeof *t);
    if (t == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    out->h = t;
    out->hcap = cap;
    return 0;
}

uint64_t enc_handle_word(struct enc *E, PyObject *o, const struct core_handle_type *h)
{
    struct core_enc *out = E->out;
    if (unlikely(out->loose)) {
        PyErr_Format(PyExc_TypeError, "a %.80s cannot cross here", Py_TYPE(o)->tp_name);
        return 0;
    }
    uint64_t off = h->word(o), word = (uint64_t)h->kind << 56 | off;
    if (unlikely(off == UINT64_MAX))
        return 0;
    if (unlikely(off == 0)) /* nilchan and default refer to nothing that is counted */
        return word;
    uint32_t n = out->nh;
    if (unlikely(n == out->hcap) && words_grow(out) < 0)
        return 0;
    if (n == out->same && n < out->had_n && out->had[n] == word)
        out->same = n + 1;
    else if (h->hold(h->kind, off) < 0)
        return 0;
    out->h[n] = word;
    out->nh = n + 1;
    return word;
}

uint8_t *enc_handle(struct enc *E, uint8_t *p, PyObject *o, const struct core_handle_type *h)
{
    uint8_t memo;
    uint32_t at;
    MEET(o, 0, memo, at);
    uint64_t word = enc_handle_word(E, o, h);
    if (unlikely(word == 0))
        return enc_fail_by_exception(E);
    *p++ = TAG_HANDLE | memo;
    *p++ = h->kind;
    word &= OFFSET_MASK;
    memcpy(p, &word, 8);
    return p + 8;
}

PyObject *dec_handle(struct dec *D, bool memo)
{
    uint64_t off;
    if (D->end - D->p < 9)
        return dec_bad("the bytes end within a handle");
    uint8_t kind = *D->p++;
    memcpy(&off, D->p, 8);
    D->p += 8;
    PyObject *o = dec_handle_word(D->words, kind, off);
    if (o != NULL && memo && dec_remember(D, o, NULL) < 0)
        Py_CLEAR(o);
    return o;
}
