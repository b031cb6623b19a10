/* internal.h — for the .c files of shm only: failpoints and small helpers that are no one's API.
 *
 * FAILPOINT("area.name") stands before each store that matters. In a build with SHM_FAILPOINTS it
 * asks shm_failpoint_hit(), which a test arms to die exactly there; in a release build it is
 * nothing. */
#ifndef SHM_INTERNAL_H
#define SHM_INTERNAL_H

#include "shm.h"
#include <errno.h>
#include <string.h>
#include <time.h>

#ifdef SHM_FAILPOINTS
void shm_failpoint_hit(const char *name);
#define FAILPOINT(name) shm_failpoint_hit(name)
#else
#define FAILPOINT(name) ((void)0)
#endif

/* Told for certain: what is unlikely goes to another section, and the rest fits into the cache. */
#define likely(x) __builtin_expect_with_probability(!!(x), 1, 1.0)
#define unlikely(x) __builtin_expect_with_probability(!!(x), 0, 1.0)

/* Parts of shm_seg_create and shm_mexit that belong to the file that owns the structure. */
uint64_t shm_code_table_bytes(void);      /* code.c: reserved for the whole table */
uint64_t shm_code_first_bytes(void);      /* code.c: of it, what is needed from the start */
void shm_handles_drop(struct shm_ctx *c); /* handle.c: gives back all that this M's Python holds */
/* handle.c, as its essay says. In a tx: a reference on obj is in this M's hand; it is stored now;
 * obj is new, complete but for who knows it; obj, going, is this M's own block. */
void shm_hand(struct shm_ctx *c, shm_off obj);
void shm_hand_given(struct shm_ctx *c, shm_off obj);
void shm_obj_made(struct shm_ctx *c, shm_off obj);
void shm_obj_gone(struct shm_ctx *c, shm_off obj);
void shm_going(struct shm_ctx *c, shm_off obj);     /* this M is to free it */
void shm_going_not(struct shm_ctx *c, shm_off obj); /* another will */
/* A new object of `bytes` that are zero, but for kind and one reference, and others behind that are
 * not. It is this M's own block until it is complete and born (or made, in a tx). */
SHM_MUSTUSE int shm_obj_alloc(struct shm_ctx *c, uint32_t kind, size_t bytes, size_t behind,
                              shm_off *off);
void shm_obj_born(struct shm_ctx *c, shm_off obj);
/* The last act on an object that goes. */
void shm_obj_end(struct shm_ctx *c, shm_off obj);
void shm_hand_reap(struct shm_ctx *c, struct shm_m *dead);
void shm_heap_flush(struct shm_ctx *c, struct shm_m *m); /* heap.c: its free blocks, to everybody */
void shm_gfree_flush(struct shm_ctx *c, struct shm_m *m); /* g.c: its free slots, to everybody */
void shm_m_give(struct shm_m *m);                         /* segment.c: the slot is free */
void shm_notewakeup_anyway(_Atomic uint32_t *note);       /* lock_futex.c: for a dead waker */

void shm_shake_begin(struct shm_ctx *c); /* shake.c: this M's generator */
uint64_t shm_cpu_ns(int pid);            /* kill.c: what a process has computed, 0: it is dead */

/* ---- the scheduler's parts: sched.c, idle.c, deadlock.c, procs.c ----------------------------- */

#define SHM_ATTN_NOW (SHM_ATTN_SHUTDOWN | SHM_ATTN_DUMP | SHM_ATTN_PANIC | SHM_ATTN_RECYCLE)

/* With workers, M0 runs only what is at home there. */
static inline bool shm_home_only(const struct shm_ctx *c)
{
    return load_rlx(&c->m->kind) == SHM_M_M0 && c->hdr->m0_p != SHM_MAX_P; /* own word */
}

/* Ps whose queues are looked at; M0's is among them, and always empty, as a dead one is. */
static inline uint32_t shm_nworkp(const struct shm_ctx *c)
{
    return load_acq(&c->hdr->max_p); /* pairs with who adds one (procs.c) */
}

