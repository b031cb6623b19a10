/* sync.c — the faces of sync: Mutex, RWMutex, WaitGroup, Once, Cond, Semaphore, AtomicInt.
 *
 * What they are stands in shm/sema.c and shm/mutex.c; this file says how they are typed and which
 * exception an outcome is. All are handles of one counted object (handle.c). What waits is an
 * awaitable, a park request of one of three families:
 *
 *   lock       a mutex: try is one CAS; a waiter that was woken competes by `again`
 *   sema       RWMutex, WaitGroup, Once, Semaphore: u[0] how, u[1] how much; a waiter has what it
 *              wanted when it wakes
 *   cond       waits on the Cond, then, by `again`, on its mutex
 *
 * CANCEL. A waiter that leaves may have stood in the way of others: its `again` settles. One that waits
 * on a Cond has to have the mutex before it raises (as asyncio's Condition): whoever awaits wait()
 * holds the lock before and after, however it ends.
 *
 * RWMutex.reader() and .writer() are further handles on the same object, of types of their own: `async
 * with` keeps them on the goroutine's stack, and they move with it. */
#include "proc.h"

enum {
    HANDLE_MUTEX = 16,
    HANDLE_RWMUTEX,
    HANDLE_READER,
    HANDLE_WRITER,
    HANDLE_WAITGROUP,
    HANDLE_ONCE,
    HANDLE_COND,
    HANDLE_SEMAPHORE,
    HANDLE_ATOMIC,
};

static PyObject *SyncError, *OwnerDied;
static PyObject *hook_once, *hook_go; /* of mpgort.sync: what runs a user's function */

static struct shm_sema *sema_of(CoreHandle *h)
{
    return shm_at(&h->prog->loop, h->off);
}

static uint64_t my_goid(CoreProg *prog)
{
    shm_gref g = core_curg(prog);
    return g ? core_g(prog->proc, g)->goid : 0;
}

static PyObject *sync_error(const char *text)
{
    PyErr_SetString(SyncError, text);
    return NULL;
}

static PyObject *owner_died(void)
{
    PyErr_SetString(OwnerDied, "sync: the goroutine that held the lock died with its worker; "
                               "recover() frees it");
    return NULL;
}

/* None, or the exception for an outcome; misuse: the text for SHM_EAGAIN. */
static PyObject *outcome(CoreHandle *h, int r, const char *misuse)
{
    if (r == SHM_OK)
        Py_RETURN_NONE;
    if (r == SHM_EAGAIN)
        return sync_error(misuse);
    if (r == SHM_EOWNER)
        return owner_died();
    core_shm_error(h->prog, r);
    return NULL;
}

static PyObject *make(const char *who, uint8_t kind, uint32_t what, uint64_t n, CoreHandle *mutex)
{
    CoreProg *prog = core_current(who);
    struct shm_ctx *c = prog ? core_ctx(prog) : NULL;
    shm_off off;
    if (c == NULL)
        return NULL;
    if (mutex != NULL && mutex->prog != prog) {
        PyErr_Format(PyExc_RuntimeError, "%s: its lock is of another runtime", who);
        return NULL;
    }
    int r = shm_sema_new(c, what, n, mutex ? mutex->off : 0, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, kind, off);
}

static PyObject *no_args(const char *who, PyObject *args, PyObject *kw)
{
    if (PyTuple_GET_SIZE(args) > 0 || (kw != NULL && PyDict_GET_SIZE(kw) > 0)) {
        PyErr_Format(PyExc_TypeError, "%s takes no arguments", who);
        return NULL;
    }
    return args;
}

/* ---- parks: what all have in common ---------------------------------------------------------- */

static PyObject *sync_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_OWNER)
        return owner_died();
    Py_RETURN_NONE;
}

/* It is done without a wait: as resume() finds it. note: where a wait has its object. */
static void put_done(struct shm_g *g, int r, uint64_t note)
{
    g->waitkind = 0;
    g->waitobj = note;
    g->ok = r == SHM_OK ? SHM_OK_VALUE : SHM_OK_OWNER;
    g->value.tag = SHM_VAL_NONE;
}

static PyObject *request(int op, PyObject *h, uint64_t how, uint64_t want)
{
    CorePark *pk = (CorePark *)core_park_for(op, h);
    if (pk != NULL) {
        pk->u[0] = how;
        pk->u[1] = want;
    }
    return (PyObject *)pk;
}

