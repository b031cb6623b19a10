/* block.c — plain functions and threads that wait: ch.get, ch.put, h.result.
 *
 * Their C stack cannot move, so what parks is a G that stands for the thread (SHM_GF_OUTSIDE): the
 * running goroutine's own, or a fresh one for a thread that is no M. Its waker sets the status and
 * wakes the futex that the status word is. A worker hands its P over first, so that what it waits
 * for can run.
 *
 * NESTED. What only this M can run may be what it waits for: with procs=0 that is everything, on a
 * worker the Gs that are at home there, heavy or pinned. So the loop is entered again below the
 * waiting call, on a worker for those alone: it ends when the waiting G is ready. One stack, so the
 * calls return in the reverse order of their waits: a G that is readied while another one's nested
 * loop lies on top of it is parked again with its result in it (`ready`) until that one has
 * returned. If that one can only go on after it, this is a deadlock and reported as one. On a
 * worker that takes a coroutine that is at home and makes a call that blocks its M, instead of
 * awaiting; rejected, for its sake, to let all others at home wait for the function on the stack.
 *
 * KILLED while it waits, it is told so by an exception, as long as others live here: its M's end
 * would be theirs, and one of them may well be who has killed it. Each call that would wait raises
 * it again, and the keeper ends the M if it goes on (shm_kill_told).
 *
 * Meanwhile the G is at home here (home_m1): if this M dies, its reaper ends it. */
#include "proc.h"
#include <math.h>

#define BLOCK_SLICE_NS 100000000LL /* a blocked thread looks at signals and at the program's end */

int64_t core_timeout_ns(PyObject *o)
{
    if (o == NULL || o == Py_None)
        return -1;
    double t = PyFloat_AsDouble(o);
    if (t == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "a timeout must be a number of seconds, not %.200s",
                         Py_TYPE(o)->tp_name);
        return -2;
    }
    if (isnan(t)) {
        PyErr_SetString(PyExc_ValueError, "a timeout must be a number of seconds, not nan");
        return -2;
    }
    if (t <= 0)
        return 0;
    return t > 9e9 ? -1 : (int64_t)(t * 1e9);
}

/* The waiting G gr was claimed by shm_wait_abort(): running again, here. */
static void break_wait(struct shm_ctx *c, shm_gref gr)
{
    bool back = shm_casgstatus(c, gr, Gwaiting, Grunnable) && shm_gclaim_runnable(c, gr);
    (void)back;
    store_rlx(&c->m->inflight[SHM_IF_READY], 0); /* own word: no longer in hand */
}

/* A G that is ready, but not on top of the stack: waits once more, for its turn. */
static void repark(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    uint64_t epoch = shm_wait_next(g);
    shm_park_commit(c, gr, g->reason, epoch);
}

static bool unpark(struct shm_ctx *c, shm_gref gr)
{
    uint64_t epoch = SHM_W_EPOCH(load_acq(&shm_g(c, gr)->wait)); /* of repark() */
    return shm_wait_claim(c, gr, epoch) && shm_casgstatus(c, gr, Gwaiting, Grunnable) &&
           shm_execute(c, gr, true);
}

/* What ended the wait of n, whose turn it is now, or not yet. That it waits for its turn is no wait
 * of its own: a cancel that ended that is for the next one. */
static void came(struct shm_ctx *c, struct core_nest *n)
{
    struct shm_g *g = shm_g(c, n->g);
    if (!n->ready)
        n->ok = g->ok;
    else if (g->ok == SHM_OK_CANCELLED)
        store_seq(&((struct shm_join *)shm_at(c, g->obj))->cancel, 1); /* tag: cancel */
    g->ok = n->ok;
}

/* The nearest deadline of those that wait on this stack. */
static uint64_t nearest(const struct core_nest *n)
{
    uint64_t ns = UINT64_MAX;
    for (; n != NULL; n = n->outer)
        ns = n->deadline_ns < ns ? n->deadline_ns : ns;
    return ns;
}

/* Ends the waits whose time is up; true: that of the topmost, too. Who is not on top of the stack
 * waits once more, for its turn, and that is no wait that ends by itself. */
