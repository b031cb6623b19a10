/* sched.c — the scheduler: who runs what, who looks for work, who sleeps, who is woken.
 *
 * Gs, Ms and Ps are Go's (runtime/proc.go): a G is a goroutine, an M a process that runs Python, a P
 * the right to run light Gs, with a ring of runnable ones. There are nprocs Ps; an M without one is a
 * spare. Queues are in runq.c, statuses in g.c; this file decides.
 *
 * M0 APART. With workers, M0 runs main and nothing else: its P has timers only (nosteal), its ring
 * is never used, what it readies goes to the global queue, and it looks at its home queue alone. With
 * nprocs 0 it is the one worker: then all of this file holds for it.
 *
 * WAKING IS THE DEAREST ACT HERE. It costs the waker about 10 us of system call and the sleeper runs
 * 20 to 60 us later; two awake Ms hand a G over in half a microsecond. Rejected therefore:
 *   - to wake somebody for each G that is made ready (two Gs that talk in turns would pay 10 us each
 *     time for an M that comes too late);
 *   - to wake nobody and let idle Ms poll (they would eat the processor of those who work);
 *   - to hand a G to a woken M directly (the G would wait for the one thing that is slow);
 *   - a count of spinning Ms, as Go has it: a spinner that is killed would stay counted for ever and
 *     nobody would be woken any more. It is a state of each M, which its reaper resets.
 * What is done:
 *   - a G that is readied goes to the readier's runnext, and nobody is woken: mostly the readier parks
 *     within microseconds and runs it. It is noted in p->debt.
 *   - schedule (findrunnable, when it has found something and more is left) pays: two or more left,
 *     or one left for the second time, and an idle M is woken. A G that makes much ready without
 *     coming back pays at the fourth.
 *   - a spinner pays by finding it. The keeper pays what has waited from one tick (1 ms) to the next
 *     on a P whose M executed nothing in between.
 *   - what is queued by who will not come back for it (M0, the keeper, a thread that is no M) goes to
 *     the global queue and wakes somebody at once.
 *
 * THE STATE OF AN M, m->spinning
 *     busy      runs a G, or is between two
 *     spinning  looks for work and has said so: nobody else need be woken
 *     idle      sleeps or is about to
 * The M moves it, but for idle -> spinning (by shm_wakeone) and idle -> busy (to run a home G): those
 * are made by CAS by the waker. So one CAS both chooses whom to wake and makes him the spinner that
 * spares others a wake, no two wakers wake the same M, and there is no moment in which a waker that
 * dies leaves something half said. The bits in hdr->idle_m only say where to look; each is written by
 * its own M alone. (A waker that cleared it could clear it late, when the M has gone idle again.)
 *
 * THE IDLE DANCE. Work must not be left lying while an M that could run it sleeps. Both sides store
 * first and look afterwards, sequentially consistent (tag: idle-dance).
 *
 *     who queues work (S)                          who goes idle (I)
 *     S1 the G into a queue                        I1 its P back: idle_p bit, status Pidle
 *     S2 an idle P? none: done                     I2 its bit in idle_m, state idle: no spinner now
 *     S3 a spinner? one: done                      I3 looks at every queue once more
 *     S4 an idle M: CAS idle -> spinning, note     I4 something there: CAS idle -> spinning, search
 *                                                  I5 nothing: sleeps on its note
 *
 *     who stops spinning because it found something (F)
 *     F1 state busy                                F2 looks at every queue; work there: S2
 *
 * Proof that a G queued by S1 is not forgotten. All the steps named are in one total order.
 *   S2 saw no idle P. Then every I has its I1 after S2, so its I3 after S1: it sees the G. (Go 1.19
 *      forgets this case when the one who drops its P was not spinning, golang/go #45867: here
 *      everybody looks, spinner or not.)
 *   S3 saw a spinner X. X stops spinning after S3, by I2 or by F1. It then looks, I3 or F2, after S1.
 *   S4 found no idle M. Each M's I2 is after that: its I3 sees the G. Or all of them are busy: they
 *      come to I3 in their time, and until then no M is idle.
 *   S4 woke an M: it is a spinner, and the case above goes for it.
 * Who looks and finds either takes the G, or somebody else took it, or it has no P: then a P was not
 * idle at S2, and who puts it back looks. A waker's note that comes late makes one needless round.
 * The exceptions, bounded by the keeper: a runnext of a P that runs (it is that M's own; I3 does not
 * count it, or nobody could ever sleep beside two Gs that talk), and an M stopped while it spins.
 *
 * SPINNING. An M that runs dry looks around for hdr->spin_ns, about the price of a wake, before it
 * sleeps: if at most half of the busy Ps do so, and if there is a processor for it that nobody works
 * on. But two Ms that hand over in turns and have once fallen asleep would stay in it: each is woken
 * just when the other has given up. So an M whose sleep was short spins longer next time (twice that
 * sleep, up to SPIN_MOST), and one that slept long as at first. M0 does the same for its home queue, without becoming a `spinner`: it could not take what the
 * others are spared waking for.
 *
 * TIMERS are per P (timer.c). The last M that goes idle is the poller: it sleeps only until the
 * earliest timer of all Ps. Later timers come from Ms that run, and those look themselves.
 *
 * TWO CLASSES. A batch G (SHM_GF_BATCH) is queued apart (runq.c, INV batch-apart) and looked for when
 * there is nothing in any queue that this M could take, others' rings included; and before the ring
 * at every 61st schedule, another one than the global queue's, so that neither starves behind rings
 * that never run dry. What is at home (heavy, pinned) has no class: only its M can run it. A running
 * batch G is preempted like another, after 10 ms, and goes to the tail of its own queue.
 *
 * FAIRNESS. The global queue every 61st schedule; a home queue every other one; a runnext inherits
 * the time slice, so that two Gs that ready each other in turns share one: after 10 ms (keeper) or
 * CHAIN turns the runnext goes to the tail and the ring has its turn. With procs=0 there is no keeper:
 * shm_preempt_requested() looks at the clock.
 *
 * A DEADLOCK is declared only if no worker has left idle between two looks at all of them, and in
 * between no G was runnable, running or claimed, no timer was set, no M had died unnoticed and the
 * keeper slept. An M counts itself in idle_seq when it leaves idle, before anything else: one that was
 * idle at both looks, with the count unchanged, has slept all the time. A false alarm would be a
 * disaster, a late one is none: M0 looks when it goes idle, when the last worker tells it to, and
 * every 100 ms. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* CPU_COUNT */
