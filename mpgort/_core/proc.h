/* proc.h — what the M's loop (proc.c, loop.c, life.c) shares with the primitives (goroutine.c,
 * chan.c, runtime.c).
 *
 * A primitive is three functions on the same verbs: a `try` that runs when its awaitable is first
 * awaited, a `park` that the loop calls once the continuation is stored, and a `resume` that turns
 * what the waker left in g (ok, value, waitobj) into the value of the await. Try and park may end
 * at once; resume runs on whichever M picks the goroutine up, so it may use nothing but g. Of a
 * goroutine with retries the try does not carry anything out: the park does, in one transaction
 * with its checkpoint (shm/retry.c). */
#ifndef MPGORT_PROC_H
#define MPGORT_PROC_H

#include "core.h"
#include <stddef.h>

/* Which operation a park request stands for; also g->op while the goroutine is parked. */
enum {
    PK_START = 0,   /* not started: the continuation is a call */
    PK_GOSCHED = 8, /* below 8: the codec's own */
    PK_SLEEP,
    PK_JOIN,
    PK_RECV,
    PK_RECV_OK,
    PK_ANEXT,
    PK_SEND,
    PK_FOREVER, /* nil channel, empty select */
    PK_GOPARK,
    PK_MCALL,
    PK_SELECT = 20,
    PK_LOCK = 24, /* sync.c, to PK_COND_CANCELLED */
    PK_EXIT,
    PK_SEMA,
    PK_ONCE,
    PK_COND,
    PK_COND_LOCK,
    PK_COND_CANCELLED,
    PK_GROUP = 48, /* 48-55: a goroutine's life */
    PK_GROUP_ENTER,
    PK_THREAD,
    PK_DONEQ = 56, /* pools */
};

struct core_proc;
struct core_park_op {
    /* The goroutine's continuation is stored (or it is at home): SHM_PARKED; SHM_OK: done at once,
     * g->ok and g->value say how; a negative SHM_E or -100 with an exception set. */
    int (*park)(struct shm_ctx *c, CorePark *pk, shm_gref g);
    /* New reference, or NULL with the exception that the await raises. */
    PyObject *(*resume)(CoreProg *prog, struct shm_ctx *c, struct shm_g *g);
    /* The request will not be parked after all: frees what its try left in it. NULL: nothing. */
    void (*drop)(struct shm_ctx *c, CorePark *pk);
    bool home; /* what the wait gives is an object of this process: the goroutine stays */
    /* The goroutine is up again, its continuation untouched: SHM_OK: resume it; SHM_PARKED: it
     * waits on (it may run elsewhere by now). g->op may have become another. NULL: always
     * SHM_OK. */
    int (*again)(struct shm_ctx *c, shm_gref g);
};
#define CORE_EXC (-100) /* park(): an exception is set */
extern struct core_park_op core_park_ops[CORE_PARK_KINDS];

/* A goroutine that is live in this process between two of its turns. */
struct core_home {
    shm_gref g;
    PyObject *root;        /* its coroutine */
    CorePark *park;        /* what it is parked in; NULL: just readied by force (not used) */
    PyObject *ctx;         /* its context variables, NULL: none */
    PyObject *reason;      /* str: what keeps it here (pinned, heavy) */
    PyObject *value;       /* of to_thread, for its resume */
    uint32_t locks;        /* lock_os_thread() calls without their unlock */
    uint8_t why;           /* SHM_HOME_* */
    uint8_t skip, backoff; /* parks to go until encoding is tried again; its next distance */
};

#define CORE_WARM 64
/* A light goroutine's live chain, beside its bytes (cont.c). */
struct core_warm {
    shm_gref g;
    PyObject *root;
    CorePark *park;
    PyObject *ctx; /* its context variables, NULL: none */
    struct core_frames frames;
};

/* A loop entered below a call that waits (block.c). */
struct core_nest {
    shm_gref g;
    bool ready;           /* its wait is over, its turn to return is not yet */
    bool late;            /* as its time was up */
    uint8_t ok;           /* g->ok at the end of its wait */
    uint64_t deadline_ns; /* UINT64_MAX: none */
    struct core_nest *outer;
};

