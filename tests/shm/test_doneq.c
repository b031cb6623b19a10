/* Tests of doneq.c: every end comes out once, in order, however takers and ends meet. */
#include "gs.h"

static shm_off new_join(struct shm_ctx *c, shm_off q)
{
    shm_off j;
    CHECK_EQ(shm_join_new(c, &j), SHM_OK);
    shm_doneq_attach(c, q, j);
    return j;
}

static void finish(struct shm_ctx *c, shm_off j, uint64_t n)
{
    struct shm_val v = v_big(c, n);
    shm_join_finish(c, j, SHM_J_VALUE, &v);
    shm_obj_unref(c, j); /* the goroutine's own */
}

static void test_ends_come_out_once_and_in_their_order(void)
{
    enum { N = 300 }; /* more than two batches */
    struct shm_ctx c;
    shm_off q, j[N], out[SHM_DONEQ_BATCH];
    l_seg(&c);
    CHECK_EQ(shm_doneq_new(&c, &q), SHM_OK);
    for (int i = 0; i < N; i++)
        j[i] = new_join(&c, q);
    CHECK_EQ(shm_doneq_take(&c, q, out, SHM_DONEQ_BATCH), 0);
    for (int i = 0; i < N; i++)
        finish(&c, j[N - 1 - i], (uint64_t)i);
    CHECK_SEGMENT(&c);
    for (int got = 0; got < N;) {
        uint32_t n = shm_doneq_take(&c, q, out, SHM_DONEQ_BATCH);
        CHECK(n > 0);
        for (uint32_t i = 0; i < n; i++, got++) {
            CHECK_EQ(out[i], j[N - 1 - got]);
            shm_obj_unref(&c, out[i]); /* the taker's */
            shm_obj_unref(&c, out[i]); /* the handle's */
        }
    }
    CHECK_EQ(shm_doneq_take(&c, q, out, SHM_DONEQ_BATCH), 0);
    shm_obj_unref(&c, q);
    l_seg_end(&c);
}

static void test_an_end_wakes_one_waiter_and_a_taker_the_next(void)
{
    struct shm_ctx c;
    shm_off q, out[2];
    shm_gref r[2];
    l_seg(&c);
    CHECK_EQ(shm_doneq_new(&c, &q), SHM_OK);
    shm_off a = new_join(&c, q), b = new_join(&c, q);
    for (int i = 0; i < 2; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_doneq_park(&c, q, r[i]), SHM_PARKED);
    }
    CHECK_EQ(shm_g(&c, r[0])->reason, SHM_WR_DONEQ);
    CHECK_SEGMENT(&c);
    finish(&c, a, 1);
    finish(&c, b, 2); /* wakes the second */
    CHECK_SEGMENT(&c);
    shm_gref first = l_next(&c), second = l_next(&c);
    CHECK(first != second);
    CHECK_EQ(shm_doneq_take(&c, q, out, 2), 2);
    l_end(&c, first);
    CHECK_EQ(shm_doneq_park(&c, q, second), SHM_PARKED); /* the first had it all */
    CHECK(g_cancel(&c, second));
    shm_ready(&c, second, true);
    CHECK_EQ(l_next(&c), second);
    l_end(&c, second);
    CHECK_SEGMENT(&c);
    for (int i = 0; i < 2; i++) {
        shm_obj_unref(&c, out[i]);
        shm_obj_unref(&c, out[i]);
    }
    shm_obj_unref(&c, q);
    l_seg_end(&c);
}

static void test_who_never_starts_is_taken_off_again(void)
{
    struct shm_ctx c;
    shm_off q;
    l_seg(&c);
    CHECK_EQ(shm_doneq_new(&c, &q), SHM_OK);
    shm_off j = new_join(&c, q);
    shm_doneq_detach(&c, j);
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, q);
    l_seg_end(&c);
}

static void test_a_reaper_that_comes_late_puts_nothing_twice(void)
{
    struct shm_ctx c;
    shm_off q, out[2];
    l_seg(&c);
    CHECK_EQ(shm_doneq_new(&c, &q), SHM_OK);
    shm_off j = new_join(&c, q);
    finish(&c, j, 1);
    shm_waiters_drain(&c, j);
    CHECK_EQ(shm_doneq_take(&c, q, out, 2), 1);
    shm_waiters_drain(&c, j);
    CHECK_EQ(shm_doneq_take(&c, q, out, 2), 0);
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, q);
    l_seg_end(&c);
}

struct race {
    uint32_t n;
    shm_off q;
    _Atomic uint64_t taken, sum;
    shm_off j[];
};

