/* encode.c — one blob, from the first try to the bytes that stand; and who may not be copied.
 *
 * WHO MAY NOT BE COPIED (INV unobservable). In a continuation an object is copied only if nobody
 * outside could notice. Immutable objects always; of a mutable one every reference must be part of
 * the blob. So the encoder counts the visits of each remembered object that is mutable, or leads to
 * something that is (a tuple with a list in it), and compares with the reference count at the end.
 * One with more references than visits is shared with somebody outside:
 *   1  it is the value of a module's global variable: it goes by that name (a further try writes
 *      the name; from then on the first try does);
 *   2  the surplus comes from what does not travel and vanishes with the original: the functions
 *      that the frames were made from, dead frames that a traceback keeps (codec_exc.c counts);
 *   3  else the goroutine is pinned, naming the local.
 * An object with one reference needs no check: the visit that met it is that reference.
 *
 * TRIES. That an object must go by its name, or inside the pickle, is known only at the end of a
 * try, when all references are counted: then the next one does so. */
#include "codec.h"

static struct enc *enc_free; /* under the GIL; several are in use when encoding runs Python */

struct enc *enc_take(struct core_enc *out, bool moving)
{
    struct enc *E = enc_free;
    if (E != NULL) {
        enc_free = E->next;
    } else {
        if ((E = PyMem_Calloc(1, sizeof *E)) == NULL || enc_memo_grow(E) < 0) {
            PyMem_Free(E);
            PyErr_NoMemory();
            return NULL;
        }
    }
    E->out = out;
    E->moving = moving;
    E->root = E->park = NULL;
    return E;
}

/* What a try has gathered, before the next one. */
static void enc_forget(struct enc *E)
{
    Py_CLEAR(E->pickled);
    Py_CLEAR(E->inner);
    Py_CLEAR(E->ghosts);
    Py_CLEAR(E->unfilled);
}

void enc_give(struct enc *E)
{
    enc_forget(E);
    Py_CLEAR(E->by_pickle);
    Py_CLEAR(E->cause);
    E->next = enc_free;
    enc_free = E;
}

static void enc_begin(struct enc *E, size_t from)
{
    E->start = E->out->base + from;
    E->end = enc_limit(E);
    E->status = ENC_OK;
    E->depth = 0;
    E->mutables = E->n_memo = E->n_gens = 0;
    E->seen = 0;
    E->cur_frame = 0;
    E->cur_slot = 0;
    E->park_met = E->again = E->located = E->words = false;
    E->path[0] = E->why[0] = 0;
}

/* The function behind one of the frames that has this cell in its closure; borrowed, or NULL. */
static PyObject *enc_function_of_cell(struct enc *E, PyObject *cell)
{
    for (uint32_t i = 0; i < E->n_gens; i++) {
        PyObject *fn =
            gen_is((PyObject *)E->gens[i]) ? (PyObject *)FUNC(GEN_FRAME(E->gens[i])) : NULL;
        PyObject *closure = fn != NULL ? PyFunction_GET_CLOSURE(fn) : NULL;
        for (Py_ssize_t k = 0; closure != NULL && k < PyTuple_GET_SIZE(closure); k++)
            if (PyTuple_GET_ITEM(closure, k) == cell)
                return fn;
    }
    return NULL;
}

/* INV unobservable: everything mutable in the blob is referred to from within it alone. After the
 * pickle, for what refers to what inside of it is known only then. The list of what was pickled
 * counts as one of the places where the pickler met its objects. */
static int check_closed(struct enc *E)
{
    for (uint32_t i = 0; i < E->n_memo; i++) {
        struct memo_entry *m = &E->memo[i];
        if (likely(!(m->flags & MEMO_CHECK)) ||
            likely(Py_REFCNT(m->o) <= m->visits + m->inner + ((m->flags & MEMO_INNER) != 0)) ||
            is_immortal(m->o) || m->o == E->root)
            continue;
        if (Py_REFCNT(m->o) <= m->visits + m->inner + enc_ghost_refs(E, m->o))
            continue;
        if (m->inner > 0 && Py_REFCNT(m->o) <= m->visits + 1 + enc_inner_refs(E, m->o))
            continue;
        PyObject *named = PyCell_Check(m->o) ? enc_function_of_cell(E, m->o) : m->o;
        if (named != NULL && !gen_is(named) && !(m->flags & MEMO_UNNAMED && named == m->o)) {
            uint32_t id = variable_id(named);
            if (id != 0) {
                E->again = true;
                continue;
            }
            if (PyErr_Occurred())
                return E->status = ENC_ERROR;
        }
        E->again = false;
        enc_locate(E, m->frame, m->slot);
        enc_refuse(E, "%.80s that something outside this goroutine also refers to",
                   enc_kind_name(m->o));
        return E->status;
    }
    if (E->again) {
        E->status = ENC_PINNED;
        return E->status;
    }
    return ENC_OK;
}