static bool end_late(struct core_proc *s)
{
    struct shm_ctx *c = s->c;
    uint64_t now = shm_now_ns();
    bool top = false;
    for (struct core_nest *n = s->nest; n != NULL; n = n->outer) {
        if (n->deadline_ns > now)
            continue;
        struct shm_g *g = shm_g(c, n->g);
        n->deadline_ns = UINT64_MAX; /* also if its waker was first: it comes up next */
        if (!shm_wait_abort(c, n->g, SHM_W_EPOCH(load_acq(&g->wait)), SHM_OK_TIMEOUT)) /* own */
            continue;
        break_wait(c, n->g);
        if (n == s->nest) {
            top = true;
            continue;
        }
        came(c, n);
        n->ready = n->late = true;
        g->home_why = SHM_HOME_LOCKED;
        repark(c, n->g);
    }
    s->deadline_ns = nearest(s->nest);
    return top;
}

/* Nobody else could run what this goroutine may wait for. */
static int block_nested(struct core_proc *s, shm_gref gr, int64_t timeout_ns)
{
    struct shm_ctx *c = s->c;
    struct core_home *home = s->curhome;
    PyObject *ctx = Py_XNewRef(s->ctx);
    struct core_nest here = {.g = gr, .deadline_ns = UINT64_MAX, .outer = s->nest};
    bool worker = !s->prog->is_m0, homely = c->homely;
    int r = 0;
    if (timeout_ns >= 0)
        here.deadline_ns = shm_now_ns() + (uint64_t)timeout_ns;
    s->nest = &here;
    s->deadline_ns = nearest(&here);
    s->curg = 0;
    s->curhome = NULL;
    for (;;) {
        shm_gref g;
        bool inherit;
        if (here.ready && unpark(c, gr)) {
            r = here.late ? CORE_LATE : 0;
            break;
        }
        c->homely |= worker; /* also if one that ran was unlocked from its thread */
        if ((r = core_schedule(s, &g, &inherit)) != 0 || !shm_execute(s->c, g, inherit)) {
            if (r == 0 || r == CORE_RETIRE) /* when the function on the stack has returned */
                continue;
            if (r == CORE_LATE && !end_late(s))
                continue;
            if (r == 1)
                PyErr_SetString(worker ? core_err.Killed : PyExc_RuntimeError,
                                "the runtime was shut down");
            break;
        }
        if (g == gr) {
            came(c, &here);
            r = here.late ? CORE_LATE : 0;
            break;
        }
        struct core_nest *below = here.outer;
        while (below != NULL && below->g != g)
            below = below->outer;
        if (below != NULL) {
            came(c, below);
            below->ready = true;
            below->deadline_ns = UINT64_MAX;
            repark(c, g);
            continue;
        }
        if ((r = core_run_g(s, g)) < 0)
            break;
    }
    if (r == 1 || r < 0) { /* the program ends under it: no longer a waiter */
        if (shm_wait_abort(c, gr, SHM_W_EPOCH(load_acq(&shm_g(c, gr)->wait)),
                           SHM_OK_TIMEOUT)) /* own wait */
            break_wait(c, gr);
        else
            shm_execute(c, gr, true);
    }
    s->nest = here.outer;
    s->curg = gr;
    s->curhome = home;
    s->deadline_ns = nearest(here.outer);
    c->homely = homely || s->retiring;
    if (core_context_switch(s, ctx) < 0)
        PyErr_Clear();
    Py_XDECREF(ctx);
    return r == 0 ? 0 : r == CORE_LATE ? 1 : -1;
}

/* As an M that runs dry: what comes within the time that a wake would cost comes without one. */
static void linger(const struct shm_ctx *c, struct shm_g *g, uint64_t st)
{
    if (c->hdr->ncpu < 2)
        return;
    uint64_t end = shm_now_ns() + c->hdr->spin_ns;
    do
        for (int i = 0; i < 64; i++) {
            if (load_acq(&g->status) != st) /* pairs with the CAS of shm_ready */
                return;
            cpu_relax();
        }
    while (shm_now_ns() < end);
}

/* Whether the wait is to end without what it waits for: a signal's exception, a panic, the end of
 * the program, a report, a deadlock. -1: exception. */
