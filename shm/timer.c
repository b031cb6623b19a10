/* timer.c — sleeping: a heap of times per P.
 *
 * Each P has a 4-ary heap (Go's, runtime/time.go: shallower than a binary one, and four children
 * are 96 bytes in a row), under a lock of its own. An M puts its timers on its P; any M may run
 * what is due on any P, and all do, so a timer does not depend on one M being awake: the owner's
 * schedule, a thief's last pass, the poller (the idle M that sleeps until the next timer), the
 * keeper. timer0_when repeats the first entry's time outside the lock: with nothing due, looking
 * costs one load.
 *
 * WHO IS IN THE HEAP KNOWS WHERE (sudog.next of a sleeper is its index), so an entry is taken out
 * at once when its wait is cancelled. Go's former way, to leave it and to skip it when its time
 * comes, was rejected: a heap of dead entries needs counting and sweeping, wakes Ms for nothing,
 * and keeps the program from seeing that all goroutines are asleep for as long as a cancelled
 * timeout would have run. A move in the heap costs a store into another g instead.
 *
 * BESIDE SLEEPERS stand nodes (struct shm_tnode): of a timer with a channel (ticker.c), of a
 * context's deadline (context.c). Their entries hold no reference: who frees the object takes the
 * node out, under the heap's lock. A node keeps to one P, so a lock that was taken for it is the
 * right one.
 *
 * A SLEEPER IS A WAITER LIKE ANY OTHER (sudog.c): linked, waiting, armed, in this order, under the
 * heap's lock; claimed before it is taken out; readied after the lock is given back. A canceller
 * that has claimed and not yet come for the lock leaves an entry that cannot be claimed: who runs
 * the timers takes it out, and the canceller finds it unlinked.
 *
 * BORN ASLEEP is the goroutine of after_func: complete, not started, in the heap. It is due like
 * any other sleeper, at no cost to who runs the timers, and stopping it is cancelling its wait. Its
 * ok says "cancelled" from the start, until it is due: in whatever step its maker or who stops it
 * may die, it begins when it is due or, begun before that, ends at once (the binding looks at ok).
 *
 * Every change is one transaction: at most 16 levels (4^16 entries), 4 stores each. */
#include "internal.h"

#define FIRST_CAP 16
#define LEVELS 16

static_assert(8 * LEVELS + 32 <= SHM_UNDO, "two paths through a heap are one transaction");
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
    if (e->what & SHM_TNODE)
        shm_tx_store32(c, &((struct shm_tnode *)shm_at(c, e->what & ~SHM_TNODE))->index1, i + 1);
    else
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

struct shm_p *shm_timers_p(const struct shm_ctx *c)
{
    return c->p ? c->p : &c->ptab[0];
}

void shm_timers_tell(struct shm_ctx *c, const struct shm_p *p, uint64_t when_ns)
{
    if (p != c->p && load_rlx(&p->timer0_when) == when_ns) /* a hint */
        shm_wakepoller(c);
}

void shm_timers_set(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n, uint64_t when_ns)
{
    if (n->index1) {
        take_out(c, p, n->index1 - 1);
        shm_tx_store32(c, &n->index1, 0);
    }
    shm_tx_store64(c, &n->when_ns, when_ns); /* released; pairs with shm_timer_poll() */
    if (when_ns != 0 && when_ns != UINT64_MAX)
        add(c, p, &(struct shm_timer_ent){.when_ns = when_ns, .what = shm_offof(c, n) | SHM_TNODE});
}

/* On an error the lock is not held. */
int shm_timers_lock(struct shm_ctx *c, struct shm_p *p)
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

/* Lock held, with room. */
static void link_sleeper(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t when_ns,
                         uint64_t epoch)
{
    struct shm_g *g = shm_g(c, r);
    g->waitobj = shm_offof(c, p);
    store_rel((_Atomic uint8_t *)&g->waitkind, SHM_WAIT_SLEEP); /* after waitobj, for a reaper */
    g->sudog.g = r;
    g->sudog.prev = 0;
    g->sudog.epoch = (uint32_t)epoch;
    g->sudog.isselect = 0;
    shm_tx_begin(c);
    shm_tx_linked(c, &g->sudog, SHM_DIR_RECV);
    add(c, p, &(struct shm_timer_ent){.when_ns = when_ns, .what = r, .epoch = epoch});
    shm_tx_commit(c);
}

int shm_sleep_park(struct shm_ctx *c, shm_gref r, uint64_t when_ns)
{
    struct shm_g *g = shm_g(c, r);
    uint64_t epoch = shm_wait_next(g);
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_VALUE;
    g->waitkind = 0;
    if (when_ns == UINT64_MAX) {
        shm_park_commit(c, r, SHM_WR_SLEEP, epoch);
        return SHM_PARKED;
    }
    /* Due already: the others have their turn, as in Gosched.
     * (A thread that is no M has no turn.) */
    if (when_ns <= shm_now_ns() && !(g->flags & SHM_GF_OUTSIDE)) {
        shm_retry_leave(c);
        shm_gosched(c, r);
        return SHM_PARKED;
    }
    struct shm_p *p = shm_timers_p(c);
    int e = shm_timers_lock(c, p);
    if (e)
        return e;
    link_sleeper(c, p, r, when_ns, epoch);
    FAILPOINT("timer.sleep.linked");
    shm_park_commit(c, r, SHM_WR_SLEEP, epoch);
    shm_unlock(c, &p->timers_lock);
    shm_timers_tell(c, p, when_ns);
    return SHM_PARKED;
}

