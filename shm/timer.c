/* timer.c — sleeping: a heap of times per P.
 *
 * Each P has a 4-ary heap (Go's, runtime/time.go: shallower than a binary one, and four children are
 * 96 bytes in a row), under a lock of its own. An M puts its timers on its P; any M may run what is
 * due on any P, and all do, so a timer does not depend on one M being awake: the owner's schedule,
 * a thief's last pass, the poller (the idle M that sleeps until the next timer), the keeper.
 * timer0_when repeats the first entry's time outside the lock: with nothing due, looking costs one
 * load.
 *
 * WHO IS IN THE HEAP KNOWS WHERE (sudog.next of a sleeper is its index), so an entry is taken out at
 * once when its wait is cancelled. Go's former way, to leave it and to skip it when its time comes,
 * was rejected: a heap of dead entries needs counting and sweeping, wakes Ms for nothing, and keeps
 * the program from seeing that all goroutines are asleep for as long as a cancelled timeout would
 * have run. A move in the heap costs a store into another g instead.
 *
 * A SLEEPER IS A WAITER LIKE ANY OTHER (sudog.c): linked, waiting, armed, in this order, under the
 * heap's lock; claimed before it is taken out; readied after the lock is given back. A canceller
 * that has claimed and not yet come for the lock leaves an entry that cannot be claimed: who runs
 * the timers takes it out, and the canceller finds it unlinked.
 *
 * Every change is one transaction: at most 16 levels (4^16 entries), 4 stores each. */
#include "internal.h"

#define FIRST_CAP 16
#define LEVELS 16

static_assert(4 * LEVELS + 16 <= SHM_UNDO, "one path through a heap is one transaction");
static_assert(sizeof(struct shm_timer_ent) == 24, "three words");

/* ---- the heap, timers_lock held -------------------------------------------------------------- */

static struct shm_timer_ent *ents(const struct shm_ctx *c, const struct shm_p *p)
{
    return shm_at(c, p->timers_off);
}

/* In a tx. */
static void place(struct shm_ctx *c, struct shm_timer_ent *a, uint32_t i,
                  const struct shm_timer_ent *e)
{
    shm_tx_store64(c, &a[i].when_ns, e->when_ns);
    shm_tx_store64(c, &a[i].what, e->what);
    shm_tx_store64(c, &a[i].epoch, e->epoch);
    shm_tx_store64(c, &shm_g(c, e->what)->sudog.next, i);
}

static void sift_up(struct shm_ctx *c, struct shm_timer_ent *a, uint32_t i,
                    const struct shm_timer_ent *e)
{
    while (i > 0 && e->when_ns < a[(i - 1) / 4].when_ns) {
        place(c, a, i, &a[(i - 1) / 4]);
        i = (i - 1) / 4;
    }
    place(c, a, i, e);
}

static void sift_down(struct shm_ctx *c, struct shm_timer_ent *a, uint32_t n, uint32_t i,
                      const struct shm_timer_ent *e)
{
    for (;;) {
        uint64_t least = e->when_ns;
        uint32_t child = 4 * i + 1, to = i;
        for (uint32_t k = child; k < child + 4 && k < n; k++)
            if (a[k].when_ns < least) {
                least = a[k].when_ns;
                to = k;
            }
        if (to == i)
            break;
        place(c, a, i, &a[to]);
        i = to;
    }
    place(c, a, i, e);
}

static void set_first(struct shm_ctx *c, struct shm_p *p)
{
    uint64_t first = p->timers_n ? ents(c, p)->when_ns : UINT64_MAX;
    if (load_rlx(&p->timer0_when) != first)        /* under the lock */
        shm_tx_store64(c, &p->timer0_when, first); /* released; pairs with who looks in passing */
}

/* In a tx; there is room. */
static void add(struct shm_ctx *c, struct shm_p *p, const struct shm_timer_ent *e)
{
    uint32_t n = p->timers_n;
    shm_tx_store32(c, &p->timers_n, n + 1);
    sift_up(c, ents(c, p), n, e);
    set_first(c, p);
}

/* In a tx. */
static void take_out(struct shm_ctx *c, struct shm_p *p, uint32_t i)
{
    struct shm_timer_ent *a = ents(c, p), last = a[p->timers_n - 1];
    uint32_t n = p->timers_n - 1;
    shm_tx_store32(c, &p->timers_n, n);
    if (i < n && i > 0 && last.when_ns < a[(i - 1) / 4].when_ns)
        sift_up(c, a, i, &last);
    else if (i < n)
        sift_down(c, a, n, i, &last);
    set_first(c, p);
}

