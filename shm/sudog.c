/* sudog.c — waiting on an object: the queue, the claim, the park, and waking all.
 *
 * A sudog says "this G waits here, in its wait number `epoch`". One is built into each g; a select
 * brings one per case in a block of its own. Whatever has waiters (a channel, a goroutine's join
 * object) has FIFOs of sudogs under its own lock, and does four things with them, all here:
 *
 *   claim    the first waiter that is still to be had becomes this M's
 *   win      what the claimed G gets is written, and its sudog leaves the queue: in one transaction
 *   park     the running G joins the queue and waits
 *   drain    all waiters are claimed and readied, a batch at a time
 *
 * THE PARK, with the object's lock held, after a last try has failed
 *   1 value and sudog are written, the sudog is linked: one transaction, committed
 *   2 named in inflight; running -> waiting, curg dropped
 *   3 armed (INV touch-nothing); the name is taken back; the caller unlocks
 * A death before 2 is one of a running G. Between 2 and 3 the G is waiting, linked, not armed, and
 * named with its epoch: its reaper arms it, before it gives back the object's lock. Rejected: to do
 * 2 inside the transaction. A status is moved by CAS and cannot be rolled back, so a rollback would
 * leave a waiting G that is in no queue.
 *
 * THE WAKE, with the object's lock held
 *   1 named in inflight, claimed by CAS (INV one-waker)
 *   2 win: value, ok, unlinked; committed
 *   3 unlocked; shm_ready(), which takes the name back
 * For a claimed G that a dead M named, `linked` decides, after the rollback: still linked, nothing
 * was given to it and it is armed again; not linked, it has all that it gets and is readied. Of a
 * select, g->ok decides, since the losers stay linked until the G itself takes them out, and given
 * nothing it is revived (select.c); of a G that waits on nothing but its readier, g->ok as well
 * (shm_wait_give). The reaper arms before it gives back the dead M's locks: who met such a sudog
 * with the lock would take it for stale.
 *
 * STALE SUDOGS. A canceller claims without the lock, by the wait word alone, and comes for the lock
 * afterwards to unlink. In between the sudog is stale: who meets it loses the claim, unlinks it and
 * goes on to the next; the canceller then finds it unlinked. So no queue is ever searched, and what
 * a G in other hands reads and writes of a sudog is only ever under the lock of its object.
 *
 * WAKING ALL. A channel may have a million waiters. What is claimed must be named, and what is
 * written must fit the undo log, so it goes by SHM_WAKE_BATCH, with the lock given back in between.
 * The object is closed (or ended) before the first batch, so no waiter can join behind. The M names
 * the object in inflight[SHM_IF_DRAIN]: dead halfway, its reaper goes on (shm_waiters_drain). */
#include "internal.h"

static_assert(SHM_IF_WAKE + SHM_WAKE_BATCH <= SHM_INFLIGHT, "a wake batch has names");
static_assert(SHM_IF_BATCH + SHM_RUNQ / 2 + 1 <= SHM_IF_DRAIN, "the batches do not overlap");
static_assert(4 * SHM_WAKE_BATCH + 8 <= SHM_UNDO, "a wake batch is one transaction");
static_assert(offsetof(struct shm_sudog, linked) % 4 == 0 && sizeof(struct shm_sudog) == 32,
              "linked begins a word of its own");
static_assert(offsetof(struct shm_g, ok) == offsetof(struct shm_g, reason) + 3 &&
                  offsetof(struct shm_g, reason) % 4 == 0,
              "ok ends a word");
static_assert(
    offsetof(struct shm_chan, recvq_last) == offsetof(struct shm_chan, recvq_first) + 8 &&
        offsetof(struct shm_chan, sendq_last) == offsetof(struct shm_chan, sendq_first) + 8 &&
        offsetof(struct shm_join, waiters_last) == offsetof(struct shm_join, waiters_first) + 8 &&
        offsetof(struct shm_sema, last) == offsetof(struct shm_sema, first) + 8 &&
        offsetof(struct shm_sema, rlast) == offsetof(struct shm_sema, rfirst) + 8 &&
        offsetof(struct shm_group, waiters_last) == offsetof(struct shm_group, waiters_first) + 8 &&
        offsetof(struct shm_group, queue_last) == offsetof(struct shm_group, queue_first) + 8,
    "a struct shm_waitq each");

/* ---- logged stores of parts of words --------------------------------------------------------- */

void shm_tx_byte(struct shm_ctx *c, void *word, unsigned i, uint8_t value)
{
    uint32_t w;
    memcpy(&w, word, sizeof w);
    memcpy((uint8_t *)&w + i, &value, 1);
    shm_tx_store32(c, word, w);
}

