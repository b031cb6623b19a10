/* test_idle.c — the idle dance: no wake is lost, none is doubled (shm/idle.c, sysmon.c). */
#include "places.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

/* ---- storms: tokens that park, yield and sleep ----------------------------------------------- */

/* M0 sleeps in its findrunnable; a deadlock is true: every token left waits in a place. */
static void m0(struct shm_ctx *c, struct prog *s)
{
    shm_mexit(c);
    CHECK_EQ(shm_minit(c, SHM_M_M0), SHM_OK);
    store_rel(&c->hdr->deadlock_on, 1);
    for (uint32_t i = 0; i < s->ntok; i++)
        spawn(c);
    add_acqrel(&s->started, 1);
    shm_gref r;
    int e;
    while ((e = schedule(c, &r)) == SHM_EDEADLOCK) {
        uint32_t waiting = 0;
        shm_gref in[64];
        for (uint32_t i = 0; i < s->nplaces; i++)
            if ((in[waiting] = take_out(c, place_at(c, s, i))))
                waiting++;
        CHECK_EQ(waiting, load_acq(&s->left));
        CHECK(waiting > 0);
        add_acqrel(&s->deadlocks, 1);
        for (uint32_t i = 0; i < waiting; i++)
            shm_ready(c, in[i], true);
    }
    CHECK_EQ(e, SHM_EDEAD);
    shm_releasep(c);
}

static void storm_m(struct shm_ctx *c, int i, void *arg)
{
    srandom((unsigned)i * 7919 + (unsigned)shm_now_ns());
    if (i == 0)
        m0(c, arg);
    else
        worker(c, arg);
}

/* nworkers Ms, M0 and ntok tokens, each with its turns.
 * Nothing is lost, doubled or forgotten asleep. */
static void storm(uint32_t nprocs, uint32_t nworkers, uint32_t ntok, uint32_t nplaces,
                  uint32_t turns, uint64_t spin_ns, uint32_t sleep_ns, uint32_t migrate)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = nprocs, .migrate = migrate});
    shm_calibrate(&c);
    c.hdr->spin_ns = spin_ns;
    struct prog *s = h_shared(sizeof *s);
    CHECK_EQ(shm_minit(&c, SHM_M_AUX), SHM_OK);
    s->places_off = shm_offof(&c, places(&c, nplaces));
    s->nplaces = nplaces;
    s->ntok = ntok;
    s->turns = turns;
    s->nworkers = nworkers;
    s->sleep_ns = sleep_ns;
    store_rlx(&s->left, ntok);
    h_ms((int)nworkers + 1, storm_m, s);
    CHECK_EQ(load_acq(&s->left), 0);
    uint64_t executed = 0, moves = 0;
    for (uint32_t i = 0; i < load_acq(&c.hdr->max_m); i++) {
        executed += load_rlx(&c.mtab[i].st.executed);
        moves += load_rlx(&c.mtab[i].st.moves);
        for (int k = 0; k < SHM_INFLIGHT; k++)
            CHECK_EQ(load_rlx(&c.mtab[i].inflight[k]), 0);
    }
    CHECK_EQ(executed, (uint64_t)ntok * turns);
    CHECK(migrate != 1 || moves > executed / 8);
    for (uint32_t i = 1; i <= ntok; i++)
        CHECK_EQ(load_acq(&s->turn[i]), turns);
    CHECK_EQ(load_acq(&c.hdr->runq_size), 0);
    for (uint32_t i = 0; i < nprocs; i++)
        CHECK(shm_runqempty(&c.ptab[i]));
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

static void test_many_tokens_through_park_ready_and_steal_each_exactly_once(void)
{
    storm(4, 4, 500, 32, (uint32_t)H_N(60, 2000), 40000, 0, 0);
}

static void test_few_tokens_and_ms_that_sleep_at_once_lose_no_wake_up(void)
{
    for (uint32_t tok = 1; tok <= 6; tok++)
        storm(3, 3, tok, 4, (uint32_t)H_N(150, 20000), 0, 0, 0);
}