#define CORE_RECENT 64
#define CORE_SITES 64
/* The loop's state of one program in this process. */
struct core_proc {
    CoreProg *prog;
    struct shm_ctx *c;    /* prog->loop */
    struct core_enc enc;  /* continuations */
    struct core_enc venc; /* values, reentrant use is refused by depth */
    PyObject *ctx; /* context now entered; NULL: the caller's own (main before its first turn) */
    PyObject *base_ctx;       /* the empty one that goroutines without variables share */
    struct core_home **homes; /* by g index */
    uint32_t homes_cap, nhomes;
    uint32_t locked; /* how many of them are under lock_os_thread */
    bool retiring;   /* this M leaves when the last home goroutine has */
    shm_gref curg;   /* whose Python runs; 0 on the scheduler's stack */
    struct core_home *curhome;
    shm_off kept; /* the block that curg's bytes stood in, or 0 (cont.c) */
    bool inhand;  /* a try succeeded but a preemption is due: the result is in g */
    int on_g0;    /* > 0: unlockf or an mcall function runs */
    bool main_done, main_goexit;
    PyObject *main_value; /* of main, NULL with main_exc */
    PyObject *main_exc;
    bool venc_busy;
    bool storing; /* enc is in use, and the running goroutine is neither here nor there */
    struct core_nest *nest;
    uint64_t deadline_ns; /* the nearest of all nested loops (block.c); UINT64_MAX: none */
    shm_gref main_g;
    PyObject *interrupt; /* KeyboardInterrupt on its way to main's await */
    shm_gref exec_next;  /* runtime.execute(g, exec_inherit) from the scheduler's stack */
    bool exec_inherit;
    PyObject *reasons; /* dict: text of a registered wait reason -> its number in this segment */
    PyObject *loose;   /* runtime.c: set of grefs, NULL until used */
    PyObject *recent[CORE_RECENT]; /* handle.c: kept alive a while longer */
    struct core_warm warm[CORE_WARM];
    /* dump.c: lines that have created goroutines; by code and place in it, one place per hash */
    struct core_site {
        PyObject *code;
        int at; /* code unit */
        uint32_t id;
    } sites[CORE_SITES];
    uint64_t finished0, rss_ns; /* st.finished at the start; when max_rss was last looked at */
    /* interned handles of this process: their word -> object, borrowed */
    struct core_slot {
        uint64_t key;
        PyObject *obj;
    } *slots;
    uint32_t nslots, slots_cap;
};

struct core_proc *core_proc_get(CoreProg *prog); /* made on first use; NULL: exception */

/* The program of the calling goroutine, or RuntimeError "... outside a goroutine". */
SHM_COLD CoreProg *core_current(const char *what);
static inline struct shm_g *core_g(struct core_proc *s, shm_gref g)
{
    return shm_g(s->c, g);
}
static inline shm_gref core_gref(struct shm_ctx *c, struct shm_g *g) /* of a G that is ours */
{
    return (uint64_t)SHM_ST_GEN(load_rlx(&g->status)) << 32 | (uint32_t)(g - c->gtab);
}
/* The running goroutine of this thread's loop, 0 if there is none (other thread, scheduler). */
shm_gref core_curg(CoreProg *prog);
/* The flags that a goroutine hands on to those it starts: a batch goroutine's helpers are batch
 * too. */
uint8_t core_inherited(CoreProg *prog);

/* value.c. The program in whose terms this thread encodes and decodes; enter, work, leave. */
struct core_entered {
    CoreProg *was;
};
struct core_entered core_enter(CoreProg *prog);
void core_leave(struct core_entered e);
/* The program's sink for values, or `spare` while that is in use: a reducer may itself send. */
struct core_enc *core_venc_take(struct core_proc *s, struct core_enc *spare);
void core_venc_give(struct core_proc *s, struct core_enc *e);
int core_exc_store(CoreProg *prog, PyObject *exc, struct shm_val *val);
/* Encodes v for prog into *val (references of its handles taken). -1: exception set. */
int core_val_encode(CoreProg *prog, PyObject *v, struct shm_val *val);
/* Decodes and consumes *val; SHM_VAL_NONE is None. */
PyObject *core_val_take(CoreProg *prog, struct shm_val *val);
/* Decodes it where it stands, and needs no room; the caller holds what holds it (a join object). */
PyObject *core_val_peek(CoreProg *prog, const struct shm_val *val);
PyObject *core_exc_peek(CoreProg *prog, const struct shm_val *val);
bool core_preempt_due(struct core_proc *s);

