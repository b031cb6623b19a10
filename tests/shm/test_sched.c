/* test_sched.c — ready, findrunnable, execute, the idle dance, deadlock (shm/sched.c, sysmon.c).
 *
 * A `goroutine` here is a G whose code is a C function of the test, called by the M that executes
 * it; what it waits on is a place: a slot in the heap that one G parks in and another takes out. */
#include "gs.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

/* ---- places ---------------------------------------------------------------------------------- */

struct place {
    shm_lockword lock;
    uint32_t aborts; /* who waits here may go away by itself: its entry is stale then */
    shm_gref g;      /* who waits here, under lock */
    uint64_t epoch;
};

/* The running r parks here, or, if somebody waits here, that one is taken out: its gref, else 0. */
static shm_gref meet(struct shm_ctx *c, struct place *pl, shm_gref r)
{
    shm_gref other;
    shm_lock(c, &pl->lock);
    if ((other = pl->g)) {
        pl->g = 0;
        if (!shm_wait_claim(c, other, pl->epoch)) {
            CHECK(pl->aborts);
            other = 0;
        }
    }
    if (!other && r) {
        pl->g = r;
        pl->epoch = shm_wait_next(shm_g(c, r));
        shm_gopark(c, r, SHM_WR_CHAN_RECV);
        shm_wait_arm(c, r, pl->epoch);
    }
    shm_unlock(c, &pl->lock);
    return other;
}

static shm_gref take_out(struct shm_ctx *c, struct place *pl)
{
    return meet(c, pl, 0);
}

static struct place *places(struct shm_ctx *c, uint32_t n)
{
    shm_off off;
    CHECK_EQ(shm_alloc(c, n * sizeof(struct place), &off), SHM_OK);
    memset(shm_at(c, off), 0, n * sizeof(struct place));
    return shm_at(c, off);
}

static shm_gref spawn(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_newproc(c, r);
    return r;
}

/* Gref of the next G, executed; 0: none now. */
static shm_gref next_g(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    int e = shm_findrunnable(c, false, &r, &inherit);
    if (e == SHM_EAGAIN)
        return 0;
    CHECK_EQ(e, SHM_OK);
    CHECK(shm_execute(c, r, inherit));
    return r;
}

static void m_alone(struct shm_ctx *c, uint32_t nprocs, uint32_t kind)
{
    h_seg(c, (struct shm_opts){.nprocs = nprocs});
    shm_calibrate(c);
    CHECK_EQ(shm_minit(c, kind), SHM_OK);
}

static void second(struct shm_ctx *to, const struct shm_ctx *from, uint32_t kind)
{
    shm_ctx_copy(to, from);
    CHECK_EQ(shm_minit(to, kind), SHM_OK);
}

static void nothing_in_hand(struct shm_ctx *c)
{
    for (int i = 0; i < SHM_INFLIGHT; i++)
        CHECK_EQ(load_rlx(&c->m->inflight[i]), 0);
}

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
    shm_gref light = spawn(&spare); /* it has no ring */
    CHECK_EQ(load_acq(&c.hdr->runq_size), 1);
    CHECK_EQ(next_g(&c), light);
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
    CHECK_EQ(shm_schedtrace(&c, small, sizeof small), strlen(small));
    CHECK_EQ(strncmp(small, line, strlen(small)), 0);
    h_seg_end(&c);
}

/* ---- programs: Ms in their loops ------------------------------------------------------------- */

/* What every M of a program shares. */
struct prog {
    shm_off places_off;
    uint32_t nplaces, ntok, turns, nworkers, sleep_ns;
    _Atomic uint32_t started, left, deadlocks, stop;
    _Atomic uint32_t running[8192], turn[8192]; /* by index of the G */
    _Atomic uint32_t owner_of_p[SHM_MAX_P];     /* m1 */
};

static struct place *place_at(struct shm_ctx *c, struct prog *s, uint32_t i)
{
    return (struct place *)shm_at(c, s->places_off) + i;
}

static void wake_all(struct shm_ctx *c)
{
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++)
        shm_notewakeup(&c->mtab[i].note);
}

