/* cpython.h — every use of what CPython keeps to itself, and every `#if` on its version.
 *
 * A frame that moves is a PyGenObject (coroutine, generator and async generator share the layout)
 * with its interpreter frame inside. Three layouts are known: 3.11, 3.12 and 3.13; a patch release
 * does not change them, and codec.c holds them against tp_basicsize and against a live frame before
 * anything moves. What differs stands here under one name:
 *
 *   CODE(f), FUNC(f)     f_code / f_func; f_code / f_funcobj; f_executable / f_funcobj
 *   frame_next(), ...    where the frame goes on, in code units. 3.11 and 3.12 keep the unit before
 *                        it in prev_instr; 3.13 the unit itself in instr_ptr
 *   GEN_SUSPENDED_AWAIT  3.13 says in the state that a frame awaits; earlier ones look at the
 *   opcode tool_is_watching()   whether the RESUME that a fast-forward skips would have had work to
 *   do
 *
 * Iterators and the awaitables of async generators have no header at all (or none in 3.11): their
 * layouts are written here, and core_layouts_ok() compares their sizes. */
#ifndef MPGORT_CPYTHON_H
#define MPGORT_CPYTHON_H

#include "core.h"
#include <frameobject.h>

#ifdef Py_GIL_DISABLED /* a frame might change while it is encoded; _platform.py says so, too */
#error "mpgort needs a CPython with the GIL: python3.13, not python3.13t"
#endif

#if __has_include("internal/pycore_frame.h")
#include "internal/pycore_code.h"
#include "internal/pycore_frame.h"
#include "internal/pycore_pystate.h"
#endif
#include "internal/pycore_context.h"
#include "internal/pycore_hamt.h"
#if PY_VERSION_HEX >= 0x030d0000
#include "internal/pycore_ceval.h"
#include "internal/pycore_setobject.h" /* _PySet_NextEntry became internal */
#endif
#if PY_VERSION_HEX >= 0x030c0000
#include "internal/pycore_interp.h"
#endif

/* As in shm/internal.h. */
#define likely(x) __builtin_expect_with_probability(!!(x), 1, 1.0)
#define unlikely(x) __builtin_expect_with_probability(!!(x), 0, 1.0)

/* ---- dicts ----------------------------------------------------------------------------------- */

/* Another number after each change of the dict; deprecated since 3.12 in favour of watchers, which
 * 3.11 has not. */
static inline uint64_t dict_version(PyObject *dict)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    return ((PyDictObject *)dict)->ma_version_tag;
#pragma GCC diagnostic pop
}

/* ---- frames ---------------------------------------------------------------------------------- */

typedef struct _PyInterpreterFrame Frame;

#define GEN_FRAME(g) ((Frame *)((PyGenObject *)(g))->gi_iframe)
#define GEN_CREATED FRAME_CREATED
#define GEN_SUSPENDED FRAME_SUSPENDED
#define GEN_COMPLETED FRAME_COMPLETED
#define FRAME_STATE_ENDED(s) ((s) >= FRAME_COMPLETED)
#if PY_VERSION_HEX >= 0x030d0000
#define GEN_SUSPENDED_AWAIT FRAME_SUSPENDED_YIELD_FROM
#else
#define GEN_SUSPENDED_AWAIT FRAME_SUSPENDED
#endif

/* The immutable mapping that a context's variables are; borrowed. */
static inline PyObject *context_vars(PyObject *ctx)
{
    return (PyObject *)((PyContext *)ctx)->ctx_vars;
}

static inline Py_ssize_t context_n_vars(PyObject *ctx)
{
    return ((PyContext *)ctx)->ctx_vars->h_count;
}

static inline bool gen_is(PyObject *o)
{
    return PyCoro_CheckExact(o) || PyGen_CheckExact(o) || PyAsyncGen_CheckExact(o);
}
static inline bool gen_is_suspended(PyGenObject *g)
{
    return g->gi_frame_state == GEN_SUSPENDED || g->gi_frame_state == GEN_SUSPENDED_AWAIT;
}