void shm_tx_linked(struct shm_ctx *c, struct shm_sudog *s, uint8_t linked)
{
    shm_tx_byte(c, (uint8_t *)s + offsetof(struct shm_sudog, linked), 0, linked);
}

void shm_tx_ok(struct shm_ctx *c, struct shm_g *g, uint8_t ok)
{
    shm_tx_byte(c, (uint8_t *)g + offsetof(struct shm_g, reason), 3, ok);
}

void shm_tx_flags(struct shm_ctx *c, struct shm_g *g, uint8_t flags)
{
    shm_tx_byte(c, (uint8_t *)g + offsetof(struct shm_g, reason), 2, flags);
}

void shm_tx_val(struct shm_ctx *c, struct shm_val *to, const struct shm_val *v)
{
    uint64_t w[2];
    memcpy(w, v, sizeof w);
    shm_tx_store64(c, to, w[0]);
    shm_tx_store64(c, (uint8_t *)to + 8, w[1]);
}

/* ---- the queue ------------------------------------------------------------------------------- */

/* s is filled and not yet reachable. */
void shm_sudog_put(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s)
{
    shm_off off = shm_offof(c, s);
    s->next = 0;
    s->prev = q->last;
    if (q->last)
        shm_tx_store64(c, &((struct shm_sudog *)shm_at(c, q->last))->next, off);
    else
        shm_tx_store64(c, &q->first, off);
    shm_tx_store64(c, &q->last, off);
}

static void put_first(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s)
{
    shm_off off = shm_offof(c, s);
    s->prev = 0;
    s->next = q->first;
    if (q->first)
        shm_tx_store64(c, &((struct shm_sudog *)shm_at(c, q->first))->prev, off);
    else
        shm_tx_store64(c, &q->last, off);
    shm_tx_store64(c, &q->first, off);
}

void shm_sudog_remove(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s)
{
    if (s->prev)
        shm_tx_store64(c, &((struct shm_sudog *)shm_at(c, s->prev))->next, s->next);
    else
        shm_tx_store64(c, &q->first, s->next);
    if (s->next)
        shm_tx_store64(c, &((struct shm_sudog *)shm_at(c, s->next))->prev, s->prev);
    else
        shm_tx_store64(c, &q->last, s->prev);
    shm_tx_linked(c, s, 0);
}

/* ---- claim and win --------------------------------------------------------------------------- */

/* True: r's wait number epoch ends by this M, which names r in that slot. */
bool shm_claim_named(struct shm_ctx *c, shm_gref r, uint64_t epoch, unsigned slot)
{
    _Atomic uint64_t *name = &c->m->inflight[slot];
    store_rlx(name, r); /* INV nothing-in-hand: before the CAS; read by the reaper */
    FAILPOINT("sudog.named");
    if (likely(shm_wait_claim(c, r, epoch))) {
        FAILPOINT("sudog.claimed");
        return true;
    }
    store_rlx(name, 0);
    return false;
}

bool shm_wait_give(struct shm_ctx *c, shm_gref r, uint64_t epoch, const struct shm_val *v)
{
    if (!shm_claim_named(c, r, epoch, SHM_IF_READY))
        return false;
    struct shm_g *g = shm_g(c, r);
    shm_tx_begin(c);
    shm_val_publish(c, v);
    shm_tx_val(c, &g->value, v);
    shm_tx_ok(c, g, SHM_OK_VALUE); /* for the reaper: it has all that it gets */
    shm_tx_commit(c);
    FAILPOINT("sudog.given");
    return true;
}

/* The lock of q's object held, no tx. The first waiter that can be had, claimed, still linked,
 * named in inflight[SHM_IF_READY]; NULL: nobody waits. */
struct shm_sudog *shm_sudog_claim(struct shm_ctx *c, struct shm_waitq *q)
{
    while (q->first) {
        struct shm_sudog *s = shm_at(c, q->first);
        if (likely(shm_claim_named(c, s->g, s->epoch, SHM_IF_READY)))
            return s;
        shm_tx_begin(c);
        shm_sudog_remove(c, q, s);
        shm_tx_commit(c);
    }
    return NULL;
}

static void won(struct shm_ctx *c, struct shm_sudog *s, uint8_t ok)
{
    shm_tx_ok(c, shm_g(c, s->g), ok);
    if (s->isselect) {
        struct shm_selcase *first = (struct shm_selcase *)(void *)s - s->which;
        struct shm_selblk *b = (struct shm_selblk *)(void *)first - 1;
        shm_tx_store32(c, &b->winner, s->which + 1U);
    }
}

/* In a tx. The wait of the claimed s->g ends by this sudog. */
void shm_sudog_win(struct shm_ctx *c, struct shm_waitq *q, struct shm_sudog *s, uint8_t ok)
{
    shm_sudog_remove(c, q, s);
    won(c, s, ok);
}

