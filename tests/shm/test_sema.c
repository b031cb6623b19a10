/* Tests of sema.c and mutex.c: who gets in, in which order, who is told,
 * and that nothing is lost. */
#include "gs.h"

static void end_all(struct shm_ctx *c)
{
    CHECK_EQ(c->hdr->sema_first, 0);
    l_seg_end(c);
}

static shm_off make(struct shm_ctx *c, uint32_t what, uint64_t n)
{
    shm_off sy;
    CHECK_EQ(shm_sema_new(c, what, n, 0, &sy), SHM_OK);
    return sy;
}

static struct shm_sema *sema(struct shm_ctx *c, shm_off sy)
{
    return shm_at(c, sy);
}

/* A light G that parks in the mutex. */
static shm_gref l_lock(struct shm_ctx *c, shm_off sy)
{
    shm_gref r = l_new(c);
    CHECK_EQ(shm_mutex_lock_park(c, sy, r), SHM_PARKED);
    return r;
}

static shm_gref l_wait(struct shm_ctx *c, shm_off sy, int how, uint64_t want)
{
    shm_gref r = l_new(c);
    CHECK_EQ(shm_sema_park(c, sy, how, want, r), SHM_PARKED);
    return r;
}

/* The next G has been woken with that ok. */
static void l_woken(struct shm_ctx *c, shm_gref r, unsigned ok)
{
    CHECK_EQ(l_next(c), r);
    CHECK_EQ(shm_g(c, r)->ok, ok);
}

static void l_cancel(struct shm_ctx *c, shm_gref r)
{
    CHECK(g_cancel(c, r));
    shm_ready(c, r, true);
    l_woken(c, r, SHM_OK_CANCELLED);
}

/* ---- mutex, one M ---------------------------------------------------------------------------- */

static void test_an_uncontended_mutex_is_one_word(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off m = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_EAGAIN);
    CHECK_EQ(shm_mutex_trylock(&c, m, 7), SHM_OK);
    CHECK_EQ(load_acq(&sema(&c, m)->word), 7 << 8 | SHM_SY_LOCKED);
    CHECK_EQ(shm_mutex_trylock(&c, m, 8), SHM_EAGAIN);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_EQ(load_acq(&sema(&c, m)->word), 0);
    shm_obj_unref(&c, m);
    end_all(&c);
}

static void test_unlock_wakes_the_first_waiter_who_competes(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off m = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    shm_gref a = l_lock(&c, m), b = l_lock(&c, m);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_SEGMENT(&c);
    /* Whoever comes first has it; the next unlock wakes nobody else: one is on its way. */
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    l_woken(&c, a, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_again(&c, a), SHM_PARKED);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_woken(&c, a, SHM_OK_COMPETE); /* it has kept its place */
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_mutex_again(&c, a), SHM_OK);
    CHECK_EQ(shm_g(&c, a)->ok, SHM_OK_VALUE);
    CHECK_EQ(load_acq(&sema(&c, m)->word) >> 8, shm_g(&c, a)->goid);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_end(&c, a);
    l_woken(&c, b, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_again(&c, b), SHM_OK);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_EQ(load_acq(&sema(&c, m)->word), 0); /* fast again */
    l_end(&c, b);
    shm_obj_unref(&c, m);
    end_all(&c);
}

/* Makes a waiter that has lost once believe that it has waited for long. */
static void starve(struct shm_ctx *c, shm_off m, shm_gref r)
{
    uint64_t long_ago = 1;
    CHECK_EQ(shm_mutex_unlock(c, m), SHM_OK);
    CHECK_EQ(shm_mutex_trylock(c, m, 1), SHM_OK);
    l_woken(c, r, SHM_OK_COMPETE);
    memcpy(shm_g(c, r)->value.b, &long_ago, sizeof long_ago);
    CHECK_EQ(shm_mutex_again(c, r), SHM_PARKED);
    CHECK(sema(c, m)->state & SHM_SY_STARVING);
}