#endif
#include "internal.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define SLICE_NS 10000000ULL /* as in sysmon.c */
#define CHAIN 256            /* runnexts in a row before the ring has its turn */
#define PAY_AT 4             /* Gs made ready without a schedule, before somebody is woken */
#define STEAL_PASSES 4
#define GLOBAL_EVERY 61
#define BATCH_TURN 30 /* of these, which is the batch queue's */

#define M0_NAP_NS 100000000LL /* M0 looks at signals and at the keeper */
#define REFUSALS 2            /* migrate=always: how often a G may be left for another M */
#define REFUSAL_NS 50000
#define SPIN_MOST 250000 /* ns: longer sleeps are cheaper than a processor */
#define LINGER 200       /* looks: 2 to 8 us */
#define LOOKS 16         /* of a spinner between two looks at the clock */

#define ATTN_NOW (SHM_ATTN_SHUTDOWN | SHM_ATTN_DUMP | SHM_ATTN_PANIC | SHM_ATTN_RECYCLE)

/* With workers, M0 runs only what is at home there. */
static bool home_only(const struct shm_ctx *c)
{
    return load_rlx(&c->m->kind) == SHM_M_M0 && c->hdr->m0_p != SHM_MAX_P; /* own word */
}

/* Ps whose queues are looked at; M0's is among them, and always empty, as a dead one is. */
static uint32_t nworkp(const struct shm_ctx *c)
{
    return load_acq(&c->hdr->max_p); /* pairs with who adds one (procs.c) */
}

