/* nowhere.c — of the reaper (reap.c): the runnable Gs that a dead M had between two queues.
 *
 * Is the G that the dead M names, runnable, in its hand, that is, nowhere? The living move Gs
 * meanwhile. With sched_lock held:
 *     a  every m->moved is noted                    d  the names again
 *     b  the names of all living Ms                 e  what the rings got since c, the runnexts
 *     c  rings, runnexts, global and home queues    f  every m->moved again, the G's two words
 * Proof that a G found nowhere, with a = f and its words (status, wait) unchanged, was nowhere all
 * the time.
 *   - It was not executed, readied or made runnable again: its words would tell (a wait has its
 *     epoch; gosched needs sched_lock, and a home G's would count in moved).
 *   - It was not on its way into a queue at b: it would be named there until it is visible, and c
 *     comes after b.
 *   - It was in no queue when c came by. From one it came either into the hand of who executes it:
 *     named until its status changes, so at d or f; or from runnext to its ring's tail: named at d,
 *     or seen by e; or by a move: named until after m->moved has grown, so at d or f (tag: moved).
 * One found in a living hand is no answer: the name may stand for an attempt that fails. Then it is
 * looked for again. What is nowhere stays nowhere, so there is time to queue it after the look. */
#include "internal.h"

#include <unistd.h>

#define PAUSE_US 50

struct names { /* runnable Gs that the dead M names */
    shm_gref r[SHM_INFLIGHT];
    uint64_t status[SHM_INFLIGHT], wait[SHM_INFLIGHT];
    bool queued[SHM_INFLIGHT], inhand[SHM_INFLIGHT];
    uint32_t n;
};

bool shm_reap_pause(struct shm_ctx *c)
{
    shm_reap_holders(c); /* who is waited for may wait for their locks */
    usleep(PAUSE_US);
    return load_acq(&c->hdr->shutdown) == 0; /* pairs with who ends the program */
}

static void gather(struct shm_ctx *c, struct shm_m *dead, struct names *l)
{
    l->n = 0;
    for (uint32_t i = 0; i < SHM_INFLIGHT; i++) {
        shm_gref r = load_acq(&dead->inflight[i]);
        if (i == SHM_IF_DRAIN || !shm_of_this_life(c, r))
            continue;
        struct shm_g *g = shm_g(c, r);
        uint64_t st = load_seq(&g->status);
        bool known = SHM_ST_STATUS(st) != Grunnable || SHM_ST_GEN(st) != shm_ggen(r) ||
                     g->home_m1 == shm_m1(dead); /* those end anyway */
        for (uint32_t k = 0; k < l->n; k++)
            known |= l->r[k] == r;
        if (known)
            continue;
        l->status[l->n] = st;
        l->wait[l->n] = load_seq(&g->wait);
        l->r[l->n++] = r;
    }
}

static void met(struct names *l, shm_gref r, bool *where)
{
    if (r)
        for (uint32_t i = 0; i < l->n; i++)
            where[i] |= l->r[i] == r;
}

/* b, d */
static void look_at_names(struct shm_ctx *c, struct names *l)
{
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) { /* pairs with shm_minit() */
        struct shm_m *m = &c->mtab[i];
        struct names mine = {.n = l->n};
        bool any = false;
        if (load_acq(&m->kind) == SHM_M_FREE) /* as above */
            continue;
        memcpy(mine.r, l->r, l->n * sizeof *l->r);
        for (uint32_t s = 0; s < SHM_INFLIGHT; s++)
            if (s != SHM_IF_DRAIN && s != SHM_IF_PARK)
                met(&mine, load_seq(&m->inflight[s]), mine.inhand);
        for (uint32_t k = 0; k < l->n; k++)
            any |= mine.inhand[k];
        if (any && shm_m_alive(c, i + 1)) /* a dead one's hand is nowhere */
            for (uint32_t k = 0; k < l->n; k++)
                l->inhand[k] |= mine.inhand[k];
    }
}

static void look_at_ring(struct shm_p *p, struct names *l, uint64_t from, uint64_t to)
{
    for (uint64_t i = to - from > SHM_RUNQ ? to - SHM_RUNQ : from; i < to; i++)
        met(l, load_seq(&p->runq[i % SHM_RUNQ]), l->queued);
    met(l, load_seq(&p->runnext), l->queued);
}