/* Encodes root behind what out holds already; the handles met are out's on ENC_OK only.
 * A try may fail because an object has to go by its name or inside the pickle, which is known only
 * at the end; each such failure makes `again` true and the table of names or by_pickle larger. */
int enc_run(struct enc *E, PyObject *root, uint8_t magic)
{
    struct core_enc *out = E->out;
    size_t from = (size_t)(out->p - out->base);
    uint32_t nh = out->nh;
    E->refused = -1;
    for (int tries = 0; tries < 8; tries++) {
        enc_begin(E, from);
        uint8_t *p = E->start;
        if ((size_t)(E->end - p) >= 2 || (p = enc_grow(E, p, 2)) != NULL) {
            *p++ = magic;
            *p++ = 0;
            p = enc_value(E, p, root);
        }
        if (p != NULL && E->moving && !E->park_met)
            p = enc_refuse(E, "the goroutine does not stand at the park it was asked about");
        if (p != NULL && E->pickled != NULL && enc_pickle_all(E, &p) != ENC_OK)
            p = NULL;
        if (p != NULL && E->moving && check_closed(E) != ENC_OK)
            p = NULL;
        if (p != NULL && out->budget != SIZE_MAX && (size_t)(p - E->start) > out->budget)
            p = enc_heavy(E);
        if (p != NULL) {
            enc_arrays_fill(E);
            out->p = p;
            return ENC_OK;
        }
        core_enc_let(out, nh);
        if (!E->again)
            break;
        enc_forget(E);
    }
    PyOS_snprintf(out->reason, sizeof out->reason, "%.170s%s%s", E->path, E->path[0] ? ": " : "",
                  E->why);
    out->p = out->base + from;
    return E->status;
}

/* "[1][0].conn" of a call (fn, args, kwargs) is "args[0].conn" to the caller. */
static void name_parts_of_call(struct enc *E)
{
    static const char *const parts[] = {"fn", "args", "kwargs"};
    char *path = E->path;
    if (path[0] == '[' && path[1] >= '0' && path[1] <= '2' && path[2] == ']') {
        const char *name = parts[path[1] - '0'];
        memmove(path, path + 3, strlen(path) - 2);
        enc_path(E, "%s", name);
    }
}

static int value_encode(PyObject *v, struct core_enc *e, bool call)
{
    struct enc *E = enc_take(e, false);
    if (E == NULL)
        return ENC_ERROR;
    int r = enc_run(E, v, BLOB_MAGIC_VALUE);
    if (r == ENC_PINNED || r == ENC_HEAVY) {
        PyObject *cause = E->cause;
        E->cause = NULL;
        if (cause == NULL) /* refused by a rule of ours, before any pickler could */
            cause = PyObject_CallFunction(PyExc_TypeError, "s", E->why);
        if (call)
            name_parts_of_call(E);
        else
            enc_path(E, "value");
        PyObject *exc =
            PyObject_CallFunction(core_error("SerializationError"), "ss", E->path, E->why);
        if (exc != NULL) {
            PyException_SetCause(exc, cause); /* takes over */
            PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
            Py_DECREF(exc);
        } else {
            Py_XDECREF(cause);
        }
        r = ENC_ERROR;
    }
    enc_give(E);
    return r;
}

int core_value_encode(PyObject *v, struct core_enc *e)
{
    return value_encode(v, e, false);
}
int core_call_encode(PyObject *call, struct core_enc *e)
{
    return value_encode(call, e, true);
}

size_t core_value_encode_small(PyObject *v, uint8_t *p, size_t room)
{
    PyTypeObject *t = Py_TYPE(v);
    p[0] = BLOB_MAGIC_VALUE;
    p[1] = BLOB_BARE;
    if (t == &PyLong_Type) {
        int overflow;
        long long w = PyLong_AsLongLongAndOverflow(v, &overflow);
        if (overflow)
            return 0;
        if (w >= SMALL_MIN && w <= SMALL_MAX) {
            p[2] = (uint8_t)(TAG_SMALL + (w - SMALL_MIN));
            return 3;
        }
        p[2] = TAG_INT64;
        memcpy(p + 3, &w, 8);
        return 11;
    }
    if (v == Py_None || t == &PyBool_Type) {
        p[2] = v == Py_None ? TAG_NONE : v == Py_True ? TAG_TRUE : TAG_FALSE;
        return 3;
    }
    if (t == &PyFloat_Type) {
        p[2] = TAG_FLOAT;
        memcpy(p + 3, &((PyFloatObject *)v)->ob_fval, 8);
        return 11;
    }
    if (t == &PyUnicode_Type && PyUnicode_KIND(v) == PyUnicode_1BYTE_KIND &&
        (size_t)PyUnicode_GET_LENGTH(v) + 4 <= room) {
        size_t n = (size_t)PyUnicode_GET_LENGTH(v);
        p[2] = TAG_STR;
        p[3] = (uint8_t)n;
        memcpy(p + 4, PyUnicode_DATA(v), n);
        return n + 4;
    }
    return 0;
}