void shm_requeue(struct shm_ctx *c, shm_gref r); /* sched.c: runnable, in no queue */
/* idle.c */
bool shm_wakeone(struct shm_ctx *c, bool anyway);   /* as shm_wakep; anyway: beside a spinner too */
void shm_wakem(struct shm_ctx *c, struct shm_m *m); /* for what only this M can do */
void shm_want_m(struct shm_ctx *c, uint32_t n);     /* asks the keeper for n more Ms */
bool shm_anywork(const struct shm_ctx *c);          /* light Gs that an M with a P would find */
void shm_owe(struct shm_ctx *c, struct shm_p *p);   /* a G was queued on p, nobody was woken */
void shm_pay(struct shm_ctx *c);                    /* something was found: is there more? */
void shm_resetspinning(struct shm_ctx *c);
/* Look around for a while. True: look again. False: the time is up, or this is not the moment. */
bool shm_spin(struct shm_ctx *c, uint64_t *until);
/* The dance, and sleep. SHM_OK: look again; what shm_findrunnable() returns. */
SHM_MUSTUSE int shm_stopm(struct shm_ctx *c, bool *woken);
bool shm_looks_dead(struct shm_ctx *c); /* deadlock.c: asked by who has just gone idle */
/* procs.c */
void shm_takep(struct shm_ctx *c); /* any idle P, or M0's own; the caller may find none */
void shm_putp(struct shm_ctx *c);  /* shm_releasep() without the look around (I1) */
bool shm_anyidlep(const struct shm_ctx *c);
bool shm_p_wanted(const struct shm_ctx *c, const struct shm_p *p);
void shm_procs_extra(struct shm_ctx *c, uint32_t extra);    /* the keeper only */
void shm_m_offer_leave(struct shm_ctx *c, uint64_t now_ns); /* the keeper only */
bool shm_m_retire(struct shm_ctx *c);

/* ---- reap.c, nowhere.c ----------------------------------------------------------------------- */

static inline uint32_t shm_m1(const struct shm_m *m)
{
    return m->index + 1;
}
static inline bool shm_of_this_life(const struct shm_ctx *c, shm_gref r)
{
    return r &&
           SHM_ST_GEN(load_acq(&shm_g(c, r)->status)) == shm_ggen(r); /* pairs with its moves */
}
/* shm_reap_locks() of all the dead that others may wait for. */
void shm_reap_holders(struct shm_ctx *c);
/* Some microseconds. False: the program ends, nothing of this matters any more. */
bool shm_reap_pause(struct shm_ctx *c);
/* Queues what the dead M names and is nowhere; takes its names back. False: the program ends. */
bool shm_nowhere_queue(struct shm_ctx *c, struct shm_m *dead);
bool shm_named_by_the_living(struct shm_ctx *c, shm_gref r);

/* ---- heap.c, bytes.c ------------------------------------------------------------------------- */

#define SHM_SCRUB 0xdb /* what is freed reads as this, under scrub */

union shm_blk_bits {
    struct shm_blk blk;
    uint64_t word;
};
static inline uint64_t shm_blk_word(unsigned cls, unsigned state, uint32_t m1, uint32_t user)
{
    union shm_blk_bits u = {
        .blk = {
            .cls = (uint8_t)cls, .state = (uint8_t)state, .owner_m1 = (uint16_t)m1, .user = user}};
    return u.word;
}
/* The header as one word, released: what the block's owner did before comes before it for a reaper
 * (and the compiler). No one else looks at it while the owner lives. */
static inline void shm_blk_set(struct shm_blk *b, unsigned cls, unsigned state, uint32_t m1,
                               uint32_t user)
{
    store_rel((_Atomic uint64_t *)(void *)b, shm_blk_word(cls, state, m1, user));
}
struct shm_blk *shm_live_blk(const struct shm_ctx *c, shm_off off,
                             const char *what); /* or throws */
/* A request for n bytes would be given a small block of this one's size. */
bool shm_same_size(const struct shm_ctx *c, shm_off off, size_t n);
/* One more handle word, before those that the block has; this M's own, with room for it. */
void shm_bytes_hold(struct shm_ctx *c, shm_off off, uint64_t word);
void shm_bytes_drop(struct shm_ctx *c, shm_off off); /* frees it, gives its handles back */

/* A value's block changes hands: to the segment, to this M. In a tx. */
static inline void shm_val_publish(struct shm_ctx *c, const struct shm_val *v)
{
    if (v->tag == SHM_VAL_HEAP)
        shm_publish(c, v->h.off);
}
static inline void shm_val_adopt(struct shm_ctx *c, const struct shm_val *v)
{
    if (v->tag == SHM_VAL_HEAP)
        shm_adopt(c, v->h.off);
}

/* ---- lock_futex.c ---------------------------------------------------------------------------- */

