/* proc.c — THEN HERE. A goroutine's turn on an M, under the names of Go's proc.go. The loop of
 * which it is a step is loop.c, a goroutine's first and last step life.c.
 *
 * It owns what this process knows of running goroutines: which one's Python runs now (`curg`),
 * which ones are live here between two turns (`homes`), which context is entered. Where a goroutine
 * stands and who may touch it is the segment's business (shm/sched.c, THE essay); this file moves
 * it between bytes and Python.
 *
 * ONE TURN of a goroutine
 *   1 schedule   shm_findrunnable() with the GIL; if there is nothing, again without it, asleep
 *                (loop.c).
 *   2 execute    runnable -> running by CAS (INV status-truth); a home goroutine is taken from
 *                `homes`, a light one from `warm` or decoded, and its block kept; a new one's call
 *                is made (life.c).
 *   3 resume     g->op says what it was parked in: that operation's resume() makes the value of the
 *                await from g->ok and g->value, or the exception that the await raises.
 *   4 run        PyIter_Send (core_chain_send) until it yields a park request, returns or raises.
 *   5 park       the request comes out here, on the scheduler's stack: this is mcall. Its await
 *                chain is encoded and stored (or it stays at home), then the operation's park()
 *                does the rest in one transaction: try again, link, running -> waiting, arm.
 *                SHM_OK: done after all, go on live with 4. SHM_PARKED: the goroutine may already
 *                run elsewhere; only the local copy is put aside (INV touch-nothing).
 *   6 finish     the value or exception goes to the join object, or is a panic; running -> dead
 *                (life.c).
 *
 * PREEMPTION happens where Python can be left: at an await. An operation that succeeds at once
 * while a preemption is due puts its result into g and yields all the same (core_try_done): the
 * loop queues the goroutine at the global tail and step 3 finds the result where a waker would have
 * put it.
 *
 * THE WAIT HOLDS ITS OBJECT. A parked goroutine may be the only one to know its channel (`await
 * chan().recv()`): the request's handle dies with the local copy, so a park on a counted object
 * takes a reference for g->waitobj and the resume gives it back.
 *
 * WITH RETRIES (shm/retry.c) step 2 keeps what it reads as the checkpoint, and step 3 works on a
 * copy; step 4 yields at every await, and step 5 carries the operation out in one transaction with
 * the next checkpoint: park_retry().
 *
 * A goroutine that must stay here is kept by cont.c; when SHM_ATTN_OFFLOAD asks for one, or this M
 * is to leave, a heavy one that comes up is encoded whole and given to the global queue. */
#include "proc.h"

struct core_park_op core_park_ops[CORE_PARK_KINDS];
CORE_TLS struct core_proc *core_proc_cur;

/* ---- the state of one program in this process ------------------------------------------------ */

struct core_proc *core_proc_get(CoreProg *prog)
{
    if (prog->proc != NULL)
        return prog->proc;
    struct core_proc *s = PyMem_Calloc(1, sizeof *s);
    if (s == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    s->prog = prog;
    s->c = &prog->loop;
    s->deadline_ns = UINT64_MAX;
    s->reasons = PyDict_New();
    if (s->reasons == NULL || core_enc_init(&s->enc) < 0 || core_enc_init(&s->venc) < 0) {
        Py_XDECREF(s->reasons);
        PyMem_Free(s);
        return PyErr_NoMemory(), NULL;
    }
    prog->proc = s;
    return s;
}

void core_proc_free(CoreProg *prog)
{
    struct core_proc *s = prog->proc;
    if (s == NULL)
        return;
    prog->proc = NULL;
    /* Goroutines that the program's end found parked here end without running anything more. */
    for (uint32_t i = 0; i < s->homes_cap; i++)
        if (s->homes[i] != NULL) {
            if (s->homes[i]->root != NULL) {
                core_chain_drop(s->homes[i]->root);
                s->homes[i]->root = NULL;
            }
            core_home_free(s->homes[i]);
        }
    PyMem_Free(s->homes);
    core_warm_rest(s);
    for (uint32_t i = 0; i < CORE_WARM; i++)
        PyMem_Free(s->warm[i].frames.gens);
    core_handle_rest(s);
    core_sites_free(s);
    core_enc_free(&s->enc);
    core_enc_free(&s->venc);
    Py_CLEAR(s->base_ctx);
    Py_CLEAR(s->ctx);
    Py_CLEAR(s->main_value);
    Py_CLEAR(s->main_exc);
    Py_CLEAR(s->interrupt);
    Py_CLEAR(s->reasons);
    Py_CLEAR(s->loose);
    PyMem_Free(s->slots);
    PyMem_Free(s);
}

CoreProg *core_current(const char *what)
{
    if (core_proc_cur != NULL && core_proc_cur->curg != 0)
        return core_proc_cur->prog;
    if (core_proc_cur != NULL)
        PyErr_Format(PyExc_RuntimeError,
                     "%s on the scheduler's stack (m->g0): no goroutine runs here", what);
    else
        PyErr_Format(
            PyExc_RuntimeError,
            "%s outside a goroutine: start one with mpgort.run(main) or Runtime().spawn(fn)", what);
    return NULL;
}

shm_gref core_curg(CoreProg *prog)
{
    return core_proc_cur != NULL && core_proc_cur->prog == prog ? core_proc_cur->curg : 0;
}

/* ---- park ------------------------------------------------------------------------------------ */

/* The wait's hold on its object ends. */
void core_wait_end(struct shm_ctx *c, struct shm_g *g)
{
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT) { /* cancelled, timed out: no resume() has done it */
        shm_select_done(c, core_gref(c, g), &tag);
    } else if (g->waitkind != 0 && g->waitkind < SHM_WAIT_SELECT) {
        shm_wait_ends(c, g);
    }
}

