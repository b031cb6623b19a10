/* chain.c — the await chain of a goroutine: encoded, dropped, decoded, resumed.
 *
 * DROPPING an encoded chain must run no `finally`, warn of nothing and leak nothing:
 *   1  mark every frame of the graph COMPLETED: finalizers then return at once;
 *   2  empty the slots (a traceback that holds a frame object must not keep the locals);
 *   3  drop the references. The empty coroutine object itself is kept as a shell, a few per code
 *      object, to be filled by the next decode: that saves its allocation and its GC tracking.
 *
 * FAST-FORWARD. Resuming through the park costs a call into the park, and on 3.12 on a
 * StopIteration for each value. Instead the park is taken off the leaf's stack, the leaf's position
 * moved to where SEND leaves to, and the value sent: it is pushed exactly where SEND's result
 * belongs. This skips one RESUME instruction, so it is done only when no tool was switched on
 * meanwhile (tool_is_watching). Nothing is ever thrown into a frame that was moved on so: its
 * handler depth would be off by one. */
#include "codec.h"

bool fast_forward_on = true;

/* The frames of the chain encoded last, so that the drop that follows finds them all. */
static struct core_frames last;
static PyObject *last_root;

int core_chain_encode(PyObject *root, PyObject *park, struct core_enc *e)
{
    last_root = NULL;
    if (!frames_ok) {
        PyOS_snprintf(e->reason, sizeof e->reason, "%s", frames_reason);
        return ENC_PINNED;
    }
    if (!PyCoro_CheckExact(root) && !PyGen_CheckExact(root)) {
        PyOS_snprintf(e->reason, sizeof e->reason, "a %.80s is no coroutine of Python code",
                      Py_TYPE(root)->tp_name);
        return ENC_PINNED;
    }
    struct enc *E = enc_take(e, true);
    if (E == NULL)
        return ENC_ERROR;
    E->root = root;
    E->park = park;
    int r = enc_run(E, root, BLOB_MAGIC_CHAIN);
    if (r == ENC_OK) {
        last_root = root;
        last.n = E->n_gens;
        PyGenObject **t = (PyGenObject **)last.gens; /* swapped, not copied */
        last.gens = (void **)E->gens;
        E->gens = t;
        uint32_t cap = last.cap;
        last.cap = E->gens_cap;
        E->gens_cap = cap;
    }
    enc_give(E);
    return r;
}

static void gen_empty(PyGenObject *g)
{
    Frame *f = GEN_FRAME(g);
    int n = f->stacktop;
    frame_set_next(f, 0); /* else cr_await would look on the empty stack for what is awaited */
    f->stacktop = 0;
    for (int i = 0; i < n; i++)
        Py_XDECREF(f->localsplus[i]);
    Py_CLEAR(g->gi_exc_state.exc_value);
    Py_CLEAR(f->f_locals);
    frame_set_next(
        f, 0); /* nobody who still holds it may look for what it awaits on the empty stack */
}

/* Keeps an emptied coroutine object for the next decode, or drops it. */
static void gen_release(PyGenObject *g)
{
    Frame *f = GEN_FRAME(g);
    struct code_info *ci = code_info_known(gen_code(g));
    if (Py_REFCNT(g) != 1 || f->frame_obj != NULL || g->gi_weakreflist != NULL || ci == NULL ||
        ci->n_shells == SHELL_POOL) {
        Py_DECREF(g);
        return;
    }
    PyObject_GC_UnTrack(g);
    if ((PyObject *)FUNC(f) != (PyObject *)ci->func) {
        PyObject *own = (PyObject *)FUNC(f);
        FUNC(f) = (void *)Py_NewRef(ci->func);
        Py_DECREF(own);
    }
    f->f_globals = ci->func->func_globals;
    f->f_builtins = ci->func->func_builtins;
    if (g->gi_name != ci->func->func_name)
        Py_SETREF(g->gi_name, Py_NewRef(ci->func->func_name));
    if (g->gi_qualname != ci->func->func_qualname)
        Py_SETREF(g->gi_qualname, Py_NewRef(ci->func->func_qualname));
    if (!PyGen_CheckExact(g)) /* which does not even initialise it */
        Py_XDECREF(g->gi_origin_or_finalizer);
    g->gi_origin_or_finalizer = NULL;
    g->gi_hooks_inited = g->gi_closed = g->gi_running_async = 0;
    if (ci->n_shells < SHELL_POOL && Py_REFCNT(g) == 1) {
        ci->shells[ci->n_shells++] = g;
    } else {
        PyObject_GC_Track(g);
        Py_DECREF(g);
    }
}

