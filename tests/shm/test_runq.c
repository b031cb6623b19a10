/* test_runq.c — ring, runnext, global queue, stealing, home queues (shm/runq.c). */
#include "harness.h"

/* A runnable G in no queue. */
static shm_gref runnable(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    CHECK(shm_casgstatus(c, r, Gidle, Grunnable));
    store_rlx(&c->m->inflight[SHM_IF_NEW], 0);
    return r;
}

static void m_with_p(struct shm_ctx *c, uint32_t pi)
{
    CHECK_EQ(shm_minit(c, SHM_M_WORKER), SHM_OK);
    CHECK_EQ(shm_acquirep(c, pi), SHM_OK);
}

static shm_gref get(struct shm_ctx *c)
{
    bool inherit;
    shm_gref r = shm_runqget(c, c->p, &inherit);
    CHECK_EQ(load_rlx(&c->m->inflight[SHM_IF_GOT]), r);
    return r;
}

static void nothing_in_hand(struct shm_ctx *c)
{
    for (int i = 0; i < SHM_INFLIGHT; i++)
        if (i != SHM_IF_GOT)
            CHECK_EQ(load_rlx(&c->m->inflight[i]), 0);
}

/* Go runtime/export_test.go RunSchedLocalQueueTest. Stricter: Go queues the same gs[i] each time,
 * so it cannot see a wrong order. */
static void test_the_ring_gives_back_what_was_put_in_that_order(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    m_with_p(&c, 0);
    shm_gref gs[SHM_RUNQ];
    for (int i = 0; i < SHM_RUNQ; i++)
        gs[i] = runnable(&c);
    for (int i = 0; i < SHM_RUNQ; i++) {
        CHECK(shm_runqempty(c.p));
        CHECK_EQ(get(&c), 0);
        for (int j = 0; j < i; j++)
            shm_runqput(&c, c.p, gs[j], false);
        CHECK_EQ(shm_runqsize(c.p), i);
        for (int j = 0; j < i; j++)
            CHECK_EQ(get(&c), gs[j]);
        CHECK_EQ(get(&c), 0);
        nothing_in_hand(&c);
    }
    h_seg_end(&c);
}

/* Go runtime/export_test.go RunSchedLocalQueueStealTest; different Gs, so that order shows too. */
static void test_a_thief_gets_the_older_half_and_each_g_is_seen_once(void)
{
    struct shm_ctx c, thief;
    h_seg(&c, (struct shm_opts){0});
    m_with_p(&c, 0);
    shm_ctx_copy(&thief, &c);
    m_with_p(&thief, 1);
    shm_gref gs[SHM_RUNQ];
    for (int i = 0; i < SHM_RUNQ; i++)
        gs[i] = runnable(&c);
    for (int i = 0; i < SHM_RUNQ; i++) {
        int seen[SHM_RUNQ] = {0}, stolen = 0;
        for (int j = 0; j < i; j++)
            shm_runqput(&c, c.p, gs[j], false);
        shm_gref last = shm_runqsteal(&thief, thief.p, c.p, false), r;
        CHECK_EQ(load_rlx(&thief.m->inflight[SHM_IF_GOT]), last);
        nothing_in_hand(&thief);
        while ((r = get(&thief)))
            CHECK_EQ(r, gs[stolen++]);
        if (last)
            CHECK_EQ(last, gs[stolen++]); /* it returns the youngest of its loot */
        CHECK_EQ(stolen, i - i / 2);
        for (int j = 0; j < stolen; j++)
            seen[j]++;
        for (int j = stolen; (r = get(&c)); j++) {
            CHECK_EQ(r, gs[j]);
            seen[j]++;
        }
        for (int j = 0; j < i; j++)
            CHECK_EQ(seen[j], 1);
    }
    h_seg_end(&c);
}

struct pair {
    _Atomic uint32_t ready, done;
    _Atomic uint64_t g[2];
};

/* Go runtime/export_test.go RunSchedLocalQueueEmptyTest: the owner takes one of two, the other M
 * asks whether the ring is empty, and it must not be. */
