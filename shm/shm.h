/* shm.h — START HERE. The one public header of the shared core.
 *
 * This library owns everything that lives in the shared segment. It knows words, offsets, bytes and
 * process ids, never a PyObject; so it is tested as plain C, with threads or forked processes
 * standing in for Ms. The names are those of Go's runtime/proc.go wherever Go has one.
 *
 * One header, though it is long: it is the map of the segment and the list of all verbs, file by
 * file in the order of dependence, and is read more often from an index than from end to end.
 *
 * WORDS
 *   segment   one POSIX shared-memory object per program, mapped by every process at whatever
 *             address it gets. Inside it there are no pointers: a `shm_off` is a byte offset from
 *             the start, 0 is "none".
 *   ctx       what one M (one thread of one process) knows of the segment: base address, its M, its
 *             P. Never shared, never in the segment.
 *   gref      (generation << 32 | index) of a g. A slot is reused at once, so every outside
 *             reference carries the generation it was made for. 0 is "none" (index 0 is not used).
 *   tx        a transaction: stores that are noted in the M's undo log first, so that a reaper can
 *             roll back what a dead M left half done.
 *
 * INVARIANTS THAT PERVADE (each is kept in the file named, checked in check.c)
 *   INV status-truth     queues are hints: who pops a gref owns the G only if its CAS
 *                        runnable -> running with that generation succeeds (g.c).
 *   INV nothing-in-hand  between taking a G out of one place and making it visible in the next, the
 *                        M names it in m->inflight (runq.c, sched.c).
 *   INV one-waker        every wait is claimed by a CAS on the wait word, (epoch, armed) ->
 *                        (epoch, claimed by M); who loses touches nothing of that G (g.c).
 *   INV parked-complete  a G that is visible as waiting or runnable has its continuation complete
 *                        in the heap, or says in `home` which M has it live (sched.c).
 *   INV touch-nothing    once the wait word is armed, the parking M touches nothing of that G.
 *   INV undo             between tx_begin and tx_commit nothing can fail or block; what changes
 *                        under a lock changes by shm_tx_store64 and its like (undo.c).
 *   INV only-the-dead    nothing is taken over from a process that may still run (lock_futex.c).
 *
 * LOCK ORDER: a channel, join or timer-heap lock may be held when the global queue's or the heap's
 * is taken; never two channel locks except in select, by ascending offset. Before a timer heap's
 * lock may come an after_func's or that of a tree of contexts, after it a channel's. The list of
 * sync objects, then one of them; a Cond, then its mutex. No G is readied while a channel lock is
 * held: peers are claimed under the lock, named in m->inflight, readied after it.
 *
 * WHAT BLOCKS WHAT
 *   a park        blocks the G; the M goes on to schedule().
 *   a lock        blocks the M, for the length of a transaction; its waiter sleeps with a bound and
 *                 looks whether the owner lives.
 *   a note        blocks the M, without a P (it was put back before).
 *
 * ERRORS: 0 or a negative SHM_E…; nothing has changed on failure. A broken invariant is
 * shm_throw(), which says what was found and what was wanted and does not return. */
#ifndef SHM_SHM_H
#define SHM_SHM_H

#include "atomic.h"
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SHM_MAGIC 0x74726f67706d0a1aULL /* "mpgort" and two bytes no text has */
/* By the sizes of what a monitor of another build would misread; a number kept by hand would be
 * forgotten. */
#define SHM_LAYOUT_VERSION                                                     \
    ((uint32_t)(sizeof(struct shm_m) * 1000003 + sizeof(struct shm_p) * 1009 + \
                sizeof(struct shm_g)))
#define SHM_MAX_M 256 /* M slots: workers, M0, keeper, outside threads */
#define SHM_MAX_P 128
#define SHM_MAX_CODE 65536  /* entries of the code table */
#define SHM_MAX_REASON 256  /* wait reasons that users register */
#define SHM_REASON_BYTES 64 /* the text of one, with its final zero; at reason_off, in order */
#define SHM_CACHELINE 64
#define SHM_MUSTUSE __attribute__((warn_unused_result))
/* Hardly ever called: the compiler lays the branches that lead to it apart from those that go on. */
#define SHM_COLD __attribute__((cold))

typedef uint64_t shm_off;
typedef uint64_t shm_gref;

enum {
    SHM_OK = 0,
    SHM_PARKED = 1,      /* the G is waiting: touch nothing of it */
    SHM_ENOMEM = -1,     /* the heap is at heap_bytes */
    SHM_ENOSPC = -2,     /* /dev/shm has no room for the next chunk */
    SHM_EGFULL = -3,     /* max_goroutines reached */
    SHM_EAGAIN = -4,     /* would block */
    SHM_ECLOSED = -5,    /* channel closed */
    SHM_EBADSEG = -6,    /* not a segment, damaged, other version or other user's */
    SHM_ETIME = -7,      /* timed out */
    SHM_EINTR = -8,      /* m->attn or a signal wants the caller's attention */
    SHM_EFULL = -9,      /* a fixed table is full (Ms, codes, reasons) */
    SHM_EDEAD = -10,     /* the program is shutting down */
    SHM_ESYS = -11,      /* a system call failed: errno */
    SHM_EDEADLOCK = -12, /* all goroutines are asleep (to M0's findrunnable only) */
    SHM_ERETIRE = -14,   /* this worker is beyond need (to findrunnable only) */
    SHM_EOWNER = -13,    /* the holder of the lock died with its M */
};
const char *shm_strerror(int err);
_Noreturn void shm_throw(const char *fmt, ...) __attribute__((cold, format(printf, 1, 2)));
/* Called by shm_throw with the finished text instead of writing it to stderr and abort(). */
extern void (*shm_throw_hook)(const char *text);

/* ---- values ---------------------------------------------------------------------------------- */

/* A message, result or resume value as opaque bytes: up to 15 in place, else in a heap block that
 * the value owns. Whoever takes the value takes the block. */
struct shm_val {
    union {
        uint8_t b[15];
        struct __attribute__((packed)) {
            uint64_t off; /* heap block */
            uint32_t len;
        } h;
    };
    uint8_t tag; /* 0..15: that many bytes in place; SHM_VAL_HEAP; SHM_VAL_NONE: no value at all */
} __attribute__((packed, aligned(8)));
static_assert(sizeof(struct shm_val) == 16, "two words");
#define SHM_VAL_HEAP 0x80
#define SHM_VAL_NONE 0xff

/* ---- objects with counted references --------------------------------------------------------- */

/* First words of every shared object that handles refer to. */
struct shm_obj {
    /* References << 32 | M slot + 1 of who is just changing their number << 16 | SHM_OBJ_*; handle.c */
    _Atomic uint64_t word;
};
#define SHM_OBJ(refs, by, kind) ((uint64_t)(refs) << 32 | (uint64_t)(by) << 16 | (kind))
#define SHM_OBJ_REFS(w) ((uint32_t)((w) >> 32))
#define SHM_OBJ_BY(w) ((uint32_t)((w) >> 16 & 0xffff))
static inline uint32_t shm_kind(const struct shm_obj *o)
{
    return load_rlx(&o->word) & 0xffff; /* never changes */
}
static inline uint32_t shm_refs(const struct shm_obj *o)
{
    return SHM_OBJ_REFS(load_acq(&o->word)); /* pairs with who changed it: what he did before */
}
/* By who makes it: nobody else knows it yet. */
static inline void shm_obj_init(struct shm_obj *o, uint32_t kind, uint32_t refs)
{
    store_rlx(&o->word, SHM_OBJ(refs, 0, kind)); /* published with what names it */
}
enum {
    SHM_OBJ_CHAN = 1, /* with ch->timer: a struct shm_timer */
    SHM_OBJ_JOIN = 2,
    SHM_OBJ_TIMER = 3, /* struct shm_afterfunc */
    SHM_OBJ_SEMA = 4,
    SHM_OBJ_USER = 5,
    SHM_OBJ_CONTEXT = 6,
    SHM_OBJ_MAP = 8,
    SHM_OBJ_ATOMIC = 9,
    SHM_OBJ_ARRAY = 7,
    SHM_OBJ_GROUP = 10,
    SHM_OBJ_DONEQ = 12,
};
/* What g->waitkind can say beside these: g->waitobj is a select's block; a struct shm_p, whose
 * timer heap has the sleeper. Nothing has a handle on either. */
enum { SHM_WAIT_SELECT = 64, SHM_WAIT_SLEEP = 65 };

/* A lock word: owner M and the epoch of that M's slot; bit 31: somebody may sleep on it.
 * 0: free. */
typedef _Atomic uint32_t shm_lockword;

/* ---- sudog: one G waiting on one object ------------------------------------------------------ */

struct shm_sudog {      /* changes under the lock of `obj` only */
    shm_off next, prev; /* of other sudogs in the same queue */
    shm_gref g;         /* who waits */
    uint32_t epoch;     /* of the wait it stands for (low 32 bits); stale ones never match again */
    uint8_t linked;     /* which queue: 0 none, 1 recvq / waiters / timer heap, 2 sendq */
    uint8_t isselect;   /* one of several of its G */
    uint16_t which;     /* case index of a select's; of a g's own: shm_g_site() */
};
static_assert(sizeof(struct shm_sudog) == 32, "fits in g");

/* ---- g --------------------------------------------------------------------------------------- */

enum shm_status { Gidle = 0, Grunnable = 1, Grunning = 2, Gwaiting = 4, Gdead = 6 };
/* status word: generation << 32 | owner M slot + 1 << 16 | status. The owner is the M that runs it
 * or that made the last move; the generation is that of the grefs that match. */
#define SHM_ST(gen, m1, st) ((uint64_t)(gen) << 32 | (uint64_t)(m1) << 16 | (st))
#define SHM_ST_STATUS(w) ((unsigned)((w) & 0xff))
#define SHM_ST_M1(w) ((unsigned)((w) >> 16 & 0xffff))
#define SHM_ST_GEN(w) ((uint32_t)((w) >> 32))
/* wait word: epoch << 24 | claimer M slot + 1 << 8 | state */
enum { SHM_W_NONE = 0, SHM_W_ARMED = 1, SHM_W_CLAIMED = 2 };
#define SHM_W(epoch, m1, st) ((uint64_t)(epoch) << 24 | (uint64_t)(m1) << 8 | (st))
#define SHM_W_EPOCH(w) ((uint64_t)(w) >> 24)
#define SHM_W_STATE(w) ((unsigned)((w) & 0xff))
#define SHM_W_M1(w) ((unsigned)((w) >> 8 & 0xffff))

