/* thread.c — what ties a goroutine to one process: lock_os_thread, to_thread.
 *
 * LOCKED. Go wires the goroutine to its thread; here the thread is the M's. Between lock and unlock
 * (they count) the goroutine is at home (SHM_HOME_LOCKED): its frames are not encoded. What else
 * lives in a thread (its directory, locale, credentials) is the goroutine's alone meanwhile: when
 * it parks, its M gives the P away and runs only what is at home there, until it is unlocked. With
 * procs=0 there is no other M, and on M0 with workers nobody else runs: there the lock only keeps
 * it home. A goroutine that ends locked takes the thread with it, as Go's: nobody knows what it has
 * done to it. So the M retires when the last goroutine at home there has gone, and the keeper
 * starts another.
 *
 * to_thread(fn): a thread of this process runs it and the goroutine waits here, at home: arguments
 * and result are the very objects, nothing crosses. The thread uses the process's AUX slot, under
 * the GIL. It claims the wait by its epoch like any waker, so one that was cancelled meanwhile is
 * left alone. While a thread works the program is not dead (shm_checkdead() knows the wait
 * reason). */
#include "proc.h"

/* ---- lock_os_thread -------------------------------------------------------------------------- */

static PyObject *mod_lock_os_thread(PyObject *mod, PyObject *_)
{
    if (core_current("lock_os_thread()") == NULL)
        return NULL;
    struct core_proc *s = core_proc_cur;
    if (core_retried(s)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "lock_os_thread(): a goroutine with retries is to outlive its process: "
                        "spawn it without");
        return NULL;
    }
    if (s->curhome == NULL && (s->curhome = core_home_make(s, s->curg)) == NULL)
        return NULL;
    if (s->curhome->locks == UINT32_MAX) {
        PyErr_SetString(PyExc_RuntimeError, "LockOSThread nesting overflow");
        return NULL;
    }
    if (s->curhome->locks++ == 0) {
        s->locked++;
        if (s->curhome->why != SHM_HOME_MAIN)
            s->curhome->why = SHM_HOME_LOCKED;
    }
    Py_RETURN_NONE;
}

/* The goroutine is at home no more for its lock's sake; the next park tries to encode it. */
static void unlocked(struct core_proc *s, struct core_home *h)
{
    h->locks = 0;
    h->skip = h->backoff = 0;
    if (h->why == SHM_HOME_LOCKED)
        h->why = SHM_HOME_PINNED;
    if (--s->locked == 0 && !s->retiring)
        s->c->homely = false;
}

static PyObject *mod_unlock_os_thread(PyObject *mod, PyObject *_)
{
    if (core_current("unlock_os_thread()") == NULL)
        return NULL;
    struct core_home *h = core_proc_cur->curhome;
    if (h != NULL && h->locks > 0 && --h->locks == 0)
        unlocked(core_proc_cur, h);
    Py_RETURN_NONE;
}

/* The running goroutine, which has the home h, has ended. */
void core_thread_end(struct core_proc *s, struct core_home *h)
{
    if (h->locks == 0)
        return;
    unlocked(s, h);
    if (!s->prog->is_m0)
        s->retiring = s->c->homely = true;
}

/* Before the M looks for work. True: it has retired, and leaves its loop. */
bool core_thread_rest(struct core_proc *s)
{
    if (s->prog->is_m0 || (s->locked == 0 && !s->retiring))
        return false;
    s->c->homely = true;
    shm_handoffp(s->c);
    return s->retiring && s->nhomes == 0;
}

/* ---- to_thread ------------------------------------------------------------------------------- */

/* What the thread calls when fn has ended: done(value, exc). */
typedef struct {
    PyObject_HEAD CoreProg *prog;
    shm_gref g;
    uint64_t epoch;
} Done;

static void done_dealloc(Done *d)
{
    Py_DECREF(d->prog);
    PyObject_Free(d);
}

