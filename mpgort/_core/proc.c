/* proc.c — THEN HERE. The M's loop, under the names of Go's proc.go: schedule, execute, park, finish.
 *
 * It owns what this process knows of running goroutines: which one's Python runs now (`curg`), which
 * ones are live here between two turns (`homes`), which context is entered. Where a goroutine stands
 * and who may touch it is the segment's business (shm/sched.c, THE essay); this file moves it between
 * bytes and Python.
 *
 * ONE TURN of a goroutine
 *   1 schedule   shm_findrunnable() with the GIL; if there is nothing, again without it, asleep.
 *   2 execute    runnable -> running by CAS (INV status-truth); a home goroutine is taken from
 *                `homes`, a light one from `warm` or decoded, and its block kept; a new one's call
 *                is made.
 *   3 resume     g->op says what it was parked in: that operation's resume() makes the value of the
 *                await from g->ok and g->value, or the exception that the await raises.
 *   4 run        PyIter_Send (core_chain_send) until it yields a park request, returns or raises.
 *   5 park       the request comes out here, on the scheduler's stack: this is mcall. Its await
 *                chain is encoded and stored (or it stays at home), then the operation's park() does
 *                the rest in one transaction: try again, link, running -> waiting, arm.
 *                SHM_OK: done after all, go on live with 4. SHM_PARKED: the goroutine may already run
 *                elsewhere; only the local copy is put aside (INV touch-nothing).
 *   6 finish     the value or exception goes to the join object, or is a panic; running -> dead.
 *
 * PREEMPTION happens where Python can be left: at an await. An operation that succeeds at once while a
 * preemption is due puts its result into g and yields all the same (core_try_done): the loop queues
 * the goroutine at the global tail and step 3 finds the result where a waker would have put it.
 *
 * THE WAIT HOLDS ITS OBJECT. A parked goroutine may be the only one to know its channel (`await
 * chan().recv()`): the request's handle dies with the local copy, so a park on a counted object takes
 * a reference for g->waitobj and the resume gives it back.
 *
 * WITH RETRIES (shm/retry.c) step 2 keeps what it reads as the checkpoint, and step 3 works on a copy; step
 * 4 yields at every await, and step 5 carries the operation out in one transaction with the next
 * checkpoint: park_retry().
 *
 * A goroutine that must stay here is kept by cont.c; when SHM_ATTN_OFFLOAD asks for one, or this M is to
 * leave, a heavy one that comes up is encoded whole and given to the global queue. */
