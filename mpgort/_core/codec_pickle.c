/* codec_pickle.c — what has no tag of its own: one pickle per blob, and what never crosses.
 *
 * Objects met on the way are collected and pickled together at the end, so that what they share
 * among themselves stays shared. What they share with the tagged part would be split in two; so the
 * pickler asks about every object it meets (`seen`), and one that the tagged part has written too
 * sends the encoder back for another try, in which the pickle has it alone.
 *
 * A handle inside an object (a dataclass with a channel in it) is a word of the blob like any
 * other: `seen` takes it, and the pickle has the word as a persistent id, one for each time it is
 * met, so that unpickling takes over as many references as were written. A large buffer is one too
 * (buffer.c).
 *
 * In a move the check for sharing (encode.c) covers what is inside of the pickle as well: the
 * pickler asks about an object once for each reference that it follows, and those are counted. What
 * a module's variable holds goes by its name here too, as the negative of its number.
 *
 * Pickling runs code of the user's. Meanwhile all frames of the graph are marked EXECUTING: nobody
 * can resume or close what is being encoded.
 *
 * A pickling error is found after the encoders have unwound. The path to the culprit is made by
 * encoding once more, with the object known to fail refused where it is met. */
#include "codec.h"

static bool is_mutable(PyObject *o)
{
    PyTypeObject *t = Py_TYPE(o);
    /* No hash, or hash by identity: its state counts. What hashes by value is immutable. */
    return !PyType_Check(o) && !PyFunction_Check(o) && !PyModule_Check(o) && o != Py_Ellipsis &&
           o != Py_NotImplemented &&
           (t->tp_hash == PyObject_HashNotImplemented || t->tp_hash == PyBaseObject_Type.tp_hash);
}

bool enc_must_pickle(struct enc *E, PyObject *o)
{
    PyObject *key = PyLong_FromVoidPtr(o);
    int r = key != NULL ? PySet_Contains(E->by_pickle, key) : 0;
    Py_XDECREF(key);
    return r > 0;
}

const char *enc_kind_name(PyObject *o)
{
    return Py_TYPE(o)->tp_name;
}

uint8_t *enc_pickled(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at = 0;
    BY_NAME(o);
    PyObject *why =
        PyObject_CallMethod(core_pickle, "refusal", "OO", o, E->moving ? Py_True : Py_False);
    if (why == NULL)
        return enc_fail_by_exception(E);
    if (why != Py_None) {
        uint32_t id = E->moving ? variable_id(o) : 0; /* a module's lock goes by its name */
        if (id == 0 && !PyErr_Occurred())
            enc_refuse(E, "%.180s", PyUnicode_AsUTF8(why));
        Py_DECREF(why);
        if (id != 0)
            return enc_variable(E, p, id);
        return PyErr_Occurred() ? enc_fail(E, ENC_ERROR) : NULL;
    }
    Py_DECREF(why);
    bool mutable = is_mutable(o);
    E->mutables += mutable;
    MEET(o, MEMO_PICKLED | (mutable ? MEMO_CHECK : 0), memo, at);
    if (E->pickled == NULL && (E->pickled = PyList_New(0)) == NULL)
        return enc_fail(E, ENC_ERROR);
    Py_ssize_t n = PyList_GET_SIZE(E->pickled);
    if (n == E->refused) {
        enc_path(E, "%s", E->refused_path);
        return enc_refuse(E, "%s", E->refusal);
    }
    if (n == E->pickled_cap) {
        Py_ssize_t cap = n ? n * 2 : 8;
        struct pickled_at *t = PyMem_Realloc(E->pickled_at, (size_t)cap * sizeof *t);
        if (t == NULL) {
            PyErr_NoMemory();
            return enc_fail(E, ENC_ERROR);
        }
        E->pickled_at = t;
        E->pickled_cap = cap;
    }
    E->pickled_at[n] = (struct pickled_at){E->cur_frame, E->cur_slot};
    if (PyList_Append(E->pickled, o) < 0)
        return enc_fail(E, ENC_ERROR);
    ROOM(1 + VARINT_MAX);
    *p++ = TAG_PICKLE | memo;
    return put_varint(p, (uint64_t)n);
}

struct ref_count {
    PyObject *o;
    Py_ssize_t n;
    int depth;
    bool frames;
};

static int visit_ref(PyObject *x, void *arg)
{
    struct ref_count *c = arg;
    if (x == c->o) {
        c->n++;
    } else if (Py_REFCNT(x) == 1 && PyObject_IS_GC(x) && Py_TYPE(x)->tp_traverse != NULL &&
               !PyType_Check(x) && (c->frames || !PyFrame_Check(x)) && c->depth < 20) {
        c->depth++;
        Py_TYPE(x)->tp_traverse(x, visit_ref, c);
        c->depth--;
    }
    return 0;
}