/* What the await gives, from g (step 3). Also ends the wait's hold on its object. */
static PyObject *resume_value(struct core_proc *s, struct shm_g *g, unsigned op)
{
    PyObject *v = NULL;
    if (g->ok == SHM_OK_CANCELLED) { /* cancelled: shm_wait_abort by h.cancel() or by Ctrl-C */
        shm_val_drop(s->c, &g->value);
        g->value.tag = SHM_VAL_NONE;
        if (s->interrupt == NULL || !(g->flags & SHM_GF_MAIN))
            PyErr_SetNone(core_err.Cancelled);
    } else if (op < CORE_PARK_KINDS && core_park_ops[op].resume != NULL) {
        v = core_park_ops[op].resume(s->prog, s->c, g);
    } else {
        PyErr_Format(PyExc_RuntimeError, "goroutine %llu is parked in an unknown operation %u",
                     (unsigned long long)g->goid, op);
    }
    core_wait_end(s->c, g);
    if (s->interrupt != NULL && (g->flags & SHM_GF_MAIN)) { /* also when a waker was faster */
        Py_CLEAR(v);
        PyErr_SetObject((PyObject *)Py_TYPE(s->interrupt), s->interrupt);
        Py_CLEAR(s->interrupt);
    }
    return v;
}

bool core_preempt_due(struct core_proc *s)
{
    return shm_preempt_requested(s->c) && load_rlx(&s->c->m->locks) == 0; /* own words */
}

struct core_proc *core_try_begin(CoreProg *prog)
{
    struct core_proc *s = core_proc_cur;
    if (s == NULL || s->curg == 0) {
        core_current("await");
        return NULL;
    }
    if (s->prog != prog) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "await on a handle of another runtime: a handle belongs to the program that made it");
        return NULL;
    }
    return s;
}

int core_try_done(struct core_proc *s, CorePark *pk, PyObject **result)
{
    if (core_preempt_due(s)) {
        s->inhand = true;
        return 0;
    }
    *result = core_park_ops[pk->kind].resume(s->prog, s->c, core_g(s, s->curg));
    return *result != NULL ? 1 : -1;
}

/* Seq_cst: tag cancel. */
bool core_cancel_due(struct shm_join *j)
{
    uint32_t one = 1;
    return load_rlx(&j->cancel) == 1 && cas_seq(&j->cancel, &one, 0);
}

void core_park_drop(struct shm_ctx *c, CorePark *pk)
{
    if (core_park_ops[pk->kind].drop != NULL)
        core_park_ops[pk->kind].drop(c, pk);
}

enum { GONE = 0, GO_ON = 1 };

/* The operation of a goroutine with retries, its continuation stored: SHM_OK: its outcome is the
 * checkpoint. Else as park(). */