static void end_program(struct shm_ctx *c)
{
    store_rel(&c->hdr->shutdown, 1);
    wake_all(c);
}

static void busy_ns(uint64_t ns)
{
    uint64_t until = shm_now_ns() + ns;
    while (shm_now_ns() < until)
        cpu_relax();
}

/* As core_m_loop(): SHM_OK and a running G, or why the loop ends. */
static int schedule(struct shm_ctx *c, shm_gref *r)
{
    for (;;) {
        bool inherit;
        int e = shm_findrunnable(c, false, r, &inherit);
        if (e == SHM_EAGAIN)
            e = shm_findrunnable(c, true, r, &inherit);
        if (e == SHM_EINTR)
            continue;
        if (e != SHM_OK)
            return e;
        if (shm_execute(c, *r, inherit))
            return SHM_OK;
    }
}

/* One turn of a token: alone in the world, alone on its P; then it parks, yields or ends. */
static void token_turn(struct shm_ctx *c, struct prog *s, shm_gref r)
{
    uint32_t idx = shm_gidx(r), rnd = (uint32_t)random();
    CHECK_EQ(add_acqrel(&s->running[idx], 1), 0);
    if (c->p)
        CHECK_EQ(xchg_acqrel(&s->owner_of_p[c->p->index], c->m1), 0);
    uint32_t n = add_acqrel(&s->turn[idx], 1) + 1;
    if (rnd % 8 == 0)
        busy_ns(rnd / 8 % 60000);
    if (c->p)
        CHECK_EQ(xchg_acqrel(&s->owner_of_p[c->p->index], 0), c->m1);
    sub_acqrel(&s->running[idx], 1);
    if (n == s->turns) {
        shm_goexit0(c, r);
        if (sub_acqrel(&s->left, 1) == 1)
            end_program(c);
        return;
    }
    if (rnd >> 20 & 1 && rnd >> 21 & 1) {
        shm_gosched(c, r);
        return;
    }
    if (s->sleep_ns && rnd >> 23 & 1) {
        CHECK_EQ(shm_sleep_park(c, r, shm_now_ns() + rnd % s->sleep_ns), SHM_PARKED);
        return;
    }
    shm_gref other = meet(c, place_at(c, s, rnd >> 8 & (s->nplaces - 1)), r);
    if (other) {
        shm_ready(c, other, rnd >> 22 & 1);
        shm_gosched(c, r);
    }
}

static void worker(struct shm_ctx *c, struct prog *s)
{
    shm_gref r;
    int e;
    add_acqrel(&s->started, 1);
    while ((e = schedule(c, &r)) == SHM_OK)
        token_turn(c, s, r);
    CHECK_EQ(e, SHM_EDEAD);
    if (c->p)
        shm_releasep(c);
}

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

/* ---- deadlock -------------------------------------------------------------------------------- */

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
       T(test_shutdown_and_attention_come_before_work), T(test_the_sched_line_reads_as_gos),
       T(test_many_tokens_through_park_ready_and_steal_each_exactly_once),
       T(test_few_tokens_and_ms_that_sleep_at_once_lose_no_wake_up),
       T(test_few_tokens_and_spinning_ms_lose_no_wake_up), T(test_more_ms_than_ps_share_them),
       T(test_migration_at_every_park_loses_nothing),
       T(test_sleepers_wake_whoever_is_idle_and_are_no_deadlock),
       T(test_a_goroutine_that_makes_much_runnable_wakes_a_sleeper_without_coming_back),
       T(test_one_goroutine_left_behind_a_hog_is_paid_for_by_the_keeper),
       T(test_a_keeper_that_sleeps_long_is_kicked_when_work_begins),
       T(test_a_slice_of_more_than_10_ms_gets_a_preempt_request),
       T(test_home_goroutines_wake_each_others_ms),
       T(test_an_outside_thread_is_woken_or_times_out_never_both),
       T(test_a_deadlock_is_not_declared_while_anything_can_still_happen),
       T(test_a_deadlock_is_not_declared_before_a_death_is_settled),
       T(test_a_deadlock_is_always_declared_in_the_end),
       T(test_without_workers_m0_runs_everything_and_sees_its_own_deadlock))
