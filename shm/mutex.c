/* mutex.c — Mutex: Go's sync.Mutex (sync/mutex.go), with a holder; and Cond, whose wait gives one
 * up.
 *
 * THE WORD is 0 (free), goid << 8 | LOCKED, or one of both with SLOW. Without SLOW one CAS locks
 * and one unlocks, and no lock is taken. SLOW says that there is more to know (who waits, the modes
 * below): then every change is made under the object's lock.
 *   INV mutex-slow   without the lock the word moves between 0 and goid | LOCKED only; SLOW is set
 *                    by CAS, under the lock, while it is locked (or, under retries, to lock it by
 *                    transaction: retry.c); from then on transactions may store it
 *   INV mutex-never-0  no transaction stores 0: another's CAS would lock it, and a rollback take it
 *                    away from him. It stores SLOW, and SLOW -> 0 is a CAS of its own after the
 *                    commit
 *
 * TWO MODES, Go's. Normally unlock frees the mutex and wakes the first waiter, who has to compete
 * with whoever comes along: a running goroutine that locks again at once is not switched away,
 * which is worth a factor of many. One waiter at a time is on its way (WOKEN). One that has lost
 * and has waited longer than STARVE_NS makes the mutex starving: from then on unlock hands it to
 * the first waiter and newcomers queue, until a waiter gets it who was the last or had waited for
 * less. Go takes 1 ms; a hand-over between processes is dearer, so it is a little longer here.
 *
 * COMPETING WITHOUT A FRAME. A woken waiter is not decoded to look whether the mutex is free: the
 * loop calls shm_mutex_again() first, and if another has it, the goroutine waits on, its
 * continuation untouched, at the head of the queue.
 *
 * An M that dies between its CAS and its next look at anything has locked or has not: the word says
 * who. One that dies with a WOKEN waiter running on it would leave the others asleep, so the reaper
 * wakes the next of each free mutex (shm_mutex_revive); a waiter woken in vain does no harm.
 *
 * COND. To wait is to join the queue and to give the mutex back, in one transaction over both
 * objects (a Cond's lock before its mutex's), so no signal can come between, and no death: before
 * the commit the goroutine still has the mutex and runs, after it it has neither. */
#include "internal.h"

#define STARVE_NS 5000000
#define SPIN_ROUNDS 4
#define SPIN_PAUSES 30

static struct shm_waitq *queue(struct shm_sema *sy)
{
    return SHM_WAITQ(&sy->first);
}

bool shm_mutex_slow(struct shm_sema *sy)
{
    uint64_t w = load_rlx(&sy->word);
    while (w & SHM_SY_LOCKED)
        /* Before a waiter is linked; the holder's CAS in shm_mutex_unlock() fails from here on. */
        if (w & SHM_SY_SLOW || cas_acqrel(&sy->word, &w, w | SHM_SY_SLOW))
            return true;
    return false;
}

/* The lock held, not slow by now or free: the word without what is not needed any more. */
static uint64_t with_slow(const struct shm_sema *sy, uint64_t word, bool waiters)
{
    return word | (waiters || sy->state ? SHM_SY_SLOW : 0);
}

/* The lock held, after a commit. */
static void calm(struct shm_sema *sy)
{
    uint64_t slow = SHM_SY_SLOW;
    if (!sy->first && !sy->state)
        cas_rel(&sy->word, &slow, 0); /* INV mutex-never-0; pairs with the CAS of who locks next */
}

/* ---- lock ------------------------------------------------------------------------------------ */

/* The lock held. */
static int take(struct shm_ctx *c, struct shm_sema *sy, uint64_t goid)
{
    if (unlikely(sy->state & SHM_SY_DEAD))
        return SHM_EOWNER;
    uint64_t w = 0, at_once = c->retrying ? SHM_SY_SLOW : shm_sema_held_by(goid);
    /* Pairs with the release in shm_mutex_unlock(). Under retries the CAS only keeps others off. */
    if (cas_acqrel(&sy->word, &w, at_once) && !c->retrying)
        return SHM_OK;
    if (w & SHM_SY_LOCKED)
        return SHM_EAGAIN;
    FAILPOINT("mutex.take");
    shm_tx_begin(c);
    shm_tx_store64(c, &sy->word, with_slow(sy, shm_sema_held_by(goid), sy->first != 0));
    shm_retry_done(c, SHM_OK_VALUE, NULL, 0);
    shm_tx_commit(c);
    return SHM_OK;
}

int shm_mutex_trylock(struct shm_ctx *c, shm_off off, uint64_t goid)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_MUTEX);
    uint64_t w = 0;
    FAILPOINT("mutex.try");
    if (likely(cas_acqrel(&sy->word, &w, shm_sema_held_by(goid)))) /* as in take() */
        return SHM_OK;
    if (!(w & SHM_SY_SLOW))
        return SHM_EAGAIN;
    shm_lock(c, &sy->lock);
    int e = take(c, sy, goid);
    shm_unlock(c, &sy->lock);
    return e;
}

/* As Go's: a holder that runs elsewhere gives it back sooner than a park takes. Not if something
 * else could run here meanwhile. */