/* ---- the mutex ------------------------------------------------------------------------------- */

static int lock_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    struct core_proc *s = core_try_begin(h->prog);
    if (s == NULL)
        return -1;
    if (core_retried(s))
        return 0;
    struct shm_g *g = core_g(s, s->curg);
    int r = shm_mutex_trylock(s->c, h->off, g->goid);
    if (r == SHM_EAGAIN)
        return 0;
    put_done(g, r, 0);
    return core_try_done(s, pk, result);
}

static int lock_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref(c, h->off);
    int r = shm_mutex_lock_park(c, h->off, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    if (r != SHM_OK && r != SHM_EOWNER)
        return r;
    put_done(shm_g(c, gr), r, 0);
    return SHM_OK;
}

static int lock_again(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    if (g->ok != SHM_OK_COMPETE)
        return SHM_OK;
    shm_off off = g->waitobj; /* once it waits again, it may end elsewhere, and its hold with it */
    shm_obj_ref(c, off);
    int r = shm_mutex_again(c, gr);
    shm_obj_unref(c, off);
    return r;
}

/* ---- the rest -------------------------------------------------------------------------------- */

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
    put_done(g, r, note_of(s->c, pk, g));
    return core_try_done(s, pk, result);
}

static int sema_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref(c, h->off);
    int r = shm_sema_park(c, h->off, (int)pk->u[0], pk->u[1], gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    if (r != SHM_OK && r != SHM_EOWNER)
        return r;
    put_done(shm_g(c, gr), r, note_of(c, pk, shm_g(c, gr)));
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
        return owner_died();
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

/* `async with` does not leave with what it entered with: a Cond's wait inside could not get the mutex
 * back, since a holder had died. Whose it is now is none of its business. */
static bool not_mine(CoreHandle *h, uint64_t goid)
{
    uint64_t w = load_acq(&sema_of(h)->word); /* if it is mine, nobody but me changes that */
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
        outcome(h, r, misuse);
        return CORE_EXC;
    }
    put_done(g, SHM_OK, 0);
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

/* ---- cond ------------------------------------------------------------------------------------ */

static int cond_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    if (core_try_begin(h->prog) == NULL)
        return -1;
    struct shm_sema *m = shm_at(&h->prog->loop, sema_of(h)->other);
    if (load_acq(&m->word) & SHM_SY_LOCKED) /* the caller's own, or it is misuse */
        return 0;
    sync_error("sync: unlock of unlocked mutex");
    return -1;
}

static int cond_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref(c, h->off);
    int r = shm_cond_park(c, h->off, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    Py_XDECREF(outcome(h, r, "sync: unlock of unlocked mutex"));
    return CORE_EXC;
}

/* Locks m for a G whose wait holds `off`; parked, it holds m instead. */
static int cond_lock(struct shm_ctx *c, shm_gref gr, shm_off off, shm_off m)
{
    struct shm_g *g = shm_g(c, gr);
    shm_obj_ref(c, m);
    int r = shm_mutex_lock_park(c, m, gr);
    shm_obj_unref(c, r == SHM_PARKED ? off : m);
    if (r == SHM_PARKED)
        return r;
    g->ok = r == SHM_OK ? SHM_OK_VALUE : SHM_OK_OWNER;
    return SHM_OK;
}

static int cond_again(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    shm_off off = g->waitobj;
    if (g->waitkind != SHM_OBJ_SEMA)
        return SHM_OK;
    const struct shm_sema *sy = shm_at(c, off);
    if (g->ok == SHM_OK_CANCELLED)
        g->op = PK_COND_CANCELLED;
    else if (g->op == PK_COND)
        g->op = PK_COND_LOCK;
    else if (sy->what == SHM_SY_MUTEX)
        return lock_again(c, gr);
    g->ok = SHM_OK_COMPETE; /* what it is if this M dies on the way, and it comes up once more */
    return cond_lock(c, gr, off, sy->what == SHM_SY_COND ? sy->other : off);
}

static PyObject *cond_cancelled(CoreProg *prog, struct shm_ctx *c, struct shm_g *g)
{
    if (g->ok == SHM_OK_OWNER)
        return owner_died();
    PyErr_SetNone(core_err.Cancelled);
    return NULL;
}

/* ---- methods --------------------------------------------------------------------------------- */

