/* select.c — waiting on several channels at once: Go's selectgo (runtime/select.go).
 *
 * THE PASSES are Go's
 *   1 All channels are locked, by ascending offset (the one place where an M holds more than one
 *     channel lock; offsets are the same in every process, addresses are not). The cases are looked
 *     at in a uniformly random order and the first that is ready is done. So a select sees all its
 *     channels at one moment, and of several ready cases none is preferred.
 *   2 None ready: a sudog per case joins its channel's queue, in that same random order (two cases
 *     on one channel must be as likely), the G waits, all locks are given back.
 *     Whoever claims the G by one sudog (INV one-waker) has the whole wait; that sudog leaves its
 *     queue and `winner` says which case it was. Those who meet the others lose the claim.
 *   3 The G, running again, locks all channels once more, takes its other sudogs out, and frees
 *     them.
 *
 * The sudogs, and the values to send, stand in one heap block (struct shm_selblk) that g->waitobj
 * names. It cannot be in g: a G mostly waits on one thing, and a million of them pay for its size.
 * It is the G's own: freed by pass 3 and by nobody else, after no queue leads into it any more. A
 * canceller takes the sudogs out (shm_sudog_unlink) before it readies the G, as for any wait; then
 * pass 3 finds nothing linked.
 *
 * INV touch-nothing holds from the arming on for the block too, so the order in which to unlock is
 * kept on the stack of the M. A channel stays as long as its locks are held: the wait has a
 * reference per case (the handle words of its block), pass 3 gives them back, and comes only after
 * having had each lock.
 *
 * Two cases may name the same channel, in both directions too. It is locked once. A G never meets
 * itself: its own sudogs are linked only after pass 1.
 *
 * REVIVED. An M that has claimed the G with one channel locked may die before it has given
 * anything. Those who met the other sudogs meanwhile, each with its own channel locked, lost the
 * claim and took them for stale: they are unlinked, and what could have been handed to the G went
 * past it, into a ring or to wait itself. Armed again as it is, it would sleep beside what it waits
 * for. So its reaper, all locks held, looks at the cases once more, as in pass 1; if one is ready
 * the G gets it, as from any claimer; if none is, what was unlinked goes to the end of its queue
 * and the G is armed. Until then it stays claimed by the dead, which g->ok tells from a claim that
 * has given (SHM_OK_NONE).
 *
 * MANY CASES. Up to FEW, all that a select needs beside its block is on the stack, and each lock is
 * named in m->held. With more, up to SHM_SELECT_MAX, the sorted list of the locks is in the
 * segment, so that one word names all of them (struct shm_lockset): behind the cases in the block,
 * so that pass 3, which must not fail, finds it there; in a block for the moment while nothing is
 * parked. The undo log has no room for many cases, and needs none. They are linked BATCH at a time,
 * all locks held, the G running: nobody alive can see how far it has come. If the M dies between
 * two batches, the G dies with it, and its reaper finds the block as that of a G that has just been
 * woken: what is linked is taken out (each sudog says whether it is), what has a value is dropped.
 * Pass 3 may be cut anywhere likewise. Rejected: a larger log in every M, for selects that hardly
 * any program has; a chain of selects over goroutines that wait for 64 each, since the choice would
 * not be one. */
#include "internal.h"

#include <stdlib.h>

enum { FEW = 64, BATCH = 64 };
static_assert(FEW + 4 <= SHM_HELD, "an M may hold the locks of few cases, and some on top");
/* Per case linked (1), put (2), the value's block (1), and once the block. Pass 3: remove (3). */
static_assert(4 * BATCH + 1 <= SHM_UNDO, "a batch is one transaction");
static_assert(SHM_SELECT_MAX - 1 <= UINT16_MAX, "a sudog's which");

/* How a select goes about its cases. */
struct plan {
    uint32_t n;      /* distinct channels */
    shm_off lockset; /* of many; 0: few */
    uint16_t *order; /* in which the cases are looked at, and linked */
    shm_off few[FEW];
    uint16_t few_order[FEW];
};

static struct shm_chan *chan_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

static shm_off lock_of(shm_off ch)
{
    return ch + offsetof(struct shm_chan, lock);
}

static void few_add(struct plan *p, shm_off lock)
{
    uint32_t i = p->n;
    while (i > 0 && p->few[i - 1] > lock)
        i--;
    if (i > 0 && p->few[i - 1] == lock)
        return;
    memmove(&p->few[i + 1], &p->few[i], (p->n - i) * sizeof p->few[0]);
    p->few[i] = lock;
    p->n++;
}

