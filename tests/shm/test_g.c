/* test_g.c — the status word, generations, the wait claim, slots, wait reasons (shm/g.c). */
#include "harness.h"

#include <setjmp.h>

/* ---- a throw that comes back ----------------------------------------------------------------- */

static _Thread_local jmp_buf *catching;
static _Thread_local char thrown[512];

static void on_throw(const char *text)
{
    if (catching) {
        snprintf(thrown, sizeof thrown, "%s", text);
        longjmp(*catching, 1);
    }
}

/* Whether stmt throws; its text is in thrown[]. */
#define THROWS(stmt)                 \
    ({                               \
        jmp_buf jb_;                 \
        volatile bool threw_ = true; \
        shm_throw_hook = on_throw;   \
        if (setjmp(jb_) == 0) {      \
            catching = &jb_;         \
            stmt;                    \
            threw_ = false;          \
        }                            \
        catching = NULL;             \
        shm_throw_hook = NULL;       \
        threw_;                      \
    })

static const unsigned statuses[] = {Gidle, Grunnable, Grunning, Gwaiting, Gdead};
static const char *const names[] = {"idle", "runnable", "running", "waiting", "dead"};

static shm_gref new_in(struct shm_ctx *c, unsigned st)
{
    static const struct {
        unsigned from, to;
    } way[][3] = {{{0, 0}},
                  {{Gidle, Grunnable}},
                  {{Gidle, Grunnable}, {Grunnable, Grunning}},
                  {{Gidle, Grunnable}, {Grunnable, Grunning}, {Grunning, Gwaiting}},
                  {{Gidle, Gdead}}};
    static const int steps[] = {0, 1, 2, 3, 1};
    shm_gref r = 0;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    for (int i = 0; i < 5; i++)
        for (int k = 0; statuses[i] == st && k < steps[i]; k++)
            CHECK(shm_casgstatus(c, r, way[i][k].from, way[i][k].to));
    CHECK_EQ(shm_readgstatus(c, r), st);
    return r;
}

static bool legal(unsigned a, unsigned b)
{
    return (a == Gidle && (b == Grunnable || b == Gdead || b == Gwaiting)) ||
           (a == Grunnable && b == Grunning) ||
           (a == Grunning && (b == Gwaiting || b == Grunnable || b == Gdead)) ||
           (a == Gwaiting && b == Grunnable);
}

static void test_every_legal_move_succeeds_and_every_other_throws_naming_both_statuses(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    for (int a = 0; a < 5; a++)
        for (int b = 0; b < 5; b++) {
            shm_gref r = new_in(&c, statuses[a]);
            if (legal(statuses[a], statuses[b])) {
                CHECK(shm_casgstatus(&c, r, statuses[a], statuses[b]));
                CHECK_EQ(shm_readgstatus(&c, r), statuses[b]);
                continue;
            }
            char want[40];
            snprintf(want, sizeof want, "%s -> %s", names[a], names[b]);
            CHECK(THROWS(shm_casgstatus(&c, r, statuses[a], statuses[b])));
            CHECK(strstr(thrown, want) != NULL);
            CHECK_EQ(shm_readgstatus(&c, r), statuses[a]);
        }
    h_seg_end(&c);
}

static void test_a_move_from_a_status_the_goroutine_is_not_in_throws_and_says_what_was_found(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    /* Running is left out where waiting is wanted: that is the one legal race, tested below. */
    for (int found = 0; found < 5; found++)
        for (int a = 0; a < 5; a++)
            for (int b = 0; b < 5; b++) {
                if (a == found || !legal(statuses[a], statuses[b]) ||
                    (statuses[a] == Gwaiting && statuses[found] == Grunning))
                    continue;
                shm_gref r = new_in(&c, statuses[found]);
                char want[60];
                snprintf(want, sizeof want, "%s -> %s, found %s", names[a], names[b], names[found]);
                CHECK(THROWS(shm_casgstatus(&c, r, statuses[a], statuses[b])));
                CHECK(strstr(thrown, want) != NULL);
            }
    h_seg_end(&c);
}

static void *park_late(void *p)
{
    struct shm_ctx *c = ((void **)p)[0];
    shm_gref r = *(shm_gref *)((void **)p)[1];
    for (int i = 0; i < 200; i++)
        sched_yield();
    CHECK(shm_casgstatus(c, r, Grunning, Gwaiting));
    return NULL;
}