enum {                     /* g->flags, written by the owner of the G */
       SHM_GF_OUTSIDE = 1, /* stands for a thread that is no M: readied by a futex on status */
       SHM_GF_MAIN = 2,
       SHM_GF_COUNTED = 4, /* it stands in spawned - finished; by tx with those: g.c */
       SHM_GF_STARTED = 8, /* the continuation is an await chain, not a call */
       SHM_GF_DURABLE = 16,
       SHM_GF_BATCH = 32,    /* runs when nothing else is to (runq.c); from its birth on */
       SHM_GF_GO = 64,       /* started by go: an exception is a panic */
       SHM_GF_CONTEXT = 128, /* the continuation ends with its context variables */
};
enum {
    SHM_HOME_NONE = 0,
    SHM_HOME_MAIN,
    SHM_HOME_PINNED,
    SHM_HOME_HEAVY,
    SHM_HOME_LOCKED,
    SHM_HOME_TIMED /* a plain function or thread waits for so long at most: shm_checkdead() */
};

enum {
    SHM_OK_CLOSED = 0,
    SHM_OK_VALUE = 1,
    SHM_OK_CANCELLED = 2,
    SHM_OK_TIMEOUT = 3,
    SHM_OK_COMPETE = 4, /* a mutex was free: try, or wait once more (mutex.c) */
    SHM_OK_OWNER = 5,   /* the holder of the lock died with its M */
    SHM_OK_KILLED = 6,
};

struct shm_g {
    _Atomic uint64_t status; /* moves by casgstatus only */
    _Atomic uint64_t wait;   /* armed by the parker, claimed by the one waker */
    /* Below: written by the owner of the G (the M that runs it, or the claimer until runnable). */
    uint64_t goid;    /* never reused; main is 1 */
    shm_off cont_off; /* continuation, or the call when not yet started; 0: live at home */
    uint32_t cont_len;
    uint16_t reason;        /* wait reason, of the wait that `wait` counts */
    uint8_t flags;          /* SHM_GF_* */
    uint8_t ok;             /* how the wait ended: SHM_OK_* */
    struct shm_val value;   /* to send while parked in send; what was received when readied */
    shm_gref schedlink;     /* next in the global queue, in a home queue or in the free list */
    uint16_t home_m1;       /* M slot + 1 of the M that has it live, 0: light */
    uint8_t home_why;       /* SHM_HOME_* */
    uint8_t waitkind;       /* what waitobj is: SHM_OBJ_*, SHM_WAIT_*, 0 none (gopark, mcall) */
    uint32_t since_ms;      /* when the wait began, ms since hdr->start_ns */
    shm_off obj;            /* its join object (handle), 0 under go; shm_join_give() */
    uint32_t parent;        /* goid of the creator (low 32 bits) */
    uint8_t op;             /* the binding's: which operation it is parked in */
    uint8_t retries;        /* 1: run again when its M dies (retry.c) */
    uint16_t ran_m1;        /* M slot + 1 of the M that ran it last, 0: not started */
    shm_off waitobj;        /* the object whose queue `sudog` is in, so that a canceller finds it */
    struct shm_sudog sudog; /* for the waits on one object */
};
/* The number of the line that has created it, in the code table; 0: not known. */
static inline uint16_t shm_g_site(const struct shm_g *g)
{
    return g->sudog.which;
}
static inline void shm_g_site_set(struct shm_g *g, uint32_t site)
{
    g->sudog.which = site <= UINT16_MAX ? (uint16_t)site : 0;
}
static_assert(sizeof(struct shm_g) == 128, "two cache lines; 256 bytes a parked G in all");

/* ---- retry.c --------------------------------------------------------------------------------- */

/* The last await of a goroutine with retries, and how it ended: where it is run again from. By the
 * M that runs it, by tx. */
struct shm_retry {
    uint32_t left; /* re-runs */
    uint32_t pad_;
    _Atomic uint64_t epoch; /* of g's wait when it was taken: another now, and g says where it is */
    shm_off cont_off;       /* 0: none yet */
    uint32_t cont_len;
    uint8_t flags, op, ok, waitkind; /* as in g, as all below */
    shm_off waitobj;
    struct shm_val value;
};
static_assert(sizeof(struct shm_retry) == 56, "a line with its header");

/* ---- p --------------------------------------------------------------------------------------- */

#define SHM_RUNQ 256
enum { Pidle = 0, Prunning = 1, Psyscall = 2, Pdead = 4 };

struct shm_timer_ent { /* one entry of a timer heap */
    uint64_t when_ns;  /* CLOCK_MONOTONIC */
    uint64_t what;     /* gref of a sleeper, or offset of a struct shm_tnode | SHM_TNODE */
    uint64_t epoch;    /* wait epoch of the sleeper */
};
#define SHM_TNODE (1ULL << 63)

/* What of an object stands in a timer heap; changes under the timers_lock of P `pi`, which it keeps
 * all its life. */
struct shm_tnode {
    uint32_t pi;
    uint32_t index1;          /* its place in the heap + 1, 0: not there */
    _Atomic uint64_t when_ns; /* 0: not active; UINT64_MAX: active and never due, not in the heap */
    uint32_t kind;            /* SHM_TN_*: what it is a part of */
    uint32_t pad_;
};
enum { SHM_TN_TIMER = 1, SHM_TN_CONTEXT = 2, SHM_TN_JOIN = 3 };

struct shm_p {
    /* The owner P's M writes these; thieves read. */
    _Alignas(SHM_CACHELINE) _Atomic uint64_t runqtail; /* owner only; pairs with thieves' load */
    _Atomic uint64_t runnext;                          /* owner sets, thieves may CAS to 0 */
    _Atomic uint32_t schedtick;                        /* +1 per execute without inherited time */
    uint32_t index;
    _Atomic uint32_t preempt; /* level: set by sysmon, cleared by schedule() */
    _Atomic uint32_t debt;    /* work was queued for which nobody was woken yet */
    /* How often in a row who set runnext came soon to run it (runq.c); 0 by a thief. */
    _Atomic uint32_t prompt;
    _Alignas(SHM_CACHELINE) _Atomic uint64_t runqhead; /* moved by CAS, by owner and thieves */
    _Alignas(SHM_CACHELINE) _Atomic uint64_t status;   /* Pidle.. | M slot + 1 << 16 */
    uint32_t nosteal;                                  /* M0's P (procs >= 1): timers only */
    uint32_t pad0_;
    /* sysmon's notes, written by the keeper only */
    uint32_t sysmon_tick; /* schedtick as it was at sysmon_when_ns */
    uint32_t sysmon_exec; /* its M's st.executed at the last tick, low 32 bits */
    uint64_t sysmon_when_ns;
    uint64_t sysmon_still_ns,
        sysmon_cpu_ns; /* since when its M has executed nothing; its CPU then */
    _Alignas(SHM_CACHELINE) shm_lockword timers_lock;
    uint32_t timers_n, timers_cap; /* under timers_lock */
    uint32_t pad2_;
    shm_off timers_off;           /* array of shm_timer_ent, a 4-ary heap; under timers_lock */
    _Atomic uint64_t timer0_when; /* when of the first, UINT64_MAX: none; read without the lock */
    _Alignas(SHM_CACHELINE) _Atomic uint64_t runq[SHM_RUNQ];
};

/* ---- m --------------------------------------------------------------------------------------- */

enum { SHM_M_FREE = 0, SHM_M_M0, SHM_M_WORKER, SHM_M_KEEPER, SHM_M_AUX };
enum { SHM_M_BUSY = 0, SHM_M_SPINNING = 1, SHM_M_IDLE = 2 }; /* m->spinning; essay of idle.c */
enum { /* m->attn bits, set by anybody, cleared by the M */
       SHM_ATTN_SHUTDOWN = 1,
       SHM_ATTN_OFFLOAD = 2,   /* an idle M asks for a heavy G */
       SHM_ATTN_DUMP = 4,      /* print your running goroutine */
       SHM_ATTN_CHECKDEAD = 8, /* to M0: everybody else is asleep */
       SHM_ATTN_RECYCLE = 16,  /* leave as soon as nothing is at home: another takes your place */
       SHM_ATTN_RETIRE = 64,   /* there are more idle Ms than Ps: you may leave */
       SHM_ATTN_PANIC = 32,    /* to M0: hdr->panic_val is complete */
};
#define SHM_UNDO 512
#define SHM_INFLIGHT \
    168 /* 129 of an overflow batch, 32 of a wake batch, and the single slots below */
enum {
    SHM_IF_READY = 0,
    SHM_IF_KICKED = 1,
    SHM_IF_GOT = 2,
    SHM_IF_NEW = 3,
    SHM_IF_BATCH = 4,
    SHM_IF_ABORT = 133, /* claimed by shm_wait_abort(), which ends it with m->abort_ok */
    SHM_IF_PARK = 134,  /* running -> waiting, not yet armed with m->park_epoch */
    SHM_IF_DRAIN = 135, /* no gref: the offset of an object all of whose waiters are being woken */
    SHM_IF_WAKE = 136
};
#define SHM_NCLASS 28
#define SHM_MAG 64
#define SHM_HELD 72 /* all channels of a select of a few cases, and some on top */
#define SHM_HANDLES_OWN 16
#define SHM_GOING 8 /* a channel in a value in a channel ... */
#define SHM_WORDS_BYTES 4088

struct shm_undo {
    shm_off off;
    uint64_t old;
};

struct shm_mag { /* heap.c: free blocks of one class */
    uint32_t n, pad_;
    shm_off bump, bump_end; /* the rest of the span it cuts blocks from */
    shm_off blk[SHM_MAG];
};

/* An M's counters: its owner's alone (own_add), read by anybody. cont_allocs and cont_frees, of
 * continuations, differ by the blocks that are one (by tx); spawned and finished likewise (g.c). */
/* clang-format off */
#define SHM_COUNTERS(X) \
    X(allocs) X(frees) X(alloc_bytes) X(free_bytes) X(cont_allocs) X(cont_frees) \
    X(spawned) X(finished) X(parks) X(readies) X(executed) X(steals) X(stolen) \
    X(wakes) X(useful_wakes) X(useless_wakes) X(sleeps) X(moves) X(home_parks) X(offloads) \
    X(panics) X(preempted)
