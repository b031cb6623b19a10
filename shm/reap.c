/* reap.c — what is done once per death.
 *
 * An M may be killed at any instruction. Its reaper, the keeper, makes of what it finds a program
 * in which everything but the goroutines that were running or at home there is where it was. It
 * knows from a pidfd that the process has ended (INV only-the-dead), and works with the living
 * around it.
 *
 * TWO PARTS
 *   locks   undo log, then waits, then locks, in this order: shm_reap_locks(). It takes no lock and
 *           uses nothing of the reaper's own slot, so that who waits for a dead M's lock can do it
 *           there, for all who are dead (lock_futex.c). Before the locks go, every wait that the
 *           dead M had in hand under them is whole again: a G it was parking is armed; a G it had
 *           claimed and given nothing is armed again. Else the next owner of the lock would take
 *           their sudogs for stale. A select stays claimed: the dead M held one of its channels,
 *           those of the others have taken it for stale all the time (select.c, REVIVED).
 *   rest    shm_reap(), with this M's own verbs, locks and names:
 *             1 what was claimed and given is readied, a select that was given nothing is revived;
 *               a half-done abort is ended; a drain goes on. Who wanted to cancel or kill a G while
 *               it was claimed has left a mark and gone: what is armed again is looked at for one
 *             2 runnable Gs it had between two queues are queued (nowhere.c)
 *             3 its P is given back as it is: ring, runnext and timers wait there for another M,
 *               thieves, whoever runs due timers
 *             4 g slots in transit go to their magazine
 *             5 the Gs that ran or lived there end: SHM_J_DIED to their joins, a panic under go;
 *               the locks they held are dead (sema.c). Or they come up again: retry.c
 *             6 handles and what is in its hand, free g slots, blocks not published
 *             7 the slot is free; everybody looks around once, since a wake may have gone to a
 *               corpse
 *
 * AGAIN. Each step takes its word back when it is done (a name, the log's count, a held lock), or
 * finds it done (a status, a wait word, a join's state). So a reaper that dies here is followed by
 * another, who first reaps him and then begins anew with what he was at. m->end keeps the wait
 * status, which only a parent learns, and only once.
 *
 * A G AT HOME HERE may be in a living waker's hand. It is ended only when nobody names it any more:
 * a late push into this M's home queue would write to its slot. A waker that is dead itself has its
 * own part done first (steps locks and 1), so two deaths do not wait for each other.
 *
 * WHAT MAY BE LOST: see the essay of handle.c. A count may be too high, never too low.
 *
 * Rejected: to let any M reap (two reapers of one corpse need a protocol of their own; a keeper is
 * there anyway and does nothing else), and to stop the others while it goes on. */
#include "internal.h"

/* ---- waits ----------------------------------------------------------------------------------- */

/* Is r waiting, and its wait claimed by the dead M, for good? */
static bool claimed(struct shm_ctx *c, const struct shm_m *dead, shm_gref r)
{
    struct shm_g *g;
    if (!shm_of_this_life(c, r) || shm_readgstatus(c, r) != Gwaiting)
        return false;
    g = shm_g(c, r);
    uint64_t w = load_seq(&g->wait);
    if (SHM_W_STATE(w) != SHM_W_CLAIMED || SHM_W_M1(w) != shm_m1(dead))
        return false;
    /* A claim that is done stays in the word until the next arming: somebody may be just before
     * that, and says so before the status says `waiting`. */
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) { /* pairs with shm_minit() */
        struct shm_m *m = &c->mtab[i];
        if (load_seq(&m->inflight[SHM_IF_PARK]) == r && load_rlx(&m->park_epoch) > SHM_W_EPOCH(w))
            return false;
    }
    return load_seq(&g->wait) == w;
}

/* Of a claimed G, after the rollback: has it what its waker gives? */
static bool given(const struct shm_g *g)
{
    return g->waitkind == 0 || g->waitkind == SHM_WAIT_SELECT ? g->ok != SHM_OK_NONE
                                                              : g->sudog.linked == 0;
}

