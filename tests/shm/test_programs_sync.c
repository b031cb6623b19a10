/* test_programs_sync.c — as test_programs.c: all of sync, timers and contexts, whose users are
 * cancelled at each of their awaits. */
#include "world.h"

/* ---- sync ------------------------------------------------------------------------------------ */

enum { LOCKERS = 4, READERS = 6, TAKERS = 4, ENDS = 6, ONCES = 4 };
static_assert(LOCKERS + READERS + TAKERS + ENDS + ONCES == CREW, "they are all");

/* The last act of a goroutine of this program; come() is the first. */
static void leave(struct turn *t)
{
    w->did[t->f.a[1]] = t->f.a[0]; /* plain: the WaitGroup orders it before main's look */
    CHECK_EQ(shm_waitgroup_add(t->c, w->wg, -1), SHM_OK);
}

/* A cancel may come at each await: then it has not got what it wanted, and tries again. a[0] is
 * what it has done, a[1] its number. */
static void locker(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    come();
    while (f->a[0] < w->n) {
        AWAIT(t, op_lock(t, w->mutex));
        if (t->ok != SHM_OK_VALUE)
            continue;
        f->a[0]++;
        f->a[2] = ++w->plain;
        if (h_rand(t->c) % 8 == 0)
            AWAIT(t, op_gosched(t)); /* it goes on with it elsewhere */
        CHECK_EQ(w->plain, f->a[2]);
        CHECK_EQ(shm_mutex_unlock(t->c, w->mutex), SHM_OK);
    }
    leave(t);
    DONE(t);
}

static void reader(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    come();
    while (f->a[0] < w->n) {
        f->a[3] = h_rand(t->c) % 4 ? SHM_SY_READ : SHM_SY_WRITE;
        AWAIT(t, op_sema(t, w->rw, (int)f->a[3], 0));
        if (t->ok != SHM_OK_VALUE)
            continue;
        f->a[0]++;
        f->a[2] = f->a[3] == SHM_SY_READ ? w->plain_rw : ++w->plain_rw;
        if (h_rand(t->c) % 8 == 0)
            AWAIT(t, op_gosched(t));
        CHECK_EQ(w->plain_rw, f->a[2]);
        CHECK_EQ(shm_rwmutex_unlock(t->c, w->rw, (int)f->a[3], t->g->goid), SHM_OK);
    }
    leave(t);
    DONE(t);
}

static void taker(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    come();
    while (f->a[0] < w->n) {
        f->a[2] = 1 + h_rand(t->c) % 3;
        AWAIT(t, op_sema(t, w->sem, 0, f->a[2]));
        if (t->ok != SHM_OK_VALUE)
            continue;
        f->a[0]++;
        CHECK(add_rlx(&w->inside, f->a[2]) + f->a[2] <= 3);
        if (h_rand(t->c) % 8 == 0)
            AWAIT(t, op_sleep(t, h_rand(t->c) % 5000));
        add_rlx(&w->inside, -f->a[2]);
        CHECK_EQ(shm_semaphore_release(t->c, w->sem, f->a[2]), SHM_OK);
    }
    leave(t);
    DONE(t);
}

/* One end of a queue of at most two, in plain memory under the mutex and its Cond. */
static void queue_end(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    come();
    while (f->a[0] < w->n) {
        AWAIT(t, op_lock(t, w->mutex));
        if (t->ok != SHM_OK_VALUE)
            continue;
        while (f->a[1] % 2 ? w->queue == 0 : w->queue == 2)
            AWAIT(t, op_cond(t, w->cond)); /* cancelled, it has the mutex all the same */
        w->queue += f->a[1] % 2 ? -1ULL : 1;
        f->a[0]++;
        shm_cond_broadcast(t->c, w->cond);
        CHECK_EQ(shm_mutex_unlock(t->c, w->mutex), SHM_OK);
    }
    leave(t);
    DONE(t);
}

static void once_for_all(struct turn *t)
{
    GO(t);
    come();
    do
        AWAIT(t, op_sema(t, w->once, 0, 0));
    while (t->ok != SHM_OK_VALUE);
    if (shm_once_mine(t->c, w->once, t->g->goid)) {
        AWAIT(t, op_gosched(t));
        w->made_once++;
        shm_once_done(t->c, w->once);
    }
    CHECK_EQ(w->made_once, 1);
    leave(t);
    DONE(t);
}