/* clang-format on */
struct shm_m {
    _Atomic uint32_t kind; /* SHM_M_*; taken by CAS from FREE */
    _Atomic uint32_t pid;
    _Atomic uint32_t epoch; /* +1 each time the slot is taken */
    uint32_t index;
    _Atomic uint64_t curg;  /* gref it runs */
    _Atomic uint32_t p1;    /* index of its P + 1 */
    _Atomic uint32_t locks; /* acquirem count */
    _Atomic uint32_t attn;
    _Atomic uint32_t looping;      /* 1: it has come to its loop, past what starts an M */
    _Atomic uint64_t run_since_ns; /* when curg began (cached clock), for dumps */
    _Atomic uint64_t tid;
    _Atomic uint64_t kill;         /* gref that the keeper is asked to end with this M; kill.c */
    uint64_t kill_ns, kill_cpu_ns; /* when it has seen that, by the clock and M's; the keeper's */
    _Alignas(SHM_CACHELINE) _Atomic uint32_t note; /* futex: 0 clear, 1 set, 2 somebody sleeps */
    _Atomic uint32_t spinning; /* SHM_M_BUSY.. : the M's, but a waker may move it from SHM_M_IDLE */
    _Atomic uint64_t stands_at; /* a hint: what its G awaits live, by shm_stand(); 0: nothing */
    _Alignas(
        SHM_CACHELINE) _Atomic uint64_t homeq; /* grefs of its own at-home Gs, LIFO by schedlink */
    _Atomic uint32_t homeq_n;                  /* in both lists, about: a hint */
    uint32_t pad0_;
    _Atomic uint64_t homeq_fifo; /* owner only: taken out of homeq, oldest first */
    _Alignas(SHM_CACHELINE) _Atomic uint64_t inflight[SHM_INFLIGHT];
    _Atomic uint64_t park_epoch; /* of the wait that inflight[SHM_IF_PARK] is about to arm */
    _Atomic uint64_t moved;      /* +1 each time Gs came from one queue into another by this M */
    _Atomic uint32_t abort_ok;   /* the ok of the wait that inflight[SHM_IF_ABORT] ends */
    _Atomic uint32_t turning;    /* 1: what was in homeq is on its way to homeq_fifo */
    /* reap.c: 1 << 32 | its wait status, once it is known to be dead; 0: living. */
    _Atomic uint64_t end;
    _Atomic uint32_t reaper_m1; /* who undoes and unlocks what the dead one did */
    uint32_t pad2_;
    _Atomic uint32_t undo_n;
    _Atomic uint32_t held_n;
    _Atomic uint64_t held[SHM_HELD]; /* offsets of the lock words it holds or is about to take */
    _Atomic uint64_t lockset;        /* a struct shm_lockset with more of them, 0: none */
    struct shm_undo undo[SHM_UNDO];
    /* owner only; a reaper after death */
    struct shm_mag mag[SHM_NCLASS];
    struct {
        uint32_t n, pad_;
        uint32_t idx[SHM_MAG]; /* free g slots */
    } gfree;
    /* handle.c: what this M's Python holds */
    shm_off handles_off; /* of the table: handles_own, or a block */
    uint32_t handles_n, handles_cap, handles_free, pad1_;
    /* The count that it is about to change: the object, what its word is then, and which word of the
     * segment gets which value with it. */
    _Atomic uint64_t ref_obj, ref_next;
    uint64_t ref_where, ref_value;
    shm_off hand;       /* an object of which it has a reference that stands nowhere; by tx */
    shm_off hand_join;  /* a new join: the reference that its goroutine is to have; by tx */
    shm_off hand_group; /* that of a child which has ended, while it goes on for the group; by tx */
    uint32_t going_n, pad3_;
    shm_off going[SHM_GOING]; /* objects whose last reference it gives back, one within the other */
    uint64_t handles_own[SHM_HANDLES_OWN]; /* its first table */
    /* Its last words, written as a signal kills it: where it was, as text. 0: none. */
    _Atomic uint32_t words_sig, words_n;
    char words[SHM_WORDS_BYTES];
    struct {
#define X(name) _Atomic uint64_t name;
        SHM_COUNTERS(X)
#undef X
    } st;
};

/* ---- header ---------------------------------------------------------------------------------- */

struct shm_hdr {
    uint64_t magic;
    uint32_t version, header_bytes;
    uint64_t size;           /* reserved bytes, the size of the mapping */
    uint64_t start_ns;       /* CLOCK_MONOTONIC at creation */
    uint32_t uid, pid0;      /* owner, M0 */
    _Atomic uint32_t nprocs; /* gomaxprocs; 0 from start to end: M0 is the one worker (procs.c) */
    uint32_t max_g;
    _Atomic uint32_t max_m; /* M slots that have pages; shm_minit raises it, up to SHM_MAX_M */
    _Atomic uint32_t max_p; /* Ps that have pages, dead ones too; grows up to SHM_MAX_P */
    uint32_t m0_p;          /* M0's P, for its timers; SHM_MAX_P: none, it works like another */
    _Atomic uint32_t extra; /* Ps beside nprocs, for those whose M stands; the keeper's */
    uint32_t m0_slot;       /* M slot of M0 */
    uint32_t migrate;       /* 0 auto, 1 always, 2 never */
    uint32_t scrub;
    uint32_t heavy_bytes; /* budget of a continuation before its G is heavy */
    shm_off mtab_off, ptab_off, gtab_off, code_off, heap_off, reason_off;
    uint64_t heap_bytes;          /* ceiling */
    char name[64];                /* program name, for ps */
    uint64_t wake_cost_ns;        /* measured at start: what a futex wake costs the waker */
    uint64_t spin_ns;             /* how long a dry M spins before it sleeps */
    uint32_t ncpu;                /* processors this program may use; 0: not yet known */
    _Atomic uint32_t reaped;      /* M slots that a reaper has given back, of all kinds */
    _Atomic uint32_t trace_on;    /* SHM_TRACE_*; trace.c, as the next four */
    _Atomic uint32_t trace_rings; /* 0: no rings yet */
    uint32_t trace_cap;           /* events in a ring */
    uint32_t shake;               /* seed of the schedule shaker, 0: off; shake.c */
    shm_off trace_off;            /* the block of rings */
    uint64_t trace_since_ns;      /* when the trace began */

    _Alignas(SHM_CACHELINE) _Atomic uint32_t shutdown; /* 1: all goroutines end */
    _Atomic uint32_t deaths;      /* workers that have ended without giving their slot back */
    _Atomic uint32_t replaced;    /* Ms that were started in the place of others */
    _Atomic uint32_t deadlock_on; /* 1: the last idle worker asks M0 to look for a deadlock */
    _Atomic uint32_t externs; /* outside wakers that may come: deadlock is not reported while > 0 */
    /* 0 none; M slot + 1 << 8 | 1: being written by that M; 2: complete */
    _Atomic uint32_t panic;
    uint32_t panic_how;      /* what panic_val is: SHM_J_ERROR, SHM_J_DIED */
    _Atomic uint32_t want_m; /* spare worker Ms the keeper is asked to start (shm_handoffp) */
    uint64_t panic_goid;
    struct shm_val panic_val;  /* its encoded exception; written once, by who claimed panic */
    shm_lockword procs_lock;   /* nprocs, extra, max_p */
    _Atomic uint32_t retiring; /* M slot + 1 of the M beyond need that leaves */
    _Atomic uint32_t recycled; /* Ms that have begun to leave for SHM_ATTN_RECYCLE */
    _Atomic uint32_t g_scarce; /* 1: max_g was met: free slots go to everybody at once */
    uint64_t surplus_ns;       /* since when the keeper has seen too many Ms; its own */
    _Atomic uint64_t goidgen;  /* next goid */
    _Atomic uint64_t chanid;
    _Atomic uint32_t promised; /* 1: nprocs is a promise, for one that stands there is no other */
    _Alignas(SHM_CACHELINE) _Atomic uint64_t idle_m[SHM_MAX_M / 64]; /* bit: asleep or going to */
    _Atomic uint64_t idle_p[SHM_MAX_P / 64];                         /* bit: P has no M */
    _Atomic uint64_t idle_seq;      /* +1 each time an M leaves idle */
    _Atomic uint32_t poller_m1;     /* the idle M that sleeps with the next timer's time */
    _Atomic uint32_t keeper_asleep; /* 1: sleeps long, kick it (eventfd) when work begins */
    _Alignas(SHM_CACHELINE) shm_lockword sched_lock; /* global queue */
    uint32_t pad1_;
    shm_gref runq_head, runq_tail;     /* under sched_lock, by tx */
    _Atomic uint64_t runq_size;        /* under sched_lock; read without */
    shm_gref batchq_head, batchq_tail; /* as these: Gs of SHM_GF_BATCH */
    _Atomic uint64_t batchq_size;
    _Alignas(SHM_CACHELINE) shm_lockword g_lock; /* central free list of g */
    uint32_t pad2_;
    shm_gref gfree_head;
    _Atomic uint64_t gfree_n;
    _Atomic uint64_t g_next;                        /* first never-used index */
    _Atomic uint64_t g_committed;                   /* indices below have pages */
    _Alignas(SHM_CACHELINE) shm_lockword heap_lock; /* page runs */
    uint32_t pad3_;
    uint64_t heap_top; /* first never-used byte, under heap_lock */
    _Atomic uint64_t heap_committed;
    shm_off run_free;                      /* free page runs, address order, under heap_lock */
    _Atomic uint64_t large_bytes, large_n; /* under heap_lock, as the next; read without */
    _Atomic uint64_t cut[SHM_NCLASS];      /* blocks that the spans have, by class */
    _Atomic uint64_t depot_n[SHM_NCLASS];  /* blocks in the depot, under its lock; read without */
    shm_lockword depot_lock[SHM_NCLASS];
    shm_off depot[SHM_NCLASS]; /* full magazines, linked through their first block */
    _Alignas(SHM_CACHELINE) shm_lockword code_lock;
    _Atomic uint32_t code_n;
    shm_lockword reason_lock;
    _Atomic uint32_t reason_n; /* registered by users */
    shm_lockword sema_lock;
    uint32_t pad7_;
    shm_off sema_first; /* all objects of sema.c, under sema_lock */
};

/* ---- ctx ------------------------------------------------------------------------------------- */

struct shm_ctx {
    uint8_t *base;
    struct shm_hdr *hdr;
    struct shm_m *mtab;
    struct shm_p *ptab;
    struct shm_g *gtab;
    struct shm_m *m; /* this M's slot */
    struct shm_p *p; /* its P, NULL without one */
    uint32_t m1;     /* slot + 1 */
    int fd;
    int kick_fd; /* eventfd of the keeper, -1: none */
    bool in_tx;  /* between shm_tx_begin and shm_tx_commit */
    uint32_t tick;
    uint32_t chain; /* runnexts taken in a row, in one time slice */
    bool homely;    /* takes no P, runs only what is at home here (_core/thread.c) */
    uint64_t rng;
    uint64_t now_ns;      /* clock as of the last findrunnable(), to some ms */
    uint64_t next_ns;     /* when runnext was set, if that is being watched (runq.c); else 0 */
    uint64_t spin_ns;     /* how long this M spins when it runs dry next, 0: hdr->spin_ns */
    uint32_t trace_stack; /* code number of the stack of the next event, 0: none */
    uint32_t trace_name;  /* of the name of the next park, 0: none */
    bool moved;           /* the G that was executed last ran on another M before, or nowhere */
    uint64_t shake;       /* state of the shaker's generator, 0: off; shake.c */
    uint32_t shake_mood, shake_left;
    /* For whom an operation is carried out: under retries (retry.c), or parked in a select that is
     * revived (select.c); 0: for who calls it. */
    shm_gref retrying;
    uint32_t retry_tag; /* of the case of a select that is looked at, else 0; revived: which */
    struct shm_retry retry_old; /* the checkpoint that was left, to be freed */
    uint64_t mapped;
};