/* To some ms: CLOCK_MONOTONIC costs four times as much, and every schedule asks. */
static uint64_t coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* To the keeper: there is something to do before you would wake by yourself. */
static void kick(struct shm_ctx *c)
{
    uint64_t one = 1;
    if (c->kick_fd >= 0 && write(c->kick_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        c->kick_fd = -1; /* the keeper is gone: its successor begins awake */
}

/* ---- P --------------------------------------------------------------------------------------- */

/* The status word is the truth, the bit a hint that is never missing: it is set before the status
 * says idle, and cleared by who has taken the P. */
int shm_acquirep(struct shm_ctx *c, uint32_t pi)
{
    struct shm_p *p = &c->ptab[pi];
    uint64_t idle = Pidle;
    if (unlikely(c->p != NULL))
        shm_throw("acquirep: M %u has P %u already, wants %u", c->m->index, c->p->index, pi);
    /* Acquires the ring as its former owner left it; pairs with shm_releasep(). */
    if (!cas_seq(&p->status, &idle, (uint64_t)c->m1 << 16 | Prunning))
        return SHM_EAGAIN;
    FAILPOINT("sched.acquirep.taken");
    if (!p->nosteal)
        and_seq(&c->hdr->idle_p[pi / 64], ~(1ULL << pi % 64));
    store_rlx(&p->preempt, 0);
    store_rlx(&c->m->p1, pi + 1);
    c->p = p;
    c->chain = 0;
    return SHM_OK;
}

static void putp(struct shm_ctx *c)
{
    struct shm_p *p = c->p;
    c->p = NULL;
    store_rlx(&c->m->p1, 0);
    if (unlikely(!shm_p_wanted(c, p))) {
        shm_p_drop(c, p);
        return;
    }
    if (!p->nosteal)
        or_seq(&c->hdr->idle_p[p->index / 64], 1ULL << p->index % 64);
    FAILPOINT("sched.releasep.bit");
    shm_shake(c);                 /* the bit | the status */
    store_seq(&p->status, Pidle); /* I1, tag: idle-dance; pairs with the CAS in shm_acquirep() */
}

void shm_releasep(struct shm_ctx *c)
{
    putp(c);
    if (shm_anywork(c))
        shm_wakep(c);
}

bool shm_anyidlep(const struct shm_ctx *c)
{
    for (uint32_t w = 0; w <= (c->hdr->max_p - 1) / 64; w++)
        if (load_seq(&c->hdr->idle_p[w])) /* S2, tag: idle-dance */
            return true;
    return false;
}

/* M0's own P, or any idle one; the caller may find that there is none. */
static void takep(struct shm_ctx *c)
{
    if (unlikely(c->homely))
        return;
    if (home_only(c)) {
        uint32_t pi = c->hdr->m0_p;
        if (unlikely(shm_acquirep(c, pi)))
            shm_throw("acquirep: M0's P %u belongs to M %d", pi,
                      (int)SHM_ST_M1(load_rlx(&c->ptab[pi].status)) - 1);
        return;
    }
    for (uint32_t w = 0; w <= (c->hdr->max_p - 1) / 64; w++)
        for (uint64_t b = load_seq(&c->hdr->idle_p[w]); b; b &= b - 1)
            if (shm_acquirep(c, w * 64 + (uint32_t)__builtin_ctzll(b)) == SHM_OK)
                return;
}

void shm_handoffp(struct shm_ctx *c)
{
    if (c->p == NULL)
        return;
    putp(c);
    if (shm_anywork(c))
        shm_wakep(c);
    /* Without work too: what is queued later wakes an idle M, and there must be one. */
    if (!shm_anyidlem(c))
        shm_want_m(c, 1);
}

bool shm_anyidlem(const struct shm_ctx *c)
{
    for (uint32_t w = 0; w < SHM_MAX_M / 64; w++)
        if (load_seq(&c->hdr->idle_m[w]))
            return true;
    return false;
}

void shm_want_m(struct shm_ctx *c, uint32_t n)
{
    add_seq(&c->hdr->want_m, n); /* taken by the keeper in shm_sysmon() */
    kick(c);
}

/* ---- waking ---------------------------------------------------------------------------------- */

static bool any_spinner(const struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++)
        if (load_seq(&c->mtab[i].spinning) == SHM_M_SPINNING) /* S3, tag: idle-dance */
            return true;
    return false;
}

bool shm_wakeone(struct shm_ctx *c, bool anyway)
{
    /* Changes nothing; it puts what was queued (S1) before the looks below on every machine. */
    or_seq(&c->m->attn, 0);
    if (!shm_anyidlep(c) || (!anyway && any_spinner(c)))
        return false;
    for (uint32_t w = 0; w < SHM_MAX_M / 64; w++)
        for (uint64_t b = load_seq(&c->hdr->idle_m[w]); b; b &= b - 1) {
            struct shm_m *m = &c->mtab[w * 64 + (uint32_t)__builtin_ctzll(b)];
            uint32_t idle = SHM_M_IDLE;
            shm_shake(c); /* the look for whom to wake | his claim */
            if (!cas_seq(&m->spinning, &idle, SHM_M_SPINNING)) /* S4, tag: idle-dance */
                continue;
            FAILPOINT("sched.wake.claimed");
            shm_notewakeup(&m->note);
            own_add(&c->m->st.wakes, 1);
            return true;
        }
    return false;
}

void shm_wakep(struct shm_ctx *c)
{
    shm_wakeone(c, false);
}

/* For what only this M can do. */
static void wakem(struct shm_ctx *c, struct shm_m *m)
{
    uint32_t idle = SHM_M_IDLE;
    if (m == c->m || load_seq(&m->spinning) != SHM_M_IDLE) /* after the G is queued: idle-dance */
        return;
    if (cas_seq(&m->spinning, &idle, SHM_M_BUSY)) {
        shm_notewakeup(&m->note);
        own_add(&c->m->st.wakes, 1);
    }
}

static void wake_keeper(struct shm_ctx *c)
{
    uint32_t asleep = 1;
    /* After the P is taken or the timer set; pairs with the keeper's store before its last look. */
    if (load_seq(&c->hdr->keeper_asleep) && cas_seq(&c->hdr->keeper_asleep, &asleep, 0))
        kick(c);
}

void shm_wakepoller(struct shm_ctx *c)
{
    wake_keeper(c);
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
        wakem(c, home);
        return;
    }
    struct shm_p *p = own_ring(c);
    if (p == NULL || unlikely(batch)) {
        shm_globrunqput(c, r);
        shm_wakep(c);
        return;
    }
    shm_runqput(c, p, r, next);
    uint32_t debt = load_rlx(&p->debt) + 1; /* own word, the keeper reads it */
    if (debt >= PAY_AT && shm_anyidlep(c)) {
        debt = 0;
        shm_wakep(c);
    }
    store_rlx(&p->debt, debt);
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
    store_rel(&c->m->inflight[SHM_IF_READY], 0);
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
    store_rel(&c->m->inflight[SHM_IF_READY], 0);
}

