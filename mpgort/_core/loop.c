/* loop.c — the M's loop: schedule, what it looks up for, when it leaves;
 * and main, which begins in it.
 *
 * A worker's loop ends with the program, or when it retires: over its limits, or asked to, it takes
 * no more and goes when nothing is at home there. M0's ends with main. M0 looks up as well: at
 * signals, at a panic, and about every 100 ms at the keeper (CoreProg.tick). */
#include "proc.h"
#include <stdio.h>
#include <unistd.h>

/* ---- schedule -------------------------------------------------------------------------------- */

/* Ctrl-C (or another Python signal handler's exception) on M0:
 * raised in main where it is parked. */
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

/* Looks up from the queue: shutdown, signals, a panic. 1: the loop ends; CORE_RETIRE;
 * -1: exception. */
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
        /* A main that always finds work at once looks up too. Signed:
         * now_ns is the coarse clock. */
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
            /* Always: who falls asleep here may sleep for ever,
             * with what others wait to see gone. */
            core_warm_rest(s);
            core_handle_rest(s);
            c->until_ns = s->deadline_ns != UINT64_MAX ? s->deadline_ns : 0;
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

/* A worker over max_tasks or max_rss, or asked to (SHM_ATTN_RECYCLE), retires: it takes no more and
 * goes when nothing is at home. */
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

static void flush(const char *name)
{
    PyObject *f = PySys_GetObject(name), *r = f ? PyObject_CallMethod(f, "flush", NULL) : NULL;
    Py_XDECREF(r);
    PyErr_Clear();
}

/* In a child that the goroutine has forked, and that has come back to the loop, where it is no M:
 * by its end, an await, or an exception. */
void core_forked_end(void)
{
    int status = 1;
    PyObject *exc = PyErr_Occurred() ? core_take_exc() : NULL;
    if (exc != NULL && PyErr_GivenExceptionMatches(exc, PyExc_SystemExit)) {
        PyObject *code = PyObject_GetAttrString(exc, "code");
        status = code == Py_None                      ? 0
                 : code != NULL && PyLong_Check(code) ? (int)PyLong_AsLong(code)
                                                      : 1;
    } else {
        if (exc != NULL)
            core_raise(Py_NewRef(exc));
        if (exc != NULL)
            PyErr_Print();
        PySys_WriteStderr(
            "mpgort: this process was forked in a goroutine, and there is nothing for "
            "it to go back to:\nend it with os._exit()\n");
    }
    flush("stdout");
    flush("stderr");
    _exit(status);
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
 * claimed and run before the loop's first look at a queue, so that arguments stay the caller's
 * own. */
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
            r = core_drive(s, gr, v, res, out);
        } else {
            r = core_finish(s, gr, NULL);
        }
    } else {
        r = core_finish(s, gr, v);
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