/* The loop of the calling thread, NULL in threads that run none. */
extern CORE_TLS struct core_proc *core_proc_cur;
/* The running goroutine has retries: a `try` prepares its operation and leaves it to the park. */
static inline bool core_retried(struct core_proc *s)
{
    return core_g(s, s->curg)->retries;
}
/* For a `try`: the loop whose goroutine awaits pk on a handle of prog, or NULL with an
 * exception. */
struct core_proc *core_try_begin(CoreProg *prog);
/* A `try` that is done has put ok and value into the running g: 1 and *result by its resume(); 0 if
 * a preemption is due, which the loop grants with the result in g; -1: exception. */
int core_try_done(struct core_proc *s, CorePark *pk, PyObject **result);

/* context.c */
bool core_context_empty(PyObject *ctx);
int core_context_switch(struct core_proc *s, PyObject *ctx); /* enters ctx, leaves the former */
int core_context_base(struct core_proc *s);                  /* back to the shared empty one */
int core_context_put(PyObject *ctx, struct core_enc *e, bool all);
int core_context_enter(struct core_proc *s, const uint8_t *p, size_t n, struct core_words *W);

/* cont.c */
struct core_home *core_home_get(struct core_proc *s, shm_gref gr);
struct core_home *core_home_make(struct core_proc *s, shm_gref gr);
void core_home_drop(struct core_proc *s, struct core_home *h);
void core_home_free(struct core_home *h);
int core_cont_store(struct core_proc *s, struct shm_ctx *c, struct shm_g *g, struct core_enc *e,
                    PyObject *ctx, shm_off kept, bool parks);
/* Enters the goroutine's own context, if its continuation has one; *chain: how many bytes of it are
 * the await chain or call. */
int core_cont_open(struct core_proc *s, const struct shm_g *g, const uint8_t **p, size_t *chain,
                   struct core_words *W);
void core_warm_put(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk);
bool core_warm_take(struct core_proc *s, shm_gref gr, struct core_warm *out);
void core_warm_stale(struct core_proc *s, shm_gref gr);
void core_warm_rest(struct core_proc *s);
void core_cont_take(struct core_proc *s, struct shm_g *g);
void core_cont_let(struct core_proc *s);
/* The chain into s->enc: ENC_*. */
int core_cont_encode(struct core_proc *s, PyObject *root, PyObject *pk, size_t budget);
enum { CORE_AT_HOME = 0, CORE_LIGHT = 1 };
int core_store(struct core_proc *s, shm_gref gr, PyObject *root, CorePark *pk);
void core_unstore(struct core_proc *s, shm_gref gr, int how);

/* life.c. The first turn of gr, whose continuation is a call; as core_run_g(). */
int core_begin(struct core_proc *s, shm_gref gr);
/* The running G has ended with value (owned), or with the exception that is set (NULL).
 * -1: the exception ends the loop itself (Ctrl-C with procs=0). */
int core_finish(struct core_proc *s, shm_gref gr, PyObject *value);
void core_forked_end(void) __attribute__((noreturn, cold)); /* loop.c */
/* A goroutine that was killed ends: none of its frames runs again. root, pk: owned, NULL if it was
 * not live here. */
SHM_COLD void core_killed(struct core_proc *s, shm_gref gr, PyObject *root, PyObject *pk);
/* proc.c. Runs root (owned) from `res`/`out` on until it parks or ends. */
int core_drive(struct core_proc *s, shm_gref gr, PyObject *root, PySendResult res, PyObject *out);
int core_run_g(struct core_proc *s, shm_gref gr); /* gr is running, and this M's: its turn */
void core_wait_end(struct shm_ctx *c, struct shm_g *g);
bool core_cancel_due(struct shm_join *j); /* takes it */
void core_park_drop(struct shm_ctx *c, CorePark *pk);
/* loop.c, for block.c */
#define CORE_LATE 2
#define CORE_RETIRE 3 /* this worker is beyond need */
int core_schedule(struct core_proc *s, shm_gref *g, bool *inherit);
/* M0: whatever it waits in looks for reports and at the keeper, at most so often. -1: exception. */
#define CORE_TICK_NS 90000000 /* less than the 100 ms of M0's bounded sleeps */
int core_tick(CoreProg *prog);

