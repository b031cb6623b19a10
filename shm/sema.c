/* sema.c — what sync is made of: a state, those who wait for it to change,
 * and one way to let them on.
 *
 * Go builds sync on a semaphore queue hashed by address (runtime/sema.go). Here every object has
 * its queue: it is in shared memory anyway, and a queue of one's own needs no search. RWMutex,
 * WaitGroup, Once, Cond and Semaphore have one shape:
 *
 *     lock; if it may go on now: grant, in one transaction; else join the queue and park
 *     lock; change the state, in one transaction; settle: whoever may go now is let on
 *
 * so a primitive is two questions: may someone who comes now go on (may_go), and who of those who
 * wait is next (next_queue). What is granted is granted to the waiter before it runs (a hand-off),
 * so nobody overtakes and nobody wakes in vain. A Mutex alone lets newcomers in first: it and Cond,
 * which gives one up, are in mutex.c.
 *
 * SETTLE claims the first that may go (INV one-waker), writes grant, ok and unlink in one
 * transaction, and goes on until nobody may or a batch is full; then it gives the lock back and
 * readies them. It is a function of the state alone, so anybody may do it at any time: an M that
 * dies between two batches, or a waiter that was cancelled, leaves something for settle to do,
 * never something lost.
 *
 *   INV sync-settled   with the lock free, nobody waits who may go: but for what a canceller, or
 *                      the M in the middle of its batches, is about to settle
 *
 * WHO MAY GO
 *   RWMutex     as Go's: a writer that waits keeps new readers out; at a writer's end the readers
 *               that wait by then (ticket < notify) go first, at the last reader's end the first
 *               writer
 *   WaitGroup   those who came before the counter was 0 (ticket < notify): a later round that
 *               begins while they are being woken is none of their business
 *   Cond        those who came before the broadcast, likewise; signal takes the first by itself
 *   Once        all, when it is done
 *   Semaphore   the first, if what it wants is free: a large one is not starved by small ones
 *
 * A WAITER'S MARK (ticket, or what it wants) stands in the value of its g, which holds none
 * meanwhile.
 *
 * A CANCELLED WAITER leaves the queue by its canceller and settles when it runs (shm_sema_left): it
 * may have stood in the way of those behind. Rejected: settling by the canceller, which has a
 * claimed G in its hand already.
 *
 * WHO HOLDS IT. Mutex, RWMutex and Once know their holder's goid, a RWMutex its readers' too (as
 * far as there is memory for their names: who is not named is only counted). A reaper tells them of
 * each goroutine that died with its M (shm_sema_reap); the lock is then dead (INV owner-died): all
 * who wait and all who come get SHM_EOWNER until somebody, who has looked after what it protects,
 * recovers it. All objects are in one list for this. Rejected: to find the dead holder when
 * somebody waits; a goid that is gone may as well have ended in peace, which is legal (Go's locks
 * belong to no goroutine). */
#include "internal.h"

#define FIRST_HOLDERS 7 /* with their count a block of 64 bytes */

static_assert(offsetof(struct shm_g, value) % 8 == 0, "a mark is a word");

struct shm_sema *shm_sema_at(const struct shm_ctx *c, shm_off off, uint32_t what)
{
    struct shm_sema *sy = shm_at(c, off);
    if (unlikely(off == 0 || shm_kind(&sy->obj) != SHM_OBJ_SEMA || (what && sy->what != what)))
        shm_throw("sync: %#llx is no object of kind %u", (unsigned long long)off, what);
    return sy;
}

uint64_t shm_sema_mark(const struct shm_g *g)
{
    uint64_t mark;
    memcpy(&mark, g->value.b, sizeof mark);
    return mark;
}

void shm_sema_mark_set(struct shm_g *g, uint64_t mark)
{
    memcpy(g->value.b, &mark, sizeof mark);
}

static struct shm_waitq *queue(struct shm_sema *sy)
{
    return SHM_WAITQ(&sy->first);
}
static struct shm_waitq *readers(struct shm_sema *sy)
{
    return SHM_WAITQ(&sy->rfirst);
}

