/* context.c — contexts: Go's context package, the tree in the segment.
 *
 * A context holds a reference on its parent, so what it needs of those above lives as long as it
 * does. Parents know their children without holding them: a child whose last handle goes takes
 * itself out. Of values there is no state: they look at the nearest context above that has one
 * (`up`).
 *
 * ONE LOCK A TREE, that of its root (the topmost one below the background). Go locks each context
 * and goes down with all locks on the way held. One lock lets a cancel go from the leaves up:
 *
 *   INV children-first  at any moment, for everybody, who is not live has no live child
 *
 * which is kept by a death half way, too: the reaper goes on where the dead M was.
 *
 * THE CANCEL of x, its tree locked, x named in inflight[SHM_IF_DRAIN]
 *   1 cause and `want` are written, one transaction; a second cancel finds `want` and does nothing
 *   2 for each context from the leaves up to x, one after another
 *       a in the locks of its heap and of its channel: out of the heap, channel closed (one
 *         transaction), whose cause it is, then its state: last and released, never taken back
 *       b who waits on the channel is woken (sudog.c)
 *       c out of its parent's list (one transaction). So far it can be found, and a and b be
 *       repeated.
 * A STATE IS READ WITHOUT THE LOCK: it is stored once, after all that belongs to it, and before the
 * channel's lock is given back. So who has seen the channel closed (receivers look at that under
 * its lock) sees the state, and who sees the state finds the channel closed.
 *
 * A DEADLINE is a node in a timer heap. That lock comes after a tree's, so what is due is carried
 * out after it was given back: `firing` and the name in inflight are set in the transaction that
 * takes the node out, and hold the object: who drops the last handle meanwhile leaves it to who
 * fires (`dead`). Rejected: a reference for the time. The count is no word of a transaction, and a
 * death would leak it.
 *
 * THE CHANNEL is made when somebody asks for it, and goes when nobody has it any more: the next who
 * asks gets another. It holds its context: who waits for a context's end, and knows nothing else of
 * it, is told when the deadline comes. (Go's timer holds the context; here what nobody can reach
 * has no timer.) The context knows it without holding it: a look takes a reference if there still
 * is one, under the tree's lock, which who frees the channel takes first. */
#include "internal.h"

static struct shm_context *ctx_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_context *x = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&x->obj) != SHM_OBJ_CONTEXT))
        shm_throw("context: %#llx is no context", (unsigned long long)off);
    return x;
}

static struct shm_context *of_node(struct shm_tnode *n)
{
    return (struct shm_context *)(void *)((uint8_t *)n - offsetof(struct shm_context, node));
}

static shm_lockword *tree(const struct shm_ctx *c, const struct shm_context *x)
{
    return &ctx_at(c, x->root)->lock;
}

static struct shm_p *p_of(const struct shm_ctx *c, const struct shm_context *x)
{
    return &c->ptab[x->node.pi];
}

/* Who has a state: itself, or for values one above; NULL: the background. */
static struct shm_context *owner(const struct shm_ctx *c, struct shm_context *x)
{
    return !x->isvalue ? x : x->up ? ctx_at(c, x->up) : NULL;
}

/* ---- the tree, locked ------------------------------------------------------------------------ */

static void link_child(struct shm_ctx *c, struct shm_context *up, struct shm_context *x)
{
    shm_off off = shm_offof(c, x);
    x->next = up->first; /* x is not yet reachable */
    shm_tx_begin(c);
    if (up->first)
        shm_tx_store64(c, &ctx_at(c, up->first)->prev, off);
    shm_tx_store64(c, &up->first, off);
    shm_tx_commit(c);
}

/* Done again, it changes nothing. */
static void unlink_child(struct shm_ctx *c, struct shm_context *x)
{
    struct shm_context *up = x->up ? ctx_at(c, x->up) : NULL;
    if (up == NULL || (x->prev == 0 && up->first != shm_offof(c, x)))
        return;
    shm_tx_begin(c);
    if (x->prev)
        shm_tx_store64(c, &ctx_at(c, x->prev)->next, x->next);
    else
        shm_tx_store64(c, &up->first, x->next);
    if (x->next)
        shm_tx_store64(c, &ctx_at(c, x->next)->prev, x->prev);
    shm_tx_store64(c, &x->next, 0);
    shm_tx_store64(c, &x->prev, 0);
    shm_tx_commit(c);
}