static int by_offset(const void *a, const void *b)
{
    shm_off x = *(const shm_off *)a, y = *(const shm_off *)b;
    return (x > y) - (x < y);
}

/* Room in the segment for the plan of n cases. */
static size_t plan_bytes(uint32_t n)
{
    return n <= FEW ? 0 : sizeof(struct shm_lockset) + n * (sizeof(shm_off) + sizeof(uint16_t));
}

/* at: plan_bytes(n) that are this M's, if that is not 0. */
static void plan(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, shm_off at,
                 struct plan *p)
{
    if (unlikely(n > SHM_SELECT_MAX))
        shm_throw("select: %u cases, at most %d are possible", n, SHM_SELECT_MAX);
    struct shm_lockset *s = n <= FEW ? NULL : shm_at(c, at);
    p->n = 0;
    p->lockset = s ? at : 0;
    p->order = s ? (uint16_t *)(s->word + n) : p->few_order;
    for (uint32_t i = 0; i < n; i++) {
        if (unlikely(cases[i].ch == 0 || shm_kind(&chan_at(c, cases[i].ch)->obj) != SHM_OBJ_CHAN))
            shm_throw("select: case %u: %#llx is no channel", i, (unsigned long long)cases[i].ch);
        shm_chan_glance(c, chan_at(c, cases[i].ch));
        if (s)
            s->word[i] = lock_of(cases[i].ch);
        else
            few_add(p, lock_of(cases[i].ch));
    }
    if (!s)
        return;
    qsort(s->word, n, sizeof s->word[0], by_offset);
    for (uint32_t i = 0; i < n; i++)
        if (p->n == 0 || s->word[p->n - 1] != s->word[i])
            s->word[p->n++] = s->word[i];
    s->n = p->n;
}

static void lock_plan(struct shm_ctx *c, const struct plan *p)
{
    if (unlikely(p->lockset))
        shm_lock_all(c, p->lockset);
    else
        for (uint32_t i = 0; i < p->n; i++)
            shm_lock(c, shm_at(c, p->few[i]));
}

static void unlock_plan(struct shm_ctx *c, const struct plan *p)
{
    if (unlikely(p->lockset))
        shm_unlock_all(c, p->lockset);
    else
        for (uint32_t i = p->n; i > 0; i--)
            shm_unlock(c, shm_at(c, p->few[i - 1]));
}

static struct shm_waitq *queue_of(struct shm_chan *ch, uint32_t dir)
{
    return SHM_WAITQ(dir == SHM_DIR_SEND ? &ch->sendq_first : &ch->recvq_first);
}

/* ---- pass 1 ---------------------------------------------------------------------------------- */

/* All locks held. An order of looking: each of the n! with the same probability. */
static void shuffle(struct shm_ctx *c, uint16_t *order, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)((ctx_rand(c) >> 32) * (i + 1) >> 32);
        order[i] = order[j];
        order[j] = (uint16_t)i;
    }
}

static int pass1(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, uint16_t *order,
                 uint32_t *which, struct shm_val *v, shm_gref *peer)
{
    shuffle(c, order, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct shm_case *k = &cases[order[i]];
        struct shm_chan *ch = chan_at(c, k->ch);
        c->retry_tag = k->tag;
        int e = k->dir == SHM_DIR_SEND ? shm_chan_send_locked(c, ch, &k->v, peer)
                                       : shm_chan_recv_locked(c, ch, v, peer);
        if (e != SHM_EAGAIN) {
            *which = order[i];
            c->retry_tag = 0;
            return e;
        }
    }
    c->retry_tag = 0;
    return SHM_EAGAIN;
}

int shm_select_try(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, uint32_t *which,
                   struct shm_val *v)
{
    struct plan p;
    shm_gref peer = 0;
    shm_off at = 0;
    int e = n <= FEW ? SHM_OK : shm_alloc(c, plan_bytes(n), &at);
    if (e)
        return e;
    plan(c, cases, n, at, &p);
    lock_plan(c, &p);
    e = pass1(c, cases, n, p.order, which, v, &peer);
    unlock_plan(c, &p);
    if (peer)
        shm_ready(c, peer, true);
    if (at)
        shm_free(c, at);
    return e;
}

/* ---- pass 2 ---------------------------------------------------------------------------------- */

static size_t blk_bytes(uint32_t n)
{
    return sizeof(struct shm_selblk) + n * sizeof(struct shm_selcase);
}

