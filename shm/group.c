/* group.c — structured concurrency: a block that ends when all goroutines started in it have ended.
 *
 * asyncio.TaskGroup's rules, kept where every M can reach them, so that a child may spawn into its
 * group from wherever it runs, and a child that is killed or dies with its M counts like one that
 * fails. Rejected: a coordinator goroutine with a channel of reports (a killed child reports
 * nothing), and a list of handles in the parent's frame (a parent with a thousand children would be
 * heavy).
 *
 *   child starts    shm_group_add(): into kids, pending + 1. With a limit it is let in there, or
 *                   later, in the order of the spawns; `next` is the first in kids that is not. On
 *                   its first turn it asks shm_group_admit(), and parks if it is not yet let in.
 *   child ends      shm_join_finish() calls shm_group_done(): out of kids, its place to `next`; a
 *                   failure into errs. The first failure aborts. The last end wakes the parent.
 *   abort           every child is cancelled, one by one: the lock is not held while a wait is
 *                   ended, for that takes a channel's lock. A child that fails then is one more
 *                   error. While the parent is still in the block's body, it is cancelled too.
 *   parent ends     without leaving the block (killed, its M died): shm_group_orphan() aborts.
 *
 * INV told-once: join->group is set until the group has counted the end of that child; both change
 * in one transaction. So a reaper may call shm_group_done() again. It is set before the group knows
 * the child: of one whose maker died in between (not join->counted) no end is counted. An M that
 * dies in an abort leaves `aborting` set and the child it had in hand in `cancelling`; it names the
 * group in inflight[SHM_IF_DRAIN], and shm_group_drain() goes on. */
#include "internal.h"

static struct shm_group *group_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_group *gr = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&gr->obj) != SHM_OBJ_GROUP))
        shm_throw("group: %#llx is no group", (unsigned long long)off);
    return gr;
}

static struct shm_join *join_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

/* ---- the lists, in a tx ---------------------------------------------------------------------- */

enum { KIDS = 1, ERRS = 2 };

static shm_off *list(struct shm_group *gr, uint32_t which)
{
    return which == KIDS ? &gr->kids_first : &gr->errs_first; /* first, last */
}

static void put(struct shm_ctx *c, struct shm_group *gr, uint32_t which, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    shm_off *l = list(gr, which);
    shm_tx_store64(c, &j->gnext, 0);
    shm_tx_store64(c, &j->gprev, l[1]);
    shm_tx_store32(c, &j->listed, which);
    if (l[1])
        shm_tx_store64(c, &join_at(c, l[1])->gnext, off);
    else
        shm_tx_store64(c, &l[0], off);
    shm_tx_store64(c, &l[1], off);
}

static void take(struct shm_ctx *c, struct shm_group *gr, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    shm_off *l = list(gr, j->listed);
    if (j->gprev)
        shm_tx_store64(c, &join_at(c, j->gprev)->gnext, j->gnext);
    else
        shm_tx_store64(c, &l[0], j->gnext);
    if (j->gnext)
        shm_tx_store64(c, &join_at(c, j->gnext)->gprev, j->gprev);
    else
        shm_tx_store64(c, &l[1], j->gprev);
    shm_tx_store32(c, &j->listed, 0);
    if (gr->next == off)
        shm_tx_store64(c, &gr->next, j->gnext);
}

static void let_in(struct shm_ctx *c, struct shm_group *gr, struct shm_join *j)
{
    shm_tx_store32(c, &gr->running, gr->running + 1);
    shm_tx_store32(c, &j->admitted, 1);
}

/* ---- life ------------------------------------------------------------------------------------ */

int shm_group_new(struct shm_ctx *c, uint32_t limit, shm_off *out)
{
    int e = shm_obj_alloc(c, SHM_OBJ_GROUP, sizeof(struct shm_group), 0, out);
    if (e)
        return e;
    ((struct shm_group *)shm_at(c, *out))->limit = limit;
    shm_obj_born(c, *out);
    return SHM_OK;
}

/* At the last unref: every child has ended (it holds a reference),
 * nobody is in the block (as well). */
void shm_group_free(struct shm_ctx *c, shm_off off)
{
    shm_off j;
    if (unlikely(load_rlx(&group_at(c, off)->pending)))
        shm_throw("group: %#llx goes with children that run", (unsigned long long)off);
    while (shm_group_error(c, off, &j))
        shm_obj_unref(c, j);
    shm_obj_end(c, off);
}