#if PY_VERSION_HEX >= 0x030d0000
#define CODE(f) ((PyCodeObject *)(f)->f_executable)
#define FUNC(f) ((f)->f_funcobj)
#elif PY_VERSION_HEX >= 0x030c0000
#define CODE(f) ((f)->f_code)
#define FUNC(f) ((f)->f_funcobj)
#else
#define CODE(f) ((f)->f_code)
#define FUNC(f) ((f)->f_func)
#endif

/* The code of a generator in any state. A finished one of 3.11 has dropped its frame's. */
static inline PyCodeObject *gen_code(PyGenObject *g)
{
#if PY_VERSION_HEX >= 0x030c0000
    return CODE(GEN_FRAME(g));
#else
    return g->gi_code;
#endif
}

static inline int frame_next(Frame *f)
{
#if PY_VERSION_HEX >= 0x030d0000
    return (int)(f->instr_ptr - _PyCode_CODE(CODE(f)));
#else
    return (int)(f->prev_instr + 1 - _PyCode_CODE(CODE(f)));
#endif
}
static inline void frame_set_next(Frame *f, int next)
{
#if PY_VERSION_HEX >= 0x030d0000
    f->instr_ptr = _PyCode_CODE(CODE(f)) + next;
#else
    f->prev_instr = _PyCode_CODE(CODE(f)) + next - 1;
#endif
}

/* f, or the first below it that runs Python; NULL: none does. */
static inline Frame *frame_complete(Frame *f)
{
    while (f != NULL && _PyFrame_IsIncomplete(f))
        f = f->previous;
    return f;
}

/* The innermost frame of this thread that runs Python, NULL: none does. */
static inline Frame *frame_of_thread(PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030d0000
    return frame_complete(ts->current_frame);
#else
    return frame_complete(ts->cframe->current_frame);
#endif
}

/* Slots behind gi_iframe: the frame's own words are counted in the fixed part on no version. */
static inline Py_ssize_t code_slots(PyCodeObject *code)
{
#if PY_VERSION_HEX >= 0x030c0000
    return _PyFrame_NumSlotsForCodeObject(code);
#else
    return code->co_nlocalsplus + code->co_stacksize;
#endif
}
static inline int code_units(PyCodeObject *code)
{
    return (int)Py_SIZE(code);
}

/* A frame as a new generator's would be, standing nowhere yet: no slots, COMPLETED. `func` gives
 * globals and builtins, which the frame borrows; the reference to it keeps them alive. */
static inline PyGenObject *gen_alloc(PyTypeObject *type, PyFunctionObject *func)
{
    PyCodeObject *code = (PyCodeObject *)func->func_code;
    PyGenObject *g = PyObject_GC_NewVar(PyGenObject, type, code_slots(code));
    if (g == NULL)
        return NULL;
    Frame *f = GEN_FRAME(g);
#if PY_VERSION_HEX < 0x030c0000
    g->gi_code = (PyCodeObject *)Py_NewRef(code);
    f->is_entry = false;
    f->f_code = (PyCodeObject *)Py_NewRef(code);
#else
#if PY_VERSION_HEX < 0x030d0000
    f->f_code = (PyCodeObject *)Py_NewRef(code);
#else
    f->f_executable = Py_NewRef(code);
#endif
    f->return_offset = 0;
#endif
    g->gi_weakreflist = NULL;
    g->gi_name = Py_NewRef(func->func_name);
    g->gi_qualname = Py_NewRef(func->func_qualname);
    g->gi_exc_state.exc_value = NULL;
    g->gi_exc_state.previous_item = NULL;
    g->gi_origin_or_finalizer = NULL;
    g->gi_hooks_inited = g->gi_closed = g->gi_running_async = 0;
    g->gi_frame_state = GEN_COMPLETED;
    FUNC(f) = (void *)Py_NewRef(func);
    f->f_globals = func->func_globals;
    f->f_builtins = func->func_builtins;
    frame_set_next(f, 0);
    f->f_locals = NULL;
    f->frame_obj = NULL;
    f->previous = NULL;
    f->stacktop = 0;
    f->owner = FRAME_OWNED_BY_GENERATOR;
    return g;
}