SHM_COLD static int park_retry(struct core_proc *s, shm_gref gr, CorePark *pk, struct shm_join *j)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    unsigned op = (unsigned)pk->kind;
    bool users = op == PK_GOPARK || op == PK_MCALL; /* what runs there has awaits of nobody */
    int r = SHM_OK;
    if (load_acq(&j->cancel) == 1) { /* as core_cancel_due(), but taken with the checkpoint */
        shm_retry_cancelled(c, gr);
        core_park_drop(c, pk);
        return SHM_OK;
    }
    if (op == PK_GOSCHED || op == PK_MCALL) /* runnable without a wait */
        shm_retry_leave_(c, gr);
    if (op == PK_GOSCHED) {
        g->ok = SHM_OK_VALUE;
        shm_gosched(c, gr);
        return SHM_PARKED;
    }
    c->retrying = users ? 0 : gr;
    r = core_park_ops[op].park(c, pk, gr);
    bool done = !users && c->retrying == 0;
    c->retrying = 0;
    if (r != SHM_OK)
        return r;
    if (done)
        shm_retry_settle(c);
    else
        shm_retry_take(c, gr);
    if (!core_preempt_due(s))
        return SHM_OK;
    own_add(&c->m->st.preempted, 1); /* owner only */
    shm_retry_give(c, gr, false);
    shm_gosched(c, gr);
    return SHM_PARKED;
}

/* Step 5. `pk` (owned) came out of `root` (owned). GONE: the goroutine is parked, both are dropped
 * or kept at home. GO_ON: it goes on live; *value or *exc (owned) is for the await. */
static int park(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk, PyObject **value,
                PyObject **exc)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    unsigned op = (unsigned)pk->kind;
    *value = *exc = NULL;
    if (load_rlx(&c->m->locks) > 0) { /* own word */
        PyErr_SetString(PyExc_RuntimeError, "schedule: holding locks");
        *exc = core_take_exc();
        core_park_drop(c, pk);
        return GO_ON;
    }
    if (op >= CORE_PARK_KINDS || (core_park_ops[op].park == NULL && op != PK_GOSCHED)) {
        PyErr_Format(PyExc_RuntimeError, "a park request of kind %u reached the loop", op);
        *exc = core_take_exc();
        return GO_ON;
    }
    bool inhand = s->inhand, retry = g->retries;
    s->inhand = false;
    struct shm_join *j = g->obj ? shm_at(c, g->obj) : NULL;
    if (j != NULL && load_acq(&j->kill)) { /* pairs with shm_join_kill() */
        if (!inhand)
            core_park_drop(c, pk);
        core_killed(s, gr, root, (PyObject *)pk);
        return GONE;
    }
    if (j != NULL && !inhand && (!retry || core_park_ops[op].home) && core_cancel_due(j)) {
        PyErr_SetNone(core_err.Cancelled);
        *exc = core_take_exc();
        core_park_drop(c, pk);
        return GO_ON;
    }
    uint64_t epoch = shm_wait_next(g);
    int how = core_store(s, gr, root, pk);
    if (how < 0) {
        *exc = core_take_exc();
        if (inhand) { /* it is done, and nobody asked for this yield: then without */
            Py_CLEAR(*exc);
            if ((*value = resume_value(s, g, op)) == NULL)
                *exc = core_take_exc();
        } else {
            core_park_drop(c, pk);
        }
        return GO_ON;
    }
    own_add(&c->m->st.parks, 1); /* owner only */
    if (shm_tracing(c))
        core_trace_stack(c, how == CORE_AT_HOME ? s->curhome->root : root, pk);
    int r = SHM_PARKED;
    s->curg = 0;
    struct core_home *home = s->curhome;
    if (retry && how == CORE_LIGHT) {
        r = park_retry(s, gr, pk, j);
    } else if (inhand || op == PK_GOSCHED) {
        if (inhand && g->value.tag == SHM_VAL_HEAP)
            shm_publish(c, g->value.h.off); /* no more this M's own: g goes to anybody */
        if (inhand)
            own_add(&c->m->st.preempted, 1); /* owner only */
        else
            g->ok = SHM_OK_VALUE; /* its last wait may have ended by a cancel */
        shm_gosched(c, gr);
    } else {
        r = core_park_ops[op].park(c, pk, gr);
    }
    if (r == SHM_PARKED) {
        /* From here g is another's, and j perhaps no join object any more. A cancel that came
         * between the look above and the arming saw a goroutine that was not waiting (tag: cancel,
         * in shm/join.c), so look again: the claim by epoch is ours only if it still waits. */
        s->curhome = NULL;
        if (j != NULL)
            shm_join_marks(c, j, gr, epoch);
        if (how == CORE_LIGHT)
            core_warm_put(s, gr, root, pk);
        return GONE;
    }
    s->curg = gr;
    s->curhome = home;
    if (retry && how == CORE_LIGHT && r == SHM_OK)
        r = shm_retry_view(c, gr);
    else
        core_unstore(s, gr, how);
    if (r < 0 && retry)
        shm_retry_stay(c, gr);
    if (r == SHM_OK) {
        *value = resume_value(s, g, op);
    } else if (r != CORE_EXC) {
        core_shm_error(s->prog, r);
    }
    if (*value == NULL)
        *exc = core_take_exc();
    return GO_ON;
}