/* ---- make and free --------------------------------------------------------------------------- */

static int make(struct shm_ctx *c, shm_off parent, shm_off *out)
{
    int e = shm_alloc(c, sizeof(struct shm_context), out);
    if (e)
        return e;
    struct shm_context *x = shm_at(c, *out), *above = parent ? ctx_at(c, parent) : NULL;
    memset(x, 0, sizeof *x);
    shm_obj_init(&x->obj, SHM_OBJ_CONTEXT, 1);
    x->deadline_ns = above ? above->deadline_ns : UINT64_MAX;
    x->cause.tag = x->key.tag = x->value.tag = SHM_VAL_NONE;
    x->node.pi = shm_timers_p(c)->index;
    struct shm_context *up = above ? owner(c, above) : NULL;
    if (up)
        x->up = shm_offof(c, up);
    x->root = up ? up->root : *out;
    return SHM_OK;
}

static void publish(struct shm_ctx *c, struct shm_context *x, shm_off parent)
{
    if (parent)
        shm_obj_ref_hand(c, parent);
    x->parent = parent; /* from when it is not in the hand any more */
    shm_tx_begin(c);
    shm_obj_made(c, shm_offof(c, x));
    shm_tx_commit(c);
}

/* The tree locked, x not yet reachable: as its parent is. */
static void born_cancelled(struct shm_ctx *c, struct shm_context *x, struct shm_context *up)
{
    unsigned state = load_rlx(&up->state); /* under the lock */
    x->why = state ? up->why : shm_offof(c, up);
    x->want = state ? state : up->want;
    store_rel(&x->state, x->want); /* after why; pairs with shm_context_state() */
}

int shm_context_new(struct shm_ctx *c, shm_off parent, uint64_t deadline_ns, shm_off *out)
{
    int e = make(c, parent, out);
    if (e)
        return e;
    struct shm_context *x = shm_at(c, *out), *up = x->up ? ctx_at(c, x->up) : NULL;
    bool own = deadline_ns < x->deadline_ns, past = own && deadline_ns <= shm_now_ns();
    publish(c, x, parent);
    if (own) {
        x->deadline_ns = deadline_ns;
        x->node.kind =
            past ? 0 : SHM_TN_CONTEXT; /* from here on its heap's lock is needed for it */
    }
    if (up) {
        shm_lock(c, tree(c, up));
        if (up->want || load_rlx(&up->state)) /* under the lock */
            born_cancelled(c, x, up);
        else
            link_child(c, up, x);
        FAILPOINT("context.new.linked");
        shm_unlock(c, tree(c, up));
    }
    if (past)
        shm_context_cancel(c, *out, SHM_CTX_DEADLINE, NULL);
    if (x->node.kind == 0)
        return SHM_OK;
    struct shm_p *p = p_of(c, x);
    if ((e = shm_timers_lock(c, p)) != SHM_OK) {
        shm_obj_unref(c, *out);
        return e;
    }
    if (load_rlx(&x->state) == 0) { /* who cancels stores it under this lock too */
        shm_tx_begin(c);
        shm_timers_set(c, p, &x->node, deadline_ns);
        shm_tx_commit(c);
    }
    shm_unlock(c, &p->timers_lock);
    shm_timers_tell(c, p, deadline_ns);
    return SHM_OK;
}

int shm_context_value(struct shm_ctx *c, shm_off parent, const struct shm_val *key,
                      const struct shm_val *value, shm_off *out)
{
    int e = make(c, parent, out);
    if (e)
        return e;
    struct shm_context *x = shm_at(c, *out);
    x->isvalue = 1;
    x->key = *key;
    x->value = *value;
    publish(c, x, parent);
    shm_tx_begin(c);
    shm_val_publish(c, key);
    shm_val_publish(c, value);
    shm_tx_commit(c);
    return SHM_OK;
}

