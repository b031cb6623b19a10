/* Tests of group.c: every end is counted once, the limit lets children in by their order, a failure
 * cancels the rest, and the parent is woken by the last. (Several Gs `run` at once on the one M of
 * a test, which the checker would not have: it looks where none does, and at the end.) */
#include "deaths.h"

static shm_off parent;
static shm_gref parent_g;

/* A worker with a group that a running goroutine has entered. */
static shm_off begin(struct shm_ctx *c, uint32_t limit)
{
    shm_off gr;
    h_seg(c, (struct shm_opts){0});
    l_worker(c);
    parent_g = l_new(c);
    CHECK_EQ(shm_join_new(c, &parent), SHM_OK);
    ((struct shm_join *)shm_at(c, parent))->g = parent_g;
    shm_g(c, parent_g)->obj = parent;
    CHECK_EQ(shm_group_new(c, limit, &gr), SHM_OK);
    CHECK_EQ(shm_group_enter(c, gr, parent), SHM_OK);
    CHECK_EQ(shm_group_enter(c, gr, parent), SHM_EAGAIN);
    return gr;
}

/* How many have asked for a cancel of it. */
static uint32_t asks(const struct shm_join *j)
{
    uint32_t asked = load_acq(&j->asked);
    return (asked & 0xfff) + (uint32_t)__builtin_popcount(asked >> 12);
}

static void end(struct shm_ctx *c, shm_off gr)
{
    shm_obj_unref(c, gr);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    shm_join_finish(c, parent, SHM_J_VALUE, &v);
    shm_obj_unref(c, parent);
    shm_obj_unref(c, parent);
    shm_g(c, parent_g)->obj = 0;
    l_end(c, parent_g);
    CHECK_QUIET(c);
    l_worker_end(c);
    h_seg_end(c);
}

/* A child that is runnable for its first turn; its join has one reference, the test's. */
static shm_off child(struct shm_ctx *c, shm_off gr, shm_gref *r)
{
    shm_off off;
    CHECK_EQ(shm_join_new(c, &off), SHM_OK);
    struct shm_join *j = shm_at(c, off);
    CHECK_EQ(shm_gnew(c, r), SHM_OK);
    struct shm_g *g = shm_g(c, *r);
    CHECK_EQ(shm_cont_make(c, &g->cont_off, "frame", 5, NULL, 0), SHM_OK);
    g->cont_len = 5;
    shm_publish(c, g->cont_off);
    g->obj = off;
    j->g = *r;
    shm_join_group(c, off, gr);
    CHECK_EQ(shm_group_add(c, gr, off), SHM_OK);
    shm_newproc(c, *r);
    return off;
}

static void finish(struct shm_ctx *c, shm_gref r, unsigned state)
{
    shm_off off = shm_g(c, r)->obj;
    struct shm_val v = {.tag = SHM_VAL_NONE};
    shm_join_finish(c, off, state, &v);
    shm_join_finish(c, off, state, &v); /* as a reaper may */
    shm_obj_unref(c, off);
    shm_g(c, r)->obj = 0;
    l_end(c, r);
}

static shm_off state_of(struct shm_ctx *c, shm_off gr, uint32_t *pending)
{
    struct shm_group *g = shm_at(c, gr);
    *pending = load_acq(&g->pending);
    return g->errs_first;
}

static void test_the_last_child_wakes_the_parent(void)
{
    struct shm_ctx c;
    shm_gref r[5];
    shm_off j[5], gr = begin(&c, 0);
    uint32_t pending;
    for (int i = 0; i < 5; i++)
        j[i] = child(&c, gr, &r[i]);
    CHECK(!shm_group_exiting(&c, gr));
    CHECK_EQ(shm_group_park(&c, gr, parent_g), SHM_PARKED);
    CHECK_SEGMENT(&c);
    for (int i = 0; i < 5; i++) {
        shm_gref n = l_next(&c);
        CHECK(n != 0 && n != parent_g);
        CHECK_EQ(shm_group_admit(&c, shm_g(&c, n)->obj, n), SHM_OK);
        finish(&c, n, i == 2 ? SHM_J_CANCELLED : SHM_J_VALUE);
        CHECK_EQ(state_of(&c, gr, &pending), 0);
        CHECK_EQ(pending, 4 - (uint32_t)i);
        CHECK_SEGMENT(&c);
    }
    CHECK_EQ(l_next(&c), parent_g);
    CHECK_EQ(shm_group_park(&c, gr, parent_g), SHM_OK);
    shm_group_finish(&c, gr);
    for (int i = 0; i < 5; i++)
        shm_obj_unref(&c, j[i]);
    end(&c, gr);
}