void shm_newproc(struct shm_ctx *c, shm_gref r)
{
    uint32_t home = shm_g(c, r)->home_m1;
    bool batch = shm_g(c, r)->flags & SHM_GF_BATCH;
    store_rlx(&c->m->inflight[SHM_IF_NEW], r); /* INV nothing-in-hand; since shm_gnew(), mostly */
    if (unlikely(shm_tracing(c)))
        shm_trace(c, SHM_TR_CREATE, shm_g(c, r)->goid, 0, shm_g(c, r)->parent);
    own_add(&c->m->st.spawned, 1);
    FAILPOINT("sched.newproc.named");
    if (unlikely(!shm_casgstatus(c, r, Gidle, Grunnable)))
        shm_throw("newproc: goroutine slot %u of generation %u is of another generation",
                  shm_gidx(r), shm_ggen(r));
    FAILPOINT("sched.newproc.runnable");
    shm_shake(c); /* the status | the queue */
    queue(c, r, home, batch, true);
    FAILPOINT("sched.newproc.queued");
    store_rel(&c->m->inflight[SHM_IF_NEW], 0);
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
    if (unlikely(!shm_casgstatus(c, r, Grunning, Gdead)))
        shm_throw("goexit0: goroutine slot %u is of another generation", shm_gidx(r));
    FAILPOINT("sched.goexit0.dead");
    shm_gfree(c, r);           /* curg names it until it is in a free list */
    store_rel(&c->m->curg, 0); /* after that; read by the reaper */
    own_add(&c->m->st.finished, 1);
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
           (load_rlx(&c->m->attn) & (ATTN_NOW | SHM_ATTN_OFFLOAD)) ||
           /* Without a keeper the M looks at the clock itself. */
           (c->hdr->nprocs == 0 && coarse_ns() > c->now_ns + SLICE_NS);
}

/* ---- looking for work ------------------------------------------------------------------------ */

/* What an M with a P could take; see I3 for what is not counted. */
bool shm_anywork(const struct shm_ctx *c)
{
    if (load_seq(&c->hdr->runq_size) ||
        load_seq(&c->hdr->batchq_size)) /* I3, F2, tag: idle-dance */
        return true;
    for (uint32_t i = 0; i < nworkp(c); i++) {
        struct shm_p *p = &c->ptab[i];
        if (shm_runqsize(p) ||
            (SHM_ST_STATUS(load_seq(&p->status)) == Pidle && load_seq(&p->runnext)))
            return true;
    }
    return false;
}