static void test_a_waker_that_comes_before_the_parker_is_waiting_spins_until_it_is(void)
{
    struct shm_ctx c, parker;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_ctx_copy(&parker, &c);
    CHECK_EQ(shm_minit(&parker, SHM_M_WORKER), SHM_OK);
    for (int i = 0; i < 50; i++) {
        shm_gref r = new_in(&c, Grunnable);
        CHECK(shm_gclaim_runnable(&parker, r));
        pthread_t t;
        void *arg[] = {&parker, &r};
        CHECK_EQ(pthread_create(&t, NULL, park_late, arg), 0);
        CHECK(shm_casgstatus(&c, r, Gwaiting, Grunnable));
        CHECK_EQ(pthread_join(t, NULL), 0);
        CHECK_EQ(shm_readgstatus(&c, r), Grunnable);
    }
    h_seg_end(&c);
}

static void die_running(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    CHECK(shm_gclaim_runnable(c, *(shm_gref *)arg));
    kill(getpid(), SIGKILL);
}

static void test_a_waker_does_not_spin_for_a_parker_that_has_died(void)
{
    if (H_TSAN)
        return; /* takes a process to die */
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref r = new_in(&c, Grunnable);
    int status = h_wait(h_fork(die_running, 0, &r));
    CHECK(WIFSIGNALED(status));
    CHECK(THROWS(shm_casgstatus(&c, r, Gwaiting, Grunnable)));
    CHECK(strstr(thrown, "waiting -> runnable, found running") != NULL);
    h_seg_end(&c);
}

static void test_a_gref_of_a_former_use_of_the_slot_matches_nothing(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref old = new_in(&c, Gwaiting);
    uint64_t epoch = shm_wait_next(shm_g(&c, old));
    shm_wait_arm(&c, old, epoch);
    CHECK(shm_wait_claim(&c, old, epoch));
    CHECK(shm_casgstatus(&c, old, Gwaiting, Grunnable));
    CHECK(shm_gclaim_runnable(&c, old));
    CHECK(shm_casgstatus(&c, old, Grunning, Gdead));
    uint64_t goid = shm_g(&c, old)->goid;
    shm_gfree(&c, old);
    shm_gref r = new_in(&c, Grunnable);
    CHECK_EQ(shm_gidx(r), shm_gidx(old)); /* reused at once */
    CHECK_EQ(shm_ggen(r), shm_ggen(old) + 1);
    CHECK(shm_g(&c, r)->goid > goid);
    CHECK_EQ(shm_readgstatus(&c, old), Gdead);
    CHECK(!shm_gclaim_runnable(&c, old));
    CHECK(!shm_casgstatus(&c, old, Grunnable, Grunning));
    CHECK_EQ(shm_readgstatus(&c, r), Grunnable);
    CHECK(shm_gclaim_runnable(&c, r));
    CHECK(shm_casgstatus(&c, r, Grunning, Gwaiting));
    uint64_t next = shm_wait_next(shm_g(&c, r));
    CHECK(next > epoch); /* the epoch is the slot's, not the goroutine's */
    shm_wait_arm(&c, r, next);
    CHECK(!shm_wait_claim(&c, r, epoch));
    CHECK(!shm_wait_claim(&c, old, next));
    CHECK(shm_wait_claim(&c, r, next));
    h_seg_end(&c);
}

static void test_the_generation_skips_zero(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref r = new_in(&c, Gdead);
    store_rlx(&shm_g(&c, r)->status, SHM_ST(UINT32_MAX, c.m1, Gdead));
    shm_gfree(&c, (uint64_t)UINT32_MAX << 32 | shm_gidx(r));
    shm_gref n;
    CHECK_EQ(shm_gnew(&c, &n), SHM_OK);
    CHECK_EQ(shm_gidx(n), shm_gidx(r));
    CHECK_EQ(shm_ggen(n), 1);
    h_seg_end(&c);
}