int shm_group_enter(struct shm_ctx *c, shm_off off, shm_off parent)
{
    struct shm_group *gr = group_at(c, off);
    struct shm_join *j = join_at(c, parent);
    int e = SHM_EAGAIN;
    shm_lock(c, &gr->lock);
    if (load_rlx(&gr->state) == SHM_GR_NEW) { /* under the lock */
        shm_obj_ref_hand(c, parent);
        shm_obj_ref(c, off);
        shm_tx_begin(c);
        shm_hand_given(c, parent);
        shm_tx_store64(c, &gr->parent, parent);
        shm_tx_store64(c, &gr->outer, j->owns);
        shm_tx_store32(c, &gr->depth, j->owns ? group_at(c, j->owns)->depth + 1 : 0);
        shm_tx_store32(c, &gr->asked_before, load_acq(&j->asked)); /* pairs with cancellers */
        shm_tx_store64(c, &j->owns, off);
        shm_tx_store32(c, &gr->state, SHM_GR_OPEN);
        shm_tx_commit(c);
        e = SHM_OK;
    }
    shm_unlock(c, &gr->lock);
    return e;
}

/* ---- children -------------------------------------------------------------------------------- */

int shm_group_add(struct shm_ctx *c, shm_off off, shm_off join)
{
    struct shm_group *gr = group_at(c, off);
    int e = SHM_ECLOSED;
    shm_obj_ref_hand(c, join);
    shm_lock(c, &gr->lock);
    uint32_t state = load_rlx(&gr->state), pending = load_rlx(&gr->pending); /* under the lock */
    if (!load_rlx(&gr->aborting) &&
        (state == SHM_GR_OPEN || (state == SHM_GR_EXITING && pending))) {
        shm_tx_begin(c);
        put(c, gr, KIDS, join);
        shm_hand_given(c, join);
        if (gr->limit && gr->running < gr->limit)
            let_in(c, gr, join_at(c, join));
        else if (gr->limit && gr->next == 0)
            shm_tx_store64(c, &gr->next, join);
        shm_tx_store32(c, &gr->pending, pending + 1);
        shm_tx_store32(c, &join_at(c, join)->counted, 1);
        shm_tx_commit(c);
        e = SHM_OK;
    }
    shm_unlock(c, &gr->lock);
    if (e)
        shm_obj_unref(c, join);
    return e;
}

void shm_join_group(struct shm_ctx *c, shm_off join, shm_off off)
{
    shm_obj_ref_as(c, off, &join_at(c, join)->group, off); /* nobody else knows the join yet */
}

int shm_group_admit(struct shm_ctx *c, shm_off join, shm_gref r)
{
    struct shm_join *j = join_at(c, join);
    shm_off off = j->group;
    struct shm_group *gr = off ? group_at(c, off) : NULL;
    int e = SHM_OK;
    if (gr == NULL || gr->limit == 0 ||
        load_acq(&j->admitted)) /* who let it in did so before it readied it */
        return e;
    shm_obj_ref_hand(c, off);
    shm_lock(c, &gr->lock);
    if (!load_rlx(&j->admitted)) { /* under the lock */
        shm_sudog_park(c, r, SHM_OBJ_GROUP, off, SHM_WAITQ(&gr->queue_first), SHM_DIR_SEND, NULL,
                       SHM_WR_GROUP_LIMIT);
        e = SHM_PARKED;
    }
    shm_unlock(c, &gr->lock);
    if (e == SHM_OK)
        shm_obj_unref(c, off);
    return e;
}

static bool failed(struct shm_join *j)
{
    uint32_t state = load_acq(&j->state); /* pairs with shm_join_finish() */
    return state == SHM_J_ERROR || state == SHM_J_KILLED || state == SHM_J_DIED;
}

/* The lock held. The next child is let in, if there is a place for it, and claimed, if it waits for
 * that: then the caller readies it. 0: nobody to be readied. In an abort nobody is let in: who
 * still waits is cancelled where he waits, and never begins. */
static shm_gref admit_next(struct shm_ctx *c, struct shm_group *gr)
{
    struct shm_join *j = gr->next ? join_at(c, gr->next) : NULL;
    if (j == NULL || gr->running >= gr->limit || load_rlx(&gr->aborting)) /* under the lock */
        return 0;
    struct shm_sudog *s = &shm_g(c, j->g)->sudog; /* its own: it has not ended */
    struct shm_waitq *q = SHM_WAITQ(&gr->queue_first);
    bool waits = s->linked == SHM_DIR_SEND && s->g == j->g;
    bool mine = waits && shm_claim_named(c, s->g, s->epoch, SHM_IF_READY);
    shm_tx_begin(c);
    shm_tx_store64(c, &gr->next, j->gnext);
    let_in(c, gr, j);
    if (mine)
        shm_sudog_win(c, q, s, SHM_OK_VALUE);
    shm_tx_commit(c);
    return mine ? j->g : 0;
}