static PyObject *mutex_lock(PyObject *h, PyObject *_)
{
    return core_park_for(PK_LOCK, h);
}

static PyObject *any_exit(PyObject *h, PyObject *const *args, Py_ssize_t n)
{
    return request(PK_EXIT, h, n > 0 && args[0] != Py_None, 0);
}

static PyObject *unlock_now(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    int r;
    if (c == NULL)
        return NULL;
    const char *misuse = give_back(h, c, my_goid(h->prog), &r);
    return outcome(h, r, misuse);
}

static PyObject *tried(CoreHandle *h, int r)
{
    if (r == SHM_OK || r == SHM_EAGAIN)
        return PyBool_FromLong(r == SHM_OK);
    return outcome(h, r, "");
}

static PyObject *mutex_try_lock(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? tried(h, shm_mutex_trylock(c, h->off, my_goid(h->prog))) : NULL;
}

static PyObject *any_recover(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? PyBool_FromLong(shm_sema_recover(c, h->off)) : NULL;
}

static PyObject *rw_lock(PyObject *h, PyObject *_)
{
    return request(PK_SEMA, h, SHM_SY_WRITE, 0);
}
static PyObject *rw_rlock(PyObject *h, PyObject *_)
{
    return request(PK_SEMA, h, SHM_SY_READ, 0);
}

static PyObject *rw_try(CoreHandle *h, int how)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? tried(h, shm_sema_try(c, h->off, how, 0, my_goid(h->prog))) : NULL;
}
static PyObject *rw_try_lock(CoreHandle *h, PyObject *_)
{
    return rw_try(h, SHM_SY_WRITE);
}
static PyObject *rw_try_rlock(CoreHandle *h, PyObject *_)
{
    return rw_try(h, SHM_SY_READ);
}

static PyObject *rw_unlock(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? outcome(h, shm_rwmutex_unlock(c, h->off, SHM_SY_WRITE, my_goid(h->prog)),
                       "sync: Unlock of unlocked RWMutex")
             : NULL;
}
static PyObject *rw_runlock(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? outcome(h, shm_rwmutex_unlock(c, h->off, SHM_SY_READ, my_goid(h->prog)),
                       "sync: RUnlock of unlocked RWMutex")
             : NULL;
}

static PyObject *rw_view(CoreHandle *h, uint8_t kind)
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    shm_obj_ref(c, h->off);
    return core_handle_wrap(h->prog, kind, h->off);
}
static PyObject *rw_reader(CoreHandle *h, PyObject *_)
{
    return rw_view(h, HANDLE_READER);
}
static PyObject *rw_writer(CoreHandle *h, PyObject *_)
{
    return rw_view(h, HANDLE_WRITER);
}

static PyObject *wg_change(CoreHandle *h, int64_t n)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? outcome(h, shm_waitgroup_add(c, h->off, n), "sync: negative WaitGroup counter")
             : NULL;
}

static PyObject *wg_add(CoreHandle *h, PyObject *arg)
{
    int64_t n = PyLong_AsLongLong(arg);
    return n == -1 && PyErr_Occurred() ? NULL : wg_change(h, n);
}
static PyObject *wg_done(CoreHandle *h, PyObject *_)
{
    return wg_change(h, -1);
}
static PyObject *wg_wait(PyObject *h, PyObject *_)
{
    return request(PK_SEMA, h, SHM_SY_WRITE, 0);
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

static PyObject *once_enter(PyObject *h, PyObject *_)
{
    return request(PK_ONCE, h, SHM_SY_WRITE, 0);
}
static PyObject *once_leave(CoreHandle *h, PyObject *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    shm_once_done(c, h->off);
    Py_RETURN_NONE;
}
static PyObject *once_do(PyObject *h, PyObject *fn)
{
    if (!PyCallable_Check(fn)) {
        PyErr_Format(PyExc_TypeError, "Once.do: a function is needed, not %.100R", fn);
        return NULL;
    }
    return PyObject_CallFunctionObjArgs(hook_once, h, fn, NULL);
}

static PyObject *cond_wait(PyObject *h, PyObject *_)
{
    return core_park_for(PK_COND, h);
}
static PyObject *cond_wake(CoreHandle *h, void (*wake)(struct shm_ctx *, shm_off))
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    wake(c, h->off);
    Py_RETURN_NONE;
}
static PyObject *cond_signal(CoreHandle *h, PyObject *_)
{
    return cond_wake(h, shm_cond_signal);
}
static PyObject *cond_broadcast(CoreHandle *h, PyObject *_)
{
    return cond_wake(h, shm_cond_broadcast);
}
static PyObject *cond_get_lock(CoreHandle *h, void *_)
{
    struct shm_ctx *c = core_ctx(h->prog);
    if (c == NULL)
        return NULL;
    shm_obj_ref(c, sema_of(h)->other);
    return core_handle_wrap(h->prog, HANDLE_MUTEX, sema_of(h)->other);
}