static uint64_t first_mark(const struct shm_ctx *c, const struct shm_waitq *q)
{
    const struct shm_sudog *s = shm_at(c, q->first);
    return shm_sema_mark(shm_g(c, s->g));
}

/* ---- make and free --------------------------------------------------------------------------- */

int shm_sema_new(struct shm_ctx *c, uint32_t what, uint64_t n, shm_off mutex, shm_off *out)
{
    struct shm_hdr *h = c->hdr;
    int e = shm_obj_alloc(c, SHM_OBJ_SEMA, sizeof(struct shm_sema), 0, out);
    if (e)
        return e;
    struct shm_sema *sy = shm_at(c, *out);
    sy->what = what;
    sy->n = n;
    store_rlx(&sy->word, n);
    sy->other = mutex;
    if (mutex)
        shm_obj_ref_hand(c, mutex); /* until sy is there instead */
    shm_lock(c, &h->sema_lock);
    sy->next = h->sema_first;
    shm_tx_begin(c);
    shm_obj_made(c, *out);
    if (sy->next)
        shm_tx_store64(c, &((struct shm_sema *)shm_at(c, sy->next))->prev, *out);
    shm_tx_store64(c, &h->sema_first, *out);
    shm_tx_commit(c);
    shm_unlock(c, &h->sema_lock);
    return SHM_OK;
}

/* At the last unref: nobody waits (a wait holds a reference), nobody holds the lock. */
void shm_sema_free(struct shm_ctx *c, shm_off off)
{
    struct shm_hdr *h = c->hdr;
    struct shm_sema *sy = shm_sema_at(c, off, 0);
    shm_off mutex = sy->other, holders = sy->holders;
    if (unlikely(sy->first || sy->rfirst))
        shm_throw("sync: %#llx goes with goroutines waiting on it", (unsigned long long)off);
    shm_lock(c, &h->sema_lock);
    shm_tx_begin(c);
    shm_obj_gone(c, off);
    if (mutex)
        shm_hand(c, mutex);
    if (holders)
        shm_adopt(c, holders);
    shm_tx_store64(c, sy->prev ? &((struct shm_sema *)shm_at(c, sy->prev))->next : &h->sema_first,
                   sy->next);
    if (sy->next)
        shm_tx_store64(c, &((struct shm_sema *)shm_at(c, sy->next))->prev, sy->prev);
    shm_tx_commit(c);
    shm_unlock(c, &h->sema_lock);
    FAILPOINT("sema.free.unlisted");
    if (holders)
        shm_free(c, holders);
    shm_free(c, off);
    if (mutex)
        shm_obj_unref(c, mutex);
}

int shm_atomic_new(struct shm_ctx *c, int64_t value, shm_off *out)
{
    int e = shm_obj_alloc(c, SHM_OBJ_ATOMIC, sizeof(struct shm_atomic), 0, out);
    if (e)
        return e;
    atomic_init(&((struct shm_atomic *)shm_at(c, *out))->value, value);
    shm_obj_born(c, *out);
    return SHM_OK;
}

/* ---- the readers of a RWMutex ---------------------------------------------------------------- */

static uint64_t *holders(const struct shm_ctx *c, const struct shm_sema *sy)
{
    return sy->holders ? (uint64_t *)shm_at(c, sy->holders) : NULL;
}

/* Room for the name of one more reader. The lock is given back in between. */
static void make_room(struct shm_ctx *c, struct shm_sema *sy)
{
    uint64_t *old = holders(c, sy);
    if (sy->what != SHM_SY_RWMUTEX || (old && old[0] < sy->holders_cap))
        return;
    uint32_t cap = sy->holders_cap ? 2 * sy->holders_cap + 1 : FIRST_HOLDERS;
    shm_off fresh;
    shm_unlock(c, &sy->lock);
    int e = shm_alloc(c, (cap + 1) * sizeof *old, &fresh);
    shm_lock(c, &sy->lock);
    if (e)
        return; /* counted, not named */
    shm_off was = fresh;
    if (sy->holders_cap < cap) {
        uint64_t *w = shm_at(c, fresh);
        was = sy->holders;
        w[0] = 0;
        if (was)
            memcpy(w, shm_at(c, was), (sy->holders_cap + 1) * sizeof *w);
        shm_tx_begin(c);
        shm_publish(c, fresh);
        if (was)
            shm_adopt(c, was);
        shm_tx_store64(c, &sy->holders, fresh);
        shm_tx_store32(c, &sy->holders_cap, cap);
        shm_tx_commit(c);
    }
    if (was)
        shm_free(c, was);
}