static void test_few_tokens_and_spinning_ms_lose_no_wake_up(void)
{
    for (uint32_t tok = 1; tok <= 6; tok++)
        storm(3, 3, tok, 4, (uint32_t)H_N(150, 20000), 30000, 0, 0);
}

static void test_more_ms_than_ps_share_them(void)
{
    storm(2, 4, 20, 8, (uint32_t)H_N(200, 10000), 20000, 0, 0);
}

static void test_migration_at_every_park_loses_nothing(void)
{
    storm(3, 3, 10, 4, (uint32_t)H_N(50, 2000), 20000, 0, 1);
}

static void test_sleepers_wake_whoever_is_idle_and_are_no_deadlock(void)
{
    for (uint32_t tok = 1; tok <= 16; tok *= 4)
        storm(3, 4, tok, 4, (uint32_t)H_N(100, 5000), 0, 400000, 0);
}

/* ---- wakes ----------------------------------------------------------------------------------- */

enum { HOG_NS = 300000000 };

/* M 1 runs a G that makes one other runnable and then computes; M 2 sleeps. */
static void hog_or_sleep(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    shm_gref r;
    if (i == 0) {
        shm_gref first = spawn(c);
        CHECK_EQ(schedule(c, &r), SHM_OK);
        CHECK_EQ(r, first);
        add_acqrel(&s->started, 1);
        H_WAIT(load_acq(&s->started) == 2);
        /* The other M is asleep, not just on its way. */
        H_WAIT(load_acq(&c->hdr->idle_m[0]) != 0);
        for (uint32_t k = 0; k < s->ntok; k++)
            spawn(c);
        uint64_t until = shm_now_ns() + HOG_NS;
        while (load_acq(&s->left) && shm_now_ns() < until)
            cpu_relax();
        store_rel(&s->stop, 1);
        shm_goexit0(c, r);
        end_program(c);
    } else {
        H_WAIT(load_acq(&s->started) == 1); /* the hog has its G */
        add_acqrel(&s->started, 1);
        while (schedule(c, &r) == SHM_OK) {
            sub_acqrel(&s->left, 1);
            shm_goexit0(c, r);
        }
    }
    while (schedule(c, &r) == SHM_OK)
        shm_goexit0(c, r);
    if (c->p)
        shm_releasep(c);
}

static struct prog *hog_program(struct shm_ctx *c, uint32_t ntok)
{
    h_seg(c, (struct shm_opts){.nprocs = 2});
    shm_calibrate(c);
    c->hdr->spin_ns = 0;
    struct prog *s = h_shared(sizeof *s);
    s->ntok = ntok;
    store_rlx(&s->left, ntok);
    return s;
}

