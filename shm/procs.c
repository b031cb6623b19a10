/* procs.c — Ps: which M has which, and how many there are: gomaxprocs while the program runs, and a
 * P more for one that stands.
 *
 * WHO HAS A P says its status word, (Prunning, M) or Pidle; m->p1 is the other way round. The bit
 * in idle_p only says where to look, and is never missing: it is set before the status says idle,
 * and cleared by who has taken the P. Giving one back is step I1 of the idle dance (idle.c).
 *
 * WHO IS WANTED follows from the P's place alone: of the work Ps (all but M0's) the first nprocs +
 * extra. So nobody has to be chosen or told: an M looks at each schedule, when it has found what to
 * run, whether its P is still wanted; if not, that and what the ring holds goes to the global queue
 * and the P is Pdead. What runs then goes on until its M schedules (Go's stopTheWorld would wait
 * for it); what is queued later is run by no P beyond the number. Timers stay in its heap:
 * everybody runs those of all Ps that have ever been.
 *
 *   more    a dead P that is wanted becomes idle; if there are none, the P table grows (its pages
 *           are committed one by one, its addresses reserved for all). Missing Ms are started by
 *           the keeper (want_m).
 *   fewer   an idle P is taken and drained here; a running one is dropped by its M. An M without a
 *           P is a spare. When there have been more idle Ms than idle Ps for RETIRE_NS, the keeper
 *           asks one to leave. One at a time (hdr->retiring, given back by the keeper when it has
 *           buried it): two that look at once would see the same surplus.
 *
 * EXTRA. An M in a long C call that only waits (time.sleep) keeps its P: nothing can be taken from
 * a process that may come back at any instruction (INV only-the-dead). What is lost is a place to
 * run, so the keeper makes one more as long as that lasts; thieves empty the ring of the one that
 * stands. Not where nprocs is a promise: who gives a pool two workers may mean that no third task
 * is to begin, whatever the two wait for. (What waits in the runtime has no P, there as here.)
 *
 * tag: wanted. Who drops a P stores Pdead, then looks again whether it is wanted; who changes the
 * number stores it, then looks at the statuses. Both seq_cst: one of them brings it back. */
#include "internal.h"

#define RETIRE_NS 2000000000ULL
#define AGAIN_NS 50000000ULL /* from one that leaves to the next */

static uint32_t rank(const struct shm_hdr *h, uint32_t pi)
{
    return pi > h->m0_p ? pi - 1 : pi;
}

bool shm_p_wanted(const struct shm_ctx *c, const struct shm_p *p)
{
    const struct shm_hdr *h = c->hdr;
    uint32_t n = load_seq(&h->nprocs); /* tag: wanted, as extra */
    return p->nosteal || rank(h, p->index) < (n ? n : 1) + load_seq(&h->extra);
}

/* A dead P that is wanted again. Several may try. */
static void revive(struct shm_ctx *c, struct shm_p *p)
{
    uint64_t dead = Pdead;
    or_seq(&c->hdr->idle_p[p->index / 64],
           1ULL << p->index % 64); /* a hint that is never missing */
    cas_seq(&p->status, &dead, Pidle);
}

/* Owner P only; the caller has let go of it. */
static void drop(struct shm_ctx *c, struct shm_p *p)
{
    shm_gref r;
    bool inherit;
    while ((r = shm_runqget(c, p, &inherit)) != 0) {
        shm_globrunqput(c, r);
        own_add(&c->m->moved, 1);                  /* tag: moved */
        store_rel(&c->m->inflight[SHM_IF_GOT], 0); /* own word, after that */
    }
    store_rlx(&p->debt, 0);
    FAILPOINT("procs.drop.drained");
    and_seq(&c->hdr->idle_p[p->index / 64], ~(1ULL << p->index % 64));
    store_seq(&p->status, Pdead); /* tag: wanted */
    if (shm_p_wanted(c, p))
        revive(c, p);
}

/* ---- whose it is ----------------------------------------------------------------------------- */

