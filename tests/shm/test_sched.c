/* test_sched.c — ready, findrunnable, execute, step by step (shm/sched.c, procs.c). */
#include "places.h"

/* ---- one M, step by step --------------------------------------------------------------------- */

static void test_a_new_goroutine_runs_next_and_the_former_next_goes_to_the_tail(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    CHECK_EQ(next_g(&c), 0); /* takes the P */
    shm_gref a = spawn(&c), b = spawn(&c), d = spawn(&c);
    nothing_in_hand(&c);
    CHECK_EQ(load_rlx(&c.m->st.spawned), 3);
    shm_gref want[] = {d, a, b};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(next_g(&c), want[i]);
        CHECK_EQ(load_rlx(&c.m->curg), want[i]);
        CHECK_EQ(shm_readgstatus(&c, want[i]), Grunning);
        shm_goexit0(&c, want[i]);
        CHECK_EQ(load_rlx(&c.m->curg), 0);
    }
    nothing_in_hand(&c);
    CHECK_EQ(load_rlx(&c.m->st.finished), 3);
    CHECK_EQ(next_g(&c), 0);
    shm_releasep(&c);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_a_parked_goroutine_comes_back_by_claim_and_ready(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    struct place *pl = places(&c, 1);
    shm_gref a = spawn(&c), b = spawn(&c);
    CHECK_EQ(next_g(&c), b);
    CHECK_EQ(meet(&c, pl, b), 0);
    CHECK_EQ(shm_readgstatus(&c, b), Gwaiting);
    CHECK_EQ(shm_g(&c, b)->reason, SHM_WR_CHAN_RECV);
    CHECK_EQ(next_g(&c), a);
    shm_gref woken = meet(&c, pl, a);
    CHECK_EQ(woken, b);
    shm_ready(&c, woken, true);
    nothing_in_hand(&c);
    CHECK_EQ(shm_readgstatus(&c, b), Grunnable);
    shm_gosched(&c, a);
    CHECK_EQ(next_g(&c), b);
    shm_goexit0(&c, b);
    CHECK_EQ(next_g(&c), a);
    h_seg_end(&c);
}

static void test_gosched_lets_every_other_runnable_goroutine_have_a_turn(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    enum { N = 50 };
    shm_gref g[N];
    int turns[N] = {0};
    for (int i = 0; i < N; i++)
        g[i] = spawn(&c);
    for (int round = 0; round < 20 * N; round++) {
        shm_gref r = next_g(&c);
        for (int i = 0; i < N; i++)
            turns[i] += g[i] == r;
        shm_gosched(&c, r);
    }
    for (int i = 0; i < N; i++)
        CHECK(turns[i] >= 15 && turns[i] <= 25); /* the 61st look at the global queue jumps ahead */
    h_seg_end(&c);
}

static void test_two_goroutines_that_ready_each_other_do_not_starve_a_third(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    struct place *pl = places(&c, 1);
    shm_gref third = spawn(&c), a = spawn(&c), b = spawn(&c);
    /* No keeper here: the count alone must end their slice. */
    bool seen = false;
    for (int i = 0; i < 2000 && !seen; i++) {
        shm_gref r = next_g(&c);
        CHECK(r == a || r == b || r == third);
        seen = r == third;
        shm_gref other = meet(&c, pl, r); /* b waits; a takes b out and parks; b ... */
        if (other) {
            shm_ready(&c, other, true);
            CHECK_EQ(meet(&c, pl, r), 0);
        }
    }
    CHECK(seen);
    h_seg_end(&c);
}

static void test_a_preempted_slice_gives_the_ring_its_turn_and_the_request_is_a_level(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    shm_gref a = spawn(&c), b = spawn(&c);
    CHECK(!shm_preempt_requested(&c));
    store_rlx(&c.p->preempt, 1);
    CHECK(shm_preempt_requested(&c));
    CHECK(shm_preempt_requested(&c)); /* until schedule */
    uint32_t tick = load_rlx(&c.p->schedtick);
    CHECK_EQ(next_g(&c), a); /* b was runnext */
    CHECK_EQ(load_rlx(&c.p->schedtick), tick + 1);
    CHECK(!shm_preempt_requested(&c));
    shm_goexit0(&c, a);
    CHECK_EQ(next_g(&c), b);
    h_seg_end(&c);
}

