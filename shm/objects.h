/* objects.h — what goroutines share by handles and wait for: channels, select, sync, maps, joins,
 * groups, timers, contexts. Each struct begins with a shm_obj (handle.c) and lies in a heap block.
 *
 * Most have one shape. new makes one, with one reference that is the caller's; free is called at
 * the last unref. try says SHM_EAGAIN where a goroutine would have to wait. park does the same in
 * one transaction with the wait: SHM_PARKED, and the G is waiting, linked and armed, perhaps awake
 * on another M by then. How the wait ended stands in g->ok and g->value.
 *
 * The model to read is chan.c. Included by shm.h, which comes first. */
#ifndef SHM_OBJECTS_H
#define SHM_OBJECTS_H

#include "layout.h"

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
/* The program's own map of what was pickled (hdr->pickled), made at the first call. The caller gets
 * no reference: it lasts as long as the program. */
SHM_MUSTUSE int shm_pickled(struct shm_ctx *c, shm_off *map);
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
    uint32_t counted;      /* group.c: 1: in group->pending */
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
/* r, a killed one that runs on this worker, is told so now: it has ended, and does so in a moment
 * or with the worker. */
void shm_kill_told(struct shm_ctx *c, shm_gref r);
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

#endif