static void test_a_starving_mutex_is_handed_over(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off m = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    shm_gref a = l_lock(&c, m), b = l_lock(&c, m);
    starve(&c, m, a);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_EQ(load_acq(&sema(&c, m)->word) >> 8, shm_g(&c, a)->goid); /* before it runs */
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_EAGAIN);
    CHECK_SEGMENT(&c);
    l_woken(&c, a, SHM_OK_VALUE);
    CHECK(sema(&c, m)->state & SHM_SY_STARVING);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_end(&c, a);
    l_woken(&c, b, SHM_OK_VALUE);
    CHECK(!(sema(&c, m)->state & SHM_SY_STARVING)); /* the last has it */
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    CHECK_EQ(load_acq(&sema(&c, m)->word), 0);
    l_end(&c, b);
    shm_obj_unref(&c, m);
    end_all(&c);
}

static void test_a_cancelled_waiter_is_passed_over_in_either_mode(void)
{
    struct shm_ctx c;
    for (int starving = 0; starving < 2; starving++) {
        l_seg(&c);
        shm_off m = make(&c, SHM_SY_MUTEX, 0);
        CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
        shm_gref a = l_lock(&c, m), b = l_lock(&c, m);
        if (starving)
            starve(&c, m, a);
        l_cancel(&c, a);
        l_end(&c, a);
        CHECK_SEGMENT(&c);
        CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
        l_woken(&c, b, starving ? SHM_OK_VALUE : SHM_OK_COMPETE);
        if (!starving)
            CHECK_EQ(shm_mutex_again(&c, b), SHM_OK);
        l_cancel(&c, l_lock(&c, m)); /* the only one */
        CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
        CHECK_EQ(load_acq(&sema(&c, m)->word), 0);
        l_end(&c, b);
        for (uint64_t i = 1; i < load_acq(&c.hdr->g_next); i++) {
            uint64_t w = load_acq(&c.gtab[i].status);
            if (SHM_ST_STATUS(w) == Grunning)
                l_end(&c, (uint64_t)SHM_ST_GEN(w) << 32 | i);
        }
        shm_obj_unref(&c, m);
        end_all(&c);
    }
}

/* ---- who may go, one M ----------------------------------------------------------------------- */

static void test_a_writer_that_waits_keeps_readers_out_and_they_go_before_the_next(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off rw = make(&c, SHM_SY_RWMUTEX, 0);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_READ, 0, 1), SHM_OK);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_READ, 0, 2), SHM_OK);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_WRITE, 0, 3), SHM_EAGAIN);
    shm_gref w1 = l_wait(&c, rw, SHM_SY_WRITE, 0);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_READ, 0, 3), SHM_EAGAIN);
    shm_gref r1 = l_wait(&c, rw, SHM_SY_READ, 0), r2 = l_wait(&c, rw, SHM_SY_READ, 0);
    shm_gref w2 = l_wait(&c, rw, SHM_SY_WRITE, 0);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, 1), SHM_OK);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, 2), SHM_OK);
    l_woken(&c, w1, SHM_OK_VALUE);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, 1), SHM_EAGAIN);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_WRITE, 1), SHM_OK);
    l_end(&c, w1);
    CHECK_SEGMENT(&c);
    l_woken(&c, r1, SHM_OK_VALUE);
    l_woken(&c, r2, SHM_OK_VALUE);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, shm_g(&c, r1)->goid), SHM_OK);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, shm_g(&c, r2)->goid), SHM_OK);
    l_woken(&c, w2, SHM_OK_VALUE);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_WRITE, 1), SHM_OK);
    l_end(&c, w2);
    l_end(&c, r1);
    l_end(&c, r2);
    shm_obj_unref(&c, rw);
    end_all(&c);
}

static void test_a_hundred_readers_get_in_after_a_writer(void)
{
    struct shm_ctx c;
    shm_gref r[100];
    l_seg(&c);
    shm_off rw = make(&c, SHM_SY_RWMUTEX, 0);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_WRITE, 0, 1), SHM_OK);
    for (int i = 0; i < 100; i++)
        r[i] = l_wait(&c, rw, SHM_SY_READ, 0);
    CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_WRITE, 1), SHM_OK);
    CHECK_SEGMENT(&c);
    for (int i = 0; i < 100; i++)
        l_woken(&c, r[i], SHM_OK_VALUE);
    CHECK_EQ(sema(&c, rw)->n, 100);
    CHECK_EQ(*(uint64_t *)shm_at(&c, sema(&c, rw)->holders), 100);
    for (int i = 99; i >= 0; i--) {
        CHECK_EQ(shm_rwmutex_unlock(&c, rw, SHM_SY_READ, shm_g(&c, r[i])->goid), SHM_OK);
        l_end(&c, r[i]);
    }
    CHECK_EQ(*(uint64_t *)shm_at(&c, sema(&c, rw)->holders), 0);
    CHECK_EQ(shm_sema_try(&c, rw, SHM_SY_WRITE, 0, 1), SHM_OK);
    shm_obj_unref(&c, rw);
    end_all(&c);
}