static void test_max_goroutines_exist_at_once_and_not_one_more(void)
{
    enum { N = 5000 }; /* more than one committed chunk */
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.max_goroutines = N});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    static shm_gref g[N];
    static bool used[N + 1];
    for (int i = 0; i < N; i++) {
        g[i] = new_in(&c, Gdead);
        CHECK(shm_gidx(g[i]) >= 1 && shm_gidx(g[i]) <= N && !used[shm_gidx(g[i])]);
        used[shm_gidx(g[i])] = true;
        CHECK_EQ(shm_g(&c, g[i])->goid, i + 1);
    }
    shm_gref r;
    CHECK_EQ(shm_gnew(&c, &r), SHM_EGFULL);
    for (int i = 0; i < N; i++)
        shm_gfree(&c, g[i]);
    shm_mexit(&c); /* its magazine goes to everybody */
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    for (int i = 0; i < N; i++)
        CHECK_EQ(shm_gnew(&c, &r), SHM_OK);
    CHECK_EQ(shm_gnew(&c, &r), SHM_EGFULL);
    h_seg_end(&c);
}

static void test_a_slot_that_is_not_dead_is_not_freed(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref r = new_in(&c, Grunning);
    CHECK(THROWS(shm_gfree(&c, r)));
    CHECK(strstr(thrown, "running") != NULL);
    r = new_in(&c, Gdead);
    shm_gfree(&c, r);
    new_in(&c, Gidle);
    CHECK(THROWS(shm_gfree(&c, r))); /* the generation is another */
    h_seg_end(&c);
}

/* ---- several Ms ------------------------------------------------------------------------------ */

struct board {
    _Atomic uint32_t owner[4096], go, wins, total, ready;
    _Atomic uint64_t g;
};

static void make_and_free(struct shm_ctx *c, int i, void *arg)
{
    struct board *b = arg;
    shm_gref mine[150];
    int n = 0;
    for (int k = 0; k < H_N(20000, 400000); k++) {
        if (n < 150 && (n == 0 || k * 2654435761U >> 31)) {
            CHECK_EQ(shm_gnew(c, &mine[n]), SHM_OK);
            uint32_t none = 0;
            CHECK(cas_acqrel(&b->owner[shm_gidx(mine[n])], &none, (uint32_t)i + 1));
            CHECK(shm_casgstatus(c, mine[n], Gidle, Gdead));
            n++;
        } else {
            n--;
            store_rel(&b->owner[shm_gidx(mine[n])], 0);
            shm_gfree(c, mine[n]);
        }
    }
    while (n-- > 0) {
        store_rel(&b->owner[shm_gidx(mine[n])], 0);
        shm_gfree(c, mine[n]);
    }
}

static void test_a_slot_is_never_in_two_hands(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.max_goroutines = 1200});
    struct board *b = h_shared(sizeof *b);
    h_ms(4, make_and_free, b);
    /* All came back: as many as there can be are there. */
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    shm_gref r;
    for (int i = 0; i < 1200; i++)
        CHECK_EQ(shm_gnew(&c, &r), SHM_OK);
    CHECK_EQ(shm_gnew(&c, &r), SHM_EGFULL);
    munmap(b, sizeof *b);
    h_seg_end(&c);
}

static void claim_rounds(struct shm_ctx *c, int i, void *arg)
{
    struct board *b = arg;
    uint32_t rounds = (uint32_t)H_N(3000, 60000);
    for (uint32_t k = 1; k <= rounds; k++) {
        if (i == 0) { /* the parker */
            H_WAIT(load_acq(&b->ready) == (k - 1) * 3);
            shm_gref r = load_rlx(&b->g);
            CHECK(k == 1 || shm_casgstatus(c, r, Gwaiting, Grunnable));
            CHECK(shm_gclaim_runnable(c, r));
            CHECK_EQ(load_acq(&b->wins), k - 1); /* exactly one in each round */
            uint64_t epoch = shm_wait_next(shm_g(c, r));
            CHECK_EQ(epoch, k);
            CHECK(shm_casgstatus(c, r, Grunning, Gwaiting));
            shm_wait_arm(c, r, epoch);
            store_rel(&b->go, k);
        } else {
            H_WAIT(load_acq(&b->go) == k);
            shm_gref r = load_rlx(&b->g);
            CHECK(!shm_wait_claim(c, r, k - 1));
            if (shm_wait_claim(c, r, k))
                add_acqrel(&b->wins, 1);
            CHECK(!shm_wait_claim(c, r, k));
            add_acqrel(&b->ready, 1);
        }
    }
}