/* slot: one whose G was claimed with its object locked. */
static void rearm(struct shm_ctx *c, struct shm_m *dead, uint32_t slot)
{
    shm_gref r = load_acq(&dead->inflight[slot]); /* a dead M's word, as all here */
    if (r == load_acq(&dead->inflight[SHM_IF_ABORT]) || !claimed(c, dead, r) ||
        given(shm_g(c, r)) || shm_g(c, r)->waitkind == SHM_WAIT_SELECT)
        return;
    uint64_t w = load_rlx(&shm_g(c, r)->wait); /* claimed by the dead: nobody writes it */
    FAILPOINT("reap.rearm");
    shm_wait_arm(c, r, SHM_W_EPOCH(w));
}

static void arm(struct shm_ctx *c, struct shm_m *dead)
{
    shm_gref r = load_acq(&dead->inflight[SHM_IF_PARK]);
    uint64_t epoch = load_rlx(&dead->park_epoch);
    if (!shm_of_this_life(c, r) || shm_readgstatus(c, r) != Gwaiting ||
        SHM_W_EPOCH(load_rlx(&shm_g(c, r)->wait)) >= epoch) /* only its parker arms it */
        return;
    FAILPOINT("reap.arm");
    shm_wait_arm(c, r, epoch);
}

/* A goroutine with retries that has given something up to wait (retry.c): it waits, then. */
static void wait_after_all(struct shm_ctx *c, struct shm_m *dead)
{
    shm_gref r = load_acq(&dead->curg);
    if (!shm_of_this_life(c, r) || shm_readgstatus(c, r) != Grunning)
        return;
    struct shm_g *g = shm_g(c, r);
    uint64_t epoch = shm_wait_next(g);
    if (SHM_ST_M1(load_acq(&g->status)) != shm_m1(dead) || !shm_retry_of(c, g) ||
        shm_retry_live(c, g) || !g->sudog.linked || g->sudog.epoch != (uint32_t)epoch)
        return;
    store_rlx(&dead->park_epoch, epoch);
    store_rel(&dead->inflight[SHM_IF_PARK], r); /* as its own M would: the rest is arm()'s */
    FAILPOINT("reap.wait.named");
    if (unlikely(!shm_casgstatus(c, r, Grunning, Gwaiting)))
        shm_throw("reap: goroutine slot %u was taken away", shm_gidx(r));
}

/* Whose part the undoing is: this M's, or who does it already finishes first. */
static bool begin_locks(struct shm_ctx *c, struct shm_m *dead)
{
    uint32_t by = 0;
    while (!cas_acqrel(&dead->reaper_m1, &by, c->m1)) { /* acquires what a former one has done */
        if (by != c->m1 && shm_m_alive(c, by)) {
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL); /* he waits for nobody */
            if (load_acq(&c->hdr->shutdown)) /* pairs with who ends the program */
                return false;
            by = 0;
        }
    }
    return true;
}

void shm_reap_locks(struct shm_ctx *c, struct shm_m *dead)
{
    if (!begin_locks(c, dead))
        return;
    shm_tx_rollback(c, dead);
    shm_refs_reap(c, dead);
    wait_after_all(c, dead);
    arm(c, dead);
    rearm(c, dead, SHM_IF_READY);
    for (uint32_t i = 0; i < SHM_WAKE_BATCH; i++)
        rearm(c, dead, SHM_IF_WAKE + i);
    shm_lock_reap(c, dead);
    store_rel(&dead->reaper_m1, 0); /* pairs with the CAS in begin_locks() */
}

void shm_reap_holders(struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i]; /* of a dead one the words that he has left, as above */
        bool holds = load_acq(&m->held_n) || load_acq(&m->lockset) || load_acq(&m->ref_obj);
        if (holds && m != c->m && load_acq(&m->kind) != SHM_M_FREE && !shm_m_alive(c, i + 1))
            shm_reap_locks(c, m);
    }
}

/* ---- 1: wakes that were under way ------------------------------------------------------------ */

static void end_abort(struct shm_ctx *c, struct shm_m *dead)
{
    shm_gref r = load_acq(&dead->inflight[SHM_IF_ABORT]);
    if (claimed(c, dead, r)) {
        shm_sudog_unlink(c, r);
        shm_g(c, r)->ok = (uint8_t)load_rlx(&dead->abort_ok);
        FAILPOINT("reap.abort.unlinked");
        shm_ready(c, r, false);
    }
    store_rel(&dead->inflight[SHM_IF_ABORT], 0); /* after it, for a next reaper */
}