/* Runs the due timers of every P. */
static uint32_t run_timers(struct shm_ctx *c)
{
    uint32_t all = 0;
    uint64_t now = 0;
    for (uint32_t i = 0; i < nworkp(c); i++) {
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
    uint32_t n = nworkp(c);
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
    if (shm_g(c, r)->ran_m1 != c->m1 || c->hdr->nprocs < 2 || *refused == REFUSALS)
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

/* F1, F2. */
static void stop_spinning(struct shm_ctx *c)
{
    shm_shake(c);
    store_seq(&c->m->spinning, SHM_M_BUSY); /* F1, tag: idle-dance */
    shm_shake(c);                           /* F1 | F2 */
    if (shm_anywork(c))
        shm_wakep(c);
}

/* Something was found. What more is there for somebody else? */
static void pay(struct shm_ctx *c)
{
    struct shm_p *p = c->p;
    if (load_rlx(&c->m->spinning) == SHM_M_SPINNING) { /* own: not idle */
        stop_spinning(c);
        if (p)
            store_rlx(&p->debt, 0);
        return;
    }
    if (p == NULL || p->nosteal)
        return;
    uint64_t left = load_rlx(&p->runqtail) - load_rlx(&p->runqhead) + /* hints */
                    (load_rlx(&p->runnext) != 0) + load_rlx(&c->hdr->runq_size) +
                    load_rlx(&c->hdr->batchq_size);
    if (left >= 2 || (left == 1 && load_rlx(&p->debt))) {
        if (shm_anyidlep(c))
            shm_wakep(c);
        left = 0;
    }
    store_rlx(&p->debt, (uint32_t)left); /* own word, the keeper reads it */
}

/* ---- spinning, sleeping ---------------------------------------------------------------------- */

/* How many others work: workers that are not idle, and M0 if it runs main. */
static uint32_t others_busy(const struct shm_ctx *c, uint32_t *spinners)
{
    uint32_t n = load_acq(&c->hdr->max_m), busy = 0; /* pairs with shm_minit() */
    *spinners = 0;
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_rlx(&m->kind), state = load_rlx(&m->spinning); /* hints */
        if (m == c->m)
            continue;
        *spinners += state == SHM_M_SPINNING;
        busy += (kind == SHM_M_WORKER && state != SHM_M_IDLE) ||
                (kind == SHM_M_M0 && load_rlx(&m->curg));
    }
    return busy;
}

static bool may_spin(const struct shm_ctx *c)
{
    const struct shm_hdr *h = c->hdr;
    uint32_t spinners, idle = 0, busy = others_busy(c, &spinners);
    if (h->nprocs == 0 || h->spin_ns == 0 || busy >= h->ncpu || c->p == NULL)
        return false;
    if (home_only(c) || load_rlx(&c->m->spinning) == SHM_M_SPINNING)
        return true;
    for (uint32_t w = 0; w <= (h->max_p - 1) / 64; w++)
        idle += (uint32_t)__builtin_popcountll(load_rlx(&h->idle_p[w])); /* a hint */
    return 2 * spinners < h->nprocs - (idle < h->nprocs ? idle : h->nprocs);
}

/* Is there something for this M? Also the last look of who goes idle. */
static bool something(struct shm_ctx *c, uint64_t now)
{
    struct shm_m *m = c->m;
    if (load_seq(&m->homeq_n) || (load_seq(&m->attn) & ATTN_NOW) || /* I3, tag: idle-dance */
        load_seq(&c->hdr->shutdown))
        return true;
    if (home_only(c))
        return load_acq(&c->p->timer0_when) <= now; /* pairs with timer.c */
    if (shm_timer_next(c) <= now)
        return true;
    return !c->homely && (c->p || shm_anyidlep(c)) && shm_anywork(c);
}

/* The part of something() that comes from who is awake, without a clock; and another P's runnext,
 * which steal() takes if it stays. Relaxed: all hints, what they lead to is taken by CAS. */
static bool handed_over(const struct shm_ctx *c)
{
    if (load_rlx(&c->m->homeq_n) || (load_rlx(&c->m->attn) & ATTN_NOW))
        return true;
    if (home_only(c))
        return false;
    if (load_rlx(&c->hdr->runq_size) || load_rlx(&c->hdr->batchq_size))
        return true;
    for (uint32_t i = 0; i < nworkp(c); i++)
        if (load_rlx(&c->ptab[i].runnext) || shm_runqsize(&c->ptab[i]))
            return true;
    return false;
}

/* From here on S3 counts on us. False: this is not the moment for it. */
static bool start_spinning(struct shm_ctx *c)
{
    if (!may_spin(c))
        return false;
    if (!home_only(c))
        store_seq(&c->m->spinning, SHM_M_SPINNING); /* tag: idle-dance */
    return true;
}

bool shm_linger(struct shm_ctx *c)
{
    if (!start_spinning(c))
        return false;
    for (int i = 0; i < LINGER; i++) {
        if (handed_over(c))
            return true;
        cpu_relax();
    }
    return false;
}

/* True: look again. False: the time is up, or this is not the moment for it. */
static bool spin(struct shm_ctx *c, uint64_t *until)
{
    uint64_t now = shm_now_ns();
    if (*until == 0) {
        if (!start_spinning(c))
            return false;
        *until = now + (c->spin_ns ? c->spin_ns : c->hdr->spin_ns);
    }
    for (; now < *until; now = shm_now_ns()) {
        if (something(c, now))
            return true;
        for (int i = 0; i < LOOKS; i++) {
            if (handed_over(c))
                return true;
            cpu_relax();
        }
    }
    return false;
}

/* An M with more Gs at home than it can run: one of them may come over. */
static void ask_offload(struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        if (load_rlx(&m->homeq_n) >= 2 && load_rlx(&m->kind) == SHM_M_WORKER && /* hints */
            load_rlx(&m->spinning) == SHM_M_BUSY && !(load_rlx(&m->attn) & SHM_ATTN_OFFLOAD)) {
            or_seq(&m->attn, SHM_ATTN_OFFLOAD);
            return;
        }
    }
}

