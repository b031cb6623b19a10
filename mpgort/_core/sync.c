/* sync.c — the faces of sync: WaitGroup, Once, Semaphore, and what they share with the locks
 * (mutex.c, sync.h). AtomicInt is in atomicint.c.
 *
 * What they are stands in shm/sema.c; this file says how they are typed and which exception an
 * outcome is. All are handles of one counted object (handle.c). What waits is an awaitable, a park
 * request of a family:
 *
 *   sema       RWMutex, WaitGroup, Once, Semaphore: u[0] how, u[1] how much; a waiter has what it
 *              wanted when it wakes
 *   exit       the end of an `async with`: never waits
 *
 * CANCEL. A waiter that leaves may have stood in the way of others: its `again` settles. */
#include "sync.h"

static PyObject *SyncError, *OwnerDied;
static PyObject *hook_once, *hook_go; /* of mpgort.sync: what runs a user's function */

uint64_t core_sync_goid(CoreProg *prog)
{
    shm_gref g = core_curg(prog);
    return g ? core_g(prog->proc, g)->goid : 0;
}

PyObject *core_sync_error(const char *text)
{
    PyErr_SetString(SyncError, text);
    return NULL;
}

PyObject *core_sync_owner_died(void)
{
    PyErr_SetString(OwnerDied, "sync: the goroutine that held the lock died with its worker; "
                               "recover() frees it");
    return NULL;
}

PyObject *core_sync_outcome(CoreHandle *h, int r, const char *misuse)
{
    if (r == SHM_OK)
        Py_RETURN_NONE;
    if (r == SHM_EAGAIN)
        return core_sync_error(misuse);
    if (r == SHM_EOWNER)
        return core_sync_owner_died();
    core_shm_error(h->prog, r);
    return NULL;
}

PyObject *core_sync_tried(CoreHandle *h, int r)
{
    if (r == SHM_OK || r == SHM_EAGAIN)
        return PyBool_FromLong(r == SHM_OK);
    return core_sync_outcome(h, r, "");
}

/* ---- parks ----------------------------------------------------------------------------------- */

PyObject *core_sync_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_OWNER)
        return core_sync_owner_died();
    Py_RETURN_NONE;
}

void core_sync_done(struct shm_g *g, int r, uint64_t note)
{
    g->waitkind = 0;
    g->waitobj = note;
    g->ok = r == SHM_OK ? SHM_OK_VALUE : SHM_OK_OWNER;
    g->value.tag = SHM_VAL_NONE;
}

PyObject *core_sync_request(int op, PyObject *h, uint64_t how, uint64_t want)
{
    CorePark *pk = (CorePark *)core_park_for(op, h);
    if (pk != NULL) {
        pk->u[0] = how;
        pk->u[1] = want;
    }
    return (PyObject *)pk;
}

bool core_sync_unparked(struct shm_ctx *c, CoreHandle *h, int *r)
{
    if (*r == SHM_PARKED)
        return false;
    shm_obj_unref(c, h->off); /* the wait's */
    return *r == SHM_OK || *r == SHM_EOWNER;
}

static uint64_t note_of(struct shm_ctx *c, CorePark *pk, const struct shm_g *g)
{
    return pk->kind == PK_ONCE && shm_once_mine(c, ((CoreHandle *)pk->a)->off, g->goid);
}

static int sema_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(h->prog);
    if (s == NULL)
        return -1;
    if (core_retried(s))
        return 0;
    struct shm_g *g = core_g(s, s->curg);
    int r = shm_sema_try(s->c, h->off, (int)pk->u[0], pk->u[1], g->goid);
    if (r == SHM_EAGAIN)
        return 0;
    core_sync_done(g, r, note_of(s->c, pk, g));
    return core_try_done(s, pk, result);
}

static int sema_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref_hand(c, h->off);
    int r = shm_sema_park(c, h->off, (int)pk->u[0], pk->u[1], gr);
    if (!core_sync_unparked(c, h, &r))
        return r;
    core_sync_done(shm_g(c, gr), r, note_of(c, pk, shm_g(c, gr)));
    return SHM_OK;
}

