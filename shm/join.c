/* join.c — how a goroutine ended, and who waits for that.
 *
 * A join object is what a handle refers to. The g slot is used again as soon as its goroutine has
 * ended; the join object stays until the last handle is gone, with the result: read by any number
 * of waiters, each by himself, so nobody takes it away.
 *
 * It is a channel that is closed once, with a value: finish writes value and state in one
 * transaction, under the lock, then wakes all waiters in batches (sudog.c). Who comes later finds
 * the state. The state is also read without the lock: it is released after the value is complete,
 * and neither changes any more.
 *
 * A state other than pending is final: a reaper that finishes what its dead M may have finished
 * already changes nothing (shm_join_finish() drops the later value). */
#include "internal.h"

static struct shm_join *join_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_join *j = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&j->obj) != SHM_OBJ_JOIN))
        shm_throw("join: %#llx is no join object", (unsigned long long)off);
    return j;
}

static struct shm_waitq *waiters(struct shm_join *j)
{
    return SHM_WAITQ(&j->waiters_first);
}

int shm_join_new(struct shm_ctx *c, shm_off *out)
{
    int e = shm_obj_alloc(c, SHM_OBJ_JOIN, sizeof(struct shm_join), 0, out);
    if (e)
        return e;
    struct shm_join *j = shm_at(c, *out);
    shm_obj_init(&j->obj, SHM_OBJ_JOIN, 2);
    j->value.tag = SHM_VAL_NONE;
    shm_tx_begin(c);
    shm_obj_made(c, *out);
    shm_tx_store64(c, &c->m->hand_join, *out);
    shm_tx_commit(c);
    return SHM_OK;
}

void shm_join_give(struct shm_ctx *c, struct shm_g *g, shm_off off)
{
    join_at(c, off);
    shm_tx_begin(c);
    shm_tx_store64(c, &g->obj, off);
    if (c->m->hand_join == off) /* own word */
        shm_tx_store64(c, &c->m->hand_join, 0);
    shm_tx_commit(c);
}

/* At the last unref: nobody waits (a wait holds a reference). */
void shm_join_free(struct shm_ctx *c, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    shm_join_no_deadline(c, off);
    if (unlikely(j->waiters_first))
        shm_throw("join: %#llx goes with goroutines waiting on it", (unsigned long long)off);
    shm_retry_drop(c, off); /* it never ran */
    shm_val_drop(c, &j->value);
    shm_obj_unref_word(c, &j->group); /* it never ran */
    shm_obj_end(c, off);
}

void shm_join_finish(struct shm_ctx *c, shm_off off, unsigned state, struct shm_val *v)
{
    struct shm_join *j = join_at(c, off);
    bool first;
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], off); /* before anybody is claimed; for the reaper */
    if (state == SHM_J_DIED && load_acq(&j->kill)) /* its M was killed for it; pairs with kill.c */
        state = SHM_J_KILLED;
    shm_lock(c, &j->lock);
    first = load_rlx(&j->state) == SHM_J_PENDING; /* under the lock */
    if (first) {
        shm_tx_begin(c);
        shm_val_publish(c, v);
        shm_tx_val(c, &j->value, v);
        shm_tx_store32(c, &j->state, state); /* after the value; pairs with lock-free readers */
        shm_tx_commit(c);
        FAILPOINT("join.finish.marked");
    }
    shm_sudog_drain(c, &j->lock, waiters(j), SHM_OK_VALUE);
    shm_unlock(c, &j->lock);
    shm_join_no_deadline(c, off);
    shm_group_done(c, off);
    shm_group_orphan(c, off);
    shm_doneq_put(c, off);
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], 0);
    if (!first)
        shm_val_drop(c, v);
    v->tag = SHM_VAL_NONE;
}

int shm_join_park(struct shm_ctx *c, shm_off off, shm_gref r)
{
    struct shm_join *j = join_at(c, off);
    int e = SHM_OK;
    if (load_acq(&j->state) != SHM_J_PENDING) /* pairs with shm_join_finish() */
        return e;
    shm_lock(c, &j->lock);
    if (load_rlx(&j->state) == SHM_J_PENDING) { /* under the lock */
        shm_sudog_park(c, r, SHM_OBJ_JOIN, off, waiters(j), SHM_DIR_RECV, NULL, SHM_WR_JOIN);
        e = SHM_PARKED;
    }
    shm_unlock(c, &j->lock);
    return e;
}