/* Every worker but this M is idle; with keepers: the keeper too. */
static bool all_idle(const struct shm_ctx *c, bool keepers)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_seq(&m->kind);
        if (m != c->m && (kind == SHM_M_WORKER || (keepers && kind == SHM_M_KEEPER)) &&
            load_seq(&m->spinning) != SHM_M_IDLE) /* tag: idle-dance */
            return false;
    }
    return true;
}

/* Nobody will ever do anything again? Asked by who has just gone idle. */
static bool looks_dead(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    if (!load_acq(&h->deadlock_on) || load_seq(&h->externs) || !all_idle(c, false) ||
        shm_timer_next(c) != UINT64_MAX)
        return false;
    if (load_rlx(&c->m->kind) == SHM_M_M0)
        return shm_checkdead(c);
    struct shm_m *m0 = &c->mtab[h->m0_slot];
    or_seq(&m0->attn, SHM_ATTN_CHECKDEAD); /* before the look; M0 goes idle, then looks itself */
    wakem(c, m0);
    return false;
}

/* Leaves idle, by itself or woken. */
static void leave_idle(struct shm_ctx *c, uint32_t to)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    uint32_t idle = SHM_M_IDLE, me = c->m1;
    cas_seq(&m->spinning, &idle, to); /* fails: a waker has done it */
    add_seq(&h->idle_seq, 1);         /* before anything is taken; pairs with shm_checkdead() */
    if (!home_only(c))
        and_seq(&h->idle_m[m->index / 64], ~(1ULL << m->index % 64));
    if (load_rlx(&h->poller_m1) == me)
        cas_acqrel(&h->poller_m1, &me, 0);
    wake_keeper(c); /* there is something to preempt and to pay for again */
}

