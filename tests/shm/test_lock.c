/* test_lock.c — locks with an owner, notes (shm/lock_futex.c). */
#include "harness.h"

static void seg_with_m(struct shm_ctx *c)
{
    h_seg(c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(c, SHM_M_M0), SHM_OK);
}

/* ---- locks ----------------------------------------------------------------------------------- */

struct counted {
    int rounds;
    uint64_t n; /* under code_lock */
};

static void count_up(struct shm_ctx *c, int i, void *arg)
{
    struct counted *k = arg;
    for (int r = 0; r < k->rounds; r++) {
        shm_lock(c, &c->hdr->code_lock);
        uint64_t n = k->n;
        if (r % 1024 == i)
            sched_yield(); /* with the lock held: the others must sleep */
        k->n = n + 1;
        shm_unlock(c, &c->hdr->code_lock);
    }
}

static void test_a_lock_excludes(void)
{
    struct shm_ctx c;
    seg_with_m(&c);
    struct counted *k = h_shared(sizeof *k);
    k->rounds = H_N(20000, 1000000);
    h_ms(4, count_up, k);
    CHECK_EQ(k->n, 4 * k->rounds);
    CHECK_EQ(load_acq(&c.hdr->code_lock), 0);
    munmap(k, sizeof *k);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_an_m_names_the_locks_it_holds_in_whatever_order_it_gives_them_back(void)
{
    struct shm_ctx c;
    seg_with_m(&c);
    shm_lockword *l[8];
    static const int order[8] = {3, 0, 7, 1, 6, 2, 5, 4};
    for (int i = 0; i < 8; i++)
        shm_lock(&c, l[i] = &c.hdr->depot_lock[i]);
    CHECK_EQ(load_acq(&c.m->held_n), 8);
    for (int k = 0; k < 8; k++) {
        shm_unlock(&c, l[order[k]]);
        CHECK_EQ(load_acq(&c.m->held_n), 8 - 1 - k);
        for (int j = k + 1; j < 8; j++) {
            int found = 0;
            for (uint32_t i = 0; i < load_acq(&c.m->held_n); i++)
                found += load_acq(&c.m->held[i]) == shm_offof(&c, l[order[j]]);
            CHECK_EQ(found, 1);
        }
    }
    shm_mexit(&c);
    h_seg_end(&c);
}

/* INV only-the-dead. */

struct scene {
    _Atomic uint32_t held, taken;
};

static void die_holding(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    struct scene *s = arg;
    shm_lock(c, &c->hdr->code_lock);
    store_rel(&s->held, 1);
    for (;;)
        pause();
}

static void take_after(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    struct scene *s = arg;
    shm_lock(c, &c->hdr->code_lock);
    store_rel(&s->taken, 1);
    shm_unlock(c, &c->hdr->code_lock);
}

static void test_a_waiter_waits_for_a_dead_owner_until_it_is_reaped(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    struct shm_ctx c;
    seg_with_m(&c);
    struct scene *s = h_shared(sizeof *s);
    int owner = h_fork(die_holding, 0, s);
    H_WAIT(load_acq(&s->held));
    uint32_t m1 = load_acq(&c.hdr->code_lock) & 0xffff;
    struct shm_m *m = &c.mtab[m1 - 1];
    CHECK_EQ(load_acq(&m->pid), owner);
    int waiter = h_fork(take_after, 0, s);
    /* It sleeps on the word: the waiters bit is set. */
    H_WAIT(load_acq(&c.hdr->code_lock) >> 31);
    CHECK(shm_m_alive(&c, m1));
    CHECK_EQ(kill(owner, SIGSTOP), 0); /* stopped is not dead */
    CHECK(shm_m_alive(&c, m1));
    CHECK_EQ(kill(owner, SIGKILL), 0);
    /* Ended but not waited for, a zombie: dead. */
    H_WAIT(!shm_m_alive(&c, m1));
    /* Several of the waiter's bounded sleeps pass, each a chance to steal. */
    struct timespec fifty = {.tv_nsec = 50000000};
    nanosleep(&fifty, NULL);
    CHECK_EQ(load_acq(&s->taken), 0);
    CHECK_EQ(load_acq(&c.hdr->code_lock) & 0xffff, m1);
    CHECK_EQ(h_wait(owner), SIGKILL);
    CHECK(!shm_m_alive(&c, m1));
    shm_tx_rollback(&c, m);
    shm_lock_reap(&c, m);
    CHECK_EQ(h_wait(waiter), 0);
    CHECK_EQ(load_acq(&s->taken), 1);
    munmap(s, sizeof *s);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_reaping_leaves_a_lock_that_the_dead_one_only_wanted(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    struct shm_ctx c;
    seg_with_m(&c);
    struct scene *s = h_shared(sizeof *s);
    shm_lock(&c, &c.hdr->code_lock);
    int waiter = h_fork(take_after, 0, s);
    H_WAIT(load_acq(&c.hdr->code_lock) >> 31);
    CHECK_EQ(kill(waiter, SIGKILL), 0);
    CHECK_EQ(h_wait(waiter), SIGKILL);
    struct shm_m *m = &c.mtab[1];
    CHECK_EQ(load_acq(&m->held_n), 1);
    shm_lock_reap(&c, m);
    CHECK_EQ(load_acq(&m->held_n), 0);
    CHECK_EQ(load_acq(&c.hdr->code_lock) & 0xffff, c.m1);
    shm_unlock(&c, &c.hdr->code_lock);
    munmap(s, sizeof *s);
    shm_mexit(&c);
    h_seg_end(&c);
}

/* M 1 dies with a lock, M 2 has another and waits for that one; the reaper waits for M 2. */

static void hold_and_take(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    struct scene *s = arg;
    shm_lock(c, &c->hdr->sched_lock);
    store_rel(&s->held, 2);
    take_after(c, i, arg);
    shm_unlock(c, &c->hdr->sched_lock);
}

static void waits_for_one_that_waits_for_the_dead(uint32_t kind)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    struct shm_ctx first, c;
    seg_with_m(&first);
    shm_ctx_copy(&c, &first);
    CHECK_EQ(shm_minit(&c, kind), SHM_OK);
    struct scene *s = h_shared(sizeof *s);
    int owner = h_fork(die_holding, 0, s);
    H_WAIT(load_acq(&s->held) == 1);
    int between = h_fork(hold_and_take, 0, s);
    H_WAIT(load_acq(&s->held) == 2);
    CHECK_EQ(kill(owner, SIGKILL), 0);
    shm_lock(&c, &c.hdr->sched_lock); /* nobody but this M could reap */
    CHECK_EQ(load_acq(&s->taken), 1);
    shm_unlock(&c, &c.hdr->sched_lock);
    CHECK_EQ(h_wait(between), 0);
    CHECK_EQ(h_wait(owner), SIGKILL);
    munmap(s, sizeof *s);
    shm_mexit(&c);
    shm_mexit(&first);
    h_seg_end(&first);
}

static void test_a_keeper_that_waits_for_one_who_waits_for_the_dead_reaps_their_locks(void)
{
    waits_for_one_that_waits_for_the_dead(SHM_M_KEEPER);
}

static void test_so_does_m0_by_each_of_its_threads_while_there_is_no_keeper(void)
{
    waits_for_one_that_waits_for_the_dead(SHM_M_M0);
    waits_for_one_that_waits_for_the_dead(SHM_M_AUX);
}

static void test_a_slot_given_to_a_new_m_does_not_own_the_former_ones_lock(void)
{
    struct shm_ctx c;
    seg_with_m(&c);
    shm_lock(&c, &c.hdr->code_lock);
    uint32_t old = load_acq(&c.hdr->code_lock);
    shm_unlock(&c, &c.hdr->code_lock);
    shm_mexit(&c);
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    shm_lock(&c, &c.hdr->code_lock);
    CHECK_EQ(load_acq(&c.hdr->code_lock) & 0xffff, old & 0xffff);
    CHECK(load_acq(&c.hdr->code_lock) != old);
    shm_unlock(&c, &c.hdr->code_lock);
    shm_mexit(&c);
    h_seg_end(&c);
}

/* ---- notes ----------------------------------------------------------------------------------- */

struct table {
    _Atomic uint32_t note[2];
    uint64_t ball; /* whose note was set owns it */
    int rounds;
};

static void ping_pong(struct shm_ctx *c, int i, void *arg)
{
    (void)c;
    struct table *t = arg;
    for (int r = 0; r < t->rounds; r++) {
        while (!shm_notetsleep(&t->note[i], -1))
            ;
        shm_noteclear(&t->note[i]);
        CHECK_EQ(t->ball++, 2 * r + i);
        shm_notewakeup(&t->note[1 - i]);
    }
}

static void test_no_wakeup_of_a_note_is_lost(void)
{
    struct shm_ctx c;
    seg_with_m(&c);
    struct table *t = h_shared(sizeof *t);
    t->rounds = H_N(10000, 500000);
    store_rel(&t->note[0], 1);
    h_ms(2, ping_pong, t);
    CHECK_EQ(t->ball, 2 * t->rounds);
    munmap(t, sizeof *t);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void wake_at_random(struct shm_ctx *c, int i, void *arg)
{
    struct table *t = arg;
    uint32_t spins = 12345;
    for (int r = 0; r < t->rounds; r++) {
        if (i == 1) {
            spins = spins * 1103515245 + 12345;
            for (uint32_t k = 0; k < spins >> 20; k++)
                cpu_relax();
            shm_notewakeup(&t->note[0]);
            while (!shm_notetsleep(&t->note[1], -1))
                ;
            shm_noteclear(&t->note[1]);
            continue;
        }
        /* Timeouts about as long as the waker takes: set and time up race all the time. */
        while (!shm_notetsleep(&t->note[0], 1000 + (int64_t)(c->rng++ % 20) * 2000))
            CHECK(load_acq(&t->note[0]) != 2);
        shm_noteclear(&t->note[0]);
        shm_notewakeup(&t->note[1]);
    }
}

static void test_a_wakeup_that_races_with_the_time_limit_is_seen(void)
{
    struct shm_ctx c;
    seg_with_m(&c);
    struct table *t = h_shared(sizeof *t);
    t->rounds = H_N(2000, 100000);
    h_ms(2, wake_at_random, t);
    munmap(t, sizeof *t);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_a_sleep_is_not_shorter_than_its_limit_and_leaves_the_note_clear(void)
{
    _Atomic uint32_t note = 0;
    uint64_t t0 = shm_now_ns();
    CHECK(!shm_notetsleep(&note, 20000000));
    CHECK(shm_now_ns() - t0 >= 20000000);
    CHECK_EQ(load_acq(&note), 0);
    shm_notewakeup(&note);
    shm_notewakeup(&note); /* once set, it stays set */
    CHECK_EQ(load_acq(&note), 1);
    CHECK(shm_notetsleep(&note, 0));
    CHECK(shm_notetsleep(&note, -1));
    shm_noteclear(&note);
    CHECK(!shm_notetsleep(&note, 0));
}

static void on_usr1(int sig)
{
    (void)sig;
}

struct sleeper {
    _Atomic uint32_t note;
    _Atomic int woken;
};

static void sleep_until_signal(struct shm_ctx *c, int i, void *arg)
{
    (void)c;
    (void)i;
    struct sleeper *s = arg;
    struct sigaction sa = {.sa_handler = on_usr1};
    sigaction(SIGUSR1, &sa, NULL);
    store_rel(&s->woken, 1);
    CHECK(!shm_notetsleep(&s->note, -1));
    CHECK_EQ(load_acq(&s->note), 0);
    store_rel(&s->woken, 2);
}

static void test_a_signal_ends_the_sleep_and_is_no_wakeup(void)
{
    if (H_TSAN)
        return; /* it defers signals */
    struct shm_ctx c;
    seg_with_m(&c);
    struct sleeper *s = h_shared(sizeof *s);
    int pid = h_fork(sleep_until_signal, 0, s);
    H_WAIT(load_acq(&s->woken) == 1);
    while (load_acq(&s->woken) == 1 && kill(pid, SIGUSR1) == 0)
        sched_yield();
    CHECK_EQ(h_wait(pid), 0);
    munmap(s, sizeof *s);
    shm_mexit(&c);
    h_seg_end(&c);
}

H_MAIN(T(test_a_lock_excludes),
       T(test_an_m_names_the_locks_it_holds_in_whatever_order_it_gives_them_back),
       T(test_a_waiter_waits_for_a_dead_owner_until_it_is_reaped),
       T(test_reaping_leaves_a_lock_that_the_dead_one_only_wanted),
       T(test_a_keeper_that_waits_for_one_who_waits_for_the_dead_reaps_their_locks),
       T(test_so_does_m0_by_each_of_its_threads_while_there_is_no_keeper),
       T(test_a_slot_given_to_a_new_m_does_not_own_the_former_ones_lock),
       T(test_no_wakeup_of_a_note_is_lost), T(test_a_wakeup_that_races_with_the_time_limit_is_seen),
       T(test_a_sleep_is_not_shorter_than_its_limit_and_leaves_the_note_clear),
       T(test_a_signal_ends_the_sleep_and_is_no_wakeup))
