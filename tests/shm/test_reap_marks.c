/* Tests of reap.c and join.c: a cancel or a kill finds a goroutine that cannot be woken just then,
 * since an M has it in hand: it leaves its mark and goes. Then that M dies, and its reaper puts the
 * goroutine back to where it waits. It comes up by the mark all the same. */
#include "deaths.h"

enum { CANCEL, KILL, MARKS };

struct world { /* shared with the children */
    shm_off ch[2], j;
    shm_gref r;
    _Atomic uint32_t running, marked;
};
static struct world *W;

static void begin(void)
{
    if (W == NULL)
        W = h_shared(sizeof *W);
    memset(W, 0, sizeof *W);
    h_seg(&k, (struct shm_opts){.nprocs = 3});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    d_worker();
    CHECK_EQ(shm_chan_new(&w, 0, &W->ch[0]), SHM_OK);
    CHECK_EQ(shm_chan_new(&w, 0, &W->ch[1]), SHM_OK);
}

/* Runs, and has a join with two references: its own, and W's. */
static void with_join(struct shm_ctx *c)
{
    CHECK_EQ(shm_join_new(c, &W->j), SHM_OK);
    struct shm_join *j = shm_at(c, W->j);
    W->r = l_new(c);
    j->g = W->r;
    shm_join_give(c, shm_g(c, W->r), W->j);
}

static void mark(int how)
{
    CHECK(how == KILL ? shm_join_kill(&w, W->j, SHM_K_KILL) : shm_join_cancel(&w, W->j));
    CHECK_EQ(l_next(&w), 0);
}

static struct shm_m *dies(h_fn fn)
{
    int pid = h_fork(fn, 0, NULL);
    CHECK(d_killed(h_wait(pid)));
    return &k.mtab[d_slot(pid)];
}

static void comes_up_by(int how)
{
    struct shm_g *g = shm_g(&w, W->r);
    struct shm_join *j = shm_at(&w, W->j);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    uint32_t tag;
    CHECK_EQ(l_next(&w), W->r);
    CHECK_EQ(g->ok, how == KILL ? SHM_OK_KILLED : SHM_OK_CANCELLED);
    CHECK_EQ(load_acq(&j->cancel), 0);
    if (g->waitkind == SHM_WAIT_SELECT)
        CHECK_EQ(shm_select_done(&w, W->r, &tag), -1);
    shm_join_finish(&w, W->j, how == KILL ? SHM_J_KILLED : SHM_J_CANCELLED, &v);
    g->obj = 0;
    shm_obj_unref(&w, W->j);
    l_end(&w, W->r);
    CHECK_EQ(l_next(&w), 0);
    shm_obj_unref(&w, W->j);
    shm_obj_unref(&w, W->ch[0]);
    shm_obj_unref(&w, W->ch[1]);
    d_end(0);
}

/* ---- claimed --------------------------------------------------------------------------------- */

static void claims(struct shm_ctx *c, int i, void *arg)
{
    struct shm_val v = v_int(1);
    (void)i;
    (void)arg;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_at("sudog.claimed", 1);
    CHECK_EQ(shm_chan_trysend(c, W->ch[0], &v), SHM_OK);
}

static void test_what_was_marked_while_a_dead_m_had_claimed_it_comes_up(void)
{
    for (int how = CANCEL; how < MARKS; how++) {
        struct shm_val v;
        begin();
        with_join(&w);
        CHECK_EQ(shm_chan_recv_park(&w, W->ch[0], &v, W->r), SHM_PARKED);
        struct shm_m *dead = dies(claims);
        mark(how);
        shm_reap(&k, dead, 9);
        comes_up_by(how);
    }
}

static void test_a_select_that_was_marked_while_a_dead_m_had_claimed_it_comes_up(void)
{
    for (int how = CANCEL; how < MARKS; how++) {
        struct shm_case cases[2];
        struct shm_val v;
        uint32_t which;
        begin();
        with_join(&w);
        for (int i = 0; i < 2; i++)
            cases[i] = s_recv(W->ch[i]);
        CHECK_EQ(shm_select_park(&w, cases, 2, W->r, &which, &v), SHM_PARKED);
        struct shm_m *dead = dies(claims);
        mark(how);
        shm_reap(&k, dead, 9);
        comes_up_by(how);
    }
}

/* ---- being parked ---------------------------------------------------------------------------- */

static void parks(struct shm_ctx *c, int i, void *arg)
{
    struct shm_val v;
    (void)i;
    (void)arg;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    with_join(c);
    store_rel(&W->running, 1); /* pairs with the other's wait, as the next */
    H_WAIT(load_acq(&W->marked));
    h_die_at("sudog.armed", 1);
    CHECK_EQ(shm_chan_recv_park(c, W->ch[0], &v, W->r), SHM_PARKED);
}

static void test_what_was_marked_before_it_was_parked_by_an_m_that_died_comes_up(void)
{
    for (int how = CANCEL; how < MARKS; how++) {
        begin();
        int pid = h_fork(parks, 0, NULL);
        H_WAIT(load_acq(&W->running)); /* pairs with parks() */
        shm_obj_ref(&w, W->j);         /* the other's own goes with it */
        mark(how);
        store_rel(&W->marked, 1); /* as above */
        CHECK(d_killed(h_wait(pid)));
        shm_reap(&k, &k.mtab[d_slot(pid)], 9);
        comes_up_by(how);
    }
}

H_MAIN(T(test_what_was_marked_while_a_dead_m_had_claimed_it_comes_up),
       T(test_a_select_that_was_marked_while_a_dead_m_had_claimed_it_comes_up),
       T(test_what_was_marked_before_it_was_parked_by_an_m_that_died_comes_up))
