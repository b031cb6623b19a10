/* Tests of chan.c and of the queues in sudog.c: FIFO, hand-off, exactly once, close, cancel. */
#include "gs.h"

/* ---- one M ----------------------------------------------------------------------------------- */

static void test_values_leave_a_buffer_in_the_order_in_which_they_came(void)
{
    struct shm_ctx c;
    l_seg(&c);
    for (uint32_t cap = 1; cap <= 70; cap++) {
        shm_off ch;
        struct shm_val v;
        uint64_t in = 0, out = 0;
        CHECK_EQ(shm_chan_new(&c, cap, &ch), SHM_OK);
        for (int round = 0; round < 5; round++) {
            uint32_t n = (cap + 1) / 2 + (uint32_t)round % 2;
            for (uint32_t i = 0; i < n && in - out < cap; i++, in++) {
                v = in % 3 ? v_int(in) : v_big(&c, in);
                CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
            }
            CHECK_SEGMENT(&c);
            for (uint32_t i = 0; i < n - 1 && out < in; i++) {
                CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
                CHECK_EQ(v_eat(&c, &v), out++);
            }
        }
        struct shm_chan *p = shm_at(&c, ch);
        CHECK_EQ(load_acq(&p->qcount), in - out);
        shm_obj_unref(&c, ch); /* with what is in it */
    }
    l_seg_end(&c);
}

/* Go runtime/chan_test.go TestChan, its non-blocking part. */
static void test_operations_fail_exactly_when_they_would_block_or_the_channel_is_closed(void)
{
    struct shm_ctx c;
    l_seg(&c);
    for (uint32_t cap = 0; cap < 20; cap++) {
        shm_off ch;
        struct shm_val v = v_int(7);
        CHECK_EQ(shm_chan_new(&c, cap, &ch), SHM_OK);
        CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_EAGAIN);
        for (uint32_t i = 0; i < cap; i++) {
            v = v_int(i);
            CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
        }
        v = v_int(99);
        CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_EAGAIN);
        CHECK_EQ(shm_chan_close(&c, ch), SHM_OK);
        CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_ECLOSED);
        CHECK_EQ(shm_chan_close(&c, ch), SHM_ECLOSED);
        for (uint32_t i = 0; i < cap; i++) {
            CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
            CHECK_EQ(v_eat(&c, &v), i);
        }
        CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_ECLOSED);
        shm_obj_unref(&c, ch);
    }
    l_seg_end(&c);
}

static void test_a_sender_hands_its_value_to_the_receiver_that_waits_longest(void)
{
    enum { N = 5 };
    struct shm_ctx c;
    shm_gref r[N];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    for (uint32_t cap = 0; cap < 3; cap++) {
        CHECK_EQ(shm_chan_new(&c, cap, &ch), SHM_OK);
        for (int i = 0; i < N; i++) {
            r[i] = l_new(&c);
            CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r[i]), SHM_PARKED);
            CHECK_EQ(shm_readgstatus(&c, r[i]), Gwaiting);
        }
        CHECK_SEGMENT(&c);
        for (int i = 0; i < N; i++) {
            v = i % 2 ? v_int((uint64_t)i) : v_big(&c, (uint64_t)i);
            CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
            CHECK_SEGMENT(&c);
            CHECK_EQ(l_next(&c), r[i]);
            CHECK_EQ(shm_g(&c, r[i])->ok, 1);
            CHECK_EQ(v_eat(&c, &shm_g(&c, r[i])->value), i);
            l_end(&c, r[i]);
        }
        CHECK_EQ(l_next(&c), 0);
        shm_obj_unref(&c, ch);
    }
    l_seg_end(&c);
}

static void test_a_receiver_from_a_full_buffer_lets_the_first_parked_sender_in_at_the_end(void)
{
    enum { CAP = 3, N = 4 };
    struct shm_ctx c;
    shm_gref r[N];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, CAP, &ch), SHM_OK);
    for (uint64_t i = 0; i < CAP; i++) {
        v = v_big(&c, i);
        CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
    }
    for (uint64_t i = 0; i < N; i++) {
        r[i] = l_new(&c);
        v = v_big(&c, CAP + i);
        CHECK_EQ(shm_chan_send_park(&c, ch, &v, r[i]), SHM_PARKED);
    }
    CHECK_SEGMENT(&c);
    for (uint64_t i = 0; i < CAP + N; i++) {
        CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
        CHECK_EQ(v_eat(&c, &v), i);
        CHECK_SEGMENT(&c);
        if (i < N) {
            CHECK_EQ(l_next(&c), r[i]);
            CHECK_EQ(shm_g(&c, r[i])->ok, 1);
            CHECK_EQ(shm_g(&c, r[i])->value.tag, SHM_VAL_NONE);
            l_end(&c, r[i]);
        }
    }
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_EAGAIN);
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