static void test_of_many_wakers_exactly_one_claims_the_wait(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4});
    struct board *b = h_shared(sizeof *b);
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    store_rlx(&b->g, new_in(&c, Grunnable));
    h_ms(4, claim_rounds, b);
    munmap(b, sizeof *b);
    h_seg_end(&c);
}

static void execute_rounds(struct shm_ctx *c, int i, void *arg)
{
    struct board *b = arg;
    shm_gref r = load_rlx(&b->g);
    (void)i;
    while (load_acq(&b->total) < (uint32_t)H_N(20000, 300000))
        if (shm_gclaim_runnable(c, r)) {
            CHECK_EQ(add_acqrel(&b->wins, 1), 0); /* alone */
            add_acqrel(&b->total, 1);
            sub_acqrel(&b->wins, 1);
            CHECK(shm_casgstatus(c, r, Grunning, Grunnable));
        }
}

static void test_a_goroutine_queued_twice_runs_on_one_m_at_a_time(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4});
    struct board *b = h_shared(sizeof *b);
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    store_rlx(&b->g, new_in(&c, Grunnable));
    h_ms(4, execute_rounds, b);
    munmap(b, sizeof *b);
    h_seg_end(&c);
}

/* ---- wait reasons ---------------------------------------------------------------------------- */

static void test_no_two_wait_reasons_share_a_text(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    for (unsigned i = 0; i < SHM_WR_USER; i++)
        for (unsigned k = 0; k < i; k++)
            CHECK(strcmp(shm_reason_text(&c, i), shm_reason_text(&c, k)) != 0);
    CHECK(strcmp(shm_reason_text(&c, SHM_WR_CHAN_RECV), "chan receive") == 0);
    CHECK(strcmp(shm_reason_text(&c, SHM_WR_USER), "unknown wait reason") == 0);
    h_seg_end(&c);
}

static void register_all(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    (void)arg;
    for (unsigned k = 0; k < 100; k++) {
        char t[40];
        unsigned a, b;
        snprintf(t, sizeof t, "turn of %u", (k * 37 + (unsigned)i * 11) % 100);
        CHECK_EQ(shm_reason_register(c, t, &a), SHM_OK);
        CHECK_EQ(shm_reason_register(c, t, &b), SHM_OK);
        CHECK_EQ(a, b);
        CHECK(strcmp(shm_reason_text(c, a), t) == 0);
    }
}

static void test_a_reason_registered_by_many_ms_has_one_number(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = 4});
    h_ms(4, register_all, NULL);
    CHECK_EQ(load_acq(&c.hdr->reason_n), 100);
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    unsigned n;
    char t[40];
    for (unsigned k = 100; k < SHM_MAX_REASON; k++) {
        snprintf(t, sizeof t, "more %u", k);
        CHECK_EQ(shm_reason_register(&c, t, &n), SHM_OK);
    }
    CHECK_EQ(shm_reason_register(&c, "one too many", &n), SHM_EFULL);
    CHECK_EQ(shm_reason_register(&c, "turn of 7", &n), SHM_OK);
    h_seg_end(&c);
}

H_MAIN(T(test_every_legal_move_succeeds_and_every_other_throws_naming_both_statuses),
       T(test_a_move_from_a_status_the_goroutine_is_not_in_throws_and_says_what_was_found),
       T(test_a_waker_that_comes_before_the_parker_is_waiting_spins_until_it_is),
       T(test_a_waker_does_not_spin_for_a_parker_that_has_died),
       T(test_a_gref_of_a_former_use_of_the_slot_matches_nothing),
       T(test_the_generation_skips_zero), T(test_max_goroutines_exist_at_once_and_not_one_more),
       T(test_a_slot_that_is_not_dead_is_not_freed), T(test_a_slot_is_never_in_two_hands),
       T(test_of_many_wakers_exactly_one_claims_the_wait),
       T(test_a_goroutine_queued_twice_runs_on_one_m_at_a_time),
       T(test_no_two_wait_reasons_share_a_text),
       T(test_a_reason_registered_by_many_ms_has_one_number))
