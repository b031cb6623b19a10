/* Tests of reap.c and select.c: an M is killed on its way through a select of more cases than fit
 * into one transaction and into m->held (deaths.h). Afterwards no lock is held, a goroutine that
 * was in select waits on all its channels or comes up with one case, and each value is somewhere
 * once. And while the claimer of a small one is dead and not yet reaped, others come to its other
 * channels: what went past it there it gets all the same. */
#include "deaths.h"

/* SHARED: of one channel, in both directions; each of the others has a channel of its own. */
enum { CASES = 70, SHARED = 6, VALUES = 2 * CASES };

struct world { /* shared with the children */
    shm_off ch[CASES], table;
    shm_gref parked;
    _Atomic uint32_t got; /* value + 1 that the M received */
    uint8_t seen[VALUES];
};
static struct world *W;

static void park(struct shm_ctx *c, shm_gref r, uint64_t values)
{
    struct shm_case cases[CASES];
    struct shm_val v;
    uint32_t which;
    for (uint32_t i = 0; i < CASES; i++)
        cases[i] = i % 2 ? s_send(W->ch[i], v_ref(c, values + i, W->table)) : s_recv(W->ch[i]);
    CHECK_EQ(shm_select_park(c, cases, CASES, r, &which, &v), SHM_PARKED);
}

static void build(void)
{
    if (W == NULL)
        W = h_shared(sizeof *W);
    memset(W, 0, sizeof *W);
    CHECK_EQ(shm_chan_new(&w, 0, &W->table), SHM_OK);
    for (uint32_t i = 0; i < CASES; i++) {
        if (i > 0 && i < SHARED) {
            shm_obj_ref(&w, W->ch[0]);
            W->ch[i] = W->ch[0];
        } else {
            CHECK_EQ(shm_chan_new(&w, 0, &W->ch[i]), SHM_OK);
        }
    }
}

static void build_parked(void)
{
    build();
    W->parked = l_new(&w);
    park(&w, W->parked, 0);
}

/* ---- what an M does when it dies ------------------------------------------------------------- */

static void parks(struct shm_ctx *c)
{
    park(c, l_new(c), 0);
}

static void tries(struct shm_ctx *c)
{
    struct shm_case cases[CASES];
    struct shm_val v;
    uint32_t which;
    for (uint32_t i = 0; i < CASES; i++)
        cases[i] = s_recv(W->ch[i]);
    int e = shm_select_try(c, cases, CASES, &which, &v);
    CHECK_EQ(e, W->parked ? SHM_OK : SHM_EAGAIN);
    if (e == SHM_OK) {
        store_rlx(&W->got, (uint32_t)v_num(c, &v) + 1);
        shm_val_drop(c, &v);
    }
}

/* The goroutine comes up by one case, here, and leaves its other queues. */
static void wakes(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, CASES, W->table);
    uint32_t tag;
    CHECK_EQ(shm_chan_trysend(c, W->ch[CASES - 4], &v), SHM_OK);
    shm_gref r = l_next(c);
    CHECK_EQ(r, W->parked);
    CHECK_EQ(shm_select_done(c, r, &tag), CASES - 4);
    shm_val_drop(c, &shm_g(c, r)->value);
}

static void cancels(struct shm_ctx *c)
{
    CHECK(g_cancel(c, W->parked));
    shm_ready(c, W->parked, true);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static void see(const struct shm_val *v)
{
    if (v->tag != SHM_VAL_NONE)
        CHECK_EQ(W->seen[v_num(&w, v)]++, 0); /* once */
}

static void finish(shm_gref r)
{
    struct shm_g *g = shm_g(&w, r);
    d_wait_over(r);
    see(&g->value);
    shm_val_drop(&w, &g->value);
    l_end(&w, r);
}

static void apart(uint32_t hands)
{
    shm_gref r;
    struct shm_val v;
    uint32_t sent = 0;
    (void)hands;
    d_run(finish);
    CHECK_SEGMENT(&k);
    for (uint64_t i = 1; (r = d_waiting(&i)) != 0;) { /* on all: one more look at each lock */
        for (uint32_t n = SHARED; n < CASES; n++) {
            struct shm_chan *ch = shm_at(&w, W->ch[n]);
            shm_lock(&w, &ch->lock);
            CHECK(n % 2 ? ch->sendq_first != 0 : ch->recvq_first != 0);
            shm_unlock(&w, &ch->lock);
        }
        CHECK_EQ(shm_chan_tryrecv(&w, W->ch[CASES - 1], &v), SHM_OK);
        CHECK_EQ(v_num(&w, &v), CASES - 1);
        see(&v);
        shm_val_drop(&w, &v);
        sent++;
        CHECK_EQ(l_next(&w), r);
        finish(r);
    }
    CHECK(sent <= 1);
    if (W->got)
        CHECK_EQ(W->seen[W->got - 1]++, 0);
    for (uint32_t n = 0; n < CASES; n++) {
        struct shm_chan *ch = shm_at(&w, W->ch[n]);
        CHECK(ch->sendq_first == 0 && ch->recvq_first == 0 && load_acq(&ch->lock) == 0);
        shm_obj_unref(&w, W->ch[n]);
    }
    shm_obj_unref(&w, W->table);
}

static const struct act acts[] = {
    {"a select of many cases parks", build, parks, apart, 0, 0},
    {"a select of many cases finds none", build, tries, apart, 0, 0},
    {"a select of many cases finds one", build_parked, tries, apart, 1, 0},
    {"a select of many cases is woken", build_parked, wakes, apart, 1, 0},
    {"a select of many cases is cancelled", build_parked, cancels, apart, 0, 0},
};
#define N (sizeof acts / sizeof *acts)

static void test_an_m_killed_at_each_failpoint_of_a_large_select_leaves_a_whole_segment(void)
{
    d_killed_everywhere(acts, N);
}
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    d_reaper_killed(&acts[0], 1); /* quadratic: those that the others are like */
    d_reaper_killed(&acts[3], 1);
}