static void test_the_limit_lets_in_by_the_order_of_the_spawns(void)
{
    enum { N = 7, LIMIT = 2 };
    struct shm_ctx c;
    shm_gref r[N];
    shm_off j[N], gr = begin(&c, LIMIT);
    for (int i = 0; i < N; i++)
        j[i] = child(&c, gr, &r[i]);
    for (int i = 0; i < N; i++) { /* first turns, in whatever order the queue has them */
        shm_gref n = l_next(&c);
        int e = shm_group_admit(&c, shm_g(&c, n)->obj, n);
        CHECK_EQ(e, n == r[0] || n == r[1] ? SHM_OK : SHM_PARKED);
    }
    CHECK_EQ(l_next(&c), 0);
    for (int i = 0; i < N; i++) {
        finish(&c, r[i], SHM_J_VALUE);
        if (i + LIMIT < N) {
            CHECK_EQ(l_next(&c), r[i + LIMIT]);
            shm_obj_unref(&c, gr); /* as the resume does: the wait's hold */
            shm_g(&c, r[i + LIMIT])->waitkind = 0;
            CHECK_EQ(shm_group_admit(&c, j[i + LIMIT], r[i + LIMIT]), SHM_OK);
        }
        CHECK_EQ(l_next(&c), 0);
    }
    shm_group_exiting(&c, gr);
    shm_group_finish(&c, gr);
    for (int i = 0; i < N; i++)
        shm_obj_unref(&c, j[i]);
    end(&c, gr);
}

static void test_a_failure_cancels_the_others_and_the_parent_once(void)
{
    struct shm_ctx c;
    shm_gref r[4];
    shm_off j[4], gr = begin(&c, 0), ch, out;
    struct shm_val v = {.tag = SHM_VAL_NONE};
    uint32_t pending;
    CHECK_EQ(shm_chan_new(&c, 0, &ch), SHM_OK);
    for (int i = 0; i < 4; i++)
        j[i] = child(&c, gr, &r[i]);
    CHECK_EQ(shm_chan_recv_park(&c, ch, &v, parent_g), SHM_PARKED);
    for (int i = 0; i < 4; i++)
        CHECK(l_next(&c) != 0);
    CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r[0]), SHM_PARKED);
    finish(&c, r[1], SHM_J_ERROR); /* r[2] runs: its flag is set */
    CHECK_EQ(load_acq(&((struct shm_join *)shm_at(&c, j[2]))->cancel), 1);
    CHECK_EQ(load_acq(&((struct shm_join *)shm_at(&c, j[0]))->cancel), 0); /* delivered */
    CHECK_EQ(asks(shm_at(&c, parent)), 1);
    for (int i = 0; i < 2; i++) {
        shm_gref n = l_next(&c);
        CHECK(n == r[0] || n == parent_g);
        CHECK_EQ(shm_g(&c, n)->ok, 2);
    }
    CHECK_EQ(l_next(&c), 0);
    finish(&c, r[2], SHM_J_DIED); /* one more error */
    CHECK(shm_group_exiting(&c, gr));
    CHECK(!shm_group_exiting(&c, gr));
    CHECK_EQ(asks(shm_at(&c, parent)), 0);
    finish(&c, r[0], SHM_J_CANCELLED);
    finish(&c, r[3], SHM_J_VALUE);
    CHECK_EQ(state_of(&c, gr, &pending), j[1]);
    CHECK_EQ(pending, 0);
    CHECK(shm_group_error(&c, gr, &out));
    CHECK_EQ(out, j[1]);
    shm_obj_unref(&c, out); /* the other error goes with the group */
    CHECK_EQ(shm_group_add(&c, gr, j[0]), SHM_ECLOSED);
    shm_group_finish(&c, gr);
    for (int i = 0; i < 4; i++)
        shm_obj_unref(&c, j[i]);
    shm_obj_unref(&c, ch);
    end(&c, gr);
}