static bool spin(struct shm_ctx *c, struct shm_sema *sy, uint64_t goid)
{
    if (c->hdr->ncpu < 2 || load_rlx(&c->hdr->nprocs) < 2 || !c->p || c->retrying) /* a hint */
        return false;
    for (int i = 0; i < SPIN_ROUNDS && shm_runqempty(c->p); i++) {
        for (int k = 0; k < SPIN_PAUSES; k++)
            cpu_relax();
        uint64_t w = load_rlx(&sy->word);
        if (w & SHM_SY_SLOW)
            return false;
        if (w == 0 && cas_acqrel(&sy->word, &w, shm_sema_held_by(goid))) /* as in take() */
            return true;
    }
    return false;
}

/* The lock held, the mutex is another's and slow. */
static void wait_for(struct shm_ctx *c, struct shm_sema *sy, shm_gref r, bool first)
{
    shm_tx_begin(c);
    uint64_t epoch =
        shm_sudog_join(c, r, SHM_OBJ_SEMA, shm_offof(c, sy), queue(sy), SHM_SY_WRITE, first);
    shm_tx_commit(c);
    FAILPOINT("mutex.lock.linked");
    shm_park_commit(c, r, SHM_WR_MUTEX_LOCK, epoch);
}

int shm_mutex_lock_park(struct shm_ctx *c, shm_off off, shm_gref r)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_MUTEX);
    struct shm_g *g = shm_g(c, r);
    int e;
    if (spin(c, sy, g->goid))
        return SHM_OK;
    shm_lock(c, &sy->lock);
    do
        e = take(c, sy, g->goid);
    while (e == SHM_EAGAIN && !shm_mutex_slow(sy)); /* unlocked meanwhile */
    if (e == SHM_EAGAIN) {
        shm_sema_mark_set(g, shm_now_ns());
        wait_for(c, sy, r, false);
        e = SHM_PARKED;
    }
    shm_unlock(c, &sy->lock);
    return e;
}

int shm_mutex_again(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_sema *sy = shm_sema_at(c, g->waitobj, SHM_SY_MUTEX);
    uint64_t since = shm_sema_mark(g);
    int e;
    shm_lock(c, &sy->lock);
    shm_tx_begin(c);
    shm_tx_store32(c, &sy->state, sy->state & ~(uint32_t)SHM_SY_WOKEN);
    shm_tx_commit(c);
    FAILPOINT("mutex.again");
    do
        e = take(c, sy, g->goid);
    while (e == SHM_EAGAIN && !shm_mutex_slow(sy));
    if (e == SHM_EAGAIN) {
        if (shm_now_ns() - since > STARVE_NS) {
            shm_tx_begin(c);
            shm_tx_store32(c, &sy->state, sy->state | SHM_SY_STARVING);
            shm_tx_commit(c);
        }
        wait_for(c, sy, r, true);
        e = SHM_PARKED;
    } else {
        g->ok = e == SHM_OK ? SHM_OK_VALUE : SHM_OK_OWNER;
        e = SHM_OK;
    }
    shm_unlock(c, &sy->lock);
    return e;
}

/* ---- unlock ---------------------------------------------------------------------------------- */

/* The lock held, the mutex is locked and slow. The waiter who gets it or is woken, claimed and
 * named in `slot`; NULL: nobody. */
static struct shm_sudog *next_waiter(struct shm_ctx *c, struct shm_sema *sy, unsigned slot)
{
    struct shm_waitq *q = queue(sy);
    if (sy->state & SHM_SY_WOKEN)
        return NULL;
    while (q->first) {
        struct shm_sudog *s = shm_at(c, q->first);
        if (likely(shm_claim_named(c, s->g, s->epoch, slot)))
            return s;
        shm_tx_begin(c);
        shm_sudog_remove(c, q, s);
        shm_tx_commit(c);
    }
    return NULL;
}

/* In a tx. s of next_waiter(); now_ns: 0, or the time if it is starving. */
static void release(struct shm_ctx *c, struct shm_sema *sy, struct shm_sudog *s, uint64_t now_ns)
{
    uint32_t state = sy->state;
    uint64_t word = SHM_SY_SLOW;
    if (!s) {
        state &= SHM_SY_WOKEN;
    } else if (state & SHM_SY_STARVING) {
        struct shm_g *g = shm_g(c, s->g);
        if (!s->next || now_ns - shm_sema_mark(g) < STARVE_NS)
            state &= ~(uint32_t)SHM_SY_STARVING;
        word |= shm_sema_held_by(g->goid);
    } else {
        state |= SHM_SY_WOKEN;
    }
    shm_tx_store64(c, &sy->word, word);
    if (s)
        shm_sudog_win(c, queue(sy), s, word & SHM_SY_LOCKED ? SHM_OK_VALUE : SHM_OK_COMPETE);
    shm_tx_store32(c, &sy->state, state);
}

static uint64_t starving_now(const struct shm_sema *sy)
{
    return sy->state & SHM_SY_STARVING ? shm_now_ns() : 0;
}

