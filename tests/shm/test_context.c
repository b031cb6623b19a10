/* Tests of context.c: children first, once, by whoever, and after a death on the way. */
#include "gs.h"

#define SEC 1000000000ULL

static shm_off child(struct shm_ctx *c, shm_off parent)
{
    shm_off x;
    CHECK_EQ(shm_context_new(c, parent, UINT64_MAX, &x), SHM_OK);
    return x;
}

static shm_off deadline(struct shm_ctx *c, shm_off parent, uint64_t when)
{
    shm_off x;
    CHECK_EQ(shm_context_new(c, parent, when, &x), SHM_OK);
    return x;
}

static shm_off value(struct shm_ctx *c, shm_off parent, uint64_t n)
{
    struct shm_val k = v_int(n), v = v_big(c, n);
    shm_off x;
    CHECK_EQ(shm_context_value(c, parent, &k, &v, &x), SHM_OK);
    return x;
}

static void cancel(struct shm_ctx *c, shm_off x)
{
    shm_context_cancel(c, x, SHM_CTX_CANCELED, NULL);
}

static unsigned state(struct shm_ctx *c, shm_off x)
{
    return shm_context_state(c, x, NULL);
}

static shm_off done(struct shm_ctx *c, shm_off x)
{
    shm_off ch;
    CHECK_EQ(shm_context_done(c, x, &ch), SHM_OK);
    return ch;
}

static bool closed(struct shm_ctx *c, shm_off x)
{
    struct shm_val v;
    shm_off ch = done(c, x);
    bool is = shm_chan_tryrecv(c, ch, &v) == SHM_ECLOSED;
    shm_obj_unref(c, ch);
    return is;
}

static void test_a_cancel_ends_all_below_and_nothing_else(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off root = child(&c, 0), a = child(&c, root), b = child(&c, root), aa = child(&c, a),
            v = value(&c, aa, 1), av = child(&c, v), free_v = value(&c, 0, 2);
    CHECK_EQ(done(&c, free_v), 0);
    shm_off of_value = done(&c, v), above = done(&c, aa);
    CHECK(!closed(&c, v) && of_value == above);
    shm_obj_unref(&c, of_value);
    shm_obj_unref(&c, above);
    CHECK_SEGMENT(&c);
    cancel(&c, a);
    CHECK_SEGMENT(&c);
    CHECK_EQ(state(&c, root) | state(&c, b) | state(&c, free_v), SHM_CTX_LIVE);
    shm_off all[] = {a, aa, v, av}, why;
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(shm_context_state(&c, all[i], &why), SHM_CTX_CANCELED);
        CHECK_EQ(why, a);
        CHECK(closed(&c, all[i]));
    }
    shm_off late = child(&c, av);
    CHECK_EQ(shm_context_state(&c, late, &why), SHM_CTX_CANCELED);
    CHECK_EQ(why, a);
    CHECK(closed(&c, late));
    CHECK_EQ(((struct shm_context *)shm_at(&c, root))->first, b); /* removed from its parent */
    cancel(&c, root);
    CHECK_EQ(shm_context_state(&c, a, &why), SHM_CTX_CANCELED);
    CHECK_EQ(why, a); /* the first counts */
    CHECK(closed(&c, b));
    shm_off left[] = {late, root, v, aa, a, av, b, free_v};
    for (int i = 0; i < 8; i++) {
        shm_obj_unref(&c, left[i]);
        CHECK_SEGMENT(&c);
    }
    l_seg_end(&c);
}

static void test_the_first_cause_stays_and_is_that_of_all_below(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off a = child(&c, 0), b = child(&c, a), why;
    struct shm_val v = v_big(&c, 5), w = v_big(&c, 6);
    shm_context_cancel(&c, a, SHM_CTX_CANCELED, &v);
    CHECK_EQ(v.tag, SHM_VAL_NONE);
    shm_context_cancel(&c, a, SHM_CTX_CANCELED, &w);
    CHECK_EQ(shm_context_state(&c, b, &why), SHM_CTX_CANCELED);
    CHECK_EQ(v_num(&c, &((struct shm_context *)shm_at(&c, why))->cause), 5);
    shm_obj_unref(&c, a);
    CHECK_EQ(v_num(&c, &((struct shm_context *)shm_at(&c, why))->cause), 5);
    shm_obj_unref(&c, b);
    l_seg_end(&c);
}