/* n of acquire and release: 1 to the semaphore's size. False: exception. */
static bool weight(CoreHandle *h, PyObject *args, PyObject *kw, const char *format, int64_t *n)
{
    static char *names[] = {"n", NULL};
    long long want = 1;
    if (core_ctx(h->prog) == NULL || !PyArg_ParseTupleAndKeywords(args, kw, format, names, &want))
        return false;
    if (want < 0) {
        PyErr_Format(PyExc_ValueError, "%s: %lld: a number of tokens is not negative", format + 3,
                     want);
        return false;
    }
    *n = want;
    return true;
}

static PyObject *sem_acquire(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|L:acquire", &n))
        return NULL;
    if ((uint64_t)n > sema_of(h)->n) {
        PyErr_Format(PyExc_ValueError, "acquire: %lld tokens of a semaphore that has %llu in all",
                     (long long)n, (unsigned long long)sema_of(h)->n);
        return NULL;
    }
    return request(PK_SEMA, (PyObject *)h, SHM_SY_WRITE, (uint64_t)n);
}
static PyObject *sem_enter(PyObject *h, PyObject *_)
{
    return request(PK_SEMA, h, SHM_SY_WRITE, 1);
}
static PyObject *sem_try_acquire(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|L:try_acquire", &n))
        return NULL;
    return tried(h, shm_sema_try(core_ctx(h->prog), h->off, SHM_SY_WRITE, (uint64_t)n, 0));
}
static PyObject *sem_release(CoreHandle *h, PyObject *args, PyObject *kw)
{
    int64_t n;
    if (!weight(h, args, kw, "|L:release", &n))
        return NULL;
    return outcome(h, shm_semaphore_release(core_ctx(h->prog), h->off, (uint64_t)n),
                   "semaphore: released more than held");
}

/* ---- AtomicInt ------------------------------------------------------------------------------- */

static _Atomic int64_t *cell(CoreHandle *h)
{
    struct shm_ctx *c = core_ctx(h->prog);
    return c ? &((struct shm_atomic *)shm_at(c, h->off))->value : NULL;
}

static bool int64_of(PyObject *o, int64_t *v)
{
    *v = PyLong_AsLongLong(o);
    return *v != -1 || !PyErr_Occurred();
}

/* All are sequentially consistent, as Go's sync/atomic. */
static PyObject *atomic_load_(CoreHandle *h, PyObject *_)
{
    _Atomic int64_t *a = cell(h);
    return a ? PyLong_FromLongLong(load_seq(a)) : NULL;
}
static PyObject *atomic_store_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !int64_of(arg, &v))
        return NULL;
    store_seq(a, v);
    Py_RETURN_NONE;
}
static PyObject *atomic_add_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !int64_of(arg, &v))
        return NULL;
    return PyLong_FromLongLong((int64_t)((uint64_t)add_seq(a, v) + (uint64_t)v));
}
static PyObject *atomic_swap_(CoreHandle *h, PyObject *arg)
{
    _Atomic int64_t *a = cell(h);
    int64_t v;
    if (a == NULL || !int64_of(arg, &v))
        return NULL;
    return PyLong_FromLongLong(xchg_seq(a, v));
}
static PyObject *atomic_cas_(CoreHandle *h, PyObject *const *args, Py_ssize_t n)
{
    _Atomic int64_t *a = cell(h);
    int64_t old, new;
    if (n != 2) {
        PyErr_SetString(PyExc_TypeError, "cas takes two numbers, old and new");
        return NULL;
    }
    if (a == NULL || !int64_of(args[0], &old) || !int64_of(args[1], &new))
        return NULL;
    return PyBool_FromLong(cas_seq(a, &old, new));
}

/* ---- making and showing them ----------------------------------------------------------------- */