static void name_reader(struct shm_ctx *c, struct shm_sema *sy, uint64_t goid) /* in a tx */
{
    uint64_t *w = holders(c, sy);
    if (w && w[0] < sy->holders_cap) {
        w[w[0] + 1] = goid; /* not read until it is counted */
        shm_tx_store64(c, &w[0], w[0] + 1);
    }
}

/* In a tx. False: it is not there. */
static bool unname_reader(struct shm_ctx *c, struct shm_sema *sy, uint64_t goid)
{
    uint64_t *w = holders(c, sy), i = w ? w[0] : 0;
    while (i > 0 && w[i] != goid)
        i--;
    if (i == 0)
        return false;
    shm_tx_store64(c, &w[i], w[w[0]]);
    shm_tx_store64(c, &w[0], w[0] - 1);
    return true;
}

/* ---- who may go ------------------------------------------------------------------------------ */

/* The lock held. Someone who comes now. */
static bool may_go(const struct shm_sema *sy, int how, uint64_t want)
{
    uint64_t word = load_rlx(&sy->word); /* under the lock */
    switch (sy->what) {
    case SHM_SY_RWMUTEX:
        return word == 0 && !sy->first && (how == SHM_SY_READ || (sy->n == 0 && !sy->rfirst));
    case SHM_SY_WAITGROUP:
        return word == 0;
    case SHM_SY_ONCE:
        return !(sy->state & SHM_SY_RUNNING);
    case SHM_SY_SEMAPHORE:
        return want <= word && !sy->first;
    }
    return false;
}

/* The lock held. Whose first may go, NULL: nobody. */
static struct shm_waitq *next_queue(const struct shm_ctx *c, struct shm_sema *sy)
{
    struct shm_waitq *q = queue(sy), *r = readers(sy);
    uint64_t word = load_rlx(&sy->word); /* under the lock */
    if (sy->state & SHM_SY_DEAD)
        return q->first ? q : r->first ? r : NULL;
    switch (sy->what) {
    case SHM_SY_RWMUTEX:
        if (word != 0)
            return NULL;
        if (r->first && (!q->first || first_mark(c, r) < sy->notify))
            return r;
        return q->first && sy->n == 0 ? q : NULL;
    case SHM_SY_WAITGROUP:
    case SHM_SY_COND:
    case SHM_SY_ONCE:
        return q->first && first_mark(c, q) < sy->notify ? q : NULL;
    case SHM_SY_SEMAPHORE:
        return q->first && first_mark(c, q) <= word ? q : NULL;
    }
    return NULL;
}

bool shm_sema_owes(const struct shm_ctx *c, const struct shm_sema *sy)
{
    if (sy->what == SHM_SY_MUTEX && !(sy->state & (SHM_SY_DEAD | SHM_SY_WOKEN)))
        return sy->first && !(load_rlx(&sy->word) & SHM_SY_LOCKED); /* the checker's: at rest */
    return next_queue(c, (struct shm_sema *)(uintptr_t)sy) != NULL;
}

