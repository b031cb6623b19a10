/* sched.c — the scheduler: who runs what. Who is woken for it, who looks for work and who sleeps is
 * idle.c; when nobody ever will again, deadlock.c.
 *
 * Gs, Ms and Ps are Go's (runtime/proc.go): a G is a goroutine, an M a process that runs Python, a
 * P the right to run light Gs, with a ring of runnable ones. There are nprocs Ps; an M without one
 * is a spare. Queues are in runq.c, statuses in g.c, Ps in procs.c; this file decides.
 *
 * M0 APART. With workers, M0 runs main and nothing else: its P has timers only (nosteal), its ring
 * is never used, what it readies goes to the global queue, and it looks at its home queue alone.
 * With nprocs 0 it is the one worker: then all of this file holds for it.
 *
 * A G THAT IS READIED goes to the readier's runnext, and nobody is woken for it: mostly the readier
 * parks within microseconds and runs it (idle.c, WAKING). Who will not come back for it (M0, the
 * keeper, a thread that is no M) queues it globally and wakes somebody at once.
 *
 * THE ORDER OF A SEARCH is Go's: due timers of the own P; at its turn (every 61st schedule) the
 * global queue; runnext and ring; what is at home; the global queue; the other Ps, in an order of
 * its own each time; the batch queue. findrunnable goes round in it: found, it pays what it owes;
 * else it spins, does the idle dance, sleeps, and looks again.
 *
 * TWO CLASSES. A batch G (SHM_GF_BATCH) is queued apart (runq.c, INV batch-apart) and looked for
 * when there is nothing in any queue that this M could take, others' rings included; and before the
 * ring at every 61st schedule, another one than the global queue's, so that neither starves behind
 * rings that never run dry. What is at home (heavy, pinned) has no class: only its M can run it. A
 * running batch G is preempted like another, after 10 ms, and goes to the tail of its own queue.
 *
 * FAIRNESS. The global queue every 61st schedule; a home queue every other one; a runnext inherits
 * the time slice, so that two Gs that ready each other in turns share one: after 10 ms (keeper) or
 * CHAIN turns the runnext goes to the tail and the ring has its turn. With procs=0 there is no
 * keeper, and an M that runs without a P what is at home there is not seen by it:
 * shm_preempt_requested() looks at the clock. */
#include "internal.h"

#include <limits.h>
#include <sched.h>

#define SLICE_NS 10000000ULL /* as in sysmon.c */
#define CHAIN 256            /* runnexts in a row before the ring has its turn */
#define STEAL_PASSES 4
#define GLOBAL_EVERY 61
#define BATCH_TURN 30 /* of these, which is the batch queue's */

#define REFUSALS 2 /* migrate=always: how often a G may be left for another M */
#define REFUSAL_NS 50000

/* To some ms: CLOCK_MONOTONIC costs four times as much, and every schedule asks. */
static uint64_t coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* ---- making Gs runnable ---------------------------------------------------------------------- */

/* Where light Gs of this M are queued; NULL: in the global queue. */
static struct shm_p *own_ring(const struct shm_ctx *c)
{
    return c->p && !c->p->nosteal && c->hdr->migrate != 1 ? c->p : NULL;
}

/* r is runnable, named in m->inflight, and in no queue. */
static void queue(struct shm_ctx *c, shm_gref r, uint32_t home_m1, bool batch, bool next)
{
    if (home_m1) {
        struct shm_m *home = &c->mtab[home_m1 - 1];
        shm_homeqput(c, home, r);
        shm_wakem(c, home);
        return;
    }
    struct shm_p *p = own_ring(c);
    if (p == NULL || unlikely(batch)) {
        shm_globrunqput(c, r);
        shm_wakep(c);
        return;
    }
    shm_runqput(c, p, r, next);
    shm_owe(c, p);
}

/* Low half of the number of the G that runs here, 0: none. */
static uint32_t curgoid(const struct shm_ctx *c)
{
    shm_gref r = load_rlx(&c->m->curg); /* own word */
    return r ? (uint32_t)shm_g(c, r)->goid : 0;
}