/* More locks than m->held has room for, distinct and in the order in which they are taken. */
struct shm_lockset {
    uint64_t n; /* at least 1 */
    shm_off word[];
};
void shm_lock_all(struct shm_ctx *c, shm_off set);   /* one set at a time */
void shm_unlock_all(struct shm_ctx *c, shm_off set); /* in the reverse order */

/* ---- sudog.c, for who has waiters: chan.c, join.c, select.c, timer.c ------------------------- */

/* A FIFO of sudogs, under the lock of its object:
 * two words in a row of a shm_chan or a shm_join. */
struct shm_waitq {
    shm_off first, last;
};
#define SHM_WAITQ(first_field) ((struct shm_waitq *)(void *)(first_field))

/* What a G waits on in select: one sudog per case, in a block of its own that g->waitobj names. */
struct shm_selcase {
    struct shm_sudog sudog;
    struct shm_val v; /* to send */
    shm_off ch;
    uint32_t dir, tag;
};
struct shm_selblk {
    uint32_t n;
    uint32_t winner; /* index + 1 of the case that was claimed, 0: none yet; by tx of the claimer */
    shm_off lockset; /* of many cases: behind them in this block, a struct shm_lockset; 0: few */
    uint64_t pad_[6];
    struct shm_selcase cs[];
};
static_assert(sizeof(struct shm_selcase) == 64 && sizeof(struct shm_selblk) == 64, "lines");

#define SHM_WAKE_BATCH 32 /* slots from inflight[SHM_IF_WAKE] on */
void shm_sudog_put(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s);    /* in a tx */
void shm_sudog_remove(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s); /* in a tx */
bool shm_claim_named(struct shm_ctx *c, shm_gref r, uint64_t epoch, unsigned slot);
struct shm_sudog *shm_sudog_claim(struct shm_ctx *c, struct shm_waitq *q);
void shm_sudog_win(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s, uint8_t ok);
struct shm_val *shm_sudog_value(struct shm_ctx *c, struct shm_sudog *s);
void shm_sudog_drain(struct shm_ctx *c, shm_lockword *lock, struct shm_waitq *q, uint8_t ok);
void shm_sudog_park(struct shm_ctx *c, shm_gref r, uint8_t kind, shm_off obj, struct shm_waitq *q,
                    uint8_t linked, const struct shm_val *v, unsigned reason);
uint64_t shm_sudog_join(struct shm_ctx *c, shm_gref r, uint8_t kind, shm_off obj,
                        struct shm_waitq *q, uint8_t linked, bool first); /* in a tx */
void shm_tx_linked(struct shm_ctx *c, struct shm_sudog *s, uint8_t linked);
void shm_tx_ok(struct shm_ctx *c, struct shm_g *g, uint8_t ok);
void shm_tx_byte(struct shm_ctx *c, void *word, unsigned i, uint8_t value);
/* handle.c. One more reference on obj, and *where (this M's, or of what it owns) is value. */
void shm_obj_ref_as(struct shm_ctx *c, shm_off obj, void *where, uint64_t value);
/* One fewer, as above. */
void shm_obj_unref_as(struct shm_ctx *c, shm_off obj, void *where, uint64_t value);
bool shm_obj_tryref(struct shm_ctx *c, shm_off obj); /* false: it has none, who frees it waits */
void shm_refs_reap(struct shm_ctx *c, struct shm_m *dead);
void shm_wait_for_m(struct shm_ctx *c, uint32_t m1);   /* lock_futex.c */
void shm_gcount(struct shm_ctx *c, struct shm_g *g);   /* g.c: spawned, in a tx */
void shm_guncount(struct shm_ctx *c, struct shm_g *g); /* finished, if it was counted */
void shm_tx_flags(struct shm_ctx *c, struct shm_g *g, uint8_t flags);
void shm_tx_val(struct shm_ctx *c, struct shm_val *to, const struct shm_val *v);
int shm_chan_send_locked(struct shm_ctx *c, struct shm_chan *ch, const struct shm_val *v,
                         shm_gref *peer); /* chan.c */