/* In a tx. To the goroutine goid. */
static void grant(struct shm_ctx *c, struct shm_sema *sy, int how, uint64_t want, uint64_t goid)
{
    switch (sy->what) {
    case SHM_SY_RWMUTEX:
        if (how == SHM_SY_WRITE) {
            shm_tx_store64(c, &sy->word, shm_sema_held_by(goid));
        } else {
            shm_tx_store64(c, &sy->n, sy->n + 1);
            name_reader(c, sy, goid);
        }
        break;
    case SHM_SY_ONCE:
        if (!(sy->state & SHM_SY_DONE)) {
            shm_tx_store64(c, &sy->word, shm_sema_held_by(goid));
            shm_tx_store32(c, &sy->state, SHM_SY_RUNNING);
        }
        break;
    case SHM_SY_SEMAPHORE:
        shm_tx_store64(c, &sy->word, load_rlx(&sy->word) - want); /* under the lock */
        break;
    }
}

void shm_sema_settle(struct shm_ctx *c, struct shm_sema *sy)
{
    _Atomic uint64_t *name = &c->m->inflight[SHM_IF_WAKE];
    struct shm_waitq *q;
    unsigned n;
    do {
        for (n = 0; n < SHM_WAKE_BATCH && next_queue(c, sy) != NULL;) {
            make_room(c, sy);
            if ((q = next_queue(c, sy)) == NULL)
                break;
            struct shm_sudog *s = shm_at(c, q->first);
            shm_gref r = s->g;
            bool won = shm_claim_named(c, r, s->epoch, SHM_IF_WAKE + n);
            bool dead = sy->state & SHM_SY_DEAD;
            shm_tx_begin(c);
            if (!won) {
                shm_sudog_remove(c, q, s);
            } else {
                struct shm_g *g = shm_g(c, r);
                if (!dead)
                    grant(c, sy, s->linked, shm_sema_mark(g), g->goid);
                shm_sudog_win(c, q, s, dead ? SHM_OK_OWNER : SHM_OK_VALUE);
                n++;
            }
            shm_tx_commit(c);
            FAILPOINT("sema.settle.won");
        }
        if (n == 0)
            return;
        shm_unlock(c, &sy->lock);
        for (unsigned i = 0; i < n; i++) {
            shm_ready(c, load_rlx(&name[i]), n == 1); /* own word; many: in their order */
            store_rlx(&name[i], 0);
        }
        shm_lock(c, &sy->lock);
    } while (n == SHM_WAKE_BATCH);
}

/* ---- try and park ---------------------------------------------------------------------------- */

/* The lock held. */
static int try_locked(struct shm_ctx *c, struct shm_sema *sy, int how, uint64_t want, uint64_t goid)
{
    if (how == SHM_SY_READ)
        make_room(c, sy);
    if (unlikely(sy->state & SHM_SY_DEAD))
        return SHM_EOWNER;
    if (!may_go(sy, how, want))
        return SHM_EAGAIN;
    /* As the binding says it: of a Once, that it is the caller who is to run the function. */
    bool mine = sy->what == SHM_SY_ONCE && !(sy->state & SHM_SY_DONE);
    shm_tx_begin(c);
    grant(c, sy, how, want, goid);
    shm_retry_done(c, SHM_OK_VALUE, NULL, mine);
    shm_tx_commit(c);
    return SHM_OK;
}

int shm_sema_try(struct shm_ctx *c, shm_off off, int how, uint64_t want, uint64_t goid)
{
    struct shm_sema *sy = shm_sema_at(c, off, 0);
    shm_lock(c, &sy->lock);
    int e = try_locked(c, sy, how, want, goid);
    shm_unlock(c, &sy->lock);
    return e;
}

static unsigned reason(const struct shm_sema *sy, int how)
{
    switch (sy->what) {
    case SHM_SY_RWMUTEX:
        return how == SHM_SY_READ ? SHM_WR_RWMUTEX_RLOCK : SHM_WR_RWMUTEX_LOCK;
    case SHM_SY_WAITGROUP:
        return SHM_WR_WAITGROUP_WAIT;
    case SHM_SY_ONCE:
        return SHM_WR_ONCE_DO;
    }
    return SHM_WR_SEMAPHORE_ACQUIRE;
}