/* ---- run ------------------------------------------------------------------------------------- */

/* Raises exc where the chain awaits an object that is no park request. */
static PySendResult throw_foreign(PyObject *root, PyObject *exc, PyObject **out)
{
    *out = PyObject_CallMethod(root, "throw", "O", exc);
    if (*out != NULL)
        return PYGEN_NEXT;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration))
        return PYGEN_ERROR;
    PyObject *stop = core_take_exc();
    *out = Py_NewRef(((PyStopIterationObject *)stop)->value);
    Py_DECREF(stop);
    return PYGEN_RETURN;
}

/* Runs root from `res`/`out` on until it parks or ends. root is owned and consumed. */
int core_drive(struct core_proc *s, shm_gref gr, PyObject *root, PySendResult res, PyObject *out)
{
    for (;;) {
        if (!s->prog->attached)
            core_forked_end();
        if (res == PYGEN_NEXT) {
            PyObject *value, *exc;
            if (Py_TYPE(out) == &CorePark_Type) {
                if (park(s, gr, root, (CorePark *)out, &value, &exc) == GONE)
                    return 0;
            } else {
                value = NULL;
                PyErr_Format(PyExc_RuntimeError,
                             "a goroutine can await goroutines, channels and other awaitables of "
                             "mpgort, not what yields %.200R (of another event loop?)",
                             out);
                exc = core_take_exc();
            }
            PyObject *pk = out;
            if (Py_TYPE(pk) != &CorePark_Type)
                res = throw_foreign(root, exc, &out);
            else if (exc != NULL)
                res = core_chain_throw(root, pk, exc, &out);
            else
                res = core_chain_send(root, pk, value, &out);
            Py_XDECREF(value);
            Py_XDECREF(exc);
            Py_DECREF(pk);
        } else {
            Py_DECREF(root);
            return core_finish(s, gr, res == PYGEN_RETURN ? out : NULL);
        }
    }
}

/* A woken goroutine whose operation may have to wait once more,
 * before anything of it is decoded. */
static bool waits_on(struct core_proc *s, shm_gref gr, struct shm_g *g)
{
    struct shm_ctx *c = s->c;
    struct shm_join *j = g->obj ? shm_at(c, g->obj) : NULL;
    uint64_t epoch = shm_wait_next(g);
    struct core_home *home = s->curhome;
    if (c->moved) /* when it comes up here next, it will seem not to have been away */
        core_warm_stale(s, gr);
    s->curg = 0;
    s->curhome = NULL;
    c->retrying = g->retries ? gr : 0;
    int r = core_park_ops[g->op].again(c, gr);
    c->retrying = 0;
    if (r != SHM_PARKED) {
        s->curg = gr;
        s->curhome = home;
        return false;
    }
    own_add(&c->m->st.parks, 1); /* owner only */
    if (j != NULL)
        shm_join_marks(c, j, gr, epoch); /* as in park() */
    return true;
}

/* It was killed while it was parked, wherever its frames are. */
SHM_COLD static void run_killed(struct core_proc *s, shm_gref gr, struct core_home *h)
{
    PyObject *root = NULL, *park = NULL;
    struct core_warm warm;
    if (h != NULL) {
        root = h->root;
        park = (PyObject *)h->park;
        h->root = NULL;
        h->park = NULL;
    } else if (core_warm_take(s, gr, &warm)) {
        root = warm.root;
        park = (PyObject *)warm.park;
        Py_XDECREF(warm.ctx);
    }
    core_killed(s, gr, root, park);
}

