/* runq.c — where runnable Gs wait: each P's ring and runnext, the global queue, home queues.
 *
 *   runnext   one gref: the G just readied, to run next in the readier's time slice. The owner sets
 *             it, a thief may take it (CAS to 0).
 *   ring      256 grefs between head and tail. The owner puts at the tail; owner and thieves take
 *             at the head by CAS. 64-bit indices that only grow: a thief that was stopped for an
 *             hour finds another head and fails, whatever went through the ring meanwhile.
 *   global    a list through g->schedlink, under sched_lock. Overflow of the rings, gosched,
 *             preempted Gs, and whatever is readied by who has no ring.
 *   batch     another such list, for the Gs that are to run only when nothing else is
 *   (SHM_GF_BATCH). home      one per M, for the Gs that only this M can run. Any M pushes (CAS,
 *             last in first out); the owner takes everything at once and turns it round, so the
 *             order is first in first out. An exchange that empties the list has no ABA.
 *
 * INV nothing-in-hand. In Go a G on its way from one place to the next is in a local variable; here
 * the M may be killed there. So it is named in m->inflight first:
 *
 *     SHM_IF_KICKED    the former runnext, on its way to the tail
 *     SHM_IF_GOT       what runqget, globrunqget, runqsteal return, until shm_execute() has it
 *     SHM_IF_BATCH..   half a ring going to the global queue, a batch coming from it, a loot
 *
 * A reaper looks at each name: is the G runnable, of that generation, and in no queue? Then it puts
 * it into the global one. In a RING a duplicate is harmless (INV status-truth). In a LIST it is
 * not:
 *
 * INV linked-once: schedlink belongs to the one list the G is in (global, home, free). A G may be
 * put into a list only by who has just taken it out of its last place. So a batch leaves the ring
 * (CAS on head) before it is linked, and leaves the list before the ring shows it.
 *
 * INV batch-apart: a batch G is in no ring, runnext or overflow, only in the batch queue (or at
 * home). A ring is first in, first out: what of it is batch would run before what is readied later.
 * So one is taken at a time, to be executed at once, and rings need not know of classes. (Rejected:
 * a ring of each class per P. Batch work is long; it can pay for a lock at each turn.)
 *
 * INV moved-counts. So the reaper must know for certain that a G is in no queue, while the living
 * go on. Who takes Gs out of one queue and puts them into another names them before, adds 1 to
 * m->moved when they are visible again, and only then takes the names back (tag: moved). A look
 * around that finds a G neither named nor queued, with every m->moved the same at its end, has
 * found it nowhere; nowhere.c has the proof. (From ring or runnext to being executed the status
 * word tells; within one ring, from runnext to its tail, the tail does.)
 *
 * Stealing takes half, rounded up, oldest first. Of an M that runs, its runnext is left alone for
 * a while: it mostly runs within the microsecond, and then the theft would cost both a move. Unlike
 * Go (usleep(3), which is 55 us of real sleep) the thief watches whether the victim executes. How
 * long it waits depends on what the victim's goroutines are like (p->prompt): GRACE_NS if those
 * that ready somebody park soon after, else GRACE_SHORT_NS, for then the G would wait for nothing.
 * The owner finds out by the clock, from setting runnext to its next schedule, whoever took it
 * meanwhile; so two Gs that talk and came apart come together again. After PROMPT prompt ones in a
 * row it looks no more (two Gs that talk are not to pay for it), until a thief that has waited in
 * vain says that things have changed. */
#include "internal.h"

#define GRACE_NS 5000
#define GRACE_SHORT_NS 300
#define PROMPT 4
#define PROMPT_NS 3000

#define SLOT(p, i) (&(p)->runq[(i) % SHM_RUNQ])

static_assert((SHM_RUNQ & (SHM_RUNQ - 1)) == 0, "a ring index is a mask");
static_assert(SHM_IF_BATCH + SHM_RUNQ / 2 + 1 <= SHM_INFLIGHT, "an overflow batch has names");