int shm_sema_park(struct shm_ctx *c, shm_off off, int how, uint64_t want, shm_gref r)
{
    struct shm_sema *sy = shm_sema_at(c, off, 0);
    struct shm_g *g = shm_g(c, r);
    shm_lock(c, &sy->lock);
    int e = try_locked(c, sy, how, want, g->goid);
    if (e == SHM_EAGAIN) {
        shm_sema_mark_set(g, sy->what == SHM_SY_SEMAPHORE ? want : sy->ticket);
        shm_tx_begin(c);
        shm_tx_store64(c, &sy->ticket, sy->ticket + 1);
        uint64_t epoch =
            shm_sudog_join(c, r, SHM_OBJ_SEMA, off, how == SHM_SY_READ ? readers(sy) : queue(sy),
                           how == SHM_SY_READ ? SHM_SY_READ : SHM_SY_WRITE, false);
        shm_tx_commit(c);
        FAILPOINT("sema.park.linked");
        shm_park_commit(c, r, reason(sy, how), epoch);
        e = SHM_PARKED;
    }
    shm_unlock(c, &sy->lock);
    return e;
}

/* The lock held. Of a waiter that goes without a look back: it may have been the one on its way. */
static void settle_all(struct shm_ctx *c, struct shm_sema *sy)
{
    shm_sema_settle(c, sy);
    if (sy->what == SHM_SY_MUTEX)
        shm_mutex_revive(c, sy);
}

void shm_sema_left(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, 0);
    shm_lock(c, &sy->lock);
    settle_all(c, sy);
    shm_unlock(c, &sy->lock);
}

/* ---- what changes a state -------------------------------------------------------------------- */

int shm_rwmutex_unlock(struct shm_ctx *c, shm_off off, int how, uint64_t goid)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_RWMUTEX);
    int e = SHM_OK;
    shm_lock(c, &sy->lock);
    if (how == SHM_SY_WRITE ? load_rlx(&sy->word) == 0 : sy->n == 0) { /* under the lock */
        e = SHM_EAGAIN;
    } else if (how == SHM_SY_WRITE && sy->state & SHM_SY_DEAD) {
        e = SHM_EOWNER;
    } else {
        shm_tx_begin(c);
        if (how == SHM_SY_WRITE) {
            shm_tx_store64(c, &sy->word, 0);
            shm_tx_store64(c, &sy->notify, sy->ticket);
        } else {
            uint64_t *w = holders(c, sy);
            /* Another's read lock is given back: any name will do. */
            if (!unname_reader(c, sy, goid) && w && w[0] >= sy->n)
                shm_tx_store64(c, &w[0], w[0] - 1);
            shm_tx_store64(c, &sy->n, sy->n - 1);
        }
        shm_retry_done(c, SHM_OK_VALUE, NULL, 0);
        shm_tx_commit(c);
        shm_sema_settle(c, sy);
    }
    shm_unlock(c, &sy->lock);
    return e;
}

int shm_waitgroup_add(struct shm_ctx *c, shm_off off, int64_t n)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_WAITGROUP);
    int e = SHM_EAGAIN;
    shm_lock(c, &sy->lock);
    int64_t was = (int64_t)load_rlx(&sy->word), now; /* under the lock */
    if (!__builtin_add_overflow(was, n, &now) && now >= 0) {
        shm_tx_begin(c);
        shm_tx_store64(c, &sy->word, (uint64_t)now);
        if (now == 0)
            shm_tx_store64(c, &sy->notify, sy->ticket);
        shm_tx_commit(c);
        if (now == 0)
            shm_sema_settle(c, sy);
        e = SHM_OK;
    }
    shm_unlock(c, &sy->lock);
    return e;
}

/* No lock: only the runner itself changes what it reads here, if it is the runner. */
bool shm_once_mine(struct shm_ctx *c, shm_off off, uint64_t goid)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_ONCE);
    return load_acq(&sy->word) == shm_sema_held_by(goid);
}

void shm_once_done(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_ONCE);
    shm_lock(c, &sy->lock);
    shm_tx_begin(c);
    shm_tx_store64(c, &sy->word, 0);
    shm_tx_store32(c, &sy->state, SHM_SY_DONE);
    shm_tx_store64(c, &sy->notify, UINT64_MAX);
    shm_tx_commit(c);
    shm_sema_settle(c, sy);
    shm_unlock(c, &sy->lock);
}