/* A heavy goroutine that comes up here, root and park owned. True: another M has asked for one, or
 * this one is to leave, and it was encoded whole and is anybody's. */
static bool offload(struct core_proc *s, shm_gref gr, PyObject *root, PyObject *park)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    if (!s->retiring && !(load_rlx(&c->m->attn) & SHM_ATTN_OFFLOAD)) /* a hint */
        return false;
    and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_OFFLOAD);
    if (core_cont_encode(s, root, park, SIZE_MAX) != ENC_OK ||
        core_cont_store(s, c, g, &s->enc, s->ctx, 0, true) != 0) {
        PyErr_Clear();
        return false;
    }
    g->home_m1 = 0;
    g->home_why = SHM_HOME_NONE;
    core_home_drop(s, s->curhome);
    s->curhome = NULL;
    s->curg = 0;
    own_add(&c->m->st.offloads, 1); /* owner only */
    shm_gosched(c, gr);
    core_chain_drop(root);
    Py_DECREF(park);
    return true;
}

/* Step 2 and 3 for a goroutine whose status is running and which this M holds. */
int core_run_g(struct core_proc *s, shm_gref gr)
{
    struct shm_g *g = core_g(s, gr);
    struct shm_ctx *c = s->c;
    PyObject *root, *park = NULL;
    struct core_warm warm;
    struct core_home *h = g->home_m1 == c->m1 ? core_home_get(s, gr) : NULL;
    s->curg = gr;
    s->curhome = h;
    core_cont_let(s); /* of one below, whose call waits (block.c) */
    if (core_context_base(s) < 0)
        PyErr_Clear();
    if (g->obj != 0 && load_seq(&((struct shm_join *)shm_at(c, g->obj))->kill)) { /* tag: kill */
        run_killed(s, gr, h);
        return 0;
    }
    if (g->op < CORE_PARK_KINDS && core_park_ops[g->op].again != NULL && waits_on(s, gr, g))
        return 0;
    unsigned op = g->op;
    bool retry = g->retries;
    if (h != NULL && h->root != NULL) {
        if (retry)
            shm_retry_stay(c, gr);
        core_home_note_free(s, g);
        root = h->root;
        park = (PyObject *)h->park;
        h->root = NULL;
        h->park = NULL;
        if (core_context_switch(s, h->ctx ? h->ctx : s->base_ctx) < 0)
            PyErr_Clear();
        if (h->why == SHM_HOME_HEAVY && offload(s, gr, root, park))
            return 0;
    } else if (core_warm_take(s, gr, &warm)) {
        root = warm.root;
        park = (PyObject *)warm.park;
        if (warm.ctx != NULL && core_context_switch(s, warm.ctx) < 0)
            PyErr_Clear();
        Py_XDECREF(warm.ctx);
        if (retry)
            shm_retry_take(c, gr);
        core_cont_take(s, g);
    } else if (g->cont_off == 0) {
        PyErr_Format(core_err.BadContinuation, "goroutine %llu has no continuation here",
                     (unsigned long long)g->goid);
        return core_finish(s, gr, NULL);
    } else {
        const uint8_t *p;
        size_t chain;
        struct core_words W;
        if (!(g->flags & SHM_GF_STARTED))
            return core_begin(s, gr);
        if (retry)
            shm_retry_take(c, gr);
        root = core_cont_open(s, g, &p, &chain, &W) == 0 ? core_chain_decode(p, chain, &W, &park)
                                                         : NULL;
        core_words_close(&W);
        core_cont_take(s, g);
        if (root == NULL)
            return core_finish(s, gr, NULL);
        Py_INCREF(park);
    }
    int seen = retry && h == NULL ? shm_retry_view(c, gr) : SHM_OK;
    PyObject *value = seen == SHM_OK ? resume_value(s, g, op) : NULL, *out;
    PySendResult res;
    if (seen != SHM_OK)
        core_shm_error(s->prog, seen);
    if (value != NULL) {
        res = core_chain_send(root, park, value, &out);
        Py_DECREF(value);
    } else {
        PyObject *exc = core_take_exc();
        res = core_chain_throw(root, park, exc, &out);
        Py_DECREF(exc);
    }
    Py_DECREF(park);
    return core_drive(s, gr, root, res, out);
}
