/* idle.c — who is woken, who looks for work, who sleeps.
 *
 * WAKING IS THE DEAREST ACT HERE. It costs the waker about 10 us of system call and the sleeper
 * runs 20 to 60 us later; two awake Ms hand a G over in half a microsecond. Rejected therefore:
 *   - to wake somebody for each G that is made ready (two Gs that talk in turns would pay 10 us
 *     each time for an M that comes too late);
 *   - to wake nobody and let idle Ms poll (they would eat the processor of those who work);
 *   - to hand a G to a woken M directly (the G would wait for the one thing that is slow);
 *   - a count of spinning Ms, as Go has it: a spinner that is killed would stay counted for ever
 *     and nobody would be woken any more. It is a state of each M, which its reaper resets.
 * What is done:
 *   - a G that is readied goes to the readier's runnext, and nobody is woken: mostly the readier
 *     parks within microseconds and runs it. It is noted in p->debt.
 *   - schedule (findrunnable, when it has found something and more is left) pays: two or more left,
 *     or one left for the second time, and an idle M is woken. A G that makes much ready without
 *     coming back pays at the fourth.
 *   - a spinner pays by finding it. The keeper pays what has waited from one tick (1 ms) to the
 *     next on a P whose M executed nothing in between.
 *   - what is queued by who will not come back for it (M0, the keeper, a thread that is no M) goes
 *     to the global queue and wakes somebody at once.
 *
 * THE STATE OF AN M, m->spinning
 *     busy      runs a G, or is between two
 *     spinning  looks for work and has said so: nobody else need be woken
 *     idle      sleeps or is about to
 * The M moves it, but for idle -> spinning (by shm_wakeone) and idle -> busy (to run a home G):
 * those are made by CAS by the waker. So one CAS both chooses whom to wake and makes him the
 * spinner that spares others a wake, no two wakers wake the same M, and there is no moment in which
 * a waker that dies leaves something half said. The bits in hdr->idle_m only say where to look;
 * each is written by its own M alone. (A waker that cleared it could clear it late, when the M has
 * gone idle again.)
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
 *   S3 saw a spinner X. X stops spinning after S3, by I2 or by F1. It then looks, I3 or F2, after
 *      S1.
 *   S4 found no idle M. Each M's I2 is after that: its I3 sees the G. Or all of them are busy: they
 *      come to I3 in their time, and until then no M is idle.
 *   S4 woke an M: it is a spinner, and the case above goes for it.
 * Who looks and finds either takes the G, or somebody else took it, or it has no P: then a P was
 * not idle at S2, and who puts it back looks. A waker's note that comes late makes one needless
 * round. The exceptions, bounded by the keeper: a runnext of a P that runs (it is that M's own; I3
 * does not count it, or nobody could ever sleep beside two Gs that talk), and an M stopped while it
 * spins.
 *
 * SPINNING. An M that runs dry looks around for hdr->spin_ns, about the price of a wake, before it
 * sleeps: if at most half of the busy Ps do so, and if there is a processor for it that nobody
 * works on. But two Ms that hand over in turns and have once fallen asleep would stay in it: each
 * is woken just when the other has given up. So an M whose sleep was short spins longer next time
 * (twice that sleep, up to SPIN_MOST), and one that slept long as at first. M0 does the same for
 * its home queue, without becoming a `spinner`: it could not take what the others are spared waking
 * for.
 *
 * STANDING. To park costs half a microsecond and more: the frames become bytes, are taken off and
 * put up again. Where the M would then be idle and look around, the G waits a moment live for what
 * it awaits, instead: a peer on another M that is a step behind finds it still there. What parks by
 * itself at no cost (main, whatever is at home) does not, nor whoever sees another one stand at the
 * same place: somebody has to be in the queue. It runs all the while; nobody counts on it.
 *
 * TIMERS are per P (timer.c). The last M that goes idle is the poller: it sleeps only until the
 * earliest timer of all Ps. Later timers come from Ms that run, and those look themselves. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* CPU_COUNT */
#endif
#include "internal.h"

#include <sched.h>
#include <unistd.h>

#define PAY_AT 4              /* Gs made ready without a schedule, before somebody is woken */
#define M0_NAP_NS 100000000LL /* M0 looks at signals and at the keeper */
#define SPIN_MOST 250000      /* ns: longer sleeps are cheaper than a processor */
#define LINGER 200            /* looks: 2 to 8 us */
#define STAND 100             /* looks: 1 to 3 us, what a park and a resume cost */
#define LOOKS 16              /* of a spinner between two looks at the clock */

/* ---- waking ---------------------------------------------------------------------------------- */