static inline void *shm_at(const struct shm_ctx *c, shm_off off)
{
    return c->base + off;
}
static inline shm_off shm_offof(const struct shm_ctx *c, const void *p)
{
    return (shm_off)((const uint8_t *)p - c->base);
}
/* Its table of handles lies in the M. */
static inline bool shm_handles_own(const struct shm_ctx *c, const struct shm_m *m)
{
    return m->handles_off == shm_offof(c, m->handles_own);
}
static inline uint32_t shm_gidx(shm_gref r)
{
    return (uint32_t)r;
}
static inline uint32_t shm_ggen(shm_gref r)
{
    return (uint32_t)(r >> 32);
}
static inline struct shm_g *shm_g(const struct shm_ctx *c, shm_gref r)
{
    return &c->gtab[shm_gidx(r)];
}
uint64_t shm_now_ns(void);

/* ---- segment.c ------------------------------------------------------------------------------- */

struct shm_opts {
    uint32_t nprocs;         /* worker Ps */
    uint32_t max_goroutines; /* slots of the g table, reserved, committed in chunks */
    uint64_t heap_bytes;     /* ceiling of the heap, reserved, committed in chunks */
    uint32_t migrate, scrub, heavy_bytes;
    uint32_t shake; /* seed, 0: off */
    const char *name;
};
/* Sizes, formats and maps a fresh shared-memory object (descriptor kept by the caller too). */
SHM_MUSTUSE int shm_seg_create(struct shm_ctx *c, int fd, const struct shm_opts *o);
/* Maps an existing one; checks mode, owner, magic, version, size and that every offset lies inside.
 * SHM_EBADSEG: `why` says what is wrong with it. */
#define SHM_WHY_BYTES 160
SHM_MUSTUSE int shm_seg_attach(struct shm_ctx *c, int fd, char why[SHM_WHY_BYTES]);
/* The same for a watcher: what it has of the header is a copy, checked as at the attach, which only
 * shm_seg_look() renews. */
SHM_MUSTUSE int shm_seg_watch(struct shm_ctx *c, int fd, char why[SHM_WHY_BYTES]);
SHM_MUSTUSE int shm_seg_look(struct shm_ctx *c, char why[SHM_WHY_BYTES]);
void shm_seg_detach(struct shm_ctx *c);
/* Makes [from, from+n) backed by memory, or SHM_ENOSPC and nothing changed. */
SHM_MUSTUSE int shm_commit(struct shm_ctx *c, shm_off from, uint64_t n);
/* Takes a free M slot for the calling process (or thread). */
SHM_MUSTUSE int shm_minit(struct shm_ctx *c, uint32_t kind);
/* Gives the slot back: flushes magazines and free gs, drops handles. Not for a dead M's. */
void shm_mexit(struct shm_ctx *c);
/* A second thread's ctx on the same mapping, without an M. */
void shm_ctx_copy(struct shm_ctx *to, const struct shm_ctx *from);
/* After fork in a child that keeps the mapping: forget M and P without touching their slots. */
void shm_ctx_forked(struct shm_ctx *c);
struct shm_field {
    const char *table, *field, *dtype; /* numpy dtype text */
    uint32_t offset, size;
};
const struct shm_field *shm_layout(size_t *n);

/* ---- lock_futex.c ---------------------------------------------------------------------------- */

void shm_lock(struct shm_ctx *c, shm_lockword *l);
void shm_unlock(struct shm_ctx *c, shm_lockword *l);
/* Gives back what a dead M held. By its reaper, after the rollback. */
void shm_lock_reap(struct shm_ctx *c, struct shm_m *dead);
/* Is the M that this lock word (or slot, epoch) names still alive? By pid, conservatively. */
bool shm_m_alive(struct shm_ctx *c, uint32_t m1);
SHM_COLD int shm_futex_wait(_Atomic uint32_t *w, uint32_t val,
                            int64_t timeout_ns); /* <0: no limit */
SHM_COLD int shm_futex_wake(_Atomic uint32_t *w, int n);
/* A note is Go's one-shot 0->1 event, on a shared futex; waking nobody costs no system call. */
void shm_noteclear(_Atomic uint32_t *note);
void shm_notewakeup(_Atomic uint32_t *note);
/* True if set; false if the time was up or a signal came. */
bool shm_notetsleep(_Atomic uint32_t *note, int64_t timeout_ns);

/* ---- undo.c ---------------------------------------------------------------------------------- */

void shm_tx_begin(struct shm_ctx *c);
void shm_tx_store64(struct shm_ctx *c, void *word, uint64_t value);
void shm_tx_store32(struct shm_ctx *c, void *word, uint32_t value);
void shm_tx_commit(struct shm_ctx *c);
void shm_tx_rollback(struct shm_ctx *c, struct shm_m *dead); /* by its reaper, or by the M itself */

/* ---- heap.c ---------------------------------------------------------------------------------- */

/* A block's 8-byte header stands before it: class, state (free, allocated, published), owner M and
 * 32 bits for its user. */
struct shm_blk {
    uint8_t cls; /* size class; SHM_NCLASS: a page run */
    uint8_t
        state; /* 0 free, 1 allocated by owner, 2 published: something in the segment names it */
    uint16_t owner_m1;
    uint32_t user; /* of continuations and values: how many handle words end the block, and */
};
#define SHM_BLK_CONT 0x80000000U /* in user: it is a continuation */
static_assert(sizeof(struct shm_blk) == 8, "one word");
static inline struct shm_blk *shm_blk(const struct shm_ctx *c, shm_off off)
{
    return (struct shm_blk *)(c->base + off) - 1;
}
/* At least n bytes, 8-aligned (16 from 64 KiB on), state allocated. SHM_ENOMEM, SHM_ENOSPC. */
SHM_MUSTUSE int shm_alloc(struct shm_ctx *c, size_t n, shm_off *off);
void shm_free(struct shm_ctx *c, shm_off off);
/* State published: something in the segment names the block from now on. Inside a tx it is undone
 * with it; shm_adopt is the way back (what named it does so no more, this M owns it). */
void shm_publish(struct shm_ctx *c, shm_off off);
void shm_adopt(struct shm_ctx *c, shm_off off);
size_t shm_usable(const struct shm_ctx *c, shm_off off);
/* Frees what a dead M had allocated and not published, and takes over its free blocks. By its
 * reaper, after rollback, locks and everything that may still publish one of its blocks. */
void shm_heap_reap(struct shm_ctx *c, struct shm_m *dead);
struct shm_heap_stats {
    uint64_t live_blocks, live_bytes, live_conts, committed, large_bytes;
};
void shm_heap_stats(struct shm_ctx *c, struct shm_heap_stats *s);
/* Calls fn for every block, free ones too; false: the runs do not tile the heap. Takes no lock: for
 * a program at rest, or under heap_lock. */
bool shm_heap_each(struct shm_ctx *c, void (*fn)(void *arg, shm_off off, const struct shm_blk *b),
                   void *arg);

/* ---- bytes.c --------------------------------------------------------------------------------- */

/* Continuation and value blocks: bytes from the start, `nh` handle words (kind << 56 | off) at the
 * end of the usable size, so that they are found without knowing how many bytes there are. Each is
 * one more reference on its object. */
SHM_MUSTUSE int shm_val_make(struct shm_ctx *c, struct shm_val *v, const void *bytes, uint32_t len,
                             const uint64_t *h, uint32_t nh);
const uint8_t *shm_val_bytes(const struct shm_ctx *c, const struct shm_val *v, uint32_t *len);
/* The handle words of a block of shm_val_make() or shm_cont_make(). */
const uint64_t *shm_bytes_handles(const struct shm_ctx *c, shm_off off, uint32_t *n);
/* Out of the segment, into the caller's hands. */
void shm_val_take(struct shm_ctx *c, struct shm_val *to, struct shm_val *from);
/* Frees its block and gives its handles back. */
void shm_val_drop(struct shm_ctx *c, struct shm_val *v);
/* A second, independent value with the same bytes and handles. */
SHM_MUSTUSE int shm_val_copy(struct shm_ctx *c, struct shm_val *to, const struct shm_val *from);
SHM_MUSTUSE int shm_cont_make(struct shm_ctx *c, shm_off *off, const void *bytes, uint32_t len,
                              const uint64_t *h, uint32_t nh);
/* A continuation with the bytes and handles of a value, which stays. */
SHM_MUSTUSE int shm_cont_of_val(struct shm_ctx *c, const struct shm_val *v, shm_off *off,
                                uint32_t *len);
void shm_cont_drop(struct shm_ctx *c, shm_off off, uint32_t len);
/* g's continuation, published; and its end, with what it refers to: by the owner of g. */
void shm_gcont_set(struct shm_ctx *c, struct shm_g *g, shm_off off, uint32_t len);
void shm_gcont_drop(struct shm_ctx *c, struct shm_g *g);
/* The block alone is this M's from here on, with what it refers to; 0: g had none. */
shm_off shm_gcont_take(struct shm_ctx *c, struct shm_g *g);
/* Other bytes into a block of this M's, which keeps its handle words; false: it is not of the size
 * that they would be given. */
bool shm_cont_rewrite(struct shm_ctx *c, shm_off off, const void *bytes, uint32_t len);

/* ---- handle.c -------------------------------------------------------------------------------- */

#define SHM_HANDLE(kind, off) ((uint64_t)(kind) << 56 | (off))
#define SHM_HANDLE_OFF(h) ((h) & 0xffffffffffffffULL)
void shm_obj_ref(struct shm_ctx *c, shm_off obj);
/* The same, and it is in this M's hand: until it is stored (shm_handle_hold()), is that of a wait
 * (the parks on an object take it over from the hand), or is dropped. */
void shm_obj_ref_hand(struct shm_ctx *c, shm_off obj);
/* The wait of a G that this M runs is over, and has a reference on obj that it was for. */
void shm_wait_ended(struct shm_ctx *c, struct shm_g *g, uint8_t kind, shm_off obj);
void shm_wait_ends(struct shm_ctx *c, struct shm_g *g); /* it gives that back */
void shm_obj_unref(struct shm_ctx *c, shm_off obj);     /* the last one frees the object, by kind */
/* The reference in *word is given back, and the word is 0. Not in a tx. */
void shm_obj_unref_word(struct shm_ctx *c, shm_off *word);
bool shm_obj_drop(struct shm_ctx *c, shm_off obj); /* true: it was the last, the caller frees */
/* This M's Python holds a handle on obj (takes over one reference); the slot gives it back. */
SHM_MUSTUSE int shm_handle_hold(struct shm_ctx *c, shm_off obj, uint32_t *slot);
void shm_handle_release(struct shm_ctx *c, uint32_t holder_m1, uint32_t slot);
void shm_handle_reap(struct shm_ctx *c, struct shm_m *dead); /* gives back what a dead M held */

/* ---- g.c ------------------------------------------------------------------------------------- */