#include "proc.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

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
        core_enc_undo(c, e);
        r = -1;
    } else if ((r = shm_gnew(c, &gr)) < 0) {
        core_enc_undo(c, e);
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
        r = core_cont_store(s, c, g, e, current_context(), 0);
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

/* ---- the end of a goroutine ------------------------------------------------------------------ */

/* The first goroutine that panics names itself in the header; M0 raises it. */
static void panic(struct core_proc *s, struct shm_g *g, PyObject *exc)
{
    struct shm_hdr *hdr = s->c->hdr;
    struct shm_val v;
    uint32_t none = 0;
    own_add(&s->c->m->st.panics, 1); /* owner only */
    if (core_exc_store(s->prog, exc, &v) < 0) {
        PyErr_Clear();
        v.tag = SHM_VAL_NONE;
    }
    /* Claims panic_val; pairs with the same CAS here and in reap.c. */
    if (!cas_acqrel(&hdr->panic, &none, s->c->m1 << 8 | 1)) {
        shm_val_drop(s->c, &v);
        return;
    }
    hdr->panic_goid = g->goid;
    hdr->panic_how = SHM_J_ERROR;
    if (v.tag == SHM_VAL_HEAP)
        shm_publish(s->c, v.h.off);
    hdr->panic_val = v;
    store_rel(&hdr->panic, 2); /* publishes panic_val; pairs with load_acq in core_failure() */
    struct shm_m *m0 = &s->c->mtab[hdr->m0_slot];
    or_seq(&m0->attn, SHM_ATTN_PANIC); /* seen by M0 before it sleeps: tag idle-dance (idle.c) */
    shm_notewakeup(&m0->note);
}

/* The G that runs has ended with value, or with the exception that is set (value NULL).
 * -1: the exception ends the loop itself (Ctrl-C with procs=0). */
static int finish(struct core_proc *s, shm_gref gr, PyObject *value)
{
    struct shm_g *g = core_g(s, gr);
    PyObject *exc = NULL;
    int fatal = 0;
    core_cont_let(s); /* before anybody can know of the end */
    if (value == NULL) {
        PyObject *type, *tb;
        PyErr_Fetch(&type, &exc, &tb);
        PyErr_NormalizeException(&type, &exc, &tb);
        if (tb != NULL)
            PyException_SetTraceback(exc, tb);
        Py_XDECREF(tb);
        Py_XDECREF(type);
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
               s->prog->is_m0) {
        /* procs=0: Ctrl-C struck while this goroutine ran; it is the caller's, not a panic. */
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        fatal = -1;
    }
    if (exc != NULL && !fatal && g->flags & SHM_GF_GO)
        panic(s, g, exc);
    if (g->obj != 0) {
        struct shm_val val = {.tag = SHM_VAL_NONE};
        unsigned state = SHM_J_VALUE;
        if (exc == NULL && value != NULL && core_val_encode(s->prog, value, &val) < 0) {
            PyObject *type, *tb;
            PyErr_Fetch(&type, &exc, &tb);
            PyErr_NormalizeException(&type, &exc, &tb);
            Py_XDECREF(type);
            Py_XDECREF(tb);
        }
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
    Py_XDECREF(exc);
    if (s->curhome != NULL) {
        core_thread_end(s, s->curhome);
        core_home_drop(s, s->curhome);
        s->curhome = NULL;
    }
    s->curg = 0;
    shm_goexit0(s->c, gr);
    return fatal;
}

/* A goroutine that was killed ends: none of its frames runs again. root, pk: owned, NULL if it was not
 * live here. */
static void killed(struct core_proc *s, shm_gref gr, PyObject *root, PyObject *pk)
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

/* ---- park ------------------------------------------------------------------------------------ */

/* The wait's hold on its object ends. */
void core_wait_end(struct shm_ctx *c, struct shm_g *g)
{
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT) { /* cancelled, timed out: no resume() has done it */
        shm_select_done(c, core_gref(c, g), &tag);
    } else if (g->waitkind != 0 && g->waitkind < SHM_WAIT_SELECT) {
        shm_off o = g->waitobj;
        g->waitkind = 0;
        g->waitobj = 0;
        shm_obj_unref(c, o);
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

/* Takes a cancel that is due. Seq_cst: tag cancel. */
static bool cancel_due(struct shm_join *j)
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
static int park_retry(struct core_proc *s, shm_gref gr, CorePark *pk, struct shm_join *j)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    unsigned op = (unsigned)pk->kind;
    bool users = op == PK_GOPARK || op == PK_MCALL; /* what runs there has awaits of nobody */
    int r = SHM_OK;
    if (load_acq(&j->cancel) == 1) { /* as cancel_due(), but taken with the checkpoint */
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

/* Step 5. `pk` (owned) came out of `root` (owned). GONE: the goroutine is parked, both are dropped or
 * kept at home. GO_ON: it goes on live; *value or *exc (owned) is for the await. */
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
        killed(s, gr, root, (PyObject *)pk);
        return GONE;
    }
    if (j != NULL && !inhand && (!retry || core_park_ops[op].home) && cancel_due(j)) {
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
         * in goroutine.c), so look again: the claim by epoch is ours only if it still waits. */
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
static int drive(struct core_proc *s, shm_gref gr, PyObject *root, PySendResult res, PyObject *out)
{
    for (;;) {
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
            return finish(s, gr, res == PYGEN_RETURN ? out : NULL);
        }
    }
}

/* Enters the goroutine's own context, if its continuation has one; *chain: how many bytes of it are
 * the await chain or call. */
static int open_cont(struct core_proc *s, const struct shm_g *g, const uint8_t **p, size_t *chain,
                     struct core_words *W)
{
    size_t ctx;
    uint32_t n;
    const struct shm_retry *y = shm_retry_of(s->c, g);
    shm_off off = y ? y->cont_off : g->cont_off;
    const uint64_t *h = shm_bytes_handles(s->c, off, &n);
    *p = shm_at(s->c, off);
    if (core_words_open(W, h, n) < 0)
        return -1;
    if (!core_cont_split(g, *p, y ? y->cont_len : g->cont_len, chain, &ctx)) {
        PyErr_SetString(core_err.BadContinuation, "the lengths in a continuation do not fit");
        return -1;
    }
    return ctx == 0 ? 0 : core_context_enter(s, *p + *chain, ctx, W);
}

/* A goroutine's first turn. GONE: it waits at its group's limit, or was cancelled or stopped before it
 * began and has ended (*r is finish()'s). */
static int admit(struct core_proc *s, shm_gref gr, int *r)
{
    struct shm_ctx *c = s->c;
    struct shm_g *g = core_g(s, gr);
    struct shm_join *j = g->obj ? shm_at(c, g->obj) : NULL;
    *r = 0;
    if (j == NULL && g->ok != SHM_OK_CANCELLED)
        return GO_ON;
    if (j == NULL) { /* an after_func that was stopped */
        shm_gcont_drop(c, g);
        *r = finish(s, gr, Py_NewRef(Py_None));
        return GONE;
    }
    bool cancelled = g->ok == SHM_OK_CANCELLED || cancel_due(j); /* while it was queued */
    uint64_t epoch = shm_wait_next(g);
    core_wait_end(c, g);
    if (!cancelled) {
        if (shm_group_admit(c, g->obj, gr) == SHM_OK)
            return GO_ON;
        s->curg = 0; /* as in park(): g is another's, and a cancel may have come in between */
        shm_join_marks(c, j, gr, epoch);
        return GONE;
    }
    shm_gcont_drop(c, g);
    PyErr_SetNone(core_err.Cancelled);
    *r = finish(s, gr, NULL);
    return GONE;
}

/* Step 2 for a goroutine that has not started: makes its call. */
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
        return finish(s, gr, NULL);
    }
    if (open_cont(s, g, &p, &chain, &W) == 0)
        call = core_value_decode(p, chain, &W);
    core_words_close(&W);
    shm_gcont_drop(s->c, g);
    g->flags = (uint8_t)((g->flags | SHM_GF_STARTED) & ~SHM_GF_CONTEXT);
    if (call == NULL)
        return finish(s, gr, NULL);
    if (!PyTuple_CheckExact(call) || PyTuple_GET_SIZE(call) < 2 ||
        !PyTuple_Check(PyTuple_GET_ITEM(call, 1)))
        PyErr_SetString(core_err.BadContinuation, "the call of a new goroutine is damaged");
    else
        v = PyObject_Call(PyTuple_GET_ITEM(call, 0), PyTuple_GET_ITEM(call, 1),
                          PyTuple_GET_SIZE(call) > 2 ? PyTuple_GET_ITEM(call, 2) : NULL);
    Py_DECREF(call);
    if (v == NULL)
        return finish(s, gr, NULL);
    if (!PyCoro_CheckExact(v)) {
        if (Py_TYPE(v)->tp_as_async == NULL || Py_TYPE(v)->tp_as_async->am_await == NULL)
            return finish(s, gr, v);
        /* A bound method of a handle (go(ch.send, v)), or another awaitable: a coroutine awaits it. */
        PyObject *coro = PyObject_CallOneArg(core_err.await_it, v);
        Py_DECREF(v);
        if (coro == NULL)
            return finish(s, gr, NULL);
        v = coro;
    }
    PyObject *out;
    PySendResult res = PyIter_Send(v, Py_None, &out);
    return drive(s, gr, v, res, out);
}