static void test_close_wakes_every_parked_receiver_with_none_in_their_order(void)
{
    enum { N = 100 }; /* more than one wake batch, fewer than a ring */
    struct shm_ctx c;
    shm_gref r[N];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, 2, &ch), SHM_OK);
    for (int i = 0; i < N; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r[i]), SHM_PARKED);
    }
    CHECK_EQ(shm_chan_close(&c, ch), SHM_OK);
    CHECK_SEGMENT(&c);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(l_next(&c), r[i]);
        CHECK_EQ(shm_g(&c, r[i])->ok, 0);
        CHECK_EQ(shm_g(&c, r[i])->value.tag, SHM_VAL_NONE);
        l_end(&c, r[i]);
    }
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

static void test_close_fails_every_parked_sender_and_leaves_it_its_value(void)
{
    enum { N = 70 };
    struct shm_ctx c;
    shm_gref r[N];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, 1, &ch), SHM_OK);
    v = v_int(1000);
    CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
    for (int i = 0; i < N; i++) {
        r[i] = l_new(&c);
        v = v_big(&c, (uint64_t)i);
        CHECK_EQ(shm_chan_send_park(&c, ch, &v, r[i]), SHM_PARKED);
    }
    CHECK_EQ(shm_chan_close(&c, ch), SHM_OK);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
    CHECK_EQ(v_eat(&c, &v), 1000);
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_ECLOSED);
    for (int i = 0; i < N; i++) {
        CHECK_EQ(l_next(&c), r[i]);
        CHECK_EQ(shm_g(&c, r[i])->ok, 0);
        CHECK_EQ(v_eat(&c, &shm_g(&c, r[i])->value), i);
        l_end(&c, r[i]);
    }
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

static void test_a_cancelled_waiter_leaves_the_queue_from_any_place_in_it(void)
{
    enum { N = 7 };
    struct shm_ctx c;
    shm_gref r[N];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, 0, &ch), SHM_OK);
    for (int gone = 0; gone < N; gone++) {
        uint64_t epoch[N];
        for (int i = 0; i < N; i++) {
            r[i] = l_new(&c);
            v = v_big(&c, (uint64_t)i);
            CHECK_EQ(shm_chan_send_park(&c, ch, &v, r[i]), SHM_PARKED);
            epoch[i] = g_epoch(&c, r[i]);
        }
        CHECK(shm_wait_abort(&c, r[gone], epoch[gone], 2));
        CHECK(!shm_wait_abort(&c, r[gone], epoch[gone], 2));
        shm_ready(&c, r[gone], true);
        CHECK_SEGMENT(&c);
        CHECK_EQ(l_next(&c), r[gone]);
        CHECK_EQ(shm_g(&c, r[gone])->ok, 2);
        CHECK_EQ(v_eat(&c, &shm_g(&c, r[gone])->value), gone);
        l_end(&c, r[gone]);
        for (int i = 0; i < N; i++) {
            if (i == gone)
                continue;
            CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
            CHECK_EQ(v_eat(&c, &v), i);
            CHECK_EQ(l_next(&c), r[i]);
            l_end(&c, r[i]);
        }
    }
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

/* What a canceller leaves between its claim and its lock. */
static void test_a_stale_waiter_is_unlinked_and_passed_over(void)
{
    struct shm_ctx c;
    shm_gref r[3];
    shm_off ch;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, 0, &ch), SHM_OK);
    for (int i = 0; i < 3; i++) {
        r[i] = l_new(&c);
        CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r[i]), SHM_PARKED);
    }
    for (int i = 0; i < 2; i++)
        CHECK(shm_wait_claim(&c, r[i], g_epoch(&c, r[i])));
    v = v_int(5);
    CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
    CHECK_EQ(shm_g(&c, r[0])->sudog.linked, 0);
    CHECK_EQ(l_next(&c), r[2]);
    l_end(&c, r[2]);
    for (int i = 0; i < 2; i++) {
        shm_sudog_unlink(&c, r[i]); /* finds that it was done */
        shm_ready(&c, r[i], false);
        CHECK_EQ(l_next(&c), r[i]);
        l_end(&c, r[i]);
    }
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