static void ask_empty(struct shm_ctx *c, int i, void *arg)
{
    struct pair *b = arg;
    int rounds = H_N(2000, 100000);
    if (i == 0)
        CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    for (int k = 0; k < rounds; k++) {
        bool next0 = k & 1, next1 = k & 2, inherit;
        if (i == 0) {
            shm_runqput(c, &c->ptab[0], load_rlx(&b->g[0]), next0);
            add_acqrel(&b->ready, 1);
            H_WAIT(load_acq(&b->ready) == 2);
            shm_runqput(c, &c->ptab[0], load_rlx(&b->g[1]), next1);
            shm_gref r = shm_runqget(c, &c->ptab[0], &inherit);
            CHECK(r != 0);
            add_acqrel(&b->ready, 1);
            H_WAIT(load_acq(&b->ready) == 4);
            CHECK(shm_runqget(c, &c->ptab[0], &inherit) != 0);
            CHECK_EQ(shm_runqget(c, &c->ptab[0], &inherit), 0);
            store_rel(&b->ready, 0);
        } else {
            add_acqrel(&b->ready, 1);
            H_WAIT(load_acq(&b->ready) >= 2);
            CHECK(!shm_runqempty(&c->ptab[0]));
            H_WAIT(load_acq(&b->ready) >= 3);
            add_acqrel(&b->ready, 1);
        }
        if (i == 0)
            store_rel(&b->done, (uint32_t)k + 1);
        H_WAIT(load_acq(&b->done) > (uint32_t)k);
    }
    if (i == 0)
        shm_releasep(c);
}

static void test_a_ring_with_a_g_in_it_is_never_called_empty(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    struct pair *b = h_shared(sizeof *b);
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    store_rlx(&b->g[0], runnable(&c));
    store_rlx(&b->g[1], runnable(&c));
    h_ms(2, ask_empty, b);
    munmap(b, sizeof *b);
    h_seg_end(&c);
}

static void test_runnext_is_first_inherits_the_slice_and_kicks_the_former_one_to_the_tail(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    m_with_p(&c, 0);
    shm_gref a = runnable(&c), b = runnable(&c), d = runnable(&c);
    shm_runqput(&c, c.p, a, false);
    shm_runqput(&c, c.p, b, true);
    shm_runqput(&c, c.p, d, true);
    nothing_in_hand(&c);
    bool inherit;
    CHECK_EQ(shm_runqget(&c, c.p, &inherit), d);
    CHECK(inherit);
    CHECK_EQ(shm_runqget(&c, c.p, &inherit), a);
    CHECK(!inherit);
    CHECK_EQ(shm_runqget(&c, c.p, &inherit), b);
    CHECK(!inherit);
    h_seg_end(&c);
}

static void test_a_full_ring_gives_its_older_half_and_the_newcomer_to_the_global_tail(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 1});
    m_with_p(&c, 0);
    shm_gref first = runnable(&c), gs[SHM_RUNQ + 1];
    shm_globrunqput(&c, first);
    for (int i = 0; i <= SHM_RUNQ; i++) {
        gs[i] = runnable(&c);
        shm_runqput(&c, c.p, gs[i], false);
    }
    nothing_in_hand(&c);
    CHECK_EQ(load_acq(&c.hdr->runq_size), 1 + SHM_RUNQ / 2 + 1);
    CHECK_EQ(shm_runqsize(c.p), SHM_RUNQ / 2);
    for (int i = SHM_RUNQ / 2; i < SHM_RUNQ; i++)
        CHECK_EQ(get(&c), gs[i]);
    CHECK_EQ(shm_globrunqget(&c, NULL, 1), first);
    for (int i = 0; i < SHM_RUNQ / 2; i++)
        CHECK_EQ(shm_globrunqget(&c, NULL, 1), gs[i]);
    CHECK_EQ(shm_globrunqget(&c, NULL, 1), gs[SHM_RUNQ]);
    CHECK_EQ(shm_globrunqget(&c, NULL, 1), 0);
    CHECK_EQ(c.hdr->runq_head, 0);
    CHECK_EQ(c.hdr->runq_tail, 0);
    h_seg_end(&c);
}

static void test_a_batch_from_the_global_queue_is_a_fair_share_in_order(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4});
    m_with_p(&c, 0);
    enum { N = 1000 };
    static shm_gref gs[N];
    uint64_t left = N, at = 0;
    for (int i = 0; i < N; i++)
        shm_globrunqput(&c, gs[i] = runnable(&c));
    while (left) {
        uint64_t share = left / 4 + 1, want = share < SHM_RUNQ / 2 ? share : SHM_RUNQ / 2;
        want = want < left ? want : left;
        CHECK_EQ(shm_globrunqget(&c, c.p, UINT32_MAX), gs[at]);
        nothing_in_hand(&c);
        CHECK_EQ(shm_runqsize(c.p), want - 1);
        for (uint64_t i = 1; i < want; i++)
            CHECK_EQ(get(&c), gs[at + i]);
        at += want;
        left -= want;
        CHECK_EQ(load_acq(&c.hdr->runq_size), left);
    }
    CHECK_EQ(shm_globrunqget(&c, c.p, UINT32_MAX), 0);
    h_seg_end(&c);
}