static void all_of_sync(struct turn *t)
{
    static const struct {
        p_body fn;
        uint32_t n;
    } crew[] = {{locker, LOCKERS},
                {reader, READERS},
                {taker, TAKERS},
                {queue_end, ENDS},
                {once_for_all, ONCES}};
    struct p_frame *f = &t->f;
    struct shm_ctx *c = t->c;
    GO(t);
    w->mutex = new_sync(c, SHM_SY_MUTEX, 0, 0);
    w->rw = new_sync(c, SHM_SY_RWMUTEX, 0, 0);
    w->sem = new_sync(c, SHM_SY_SEMAPHORE, 3, 0);
    w->cond = new_sync(c, SHM_SY_COND, 0, w->mutex);
    w->once = new_sync(c, SHM_SY_ONCE, 0, 0);
    w->wg = new_sync(c, SHM_SY_WAITGROUP, 0, 0);
    CHECK_EQ(shm_waitgroup_add(c, w->wg, CREW), SHM_OK);
    for (uint32_t k = 0, i = 0; k < sizeof crew / sizeof *crew; k++)
        for (uint32_t n = 0; n < crew[k].n; n++, i++)
            w->j[i] = start(t, (struct p_frame){.fn = crew[k].fn, .a = {0, i}});
    hold(t, 0, start(t, (struct p_frame){.fn = canceller, .a = {CREW}}));
    AWAIT(t, op_sema(t, w->wg, 0, 0));
    for (; f->a[0] < CREW - ONCES; f->a[0]++)
        CHECK_EQ(w->did[f->a[0]], w->n);
    CHECK(w->plain == LOCKERS * w->n && w->queue == 0 && w->made_once == 1);
    store_rel(&w->over, 1); /* pairs with canceller() */
    AWAIT(t, op_join(t, OBJ(t, 0)));
    JOIN_CREW(t, f->a[0], SHM_J_VALUE);
    shm_off all[] = {w->mutex, w->rw, w->sem, w->cond, w->once, w->wg};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        shm_obj_unref(t->c, all[i]);
    DONE(t);
}

static void test_what_is_under_a_lock_changes_in_one_order_though_all_are_cancelled(void)
{
    run_each(all_of_sync, NULL, (uint32_t)H_N(60, 10000));
}

/* ---- time and contexts ----------------------------------------------------------------------- */

static void sleeper(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    for (; f->a[0] < w->n; f->a[0]++) {
        f->a[1] = h_rand(t->c) % 60000;
        f->a[2] = shm_now_ns() + f->a[1];
        AWAIT(t, op_sleep(t, f->a[1]));
        CHECK(t->ok == SHM_OK_CANCELLED || shm_now_ns() >= f->a[2]);
    }
    DONE(t);
}

/* h[0] a timer of its own, h[1] a channel on which others send. */
static void timer_user(struct turn *t)
{
    struct p_frame *f = &t->f;
    struct shm_val v = {.tag = 8}, stale;
    bool was;
    GO(t);
    shm_off off;
    CHECK_EQ(shm_timer_new(t->c, &v, &off), SHM_OK);
    hold(t, 0, off);
    for (; f->a[0] < w->n; f->a[0]++) {
        /* Every third a ticker, every third so late that another message comes first. */
        f->a[1] = f->a[0] % 3 == 2 ? 5000000 : h_rand(t->c) % 60000;
        CHECK_EQ(shm_timer_reset(t->c, OBJ(t, 0), shm_now_ns() + f->a[1],
                                 f->a[0] % 3 == 1 ? 20000 : 0, &was),
                 SHM_OK);
        AWAIT(t, op_select(t, (struct shm_case[]){s_recv(OBJ(t, 0)), s_recv(OBJ(t, 1))}, 2));
        if (t->ok == SHM_OK_VALUE)
            (void)v_eat(t->c, &t->v);
        if (f->a[0] % 3 == 1) {
            AWAIT(t, op_recv(t, OBJ(t, 0)));
            if (t->ok == SHM_OK_VALUE)
                (void)v_eat(t->c, &t->v);
        }
        shm_timer_stop(t->c, OBJ(t, 0));
        CHECK_EQ(shm_chan_tryrecv(t->c, OBJ(t, 0), &stale), SHM_EAGAIN);
    }
    DONE(t);
}

/* Messages on h[0] from time to time, until it is closed. */
static void disturber(struct turn *t)
{
    GO(t);
    for (;;) {
        AWAIT(t, op_sleep(t, h_rand(t->c) % 100000));
        AWAIT(t, op_send(t, OBJ(t, 0), v_big(t->c, 1)));
        if (t->ok == SHM_OK_CLOSED)
            break;
    }
    DONE(t);
}