int shm_chan_recv_locked(struct shm_ctx *c, struct shm_chan *ch, struct shm_val *v, shm_gref *peer);
void shm_group_drain(struct shm_ctx *c, shm_off group);  /* group.c: what its reaper goes on with */
void shm_join_no_deadline(struct shm_ctx *c, shm_off j); /* kill.c */
shm_off shm_join_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n);
void shm_join_carry(struct shm_ctx *c, shm_off j);
/* sema.c, mutex.c. All with the lock of sy held. */
struct shm_sema *shm_sema_at(const struct shm_ctx *c, shm_off off, uint32_t what);
static inline uint64_t shm_sema_held_by(uint64_t goid) /* the word of a lock that it holds */
{
    return goid << 8 | SHM_SY_LOCKED;
}
uint64_t shm_sema_mark(const struct shm_g *g); /* of who waits: a ticket, a want, a time */
void shm_sema_mark_set(struct shm_g *g, uint64_t mark);
void shm_sema_settle(struct shm_ctx *c, struct shm_sema *sy);
bool shm_sema_owes(const struct shm_ctx *c, const struct shm_sema *sy); /* not settled */
void shm_mutex_revive(struct shm_ctx *c, struct shm_sema *sy); /* whoever was to try may be dead */
bool shm_mutex_slow(struct shm_sema *sy);                      /* false: it is not locked */
void shm_select_unlink(struct shm_ctx *c, shm_off blk);        /* select.c */
void shm_select_revive(struct shm_ctx *c, shm_gref r);         /* by the reaper of its claimer */
void shm_select_give(struct shm_ctx *c, struct shm_g *g, uint32_t which, uint8_t ok,
                     const struct shm_val *v);
void shm_sleep_unlink(struct shm_ctx *c, shm_gref r); /* timer.c */

/* ---- timer.c, for ticker.c and context.c: nodes in heaps ------------------------------------- */

struct shm_p *shm_timers_p(const struct shm_ctx *c);                 /* whose heap this M uses */
SHM_MUSTUSE int shm_timers_lock(struct shm_ctx *c, struct shm_p *p); /* with room for one more */
void shm_timers_set(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n,
                    uint64_t when_ns); /* in a tx, locked; 0: out */
/* After the unlock: somebody must come to know, if it is the first of another's heap. */
void shm_timers_tell(struct shm_ctx *c, const struct shm_p *p, uint64_t when_ns);
/* r is idle and complete: waiting, in the heap, until when_ns. *epoch: of that wait. */
SHM_MUSTUSE int shm_sleep_born(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t when_ns,
                               uint64_t *epoch);
/* False: it does not sleep there (any more), or when_ns is never. */
bool shm_sleep_move(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t epoch,
                    uint64_t when_ns);
SHM_MUSTUSE int shm_chan_make(struct shm_ctx *c, uint32_t cap, size_t bytes, shm_off *ch);
/* ticker.c. In a heap's lock: who is to be readied, named in `slot`; 0: nobody. */
shm_gref shm_timer_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n, uint64_t now_ns,
                        unsigned slot);
void shm_timer_forget(struct shm_ctx *c, shm_off t); /* at the channel's end */
SHM_COLD void shm_timer_poll(struct shm_ctx *c, struct shm_chan *ch);
/* context.c. In a heap's lock: to be carried out after it; 0: nothing. */
shm_off shm_context_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n);
void shm_context_carry(struct shm_ctx *c, shm_off x);
void shm_context_undone(struct shm_ctx *c, shm_off x, shm_off ch); /* the channel goes */
/* A channel that is made by timer is looked at: what is due comes first (Go's maybeRunChan). */
static inline void shm_chan_glance(struct shm_ctx *c, struct shm_chan *ch)
{
    if (unlikely(ch->timer))
        shm_timer_poll(c, ch);
}

/* ---- retry.c, for the primitives ------------------------------------------------------------- */

/* In the tx of an operation that ends at once: the goroutine it is for has this outcome, with the
 * commit (note: where a wait has its object). False: it is nobody's with retries, and of no select
 * that is revived. */
SHM_COLD bool shm_retry_done_(struct shm_ctx *c, uint8_t ok, const struct shm_val *v,
                              uint64_t note);
static inline bool shm_retry_done(struct shm_ctx *c, uint8_t ok, const struct shm_val *v,
                                  uint64_t note)
{
    return unlikely(c->retrying) && shm_retry_done_(c, ok, v, note);
}
/* It becomes runnable, or gives something up with its wait. */
static inline void shm_retry_leave(struct shm_ctx *c)
{
    if (unlikely(c->retrying))
        shm_retry_leave_(c, c->retrying);
}

/* xorshift64*: the M's own random numbers (steal order). */
static inline uint64_t ctx_rand(struct shm_ctx *c)
{
    uint64_t x = c->rng;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    c->rng = x;
    return x * 0x2545F4914F6CDD1DULL;
}

#endif