static void test_a_batch_never_overfills_the_ring_that_takes_it(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 1});
    m_with_p(&c, 0);
    for (int i = 0; i < SHM_RUNQ - 10; i++)
        shm_runqput(&c, c.p, runnable(&c), false);
    for (int i = 0; i < 500; i++)
        shm_globrunqput(&c, runnable(&c));
    CHECK(shm_globrunqget(&c, c.p, UINT32_MAX) != 0);
    CHECK_EQ(shm_runqsize(c.p), SHM_RUNQ);
    CHECK_EQ(load_acq(&c.hdr->runq_size), 500 - 11);
    CHECK(shm_globrunqget(&c, c.p, UINT32_MAX) != 0); /* no room at all: one */
    CHECK_EQ(shm_runqsize(c.p), SHM_RUNQ);
    h_seg_end(&c);
}

static void test_a_runnext_is_stolen_only_in_the_last_pass_and_at_once_from_an_idle_p(void)
{
    struct shm_ctx c, thief;
    h_seg(&c, (struct shm_opts){0});
    m_with_p(&c, 0);
    shm_ctx_copy(&thief, &c);
    m_with_p(&thief, 1);
    shm_gref r = runnable(&c);
    struct shm_p *p0 = c.p;
    shm_runqput(&c, p0, r, true);
    CHECK_EQ(shm_runqsteal(&thief, thief.p, p0, false), 0);
    CHECK_EQ(shm_runqsteal(&thief, thief.p, p0, true), r); /* after the grace: it did not run */
    shm_runqput(&c, p0, r, true);
    shm_releasep(&c);
    CHECK_EQ(shm_runqsteal(&thief, thief.p, p0, true), r);
    CHECK(shm_runqempty(p0));
    nothing_in_hand(&thief);
    h_seg_end(&c);
}

/* ---- home queues ----------------------------------------------------------------------------- */

static void test_a_home_queue_is_first_in_first_out(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref gs[10];
    for (int i = 0; i < 10; i++)
        gs[i] = runnable(&c);
    for (int i = 0; i < 4; i++)
        shm_homeqput(&c, c.m, gs[i]);
    CHECK_EQ(shm_homeqget(&c),
             gs[0]); /* 1..3 are turned round now, the next ones come behind them */
    for (int i = 4; i < 10; i++)
        shm_homeqput(&c, c.m, gs[i]);
    CHECK_EQ(load_acq(&c.m->homeq_n), 9);
    CHECK(shm_any_home(c.m));
    for (int i = 1; i < 10; i++)
        CHECK_EQ(shm_homeqget(&c), gs[i]);
    CHECK_EQ(shm_homeqget(&c), 0);
    CHECK_EQ(load_acq(&c.m->homeq_n), 0);
    CHECK(!shm_any_home(c.m));
    h_seg_end(&c);
}

struct home {
    _Atomic uint32_t owner_m1;
    uint32_t n;
};

static void push_home(struct shm_ctx *c, int i, void *arg)
{
    struct home *b = arg;
    uint32_t n = (uint32_t)H_N(3000, 100000);
    if (i == 0) {
        uint32_t next[4] = {0}, got = 0;
        store_rel(&b->owner_m1, c->m1);
        while (got < 3 * n) {
            shm_gref r = shm_homeqget(c);
            if (!r)
                continue;
            uint32_t who = shm_g(c, r)->parent, no = shm_g(c, r)->since_ms;
            CHECK(who >= 1 && who <= 3);
            CHECK_EQ(no, next[who]++); /* each pusher's in its order */
            CHECK(shm_gclaim_runnable(c, r));
            CHECK(shm_casgstatus(c, r, Grunning, Gdead));
            shm_gfree(c, r);
            got++;
        }
        CHECK_EQ(load_acq(&c->m->homeq_n), 0);
        return;
    }
    H_WAIT(load_acq(&b->owner_m1) != 0);
    struct shm_m *owner = &c->mtab[load_acq(&b->owner_m1) - 1];
    for (uint32_t k = 0; k < n; k++) {
        shm_gref r;
        while (shm_gnew(c, &r) == SHM_EGFULL)
            sched_yield();
        shm_g(c, r)->parent = (uint32_t)i;
        shm_g(c, r)->since_ms = k;
        CHECK(shm_casgstatus(c, r, Gidle, Grunnable));
        shm_homeqput(c, owner, r);
    }
}