#define MAKE(name, text, kind, what)                                             \
    static PyObject *name(PyTypeObject *t, PyObject *args, PyObject *kw)         \
    {                                                                            \
        return no_args(text, args, kw) ? make(text, kind, what, 0, NULL) : NULL; \
    }
MAKE(mutex_new, "Mutex()", HANDLE_MUTEX, SHM_SY_MUTEX)
MAKE(rwmutex_new, "RWMutex()", HANDLE_RWMUTEX, SHM_SY_RWMUTEX)
MAKE(waitgroup_new, "WaitGroup()", HANDLE_WAITGROUP, SHM_SY_WAITGROUP)
MAKE(once_new, "Once()", HANDLE_ONCE, SHM_SY_ONCE)

static PyTypeObject types[];

static PyObject *cond_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"lock", NULL};
    PyObject *lock;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O!:Cond", names, &types[0], &lock))
        return NULL;
    return make("Cond()", HANDLE_COND, SHM_SY_COND, 0, (CoreHandle *)lock);
}

static PyObject *semaphore_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"n", NULL};
    long long n;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "L:Semaphore", names, &n))
        return NULL;
    if (n < 0) {
        PyErr_Format(PyExc_ValueError, "Semaphore: %lld: a number of tokens is not negative", n);
        return NULL;
    }
    return make("Semaphore()", HANDLE_SEMAPHORE, SHM_SY_SEMAPHORE, (uint64_t)n, NULL);
}

static PyObject *atomic_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"value", NULL};
    long long value = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "|L:AtomicInt", names, &value))
        return NULL;
    CoreProg *prog = core_current("AtomicInt()");
    struct shm_ctx *c = prog ? core_ctx(prog) : NULL;
    shm_off off;
    if (c == NULL)
        return NULL;
    int r = shm_atomic_new(c, value, &off);
    if (r < 0) {
        core_shm_error(prog, r);
        return NULL;
    }
    return core_handle_wrap(prog, HANDLE_ATOMIC, off);
}

