/* ticker.c — timers that send: Timer, Ticker, after; and after_func.
 *
 * A TIMER IS ITS CHANNEL. One object, one count of references: a handle on the timer and one on its
 * channel are handles on the same block. So what Go needs its collector for comes by itself: nobody
 * can stop the timer or receive from it when the last handle of either sort goes, and then it is
 * taken out of its heap. The entry there holds no reference.
 *
 * THE MEANING IS THAT OF GO 1.23. The channel has room for one value, so that who fires never waits
 * (a tick that nobody has taken yet is not doubled), but it passes for unbuffered: no value of
 * before is received after Stop or Reset, which take it out again. That a timer is in its heap and
 * that its value is in its channel change under both locks, heap's first, in one transaction: at
 * any moment, for everybody, and whatever process dies where, it is active, or has sent, or
 * neither.
 *
 * Who looks at the channel without waiting runs first what is due in that heap (shm_timer_poll;
 * Go's maybeRunChan), so a timer is seen to fire at its time also while nobody runs timers.
 *
 * AFTER_FUNC makes its goroutine beforehand, asleep in the heap (timer.c), so there is nothing that
 * may fail when it is due. The goroutine is independent of the handle: dropped, it is started all
 * the same, as in Go. What the handle keeps is the gref with the epoch of that sleep: stale, it
 * finds nothing to stop. And the call once more, for Reset after the start. Rejected: to keep the
 * call alone and to make the goroutine when it is due. A full g table would then have to be told to
 * nobody. */
#include "internal.h"

static_assert(sizeof(struct shm_timer) % 8 == 0 && offsetof(struct shm_timer, ch) == 0,
              "a channel");

static struct shm_timer *timer_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_timer *t = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&t->ch.obj) != SHM_OBJ_CHAN || !t->ch.timer))
        shm_throw("timer: %#llx is no timer", (unsigned long long)off);
    return t;
}

static struct shm_p *p_of(const struct shm_ctx *c, const struct shm_tnode *n)
{
    return &c->ptab[n->pi];
}

static struct shm_waitq *recvq(struct shm_timer *t)
{
    return SHM_WAITQ(&t->ch.recvq_first);
}

/* ---- with a channel -------------------------------------------------------------------------- */

/* Not active: it is set when somebody holds it, so a death in between leaves nothing in a heap. */
int shm_timer_new(struct shm_ctx *c, const struct shm_val *tick, shm_off *out)
{
    int e = shm_chan_make(c, 1, sizeof(struct shm_timer), out);
    if (e)
        return e;
    struct shm_timer *t = shm_at(c, *out);
    t->ch.timer = 1;
    t->node.pi = shm_timers_p(c)->index;
    t->node.kind = SHM_TN_TIMER;
    t->tick = *tick;
    return SHM_OK;
}

/* Both locks held, in a tx: what was sent and not received is not received any more. */
static bool drain(struct shm_ctx *c, struct shm_timer *t)
{
    bool unread = load_rlx(&t->ch.qcount) != 0; /* under the lock */
    if (unread)
        shm_tx_store32(c, &t->ch.qcount, 0); /* of one slot, head and tail are the same */
    return unread;
}

/* With room for one entry if when_ns is not 0. */
static bool set(struct shm_ctx *c, struct shm_timer *t, uint64_t when_ns, uint64_t period_ns)
{
    struct shm_p *p = p_of(c, &t->node);
    shm_lock(c, &t->ch.lock);
    bool was = load_rlx(&t->node.when_ns) != 0; /* under the lock */
    shm_tx_begin(c);
    shm_timers_set(c, p, &t->node, when_ns);
    shm_tx_store64(c, &t->period_ns, period_ns);
    was |= drain(c, t);
    shm_tx_commit(c);
    FAILPOINT("ticker.set");
    shm_unlock(c, &t->ch.lock);
    shm_unlock(c, &p->timers_lock);
    return was;
}

bool shm_timer_stop(struct shm_ctx *c, shm_off off)
{
    struct shm_timer *t = timer_at(c, off);
    shm_lock(c, &p_of(c, &t->node)->timers_lock);
    return set(c, t, 0, 0);
}