static int look_up(CoreProg *prog, struct shm_ctx *c)
{
    if (PyErr_CheckSignals() < 0)
        return -1;
    if (prog->is_m0) {
        PyObject *failure = core_failure(prog);
        if (failure != NULL || PyErr_Occurred())
            return core_raise(failure);
    }
    if (load_acq(&c->hdr->shutdown)) { /* pairs with store_rel in shutdown */
        PyErr_SetString(core_err.Killed, "the runtime was shut down");
        return -1;
    }
    if (prog->is_m0 && core_tick(prog) < 0)
        return -1;
    if (core_proc_cur != NULL && core_proc_cur->prog == prog && prog->is_m0 &&
        load_acq(&c->m->attn) & SHM_ATTN_CHECKDEAD && /* pairs with the last idle M */
        shm_checkdead(c))
        return core_raise(core_deadlock(core_proc_cur));
    return 0;
}

/* Sleeps until the OUTSIDE goroutine gr is readied, and claims it. 0; 1 timed out; -1 exception. */
static int block_futex(CoreProg *prog, shm_gref gr, int64_t timeout_ns)
{
    struct shm_ctx *c = core_ctx(prog);
    struct shm_g *g = shm_g(c, gr);
    uint64_t end = timeout_ns < 0 ? UINT64_MAX : shm_now_ns() + (uint64_t)timeout_ns;
    for (;;) {
        uint64_t st = load_acq(&g->status); /* pairs with the CAS of shm_ready */
        if (shm_gclaim_runnable(c, gr))
            return 0;
        uint64_t now = shm_now_ns();
        int64_t slice = BLOCK_SLICE_NS;
        if (end != UINT64_MAX && now + (uint64_t)slice > end)
            slice = end > now ? (int64_t)(end - now) : 0;
        /* The futex is the status word's low half: status and owner change in it, never the
         * generation, so a wake-up cannot be missed between the load and the wait. */
        if (slice > 0) {
            Py_BEGIN_ALLOW_THREADS
                linger(c, g, st);
                shm_futex_wait((_Atomic uint32_t *)&g->status, (uint32_t)st, slice);
            Py_END_ALLOW_THREADS
        }
        if (shm_gclaim_runnable(c, gr))
            return 0;
        bool late = end != UINT64_MAX && shm_now_ns() >= end;
        if (look_up(prog, c) == 0 && !late) /* also when late: many short waits are one long one */
            continue;
        if (!shm_wait_abort(c, gr, SHM_W_EPOCH(load_acq(&g->wait)),
                            SHM_OK_TIMEOUT)) { /* own wait */
            PyErr_Clear();                     /* the waker was first: what it brought is taken */
            continue;
        }
        break_wait(c, gr);
        return PyErr_Occurred() ? -1 : 1;
    }
}

/* The running gr is killed, and is to know it. */
SHM_COLD static void tell_killed(struct core_proc *s, shm_gref gr)
{
    if (!s->prog->is_m0) /* that is nobody's to end */
        shm_kill_told(s->c, gr);
    PyErr_SetString(core_err.Killed, "the goroutine was killed");
}