/* The child an abort has in hand, or the next one, with a reference; 0: all are cancelled. */
static shm_off cancel_next(struct shm_ctx *c, struct shm_group *gr)
{
    shm_lock(c, &gr->lock);
    shm_off off = gr->cancelling;
    if (off == 0 && (off = gr->kids_first) != 0) {
        shm_tx_begin(c);
        take(c, gr, off);
        shm_tx_store64(c, &gr->cancelling, off);
        shm_tx_commit(c);
    }
    if (off)
        shm_obj_ref_hand(c, off);
    shm_unlock(c, &gr->lock);
    return off;
}

static void cancelled(struct shm_ctx *c, struct shm_group *gr, shm_off off)
{
    shm_lock(c, &gr->lock);
    if (gr->cancelling == off)
        shm_obj_unref_word(c, &gr->cancelling); /* the list's; not the last, for there is ours */
    shm_unlock(c, &gr->lock);
    shm_obj_unref(c, off);
}

/* An abort cancels the parent if it is in the body, once. */
static void cancel_parent(struct shm_ctx *c, struct shm_group *gr)
{
    shm_lock(c, &gr->lock);
    shm_off parent = gr->asked_parent ? gr->parent : 0;
    if (gr->asked_parent == 1) {
        shm_join_ask(c, parent, SHM_ASKED_BY(gr->depth));
        FAILPOINT("group.parent.asked");
        shm_tx_begin(c);
        shm_tx_store32(c, &gr->asked_parent, 2);
        shm_tx_commit(c);
    }
    if (parent)
        shm_obj_ref_hand(c, parent);
    shm_unlock(c, &gr->lock);
    if (parent == 0)
        return;
    FAILPOINT("group.parent.cancel");
    shm_join_deliver(c, parent);
    shm_obj_unref(c, parent);
}

/* Goes on with what an end or an abort has begun; by several at once, and by a reaper. */
void shm_group_drain(struct shm_ctx *c, shm_off off)
{
    struct shm_group *gr = group_at(c, off);
    shm_off child;
    cancel_parent(c, gr);
    while (load_acq(&gr->aborting) && (child = cancel_next(c, gr)) != 0) { /* pairs with its tx */
        FAILPOINT("group.abort.taken");
        shm_join_abort(c, child);
        cancelled(c, gr, child);
    }
    shm_lock(c, &gr->lock);
    while (gr->next && gr->running < gr->limit && !load_rlx(&gr->aborting)) { /* under the lock */
        /* Who made room for them has died. */
        shm_gref next = admit_next(c, gr);
        shm_unlock(c, &gr->lock);
        if (next)
            shm_ready(c, next, false);
        shm_lock(c, &gr->lock);
    }
    if (load_rlx(&gr->pending) == 0) /* under the lock */
        shm_sudog_drain(c, &gr->lock, SHM_WAITQ(&gr->waiters_first), SHM_OK_VALUE);
    shm_unlock(c, &gr->lock);
}

/* The lock held, in a tx. */
static void abort_locked(struct shm_ctx *c, struct shm_group *gr)
{
    shm_tx_store32(c, &gr->aborting, 1);
    if (load_rlx(&gr->state) == SHM_GR_OPEN && gr->parent) /* under the lock */
        shm_tx_store32(c, &gr->asked_parent, 1);
}

void shm_group_done(struct shm_ctx *c, shm_off join)
{
    struct shm_join *j = join_at(c, join);
    shm_off off = j->group;
    if (off == 0)
        return;
    struct shm_group *gr = group_at(c, off);
    bool bad, kid, last;
    shm_obj_ref_hand(c, off); /* as long as j's may go */
    shm_lock(c, &gr->lock);
    if (j->group == 0) { /* told by another, INV told-once */
        shm_unlock(c, &gr->lock);
        shm_obj_unref(c, off);
        return;
    }
    shm_obj_unref(c, off);
    /* From the children to the failures, or out of them: done again it is found done. */
    kid = j->listed == KIDS;
    bad = failed(j) && j->counted;
    if (bad && j->listed == 0)
        shm_obj_ref_hand(c, join);
    shm_tx_begin(c);
    if (kid)
        take(c, gr, join);
    if (bad && j->listed != ERRS)
        put(c, gr, ERRS, join);
    if (bad)
        shm_hand_given(c, join);
    else if (kid)
        shm_hand(c, join);
    shm_tx_commit(c);
    if (kid && !bad)
        shm_obj_unref(c, join);
    shm_tx_begin(c);
    shm_tx_store32(c, &gr->pending, load_rlx(&gr->pending) - j->counted); /* under the lock */
    if (load_rlx(&j->admitted))                                           /* under the lock */
        shm_tx_store32(c, &gr->running, gr->running - 1);
    shm_tx_store64(c, &j->group, 0);
    shm_tx_store64(c, &c->m->hand_group, off);
    if (bad && !load_rlx(&gr->aborting))
        abort_locked(c, gr);
    /* What is left is the group's; for the reaper. Own word. */
    uint64_t drained = load_rlx(&c->m->inflight[SHM_IF_DRAIN]);
    shm_tx_store64(c, &c->m->inflight[SHM_IF_DRAIN], off);
    shm_tx_commit(c);
    FAILPOINT("group.done.told");
    shm_gref next = admit_next(c, gr);
    last = load_rlx(&gr->pending) == 0;
    shm_unlock(c, &gr->lock);
    if (next)
        shm_ready(c, next, false);
    if (last || bad)
        shm_group_drain(c, off);
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], drained);
    shm_obj_unref_word(c, &c->m->hand_group);
}

