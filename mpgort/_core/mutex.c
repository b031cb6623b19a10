/* mutex.c — the faces of the locks: Mutex, RWMutex, Cond.
 *
 * What they are stands in shm/mutex.c and shm/sema.c, what all of sync has in common in sync.h. A
 * mutex and a Cond have families of parks of their own; a RWMutex is one of the semas (sync.c).
 *
 *   lock       try is one CAS; a waiter that was woken competes by `again`
 *   cond       waits on the Cond, then, by `again`, on its mutex
 *
 * CANCEL. One that waits on a Cond has to have the mutex before it raises (as asyncio's Condition):
 * whoever awaits wait() holds the lock before and after, however it ends.
 *
 * RWMutex.reader() and .writer() are further handles on the same object, of types of their own:
 * `async with` keeps them on the goroutine's stack, and they move with it. */
#include "sync.h"

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
    core_sync_done(g, r, 0);
    return core_try_done(s, pk, result);
}

static int lock_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref_hand(c, h->off);
    int r = shm_mutex_lock_park(c, h->off, gr);
    if (!core_sync_unparked(c, h, &r))
        return r;
    core_sync_done(shm_g(c, gr), r, 0);
    return SHM_OK;
}

static int lock_again(struct shm_ctx *c, shm_gref gr)
{
    struct shm_g *g = shm_g(c, gr);
    if (g->ok != SHM_OK_COMPETE)
        return SHM_OK;
    shm_off off = g->waitobj; /* once it waits again, it may end elsewhere, and its hold with it */
    shm_obj_ref_hand(c, off);
    int r = shm_mutex_again(c, gr);
    shm_obj_unref(c, off);
    return r;
}

/* ---- cond ------------------------------------------------------------------------------------ */

static int cond_try(CorePark *pk, PyObject **result)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    if (core_try_begin(h->prog) == NULL)
        return -1;
    struct shm_sema *m = shm_at(&h->prog->loop, sync_sema(h)->other);
    if (load_acq(&m->word) & SHM_SY_LOCKED) /* the caller's own, or it is misuse */
        return 0;
    core_sync_error("sync: unlock of unlocked mutex");
    return -1;
}

static int cond_park(struct shm_ctx *c, CorePark *pk, shm_gref gr)
{
    CoreHandle *h = (CoreHandle *)pk->a;
    shm_obj_ref_hand(c, h->off);
    int r = shm_cond_park(c, h->off, gr);
    if (r == SHM_PARKED)
        return r;
    shm_obj_unref(c, h->off);
    Py_XDECREF(core_sync_outcome(h, r, "sync: unlock of unlocked mutex"));
    return CORE_EXC;
}

/* Locks m for a G whose wait holds `off`; parked, it holds m instead. */
static int cond_lock(struct shm_ctx *c, shm_gref gr, shm_off off, shm_off m)
{
    struct shm_g *g = shm_g(c, gr);
    shm_obj_ref_hand(c, m);
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
        return core_sync_owner_died();
    PyErr_SetNone(core_err.Cancelled);
    return NULL;
}

/* ---- methods --------------------------------------------------------------------------------- */

SYNC_AWAIT(mutex_lock, PK_LOCK, 0, 0)
SYNC_CALL(mutex_try_lock, core_sync_tried(h, shm_mutex_trylock(c, h->off, core_sync_goid(h->prog))))

SYNC_AWAIT(rw_lock, PK_SEMA, SHM_SY_WRITE, 0)
SYNC_AWAIT(rw_rlock, PK_SEMA, SHM_SY_READ, 0)

static PyObject *rw_try(struct shm_ctx *c, CoreHandle *h, int how)
{
    return core_sync_tried(h, shm_sema_try(c, h->off, how, 0, core_sync_goid(h->prog)));
}
SYNC_CALL(rw_try_lock, rw_try(c, h, SHM_SY_WRITE))
SYNC_CALL(rw_try_rlock, rw_try(c, h, SHM_SY_READ))

static PyObject *rw_end(struct shm_ctx *c, CoreHandle *h, int how, const char *misuse)
{
    return core_sync_outcome(h, shm_rwmutex_unlock(c, h->off, how, core_sync_goid(h->prog)),
                             misuse);
}
SYNC_CALL(rw_unlock, rw_end(c, h, SHM_SY_WRITE, "sync: Unlock of unlocked RWMutex"))
SYNC_CALL(rw_runlock, rw_end(c, h, SHM_SY_READ, "sync: RUnlock of unlocked RWMutex"))