/* A fresh G in Gidle with a new generation and goid, named in m->inflight[SHM_IF_NEW]. */
SHM_MUSTUSE int shm_gnew(struct shm_ctx *c, shm_gref *g);
void shm_gfree(struct shm_ctx *c, shm_gref g); /* Gdead -> free list */
/* Goroutines that have begun and not ended: of about now, never too few; exact at rest. */
uint64_t shm_gcounted(const struct shm_ctx *c);
/* The move old -> to by CAS; on a legal race it spins as Go's; throws on an illegal move. False:
 * the generation is another (stale gref). */
bool shm_casgstatus(struct shm_ctx *c, shm_gref g, unsigned old, unsigned to);
unsigned shm_readgstatus(const struct shm_ctx *c, shm_gref g); /* Gdead if the gref is stale */
/* Runnable -> running, or false: a stale or duplicate queue entry (INV status-truth). */
bool shm_gclaim_runnable(struct shm_ctx *c, shm_gref g);
uint64_t shm_wait_next(const struct shm_g *g); /* epoch of the wait being prepared */
void shm_wait_arm(struct shm_ctx *c, shm_gref g, uint64_t epoch);   /* the last act of a park */
bool shm_wait_claim(struct shm_ctx *c, shm_gref g, uint64_t epoch); /* low 32 bits compared */
#define SHM_WAIT_REASONS(X)                        \
    X(NONE, "")                                    \
    X(CHAN_RECV_NIL, "chan receive (nil chan)")    \
    X(CHAN_SEND_NIL, "chan send (nil chan)")       \
    X(SELECT, "select")                            \
    X(SELECT_NO_CASES, "select (no cases)")        \
    X(CHAN_RECV, "chan receive")                   \
    X(CHAN_SEND, "chan send")                      \
    X(SLEEP, "sleep")                              \
    X(JOIN, "join")                                \
    X(THREAD, "to_thread")                         \
    X(GROUP, "group wait")                         \
    X(GROUP_LIMIT, "group limit")                  \
    X(DONEQ, "any goroutine's end")                \
    X(MUTEX_LOCK, "sync.Mutex.Lock")               \
    X(RWMUTEX_RLOCK, "sync.RWMutex.RLock")         \
    X(RWMUTEX_LOCK, "sync.RWMutex.Lock")           \
    X(WAITGROUP_WAIT, "sync.WaitGroup.Wait")       \
    X(COND_WAIT, "sync.Cond.Wait")                 \
    X(SEMAPHORE_ACQUIRE, "sync.Semaphore.Acquire") \
    X(ONCE_DO, "sync.Once.Do")                     \
    X(PREEMPTED, "preempted")                      \
    X(WORKER_LOST, "worker lost")
enum shm_reason {
#define X(name, text) SHM_WR_##name,
    SHM_WAIT_REASONS(X)
#undef X
        SHM_WR_USER
};
const char *shm_reason_text(const struct shm_ctx *c, unsigned reason);
/* The number of a user's reason: the same text is the same number in every M. */
SHM_MUSTUSE int shm_reason_register(struct shm_ctx *c, const char *text, unsigned *reason);

/* ---- runq.c ---------------------------------------------------------------------------------- */

void shm_runqput(struct shm_ctx *c, struct shm_p *p, shm_gref g, bool next); /* owner P only */
shm_gref shm_runqget(struct shm_ctx *c, struct shm_p *p, bool *inherit);     /* owner P only */
void shm_runq_watch(struct shm_ctx *c, struct shm_p *p);                     /* owner P only */
bool shm_runqempty(struct shm_p *p);
uint32_t shm_runqsize(struct shm_p *p);
shm_gref shm_runqsteal(struct shm_ctx *c, struct shm_p *p, struct shm_p *victim, bool stealnext);
void shm_globrunqput(struct shm_ctx *c, shm_gref g); /* or to the batch queue */
shm_gref shm_globrunqget(struct shm_ctx *c, struct shm_p *p, uint32_t max); /* rest to p's ring */
shm_gref shm_batchqget(struct shm_ctx *c);
void shm_homeqput(struct shm_ctx *c, struct shm_m *home, shm_gref g); /* any M */
shm_gref shm_homeqget(struct shm_ctx *c);                             /* own M only, FIFO */
static inline bool shm_any_home(const struct shm_m *m)
{
    /* Seq_cst: tag idle-dance; pairs with shm_homeqput(). */
    return load_seq(&m->homeq) || load_seq(&m->homeq_fifo);
}

/* ---- sched.c: THEN HERE ---------------------------------------------------------------------- */

/* Waiting (claimed by this M) -> runnable, queued where it belongs: its home M's queue, this P's
 * runnext (next) or tail, the global queue without a P; an outside thread by futex. */
void shm_ready(struct shm_ctx *c, shm_gref g, bool next);
/* A filled new G: idle -> runnable, queued as by Go's newproc. */
void shm_newproc(struct shm_ctx *c, shm_gref g);
/* Runnable -> running on this M; false: stale entry, look again. inherit: same time slice. */
bool shm_execute(struct shm_ctx *c, shm_gref g, bool inherit);
/* The next G in Go's order. A worker without a P first takes an idle one; while there is none it is
 * a spare and sleeps. block false: SHM_EAGAIN when there is none now. block true: spins, does the
 * delicate dance, sleeps; SHM_EINTR on attn, signal or shutdown. On M0 with workers: main's home
 * queue and its timers only. Pays wake debts. On M0 a blocking call returns SHM_EINTR at the latest
 * after 100 ms: its caller looks at signals and at the keeper. */
SHM_MUSTUSE int shm_findrunnable(struct shm_ctx *c, bool block, shm_gref *g, bool *inherit);
/* Running -> runnable on the global tail (Gosched, preemption); continuation stored before. */
void shm_gosched(struct shm_ctx *c, shm_gref g);
/* Running -> waiting with `reason`, curg dropped; then the caller arms. For parks on objects the
 * object's own function does this inside its transaction. */
void shm_gopark(struct shm_ctx *c, shm_gref g, unsigned reason);
/* Running -> dead, curg dropped, slot freed. */
void shm_goexit0(struct shm_ctx *c, shm_gref g);
bool shm_preempt_requested(const struct shm_ctx *c); /* cheap: every runtime call asks */

/* ---- idle.c ---------------------------------------------------------------------------------- */

/* Wakes one idle M if there is an idle P and nobody looks for work yet. */
void shm_wakep(struct shm_ctx *c);
/* After SHM_EAGAIN: looks around for some microseconds, as a spinner. True: there is something,
 * find it. False: nothing, or this is not the moment to spin; the caller goes on to a blocking
 * call. For an M that would have to let go of a lock (Python's) before it may block. */
bool shm_linger(struct shm_ctx *c);
/* Instead of a park on obj, some microseconds of this G's M, if it has nothing else to do. True:
 * come() says that the operation might be done now. */
bool shm_stand(struct shm_ctx *c, shm_off obj, bool (*come)(struct shm_ctx *, shm_off));
/* A timer was put into the heap of a P that is not the caller's own: somebody who is awake, or the
 * keeper, must come to know of it. Go's wakeNetPoller. */
void shm_wakepoller(struct shm_ctx *c);
/* Sets hdr->ncpu, hdr->wake_cost_ns and hdr->spin_ns for this machine. Once, by M0 at start. */
void shm_calibrate(struct shm_ctx *c);

/* ---- deadlock.c ------------------------------------------------------------------------------ */

/* True when no M runs, nothing is runnable, no timer is pending and externs is 0. */
bool shm_checkdead(struct shm_ctx *c);

/* ---- procs.c --------------------------------------------------------------------------------- */

SHM_MUSTUSE int shm_acquirep(struct shm_ctx *c, uint32_t pi); /* idle P -> this M's */
void shm_releasep(struct shm_ctx *c);
/* The calling worker is about to block outside the runtime: gives its P away, to an idle M if there
 * is work for it, and asks the keeper for a spare M (hdr->want_m, kick) if no M is idle. */
void shm_handoffp(struct shm_ctx *c);
/* n: the new number of worker Ps, 0: as it is; *old: before. SHM_ENOSPC. Not with procs=0. */
SHM_MUSTUSE int shm_gomaxprocs(struct shm_ctx *c, uint32_t n, uint32_t *old);
/* No more than nprocs goroutines run at once from here on, though they stand in calls that block. */
void shm_procs_promise(struct shm_ctx *c);

/* ---- sysmon.c -------------------------------------------------------------------------------- */

struct shm_child {
    uint32_t m1; /* its slot, 0: not yet known */
    int pid, pidfd;
};
/* One round of the keeper: sleeps as long as nothing is due, at most until something happens on
 * one of the pidfds or the kick; returns the index of a child that has died, -1 M0 has died,
  * -2 nothing (a signal, the kick), -3 shutdown, -4 a spare M is wanted (want_m was lowered by 1),
 * SHM_SYSMON_KILL - i: child i is to be killed for its goroutine (shm_kill_check() first). */
#define SHM_SYSMON_KILL (-16)
int shm_sysmon(struct shm_ctx *c, int m0_pidfd, struct shm_child *children, int n);

/* ---- timer.c --------------------------------------------------------------------------------- */

/* Parks the running G until `when`; its continuation is stored. SHM_PARKED, or an error. */
SHM_MUSTUSE int shm_sleep_park(struct shm_ctx *c, shm_gref g, uint64_t when_ns);
/* Runs what is due on p; returns the next `when` (UINT64_MAX: none). Any M with or without p. */
uint64_t shm_checktimers(struct shm_ctx *c, struct shm_p *p, uint64_t now_ns, uint32_t *ran);
uint64_t shm_timer_next(struct shm_ctx *c); /* earliest over all Ps */

/* ---- sudog.c --------------------------------------------------------------------------------- */

/* Claims a parked G for cancel or timeout, unlinks it from what it waits on and sets g->ok. False:
 * too late, another has it. True: the G is the caller's, who calls shm_ready() (until then the G is
 * named in m->inflight[SHM_IF_READY]). */
bool shm_wait_abort(struct shm_ctx *c, shm_gref g, uint64_t epoch, uint8_t ok);
/* Claims a G that waits on nothing but its readier (gopark) and gives it v, which has moved then.
 * The caller calls shm_ready(). Until then such a wait has g->ok SHM_OK_NONE. */
#define SHM_OK_NONE 0xff
bool shm_wait_give(struct shm_ctx *c, shm_gref g, uint64_t epoch, const struct shm_val *v);
/* Running -> waiting, armed: what a park on nothing but its readier ends with. */
void shm_park_commit(struct shm_ctx *c, shm_gref g, unsigned reason, uint64_t epoch);
/* Takes a claimed G out of the queues of what it waits on, whatever that is: g->waitkind says. Done
 * again, or after a waker that lost the claim has done it, it changes nothing. */
void shm_sudog_unlink(struct shm_ctx *c, shm_gref g);
/* Wakes everybody who waits on a closed channel or an ended goroutine; a reaper calls it for the
 * object that the dead M names in inflight[SHM_IF_DRAIN]. Done again, it changes nothing. */
void shm_waiters_drain(struct shm_ctx *c, shm_off obj);