/* block.c. Waits with the thread blocked (threads, plain functions): parks by `op` of pk as a G
 * that stands for this thread, and returns its resume() value. timeout_ns < 0: none. NULL:
 * TimeoutError etc. */
PyObject *core_block(CoreProg *prog, CorePark *pk, int64_t timeout_ns);
/* Seconds (float, int, None: -1) to ns; -2 and an exception on nonsense. */
int64_t core_timeout_ns(PyObject *o);

/* The monotonic time `seconds` from now: UINT64_MAX never, now for what is not positive. -1:
 * exception. */
int core_when_ns(PyObject *seconds, const char *who, uint64_t *when_ns);
/* False: who (the call) is told that `what` is needed, and no other type, and not nan. */
bool core_number(PyObject *o, const char *who, const char *what, double *number);
#define CORE_SECONDS "a number of seconds"
/* False: a TypeError or OverflowError that names the call. */
bool core_int64(PyObject *o, const char *who, int64_t *v);

/* fn is callable, or TypeError. */
bool core_callable(PyObject *fn, const char *who);
/* An idle G, complete, for the call fn(*args, **kwargs): shm_newproc() starts it. -1: exception. */
int core_gnew(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs, shm_off join,
              uint8_t flags, shm_gref *g);
void core_gdrop(struct shm_ctx *c, shm_gref g); /* one that will not be started after all */
/* Starts fn(*args, **kwargs); join: 0 for go, else the join object's offset (one reference
 * given). */
int core_newproc(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs, shm_off join,
                 uint8_t flags);

/* The join object of the running goroutine, made if it has none (main, and what go has started);
 * borrowed. 0: exception. */
shm_off core_self_join(struct core_proc *s);
/* goroutine.c: MDied, from what the reaper left. */
PyObject *core_died(CoreProg *prog, const struct shm_val *v);
/* spawn.c: spawn of fn, *args, **kwargs as a vectorcall has them; group: 0 or whose child. */
PyObject *core_spawn_call(CoreProg *prog, shm_off group, PyObject *const *args, Py_ssize_t n,
                          PyObject *names);

/* handle.c: a Python object that stands for a counted object of the segment. One per (kind, offset)
 * and process; equal and hashing alike wherever they are. A type of handles has this as its struct,
 * CORE_HANDLE_SLOTS as its slots, and registers with core_handle_kind(). */
typedef struct {
    PyObject_HEAD CoreProg *prog; /* NULL: stands for no object (nilchan) */
    shm_off off;
    uint32_t slot, holder_m1; /* shm_handle_hold: which slot of whose; both only under the GIL */
    uint8_t kind;
    PyObject *weakrefs;
} CoreHandle;
enum {                  /* kind in bytes */
       HANDLE_CHAN = 1, /* .. 3, with the direction */
       HANDLE_DEFAULT = 4,
       HANDLE_GOROUTINE = 8,
       HANDLE_GROUP = 56,
       HANDLE_TIMER = 32,
       HANDLE_TICKER = 33,
       HANDLE_CONTEXT = 40,
       HANDLE_CANCEL = 41,
       HANDLE_FROZEN = 48, /* buffers */
       HANDLE_SHARED = 49,
       HANDLE_DONEQ = 54,
};
/* The handle of this process on off; takes over one reference, also on failure. */
PyObject *core_handle_wrap(CoreProg *prog, uint8_t kind, shm_off off);
int core_handle_kind(PyTypeObject *type, uint8_t kind);
/* The same type's object for a word without an offset (nilchan); none: NULL. */
void core_handle_nil(uint8_t kind, PyObject *nil);
void core_handle_dealloc(PyObject *h);
Py_hash_t core_handle_hash(PyObject *h);
PyObject *core_handle_richcompare(PyObject *a, PyObject *b, int op);
/* For a pickle that is not the codec's. */
PyObject *core_handle_reduce(PyObject *h, PyObject *none);
PyObject *core_pickled(CoreProg *prog, PyObject *none); /* map.c */
void core_handle_rest(struct core_proc *s);             /* lets go of what it keeps alive */
#define CORE_HANDLE_SLOTS                                                                          \
    .tp_basicsize = sizeof(CoreHandle), .tp_dealloc = core_handle_dealloc,                         \
    .tp_hash = core_handle_hash, .tp_richcompare = core_handle_richcompare,                        \
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE, \
    .tp_weaklistoffset = offsetof(CoreHandle, weakrefs)