static void name(struct shm_ctx *c, uint32_t slot, shm_gref r)
{
    /* Before the CAS that takes it, after the store that shows it; read by the reaper. */
    store_rel(&c->m->inflight[slot], r);
}

static void unname(struct shm_ctx *c, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        name(c, SHM_IF_BATCH + i, 0);
}

/* tag: moved */
static void moved(struct shm_ctx *c)
{
    own_add(&c->m->moved, 1);
}

/* ---- global queue ---------------------------------------------------------------------------- */

/* One of the two lists of the header: all under sched_lock, by tx; size is read without. */
struct gq {
    shm_gref head, tail;
    _Atomic uint64_t size;
};
#define GQ(h, which) ((struct gq *)&(h)->which##_head)
static_assert(offsetof(struct shm_hdr, runq_size) ==
                      offsetof(struct shm_hdr, runq_head) + offsetof(struct gq, size) &&
                  offsetof(struct shm_hdr, batchq_size) ==
                      offsetof(struct shm_hdr, batchq_head) + offsetof(struct gq, size),
              "each is a struct gq");

/* A chain of n Gs, first .. last, linked by the caller, to the tail. */
static void gqput(struct shm_ctx *c, struct gq *q, shm_gref first, shm_gref last, uint32_t n)
{
    struct shm_hdr *h = c->hdr;
    shm_g(c, last)->schedlink = 0; /* the caller's Gs: no undo needed */
    shm_lock(c, &h->sched_lock);
    shm_tx_begin(c);
    if (q->tail)
        shm_tx_store64(c, &shm_g(c, q->tail)->schedlink, first);
    else
        shm_tx_store64(c, &q->head, first);
    shm_tx_store64(c, &q->tail, last);
    shm_tx_store64(c, &q->size, load_rlx(&q->size) + n);
    shm_tx_commit(c);
    shm_unlock(c, &h->sched_lock);
}

/* Any M. The G is named by the caller. */
void shm_globrunqput(struct shm_ctx *c, shm_gref r)
{
    bool batch = shm_g(c, r)->flags & SHM_GF_BATCH; /* in the caller's hand: nobody writes it */
    gqput(c, batch ? GQ(c->hdr, batchq) : GQ(c->hdr, runq), r, r, 1);
}

/* Owner P of p, or any M with p NULL. One G is returned, the others of the batch go to p's ring,
 * which has room for them if the caller found it empty. */
static shm_gref gqget(struct shm_ctx *c, struct gq *q, struct shm_p *p, uint32_t max)
{
    struct shm_hdr *h = c->hdr;
    if (load_rlx(&q->size) == 0) /* a hint; who must know looks with seq_cst (idle.c) */
        return 0;
    shm_lock(c, &h->sched_lock);
    uint64_t size = load_rlx(&q->size); /* under sched_lock */
    uint32_t np = load_rlx(&h->nprocs); /* a share of about now */
    uint64_t share = size / (np ? np : 1) + 1, n = size < share ? size : share;
    n = n < max ? n : max;
    n = n < SHM_RUNQ / 2 ? n : SHM_RUNQ / 2;
    uint64_t t = 0;
    if (p) {
        t = load_rlx(&p->runqtail);                              /* own word */
        uint64_t room = SHM_RUNQ - (t - load_acq(&p->runqhead)); /* pairs with the thieves' CAS */
        n = n < room + 1 ? n : room + 1;
    } else if (n > 1) {
        n = 1;
    }
    if (n == 0) {
        shm_unlock(c, &h->sched_lock);
        return 0;
    }
    shm_gref first = q->head, next = shm_g(c, first)->schedlink;
    name(c, SHM_IF_GOT, first);
    for (uint32_t i = 1; i < n; i++) {
        name(c, SHM_IF_BATCH + i - 1, next);
        store_rlx(SLOT(p, t + i - 1), next); /* beyond the tail: nobody looks */
        next = shm_g(c, next)->schedlink;
    }
    FAILPOINT("runq.globget.named");
    shm_tx_begin(c);
    shm_tx_store64(c, &q->head, next);
    if (next == 0)
        shm_tx_store64(c, &q->tail, 0);
    shm_tx_store64(c, &q->size, size - n);
    shm_tx_commit(c);
    shm_unlock(c, &h->sched_lock);
    FAILPOINT("runq.globget.taken");
    shm_shake(c); /* out of the global queue | shown in the ring */
    if (n > 1) {
        store_rel(&p->runqtail, t + n - 1); /* shows the batch; pairs with load_acq in runqgrab() */
        FAILPOINT("runq.globget.shown");
        moved(c);
        unname(c, (uint32_t)n - 1);
    }
    return first;
}