static PyObject *done_call(Done *d, PyObject *args, PyObject *kw)
{
    PyObject *value, *exc;
    struct core_proc *s = d->prog->proc;
    if (!PyArg_ParseTuple(args, "OO:done", &value, &exc))
        return NULL;
    struct core_home *h = d->prog->attached && s != NULL ? core_home_get(s, d->g) : NULL;
    struct shm_ctx *c = h != NULL ? core_ctx(d->prog) : NULL;
    if (c == NULL) { /* the goroutine was cancelled and is gone, or the program is */
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    store_rlx(&c->m->inflight[SHM_IF_READY], d->g); /* INV nothing-in-hand */
    if (!shm_wait_claim(c, d->g, d->epoch)) {
        store_rlx(&c->m->inflight[SHM_IF_READY], 0);
        Py_RETURN_NONE;
    }
    h->value = Py_NewRef(exc == Py_None ? value : exc); /* the resume is kept out by the GIL */
    shm_g(c, d->g)->ok = exc == Py_None ? 1 : 0;
    shm_ready(c, d->g, true);
    Py_RETURN_NONE;
}

static PyTypeObject Done_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort._core.Done",
    .tp_basicsize = sizeof(Done),
    .tp_dealloc = (destructor)done_dealloc,
    .tp_call = (ternaryfunc)done_call,
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
};

static int thread_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    struct core_proc *s = core_proc_cur;
    struct shm_g *g = shm_g(c, gr);
    Done *d = PyObject_New(Done, &Done_Type);
    if (d == NULL)
        return CORE_EXC;
    uint64_t epoch = shm_wait_next(g);
    *d = (Done){.ob_base = d->ob_base, .prog = s->prog, .g = gr, .epoch = epoch};
    Py_INCREF(s->prog);
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_VALUE;
    g->waitkind = 0;
    g->waitobj = 0;
    shm_park_commit(c, gr, SHM_WR_THREAD, epoch);
    /* After the arming: fn may have ended before this returns.
     * At home the goroutine, and pk, stay. */
    PyObject *r = PyObject_CallFunctionObjArgs(pk->a, d, NULL);
    Py_DECREF(d);
    if (r != NULL) {
        Py_DECREF(r);
        return SHM_PARKED;
    }
    /* No thread can be had: an error of the await, unless a cancel was first. */
    if (shm_wait_claim(c, gr, epoch) && shm_casgstatus(c, gr, Gwaiting, Grunnable) &&
        shm_execute(c, gr, true))
        return CORE_EXC;
    PyErr_Clear();
    return SHM_PARKED;
}

static PyObject *thread_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    struct core_home *h = prog->proc->curhome;
    PyObject *v = h != NULL ? h->value : NULL;
    if (v == NULL) {
        PyErr_SetString(PyExc_SystemError, "to_thread: a goroutine went on without its result");
        return NULL;
    }
    h->value = NULL;
    if (g->ok == SHM_OK_VALUE)
        return v;
    core_raise(v);
    return NULL;
}

static PyObject *mod_thread_wait(PyObject *mod, PyObject *start)
{
    return core_park_for(PK_THREAD, start);
}

static PyMethodDef functions[] = {
    {"lock_os_thread", mod_lock_os_thread, METH_NOARGS,
     "lock_os_thread()\n--\n\nKeeps the calling goroutine on this process, and other goroutines "
     "off it, until as many\nunlock_os_thread(). One that ends locked takes the process with it: "
     "another is started.\nSource: Go LockOSThread."},
    {"unlock_os_thread", mod_unlock_os_thread, METH_NOARGS,
     "unlock_os_thread()\n--\n\nUndoes one lock_os_thread(); without one it does nothing. Source: "
     "Go UnlockOSThread."},
    {"thread_wait", mod_thread_wait, METH_O, NULL},
    {NULL},
};

int core_thread_init(PyObject *mod)
{
    if (PyType_Ready(&Done_Type) < 0)
        return -1;
    core_park_ops[PK_THREAD] =
        (struct core_park_op){.park = thread_park, .resume = thread_resume, .home = true};
    core_park_names[PK_THREAD] = "to_thread()";
    return PyModule_AddFunctions(mod, functions);
}