/* A woken goroutine whose operation may have to wait once more, before anything of it is decoded. */
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
        root = h != NULL ? h->root : NULL;
        park = h != NULL ? (PyObject *)h->park : NULL;
        if (h != NULL) {
            h->root = NULL;
            h->park = NULL;
        } else if (core_warm_take(s, gr, &warm)) {
            root = warm.root;
            park = (PyObject *)warm.park;
            Py_XDECREF(warm.ctx);
        }
        killed(s, gr, root, park);
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
        if (h->why == SHM_HOME_HEAVY &&
            (s->retiring || load_rlx(&c->m->attn) & SHM_ATTN_OFFLOAD)) { /* a hint */
            and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_OFFLOAD);
            core_enc_reset(&s->enc);
            s->enc.budget = SIZE_MAX;
            if (core_chain_encode(root, park, &s->enc) == ENC_OK &&
                core_cont_store(s, c, g, &s->enc, s->ctx, 0) == 0) {
                g->home_m1 = 0;
                g->home_why = SHM_HOME_NONE;
                core_home_drop(s, h);
                s->curhome = NULL;
                s->curg = 0;
                own_add(&c->m->st.offloads, 1); /* owner only */
                shm_gosched(c, gr);
                core_chain_drop(root);
                Py_DECREF(park);
                return 0;
            }
            PyErr_Clear();
        }
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
        return finish(s, gr, NULL);
    } else {
        const uint8_t *p;
        size_t chain;
        int r;
        if (!(g->flags & SHM_GF_STARTED) && admit(s, gr, &r) == GONE)
            return r;
        if (retry)
            shm_retry_take(c, gr);
        if (!(g->flags & SHM_GF_STARTED))
            return start(s, gr);
        struct core_words W;
        root = open_cont(s, g, &p, &chain, &W) == 0 ? core_chain_decode(p, chain, &W, &park) : NULL;
        core_words_close(&W);
        core_cont_take(s, g);
        if (root == NULL)
            return finish(s, gr, NULL);
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
    return drive(s, gr, root, res, out);
}

