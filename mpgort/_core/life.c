/* life.c — how a goroutine begins and how it ends.
 *
 * It begins as a call, encoded where it was started, with the context variables of who started it;
 * it runs first on whichever M picks it up (core_begin(), step 2 of the essay of proc.c). It ends
 * by its value or exception, which go to its join object, or, under go, to the header as the
 * program's panic; or by a kill, which runs nothing of it any more. */
#include "proc.h"

/* ---- new goroutines -------------------------------------------------------------------------- */

static PyObject *current_context(void)
{
    PyThreadState *ts = PyThreadState_Get();
    return ts->context;
}

void core_gdrop(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    shm_gcont_drop(c, g);
    bool ok = shm_casgstatus(c, gr, Gidle, Gdead);
    (void)ok;
    shm_gfree(c, gr);
}

int core_gnew(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs, shm_off join,
              uint8_t flags, shm_gref *out)
{
    struct core_proc *s = core_proc_get(prog);
    struct shm_ctx *c = core_ctx(prog);
    struct core_enc spare, *e;
    if (s == NULL || c == NULL)
        return -1;
    if (load_acq(&c->hdr->shutdown)) { /* pairs with store_rel in shutdown */
        PyErr_SetString(PyExc_RuntimeError, "the runtime has been shut down");
        return -1;
    }
    PyObject *call = kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0
                         ? PyTuple_Pack(3, fn, args, kwargs)
                         : PyTuple_Pack(2, fn, args);
    if (call == NULL)
        return -1;
    if ((e = core_venc_take(s, &spare)) == NULL) {
        Py_DECREF(call);
        return -1;
    }
    struct core_entered was = core_enter(prog);
    int r = core_call_encode(call, e);
    Py_DECREF(call);
    shm_gref gr = 0;
    if (r != ENC_OK) {
        r = -1;
    } else if ((r = shm_gnew(c, &gr)) < 0) {
        core_enc_let(e, 0);
        r = core_shm_error(prog, r);
    } else {
        struct shm_g *g = shm_g(c, gr);
        shm_gref me = core_curg(prog);
        g->flags = flags;
        g->op = PK_START;
        g->ok = SHM_OK_CLOSED;
        g->value.tag = SHM_VAL_NONE;
        g->waitkind = 0;
        g->home_m1 = 0;
        g->parent = me ? (uint32_t)shm_g(c, me)->goid : 0;
        if (me)
            shm_g_site_set(g, core_site(s));
        r = core_cont_store(s, c, g, e, current_context(), 0, false);
        if (r < 0)
            core_gdrop(c, gr);
    }
    core_leave(was);
    core_venc_give(s, e);
    if (r < 0)
        return -1;
    if (join != 0) {
        struct shm_join *j = shm_at(c, join);
        j->g = gr;
        j->goid = shm_g(c, gr)->goid;
        shm_g(c, gr)->retries = j->retry != 0;
        shm_join_give(c, shm_g(c, gr), join);
        /* After g is known: who cancels a group's children finds it. */
        if (j->group != 0 && (r = shm_group_add(c, j->group, join)) < 0) {
            core_gdrop(c, gr);
            return core_shm_error(prog, r);
        }
    }
    *out = gr;
    return 0;
}

int core_newproc(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs, shm_off join,
                 uint8_t flags)
{
    shm_gref g;
    if (core_gnew(prog, fn, args, kwargs, join, flags, &g) < 0)
        return -1;
    shm_newproc(core_ctx(prog), g);
    return 0;
}

shm_off core_self_join(struct core_proc *s)
{
    struct shm_g *g = core_g(s, s->curg);
    shm_off off;
    int r;
    if (g->obj != 0)
        return g->obj;
    if ((r = shm_join_new(s->c, &off)) < 0)
        return core_shm_error(s->prog, r), 0;
    struct shm_join *j = shm_at(s->c, off);
    j->g = s->curg;
    j->goid = g->goid;
    shm_join_give(s->c, g, off);
    shm_obj_unref(s->c, off); /* the second reference is a caller's */
    return off;
}

/* ---- its first turn -------------------------------------------------------------------------- */

/* False: it waits at its group's limit, or was cancelled or stopped before it began and has ended
 * (*r is core_finish()'s). */