void shm_group_abort(struct shm_ctx *c, shm_off off)
{
    struct shm_group *gr = group_at(c, off);
    shm_lock(c, &gr->lock);
    shm_tx_begin(c);
    shm_tx_store32(c, &gr->aborting, 1);
    shm_tx_commit(c);
    shm_unlock(c, &gr->lock);
    shm_group_drain(c, off);
}

/* ---- the parent ------------------------------------------------------------------------------ */

bool shm_group_exiting(struct shm_ctx *c, shm_off off)
{
    struct shm_group *gr = group_at(c, off);
    shm_lock(c, &gr->lock);
    uint64_t once = SHM_ASKED_BY(gr->depth);
    uint32_t asked = gr->asked_parent, left = 0;
    bool take_back = once || asked == 2;
    shm_tx_begin(c);
    if (load_rlx(&gr->state) == SHM_GR_OPEN) /* under the lock */
        shm_tx_store32(c, &gr->state, SHM_GR_EXITING);
    shm_tx_store32(c, &gr->asked_parent, 0);
    shm_tx_commit(c);
    FAILPOINT("group.exiting");
    /* Under the lock: nobody asks any more. Once more if who did it has died in between. */
    if (gr->parent)
        left = take_back ? shm_join_uncancel(c, gr->parent, once)
                         : load_acq(&join_at(c, gr->parent)->asked); /* pairs with cancellers */
    shm_unlock(c, &gr->lock);
    return asked && left <= gr->asked_before;
}

int shm_group_park(struct shm_ctx *c, shm_off off, shm_gref r)
{
    struct shm_group *gr = group_at(c, off);
    int e = SHM_OK;
    shm_lock(c, &gr->lock);
    if (load_rlx(&gr->pending)) { /* under the lock */
        shm_sudog_park(c, r, SHM_OBJ_GROUP, off, SHM_WAITQ(&gr->waiters_first), SHM_DIR_RECV, NULL,
                       SHM_WR_GROUP);
        e = SHM_PARKED;
    }
    shm_unlock(c, &gr->lock);
    return e;
}

bool shm_group_error(struct shm_ctx *c, shm_off off, shm_off *join)
{
    struct shm_group *gr = group_at(c, off);
    shm_lock(c, &gr->lock);
    *join = gr->errs_first;
    if (*join) {
        shm_tx_begin(c);
        take(c, gr, *join);
        shm_hand(c, *join); /* the list's */
        shm_tx_commit(c);
    }
    shm_unlock(c, &gr->lock);
    return *join != 0;
}

/* The block's innermost group is left: its parent and it know each other no more. */
void shm_group_finish(struct shm_ctx *c, shm_off off)
{
    struct shm_group *gr = group_at(c, off);
    shm_lock(c, &gr->lock);
    shm_off parent = gr->parent;
    shm_off *link = parent ? &join_at(c, parent)->owns : NULL;
    while (link && *link && *link != off) /* blocks that were not left in their order */
        link = &group_at(c, *link)->outer;
    bool owned = link && *link == off;
    shm_tx_begin(c);
    if (owned)
        shm_tx_store64(c, link, gr->outer);
    shm_tx_store64(c, &gr->parent, 0);
    shm_tx_store32(c, &gr->state, SHM_GR_FINISHED);
    shm_tx_commit(c);
    shm_unlock(c, &gr->lock);
    if (owned)
        shm_obj_unref(c, off);
    if (parent)
        shm_obj_unref(c, parent);
}

void shm_group_orphan(struct shm_ctx *c, shm_off parent)
{
    struct shm_join *j = join_at(c, parent);
    shm_off off;
    while ((off = j->owns) != 0) {
        shm_obj_ref(c, off);
        shm_group_exiting(c, off); /* nobody is there to be cancelled */
        shm_group_abort(c, off);
        shm_group_finish(c, off);
        shm_obj_unref(c, off);
    }
}