static void test_a_failure_lets_nobody_in_who_waits_at_the_limit(void)
{
    struct shm_ctx c;
    shm_gref r[3];
    shm_off j[3], gr = begin(&c, 1);
    for (int i = 0; i < 3; i++)
        j[i] = child(&c, gr, &r[i]);
    for (int i = 0; i < 3; i++) {
        shm_gref n = l_next(&c);
        CHECK_EQ(shm_group_admit(&c, shm_g(&c, n)->obj, n), n == r[0] ? SHM_OK : SHM_PARKED);
    }
    finish(&c, r[0], SHM_J_ERROR);
    for (int i = 0; i < 2; i++) {
        shm_gref n = l_next(&c);
        CHECK(n == r[1] || n == r[2]);
        CHECK_EQ(shm_g(&c, n)->ok, SHM_OK_CANCELLED);
        shm_obj_unref(&c, gr); /* the wait's hold */
        shm_g(&c, n)->waitkind = 0;
        finish(&c, n, SHM_J_CANCELLED);
    }
    CHECK(shm_group_exiting(&c, gr));
    shm_group_finish(&c, gr);
    for (int i = 0; i < 3; i++)
        shm_obj_unref(&c, j[i]);
    end(&c, gr);
}

static void test_a_parent_that_ends_inside_its_blocks_aborts_them(void)
{
    struct shm_ctx c;
    shm_gref r[2];
    shm_off j[2], outer = begin(&c, 0), inner;
    CHECK_EQ(shm_group_new(&c, 1, &inner), SHM_OK);
    CHECK_EQ(shm_group_enter(&c, inner, parent), SHM_OK);
    j[0] = child(&c, outer, &r[0]);
    j[1] = child(&c, inner, &r[1]);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    shm_join_finish(&c, parent, SHM_J_KILLED, &v);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(load_acq(&((struct shm_join *)shm_at(&c, j[i]))->cancel), 1);
        shm_gref n = l_next(&c);
        finish(&c, n, SHM_J_CANCELLED);
    }
    for (int i = 0; i < 2; i++)
        shm_obj_unref(&c, j[i]);
    shm_obj_unref(&c, inner);
    end(&c, outer);
}

struct storm {
    uint32_t n;
    shm_off gr;
    _Atomic uint32_t added, refused, failures;
};

/* Children come and go on all Ms; some fail near the end. */
static void come_and_go(struct shm_ctx *c, int i, void *arg)
{
    struct storm *t = arg;
    for (uint32_t k = 0; k < t->n; k++) {
        shm_off off;
        shm_gref r = o_new(c);
        CHECK_EQ(shm_join_new(c, &off), SHM_OK);
        struct shm_join *j = shm_at(c, off);
        j->g = r;
        shm_g(c, r)->obj = off;
        shm_join_group(c, off, t->gr);
        struct shm_val v = {.tag = SHM_VAL_NONE};
        if (shm_group_add(c, t->gr, off) != SHM_OK) {
            add_rlx(&t->refused, 1);
            shm_obj_unref(c, off);
            shm_obj_unref(c, off);
        } else {
            add_rlx(&t->added, 1);
            if (shm_group_admit(c, off, r) == SHM_PARKED) {
                o_wait(c, r, -1);
                shm_obj_unref(c, t->gr);
            }
            bool bad = k > t->n - t->n / 8 && h_rand(c) % 50 == 0;
            add_rlx(&t->failures, bad);
            shm_join_finish(c, off, bad ? SHM_J_ERROR : SHM_J_VALUE, &v);
            shm_obj_unref(c, off);
            shm_obj_unref(c, off);
        }
        shm_g(c, r)->obj = 0;
        o_end(c, r);
    }
    (void)i;
}

static void test_ends_on_many_ms_are_counted_once_each(void)
{
    struct shm_ctx c;
    struct storm *t = h_shared(sizeof *t);
    for (uint32_t limit = 0; limit < 4; limit++) {
        h_seg(&c, (struct shm_opts){0});
        CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
        shm_gref r = o_new(&c);
        CHECK_EQ(shm_join_new(&c, &parent), SHM_OK);
        ((struct shm_join *)shm_at(&c, parent))->g = r;
        memset(t, 0, sizeof *t);
        t->n = (uint32_t)H_N(600, 60000);
        CHECK_EQ(shm_group_new(&c, limit, &t->gr), SHM_OK);
        CHECK_EQ(shm_group_enter(&c, t->gr, parent), SHM_OK);
        h_ms(4, come_and_go, t);
        struct shm_group *gr = shm_at(&c, t->gr);
        CHECK_EQ(load_acq(&gr->pending), 0);
        CHECK_EQ(gr->running, 0);
        CHECK_EQ(t->added + t->refused, 4 * t->n);
        CHECK_SEGMENT(&c);
        shm_off j;
        while (shm_group_error(&c, t->gr, &j)) {
            t->failures--;
            shm_obj_unref(&c, j);
        }
        CHECK_EQ(t->failures, 0);
        shm_group_exiting(&c, t->gr);
        shm_group_finish(&c, t->gr);
        shm_obj_unref(&c, t->gr);
        shm_obj_unref(&c, parent);
        shm_obj_unref(&c, parent);
        o_end(&c, r);
        CHECK_QUIET(&c);
        shm_mexit(&c);
        h_seg_end(&c);
    }
    munmap(t, sizeof *t);
}