void shm_ready(struct shm_ctx *c, shm_gref r, bool next)
{
    struct shm_g *g = shm_g(c, r);
    uint32_t home = g->home_m1;
    bool outside = g->flags & SHM_GF_OUTSIDE, batch = g->flags & SHM_GF_BATCH;
    store_rlx(&c->m->inflight[SHM_IF_READY], r); /* INV nothing-in-hand */
    FAILPOINT("sched.ready.named");
    shm_shake(c); /* the claim | runnable */
    if (unlikely(shm_tracing(c)))
        shm_trace(c, SHM_TR_UNPARK, g->goid, g->reason, curgoid(c));
    if (unlikely(!shm_casgstatus(c, r, Gwaiting, Grunnable)))
        shm_throw("ready: goroutine slot %u of generation %u is of another generation", shm_gidx(r),
                  shm_ggen(r));
    FAILPOINT("sched.ready.runnable");
    shm_shake(c); /* the status | the queue */
    if (outside)
        /* The status is the low half: the thread that it stands for sleeps on it. */
        shm_futex_wake((_Atomic uint32_t *)&g->status, 1);
    else
        queue(c, r, home, batch, next);
    FAILPOINT("sched.ready.queued");
    store_rel(&c->m->inflight[SHM_IF_READY], 0); /* after the queue has it, for the reaper */
    own_add(&c->m->st.readies, 1);
}

void shm_requeue(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    store_rlx(&c->m->inflight[SHM_IF_READY], r); /* INV nothing-in-hand */
    FAILPOINT("sched.requeue.named");
    if (g->flags & SHM_GF_OUTSIDE)
        shm_futex_wake((_Atomic uint32_t *)&g->status, 1); /* as in shm_ready() */
    else
        queue(c, r, g->home_m1, g->flags & SHM_GF_BATCH, false);
    store_rel(&c->m->inflight[SHM_IF_READY], 0); /* as in shm_ready() */
}

void shm_newproc(struct shm_ctx *c, shm_gref r)
{
    uint32_t home = shm_g(c, r)->home_m1;
    bool batch = shm_g(c, r)->flags & SHM_GF_BATCH;
    store_rlx(&c->m->inflight[SHM_IF_NEW], r); /* INV nothing-in-hand; since shm_gnew(), mostly */
    if (unlikely(shm_tracing(c)))
        shm_trace(c, SHM_TR_CREATE, shm_g(c, r)->goid, 0, shm_g(c, r)->parent);
    shm_tx_begin(c);
    shm_gcount(c, shm_g(c, r));
    shm_tx_commit(c);
    FAILPOINT("sched.newproc.named");
    if (unlikely(!shm_casgstatus(c, r, Gidle, Grunnable)))
        shm_throw("newproc: goroutine slot %u of generation %u is of another generation",
                  shm_gidx(r), shm_ggen(r));
    FAILPOINT("sched.newproc.runnable");
    shm_shake(c); /* the status | the queue */
    queue(c, r, home, batch, true);
    FAILPOINT("sched.newproc.queued");
    store_rel(&c->m->inflight[SHM_IF_NEW], 0); /* as in shm_ready() */
}

void shm_gosched(struct shm_ctx *c, shm_gref r)
{
    struct shm_m *m = c->m;
    uint32_t home = shm_g(c, r)->home_m1;
    store_rlx(&m->inflight[SHM_IF_READY], r); /* INV nothing-in-hand */
    if (unlikely(shm_tracing(c)))
        shm_trace(c, c->p && load_rlx(&c->p->preempt) ? SHM_TR_PREEMPT : SHM_TR_SCHED,
                  shm_g(c, r)->goid, 0, 0);
    if (unlikely(!shm_casgstatus(c, r, Grunning, Grunnable)))
        shm_throw("gosched: goroutine slot %u is of another generation", shm_gidx(r));
    store_rlx(&m->curg, 0);
    FAILPOINT("sched.gosched.runnable");
    shm_shake(c); /* the status | the queue */
    if (home)
        shm_homeqput(c, &c->mtab[home - 1], r);
    else
        shm_globrunqput(c, r); /* schedule, which is next, sees it and pays */
    FAILPOINT("sched.gosched.queued");
    store_rel(&m->inflight[SHM_IF_READY], 0);
}

