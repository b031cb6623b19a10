/* Tests of select.c: uniform choice, one snapshot, one winner, losers that leave no trace. */
#include "gs.h"

static shm_off chan_with(struct shm_ctx *c, uint32_t cap, uint32_t values)
{
    shm_off ch;
    CHECK_EQ(shm_chan_new(c, cap, &ch), SHM_OK);
    for (uint32_t i = 0; i < values; i++) {
        struct shm_val v = v_int(i);
        CHECK_EQ(shm_chan_trysend(c, ch, &v), SHM_OK);
    }
    return ch;
}

/* ---- one M ----------------------------------------------------------------------------------- */

/* Go runtime/chan_test.go TestSelectFairness: |r - p| < 4.89 sqrt(p (1 - p) / n), one false alarm
 * in a million. Stricter: every number of ready cases, among others that are not. */
static void test_of_the_ready_cases_each_is_chosen_equally_often(void)
{
    struct shm_ctx c;
    uint32_t rounds = (uint32_t)H_N(10000, 300000);
    l_seg(&c);
    for (uint32_t ready = 1; ready <= 6; ready++) {
        struct shm_case cases[9];
        uint32_t n = ready + 3, count[9] = {0};
        struct shm_val v;
        for (uint32_t i = 0; i < n; i++) /* ready ones: even places first, then the rest */
            cases[i] = s_recv(chan_with(&c, 1, i >= 2 && i < ready + 2));
        for (uint32_t k = 0; k < rounds; k++) {
            uint32_t which = 99;
            CHECK_EQ(shm_select_try(&c, cases, n, &which, &v), SHM_OK);
            CHECK(which >= 2 && which < ready + 2);
            count[which]++;
            CHECK_EQ(shm_chan_trysend(&c, cases[which].ch, &v), SHM_OK);
        }
        double p = 1.0 / ready;
        for (uint32_t i = 2; i < ready + 2; i++) {
            double off = (double)count[i] / rounds - p;
            CHECK(off * off <= 4.89 * 4.89 * p * (1 - p) / rounds);
        }
        for (uint32_t i = 0; i < n; i++)
            shm_obj_unref(&c, cases[i].ch);
    }
    l_seg_end(&c);
}

