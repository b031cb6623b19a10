/* doneq.c — goroutines that have ended, in one queue: for somebody who waits for many.
 *
 * A join object (join.c) is for those who wait for one goroutine. Who has started a million and
 * wants each as it ends cannot park on a million objects; and a channel would not do: it is full at
 * some time, what has ended cannot wait for room, and a goroutine that a dead M ran sends nothing.
 * So the joins themselves are linked, and every end comes here, whatever it was: value, exception,
 * kill, the death of an M. The queue cannot be full and an end cannot be lost.
 *
 *   attach   before the goroutine is made runnable: the queue gets a reference on the join, the
 *            join one on the queue
 *   put      by shm_join_finish(), after the state is final: linked and a waiter woken, in one
 *            transaction. Done again by a reaper (SHM_IF_DRAIN names the join) it changes nothing:
 *            `dlisted` says how far it came.
 *   take     unlinked; the queue's reference on the join is the taker's, the join's one on the
 *            queue is given back
 *
 * A waiter is handed nothing: it is woken and looks again. Waiters beyond the first are woken by
 * the taker, who leaves something behind. */
#include "internal.h"

enum { DQ_NO = 0, DQ_LINKED = 1, DQ_TAKEN = 2 }; /* join->dlisted */

static_assert(offsetof(struct shm_doneq, waiters_last) ==
                  offsetof(struct shm_doneq, waiters_first) + 8,
              "a struct shm_waitq");

static struct shm_doneq *doneq_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_doneq *q = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&q->obj) != SHM_OBJ_DONEQ))
        shm_throw("doneq: %#llx is no queue of ended goroutines", (unsigned long long)off);
    return q;
}

int shm_doneq_new(struct shm_ctx *c, shm_off *off)
{
    int e = shm_obj_alloc(c, SHM_OBJ_DONEQ, sizeof(struct shm_doneq), 0, off);
    if (e == SHM_OK)
        shm_obj_born(c, *off);
    return e;
}

/* At the last unref: no join is linked (a linked one has a reference), nobody waits. */
void shm_doneq_free(struct shm_ctx *c, shm_off off)
{
    struct shm_doneq *q = doneq_at(c, off);
    if (unlikely(q->first || q->waiters_first))
        shm_throw("doneq: %#llx goes with goroutines in it", (unsigned long long)off);
    shm_obj_end(c, off);
}

void shm_doneq_attach(struct shm_ctx *c, shm_off off, shm_off join)
{
    struct shm_join *j = shm_at(c, join);
    doneq_at(c, off);
    shm_obj_ref(c, off);
    shm_obj_ref(c, join);
    j->doneq = off; /* nobody else knows the join yet */
}

void shm_doneq_detach(struct shm_ctx *c, shm_off join)
{
    struct shm_join *j = shm_at(c, join);
    shm_off off = j->doneq;
    j->doneq = 0; /* as above */
    shm_obj_unref(c, off);
    shm_obj_unref(c, join);
}

void shm_doneq_put(struct shm_ctx *c, shm_off join)
{
    struct shm_join *j = shm_at(c, join);
    /* Set before the goroutine began, cleared by the taker, who has seen the join linked. */
    shm_off off = load_acq((_Atomic uint64_t *)&j->doneq);
    shm_gref peer = 0;
    if (off == 0)
        return;
    struct shm_doneq *q = doneq_at(c, off);
    shm_lock(c, &q->lock);
    if (j->dlisted == DQ_NO) {
        struct shm_sudog *s = shm_sudog_claim(c, SHM_WAITQ(&q->waiters_first));
        shm_tx_begin(c);
        shm_tx_store32(c, &j->dlisted, DQ_LINKED);
        j->dnext = 0; /* read by who finds it linked */
        if (q->last)
            shm_tx_store64(c, &((struct shm_join *)shm_at(c, q->last))->dnext, join);
        else
            shm_tx_store64(c, &q->first, join);
        shm_tx_store64(c, &q->last, join);
        if (s) {
            peer = s->g;
            shm_sudog_win(c, SHM_WAITQ(&q->waiters_first), s, SHM_OK_VALUE);
        }
        shm_tx_commit(c);
        FAILPOINT("doneq.put.linked");
    }
    shm_unlock(c, &q->lock);
    if (peer)
        shm_ready(c, peer, true);
}

uint32_t shm_doneq_take(struct shm_ctx *c, shm_off off, shm_off *joins, uint32_t n)
{
    struct shm_doneq *q = doneq_at(c, off);
    uint32_t got = 0;
    /* A glance: what is linked just now is found by the next look, or by the waiter's. */
    if (load_acq((_Atomic uint64_t *)&q->first) == 0)
        return 0;
    if (n > SHM_DONEQ_BATCH)
        n = SHM_DONEQ_BATCH;
    shm_lock(c, &q->lock);
    shm_off at = q->first;
    shm_tx_begin(c);
    for (; at && got < n; got++) {
        struct shm_join *j = shm_at(c, at);
        joins[got] = at;
        at = j->dnext;
        shm_tx_store32(c, &j->dlisted, DQ_TAKEN);
        shm_tx_store64(c, &j->doneq, 0);
    }
    if (got) {
        shm_tx_store64(c, &q->first, at);
        if (at == 0)
            shm_tx_store64(c, &q->last, 0);
    }
    shm_tx_commit(c);
    shm_gref peer = 0;
    struct shm_sudog *s = at ? shm_sudog_claim(c, SHM_WAITQ(&q->waiters_first)) : NULL;
    if (s) {
        peer = s->g;
        shm_tx_begin(c);
        shm_sudog_win(c, SHM_WAITQ(&q->waiters_first), s, SHM_OK_VALUE);
        shm_tx_commit(c);
    }
    shm_unlock(c, &q->lock);
    if (peer)
        shm_ready(c, peer, true);
    for (uint32_t i = 0; i < got; i++)
        shm_obj_unref(c, off); /* the caller has one of its own */
    return got;
}

int shm_doneq_park(struct shm_ctx *c, shm_off off, shm_gref r)
{
    struct shm_doneq *q = doneq_at(c, off);
    int e = SHM_OK;
    shm_lock(c, &q->lock);
    if (q->first == 0) {
        shm_sudog_park(c, r, SHM_OBJ_DONEQ, off, SHM_WAITQ(&q->waiters_first), SHM_DIR_RECV, NULL,
                       SHM_WR_DONEQ);
        e = SHM_PARKED;
    }
    shm_unlock(c, &q->lock);
    return e;
}