/* An empty COMPLETED generator to one that has finished. 3.11 takes its word that it has no frame
 * from the state CLEARED alone; later ones from either. */
static inline void gen_clear(PyGenObject *g)
{
#if PY_VERSION_HEX < 0x030c0000
    Frame *f = GEN_FRAME(g);
    Py_CLEAR(f->f_func);
    Py_CLEAR(f->f_code);
    g->gi_frame_state = FRAME_CLEARED;
#else
    (void)g;
#endif
}

#if PY_VERSION_HEX >= 0x030c0000
static inline bool monitors_are_on(PyThreadState *ts, PyCodeObject *code)
{
    const uint8_t *m = (const uint8_t *)&ts->interp->monitors;
    uint8_t any = 0;
    for (size_t i = 0; i < sizeof ts->interp->monitors; i++)
        any |= m[i];
    return any != 0 || code->_co_monitoring != NULL;
}
#endif

/* Whether the RESUME that a fast-forward skips has work to do: a tool (settrace, setprofile,
 * sys.monitoring) is on and wants its event, or was switched since this code last ran a RESUME,
 * which is what rewrites the code for the tool. Code that ever was instrumented counts as
 * watched. */
static inline bool tool_is_watching(PyThreadState *ts, PyCodeObject *code)
{
#if PY_VERSION_HEX >= 0x030d0000
    uintptr_t v =
        _Py_atomic_load_uintptr_relaxed(&ts->eval_breaker) & ~(uintptr_t)_PY_EVAL_EVENTS_MASK;
    return v != code->_co_instrumentation_version || monitors_are_on(ts, code);
#elif PY_VERSION_HEX >= 0x030c0000
    return code->_co_instrumentation_version != ts->interp->monitoring_version ||
           monitors_are_on(ts, code);
#else
    (void)code;
    return ts->cframe->use_tracing != 0;
#endif
}

static inline int code_get_extra(PyCodeObject *code, Py_ssize_t i, void **extra)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyUnstable_Code_GetExtra((PyObject *)code, i, extra);
#else
    return _PyCode_GetExtra((PyObject *)code, i, extra);
#endif
}
static inline int code_set_extra(PyCodeObject *code, Py_ssize_t i, void *extra)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyUnstable_Code_SetExtra((PyObject *)code, i, extra);
#else
    return _PyCode_SetExtra((PyObject *)code, i, extra);
#endif
}
/* The same without the call: asked about each frame that is encoded, and at each resume. The struct
 * stands in codeobject.c alone; core_layouts_ok() compares the two. */
static inline void *code_extra(PyCodeObject *code, Py_ssize_t i)
{
    const struct {
        Py_ssize_t size;
        void *extras[];
    } *x = code->co_extra;
    return x != NULL && i < x->size ? x->extras[i] : NULL;
}
static inline Py_ssize_t code_extra_index(freefunc f)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyUnstable_Eval_RequestCodeExtraIndex(f);
#else
    return _PyEval_RequestCodeExtraIndex(f);
#endif
}

/* Raises StopIteration(value) (value is taken over) for a tp_iternext that has finished. 3.12 on
 * asks every awaitable that is no coroutine through tp_iternext; instantiating the class by a call
 * and chaining contexts costs three times as much as filling the object here. */