/* Out of its heap; false: who fires it will free it. */
static bool disarm(struct shm_ctx *c, struct shm_context *x)
{
    struct shm_p *p = p_of(c, x);
    if (x->node.kind == 0)
        return true;
    shm_lock(c, &p->timers_lock);
    bool firing = x->firing;
    shm_tx_begin(c);
    if (firing) {
        shm_tx_store32(c, &x->dead, 1);
        shm_going_not(c, shm_offof(c, x));
    } else {
        shm_timers_set(c, p, &x->node, 0);
    }
    shm_tx_commit(c);
    shm_unlock(c, &p->timers_lock);
    return !firing;
}

/* Frees a context without handles, and those above that only it held. A loop: chains may be
 * long. */
static void release(struct shm_ctx *c, shm_off off)
{
    for (;;) {
        struct shm_context *x = ctx_at(c, off);
        shm_off parent = x->parent;
        if (!x->isvalue && x->up) {
            shm_lock(c, tree(c, x));
            unlink_child(c, x);
            shm_unlock(c, tree(c, x));
        }
        shm_val_drop(c, &x->cause);
        shm_val_drop(c, &x->key);
        shm_val_drop(c, &x->value);
        shm_tx_begin(c);
        shm_obj_gone(c, off);
        if (parent)
            shm_hand(c, parent);
        shm_tx_commit(c);
        shm_free(c, off);
        if (parent == 0 || !shm_obj_drop(c, parent) || !disarm(c, ctx_at(c, parent)))
            return;
        off = parent;
    }
}

void shm_context_free(struct shm_ctx *c, shm_off off)
{
    if (disarm(c, ctx_at(c, off)))
        release(c, off);
}

/* ---- cancel ---------------------------------------------------------------------------------- */

/* 2a. */
static void mark(struct shm_ctx *c, struct shm_context *x, unsigned state, shm_off why)
{
    struct shm_p *p = x->node.kind ? p_of(c, x) : NULL;
    struct shm_chan *ch = load_rlx(&x->done) ? shm_at(c, load_rlx(&x->done)) : NULL; /* locked */
    if (p)
        shm_lock(c, &p->timers_lock);
    if (ch)
        shm_lock(c, &ch->lock);
    shm_tx_begin(c);
    if (p && !x->firing)
        shm_timers_set(c, p, &x->node, 0);
    if (ch)
        shm_tx_store32(c, &ch->closed, 1);
    shm_tx_commit(c);
    x->why = why;
    FAILPOINT("context.cancel.closed");
    store_rel(&x->state, state); /* pairs with shm_context_state() */
    if (ch)
        shm_unlock(c, &ch->lock);
    if (p)
        shm_unlock(c, &p->timers_lock);
}

/* 2. */
static void carry_on(struct shm_ctx *c, struct shm_context *x)
{
    shm_off why = shm_offof(c, x);
    for (struct shm_context *y = x;; y = ctx_at(c, y->up)) {
        while (y->first)
            y = ctx_at(c, y->first);
        if (load_rlx(&y->state) == 0) /* under the lock */
            mark(c, y, x->want, why);
        FAILPOINT("context.cancel.marked");
        if (load_rlx(&y->done)) /* as above */
            shm_waiters_drain(c, load_rlx(&y->done));
        unlink_child(c, y);
        if (y == x)
            return;
    }
}

void shm_context_cancel(struct shm_ctx *c, shm_off off, unsigned state, struct shm_val *cause)
{
    struct shm_context *x = ctx_at(c, off);
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], off); /* for the reaper */
    shm_lock(c, tree(c, x));
    if (x->want == 0 && load_rlx(&x->state) == 0) { /* under the lock */
        shm_tx_begin(c);
        if (cause) {
            shm_val_publish(c, cause);
            shm_tx_val(c, &x->cause, cause);
        }
        shm_tx_store32(c, &x->want, state);
        shm_tx_commit(c);
        FAILPOINT("context.cancel.wanted");
        if (cause)
            cause->tag = SHM_VAL_NONE;
        carry_on(c, x);
    }
    shm_unlock(c, tree(c, x));
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], 0);
    if (cause)
        shm_val_drop(c, cause);
}

/* ---- the deadline ---------------------------------------------------------------------------- */