/* ---- schedule -------------------------------------------------------------------------------- */

/* Ctrl-C (or another Python signal handler's exception) on M0: raised in main where it is parked. */
static int interrupt_main(struct core_proc *s)
{
    PyObject *exc = core_take_exc();
    struct shm_g *g = s->main_g ? core_g(s, s->main_g) : NULL;
    if (g == NULL || s->main_goexit ||
        (g->home_m1 == s->c->m1 && core_home_get(s, s->main_g) == NULL))
        return core_raise(exc);
    Py_XSETREF(s->interrupt, exc);
    uint64_t w = load_acq(&g->wait); /* pairs with shm_wait_arm; our own */
    if (shm_wait_abort(s->c, s->main_g, SHM_W_EPOCH(w), SHM_OK_CANCELLED))
        shm_ready(s->c, s->main_g, true);
    return 0;
}

int core_tick(CoreProg *prog)
{
    uint64_t now = shm_now_ns();
    if (now - prog->ticked_ns < CORE_TICK_NS)
        return 0;
    prog->ticked_ns = now;
    if (prog->tick == Py_None)
        return 0;
    PyObject *tick = Py_NewRef(prog->tick), *r = PyObject_CallNoArgs(tick);
    Py_DECREF(tick);
    Py_XDECREF(r);
    return r == NULL ? -1 : 0;
}

/* Looks up from the queue: shutdown, signals, a panic. 1: the loop ends; CORE_RETIRE; -1: exception. */
static int attend(struct core_proc *s)
{
    struct shm_ctx *c = s->c;
    if (load_acq(&c->hdr->shutdown)) /* pairs with store_rel in shutdown */
        return 1;
    uint32_t attn = load_acq(&c->m->attn); /* pairs with or_seq of who asks */
    if (attn & SHM_ATTN_DUMP) {
        core_dump_asked(s);
        and_seq(&c->m->attn,
                ~(uint32_t)SHM_ATTN_DUMP); /* after the notes: pairs with ask_homes() */
    }
    if (!s->prog->is_m0) {
        if (!(attn & SHM_ATTN_RECYCLE))
            return 0;
        and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_RECYCLE);
        if (!s->retiring)
            add_acqrel(&c->hdr->recycled, 1); /* read by anybody: about now */
        s->retiring = true;
        return CORE_RETIRE;
    }
    if (attn & SHM_ATTN_PANIC) {
        and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_PANIC);
        PyObject *e = core_failure(s->prog);
        if (e != NULL || PyErr_Occurred())
            return core_raise(e);
    }
    if (PyErr_CheckSignals() < 0)
        return interrupt_main(s);
    return core_tick(s->prog);
}