Py_ssize_t enc_refs_from(PyObject *x, PyObject *o, bool frames)
{
    struct ref_count c = {o, 0, 0, frames};
    if (PyObject_IS_GC(x) && Py_TYPE(x)->tp_traverse != NULL)
        Py_TYPE(x)->tp_traverse(x, visit_ref, &c);
    return c.n;
}

/* References to o from what was pickled. */
Py_ssize_t enc_inner_refs(struct enc *E, PyObject *o)
{
    Py_ssize_t n = 0;
    for (uint32_t i = 0; i < E->n_memo; i++)
        if (E->memo[i].inner > 0)
            n += enc_refs_from(E->memo[i].o, o, true);
    return n;
}

/* The pickler's persistent_id: asked about every object it meets. A handle's word, else None. */
static PyObject *seen(PyObject *capsule, PyObject *o)
{
    struct enc *E = PyCapsule_GetPointer(capsule, NULL);
    const struct core_handle_type *h = how_of(Py_TYPE(o))->handle;
    if (h != NULL) {
        uint64_t word = E != NULL ? enc_handle_word(E, o, h) : 0;
        if (word == 0)
            return NULL;
        E->words = true;
        return PyLong_FromUnsignedLongLong(word);
    }
    if (PyPickleBuffer_Check(o)) {
        PyObject *id = core_buffer_id(E, o);
        if (E != NULL && id != NULL && id != Py_None)
            E->words = true;
        return id;
    }
    struct memo_entry *m = E != NULL ? enc_find(E, o) : NULL;
    bool top = E != NULL && E->n_top < PyList_GET_SIZE(E->pickled) &&
               o == PyList_GET_ITEM(E->pickled, E->n_top);
    if (top)
        E->n_top++;
    if (E != NULL && E->moving && o != E->pickled && is_mutable(o)) {
        uint32_t id = Py_REFCNT(o) > 1 ? variable_known(o) : 0;
        if (id != 0) { /* a module's variable, as in the tags */
            E->words = true;
            return PyLong_FromLongLong(-(long long)id);
        }
        if (m == NULL) {
            if ((E->inner == NULL && (E->inner = PyList_New(0)) == NULL) ||
                PyList_Append(E->inner, o) < 0)
                return NULL;
            if (E->n_top > 0) {
                E->cur_frame = E->pickled_at[E->n_top - 1].frame;
                E->cur_slot = E->pickled_at[E->n_top - 1].slot;
            }
            if (enc_note(E, o, MEMO_CHECK | MEMO_INNER) < 0)
                return NULL;
            m = &E->memo[E->n_memo - 1];
            m->visits = top; /* the tags met it, and saw that it needs no memo */
        }
        m->inner++;
        if (m->flags & MEMO_INNER)
            Py_RETURN_NONE;
    }
    if (m != NULL && (m->flags & MEMO_CHECK) && !(m->flags & MEMO_PICKLED)) {
        if (E->moving && (gen_is(o) || (m->flags & MEMO_UNNAMED))) {
            PyErr_Format(PyExc_TypeError, "it shares a %.80s with the frame", Py_TYPE(o)->tp_name);
            return NULL;
        }
        PyObject *key = PyLong_FromVoidPtr(o);
        if (E->by_pickle == NULL)
            E->by_pickle = PySet_New(NULL);
        int r = key != NULL && E->by_pickle != NULL ? PySet_Add(E->by_pickle, key) : -1;
        Py_XDECREF(key);
        if (r < 0)
            return NULL;
        E->again = true;
    }
    Py_RETURN_NONE;
}
static PyMethodDef seen_def = {"seen", seen, METH_O, NULL};

/* The same for a pickle that is made only to see whether it can be. */
static PyObject *seen_dry(PyObject *none, PyObject *o)
{
    const struct core_handle_type *h = how_of(Py_TYPE(o))->handle;
    if (h != NULL && h->word(o) == UINT64_MAX)
        return NULL;
    return Py_NewRef(h != NULL ? Py_True : Py_None);
}
static PyMethodDef seen_dry_def = {"seen", seen_dry, METH_O, NULL};

/* The unpickler's persistent_load. */
static PyObject *unseen(PyObject *capsule, PyObject *o)
{
    struct core_words *W = capsule != Py_None ? PyCapsule_GetPointer(capsule, NULL) : NULL;
    if (PyTuple_CheckExact(o))
        return core_buffer_from_id(o, W);
    int sign = PyLong_Check(o) ? _PyLong_Sign(o) : 0;
    long long id = sign < 0 ? PyLong_AsLongLong(o) : 0;
    if (id < 0 && id >= -(long long)UINT32_MAX && !PyErr_Occurred())
        return global_by_id((uint32_t)-id);
    uint64_t word = PyLong_AsUnsignedLongLong(o);
    if (PyErr_Occurred())
        return NULL;
    return dec_handle_word(W, (uint8_t)(word >> 56), word & OFFSET_MASK);
}
static PyMethodDef unseen_def = {"unseen", unseen, METH_O, NULL};