/* ---- chan.c ---------------------------------------------------------------------------------- */

struct shm_chan {
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t cap;
    _Atomic uint32_t qcount; /* under lock; read without by len() */
    uint32_t sendx, recvx;
    _Atomic uint32_t closed;
    uint32_t timer; /* 1: it is the first part of a struct shm_timer */
    uint32_t done;  /* 1: it is a context's, which buf names, and holds it (context.c) */
    shm_off recvq_first, recvq_last, sendq_first, sendq_last; /* sudogs, FIFO */
    uint64_t id;
    shm_off buf; /* cap values, 0 for cap 0 */
};
SHM_MUSTUSE int shm_chan_new(struct shm_ctx *c, uint32_t cap, shm_off *ch);
void shm_chan_free(struct shm_ctx *c, shm_off ch); /* at the last unref */
/* Non-blocking: SHM_OK (v moved), SHM_EAGAIN, SHM_ECLOSED. A handed-to peer is readied. */
SHM_MUSTUSE int shm_chan_trysend(struct shm_ctx *c, shm_off ch, const struct shm_val *v);
/* SHM_OK (*v owned by the caller), SHM_EAGAIN, SHM_ECLOSED (closed and drained). */
SHM_MUSTUSE int shm_chan_tryrecv(struct shm_ctx *c, shm_off ch, struct shm_val *v);
/* After SHM_EAGAIN, before a park: shm_stand() for a peer. True: try once more. */
bool shm_chan_send_soon(struct shm_ctx *c, shm_off ch);
bool shm_chan_recv_soon(struct shm_ctx *c, shm_off ch);
/* As above, but a G that must wait is parked (SHM_PARKED): linked, waiting, armed, in that order.
 * Send: on SHM_PARKED the value stands in g->value; woken with g->ok 1 sent, 0 closed. Recv: woken
 * with g->ok 1 and g->value, or 0 closed. */
SHM_MUSTUSE int shm_chan_send_park(struct shm_ctx *c, shm_off ch, const struct shm_val *v,
                                   shm_gref g);
SHM_MUSTUSE int shm_chan_recv_park(struct shm_ctx *c, shm_off ch, struct shm_val *v, shm_gref g);
SHM_MUSTUSE int shm_chan_close(struct shm_ctx *c, shm_off ch); /* SHM_ECLOSED: closed already */

/* ---- select.c -------------------------------------------------------------------------------- */

#define SHM_SELECT_MAX 65536 /* as Go's reflect.Select; which + 1 of the last fits in winner */
enum { SHM_DIR_RECV = 1, SHM_DIR_SEND = 2 };
struct shm_case {
    shm_off ch; /* no nil channel: the caller leaves such a case out */
    uint32_t dir;
    uint32_t tag;     /* the caller's; shm_select_done() gives it back */
    struct shm_val v; /* to send */
};
/* One atomic look at all channels; of the cases that are ready, one chosen uniformly at random is
 * done. SHM_OK: *which was done (its v was moved; *v received is the caller's). SHM_ECLOSED: *which
 * is a receive from a channel closed and drained, or a send on a closed one. SHM_EAGAIN. */
SHM_MUSTUSE int shm_select_try(struct shm_ctx *c, const struct shm_case *cases, uint32_t n,
                               uint32_t *which, struct shm_val *v);
/* As above, but a G for which none is ready is parked (SHM_PARKED): then all values are moved, and
 * the wait holds a reference on each channel. After its resumption, cancelled or not, it calls
 * shm_select_done() once. */
SHM_MUSTUSE int shm_select_park(struct shm_ctx *c, const struct shm_case *cases, uint32_t n,
                                shm_gref g, uint32_t *which, struct shm_val *v);
/* The case that ended the wait, and its tag, with g->ok and g->value as after a park on its
 * channel; -1: none (cancelled, timed out). Takes the G out of the other queues, drops what was not
 * sent and gives back the channels. */
int shm_select_done(struct shm_ctx *c, shm_gref g, uint32_t *tag);

/* ---- sema.c, mutex.c ------------------------------------------------------------------------- */

/* What sync is made of: a state, and who waits for it to change. */
enum {
    SHM_SY_MUTEX = 1,
    SHM_SY_RWMUTEX,
    SHM_SY_WAITGROUP,
    SHM_SY_ONCE,
    SHM_SY_COND,
    SHM_SY_SEMAPHORE,
};
enum {                      /* state */
       SHM_SY_DEAD = 1,     /* its holder died with its M; until recover */
       SHM_SY_WOKEN = 2,    /* mutex: a waiter is on its way to try */
       SHM_SY_STARVING = 4, /* mutex: handed over, first come first served */
       SHM_SY_RUNNING = 8,  /* once */
       SHM_SY_DONE = 16,    /* once */
};
#define SHM_SY_LOCKED 1ULL /* in word, below a goid << 8 */
#define SHM_SY_SLOW 2ULL   /* mutex: whatever comes next, it takes the lock */
struct shm_sema {
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t what;         /* SHM_SY_* */
    _Atomic uint64_t word; /* mutex: holder; rwmutex: writer; once: runner; waitgroup: counter; */
                           /* semaphore: what is free */
    uint64_t n;            /* rwmutex: readers; semaphore: its size */
    uint32_t state;        /* under lock, by tx, as all below */
    uint32_t holders_cap;
    shm_off first, last;   /* who waits: FIFO, but for a mutex's that lost again */
    shm_off rfirst, rlast; /* rwmutex: readers who wait */
    uint64_t ticket;       /* of the next waiter */
    uint64_t notify;       /* those with a lower ticket may go */
    shm_off holders;       /* rwmutex: how many goids, and these; 0 none yet */
    shm_off other;         /* cond: its mutex, one reference */
    shm_off next, prev;    /* of all, under hdr->sema_lock */
};
static_assert(sizeof(struct shm_sema) == 120, "two lines with its header");
/* n: of a semaphore; mutex: of a cond (a reference is taken), else 0. */
SHM_MUSTUSE int shm_sema_new(struct shm_ctx *c, uint32_t what, uint64_t n, shm_off mutex,
                             shm_off *sy);
void shm_sema_free(struct shm_ctx *c, shm_off sy); /* at the last unref */
/* goid: the caller's, 0 a thread that is no goroutine. SHM_OK: it has the lock; SHM_EAGAIN: it
 * would have to wait; SHM_EOWNER. */
SHM_MUSTUSE int shm_mutex_trylock(struct shm_ctx *c, shm_off sy, uint64_t goid);
/* As above, but SHM_PARKED for SHM_EAGAIN. Woken with g->ok SHM_OK_VALUE, it has the lock;
 * SHM_OK_OWNER; SHM_OK_COMPETE: it calls shm_mutex_again(). */
SHM_MUSTUSE int shm_mutex_lock_park(struct shm_ctx *c, shm_off sy, shm_gref g);
/* SHM_OK: g->ok has become one of the other two; SHM_PARKED. */
SHM_MUSTUSE int shm_mutex_again(struct shm_ctx *c, shm_gref g);
/* SHM_EAGAIN: it is not locked; SHM_EOWNER. */
SHM_MUSTUSE int shm_mutex_unlock(struct shm_ctx *c, shm_off sy);
/* Waits, in the same transaction that gives back the cond's mutex, which the caller holds.
 * SHM_PARKED; SHM_EAGAIN: the mutex is not locked; SHM_EOWNER. */
SHM_MUSTUSE int shm_cond_park(struct shm_ctx *c, shm_off sy, shm_gref g);
void shm_cond_signal(struct shm_ctx *c, shm_off sy);
void shm_cond_broadcast(struct shm_ctx *c, shm_off sy);
/* RWMutex (how: SHM_SY_WRITE, SHM_SY_READ), WaitGroup, Once, Semaphore (want). SHM_OK, SHM_EAGAIN,
 * SHM_EOWNER; of a Once SHM_OK too to the one who is to run it: shm_once_mine(). */
enum { SHM_SY_WRITE = 1, SHM_SY_READ = 2 };
SHM_MUSTUSE int shm_sema_try(struct shm_ctx *c, shm_off sy, int how, uint64_t want, uint64_t goid);
/* As above, but SHM_PARKED; woken with SHM_OK_VALUE or SHM_OK_OWNER. */
SHM_MUSTUSE int shm_sema_park(struct shm_ctx *c, shm_off sy, int how, uint64_t want, shm_gref g);
/* After a wait that was cancelled or killed: those behind may go now. */
void shm_sema_left(struct shm_ctx *c, shm_off sy);
/* SHM_EAGAIN: it is not locked so. */
SHM_MUSTUSE int shm_rwmutex_unlock(struct shm_ctx *c, shm_off sy, int how, uint64_t goid);
SHM_MUSTUSE int shm_waitgroup_add(struct shm_ctx *c, shm_off sy, int64_t n); /* EAGAIN: below 0 */
bool shm_once_mine(struct shm_ctx *c, shm_off sy, uint64_t goid);
void shm_once_done(struct shm_ctx *c, shm_off sy);
SHM_MUSTUSE int shm_semaphore_release(struct shm_ctx *c, shm_off sy, uint64_t n); /* EAGAIN: more */
/* A lock whose holder died is free again; false: it is not such a lock (any more). */
bool shm_sema_recover(struct shm_ctx *c, shm_off sy);
/* Goroutine goid has died with its M, or was killed: what it held is marked, and who waits for that
 * is told. 0: an M has died, and its goroutines have been told of: whoever may go on is let on,
 * everywhere. By a reaper after rollback and locks, by a killer. */
void shm_sema_reap(struct shm_ctx *c, uint64_t goid);

/* A 64-bit number that all Ms may change. */
struct shm_atomic {
    struct shm_obj obj;
    _Atomic int64_t value;
};
SHM_MUSTUSE int shm_atomic_new(struct shm_ctx *c, int64_t value, shm_off *a);

/* ---- map.c ----------------------------------------------------------------------------------- */

struct shm_map {
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t gen;      /* which link of an entry is in use; under lock, by tx, as all below */
    uint64_t n;        /* entries */
    uint64_t nbuckets; /* a power of two; 0: no table yet */
    shm_off buckets;   /* the first of each chain */
};
struct shm_ment {
    shm_off next[2];
    uint64_t hash;
    struct shm_val value;
    uint32_t len, pad_;
    uint8_t key[]; /* len bytes */
};
static_assert(sizeof(struct shm_ment) == 48, "words");
SHM_MUSTUSE int shm_map_new(struct shm_ctx *c, shm_off *map);
void shm_map_free(struct shm_ctx *c, shm_off map);
/* SHM_OK: *v is a copy (v NULL: it is only asked for); SHM_EAGAIN: it has no such key. */
SHM_MUSTUSE int shm_map_load(struct shm_ctx *c, shm_off map, const void *key, uint32_t len,
                             struct shm_val *v);
/* SHM_OK: a new key, v is moved. SHM_EAGAIN: it was there: keep: *old is a copy of its value and v
 * the caller's; else v is moved and *old is the value before, the caller's. */