int shm_acquirep(struct shm_ctx *c, uint32_t pi)
{
    struct shm_p *p = &c->ptab[pi];
    uint64_t idle = Pidle;
    if (unlikely(c->p != NULL))
        shm_throw("acquirep: M %u has P %u already, wants %u", c->m->index, c->p->index, pi);
    /* Acquires the ring as its former owner left it; pairs with shm_releasep(). */
    if (!cas_seq(&p->status, &idle, (uint64_t)c->m1 << 16 | Prunning))
        return SHM_EAGAIN;
    FAILPOINT("procs.acquirep.taken");
    if (!p->nosteal)
        and_seq(&c->hdr->idle_p[pi / 64], ~(1ULL << pi % 64));
    store_rlx(&p->preempt, 0);
    store_rlx(&c->m->p1, pi + 1);
    c->p = p;
    c->chain = 0;
    return SHM_OK;
}

void shm_putp(struct shm_ctx *c)
{
    struct shm_p *p = c->p;
    c->p = NULL;
    store_rlx(&c->m->p1, 0);
    if (unlikely(!shm_p_wanted(c, p))) {
        drop(c, p);
        return;
    }
    if (!p->nosteal)
        or_seq(&c->hdr->idle_p[p->index / 64], 1ULL << p->index % 64);
    FAILPOINT("procs.releasep.bit");
    shm_shake(c);                 /* the bit | the status */
    store_seq(&p->status, Pidle); /* I1, tag: idle-dance; pairs with the CAS in shm_acquirep() */
}

void shm_releasep(struct shm_ctx *c)
{
    shm_putp(c);
    if (shm_anywork(c))
        shm_wakep(c);
}

bool shm_anyidlep(const struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_p); /* pairs with grow() */
    for (uint32_t w = 0; w <= (n - 1) / 64; w++)
        if (load_seq(&c->hdr->idle_p[w])) /* S2, tag: idle-dance */
            return true;
    return false;
}

/* M0's own P, or any idle one; the caller may find that there is none. */
void shm_takep(struct shm_ctx *c)
{
    if (unlikely(c->homely))
        return;
    if (shm_home_only(c)) {
        uint32_t pi = c->hdr->m0_p;
        if (unlikely(shm_acquirep(c, pi)))
            shm_throw("acquirep: M0's P %u belongs to M %d", pi,
                      (int)SHM_ST_M1(load_rlx(&c->ptab[pi].status)) - 1);
        return;
    }
    uint32_t n = load_acq(&c->hdr->max_p); /* pairs with grow() */
    for (uint32_t w = 0; w <= (n - 1) / 64; w++)
        for (uint64_t b = load_seq(&c->hdr->idle_p[w]); b; b &= b - 1)
            if (shm_acquirep(c, w * 64 + (uint32_t)__builtin_ctzll(b)) == SHM_OK)
                return;
}

static bool anyidlem(const struct shm_ctx *c)
{
    for (uint32_t w = 0; w < SHM_MAX_M / 64; w++)
        if (load_seq(&c->hdr->idle_m[w])) /* pairs with I2 in shm_stopm() */
            return true;
    return false;
}

void shm_handoffp(struct shm_ctx *c)
{
    if (c->p == NULL)
        return;
    shm_putp(c);
    if (shm_anywork(c))
        shm_wakep(c);
    /* Without work too: what is queued later wakes an idle M, and there must be one. */
    if (!anyidlem(c))
        shm_want_m(c, 1);
}

/* ---- how many -------------------------------------------------------------------------------- */

/* procs_lock held. One more P in the table. */
static int grow(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    uint32_t n = load_rlx(&h->max_p); /* under procs_lock */
    struct shm_p *p = &c->ptab[n];
    int e = shm_commit(c, h->ptab_off + n * sizeof *p, sizeof *p);
    if (e)
        return e;
    p->index = n;
    store_rlx(&p->status, Pdead);
    store_rlx(&p->timer0_when, UINT64_MAX);
    FAILPOINT("procs.grow.made");
    store_seq(&h->max_p, n + 1); /* publishes it; pairs with whoever walks the table */
    return SHM_OK;
}

/* procs_lock held; nprocs and extra are what they are to be. */
static void adjust(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    for (uint32_t i = 0; i < load_rlx(&h->max_p); i++) { /* under procs_lock */
        struct shm_p *p = &c->ptab[i];
        uint64_t idle = Pidle;
        if (p->nosteal)
            continue;
        if (shm_p_wanted(c, p)) {
            if (SHM_ST_STATUS(load_seq(&p->status)) == Pdead) /* tag: wanted */
                revive(c, p);
        } else if (cas_seq(&p->status, &idle, (uint64_t)c->m1 << 16 | Prunning)) {
            FAILPOINT("procs.adjust.taken");
            drop(c, p);
        }
    }
}

