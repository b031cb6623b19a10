/* chan.c — channels: Go's hchan (runtime/chan.go). THE MODEL OF A PRIMITIVE: read it to write one.
 *
 * A channel is a lock, a ring of values and two FIFOs of waiters. Every operation has one shape:
 *
 *     lock, see what is the case, do it in one transaction, unlock, then ready the peer
 *
 * so an M killed at any instruction has done it wholly or not at all (undo.c), and no goroutine is
 * readied under the lock (INV lock order: a run queue's lock comes after). Nothing here waits: an
 * operation that cannot go on parks its G (sudog.c) and the M goes to schedule().
 *
 * WHAT HOLDS, whenever the lock is free
 *   INV chan-one-side   recvq or sendq is empty, but for a select on both sides of one channel
 *   INV chan-no-idle    buffered: values in the ring: nobody waits to receive; room: nobody to send
 *   INV chan-fifo       values leave in the order in which they came, waiters as they came, and who
 *                       comes new never overtakes who waits
 *   INV one-place       a value is in exactly one of: its sender's hands, the g (or select block)
 *                       of a parked sender, a slot, the g of a woken receiver, its receiver's hands
 *
 * THE ORDER OF LOOKS is Go's.
 *   send   closed: an error. A waiting receiver: straight into its g, past the ring (which is
 *          empty). Room: into the ring. Else wait.
 *   recv   closed and empty: the end. A waiting sender: without a ring its value; with one (it is
 *          full) the head of the ring, and the sender's value to the tail. In the ring: its head.
 *          Else wait. A closed channel is looked at before its senders: they are woken to fail, in
 *          batches, and what they wanted to send is theirs.
 *   close  marks, then wakes all receivers, then all senders, with ok = 0. What is in the ring can
 *          still be received.
 *
 * A VALUE'S BLOCK follows it (bytes.c): it is the M's own while in a caller's hands, published
 * while the segment names it, and both change in the transaction that moves the value. So a value
 * in the hands of an M that dies is garbage, and any other is untouched.
 *
 * Slots of the ring beyond qcount are written plainly: no one reads them until qcount, by the
 * transaction, says that there is a value. A slot that has one is overwritten by tx only. */
#include "internal.h"

static struct shm_chan *chan_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&ch->obj) != SHM_OBJ_CHAN))
        shm_throw("chan: %#llx is no channel", (unsigned long long)off);
    return ch;
}

static struct shm_val *slot(const struct shm_ctx *c, const struct shm_chan *ch, uint32_t i)
{
    return (struct shm_val *)shm_at(c, ch->buf) + i;
}

static uint32_t after(const struct shm_chan *ch, uint32_t i)
{
    return i + 1 == ch->cap ? 0 : i + 1;
}

static struct shm_waitq *recvq(struct shm_chan *ch)
{
    return SHM_WAITQ(&ch->recvq_first);
}
static struct shm_waitq *sendq(struct shm_chan *ch)
{
    return SHM_WAITQ(&ch->sendq_first);
}

/* ---- make and free --------------------------------------------------------------------------- */

/* The rest of `bytes` behind the channel is zero. */
int shm_chan_make(struct shm_ctx *c, uint32_t cap, size_t bytes, shm_off *out)
{
    shm_off off, buf = 0;
    int e = shm_alloc(c, bytes, &off);
    if (e)
        return e;
    if (cap && (e = shm_alloc(c, (size_t)cap * sizeof(struct shm_val), &buf)) != 0) {
        shm_free(c, off);
        return e;
    }
    struct shm_chan *ch = shm_at(c, off);
    memset(ch, 0, bytes);
    shm_obj_init(&ch->obj, SHM_OBJ_CHAN, 1);
    ch->cap = cap;
    ch->id = add_rlx(&c->hdr->chanid, 1) + 1;
    ch->buf = buf;
    shm_tx_begin(c);
    shm_obj_made(c, off);
    if (buf)
        shm_publish(c, buf);
    shm_tx_commit(c);
    *out = off;
    return SHM_OK;
}

int shm_chan_new(struct shm_ctx *c, uint32_t cap, shm_off *out)
{
    return shm_chan_make(c, cap, sizeof(struct shm_chan), out);
}

