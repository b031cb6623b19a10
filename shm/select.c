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
 *   3 The G, running again, locks all channels once more, takes its other sudogs out, and frees them.
 *
 * The sudogs, and the values to send, stand in one heap block (struct shm_selblk) that g->waitobj
 * names. It cannot be in g: a G mostly waits on one thing, and a million of them pay for its size.
 * It is the G's own: freed by pass 3 and by nobody else, after no queue leads into it any more. A
 * canceller takes the sudogs out (shm_sudog_unlink) before it readies the G, as for any wait; then
 * pass 3 finds nothing linked.
 *
 * INV touch-nothing holds from the arming on for the block too, so the order in which to unlock is
 * kept on the stack of the M. A channel stays as long as its locks are held: the wait has a
 * reference per case, pass 3 gives them back, and comes only after having had each lock.
 *
 * Two cases may name the same channel, in both directions too. It is locked once. A G never meets
 * itself: its own sudogs are linked only after pass 1. */
#include "internal.h"

static_assert(SHM_SELECT_MAX + 4 <= SHM_HELD, "an M may hold the locks of all cases");
/* Pass 2: per case linked (1), put (2), the value and its block (3). Pass 3: remove (3). */
static_assert(6 * SHM_SELECT_MAX + 8 <= SHM_UNDO, "a select is one transaction");

static struct shm_chan *chan_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

/* The distinct channels of a select, ascending. */
struct locks {
    uint32_t n;
    shm_off ch[SHM_SELECT_MAX];
};

static void locks_add(struct locks *l, shm_off ch)
{
    uint32_t i = l->n;
    while (i > 0 && l->ch[i - 1] > ch)
        i--;
    if (i > 0 && l->ch[i - 1] == ch)
        return;
    memmove(&l->ch[i + 1], &l->ch[i], (l->n - i) * sizeof l->ch[0]);
    l->ch[i] = ch;
    l->n++;
}

static void locks_take(struct shm_ctx *c, const struct locks *l)
{
    for (uint32_t i = 0; i < l->n; i++)
        shm_lock(c, &chan_at(c, l->ch[i])->lock);
}

static void locks_give(struct shm_ctx *c, const struct locks *l)
{
    for (uint32_t i = l->n; i > 0; i--)
        shm_unlock(c, &chan_at(c, l->ch[i - 1])->lock);
}

static void locks_of(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, struct locks *l)
{
    if (unlikely(n > SHM_SELECT_MAX))
        shm_throw("select: %u cases, at most %d are possible", n, SHM_SELECT_MAX);
    l->n = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (unlikely(cases[i].ch == 0 || chan_at(c, cases[i].ch)->obj.kind != SHM_OBJ_CHAN))
            shm_throw("select: case %u: %#llx is no channel", i, (unsigned long long)cases[i].ch);
        shm_chan_glance(c, chan_at(c, cases[i].ch));
        locks_add(l, cases[i].ch);
    }
}

static struct shm_waitq *queue_of(struct shm_chan *ch, uint32_t dir)
{
    return SHM_WAITQ(dir == SHM_DIR_SEND ? &ch->sendq_first : &ch->recvq_first);
}

/* ---- pass 1 ---------------------------------------------------------------------------------- */

/* All locks held. An order of looking: each of the n! with the same probability. */
static void shuffle(struct shm_ctx *c, uint8_t *order, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t j = (uint32_t)((ctx_rand(c) >> 32) * (i + 1) >> 32);
        order[i] = order[j];
        order[j] = (uint8_t)i;
    }
}

static int pass1(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, uint8_t *order,
                 uint32_t *which, struct shm_val *v, shm_gref *peer)
{
    shuffle(c, order, n);
    for (uint32_t i = 0; i < n; i++) {
        const struct shm_case *k = &cases[order[i]];
        struct shm_chan *ch = chan_at(c, k->ch);
        int e = k->dir == SHM_DIR_SEND ? shm_chan_send_locked(c, ch, &k->v, peer)
                                       : shm_chan_recv_locked(c, ch, v, peer);
        if (e != SHM_EAGAIN) {
            *which = order[i];
            return e;
        }
    }
    return SHM_EAGAIN;
}

