/* frame.c — coroutines, generators and async generators <-> frame records.
 *
 * A suspended coroutine is a PyGenObject with its interpreter frame inside: code, position, locals,
 * value stack. Its record in a blob is
 *
 *   TAG_GEN flags code-number resume-point [name qualname] [exception being handled] [origin] slots
 *
 * where a slot is a value, TAG_NULL or TAG_CONST, locals first, and the last one of an awaiting
 * frame is what it awaits: the next coroutine of the chain, in the end TAG_PARK. So the chain is
 * encoded by the same recursion as everything else, and generators and async generators are records
 * too.
 *
 * Rebuilding calls nothing: a generator object is allocated and filled. What the first call of the
 * function did (arguments, cells, defaults) stands in the slots; so one template function per code
 * object gives globals and builtins to all its frames. A rebuilt frame stays COMPLETED until the
 * whole blob has proved good: half a chain can be dropped at any moment and runs no code. */
#include "codec.h"

/* ---- encoding -------------------------------------------------------------------------------- */

enum {
    F_KIND = 3,
    F_EXC = 4,
    F_NAMES = 8,
    F_ORIGIN = 16,
    F_CLOSED = 32,
    F_RUNNING = 64,
    F_ENDED = 128
};
enum { KIND_CORO, KIND_GEN, KIND_ASYNCGEN };

static inline int kind_of(PyGenObject *g)
{
    return PyCoro_CheckExact(g) ? KIND_CORO : PyGen_CheckExact(g) ? KIND_GEN : KIND_ASYNCGEN;
}

/* The list of what the drop has to look after: frames, and awaitables that warn. */
int enc_dropped_with(struct enc *E, PyGenObject *g)
{
    if (E->n_gens == E->gens_cap) {
        uint32_t cap = E->gens_cap ? E->gens_cap * 2 : 16;
        PyGenObject **t = PyMem_Realloc(E->gens, cap * sizeof *t);
        if (t == NULL) {
            PyErr_NoMemory();
            E->status = ENC_ERROR;
            return -1;
        }
        E->gens = t;
        E->gens_cap = cap;
    }
    E->gens[E->n_gens++] = g;
    return 0;
}

/* Puts "local 'x' of worker (file.py:12)" in front of the path, once. */
void enc_locate(struct enc *E, uint32_t frame, int slot)
{
    if (E->located || frame >= E->n_gens || E->status == ENC_ERROR)
        return;
    PyGenObject *g = E->gens[frame];
    PyCodeObject *code = gen_code(g);
    struct code_info *ci = code_info_known(code);
    Frame *f = GEN_FRAME(g);
    int line = code->co_firstlineno;
    if (ci != NULL && !FRAME_STATE_ENDED(g->gi_frame_state)) {
        int at = ci->point_at[frame_next(f)];
        if (at >= 0)
            line = ci->points[at].line;
    }
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    const char *base = file != NULL ? strrchr(file, '/') : NULL;
    const char *qualname = PyUnicode_AsUTF8(g->gi_qualname), *name = NULL;
    if (slot < code->co_nlocalsplus)
        name = PyUnicode_AsUTF8(PyTuple_GET_ITEM(code->co_localsplusnames, slot));
    if (PyErr_Occurred())
        PyErr_Clear();
    file = file == NULL ? "?" : base != NULL ? base + 1 : file;
    if (name != NULL)
        enc_path(E, "local '%.40s'", name);
    if (E->path[0] == 0)
        enc_path(E, "a temporary");
    size_t n = strlen(E->path);
    PyOS_snprintf(E->path + n, sizeof E->path - n, " of %.60s (%.50s:%d)",
                  qualname != NULL ? qualname : "?", file, line);
    E->located = true;
}

static uint8_t *enc_ended(struct enc *E, uint8_t *p, PyGenObject *g, uint8_t memo)
{
    *p++ = TAG_GEN | memo;
    *p++ = (uint8_t)(F_ENDED | kind_of(g));
    if ((p = enc_value(E, p, g->gi_name)) == NULL)
        return NULL;
    return enc_value(E, p, g->gi_qualname);
}