/* At the last unref: nobody waits (a wait holds a reference), nobody holds the lock. */
void shm_chan_free(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = chan_at(c, off);
    if (unlikely(ch->recvq_first || ch->sendq_first))
        shm_throw("chan: %#llx goes with goroutines waiting on it", (unsigned long long)off);
    if (ch->timer)
        shm_timer_forget(c, off);
    uint32_t n = load_rlx(&ch->qcount), x = ch->recvx; /* nobody else knows it any more */
    for (; n > 0; n--, x = after(ch, x))
        shm_val_drop(c, slot(c, ch, x));
    shm_off context = ch->done ? ch->buf : 0, buf = ch->done ? 0 : ch->buf;
    if (context)
        shm_context_undone(c, context, off);
    shm_tx_begin(c);
    shm_obj_gone(c, off);
    if (buf)
        shm_adopt(c, buf);
    if (context)
        shm_hand(c, context);
    shm_tx_commit(c);
    if (buf)
        shm_free(c, buf);
    shm_free(c, off);
    if (context)
        shm_obj_unref(c, context);
}

/* ---- send and receive, lock held ------------------------------------------------------------- */

/* *peer: whom to ready after the lock is given back, 0 nobody. */
int shm_chan_send_locked(struct shm_ctx *c, struct shm_chan *ch, const struct shm_val *v,
                         shm_gref *peer)
{
    if (unlikely(load_rlx(&ch->closed))) /* under the lock, as all below */
        return SHM_ECLOSED;
    struct shm_sudog *s = shm_sudog_claim(c, recvq(ch));
    if (s) {
        *peer = s->g;
        shm_tx_begin(c);
        shm_val_publish(c, v);
        shm_tx_val(c, &shm_g(c, s->g)->value, v);
        shm_sudog_win(c, recvq(ch), s, SHM_OK_VALUE);
        shm_retry_done(c, 1, NULL, c->retry_tag);
        shm_tx_commit(c);
        return SHM_OK;
    }
    uint32_t n = load_rlx(&ch->qcount);
    if (n == ch->cap)
        return SHM_EAGAIN;
    *slot(c, ch, ch->sendx) = *v;
    FAILPOINT("chan.send.slot");
    shm_tx_begin(c);
    shm_val_publish(c, v);
    shm_tx_store32(c, &ch->sendx, after(ch, ch->sendx));
    shm_tx_store32(c, &ch->qcount, n + 1);
    shm_retry_done(c, 1, NULL, c->retry_tag);
    shm_tx_commit(c);
    return SHM_OK;
}

/* In a tx. Into the caller's hands, or into the checkpoint of a goroutine with retries. */
static void receive(struct shm_ctx *c, const struct shm_val *v)
{
    if (!shm_retry_done(c, 1, v, c->retry_tag))
        shm_val_adopt(c, v);
}

int shm_chan_recv_locked(struct shm_ctx *c, struct shm_chan *ch, struct shm_val *v, shm_gref *peer)
{
    uint32_t n = load_rlx(&ch->qcount); /* under the lock, as all below */
    if (unlikely(load_rlx(&ch->closed))) {
        if (n == 0)
            return SHM_ECLOSED;
    } else {
        struct shm_sudog *s = shm_sudog_claim(c, sendq(ch));
        if (s) {
            struct shm_val *theirs = shm_sudog_value(c, s);
            *peer = s->g;
            *v = n ? *slot(c, ch, ch->recvx) : *theirs;
            shm_tx_begin(c);
            receive(c, v);
            if (n) { /* full: the slot of the head becomes the tail */
                uint32_t x = after(ch, ch->recvx);
                shm_tx_val(c, slot(c, ch, ch->recvx), theirs);
                shm_tx_store32(c, &ch->recvx, x);
                shm_tx_store32(c, &ch->sendx, x);
            }
            shm_tx_val(c, theirs, &(struct shm_val){.tag = SHM_VAL_NONE});
            shm_sudog_win(c, sendq(ch), s, SHM_OK_VALUE);
            shm_tx_commit(c);
            return SHM_OK;
        }
    }
    if (n == 0)
        return SHM_EAGAIN;
    *v = *slot(c, ch, ch->recvx);
    shm_tx_begin(c);
    receive(c, v);
    uint32_t x = ch->recvx;
    shm_tx_store32(c, &ch->recvx, after(ch, x));
    shm_tx_store32(c, &ch->qcount, n - 1);
    if (unlikely(c->hdr->scrub)) /* no one reads the slot any more */
        shm_tx_val(c, slot(c, ch, x), &(struct shm_val){.tag = SHM_VAL_NONE});
    shm_tx_commit(c);
    return SHM_OK;
}

/* ---- send and receive ------------------------------------------------------------------------ */

/* Without the lock, a guess for operations that do not wait. Each load acquires what the operation
 * that it sees had done; pairs with the release of shm_tx_store32() and shm_tx_store64(). */