/* Go test/chan/select3.go: what blocks, what does not, what fails. */
static void test_a_case_is_ready_exactly_when_its_operation_would_not_wait(void)
{
    struct shm_ctx c;
    l_seg(&c);
    struct {
        uint32_t cap, values;
        bool closed;
        int recv, send;
    } table[] = {
        {0, 0, false, SHM_EAGAIN, SHM_EAGAIN},  {1, 0, false, SHM_EAGAIN, SHM_OK},
        {1, 1, false, SHM_OK, SHM_EAGAIN},      {2, 1, false, SHM_OK, SHM_OK},
        {0, 0, true, SHM_ECLOSED, SHM_ECLOSED}, {1, 1, true, SHM_OK, SHM_ECLOSED},
        {2, 1, true, SHM_OK, SHM_ECLOSED},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (int send = 0; send < 2; send++) {
            shm_off ch = chan_with(&c, table[i].cap, table[i].values);
            struct shm_case k = send ? s_send(ch, v_int(9)) : s_recv(ch);
            uint32_t which = 99;
            struct shm_val v;
            int want = send ? table[i].send : table[i].recv;
            if (table[i].closed)
                CHECK_EQ(shm_chan_close(&c, ch), SHM_OK);
            CHECK_EQ(shm_select_try(&c, &k, 1, &which, &v), want);
            CHECK_EQ(which, want == SHM_EAGAIN ? 99 : 0);
            shm_obj_unref(&c, ch);
        }
    uint32_t which;
    struct shm_val v;
    CHECK_EQ(shm_select_try(&c, NULL, 0, &which, &v), SHM_EAGAIN);
    l_seg_end(&c);
}

static void test_whoever_wakes_a_select_decides_its_case_and_the_losers_leave_their_queues(void)
{
    struct shm_ctx c;
    l_seg(&c);
    for (uint32_t winner = 0; winner < 6; winner++) {
        struct shm_case cases[6];
        struct shm_val v;
        uint32_t which = 99;
        for (uint32_t i = 0; i < 6; i++) {
            shm_off ch = chan_with(&c, 0, 0);
            cases[i] = i % 2 ? s_send(ch, v_big(&c, i)) : s_recv(ch);
        }
        shm_gref r = l_new(&c);
        CHECK_EQ(shm_select_park(&c, cases, 6, r, &which, &v), SHM_PARKED);
        CHECK_SEGMENT(&c);
        if (winner % 2) {
            CHECK_EQ(shm_chan_tryrecv(&c, cases[winner].ch, &v), SHM_OK);
            CHECK_EQ(v_eat(&c, &v), winner);
        } else {
            v = v_big(&c, 100 + winner);
            CHECK_EQ(shm_chan_trysend(&c, cases[winner].ch, &v), SHM_OK);
        }
        CHECK_SEGMENT(&c);
        /* The wait is over: nobody else gets at it, though the sudogs still stand there. */
        for (uint32_t i = 0; i < 6; i++) {
            v = v_int(1);
            CHECK_EQ(i % 2 ? shm_chan_tryrecv(&c, cases[i].ch, &v)
                           : shm_chan_trysend(&c, cases[i].ch, &v),
                     SHM_EAGAIN);
        }
        CHECK_EQ(l_next(&c), r);
        CHECK_EQ(shm_select_done(&c, r, &(uint32_t){0}), winner);
        CHECK_EQ(shm_g(&c, r)->ok, 1);
        if (winner % 2 == 0)
            CHECK_EQ(v_eat(&c, &shm_g(&c, r)->value), 100 + winner);
        for (uint32_t i = 0; i < 6; i++) {
            struct shm_chan *ch = shm_at(&c, cases[i].ch);
            CHECK(ch->recvq_first == 0 && ch->recvq_last == 0);
            CHECK(ch->sendq_first == 0 && ch->sendq_last == 0);
            shm_obj_unref(&c, cases[i].ch);
        }
        l_end(&c, r);
    }
    l_seg_end(&c);
}

/* Go test/chan/select6.go (issue 2075): a loser that was last in a queue. */
static void test_a_losing_case_at_the_end_of_a_queue_leaves_the_queue_whole(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint32_t which;
    l_seg(&c);
    shm_off c1 = chan_with(&c, 0, 0), c2 = chan_with(&c, 0, 0);
    shm_gref first = l_new(&c);
    CHECK_EQ(shm_chan_recv_park(&c, c1, &v, first), SHM_PARKED);
    shm_gref sel = l_new(&c);
    struct shm_case cases[2] = {s_recv(c1), s_recv(c2)};
    CHECK_EQ(shm_select_park(&c, cases, 2, sel, &which, &v), SHM_PARKED);
    v = v_int(1);
    CHECK_EQ(shm_chan_trysend(&c, c2, &v), SHM_OK);
    CHECK_EQ(l_next(&c), sel);
    CHECK_EQ(shm_select_done(&c, sel, &(uint32_t){0}), 1);
    l_end(&c, sel);
    shm_gref third = l_new(&c);
    CHECK_EQ(shm_chan_recv_park(&c, c1, &v, third), SHM_PARKED);
    CHECK_SEGMENT(&c);
    for (int i = 0; i < 2; i++) {
        v = v_int(2);
        CHECK_EQ(shm_chan_trysend(&c, c1, &v), SHM_OK);
        shm_gref r = l_next(&c);
        CHECK_EQ(r, i ? third : first);
        l_end(&c, r);
    }
    shm_obj_unref(&c, c1);
    shm_obj_unref(&c, c2);
    l_seg_end(&c);
}

/* Go runtime/chan_test.go TestSelfSelect and TestSelectDuplicateChannel. */
static void test_a_select_never_meets_itself_and_may_name_a_channel_twice(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint32_t which;
    l_seg(&c);
    shm_off ch = chan_with(&c, 0, 0);
    struct shm_case cases[4] = {s_send(ch, v_int(5)), s_recv(ch), s_recv(ch), s_send(ch, v_int(6))};
    for (uint32_t i = 0; i < 4; i++)
        cases[i].tag = 10 + i;
    CHECK_EQ(shm_select_try(&c, cases, 4, &which, &v), SHM_EAGAIN);
    uint32_t won[4] = {0};
    for (int i = 0; i < 400; i++) {
        int send = i % 2, winner;
        uint32_t tag = 0;
        shm_gref r = l_new(&c);
        CHECK_EQ(shm_select_park(&c, cases, 4, r, &which, &v), SHM_PARKED);
        CHECK_SEGMENT(&c);
        v = v_int(7);
        CHECK_EQ(send ? shm_chan_trysend(&c, ch, &v) : shm_chan_tryrecv(&c, ch, &v), SHM_OK);
        CHECK_EQ(l_next(&c), r);
        winner = shm_select_done(&c, r, &tag);
        CHECK(winner >= 0 && winner < 4);
        CHECK_EQ(tag, 10 + (uint32_t)winner);
        CHECK_EQ(v_num(&c, &v), send ? 7 : winner == 0 ? 5 : 6);
        won[winner]++;
        l_end(&c, r);
    }
    /* Go TestPseudoRandomSend: of two cases alike, either. 200 tosses of a coin. */
    for (int i = 0; i < 4; i++)
        CHECK(won[i] > 40);
    CHECK_EQ(won[0] + won[3], 200);
    /* Two selects on both sides of it do meet. */
    shm_gref r1 = l_new(&c), r2;
    CHECK_EQ(shm_select_park(&c, cases, 2, r1, &which, &v), SHM_PARKED);
    r2 = l_new(&c);
    CHECK_EQ(shm_select_park(&c, cases, 2, r2, &which, &v), SHM_OK);
    CHECK_EQ(l_next(&c), r1);
    CHECK_EQ(shm_select_done(&c, r1, &(uint32_t){0}), 1 - (int)which);
    l_end(&c, r1);
    CHECK(shm_casgstatus(&c, r2, Grunning, Grunnable));
    CHECK(shm_execute(&c, r2, false));
    l_end(&c, r2);
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

static void test_close_ends_a_select_in_either_direction(void)
{
    struct shm_ctx c;
    l_seg(&c);
    for (int send = 0; send < 2; send++) {
        struct shm_val v;
        uint32_t which;
        shm_off c1 = chan_with(&c, 0, 0), c2 = chan_with(&c, 0, 0);
        struct shm_case cases[2] = {s_send(c1, v_big(&c, 1)), s_recv(c2)};
        shm_gref r = l_new(&c);
        CHECK_EQ(shm_select_park(&c, cases, 2, r, &which, &v), SHM_PARKED);
        CHECK_EQ(shm_chan_close(&c, send ? c1 : c2), SHM_OK);
        CHECK_EQ(shm_chan_close(&c, send ? c2 : c1), SHM_OK); /* too late to matter */
        CHECK_SEGMENT(&c);
        CHECK_EQ(l_next(&c), r);
        CHECK_EQ(l_next(&c), 0);
        CHECK_EQ(shm_g(&c, r)->ok, 0);
        CHECK_EQ(shm_select_done(&c, r, &(uint32_t){0}), send ? 0 : 1);
        l_end(&c, r);
        shm_obj_unref(&c, c1);
        shm_obj_unref(&c, c2);
    }
    l_seg_end(&c);
}

static void test_a_cancelled_select_has_no_case_and_drops_what_it_would_have_sent(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint32_t which;
    l_seg(&c);
    shm_off c1 = chan_with(&c, 0, 0), c2 = chan_with(&c, 0, 0);
    struct shm_case cases[3] = {s_send(c1, v_ref(&c, 1, c2)), s_recv(c2), s_send(c2, v_big(&c, 2))};
    shm_gref r = l_new(&c);
    CHECK_EQ(shm_select_park(&c, cases, 3, r, &which, &v), SHM_PARKED);
    CHECK(g_cancel(&c, r));
    shm_ready(&c, r, true);
    CHECK_EQ(shm_chan_tryrecv(&c, c1, &v), SHM_EAGAIN);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 2);
    CHECK_EQ(shm_select_done(&c, r, &(uint32_t){0}), -1);
    l_end(&c, r);
    shm_obj_unref(&c, c1);
    shm_obj_unref(&c, c2);
    l_seg_end(&c);
}

/* Go reflect/all_test.go TestSelect has up to a dozen cases; its limit is ours. Around where locks
 * and order leave the stack, and where a batch of the undo log ends; some channels twice. */
static void test_a_select_may_have_as_many_cases_as_gos(void)
{
    struct shm_ctx c;
    uint32_t sizes[] = {64, 65, 128, 129, 1000, SHM_SELECT_MAX};
    struct shm_case *cases = calloc(SHM_SELECT_MAX, sizeof *cases);
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        uint32_t n = sizes[k], which, at = n * 5 / 8;
        struct shm_val v;
        l_seg(&c);
        for (uint32_t i = 0; i < n; i++) {
            shm_off ch = i % 10 == 9 ? cases[n - i].ch : chan_with(&c, 0, 0);
            if (i % 10 == 9)
                shm_obj_ref(&c, ch);
            cases[n - 1 - i] = i % 2 ? s_send(ch, v_big(&c, i)) : s_recv(ch);
            cases[n - 1 - i].tag = ~i;
        }
        for (int round = 0; round < 3; round++) {
            CHECK_EQ(shm_select_try(&c, cases, n, &which, &v), SHM_EAGAIN);
            shm_gref r = l_new(&c);
            CHECK_EQ(shm_select_park(&c, cases, n, r, &which, &v), SHM_PARKED);
            CHECK_EQ(c.m->lockset, 0);
            CHECK_SEGMENT(&c);
            if (round == 2) {
                CHECK(g_cancel(&c, r));
                shm_ready(&c, r, true);
            } else if (cases[at].dir == SHM_DIR_SEND) {
                CHECK_EQ(shm_chan_tryrecv(&c, cases[at].ch, &v), SHM_OK);
                CHECK_EQ(v_eat(&c, &v), n - 1 - at);
            } else {
                v = v_big(&c, 7);
                CHECK_EQ(shm_chan_trysend(&c, cases[at].ch, &v), SHM_OK);
            }
            CHECK_EQ(l_next(&c), r);
            uint32_t tag = 0;
            CHECK_EQ(shm_select_done(&c, r, &tag), round == 2 ? -1 : (int)at);
            CHECK_EQ(tag, round == 2 ? 0 : ~(n - 1 - at));
            shm_val_drop(&c, &shm_g(&c, r)->value);
            l_end(&c, r);
            for (uint32_t i = 0; i < n; i++) { /* all are out of their queues; new values */
                struct shm_chan *ch = shm_at(&c, cases[i].ch);
                CHECK(ch->recvq_first == 0 && ch->sendq_last == 0 && load_acq(&ch->lock) == 0);
                if (cases[i].dir == SHM_DIR_SEND && round < 2)
                    cases[i].v = v_big(&c, n - 1 - i);
            }
            at++;
        }
        for (uint32_t i = 0; i < n; i++)
            shm_obj_unref(&c, cases[i].ch);
        l_seg_end(&c);
    }
    free(cases);
}