static void test_the_global_queue_is_served_while_the_ring_is_never_empty(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    for (int i = 0; i < 10; i++)
        spawn(&c);
    shm_gref last = spawn(&c);
    CHECK_EQ(next_g(&c), last);
    shm_gosched(&c, last); /* global */
    for (int i = 0; i < 200; i++) {
        shm_gref r = next_g(&c);
        if (r == last)
            break;
        CHECK(i < 62);
        store_rlx(&c.m->inflight[SHM_IF_READY], r);
        CHECK(shm_casgstatus(&c, r, Grunning, Grunnable));
        store_rlx(&c.m->curg, 0);
        shm_runqput(&c, c.p, r, false);
        store_rlx(&c.m->inflight[SHM_IF_READY], 0);
    }
    h_seg_end(&c);
}

static shm_gref spawn_batch(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_g(c, r)->flags = SHM_GF_BATCH;
    shm_newproc(c, r);
    return r;
}

static void test_batch_goroutines_run_after_all_others_in_their_own_order(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    shm_gref first = spawn_batch(&c), second = spawn_batch(&c);
    for (int i = 0; i < 10; i++)
        spawn(&c);
    CHECK_EQ(load_acq(&c.hdr->batchq_size), 2);
    for (int i = 0; i < 10; i++) {
        shm_gref r = next_g(&c);
        CHECK(r != first && r != second);
    }
    CHECK_EQ(next_g(&c), first);
    shm_gosched(&c, first); /* to the tail of its own queue, behind what comes */
    shm_gref late = spawn(&c);
    CHECK_EQ(next_g(&c), late);
    CHECK_EQ(next_g(&c), second);
    CHECK_EQ(next_g(&c), first);
    CHECK_EQ(next_g(&c), 0);
    h_seg_end(&c);
}

static void test_the_batch_queue_is_served_while_the_others_are_never_empty(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    shm_gref batch = spawn_batch(&c), r;
    spawn(&c);
    spawn(&c);
    int turns = 0;
    while ((r = next_g(&c)) != batch) {
        CHECK(++turns <= 61);
        shm_gosched(&c, r); /* the global queue: its turn must not be the batch queue's */
    }
    CHECK(turns > 10);
    h_seg_end(&c);
}

static void test_a_home_goroutine_and_light_ones_take_turns(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    shm_gref home[20], r;
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(shm_gnew(&c, &home[i]), SHM_OK);
        shm_g(&c, home[i])->home_m1 = (uint16_t)c.m1;
        shm_g(&c, home[i])->home_why = SHM_HOME_HEAVY;
        shm_newproc(&c, home[i]);
        spawn(&c);
    }
    int light = 0, at = 0;
    for (int i = 0; i < 40; i++) {
        CHECK((r = next_g(&c)) != 0);
        if (shm_g(&c, r)->home_m1)
            CHECK_EQ(r, home[at++]); /* in their order */
        else
            light++;
        CHECK(light - at <= 2 && at - light <= 2);
        shm_goexit0(&c, r);
    }
    h_seg_end(&c);
}

static void test_a_stale_queue_entry_is_dropped(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    shm_gref a = spawn(&c), r, b;
    bool inherit;
    CHECK_EQ(next_g(&c), a);
    shm_goexit0(&c, a);
    shm_runqput(&c, c.p, a, false);
    b = spawn(&c); /* in the same slot */
    CHECK_EQ(shm_gidx(b), shm_gidx(a));
    CHECK_EQ(next_g(&c), b);
    CHECK_EQ(shm_findrunnable(&c, false, &r, &inherit), SHM_OK);
    CHECK_EQ(r, a);
    CHECK(!shm_execute(&c, r, inherit));
    CHECK_EQ(load_rlx(&c.m->curg), 0);
    nothing_in_hand(&c);
    CHECK_EQ(shm_readgstatus(&c, b), Grunning);
    h_seg_end(&c);
}

/* ---- several Ms, step by step ---------------------------------------------------------------- */

static void test_m0_queues_for_the_workers_and_runs_only_what_is_at_home(void)
{
    struct shm_ctx c, w;
    m_alone(&c, 2, SHM_M_M0);
    second(&w, &c, SHM_M_WORKER);
    shm_gref main_g;
    CHECK_EQ(shm_gnew(&c, &main_g), SHM_OK);
    shm_g(&c, main_g)->home_m1 = (uint16_t)c.m1;
    shm_newproc(&c, main_g);
    shm_gref light = spawn(&c);
    CHECK_EQ(load_acq(&c.hdr->runq_size), 1);
    CHECK_EQ(next_g(&c), main_g);
    CHECK_EQ(c.p->index, 2);
    CHECK_EQ(next_g(&w), light);
    shm_gref more = spawn(&w);
    struct place *pl = places(&c, 1);
    CHECK_EQ(meet(&c, pl, main_g), 0);
    shm_ready(&w, take_out(&w, pl), true);
    shm_goexit0(&w, light);
    CHECK_EQ(next_g(&w), more); /* not main */
    CHECK_EQ(next_g(&w), 0);
    CHECK_EQ(next_g(&c), main_g);
    CHECK_EQ(next_g(&c), 0);
    h_seg_end(&c);
}