/* Children of h[0], with deadlines, waited for or cancelled. */
static void context_user(struct turn *t)
{
    struct p_frame *f = &t->f;
    shm_off off, why;
    GO(t);
    for (; f->a[0] < w->n; f->a[0]++) {
        CHECK_EQ(shm_context_new(t->c, OBJ(t, 0), shm_now_ns() + h_rand(t->c) % 100000, &off),
                 SHM_OK);
        hold(t, 1, off);
        CHECK_EQ(shm_context_new(t->c, OBJ(t, 1), UINT64_MAX, &off), SHM_OK);
        hold(t, 2, off);
        CHECK_EQ(shm_context_done(t->c, OBJ(t, 2), &off), SHM_OK);
        hold(t, 3, off);
        if (h_rand(t->c) % 4 == 0)
            shm_context_cancel(t->c, OBJ(t, 1), SHM_CTX_CANCELED,
                               &(struct shm_val){.tag = SHM_VAL_NONE});
        AWAIT(t, op_recv(t, OBJ(t, 3)));
        if (t->ok == SHM_OK_CLOSED) {
            CHECK(shm_context_state(t->c, OBJ(t, 2), &why) != SHM_CTX_LIVE);
            CHECK(why == OBJ(t, 1) || why == OBJ(t, 0));
        } else {
            CHECK_EQ(t->ok, SHM_OK_CANCELLED);
        }
        for (int i = 1; i < 4; i++)
            let(t, i);
    }
    DONE(t);
}

/* What an after_func starts. */
static void fired(struct turn *t)
{
    GO(t);
    add_rlx(&w->passed, 1);
    DONE(t);
}

/* Each of them starts its goroutine, or is stopped in time. */
static void func_user(struct turn *t)
{
    struct p_frame *f = &t->f;
    shm_off off;
    bool was;
    GO(t);
    for (; f->a[0] < w->n; f->a[0]++) {
        shm_gref r = p_gnew(t->c, &(struct p_frame){.fn = fired});
        CHECK_EQ(shm_afterfunc_new(t->c, r, shm_now_ns() + h_rand(t->c) % 60000, &off), SHM_OK);
        hold(t, 0, off);
        add_rlx(&w->due, 1);
        AWAIT(t, op_sleep(t, h_rand(t->c) % 60000));
        if (h_rand(t->c) % 2 == 0) {
            add_rlx(&w->passed, shm_afterfunc_stop(t->c, OBJ(t, 0)));
        } else {
            CHECK_EQ(shm_afterfunc_reset(t->c, OBJ(t, 0), shm_now_ns() + 20000, &was), SHM_OK);
            add_rlx(&w->due, !was);
        }
        let(t, 0);
    }
    DONE(t);
}

static void all_of_time(struct turn *t)
{
    static const p_body users[] = {sleeper, timer_user, context_user, func_user};
    struct p_frame *f = &t->f;
    struct shm_ctx *c = t->c;
    GO(t);
    hold(t, 0, new_chan(c, 0));
    CHECK_EQ(shm_context_new(c, 0, UINT64_MAX, &w->ctx), SHM_OK);
    for (uint32_t i = 0; i < CREW; i++) {
        struct p_frame u = {.fn = users[i % 4]};
        if (i % 4 == 1)
            u.h[1] = share(c, OBJ(t, 0));
        if (i % 4 == 2)
            u.h[0] = share(c, w->ctx);
        w->j[i] = start(t, u);
    }
    hold(t, 1, start(t, (struct p_frame){.fn = disturber, .h = {share(c, OBJ(t, 0))}}));
    hold(t, 2, start(t, (struct p_frame){.fn = canceller}));
    for (; f->a[0] < CREW; f->a[0]++) {
        AWAIT(t, op_join(t, w->j[f->a[0]]));
        if (f->a[0] == CREW / 2)
            shm_context_cancel(t->c, w->ctx, SHM_CTX_CANCELED,
                               &(struct shm_val){.tag = SHM_VAL_NONE});
    }
    store_rel(&w->over, 1); /* pairs with canceller() */
    CHECK_EQ(shm_chan_close(t->c, OBJ(t, 0)), SHM_OK);
    AWAIT(t, op_join(t, OBJ(t, 1)));
    AWAIT(t, op_join(t, OBJ(t, 2)));
    while (load_acq(&w->passed) < load_acq(&w->due)) /* pairs with nothing: counts */
        AWAIT(t, op_sleep(t, 20000));
    for (uint32_t i = 0; i < CREW; i++)
        shm_obj_unref(t->c, w->j[i]);
    shm_obj_unref(t->c, w->ctx);
    DONE(t);
}

static void test_timers_contexts_and_cancels_meet_and_each_wait_ends_once(void)
{
    run_each(all_of_time, NULL, (uint32_t)H_N(25, 2000));
}

H_MAIN(T(test_what_is_under_a_lock_changes_in_one_order_though_all_are_cancelled),
       T(test_timers_contexts_and_cancels_meet_and_each_wait_ends_once))