/* Marks all frames ended, empties them, then lets go of them and of root. */
static void drop_frames(PyObject *root, PyGenObject **gens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        Py_INCREF(gens[i]);
        if (gen_is((PyObject *)gens[i]))
            gens[i]->gi_frame_state = GEN_COMPLETED;
        else
            ((AsyncGenASend *)gens[i])->state = 2; /* closed */
    }
    for (uint32_t i = 0; i < n; i++)
        if (gen_is((PyObject *)gens[i]))
            gen_empty(gens[i]);
    Py_DECREF(root);
    for (uint32_t i = 0; i < n; i++)
        if (gen_is((PyObject *)gens[i]))
            gen_release(gens[i]);
        else
            Py_DECREF(gens[i]);
}

void core_chain_frames_take(PyObject *root, struct core_frames *f)
{
    struct core_frames was = *f;
    was.n = 0;
    *f = last;
    f->n = last_root == root ? last.n : 0;
    last = was;
    last_root = NULL;
}

static bool found(const struct core_frames *f, PyObject *o)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (f->gens[i] == o)
            return true;
    return false;
}

/* Frames of a chain that was not encoded: those that only the frames above hold, as what they await
 * or in another slot. What somebody else holds goes on living, and is not touched. */
static void find_frames(struct core_frames *f, PyGenObject *g)
{
    Frame *frame = GEN_FRAME(g);
    if ((!gen_is_suspended(g) && g->gi_frame_state != GEN_CREATED) || f->n > DEPTH_MAX)
        return;
    if (f->n == f->cap) {
        uint32_t cap = f->cap ? f->cap * 2 : 16;
        void **t = PyMem_Realloc(f->gens, cap * sizeof *t);
        if (t == NULL)
            return;
        f->gens = t;
        f->cap = cap;
    }
    f->gens[f->n++] = g;
    for (int i = 0; i < frame->stacktop; i++) {
        PyObject *o = frame->localsplus[i];
        bool awaits = i == frame->stacktop - 1 && i >= CODE(frame)->co_nlocalsplus;
        if (o != NULL && !gen_is(o) && (awaits || Py_REFCNT(o) == 1))
            o = awaited_by(o);
        if (o != NULL && gen_is(o) && (awaits || Py_REFCNT(o) == 1) && !found(f, o))
            find_frames(f, (PyGenObject *)o);
    }
}

void core_chain_drop_kept(PyObject *root, struct core_frames *f)
{
    struct core_frames own = *f; /* dropping values may run code that encodes, and drops */
    *f = (struct core_frames){NULL, 0, 0};
    if (own.n == 0 && gen_is(root))
        find_frames(&own, (PyGenObject *)root);
    drop_frames(root, (PyGenObject **)own.gens, own.n);
    own.n = 0;
    if (f->gens == NULL)
        *f = own;
    else
        PyMem_Free(own.gens);
}

void core_chain_drop(PyObject *root)
{
    if (last_root != root)
        last.n = 0;
    last_root = NULL;
    core_chain_drop_kept(root, &last);
}

PyObject *core_chain_decode(const uint8_t *p, size_t n, struct core_words *W, PyObject **park)
{
    struct dec D;
    if (dec_begin(&D, p, n, W, BLOB_MAGIC_CHAIN) < 0)
        return NULL;
    PyObject *root = dec_value(&D);
    root = dec_end(&D, root);
    *park = (PyObject *)D.park;
    if (root != NULL && !PyCoro_CheckExact(root) && !PyGen_CheckExact(root)) {
        Py_DECREF(root);
        return dec_bad("the root of a chain is no coroutine");
    }
    return root;
}

