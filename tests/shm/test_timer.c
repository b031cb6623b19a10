/* Tests of timer.c, the sleepers: order, once, not before its time, cancelled in time. */
#include "gs.h"

#define SEC 1000000000ULL

static shm_gref sleeper(struct shm_ctx *c, uint64_t when)
{
    shm_gref r = l_new(c);
    CHECK_EQ(shm_sleep_park(c, r, when), SHM_PARKED);
    return r;
}

/* The clock is the test's: the times lie in a far future, what is due is what it says. */
static void test_sleepers_wake_in_the_order_of_their_times(void)
{
    struct shm_ctx c;
    enum { N = 200 };
    uint64_t t0 = shm_now_ns() + 10000 * SEC, perm[N];
    l_seg(&c);
    for (uint64_t i = 0; i < N; i++) {
        uint64_t j = h_rand(&c) % (i + 1);
        perm[i] = perm[j];
        perm[j] = i;
    }
    shm_gref at[N];
    for (int i = 0; i < N; i++)
        at[perm[i]] = sleeper(&c, t0 + perm[i]);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_timer_next(&c), t0);
    uint32_t ran;
    CHECK_EQ(shm_checktimers(&c, c.p, t0 - 1, &ran), t0);
    CHECK_EQ(ran, 0);
    for (uint64_t i = 0, step = 0; i < N; i += step) {
        step = 1 + i % 40;
        uint64_t last = i + step < N ? i + step : N;
        shm_checktimers(&c, c.p, t0 + last - 1, &ran);
        CHECK_EQ(ran, last - i);
        CHECK_SEGMENT(&c);
        for (uint64_t k = i; k < last; k++) {
            CHECK_EQ(l_next(&c), at[k]);
            CHECK_EQ(shm_g(&c, at[k])->ok, 1);
            l_end(&c, at[k]);
        }
    }
    l_seg_end(&c);
}

static void test_nobody_wakes_before_his_time_and_all_do_after_it(void)
{
    struct shm_ctx c;
    enum { N = 50 };
    uint64_t when[N];
    shm_gref r[N];
    l_seg(&c);
    for (int i = 0; i < N; i++) {
        when[i] = shm_now_ns() + h_rand(&c) % 3000000;
        r[i] = sleeper(&c, when[i]);
    }
    for (int left = N; left > 0; left--) {
        shm_gref g;
        H_WAIT((g = l_next(&c)) != 0);
        int i = 0;
        while (r[i] != g)
            i++;
        CHECK(shm_now_ns() >= when[i]);
        l_end(&c, g);
    }
    l_seg_end(&c);
}

static void test_a_time_that_has_passed_is_a_turn_for_the_others(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_gref other = l_new(&c);
    shm_gosched(&c, other);
    shm_gref r = sleeper(&c, shm_now_ns() - 5);
    CHECK_EQ(shm_readgstatus(&c, r), Grunnable);
    CHECK_EQ(l_next(&c), other);
    l_end(&c, other);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 1);
    l_end(&c, r);
    l_seg_end(&c);
}

static void test_the_end_of_time_never_comes_and_can_be_cancelled(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_gref r = sleeper(&c, UINT64_MAX);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    uint32_t ran;
    shm_checktimers(&c, c.p, UINT64_MAX - 1, &ran);
    CHECK_EQ(ran, 0);
    CHECK_SEGMENT(&c);
    CHECK(g_cancel(&c, r));
    shm_ready(&c, r, true);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 2);
    l_end(&c, r);
    l_seg_end(&c);
}

/* So a program all of whose timeouts were cancelled is seen to be asleep at once. */
static void test_a_cancelled_sleeper_leaves_no_entry_wherever_it_stood(void)
{
    struct shm_ctx c;
    enum { N = 300 };
    shm_gref r[N];
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    l_seg(&c);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < N; i++)
            r[i] = sleeper(&c, t0 + h_rand(&c) % 1000);
        for (int i = 0; i < N; i++) {
            int j = i + (int)(h_rand(&c) % (uint64_t)(N - i));
            shm_gref x = r[j];
            r[j] = r[i];
            r[i] = x;
            CHECK(g_cancel(&c, x));
            CHECK_EQ(c.p->timers_n, N - 1 - i);
            shm_ready(&c, x, false);
            CHECK_EQ(l_next(&c), x);
            l_end(&c, x);
            if (i % 10 == 0)
                CHECK_SEGMENT(&c);
        }
        CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    }
    l_seg_end(&c);
}