int shm_timer_reset(struct shm_ctx *c, shm_off off, uint64_t when_ns, uint64_t period_ns, bool *was)
{
    struct shm_timer *t = timer_at(c, off);
    int e = shm_timers_lock(c, p_of(c, &t->node));
    if (e)
        return e;
    *was = set(c, t, when_ns, period_ns);
    shm_timers_tell(c, p_of(c, &t->node), when_ns);
    return SHM_OK;
}

static struct shm_val tick(const struct shm_timer *t, uint64_t now_ns)
{
    struct shm_val v = t->tick;
    double s = (double)now_ns / 1e9; /* as time.monotonic() */
    memcpy(v.b + v.tag - sizeof s, &s, sizeof s);
    return v;
}

shm_gref shm_timer_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n, uint64_t now_ns,
                        unsigned slot)
{
    struct shm_timer *t =
        (struct shm_timer *)(void *)((uint8_t *)n - offsetof(struct shm_timer, node));
    uint64_t when = load_rlx(&n->when_ns), next = 0; /* under the lock */
    shm_gref peer = 0;
    shm_lock(c, &t->ch.lock);
    bool alive = shm_refs(&t->ch.obj) > 0; /* 0: who frees it is on the way to this lock */
    struct shm_val v = tick(t, now_ns);
    struct shm_sudog *s = alive ? shm_sudog_claim(c, recvq(t)) : NULL;
    if (s) {
        peer = s->g;
        /* INV nothing-in-hand: in the batch from now on. Own words, read by the reaper: the one
         * after the other, or the compiler may leave an instruction at which neither names it. */
        store_rlx(&c->m->inflight[slot], peer);
        FAILPOINT("ticker.fire.named");
        store_rel(&c->m->inflight[SHM_IF_READY], 0);
    } else if (load_rlx(&t->ch.qcount) == 0) {       /* under the lock */
        *(struct shm_val *)shm_at(c, t->ch.buf) = v; /* not to be seen before the count */
    }
    if (alive && t->period_ns)
        next = when + t->period_ns * (1 + (now_ns - when) / t->period_ns);
    FAILPOINT("ticker.fire.claimed");
    shm_tx_begin(c);
    shm_timers_set(c, p, n, next);
    if (s) {
        shm_tx_val(c, &shm_g(c, peer)->value, &v);
        shm_sudog_win(c, recvq(t), s, SHM_OK_VALUE);
    } else if (alive) {
        shm_tx_store32(c, &t->ch.qcount, 1);
    }
    shm_tx_commit(c);
    FAILPOINT("ticker.fire.sent");
    shm_unlock(c, &t->ch.lock);
    return peer;
}

/* Nobody has a handle any more. */
void shm_timer_forget(struct shm_ctx *c, shm_off off)
{
    struct shm_timer *t = timer_at(c, off);
    struct shm_p *p = p_of(c, &t->node);
    shm_lock(c, &p->timers_lock);
    shm_tx_begin(c);
    shm_timers_set(c, p, &t->node, 0);
    shm_tx_commit(c);
    shm_unlock(c, &p->timers_lock);
}

void shm_timer_poll(struct shm_ctx *c, struct shm_chan *ch)
{
    struct shm_timer *t = (struct shm_timer *)(void *)ch;
    uint64_t when = load_acq(&t->node.when_ns), now; /* pairs with shm_timers_set() */
    uint32_t ran;
    if (when != 0 && when != UINT64_MAX && when <= (now = shm_now_ns()))
        shm_checktimers(c, p_of(c, &t->node), now, &ran);
}

/* ---- after_func ------------------------------------------------------------------------------ */

static struct shm_afterfunc *func_at(const struct shm_ctx *c, shm_off off)
{
    struct shm_afterfunc *t = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&t->obj) != SHM_OBJ_TIMER))
        shm_throw("after_func: %#llx is no timer", (unsigned long long)off);
    return t;
}

static void remember(struct shm_ctx *c, struct shm_afterfunc *t, shm_gref r, uint64_t epoch)
{
    shm_tx_begin(c);
    shm_tx_store64(c, &t->g, r);
    shm_tx_store64(c, &t->epoch, epoch);
    shm_tx_commit(c);
}