static inline void raise_stop_iteration(PyObject *value)
{
#if PY_VERSION_HEX >= 0x030c0000
    PyTypeObject *type = (PyTypeObject *)PyExc_StopIteration;
    PyStopIterationObject *e = (PyStopIterationObject *)type->tp_alloc(type, 0);
    if (e != NULL) {
        e->args = PyTuple_New(0);
        e->value = value;
        PyErr_SetRaisedException((PyObject *)e);
        return;
    }
#else
    _PyGen_SetStopIterationValue(value);
#endif
    Py_DECREF(value);
}

/* The exception being raised, normalised and taken out of the thread state; NULL: none. */
static inline PyObject *take_exception(void)
{
#if PY_VERSION_HEX >= 0x030c0000
    return PyErr_GetRaisedException();
#else
    PyObject *t, *v, *tb;
    PyErr_Fetch(&t, &v, &tb);
    if (t == NULL)
        return NULL;
    PyErr_NormalizeException(&t, &v, &tb);
    if (tb != NULL)
        PyException_SetTraceback(v, tb);
    Py_XDECREF(tb);
    Py_DECREF(t);
    return v;
#endif
}
static inline void put_exception(PyObject *exc) /* exc is taken over */
{
#if PY_VERSION_HEX >= 0x030c0000
    PyErr_SetRaisedException(exc);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

static inline bool is_immortal(PyObject *o)
{
#if PY_VERSION_HEX >= 0x030c0000
    return _Py_IsImmortal(o);
#else
    (void)o;
    return false;
#endif
}

static inline int long_to_bytes(PyObject *v, uint8_t *b, size_t n)
{
#if PY_VERSION_HEX >= 0x030d0000
    return _PyLong_AsByteArray((PyLongObject *)v, b, n, 1, 1, 1);
#else
    return _PyLong_AsByteArray((PyLongObject *)v, b, n, 1, 1);
#endif
}

static inline bool long_is_small(PyObject *v, long *out)
{
#if PY_VERSION_HEX >= 0x030c0000
    if (!_PyLong_IsCompact((PyLongObject *)v))
        return false;
    *out = (long)_PyLong_CompactValue((PyLongObject *)v);
#else
    Py_ssize_t n = Py_SIZE(v);
    if (n > 1 || n < -1)
        return false;
    *out = n * (long)((PyLongObject *)v)->ob_digit[0];
#endif
    return true;
}

/* ---- layouts without a header ---------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD Py_ssize_t index;
    PyObject *seq; /* NULL: exhausted */
} SeqIter;         /* list, tuple, bytes, bytearray, str iterators; seqiter; list_reverseiterator */

typedef struct {
    PyObject_HEAD
#if PY_VERSION_HEX < 0x030c0000
        long index,
        start, step, len;
#else
        long start,
        step, len;
#endif
} RangeIter;

static inline void range_iter_get(RangeIter *it, int64_t w[3]) /* next value, step, how many */
{
#if PY_VERSION_HEX < 0x030c0000
    w[0] = (int64_t)((uint64_t)it->start + (uint64_t)it->index * (uint64_t)it->step);
    w[2] = it->len - it->index;
#else
    w[0] = it->start;
    w[2] = it->len;
#endif
    w[1] = it->step;
}
static inline void range_iter_set(RangeIter *it, const int64_t w[3])
{
#if PY_VERSION_HEX < 0x030c0000
    it->index = 0;
#endif
    it->start = w[0];
    it->step = w[1];
    it->len = w[2] < 0 ? 0 : w[2];
}

typedef struct {
    PyObject_HEAD PyDictObject *dict; /* NULL: exhausted */
    Py_ssize_t used, pos;
    PyObject *result;
    Py_ssize_t len;
} DictIter;

typedef struct {
    PyObject_HEAD PyObject *gen, *sendval;
    int state; /* 0 init, 1 iter, 2 closed */
} AsyncGenASend;

typedef struct {
    PyObject_HEAD PyObject *gen, *args; /* args NULL: aclose() */
    int state;
} AsyncGenAThrow;

typedef struct {
    PyObject_HEAD PyObject *coro;
} CoroWrapper;

#endif