/* Where the value is that a parked sender wants to send. */
struct shm_val *shm_sudog_value(struct shm_ctx *c, struct shm_sudog *s)
{
    return s->isselect ? &((struct shm_selcase *)(void *)s)->v : &shm_g(c, s->g)->value;
}

/* ---- park ------------------------------------------------------------------------------------ */

/* Steps 2 and 3 of the park. */
void shm_park_commit(struct shm_ctx *c, shm_gref r, unsigned reason, uint64_t epoch)
{
    _Atomic uint64_t *name = &c->m->inflight[SHM_IF_PARK];
    store_rlx(&c->m->park_epoch, epoch);
    store_rel(name, r); /* INV nothing-in-hand, before curg is dropped; read by the reaper */
    shm_gopark(c, r, reason);
    shm_wait_arm(c, r, epoch);
    FAILPOINT("sudog.armed");
    store_rel(name, 0); /* after the arming, for the reaper */
}

/* In a tx. The reference on obj that is in this M's hand is the wait's; one that goes on
 * (shm_mutex_again()) has its own. */
static void wait_holds(struct shm_ctx *c, struct shm_g *g, uint8_t kind, shm_off obj)
{
    if (g->waitkind == kind && g->waitobj == obj)
        return;
    shm_tx_store64(c, &g->waitobj, obj);
    shm_tx_byte(c, &g->home_m1, 3, kind); /* waitkind */
    shm_hand_given(c, obj);
}

/* The word of g that waitkind is in, with this one. */
static uint64_t with_waitkind(const struct shm_g *g, uint8_t kind)
{
    uint64_t w;
    memcpy(&w, &g->home_m1, sizeof w);
    memset((uint8_t *)&w + 3, kind, 1);
    return w;
}

void shm_wait_ended(struct shm_ctx *c, struct shm_g *g, uint8_t kind, shm_off obj)
{
    g->waitobj = obj; /* it counts with waitkind */
    shm_obj_ref_as(c, obj, &g->home_m1, with_waitkind(g, kind));
}

/* The wait, which is over, gives its reference back. */
void shm_wait_ends(struct shm_ctx *c, struct shm_g *g)
{
    shm_obj_unref_as(c, g->waitobj, &g->home_m1, with_waitkind(g, 0));
    g->waitobj = 0;
}

/* In a tx, the object's lock held. r's own sudog joins q, for the wait whose epoch is returned. */
uint64_t shm_sudog_join(struct shm_ctx *c, shm_gref r, uint8_t kind, shm_off obj,
                        struct shm_waitq *q, uint8_t linked, bool first)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_sudog *s = &g->sudog;
    uint64_t epoch = shm_wait_next(g);
    g->value.tag = SHM_VAL_NONE;
    wait_holds(c, g, kind, obj);
    s->g = r;
    s->epoch = (uint32_t)epoch;
    s->isselect = 0; /* which is no case: shm_g_site() */
    shm_tx_linked(c, s, linked);
    if (first)
        put_first(c, q, s);
    else
        shm_sudog_put(c, q, s);
    return epoch;
}

/* The object's lock held. v: what g->value holds meanwhile, NULL nothing. */
void shm_sudog_park(struct shm_ctx *c, shm_gref r, uint8_t kind, shm_off obj, struct shm_waitq *q,
                    uint8_t linked, const struct shm_val *v, unsigned reason)
{
    shm_tx_begin(c);
    uint64_t epoch = shm_sudog_join(c, r, kind, obj, q, linked, false);
    if (v) {
        shm_val_publish(c, v);
        shm_tx_val(c, &shm_g(c, r)->value, v);
    }
    shm_tx_commit(c);
    FAILPOINT("sudog.linked");
    shm_park_commit(c, r, reason, epoch);
}

/* ---- unlink and drain ------------------------------------------------------------------------ */

static void unlink_from(struct shm_ctx *c, shm_lockword *lock, struct shm_waitq *recvq,
                        struct shm_waitq *sendq, struct shm_sudog *s)
{
    shm_lock(c, lock);
    if (s->linked) {
        shm_tx_begin(c);
        shm_sudog_remove(c, s->linked == SHM_DIR_SEND ? sendq : recvq, s);
        shm_tx_commit(c);
    }
    shm_unlock(c, lock);
}