int shm_afterfunc_new(struct shm_ctx *c, shm_gref r, uint64_t when_ns, shm_off *out)
{
    const struct shm_g *g = shm_g(c, r);
    struct shm_val call = {.tag = SHM_VAL_HEAP}, copy;
    int e = shm_alloc(c, sizeof(struct shm_afterfunc), out);
    if (e)
        return e;
    call.h.off = g->cont_off;
    call.h.len = g->cont_len;
    if ((e = shm_val_copy(c, &copy, &call)) != SHM_OK) {
        shm_free(c, *out);
        return e;
    }
    struct shm_afterfunc *t = shm_at(c, *out);
    memset(t, 0, sizeof *t);
    shm_obj_init(&t->obj, SHM_OBJ_TIMER, 1);
    t->pi = shm_timers_p(c)->index;
    t->parent = g->parent;
    t->flags = g->flags;
    t->site = shm_g_site(g);
    t->g = r;
    t->call = copy;
    if ((e = shm_sleep_born(c, &c->ptab[t->pi], r, when_ns, &t->epoch)) != SHM_OK) {
        shm_val_drop(c, &copy);
        shm_free(c, *out);
        return e;
    }
    shm_tx_begin(c);
    shm_obj_made(c, *out);
    shm_val_publish(c, &copy);
    shm_tx_commit(c);
    return SHM_OK;
}

/* Lock held. */
static bool stop(struct shm_ctx *c, struct shm_afterfunc *t)
{
    if (!shm_wait_abort(c, t->g, t->epoch, SHM_OK_CANCELLED))
        return false;
    shm_tx_begin(c);
    shm_gcount(c, shm_g(c, t->g)); /* it begins, and ends at once */
    shm_tx_commit(c);
    shm_g(c, t->g)->flags &= (uint8_t)~SHM_GF_GO; /* ours; should its M die meanwhile, no panic */
    shm_ready(c, t->g, false);
    return true;
}

bool shm_afterfunc_stop(struct shm_ctx *c, shm_off off)
{
    struct shm_afterfunc *t = func_at(c, off);
    shm_lock(c, &t->lock);
    bool was = stop(c, t);
    shm_unlock(c, &t->lock);
    return was;
}

/* Lock held: the next goroutine of the same call. */
static int again(struct shm_ctx *c, struct shm_afterfunc *t, uint64_t when_ns)
{
    shm_off cont;
    uint32_t len;
    shm_gref r;
    uint64_t epoch;
    int e = shm_cont_of_val(c, &t->call, &cont, &len);
    if (e)
        return e;
    if ((e = shm_gnew(c, &r)) != SHM_OK) {
        shm_cont_drop(c, cont, len);
        return e;
    }
    struct shm_g *g = shm_g(c, r);
    shm_gcont_set(c, g, cont, len);
    g->flags = (uint8_t)t->flags;
    g->parent = t->parent;
    shm_g_site_set(g, t->site);
    if ((e = shm_sleep_born(c, &c->ptab[t->pi], r, when_ns, &epoch)) != SHM_OK) {
        shm_gcont_drop(c, g);
        if (shm_casgstatus(c, r, Gidle, Gdead))
            shm_gfree(c, r);
        return e;
    }
    remember(c, t, r, epoch);
    return SHM_OK;
}

int shm_afterfunc_reset(struct shm_ctx *c, shm_off off, uint64_t when_ns, bool *was)
{
    struct shm_afterfunc *t = func_at(c, off);
    int e = SHM_OK;
    shm_lock(c, &t->lock);
    *was = shm_sleep_move(c, &c->ptab[t->pi], t->g, t->epoch, when_ns);
    if (!*was) {
        *was = stop(c, t);
        e = again(c, t, when_ns);
    }
    shm_unlock(c, &t->lock);
    return e;
}

void shm_afterfunc_free(struct shm_ctx *c, shm_off off)
{
    shm_val_drop(c, &func_at(c, off)->call);
    shm_obj_end(c, off);
}