static void test_a_p_belongs_to_one_m_and_a_spare_finds_none(void)
{
    struct shm_ctx c, w, spare;
    m_alone(&c, 2, SHM_M_WORKER);
    second(&w, &c, SHM_M_WORKER);
    second(&spare, &c, SHM_M_WORKER);
    CHECK_EQ(load_acq(&c.hdr->idle_p[0]), 3);
    next_g(&c);
    next_g(&w);
    CHECK_EQ(load_acq(&c.hdr->idle_p[0]), 0);
    CHECK(c.p != w.p);
    CHECK_EQ(shm_acquirep(&spare, 0), SHM_EAGAIN);
    CHECK_EQ(shm_acquirep(&spare, 1), SHM_EAGAIN);
    shm_gref a = spawn(&c);
    CHECK_EQ(next_g(&spare), 0);
    CHECK(spare.p == NULL);
    uint32_t pi = c.p->index;
    shm_handoffp(&c);                      /* the P and its queue are for the taking */
    CHECK_EQ(load_acq(&c.hdr->want_m), 1); /* nobody slept: a spare M is wanted */
    CHECK_EQ(next_g(&spare), a);
    CHECK_EQ(spare.p->index, pi);
    h_seg_end(&c);
}

static void test_a_spare_runs_what_only_it_can_run_without_a_p(void)
{
    struct shm_ctx c, spare;
    m_alone(&c, 1, SHM_M_WORKER);
    second(&spare, &c, SHM_M_WORKER);
    next_g(&c);
    shm_gref r;
    CHECK_EQ(shm_gnew(&c, &r), SHM_OK);
    shm_g(&c, r)->home_m1 = (uint16_t)spare.m1;
    shm_newproc(&c, r);
    CHECK_EQ(next_g(&c), 0);
    CHECK_EQ(next_g(&spare), r);
    CHECK(spare.p == NULL);
    CHECK(!shm_preempt_requested(&spare));
    spare.now_ns -= 20000000; /* nobody else sees that its slice is over */
    CHECK(shm_preempt_requested(&spare));
    shm_gref light = spawn(&spare); /* it has no ring */
    CHECK_EQ(load_acq(&c.hdr->runq_size), 1);
    CHECK_EQ(next_g(&c), light);
    h_seg_end(&c);
}

static struct shm_ctx *lowerer;

static void lower(void)
{
    uint32_t old;
    CHECK_EQ(shm_gomaxprocs(lowerer, 1, &old), SHM_OK);
    CHECK_EQ(old, 2);
}

static shm_gref late[2];

static void lower_and_spawn(void)
{
    lower();
    late[0] = spawn(lowerer); /* in the ring, for the stealing */
    late[1] = spawn(lowerer);
}

static void test_what_is_spawned_after_gomaxprocs_runs_on_no_p_beyond_it(void)
{
    struct shm_ctx c, w;
    m_alone(&c, 2, SHM_M_WORKER);
    second(&w, &c, SHM_M_WORKER);
    next_g(&c);
    uint32_t pi = c.p->index;
    lowerer = &c;
    h_call_after(1, lower_and_spawn); /* w has just taken the other P */
    CHECK_EQ(next_g(&w), 0);
    CHECK_EQ(h_call_left, 0);
    CHECK(w.p == NULL);
    nothing_in_hand(&w);
    CHECK_EQ(SHM_ST_STATUS(load_acq(&c.ptab[1 - pi].status)), Pdead);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(next_g(&c), late[i]); /* the first looks at the global queue */
        shm_goexit0(&c, late[i]);
    }
    CHECK_EQ(next_g(&c), 0);
    h_seg_end(&c);
}

static void lower_and_spawn_at_home(void)
{
    lower();
    CHECK_EQ(shm_gnew(lowerer, &late[0]), SHM_OK);
    shm_g(lowerer, late[0])->home_m1 = 2;
    shm_newproc(lowerer, late[0]);
}

