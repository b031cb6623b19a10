/* layout.h — the segment as it lies in memory: the header, Ms, Ps and gs, and what they consist of.
 *
 *     hdr | code table | reasons | P table | M table | g table | heap        (segment.c)
 *
 * What lies in the heap and is referred to by handles (channels, locks, timers, groups, ...) is in
 * objects.h, each struct beside its verbs.
 *
 * A FIELD says who may write it: its owner, who holds which lock (then by tx), or anybody by one
 * atomic act. Words that different Ms write stand on different cache lines. Each byte of the
 * header, a g, a P and an M is in a row of layout.c, from which NumPy's views and the monitor are
 * made: a field that is added here gets a row there, or a test fails. */
#ifndef SHM_LAYOUT_H
#define SHM_LAYOUT_H

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

typedef uint64_t shm_off;
typedef uint64_t shm_gref;

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
    /* References << 32 | M slot + 1 of who is changing their number << 16 | SHM_OBJ_*; handle.c */
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
    SHM_OBJ_ARRAY = 7,
    SHM_OBJ_MAP = 8,
    SHM_OBJ_ATOMIC = 9,
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

/* ---- retry ----------------------------------------------------------------------------------- */

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
#define SHM_WARM 16 /* large blocks that are kept warm (runs.c) */
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
    /* The count that it is about to change: the object, what its word is then, and which word of
     * the segment gets which value with it. */
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
    shm_lockword procs_lock;   /* nprocs, extra, max_p, pickled */
    _Atomic uint32_t retiring; /* M slot + 1 of the M beyond need that leaves */
    _Atomic uint32_t recycled; /* Ms that have begun to leave for SHM_ATTN_RECYCLE */
    _Atomic uint32_t g_scarce; /* 1: max_g was met: free slots go to everybody at once */
    uint64_t surplus_ns;       /* since when the keeper has seen too many Ms; its own */
    _Atomic uint64_t goidgen;  /* next goid */
    _Atomic uint64_t chanid;
    _Atomic uint32_t promised; /* 1: nprocs is a promise, for one that stands there is no other */
    uint32_t pad0_;
    _Atomic uint64_t pickled; /* a counted map (map.c), 0: not yet; set under procs_lock */
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
    _Atomic uint64_t warm_max; /* bytes, stored by the keeper */
    _Atomic uint64_t warm_n;   /* under heap_lock; read without */
    uint64_t warm_bytes;       /* under heap_lock, as the next */
    struct shm_warm {
        shm_off blk; /* a large block that is free and has its pages (runs.c); 0: none */
        uint64_t since_ns;
    } warm[SHM_WARM];
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
    uint32_t chain;    /* runnexts taken in a row, in one time slice */
    bool homely;       /* takes no P, runs only what is at home here (_core/thread.c, block.c) */
    uint64_t wanted;   /* bytes for which the heap has last had no room: SHM_ENOMEM */
    uint64_t until_ns; /* findrunnable() sleeps no longer than until then: SHM_EINTR; 0: it does */
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

#endif