SHM_MUSTUSE int shm_map_store(struct shm_ctx *c, shm_off map, const void *key, uint32_t len,
                              const struct shm_val *v, bool keep, struct shm_val *old);
/* SHM_OK: its value was the bytes of *was, v is moved, *old is the caller's. SHM_EAGAIN:
 * it was not. */
SHM_MUSTUSE int shm_map_cas(struct shm_ctx *c, shm_off map, const void *key, uint32_t len,
                            const struct shm_val *was, const struct shm_val *v,
                            struct shm_val *old);
/* SHM_OK: *old, the caller's, was its value. SHM_EAGAIN: no such key. */
SHM_MUSTUSE int shm_map_delete(struct shm_ctx *c, shm_off map, const void *key, uint32_t len,
                               struct shm_val *old);
/* Each entry, at one moment; the map is locked meanwhile. fn: 0 goes on, else the result. */
int shm_map_each(struct shm_ctx *c, shm_off map,
                 int (*fn)(void *arg, const uint8_t *key, uint32_t len, const struct shm_val *v),
                 void *arg);

/* ---- join.c ---------------------------------------------------------------------------------- */

/* What a handle refers to: how a goroutine ended, and who waits for it. Outlives the g slot. */
enum {
    SHM_J_PENDING = 0,
    SHM_J_VALUE = 1,
    SHM_J_ERROR = 2,
    SHM_J_CANCELLED = 3,
    SHM_J_KILLED = 4,
    SHM_J_DIED = 5
};
struct shm_join {
    struct shm_obj obj;
    shm_lockword lock;
    _Atomic uint32_t state; /* SHM_J_*; set last, under lock: value is complete when not pending */
    union {
        struct {
            _Atomic uint32_t cancel; /* 1: Cancelled is due at g's next park; taken by CAS */
            /* Who has asked for a cancel, but for groups that took it back, as asyncio has it. It
             * grows with each. Bit 31: the group it is a child of; 12 to 30: groups it is in; the
             * rest: how many others. */
            _Atomic uint32_t asked;
        };
        _Atomic uint64_t asking; /* both: who asks, or takes back, changes them at once (join.c) */
    };
    shm_gref g;
    uint64_t goid;
    shm_off waiters_first, waiters_last;
    struct shm_val value; /* result or encoded exception; stays until the last handle goes */
    /* group.c: the group it belongs to, a reference; 0: none, or its end was told. By tx under that
     * group's lock, as all below but owns. */
    shm_off group;
    shm_off gnext, gprev; /* among the group's children, or its failures */
    uint32_t listed;      /* which: 0 neither, 1 children, 2 failures; a reference on this join */
    _Atomic uint32_t admitted; /* 1: counted in group->running */
    shm_off owns;              /* the innermost group it has entered, a reference; by g's M only */
    /* 0: not begun; moved once by CAS: 1 by the M that makes the call, 2 by who withdraws it */
    _Atomic uint32_t begun;
    uint32_t dlisted; /* doneq.c, as the two below: under that queue's lock */
    shm_off doneq;    /* the queue that gets it when it has ended, a reference; 0: none */
    shm_off dnext;
    _Atomic uint32_t kill; /* SHM_K_*: moved from none once (kill.c) */
    uint32_t pad0_;
    struct shm_tnode deadline;
    shm_off retry; /* struct shm_retry, 0: it ends with its M; by the owner of g, by tx */
};
enum { SHM_K_NONE = 0, SHM_K_KILL = 1, SHM_K_TIMEOUT = 2 };
SHM_MUSTUSE int shm_join_new(struct shm_ctx *c,
                             shm_off *j); /* refs 1 for the g, 1 for the caller */
void shm_join_give(struct shm_ctx *c, struct shm_g *g,
                   shm_off j); /* g's: it is g->obj from now on */
void shm_join_free(struct shm_ctx *c, shm_off j);
void shm_join_finish(struct shm_ctx *c, shm_off j, unsigned state, struct shm_val *v); /* v moved */
/* SHM_OK: ended already; SHM_PARKED. */
SHM_MUSTUSE int shm_join_park(struct shm_ctx *c, shm_off j, shm_gref g);
/* Cancelled is due in its goroutine: where it is parked, or at its next park. False:
 * it has ended. */
bool shm_join_cancel(struct shm_ctx *c, shm_off j);
/* The same by the abort of its group: once, however often, by whomever it is done. */
void shm_join_abort(struct shm_ctx *c, shm_off j);
/* The last act of a park of this join's goroutine r, which was armed in its wait number epoch: a
 * cancel or a kill that came before wakes it. */
void shm_join_marks(struct shm_ctx *c, struct shm_join *j, shm_gref r, uint64_t epoch);
/* In `asking`: a group whose block the goroutine is in, by how many are around it; 0: too many. */
#define SHM_ASKED_BY(depth) ((depth) < 19 ? 1ULL << (44 + (depth)) : 0)
/* Asks for a cancel, once by who has a bit; and the other half, which may be repeated: wakes the
 * goroutine if its cancel is due, and it waits. */
void shm_join_ask(struct shm_ctx *c, shm_off j, uint64_t once);
void shm_join_deliver(struct shm_ctx *c, shm_off j);
/* That one is taken back; what is due and nobody else asked for is due no more. By who keeps its
 * goroutine from ending. Returns what is left of `asked`. */
uint32_t shm_join_uncancel(struct shm_ctx *c, shm_off j, uint64_t once);

/* ---- retry.c --------------------------------------------------------------------------------- */

/* All but new and drop: by the M that runs the goroutine r, which has g->retries. */
SHM_MUSTUSE int shm_retry_new(struct shm_ctx *c, shm_off join, uint32_t n);
SHM_COLD struct shm_retry *shm_retry_of(const struct shm_ctx *c,
                                        const struct shm_g *g);      /* NULL: none */
bool shm_retry_live(const struct shm_ctx *c, const struct shm_g *g); /* it is what is believed */
/* What g says (continuation, op, ok, value, wait) is the checkpoint from here on. */
SHM_COLD void shm_retry_take(struct shm_ctx *c, shm_gref r);
/* A cancel that is due is the outcome of the await that g has the continuation of. */
SHM_COLD void shm_retry_cancelled(struct shm_ctx *c, shm_gref r);
/* Fills g for resume() from the checkpoint, with a value and a reference of its own. */
SHM_COLD SHM_MUSTUSE int shm_retry_view(struct shm_ctx *c, shm_gref r);
/* Before r becomes runnable without a wait: g says where it is. */
SHM_COLD void shm_retry_leave_(struct shm_ctx *c, shm_gref r);
SHM_COLD void shm_retry_stay(struct shm_ctx *c,
                             shm_gref r); /* it ran on live: the checkpoint is as it was */
SHM_COLD void shm_retry_give(struct shm_ctx *c, shm_gref r,
                             bool died); /* to g; died: one re-run less */
SHM_COLD void
shm_retry_settle(struct shm_ctx *c); /* frees what an operation's checkpoint has replaced */
void shm_retry_drop(struct shm_ctx *c, shm_off join); /* it has ended */

/* ---- kill.c ---------------------------------------------------------------------------------- */

/* Its goroutine is to end, whatever it does, without running any more. False: it has ended. */
bool shm_join_kill(struct shm_ctx *c, shm_off j, uint32_t why);
/* A kill for SHM_K_TIMEOUT at that time. Before the goroutine is made runnable. */
SHM_MUSTUSE int shm_join_deadline(struct shm_ctx *c, shm_off j, uint64_t when_ns);
/* The keeper's. Which child is to be killed for a goroutine that will not yield, -1: none now;
 * *pending: look again in a tick. */
int shm_kill_due(struct shm_ctx *c, const struct shm_child *children, int n, uint64_t now_ns,
                 bool *pending);
/* The process of that M is stopped. True: the goroutine it is to be killed for is there. */
bool shm_kill_check(struct shm_ctx *c, uint32_t m1);

/* ---- group.c --------------------------------------------------------------------------------- */

enum { SHM_GR_NEW = 0, SHM_GR_OPEN = 1, SHM_GR_EXITING = 2, SHM_GR_FINISHED = 3 };
struct shm_group { /* all under the lock, by tx */
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t limit;            /* of children that run at once; 0: none */
    uint32_t running;          /* children let in that have not ended; counted with a limit only */
    _Atomic uint32_t pending;  /* children that have not ended */
    _Atomic uint32_t state;    /* SHM_GR_* */
    _Atomic uint32_t aborting; /* 1: all children are cancelled, no more are taken */
    uint32_t asked_parent; /* 1: the parent's body is to be cancelled by this group; 2: it was */
    uint32_t asked_before; /* the parent's asked at its entry */
    uint32_t depth;        /* of how many groups around it the parent was in the block then */
    shm_off parent;        /* join of the goroutine in the block, a reference; 0: none */
    shm_off outer;         /* the group around this one, parent's owns before; its reference */
    shm_off waiters_first, waiters_last; /* the parent at the block's end */
    shm_off queue_first, queue_last;     /* children at the limit */
    shm_off kids_first, kids_last;       /* joins that have not ended */
    shm_off next;                        /* of those, the first that is not yet let in */
    shm_off errs_first, errs_last;       /* joins that have failed, in that order */
    shm_off cancelling; /* the join that an abort has in hand, with the list's reference */
};
SHM_MUSTUSE int shm_group_new(struct shm_ctx *c, uint32_t limit, shm_off *group);
void shm_group_free(struct shm_ctx *c, shm_off group); /* at the last unref */
/* The goroutine of join `parent`, running here, enters the block. SHM_EAGAIN: somebody has. */
SHM_MUSTUSE int shm_group_enter(struct shm_ctx *c, shm_off group, shm_off parent);
/* A child that is about to be made runnable. SHM_ECLOSED: not entered, aborting or finished. */
SHM_MUSTUSE int shm_group_add(struct shm_ctx *c, shm_off group, shm_off join);
/* A new join, not yet given to a goroutine, is to be one of this group's. */
void shm_join_group(struct shm_ctx *c, shm_off join, shm_off group);
/* Before the first turn of a running g: SHM_OK: it may begin. SHM_PARKED: queued at the limit, with
 * a reference on the group as a wait's. */
SHM_MUSTUSE int shm_group_admit(struct shm_ctx *c, shm_off join, shm_gref g);
/* A child's join has its final state. Done again, it changes nothing. */
void shm_group_done(struct shm_ctx *c, shm_off join);
/* Cancels all children; no more are taken. */
void shm_group_abort(struct shm_ctx *c, shm_off group);
/* The parent is at the block's end. True: a cancel of it that it may have seen was the group's. */
bool shm_group_exiting(struct shm_ctx *c, shm_off group);
/* SHM_OK: all children have ended; SHM_PARKED. */
SHM_MUSTUSE int shm_group_park(struct shm_ctx *c, shm_off group, shm_gref g);
/* The next failure, in the order in which they came; its reference is the caller's. False: none. */
bool shm_group_error(struct shm_ctx *c, shm_off group, shm_off *join);
void shm_group_finish(struct shm_ctx *c, shm_off group); /* the parent leaves the block */
/* The goroutine of this join has ended inside blocks: as if each had been left by an exception. */
void shm_group_orphan(struct shm_ctx *c, shm_off parent);