/* ---- from running to elsewhere --------------------------------------------------------------- */

void shm_gopark(struct shm_ctx *c, shm_gref r, unsigned reason)
{
    struct shm_g *g = shm_g(c, r);
    g->reason = (uint16_t)reason;
    g->since_ms =
        c->now_ns > c->hdr->start_ns ? (uint32_t)((c->now_ns - c->hdr->start_ns) / 1000000) : 0;
    FAILPOINT("sched.gopark.reason");
    if (unlikely(shm_tracing(c))) /* INV trace-first */
        shm_trace(c, SHM_TR_PARK, g->goid, reason, c->trace_name);
    if (unlikely(!shm_casgstatus(c, r, Grunning, Gwaiting)))
        shm_throw("gopark: goroutine slot %u is of another generation", shm_gidx(r));
    FAILPOINT("sched.gopark.waiting");
    store_rlx(&c->m->curg, 0);
    shm_shake(c); /* waiting | the wait armed, unlockf called */
}

void shm_goexit0(struct shm_ctx *c, shm_gref r)
{
    if (unlikely(shm_tracing(c)))
        shm_trace(c, SHM_TR_END, shm_g(c, r)->goid, 0, 0);
    shm_guncount(c, shm_g(c, r));
    if (unlikely(!shm_casgstatus(c, r, Grunning, Gdead)))
        shm_throw("goexit0: goroutine slot %u is of another generation", shm_gidx(r));
    FAILPOINT("sched.goexit0.dead");
    shm_gfree(c, r);           /* curg names it until it is in a free list */
    store_rel(&c->m->curg, 0); /* after that; read by the reaper */
}

bool shm_execute(struct shm_ctx *c, shm_gref r, bool inherit)
{
    struct shm_m *m = c->m;
    store_rlx(&m->curg, r); /* links before status, as Go: a running G has an M */
    FAILPOINT("sched.execute.curg");
    shm_shake(c); /* taken from the queue | running */
    bool mine = shm_gclaim_runnable(c, r);
    store_rlx(&m->inflight[SHM_IF_GOT], 0);
    if (unlikely(!mine)) {
        store_rlx(&m->curg, 0);
        return false;
    }
    struct shm_g *g = shm_g(c, r);
    c->moved = g->ran_m1 != c->m1;
    if (c->moved) {
        if (g->ran_m1)
            own_add(&m->st.moves, 1);
        g->ran_m1 = (uint16_t)c->m1;
    }
    if (unlikely(shm_tracing(c)))
        shm_trace(c, SHM_TR_START, g->goid, 0, 0);
    store_rlx(&m->run_since_ns, c->now_ns);
    if (c->p && !inherit)
        store_rlx(&c->p->schedtick, load_rlx(&c->p->schedtick) + 1); /* owner only, sysmon reads */
    own_add(&m->st.executed, 1);
    return true;
}

bool shm_preempt_requested(const struct shm_ctx *c)
{
    return (c->p && load_rlx(&c->p->preempt)) || /* a level: late is well */
           (load_rlx(&c->m->attn) & (SHM_ATTN_NOW | SHM_ATTN_OFFLOAD)) ||
           /* Without a keeper, or a P that it could name, the M looks at the clock itself. */
           ((c->p == NULL || load_rlx(&c->hdr->nprocs) == 0) && coarse_ns() > c->now_ns + SLICE_NS);
}

/* ---- looking for work ------------------------------------------------------------------------ */

