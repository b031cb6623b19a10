/* Deaths in sema.c and mutex.c: an M is killed at every failpoint it passes in an operation, its
 * reaper comes, and then every waiter gets on: it has what it waited for, or is told that the
 * holder died. */
#include "gs.h"

#define HOLDER 1000000 /* goid of who dies; no G stands for it */
#define MANY 40        /* more than are woken in one batch */

enum op {
    UNLOCK,
    HAND_OVER,
    WUNLOCK,
    RUNLOCK,
    RELEASE,
    DONE,
    ONCE,
    SIGNAL,
    BROADCAST,
    LOCK,
    WAIT,
    N_OPS
};

struct scene {
    enum op op;
    const char *point;
    uint32_t nth;
    shm_off sy, m; /* m: the cond's mutex */
};

static const char *const points[] = {
    "mutex.unlock",
    "mutex.unlock.released",
    "mutex.try",
    "mutex.again",
    "lock.named",
    "lock.taken",
    "lock.released",
    "sudog.named",
    "sudog.claimed",
    "undo.noted",
    "undo.counted",
    "undo.stored",
    "undo.commit",
    "undo.committed",
    "sema.settle.won",
    "sched.ready.named",
    "sched.ready.runnable",
    "sched.ready.queued",
    "mutex.lock.linked",
    "cond.wait.linked",
    "sched.gopark.reason",
    "g.wait.arm",
    "sudog.armed",
};

static uint32_t what_of(enum op op)
{
    switch (op) {
    case WUNLOCK:
    case RUNLOCK:
        return SHM_SY_RWMUTEX;
    case RELEASE:
        return SHM_SY_SEMAPHORE;
    case DONE:
        return SHM_SY_WAITGROUP;
    case ONCE:
        return SHM_SY_ONCE;
    case SIGNAL:
    case BROADCAST:
    case WAIT:
        return SHM_SY_COND;
    default:
        return SHM_SY_MUTEX;
    }
}

/* The one that dies. */
static void act(struct shm_ctx *c, int i, void *arg)
{
    struct scene *s = arg;
    shm_gref r = 0;
    int e = SHM_OK;
    (void)i;
    if (s->op == LOCK || s->op == WAIT) {
        CHECK_EQ(shm_acquirep(c, 1), SHM_OK);
        r = l_new(c);
        shm_obj_ref_hand(c, s->sy); /* the wait's, as the binding takes it */
        if (s->op == WAIT)
            CHECK_EQ(shm_mutex_trylock(c, s->m, shm_g(c, r)->goid), SHM_OK);
    }
    h_die_at(s->point, s->nth);
    switch (s->op) {
    case UNLOCK:
    case HAND_OVER:
        e = shm_mutex_unlock(c, s->sy);
        break;
    case WUNLOCK:
    case RUNLOCK:
        e = shm_rwmutex_unlock(c, s->sy, s->op == WUNLOCK ? SHM_SY_WRITE : SHM_SY_READ, HOLDER);
        break;
    case RELEASE:
        e = shm_semaphore_release(c, s->sy, MANY);
        break;
    case DONE:
        e = shm_waitgroup_add(c, s->sy, -1);
        break;
    case ONCE:
        shm_once_done(c, s->sy);
        break;
    case SIGNAL:
        shm_cond_signal(c, s->sy);
        break;
    case BROADCAST:
        shm_cond_broadcast(c, s->sy);
        break;
    case LOCK:
        CHECK_EQ(shm_mutex_lock_park(c, s->sy, r), SHM_PARKED);
        break;
    default:
        CHECK_EQ(shm_cond_park(c, s->sy, r), SHM_PARKED);
    }
    CHECK_EQ(e, SHM_OK);
    h_die_at("", 0);
    if (r)
        shm_releasep(c);
}

/* Runs whoever is up, and what each does next, until nobody is. How many have ended. */
static uint32_t run_all(struct shm_ctx *c, struct scene *s)
{
    uint32_t ended = 0;
    shm_gref r;
    while ((r = l_next(c)) != 0) {
        struct shm_g *g = shm_g(c, r);
        struct shm_sema *sy = shm_at(c, g->waitobj);
        if (g->ok == SHM_OK_COMPETE && shm_mutex_again(c, r) == SHM_PARKED)
            continue;
        if (g->ok == SHM_OK_OWNER)
            shm_sema_recover(c, g->waitobj);
        else if (sy->what == SHM_SY_MUTEX)
            CHECK_EQ(shm_mutex_unlock(c, g->waitobj), SHM_OK);
        else if (sy->what == SHM_SY_RWMUTEX)
            CHECK_EQ(shm_rwmutex_unlock(c, g->waitobj,
                                        s->op == RUNLOCK ? SHM_SY_WRITE : SHM_SY_READ, g->goid),
                     SHM_OK);
        shm_obj_unref(c, g->waitobj); /* its wait's */
        l_end(c, r);
        ended++;
    }
    return ended;
}