uint8_t *enc_gen(struct enc *E, uint8_t *p, PyGenObject *g)
{
    uint8_t memo;
    uint32_t at;
    Frame *f = GEN_FRAME(g);
    if (!E->moving)
        return enc_refuse(E, "a %s never crosses", Py_TYPE(g)->tp_name);
    MEET((PyObject *)g, MEMO_CHECK, memo, at);
    E->mutables++;
    if (g->gi_weakreflist != NULL)
        return enc_refuse(E, "a %s with a weak reference to it does not move", Py_TYPE(g)->tp_name);
    if (FRAME_STATE_ENDED(g->gi_frame_state))
        return enc_ended(E, p, g, memo);
    if (g->gi_frame_state == FRAME_EXECUTING)
        return enc_refuse(E, "a %s that is running does not move", Py_TYPE(g)->tp_name);
    const char *why = NULL;
    PyCodeObject *code = CODE(f);
    struct code_info *ci = code_info_of(code, f->f_globals, &why);
    if (ci == NULL)
        return why != NULL ? enc_refuse(E, "%s", why) : enc_fail(E, ENC_ERROR);
    uint32_t id = code_info_id(ci);
    if (id == 0)
        return enc_fail(E, ENC_ERROR);
    int next = frame_next(f), n_locals = code->co_nlocalsplus;
    int point = next >= 0 && next < code_units(code) ? ci->point_at[next] : -1;
    if (point < 0 || ci->points[point].depth != f->stacktop - n_locals ||
        (ci->points[point].how == POINT_CREATED) != (g->gi_frame_state == GEN_CREATED))
        return enc_refuse(E, "%.80s stands where it cannot be rebuilt",
                          PyUnicode_AsUTF8(g->gi_qualname));
    if (f->f_locals != NULL && Py_REFCNT(f->f_locals) == 1)
        Py_CLEAR(
            f->f_locals); /* the snapshot that reading cr_frame.f_locals left: it holds values */

    int flags = kind_of(g);
    PyObject *handled = g->gi_exc_state.exc_value;
    if (handled != NULL && handled != Py_None)
        flags |= F_EXC;
    if (g->gi_name != ci->func->func_name || g->gi_qualname != ci->func->func_qualname)
        flags |= F_NAMES;
    if (!PyGen_CheckExact(g) && g->gi_origin_or_finalizer != NULL)
        flags |= F_ORIGIN; /* of an async generator it is the hook: the other M has its own */
    if (PyAsyncGen_CheckExact(g)) /* the others leave these bytes as malloc gave them */
        flags |= (g->gi_closed ? F_CLOSED : 0) | (g->gi_running_async ? F_RUNNING : 0);
    *p++ = TAG_GEN | memo;
    *p++ = (uint8_t)flags;
    p = put_varint(p, id);
    p = put_varint(p, (uint64_t)point);
    uint32_t frame = E->n_gens;
    if (enc_dropped_with(E, g) < 0)
        return NULL;
    E->cur_frame = frame;
    E->cur_slot = UINT16_MAX;
    if ((flags & F_NAMES) && ((p = enc_value(E, p, g->gi_name)) == NULL ||
                              (p = enc_value(E, p, g->gi_qualname)) == NULL))
        return NULL;
    if ((flags & F_EXC) && (p = enc_value(E, p, handled)) == NULL) {
        enc_path(E, "the exception being handled");
        enc_locate(E, frame, UINT16_MAX);
        return NULL;
    }
    if ((flags & F_ORIGIN) && PyCoro_CheckExact(g) &&
        (p = enc_value(E, p, g->gi_origin_or_finalizer)) == NULL)
        return NULL;

    int n = f->stacktop, first_free = n_locals - code->co_nfreevars;
    PyObject *closure = code->co_nfreevars > 0 ? ((PyFunctionObject *)FUNC(f))->func_closure : NULL;
    uint32_t owner = closure != NULL ? closure_owner((PyObject *)FUNC(f)) : 0;
    if (owner == 0 && PyErr_Occurred())
        return enc_fail(E, ENC_ERROR);
    for (int i = 0; i < n; i++) {
        PyObject *o = f->localsplus[i];
        long v;
        ROOM(32);
        if (o == NULL) {
            *p++ = TAG_NULL;
            continue;
        }
        const struct type_how *k = how_again(Py_TYPE(o), &ci->how_at[i]);
        switch (k->how) {
        case HOW_NONE:
            *p++ = TAG_NONE;
            continue;
        case HOW_INT:
            if (long_is_small(o, &v) && is_interned_int(v)) {
                p = put_interned_int(p, v);
                continue;
            }
            break;
        case HOW_CELL:
            if (owner != 0 && i >= first_free && i < n_locals &&
                o == PyTuple_GET_ITEM(closure, i - first_free)) {
                *p++ = TAG_CELLOF;
                p = put_varint(p, owner);
                p = put_varint(p, (uint64_t)(i - first_free));
                continue;
            }
            goto value;
        case HOW_PARK:
            if (i == n - 1 && enc_is_park(E, o)) {
                *p++ = TAG_PARK;
                continue;
            }
            goto value;
        case HOW_HANDLE:
        case HOW_GEN:
        case HOW_MUTABLE:
        case HOW_RANGEITER:
            goto value;
        }
        if (Py_REFCNT(o) > 1) {
            uint32_t h = (uint32_t)((uintptr_t)o >> 4), c;
            while ((c = ci->const_at[h & ci->const_mask]) != 0 &&
                   PyTuple_GET_ITEM(code->co_consts, c - 1) != o)
                h++;
            if (c != 0) {
                *p++ = TAG_CONST;
                p = put_varint(p, c - 1);
                continue;
            }
        }
    value:
        E->cur_frame = frame;
        E->cur_slot = (uint16_t)i;
        if (unlikely(E->by_pickle != NULL))
            p = enc_value(E, p, o);
        else if (k->how == HOW_HANDLE)
            p = enc_handle(E, p, o, k->handle);
        else if (k->how == HOW_INT)
            p = enc_long(E, p, o);
        else if (k->how == HOW_RANGEITER)
            p = enc_rangeiter(E, p, o);
        else
            p = enc_value(E, p, o);
        if (p == NULL) {
            enc_locate(E, frame, i);
            return NULL;
        }
    }
    return p;
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* Whether the interpreter's belief about a slot holds: see _bytecode.py for the kinds. */
static bool kind_ok(char kind, PyObject *o, struct code_info *ci)
{
    switch (kind) {
    case '?':
        return o != NULL;
    case 'N':
        return true;
    case '0':
        return o == NULL;
    }
    if (o == NULL)
        return false;
    switch (kind) {
    case 'i':
        return PyIter_Check(o);
    case 'a':
        return PyCoro_CheckExact(o) || PyIter_Check(o);
    case 'c':
        return PyCell_Check(o);
    case 'l':
        return PyList_CheckExact(o);
    case 's':
        return PySet_CheckExact(o);
    case 'd':
        return PyDict_CheckExact(o);
    case 't':
        return PyTuple_CheckExact(o);
    case 'e':
        return PyExceptionInstance_Check(o);
    case 'p':
        return o == Py_None || PyExceptionInstance_Check(o);
    case 'n': {
        int overflow = 0;
        long v = PyLong_CheckExact(o) ? PyLong_AsLongAndOverflow(o, &overflow) : -1;
        return !overflow && v >= 0 && v < code_units(ci->code);
    }
    }
    return false;
}

static int built_add(struct dec *D, PyGenObject *g, int8_t state)
{
    if (D->n_gens == D->gens_cap) {
        uint32_t cap = D->gens_cap ? D->gens_cap * 2 : 16;
        void *t = PyMem_Realloc(D->gens == D->gens_few ? NULL : D->gens, cap * sizeof *D->gens);
        if (t == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        if (D->gens == D->gens_few)
            memcpy(t, D->gens_few, sizeof D->gens_few);
        D->gens = t;
        D->gens_cap = cap;
    }
    D->gens[D->n_gens].g = (PyGenObject *)Py_NewRef(g);
    D->gens[D->n_gens++].state = state;
    return 0;
}

static PyTypeObject *const gen_types[] = {&PyCoro_Type, &PyGen_Type, &PyAsyncGen_Type};

static PyObject *dec_ended(struct dec *D, int kind, bool memo)
{
    PyFunctionObject *stock = core_ended_function(kind);
    PyGenObject *g = stock != NULL ? gen_alloc(gen_types[kind], stock) : NULL;
    if (g == NULL)
        return NULL;
    PyObject_GC_Track(g);
    PyObject *name, *qualname = NULL;
    if ((memo && dec_remember(D, (PyObject *)g, NULL) < 0) || (name = dec_value(D)) == NULL)
        goto fail;
    qualname = dec_value(D);
    if (qualname == NULL || !PyUnicode_Check(name) || !PyUnicode_Check(qualname)) {
        Py_DECREF(name);
        Py_XDECREF(qualname);
        if (!PyErr_Occurred())
            dec_bad("a generator's name is no str");
        goto fail;
    }
    Py_SETREF(g->gi_name, name);
    Py_SETREF(g->gi_qualname, qualname);
    g->gi_closed = 1;
    gen_clear(g);
    return (PyObject *)g;
fail:
    Py_DECREF(g);
    return NULL;
}

/* A frame with a cell of a named function is a frame of that function: by it the cell will be known
 * at the next park. */
static void frame_of_owner(Frame *f, struct code_info *ci, PyObject *fn)
{
    if (fn == NULL || PyFunction_GET_CODE(fn) != (PyObject *)ci->code ||
        (void *)FUNC(f) == (void *)fn)
        return;
    PyObject *was = (PyObject *)FUNC(f);
    FUNC(f) = (void *)Py_NewRef(fn);
    Py_DECREF(was);
}

PyObject *dec_gen(struct dec *D, bool memo)
{
    uint64_t id, at;
    if (!D->moving || D->end - D->p < 1)
        return dec_bad("a frame where none can be");
    int flags = *D->p++, kind = flags & F_KIND;
    if (kind > KIND_ASYNCGEN)
        return dec_bad("a generator of kind %d", kind);
    if (flags & F_ENDED)
        return dec_ended(D, kind, memo);
    if (dec_varint(D, &id) < 0 || dec_varint(D, &at) < 0)
        return NULL;
    if (id > UINT32_MAX)
        return dec_bad("code number out of range");
    struct code_info *ci = code_info_by_id((uint32_t)id);
    if (ci == NULL)
        return NULL;
    PyCodeObject *code = ci->code;
    int want = code->co_flags & CO_COROUTINE         ? KIND_CORO
               : code->co_flags & CO_ASYNC_GENERATOR ? KIND_ASYNCGEN
                                                     : KIND_GEN;
    if (at >= (uint64_t)ci->n_points || kind != want)
        return dec_bad("%.80s has no such resume point", PyUnicode_AsUTF8(code->co_qualname));
    struct resume_point *pt = &ci->points[at];
    PyGenObject *g = likely(ci->n_shells > 0) ? ci->shells[--ci->n_shells]
                                              : gen_alloc(gen_types[kind], ci->func);
    if (g == NULL)
        return NULL;
    Frame *f = GEN_FRAME(g);
    PyObject_GC_Track(g);
    int8_t state = pt->how == POINT_CREATED ? GEN_CREATED
                   : pt->how == POINT_AWAIT ? GEN_SUSPENDED_AWAIT
                                            : GEN_SUSPENDED;
    g->gi_closed = (flags & F_CLOSED) != 0;
    g->gi_running_async = (flags & F_RUNNING) != 0;
    if ((memo && dec_remember(D, (PyObject *)g, NULL) < 0) || built_add(D, g, state) < 0)
        goto fail;
    if (flags & (F_NAMES | F_EXC | F_ORIGIN)) {
        PyObject *v;
        if (flags & F_NAMES) {
            if ((v = dec_str(D)) == NULL)
                goto fail;
            Py_SETREF(g->gi_name, v);
            if ((v = dec_str(D)) == NULL)
                goto fail;
            Py_SETREF(g->gi_qualname, v);
        }
        if (flags & F_EXC) {
            if ((v = dec_value(D)) == NULL)
                goto fail;
            if (!PyExceptionInstance_Check(v)) {
                Py_DECREF(v);
                dec_bad("what is being handled is no exception");
                goto fail;
            }
            g->gi_exc_state.exc_value = v;
        }
        if (flags & F_ORIGIN) {
            v = NULL;
            if (kind == KIND_ASYNCGEN) {
                v = Py_XNewRef(PyThreadState_Get()->async_gen_finalizer);
                g->gi_hooks_inited = 1;
            } else if (kind != KIND_CORO || (v = dec_value(D)) == NULL) {
                if (!PyErr_Occurred())
                    dec_bad("an origin of no coroutine");
                goto fail;
            }
            g->gi_origin_or_finalizer = v;
        }
    }
    int n_locals = code->co_nlocalsplus, n = n_locals + pt->depth;
    for (int i = 0; i < n; i++) {
        PyObject *o;
        char kind = i < n_locals ? pt->locals[i] : pt->stack[i - n_locals];
        if (D->p >= D->end) {
            dec_bad("the bytes end within a frame");
            goto fail;
        }
        uint8_t tag = *D->p;
        if (tag == TAG_NULL) {
            D->p++;
            o = NULL;
        } else if (tag == TAG_NONE) {
            D->p++;
            o = Py_NewRef(Py_None);
        } else if (tag == TAG_CONST) {
            uint64_t c;
            D->p++;
            if (dec_varint(D, &c) < 0)
                goto fail;
            if (c >= (uint64_t)PyTuple_GET_SIZE(code->co_consts)) {
                dec_bad("constant out of range");
                goto fail;
            }
            o = Py_NewRef(PyTuple_GET_ITEM(code->co_consts, c));
        } else if ((o = dec_value(D)) == NULL) {
            goto fail;
        }
        f->localsplus[i] = o;
        f->stacktop = i + 1;
        if (unlikely(kind != '?' || o == NULL) && !kind_ok(kind, o, ci)) {
            dec_bad("slot %d of %.80s is not what stands there", i,
                    PyUnicode_AsUTF8(code->co_qualname));
            goto fail;
        }
        if (unlikely(tag == TAG_CELLOF))
            frame_of_owner(f, ci, D->owner);
    }
    frame_set_next(f, pt->next);
    return (PyObject *)g;
fail:
    Py_DECREF(g);
    return NULL;
}