/* The dead M had armed a wait, or the reaper has; nobody may have come to look for a cancel or a
 * kill that was set before. */
static void look_for_marks(struct shm_ctx *c, shm_gref r, uint64_t epoch)
{
    shm_off j = shm_of_this_life(c, r) ? shm_g(c, r)->obj : 0;
    if (j)
        shm_join_marks(c, shm_at(c, j), r, epoch);
}

/* One that the dead M had named to wake it. */
static void finish_wake(struct shm_ctx *c, struct shm_m *dead, shm_gref r)
{
    if (claimed(c, dead, r)) {
        struct shm_g *g = shm_g(c, r);
        if (given(g)) /* else it was armed again, or is a select */
            shm_ready(c, r, false);
        else if (g->home_m1 != shm_m1(dead)) /* who ends with it is to get nothing any more */
            shm_select_revive(c, r);
    }
    if (shm_of_this_life(c, r)) {
        uint64_t w = load_seq(&shm_g(c, r)->wait);
        if (SHM_W_STATE(w) == SHM_W_ARMED)
            look_for_marks(c, r, SHM_W_EPOCH(w));
    }
}

static void finish_wakes(struct shm_ctx *c, struct shm_m *dead)
{
    end_abort(c, dead);
    for (uint32_t i = 0; i <= SHM_WAKE_BATCH; i++)
        finish_wake(c, dead, load_acq(&dead->inflight[i ? SHM_IF_WAKE + i - 1 : SHM_IF_READY]));
    look_for_marks(c, load_acq(&dead->inflight[SHM_IF_PARK]), load_rlx(&dead->park_epoch));
    store_rel(&dead->inflight[SHM_IF_PARK], 0); /* as in end_abort() */
    shm_off obj = load_acq(&dead->inflight[SHM_IF_DRAIN]);
    if (obj)
        shm_waiters_drain(c, obj);
    FAILPOINT("reap.drained");
    store_rel(&dead->inflight[SHM_IF_DRAIN], 0); /* as in end_abort() */
}

/* ---- 3, 4: P, g slots ------------------------------------------------------------------------ */

static void give_p(struct shm_ctx *c, struct shm_m *dead)
{
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_p); i++) { /* pairs with procs.c */
        struct shm_p *p = &c->ptab[i];
        uint64_t w = load_acq(&p->status); /* a dead M's: nobody moves it */
        if (SHM_ST_STATUS(w) == Pidle || SHM_ST_M1(w) != shm_m1(dead))
            continue;
        store_rlx(&p->debt, 0);
        if (!p->nosteal)
            or_seq(&c->hdr->idle_p[i / 64], 1ULL << i % 64);
        FAILPOINT("reap.p.bit");
        store_seq(&p->status, Pidle); /* as shm_putp(); tag: idle-dance */
    }
    store_rel(&dead->p1, 0);
}

/* Dead, on its way out of the dead M's magazine or into it: it goes there. */
static void put_slot(struct shm_ctx *c, struct shm_m *dead, uint32_t idx)
{
    for (uint32_t i = 0; i < dead->gfree.n; i++)
        if (dead->gfree.idx[i] == idx)
            return;
    if (dead->gfree.n == SHM_MAG)
        shm_gfree_flush(c, dead);
    dead->gfree.idx[dead->gfree.n] = idx;
    FAILPOINT("reap.slot.put");
    store_rel((_Atomic uint32_t *)&dead->gfree.n, dead->gfree.n + 1); /* after idx */
}

/* How many bytes of dead->words there are: 0 too if it died of something else than they are of,
 * which it had survived. */
static uint32_t words_of(const struct shm_m *dead)
{
    int32_t status = (int32_t)(uint32_t)load_rlx(&dead->end);
    uint32_t sig = load_acq(&dead->words_sig); /* a dead M's words, as those it counts */
    uint32_t n = load_acq(&dead->words_n);
    bool of_it = sig != 0 && (status < 0 || ((uint32_t)status & 0x7f) == sig);
    return of_it && n <= sizeof dead->words ? n : 0;
}