static uint32_t set_up(struct shm_ctx *c, struct scene *s)
{
    uint32_t what = what_of(s->op), n = s->op == SIGNAL ? 2 : s->op == WAIT ? 0 : MANY;
    uint64_t long_ago = 1;
    if (what == SHM_SY_COND)
        CHECK_EQ(shm_sema_new(c, SHM_SY_MUTEX, 0, 0, &s->m), SHM_OK);
    CHECK_EQ(shm_sema_new(c, what, what == SHM_SY_SEMAPHORE ? MANY : 0, s->m, &s->sy), SHM_OK);
    if (what == SHM_SY_MUTEX)
        CHECK_EQ(shm_mutex_trylock(c, s->sy, HOLDER), SHM_OK);
    else if (what == SHM_SY_WAITGROUP)
        CHECK_EQ(shm_waitgroup_add(c, s->sy, 1), SHM_OK);
    else if (what != SHM_SY_COND)
        CHECK_EQ(
            shm_sema_try(c, s->sy, s->op == RUNLOCK ? SHM_SY_READ : SHM_SY_WRITE, MANY, HOLDER),
            SHM_OK);
    for (uint32_t i = 0; i < n; i++) {
        shm_gref r = l_new(c);
        shm_obj_ref_hand(c, s->sy);
        if (what == SHM_SY_COND) {
            CHECK_EQ(shm_mutex_trylock(c, s->m, shm_g(c, r)->goid), SHM_OK);
            CHECK_EQ(shm_cond_park(c, s->sy, r), SHM_PARKED);
        } else if (what == SHM_SY_MUTEX) {
            CHECK_EQ(shm_mutex_lock_park(c, s->sy, r), SHM_PARKED);
        } else {
            CHECK_EQ(shm_sema_park(c, s->sy, s->op == WUNLOCK ? SHM_SY_READ : SHM_SY_WRITE, 1, r),
                     SHM_PARKED);
        }
        if (s->op == HAND_OVER && i == 0) { /* it has lost once, and waited for long */
            CHECK_EQ(shm_mutex_unlock(c, s->sy), SHM_OK);
            CHECK_EQ(shm_mutex_trylock(c, s->sy, HOLDER), SHM_OK);
            CHECK_EQ(l_next(c), r);
            memcpy(shm_g(c, r)->value.b, &long_ago, sizeof long_ago);
            CHECK_EQ(shm_mutex_again(c, r), SHM_PARKED);
        }
    }
    return n;
}

/* False: it does not pass that point so often. */
static bool die_at(enum op op, const char *point, uint32_t nth)
{
    struct shm_ctx c;
    struct scene *s = h_shared(sizeof *s);
    *s = (struct scene){.op = op, .point = point, .nth = nth};
    l_seg(&c);
    uint32_t n = set_up(&c, s), ended;
    int status = h_wait(h_fork(act, 0, s));
    bool died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    if (died)
        shm_reap(&c, &c.mtab[1], status);
    shm_sema_reap(&c, HOLDER);
    CHECK_SEGMENT(&c);
    ended = run_all(&c, s);
    if (op == DONE && load_acq(&((struct shm_sema *)shm_at(&c, s->sy))->word) == 1)
        CHECK_EQ(shm_waitgroup_add(&c, s->sy, -1), SHM_OK); /* nobody will: it is no lock */
    if (op == RELEASE && load_acq(&((struct shm_sema *)shm_at(&c, s->sy))->word) == 0 && ended < n)
        CHECK_EQ(shm_semaphore_release(&c, s->sy, MANY), SHM_OK); /* as above */
    if (op == SIGNAL || op == BROADCAST || op == WAIT)
        shm_cond_broadcast(&c, s->sy);
    ended += run_all(&c, s);
    if (op == LOCK || op == WAIT)
        CHECK(ended == n || ended == n + 1); /* the dead M's own, if it had parked */
    else
        CHECK_EQ(ended, n);
    for (int i = 0; i < 2; i++) { /* nothing is held any more */
        shm_off sy = i ? s->m : s->sy;
        uint32_t what = sy ? ((struct shm_sema *)shm_at(&c, sy))->what : 0;
        if (what == SHM_SY_MUTEX || what == SHM_SY_RWMUTEX) {
            shm_sema_recover(&c, sy);
            CHECK_EQ(what == SHM_SY_MUTEX ? shm_mutex_trylock(&c, sy, 5)
                                          : shm_sema_try(&c, sy, SHM_SY_WRITE, 0, 5),
                     SHM_OK);
        }
        if (sy)
            shm_obj_unref(&c, sy);
    }
    l_seg_end(&c);
    munmap(s, sizeof *s);
    return died;
}

static void die_everywhere(enum op op)
{
    uint32_t deaths = 0;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        for (uint32_t nth = 1; nth <= (uint32_t)H_N(12, 1000) && die_at(op, points[i], nth); nth++)
            deaths++;
    CHECK(deaths > 10);
}

#define DIES(name, op)                                      \
    static void test_a_death_in_##name##_loses_nobody(void) \
    {                                                       \
        die_everywhere(op);                                 \
    }
DIES(an_unlock, UNLOCK)
DIES(a_hand_over, HAND_OVER)
DIES(the_end_of_writing, WUNLOCK)
DIES(the_end_of_reading, RUNLOCK)
DIES(a_release, RELEASE)
DIES(the_last_done, DONE)
DIES(the_end_of_a_once, ONCE)
DIES(a_signal, SIGNAL)
DIES(a_broadcast, BROADCAST)
DIES(a_lock, LOCK)
DIES(a_wait, WAIT)

H_MAIN(T(test_a_death_in_an_unlock_loses_nobody), T(test_a_death_in_a_hand_over_loses_nobody),
       T(test_a_death_in_the_end_of_writing_loses_nobody),
       T(test_a_death_in_the_end_of_reading_loses_nobody),
       T(test_a_death_in_a_release_loses_nobody), T(test_a_death_in_the_last_done_loses_nobody),
       T(test_a_death_in_the_end_of_a_once_loses_nobody), T(test_a_death_in_a_signal_loses_nobody),
       T(test_a_death_in_a_broadcast_loses_nobody), T(test_a_death_in_a_lock_loses_nobody),
       T(test_a_death_in_a_wait_loses_nobody))