/* ---- cancel ---------------------------------------------------------------------------------- */

/* CANCEL (tag: cancel; the other side is shm_join_marks(), after each arming). The canceller sets
 * join->cancel, then looks whether the goroutine waits and, if so, claims that wait. The parking M
 * arms the wait, then looks at join->cancel. Both store before they load, seq_cst, so at least one
 * of them sees the other: a cancel is never lost between. Who wins the claim takes the flag with
 * it.
 *
 * WHO HAS ASKED AND THE FLAG are one word to who changes both: several may ask, and the goroutine
 * may take back, at the same time. So no transaction stores them either: what it has read may be
 * old, and its rollback would take back what another has asked for. A group asks once, whoever
 * carries it on after a death: each has a bit of the same word, ABORTED the one the goroutine is a
 * child of, SHM_ASKED_BY(depth) those whose blocks it is in. Others are counted, up to MOST. */

#define DUE 1ULL
#define ONE (1ULL << 32)
#define MOST ((SHM_ASKED_BY(0) - 1) & ~(ONE - 1))
#define ABORTED (1ULL << 63)
static_assert(offsetof(struct shm_join, asking) % 8 == 0 &&
                  offsetof(struct shm_join, asked) == offsetof(struct shm_join, cancel) + 4,
              "one word");

/* once: a bit that says who asks, or 0: it is counted. */
static void ask(struct shm_join *j, uint64_t once)
{
    uint64_t w = load_rlx(&j->asking), to;
    do {
        FAILPOINT("join.asking");
        if (w & once)
            return;
        to = (once || (w & MOST) == MOST ? w : w + ONE) | once | DUE;
    } while (!cas_seq(&j->asking, &w, to)); /* tag: cancel */
}

/* The other side, of a kill too (tag: kill, in kill.c): r was armed in its wait number epoch. j is
 * its join if it still waits there, so only who wins that claim writes to it. */
void shm_join_marks(struct shm_ctx *c, struct shm_join *j, shm_gref r, uint64_t epoch)
{
    if (load_seq(&j->cancel) == 1 && shm_wait_abort(c, r, epoch, SHM_OK_CANCELLED))
        store_seq(&j->cancel, 0); /* delivered with this wake-up */
    else if (load_seq(&j->kill) == 0 || !shm_wait_abort(c, r, epoch, SHM_OK_KILLED))
        return;
    FAILPOINT("join.marks.claimed");
    shm_ready(c, r, true);
}

void shm_join_deliver(struct shm_ctx *c, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    shm_gref r = j->g;
    uint64_t w = r ? load_seq(&shm_g(c, r)->wait) : 0; /* tag: cancel */
    if (r == 0 || load_seq(&j->cancel) == 0 || SHM_W_STATE(w) != SHM_W_ARMED ||
        shm_readgstatus(c, r) != Gwaiting ||
        !shm_wait_abort(c, r, SHM_W_EPOCH(w), SHM_OK_CANCELLED))
        return;
    store_seq(&j->cancel, 0); /* delivered with this wake-up */
    shm_ready(c, r, true);
}

bool shm_join_cancel(struct shm_ctx *c, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    if (load_acq(&j->state) != SHM_J_PENDING) /* pairs with shm_join_finish() */
        return false;
    ask(j, 0);
    shm_join_deliver(c, off);
    return true;
}

void shm_join_abort(struct shm_ctx *c, shm_off off)
{
    ask(join_at(c, off), ABORTED);
    shm_join_deliver(c, off);
}

void shm_join_ask(struct shm_ctx *c, shm_off off, uint64_t once)
{
    ask(join_at(c, off), once);
}

uint32_t shm_join_uncancel(struct shm_ctx *c, shm_off off, uint64_t once)
{
    struct shm_join *j = join_at(c, off);
    uint64_t w = load_rlx(&j->asking), to;
    do {
        FAILPOINT("join.unasking");
        to = once ? w & ~once : w & MOST ? w - ONE : w;
        if (to == w)
            break;
        to = to < ONE ? 0 : to; /* nobody else has asked: none is due */
    } while (!cas_seq(&j->asking, &w, to)); /* tag: cancel */
    return (uint32_t)(to >> 32);
}