static void test_handles_in_values_keep_their_objects_until_the_value_is_read_or_dropped(void)
{
    struct shm_ctx c;
    shm_off outer, inner, last;
    struct shm_val v;
    l_seg(&c);
    CHECK_EQ(shm_chan_new(&c, 2, &outer), SHM_OK);
    CHECK_EQ(shm_chan_new(&c, 1, &inner), SHM_OK);
    CHECK_EQ(shm_chan_new(&c, 0, &last), SHM_OK);
    v = v_ref(&c, 1, last);
    CHECK_EQ(shm_chan_trysend(&c, inner, &v), SHM_OK);
    shm_obj_unref(&c, last);
    v = v_ref(&c, 2, inner);
    CHECK_EQ(shm_chan_trysend(&c, outer, &v), SHM_OK);
    shm_obj_unref(&c, inner);
    CHECK_SEGMENT(&c);
    struct shm_chan *p = shm_at(&c, last);
    CHECK_EQ(shm_refs(&p->obj), 1);
    shm_obj_unref(&c, outer); /* and with it inner, and last */
    l_seg_end(&c);
}

/* shm_stand() in idle.c. Two Ms, both this thread:
 * what one sees of the other does not need time. */
static void test_who_would_park_waits_live_for_a_peer_unless_there_is_other_work_or_nobody(void)
{
    struct shm_ctx c, d;
    struct shm_val v;
    shm_off ch;
    h_seg(&c, (struct shm_opts){.nprocs = 2});
    c.hdr->ncpu = 2;
    l_worker(&c);
    CHECK_EQ(shm_chan_new(&c, 0, &ch), SHM_OK);
    shm_ctx_copy(&d, &c);
    CHECK_EQ(shm_minit(&d, SHM_M_WORKER), SHM_OK);
    CHECK_EQ(shm_acquirep(&d, 1), SHM_OK);
    CHECK(!shm_chan_recv_soon(&c, ch)); /* in vain */

    shm_gref sender = l_new(&d);
    v = v_int(7);
    CHECK_EQ(shm_chan_send_park(&d, ch, &v, sender), SHM_PARKED);
    CHECK(!shm_chan_send_soon(&c, ch)); /* behind another */
    store_rlx(&d.m->stands_at, ch);
    CHECK(!shm_chan_recv_soon(&c, ch)); /* beside another */
    store_rlx(&d.m->stands_at, 0);
    store_rlx(&d.m->spinning, SHM_M_IDLE);
    CHECK(!shm_chan_recv_soon(&c, ch)); /* all others sleep */
    store_rlx(&d.m->spinning, SHM_M_BUSY);
    c.hdr->migrate = 1;
    CHECK(!shm_chan_recv_soon(&c, ch)); /* each park is to be one */
    c.hdr->migrate = 0;
    CHECK(shm_chan_recv_soon(&c, ch));
    CHECK_EQ(load_rlx(&c.m->stands_at), 0);
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_OK);
    CHECK_EQ(v_eat(&c, &v), 7);

    CHECK_EQ(shm_chan_close(&c, ch), SHM_OK);
    CHECK(!shm_chan_recv_soon(&c, ch)); /* the sender is runnable here */
    CHECK_EQ(l_next(&c), sender);
    CHECK(shm_chan_recv_soon(&c, ch)); /* the end is to be had */
    CHECK(shm_chan_send_soon(&c, ch));
    l_end(&c, sender);
    l_worker_end(&d);
    shm_obj_unref(&c, ch);
    l_seg_end(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

struct traffic {
    shm_off ch[3];
    uint32_t senders, receivers, each;
    bool big, cancel;
    _Atomic uint64_t sent, received, sent_sum, received_sum, timeouts_send, timeouts_recv;
    _Atomic uint8_t seen[]; /* per value */
};

static struct traffic *traffic_new(uint32_t senders, uint32_t receivers, uint32_t each)
{
    struct traffic *t = h_shared(sizeof *t + (size_t)senders * each);
    t->senders = senders;
    t->receivers = receivers;
    t->each = each;
    return t;
}

static void traffic_end(struct traffic *t)
{
    munmap(t, sizeof *t + (size_t)t->senders * t->each);
}

static void took(struct shm_ctx *c, struct traffic *t, struct shm_val *v, uint64_t *last)
{
    uint64_t n = v_eat(c, v), who = n / t->each;
    CHECK(who < t->senders);
    CHECK_EQ(add_rlx(&t->seen[n], 1), 0);       /* exactly once */
    CHECK(last[who] == 0 || n + 1 > last[who]); /* each sender's in its order */
    last[who] = n + 1;
    add_rlx(&t->received, 1);
    add_rlx(&t->received_sum, n);
}

/* A third of the operations has a limit, and half of those the limit 0: to park is to be cancelled,
 * unless a peer comes in between. */
static int64_t some_limit(struct shm_ctx *c, const struct traffic *t)
{
    if (!t->cancel || h_rand(c) % 3)
        return -1;
    return h_rand(c) % 2 ? (int64_t)(h_rand(c) % 20000) : 0;
}

static void send_or_receive(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    shm_gref r = o_new(c);
    if ((uint32_t)i < t->senders) {
        for (uint32_t k = 0; k < t->each; k++) {
            uint64_t n = (uint64_t)i * t->each + k;
            int64_t limit = some_limit(c, t);
            struct shm_val v = t->big && n % 2 ? v_ref(c, n, t->ch[1]) : v_int(n);
            int e = o_send(c, r, t->ch[0], v, limit);
            if (e == SHM_ECLOSED)
                break;
            if (e == SHM_ETIME) {
                add_rlx(&t->timeouts_send, 1);
                continue;
            }
            CHECK_EQ(e, SHM_OK);
            add_rlx(&t->sent, 1);
            add_rlx(&t->sent_sum, n);
        }
    } else {
        uint64_t last[64] = {0};
        struct shm_val v;
        for (;;) {
            int64_t limit = some_limit(c, t);
            int e = o_recv(c, r, t->ch[0], &v, limit);
            if (e == SHM_ECLOSED)
                break;
            if (e == SHM_ETIME) {
                add_rlx(&t->timeouts_recv, 1);
                continue;
            }
            CHECK_EQ(e, SHM_OK);
            took(c, t, &v, last);
        }
    }
    o_end(c, r);
}

/* The last sender to end closes. */
static void send_or_receive_then_close(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    send_or_receive(c, i, arg);
    if ((uint32_t)i < t->senders && add_acqrel((_Atomic uint64_t *)&t->ch[2], 1) + 1 == t->senders)
        CHECK_EQ(shm_chan_close(c, t->ch[0]), SHM_OK);
}

/* How many were cancelled. */
static uint64_t run_traffic(uint32_t cap, uint32_t senders, uint32_t receivers, uint32_t each,
                            bool cancel)
{
    struct shm_ctx c;
    o_seg(&c);
    struct traffic *t = traffic_new(senders, receivers, each);
    t->big = true;
    t->cancel = cancel;
    CHECK_EQ(shm_chan_new(&c, cap, &t->ch[0]), SHM_OK);
    CHECK_EQ(shm_chan_new(&c, 0, &t->ch[1]), SHM_OK); /* the object of handles in values */
    h_ms((int)(senders + receivers), send_or_receive_then_close, t);
    CHECK_EQ(t->received, t->sent);
    CHECK_EQ(t->received_sum, t->sent_sum);
    CHECK_EQ(t->received + (cancel ? t->timeouts_send : 0), (uint64_t)senders * each);
    uint64_t cancelled = t->timeouts_send + t->timeouts_recv;
    CHECK_SEGMENT(&c);
    struct shm_chan *p = shm_at(&c, t->ch[1]);
    CHECK_EQ(shm_refs(&p->obj), 1); /* no handle was lost or counted twice */
    shm_obj_unref(&c, t->ch[0]);
    shm_obj_unref(&c, t->ch[1]);
    CHECK_QUIET(&c);
    traffic_end(t);
    shm_mexit(&c);
    h_seg_end(&c);
    return cancelled;
}

static void test_every_value_is_received_exactly_once_and_in_its_senders_order(void)
{
    static const uint32_t caps[] = {0, 1, 7, 128};
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        for (uint32_t s = 1; s <= 4; s += 3)
            for (uint32_t r = 1; r <= 4; r += 3)
                CHECK_EQ(run_traffic(caps[i], s, r, (uint32_t)H_N(500, 50000), false), 0);
}

static void test_cancelled_sends_and_receives_neither_lose_nor_double_a_value(void)
{
    static const uint32_t caps[] = {0, 1, 5};
    uint64_t cancelled = 0;
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++)
        cancelled += run_traffic(caps[i], 3, 3, (uint32_t)H_N(500, 30000), true);
    CHECK(cancelled > 0); /* with capacity 0 whoever comes first parks */
}