/* The dance, and sleep. SHM_OK: look again. */
static int idle(struct shm_ctx *c, bool *woken)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    bool m0 = home_only(c), is_m0 = load_rlx(&m->kind) == SHM_M_M0, home = m0 || c->homely;
    if (*woken)
        own_add(&m->st.useless_wakes, 1);
    *woken = false;
    if (!home)
        ask_offload(c);
    shm_noteclear(&m->note);
    if (!home) {
        if (c->p)
            putp(c);                                              /* I1, tag: idle-dance */
        or_seq(&h->idle_m[m->index / 64], 1ULL << m->index % 64); /* I2 */
    }
    store_seq(&m->spinning, SHM_M_IDLE); /* I2: no spinner any more */
    FAILPOINT("sched.idle.said");
    shm_shake(c); /* I2 | I3 */
    uint64_t now = shm_now_ns();
    if (something(c, now)) {                               /* I3 */
        leave_idle(c, home ? SHM_M_BUSY : SHM_M_SPINNING); /* I4 */
        return SHM_OK;
    }
    if (looks_dead(c)) {
        leave_idle(c, SHM_M_BUSY);
        return SHM_EDEADLOCK;
    }
    uint64_t next = m0 ? load_acq(&c->p->timer0_when) : shm_timer_next(c); /* as in something() */
    int64_t nap = next == UINT64_MAX ? -1 : next > now ? (int64_t)(next - now) : 0;
    if (!m0 && next != UINT64_MAX)
        store_rel(&h->poller_m1, c->m1); /* the last one knows of all timers */
    if (is_m0 && (nap < 0 || nap > M0_NAP_NS))
        nap = M0_NAP_NS;
    own_add(&m->st.sleeps, 1);
    bool set = shm_notetsleep(&m->note, nap); /* I5 */
    uint64_t slept = shm_now_ns() - now;
    c->spin_ns = set && slept < SPIN_MOST / 2 ? 2 * slept : h->spin_ns;
    leave_idle(c, SHM_M_BUSY);
    *woken = load_rlx(&m->spinning) == SHM_M_SPINNING;    /* own again */
    if (unlikely(load_acq(&m->attn) & SHM_ATTN_RETIRE)) { /* pairs with shm_m_offer_leave() */
        and_seq(&m->attn, ~(uint32_t)SHM_ATTN_RETIRE);
        if (!*woken && shm_m_retire(c))
            return SHM_ERETIRE;
    }
    if (set || *woken || now + slept >= next)
        return SHM_OK;
    return SHM_EINTR; /* a signal, or M0's nap is over */
}

/* Does the caller have to look up from the queue? */
static int attention(struct shm_ctx *c)
{
    if (unlikely(load_acq(&c->hdr->shutdown))) /* pairs with who ends the program */
        return SHM_EDEAD;
    uint32_t attn = load_acq(&c->m->attn); /* pairs with or_seq of who asks */
    if (likely(attn == 0))
        return SHM_OK;
    if ((attn & SHM_ATTN_OFFLOAD) && load_rlx(&c->m->homeq_n) == 0)
        and_seq(&c->m->attn, ~(uint32_t)SHM_ATTN_OFFLOAD);
    return attn & ATTN_NOW ? SHM_EINTR : SHM_OK;
}

int shm_findrunnable(struct shm_ctx *c, bool block, shm_gref *g, bool *inherit)
{
    bool woken = false;
    uint64_t spin_until = 0;
    for (;;) {
        int e = attention(c);
        if (e == SHM_OK) {
            if (unlikely(c->p != NULL && !shm_p_wanted(c, c->p)))
                putp(c);
            if (unlikely(c->p == NULL))
                takep(c);
            *g = find(c, inherit);
            if (likely(*g != 0)) {
                if (woken)
                    own_add(&c->m->st.useful_wakes, 1);
                pay(c);
                return SHM_OK;
            }
            if (!block)
                return SHM_EAGAIN;
            if (spin(c, &spin_until))
                continue;
            e = idle(c, &woken);
            spin_until = 0;
        }
        if (e != SHM_OK) {
            if (load_rlx(&c->m->spinning) == SHM_M_SPINNING) /* own: not idle */
                stop_spinning(c);
            return e;
        }
    }
}

/* ---- waits that end otherwise ---------------------------------------------------------------- */

bool shm_wait_abort(struct shm_ctx *c, shm_gref r, uint64_t epoch, uint8_t ok)
{
    struct shm_m *m = c->m;
    store_rlx(&m->abort_ok, ok);
    /* INV nothing-in-hand. Apart from READY: `linked` says nothing of a G claimed without the lock,
     * so a reaper does not arm it again but does what is left of this here. */
    store_rel(&m->inflight[SHM_IF_ABORT], r); /* after abort_ok, for the reaper */
    if (!shm_wait_claim(c, r, epoch)) {
        store_rlx(&m->inflight[SHM_IF_ABORT], 0);
        return false;
    }
    FAILPOINT("sched.abort.claimed");
    shm_sudog_unlink(c, r);
    shm_g(c, r)->ok = ok;
    FAILPOINT("sched.abort.unlinked");
    store_rel(&m->inflight[SHM_IF_READY], r); /* after ok, for the reaper */
    store_rel(&m->inflight[SHM_IF_ABORT], 0); /* after the other name */
    return true;
}

/* ---- deadlock -------------------------------------------------------------------------------- */

