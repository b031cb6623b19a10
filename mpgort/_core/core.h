/* core.h — declarations shared by the files of mpgort._core.
 *
 * Direction: frame, codec (continuations) -> proc (the M's loop) -> goroutine, chan (faces).
 * frame.c and codec.c know nothing of Ms, Ps or the scheduler; what they need of the segment they
 * get through `struct core_codes` and the handle hooks below. */
#ifndef MPGORT_CORE_H
#define MPGORT_CORE_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_BUILD_CORE_MODULE
#define Py_BUILD_CORE_MODULE 1
#endif
#include <Python.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include "shm.h"

/* To fail is cold, too. */
SHM_COLD PyObject *PyErr_Format(PyObject *, const char *, ...);
SHM_COLD PyObject *PyErr_NoMemory(void);
SHM_COLD void PyErr_SetString(PyObject *, const char *);
SHM_COLD void PyErr_SetObject(PyObject *, PyObject *);
SHM_COLD void PyErr_SetNone(PyObject *);
SHM_COLD void PyErr_Clear(void);
SHM_COLD PyObject *PyErr_Occurred(void);

/* ---- encode.c, frame.c: values and await chains <-> bytes ------------------------------------ */

/* A byte sink, reused from park to park by its M. `nh` runtime handles were written; their words
 * stand in `h`, to be stored with the bytes. They count as references from then on; until then the
 * objects in `of`, owned, keep what they refer to alive (core_enc_let()). */
struct core_enc {
    uint8_t *p, *base, *end; /* write pointer, start and end of the buffer (grown by realloc) */
    uint64_t *h;             /* handle words in order of appearance: kind << 56 | offset */
    PyObject **of;
    uint32_t nh, hcap;
    bool loose;       /* the bytes go where nobody counts references: handles are refused */
    size_t budget;    /* bytes after which encoding stops with ENC_HEAVY; SIZE_MAX: no limit */
    char reason[256]; /* why ENC_PINNED / ENC_HEAVY: names the local and the culprit */
};

enum {
    ENC_OK = 0,
    ENC_PINNED = 1, /* cannot be encoded now; the live coroutine is untouched; see e->reason */
    ENC_HEAVY = 2,  /* larger than e->budget; the live coroutine is untouched */
    ENC_ERROR = -1, /* Python exception set (MemoryError and the like) */
};

int core_enc_init(struct core_enc *e);
void core_enc_reset(struct core_enc *e); /* empties, keeps the buffer */
void core_enc_free(struct core_enc *e);
/* Lets go of the handles written from number `from` on: they are stored, or will not be. */
void core_enc_let(struct core_enc *e, uint32_t from);
int core_enc_append(struct core_enc *e, const void *bytes, size_t n); /* ENC_OK or ENC_ERROR */

/* Encodes the suspended await chain rooted at `root`, which stands at the native park request
 * `park` (an object of the exact type CoreParkType on the leaf's stack). On ENC_OK the bytes are in
 * e; the live chain is still alive: drop it with core_chain_drop(). */
int core_chain_encode(PyObject *root, PyObject *park, struct core_enc *e);
/* Drops (DECREFs) a chain that was just encoded: runs no finally, warns of nothing, leaks nothing.
 * Of one that was not (at home until the end) only what the await chain alone holds is sure to. */
void core_chain_drop(PyObject *root);
/* What the drop has to look after, for a chain that is dropped later: taken after its encoding (its
 * former content must be used up), valid until the chain is resumed. */
struct core_frames {
    void **gens; /* borrowed from the chain */
    uint32_t n, cap;
};
void core_chain_frames_take(PyObject *root, struct core_frames *f);
void core_chain_drop_kept(PyObject *root,
                          struct core_frames *f); /* leaves f empty, with its room */
/* The handle words that bytes hold, while they are decoded: each makes one handle, which takes a
 * reference of its own; a word that is not there makes none. The bytes keep theirs until they are
 * dropped, so whatever instruction a death comes at, every reference stands somewhere
 * (shm/reap.c). */
struct core_words {
    uint64_t *w; /* 0: made a handle */
    uint32_t n, next;
    uint64_t few[8];
};
int core_words_open(struct core_words *W, const uint64_t *h, uint32_t n); /* -1: no memory */
void core_words_close(struct core_words *W);
/* Rebuilds the chain. Returns the root coroutine (new reference), or NULL with an exception
 * (mpgort._errors.BadContinuation for damaged bytes, CodeMismatch for other code). The leaf stands
 * at a fresh park request; *park receives it (borrowed; it lives on the leaf's stack).
 * W: here and below, the words of the bytes; NULL: they hold none. */
PyObject *core_chain_decode(const uint8_t *p, size_t n, struct core_words *W, PyObject **park);
/* Resumes the chain with `value` (borrowed) as the result of the awaited park, by fast-forward
 * where that is safe (frames.md §3), else through the park. As PyIter_Send: PYGEN_NEXT: *out is the
 * new park request (or a foreign object); PYGEN_RETURN: *out is the result; PYGEN_ERROR: exception
 * set. */