int shm_semaphore_release(struct shm_ctx *c, shm_off off, uint64_t n)
{
    struct shm_sema *sy = shm_sema_at(c, off, SHM_SY_SEMAPHORE);
    int e = SHM_EAGAIN;
    shm_lock(c, &sy->lock);
    uint64_t free = load_rlx(&sy->word); /* under the lock */
    if (n <= sy->n - free) {
        shm_tx_begin(c);
        shm_tx_store64(c, &sy->word, free + n);
        shm_retry_done(c, SHM_OK_VALUE, NULL, 0);
        shm_tx_commit(c);
        shm_sema_settle(c, sy);
        e = SHM_OK;
    }
    shm_unlock(c, &sy->lock);
    return e;
}

/* ---- the dead -------------------------------------------------------------------------------- */

/* The lock held. */
static void owner_died(struct shm_ctx *c, struct shm_sema *sy, uint64_t goid)
{
    bool holds = load_rlx(&sy->word) >> 8 == goid && load_rlx(&sy->word) & SHM_SY_LOCKED;
    switch (sy->what) { /* word: under the lock, but for a mutex's fast path */
    case SHM_SY_MUTEX:
        holds = holds && shm_mutex_slow(sy) && load_rlx(&sy->word) >> 8 == goid;
        break;
    case SHM_SY_RWMUTEX:
        for (bool more = true; more;) {
            shm_tx_begin(c);
            more = unname_reader(c, sy, goid);
            if (more)
                shm_tx_store64(c, &sy->n, sy->n - 1);
            if (more)
                shm_tx_store32(c, &sy->state, SHM_SY_DEAD);
            shm_tx_commit(c);
        }
        break;
    case SHM_SY_ONCE:
        break;
    default:
        return;
    }
    if (!holds)
        return;
    shm_tx_begin(c);
    shm_tx_store32(c, &sy->state, SHM_SY_DEAD);
    shm_tx_commit(c);
    FAILPOINT("sema.died");
}

/* No lock: may goid hold it? */
static bool may_hold(struct shm_sema *sy, uint64_t goid)
{
    return load_acq(&sy->word) >> 8 == goid || sy->what == SHM_SY_RWMUTEX;
}

void shm_sema_reap(struct shm_ctx *c, uint64_t goid)
{
    struct shm_hdr *h = c->hdr;
    if (load_acq((_Atomic uint64_t *)&h->sema_first) == 0) /* pairs with shm_tx_store64() */
        return;
    shm_lock(c, &h->sema_lock); /* no object goes meanwhile */
    for (shm_off off = h->sema_first; off;) {
        struct shm_sema *sy = shm_at(c, off);
        if (goid == 0 || may_hold(sy, goid)) {
            shm_lock(c, &sy->lock);
            if (goid)
                owner_died(c, sy, goid);
            settle_all(c, sy);
            shm_unlock(c, &sy->lock);
        }
        off = sy->next;
    }
    shm_unlock(c, &h->sema_lock);
}

bool shm_sema_recover(struct shm_ctx *c, shm_off off)
{
    struct shm_sema *sy = shm_sema_at(c, off, 0);
    shm_lock(c, &sy->lock);
    bool dead = sy->state & SHM_SY_DEAD;
    if (dead) {
        shm_tx_begin(c);
        /* Never 0 in a transaction: see mutex.c. Readers that live hold their locks on. */
        shm_tx_store64(c, &sy->word, sy->what == SHM_SY_MUTEX ? SHM_SY_SLOW : 0);
        shm_tx_store32(c, &sy->state, 0);
        shm_tx_commit(c);
        if (sy->what == SHM_SY_MUTEX)
            shm_mutex_revive(c, sy);
        shm_sema_settle(c, sy);
    }
    shm_unlock(c, &sy->lock);
    return dead;
}