static PyObject *handle_on(struct shm_ctx *c, CoreHandle *h, uint8_t kind, shm_off off)
{
    shm_obj_ref_hand(c, off);
    return core_handle_wrap(h->prog, kind, off);
}
SYNC_CALL(rw_reader, handle_on(c, h, HANDLE_READER, h->off))
SYNC_CALL(rw_writer, handle_on(c, h, HANDLE_WRITER, h->off))

SYNC_AWAIT(cond_wait, PK_COND, 0, 0)
SYNC_CALL(cond_signal, (shm_cond_signal(c, h->off), Py_NewRef(Py_None)))
SYNC_CALL(cond_broadcast, (shm_cond_broadcast(c, h->off), Py_NewRef(Py_None)))
SYNC_CALL(cond_get_lock, handle_on(c, h, HANDLE_MUTEX, sync_sema(h)->other))

/* ---- types ----------------------------------------------------------------------------------- */

static PyMethodDef mutex_methods[] = {
    M("lock", mutex_lock, METH_NOARGS,
      "lock()\n--\n\nAwaitable: locks it, waits while another has it.\n\nRaises OwnerDied if its "
      "holder died with its worker, until recover(). Source: Go Mutex.Lock."),
    M("unlock", core_sync_unlock, METH_NOARGS,
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
      "Source: Go RWMutex.Lock."),
    M("rlock", rw_rlock, METH_NOARGS,
      "rlock()\n--\n\nAwaitable: locks it for reading, with other readers. Source: Go "
      "RWMutex.RLock."),
    M("unlock", rw_unlock, METH_NOARGS,
      "unlock()\n--\n\nEnds writing; readers that wait go first. Raises SyncError \"sync: Unlock "
      "of unlocked RWMutex\"."),
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
    M("unlock", core_sync_unlock, METH_NOARGS, "unlock()\n--\n\nrunlock() of the RWMutex."),
    AENTER(rw_rlock),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef writer_methods[] = {
    M("lock", rw_lock, METH_NOARGS, "lock()\n--\n\nAwaitable: lock() of the RWMutex."),
    M("unlock", core_sync_unlock, METH_NOARGS, "unlock()\n--\n\nunlock() of the RWMutex."),
    AENTER(rw_lock),
    AEXIT,
    CORE_HANDLE_REDUCE,
    {NULL},
};
static PyMethodDef cond_methods[] = {
    M("wait", cond_wait, METH_NOARGS,
      "wait()\n--\n\nAwaitable: gives its lock back, waits for signal or broadcast, and locks "
      "again.\n\nNever wakes by itself. Cancelled, it has the lock when Cancelled is raised; not "
      "so with OwnerDied.\nSource: Go Cond.Wait."),
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
    SYNC_TYPE("Cond",
              "Cond(lock)\n--\n\nWhere goroutines wait for what `lock`, a Mutex, protects to "
              "change.\n\nSource: Go sync.Cond.",
              cond_methods, cond_getset),
};

static PyObject *mutex_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    return core_sync_plain("Mutex()", args, kw, HANDLE_MUTEX, SHM_SY_MUTEX);
}
static PyObject *rwmutex_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    return core_sync_plain("RWMutex()", args, kw, HANDLE_RWMUTEX, SHM_SY_RWMUTEX);
}
static PyObject *cond_new(PyTypeObject *t, PyObject *args, PyObject *kw)
{
    static char *names[] = {"lock", NULL};
    PyObject *lock;
    if (!PyArg_ParseTupleAndKeywords(args, kw, "O!:Cond", names, &types[0], &lock))
        return NULL;
    return core_sync_make("Cond()", HANDLE_COND, SHM_SY_COND, 0, (CoreHandle *)lock);
}

static const struct sync_made made[] = {
    {HANDLE_MUTEX, mutex_new}, {HANDLE_RWMUTEX, rwmutex_new}, {HANDLE_READER, NULL},
    {HANDLE_WRITER, NULL},     {HANDLE_COND, cond_new},
};

int core_mutex_init(PyObject *mod)
{
    const struct core_park_op lock = {
        .park = lock_park, .resume = core_sync_resume, .again = lock_again};
    const struct core_park_op cond = {
        .park = cond_park, .resume = core_sync_resume, .again = cond_again};
    core_park_ops[PK_LOCK] = lock;
    core_park_ops[PK_COND] = core_park_ops[PK_COND_LOCK] = core_park_ops[PK_COND_CANCELLED] = cond;
    core_park_ops[PK_COND_CANCELLED].resume = cond_cancelled;
    core_park_tries[PK_LOCK] = lock_try;
    core_park_tries[PK_COND] = cond_try;
    core_park_names[PK_LOCK] = "Mutex.lock()";
    core_park_names[PK_COND] = "Cond.wait()";
    return core_sync_types(mod, types, made, sizeof types / sizeof *types);
}