int shm_sleep_born(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t when_ns,
                   uint64_t *epoch)
{
    struct shm_g *g = shm_g(c, r);
    _Atomic uint64_t *name = &c->m->inflight[SHM_IF_PARK];
    int e = shm_timers_lock(c, p);
    if (e)
        return e;
    *epoch = shm_wait_next(g);
    g->ok = SHM_OK_CANCELLED;
    g->reason = SHM_WR_SLEEP;
    g->waitkind = 0;
    if (when_ns != UINT64_MAX)
        link_sleeper(c, p, r, when_ns, *epoch);
    FAILPOINT("timer.born.linked");
    store_rlx(&c->m->park_epoch, *epoch);
    store_rel(name, r); /* INV nothing-in-hand, as shm_park_commit() */
    FAILPOINT("timer.born.named");
    if (unlikely(!shm_casgstatus(c, r, Gidle, Gwaiting)))
        shm_throw("born asleep: goroutine slot %u is of another generation", shm_gidx(r));
    FAILPOINT("timer.born.waiting");
    store_rel(&c->m->inflight[SHM_IF_NEW], 0); /* own word: no more a new one */
    shm_wait_arm(c, r, *epoch);
    FAILPOINT("timer.born.armed");
    store_rel(name, 0); /* after the arming, for the reaper */
    shm_unlock(c, &p->timers_lock);
    shm_timers_tell(c, p, when_ns);
    return SHM_OK;
}

/* Nobody but who runs timers may claim r meanwhile,
 * so under the lock an armed wait is a linked one. */
bool shm_sleep_move(struct shm_ctx *c, struct shm_p *p, shm_gref r, uint64_t epoch,
                    uint64_t when_ns)
{
    struct shm_g *g = shm_g(c, r);
    shm_lock(c, &p->timers_lock);
    bool there = when_ns != UINT64_MAX && shm_readgstatus(c, r) == Gwaiting &&
                 load_acq(&g->wait) == SHM_W(epoch, 0, SHM_W_ARMED) && /* pairs with the arming */
                 g->sudog.linked;
    if (there) {
        shm_tx_begin(c);
        take_out(c, p, (uint32_t)g->sudog.next);
        add(c, p, &(struct shm_timer_ent){.when_ns = when_ns, .what = r, .epoch = epoch});
        shm_tx_commit(c);
    }
    shm_unlock(c, &p->timers_lock);
    if (there)
        shm_timers_tell(c, p, when_ns);
    return there;
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

/* Lock held. Claims due sleepers into the wake batch; returns how many of its slots are in use. A
 * context's or a goroutine's deadline is left to be carried out after the lock: *ctx, *join. */
static unsigned claim_due(struct shm_ctx *c, struct shm_p *p, uint64_t now_ns, shm_off *ctx,
                          shm_off *join)
{
    unsigned n = 0;
    *ctx = *join = 0;
    while (n < SHM_WAKE_BATCH && *ctx == 0 && *join == 0 && p->timers_n &&
           ents(c, p)->when_ns <= now_ns) {
        struct shm_timer_ent e = *ents(c, p);
        if (e.what & SHM_TNODE) {
            struct shm_tnode *node = shm_at(c, e.what & ~SHM_TNODE);
            if (node->kind == SHM_TN_CONTEXT)
                *ctx = shm_context_fire(c, p, node);
            else if (node->kind == SHM_TN_JOIN)
                *join = shm_join_fire(c, p, node);
            else
                n += shm_timer_fire(c, p, node, now_ns, SHM_IF_WAKE + n) != 0;
            continue;
        }
        struct shm_g *g = shm_g(c, e.what);
        bool mine = shm_claim_named(c, e.what, e.epoch, SHM_IF_WAKE + n);
        bool born = mine && g->ok == SHM_OK_CANCELLED;
        shm_tx_begin(c);
        take_out(c, p, 0);
        shm_tx_linked(c, &g->sudog, 0);
        if (mine)
            shm_tx_ok(c, g, SHM_OK_VALUE);
        if (born) /* from now on it counts */
            shm_gcount(c, g);
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
        shm_off ctx, join;
        shm_lock(c, &p->timers_lock);
        unsigned n = claim_due(c, p, now_ns, &ctx, &join);
        shm_unlock(c, &p->timers_lock);
        for (unsigned i = 0; i < n; i++) {
            _Atomic uint64_t *name = &c->m->inflight[SHM_IF_WAKE + i];
            shm_ready(c, load_rlx(name), n == 1); /* several: in order, at the tail; own word */
            store_rlx(name, 0);
        }
        if (ctx)
            shm_context_carry(c, ctx);
        if (join)
            shm_join_carry(c, join);
        *ran += n + (ctx != 0) + (join != 0);
    }
    return next;
}

uint64_t shm_timer_next(struct shm_ctx *c)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_p); i++) { /* pairs with procs.c */
        uint64_t when =
            load_seq(&c->ptab[i].timer0_when); /* an idler's look; pairs with set_first() */
        if (when < next)
            next = when;
    }
    return next;
}
