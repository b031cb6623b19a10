/* retry.c — goroutines that go on after the death of their M: spawn(..., retries=n).
 *
 * Any parked goroutine outlives any M. One that RUNS ends with its M, unless there is a point from
 * which it can be run once more. This file keeps that point: the checkpoint, the goroutine's last
 * await and how it ended, in a struct shm_retry that its join names.
 *
 * EXACTLY ONCE. What an await did (a message taken, a lock got) and the continuation behind it
 * become true in one transaction. So no operation of such a goroutine is done inside its coroutine
 * (the binding's `try`): it parks first, always, and the operation is carried out on the
 * scheduler's stack, its new continuation stored. Then either
 *   done at once   the transaction of the operation itself moves the checkpoint: shm_retry_done(),
 *                  in chan.c, sema.c, mutex.c, between the effect and the commit; or
 *   it waits       from the arming on it is a parked goroutine like any other.
 * An operation without effect (a join that has ended, a closed channel) takes a checkpoint after
 * it.
 *
 * INV one-truth. Where a goroutine with retries stands is said by exactly one of
 *   the checkpoint  while it runs, from its resumption (shm_retry_take) on; and while it is live at
 *                   home (to_thread, a plain function that waits: no await of its own is committed)
 *   g               while it waits, is runnable, or was made running and not yet resumed
 * and the switch is one word. The checkpoint notes the wait epoch it was taken in; arming moves the
 * epoch, so a park takes the truth over to g by its last store, and nothing has to be undone in a G
 * that others may have already. Where a G becomes runnable without a wait, or gives something up
 * with its wait (Cond, in that transaction), shm_retry_leave() says so. The other way, and from one
 * checkpoint to the next, it is a transaction; and the blocks change hands in it (heap.c).
 *
 * While it runs, what g says is only a view: resume() consumes a copy of the value, with a
 * reference of its own on the wait's object. The original stays until the next checkpoint.
 *
 * THE REAPER finds it running on a dead M and pending, and
 *   - truth in the checkpoint: drops what g had begun, gives the checkpoint to g, counts one re-run
 *     less; none left: it ends like another;
 *   - truth in g: it was killed before it was resumed, or while it went back to wait. Its sudog
 *     linked: the wait is made complete before the locks go (reap.c), since what it gave up for it
 *     is given up already. Else it comes up once more as it is.
 * A goroutine that is to be killed is not run again.
 *
 * Rejected: to keep the checkpoint in g, and what the next operation writes apart: each primitive's
 * park would change. To log what awaits gave and replay it into the old continuation: what Python
 * did in between is not repeatable. */
#include "internal.h"

static_assert(offsetof(struct shm_retry, cont_len) % 8 == 0 &&
                  offsetof(struct shm_retry, waitkind) == offsetof(struct shm_retry, cont_len) + 7,
              "cont_len to waitkind are one word");
static_assert(offsetof(struct shm_g, waitkind) == offsetof(struct shm_g, home_m1) + 3 &&
                  offsetof(struct shm_g, home_m1) % 4 == 0,
              "waitkind ends a word");

#define NO_EPOCH UINT64_MAX
#define CONT_FLAGS (SHM_GF_STARTED | SHM_GF_CONTEXT)

static struct shm_join *join_of(const struct shm_ctx *c, const struct shm_g *g)
{
    return shm_at(c, g->obj);
}

struct shm_retry *shm_retry_of(const struct shm_ctx *c, const struct shm_g *g)
{
    shm_off off = g->retries && g->obj ? join_of(c, g)->retry : 0;
    return off ? shm_at(c, off) : NULL;
}

/* Of a G that has retries. */
static struct shm_retry *checkpoint(const struct shm_ctx *c, const struct shm_g *g)
{
    struct shm_retry *y = shm_retry_of(c, g);
    if (unlikely(y == NULL))
        shm_throw("retry: goroutine %llu has no retries", (unsigned long long)g->goid);
    return y;
}

static uint64_t epoch_of(const struct shm_g *g)
{
    return SHM_W_EPOCH(load_rlx(&g->wait)); /* the owner of the G asks, or its reaper */
}