/* ---- close against everything ---------------------------------------------------------------- */

static void close_race(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    if (i > 0) {
        send_or_receive(c, i - 1, arg);
        return;
    }
    /* The closer, at a moment that the others' progress decides. */
    H_WAIT(load_rlx(&t->sent) + load_rlx(&t->timeouts_send) >= t->each / 3);
    CHECK_EQ(shm_chan_close(c, t->ch[0]), SHM_OK);
    CHECK_EQ(shm_chan_close(c, t->ch[0]), SHM_ECLOSED);
}

static void test_close_amid_sends_receives_and_cancels_leaves_each_value_in_one_place(void)
{
    for (int round = 0; round < H_N(12, 400); round++) {
        struct shm_ctx c;
        struct shm_val v;
        uint64_t left = 0;
        h_seg(&c, (struct shm_opts){0});
        CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
        struct traffic *t = traffic_new(3, 2, 200);
        t->big = true;
        t->cancel = round % 2;
        CHECK_EQ(shm_chan_new(&c, (uint32_t)round % 4, &t->ch[0]), SHM_OK);
        CHECK_EQ(shm_chan_new(&c, 0, &t->ch[1]), SHM_OK);
        h_ms(6, close_race, t);
        while (shm_chan_tryrecv(&c, t->ch[0], &v) == SHM_OK) {
            v_eat(&c, &v);
            left++;
        }
        CHECK_EQ(t->received + left, t->sent);
        CHECK_SEGMENT(&c);
        shm_obj_unref(&c, t->ch[0]);
        shm_obj_unref(&c, t->ch[1]);
        CHECK_QUIET(&c);
        traffic_end(t);
        shm_mexit(&c);
        h_seg_end(&c);
    }
}