/* In the reaper's hands. ran: it was there that the M died. */
static struct shm_val died(struct shm_ctx *c, const struct shm_g *g, const struct shm_m *dead,
                           bool ran)
{
    struct shm_died d = {.goid = g->goid,
                         .status = (int32_t)(uint32_t)load_rlx(&dead->end),
                         .m = (uint16_t)dead->index};
    struct shm_val v = {.tag = sizeof d};
    uint32_t n = ran ? words_of(dead) : 0;
    if (n) {
        uint8_t b[sizeof d + SHM_WORDS_BYTES];
        memcpy(b, &d, sizeof d);
        memcpy(b + sizeof d, dead->words, n);
        if (shm_val_make(c, &v, b, (uint32_t)sizeof d + n, NULL, 0) == SHM_OK)
            return v;
    }
    memcpy(v.b, &d, sizeof d); /* also if the heap is full */
    v.tag = sizeof d;
    return v;
}

static void settle_slot(struct shm_ctx *c, struct shm_m *dead, _Atomic uint64_t *name)
{
    shm_gref r = load_acq(name);
    if (r) {
        struct shm_g *g = shm_g(c, r);
        uint64_t w = load_acq(&g->status);
        uint32_t gen = SHM_ST_GEN(w);
        /* Begun and not finished, by this M or in its place;
         * what it had was not yet known to others. */
        if (gen == shm_ggen(r) && SHM_ST_STATUS(w) == Gidle) {
            if (g->waitkind) /* born asleep */
                shm_sudog_unlink(c, r);
            shm_gcont_drop(c, g);
            if (g->obj) { /* a group may count it already */
                struct shm_val v = died(c, g, dead, false);
                shm_off obj = g->obj;
                shm_join_finish(c, obj, SHM_J_DIED, &v);
                g->obj = 0;
                shm_obj_unref(c, obj);
            }
            shm_guncount(c, g);
            put_slot(c, dead, shm_gidx(r)); /* first: a next reaper does not take it for its own */
            if (unlikely(!shm_casgstatus(c, r, Gidle, Gdead)))
                shm_throw("reap: goroutine slot %u was taken away", shm_gidx(r));
        } else if (SHM_ST_STATUS(w) == Gdead &&
                   ((gen == shm_ggen(r) && SHM_ST_M1(w) == shm_m1(dead)) ||
                    gen + 1 + (gen + 1 == 0) == shm_ggen(r))) {
            /* Ended by this M: what others have ended meanwhile, they have freed. Or of its last
             * life, not yet in the new one. */
            put_slot(c, dead, shm_gidx(r));
        }
    }
    store_rel(name, 0);
}

/* ---- 5: who ends with it --------------------------------------------------------------------- */

static void panic(struct shm_ctx *c, const struct shm_g *g, struct shm_m *dead, bool ran)
{
    struct shm_val v = died(c, g, dead, ran);
    shm_panic(c, g->goid, SHM_J_DIED, &v, shm_m1(dead));
}

/* The waits of a G that does not run any more are over, and it is this M's, running. False: the
 * program ends. */
static bool take(struct shm_ctx *c, struct shm_m *dead, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    while (shm_of_this_life(c, r)) {
        uint64_t w = load_seq(&g->wait);
        switch (shm_readgstatus(c, r)) {
        case Grunning:
            break;
        case Grunnable:
            if (!shm_gclaim_runnable(c, r))
                continue;
            break;
        case Gwaiting:
            if (SHM_W_STATE(w) == SHM_W_ARMED &&
                shm_wait_abort(c, r, SHM_W_EPOCH(w), SHM_OK_CANCELLED)) {
                bool ours = shm_casgstatus(c, r, Gwaiting, Grunnable) && shm_gclaim_runnable(c, r);
                store_rel(&c->m->inflight[SHM_IF_READY], 0); /* the table names it */
                if (!ours)
                    shm_throw("reap: goroutine slot %u was taken away", shm_gidx(r));
                break;
            }
            if (SHM_W_STATE(w) == SHM_W_CLAIMED && SHM_W_M1(w) == shm_m1(dead)) {
                shm_sudog_unlink(c, r); /* by its own M, which was taking it back */
                if (shm_casgstatus(c, r, Gwaiting, Grunnable))
                    continue;
            }
            if (SHM_W_STATE(w) == SHM_W_CLAIMED &&
                !shm_m_alive(c, SHM_W_M1(w))) { /* dead as well */
                shm_reap_locks(c, &c->mtab[SHM_W_M1(w) - 1]);
                finish_wakes(c, &c->mtab[SHM_W_M1(w) - 1]);
            }
            if (!shm_reap_pause(c))
                return false;
            continue;
        default:
            return false; /* dead already */
        }
        while (shm_named_by_the_living(c, r)) /* a push into its home queue is under way */
            if (!shm_reap_pause(c))
                return false;
        return true;
    }
    return false;
}

