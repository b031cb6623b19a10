/* codec.c — values <-> tagged bytes: the sink, identity, the hot types.
 *
 * The format is in codec.h; encode.c makes a blob with what is here, decode.c reads one. Of the
 * rarer types codec_types.c, codec_call.c, codec_iter.c and codec_array.c have both halves,
 * codec_handle.c says which are which and has the handles, codec_exc.c has exceptions,
 * codec_pickle.c what is left to pickle, frame.c the frames.
 *
 * SPEED. A store through uint8_t * may alias anything, so a write pointer kept in a struct would be
 * loaded and stored again at each byte. It travels as argument and return value instead, and lives
 * in a register. A NULL return is the one failure signal; what failed is in E.
 *
 * ERRORS. A failure unwinds through the encoders, and each adds its step to the path, innermost
 * first: nothing is spent on paths while all goes well. */
#include "codec.h"

PyObject *core_errors, *core_pickle, *core_code_py, *core_exc_py;

PyObject *core_error(const char *name)
{
    PyObject *e = PyDict_GetItemString(PyModule_GetDict(core_errors), name);
    return e != NULL ? e : PyExc_RuntimeError;
}

/* ---- the sink -------------------------------------------------------------------------------- */

int core_enc_init(struct core_enc *e)
{
    memset(e, 0, sizeof *e);
    e->budget = SIZE_MAX;
    if ((e->base = malloc(512)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    e->p = e->base;
    e->end = e->base + 512;
    return 0;
}

void core_enc_reset(struct core_enc *e)
{
    e->p = e->base;
    core_enc_let(e, 0);
    e->reason[0] = 0;
}

int core_enc_append(struct core_enc *e, const void *bytes, size_t n)
{
    size_t used = (size_t)(e->p - e->base);
    if ((size_t)(e->end - e->p) < n) {
        size_t cap = 2 * used + n;
        uint8_t *base = realloc(e->base, cap);
        if (base == NULL) {
            PyErr_NoMemory();
            return ENC_ERROR;
        }
        e->base = base;
        e->end = base + cap;
        e->p = base + used;
    }
    memcpy(e->p, bytes, n);
    e->p += n;
    return ENC_OK;
}

void core_enc_free(struct core_enc *e)
{
    core_enc_let(e, 0);
    free(e->base);
    free(e->h);
    free(e->of);
    memset(e, 0, sizeof *e);
}

/* The budget is compared exactly when the blob is complete; while writing it may be overrun by the
 * room that a value asks for ahead. */
#define BUDGET_SLACK 64

uint8_t *enc_limit(struct enc *E)
{
    size_t budget = E->out->budget;
    size_t used = (size_t)(E->out->end - E->start);
    return budget < SIZE_MAX - BUDGET_SLACK && budget + BUDGET_SLACK < used
               ? E->start + budget + BUDGET_SLACK
               : E->out->end;
}

uint8_t *enc_grow(struct enc *E, uint8_t *p, size_t n)
{
    struct core_enc *out = E->out;
    size_t used = (size_t)(p - out->base), from = (size_t)(E->start - out->base);
    if (out->budget < SIZE_MAX - BUDGET_SLACK && used - from + n > out->budget + BUDGET_SLACK)
        return enc_heavy(E);
    size_t cap = (size_t)(out->end - out->base) * 2;
    if (cap < used + n + 256)
        cap = used + n + 256;
    uint8_t *base = realloc(out->base, cap);
    if (base == NULL) {
        PyErr_NoMemory();
        return enc_fail(E, ENC_ERROR);
    }
    out->base = base;
    out->end = base + cap;
    E->start = base + from;
    E->end = enc_limit(E);
    return base + used;
}

/* ---- failure --------------------------------------------------------------------------------- */

uint8_t *enc_heavy(struct enc *E)
{
    E->status = ENC_HEAVY;
    PyOS_snprintf(E->why, sizeof E->why, "more than %zu bytes", E->out->budget);
    return NULL;
}

/* With a Python exception set. In a move, what an object's own code raises pins the goroutine; only
 * what no object can be blamed for is an error. */
uint8_t *enc_fail(struct enc *E, int status)
{
    E->status = status;
    return NULL;
}

uint8_t *enc_fail_by_exception(struct enc *E)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return enc_fail(E, ENC_ERROR);
    PyObject *exc = take_exception();
    PyObject *text = PyObject_Str(exc);
    const char *s = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    PyErr_Clear();
    bool ours = (PyObject *)Py_TYPE(exc) == core_error("SerializationError"); /* as the whole */
    enc_refuse(E, "%.60s%s%.160s", ours ? "" : Py_TYPE(exc)->tp_name, ours ? "" : ": ",
               s != NULL ? s : "?");
    Py_XDECREF(text);
    Py_XSETREF(E->cause, exc);
    return NULL;
}

uint8_t *enc_refuse(struct enc *E, const char *fmt, ...)
{
    va_list va;
    va_start(va, fmt);
    PyOS_vsnprintf(E->why, sizeof E->why, fmt, va);
    va_end(va);
    E->status = ENC_PINNED;
    return NULL;
}

/* Puts a step in front of the path. */
void enc_path(struct enc *E, const char *fmt, ...)
{
    char step[160];
    va_list va;
    if (E->located || E->status == ENC_ERROR)
        return;
    va_start(va, fmt);
    PyOS_vsnprintf(step, sizeof step, fmt, va);
    va_end(va);
    size_t n = strlen(step), have = strlen(E->path);
    if (n + have >= sizeof E->path) {
        if (n >= sizeof E->path)
            return;
        have = sizeof E->path - 1 - n;
    }
    memmove(E->path + n, E->path, have);
    memcpy(E->path, step, n);
    E->path[n + have] = 0;
}

static void path_key(struct enc *E, PyObject *key)
{
    if (E->status == ENC_ERROR)
        return; /* its exception is on its way, and no path is shown of it */
    PyObject *r = PyUnicode_Check(key) || PyLong_CheckExact(key) ? PyObject_Repr(key) : NULL;
    const char *text = r != NULL ? PyUnicode_AsUTF8(r) : NULL;
    if (text == NULL)
        PyErr_Clear();
    enc_path(E, "[%.60s]", text != NULL ? text : "...");
    Py_XDECREF(r);
}

/* ---- identity -------------------------------------------------------------------------------- */

static void memo_index(struct enc *E, uint32_t i)
{
    uint32_t h = hash_address(E->memo[i].o);
    while (E->table[h & E->table_mask].epoch == E->table_epoch)
        h++;
    E->table[h & E->table_mask].epoch = E->table_epoch;
    E->table[h & E->table_mask].index = i;
}

/* Makes the table that there is from MEMO_FEW + 1 entries on. */
static void memo_index_all(struct enc *E)
{
    if (++E->table_epoch == 0) { /* every 2^32 tables */
        memset(E->table, 0, (E->table_mask + 1) * sizeof *E->table);
        E->table_epoch = 1;
    }
    for (uint32_t i = 0; i < E->n_memo; i++)
        memo_index(E, i);
}

int enc_memo_grow(struct enc *E)
{
    uint32_t cap = E->memo_cap ? E->memo_cap * 2 : 64;
    struct memo_entry *memo = PyMem_Realloc(E->memo, cap * sizeof *memo);
    if (memo != NULL)
        E->memo = memo;
    void *table = PyMem_Calloc(2 * (size_t)cap, sizeof *E->table);
    if (memo == NULL || table == NULL) {
        PyMem_Free(table);
        PyErr_NoMemory();
        E->status = ENC_ERROR;
        return -1;
    }
    PyMem_Free(E->table);
    E->table = table;
    E->table_mask = 2 * cap - 1;
    E->memo_cap = cap;
    E->table_epoch = 0;
    if (E->n_memo > MEMO_FEW)
        memo_index_all(E);
    return 0;
}

struct memo_entry *enc_find(struct enc *E, PyObject *o)
{
    if (E->n_memo <= MEMO_FEW) {
        for (uint32_t i = 0; i < E->n_memo; i++)
            if (E->memo[i].o == o)
                return &E->memo[i];
        return NULL;
    }
    for (uint32_t h = hash_address(o);; h++) {
        if (E->table[h & E->table_mask].epoch != E->table_epoch)
            return NULL;
        struct memo_entry *m = &E->memo[E->table[h & E->table_mask].index];
        if (m->o == o)
            return m;
    }
}

int enc_note(struct enc *E, PyObject *o, uint8_t flags)
{
    if (unlikely(E->n_memo == E->memo_cap) && enc_memo_grow(E) < 0)
        return -1;
    uint32_t i = E->n_memo++;
    E->seen |= seen_bit(o);
    E->memo[i] = (struct memo_entry){o, 0, 0, E->cur_frame, E->cur_slot, flags};
    if (i == MEMO_FEW)
        memo_index_all(E);
    else if (i > MEMO_FEW)
        memo_index(E, i);
    return 0;
}

int enc_met(struct enc *E, uint8_t **p, uint32_t i)
{
    struct memo_entry *m = &E->memo[i];
    if (unlikely(m->flags & MEMO_OPEN)) {
        enc_refuse(E, "%.80s that contains itself", Py_TYPE(m->o)->tp_name);
        return MET_FAILED;
    }
    m->visits++;
    E->mutables += (m->flags & MEMO_CHECK) != 0;
    uint8_t *w = *p;
    *w++ = TAG_REF;
    *p = put_varint(w, i);
    return MET_AGAIN;
}

int enc_meet_many(struct enc *E, uint8_t **p, PyObject *o, uint8_t flags, uint32_t *at)
{
    struct memo_entry *m = enc_find(E, o);
    if (m != NULL)
        return enc_met(E, p, (uint32_t)(m - E->memo));
    *at = E->n_memo;
    if (enc_note(E, o, flags) < 0)
        return MET_FAILED;
    E->memo[*at].visits = 1;
    return MET_FIRST;
}

uint8_t *enc_variable(struct enc *E, uint8_t *p, uint32_t id)
{
    ROOM(1 + VARINT_MAX);
    *p++ = TAG_GLOBAL;
    return put_varint(p, id);
}

/* ---- the hot types --------------------------------------------------------------------------- */

static inline uint8_t *put_bytes(struct enc *E, uint8_t *p, uint8_t tag, const void *b, size_t n)
{
    ROOM(n + 2 + VARINT_MAX);
    *p++ = tag;
    p = put_varint(p, n);
    memcpy(p, b, n);
    return p + n;
}

uint8_t *enc_long(struct enc *E, uint8_t *p, PyObject *o)
{
    long v;
    uint8_t memo;
    uint32_t at;
    int overflow = 0;
    bool small = long_is_small(o, &v);
    if (small && is_interned_int(v))
        return put_interned_int(p, v);
    MEET(o, 0, memo, at);
    long long w = small ? v : PyLong_AsLongLongAndOverflow(o, &overflow);
    if (!overflow) {
        if (w == (int16_t)w) {
            int16_t b = (int16_t)w;
            *p++ = TAG_INT16 | memo;
            memcpy(p, &b, 2);
            return p + 2;
        }
        if (w == (int32_t)w) {
            int32_t b = (int32_t)w;
            *p++ = TAG_INT32 | memo;
            memcpy(p, &b, 4);
            return p + 4;
        }
        *p++ = TAG_INT64 | memo;
        memcpy(p, &w, 8);
        return p + 8;
    }
    size_t n = _PyLong_NumBits(o) / 8 + 1;
    ROOM(n + 2 + VARINT_MAX);
    *p++ = TAG_INTBIG | memo;
    p = put_varint(p, n);
    if (long_to_bytes(o, p, n) < 0)
        return enc_fail(E, ENC_ERROR);
    return p + n;
}

static uint8_t *enc_str(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo = 0;
    uint32_t at;
    size_t n = (size_t)PyUnicode_GET_LENGTH(o);
    if (n > 1)
        MEET(o, 0, memo, at);
    int kind = PyUnicode_KIND(o);
    if (kind == PyUnicode_1BYTE_KIND)
        return put_bytes(E, p, TAG_STR | memo, PyUnicode_DATA(o), n);
    ROOM(n * (size_t)kind + 3 + VARINT_MAX);
    *p++ = TAG_STRW | memo;
    *p++ = (uint8_t)kind;
    p = put_varint(p, n);
    memcpy(p, PyUnicode_DATA(o), n * (size_t)kind);
    return p + n * (size_t)kind;
}

static uint8_t *enc_tuple(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo = 0;
    uint32_t at = 0, before = E->mutables;
    Py_ssize_t n = PyTuple_GET_SIZE(o);
    if (n > 0)
        MEET(o, 0, memo, at);
    *p++ = TAG_TUPLE | memo;
    p = put_varint(p, (uint64_t)n);
    for (Py_ssize_t i = 0; i < n; i++)
        if ((p = enc_value(E, p, PyTuple_GET_ITEM(o, i))) == NULL) {
            enc_path(E, "[%zd]", i);
            return NULL;
        }
    if (memo && E->mutables != before)
        E->memo[at].flags |= MEMO_CHECK;
    return p;
}

static uint8_t *enc_list(struct enc *E, uint8_t *p, PyObject *o, uint8_t memo)
{
    Py_ssize_t n = PyList_GET_SIZE(o);
    *p++ = TAG_LIST | memo;
    p = put_varint(p, (uint64_t)n);
    for (Py_ssize_t i = 0; i < n; i++) {
        if (unlikely(PyList_GET_SIZE(o) != n))
            return enc_refuse(E, "a list that changed while it was encoded");
        if ((p = enc_value(E, p, PyList_GET_ITEM(o, i))) == NULL) {
            enc_path(E, "[%zd]", i);
            return NULL;
        }
    }
    return p;
}

static uint8_t *enc_dict_items(struct enc *E, uint8_t *p, PyObject *o)
{
    Py_ssize_t pos = 0, n = PyDict_GET_SIZE(o), left = n;
    PyObject *k, *v;
    ROOM(VARINT_MAX + 2);
    p = put_varint(p, (uint64_t)n);
    while (PyDict_Next(o, &pos, &k, &v)) {
        if (unlikely(left-- == 0 || PyDict_GET_SIZE(o) != n))
            return enc_refuse(E, "a dict that changed while it was encoded");
        if ((p = enc_value(E, p, k)) == NULL) {
            enc_path(E, ".keys()[%zd]", n - left - 1);
            return NULL;
        }
        if ((p = enc_value(E, p, v)) == NULL) {
            path_key(E, k);
            return NULL;
        }
    }
    return p;
}

static uint8_t *enc_set_items(struct enc *E, uint8_t *p, PyObject *o)
{
    Py_ssize_t pos = 0;
    PyObject *k;
    Py_hash_t hash;
    p = put_varint(p, (uint64_t)PySet_GET_SIZE(o));
    while (_PySet_NextEntry(o, &pos, &k, &hash))
        if ((p = enc_value(E, p, k)) == NULL) {
            enc_path(E, " (an element)");
            return NULL;
        }
    return p;
}

/* list, dict, set, bytearray: made and remembered empty, then filled, so that they may contain
 * themselves. */
static uint8_t *enc_mutable(struct enc *E, uint8_t *p, PyObject *o, PyTypeObject *t)
{
    uint8_t memo;
    uint32_t at;
    E->mutables++;
    BY_NAME(o);
    MEET(o, MEMO_CHECK, memo, at);
    if (t == &PyList_Type)
        return enc_list(E, p, o, memo);
    if (t == &PyDict_Type) {
        *p++ = TAG_DICT | memo;
        return enc_dict_items(E, p, o);
    }
    if (t == &PySet_Type) {
        *p++ = TAG_SET | memo;
        return enc_set_items(E, p, o);
    }
    if (((PyByteArrayObject *)o)->ob_exports > 0 && E->moving)
        return enc_refuse(E, "a bytearray with a memoryview on it does not move");
    return put_bytes(E, p, TAG_BYTEARRAY | memo, PyByteArray_AS_STRING(o),
                     (size_t)PyByteArray_GET_SIZE(o));
}

static uint8_t *enc_frozenset(struct enc *E, uint8_t *p, PyObject *o)
{
    uint8_t memo;
    uint32_t at = 0, before = E->mutables;
    MEET(o, MEMO_OPEN, memo, at);
    *p++ = TAG_FROZENSET | memo;
    p = enc_set_items(E, p, o);
    if (memo) {
        E->memo[at].flags &= (uint8_t)~MEMO_OPEN;
        if (E->mutables != before)
            E->memo[at].flags |= MEMO_CHECK;
    }
    return p;
}

/* Every tag's fixed part fits into the room asked for here. */
uint8_t *enc_value(struct enc *E, uint8_t *p, PyObject *o)
{
    const struct type_how *k = how_of(Py_TYPE(o));
    const struct core_handle_type *handle = k->handle;
    uint8_t how = k->how, memo;
    uint32_t at;
    ROOM(32);
    switch (how) {
    case HOW_NONE:
        *p++ = TAG_NONE;
        return p;
    case HOW_INT:
        return enc_long(E, p, o);
    case HOW_STR:
        return enc_str(E, p, o);
    case HOW_FLOAT:
        MEET(o, 0, memo, at);
        *p++ = TAG_FLOAT | memo;
        memcpy(p, &((PyFloatObject *)o)->ob_fval, 8);
        return p + 8;
    case HOW_BOOL:
        *p++ = o == Py_True ? TAG_TRUE : TAG_FALSE;
        return p;
    case HOW_BYTES:
        memo = 0;
        if (PyBytes_GET_SIZE(o) > 1)
            MEET(o, 0, memo, at);
        return put_bytes(E, p, TAG_BYTES | memo, PyBytes_AS_STRING(o), (size_t)PyBytes_GET_SIZE(o));
    }
    if (unlikely(++E->depth > DEPTH_MAX)) {
        E->depth--;
        return enc_refuse(E, "nested deeper than %d levels", DEPTH_MAX);
    }
    if (unlikely(E->by_pickle != NULL) && enc_must_pickle(E, o)) {
        p = enc_pickled(E, p, o);
        E->depth--;
        return p;
    }
    switch (how) {
    case HOW_TUPLE:
        p = enc_tuple(E, p, o);
        break;
    case HOW_MUTABLE:
        p = enc_mutable(E, p, o, Py_TYPE(o));
        break;
    case HOW_GEN:
        p = enc_gen(E, p, (PyGenObject *)o);
        break;
    case HOW_FROZENSET:
        p = enc_frozenset(E, p, o);
        break;
    case HOW_HANDLE:
        p = enc_handle(E, p, o, handle);
        break;
    case HOW_RANGEITER:
        p = enc_rangeiter(E, p, o);
        break;
    case HOW_CELL:
        p = enc_cell(E, p, o);
        break;
    case HOW_ITER:
        p = enc_iterator(E, p, o);
        break;
    case HOW_NUMPY:
        p = enc_numpy(E, p, o);
        break;
    default:
        p = enc_other(E, p, o);
    }
    E->depth--;
    return p;
}

int core_codec_init(PyObject *mod)
{
    if ((core_pickle = PyImport_ImportModule("mpgort._pickle")) == NULL ||
        (core_exc_py = PyImport_ImportModule("mpgort._exc")) == NULL || core_types_init() < 0)
        return -1;
    return core_expose_init(mod);
}
