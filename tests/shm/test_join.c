/* Tests of join.c: a result is set once, every waiter sees it, none is forgotten. */
#include "gs.h"

static void test_finish_wakes_every_waiter_in_their_order_and_the_value_stays(void)
{
    enum { N = 75 }; /* more than two wake batches */
    struct shm_ctx c;
    shm_gref r[N];
    shm_off j;
    l_seg(&c);
    CHECK_EQ(shm_join_new(&c, &j), SHM_OK);
    struct shm_join *p = shm_at(&c, j);
    for (int i = 0; i < N; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_join_park(&c, j, r[i]), SHM_PARKED);
        CHECK_EQ(shm_g(&c, r[i])->reason, SHM_WR_JOIN);
    }
    CHECK_SEGMENT(&c);
    struct shm_val v = v_big(&c, 42);
    shm_join_finish(&c, j, SHM_J_VALUE, &v);
    CHECK_EQ(v.tag, SHM_VAL_NONE); /* moved */
    CHECK_SEGMENT(&c);
    CHECK_EQ(load_acq(&p->state), SHM_J_VALUE);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(l_next(&c), r[i]);
        CHECK_EQ(shm_g(&c, r[i])->ok, 1);
        CHECK_EQ(v_num(&c, &p->value), 42);
        l_end(&c, r[i]);
    }
    shm_gref late = l_new(&c);
    CHECK_EQ(shm_join_park(&c, j, late), SHM_OK);
    l_end(&c, late);
    shm_obj_unref(&c, j);
    CHECK_EQ(v_num(&c, &p->value), 42);
    shm_obj_unref(&c, j);
    l_seg_end(&c);
}

static void test_the_first_end_of_a_goroutine_stands(void)
{
    struct shm_ctx c;
    shm_off j;
    l_seg(&c);
    CHECK_EQ(shm_join_new(&c, &j), SHM_OK);
    struct shm_val v = v_big(&c, 1), w = v_big(&c, 2);
    shm_join_finish(&c, j, SHM_J_ERROR, &v);
    shm_join_finish(&c, j, SHM_J_DIED, &w); /* a reaper that comes late */
    struct shm_join *p = shm_at(&c, j);
    CHECK_EQ(load_acq(&p->state), SHM_J_ERROR);
    CHECK_EQ(v_num(&c, &p->value), 1);
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, j);
    l_seg_end(&c);
}

static void test_a_cancelled_waiter_leaves_and_the_others_are_woken(void)
{
    struct shm_ctx c;
    shm_gref r[3];
    shm_off j;
    l_seg(&c);
    CHECK_EQ(shm_join_new(&c, &j), SHM_OK);
    for (int i = 0; i < 3; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_join_park(&c, j, r[i]), SHM_PARKED);
    }
    CHECK(g_cancel(&c, r[1]));
    shm_ready(&c, r[1], true);
    CHECK_SEGMENT(&c);
    CHECK_EQ(l_next(&c), r[1]);
    CHECK_EQ(shm_g(&c, r[1])->ok, 2);
    l_end(&c, r[1]);
    struct shm_val v = v_int(3);
    shm_join_finish(&c, j, SHM_J_VALUE, &v);
    for (int i = 0; i < 3; i += 2) {
        CHECK_EQ(l_next(&c), r[i]);
        l_end(&c, r[i]);
    }
    shm_obj_unref(&c, j);
    shm_obj_unref(&c, j);
    l_seg_end(&c);
}

struct race {
    uint32_t n, waiters;
    _Atomic uint64_t joined, timeouts;
    _Atomic uint32_t started; /* waiters that have come to join turn / waiters */
    shm_off j[];
};

/* One M finishes, the others wait, some with a limit; nobody waits for ever. */
static void finish_or_wait(struct shm_ctx *c, int i, void *arg)
{
    struct race *t = arg;
    shm_gref r = o_new(c);
    for (uint32_t k = 0; k < t->n; k++) {
        if (i == 0) {
            H_WAIT(load_acq(&t->started) >= k * t->waiters + (uint32_t)(h_rand(c) % t->waiters));
            struct shm_val v = v_big(c, k);
            shm_join_finish(c, t->j[k], SHM_J_VALUE, &v);
            continue;
        }
        struct shm_join *p = shm_at(c, t->j[k]);
        add_acqrel(&t->started, 1);
        int e = shm_join_park(c, t->j[k], r);
        if (e == SHM_PARKED)
            e = o_wait(c, r, h_rand(c) % 4 ? -1 : (int64_t)(h_rand(c) % 20000));
        if (e == SHM_ETIME) {
            add_rlx(&t->timeouts, 1);
            continue;
        }
        CHECK_EQ(e, SHM_OK);
        CHECK_EQ(load_acq(&p->state), SHM_J_VALUE); /* pairs with shm_join_finish() */
        CHECK_EQ(v_num(c, &p->value), k);
        add_rlx(&t->joined, 1);
    }
    o_end(c, r);
}

static void test_no_waiter_is_forgotten_however_it_meets_the_end(void)
{
    struct shm_ctx c;
    uint32_t n = (uint32_t)H_N(1500, 60000);
    size_t bytes = sizeof(struct race) + n * sizeof(shm_off);
    struct race *t = h_shared(bytes);
    o_seg(&c);
    t->n = n;
    t->waiters = 3;
    for (uint32_t k = 0; k < n; k++)
        CHECK_EQ(shm_join_new(&c, &t->j[k]), SHM_OK);
    h_ms(4, finish_or_wait, t);
    CHECK_EQ(t->joined + t->timeouts, (uint64_t)n * t->waiters);
    CHECK_SEGMENT(&c);
    for (uint32_t k = 0; k < n; k++) {
        shm_obj_unref(&c, t->j[k]);
        shm_obj_unref(&c, t->j[k]);
    }
    o_seg_end(&c);
    munmap(t, bytes);
}

H_MAIN(T(test_finish_wakes_every_waiter_in_their_order_and_the_value_stays),
       T(test_the_first_end_of_a_goroutine_stands),
       T(test_a_cancelled_waiter_leaves_and_the_others_are_woken),
       T(test_no_waiter_is_forgotten_however_it_meets_the_end))