static void test_a_sleeper_claimed_by_a_canceller_is_taken_out_once(void)
{
    struct shm_ctx c;
    uint32_t ran;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    l_seg(&c);
    shm_gref r = sleeper(&c, t0), other = sleeper(&c, t0 + 1);
    CHECK(shm_wait_claim(&c, r, g_epoch(&c, r)));
    CHECK_EQ(shm_checktimers(&c, c.p, t0, &ran), t0 + 1);
    CHECK_EQ(ran, 0);
    shm_sudog_unlink(&c, r);
    CHECK_EQ(c.p->timers_n, 1);
    shm_ready(&c, r, true);
    CHECK_EQ(l_next(&c), r);
    l_end(&c, r);
    shm_checktimers(&c, c.p, t0 + 1, &ran);
    CHECK_EQ(ran, 1);
    CHECK_EQ(l_next(&c), other);
    l_end(&c, other);
    l_seg_end(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

enum { MS = 4 };
struct storm {
    uint32_t rounds;
    _Atomic uint64_t slept, cancelled;
    _Atomic uint64_t who[MS]; /* gref of each M's sleeper, so that the others may cancel it */
    _Atomic uint64_t epoch[MS];
    _Atomic uint32_t ended;
};

/* Each M sleeps, as an outside thread, and meanwhile everybody runs timers and cancels others. */
static void sleep_and_cancel(struct shm_ctx *c, int i, void *arg)
{
    struct storm *t = arg;
    shm_gref r = o_new(c);
    struct shm_g *g = shm_g(c, r);
    for (uint32_t k = 0; k < t->rounds; k++) {
        uint64_t when = shm_now_ns() + 1000 + h_rand(c) % 100000;
        uint64_t strike = shm_now_ns() + 1000 + h_rand(c) % 100000; /* when to cancel somebody */
        store_rlx(&t->epoch[i], shm_wait_next(g));
        store_rel(&t->who[i], r); /* pairs with the load below */
        CHECK_EQ(shm_sleep_park(c, r, when), SHM_PARKED);
        while (shm_readgstatus(c, r) != Grunnable) {
            uint32_t ran;
            shm_checktimers(c, &c->ptab[h_rand(c) % c->hdr->max_p], shm_now_ns(), &ran);
            if (shm_now_ns() < strike)
                continue;
            strike = UINT64_MAX;
            int j = (int)(h_rand(c) % MS);
            shm_gref x = load_acq(&t->who[j]); /* pairs with the store above */
            if (x && shm_wait_abort(c, x, load_rlx(&t->epoch[j]), 2))
                shm_ready(c, x, false);
        }
        CHECK(shm_gclaim_runnable(c, r));
        if (g->ok == 1)
            CHECK(shm_now_ns() >= when);
        else
            CHECK_EQ(g->ok, 2);
        add_rlx(g->ok == 1 ? &t->slept : &t->cancelled, 1);
    }
    store_rel(&t->who[i], 0); /* as above */
    /* Others may still have it in hand: not yet to be used again. */
    add_acqrel(&t->ended, 1);
    H_WAIT(load_acq(&t->ended) == MS);
    o_end(c, r);
}

static void test_a_sleeper_wakes_exactly_once_whoever_runs_timers_and_cancels(void)
{
    struct shm_ctx c;
    struct storm *t = h_shared(sizeof *t);
    h_seg(&c, (struct shm_opts){.nprocs = MS});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    t->rounds = (uint32_t)H_N(1000, 60000);
    h_ms(MS, sleep_and_cancel, t);
    CHECK_EQ(t->slept + t->cancelled, (uint64_t)MS * t->rounds);
    CHECK(t->slept > 0 && t->cancelled > 0);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    o_seg_end(&c);
    munmap(t, sizeof *t);
}

H_MAIN(T(test_sleepers_wake_in_the_order_of_their_times),
       T(test_nobody_wakes_before_his_time_and_all_do_after_it),
       T(test_a_time_that_has_passed_is_a_turn_for_the_others),
       T(test_the_end_of_time_never_comes_and_can_be_cancelled),
       T(test_a_cancelled_sleeper_leaves_no_entry_wherever_it_stood),
       T(test_a_sleeper_claimed_by_a_canceller_is_taken_out_once),
       T(test_a_sleeper_wakes_exactly_once_whoever_runs_timers_and_cancels))