/* A G that something may still happen to by itself. A claimed one is in its waker's hand. */
static bool g_lives(const struct shm_g *g)
{
    uint64_t w = load_seq(&g->status);
    switch (SHM_ST_STATUS(w)) {
    case Gdead:
        return false;
    case Gwaiting: /* a thread of its process readies the one that waits for it */
        return g->reason == SHM_WR_THREAD || SHM_W_STATE(load_seq(&g->wait)) != SHM_W_ARMED;
    }
    return true;
}

bool shm_checkdead(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    if (load_seq(&h->externs) || load_rlx(&c->m->curg)) /* own word */
        return false;
    uint64_t seq = load_seq(&h->idle_seq); /* pairs with add_seq in leave_idle() */
    if (!all_idle(c, true) || shm_timer_next(c) != UINT64_MAX || shm_anywork(c))
        return false;
    uint32_t nm = load_acq(&h->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < nm; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_seq(&m->kind);
        if (kind == SHM_M_WORKER &&
            load_seq(&m->kill)) /* the keeper is to end one there (kill.c) */
            return false;
        if (load_seq(&m->homeq_n) || (kind == SHM_M_M0 && load_seq(&m->curg)))
            return false;
        /* A death nobody knows of yet: its reaper will ready those who wait for what it had. */
        if ((kind == SHM_M_WORKER || kind == SHM_M_KEEPER) && !shm_m_alive(c, i + 1))
            return false;
    }
    uint64_t ng = load_acq(&h->g_next); /* fresh slots beyond it: nobody has used them */
    for (uint64_t i = 1; i < ng; i++)
        if (g_lives(&c->gtab[i]))
            return false;
    return all_idle(c, true) && load_seq(&h->idle_seq) == seq && load_seq(&h->externs) == 0 &&
           shm_timer_next(c) == UINT64_MAX;
}

/* ---- figures --------------------------------------------------------------------------------- */

/* Not measured here: a wake needs a sleeper, that is a second thread or process, and a program that
 * has just begun is no place to make one for it. The price varies by a factor of two between
 * machines; spinning about as long as the sleeper's way back costs is right on all of them. Without
 * a second processor spinning only keeps others from working. */
void shm_calibrate(struct shm_ctx *c)
{
    cpu_set_t set;
    c->hdr->ncpu = sched_getaffinity(0, sizeof set, &set) == 0
                       ? (uint32_t)CPU_COUNT(&set)
                       : (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
    c->hdr->wake_cost_ns = 15000;
    c->hdr->spin_ns = c->hdr->ncpu > 1 ? 40000 : 0;
}

size_t shm_schedtrace(struct shm_ctx *c, char *buf, size_t n)
{
    struct shm_hdr *h = c->hdr;
    uint32_t idlep = 0, threads = 0, spinning = 0, idle = 0, nm = load_acq(&h->max_m);
    for (uint32_t i = 0; i < nworkp(c); i++) /* a snapshot, as all here */
        idlep += i != h->m0_p && SHM_ST_STATUS(load_rlx(&c->ptab[i].status)) == Pidle;
    for (uint32_t i = 0; i < nm; i++) {
        uint32_t kind = load_rlx(&c->mtab[i].kind), state = load_rlx(&c->mtab[i].spinning);
        threads += kind != SHM_M_FREE;
        spinning += kind != SHM_M_FREE && state == SHM_M_SPINNING;
        idle += (kind == SHM_M_WORKER || kind == SHM_M_M0) && state == SHM_M_IDLE;
    }
    size_t at = 0;
#define PUT(...)                                                        \
    do {                                                                \
        int put = snprintf(buf + at, at < n ? n - at : 0, __VA_ARGS__); \
        at = at + (size_t)put < n ? at + (size_t)put : n ? n - 1 : 0;   \
    } while (0)
    PUT("SCHED %llums: gomaxprocs=%u idleprocs=%u threads=%u spinningthreads=%u idlethreads=%u "
        "runqueue=%llu [",
        (unsigned long long)((shm_now_ns() - h->start_ns) / 1000000), h->nprocs ? h->nprocs : 1,
        idlep, threads, spinning, idle,
        (unsigned long long)(load_rlx(&h->runq_size) + load_rlx(&h->batchq_size)));
    for (uint32_t i = 0; i < nworkp(c); i++) {
        struct shm_p *p = &c->ptab[i];
        if (i != h->m0_p && SHM_ST_STATUS(load_rlx(&p->status)) != Pdead)
            PUT(i ? " %u" : "%u", shm_runqsize(p) + (load_rlx(&p->runnext) != 0));
    }
    PUT("]");
#undef PUT
    return at;
}