/* What a G leaves behind. `ran`: its own M wrote g, up to its death. */
static void drop_parts(struct shm_ctx *c, struct shm_m *dead, shm_gref r, bool ran)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_val *v = &g->value;
    const struct shm_retry *y = shm_retry_of(c, g);
    uint32_t tag;
    /* A select's block is what the wait stands on only when it is published. */
    if (g->waitkind == SHM_WAIT_SELECT && g->waitobj && shm_blk(c, g->waitobj)->state == 2)
        shm_select_done(c, r, &tag);
    else if (g->waitkind && g->waitkind != SHM_WAIT_SELECT)
        shm_sudog_unlink(c, r);
    if (g->waitkind && g->waitkind < SHM_WAIT_SELECT)
        shm_wait_ends(c, g);
    store_rel((_Atomic uint8_t *)&g->waitkind, 0); /* first: who sets them sets it last */
    g->waitobj = 0;
    FAILPOINT("reap.g.unlinked");
    /* Of one that ran: a block of its M's own is freed with the others of those (step 6). */
    if (ran && v->tag == SHM_VAL_HEAP && shm_blk(c, v->h.off)->state == 1 &&
        shm_blk(c, v->h.off)->owner_m1 == shm_m1(dead))
        v->tag = SHM_VAL_NONE;
    /* The same: what was received is the checkpoint's, and only looked at from g. */
    if (y && v->tag == SHM_VAL_HEAP && y->value.tag == SHM_VAL_HEAP && y->value.h.off == v->h.off)
        v->tag = SHM_VAL_NONE;
    shm_val_drop(c, v);
    shm_gcont_drop(c, g);
}

/* r, which take() has given to this M, goes on where its last await ended. False: it cannot. */
static bool run_again(struct shm_ctx *c, struct shm_m *dead, shm_gref r, bool ran)
{
    struct shm_g *g = shm_g(c, r);
    const struct shm_retry *y = shm_retry_of(c, g);
    const struct shm_join *j = y ? shm_at(c, g->obj) : NULL;
    if (y == NULL || load_acq(&j->state) != SHM_J_PENDING || load_acq(&j->kill)) /* as end_g() */
        return false;
    if (shm_retry_live(c, g)) {
        if (y->left == 0)
            return false;
        drop_parts(c, dead, r, ran);
        g->flags &= (uint8_t)~SHM_GF_OUTSIDE;
        shm_retry_give(c, r, true);
    } else if (g->cont_off == 0) {
        return false;
    }
    store_rel(&c->m->inflight[SHM_IF_READY], r); /* INV nothing-in-hand */
    if (unlikely(!shm_casgstatus(c, r, Grunning, Grunnable)))
        shm_throw("reap: goroutine slot %u was taken away", shm_gidx(r));
    FAILPOINT("reap.again.runnable");
    g->home_m1 = 0; /* not before: a next reaper finds it by this or by the name */
    g->home_why = SHM_HOME_NONE;
    shm_requeue(c, r);
    return true;
}

static void end_g(struct shm_ctx *c, struct shm_m *dead, shm_gref r, bool ran)
{
    struct shm_g *g = shm_g(c, r);
    drop_parts(c, dead, r, ran);
    shm_sema_reap(c, g->goid); /* before anybody can know that it has ended */
    if (g->flags & SHM_GF_GO)
        panic(c, g, dead, ran);
    if (g->obj) {
        struct shm_val v = died(c, g, dead, ran);
        shm_off obj = g->obj;
        shm_join_finish(c, obj, SHM_J_DIED, &v);
        FAILPOINT("reap.g.joined");
        shm_retry_drop(c, obj);
        g->obj = 0;
        shm_obj_unref(c, obj);
    }
    shm_guncount(c, g);
    store_rel(&c->m->inflight[SHM_IF_NEW], r); /* settle_slot() finds it, should this M die too */
    if (unlikely(!shm_casgstatus(c, r, Grunning, Gdead)))
        shm_throw("reap: goroutine slot %u was taken away", shm_gidx(r));
    FAILPOINT("reap.g.dead");
    shm_gfree(c, r);
}