/* All locks held, nothing is ready; `off` is a block of this M's. */
static void enqueue(struct shm_ctx *c, const struct shm_case *cases, uint32_t n,
                    const struct plan *p, shm_gref r, shm_off off)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_selblk *b = shm_at(c, off);
    uint64_t epoch = shm_wait_next(g);
    memset(b, 0, blk_bytes(n));
    b->n = n;
    b->lockset = p->lockset;
    for (uint32_t i = 0; i < n; i++) { /* nothing of it is reachable yet */
        struct shm_selcase *k = &b->cs[i];
        k->sudog.g = r;
        k->sudog.epoch = (uint32_t)epoch;
        k->sudog.isselect = 1;
        k->sudog.which = (uint16_t)i;
        k->v = cases[i].dir == SHM_DIR_SEND ? cases[i].v : (struct shm_val){.tag = SHM_VAL_NONE};
        k->ch = cases[i].ch;
        k->dir = cases[i].dir;
        k->tag = cases[i].tag;
    }
    g->value.tag = SHM_VAL_NONE;
    g->ok = SHM_OK_NONE;
    g->waitobj = off;
    store_rel((_Atomic uint8_t *)&g->waitkind, SHM_WAIT_SELECT); /* after waitobj, for a reaper */
    shm_tx_begin(c);
    shm_publish(c, off);
    for (uint32_t i = 0; i < n; i++) {
        struct shm_selcase *k = &b->cs[p->order[i]];
        if (unlikely(i && i % BATCH == 0)) {
            shm_tx_commit(c);
            FAILPOINT("select.batch");
            shm_tx_begin(c);
        }
        shm_val_publish(c, &k->v);
        shm_tx_linked(c, &k->sudog, (uint8_t)k->dir);
        shm_sudog_put(c, queue_of(chan_at(c, k->ch), k->dir), &k->sudog);
    }
    shm_tx_commit(c);
    FAILPOINT("select.linked");
    shm_park_commit(c, r, n ? SHM_WR_SELECT : SHM_WR_SELECT_NO_CASES, epoch);
}

int shm_select_park(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, shm_gref r,
                    uint32_t *which, struct shm_val *v)
{
    struct plan p;
    shm_gref peer = 0;
    shm_off blk;
    int e = shm_alloc(c, blk_bytes(n) + plan_bytes(n) + n * sizeof(uint64_t), &blk);
    if (e)
        return e;
    plan(c, cases, n, blk + blk_bytes(n), &p);
    for (uint32_t i = 0; i < n; i++)
        shm_bytes_hold(c, blk, SHM_HANDLE(SHM_OBJ_CHAN, cases[i].ch)); /* before it can end */
    lock_plan(c, &p);
    e = pass1(c, cases, n, p.order, which, v, &peer);
    if (e == SHM_EAGAIN) {
        enqueue(c, cases, n, &p, r, blk);
        e = SHM_PARKED;
    }
    unlock_plan(c, &p);
    if (peer)
        shm_ready(c, peer, true);
    if (e != SHM_PARKED)
        shm_bytes_drop(c, blk);
    return e;
}

/* ---- pass 3 ---------------------------------------------------------------------------------- */

/* The channels of a parked select. */
static void plan_of(struct shm_ctx *c, struct shm_selblk *b, struct plan *p)
{
    p->n = 0;
    p->lockset = b->lockset;
    for (uint32_t i = 0; i < b->n && !p->lockset; i++)
        few_add(p, lock_of(b->cs[i].ch));
    p->order = p->lockset ? (uint16_t *)(((struct shm_lockset *)shm_at(c, p->lockset))->word + b->n)
                          : p->few_order;
}

/* By who owns the G: its claimer, or the M that runs it. */
void shm_select_unlink(struct shm_ctx *c, shm_off off)
{
    struct shm_selblk *b = shm_at(c, off);
    struct plan p;
    plan_of(c, b, &p);
    lock_plan(c, &p);
    shm_tx_begin(c);
    for (uint32_t i = 0, removed = 0; i < b->n; i++) {
        struct shm_selcase *k = &b->cs[i];
        if (!k->sudog.linked)
            continue;
        if (unlikely(removed && removed % BATCH == 0)) {
            shm_tx_commit(c);
            FAILPOINT("select.unlink.batch");
            shm_tx_begin(c);
        }
        shm_sudog_remove(c, queue_of(chan_at(c, k->ch), k->dir), &k->sudog);
        removed++;
    }
    shm_tx_commit(c);
    unlock_plan(c, &p);
}