#define CORE_HANDLE_REDUCE {"__reduce__", core_handle_reduce, METH_NOARGS, NULL}

/* error.c. The classes, imported from mpgort._errors once */
extern struct core_err {
    PyObject *ChanError, *Closed, *Cancelled, *Killed, *SerializationError, *BadContinuation,
        *BadSegment, *OutOfSharedMemory;
    PyObject *Goexit;   /* goexit() raises it; private to this package */
    PyObject *await_it; /* async def f(x): return await x */
    PyObject *make_panic, *make_death, *make_deadlock; /* mpgort._traceback: the texts */
} core_err;
SHM_COLD PyObject *
core_take_exc(void); /* the exception that is set, with its traceback, as an object */
SHM_COLD int core_raise(PyObject *exc); /* sets it (owned; NULL: nothing); always -1 */
/* What ended the program from elsewhere (a panic, a dead worker) as an exception object, or
 * NULL. */
PyObject *core_failure(CoreProg *prog);
PyObject *core_deadlock(struct core_proc *s); /* the exception, with its dump */

/* A park request for `op` with operand a (a new reference is taken; NULL allowed). */
PyObject *core_park_for(int op, PyObject *a);
/* Waits for ever, for `reason` (nil channel, empty select). */
PyObject *core_park_forever(unsigned reason);

/* dump.c: leaves the frames of this M's home goroutines where a dump finds them; frees one's. */
SHM_COLD void core_dump_asked(struct core_proc *s);
/* dump.c: the number of the line that runs in this thread (shm_g_site), 0: none. */
uint32_t core_site(struct core_proc *s);
void core_sites_free(struct core_proc *s);
PyObject *core_live_frames(PyObject *root);
/* trace.c: a number for it in the code table, 0: none; and back, None for 0. */
uint32_t core_intern(struct shm_ctx *c, const char *kind, PyObject *what);
PyObject *core_named(struct shm_ctx *c, uint32_t id);
/* trace.c: the next event of this M has the stack of root, which is about to park in pk. */
SHM_COLD void core_trace_stack(struct shm_ctx *c, PyObject *root, CorePark *pk);
void core_home_note_free(struct core_proc *s, struct shm_g *g);

/* chan.c, for select: which operation of which channel this bound method is. PK_SEND, PK_RECV,
 * PK_RECV_OK; 0: it is none; -1: one that the direction of the view forbids (exception set). */
int core_chan_method(PyObject *o, CoreHandle **ch);
bool core_is_chan(PyObject *o);

int core_select_init(PyObject *mod);
/* thread.c */
void core_thread_end(struct core_proc *s, struct core_home *h);
bool core_thread_rest(struct core_proc *s);

int core_thread_init(PyObject *mod);
int core_sync_init(PyObject *mod);
int core_mutex_init(PyObject *mod); /* after that */
int core_atomicint_init(PyObject *mod);
int core_map_init(PyObject *mod);
int core_group_init(PyObject *mod);
int core_timer_init(PyObject *mod);
int core_ctxtree_init(PyObject *mod);
/* spawn.c: spawn, for a queue of ended goroutines; the handle. */
PyObject *core_spawn(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw, shm_off doneq,
                     uint32_t retries);
/* spawn with its own keywords taken out of kw (a dict of this call's own); doneq 0: none. go: as go
 * does. */
PyObject *core_spawn_options(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kw,
                             shm_off group, shm_off doneq, bool go);

int core_gm_init(PyObject *mod);
int core_runtime_init(PyObject *mod);
int core_pool_init(PyObject *mod);
int core_buffer_init(PyObject *mod);
void core_unexport(CoreProg *prog); /* prog.c: a buffer of its mapping is gone */
int core_dump_init(PyObject *mod);
int core_trace_init(PyObject *mod);

#endif