/* ---- what happens between the claimer's death and its reaping -------------------------------- */

enum { A, B };

static void build_two(uint32_t cap, uint32_t dir)
{
    struct shm_case cases[2];
    struct shm_val v;
    uint32_t which;
    if (W == NULL)
        W = h_shared(sizeof *W);
    memset(W, 0, sizeof *W);
    CHECK_EQ(shm_chan_new(&w, 0, &W->ch[A]), SHM_OK);
    CHECK_EQ(shm_chan_new(&w, cap, &W->ch[B]), SHM_OK);
    for (uint32_t i = A; i <= B; i++)
        cases[i] = dir == SHM_DIR_SEND ? s_send(W->ch[i], v_big(&w, i)) : s_recv(W->ch[i]);
    W->parked = l_new(&w);
    CHECK_EQ(shm_select_park(&w, cases, 2, W->parked, &which, &v), SHM_PARKED);
}

static void comes_to_a(struct shm_ctx *c)
{
    struct shm_val v = v_big(c, 10);
    if (shm_chan_trysend(c, W->ch[A], &v) == SHM_OK)
        return;
    shm_val_drop(c, &v);
    if (shm_chan_tryrecv(c, W->ch[A], &v) == SHM_OK)
        shm_val_drop(c, &v);
}

static void comes_to_a_and_dies(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    (void)arg;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_at("sudog.claimed", 1);
    comes_to_a(c);
}

/* A receiver's or sender's select, whose claimer by A is dead; its slot. */
static struct shm_m *with_a_dead_claimer(uint32_t cap, uint32_t dir)
{
    h_seg(&k, (struct shm_opts){.nprocs = 3});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    d_worker();
    build_two(cap, dir);
    int pid = h_fork(comes_to_a_and_dies, 0, NULL);
    CHECK(d_killed(h_wait(pid)));
    return &k.mtab[d_slot(pid)];
}

/* The select comes up by its case `which`, and has received n if it receives. */
static void comes_up(int which, uint8_t ok, uint64_t n)
{
    struct shm_g *g = shm_g(&w, W->parked);
    uint32_t tag;
    CHECK_EQ(g->ok, ok);
    CHECK_EQ(shm_select_done(&w, W->parked, &tag), which);
    if (n)
        CHECK_EQ(v_eat(&w, &g->value), n);
    l_end(&w, W->parked);
}

static void end_two(void)
{
    CHECK_EQ(l_next(&w), 0);
    shm_obj_unref(&w, W->ch[A]);
    shm_obj_unref(&w, W->ch[B]);
    d_end(0);
}

static int send_to(uint32_t ch, uint64_t n)
{
    struct shm_val v = v_big(&w, n);
    int e = shm_chan_trysend(&w, W->ch[ch], &v);
    if (e)
        shm_val_drop(&w, &v);
    return e;
}

static void test_a_select_whose_claimer_died_waits_on_all_its_channels_again(void)
{
    for (uint32_t ch = A; ch <= B; ch++) {
        struct shm_m *dead = with_a_dead_claimer(0, SHM_DIR_RECV);
        shm_reap_locks(&k, dead); /* else nobody comes to A */
        CHECK_EQ(send_to(A, 1), SHM_EAGAIN);
        CHECK_EQ(send_to(B, 2), SHM_EAGAIN);
        shm_reap(&k, dead, 9);
        CHECK_EQ(l_next(&w), 0);
        CHECK_SEGMENT(&k);
        CHECK_EQ(send_to(ch, 3), SHM_OK);
        CHECK_EQ(l_next(&w), W->parked);
        comes_up((int)ch, SHM_OK_VALUE, 3);
        end_two();
    }
}

