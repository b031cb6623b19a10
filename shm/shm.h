/* shm.h — START HERE. The public header of the shared core.
 *
 * This library owns everything that lives in the shared segment. It knows words, offsets, bytes and
 * process ids, never a PyObject; so it is tested as plain C, with threads or forked processes
 * standing in for Ms. The names are those of Go's runtime/proc.go wherever Go has one.
 *
 * THREE HEADERS, of which others include this one:
 *   layout.h    the segment: header, Ms, Ps, gs, word by word
 *   shm.h       the verbs on these, file by file in the order of dependence; then what looks at it
 *               all, or clears away after a death
 *   objects.h   what goroutines wait for: channels, sync, joins, groups, timers, contexts
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

#include "layout.h"

#define SHM_MUSTUSE __attribute__((warn_unused_result))
/* Hardly ever called: the compiler lays the branches that lead to it apart from the others. */
#define SHM_COLD __attribute__((cold))

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
    SHM_EOWNER = -13,    /* the holder of the lock died with its M */
    SHM_ERETIRE = -14,   /* this worker is beyond need (to findrunnable only) */
};
const char *shm_strerror(int err);
_Noreturn void shm_throw(const char *fmt, ...) __attribute__((cold, format(printf, 1, 2)));
/* Called by shm_throw with the finished text instead of writing it to stderr and abort(). */
extern void (*shm_throw_hook)(const char *text);
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

/* ---- heap.c, runs.c -------------------------------------------------------------------------- */

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
/* Gives back the memory of a large block that is free and was kept for the next one long enough
 * (UINT64_MAX: of any). False: there is none. */
bool shm_heap_cool(struct shm_ctx *c, uint64_t now_ns);
/* Maps what is committed for writing, at once: a fault each page costs three times as much. */
void shm_populate(void *from, uint64_t n);

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
/* No more than nprocs goroutines run at once from here on, though they stand in blocking calls. */
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

#include "objects.h"

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