/* A keeper runs no Gs; those it has in its hands to end them are at home where they were. */
static void end_gs(struct shm_ctx *c, struct shm_m *dead)
{
    uint64_t n = load_acq(&c->hdr->g_next), pages = load_acq(&c->hdr->g_committed); /* refill */
    bool runs = load_acq(&dead->kind) != SHM_M_KEEPER;
    n = n < pages ? n : pages;
    for (uint64_t i = 1; i < n; i++) {
        struct shm_g *g = &c->gtab[i];
        uint64_t w = load_acq(&g->status);
        unsigned st = SHM_ST_STATUS(w);
        shm_gref r = (uint64_t)SHM_ST_GEN(w) << 32 | i;
        bool ran = st == Grunning && SHM_ST_M1(w) == shm_m1(dead),
             home = g->home_m1 == shm_m1(dead);
        if (st == Gdead || st == Gidle || !(home || (ran && runs)))
            continue;
        if (take(c, dead, r) && !run_again(c, dead, r, ran))
            end_g(c, dead, r, ran);
    }
    FAILPOINT("reap.gs.ended");
    store_rlx(&dead->homeq, 0); /* none is left, and nobody has one to push */
    store_rlx(&dead->homeq_fifo, 0);
    store_rlx(&dead->homeq_n, 0);
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void clear_slot(struct shm_ctx *c, struct shm_m *dead)
{
    struct shm_hdr *h = c->hdr;
    uint32_t me = shm_m1(dead), w = me << 8 | 1;
    and_seq(&h->idle_m[dead->index / 64], ~(1ULL << dead->index % 64)); /* no more its own */
    store_seq(&dead->spinning, SHM_M_BUSY);
    cas_acqrel(&h->poller_m1, &me, 0);
    me = shm_m1(dead);
    cas_acqrel(&h->retiring, &me, 0);
    cas_acqrel(&h->panic, &w, 0); /* a reaper's; the next one writes it whole */
    store_rlx(&dead->locks, 0);
    store_rlx(&dead->turning, 0);
    store_rlx(&dead->tid, 0);
    add_acqrel(&h->reaped, 1);
    FAILPOINT("reap.cleared");
    shm_m_give(dead);
}

void shm_reap(struct shm_ctx *c, struct shm_m *dead, int32_t wait_status)
{
    struct shm_hdr *h = c->hdr;
    uint64_t none = 0;
    if (unlikely(dead == c->m))
        shm_throw("reap: M %u is to reap itself", dead->index);
    if (load_acq(&dead->kind) == SHM_M_FREE) /* pairs with shm_m_give() */
        return;
    if (cas_acqrel(&dead->end, &none, 1ULL << 32 | (uint32_t)wait_status) &&
        load_rlx(&dead->kind) == SHM_M_WORKER)
        add_acqrel(&h->deaths, 1);
    FAILPOINT("reap.begun");
    shm_reap_locks(c, dead);
    finish_wakes(c, dead);
    if (!shm_nowhere_queue(c, dead))
        return;
    give_p(c, dead);
    settle_slot(c, dead, &dead->inflight[SHM_IF_NEW]);
    if (shm_readgstatus(c, load_acq(&dead->curg)) == Gdead) /* it was on its way out by itself */
        settle_slot(c, dead, &dead->curg);
    store_rel(&dead->curg, 0); /* before it is ended here: a next reaper must not settle it again */
    end_gs(c, dead);
    shm_sema_reap(c, 0); /* what it was about to let on, and who stood behind those that ended */
    if (load_acq(&h->shutdown)) /* pairs with who ends the program */
        return;
    shm_handle_reap(c, dead);
    shm_hand_reap(c, dead);
    shm_gfree_flush(c, dead);
    shm_heap_reap(c, dead);
    clear_slot(c, dead);
    for (uint32_t i = 0; i < load_acq(&h->max_m); i++) { /* pairs with shm_minit() */
        uint32_t kind = load_acq(&c->mtab[i].kind);      /* as above */
        if (kind == SHM_M_WORKER || kind == SHM_M_M0)
            shm_notewakeup_anyway(&c->mtab[i].note);
    }
    if (shm_anywork(c))
        shm_wakeone(c, true);
}