bool shm_retry_live(const struct shm_ctx *c, const struct shm_g *g)
{
    const struct shm_retry *y = shm_retry_of(c, g);
    return y && y->cont_off && (g->home_m1 || load_acq(&y->epoch) == epoch_of(g));
}

int shm_retry_new(struct shm_ctx *c, shm_off join, uint32_t n)
{
    struct shm_join *j = shm_at(c, join);
    shm_off off;
    int e = shm_alloc(c, sizeof(struct shm_retry), &off);
    if (e)
        return e;
    struct shm_retry *y = shm_at(c, off);
    memset(y, 0, sizeof *y);
    y->left = n;
    store_rlx(&y->epoch, NO_EPOCH); /* nobody else knows it yet */
    y->value.tag = SHM_VAL_NONE;
    shm_tx_begin(c);
    shm_publish(c, off);
    shm_tx_store64(c, &j->retry, off);
    shm_tx_commit(c);
    return SHM_OK;
}

/* ---- from g to the checkpoint ---------------------------------------------------------------- */

/* In a tx. What stood in y is this M's from the commit on, who frees it by let_go(). */
static void put_aside(struct shm_ctx *c, struct shm_retry *y, struct shm_retry *old)
{
    *old = *y;
    if (y->cont_off)
        shm_adopt(c, y->cont_off);
    shm_val_adopt(c, &y->value);
    if (y->waitkind)
        shm_hand(c, y->waitobj);
}

/* In a tx. The continuation that g has, and this outcome, are the checkpoint. */
static void move(struct shm_ctx *c, struct shm_g *g, struct shm_retry *y, uint8_t ok,
                 const struct shm_val *v, uint8_t waitkind, shm_off waitobj)
{
    struct shm_retry to = {.cont_len = g->cont_len,
                           .flags = g->flags & CONT_FLAGS,
                           .op = g->op,
                           .ok = ok,
                           .waitkind = waitkind};
    uint64_t word;
    memcpy(&word, &to.cont_len, sizeof word);
    put_aside(c, y, &c->retry_old);
    shm_tx_store64(c, &y->cont_off, g->cont_off);
    shm_tx_store64(c, &y->cont_len, word);
    shm_tx_store64(c, &y->waitobj, waitobj);
    shm_tx_val(c, &y->value, v);
    shm_tx_store64(c, &y->epoch, epoch_of(g));
    shm_tx_store64(c, &g->cont_off, 0);
}

/* Does a resume() look at what was waited on? Else the wait is over: nobody is to compete for its
 * lock a second time. */
static bool looked_at(uint8_t waitkind)
{
    return waitkind == SHM_OBJ_JOIN || waitkind == SHM_OBJ_GROUP;
}

/* In a tx. Whatever the wait or the operation left in g goes with it. */
static void move_all(struct shm_ctx *c, struct shm_g *g, struct shm_retry *y)
{
    if (g->value.tag == SHM_VAL_HEAP && shm_blk(c, g->value.h.off)->state != 2)
        shm_publish(c, g->value.h.off);
    bool seen = g->waitkind == 0 || looked_at(g->waitkind);
    move(c, g, y, g->ok, &g->value, seen ? g->waitkind : 0, seen ? g->waitobj : 0);
    shm_tx_val(c, &g->value, &(struct shm_val){.tag = SHM_VAL_NONE});
    if (seen || g->waitkind >= SHM_WAIT_SELECT)
        shm_tx_byte(c, &g->home_m1, 3, 0); /* waitkind */
}

static void let_go(struct shm_ctx *c, struct shm_retry old)
{
    if (old.cont_off == 0)
        return;
    if (old.waitkind) /* first: it is in the hand */
        shm_obj_unref(c, old.waitobj);
    shm_cont_drop(c, old.cont_off, old.cont_len);
    shm_val_drop(c, &old.value);
}

void shm_retry_settle(struct shm_ctx *c)
{
    struct shm_retry old = c->retry_old;
    c->retry_old.cont_off = 0; /* first: letting go may end others with retries */
    let_go(c, old);
}

void shm_retry_take(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT) /* leaves its tag in waitobj */
        shm_select_done(c, r, &tag);
    FAILPOINT("retry.take");
    shm_tx_begin(c);
    move_all(c, g, checkpoint(c, g));
    shm_tx_commit(c);
    FAILPOINT("retry.taken");
    shm_retry_settle(c);
    if (g->waitkind)
        shm_wait_ends(c, g);
}