/* Go runtime/chan_test.go TestNonblockRecvRace: with one value in the buffer and a close under way,
 * a receive that does not wait finds the value. */
struct nonblock {
    shm_off ch[2000];
    _Atomic uint32_t turn;
    uint32_t n;
};

static void nonblock_race(struct shm_ctx *c, int i, void *arg)
{
    struct nonblock *t = arg;
    for (uint32_t k = 0; k < t->n; k++) {
        if (i == 0) {
            struct shm_val v = v_int(1);
            CHECK_EQ(shm_chan_trysend(c, t->ch[k], &v), SHM_OK);
            store_rel(&t->turn, k + 1); /* pairs with the load below */
            CHECK_EQ(shm_chan_close(c, t->ch[k]), SHM_OK);
        } else {
            struct shm_val v;
            H_WAIT(load_acq(&t->turn) > k); /* pairs with the store above */
            CHECK_EQ(shm_chan_tryrecv(c, t->ch[k], &v), SHM_OK);
        }
    }
}

static void test_a_buffered_value_is_there_for_who_does_not_wait_while_the_channel_closes(void)
{
    struct shm_ctx c;
    struct nonblock *t = h_shared(sizeof *t);
    o_seg(&c);
    t->n = (uint32_t)H_N(1000, 2000);
    for (uint32_t k = 0; k < t->n; k++)
        CHECK_EQ(shm_chan_new(&c, 1, &t->ch[k]), SHM_OK);
    h_ms(2, nonblock_race, t);
    for (uint32_t k = 0; k < t->n; k++)
        shm_obj_unref(&c, t->ch[k]);
    CHECK_QUIET(&c);
    munmap(t, sizeof *t);
    shm_mexit(&c);
    h_seg_end(&c);
}

H_MAIN(T(test_values_leave_a_buffer_in_the_order_in_which_they_came),
       T(test_operations_fail_exactly_when_they_would_block_or_the_channel_is_closed),
       T(test_a_sender_hands_its_value_to_the_receiver_that_waits_longest),
       T(test_a_receiver_from_a_full_buffer_lets_the_first_parked_sender_in_at_the_end),
       T(test_close_wakes_every_parked_receiver_with_none_in_their_order),
       T(test_close_fails_every_parked_sender_and_leaves_it_its_value),
       T(test_a_cancelled_waiter_leaves_the_queue_from_any_place_in_it),
       T(test_a_stale_waiter_is_unlinked_and_passed_over),
       T(test_who_would_park_waits_live_for_a_peer_unless_there_is_other_work_or_nobody),
       T(test_handles_in_values_keep_their_objects_until_the_value_is_read_or_dropped),
       T(test_every_value_is_received_exactly_once_and_in_its_senders_order),
       T(test_cancelled_sends_and_receives_neither_lose_nor_double_a_value),
       T(test_close_amid_sends_receives_and_cancels_leaves_each_value_in_one_place),
       T(test_a_buffered_value_is_there_for_who_does_not_wait_while_the_channel_closes))