/* ---- ticker.c -------------------------------------------------------------------------------- */

/* A timer or ticker IS its channel, with a node in a timer heap behind: one object, one count. */
struct shm_timer {
    struct shm_chan ch;
    struct shm_tnode node;
    uint64_t period_ns;  /* 0: fires once; under the timers_lock */
    struct shm_val tick; /* what arrives, but for its last 8 bytes: the seconds (double) */
};
/* Not active; tick stands in place. */
SHM_MUSTUSE int shm_timer_new(struct shm_ctx *c, const struct shm_val *tick, shm_off *t);
/* when_ns UINT64_MAX: never. No value of before is received after either. True: it was active, or
 * its value was still unread. */
bool shm_timer_stop(struct shm_ctx *c, shm_off t);
SHM_MUSTUSE int shm_timer_reset(struct shm_ctx *c, shm_off t, uint64_t when_ns, uint64_t period_ns,
                                bool *was);

/* after_func: a goroutine that is born asleep, and the means to stop it or to make the next. */
struct shm_afterfunc {
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t pi;     /* P in whose heap it sleeps */
    uint32_t parent; /* as in g */
    uint16_t flags;  /* as in g */
    uint16_t site;   /* as in g */
    shm_gref g;      /* the one made last, and the epoch of its sleep; under lock */
    uint64_t epoch;
    struct shm_val call; /* its continuation once more */
};
/* r: idle and complete; taken over on success only. */
SHM_MUSTUSE int shm_afterfunc_new(struct shm_ctx *c, shm_gref r, uint64_t when_ns, shm_off *t);
bool shm_afterfunc_stop(struct shm_ctx *c, shm_off t);
SHM_MUSTUSE int shm_afterfunc_reset(struct shm_ctx *c, shm_off t, uint64_t when_ns, bool *was);
void shm_afterfunc_free(struct shm_ctx *c, shm_off t); /* at the last unref; a sleeper stays */

/* ---- context.c ------------------------------------------------------------------------------- */

enum { SHM_CTX_LIVE = 0, SHM_CTX_CANCELED = 1, SHM_CTX_DEADLINE = 2 };
struct shm_context {
    struct shm_obj obj;
    shm_lockword lock;      /* of the whole tree; the root's only */
    _Atomic uint32_t state; /* SHM_CTX_*; set once, last of all that belongs to it */
    uint32_t want;          /* what it is being cancelled with; under lock */
    uint32_t isvalue;       /* 1: key and value; state and what belongs to it are those of `up` */
    shm_off parent;         /* one reference, 0: the background */
    shm_off up, root;       /* nearest one above that can be cancelled, or 0; top one */
    shm_off first, next, prev; /* children that can be cancelled; its neighbours; under lock */
    _Atomic uint64_t done;     /* channel, which holds this; 0: nobody has one; under lock */
    shm_off why;               /* whose cause it is: itself or one above; before state */
    uint64_t deadline_ns;      /* the earliest of its own and those above, UINT64_MAX: none */
    struct shm_tnode node;     /* of its own deadline */
    uint32_t firing;           /* 1: its deadline is being carried out; under the timers_lock */
    uint32_t dead;             /* 1: meanwhile the last handle went: who fires frees it */
    struct shm_val cause;      /* NONE: the error itself */
    struct shm_val key, value;
};
/* parent 0: the background. deadline_ns UINT64_MAX: none. One reference to the caller. */
SHM_MUSTUSE int shm_context_new(struct shm_ctx *c, shm_off parent, uint64_t deadline_ns,
                                shm_off *x);
/* key and value are moved on success. */
SHM_MUSTUSE int shm_context_value(struct shm_ctx *c, shm_off parent, const struct shm_val *key,
                                  const struct shm_val *value, shm_off *x);
/* The first counts. cause is moved, used or not. */
void shm_context_cancel(struct shm_ctx *c, shm_off x, unsigned state, struct shm_val *cause);
/* Without a lock. *why: whose cause it is, when not live. */
unsigned shm_context_state(const struct shm_ctx *c, shm_off x, shm_off *why);
/* *ch: the channel that is closed at its end, with a reference; 0: it can never be cancelled. */
SHM_MUSTUSE int shm_context_done(struct shm_ctx *c, shm_off x, shm_off *ch);
void shm_context_free(struct shm_ctx *c, shm_off x); /* at the last unref */

/* ---- doneq.c --------------------------------------------------------------------------------- */

struct shm_doneq { /* under the lock, by tx */
    struct shm_obj obj;
    shm_lockword lock;
    uint32_t pad0_;
    shm_off first, last; /* joins that have ended, in that order, with a reference each */
    shm_off waiters_first, waiters_last;
};
#define SHM_DONEQ_BATCH 128
SHM_MUSTUSE int shm_doneq_new(struct shm_ctx *c, shm_off *q);
void shm_doneq_free(struct shm_ctx *c, shm_off q); /* at the last unref */
/* A join whose goroutine nobody knows yet will come to q; detach: it will never be started. */
void shm_doneq_attach(struct shm_ctx *c, shm_off q, shm_off join);
void shm_doneq_detach(struct shm_ctx *c, shm_off join);
/* The join has its final state. Done again, it changes nothing. */
void shm_doneq_put(struct shm_ctx *c, shm_off join);
/* Up to n joins, each with a reference that is the caller's; how many. Never waits. */
uint32_t shm_doneq_take(struct shm_ctx *c, shm_off q, shm_off *joins, uint32_t n);
/* SHM_OK: there is something to take; SHM_PARKED: woken when there may be. */
SHM_MUSTUSE int shm_doneq_park(struct shm_ctx *c, shm_off q, shm_gref g);

/* ---- array.c --------------------------------------------------------------------------------- */

struct shm_array {
    struct shm_obj obj;
    uint64_t bytes;
    uint64_t pad_[6];
    uint8_t data[]; /* on a cache line of its own where the block is a large one */
};
static_assert(sizeof(struct shm_array) == 64, "a line");
SHM_MUSTUSE int shm_array_new(struct shm_ctx *c, uint64_t bytes, shm_off *array);

/* ---- reap.c ---------------------------------------------------------------------------------- */

/* What a goroutine died of, as the value of a join in SHM_J_DIED and of a panic. Of the one that
 * ran there it is followed by the M's last words, if it had any, and there was room for them. */
struct shm_died {
    uint64_t goid;
    int32_t status; /* wait status, -1: not known */
    uint16_t m;     /* slot */
} __attribute__((packed));
static_assert(sizeof(struct shm_died) <= 15, "a value in place");
/* Undoes and unlocks what a dead M was doing under a lock. By the keeper, or by M0 while there is
 * none, from within shm_lock(): needs no lock. Again: changes nothing. */
void shm_reap_locks(struct shm_ctx *c, struct shm_m *dead);
/* Everything of a dead M: the essay of reap.c. By the keeper. */
void shm_reap(struct shm_ctx *c, struct shm_m *dead, int32_t wait_status);

/* ---- panic.c --------------------------------------------------------------------------------- */

/* The program ends by that goroutine, if no other was first. how, v: as a join's end; v is moved.
 * Another M's half-done one is taken over if that is dead_m1, which the caller reaps; 0: none. */
void shm_panic(struct shm_ctx *c, uint64_t goid, uint32_t how, struct shm_val *v, uint32_t dead_m1);

/* ---- code.c ---------------------------------------------------------------------------------- */

SHM_MUSTUSE int shm_code_intern(struct shm_ctx *c, const uint8_t hash[16], const void *payload,
                                size_t n, uint32_t *id);
const void *shm_code_payload(struct shm_ctx *c, uint32_t id, size_t *n, uint8_t hash[16]);

/* ---- trace.c --------------------------------------------------------------------------------- */

enum { SHM_TRACE_STARTING = 1, SHM_TRACE_ON = 2 };
enum {                    /* what an event says; arg in brackets */
       SHM_TR_CREATE = 1, /* [low half of the creator's goid] */
       SHM_TR_START,      /* goes on running on this M */
       SHM_TR_PARK,   /* with reason and stack [code number of the user's own name for it, or 0] */
       SHM_TR_UNPARK, /* made runnable [low half of the goid of who did it] */
       SHM_TR_SCHED,  /* yielded */
       SHM_TR_PREEMPT,
       SHM_TR_END,
};
struct shm_event {
    uint64_t ns, goid;
    uint16_t what, reason, p1, m;
    uint32_t stack, arg; /* stack: code number, 0 none */
};
static_assert(sizeof(struct shm_event) == 32, "two a cache line");
/* SHM_EAGAIN: a trace is on already (start), or none is (stop). cap: events an M keeps. */
SHM_MUSTUSE int shm_trace_start(struct shm_ctx *c, uint32_t cap);
SHM_MUSTUSE int shm_trace_stop(struct shm_ctx *c);
SHM_COLD void shm_trace(struct shm_ctx *c, unsigned what, uint64_t goid, unsigned reason,
                        uint32_t arg);
/* Copies M's events since the start to out (room for hdr->trace_cap), in order; how many. */
size_t shm_trace_read(const struct shm_ctx *c, uint32_t m, struct shm_event *out);
/* Go's SCHED line (schedtrace.go) of the program now; returns the length written. */
size_t shm_schedtrace(struct shm_ctx *c, char *buf, size_t n);
static inline bool shm_tracing(const struct shm_ctx *c)
{
    return load_rlx(&c->hdr->trace_on) == SHM_TRACE_ON; /* a hint: late is well */
}

/* ---- leak.c ---------------------------------------------------------------------------------- */

struct shm_leak {
    uint64_t goid;
    shm_off on; /* what it waits on, of a select the first; 0: for ever, on nothing */
};
/* Parked goroutines that can never run again; writes nothing, takes no lock. *leaks: n of them, for
 * free(). SHM_ENOMEM. */
SHM_MUSTUSE int shm_leaks(struct shm_ctx *c, struct shm_leak **leaks, size_t *n);

/* ---- shake.c --------------------------------------------------------------------------------- */

SHM_COLD void shm_shake_now(struct shm_ctx *c);
/* Here the M may stand still for a moment, if the program is shaken. */
static inline void shm_shake(struct shm_ctx *c)
{
    if (__builtin_expect_with_probability(c->shake != 0, 0, 1.0))
        shm_shake_now(c);
}

/* ---- check.c --------------------------------------------------------------------------------- */

/* Walks the whole segment, writes nothing; reports each breach by calling out(). Returns how many.
 * quiet: the program has ended: no live G, block, waiter, lock or timer may be left. */
int shm_check(struct shm_ctx *c, bool quiet, void (*out)(void *, const char *), void *arg);

#endif