int shm_mutex_unlock(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_MUTEX);
    struct shm_sudog *s = NULL;
    shm_gref peer = 0;
    int e = SHM_OK;
    uint64_t w = load_rlx(&sy->word);
    FAILPOINT("mutex.unlock");
    while (w & SHM_SY_LOCKED && !(w & SHM_SY_SLOW) && likely(!c->retrying))
        if (likely(cas_acqrel(&sy->word, &w, 0))) /* pairs with the CAS of who locks next */
            return SHM_OK;
    if (!(w & SHM_SY_LOCKED))
        return SHM_EAGAIN;
    shm_lock(c, &sy->lock);
    if (sy->state & SHM_SY_DEAD) {
        e = SHM_EOWNER;
    } else if (!shm_mutex_slow(sy)) {
        e = SHM_EAGAIN;
    } else {
        uint64_t now = starving_now(sy);
        if ((s = next_waiter(c, sy, SHM_IF_READY)) != NULL)
            peer = s->g;
        shm_tx_begin(c);
        release(c, sy, s, now);
        shm_retry_done(c, SHM_OK_VALUE, NULL, 0);
        shm_tx_commit(c);
        FAILPOINT("mutex.unlock.released");
        calm(sy);
    }
    shm_unlock(c, &sy->lock);
    if (peer)
        shm_ready(c, peer, true);
    return e;
}

/* The lock held, before and after. The waiter that was on its way may never come: if the mutex is
 * free another is woken, else its unlock wakes one. By a reaper, a killer, or after recover. */
void shm_mutex_revive(struct shm_ctx *c, struct shm_sema *sy)
{
    if (sy->state & SHM_SY_DEAD || !(load_rlx(&sy->word) & SHM_SY_SLOW)) /* slow: under the lock */
        return;
    shm_tx_begin(c);
    shm_tx_store32(c, &sy->state, sy->state & ~(uint32_t)SHM_SY_WOKEN);
    shm_tx_commit(c);
    if (load_rlx(&sy->word) & SHM_SY_LOCKED)
        return;
    struct shm_sudog *s = next_waiter(c, sy, SHM_IF_READY);
    shm_gref peer = s ? s->g : 0;
    shm_tx_begin(c);
    release(c, sy, s, starving_now(sy));
    shm_tx_commit(c);
    calm(sy);
    if (peer) {
        shm_unlock(c, &sy->lock);
        shm_ready(c, peer, true);
        shm_lock(c, &sy->lock);
    }
}

/* ---- cond ------------------------------------------------------------------------------------ */

int shm_cond_park(struct shm_ctx *c, shm_off off, shm_gref r)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_COND);
    struct shm_sema *m = shm_sema_at(c, sy->other, SHM_SY_MUTEX);
    shm_gref peer = 0;
    int e = SHM_PARKED;
    shm_lock(c, &sy->lock);
    shm_lock(c, &m->lock);
    if (m->state & SHM_SY_DEAD) {
        e = SHM_EOWNER;
    } else if (!shm_mutex_slow(m)) {
        e = SHM_EAGAIN;
    } else {
        uint64_t now = starving_now(m);
        struct shm_sudog *s = next_waiter(c, m, SHM_IF_WAKE);
        if (s)
            peer = s->g;
        shm_sema_mark_set(shm_g(c, r), sy->ticket);
        shm_tx_begin(c);
        release(c, m, s, now);
        shm_tx_store64(c, &sy->ticket, sy->ticket + 1);
        uint64_t epoch = shm_sudog_join(c, r, SHM_OBJ_SEMA, off, queue(sy), SHM_SY_WRITE, false);
        shm_retry_leave(c); /* the mutex is given up: it waits, dead or not */
        shm_tx_commit(c);
        FAILPOINT("cond.wait.linked");
        shm_park_commit(c, r, SHM_WR_COND_WAIT, epoch);
        calm(m);
    }
    shm_unlock(c, &m->lock);
    shm_unlock(c, &sy->lock);
    if (peer) {
        shm_ready(c, peer, true);
        store_rlx(&c->m->inflight[SHM_IF_WAKE], 0);
    }
    return e;
}

/* Without the lock, as Go's. */
static bool nobody_waits(struct shm_sema *sy)
{
    return load_acq((_Atomic uint64_t *)&sy->first) == 0; /* pairs with shm_tx_store64() */
}

void shm_cond_signal(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_COND);
    shm_gref r = 0;
    if (nobody_waits(sy))
        return;
    shm_lock(c, &sy->lock);
    struct shm_sudog *s = shm_sudog_claim(c, queue(sy));
    if (s) {
        r = s->g;
        shm_tx_begin(c);
        shm_sudog_win(c, queue(sy), s, SHM_OK_VALUE);
        shm_tx_commit(c);
    }
    shm_unlock(c, &sy->lock);
    if (r)
        shm_ready(c, r, true);
}

void shm_cond_broadcast(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_COND);
    if (nobody_waits(sy))
        return;
    shm_lock(c, &sy->lock);
    shm_tx_begin(c);
    shm_tx_store64(c, &sy->notify, sy->ticket);
    shm_tx_commit(c);
    shm_sema_settle(c, sy);
    shm_unlock(c, &sy->lock);
}