static void test_an_m_whose_p_is_beyond_gomaxprocs_runs_what_is_at_home_without_it(void)
{
    struct shm_ctx c, w;
    m_alone(&c, 2, SHM_M_WORKER);
    second(&w, &c, SHM_M_WORKER);
    CHECK_EQ(w.m1, 2);
    next_g(&c);
    lowerer = &c;
    h_call_after(1, lower_and_spawn_at_home);
    CHECK_EQ(next_g(&w), late[0]);
    CHECK(w.p == NULL);
    nothing_in_hand(&w);
    shm_goexit0(&w, late[0]);
    CHECK_EQ(next_g(&w), 0);
    h_seg_end(&c);
}

static void test_shutdown_and_attention_come_before_work(void)
{
    struct shm_ctx c;
    m_alone(&c, 1, SHM_M_WORKER);
    next_g(&c);
    shm_gref a = spawn(&c), r;
    bool inherit;
    or_seq(&c.m->attn, SHM_ATTN_DUMP);
    CHECK(shm_preempt_requested(&c));
    CHECK_EQ(shm_findrunnable(&c, false, &r, &inherit), SHM_EINTR);
    and_seq(&c.m->attn, ~(uint32_t)SHM_ATTN_DUMP);
    CHECK_EQ(next_g(&c), a);
    or_seq(&c.m->attn, SHM_ATTN_OFFLOAD); /* but none is at home: it is dropped */
    CHECK_EQ(next_g(&c), 0);
    CHECK_EQ(load_acq(&c.m->attn), 0);
    store_rel(&c.hdr->shutdown, 1);
    CHECK_EQ(shm_findrunnable(&c, true, &r, &inherit), SHM_EDEAD);
    h_seg_end(&c);
}

static void test_the_sched_line_reads_as_gos(void)
{
    struct shm_ctx c;
    char line[300], small[20];
    m_alone(&c, 2, SHM_M_WORKER);
    next_g(&c);
    spawn(&c);
    spawn(&c);
    shm_gosched(&c, next_g(&c));
    size_t n = shm_schedtrace(&c, line, sizeof line);
    CHECK_EQ(n, strlen(line));
    unsigned ms, procs, idlep, threads, spinning, idle, queue, a, b;
    CHECK_EQ(sscanf(line,
                    "SCHED %ums: gomaxprocs=%u idleprocs=%u threads=%u spinningthreads=%u "
                    "idlethreads=%u runqueue=%u [%u %u]",
                    &ms, &procs, &idlep, &threads, &spinning, &idle, &queue, &a, &b),
             9);
    CHECK(procs == 2 && idlep == 1 && threads == 1 && spinning == 0 && idle == 0);
    CHECK(queue == 1 && a + b == 1);
    do { /* both in one millisecond */
        shm_schedtrace(&c, line, sizeof line);
        CHECK_EQ(shm_schedtrace(&c, small, sizeof small), strlen(small));
        CHECK(sscanf(line, "SCHED %ums", &ms) == 1 && sscanf(small, "SCHED %ums", &a) == 1);
    } while (a != ms);
    CHECK_EQ(strncmp(small, line, strlen(small)), 0);
    h_seg_end(&c);
}

H_MAIN(T(test_a_new_goroutine_runs_next_and_the_former_next_goes_to_the_tail),
       T(test_a_parked_goroutine_comes_back_by_claim_and_ready),
       T(test_gosched_lets_every_other_runnable_goroutine_have_a_turn),
       T(test_two_goroutines_that_ready_each_other_do_not_starve_a_third),
       T(test_a_preempted_slice_gives_the_ring_its_turn_and_the_request_is_a_level),
       T(test_the_global_queue_is_served_while_the_ring_is_never_empty),
       T(test_batch_goroutines_run_after_all_others_in_their_own_order),
       T(test_the_batch_queue_is_served_while_the_others_are_never_empty),
       T(test_a_home_goroutine_and_light_ones_take_turns), T(test_a_stale_queue_entry_is_dropped),
       T(test_m0_queues_for_the_workers_and_runs_only_what_is_at_home),
       T(test_a_p_belongs_to_one_m_and_a_spare_finds_none),
       T(test_a_spare_runs_what_only_it_can_run_without_a_p),
       T(test_what_is_spawned_after_gomaxprocs_runs_on_no_p_beyond_it),
       T(test_an_m_whose_p_is_beyond_gomaxprocs_runs_what_is_at_home_without_it),
       T(test_shutdown_and_attention_come_before_work), T(test_the_sched_line_reads_as_gos))