static void test_a_semaphore_serves_in_order_whatever_they_want(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off s = make(&c, SHM_SY_SEMAPHORE, 5);
    CHECK_EQ(shm_sema_try(&c, s, SHM_SY_WRITE, 3, 0), SHM_OK);
    CHECK_EQ(shm_sema_try(&c, s, SHM_SY_WRITE, 3, 0), SHM_EAGAIN);
    CHECK_EQ(shm_semaphore_release(&c, s, 4), SHM_EAGAIN);
    shm_gref a = l_wait(&c, s, SHM_SY_WRITE, 4), b = l_wait(&c, s, SHM_SY_WRITE, 1),
             d = l_wait(&c, s, SHM_SY_WRITE, 1);
    CHECK_EQ(shm_sema_try(&c, s, SHM_SY_WRITE, 1, 0), SHM_EAGAIN); /* others came before */
    CHECK_EQ(shm_semaphore_release(&c, s, 1), SHM_OK);
    CHECK_EQ(l_next(&c), 0);
    l_cancel(&c, a);
    shm_sema_left(&c, s); /* what it does when it runs */
    l_end(&c, a);
    CHECK_SEGMENT(&c);
    l_woken(&c, b, SHM_OK_VALUE);
    l_woken(&c, d, SHM_OK_VALUE);
    CHECK_EQ(load_acq(&sema(&c, s)->word), 1);
    l_end(&c, b);
    l_end(&c, d);
    shm_obj_unref(&c, s);
    end_all(&c);
}

static void test_a_round_of_a_waitgroup_wakes_its_own_waiters_only(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off wg = make(&c, SHM_SY_WAITGROUP, 0);
    CHECK_EQ(shm_sema_try(&c, wg, SHM_SY_WRITE, 0, 0), SHM_OK);
    CHECK_EQ(shm_waitgroup_add(&c, wg, -1), SHM_EAGAIN);
    CHECK_EQ(shm_waitgroup_add(&c, wg, 2), SHM_OK);
    CHECK_EQ(shm_waitgroup_add(&c, wg, INT64_MAX), SHM_EAGAIN);
    shm_gref a = l_wait(&c, wg, SHM_SY_WRITE, 0);
    CHECK_EQ(shm_waitgroup_add(&c, wg, -1), SHM_OK);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_waitgroup_add(&c, wg, -1), SHM_OK);
    CHECK_EQ(shm_waitgroup_add(&c, wg, 1), SHM_OK);
    shm_gref b = l_wait(&c, wg, SHM_SY_WRITE, 0);
    shm_sema_left(&c, wg);
    l_woken(&c, a, SHM_OK_VALUE);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_waitgroup_add(&c, wg, -1), SHM_OK);
    l_woken(&c, b, SHM_OK_VALUE);
    l_end(&c, a);
    l_end(&c, b);
    shm_obj_unref(&c, wg);
    end_all(&c);
}