PySendResult core_chain_send(PyObject *root, PyObject *park, PyObject *value, PyObject **out);
/* Raises the given exception instance (borrowed) at the awaited park. */
PySendResult core_chain_throw(PyObject *root, PyObject *park, PyObject *exc, PyObject **out);

/* Values by value: messages, arguments, results. ENC_OK, or ENC_ERROR with SerializationError set,
 * naming the path to the culprit ("args[0].conn: a socket never crosses"). */
int core_value_encode(PyObject *v, struct core_enc *e);
/* The same for a call, a tuple (fn, args[, kwargs]): the path begins with "args" or "kwargs". */
int core_call_encode(PyObject *call, struct core_enc *e);
PyObject *core_value_decode(const uint8_t *p, size_t n, struct core_words *W);
/* The same bytes for the values that most messages are (None, bool, int, float, short str), without
 * what a blob needs that may hold anything: how many of at most `room` were written to p, 0: not
 * such a value. Decoding: NULL without an exception says the same. */
size_t core_value_encode_small(PyObject *v, uint8_t *p, size_t room);
PyObject *core_value_decode_small(const uint8_t *p, size_t n);

/* An exception that ends a goroutine, for whoever awaits it: type, args, cause, context, notes, and
 * the text of its traceback here, which decode chains as the cause (as concurrent.futures does).
 * What of it cannot cross is left out, and a note says so: an argument arrives as text, a class as
 * its nearest builtin base. Encode fails (ENC_ERROR) only for want of memory. */
int core_exc_encode(PyObject *exc, struct core_enc *e);
PyObject *core_exc_decode(const uint8_t *p, size_t n, struct core_words *W);
/* The items of a contextvars.Context that can cross (others are left out); decode sets them in the
 * current context: 0, or -1 with an exception. */
/* The frames of an encoded chain without rebuilding it, for dumps: a new list of
 * (qualname, file, line), outermost first. Never trusts the bytes; NULL with an exception set. */
PyObject *core_chain_frames(const uint8_t *p, size_t n);

/* ---- the park request ------------------------------------------------------------------------ */

/* What an awaitable of the runtime yields to the M's loop. Its exact type is how the loop knows
 * its own from a foreign object (asyncio's futures, say). Awaiting it yields it once; what it is
 * resumed with is `result` if set, else the value sent; `exc` if set is raised instead. Never
 * pickled: in a continuation it is one tag, and a fresh one of kind CORE_PARK_RESUMED stands there
 * after decoding. Freelisted. */
typedef struct {
    PyObject_HEAD int kind; /* which operation: CORE_PARK_*, owned by proc.c */
    int state;              /* 0 fresh, 1 yielded, 2 done */
    PyObject *result;       /* owned or NULL */
    PyObject *exc;          /* owned or NULL */
    PyObject *a, *b; /* operands kept for the operation (channel handle, value, unlockf, ...) */
    uint64_t u[2];   /* native operands */
} CorePark;
enum { CORE_PARK_RESUMED = 0, CORE_PARK_TEST = 1 }; /* below 8: frame.c's own; others: proc.h */
extern PyTypeObject CorePark_Type;                  /* park.c */
CorePark *core_park_new(int kind);                  /* new reference; from the freelist */
/* pk has got the operand o. The collector has to know of it only if o may lead back to it, which a
 * handle or an int cannot: an await is not to pay for that. */
static inline void core_park_holds(CorePark *pk, PyObject *o)
{
    if (o != NULL && PyType_IS_GC(Py_TYPE(o)))
        PyObject_GC_Track(pk);
}

/* First try of the operation, called when the park is awaited the first time (proc.c and the
 * primitives set it): 1 done, *result owned: the coroutine does not suspend; 0 must park: the park
 * is yielded; -1 exception set. NULL: always yield. */
typedef int (*core_park_try)(CorePark *park, PyObject **result);
#define CORE_PARK_KINDS 64
extern core_park_try core_park_tries[CORE_PARK_KINDS];
/* What a user has called to get a request of this kind, for the warning that he has not awaited it;
 * NULL: such a request is made where it is awaited. */
extern const char *core_park_names[CORE_PARK_KINDS];

/* ---- hooks the codec calls ------------------------------------------------------------------- */

/* Runtime handles (Chan, Goroutine, ...) cross as one word: kind << 56 | offset. The block that the
 * word is stored in counts as a reference on the object at the offset. */
struct core_handle_type {
    PyTypeObject *type;
    uint8_t kind;                  /* 1..127, unique */
    uint64_t (*word)(PyObject *o); /* the offset, nothing is counted; UINT64_MAX: exception */
    PyObject *(*make)(uint8_t kind, uint64_t off); /* the bytes keep their reference */
};
int core_handle_register(const struct core_handle_type *t);

/* The shared table of code objects, functions and names: an append-only map of content hash ->
 * (small id, payload bytes), the same in every M. prog.c backs it by the segment; without a
 * segment (unit tests of the codec) frame.c backs it by a process-local table. */