static void test_a_deadline_ends_a_context_and_the_earliest_counts(void)
{
    struct shm_ctx c;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    uint32_t ran;
    l_seg(&c);
    shm_off a = deadline(&c, 0, t0 + 10), later = deadline(&c, a, t0 + 20),
            sooner = deadline(&c, a, t0), past = deadline(&c, a, 1);
    CHECK_EQ(state(&c, past), SHM_CTX_DEADLINE);
    CHECK_EQ(((struct shm_context *)shm_at(&c, later))->deadline_ns, t0 + 10);
    CHECK_EQ(c.p->timers_n, 2);
    shm_gref r = l_new(&c);
    struct shm_val v;
    shm_off ch = done(&c, later);
    CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r), SHM_PARKED);
    CHECK_SEGMENT(&c);
    shm_checktimers(&c, c.p, t0, &ran);
    CHECK_EQ(state(&c, sooner), SHM_CTX_DEADLINE);
    CHECK_EQ(state(&c, a) | state(&c, later), SHM_CTX_LIVE);
    shm_checktimers(&c, c.p, t0 + 10, &ran);
    CHECK_EQ(state(&c, a), SHM_CTX_DEADLINE);
    CHECK_EQ(state(&c, later), SHM_CTX_DEADLINE);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 0);
    l_end(&c, r);
    shm_obj_unref(&c, ch);
    shm_off b = deadline(&c, 0, t0);
    cancel(&c, b);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX); /* a cancel takes it out of the heap */
    CHECK_EQ(state(&c, b), SHM_CTX_CANCELED);
    shm_off d = deadline(&c, 0, t0);
    shm_obj_unref(&c, d);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX); /* and so does nobody's being able to reach it */
    shm_off all[] = {a, later, sooner, past, b};
    for (int i = 0; i < 5; i++)
        shm_obj_unref(&c, all[i]);
    l_seg_end(&c);
}

static void test_a_child_nobody_can_reach_leaves_its_parent(void)
{
    enum { N = 200 };
    struct shm_ctx c;
    shm_off kid[N], root;
    l_seg(&c);
    root = child(&c, 0);
    for (int i = 0; i < N; i++)
        kid[i] = child(&c, root);
    for (int i = 0; i < N; i++) {
        int j = i + (int)(h_rand(&c) % (uint64_t)(N - i));
        shm_off x = kid[j];
        kid[j] = kid[i];
        shm_obj_unref(&c, x);
        if (i % 20 == 0)
            CHECK_SEGMENT(&c);
    }
    CHECK_EQ(((struct shm_context *)shm_at(&c, root))->first, 0);
    shm_obj_unref(&c, root);
    l_seg_end(&c);
}

