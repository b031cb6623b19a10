/* test_deadlock.c — when it may be said that nothing will ever happen again (shm/deadlock.c). */
#include "places.h"

static void test_a_deadlock_is_not_declared_while_anything_can_still_happen(void)
{
    struct shm_ctx c, w, k, x;
    m_alone(&c, 2, SHM_M_M0);
    second(&w, &c, SHM_M_WORKER);
    second(&k, &c, SHM_M_KEEPER);
    second(&x, &c, SHM_M_AUX);
    struct place *pl = places(&c, 4);
    shm_gref r = spawn(&c);
    CHECK_EQ(next_g(&w), r);
    CHECK_EQ(meet(&w, pl, r), 0);
    CHECK_EQ(next_g(&w), 0);
    shm_releasep(&w);
    CHECK(!shm_checkdead(&c)); /* the worker is awake */
    store_seq(&w.m->spinning, SHM_M_IDLE);
    CHECK(!shm_checkdead(&c)); /* the keeper is awake */
    store_seq(&k.m->spinning, SHM_M_IDLE);
    CHECK(shm_checkdead(&c));

    store_seq(&c.hdr->externs, 1);
    CHECK(!shm_checkdead(&c));
    store_seq(&c.hdr->externs, 0);
    store_rel(&c.ptab[2].timer0_when, shm_now_ns() + 1000000000); /* M0's own P counts too */
    CHECK(!shm_checkdead(&c));
    store_rel(&c.ptab[2].timer0_when, UINT64_MAX);
    store_seq(&w.m->spinning, SHM_M_SPINNING);
    CHECK(!shm_checkdead(&c));
    store_seq(&w.m->spinning, SHM_M_IDLE);
    store_rlx(&c.m->curg, r);
    CHECK(!shm_checkdead(&c)); /* main runs */
    store_rlx(&c.m->curg, 0);

    shm_gref born;
    CHECK_EQ(shm_gnew(&x, &born), SHM_OK);
    CHECK(!shm_checkdead(&c)); /* somebody is making a goroutine */
    CHECK(shm_casgstatus(&x, born, Gidle, Grunnable));
    CHECK(!shm_checkdead(&c)); /* runnable, in no queue yet */
    CHECK(shm_gclaim_runnable(&x, born));
    CHECK(!shm_checkdead(&c));
    shm_g(&c, born)->flags = SHM_GF_OUTSIDE;
    CHECK_EQ(meet(&x, pl + 1, born), 0);
    CHECK(shm_checkdead(&c)); /* a blocked thread wakes nobody */
    shm_g(&c, born)->home_why = SHM_HOME_TIMED;
    CHECK(!shm_checkdead(&c)); /* but by itself, when its timeout is over */
    shm_g(&c, born)->home_why = SHM_HOME_NONE;
    CHECK_EQ(take_out(&x, pl + 1), born);
    CHECK(!shm_checkdead(&c)); /* it is in its waker's hand */
    shm_ready(&x, born, false);
    CHECK(!shm_checkdead(&c)); /* its thread has not seen it yet */
    CHECK_EQ(o_sleep(&x, born, -1), SHM_OK);
    CHECK(shm_casgstatus(&x, born, Grunning, Gdead));
    shm_gfree(&x, born);
    CHECK(shm_checkdead(&c));
    CHECK_EQ(shm_readgstatus(&c, r), Gwaiting); /* the question changed nothing */
    h_seg_end(&c);
}

static void fall_asleep_and_die(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    (void)arg;
    store_seq(&c->m->spinning, SHM_M_IDLE);
    kill(getpid(), SIGKILL);
}

static void test_a_deadlock_is_not_declared_before_a_death_is_settled(void)
{
    if (H_TSAN)
        return; /* takes a process to die */
    struct shm_ctx c;
    m_alone(&c, 2, SHM_M_M0);
    CHECK(shm_checkdead(&c));
    int pid = h_fork(fall_asleep_and_die, 0, NULL);
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0); /* a zombie, unnoticed */
    CHECK(!shm_checkdead(&c));
    h_wait(pid);
    CHECK(!shm_checkdead(&c)); /* the slot still names it */
    h_seg_end(&c);
}

static void sleep_dead(struct shm_ctx *c, int i, void *arg)
{
    struct prog *s = arg;
    shm_gref r;
    if (i > 0) {
        worker(c, s);
        return;
    }
    shm_mexit(c);
    CHECK_EQ(shm_minit(c, SHM_M_M0), SHM_OK);
    store_rel(&c->hdr->deadlock_on, 1);
    CHECK_EQ(schedule(c, &r), SHM_EDEADLOCK); /* there is nothing at all: it must come */
    uint64_t from = shm_now_ns();
    store_seq(&c->hdr->externs, 1);
    bool inherit;
    while (shm_now_ns() - from < 250000000)
        CHECK_EQ(shm_findrunnable(c, true, &r, &inherit), SHM_EINTR); /* M0's naps */
    store_seq(&c->hdr->externs, 0);
    CHECK_EQ(schedule(c, &r), SHM_EDEADLOCK); /* nobody tells M0 that the last extern has gone */
    end_program(c);
    CHECK_EQ(schedule(c, &r), SHM_EDEAD);
    shm_releasep(c);
}

static void test_a_deadlock_is_always_declared_in_the_end(void)
{
    for (int k = 0; k < H_N(1, 20); k++) {
        struct shm_ctx c;
        h_seg(&c, (struct shm_opts){.nprocs = 3});
        shm_calibrate(&c);
        struct prog *s = h_shared(sizeof *s);
        h_ms(4, sleep_dead, s);
        munmap(s, sizeof *s);
        h_seg_end(&c);
    }
}

static void test_without_workers_m0_runs_everything_and_sees_its_own_deadlock(void)
{
    struct shm_ctx c;
    m_alone(&c, UINT32_MAX, SHM_M_M0);
    CHECK_EQ(c.hdr->nprocs, 0);
    store_rel(&c.hdr->deadlock_on, 1);
    struct place *pl = places(&c, 1);
    shm_gref a = spawn(&c), r;
    bool inherit;
    CHECK_EQ(schedule(&c, &r), SHM_OK);
    CHECK_EQ(r, a);
    CHECK_EQ(meet(&c, pl, a), 0);
    CHECK_EQ(shm_findrunnable(&c, true, &r, &inherit), SHM_EDEADLOCK);
    shm_ready(&c, take_out(&c, pl), true);
    CHECK_EQ(schedule(&c, &r), SHM_OK);
    CHECK_EQ(r, a);
    h_seg_end(&c);
}

H_MAIN(T(test_a_deadlock_is_not_declared_while_anything_can_still_happen),
       T(test_a_deadlock_is_not_declared_before_a_death_is_settled),
       T(test_a_deadlock_is_always_declared_in_the_end),
       T(test_without_workers_m0_runs_everything_and_sees_its_own_deadlock))