int shm_select_done(struct shm_ctx *c, shm_gref r, uint32_t *tag)
{
    struct shm_g *g = shm_g(c, r);
    shm_off off = g->waitobj;
    struct shm_selblk *b = shm_at(c, off);
    if (unlikely(g->waitkind != SHM_WAIT_SELECT))
        shm_throw("select: goroutine %llu was not in select", (unsigned long long)g->goid);
    shm_select_unlink(c, off);
    int winner = (int)b->winner - 1;
    *tag = winner < 0 ? 0 : b->cs[winner].tag;
    FAILPOINT("select.unlinked");
    for (uint32_t i = 0; i < b->n; i++)
        shm_val_drop(c, &b->cs[i].v); /* what was sent left NONE behind */
    FAILPOINT("select.dropped");
    shm_tx_begin(c); /* nothing of the wait is left in the segment; this M has it, to free */
    shm_adopt(c, off);
    shm_tx_store64(c, &g->waitobj, *tag);
    shm_tx_byte(c, &g->home_m1, 3, 0); /* waitkind: done again from the start, or not at all */
    shm_tx_commit(c);
    shm_bytes_drop(c, off);
    return winner;
}

/* ---- after a death --------------------------------------------------------------------------- */

/* All locks held. Puts back what was taken for stale. */
static void relink(struct shm_ctx *c, struct shm_selblk *b, const struct plan *p)
{
    shm_tx_begin(c);
    for (uint32_t i = 0, put = 0; i < b->n; i++) {
        struct shm_selcase *k = &b->cs[p->order[i]];
        if (k->sudog.linked)
            continue;
        if (unlikely(put && put % BATCH == 0)) {
            shm_tx_commit(c);
            FAILPOINT("select.revive.batch");
            shm_tx_begin(c);
        }
        shm_tx_linked(c, &k->sudog, (uint8_t)k->dir);
        shm_sudog_put(c, queue_of(chan_at(c, k->ch), k->dir), &k->sudog);
        put++;
    }
    shm_tx_commit(c);
}

/* In a tx. The claimed g has the case: v, if it receives. */
void shm_select_give(struct shm_ctx *c, struct shm_g *g, uint32_t which, uint8_t ok,
                     const struct shm_val *v)
{
    struct shm_selblk *b = shm_at(c, g->waitobj);
    if (v)
        shm_tx_val(c, &g->value, v);
    else if (ok == SHM_OK_VALUE)
        shm_tx_val(c, &b->cs[which].v, &(struct shm_val){.tag = SHM_VAL_NONE}); /* is sent */
    shm_tx_ok(c, g, ok);
    shm_tx_store32(c, &b->winner, which + 1);
}

/* All locks held. r gets the first case that is ready; false: none is. */
static bool give(struct shm_ctx *c, shm_gref r, struct shm_selblk *b, const uint16_t *order,
                 shm_gref *peer)
{
    int e = SHM_EAGAIN;
    for (uint32_t i = 0; e == SHM_EAGAIN && i < b->n; i++) {
        struct shm_selcase *k = &b->cs[order[i]];
        struct shm_chan *ch = chan_at(c, k->ch);
        struct shm_val v;
        c->retrying = r; /* whom it is done for: shm_retry_done_() */
        c->retry_tag = order[i];
        e = k->dir == SHM_DIR_SEND ? shm_chan_send_locked(c, ch, &k->v, peer)
                                   : shm_chan_recv_locked(c, ch, &v, peer);
        if (e == SHM_ECLOSED) {
            shm_tx_begin(c);
            shm_select_give(c, shm_g(c, r), order[i], SHM_OK_CLOSED, NULL);
            shm_tx_commit(c);
        }
    }
    c->retrying = 0;
    c->retry_tag = 0;
    return e != SHM_EAGAIN;
}

/* r's wait was claimed by an M that has died and given it nothing.
 * By its reaper, while it names r. */
void shm_select_revive(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_selblk *b = shm_at(c, g->waitobj);
    struct plan p;
    shm_gref peer = 0;
    plan_of(c, b, &p);
    lock_plan(c, &p);
    shuffle(c, p.order, b->n);
    bool given = give(c, r, b, p.order, &peer);
    if (!given) {
        relink(c, b, &p);
        FAILPOINT("select.revive.linked");
        shm_wait_arm(c, r, SHM_W_EPOCH(load_rlx(&g->wait))); /* the dead's: nobody writes it */
    }
    FAILPOINT("select.revived");
    unlock_plan(c, &p);
    if (peer)
        shm_ready(c, peer, false);
    if (given)
        shm_ready(c, r, false);
}