static bool seems_full(struct shm_chan *ch)
{
    return ch->cap ? load_acq(&ch->qcount) == ch->cap
                   : load_acq((_Atomic uint64_t *)&ch->recvq_first) == 0;
}
static bool seems_empty(struct shm_chan *ch)
{
    return load_acq(&ch->qcount) == 0 &&
           (ch->cap || load_acq((_Atomic uint64_t *)&ch->sendq_first) == 0);
}

int shm_chan_trysend(struct shm_ctx *c, shm_off off, const struct shm_val *v)
{
    struct shm_chan *ch = chan_at(c, off);
    shm_gref peer = 0;
    /* Go's order: open at the first look, full at the second, so at one moment between both (a
     * channel never opens again). */
    if (!load_acq(&ch->closed) && seems_full(ch))
        return SHM_EAGAIN;
    shm_lock(c, &ch->lock);
    int e = shm_chan_send_locked(c, ch, v, &peer);
    shm_unlock(c, &ch->lock);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

int shm_chan_tryrecv(struct shm_ctx *c, shm_off off, struct shm_val *v)
{
    struct shm_chan *ch = chan_at(c, off);
    shm_gref peer = 0;
    shm_chan_glance(c, ch);
    /* Go's order: empty first. Open after that: it was open and empty at one moment. A channel that
     * was closed meanwhile may have got a value before, so that is left to the lock. */
    if (seems_empty(ch) && !load_acq(&ch->closed))
        return SHM_EAGAIN;
    shm_lock(c, &ch->lock);
    int e = shm_chan_recv_locked(c, ch, v, &peer);
    shm_unlock(c, &ch->lock);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

static bool may_send(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = shm_at(c, off);
    return load_acq(&ch->closed) || !seems_full(ch);
}
static bool may_recv(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = shm_at(c, off);
    return load_acq(&ch->closed) || !seems_empty(ch);
}

/* Behind others there is nothing to wait for: who comes is theirs. */
bool shm_chan_send_soon(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = chan_at(c, off);
    return load_rlx((_Atomic uint64_t *)&ch->sendq_first) == 0 && shm_stand(c, off, may_send);
}
bool shm_chan_recv_soon(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = chan_at(c, off);
    return load_rlx((_Atomic uint64_t *)&ch->recvq_first) == 0 && shm_stand(c, off, may_recv);
}

int shm_chan_send_park(struct shm_ctx *c, shm_off off, const struct shm_val *v, shm_gref r)
{
    struct shm_chan *ch = chan_at(c, off);
    shm_gref peer = 0;
    shm_lock(c, &ch->lock);
    int e = shm_chan_send_locked(c, ch, v, &peer);
    if (e == SHM_EAGAIN) {
        shm_sudog_park(c, r, SHM_OBJ_CHAN, off, sendq(ch), SHM_DIR_SEND, v, SHM_WR_CHAN_SEND);
        e = SHM_PARKED;
    }
    shm_unlock(c, &ch->lock);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

int shm_chan_recv_park(struct shm_ctx *c, shm_off off, struct shm_val *v, shm_gref r)
{
    struct shm_chan *ch = chan_at(c, off);
    shm_gref peer = 0;
    shm_lock(c, &ch->lock);
    int e = shm_chan_recv_locked(c, ch, v, &peer);
    if (e == SHM_EAGAIN) {
        shm_sudog_park(c, r, SHM_OBJ_CHAN, off, recvq(ch), SHM_DIR_RECV, NULL, SHM_WR_CHAN_RECV);
        e = SHM_PARKED;
    }
    shm_unlock(c, &ch->lock);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

/* ---- close ----------------------------------------------------------------------------------- */

int shm_chan_close(struct shm_ctx *c, shm_off off)
{
    struct shm_chan *ch = chan_at(c, off);
    int e = SHM_ECLOSED;
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], off); /* before anybody is claimed; for the reaper */
    shm_lock(c, &ch->lock);
    if (!load_rlx(&ch->closed)) { /* under the lock */
        shm_tx_begin(c);
        shm_tx_store32(c, &ch->closed, 1);
        shm_tx_commit(c);
        FAILPOINT("chan.close.marked");
        shm_sudog_drain(c, &ch->lock, recvq(ch), SHM_OK_CLOSED);
        shm_sudog_drain(c, &ch->lock, sendq(ch), SHM_OK_CLOSED);
        e = SHM_OK;
    }
    shm_unlock(c, &ch->lock);
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], 0);
    return e;
}