static void test_a_select_whose_claimer_died_gets_what_waits_on_another_channel(void)
{
    struct shm_m *dead = with_a_dead_claimer(0, SHM_DIR_RECV);
    shm_gref other = l_new(&w);
    struct shm_val v = v_big(&w, 2);
    CHECK_EQ(shm_chan_send_park(&w, W->ch[B], &v, other), SHM_PARKED);
    shm_reap(&k, dead, 9);
    for (int i = 0; i < 2; i++) {
        shm_gref r = l_next(&w);
        if (r == W->parked) {
            comes_up(B, SHM_OK_VALUE, 2);
        } else {
            CHECK_EQ(r, other);
            CHECK_EQ(shm_g(&w, r)->ok, SHM_OK_VALUE);
            l_end(&w, r);
        }
    }
    end_two();
}

static void test_a_select_whose_claimer_died_sends_to_who_waits_on_another_channel(void)
{
    struct shm_m *dead = with_a_dead_claimer(0, SHM_DIR_SEND);
    shm_gref other = l_new(&w);
    struct shm_val v;
    CHECK_EQ(shm_chan_recv_park(&w, W->ch[B], &v, other), SHM_PARKED);
    shm_reap(&k, dead, 9);
    for (int i = 0; i < 2; i++) {
        shm_gref r = l_next(&w);
        if (r == W->parked) {
            comes_up(B, SHM_OK_VALUE, 0);
        } else {
            CHECK_EQ(r, other);
            CHECK_EQ(v_eat(&w, &shm_g(&w, r)->value), B);
            l_end(&w, r);
        }
    }
    end_two();
}

static void test_a_select_whose_claimer_died_gets_what_lies_in_another_channel(void)
{
    struct shm_m *dead = with_a_dead_claimer(1, SHM_DIR_RECV);
    CHECK_EQ(send_to(B, 2), SHM_OK);
    shm_reap(&k, dead, 9);
    CHECK_EQ(l_next(&w), W->parked);
    comes_up(B, SHM_OK_VALUE, 2);
    end_two();
}

static void test_a_select_whose_claimer_died_sees_that_another_channel_is_closed(void)
{
    for (uint32_t dir = SHM_DIR_RECV; dir <= SHM_DIR_SEND; dir++) {
        struct shm_m *dead = with_a_dead_claimer(0, dir);
        CHECK_EQ(shm_chan_close(&w, W->ch[B]), SHM_OK);
        shm_reap(&k, dead, 9);
        CHECK_EQ(l_next(&w), W->parked);
        comes_up(B, SHM_OK_CLOSED, 0);
        end_two();
    }
}

/* A sender to B. Whatever the other M did on A: the select has one of the two. */
static void sends_to_b(void)
{
    struct shm_val v = v_big(&w, 2);
    W->table = l_new(&w);
    if (shm_chan_send_park(&w, W->ch[B], &v, W->table) == SHM_OK)
        l_end(&w, W->table);
}

static void build_receiver(void)
{
    build_two(0, SHM_DIR_RECV);
}

static void apart_two(uint32_t hands)
{
    struct shm_g *g = shm_g(&w, W->parked);
    struct shm_val v;
    uint64_t got = 0;
    shm_gref r;
    uint32_t tag;
    (void)hands;
    while ((r = l_next(&w)) != 0) {
        if (r == W->parked) {
            shm_select_done(&w, r, &tag);
            got = v_eat(&w, &g->value);
        }
        l_end(&w, r);
    }
    CHECK(got == 10 || got == 2);
    if (got == 10) {
        CHECK_EQ(shm_chan_tryrecv(&w, W->ch[B], &v), SHM_OK);
        CHECK_EQ(v_eat(&w, &v), 2);
        CHECK_EQ(l_next(&w), W->table);
        l_end(&w, W->table);
    }
    shm_obj_unref(&w, W->ch[A]);
    shm_obj_unref(&w, W->ch[B]);
}

static const struct act comes[] = {
    {"a sender comes to a select", build_receiver, comes_to_a, apart_two, 1, 4},
};

static void test_a_select_has_one_of_two_senders_wherever_one_and_its_reaper_are_killed(void)
{
    d_meanwhile = sends_to_b;
    d_killed_everywhere(comes, 1);
    d_reaper_killed(comes, 1);
    d_meanwhile = NULL;
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_of_a_large_select_leaves_a_whole_segment),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another),
       T(test_a_select_whose_claimer_died_waits_on_all_its_channels_again),
       T(test_a_select_whose_claimer_died_gets_what_waits_on_another_channel),
       T(test_a_select_whose_claimer_died_sends_to_who_waits_on_another_channel),
       T(test_a_select_whose_claimer_died_gets_what_lies_in_another_channel),
       T(test_a_select_whose_claimer_died_sees_that_another_channel_is_closed),
       T(test_a_select_has_one_of_two_senders_wherever_one_and_its_reaper_are_killed))