void shm_sudog_unlink(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    switch (g->waitkind) {
    case SHM_OBJ_CHAN: {
        struct shm_chan *ch = shm_at(c, g->waitobj);
        unlink_from(c, &ch->lock, SHM_WAITQ(&ch->recvq_first), SHM_WAITQ(&ch->sendq_first),
                    &g->sudog);
        break;
    }
    case SHM_OBJ_JOIN: {
        struct shm_join *j = shm_at(c, g->waitobj);
        unlink_from(c, &j->lock, SHM_WAITQ(&j->waiters_first), NULL, &g->sudog);
        break;
    }
    case SHM_OBJ_GROUP: {
        struct shm_group *gr = shm_at(c, g->waitobj);
        unlink_from(c, &gr->lock, SHM_WAITQ(&gr->waiters_first), SHM_WAITQ(&gr->queue_first),
                    &g->sudog);
        break;
    }
    case SHM_OBJ_DONEQ: {
        struct shm_doneq *q = shm_at(c, g->waitobj);
        unlink_from(c, &q->lock, SHM_WAITQ(&q->waiters_first), NULL, &g->sudog);
        break;
    }
    case SHM_OBJ_SEMA: {
        struct shm_sema *sy = shm_at(c, g->waitobj);
        unlink_from(c, &sy->lock, SHM_WAITQ(&sy->first), SHM_WAITQ(&sy->rfirst), &g->sudog);
        break;
    }
    case SHM_WAIT_SELECT:
        shm_select_unlink(c, g->waitobj);
        break;
    case SHM_WAIT_SLEEP:
        shm_sleep_unlink(c, r);
        break;
    }
}

/* The lock held, before and after; given back in between. Nobody can join q any more. */
void shm_sudog_drain(struct shm_ctx *c, shm_lockword *lock, struct shm_waitq *q, uint8_t ok)
{
    _Atomic uint64_t *name = &c->m->inflight[SHM_IF_WAKE];
    while (q->first) {
        shm_off next = q->first;
        shm_off batch[SHM_WAKE_BATCH];
        unsigned n = 0;
        for (; next && n < SHM_WAKE_BATCH; n++) {
            struct shm_sudog *s = shm_at(c, next);
            shm_claim_named(c, s->g, s->epoch, SHM_IF_WAKE + n); /* stale: the name is 0 again */
            batch[n] = next;
            next = s->next;
        }
        shm_tx_begin(c);
        for (unsigned i = 0; i < n; i++) {
            struct shm_sudog *s = shm_at(c, batch[i]);
            shm_tx_linked(c, s, 0);
            if (load_rlx(&name[i])) /* own word */
                won(c, s, ok);
        }
        shm_tx_store64(c, &q->first, next);
        if (next)
            shm_tx_store64(c, &((struct shm_sudog *)shm_at(c, next))->prev, 0);
        else
            shm_tx_store64(c, &q->last, 0);
        shm_tx_commit(c);
        shm_unlock(c, lock);
        for (unsigned i = 0; i < n; i++) {
            shm_gref r = load_rlx(&name[i]); /* own word */
            if (r) {
                shm_ready(c, r, false); /* at the tail: in the order in which they came */
                store_rlx(&name[i], 0);
            }
        }
        shm_lock(c, lock);
    }
}

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
    FAILPOINT("sudog.abort.claimed");
    shm_sudog_unlink(c, r);
    shm_g(c, r)->ok = ok;
    FAILPOINT("sudog.abort.unlinked");
    store_rel(&m->inflight[SHM_IF_READY], r); /* after ok, for the reaper */
    store_rel(&m->inflight[SHM_IF_ABORT], 0); /* after the other name */
    return true;
}

void shm_waiters_drain(struct shm_ctx *c, shm_off obj)
{
    switch (shm_kind(shm_at(c, obj))) {
    case SHM_OBJ_CHAN: {
        struct shm_chan *ch = shm_at(c, obj);
        shm_lock(c, &ch->lock);
        if (load_rlx(&ch->closed)) { /* under the lock */
            shm_sudog_drain(c, &ch->lock, SHM_WAITQ(&ch->recvq_first), SHM_OK_CLOSED);
            shm_sudog_drain(c, &ch->lock, SHM_WAITQ(&ch->sendq_first), SHM_OK_CLOSED);
        }
        shm_unlock(c, &ch->lock);
        break;
    }
    case SHM_OBJ_JOIN: {
        struct shm_join *j = shm_at(c, obj);
        shm_lock(c, &j->lock);
        if (load_rlx(&j->state) != SHM_J_PENDING) /* under the lock */
            shm_sudog_drain(c, &j->lock, SHM_WAITQ(&j->waiters_first), SHM_OK_VALUE);
        shm_unlock(c, &j->lock);
        if (load_acq(&j->state) != SHM_J_PENDING) { /* as above */
            shm_group_done(c, obj);
            shm_group_orphan(c, obj);
            shm_doneq_put(c, obj);
        } else if (load_acq(&j->kill)) { /* its deadline was being carried out: shm_join_fire() */
            shm_join_kill(c, obj, load_acq(&j->kill));
        }
        break;
    }
    case SHM_OBJ_GROUP:
        shm_group_drain(c, obj);
        break;
    case SHM_OBJ_CONTEXT:
        shm_context_carry(c, obj);
        break;
    }
}