/* To the keeper: there is something to do before you would wake by yourself. */
static void kick(struct shm_ctx *c)
{
    uint64_t one = 1;
    if (c->kick_fd >= 0 && write(c->kick_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        c->kick_fd = -1; /* the keeper is gone: its successor begins awake */
}

void shm_want_m(struct shm_ctx *c, uint32_t n)
{
    add_seq(&c->hdr->want_m, n); /* taken by the keeper in shm_sysmon() */
    kick(c);
}

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
            FAILPOINT("idle.wake.claimed");
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

void shm_wakem(struct shm_ctx *c, struct shm_m *m)
{
    uint32_t idle = SHM_M_IDLE;
    if (m == c->m || load_seq(&m->spinning) != SHM_M_IDLE) /* after the G is queued: idle-dance */
        return;
    if (cas_seq(&m->spinning, &idle, SHM_M_BUSY)) {
        shm_notewakeup(&m->note);
        own_add(&c->m->st.wakes, 1);
    }
}

void shm_wakepoller(struct shm_ctx *c)
{
    uint32_t asleep = 1;
    /* After the P is taken or the timer set; pairs with the keeper's store before its last look. */
    if (load_seq(&c->hdr->keeper_asleep) && cas_seq(&c->hdr->keeper_asleep, &asleep, 0))
        kick(c);
}

/* ---- debts ----------------------------------------------------------------------------------- */

void shm_owe(struct shm_ctx *c, struct shm_p *p)
{
    uint32_t debt = load_rlx(&p->debt) + 1; /* own word, the keeper reads it */
    if (debt >= PAY_AT && shm_anyidlep(c)) {
        debt = 0;
        shm_wakep(c);
    }
    store_rlx(&p->debt, debt);
}

/* What an M with a P could take; see I3 for what is not counted. */
bool shm_anywork(const struct shm_ctx *c)
{
    if (load_seq(&c->hdr->runq_size) ||
        load_seq(&c->hdr->batchq_size)) /* I3, F2, tag: idle-dance */
        return true;
    for (uint32_t i = 0; i < shm_nworkp(c); i++) {
        struct shm_p *p = &c->ptab[i];
        if (shm_runqsize(p) ||
            (SHM_ST_STATUS(load_seq(&p->status)) == Pidle && load_seq(&p->runnext)))
            return true;
    }
    return false;
}

/* F1, F2. */
void shm_resetspinning(struct shm_ctx *c)
{
    shm_shake(c);
    store_seq(&c->m->spinning, SHM_M_BUSY); /* F1, tag: idle-dance */
    shm_shake(c);                           /* F1 | F2 */
    if (shm_anywork(c))
        shm_wakep(c);
}

/* Something was found. What more is there for somebody else? */
void shm_pay(struct shm_ctx *c)
{
    struct shm_p *p = c->p;
    if (load_rlx(&c->m->spinning) == SHM_M_SPINNING) { /* own: not idle */
        shm_resetspinning(c);
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
    uint32_t n = load_rlx(&h->nprocs); /* a hint, but for 0 */
    if (n == 0 || h->spin_ns == 0 || busy >= h->ncpu || c->p == NULL)
        return false;
    if (shm_home_only(c) || load_rlx(&c->m->spinning) == SHM_M_SPINNING)
        return true;
    for (uint32_t w = 0; w <= (load_acq(&h->max_p) - 1) / 64; w++)
        idle += (uint32_t)__builtin_popcountll(load_rlx(&h->idle_p[w])); /* a hint */
    return 2 * spinners < n - (idle < n ? idle : n);
}

/* Is there something for this M? Also the last look of who goes idle. */
static bool something(struct shm_ctx *c, uint64_t now)
{
    struct shm_m *m = c->m;
    if (shm_any_home(m) || (load_seq(&m->attn) & SHM_ATTN_NOW) || /* I3, tag: idle-dance */
        load_seq(&c->hdr->shutdown))
        return true;
    if (shm_home_only(c))
        return load_acq(&c->p->timer0_when) <= now; /* pairs with timer.c */
    if (shm_timer_next(c) <= now)
        return true;
    return !c->homely && (c->p || shm_anyidlep(c)) && shm_anywork(c);
}

/* The part of something() that comes from who is awake, without a clock; and another P's runnext,
 * which steal() takes if it stays. Relaxed: all hints, what they lead to is taken by CAS. */
static bool handed_over(const struct shm_ctx *c)
{
    if (shm_any_home(c->m) || (load_rlx(&c->m->attn) & SHM_ATTN_NOW))
        return true;
    if (shm_home_only(c))
        return false;
    if (load_rlx(&c->hdr->runq_size) || load_rlx(&c->hdr->batchq_size))
        return true;
    for (uint32_t i = 0; i < shm_nworkp(c); i++)
        if (load_rlx(&c->ptab[i].runnext) || shm_runqsize(&c->ptab[i]))
            return true;
    return false;
}

/* From here on S3 counts on us. False: this is not the moment for it. */
static bool start_spinning(struct shm_ctx *c)
{
    if (!may_spin(c))
        return false;
    if (!shm_home_only(c))
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

/* Is it worth while? Others are awake, but not so many that they need this processor. */
static bool may_stand(const struct shm_ctx *c, shm_off obj)
{
    const struct shm_hdr *h = c->hdr;
    uint32_t n = load_acq(&h->max_m), awake = 0; /* pairs with shm_minit() */
    if (load_rlx(&h->nprocs) == 0 || h->migrate == 1 || c->p == NULL || shm_home_only(c) ||
        load_rlx(&c->p->preempt) || handed_over(c))
        return false;
    for (uint32_t i = 0; i < n; i++) { /* hints */
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_rlx(&m->kind);
        if (m == c->m || (kind != SHM_M_WORKER && kind != SHM_M_M0))
            continue;
        if (load_rlx(&m->stands_at) == obj)
            return false;
        awake += load_rlx(&m->spinning) != SHM_M_IDLE;
    }
    return awake > 0 && awake < h->ncpu;
}

bool shm_stand(struct shm_ctx *c, shm_off obj, bool (*come)(struct shm_ctx *, shm_off))
{
    bool came = false;
    if (!may_stand(c, obj))
        return false;
    store_rlx(&c->m->stands_at, obj); /* a hint */
    for (int i = 0; i < STAND && !(came = come(c, obj)) && !handed_over(c); i++)
        cpu_relax();
    store_rlx(&c->m->stands_at, 0);
    return came;
}

/* True: look again. False: the time is up, or this is not the moment for it. */
bool shm_spin(struct shm_ctx *c, uint64_t *until)
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

/* Leaves idle, by itself or woken. */
static void leave_idle(struct shm_ctx *c, uint32_t to)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    uint32_t idle = SHM_M_IDLE, me = c->m1;
    cas_seq(&m->spinning, &idle, to); /* fails: a waker has done it */
    add_seq(&h->idle_seq, 1);         /* before anything is taken; pairs with shm_checkdead() */
    if (!shm_home_only(c))
        and_seq(&h->idle_m[m->index / 64], ~(1ULL << m->index % 64));
    if (load_rlx(&h->poller_m1) == me)
        cas_acqrel(&h->poller_m1, &me, 0);
    shm_wakepoller(c); /* there is something to preempt and to pay for again */
}

/* The dance, and sleep. SHM_OK: look again. */
int shm_stopm(struct shm_ctx *c, bool *woken)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    bool m0 = shm_home_only(c), is_m0 = load_rlx(&m->kind) == SHM_M_M0, home = m0 || c->homely;
    if (*woken)
        own_add(&m->st.useless_wakes, 1);
    *woken = false;
    if (!home)
        ask_offload(c);
    shm_noteclear(&m->note);
    if (!home) {
        if (c->p)
            shm_putp(c);                                          /* I1, tag: idle-dance */
        or_seq(&h->idle_m[m->index / 64], 1ULL << m->index % 64); /* I2 */
    }
    store_seq(&m->spinning, SHM_M_IDLE); /* I2: no spinner any more */
    FAILPOINT("idle.stopm.said");
    shm_shake(c); /* I2 | I3 */
    uint64_t now = shm_now_ns();
    if (something(c, now)) {                               /* I3 */
        leave_idle(c, home ? SHM_M_BUSY : SHM_M_SPINNING); /* I4 */
        return SHM_OK;
    }
    if (shm_looks_dead(c)) {
        leave_idle(c, SHM_M_BUSY);
        return SHM_EDEADLOCK;
    }
    uint64_t next = m0 ? load_acq(&c->p->timer0_when) : shm_timer_next(c); /* as in something() */
    int64_t nap = next == UINT64_MAX ? -1 : next > now ? (int64_t)(next - now) : 0;
    if (!m0 && next != UINT64_MAX)
        store_rel(&h->poller_m1, c->m1); /* the last one knows of all timers */
    if (is_m0 && (nap < 0 || nap > M0_NAP_NS))
        nap = M0_NAP_NS;
    int64_t left = c->until_ns > now ? (int64_t)(c->until_ns - now) : 0;
    if (unlikely(c->until_ns) && (nap < 0 || nap > left))
        nap = left;
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
    return SHM_EINTR; /* a signal, or the nap of M0, or until until_ns, is over */
}

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