int shm_select_try(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, uint32_t *which,
                   struct shm_val *v)
{
    struct locks l;
    shm_gref peer = 0;
    uint8_t order[SHM_SELECT_MAX];
    locks_of(c, cases, n, &l);
    locks_take(c, &l);
    int e = pass1(c, cases, n, order, which, v, &peer);
    locks_give(c, &l);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

/* ---- pass 2 ---------------------------------------------------------------------------------- */

static size_t blk_bytes(uint32_t n)
{
    return sizeof(struct shm_selblk) + n * sizeof(struct shm_selcase);
}

/* All locks held, nothing is ready; `off` is a block of this M's. */
static void enqueue(struct shm_ctx *c, const struct shm_case *cases, uint32_t n,
                    const uint8_t *order, shm_gref r, shm_off off)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_selblk *b = shm_at(c, off);
    uint64_t epoch = shm_wait_next(g);
    memset(b, 0, blk_bytes(n));
    b->n = n;
    for (uint32_t i = 0; i < n; i++) { /* nothing of it is reachable yet */
        struct shm_selcase *k = &b->cs[i];
        k->sudog.g = r;
        k->sudog.epoch = (uint32_t)epoch;
        k->sudog.isselect = 1;
        k->sudog.which = (uint16_t)i;
        k->sudog.linked = (uint8_t)cases[i].dir;
        k->v = cases[i].dir == SHM_DIR_SEND ? cases[i].v : (struct shm_val){.tag = SHM_VAL_NONE};
        k->ch = cases[i].ch;
        k->dir = cases[i].dir;
        k->tag = cases[i].tag;
    }
    g->value.tag = SHM_VAL_NONE;
    g->waitobj = off;
    store_rel((_Atomic uint8_t *)&g->waitkind, SHM_WAIT_SELECT); /* after waitobj, for a reaper */
    shm_tx_begin(c);
    shm_publish(c, off);
    for (uint32_t i = 0; i < n; i++) {
        struct shm_selcase *k = &b->cs[order[i]];
        shm_val_publish(c, &k->v);
        shm_sudog_put(c, queue_of(chan_at(c, k->ch), k->dir), &k->sudog);
    }
    shm_tx_commit(c);
    FAILPOINT("select.linked");
    shm_park_commit(c, r, n ? SHM_WR_SELECT : SHM_WR_SELECT_NO_CASES, epoch);
}

int shm_select_park(struct shm_ctx *c, const struct shm_case *cases, uint32_t n, shm_gref r,
                    uint32_t *which, struct shm_val *v)
{
    struct locks l;
    shm_gref peer = 0;
    uint8_t order[SHM_SELECT_MAX];
    shm_off blk;
    locks_of(c, cases, n, &l);
    int e = shm_alloc(c, blk_bytes(n), &blk);
    if (e)
        return e;
    for (uint32_t i = 0; i < n; i++)
        shm_obj_ref(c, cases[i].ch); /* the wait's; before anybody can end it */
    locks_take(c, &l);
    e = pass1(c, cases, n, order, which, v, &peer);
    if (e == SHM_EAGAIN) {
        enqueue(c, cases, n, order, r, blk);
        e = SHM_PARKED;
    }
    locks_give(c, &l);
    if (peer)
        shm_ready(c, peer, true);
    if (e != SHM_PARKED) {
        shm_free(c, blk);
        for (uint32_t i = 0; i < n; i++)
            shm_obj_unref(c, cases[i].ch);
    }
    return e;
}

/* ---- pass 3 ---------------------------------------------------------------------------------- */

/* By who owns the G: its claimer, or the M that runs it. */
void shm_select_unlink(struct shm_ctx *c, shm_off off)
{
    struct shm_selblk *b = shm_at(c, off);
    struct locks l = {.n = 0};
    for (uint32_t i = 0; i < b->n; i++)
        locks_add(&l, b->cs[i].ch);
    locks_take(c, &l);
    shm_tx_begin(c);
    for (uint32_t i = 0; i < b->n; i++)
        if (b->cs[i].sudog.linked)
            shm_sudog_remove(c, queue_of(chan_at(c, b->cs[i].ch), b->cs[i].dir), &b->cs[i].sudog);
    shm_tx_commit(c);
    locks_give(c, &l);
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
    shm_tx_begin(c); /* nothing of the wait is left in the segment; this M has it, to free */
    shm_adopt(c, off);
    for (uint32_t i = 0; i < b->n; i++)
        shm_val_adopt(c, &b->cs[i].v);
    shm_tx_store64(c, &g->waitobj, 0);
    shm_tx_commit(c);
    g->waitkind = 0;
    for (uint32_t i = 0; i < b->n; i++) {
        shm_val_drop(c, &b->cs[i].v); /* what was sent left NONE behind */
        shm_obj_unref(c, b->cs[i].ch);
    }
    shm_free(c, off);
    return winner;
}
