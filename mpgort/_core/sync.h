/* sync.h — what the faces of sync have in common: mutex.c (Mutex, RWMutex, Cond), atomicint.c and
 * sync.c (the rest).
 *
 * A method has one of two shapes. It is one call on the shared object, whose outcome is a value or
 * an exception (SYNC_CALL); or it makes an awaitable, a park request of one of the families of
 * sync.c and mutex.c (SYNC_AWAIT), for which u[0] says how, and u[1] how much. */
#ifndef MPGORT_SYNC_H
#define MPGORT_SYNC_H

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

static inline struct shm_sema *sync_sema(CoreHandle *h)
{
    return shm_at(&h->prog->loop, h->off);
}
uint64_t core_sync_goid(CoreProg *prog); /* of the goroutine that calls, 0: none does */

/* ---- outcomes -------------------------------------------------------------------------------- */

PyObject *core_sync_error(const char *text); /* SyncError; NULL */
PyObject *core_sync_owner_died(void);        /* OwnerDied; NULL */
/* None, or the exception for an outcome; misuse: the text for SHM_EAGAIN. */
PyObject *core_sync_outcome(CoreHandle *h, int r, const char *misuse);
PyObject *core_sync_tried(CoreHandle *h, int r); /* True, False, or an exception */

/* ---- parks ----------------------------------------------------------------------------------- */

PyObject *core_sync_request(int op, PyObject *h, uint64_t how, uint64_t want);
/* Done without a wait: as resume() finds it. note: where a wait has its object. */
void core_sync_done(struct shm_g *g, int r, uint64_t note);
/* The end of a park() that took a reference for the wait: r is what became of it. True: the caller
 * goes on, it is done, and has its core_sync_done() to say. Else *r is to be returned. */
bool core_sync_unparked(struct shm_ctx *c, CoreHandle *h, int *r);
PyObject *core_sync_resume(CoreProg *prog, struct shm_ctx *c, struct shm_g *g);

/* ---- methods and types ----------------------------------------------------------------------- */

#define SYNC_CALL(name, call)                         \
    static PyObject *name(CoreHandle *h, PyObject *_) \
    {                                                 \
        struct shm_ctx *c = core_ctx(h->prog);        \
        return c ? (call) : NULL;                     \
    }
#define SYNC_AWAIT(name, op, how, want)             \
    static PyObject *name(PyObject *h, PyObject *_) \
    {                                               \
        return core_sync_request(op, h, how, want); \
    }
#define M(name, f, flags, doc) {name, (PyCFunction)(void (*)(void))f, flags, doc}
#define AENTER(f) M("__aenter__", f, METH_NOARGS, NULL)
#define AEXIT M("__aexit__", core_sync_exit, METH_FASTCALL, NULL)
#define RECOVER                                                                                  \
    M("recover", core_sync_recover, METH_NOARGS,                                                 \
      "recover()\n--\n\nFrees a lock whose holder died with its worker (OwnerDied); the caller " \
      "has looked after\nwhat the lock protects. False: it is not such a lock, or not any more.")
PyObject *core_sync_exit(PyObject *h, PyObject *const *args, Py_ssize_t n); /* __aexit__ */
PyObject *core_sync_recover(CoreHandle *h, PyObject *_);
PyObject *core_sync_unlock(CoreHandle *h, PyObject *_); /* what __aexit__ does, at once */

PyObject *core_sync_make(const char *who, uint8_t kind, uint32_t what, uint64_t n,
                         CoreHandle *mutex);
PyObject *core_sync_in(CoreProg *prog, uint8_t kind, uint32_t what, uint64_t n, shm_off mutex);
/* The same for tp_new of a type that takes no arguments. */
PyObject *core_sync_plain(const char *who, PyObject *args, PyObject *kw, uint8_t kind,
                          uint32_t what);
PyObject *core_sync_repr(CoreHandle *h);
#define SYNC_TYPE(name, doc, methods, getset)                         \
    {                                                                 \
        PyVarObject_HEAD_INIT(NULL, 0).tp_name = "mpgort.sync." name, \
        .tp_doc = doc,                                                \
        CORE_HANDLE_SLOTS,                                            \
        .tp_repr = (reprfunc)core_sync_repr,                          \
        .tp_methods = methods,                                        \
        .tp_getset = getset,                                          \
    }
/* How each of an array of types is entered in the module. */
struct sync_made {
    uint8_t kind;
    newfunc new; /* NULL: made by another's method only */
};
int core_sync_types(PyObject *mod, PyTypeObject *types, const struct sync_made *made, size_t n);

#endif