/* ---- an abort, and who else cancels the same child ------------------------------------------- */

static shm_off cancelled; /* by w */

static void another_cancels(void)
{
    CHECK(shm_join_cancel(&w, cancelled));
}

static void test_a_cancel_that_comes_at_any_moment_of_an_abort_counts_beside_it(void)
{
    bool came = true;
    for (uint32_t n = 1; came; n++) {
        struct shm_ctx c;
        shm_gref r;
        shm_off gr = begin(&c, 0);
        cancelled = child(&c, gr, &r);
        const struct shm_join *j = shm_at(&c, cancelled);
        CHECK_EQ(l_next(&c), r);
        shm_ctx_copy(&w, &c);
        CHECK_EQ(shm_minit(&w, SHM_M_WORKER), SHM_OK);
        h_call_after(n, another_cancels);
        shm_group_abort(&c, gr);
        came = h_call_left == 0;
        h_call_after(0, NULL);
        CHECK_EQ(asks(j), 1 + came);
        CHECK_EQ(load_acq(&j->cancel), 1);
        shm_group_abort(&c, gr); /* once */
        CHECK_EQ(asks(j), 1 + came);
        shm_mexit(&w);
        shm_obj_unref(&c, cancelled);
        finish(&c, r, SHM_J_CANCELLED);
        shm_group_exiting(&c, gr);
        shm_group_finish(&c, gr);
        end(&c, gr);
    }
}

static void test_a_cancel_that_is_taken_back_leaves_one_that_comes_meanwhile(void)
{
    bool came = true;
    for (uint32_t n = 1; came; n++) {
        struct shm_ctx c;
        shm_off gr = begin(&c, 0);
        struct shm_join *j = shm_at(&c, parent);
        cancelled = parent;
        shm_ctx_copy(&w, &c);
        CHECK_EQ(shm_minit(&w, SHM_M_WORKER), SHM_OK);
        CHECK(shm_join_cancel(&c, parent));
        h_call_after(n, another_cancels);
        uint32_t left = shm_join_uncancel(&c, parent, 0);
        came = h_call_left == 0;
        h_call_after(0, NULL);
        CHECK_EQ(load_acq(&j->asked), came);
        CHECK_EQ(load_acq(&j->cancel), came);
        CHECK(left == 0 || came);
        store_seq(&j->cancel, 0);
        shm_mexit(&w);
        shm_group_exiting(&c, gr);
        shm_group_finish(&c, gr);
        end(&c, gr);
    }
}

/* A child fails, on an M that is killed while it aborts the group. */
static void fails(struct shm_ctx *c, int n, void *arg)
{
    const shm_off *join = arg;
    struct shm_val v = {.tag = SHM_VAL_NONE};
    h_die_after((uint32_t)n);
    shm_join_finish(c, *join, SHM_J_ERROR, &v);
    h_die_after(0);
}

static void test_a_cancel_between_the_death_of_who_aborts_and_its_reaping_counts(void)
{
    bool died = true;
    for (int n = 1; died; n++) {
        shm_gref r[2];
        shm_off j[2], gr = begin(&w, 0);
        for (int i = 0; i < 2; i++)
            j[i] = child(&w, gr, &r[i]);
        shm_ctx_copy(&k, &w);
        CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
        for (int i = 0; i < 2; i++)
            CHECK(l_next(&w) != 0);
        const struct shm_join *other = shm_at(&w, j[1]), *above = shm_at(&w, parent);
        int pid = h_fork(fails, n, &j[0]), status = h_wait(pid);
        died = d_killed(status);
        CHECK(shm_join_cancel(&w, j[1]));
        if (died)
            shm_reap(&k, &k.mtab[d_slot(pid)], status);
        finish(&w, r[0], SHM_J_ERROR); /* its end may not have been told */
        CHECK_EQ(load_acq(&other->cancel), 1);
        CHECK_EQ(asks(other), 2);
        CHECK_EQ(load_acq(&above->cancel), 1);
        CHECK_EQ(asks(above), 1);
        shm_obj_unref(&w, j[0]);
        shm_obj_unref(&w, j[1]);
        finish(&w, r[1], SHM_J_CANCELLED);
        CHECK(shm_group_exiting(&w, gr));
        CHECK_EQ(load_acq(&above->asking), 0);
        shm_group_finish(&w, gr);
        shm_off e;
        while (shm_group_error(&w, gr, &e))
            shm_obj_unref(&w, e);
        shm_obj_unref(&w, gr);
        h_seg_end(&w); /* what the dead had in its hand is not this test's */
    }
}