static void test_many_ms_push_to_one_home_and_each_ones_order_is_kept(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4, .max_goroutines = 2000});
    struct home *b = h_shared(sizeof *b);
    h_ms(4, push_home, b);
    munmap(b, sizeof *b);
    h_seg_end(&c);
}

/* ---- the storm ------------------------------------------------------------------------------- */

enum { TOKENS = 2000 };
struct storm {
    _Atomic uint32_t left, running[TOKENS + 1], turns[TOKENS + 1];
};

/* Each M puts, gets, steals and overflows at random; each G takes its turns, one M at a time. */
static void pass_around(struct shm_ctx *c, int i, void *arg)
{
    struct storm *s = arg;
    uint32_t turns = (uint32_t)H_N(40, 1000);
    CHECK_EQ(shm_acquirep(c, (uint32_t)i), SHM_OK);
    while (load_acq(&s->left)) {
        bool inherit;
        uint32_t rnd = (uint32_t)random();
        shm_gref r = rnd % 8 == 0 ? shm_globrunqget(c, c->p, UINT32_MAX) : 0;
        if (!r)
            r = shm_runqget(c, c->p, &inherit);
        if (!r)
            r = shm_globrunqget(c, c->p, UINT32_MAX);
        if (!r)
            r = shm_runqsteal(c, c->p, &c->ptab[rnd / 8 % 4], rnd % 3 == 0);
        if (!r) {
            sched_yield();
            continue;
        }
        CHECK(shm_execute(c, r, false)); /* no duplicates: every entry is good */
        uint32_t idx = shm_gidx(r);
        CHECK_EQ(add_acqrel(&s->running[idx], 1), 0);
        uint32_t n = add_acqrel(&s->turns[idx], 1) + 1;
        sub_acqrel(&s->running[idx], 1);
        if (n == turns) {
            shm_goexit0(c, r);
            sub_acqrel(&s->left, 1);
            continue;
        }
        store_rlx(&c->m->inflight[SHM_IF_READY], r);
        CHECK(shm_casgstatus(c, r, Grunning, Grunnable));
        store_rlx(&c->m->curg, 0);
        if (rnd % 16 == 1)
            shm_globrunqput(c, r);
        else
            shm_runqput(c, c->p, r, rnd & 16);
        store_rlx(&c->m->inflight[SHM_IF_READY], 0);
    }
    CHECK(shm_runqempty(c->p));
    nothing_in_hand(c);
    shm_releasep(c);
}

static void test_owners_and_thieves_pass_each_g_on_exactly_once(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4});
    struct storm *s = h_shared(sizeof *s);
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    for (int i = 0; i < TOKENS; i++)
        shm_globrunqput(&c, runnable(&c));
    store_rlx(&s->left, TOKENS);
    h_ms(4, pass_around, s);
    for (int i = 1; i <= TOKENS; i++)
        CHECK_EQ(load_acq(&s->turns[i]), H_N(40, 1000));
    CHECK_EQ(load_acq(&c.hdr->runq_size), 0);
    munmap(s, sizeof *s);
    h_seg_end(&c);
}

H_MAIN(T(test_the_ring_gives_back_what_was_put_in_that_order),
       T(test_a_thief_gets_the_older_half_and_each_g_is_seen_once),
       T(test_a_ring_with_a_g_in_it_is_never_called_empty),
       T(test_runnext_is_first_inherits_the_slice_and_kicks_the_former_one_to_the_tail),
       T(test_a_full_ring_gives_its_older_half_and_the_newcomer_to_the_global_tail),
       T(test_a_batch_from_the_global_queue_is_a_fair_share_in_order),
       T(test_a_batch_never_overfills_the_ring_that_takes_it),
       T(test_a_runnext_is_stolen_only_in_the_last_pass_and_at_once_from_an_idle_p),
       T(test_a_home_queue_is_first_in_first_out),
       T(test_many_ms_push_to_one_home_and_each_ones_order_is_kept),
       T(test_owners_and_thieves_pass_each_g_on_exactly_once))