PyObject *core_block(CoreProg *prog, CorePark *pk, int64_t timeout_ns)
{
    struct shm_ctx *c = core_ctx(prog);
    struct core_proc *s =
        core_proc_cur != NULL && core_proc_cur->prog == prog ? core_proc_cur : NULL;
    pk->state = 2; /* nobody is to await it */
    if (c == NULL)
        return NULL;
    if (s != NULL)
        core_cont_let(s); /* it may wait long */
    shm_gref gr = s ? s->curg : 0;
    bool own = gr != 0, nested = own && (load_rlx(&c->hdr->nprocs) == 0 || /* from start to end */
                                         (!prog->is_m0 && s->nhomes > (s->curhome != NULL)));
    struct shm_join *j = own && shm_g(c, gr)->obj ? shm_at(c, shm_g(c, gr)->obj) : NULL;
    int r = 0;
    if (s != NULL && gr == 0)
        PyErr_SetString(PyExc_RuntimeError, "blocking call on the scheduler's stack (m->g0)");
    else if (s != NULL && load_rlx(&c->m->locks) > 0) /* own word */
        PyErr_SetString(PyExc_RuntimeError, "schedule: holding locks");
    else if (s != NULL && s->storing) /* __getstate__ of a local, in the midst of a park */
        PyErr_SetString(PyExc_RuntimeError, "blocking call while a goroutine's frame is stored");
    else if (nested && !prog->is_m0 && j != NULL && load_seq(&j->kill)) /* tag: kill */
        tell_killed(s, gr);
    else if (timeout_ns == 0 && look_up(prog, c) == 0)
        PyErr_SetNone(PyExc_TimeoutError);
    else if (timeout_ns == 0)
        ; /* as it said */
    else if (!own && (r = shm_gnew(c, &gr)) < 0)
        core_shm_error(prog, r);
    if (PyErr_Occurred()) {
        core_park_drop(c, pk);
        return NULL;
    }
    if (!own) {
        bool ok =
            shm_casgstatus(c, gr, Gidle, Grunnable) && shm_casgstatus(c, gr, Grunnable, Grunning);
        (void)ok;
        shm_g(c, gr)->parent = (uint32_t)PyThread_get_thread_native_id(); /* for dumps */
    }
    struct shm_g *g = shm_g(c, gr);
    uint16_t home_m1 = g->home_m1;
    uint8_t home_why = g->home_why, flags = g->flags, op = g->op;
    uint8_t waitkind = g->waitkind; /* a resume() decodes, and what it unpickles waits here */
    shm_off waitobj = g->waitobj;
    if (own)
        g->waitkind = 0;
    g->op = (uint8_t)pk->kind;
    g->home_m1 = (uint16_t)c->m1; /* it ends with this M */
    if (nested) {
        g->home_why = home_why ? home_why : SHM_HOME_LOCKED;
    } else {
        g->flags |= SHM_GF_OUTSIDE;
        if (own)
            s->curg = 0;
    }
    if (timeout_ns >= 0) /* it goes on by itself: no deadlock, for as long as it waits */
        g->home_why = SHM_HOME_TIMED;
    if (own && !prog->is_m0)
        shm_handoffp(c);
    uint64_t epoch = shm_wait_next(g);
    r = core_park_ops[pk->kind].park(c, pk, gr);
    if (j != NULL && r == SHM_PARKED)
        shm_join_marks(c, j, gr, epoch); /* as in park() of proc.c */
    int w = 0;
    bool idle = own && !nested && !prog->is_m0 && r == SHM_PARKED;
    if (idle) /* for shm_checkdead(); no waker looks here, idle_m does not name this M */
        store_seq(&c->m->spinning, SHM_M_IDLE);
    if (r == SHM_PARKED)
        w = nested ? block_nested(s, gr, timeout_ns) : block_futex(prog, gr, timeout_ns);
    if (idle) {
        add_seq(&c->hdr->idle_seq,
                1); /* before anything else, as who leaves idle: shm_checkdead() */
        store_seq(&c->m->spinning, SHM_M_BUSY);
    }
    PyObject *v = NULL;
    if (j != NULL && load_seq(&j->kill)) { /* tag: kill; also if it has what it waited for */
        w = -1;
        tell_killed(s, gr);
    } else if (r == SHM_PARKED && w == 0 && g->ok == SHM_OK_CANCELLED) {
        w = -1;
        PyErr_SetNone(core_err.Cancelled);
    } else if ((r == SHM_PARKED && w == 0) || r == SHM_OK)
        v = core_park_ops[pk->kind].resume(prog, c, g);
    else if (w == 1)
        PyErr_SetNone(PyExc_TimeoutError);
    else if (r < 0 && r != CORE_EXC)
        core_shm_error(prog, r);
    core_wait_end(c, g);
    if (v == NULL && w != 0) {
        shm_val_drop(c, &g->value);
        g->value.tag = SHM_VAL_NONE;
    }
    if (own) /* before home_m1: where it is run again from is what it was */
        shm_retry_stay(c, gr);
    if (own && waitkind) {
        g->waitobj = waitobj;
        store_rel((_Atomic uint8_t *)&g->waitkind, waitkind); /* after waitobj, for a reaper */
    }
    g->flags = flags;
    g->op = op;
    g->home_m1 = home_m1;
    g->home_why = home_why;
    if (own) {
        s->curg = gr;
        store_rlx(&c->m->curg, gr); /* own word, read by dumps */
    } else {
        bool ok = shm_casgstatus(c, gr, Grunning, Gdead);
        (void)ok;
        shm_gfree(c, gr);
    }
    return v;
}