static void test_a_parent_that_leaves_between_that_death_and_its_reaping_is_not_cancelled(void)
{
    bool died = true;
    for (int n = 1; died; n++) {
        shm_gref r;
        shm_off gr = begin(&w, 0), j = child(&w, gr, &r), e;
        const struct shm_join *above = shm_at(&w, parent);
        shm_ctx_copy(&k, &w);
        CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
        CHECK_EQ(l_next(&w), r);
        int pid = h_fork(fails, n, &j), status = h_wait(pid);
        died = d_killed(status);
        if (died)
            shm_reap_locks(&k, &k.mtab[d_slot(pid)]);
        bool asked = ((struct shm_group *)shm_at(&w, gr))->asked_parent;
        CHECK_EQ(shm_group_exiting(&w, gr), asked);
        if (died)
            shm_reap(&k, &k.mtab[d_slot(pid)], status);
        finish(&w, r, SHM_J_ERROR);
        CHECK_EQ(load_acq(&above->asking), 0);
        shm_obj_unref(&w, j);
        shm_group_finish(&w, gr);
        while (shm_group_error(&w, gr, &e))
            shm_obj_unref(&w, e);
        shm_obj_unref(&w, gr);
        h_seg_end(&w);
    }
}

/* Blocks within blocks: each takes back what it has asked for, and no other's. */
static void test_of_nested_groups_each_takes_back_its_own(void)
{
    enum { DEEP = 24 };
    struct shm_ctx c;
    shm_gref r[DEEP];
    shm_off j[DEEP], gr[DEEP];
    gr[0] = begin(&c, 0);
    struct shm_join *above = shm_at(&c, parent);
    for (int i = 1; i < DEEP; i++) {
        CHECK_EQ(shm_group_new(&c, 0, &gr[i]), SHM_OK);
        CHECK_EQ(shm_group_enter(&c, gr[i], parent), SHM_OK);
    }
    for (int i = 0; i < DEEP; i++) {
        j[i] = child(&c, gr[i], &r[i]);
        CHECK_EQ(l_next(&c), r[i]);
        if (i % 3 == 0)
            finish(&c, r[i], SHM_J_ERROR);
        CHECK_EQ(asks(above), (uint32_t)i / 3 + 1);
    }
    store_seq(&above->cancel, 0); /* delivered */
    for (int i = DEEP - 1; i >= 0; i--) {
        /* It was for this one only if none around it has asked since it was entered. */
        CHECK_EQ(shm_group_exiting(&c, gr[i]), i == 0);
        CHECK_EQ(asks(above), (uint32_t)(i + 2) / 3);
        if (i % 3)
            finish(&c, r[i], SHM_J_VALUE);
        shm_group_finish(&c, gr[i]);
        shm_obj_unref(&c, j[i]);
        if (i)
            shm_obj_unref(&c, gr[i]);
    }
    CHECK_EQ(load_acq(&above->asking), 0);
    end(&c, gr[0]);
}

H_MAIN(T(test_the_last_child_wakes_the_parent),
       T(test_the_limit_lets_in_by_the_order_of_the_spawns),
       T(test_a_failure_cancels_the_others_and_the_parent_once),
       T(test_a_failure_lets_nobody_in_who_waits_at_the_limit),
       T(test_a_parent_that_ends_inside_its_blocks_aborts_them),
       T(test_ends_on_many_ms_are_counted_once_each),
       T(test_a_cancel_that_comes_at_any_moment_of_an_abort_counts_beside_it),
       T(test_a_cancel_that_is_taken_back_leaves_one_that_comes_meanwhile),
       T(test_a_cancel_between_the_death_of_who_aborts_and_its_reaping_counts),
       T(test_a_parent_that_leaves_between_that_death_and_its_reaping_is_not_cancelled),
       T(test_of_nested_groups_each_takes_back_its_own))