static int sema_again(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    if (g->ok == SHM_OK_CANCELLED && g->waitkind == SHM_OBJ_SEMA)
        shm_sema_left(c, g->waitobj);
    return SHM_OK;
}

/* True: the awaiter is to run the function. A waiter wakes when somebody else has. */
static PyObject *once_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_OWNER)
        return core_sync_owner_died();
    return PyBool_FromLong(g->waitkind == 0 && g->waitobj != 0);
}

/* `async with` is left: what its end gives back. */
static const char *give_back(CoreHandle *h, struct shm_ctx *c, uint64_t goid, int *r)
{
    switch (h->kind) {
    case HANDLE_MUTEX:
        *r = shm_mutex_unlock(c, h->off);
        return "sync: unlock of unlocked mutex";
    case HANDLE_READER:
        *r = shm_rwmutex_unlock(c, h->off, SHM_SY_READ, goid);
        return "sync: RUnlock of unlocked RWMutex";
    case HANDLE_WRITER:
        *r = shm_rwmutex_unlock(c, h->off, SHM_SY_WRITE, goid);
        return "sync: Unlock of unlocked RWMutex";
    default:
        *r = shm_semaphore_release(c, h->off, 1);
        return "semaphore: released more than held";
    }
}

/* `async with` does not leave with what it entered with: a Cond's wait inside could not get the
 * mutex back, since a holder had died. Whose it is now is none of its business. */
static bool not_mine(CoreHandle *h, uint64_t goid)
{
    uint64_t w = load_acq(&sync_sema(h)->word); /* if it is mine, nobody but me changes that */
    return (h->kind == HANDLE_MUTEX || h->kind == HANDLE_WRITER) &&
           (w & ~SHM_SY_SLOW) != (goid << 8 | SHM_SY_LOCKED);
}

/* SHM_OK: as resume() finds it. Else CORE_EXC. */
static int leave(struct shm_ctx *c, CorePark *pk, struct shm_g *g)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    const char *misuse = "sync: unlock of unlocked mutex";
    bool raises = pk->u[0];
    int r = SHM_EAGAIN;
    if (!not_mine(h, g->goid))
        misuse = give_back(h, c, g->goid, &r);
    else if (raises)
        r = SHM_OK;
    if (r != SHM_OK) {
        core_sync_outcome(h, r, misuse);
        return CORE_EXC;
    }
    core_sync_done(g, SHM_OK, 0);
    return SHM_OK;
}

static int exit_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(h->prog);
    if (s == NULL)
        return -1;
    if (core_retried(s))
        return 0;
    if (leave(s->c, pk, core_g(s, s->curg)) != SHM_OK)
        return -1;
    return core_try_done(s, pk, result);
}

/* Of a goroutine with retries: it never waits. */
static int exit_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    return leave(c, pk, shm_g(c, gr));
}

/* ---- methods --------------------------------------------------------------------------------- */

PyObject *core_sync_exit(PyObject *h, PyObject *const *args, Py_ssize_t n)
{
    return core_sync_request(PK_EXIT, h, n > 0 && args[0] != Py_None, 0);
}

PyObject *core_sync_unlock(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    int r;
    if (c == NULL)
        return NULL;
    const char *misuse = give_back(h, c, core_sync_goid(h->prog), &r);
    return core_sync_outcome(h, r, misuse);
}

PyObject *core_sync_recover(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? PyBool_FromLong(shm_sema_recover(c, h->off)) : NULL;
}

static PyObject *wg_change(CoreHandle *h, int64_t n)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? core_sync_outcome(h, shm_waitgroup_add(c, h->off, n),
                                 "sync: negative WaitGroup counter")
             : NULL;
}

static PyObject *wg_add(CoreHandle *h, PyObject *arg)
{
    int64_t n;
    return core_int64(arg, "WaitGroup.add", &n) ? wg_change(h, n) : NULL;
}
static PyObject *wg_done(CoreHandle *h, PyObject *_)
{
    return wg_change(h, -1);
}
SYNC_AWAIT(wg_wait, PK_SEMA, SHM_SY_WRITE, 0)