shm_gref shm_globrunqget(struct shm_ctx *c, struct shm_p *p, uint32_t max)
{
    return gqget(c, GQ(c->hdr, runq), p, max);
}

/* Any M with a P. INV batch-apart. */
shm_gref shm_batchqget(struct shm_ctx *c)
{
    return gqget(c, GQ(c->hdr, batchq), NULL, 1);
}

/* ---- ring and runnext ------------------------------------------------------------------------ */

/* Owner P only; the ring was full. Half of it and r to the global queue. False: a thief made
 * room. */
static bool runqputslow(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t h, uint64_t t)
{
    uint32_t n = (uint32_t)(t - h) / 2;
    shm_gref batch[SHM_RUNQ / 2 + 1];
    if (unlikely(n != SHM_RUNQ / 2))
        shm_throw("runqputslow: P %u's queue is not full: %llu", p->index,
                  (unsigned long long)(t - h));
    for (uint32_t i = 0; i < n; i++) {
        batch[i] = load_rlx(SLOT(p, h + i)); /* own stores */
        name(c, SHM_IF_BATCH + i, batch[i]);
    }
    batch[n] = r;
    name(c, SHM_IF_BATCH + n, r);
    /* Consumes; pairs with the thieves' load of head. Linked only after: INV linked-once. */
    bool taken = cas_acqrel(&p->runqhead, &h, h + n);
    if (taken) {
        FAILPOINT("runq.putslow.taken");
        shm_shake(c); /* out of the ring | in the global queue */
        for (uint32_t i = 0; i < n; i++)
            shm_g(c, batch[i])->schedlink = batch[i + 1];
        gqput(c, GQ(c->hdr, runq), batch[0], batch[n], n + 1);
        FAILPOINT("runq.putslow.put");
        moved(c);
    }
    unname(c, n + 1);
    return taken;
}

/* Owner P only. next: to runnext, whose former G is kicked to the tail. r is named by the
 * caller. */
void shm_runqput(struct shm_ctx *c, struct shm_p *p, shm_gref r, bool next)
{
    if (next) {
        if (unlikely(load_rlx(&p->prompt) < PROMPT) && /* thieves reset it */
            load_rlx(&c->hdr->nprocs) > 1)             /* a hint */
            c->next_ns = shm_now_ns();
        shm_gref old = load_rlx(&p->runnext);
        do
            name(c, SHM_IF_KICKED, old);
        /* Publishes r, takes the old one; pairs with the thieves' CAS and the owner's. */
        while (!cas_acqrel(&p->runnext, &old, r));
        FAILPOINT("runq.put.kicked");
        shm_shake(c); /* kicked | at the tail */
        if (old == 0)
            return;
        r = old;
    }
    for (;;) {
        uint64_t h = load_acq(&p->runqhead); /* pairs with the consumers' CAS: the slot is free */
        uint64_t t = load_rlx(&p->runqtail); /* own word */
        if (likely(t - h < SHM_RUNQ)) {
            store_rlx(SLOT(p, t), r);
            store_rel(&p->runqtail,
                      t + 1); /* publishes the slot; pairs with load_acq in runqgrab() */
            break;
        }
        if (runqputslow(c, p, r, h, t))
            break;
    }
    FAILPOINT("runq.put.put");
    if (next)
        name(c, SHM_IF_KICKED, 0);
}

/* Owner P only, which schedules: was it prompt? */
void shm_runq_watch(struct shm_ctx *c, struct shm_p *p)
{
    bool prompt = shm_now_ns() - c->next_ns < PROMPT_NS;
    store_rlx(&p->prompt, prompt ? load_rlx(&p->prompt) + 1 : 0); /* a hint to thieves */
    c->next_ns = 0;
}