static bool admit(struct core_proc *s, shm_gref gr, int *r)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    struct shm_join *j = g->obj ? shm_at(c, g->obj) : NULL;
    *r = 0;
    if (j == NULL && g->ok != SHM_OK_CANCELLED)
        return true;
    if (j == NULL) { /* an after_func that was stopped */
        shm_gcont_drop(c, g);
        *r = core_finish(s, gr, Py_NewRef(Py_None));
        return false;
    }
    bool cancelled = g->ok == SHM_OK_CANCELLED || core_cancel_due(j); /* while it was queued */
    uint64_t epoch = shm_wait_next(g);
    core_wait_end(c, g);
    if (!cancelled) {
        if (shm_group_admit(c, g->obj, gr) == SHM_OK)
            return true;
        s->curg = 0; /* as in park(): g is another's, and a cancel may have come in between */
        shm_join_marks(c, j, gr, epoch);
        return false;
    }
    shm_gcont_drop(c, g);
    PyErr_SetNone(core_err.Cancelled);
    *r = core_finish(s, gr, NULL);
    return false;
}

/* Makes its call. */
static int start(struct core_proc *s, shm_gref gr)
{
    struct shm_g *g = core_g(s, gr);
    const uint8_t *p;
    size_t chain;
    PyObject *call = NULL, *v = NULL;
    struct core_words W;
    uint32_t none = 0;
    if (g->obj != 0 && !cas_acqrel(&((struct shm_join *)shm_at(s->c, g->obj))->begun, &none, 1) &&
        !(none == 1 && g->retries)) { /* 1: run again from its start */
        /* Withdrawn (goroutine.c), which is the same CAS. */
        shm_gcont_drop(s->c, g);
        PyErr_SetNone(core_err.Cancelled);
        return core_finish(s, gr, NULL);
    }
    if (core_cont_open(s, g, &p, &chain, &W) == 0)
        call = core_value_decode(p, chain, &W);
    core_words_close(&W);
    shm_gcont_drop(s->c, g);
    g->flags = (uint8_t)((g->flags | SHM_GF_STARTED) & ~SHM_GF_CONTEXT);
    if (call == NULL)
        return core_finish(s, gr, NULL);
    if (!PyTuple_CheckExact(call) || PyTuple_GET_SIZE(call) < 2 ||
        !PyTuple_Check(PyTuple_GET_ITEM(call, 1)))
        PyErr_SetString(core_err.BadContinuation, "the call of a new goroutine is damaged");
    else
        v = PyObject_Call(PyTuple_GET_ITEM(call, 0), PyTuple_GET_ITEM(call, 1),
                          PyTuple_GET_SIZE(call) > 2 ? PyTuple_GET_ITEM(call, 2) : NULL);
    Py_DECREF(call);
    if (v == NULL)
        return core_finish(s, gr, NULL);
    if (!PyCoro_CheckExact(v)) {
        if (Py_TYPE(v)->tp_as_async == NULL || Py_TYPE(v)->tp_as_async->am_await == NULL)
            return core_finish(s, gr, v);
        /* A bound method of a handle (go(ch.send, v)), or another awaitable:
         * a coroutine awaits it. */
        PyObject *coro = PyObject_CallOneArg(core_err.await_it, v);
        Py_DECREF(v);
        if (coro == NULL)
            return core_finish(s, gr, NULL);
        v = coro;
    }
    PyObject *out;
    PySendResult res = PyIter_Send(v, Py_None, &out);
    return core_drive(s, gr, v, res, out);
}

int core_begin(struct core_proc *s, shm_gref gr)
{
    int r;
    if (!admit(s, gr, &r))
        return r;
    if (core_g(s, gr)->retries)
        shm_retry_take(s->c, gr);
    return start(s, gr);
}

/* ---- the end of a goroutine ------------------------------------------------------------------ */

static void panic(struct core_proc *s, struct shm_g *g, PyObject *exc)
{
    struct shm_val v;
    own_add(&s->c->m->st.panics, 1); /* owner only */
    if (core_exc_store(s->prog, exc, &v) < 0) {
        PyErr_Clear();
        v.tag = SHM_VAL_NONE;
    }
    shm_panic(s->c, g->goid, SHM_J_ERROR, &v, 0);
}

/* The G that runs has ended with value, or with the exception that is set (value NULL).
 * -1: the exception ends the loop itself (Ctrl-C with procs=0). */