static void test_a_cond_gives_back_its_mutex_and_wakes_who_waits_now(void)
{
    struct shm_ctx c;
    shm_gref r[40];
    shm_off m, cond;
    l_seg(&c);
    m = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_sema_new(&c, SHM_SY_COND, 0, m, &cond), SHM_OK);
    r[0] = l_new(&c);
    CHECK_EQ(shm_cond_park(&c, cond, r[0]), SHM_EAGAIN);
    l_end(&c, r[0]);
    for (int i = 0; i < 40; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_mutex_trylock(&c, m, shm_g(&c, r[i])->goid), SHM_OK);
        CHECK_EQ(shm_cond_park(&c, cond, r[i]), SHM_PARKED);
        CHECK_EQ(load_acq(&sema(&c, m)->word), 0);
    }
    CHECK_SEGMENT(&c);
    shm_cond_signal(&c, cond);
    l_woken(&c, r[0], SHM_OK_VALUE);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    shm_gref waits = l_lock(&c, m); /* the one whom a wait wakes by giving the mutex back */
    CHECK_EQ(shm_cond_park(&c, cond, r[0]), SHM_PARKED);
    l_woken(&c, waits, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_again(&c, waits), SHM_OK);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_end(&c, waits);
    shm_cond_broadcast(&c, cond);
    CHECK_SEGMENT(&c);
    for (int i = 1; i <= 40; i++) {
        l_woken(&c, r[i % 40], SHM_OK_VALUE);
        l_end(&c, r[i % 40]);
    }
    shm_cond_signal(&c, cond);
    shm_cond_broadcast(&c, cond);
    shm_obj_unref(&c, m);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, cond); /* and its mutex with it */
    end_all(&c);
}

static void test_of_a_once_one_runs_and_the_others_wait(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off once = make(&c, SHM_SY_ONCE, 0);
    CHECK_EQ(shm_sema_try(&c, once, SHM_SY_WRITE, 0, 9), SHM_OK);
    CHECK(shm_once_mine(&c, once, 9) && !shm_once_mine(&c, once, 8));
    shm_gref a = l_wait(&c, once, SHM_SY_WRITE, 0);
    shm_once_done(&c, once);
    l_woken(&c, a, SHM_OK_VALUE);
    CHECK_EQ(shm_sema_try(&c, once, SHM_SY_WRITE, 0, 9), SHM_OK);
    CHECK(!shm_once_mine(&c, once, 9));
    l_end(&c, a);
    shm_obj_unref(&c, once);
    end_all(&c);
}

/* ---- the dead -------------------------------------------------------------------------------- */

static void test_all_are_told_of_a_dead_holder_until_recover(void)
{
    static const uint32_t whats[] = {SHM_SY_MUTEX, SHM_SY_RWMUTEX, SHM_SY_RWMUTEX, SHM_SY_ONCE};
    struct shm_ctx c;
    l_seg(&c);
    for (int i = 0; i < 4; i++) {
        shm_off sy = make(&c, whats[i], 0);
        int how = i == 2 ? SHM_SY_READ : SHM_SY_WRITE;
        shm_gref r[40];
        CHECK_EQ(i ? shm_sema_try(&c, sy, how, 0, 77) : shm_mutex_trylock(&c, sy, 77), SHM_OK);
        for (int k = 0; k < 40; k++)
            r[k] = i ? l_wait(&c, sy, SHM_SY_WRITE, 0) : l_lock(&c, sy);
        shm_sema_reap(&c, 76);
        shm_sema_reap(&c, 0);
        CHECK_EQ(l_next(&c), 0);
        shm_sema_reap(&c, 77);
        shm_sema_reap(&c, 77); /* done again, it changes nothing */
        shm_sema_reap(&c, 0);
        CHECK_SEGMENT(&c);
        for (int k = 0; k < 40; k++) {
            l_woken(&c, r[k], SHM_OK_OWNER);
            l_end(&c, r[k]);
        }
        r[0] = l_new(&c);
        CHECK_EQ(i ? shm_sema_park(&c, sy, SHM_SY_WRITE, 0, r[0])
                   : shm_mutex_lock_park(&c, sy, r[0]),
                 SHM_EOWNER);
        l_end(&c, r[0]);
        CHECK_EQ(i ? shm_sema_try(&c, sy, SHM_SY_WRITE, 0, 5) : shm_mutex_trylock(&c, sy, 5),
                 SHM_EOWNER);
        CHECK(shm_sema_recover(&c, sy));
        CHECK(!shm_sema_recover(&c, sy));
        CHECK_EQ(i ? shm_sema_try(&c, sy, SHM_SY_WRITE, 0, 5) : shm_mutex_trylock(&c, sy, 5),
                 SHM_OK);
        shm_obj_unref(&c, sy);
    }
    end_all(&c);
}