/* What `dumps` raised: (number, path, reason) of the culprit, where it could be found. */
static int blame(struct enc *E, PyObject *dry)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return E->status = ENC_ERROR;
    PyObject *exc = take_exception();
    PyObject *t = PyObject_CallMethod(core_pickle, "blame", "OOOOO", E->pickled, exc,
                                      E->moving ? Py_True : Py_False, codes_known(), dry);
    Py_ssize_t number;
    const char *path, *reason;
    PyObject *cause;
    if (t == NULL || !PyArg_ParseTuple(t, "nssO", &number, &path, &reason, &cause)) {
        Py_XDECREF(t);
        Py_DECREF(exc);
        return E->status = ENC_ERROR;
    }
    PyOS_snprintf(E->refusal, sizeof E->refusal, "%.190s", reason);
    PyOS_snprintf(E->refused_path, sizeof E->refused_path, "%.150s", path);
    E->path[0] = 0;
    enc_path(E, "%s", E->refused_path);
    enc_refuse(E, "%s", E->refusal);
    Py_XSETREF(E->cause, Py_NewRef(cause));
    E->refused = number;
    E->again = true; /* to be refused where it is met, so that the path is whole */
    Py_DECREF(t);
    Py_DECREF(exc);
    return E->status;
}

int enc_pickle_all(struct enc *E, uint8_t **pp)
{
    uint8_t *p = *pp;
    PyObject *capsule = PyCapsule_New(E, NULL, NULL);
    PyObject *fn = capsule != NULL ? PyCFunction_New(&seen_def, capsule) : NULL;
    Py_XDECREF(capsule);
    static PyObject *dry;
    if (dry == NULL && (dry = PyCFunction_New(&seen_dry_def, NULL)) == NULL)
        Py_CLEAR(fn);
    size_t budget = E->out->budget, used = (size_t)(p - E->start);
    Py_ssize_t left = budget == SIZE_MAX ? PY_SSIZE_T_MAX
                      : budget > used    ? (Py_ssize_t)(budget - used)
                                         : 0;
    if (fn == NULL)
        return E->status = ENC_ERROR;
    E->n_top = 0;
    int8_t states_few[32], *states = states_few;
    if (E->n_gens > 32 && (states = PyMem_Malloc(E->n_gens)) == NULL) {
        PyErr_NoMemory();
        Py_DECREF(fn);
        return E->status = ENC_ERROR;
    }
    for (uint32_t i = 0; i < E->n_gens; i++)
        if (gen_is((PyObject *)E->gens[i])) {
            states[i] = E->gens[i]->gi_frame_state;
            E->gens[i]->gi_frame_state = FRAME_EXECUTING;
        }
    PyObject *bytes = PyObject_CallMethod(core_pickle, "dumps", "OOnOOO", E->pickled, fn, left,
                                          E->moving ? Py_True : Py_False, codes_known(), dry);
    for (uint32_t i = 0; i < E->n_gens; i++)
        if (gen_is((PyObject *)E->gens[i]))
            E->gens[i]->gi_frame_state = states[i];
    if (states != states_few)
        PyMem_Free(states);
    Py_DECREF(fn);
    if (bytes == NULL)
        return blame(E, dry);
    if (E->again || bytes == Py_None) {
        Py_DECREF(bytes);
        if (!E->again)
            enc_heavy(E);
        return E->again ? (E->status = ENC_PINNED) : E->status;
    }
    size_t n = (size_t)PyBytes_GET_SIZE(bytes);
    uint32_t len = (uint32_t)n;
    if (n > UINT32_MAX || ((size_t)(E->end - p) < n + 4 && (p = enc_grow(E, p, n + 4)) == NULL)) {
        Py_DECREF(bytes);
        if (n > UINT32_MAX)
            enc_refuse(E, "a pickle of more than 4 GiB");
        return E->status;
    }
    memcpy(p, PyBytes_AS_STRING(bytes), n);
    memcpy(p + n, &len, 4);
    E->start[1] = E->words ? BLOB_PICKLE_HANDLES : BLOB_PICKLE;
    *pp = p + n + 4;
    Py_DECREF(bytes);
    return ENC_OK;
}

PyObject *dec_pickle(const char *p, size_t n, bool handles, struct core_words *W)
{
    PyObject *bytes = PyBytes_FromStringAndSize(p, (Py_ssize_t)n), *list = NULL;
    PyObject *fn = NULL;
    if (handles) {
        PyObject *capsule = W != NULL ? PyCapsule_New(W, NULL, NULL) : Py_NewRef(Py_None);
        fn = capsule != NULL ? PyCFunction_New(&unseen_def, capsule) : NULL;
        Py_XDECREF(capsule);
    } else {
        fn = Py_NewRef(Py_None);
    }
    if (bytes != NULL && fn != NULL)
        list = PyObject_CallMethod(core_pickle, "loads", "OO", bytes, fn);
    Py_XDECREF(bytes);
    Py_XDECREF(fn);
    return list;
}