/* For plain threads and functions. */
static PyObject *wg_block(CoreHandle *h, PyObject *_)
{
    PyObject *pk = core_sync_request(PK_SEMA, (PyObject *)h, SHM_SY_WRITE, 0);
    PyObject *v = pk != NULL ? core_block(h->prog, (CorePark *)pk, -1) : NULL;
    Py_XDECREF(pk);
    return v;
}

static PyObject *wg_go(CoreHandle *h, PyObject *args, PyObject *kw)
{
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n == 0 || !PyCallable_Check(PyTuple_GET_ITEM(args, 0))) {
        PyErr_SetString(PyExc_TypeError, "WaitGroup.go: a function is needed, and its arguments");
        return NULL;
    }
    PyObject *rest = PyTuple_GetSlice(args, 1, n), *res = NULL;
    PyObject *call =
        rest ? PyTuple_Pack(4, (PyObject *)h, PyTuple_GET_ITEM(args, 0), rest, kw ? kw : Py_None)
             : NULL;
    Py_XDECREF(rest);
    if (call != NULL && (res = wg_change(h, 1)) != NULL &&
        core_newproc(h->prog, hook_go, call, NULL, 0, SHM_GF_GO | core_inherited(h->prog)) < 0) {
        PyObject *exc = core_take_exc();
        Py_SETREF(res, wg_change(h, -1));
        Py_CLEAR(res);
        core_raise(exc);
    }
    Py_XDECREF(call);
    return res;
}

SYNC_AWAIT(once_enter, PK_ONCE, SHM_SY_WRITE, 0)
SYNC_CALL(once_leave, (shm_once_done(c, h->off), Py_NewRef(Py_None)))
static PyObject *once_do(PyObject *h, PyObject *fn)
{
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "Once.do: a function is needed, not %.100R", fn);
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(hook_once, h, fn, NULL);
}

/* n of acquire and release: 1 to the semaphore's size. False: exception. */
static bool weight(CoreHandle *h, PyObject *args, PyObject *kw, const char *format, int64_t *n)
{
    static char *names[] = {"n", NULL};
    PyObject *o = NULL;
    *n = 1;
    if (core_ctx(h->prog) == NULL || !PyArg_ParseTupleAndKeywords(args, kw, format, names, &o) ||
        (o != NULL && !core_int64(o, format + 3, n)))
        return false;
    if (*n < 0) {
        PyErr_Format(PyExc_ValueError, "%s: %lld: a number of tokens is not negative", format + 3,
                     (long long)*n);
        return false;
    }
    return true;
}

static PyObject *sem_acquire(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|O:acquire", &n))
        return NULL;
    if ((uint64_t)n > sync_sema(h)->n) {
        PyErr_Format(PyExc_ValueError, "acquire: %lld tokens of a semaphore that has %llu in all",
                     (long long)n, (unsigned long long)sync_sema(h)->n);
        return NULL;
    }
    return core_sync_request(PK_SEMA, (PyObject *)h, SHM_SY_WRITE, (uint64_t)n);
}
SYNC_AWAIT(sem_enter, PK_SEMA, SHM_SY_WRITE, 1)
static PyObject *sem_try_acquire(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|O:try_acquire", &n))
        return NULL;
    return core_sync_tried(h,
                           shm_sema_try(core_ctx(h->prog), h->off, SHM_SY_WRITE, (uint64_t)n, 0));
}
static PyObject *sem_release(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|O:release", &n))
        return NULL;
    return core_sync_outcome(h, shm_semaphore_release(core_ctx(h->prog), h->off, (uint64_t)n),
                             "semaphore: released more than held");
}

/* ---- making and showing them ----------------------------------------------------------------- */

PyObject *core_sync_in(CoreProg *prog, uint8_t kind, uint32_t what, uint64_t n, shm_off mutex)
{
    struct shm_ctx *c = core_ctx(prog);
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_sema_new(c, what, n, mutex, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, kind, off);
}