struct core_codes {
    /* Returns the id (>= 1) of the entry with this 128-bit hash, adding it if new; 0 with
     * exception set when full. */
    uint32_t (*intern)(const uint8_t hash[16], const void *payload, size_t n);
    /* The payload of an id, or NULL if there is none. Stable for the life of the table. */
    const void *(*payload)(uint32_t id, size_t *n, uint8_t hash[16]);
};
extern struct core_codes core_codes;
/* Forgets what was cached against the former table (called when a segment is attached or left). */
void core_codes_changed(void);

void core_failpoint_arm(void);        /* failpoint.c: nothing in a release build */
void core_fault_arm(struct shm_m *m); /* fault.c: the last words of a worker */
void core_fault_disarm(void);
/* What *b would do, from within the handler that stands before it; fault.c. */
void core_signal_pass(const struct sigaction *b, int sig, siginfo_t *info, void *where);
/* guard.c. Under the GIL. -1: exception set. */
int core_guard_watch(const struct shm_ctx *c);
void core_guard_leave(const struct shm_ctx *c);
bool core_guard_cut(const struct shm_ctx *c); /* it has been cut short since */
int core_guard_init(PyObject *mod);
int core_park_init(PyObject *mod);
int core_codec_init(PyObject *mod);

/* ---- prog.c: a program (one segment) as this process sees it --------------------------------- */

/* Python: mpgort._core.Program. A process has one per runtime it takes part in: a worker exactly
 * one, M0 as many as it has Runtimes. All use of the two ctxs happens with the GIL held, but for
 * the loop's blocking shm_findrunnable(): so one AUX M slot serves all threads of the process that
 * run no loop. Every runtime handle keeps its program alive. */
typedef struct core_prog {
    PyObject_HEAD struct shm_ctx
        loop;           /* of the thread that runs (or may run) the M's loop in this process */
    struct shm_ctx aux; /* of all other threads; its M slot is taken at the first use */
    bool attached;      /* the mapping is there; false after detach: handles raise */
    bool aux_on;
    bool forked;            /* this is a child of the process whose slots these were */
    struct core_prog *next; /* of all in this process */
    bool is_m0;
    bool watches; /* mapped by a monitor: no M slot, reads only (_monitor.py) */
    bool guarded; /* by a monitor, or for a command of one: guard.c looks after the mapping */
    unsigned long
        loop_thread;   /* PyThread_get_thread_ident() of the loop's thread, 0: no loop runs */
    PyObject *handles; /* dict: offset -> weak reference to the one handle object of this process */
    struct core_proc *proc; /* the loop's own state, made by core_proc_get() on first use */
    PyObject *weakrefs;
    PyObject *tick; /* callable or None: M0 calls it about every 100 ms: core_tick() */
    uint64_t ticked_ns;
    Py_ssize_t exports; /* live buffers of view(): the mapping stays until the last is gone */
    uint64_t max_tasks; /* a worker retires when it has run so many goroutines, ... */
    uint64_t max_rss;   /* ... or has grown to so many bytes; 0: no limit */
    PyObject *known;    /* _byvalue.Known: what its workers have as __main__; None but in M0 */
    uint64_t known_id;  /* another for each that was ever set */
} CoreProg;
extern PyTypeObject CoreProg_Type;
/* Initial-exec: read at each step of the hot path, and two words fit into the room that the loader
 * keeps for libraries that come late. */
#define CORE_TLS _Thread_local __attribute__((tls_model("initial-exec")))
/* The program whose goroutine (or worker) the calling thread runs; NULL in outside threads. */
extern CORE_TLS CoreProg *core_prog_cur;
/* The ctx that the calling thread may use: loop in the loop's thread, aux elsewhere (slot taken on
 * first use). NULL with an exception set: detached, or no M slot left. */
struct shm_ctx *core_ctx(CoreProg *prog);
/* Sets the exception for a negative SHM_E code: OutOfSharedMemory with figures and the option to
 * raise, and so on. Always returns -1. */
SHM_COLD int core_shm_error(CoreProg *prog, int err); /* error.c */
SHM_COLD int core_detached(void); /* the same for a program that is not mapped any more */
SHM_COLD int core_bad_segment(const char *why);

/* ---- loop.c: the M's loop -------------------------------------------------------------------- */

/* Worker: takes a P and runs goroutines until shutdown. 0, or -1 with an exception set. */
int core_m_loop(CoreProg *prog);
/* M0: runs fn(*args, **kwargs) as goroutine 1, at home;
 * returns its value, or NULL and exception. */
PyObject *core_main_loop(CoreProg *prog, PyObject *fn, PyObject *args, PyObject *kwargs);
/* proc.c. Frees its state of a program that is detached (or in a forked child that is no M). */
void core_proc_free(CoreProg *prog);

int core_error_init(PyObject *mod);
int core_pdeath_init(PyObject *mod);
int core_prog_init(PyObject *mod);
int core_goroutine_init(PyObject *mod);
int core_spawn_init(PyObject *mod);
int core_chan_init(PyObject *mod);

#endif