static PyObject *sync_repr(CoreHandle *h)
{
    const char *name = Py_TYPE(h)->tp_name;
    if (!h->prog->attached)
        return PyUnicode_FromFormat("<%s of an ended runtime>", name);
    if (h->kind == HANDLE_ATOMIC)
        return PyUnicode_FromFormat("<%s %lld>", name, (long long)load_seq(cell(h)));
    const struct shm_sema *sy = sema_of(h);
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

#define M(name, f, flags, doc) {name, (PyCFunction)(void (*)(void))f, flags, doc}
#define AENTER(f) M("__aenter__", f, METH_NOARGS, NULL)
#define AEXIT M("__aexit__", any_exit, METH_FASTCALL, NULL)
#define RECOVER                                                                                  \
    M("recover", any_recover, METH_NOARGS,                                                       \
      "recover()\n--\n\nFrees a lock whose holder died with its worker (OwnerDied); the caller " \
      "has "                                                                                     \
      "looked after\nwhat the lock protects. False: it is not such a lock, or not any more.")

static PyMethodDef mutex_methods[] = {
    M("lock", mutex_lock, METH_NOARGS,
      "lock()\n--\n\nAwaitable: locks it, waits while another has it.\n\nRaises OwnerDied if its "
      "holder died with its worker, until recover(). Source: Go Mutex.Lock."),
    M("unlock", unlock_now, METH_NOARGS,
      "unlock()\n--\n\nUnlocks it; any goroutine may. Raises SyncError \"sync: unlock of unlocked "
      "mutex\"."),
    M("try_lock", mutex_try_lock, METH_NOARGS,
      "try_lock()\n--\n\nLocks it if that needs no waiting. Source: Go Mutex.TryLock."),
    RECOVER,
    AENTER(mutex_lock),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef rwmutex_methods[] = {
    M("lock", rw_lock, METH_NOARGS,
      "lock()\n--\n\nAwaitable: locks it for writing. While it waits no new reader gets in. "
      "Source: "
      "Go RWMutex.Lock."),
    M("rlock", rw_rlock, METH_NOARGS,
      "rlock()\n--\n\nAwaitable: locks it for reading, with other readers. Source: Go "
      "RWMutex.RLock."),
    M("unlock", rw_unlock, METH_NOARGS,
      "unlock()\n--\n\nEnds writing; readers that wait go first. Raises SyncError \"sync: Unlock "
      "of "
      "unlocked RWMutex\"."),
    M("runlock", rw_runlock, METH_NOARGS,
      "runlock()\n--\n\nEnds reading. Raises SyncError \"sync: RUnlock of unlocked RWMutex\"."),
    M("try_lock", rw_try_lock, METH_NOARGS,
      "try_lock()\n--\n\nLocks it for writing if that needs no waiting."),
    M("try_rlock", rw_try_rlock, METH_NOARGS,
      "try_rlock()\n--\n\nLocks it for reading if that needs no waiting."),
    M("reader", rw_reader, METH_NOARGS,
      "reader()\n--\n\nFor `async with`: locked for reading. Also Go's RLocker: lock, unlock."),
    M("writer", rw_writer, METH_NOARGS, "writer()\n--\n\nFor `async with`: locked for writing."),
    RECOVER,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef reader_methods[] = {
    M("lock", rw_rlock, METH_NOARGS, "lock()\n--\n\nAwaitable: rlock() of the RWMutex."),
    M("unlock", unlock_now, METH_NOARGS, "unlock()\n--\n\nrunlock() of the RWMutex."),
    AENTER(rw_rlock),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef writer_methods[] = {
    M("lock", rw_lock, METH_NOARGS, "lock()\n--\n\nAwaitable: lock() of the RWMutex."),
    M("unlock", unlock_now, METH_NOARGS, "unlock()\n--\n\nunlock() of the RWMutex."),
    AENTER(rw_lock),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef waitgroup_methods[] = {
    M("add", wg_add, METH_O,
      "add($self, n, /)\n--\n\nAdds n, which may be negative; at 0 all who wait go on.\n\nRaises "
      "SyncError \"sync: negative WaitGroup counter\" (nothing has changed then)."),
    M("done", wg_done, METH_NOARGS, "done()\n--\n\nadd(-1)."),
    M("wait", wg_wait, METH_NOARGS, "wait()\n--\n\nAwaitable: until the counter is 0."),
    M("go", wg_go, METH_VARARGS | METH_KEYWORDS,
      "go($self, fn, /, *args, **kwargs)\n--\n\nadd(1), then a goroutine that runs fn(*args, "
      "**kwargs) and ends with done(). Source: Go 1.25 WaitGroup.Go."),
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef once_methods[] = {
    M("do", once_do, METH_O,
      "do($self, fn, /)\n--\n\nAwaitable: the first call runs fn(), async or plain; all others "
      "wait "
      "until that has ended.\n\nAn exception counts as done, and is the first caller's. fn that "
      "calls do() of the same Once\nwaits for itself. Source: Go Once.Do."),
    M("_enter", once_enter, METH_NOARGS, NULL),
    M("_leave", once_leave, METH_NOARGS, NULL),
    RECOVER,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef cond_methods[] = {
    M("wait", cond_wait, METH_NOARGS,
      "wait()\n--\n\nAwaitable: gives its lock back, waits for signal or broadcast, and locks "
      "again.\n\nNever wakes by itself. Cancelled, it has the lock when Cancelled is raised; not "
      "so "
      "with OwnerDied.\nSource: Go Cond.Wait."),
    M("signal", cond_signal, METH_NOARGS,
      "signal()\n--\n\nWakes the one that has waited longest, if any."),
    M("broadcast", cond_broadcast, METH_NOARGS, "broadcast()\n--\n\nWakes all who wait now."),
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyGetSetDef cond_getset[] = {
    {"lock", (getter)cond_get_lock, NULL, "Its Mutex."},
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
static PyMethodDef atomic_methods[] = {
    M("load", atomic_load_, METH_NOARGS, "load()\n--\n\nThe value."),
    M("store", atomic_store_, METH_O, "store($self, value, /)\n--\n\nSets it."),
    M("add", atomic_add_, METH_O,
      "add($self, n, /)\n--\n\nAdds n, wrapping as 64 bits do, and returns the new value."),
    M("swap", atomic_swap_, METH_O, "swap($self, value, /)\n--\n\nSets it, returns the old one."),
    M("cas", atomic_cas_, METH_FASTCALL,
      "cas($self, old, new, /)\n--\n\nSets it to new if it is old; True if so."),
    CORE_HANDLE_REDUCE,
    {NULL},
};

#define SYNC_TYPE(name, doc, methods, getset)                         \
    {                                                                 \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.sync." name, \
        .tp_doc = doc,                                                \
        CORE_HANDLE_SLOTS,                                            \
        .tp_repr = (reprfunc)sync_repr,                               \
        .tp_methods = methods,                                        \
        .tp_getset = getset,                                          \
    }
static PyTypeObject types[] = {
    SYNC_TYPE(
        "Mutex",
        "Mutex()\n--\n\nA lock, shared by all processes: `async with m`, or lock and unlock.\n\n"
        "Made in a goroutine. Handles of one are equal in every process. Source: Go "
        "sync.Mutex.",
        mutex_methods, NULL),
    SYNC_TYPE("RWMutex",
              "RWMutex()\n--\n\nA lock for one writer or many readers: `async with m.reader()`.\n\n"
              "Source: Go sync.RWMutex.",
              rwmutex_methods, NULL),
    SYNC_TYPE("RWMutexReader", "The reading side of a RWMutex.", reader_methods, NULL),
    SYNC_TYPE("RWMutexWriter", "The writing side of a RWMutex.", writer_methods, NULL),
    SYNC_TYPE("WaitGroup",
              "WaitGroup()\n--\n\nWaits for a number of goroutines to end. Source: Go "
              "sync.WaitGroup.",
              waitgroup_methods, NULL),
    SYNC_TYPE("Once", "Once()\n--\n\nRuns something once. Source: Go sync.Once.", once_methods,
              NULL),
    SYNC_TYPE("Cond",
              "Cond(lock)\n--\n\nWhere goroutines wait for what `lock`, a Mutex, protects to "
              "change.\n\nSource: Go sync.Cond.",
              cond_methods, cond_getset),
    SYNC_TYPE("Semaphore",
              "Semaphore(n)\n--\n\nn tokens, taken some at a time: `async with s`, or acquire and "
              "release.\n\nSource: golang.org/x/sync/semaphore.",
              semaphore_methods, NULL),
    SYNC_TYPE(
        "AtomicInt",
        "AtomicInt(value=0)\n--\n\nA 64-bit number that all goroutines may change. Source: Go "
        "atomic.Int64.",
        atomic_methods, NULL),
};
static const struct {
    const char *name;
    newfunc new; /* NULL: made by another's method only */
} made[] = {
    {"Mutex", mutex_new},    {"RWMutex", rwmutex_new},     {"RWMutexReader", NULL},
    {"RWMutexWriter", NULL}, {"WaitGroup", waitgroup_new}, {"Once", once_new},
    {"Cond", cond_new},      {"Semaphore", semaphore_new}, {"AtomicInt", atomic_new},
};

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
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (made[i].new != NULL) {
            types[i].tp_flags &= ~(unsigned long)Py_TPFLAGS_DISALLOW_INSTANTIATION;
            types[i].tp_new = made[i].new;
        }
        if (PyType_Ready(&types[i]) < 0 ||
            PyModule_AddObjectRef(mod, made[i].name, (PyObject *)&types[i]) < 0 ||
            core_handle_kind(&types[i], (uint8_t)(HANDLE_MUTEX + i)) < 0)
            return -1;
    }
    const struct core_park_op lock = {
        .park = lock_park, .resume = sync_resume, .again = lock_again};
    const struct core_park_op sema = {
        .park = sema_park, .resume = sync_resume, .again = sema_again};
    const struct core_park_op cond = {
        .park = cond_park, .resume = sync_resume, .again = cond_again};
    core_park_ops[PK_LOCK] = lock;
    core_park_ops[PK_EXIT] = (struct core_park_op){.park = exit_park, .resume = sync_resume};
    core_park_ops[PK_SEMA] = core_park_ops[PK_ONCE] = sema;
    core_park_ops[PK_ONCE].resume = once_resume;
    core_park_ops[PK_COND] = core_park_ops[PK_COND_LOCK] = core_park_ops[PK_COND_CANCELLED] = cond;
    core_park_ops[PK_COND_CANCELLED].resume = cond_cancelled;
    core_park_tries[PK_LOCK] = lock_try;
    core_park_tries[PK_EXIT] = exit_try;
    core_park_tries[PK_SEMA] = core_park_tries[PK_ONCE] = sema_try;
    core_park_tries[PK_COND] = cond_try;
    return PyModule_AddFunctions(mod, functions);
}