/* Runs the due timers of every P. */
static uint32_t run_timers(struct shm_ctx *c)
{
    uint32_t all = 0;
    uint64_t now = 0;
    for (uint32_t i = 0; i < shm_nworkp(c); i++) {
        struct shm_p *p = &c->ptab[i];
        uint64_t when = load_acq(&p->timer0_when); /* a hint; pairs with timer.c */
        if (when == UINT64_MAX)
            continue;
        now = now ? now : shm_now_ns();
        uint32_t ran = 0;
        if (when <= now)
            shm_checktimers(c, p, now, &ran);
        all += ran;
    }
    return all;
}

static uint32_t gcd(uint32_t a, uint32_t b)
{
    while (b) {
        uint32_t t = a % b;
        a = b;
        b = t;
    }
    return a;
}

/* Four passes over the other Ps, each in the same random order: a start, and a stride without a
 * common divisor with their number (Go's stealOrder). Timers and runnexts only in the last. */
static shm_gref steal(struct shm_ctx *c, bool *inherit)
{
    uint32_t n = shm_nworkp(c);
    uint64_t rnd = ctx_rand(c);
    uint32_t start = (uint32_t)(rnd >> 32) % n, stride = 1 + (uint32_t)rnd % n;
    while (gcd(stride, n) != 1)
        stride++;
    for (int pass = 0; pass < STEAL_PASSES; pass++) {
        bool last = pass == STEAL_PASSES - 1;
        if (last && run_timers(c)) {
            shm_gref r = shm_runqget(c, c->p, inherit);
            if (r)
                return r;
        }
        for (uint32_t i = 0, at = start; i < n; i++, at = (at + stride) % n) {
            shm_gref r = 0;
            if (&c->ptab[at] != c->p)
                r = shm_runqsteal(c, c->p, &c->ptab[at], last);
            if (r)
                return r;
        }
    }
    return 0;
}

/* migrate=always: a G that ran here last is left to another M, if there is one, a little while. */
static shm_gref refuse(struct shm_ctx *c, shm_gref r, int *refused)
{
    if (shm_g(c, r)->ran_m1 != c->m1 || load_rlx(&c->hdr->nprocs) < 2 || /* a hint */
        *refused == REFUSALS)
        return r;
    ++*refused;
    shm_globrunqput(c, r);
    own_add(&c->m->moved, 1); /* before the name goes; pairs with the look of a reaper */
    store_rlx(&c->m->inflight[SHM_IF_GOT], 0);
    shm_wakep(c);
    uint64_t until = shm_now_ns() + REFUSAL_NS;
    while ((load_rlx(&c->hdr->runq_size) || load_rlx(&c->hdr->batchq_size)) && shm_now_ns() < until)
        sched_yield();
    return 0;
}

static shm_gref from_list(struct shm_ctx *c, bool batch, uint32_t max)
{
    bool always = c->hdr->migrate == 1;
    int refused = 0;
    shm_gref r;
    do
        r = batch ? shm_batchqget(c) : shm_globrunqget(c, c->p, always ? 1 : max);
    while (unlikely(always) && r && (r = refuse(c, r, &refused)) == 0);
    return r;
}

/* The time slice is over: runnext to the tail, the ring has its turn. */
static void end_slice(struct shm_ctx *c)
{
    struct shm_p *p = c->p;
    bool next = false;
    store_rlx(&p->preempt, 0); /* level: cleared here only */
    c->chain = 0;
    if (load_rlx(&p->runnext) == 0) /* own word */
        return;
    shm_gref r = shm_runqget(c, p, &next);
    if (r) {
        shm_runqput(c, p, r, false);
        own_add(&c->m->moved, 1); /* as in refuse() */
        store_rlx(&c->m->inflight[SHM_IF_GOT], 0);
    }
}