PyObject *core_sync_make(const char *who, uint8_t kind, uint32_t what, uint64_t n,
                         CoreHandle *mutex)
{
    CoreProg *prog = core_current(who);
    if (prog == NULL)
        return NULL;
    if (mutex != NULL && mutex->prog != prog) {
        PyErr_Format(PyExc_RuntimeError, "%s: its lock is of another runtime", who);
        return NULL;
    }
    return core_sync_in(prog, kind, what, n, mutex ? mutex->off : 0);
}

PyObject *core_sync_plain(const char *who, PyObject *args, PyObject *kw, uint8_t kind,
                          uint32_t what)
{
    if (PyTuple_GET_SIZE(args) > 0 || (kw != NULL && PyDict_GET_SIZE(kw) > 0))
        return PyErr_Format(PyExc_TypeError, "%s takes no arguments", who);
    return core_sync_make(who, kind, what, 0, NULL);
}

static PyObject *waitgroup_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    return core_sync_plain("WaitGroup()", args, kw, HANDLE_WAITGROUP, SHM_SY_WAITGROUP);
}
static PyObject *once_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    return core_sync_plain("Once()", args, kw, HANDLE_ONCE, SHM_SY_ONCE);
}

static PyObject *semaphore_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"n", NULL};
    PyObject *o;
    int64_t n;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O:Semaphore", names, &o) ||
        !core_int64(o, "Semaphore", &n))
        return NULL;
    if (n < 0) {
        PyErr_Format(PyExc_ValueError, "Semaphore: %lld: a number of tokens is not negative",
                     (long long)n);
        return NULL;
    }
    return core_sync_make("Semaphore()", HANDLE_SEMAPHORE, SHM_SY_SEMAPHORE, (uint64_t)n, NULL);
}

PyObject *core_sync_repr(CoreHandle *h)
{
    const char *name = Py_TYPE(h)->tp_name;
    if (!h->prog->attached)
        return PyUnicode_FromFormat("<%s of an ended runtime>", name);
    const struct shm_sema *sy = sync_sema(h);
    unsigned long long word = load_acq(&sy->word), n = sy->n; /* a glance, as len() of a channel */
    switch (sy->what) {
    case SHM_SY_WAITGROUP:
        return PyUnicode_FromFormat("<%s counter=%lld>", name, (long long)word);
    case SHM_SY_SEMAPHORE:
        return PyUnicode_FromFormat("<%s %llu of %llu free>", name, word, n);
    case SHM_SY_COND:
        return PyUnicode_FromFormat("<%s %#llx>", name, (unsigned long long)h->off);
    case SHM_SY_ONCE:
        return PyUnicode_FromFormat("<%s%s>", name,
                                    sy->state & SHM_SY_DONE      ? " done"
                                    : sy->state & SHM_SY_RUNNING ? " running"
                                                                 : "");
    }
    if (sy->state & SHM_SY_DEAD)
        return PyUnicode_FromFormat("<%s whose holder died>", name);
    if (word & SHM_SY_LOCKED)
        return PyUnicode_FromFormat("<%s locked by goroutine %llu>", name, word >> 8);
    return n ? PyUnicode_FromFormat("<%s with %llu readers>", name, n)
             : PyUnicode_FromFormat("<%s unlocked>", name);
}

/* ---- types ----------------------------------------------------------------------------------- */