static void test_if_the_waiter_on_its_way_dies_the_reaper_wakes_the_next(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off m = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    shm_gref a = l_lock(&c, m), b = l_lock(&c, m);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_woken(&c, a, SHM_OK_COMPETE);
    l_end(&c, a); /* it never looks */
    CHECK_EQ(l_next(&c), 0);
    shm_sema_reap(&c, 0);
    l_woken(&c, b, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK); /* likewise while it is held */
    CHECK_EQ(shm_mutex_again(&c, b), SHM_PARKED);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_woken(&c, b, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_trylock(&c, m, 1), SHM_OK);
    shm_gref d = l_lock(&c, m);
    l_end(&c, b);
    shm_sema_reap(&c, 0);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_woken(&c, d, SHM_OK_COMPETE);
    CHECK_EQ(shm_mutex_again(&c, d), SHM_OK);
    CHECK_EQ(shm_mutex_unlock(&c, m), SHM_OK);
    l_end(&c, d);
    shm_obj_unref(&c, m);
    end_all(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

struct traffic {
    shm_off sy, cond;
    uint32_t what, each;
    bool cancel;
    _Atomic uint64_t inside, passed, timeouts, items;
    uint64_t plain; /* under the lock: no update may be lost */
};

/* Until it has it; false: the time was up. */
static bool o_lock(struct shm_ctx *c, struct traffic *t, shm_gref r, int how, uint64_t want)
{
    struct shm_g *g = shm_g(c, r);
    bool mutex = t->what == SHM_SY_MUTEX;
    int e = mutex ? shm_mutex_lock_park(c, t->sy, r) : shm_sema_park(c, t->sy, how, want, r);
    while (e == SHM_PARKED) {
        int64_t limit = t->cancel ? (int64_t)(h_rand(c) % 200000) : -1;
        while ((e = o_sleep(c, r, limit)) == SHM_EINTR)
            ;
        if (e == SHM_ETIME) {
            shm_sema_left(c, t->sy);
            add_rlx(&t->timeouts, 1);
            return false;
        }
        CHECK_EQ(e, SHM_OK);
        if (g->ok == SHM_OK_COMPETE)
            e = shm_mutex_again(c, r);
        else
            CHECK_EQ(g->ok, SHM_OK_VALUE);
    }
    CHECK_EQ(e, SHM_OK);
    return true;
}

static void o_unlock(struct shm_ctx *c, struct traffic *t, shm_gref r, int how, uint64_t want)
{
    CHECK_EQ(t->what == SHM_SY_MUTEX     ? shm_mutex_unlock(c, t->sy)
             : t->what == SHM_SY_RWMUTEX ? shm_rwmutex_unlock(c, t->sy, how, shm_g(c, r)->goid)
                                         : shm_semaphore_release(c, t->sy, want),
             SHM_OK);
}

#define ALONE (1ULL << 32)
static void hammer(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    shm_gref r = o_new(c);
    c->rng += (uint64_t)i;
    for (uint32_t k = 0; k < t->each; k++) {
        bool reader = t->what == SHM_SY_RWMUTEX && h_rand(c) % 4;
        int how = reader ? SHM_SY_READ : SHM_SY_WRITE;
        uint64_t want = t->what == SHM_SY_SEMAPHORE ? 1 + h_rand(c) % 3 : 1;
        if (!o_lock(c, t, r, how, want))
            continue;
        if (t->what == SHM_SY_SEMAPHORE) {
            CHECK(add_rlx(&t->inside, want) + want <= 3);
            atomic_fetch_sub_explicit(&t->inside, want, memory_order_relaxed);
        } else if (reader) {
            CHECK(add_rlx(&t->inside, 1) < ALONE);
            atomic_fetch_sub_explicit(&t->inside, 1, memory_order_relaxed);
        } else {
            CHECK_EQ(add_rlx(&t->inside, ALONE), 0);
            t->plain++;
            add_rlx(&t->passed, 1);
            atomic_fetch_sub_explicit(&t->inside, ALONE, memory_order_relaxed);
        }
        o_unlock(c, t, r, how, want);
    }
    o_end(c, r);
}

static void hammer_all(uint32_t what, uint64_t n, bool cancel)
{
    struct shm_ctx c;
    struct traffic *t = h_shared(sizeof *t);
    o_seg(&c);
    *t = (struct traffic){.what = what, .each = (uint32_t)H_N(2000, 100000), .cancel = cancel};
    t->sy = make(&c, what, n);
    h_ms(6, hammer, t);
    CHECK_EQ(t->plain, t->passed);
    CHECK_EQ(t->inside, 0);
    CHECK_SEGMENT(&c);
    CHECK_EQ(what == SHM_SY_MUTEX ? shm_mutex_trylock(&c, t->sy, 1)
                                  : shm_sema_try(&c, t->sy, SHM_SY_WRITE, 3, 1),
             SHM_OK);
    shm_obj_unref(&c, t->sy);
    o_seg_end(&c);
    munmap(t, sizeof *t);
}

static void test_a_mutex_lets_one_in_at_a_time(void)
{
    hammer_all(SHM_SY_MUTEX, 0, false);
    hammer_all(SHM_SY_MUTEX, 0, true);
}

static void test_a_rwmutex_lets_many_read_or_one_write(void)
{
    hammer_all(SHM_SY_RWMUTEX, 0, false);
    hammer_all(SHM_SY_RWMUTEX, 0, true);
}

static void test_a_semaphore_never_gives_more_than_it_has(void)
{
    hammer_all(SHM_SY_SEMAPHORE, 3, false);
    hammer_all(SHM_SY_SEMAPHORE, 3, true);
}

/* A bounded queue of numbers, in one Cond: who waits too early or too late is never woken. */
static void produce_consume(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    shm_gref r = o_new(c);
    struct shm_g *g = shm_g(c, r);
    for (uint32_t k = 0; k < t->each; k++) {
        CHECK(o_lock(c, t, r, 0, 0));
        while (i % 2 ? t->plain == 0 : t->plain == 2) {
            CHECK_EQ(shm_cond_park(c, t->cond, r), SHM_PARKED);
            CHECK_EQ(o_wait(c, r, -1), SHM_OK);
            CHECK_EQ(g->ok, SHM_OK_VALUE);
            CHECK(o_lock(c, t, r, 0, 0));
        }
        t->plain += i % 2 ? -1ULL : 1;
        add_rlx(&t->items, 1);
        if (k % 3)
            shm_cond_broadcast(c, t->cond);
        o_unlock(c, t, r, 0, 0);
        if (k % 3 == 0)
            shm_cond_broadcast(c, t->cond);
    }
    o_end(c, r);
}

static void test_a_cond_loses_no_broadcast(void)
{
    struct shm_ctx c;
    struct traffic *t = h_shared(sizeof *t);
    o_seg(&c);
    *t = (struct traffic){.what = SHM_SY_MUTEX, .each = (uint32_t)H_N(1000, 50000)};
    t->sy = make(&c, SHM_SY_MUTEX, 0);
    CHECK_EQ(shm_sema_new(&c, SHM_SY_COND, 0, t->sy, &t->cond), SHM_OK);
    h_ms(6, produce_consume, t);
    CHECK_EQ(t->items, 6 * t->each);
    CHECK_EQ(t->plain, 0);
    shm_obj_unref(&c, t->sy);
    shm_obj_unref(&c, t->cond);
    o_seg_end(&c);
    munmap(t, sizeof *t);
}

H_MAIN(T(test_an_uncontended_mutex_is_one_word), T(test_unlock_wakes_the_first_waiter_who_competes),
       T(test_a_starving_mutex_is_handed_over),
       T(test_a_cancelled_waiter_is_passed_over_in_either_mode),
       T(test_a_writer_that_waits_keeps_readers_out_and_they_go_before_the_next),
       T(test_a_hundred_readers_get_in_after_a_writer),
       T(test_a_semaphore_serves_in_order_whatever_they_want),
       T(test_a_round_of_a_waitgroup_wakes_its_own_waiters_only),
       T(test_a_cond_gives_back_its_mutex_and_wakes_who_waits_now),
       T(test_of_a_once_one_runs_and_the_others_wait),
       T(test_all_are_told_of_a_dead_holder_until_recover),
       T(test_if_the_waiter_on_its_way_dies_the_reaper_wakes_the_next),
       T(test_a_mutex_lets_one_in_at_a_time), T(test_a_rwmutex_lets_many_read_or_one_write),
       T(test_a_semaphore_never_gives_more_than_it_has), T(test_a_cond_loses_no_broadcast))