/* Takes the lock, with room for one more entry; on an error the lock is not held. */
static int lock_with_room(struct shm_ctx *c, struct shm_p *p)
{
    for (;;) {
        shm_lock(c, &p->timers_lock);
        uint32_t cap = p->timers_cap, twice = cap ? 2 * cap : FIRST_CAP;
        if (likely(p->timers_n < cap))
            return SHM_OK;
        shm_unlock(c, &p->timers_lock);
        shm_off fresh, spare;
        int e = shm_alloc(c, (size_t)twice * sizeof(struct shm_timer_ent), &fresh);
        if (e)
            return e;
        shm_lock(c, &p->timers_lock);
        spare = fresh;
        if (p->timers_cap == cap) {
            spare = p->timers_off;
            if (spare)
                memcpy(shm_at(c, fresh), ents(c, p), cap * sizeof(struct shm_timer_ent));
            shm_tx_begin(c);
            shm_publish(c, fresh);
            if (spare)
                shm_adopt(c, spare);
            shm_tx_store64(c, &p->timers_off, fresh);
            shm_tx_store32(c, &p->timers_cap, twice);
            shm_tx_commit(c);
        }
        shm_unlock(c, &p->timers_lock);
        if (spare)
            shm_free(c, spare);
    }
}

/* ---- sleep ----------------------------------------------------------------------------------- */

int shm_sleep_park(struct shm_ctx *c, shm_gref r, uint64_t when_ns)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_sudog *s = &g->sudog;
    uint64_t epoch = shm_wait_next(g);
    g->value.tag = SHM_VAL_NONE;
    g->ok = 1;
    g->waitkind = 0;
    if (when_ns == UINT64_MAX) {
        shm_park_commit(c, r, SHM_WR_SLEEP, epoch);
        return SHM_PARKED;
    }
    /* Due already: the others have their turn, as in Gosched. (A thread that is no M has no turn.) */
    if (when_ns <= shm_now_ns() && !(g->flags & SHM_GF_OUTSIDE)) {
        shm_gosched(c, r);
        return SHM_PARKED;
    }
    struct shm_p *p = c->p ? c->p : &c->ptab[0];
    int e = lock_with_room(c, p);
    if (e)
        return e;
    g->waitkind = SHM_WAIT_SLEEP;
    g->waitobj = shm_offof(c, p);
    s->g = r;
    s->prev = 0;
    s->epoch = (uint32_t)epoch;
    s->isselect = 0;
    shm_tx_begin(c);
    shm_tx_linked(c, s, SHM_DIR_RECV);
    add(c, p, &(struct shm_timer_ent){.when_ns = when_ns, .what = r, .epoch = epoch});
    shm_tx_commit(c);
    FAILPOINT("timer.sleep.linked");
    bool first = load_rlx(&p->timer0_when) == when_ns; /* under the lock */
    shm_park_commit(c, r, SHM_WR_SLEEP, epoch);
    shm_unlock(c, &p->timers_lock);
    if (first && p != c->p)
        shm_wakepoller(c);
    return SHM_PARKED;
}

/* By who has claimed r. */
void shm_sleep_unlink(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_p *p = shm_at(c, g->waitobj);
    shm_lock(c, &p->timers_lock);
    if (g->sudog.linked) {
        shm_tx_begin(c);
        take_out(c, p, (uint32_t)g->sudog.next);
        shm_tx_linked(c, &g->sudog, 0);
        shm_tx_commit(c);
    }
    shm_unlock(c, &p->timers_lock);
}

/* ---- what is due ----------------------------------------------------------------------------- */

/* Lock held. Claims due sleepers into the wake batch; returns how many of its slots are in use. */
static unsigned claim_due(struct shm_ctx *c, struct shm_p *p, uint64_t now_ns)
{
    unsigned n = 0;
    while (n < SHM_WAKE_BATCH && p->timers_n && ents(c, p)->when_ns <= now_ns) {
        struct shm_timer_ent e = *ents(c, p);
        struct shm_g *g = shm_g(c, e.what);
        bool mine = shm_claim_named(c, e.what, e.epoch, SHM_IF_WAKE + n);
        shm_tx_begin(c);
        take_out(c, p, 0);
        shm_tx_linked(c, &g->sudog, 0);
        if (mine)
            shm_tx_ok(c, g, 1);
        shm_tx_commit(c);
        FAILPOINT("timer.due.out");
        n += mine;
    }
    return n;
}

uint64_t shm_checktimers(struct shm_ctx *c, struct shm_p *p, uint64_t now_ns, uint32_t *ran)
{
    uint64_t next;
    *ran = 0;
    while ((next = load_acq(&p->timer0_when)) <= now_ns) { /* pairs with set_first() */
        shm_lock(c, &p->timers_lock);
        unsigned n = claim_due(c, p, now_ns);
        shm_unlock(c, &p->timers_lock);
        for (unsigned i = 0; i < n; i++) {
            _Atomic uint64_t *name = &c->m->inflight[SHM_IF_WAKE + i];
            shm_ready(c, load_rlx(name), n == 1); /* several: in order, at the tail; own word */
            store_rlx(name, 0);
        }
        *ran += n;
    }
    return next;
}

uint64_t shm_timer_next(struct shm_ctx *c)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < c->hdr->max_p; i++) {
        uint64_t when =
            load_seq(&c->ptab[i].timer0_when); /* an idler's look; pairs with set_first() */
        if (when < next)
            next = when;
    }
    return next;
}