static void test_a_goroutine_that_makes_much_runnable_wakes_a_sleeper_without_coming_back(void)
{
    struct shm_ctx c;
    struct prog *s = hog_program(&c, 8);
    h_ms(2, hog_or_sleep, s);
    CHECK_EQ(load_acq(&s->left), 0);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

/* The keeper's loop, until shutdown. */
static void keep(struct shm_ctx *c, struct prog *s)
{
    shm_mexit(c);
    CHECK_EQ(shm_minit(c, SHM_M_KEEPER), SHM_OK);
    int pidfd = (int)syscall(SYS_pidfd_open, getppid(), 0), e;
    CHECK(pidfd >= 0);
    while ((e = shm_sysmon(c, pidfd, NULL, 0)) == -2)
        ;
    CHECK_EQ(e, -3);
    close(pidfd);
    (void)s;
}

static void hog_sleep_or_keep(struct shm_ctx *c, int i, void *arg)
{
    if (i == 2)
        keep(c, arg);
    else
        hog_or_sleep(c, i, arg);
}

static void test_one_goroutine_left_behind_a_hog_is_paid_for_by_the_keeper(void)
{
    struct shm_ctx c;
    struct prog *s = hog_program(&c, 1);
    c.kick_fd = eventfd(0, EFD_NONBLOCK);
    CHECK(c.kick_fd >= 0);
    uint64_t before = shm_now_ns();
    h_ms(3, hog_sleep_or_keep, s);
    CHECK_EQ(load_acq(&s->left), 0);
    CHECK(shm_now_ns() - before < HOG_NS); /* not when the hog had ended */
    close(c.kick_fd);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

/* Ms 0 and 1 sleep, the keeper sleeps long; then a thread outside makes a hog,
 * and the hog one behind it. */
static void quiet_then_busy(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    if (i == 2) {
        keep(c, s);
        return;
    }
    if (i == 3) {
        shm_mexit(c);
        CHECK_EQ(shm_minit(c, SHM_M_AUX), SHM_OK);
        H_WAIT(load_acq(&c->hdr->keeper_asleep) == 1 &&
               __builtin_popcountll(load_acq(&c->hdr->idle_m[0])) == 2);
        spawn(c);
        H_WAIT(load_acq(&s->turn[0]) == 2);
        end_program(c);
        uint64_t one = 1;
        CHECK_EQ(write(c->kick_fd, &one, sizeof one), sizeof one);
        return;
    }
    shm_gref r;
    while (schedule(c, &r) == SHM_OK) {
        if (add_acqrel(&s->turn[0], 1) == 0) {
            spawn(c); /* into runnext; only the keeper can see that it waits */
            H_WAIT(load_acq(&s->turn[0]) == 2);
        }
        shm_goexit0(c, r);
    }
    if (c->p)
        shm_releasep(c);
}

static void test_a_keeper_that_sleeps_long_is_kicked_when_work_begins(void)
{
    struct shm_ctx c;
    struct prog *s = hog_program(&c, 0);
    c.kick_fd = eventfd(0, EFD_NONBLOCK);
    h_ms(4, quiet_then_busy, s);
    CHECK_EQ(load_acq(&s->turn[0]), 2);
    close(c.kick_fd);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

/* M 0 runs one G for long: the keeper asks it to yield, not before 10 ms,
 * and again if it does not. */
static void long_slice(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    if (i == 1) {
        keep(c, s);
        return;
    }
    shm_gref r;
    spawn(c);
    CHECK_EQ(schedule(c, &r), SHM_OK);
    uint64_t from = shm_now_ns();
    H_WAIT(shm_preempt_requested(c));
    CHECK(shm_now_ns() - from >= 10000000 - 4000000);
    shm_gosched(c, r);
    CHECK_EQ(schedule(c, &r), SHM_OK);
    CHECK(!shm_preempt_requested(c));
    H_WAIT(shm_preempt_requested(c));
    shm_goexit0(c, r);
    end_program(c);
    uint64_t one = 1;
    CHECK_EQ(write(c->kick_fd, &one, sizeof one), sizeof one);
    shm_releasep(c);
}

static void test_a_slice_of_more_than_10_ms_gets_a_preempt_request(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 1});
    shm_calibrate(&c);
    c.kick_fd = eventfd(0, EFD_NONBLOCK);
    struct prog *s = h_shared(sizeof *s);
    h_ms(2, long_slice, s);
    close(c.kick_fd);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

/* A ring of home Gs, one on each M: each wakes the next M's, which sleeps. */
static void home_ring(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    shm_gref r, mine;
    struct place *pl = (struct place *)shm_at(c, s->places_off);
    CHECK_EQ(shm_gnew(c, &mine), SHM_OK);
    shm_g(c, mine)->home_m1 = (uint16_t)c->m1;
    shm_newproc(c, mine);
    uint32_t n = s->nworkers, rounds = s->turns, done = 0;
    bool holds = i == 0;
    int e;
    while ((e = schedule(c, &r)) == SHM_OK) {
        CHECK_EQ(r, mine);
        if (done || holds) {
            /* It is my turn: the next one has parked or will, so it is waited for. */
            shm_gref other;
            done++;
            H_WAIT((other = take_out(c, &pl[((uint32_t)i + 1) % n])) != 0 ||
                   load_acq(&c->hdr->shutdown));
            if (i == 0 && done == rounds) {
                if (other)
                    shm_ready(c, other, true);
                shm_goexit0(c, r);
                end_program(c);
                continue;
            }
            CHECK_EQ(meet(c, &pl[i], r), 0);
            if (other)
                shm_ready(c, other, true);
        } else {
            done = 1;
            CHECK_EQ(meet(c, &pl[i], r), 0);
        }
    }
    CHECK_EQ(e, SHM_EDEAD);
    if (c->p)
        shm_releasep(c);
}

static void test_home_goroutines_wake_each_others_ms(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 3});
    shm_calibrate(&c);
    struct prog *s = h_shared(sizeof *s);
    CHECK_EQ(shm_minit(&c, SHM_M_AUX), SHM_OK);
    s->places_off = shm_offof(&c, places(&c, 3));
    s->nworkers = 3;
    s->turns = (uint32_t)H_N(300, 20000);
    h_ms(3, home_ring, s);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

/* ---- outside threads ------------------------------------------------------------------------- */

/* A thread that is no worker parks its G with a time limit; others take it out: one of the two. */
static void outside(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    struct place *pl = (struct place *)shm_at(c, s->places_off);
    if (i > 0) {
        while (!load_acq(&s->stop)) {
            shm_gref r = take_out(c, &pl[0]);
            if (r) {
                shm_g(c, r)->ok = 1;
                shm_ready(c, r, false);
            }
            busy_ns((uint64_t)random() % 30000);
        }
        return;
    }
    shm_gref r;
    uint32_t woken = 0, late = 0;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_g(c, r)->flags = SHM_GF_OUTSIDE;
    CHECK(shm_casgstatus(c, r, Gidle, Grunnable) && shm_gclaim_runnable(c, r));
    store_rlx(&c->m->inflight[SHM_IF_NEW], 0);
    for (uint32_t k = 0; k < s->turns; k++) {
        CHECK_EQ(meet(c, &pl[0], r), 0);
        int e = o_sleep(c, r, k % 50 == 0 ? -1 : random() % 60000);
        CHECK(e == SHM_OK || e == SHM_ETIME);
        CHECK_EQ(shm_readgstatus(c, r), Grunning);
        CHECK_EQ(shm_g(c, r)->ok, e == SHM_OK ? 1 : 3);
        woken += e == SHM_OK;
        late += e == SHM_ETIME;
    }
    CHECK(woken > 0);
    CHECK_EQ(woken + late, s->turns);
    store_rel(&s->stop, 1);
    CHECK(shm_casgstatus(c, r, Grunning, Gdead));
    shm_gfree(c, r);
}

static void test_an_outside_thread_is_woken_or_times_out_never_both(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 3});
    struct prog *s = h_shared(sizeof *s);
    CHECK_EQ(shm_minit(&c, SHM_M_AUX), SHM_OK);
    struct place *pl = places(&c, 1);
    pl->aborts = 1;
    s->places_off = shm_offof(&c, pl);
    s->turns = (uint32_t)H_N(1000, 50000);
    h_ms(3, outside, s);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

H_MAIN(T(test_many_tokens_through_park_ready_and_steal_each_exactly_once),
       T(test_few_tokens_and_ms_that_sleep_at_once_lose_no_wake_up),
       T(test_few_tokens_and_spinning_ms_lose_no_wake_up), T(test_more_ms_than_ps_share_them),
       T(test_migration_at_every_park_loses_nothing),
       T(test_sleepers_wake_whoever_is_idle_and_are_no_deadlock),
       T(test_a_goroutine_that_makes_much_runnable_wakes_a_sleeper_without_coming_back),
       T(test_one_goroutine_left_behind_a_hog_is_paid_for_by_the_keeper),
       T(test_a_keeper_that_sleeps_long_is_kicked_when_work_begins),
       T(test_a_slice_of_more_than_10_ms_gets_a_preempt_request),
       T(test_home_goroutines_wake_each_others_ms),
       T(test_an_outside_thread_is_woken_or_times_out_never_both))