bool shm_retry_done_(struct shm_ctx *c, uint8_t ok, const struct shm_val *v, uint64_t note)
{
    shm_gref r = c->retrying;
    struct shm_g *g = shm_g(c, r);
    c->retrying = 0;
    if (shm_readgstatus(c, r) == Gwaiting) /* claimed by this M's dead: shm_select_revive() */
        shm_select_give(c, g, (uint32_t)note, ok, v);
    else if (shm_retry_live(c, g))
        move(c, g, checkpoint(c, g), ok, v ? v : &(struct shm_val){.tag = SHM_VAL_NONE}, 0, note);
    else /* woken, and not yet resumed: it stands in g */
        shm_tx_ok(c, g, ok);
    return true;
}

void shm_retry_cancelled(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    shm_tx_begin(c);
    shm_tx_store32(c, &join_of(c, g)->cancel, 0);
    move(c, g, checkpoint(c, g), SHM_OK_CANCELLED, &(struct shm_val){.tag = SHM_VAL_NONE}, 0, 0);
    shm_tx_commit(c);
    FAILPOINT("retry.cancelled");
    shm_retry_settle(c);
}

int shm_retry_view(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    const struct shm_retry *y = checkpoint(c, g);
    struct shm_val v;
    int e = shm_val_copy(c, &v, &y->value);
    if (e)
        return e;
    g->value = v;
    g->ok = y->ok;
    g->waitobj = y->waitobj;
    if (y->waitkind)
        shm_wait_ended(c, g, y->waitkind, y->waitobj);
    return SHM_OK;
}

/* ---- and back -------------------------------------------------------------------------------- */

void shm_retry_leave_(struct shm_ctx *c, shm_gref r)
{
    struct shm_retry *y = shm_retry_of(c, shm_g(c, r));
    if (y == NULL)
        return;
    FAILPOINT("retry.leave");
    if (c->in_tx)
        shm_tx_store64(c, &y->epoch, NO_EPOCH);
    else
        store_rel(&y->epoch, NO_EPOCH); /* after all that g says; for the reaper */
}

void shm_retry_stay(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_retry *y = shm_retry_of(c, g);
    if (y)
        store_rel(&y->epoch, epoch_of(g)); /* for the reaper */
}

void shm_retry_give(struct shm_ctx *c, shm_gref r, bool died)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_retry *y = checkpoint(c, g);
    /* Plain: it is the checkpoint that is believed until the commit. */
    g->cont_len = y->cont_len;
    g->flags = (uint8_t)((g->flags & ~CONT_FLAGS) | y->flags);
    g->op = y->op;
    g->ok = y->ok;
    FAILPOINT("retry.give");
    shm_tx_begin(c);
    shm_tx_store64(c, &g->cont_off, y->cont_off);
    shm_tx_val(c, &g->value, &y->value);
    shm_tx_store64(c, &g->waitobj, y->waitobj);
    shm_tx_byte(c, &g->home_m1, 3, y->waitkind);
    shm_tx_store64(c, &y->cont_off, 0);
    shm_tx_val(c, &y->value, &(struct shm_val){.tag = SHM_VAL_NONE});
    shm_tx_byte(c, &y->flags, 3, 0); /* waitkind */
    shm_tx_store64(c, &y->epoch, NO_EPOCH);
    if (died)
        shm_tx_store32(c, &y->left, y->left - 1);
    shm_tx_commit(c);
    FAILPOINT("retry.given");
}

/* ---- the end --------------------------------------------------------------------------------- */

void shm_retry_drop(struct shm_ctx *c, shm_off join)
{
    struct shm_join *j = shm_at(c, join);
    shm_off off = j->retry;
    struct shm_retry old;
    if (off == 0)
        return;
    shm_tx_begin(c);
    put_aside(c, shm_at(c, off), &old);
    shm_adopt(c, off);
    shm_tx_store64(c, &j->retry, 0);
    shm_tx_commit(c);
    FAILPOINT("retry.dropped");
    shm_free(c, off);
    let_go(c, old);
}