/* Owner P only. inherit: it was runnext, it goes on in the time slice. */
shm_gref shm_runqget(struct shm_ctx *c, struct shm_p *p, bool *inherit)
{
    shm_gref r = load_rlx(&p->runnext); /* only the owner stores other than 0 */
    if (r) {
        name(c, SHM_IF_GOT, r);
        if (cas_acqrel(&p->runnext, &r, 0)) { /* against thieves */
            FAILPOINT("runq.get.next");
            *inherit = true;
            return r;
        }
    }
    for (;;) {
        uint64_t h = load_acq(&p->runqhead); /* pairs with the thieves' CAS */
        if (h == load_rlx(&p->runqtail)) {   /* own word */
            name(c, SHM_IF_GOT, 0);
            return 0;
        }
        r = load_rlx(SLOT(p, h)); /* own store */
        name(c, SHM_IF_GOT, r);
        if (cas_acqrel(&p->runqhead, &h, h + 1)) { /* consumes; pairs with the thieves' load */
            FAILPOINT("runq.get.taken");
            *inherit = false;
            return r;
        }
    }
}

/* Anybody. Never true while a G stays queued here: between the loads runnext may have been kicked
 * into the ring and its successor taken, so the tail must not have moved (Go's runqempty). A G that
 * the owner has in hand, kicked and not yet at the tail, is not queued. */
bool shm_runqempty(struct shm_p *p)
{
    for (;;) {
        uint64_t h = load_seq(&p->runqhead), t = load_seq(&p->runqtail);
        shm_gref next = load_seq(&p->runnext); /* seq_cst: also the idle M's last look */
        if (t == load_seq(&p->runqtail))
            return h == t && next == 0;
    }
}

/* Anybody: without runnext. */
uint32_t shm_runqsize(struct shm_p *p)
{
    uint64_t h = load_seq(&p->runqhead), t = load_seq(&p->runqtail); /* seq_cst: as above */
    return t > h ? (uint32_t)(t - h) : 0;
}

/* The victim runs and has r as its runnext: does it still have it, and has it executed nothing, for
 * as long as a G that readies another and parks would need? */
static bool runnext_stays(struct shm_ctx *c, struct shm_p *victim, shm_gref r)
{
    uint64_t w = load_acq(&victim->status); /* pairs with acquirep, releasep */
    if (SHM_ST_STATUS(w) != Prunning)
        return true; /* nobody will run it there */
    struct shm_m *m = &c->mtab[SHM_ST_M1(w) - 1];
    uint64_t executed = load_rlx(&m->st.executed), until = shm_now_ns();
    until += load_rlx(&victim->prompt) < PROMPT ? GRACE_SHORT_NS : GRACE_NS; /* a hint */
    do {
        for (int i = 0; i < 4; i++)
            cpu_relax();
        if (load_rlx(&victim->runnext) != r || load_rlx(&m->st.executed) != executed)
            return false;
    } while (shm_now_ns() < until);
    return true;
}

/* Half of the victim's ring into the slots beyond p's tail; how many. They are named in the
 * batch. */