/* The frame that awaits `park`, if only coroutines and generators stand between root and it. */
static PyGenObject *leaf_of(PyObject *root, PyObject *park)
{
    for (;;) {
        PyGenObject *g = (PyGenObject *)root;
        Frame *f = GEN_FRAME(g);
        if (!gen_is_suspended(g) || f->stacktop <= CODE(f)->co_nlocalsplus)
            return NULL;
        PyObject *top = f->localsplus[f->stacktop - 1];
        if (top == park && Py_IS_TYPE(top, &CorePark_Type))
            return g;
        if (top == NULL || (!PyCoro_CheckExact(top) && !PyGen_CheckExact(top)))
            return NULL;
        root = top;
    }
}

/* The park request that the chain stands at, through the awaitables of async generators too. */
PyObject *chain_park(PyObject *o)
{
    for (int depth = 0; o != NULL && depth < DEPTH_MAX; depth++) {
        if (Py_IS_TYPE(o, &CorePark_Type))
            return o;
        if (gen_is(o)) {
            Frame *f = GEN_FRAME(o);
            if (!gen_is_suspended((PyGenObject *)o) || f->stacktop <= CODE(f)->co_nlocalsplus)
                return NULL;
            o = f->localsplus[f->stacktop - 1];
        } else {
            o = awaited_by(o);
        }
    }
    return NULL;
}

/* What the code of the leaf is known as; asked once for code that was never encoded. */
static struct code_info *leaf_info(PyGenObject *g)
{
    static PyCodeObject *unknown; /* compared only */
    PyCodeObject *code = gen_code(g);
    struct code_info *ci = code_info_known(code);
    if (ci == NULL && code != unknown && frames_ok) {
        const char *why;
        if ((ci = code_info_of(code, GEN_FRAME(g)->f_globals, &why)) == NULL) {
            if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
                PyErr_SetInterrupt(); /* it came in the middle of our question: later, in main */
            PyErr_Clear();
            unknown = code;
        }
    }
    return ci;
}

static bool fast_forward(PyObject *root, PyObject *park)
{
    PyGenObject *leaf = fast_forward_on ? leaf_of(root, park) : NULL;
    if (leaf == NULL || tool_is_watching(PyThreadState_Get(), gen_code(leaf)))
        return false;
    struct code_info *ci = leaf_info(leaf);
    Frame *f = GEN_FRAME(leaf);
    int point = ci != NULL ? ci->point_at[frame_next(f)] : -1;
    if (point < 0 || ci->points[point].forward < 0)
        return false;
    f->stacktop--;
    frame_set_next(f, ci->points[point].forward);
    leaf->gi_frame_state = GEN_SUSPENDED;
    ((CorePark *)park)->state = 2;
    Py_DECREF(park);
    return true;
}

PySendResult core_chain_send(PyObject *root, PyObject *park, PyObject *value, PyObject **out)
{
    last_root = NULL;
    if (park != NULL && PyCoro_CheckExact(root) && !fast_forward(root, park)) {
        Py_XSETREF(((CorePark *)park)->result, Py_NewRef(value));
        value = Py_None;
    }
    return PyIter_Send(root, value, out);
}

PySendResult core_chain_throw(PyObject *root, PyObject *park, PyObject *exc, PyObject **out)
{
    last_root = NULL;
    if (park != NULL) {
        Py_XSETREF(((CorePark *)park)->exc, Py_NewRef(exc));
        return PyIter_Send(root, Py_None, out);
    }
    *out = PyObject_CallMethod(root, "throw", "O", exc);
    if (*out != NULL)
        return PYGEN_NEXT;
    return _PyGen_FetchStopIterationValue(out) == 0 ? PYGEN_RETURN : PYGEN_ERROR;
}