int core_finish(struct core_proc *s, shm_gref gr, PyObject *value)
{
    struct shm_g *g = core_g(s, gr);
    PyObject *exc = NULL;
    bool interrupted = false;
    if (!s->prog->attached)
        core_forked_end();
    core_cont_let(s); /* before anybody can know of the end */
    if (load_rlx(&s->c->m->locks) > 0) {
        store_rlx(&s->c->m->locks, 0); /* own word: nobody else could park here any more */
        if (value != NULL && !(g->flags & SHM_GF_MAIN)) {
            Py_CLEAR(value);
            PyErr_SetString(PyExc_RuntimeError, "schedule: holding locks: the goroutine has ended "
                                                "between acquirem() and releasem()");
        }
    }
    if (value == NULL) {
        exc = core_take_exc();
        if (Py_TYPE(exc) == (PyTypeObject *)core_err.Goexit) {
            Py_CLEAR(exc);
            value = Py_NewRef(Py_None);
            if (g->flags & SHM_GF_MAIN)
                s->main_goexit = true;
        }
    }
    if (g->flags & SHM_GF_MAIN) {
        if (!s->main_goexit) {
            s->main_done = true;
            s->main_value = value;
            s->main_exc = exc;
            value = exc = NULL;
        }
    } else if (exc != NULL && PyErr_GivenExceptionMatches(exc, PyExc_KeyboardInterrupt) &&
               s->prog->is_m0 && gettid() == getpid()) {
        /* run(procs=0): Ctrl-C struck while this goroutine ran; it is the caller's, not a panic.
         * (In another thread, a Runtime's, none does: there it is the goroutine's own.) */
        interrupted = true;
    }
    if (exc != NULL && !interrupted && g->flags & SHM_GF_GO)
        panic(s, g, exc);
    if (g->obj != 0) {
        struct shm_val val = {.tag = SHM_VAL_NONE};
        unsigned state = SHM_J_VALUE;
        if (exc == NULL && value != NULL && core_val_encode(s->prog, value, &val) < 0)
            exc = core_take_exc();
        if (exc != NULL) {
            state =
                Py_TYPE(exc) == (PyTypeObject *)core_err.Cancelled ? SHM_J_CANCELLED : SHM_J_ERROR;
            if (core_exc_store(s->prog, exc, &val) < 0) {
                PyErr_Clear();
                val.tag = SHM_VAL_NONE;
            }
        }
        shm_join_finish(s->c, g->obj, state, &val);
        shm_retry_drop(s->c, g->obj);
        shm_obj_unref_word(s->c, &g->obj);
    }
    Py_XDECREF(value);
    if (s->curhome != NULL) {
        core_thread_end(s, s->curhome);
        core_home_drop(s, s->curhome);
        s->curhome = NULL;
    }
    s->curg = 0;
    shm_goexit0(s->c, gr);
    if (interrupted)
        return core_raise(exc);
    Py_XDECREF(exc);
    return 0;
}

/* A goroutine that was killed ends: none of its frames runs again. root, pk: owned, NULL if it was
 * not live here. */
void core_killed(struct core_proc *s, shm_gref gr, PyObject *root, PyObject *pk)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    struct shm_val none = {.tag = SHM_VAL_NONE};
    struct core_home *h = s->curhome;
    s->curg = 0; /* what the frames drop may run finalizers: on the scheduler's stack */
    s->curhome = NULL;
    core_cont_let(s);
    if (root != NULL)
        core_chain_drop(root);
    Py_XDECREF(pk);
    if (h != NULL)
        core_home_note_free(s, g);
    shm_gcont_drop(c, g);
    shm_val_drop(c, &g->value);
    g->value.tag = SHM_VAL_NONE;
    if (g->waitkind == SHM_OBJ_SEMA)
        shm_sema_left(c, g->waitobj);
    core_wait_end(c, g);
    shm_sema_reap(c, g->goid);                       /* what it had locked nobody would unlock */
    shm_join_finish(c, g->obj, SHM_J_KILLED, &none); /* mostly done already */
    shm_retry_drop(c, g->obj);
    shm_obj_unref_word(c, &g->obj);
    if (h != NULL) {
        core_thread_end(s, h);
        core_home_drop(s, h);
    }
    shm_goexit0(c, gr);
}
