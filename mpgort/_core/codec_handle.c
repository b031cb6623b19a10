/* codec_handle.c — how objects of each type are written, asked once per type; and handles, which
 * are written as the word of what they stand for.
 *
 * The answer to "how" is kept by the type's address, direct-mapped: types that are looked for here
 * are static and live on, and any other that comes to a place, even one that was freed and whose
 * address is another's now, is HOW_OTHER in both lives.
 *
 * HANDLES COUNT once they are stored: the block that holds a handle's word is a reference on its
 * object, and is that as soon as it has the word (shm/bytes.c). While bytes are made nothing is
 * counted, since a count that stands nowhere would be lost with this M. It is the Python handles
 * that keep the objects alive until then, for what was encoded may be no more: a reducer's
 * temporary, or a list that another reducer has emptied. */
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
    return t == Py_TYPE(Py_None) ? HOW_NONE
           : is_iterator_type(t) ? HOW_ITER
           : is_numpy_type(t)    ? HOW_NUMPY
                                 : HOW_OTHER;
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
    uint64_t *h = realloc(out->h, cap * sizeof *h);
    if (h != NULL)
        out->h = h;
    PyObject **of = h != NULL ? realloc(out->of, cap * sizeof *of) : NULL;
    if (of == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    out->of = of;
    out->hcap = cap;
    return 0;
}

static int word_add(struct core_enc *out, uint64_t word, PyObject *o)
{
    if (unlikely(out->nh == out->hcap) && words_grow(out) < 0)
        return -1;
    out->h[out->nh] = word;
    out->of[out->nh++] = Py_NewRef(o);
    return 0;
}

int enc_handles_of(struct core_enc *out, const struct core_enc *part)
{
    for (uint32_t i = 0; i < part->nh; i++)
        if (word_add(out, part->h[i], part->of[i]) < 0)
            return -1;
    return 0;
}

void core_enc_let(struct core_enc *e, uint32_t from)
{
    while (e->nh > from)
        Py_DECREF(e->of[--e->nh]);
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
    return likely(word_add(out, word, o) == 0) ? word : 0;
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