static PyMethodDef waitgroup_methods[] = {
    M("add", wg_add, METH_O,
      "add($self, n, /)\n--\n\nAdds n, which may be negative; at 0 all who wait go on.\n\nRaises "
      "SyncError \"sync: negative WaitGroup counter\" (nothing has changed then)."),
    M("done", wg_done, METH_NOARGS, "done()\n--\n\nadd(-1)."),
    M("wait", wg_wait, METH_NOARGS, "wait()\n--\n\nAwaitable: until the counter is 0."),
    M("_block", wg_block, METH_NOARGS, "_block()\n--\n\nwait() of who does not await."),
    M("go", wg_go, METH_VARARGS | METH_KEYWORDS,
      "go($self, fn, /, *args, **kwargs)\n--\n\nadd(1), then a goroutine that runs fn(*args, "
      "**kwargs) and ends with done(). Source: Go 1.25 WaitGroup.Go."),
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef once_methods[] = {
    M("do", once_do, METH_O,
      "do($self, fn, /)\n--\n\nAwaitable: the first call runs fn(), async or plain; all others "
      "wait until that has ended.\n\nAn exception counts as done, and is the first caller's. fn "
      "that calls do() of the same Once\nwaits for itself. Source: Go Once.Do."),
    M("_enter", once_enter, METH_NOARGS, NULL),
    M("_leave", once_leave, METH_NOARGS, NULL),
    RECOVER,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef semaphore_methods[] = {
    M("acquire", sem_acquire, METH_VARARGS | METH_KEYWORDS,
      "acquire(n=1)\n--\n\nAwaitable: takes n tokens when they are free; first come, first "
      "served.\n\nRaises ValueError if there are not so many in all. Source: x/sync semaphore."),
    M("try_acquire", sem_try_acquire, METH_VARARGS | METH_KEYWORDS,
      "try_acquire(n=1)\n--\n\nTakes n tokens if they are free and nobody waits."),
    M("release", sem_release, METH_VARARGS | METH_KEYWORDS,
      "release(n=1)\n--\n\nGives n tokens back. Raises SyncError \"semaphore: released more than "
      "held\"."),
    AENTER(sem_enter),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyTypeObject types[] = {
    SYNC_TYPE("WaitGroup",
              "WaitGroup()\n--\n\nWaits for a number of goroutines to end. Source: Go "
              "sync.WaitGroup.",
              waitgroup_methods, NULL),
    SYNC_TYPE("Once", "Once()\n--\n\nRuns something once. Source: Go sync.Once.", once_methods,
              NULL),
    SYNC_TYPE("Semaphore",
              "Semaphore(n)\n--\n\nn tokens, taken some at a time: `async with s`, or acquire and "
              "release.\n\nSource: golang.org/x/sync/semaphore.",
              semaphore_methods, NULL),
};
static const struct sync_made made[] = {
    {HANDLE_WAITGROUP, waitgroup_new},
    {HANDLE_ONCE, once_new},
    {HANDLE_SEMAPHORE, semaphore_new},
};

int core_sync_types(PyObject *mod, PyTypeObject *types, const struct sync_made *made, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (made[i].new != NULL) {
            types[i].tp_flags &= ~(unsigned long)Py_TPFLAGS_DISALLOW_INSTANTIATION;
            types[i].tp_new = made[i].new;
        }
        if (PyModule_AddType(mod, &types[i]) < 0 || core_handle_kind(&types[i], made[i].kind) < 0)
            return -1;
    }
    return 0;
}

static PyObject *mod_sync_hooks(PyObject *mod, PyObject *args)
{
    PyObject *once, *go;
    if (!PyArg_ParseTuple(args, "OO:_sync_hooks", &once, &go))
        return NULL;
    Py_XSETREF(hook_once, Py_NewRef(once));
    Py_XSETREF(hook_go, Py_NewRef(go));
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"_sync_hooks", mod_sync_hooks, METH_VARARGS, NULL},
    {NULL},
};

int core_sync_init(PyObject *mod)
{
    PyObject *errors = PyImport_ImportModule("mpgort._errors");
    if (errors == NULL || (SyncError = PyObject_GetAttrString(errors, "SyncError")) == NULL ||
        (OwnerDied = PyObject_GetAttrString(errors, "OwnerDied")) == NULL)
        return -1;
    Py_DECREF(errors);
    const struct core_park_op sema = {
        .park = sema_park, .resume = core_sync_resume, .again = sema_again};
    core_park_ops[PK_EXIT] = (struct core_park_op){.park = exit_park, .resume = core_sync_resume};
    core_park_ops[PK_SEMA] = core_park_ops[PK_ONCE] = sema;
    core_park_ops[PK_ONCE].resume = once_resume;
    core_park_tries[PK_EXIT] = exit_try;
    core_park_tries[PK_SEMA] = core_park_tries[PK_ONCE] = sema_try;
    core_park_names[PK_SEMA] = "lock(), wait() or acquire()";
    return core_sync_types(mod, types, made, sizeof types / sizeof *types) < 0
               ? -1
               : PyModule_AddFunctions(mod, functions);
}