static uint32_t workers(const struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m), w = 0; /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++)
        w += load_rlx(&c->mtab[i].kind) == SHM_M_WORKER; /* a count of about now */
    return w;
}

int shm_gomaxprocs(struct shm_ctx *c, uint32_t n, uint32_t *old)
{
    struct shm_hdr *h = c->hdr;
    int e = SHM_OK;
    shm_lock(c, &h->procs_lock);
    *old = load_rlx(&h->nprocs); /* under procs_lock */
    if (n != 0 && n != *old) {
        while (e == SHM_OK && load_rlx(&h->max_p) < n + 1)
            e = grow(c);
        if (e == SHM_OK) {
            store_seq(&h->nprocs, n); /* tag: wanted */
            adjust(c);
        }
    }
    shm_unlock(c, &h->procs_lock);
    if (e == SHM_OK && n > *old) {
        uint32_t have = workers(c) + load_seq(&h->want_m);
        if (have < n)
            shm_want_m(c, n - have);
        if (shm_anywork(c))
            shm_wakep(c);
    }
    return e;
}

void shm_procs_extra(struct shm_ctx *c, uint32_t extra)
{
    struct shm_hdr *h = c->hdr;
    uint32_t was = load_rlx(&h->extra); /* the keeper's own */
    if (extra == was)
        return;
    shm_lock(c, &h->procs_lock);
    while (load_rlx(&h->max_p) < load_rlx(&h->nprocs) + extra + 1 && /* under procs_lock */
           load_rlx(&h->max_p) < SHM_MAX_P)
        if (grow(c))
            break;               /* no memory for it: it stays as it is */
    store_seq(&h->extra, extra); /* tag: wanted */
    adjust(c);
    shm_unlock(c, &h->procs_lock);
    if (extra > was && !shm_wakeone(c, true) && !anyidlem(c))
        shm_want_m(c, extra - was);
}

void shm_procs_promise(struct shm_ctx *c)
{
    store_rlx(&c->hdr->promised, 1); /* the keeper's next round sees it */
}

/* ---- Ms beyond need -------------------------------------------------------------------------- */

/* How many more Ms sleep than there are Ps for. */
static int surplus(const struct shm_ctx *c)
{
    const struct shm_hdr *h = c->hdr;
    int ms = 0, ps = 0;
    for (uint32_t w = 0; w < SHM_MAX_M / 64; w++)
        ms += __builtin_popcountll(load_seq(&h->idle_m[w])); /* a hint, as below: Ms come and go */
    for (uint32_t w = 0; w < SHM_MAX_P / 64; w++)
        ps += __builtin_popcountll(load_seq(&h->idle_p[w]));
    return ms - ps;
}

/* Too many for RETIRE_NS: one of those that sleep is asked whether it will leave. */
void shm_m_offer_leave(struct shm_ctx *c, uint64_t now_ns)
{
    struct shm_hdr *h = c->hdr;
    if (surplus(c) <= 0) {
        h->surplus_ns = 0;
        return;
    }
    if (h->surplus_ns == 0)
        h->surplus_ns = now_ns;
    if (now_ns - h->surplus_ns < RETIRE_NS)
        return;
    h->surplus_ns = now_ns - RETIRE_NS + AGAIN_NS;
    for (uint32_t i = load_acq(&h->max_m); i-- > 0;) { /* pairs with shm_minit() */
        struct shm_m *m = &c->mtab[i];
        if (load_seq(&h->idle_m[i / 64]) >> i % 64 & 1) {
            or_seq(&m->attn, SHM_ATTN_RETIRE); /* before the note; pairs with shm_stopm() */
            shm_notewakeup(&m->note);
            return;
        }
    }
}

/* The calling M, awake, not counted in idle_m: it may leave. */
bool shm_m_retire(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    uint32_t none = 0;
    if (c->p != NULL || !cas_seq(&h->retiring, &none, c->m1)) /* one at a time; reap.c undoes it */
        return false;
    if (surplus(c) >= 0)
        return true;
    store_seq(&h->retiring, 0);
    return false;
}