/* Lock of p's heap held: the node is the first there, and due. */
shm_off shm_context_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n)
{
    struct shm_context *x = of_node(n);
    shm_off off = shm_offof(c, x);
    bool alive = shm_refs(&x->obj) > 0; /* 0: who frees it is on the way to this lock */
    shm_tx_begin(c);
    shm_timers_set(c, p, n, 0);
    if (alive) {
        shm_tx_store32(c, &x->firing, 1);
        shm_tx_store64(c, &c->m->inflight[SHM_IF_DRAIN], off);
    }
    shm_tx_commit(c);
    FAILPOINT("context.fire.out");
    return alive ? off : 0;
}

/* A deadline is carried out; a reaper goes on with that, or with a cancel. */
void shm_context_carry(struct shm_ctx *c, shm_off off)
{
    struct shm_context *x = ctx_at(c, off);
    struct shm_p *p = p_of(c, x);
    store_rlx(&c->m->inflight[SHM_IF_DRAIN], off); /* for the next reaper */
    shm_lock(c, tree(c, x));
    if (x->firing && x->want == 0 && load_rlx(&x->state) == 0) { /* under the lock */
        shm_tx_begin(c);
        shm_tx_store32(c, &x->want, SHM_CTX_DEADLINE);
        shm_tx_commit(c);
    }
    if (x->want)
        carry_on(c, x);
    shm_unlock(c, tree(c, x));
    FAILPOINT("context.fire.cancelled");
    shm_lock(c, &p->timers_lock);
    bool dead = x->dead, firing = x->firing;
    shm_tx_begin(c);
    if (firing)
        shm_tx_store32(c, &x->firing, 0);
    if (firing && dead)
        shm_going(c, off);
    shm_tx_store64(c, &c->m->inflight[SHM_IF_DRAIN], 0);
    shm_tx_commit(c);
    shm_unlock(c, &p->timers_lock);
    if (firing && dead)
        release(c, off);
}

/* ---- looking --------------------------------------------------------------------------------- */

unsigned shm_context_state(const struct shm_ctx *c, shm_off off, shm_off *why)
{
    struct shm_context *x = owner(c, ctx_at(c, off));
    unsigned state = x ? load_acq(&x->state) : SHM_CTX_LIVE; /* pairs with mark() */
    if (state && why)
        *why = x->why;
    return state;
}

/* The tree locked. Its channel, with one more reference; 0: it has none, or one that goes. */
static shm_off done_of(struct shm_ctx *c, struct shm_context *x)
{
    shm_off off = load_rlx(&x->done);               /* under the lock */
    return off && shm_obj_tryref(c, off) ? off : 0; /* 0: its end waits for this lock */
}

int shm_context_done(struct shm_ctx *c, shm_off off, shm_off *out)
{
    struct shm_context *x = owner(c, ctx_at(c, off));
    *out = 0;
    if (x == NULL)
        return SHM_OK;
    shm_lock(c, tree(c, x));
    *out = done_of(c, x);
    shm_unlock(c, tree(c, x));
    if (*out)
        return SHM_OK;
    shm_off fresh;
    int e = shm_chan_new(c, 0, &fresh);
    if (e)
        return e;
    struct shm_chan *ch = shm_at(c, fresh);
    shm_lock(c, tree(c, x));
    *out = done_of(c, x);
    if (*out == 0) {
        if (load_rlx(&x->state))       /* under the lock */
            store_rlx(&ch->closed, 1); /* not yet reachable */
        ch->done = 1;
        shm_obj_ref_as(c, shm_offof(c, x), &ch->buf, shm_offof(c, x));
        FAILPOINT("context.done.made");
        shm_tx_begin(c);
        shm_tx_store64(c, &x->done, fresh); /* the reference stays in the hand, for the caller */
        shm_tx_commit(c);
        *out = fresh;
        fresh = 0;
    }
    shm_unlock(c, tree(c, x));
    if (fresh)
        shm_obj_unref(c, fresh);
    return SHM_OK;
}

/* Nobody has a reference on its channel any more; it may have got another one meanwhile. */
void shm_context_undone(struct shm_ctx *c, shm_off off, shm_off ch)
{
    struct shm_context *x = ctx_at(c, off);
    shm_lock(c, tree(c, x));
    if (load_rlx(&x->done) == ch) { /* under the lock */
        shm_tx_begin(c);
        shm_tx_store64(c, &x->done, 0);
        shm_tx_commit(c);
    }
    FAILPOINT("context.undone");
    shm_unlock(c, tree(c, x));
}