static void look_at_list(struct shm_ctx *c, struct names *l, shm_gref r)
{
    /* A home queue may change under this walk: then it is done again. */
    for (uint64_t n = load_acq(&c->hdr->g_next); r && n; n--) { /* pairs with refill */
        if (shm_gidx(r) == 0 || shm_gidx(r) >= c->hdr->max_g)
            return;
        met(l, r, l->queued);
        r = load_seq((_Atomic uint64_t *)&shm_g(c, r)->schedlink);
    }
}

/* a .. f, sched_lock held. False: Gs were moved meanwhile. */
static bool look_around(struct shm_ctx *c, struct names *l)
{
    struct shm_hdr *h = c->hdr;
    uint64_t moved[SHM_MAX_M], tail[SHM_MAX_P];
    uint32_t nm = load_acq(&h->max_m), np = load_acq(&h->max_p); /* pairs with minit, procs.c */
    bool still = true;
    memset(l->queued, 0, sizeof l->queued);
    memset(l->inhand, 0, sizeof l->inhand);
    for (uint32_t i = 0; i < nm; i++) {
        moved[i] = load_seq(&c->mtab[i].moved);
        still &= load_seq(&c->mtab[i].turning) == 0 || !shm_m_alive(c, i + 1);
    }
    look_at_names(c, l);
    for (uint32_t i = 0; i < np; i++) {
        uint64_t head = load_seq(&c->ptab[i].runqhead);
        tail[i] = load_seq(&c->ptab[i].runqtail);
        look_at_ring(&c->ptab[i], l, head, tail[i]);
    }
    look_at_list(c, l, h->runq_head);
    look_at_list(c, l, h->batchq_head);
    for (uint32_t i = 0; i < nm; i++) {
        look_at_list(c, l, load_seq(&c->mtab[i].homeq));
        look_at_list(c, l, load_seq(&c->mtab[i].homeq_fifo));
    }
    look_at_names(c, l);
    for (uint32_t i = 0; i < np; i++) {
        uint64_t now = load_seq(&c->ptab[i].runqtail);
        still &= now - tail[i] <= SHM_RUNQ;
        look_at_ring(&c->ptab[i], l, tail[i], now);
    }
    for (uint32_t i = 0; i < nm; i++)
        still &= load_seq(&c->mtab[i].moved) == moved[i] &&
                 (load_seq(&c->mtab[i].turning) == 0 || !shm_m_alive(c, i + 1));
    return still && load_acq(&h->max_m) == nm && load_acq(&h->max_p) == np; /* as above */
}

/* Queues what is nowhere, keeps what has to be looked for again. */
static void sort_out(struct shm_ctx *c, struct names *l, bool still)
{
    uint32_t left = 0;
    for (uint32_t i = 0; i < l->n; i++) {
        shm_gref r = l->r[i];
        const struct shm_g *g = shm_g(c, r);
        if (l->queued[i] || load_seq(&g->status) != l->status[i] ||
            load_seq(&g->wait) != l->wait[i])
            continue;
        if (still && !l->inhand[i]) {
            shm_requeue(c, r);
            continue;
        }
        l->r[left] = r;
        l->status[left] = l->status[i];
        l->wait[left++] = l->wait[i];
    }
    l->n = left;
}

bool shm_nowhere_queue(struct shm_ctx *c, struct shm_m *dead)
{
    struct names l;
    gather(c, dead, &l);
    for (uint32_t i = 0; i < l.n; i++) /* no queue has them: their thread sleeps on the status */
        if (shm_g(c, l.r[i])->flags & SHM_GF_OUTSIDE)
            shm_futex_wake((_Atomic uint32_t *)&shm_g(c, l.r[i])->status, 1);
    for (uint32_t i = 0; i < l.n;)
        if (shm_g(c, l.r[i])->flags & SHM_GF_OUTSIDE) {
            l.n--;
            l.r[i] = l.r[l.n];
            l.status[i] = l.status[l.n];
            l.wait[i] = l.wait[l.n];
        } else {
            i++;
        }
    while (l.n) {
        shm_lock(c, &c->hdr->sched_lock);
        bool still = look_around(c, &l);
        shm_unlock(c, &c->hdr->sched_lock);
        sort_out(c, &l, still);
        if (l.n && !shm_reap_pause(c))
            return false;
    }
    FAILPOINT("reap.queued");
    for (uint32_t i = 0; i < SHM_INFLIGHT; i++)
        if (i != SHM_IF_NEW)
            store_rel(&dead->inflight[i], 0); /* after all of it is settled, for a next reaper */
    return true;
}

bool shm_named_by_the_living(struct shm_ctx *c, shm_gref r)
{
    struct names l = {.n = 1, .r = {r}};
    look_at_names(c, &l);
    return l.inhand[0];
}