/* 0: *g is for execute(). 1: shutdown. CORE_LATE: past the deadline. CORE_RETIRE. -1: exception. */
int core_schedule(struct core_proc *s, shm_gref *g, bool *inherit)
{
    struct shm_ctx *c = s->c;
    if (s->exec_next != 0) {
        *g = s->exec_next;
        *inherit = s->exec_inherit;
        s->exec_next = 0;
        return 0;
    }
    for (;;) {
        int r;
        /* A main that always finds work at once looks up too. Signed: now_ns is the coarse clock. */
        if (s->prog->is_m0 && (int64_t)(c->now_ns - s->prog->ticked_ns) >= CORE_TICK_NS &&
            (r = attend(s)) != 0)
            return r;
        r = shm_findrunnable(c, false, g, inherit);
        if (r == SHM_EAGAIN && shm_linger(c)) /* cheaper than letting go of the GIL */
            r = shm_findrunnable(c, false, g, inherit);
        if (r == SHM_OK)
            return 0;
        if (r == SHM_EAGAIN) {
            if (core_context_base(s) < 0)
                PyErr_Clear();
            /* Always: who falls asleep here may sleep for ever, with what others wait to see gone. */
            core_warm_rest(s);
            core_handle_rest(s);
            Py_BEGIN_ALLOW_THREADS
                r = shm_findrunnable(c, true, g, inherit);
            Py_END_ALLOW_THREADS
            if (r == SHM_OK)
                return 0;
        }
        if (r == SHM_EDEADLOCK)
            return core_raise(core_deadlock(s));
        if (r == SHM_ERETIRE) {
            if (s->nhomes == 0) {
                s->retiring = true;
                return CORE_RETIRE;
            }
            store_seq(&c->hdr->retiring, 0); /* another may: pairs with shm_m_retire() */
            continue;
        }
        if (r == SHM_EDEAD)
            return 1;
        if (r != SHM_EINTR && r != SHM_EAGAIN)
            return core_shm_error(s->prog, r);
        if ((r = attend(s)) != 0)
            return r;
        if (s->deadline_ns != UINT64_MAX && shm_now_ns() >= s->deadline_ns)
            return CORE_LATE;
    }
}

/* A worker over max_tasks or max_rss, or asked to (SHM_ATTN_RECYCLE), retires: it takes no more and goes
 * when nothing is at home. */
#define RSS_NS 100000000
static void look_limits(struct core_proc *s)
{
    const CoreProg *prog = s->prog;
    if (prog->is_m0 || s->retiring)
        return;
    if (prog->max_tasks && load_rlx(&s->c->m->st.finished) - s->finished0 >= prog->max_tasks)
        s->retiring = true; /* own word */
    if (prog->max_rss && s->c->now_ns - s->rss_ns > RSS_NS) {
        unsigned long long pages = 0;
        FILE *f = fopen("/proc/self/statm", "r");
        s->rss_ns = s->c->now_ns;
        if (f == NULL)
            return;
        if (fscanf(f, "%*u %llu", &pages) == 1 &&
            pages * (unsigned long long)sysconf(_SC_PAGESIZE) > prog->max_rss)
            s->retiring = true;
        fclose(f);
    }
}

static int loop(struct core_proc *s)
{
    while (!s->main_done) {
        shm_gref g;
        bool inherit;
        look_limits(s);
        if (core_thread_rest(s))
            return 0;
        int r = core_schedule(s, &g, &inherit);
        if (r == CORE_RETIRE)
            continue;
        if (r != 0)
            return r;
        if (shm_execute(s->c, g, inherit) && core_run_g(s, g) < 0)
            return -1;
    }
    return 0;
}