static void test_of_many_ready_cases_each_is_chosen_about_equally_often(void)
{
    struct shm_ctx c;
    enum { N = 80, ROUNDS = 80 * 200 };
    struct shm_case cases[N];
    uint32_t count[N] = {0}, which;
    struct shm_val v;
    double off = 0;
    l_seg(&c);
    for (uint32_t i = 0; i < N; i++)
        cases[i] = s_recv(chan_with(&c, 1, 1));
    for (uint32_t k = 0; k < ROUNDS; k++) {
        CHECK_EQ(shm_select_try(&c, cases, N, &which, &v), SHM_OK);
        CHECK_EQ(shm_chan_trysend(&c, cases[which].ch, &v), SHM_OK);
        count[which]++;
    }
    for (uint32_t i = 0; i < N; i++) /* chi squared, 79 degrees: 155 is passed once in a million */
        off += ((double)count[i] - 200) * ((double)count[i] - 200) / 200;
    CHECK(off < 155);
    for (uint32_t i = 0; i < N; i++)
        shm_obj_unref(&c, cases[i].ch);
    l_seg_end(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

enum { CHANS = 4, PARTIES = 3 };
struct traffic {
    shm_off ch[CHANS], other;
    uint32_t each;
    bool cancel;
    _Atomic uint64_t sent, received, timeouts, done;
    _Atomic uint8_t seen[];
};

static int64_t limit(struct shm_ctx *c, const struct traffic *t)
{
    return t->cancel && h_rand(c) % 3 == 0 ? (int64_t)(h_rand(c) % 20000) : -1;
}

/* Channels in an order of its own: the locks must still be taken in one. */
static void shuffled(struct shm_ctx *c, const struct traffic *t, shm_off *to)
{
    for (uint32_t i = 0; i < CHANS; i++) {
        uint32_t j = (uint32_t)(h_rand(c) % (i + 1));
        to[i] = to[j];
        to[j] = t->ch[i];
    }
}

/* Go test/chan/doubleselect.go: every value is offered on four channels at once. */
static void double_select(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    shm_gref r = o_new(c);
    shm_off ch[CHANS];
    struct shm_case cases[CHANS];
    struct shm_val v;
    uint32_t which;
    if (i < PARTIES) {
        for (uint32_t k = 0; k < t->each; k++) {
            uint64_t n = (uint64_t)i * t->each + k;
            shuffled(c, t, ch);
            for (uint32_t x = 0; x < CHANS; x++)
                cases[x] = s_send(ch[x], n % 2 ? v_ref(c, n, t->other) : v_int(n));
            int e = o_select(c, r, cases, CHANS, &which, &v, limit(c, t));
            CHECK(e == SHM_OK || e == SHM_ETIME);
            add_rlx(e == SHM_OK ? &t->sent : &t->timeouts, 1);
        }
        if (add_acqrel(&t->done, 1) + 1 == PARTIES) /* pairs with the others': all is sent */
            for (uint32_t x = 0; x < CHANS; x++)
                CHECK_EQ(shm_chan_close(c, t->ch[x]), SHM_OK);
    } else {
        bool open[CHANS] = {true, true, true, true};
        uint32_t left = CHANS;
        while (left) {
            shm_off of[CHANS];
            uint32_t n = 0;
            shuffled(c, t, ch);
            for (uint32_t x = 0; x < CHANS; x++)
                for (uint32_t y = 0; y < CHANS; y++)
                    if (t->ch[y] == ch[x] && open[y]) {
                        of[n] = ch[x];
                        cases[n++] = s_recv(ch[x]);
                    }
            int e = i % 2 && n == CHANS ? o_recv(c, r, of[which = 0], &v, limit(c, t))
                                        : o_select(c, r, cases, n, &which, &v, limit(c, t));
            if (e == SHM_OK) {
                CHECK_EQ(add_rlx(&t->seen[v_eat(c, &v)], 1), 0);
                add_rlx(&t->received, 1);
            } else if (e == SHM_ECLOSED) {
                for (uint32_t y = 0; y < CHANS; y++)
                    if (t->ch[y] == of[which])
                        open[y] = false;
                left--;
            } else {
                CHECK_EQ(e, SHM_ETIME);
                add_rlx(&t->timeouts, 1);
            }
        }
    }
    o_end(c, r);
}

static void run(uint32_t cap, uint32_t each, bool cancel)
{
    struct shm_ctx c;
    size_t bytes = sizeof(struct traffic) + (size_t)PARTIES * each;
    struct traffic *t = h_shared(bytes);
    o_seg(&c);
    t->each = each;
    t->cancel = cancel;
    t->other = chan_with(&c, 0, 0);
    for (uint32_t i = 0; i < CHANS; i++)
        t->ch[i] = chan_with(&c, i == 0 ? 0 : cap, 0);
    h_ms(2 * PARTIES, double_select, t);
    CHECK_EQ(t->received, t->sent);
    if (!cancel)
        CHECK_EQ(t->received, (uint64_t)PARTIES * each);
    CHECK_SEGMENT(&c);
    struct shm_chan *p = shm_at(&c, t->other);
    CHECK_EQ(shm_refs(&p->obj), 1);
    for (uint32_t i = 0; i < CHANS; i++)
        shm_obj_unref(&c, t->ch[i]);
    shm_obj_unref(&c, t->other);
    o_seg_end(&c);
    munmap(t, bytes);
}

static void test_a_value_offered_on_many_channels_is_received_exactly_once(void)
{
    run(0, (uint32_t)H_N(1000, 50000), false);
    run(2, (uint32_t)H_N(1000, 50000), false);
}

static void test_cancelled_selects_neither_lose_nor_double_a_value(void)
{
    run(0, (uint32_t)H_N(700, 30000), true);
    run(1, (uint32_t)H_N(700, 30000), true);
}

/* Go runtime/chan_test.go TestNonblockSelectRace2: one of the two is always ready. */
struct race {
    shm_off c1[1000], c2[1000];
    _Atomic uint32_t turn;
};

static void nonblock_race(struct shm_ctx *c, int i, void *arg)
{
    struct race *t = arg;
    for (uint32_t k = 0; k < 1000; k++) {
        struct shm_val v = v_int(1);
        uint32_t which;
        if (i == 0) {
            CHECK_EQ(shm_chan_trysend(c, t->c1[k], &v), SHM_OK);
            store_rel(&t->turn, k + 1); /* pairs with the load below */
            CHECK_EQ(shm_chan_close(c, t->c2[k]), SHM_OK);
            CHECK(shm_chan_tryrecv(c, t->c1[k], &v) != SHM_ECLOSED);
        } else {
            struct shm_case cases[2] = {s_recv(t->c1[k]), s_recv(t->c2[k])};
            H_WAIT(load_acq(&t->turn) > k); /* pairs with the store above */
            CHECK(shm_select_try(c, cases, 2, &which, &v) != SHM_EAGAIN);
        }
    }
}

static void test_select_sees_all_its_channels_at_one_moment(void)
{
    struct shm_ctx c;
    struct race *t = h_shared(sizeof *t);
    o_seg(&c);
    for (uint32_t k = 0; k < 1000; k++) {
        t->c1[k] = chan_with(&c, 1, 0);
        t->c2[k] = chan_with(&c, 0, 0);
    }
    h_ms(2, nonblock_race, t);
    for (uint32_t k = 0; k < 1000; k++) {
        shm_obj_unref(&c, t->c1[k]);
        shm_obj_unref(&c, t->c2[k]);
    }
    o_seg_end(&c);
    munmap(t, sizeof *t);
}

H_MAIN(T(test_of_the_ready_cases_each_is_chosen_equally_often),
       T(test_a_case_is_ready_exactly_when_its_operation_would_not_wait),
       T(test_whoever_wakes_a_select_decides_its_case_and_the_losers_leave_their_queues),
       T(test_a_losing_case_at_the_end_of_a_queue_leaves_the_queue_whole),
       T(test_a_select_never_meets_itself_and_may_name_a_channel_twice),
       T(test_close_ends_a_select_in_either_direction),
       T(test_a_cancelled_select_has_no_case_and_drops_what_it_would_have_sent),
       T(test_a_select_may_have_as_many_cases_as_gos),
       T(test_of_many_ready_cases_each_is_chosen_about_equally_often),
       T(test_a_value_offered_on_many_channels_is_received_exactly_once),
       T(test_cancelled_selects_neither_lose_nor_double_a_value),
       T(test_select_sees_all_its_channels_at_one_moment))