/* Two Ms end goroutines, two take; nobody waits for ever. */
static void end_or_take(struct shm_ctx *c, int i, void *arg)
{
    struct race *t = arg;
    if (i < 2) {
        for (uint32_t k = (uint32_t)i; k < t->n; k += 2)
            finish(c, t->j[k], k);
        return;
    }
    shm_gref r = o_new(c);
    shm_off out[8];
    while (load_acq(&t->taken) < t->n) { /* pairs with add_acqrel below */
        uint32_t n = shm_doneq_take(c, t->q, out, 1 + (uint32_t)(h_rand(c) % 8));
        for (uint32_t k = 0; k < n; k++) {
            struct shm_join *p = shm_at(c, out[k]);
            add_rlx(&t->sum, v_num(c, &p->value));
            shm_obj_unref(c, out[k]);
            shm_obj_unref(c, out[k]);
        }
        add_acqrel(&t->taken, n);
        if (n == 0 && shm_doneq_park(c, t->q, r) == SHM_PARKED)
            (void)o_wait(c, r, (int64_t)(h_rand(c) % 200000));
    }
    o_end(c, r);
}

static void test_no_end_is_lost_or_taken_twice_under_a_race(void)
{
    struct shm_ctx c;
    uint32_t n = (uint32_t)H_N(3000, 100000);
    size_t bytes = sizeof(struct race) + n * sizeof(shm_off);
    struct race *t = h_shared(bytes);
    o_seg(&c);
    t->n = n;
    CHECK_EQ(shm_doneq_new(&c, &t->q), SHM_OK);
    for (uint32_t k = 0; k < n; k++)
        t->j[k] = new_join(&c, t->q);
    h_ms(4, end_or_take, t);
    CHECK_EQ(t->taken, n);
    CHECK_EQ(t->sum, (uint64_t)n * (n - 1) / 2);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, t->q);
    o_seg_end(&c);
    munmap(t, bytes);
}

/* ---- deaths ---------------------------------------------------------------------------------- */

static const char *const points[] = {
    "join.finish.marked", "doneq.put.linked",     "sudog.named",        "sudog.claimed",
    "undo.counted",       "undo.commit",          "lock.named",         "lock.taken",
    "lock.released",      "undo.noted",           "undo.stored",        "undo.committed",
    "sched.ready.named",  "sched.ready.runnable", "sched.ready.queued", "handle.unref.last"};

struct victim {
    const char *point;
    uint32_t nth;
    shm_off q, j;
};

static void finish_and_die(struct shm_ctx *c, int i, void *arg)
{
    struct victim *v = arg;
    (void)i;
    struct shm_val val = v_int(7);
    h_die_at(v->point, v->nth);
    shm_join_finish(c, v->j, SHM_J_VALUE, &val);
    h_die_at("", 0);
}

/* The M that ends a goroutine dies; its reaper ends it once more, as one that ran there. */
static bool die_at(const char *point, uint32_t nth, bool waits)
{
    struct shm_ctx c;
    struct victim *v = h_shared(sizeof *v);
    shm_off out[2];
    shm_gref r = 0;
    l_seg(&c);
    *v = (struct victim){.point = point, .nth = nth};
    CHECK_EQ(shm_doneq_new(&c, &v->q), SHM_OK);
    v->j = new_join(&c, v->q);
    if (waits) {
        r = l_new(&c);
        CHECK_EQ(shm_doneq_park(&c, v->q, r), SHM_PARKED);
    }
    int status = h_wait(h_fork(finish_and_die, 0, v));
    bool died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    if (died) {
        shm_reap(&c, &c.mtab[1], SIGKILL);
        struct shm_val val = v_int(8);
        shm_join_finish(&c, v->j, SHM_J_DIED, &val);
    }
    CHECK_SEGMENT(&c);
    if (waits) {
        CHECK_EQ(l_next(&c), r);
        l_end(&c, r);
    }
    CHECK_EQ(shm_doneq_take(&c, v->q, out, 2), 1);
    CHECK_EQ(out[0], v->j);
    CHECK_EQ(shm_doneq_take(&c, v->q, out, 2), 0);
    munmap(v, sizeof *v);
    h_seg_end(&c);
    return died;
}

static void test_an_end_comes_out_once_wherever_its_m_dies(void)
{
    int deaths = 0;
    if (H_TSAN) /* a death takes the process */
        return;
    for (int waits = 0; waits < 2; waits++)
        for (size_t p = 0; p < sizeof points / sizeof *points; p++)
            for (uint32_t nth = 1; nth < 100 && die_at(points[p], nth, waits); nth++)
                deaths++;
    CHECK(deaths > 20);
}

H_MAIN(T(test_an_end_comes_out_once_wherever_its_m_dies),
       T(test_ends_come_out_once_and_in_their_order),
       T(test_an_end_wakes_one_waiter_and_a_taker_the_next),
       T(test_who_never_starts_is_taken_off_again),
       T(test_a_reaper_that_comes_late_puts_nothing_twice),
       T(test_no_end_is_lost_or_taken_twice_under_a_race))