static int loop_begin(struct core_proc *s)
{
    if (core_proc_cur != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "mpgort.run() cannot be called from a goroutine");
        return -1;
    }
    if ((s->base_ctx = PyContext_New()) == NULL)
        return -1;
    s->main_done = s->main_goexit = false;
    s->finished0 = load_rlx(&s->c->m->st.finished); /* the slot may have had another M */
    s->prog->loop_thread = PyThread_get_thread_ident();
    core_proc_cur = s;
    core_prog_cur = s->prog;
    core_codes_changed();
    return 0;
}

static void loop_end(struct core_proc *s)
{
    PyObject *type, *value, *tb;
    PyErr_Fetch(&type, &value, &tb);
    core_cont_let(s);
    if (core_context_switch(s, NULL) < 0)
        PyErr_Clear();
    core_proc_cur = NULL;
    core_prog_cur = NULL;
    core_codes_changed();
    s->prog->loop_thread = 0;
    s->curg = 0;
    PyErr_Restore(type, value, tb);
}

int core_m_loop(CoreProg *prog)
{
    struct core_proc *s = core_proc_get(prog);
    if (s == NULL || loop_begin(s) < 0)
        return -1;
    int r = core_context_switch(s, s->base_ctx) < 0 ? -1 : loop(s);
    loop_end(s);
    return r < 0 ? -1 : 0;
}

/* main is a goroutine like another, but for where it lives: its call is not encoded. It is created,
 * claimed and run before the loop's first look at a queue, so that arguments stay the caller's own. */
PyObject *core_main_loop(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs)
{
    struct core_proc *s = core_proc_get(prog);
    if (s == NULL || loop_begin(s) < 0)
        return NULL;
    struct shm_ctx *c = s->c;
    shm_gref gr;
    int r = shm_gnew(c, &gr);
    PyObject *ctx = NULL;
    if (r < 0) {
        core_shm_error(prog, r);
        goto end;
    }
    struct shm_g *g = core_g(s, gr);
    g->flags = SHM_GF_MAIN | SHM_GF_STARTED;
    g->home_m1 = (uint16_t)c->m1;
    g->home_why = SHM_HOME_MAIN;
    s->main_g = gr;
    if ((s->curhome = core_home_make(s, gr)) == NULL || (ctx = PyContext_CopyCurrent()) == NULL ||
        core_context_switch(s, ctx) < 0)
        goto end;
    Py_XSETREF(s->curhome->ctx, Py_NewRef(ctx));
    shm_newproc(c, gr);
    bool inherit;
    if ((r = core_schedule(s, &gr, &inherit)) != 0 || !shm_execute(c, gr, inherit)) {
        if (r == 0)
            PyErr_SetString(PyExc_SystemError, "main's goroutine is not runnable");
        goto end;
    }
    s->curg = gr;
    PyObject *v = PyObject_Call(fn, args, kwargs), *out;
    if (v != NULL && Py_TYPE(v)->tp_as_async != NULL && Py_TYPE(v)->tp_as_async->am_await != NULL) {
        if (!PyCoro_CheckExact(v)) {
            PyObject *coro = PyObject_CallOneArg(core_err.await_it, v);
            Py_DECREF(v);
            v = coro;
        }
        if (v != NULL) {
            PySendResult res = PyIter_Send(v, Py_None, &out);
            r = drive(s, gr, v, res, out);
        } else {
            r = finish(s, gr, NULL);
        }
    } else {
        r = finish(s, gr, v);
    }
    if (r == 0)
        r = loop(s);
    if (r == 1 && !PyErr_Occurred())
        PyErr_SetString(PyExc_RuntimeError, "the runtime was shut down while main ran");
end:
    Py_XDECREF(ctx);
    loop_end(s);
    if (!s->main_done)
        return NULL;
    PyObject *result = s->main_value;
    s->main_value = NULL;
    if (result == NULL) {
        PyErr_Clear();
        core_raise(s->main_exc);
        s->main_exc = NULL;
    }
    return result;
}