static uint32_t runqgrab(struct shm_ctx *c, struct shm_p *p, struct shm_p *victim, bool stealnext)
{
    uint64_t at = load_rlx(&p->runqtail); /* own word */
    for (;;) {
        uint64_t h = load_acq(&victim->runqhead); /* pairs with the other consumers' CAS */
        uint64_t t =
            load_acq(&victim->runqtail); /* pairs with the owner's store: slots are there */
        uint64_t n = t - h;
        n -= n / 2;
        if (n == 0) {
            shm_gref r = stealnext ? load_acq(&victim->runnext) : 0; /* pairs with runqput's CAS */
            if (r == 0 || !runnext_stays(c, victim, r))
                return 0;
            name(c, SHM_IF_BATCH, r);
            shm_shake(c);                               /* the look at runnext | its theft */
            if (!cas_acqrel(&victim->runnext, &r, 0)) { /* against its owner and other thieves */
                name(c, SHM_IF_BATCH, 0);
                continue;
            }
            store_rlx(&victim->prompt, 0); /* its owner looks again; it may overwrite this */
            store_rlx(SLOT(p, at), r);
            return 1;
        }
        if (n > SHM_RUNQ / 2) /* head and tail are not of one moment */
            continue;
        for (uint32_t i = 0; i < n; i++) {
            shm_gref r = load_rlx(SLOT(victim, h + i)); /* good if the CAS succeeds */
            name(c, SHM_IF_BATCH + i, r);
            store_rlx(SLOT(p, at + i), r);
        }
        FAILPOINT("runq.steal.named");
        shm_shake(c); /* the look at the slots | their theft */
        if (cas_acqrel(&victim->runqhead, &h,
                       h + n)) /* consumes; pairs with load_acq in runqput() */
            return (uint32_t)n;
        unname(c, (uint32_t)n);
    }
}

/* Owner P of p, whose ring is empty. Returns one of the stolen Gs, the others go to p's ring. */
shm_gref shm_runqsteal(struct shm_ctx *c, struct shm_p *p, struct shm_p *victim, bool stealnext)
{
    uint32_t n = runqgrab(c, p, victim, stealnext);
    if (n == 0)
        return 0;
    FAILPOINT("runq.steal.taken");
    shm_shake(c);                        /* stolen | shown */
    uint64_t t = load_rlx(&p->runqtail); /* own word */
    shm_gref r = load_rlx(SLOT(p, t + n - 1));
    name(c, SHM_IF_GOT, r);
    if (n > 1)
        store_rel(&p->runqtail, t + n - 1); /* shows the rest; pairs with load_acq in runqgrab() */
    FAILPOINT("runq.steal.shown");
    moved(c);
    unname(c, n);
    own_add(&c->m->st.steals, 1);
    own_add(&c->m->st.stolen, n);
    return r;
}

/* ---- home queues ----------------------------------------------------------------------------- */

/* homeq_n is a hint: who pushes may die between the count and the push, and his reaper pushes, and
 * counts, again. Whether anything is there the lists say, shm_any_home(). */

/* Any M; the caller wakes the home M if it sleeps. */
void shm_homeqput(struct shm_ctx *c, struct shm_m *home, shm_gref r)
{
    add_rlx(&home->homeq_n, 1); /* a hint */
    FAILPOINT("runq.home.counted");
    shm_gref head = load_rlx(&home->homeq);
    do
        shm_g(c, r)->schedlink = head;
    /* Publishes the link; pairs with the exchange in shm_homeqget(). Seq_cst: tag idle-dance. */
    while (!cas_seq(&home->homeq, &head, r));
    FAILPOINT("runq.home.put");
}

/* Own M only. */
shm_gref shm_homeqget(struct shm_ctx *c)
{
    struct shm_m *m = c->m;
    shm_gref r = load_rlx(&m->homeq_fifo); /* own word */
    if (r == 0) {
        if (load_rlx(&m->homeq) == 0) /* the last look before sleep is idle.c's */
            return 0;
        uint32_t n = 0;
        store_rel(&m->turning, 1); /* what is in no list for a moment; read by the reaper */
        shm_gref from = xchg_acqrel(&m->homeq, 0); /* pairs with the pushers' CAS */
        while (from) {
            shm_gref next = shm_g(c, from)->schedlink;
            shm_g(c, from)->schedlink = r;
            store_rel(&m->homeq_fifo, from); /* after its link; read by reapers */
            r = from;
            from = next;
            n++;
        }
        store_rlx(&m->homeq_n, n); /* a hint */
        moved(c);
        store_rel(&m->turning, 0); /* after they are in the list; pairs as above */
    }
    name(c, SHM_IF_GOT, r);
    store_rel(&m->homeq_fifo, shm_g(c, r)->schedlink); /* after the name; read by reapers */
    moved(c);                                          /* the list has changed under who walks it */
    sub_acqrel(&m->homeq_n, 1);                        /* a hint */
    return r;
}