static void test_a_long_chain_is_cancelled_and_freed_without_a_stack(void)
{
    struct shm_ctx c;
    l_seg(&c);
    shm_off root = child(&c, 0), at = root;
    shm_obj_ref(&c, root);
    for (int i = 0; i < 100000; i++) {
        shm_off x = child(&c, at);
        shm_obj_unref(&c, at);
        at = x;
    }
    cancel(&c, root);
    CHECK_EQ(state(&c, at), SHM_CTX_CANCELED);
    shm_obj_unref(&c, root);
    shm_obj_unref(&c, at);
    l_seg_end(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

enum { MS = 4, TREE = 60 };
struct forest {
    uint32_t rounds;
    _Atomic uint32_t at, ready; /* the round that is on; who has finished it */
    _Atomic uint64_t seen;
    shm_off x[TREE];
};

/* Everybody looks, cancels, adds, waits and drops, in one tree, while deadlines pass in it. */
static void all_in_one_tree(struct shm_ctx *c, int i, void *arg)
{
    struct forest *f = arg;
    shm_gref r = i ? o_new(c) : 0;
    for (uint32_t k = 0; k < f->rounds; k++) {
        if (i == 0) {
            f->x[0] = child(c, 0);
            for (int n = 1; n < TREE; n++) {
                shm_off up = f->x[h_rand(c) % (uint64_t)n];
                f->x[n] = h_rand(c) % 3 ? child(c, up)
                                        : deadline(c, up, shm_now_ns() + h_rand(c) % 100000);
            }
            store_rel(&f->ready, 0);
            store_rel(&f->at, k + 1); /* pairs with the wait below */
        } else {
            H_WAIT(load_acq(&f->at) == k + 1);
            for (int n = 0; n < 30; n++) {
                shm_off x = f->x[h_rand(c) % TREE], y;
                uint32_t ran;
                struct shm_val v;
                switch (h_rand(c) % 6) {
                case 0:
                    cancel(c, x);
                    CHECK(state(c, x) != SHM_CTX_LIVE);
                    break;
                case 1:
                    if (state(c, x) != SHM_CTX_LIVE)
                        CHECK(closed(c, x));
                    break;
                case 2: /* INV children-first */
                    y = ((struct shm_context *)shm_at(c, x))->up;
                    if (y && state(c, y) != SHM_CTX_LIVE)
                        CHECK(state(c, x) != SHM_CTX_LIVE);
                    break;
                case 3:
                    y = deadline(c, x, shm_now_ns() + h_rand(c) % 30000);
                    shm_checktimers(c, &c->ptab[h_rand(c) % c->hdr->max_p], shm_now_ns(), &ran);
                    shm_obj_unref(c, y);
                    break;
                case 4:
                    shm_checktimers(c, &c->ptab[h_rand(c) % c->hdr->max_p], shm_now_ns(), &ran);
                    break;
                case 5:
                    y = done(c, x);
                    if (o_recv(c, r, y, &v, (int64_t)(h_rand(c) % 20000)) == SHM_ECLOSED) {
                        CHECK(state(c, x) != SHM_CTX_LIVE);
                        add_rlx(&f->seen, 1);
                    }
                    shm_obj_unref(c, y);
                }
            }
            add_acqrel(&f->ready, 1);
        }
        if (i == 0) {
            H_WAIT(load_acq(&f->ready) == MS - 1);
            for (int n = 0; n < TREE; n++)
                shm_obj_unref(c, f->x[n]);
        }
    }
    if (r)
        o_end(c, r);
}

static void test_nobody_sees_a_live_child_of_a_cancelled_parent(void)
{
    struct shm_ctx c;
    struct forest *f = h_shared(sizeof *f);
    h_seg(&c, (struct shm_opts){.nprocs = MS});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    f->rounds = (uint32_t)H_N(300, 20000);
    h_ms(MS, all_in_one_tree, f);
    CHECK(f->seen > 0);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    o_seg_end(&c);
    munmap(f, sizeof *f);
}

/* ---- a death on the way ---------------------------------------------------------------------- */

struct victim {
    const char *point;
    uint32_t nth;
    shm_off x[7];
    bool fire; /* by its deadline */
    uint64_t t0;
};

static void cancel_and_die(struct shm_ctx *c, int i, void *arg)
{
    struct victim *v = arg;
    uint32_t ran;
    (void)i;
    h_die_at(v->point, v->nth);
    if (v->fire)
        shm_checktimers(c, &c->ptab[0], v->t0, &ran);
    else
        cancel(c, v->x[0]);
    h_die_at("", 0);
}

/* The tree is 0 > 1 > 2, 0 > 3, 3 > 4, 0 > 5, each with a channel; one waits on 2 and on 0. */
static bool die_at(const char *point, uint32_t nth, bool fire)
{
    struct shm_ctx c;
    struct victim *v = h_shared(sizeof *v);
    struct shm_val val;
    l_seg(&c);
    v->point = point;
    v->nth = nth;
    v->fire = fire;
    v->t0 = shm_now_ns() + 10000 * SEC;
    v->x[0] = fire ? deadline(&c, 0, v->t0) : child(&c, 0);
    v->x[1] = child(&c, v->x[0]);
    v->x[2] = deadline(&c, v->x[1], v->t0 - 1 + 2 * fire);
    v->x[3] = child(&c, v->x[0]);
    v->x[4] = child(&c, v->x[3]);
    v->x[5] = child(&c, v->x[0]);
    shm_gref r[2] = {l_new(&c), 0};
    shm_off ch[3] = {done(&c, v->x[2]), done(&c, v->x[0]), done(&c, v->x[4])};
    CHECK_EQ(shm_chan_recv_park(&c, ch[0], &val, r[0]), SHM_PARKED);
    r[1] = l_new(&c);
    CHECK_EQ(shm_chan_recv_park(&c, ch[1], &val, r[1]), SHM_PARKED);
    int status = h_wait(h_fork(cancel_and_die, 0, v));
    bool died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    if (died)
        shm_reap(&c, &c.mtab[1], SIGKILL);
    unsigned all = state(&c, v->x[0]);
    for (int i = 0; i < 6; i++)
        CHECK((state(&c, v->x[i]) == SHM_CTX_LIVE) == (all == SHM_CTX_LIVE));
    if (all == SHM_CTX_LIVE) { /* nothing was done: then all can be */
        CHECK(died);
        if (fire) {
            uint32_t ran;
            shm_checktimers(&c, c.p, v->t0, &ran);
        } else {
            cancel(&c, v->x[0]);
        }
    }
    for (int i = 0; i < 6; i++) {
        CHECK_EQ(state(&c, v->x[i]), fire ? SHM_CTX_DEADLINE : SHM_CTX_CANCELED);
        CHECK(closed(&c, v->x[i]));
    }
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    for (int i = 0; i < 2; i++) {
        shm_gref g = l_next(&c);
        CHECK(g == r[0] || g == r[1]);
        CHECK_EQ(shm_g(&c, g)->ok, 0);
        l_end(&c, g);
    }
    for (int i = 0; i < 6; i++)
        shm_obj_unref(&c, v->x[i]);
    for (int i = 0; i < 3; i++)
        shm_obj_unref(&c, ch[i]);
    struct shm_heap_stats s;
    shm_heap_stats(&c, &s);
    CHECK_EQ(s.live_blocks, 1); /* the array of the heap */
    munmap(v, sizeof *v);
    h_seg_end(&c);
    return died;
}

static void test_a_cancel_that_dies_at_any_store_is_none_or_whole(void)
{
    static const char *const points[] = {"context.cancel.wanted", "context.cancel.closed",
                                         "context.cancel.marked", "undo.noted",
                                         "undo.counted",          "undo.stored",
                                         "undo.commit",           "undo.committed",
                                         "sudog.named",           "sudog.claimed",
                                         "sched.ready.named",     "sched.ready.runnable",
                                         "sched.ready.queued",    "context.fire.cancelled",
                                         "context.fire.out"};
    int deaths = 0;
    if (H_TSAN) /* a death takes the process */
        return;
    for (int fire = 0; fire < 2; fire++)
        for (size_t p = 0; p < sizeof points / sizeof *points; p++)
            for (uint32_t nth = 1; nth < 100 && die_at(points[p], nth, fire); nth++)
                deaths++;
    CHECK(deaths > 150);
}

static void test_who_has_a_channel_only_is_told_of_the_deadline(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    uint32_t ran;
    l_seg(&c);
    shm_off x = deadline(&c, 0, t0), y = child(&c, x), ch = done(&c, y), again = done(&c, y);
    CHECK_EQ(ch, again);
    shm_obj_unref(&c, again);
    shm_obj_unref(&c, x);
    shm_obj_unref(&c, y);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_EAGAIN);
    shm_checktimers(&c, c.p, t0, &ran);
    CHECK_EQ(shm_chan_tryrecv(&c, ch, &v), SHM_ECLOSED);
    shm_obj_unref(&c, ch);
    x = deadline(&c, 0, t0 + SEC); /* and its end takes the deadline away */
    ch = done(&c, x);
    shm_obj_unref(&c, ch);
    ch = done(&c, x); /* the next who asks has another, or one at the same place */
    shm_obj_unref(&c, x);
    CHECK_EQ(shm_timer_next(&c), t0 + SEC);
    shm_obj_unref(&c, ch);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    struct shm_heap_stats s;
    shm_heap_stats(&c, &s);
    CHECK_EQ(s.live_blocks, 1); /* the array of the heap */
    h_seg_end(&c);
}

H_MAIN(T(test_who_has_a_channel_only_is_told_of_the_deadline),
       T(test_a_cancel_ends_all_below_and_nothing_else),
       T(test_the_first_cause_stays_and_is_that_of_all_below),
       T(test_a_deadline_ends_a_context_and_the_earliest_counts),
       T(test_a_child_nobody_can_reach_leaves_its_parent),
       T(test_a_long_chain_is_cancelled_and_freed_without_a_stack),
       T(test_nobody_sees_a_live_child_of_a_cancelled_parent),
       T(test_a_cancel_that_dies_at_any_store_is_none_or_whole))