/* One look around, in Go's order. */
static shm_gref find(struct shm_ctx *c, bool *inherit)
{
    struct shm_p *p = c->p;
    shm_gref r = 0;
    *inherit = false;
    c->now_ns = coarse_ns();
    c->tick++;
    if (p == NULL) { /* a spare: what only it can run, and timers */
        run_timers(c);
        return shm_homeqget(c);
    }
    if (unlikely(c->next_ns))
        shm_runq_watch(c, p);
    uint64_t when = load_acq(&p->timer0_when); /* a hint; pairs with timer.c */
    if (when != UINT64_MAX) {
        uint32_t ran;
        uint64_t now = shm_now_ns();
        if (when <= now)
            shm_checktimers(c, p, now, &ran);
    }
    if (p->nosteal)
        return shm_homeqget(c);
    bool over = load_rlx(&p->preempt) || c->chain >= CHAIN;
    if (unlikely(over))
        end_slice(c);
    if ((c->tick & 1) && !over) /* now it is the ring's turn, not a home G's that feeds runnext */
        r = shm_homeqget(c);
    if (!r) {
        uint32_t turn = load_rlx(&p->schedtick) % GLOBAL_EVERY;
        if (unlikely(turn == 0))
            r = from_list(c, false, 1);
        else if (unlikely(turn == BATCH_TURN))
            r = from_list(c, true, 1);
    }
    if (!r) {
        r = shm_runqget(c, p, inherit);
        /* Home and global Gs in between do not count: the ring waits all the same. */
        c->chain = *inherit ? c->chain + 1 : 0;
    }
    if (!r)
        r = shm_homeqget(c);
    if (!r)
        r = from_list(c, false, UINT_MAX);
    if (!r)
        r = steal(c, inherit);
    if (!r)
        r = from_list(c, true, 1);
    return r;
}

/* Does the caller have to look up from the queue? */
static int attention(struct shm_ctx *c)
{
    if (unlikely(load_acq(&c->hdr->shutdown))) /* pairs with who ends the program */
        return SHM_EDEAD;
    uint32_t attn = load_acq(&c->m->attn); /* pairs with or_seq of who asks */
    if (likely(attn == 0))
        return SHM_OK;
    if ((attn & SHM_ATTN_OFFLOAD) && !shm_any_home(c->m))
        and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_OFFLOAD); /* a hint: who wants one asks again */
    return attn & SHM_ATTN_NOW ? SHM_EINTR : SHM_OK;
}

/* The P under this M went beyond the number while it searched: what was found waits for a P that
 * is wanted, or is at home and needs none. */
static void unwanted(struct shm_ctx *c, shm_gref r)
{
    if (r) {
        if (shm_g(c, r)->home_m1)
            shm_homeqput(c, c->m, r);
        else
            shm_globrunqput(c, r);
        own_add(&c->m->moved, 1); /* as in refuse() */
        store_rlx(&c->m->inflight[SHM_IF_GOT], 0);
    }
    shm_putp(c);
    shm_wakep(c);
}

int shm_findrunnable(struct shm_ctx *c, bool block, shm_gref *g, bool *inherit)
{
    bool woken = false;
    uint64_t spin_until = 0;
    for (;;) {
        int e = attention(c);
        if (e == SHM_OK) {
            if (unlikely(c->p == NULL))
                shm_takep(c);
            *g = find(c, inherit);
            /* After the search, whose acquire of *g brings the number that was stored before *g was
             * queued: what is spawned when gomaxprocs has returned runs on no P beyond it. */
            if (unlikely(c->p != NULL && !shm_p_wanted(c, c->p))) {
                unwanted(c, *g);
                continue;
            }
            if (likely(*g != 0)) {
                if (woken)
                    own_add(&c->m->st.useful_wakes, 1);
                shm_pay(c);
                return SHM_OK;
            }
            if (!block)
                return SHM_EAGAIN;
            if (shm_spin(c, &spin_until))
                continue;
            e = shm_stopm(c, &woken);
            spin_until = 0;
        }
        if (e != SHM_OK) {
            if (load_rlx(&c->m->spinning) == SHM_M_SPINNING) /* own: not idle */
                shm_resetspinning(c);
            return e;
        }
    }
}
