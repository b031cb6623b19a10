/* Tests of ticker.c: timers that send and after_func; each arming ends once, whoever dies. */
#include "gs.h"

#define SEC 1000000000ULL

/* ---- with a channel -------------------------------------------------------------------------- */

/* What arrives: a byte that says what it is, and the seconds. */
static shm_off timer(struct shm_ctx *c, uint64_t when, uint64_t period)
{
    struct shm_val tick = {.tag = 9, .b = {7}};
    shm_off t;
    bool was;
    CHECK_EQ(shm_timer_new(c, &tick, &t), SHM_OK);
    CHECK(!shm_timer_stop(c, t));
    CHECK_EQ(shm_timer_reset(c, t, when, period, &was), SHM_OK);
    CHECK(!was);
    return t;
}

static double seconds(const struct shm_val *v)
{
    double s;
    CHECK_EQ(v->tag, 9);
    CHECK_EQ(v->b[0], 7);
    memcpy(&s, v->b + 1, sizeof s);
    return s;
}

static uint32_t run_until(struct shm_ctx *c, uint64_t now)
{
    uint32_t ran;
    shm_checktimers(c, c->p, now, &ran);
    return ran;
}

static void test_a_timer_sends_once_and_to_who_waits_directly(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    l_seg(&c);
    shm_off t = timer(&c, t0, 0);
    CHECK_EQ(shm_timer_next(&c), t0);
    CHECK_EQ(run_until(&c, t0 - 1), 0);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    CHECK_EQ(run_until(&c, t0), 0); /* nobody waits: into the channel */
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_OK);
    CHECK(seconds(&v) == (double)t0 / 1e9);
    bool was;
    CHECK_EQ(shm_timer_reset(&c, t, t0 + 5, 0, &was), SHM_OK);
    CHECK(!was);
    shm_gref r = l_new(&c), other = l_new(&c);
    CHECK_EQ(shm_chan_recv_park(&c, t, &v, r), SHM_PARKED);
    CHECK_EQ(shm_chan_recv_park(&c, t, &v, other), SHM_PARKED);
    CHECK_EQ(run_until(&c, t0 + 8), 1);
    CHECK_SEGMENT(&c);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 1);
    CHECK(seconds(&shm_g(&c, r)->value) == (double)(t0 + 8) / 1e9);
    l_end(&c, r);
    CHECK_EQ(l_next(&c), 0);
    CHECK(g_cancel(&c, other));
    shm_ready(&c, other, true);
    CHECK_EQ(l_next(&c), other);
    l_end(&c, other);
    shm_obj_unref(&c, t);
    l_seg_end(&c);
}

static void test_after_stop_or_reset_nothing_of_before_is_received(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    bool was;
    l_seg(&c);
    shm_off t = timer(&c, t0, 0);
    CHECK(shm_timer_stop(&c, t));
    CHECK(!shm_timer_stop(&c, t));
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    CHECK_EQ(run_until(&c, t0), 0);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    CHECK_EQ(shm_timer_reset(&c, t, t0, 0, &was), SHM_OK);
    CHECK(!was);
    run_until(&c, t0); /* fired, not received */
    CHECK(shm_timer_stop(&c, t));
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    CHECK_EQ(shm_timer_reset(&c, t, t0, 0, &was), SHM_OK);
    run_until(&c, t0);
    CHECK_EQ(shm_timer_reset(&c, t, t0 + 10, 0, &was), SHM_OK);
    CHECK(was);
    CHECK_SEGMENT(&c);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    run_until(&c, t0 + 10);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_OK);
    CHECK(seconds(&v) == (double)(t0 + 10) / 1e9);
    CHECK(!shm_timer_stop(&c, t));
    shm_obj_unref(&c, t);
    l_seg_end(&c);
}

static void test_a_ticker_drops_what_nobody_takes_and_keeps_its_beat(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    bool was;
    l_seg(&c);
    shm_off t = timer(&c, t0 + 10, 10);
    for (uint64_t at = 10; at <= 50; at += 10)
        run_until(&c, t0 + at);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_OK);
    CHECK(seconds(&v) == (double)(t0 + 10) / 1e9);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    CHECK_EQ(shm_timer_next(&c), t0 + 60);
    run_until(&c, t0 + 87); /* late: one tick, and on with the next multiple */
    CHECK_EQ(shm_timer_next(&c), t0 + 90);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_OK);
    CHECK_EQ(shm_timer_reset(&c, t, t0 + 100, 7, &was), SHM_OK);
    CHECK(was);
    run_until(&c, t0 + 100);
    CHECK_EQ(shm_timer_next(&c), t0 + 107);
    CHECK_SEGMENT(&c);
    shm_timer_stop(&c, t);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    shm_obj_unref(&c, t);
    l_seg_end(&c);
}

static void test_a_timer_nobody_can_reach_leaves_its_heap(void)
{
    struct shm_ctx c;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    shm_off t[100];
    l_seg(&c);
    for (int i = 0; i < 100; i++)
        t[i] = timer(&c, t0 + h_rand(&c) % 50, i % 2 ? 1000 : 0);
    shm_obj_ref(&c, t[7]); /* as a handle on its channel */
    for (int i = 0; i < 100; i++) {
        shm_obj_unref(&c, t[i]);
        CHECK_EQ(c.p->timers_n, i < 7 ? 99 - i : 100 - i);
        if (i % 10 == 0)
            CHECK_SEGMENT(&c);
    }
    CHECK_EQ(c.p->timers_n, 1);
    shm_obj_unref(&c, t[7]);
    l_seg_end(&c);
}

static void test_who_looks_at_the_channel_sees_what_is_due(void)
{
    struct shm_ctx c;
    struct shm_val v;
    uint32_t which;
    l_seg(&c);
    shm_off t = timer(&c, shm_now_ns() - 1, 0);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_OK);
    bool was;
    CHECK_EQ(shm_timer_reset(&c, t, shm_now_ns(), 0, &was), SHM_OK);
    struct shm_case cs = s_recv(t);
    CHECK_EQ(shm_select_try(&c, &cs, 1, &which, &v), SHM_OK);
    CHECK_EQ(shm_timer_reset(&c, t, UINT64_MAX, 0, &was), SHM_OK); /* never */
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    CHECK_EQ(shm_chan_tryrecv(&c, t, &v), SHM_EAGAIN);
    CHECK(shm_timer_stop(&c, t));
    shm_obj_unref(&c, t);
    l_seg_end(&c);
}

/* ---- after_func ------------------------------------------------------------------------------ */

/* An idle G with its call stored; *t: its timer. */
static shm_gref func(struct shm_ctx *c, uint64_t when, shm_off *t)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    struct shm_g *g = shm_g(c, r);
    CHECK_EQ(shm_cont_make(c, &g->cont_off, "call", 4, NULL, 0), SHM_OK);
    g->cont_len = 4;
    shm_publish(c, g->cont_off);
    CHECK_EQ(shm_afterfunc_new(c, r, when, t), SHM_OK);
    return r;
}

/* The next G ended as it does: begun in time, or stopped. */
static uint8_t next_ok(struct shm_ctx *c)
{
    shm_gref r = l_next(c);
    CHECK(r != 0);
    uint8_t ok = shm_g(c, r)->ok;
    CHECK_EQ(memcmp(shm_at(c, shm_g(c, r)->cont_off), "call", 4), 0);
    l_end(c, r);
    return ok;
}

static void test_after_func_starts_its_goroutine_once_unless_it_is_stopped(void)
{
    struct shm_ctx c;
    uint64_t t0 = shm_now_ns() + 10000 * SEC;
    shm_off t, u;
    bool was;
    l_seg(&c);
    shm_gref r = func(&c, t0, &t);
    func(&c, t0 + 1, &u);
    CHECK_SEGMENT(&c);
    CHECK_EQ(l_next(&c), 0);
    CHECK_EQ(run_until(&c, t0), 1);
    CHECK_EQ(l_next(&c), r);
    CHECK_EQ(shm_g(&c, r)->ok, 1);
    l_end(&c, r);
    CHECK(!shm_afterfunc_stop(&c, t));
    CHECK(shm_afterfunc_stop(&c, u));
    CHECK(!shm_afterfunc_stop(&c, u));
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    CHECK_EQ(next_ok(&c), 2);
    CHECK_EQ(shm_afterfunc_reset(&c, t, t0 + 5, &was), SHM_OK); /* once more */
    CHECK(!was);
    CHECK_EQ(shm_afterfunc_reset(&c, t, t0 + 9, &was), SHM_OK); /* later */
    CHECK(was);
    CHECK_SEGMENT(&c);
    CHECK_EQ(run_until(&c, t0 + 8), 0);
    CHECK_EQ(run_until(&c, t0 + 9), 1);
    CHECK_EQ(next_ok(&c), 1);
    CHECK_EQ(shm_afterfunc_reset(&c, t, UINT64_MAX, &was), SHM_OK); /* never */
    CHECK(!was);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    CHECK_EQ(shm_afterfunc_reset(&c, t, t0 + 20, &was), SHM_OK);
    CHECK(was);
    CHECK_EQ(next_ok(&c), 2);
    shm_obj_unref(&c, u);
    shm_obj_unref(&c, t); /* the goroutine is independent of it */
    CHECK_EQ(run_until(&c, t0 + 20), 1);
    CHECK_EQ(next_ok(&c), 1);
    l_seg_end(&c);
}

/* ---- one timer, many hands ------------------------------------------------------------------- */

enum { MS = 4 };
struct hands {
    uint32_t rounds;
    shm_off t, f;
    _Atomic uint64_t armed, stopped, received, begun, ended, funcs;
    _Atomic uint32_t left;
};

/* M 0 arms and stops; the others run timers, receive, and run what after_func starts. Every arming
 * is paid by one stop or one value, every start of a function by one arming. */
static void arm_and_fire(struct shm_ctx *c, int i, void *arg)
{
    struct hands *h = arg;
    struct shm_val v;
    bool was;
    for (uint32_t k = 0; i == 0 && k < h->rounds; k++) {
        uint64_t when = shm_now_ns() + h_rand(c) % 20000;
        CHECK_EQ(shm_timer_reset(c, h->t, when, 0, &was), SHM_OK);
        h->stopped += was;
        h->armed++;
        CHECK_EQ(shm_afterfunc_reset(c, h->f, when, &was), SHM_OK);
        h->ended += was;
        h->funcs++;
        for (uint64_t until = when + h_rand(c) % 10000 - 5000; shm_now_ns() < until;)
            cpu_relax();
        if (h_rand(c) % 3 == 0) {
            h->stopped += shm_timer_stop(c, h->t);
            CHECK_EQ(shm_chan_tryrecv(c, h->t, &v), SHM_EAGAIN);
            h->ended += shm_afterfunc_stop(c, h->f);
        }
    }
    if (i == 0) {
        h->stopped += shm_timer_stop(c, h->t);
        h->ended += shm_afterfunc_stop(c, h->f);
        store_rel(&h->left, 1); /* pairs with the loads below */
    }
    while (i != 0) {
        bool last = load_acq(&h->left); /* pairs with the store above */
        uint32_t ran;
        shm_checktimers(c, &c->ptab[h_rand(c) % c->hdr->max_p], shm_now_ns(), &ran);
        if (shm_chan_tryrecv(c, h->t, &v) == SHM_OK) {
            CHECK(seconds(&v) * 1e9 <= (double)shm_now_ns() + 1000);
            h->received++;
        }
        shm_gref r = l_next(c);
        if (r) {
            *(shm_g(c, r)->ok == 1 ? &h->begun : &(_Atomic uint64_t){0}) += 1;
            l_end(c, r);
        } else if (last) {
            break;
        }
    }
    if (c->p)
        shm_releasep(c);
}

static void test_every_arming_ends_in_one_value_or_one_stop(void)
{
    struct shm_ctx c;
    struct hands *h = h_shared(sizeof *h);
    h_seg(&c, (struct shm_opts){.nprocs = MS});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    h->rounds = (uint32_t)H_N(2000, 100000);
    h->t = timer(&c, UINT64_MAX, 0);
    CHECK(shm_timer_stop(&c, h->t));
    func(&c, UINT64_MAX, &h->f);
    h->funcs = 1;
    h_ms(MS, arm_and_fire, h);
    CHECK_EQ(h->armed, h->stopped + h->received);
    CHECK_EQ(h->funcs, h->ended + h->begun);
    CHECK(h->received > 0 && h->stopped > 0 && h->begun > 0 && h->ended > 0);
    shm_obj_unref(&c, h->t);
    shm_obj_unref(&c, h->f);
    CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
    o_seg_end(&c);
    munmap(h, sizeof *h);
}

/* ---- a death on the way ---------------------------------------------------------------------- */

static const char *const points[] = {
    "undo.noted",         "undo.counted",       "undo.stored",       "undo.commit",
    "undo.committed",     "sudog.named",        "sudog.claimed",     "ticker.fire.claimed",
    "ticker.fire.sent",   "ticker.set",         "timer.due.out",     "timer.born.named",
    "g.new.named",        "g.new.taken",        "timer.born.linked", "timer.born.waiting",
    "timer.born.armed",   "g.wait.arm",         "sched.ready.named", "sched.ready.runnable",
    "sched.ready.queued", "sudog.abort.claimed"};

struct victim {
    const char *point;
    uint32_t nth;
    int what;
    uint64_t t0;
    shm_off t;
};
enum { FIRE, STOP, RESET, FUNC_FIRE, FUNC_STOP, FUNC_RESET, FUNC_AGAIN, FUNC_NEW, WHATS };

static void do_and_die(struct shm_ctx *c, int i, void *arg)
{
    struct victim *v = arg;
    uint32_t ran;
    bool was;
    shm_off t;
    (void)i;
    h_die_at(v->point, v->nth);
    switch (v->what) {
    case FIRE:
    case FUNC_FIRE:
        shm_checktimers(c, &c->ptab[0], v->t0, &ran);
        break;
    case STOP:
        CHECK(shm_timer_stop(c, v->t));
        break;
    case RESET:
        CHECK_EQ(shm_timer_reset(c, v->t, v->t0 + 100, 0, &was), SHM_OK);
        break;
    case FUNC_STOP:
        CHECK(shm_afterfunc_stop(c, v->t));
        break;
    case FUNC_RESET:
    case FUNC_AGAIN:
        CHECK_EQ(shm_afterfunc_reset(c, v->t, v->t0 + 100, &was), SHM_OK);
        break;
    case FUNC_NEW:
        func(c, v->t0 + 100, &t);
    }
    h_die_at("", 0);
}

/* Of what is runnable now: how many have begun in time, how many were stopped. */
static void drain_runnable(struct shm_ctx *c, int *begun, int *stopped)
{
    *begun = *stopped = 0;
    for (shm_gref r; (r = l_next(c)) != 0;) {
        ++*(shm_g(c, r)->ok == 1 ? begun : stopped);
        l_end(c, r);
    }
}

/* A timer with one who waits and one without, a ticker, or a function; something is done with them
 * and its M dies. What is due comes once, not before its time, and nothing else. */
static bool die_at(int what, const char *point, uint32_t nth, uint32_t with)
{
    struct shm_ctx c;
    struct victim *v = h_shared(sizeof *v);
    struct shm_val val;
    int begun, stopped;
    l_seg(&c);
    *v = (struct victim){point, nth, what, shm_now_ns() + 10000 * SEC, 0};
    uint64_t period = with & 1 ? 1000 : 0;
    shm_gref r = 0;
    if (what <= RESET) {
        v->t = timer(&c, v->t0, period);
        if (with & 2) {
            r = l_new(&c);
            CHECK_EQ(shm_chan_recv_park(&c, v->t, &val, r), SHM_PARKED);
        } else if (what != FIRE) {
            run_until(&c, v->t0); /* its value is in the channel */
        }
    } else if (what != FUNC_NEW) {
        func(&c, v->t0, &v->t);
        if (what == FUNC_AGAIN) {
            run_until(&c, v->t0);
            drain_runnable(&c, &begun, &stopped);
            CHECK_EQ(begun, 1);
        }
    }
    int status = h_wait(h_fork(do_and_die, 0, v));
    bool died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    if (died)
        shm_reap(&c, &c.mtab[1], SIGKILL);
    CHECK_SEGMENT(&c);
    if (what == FIRE) {
        run_until(&c, v->t0);
        drain_runnable(&c, &begun, &stopped);
        CHECK_EQ(begun, r != 0);
        CHECK_EQ(stopped, 0);
        CHECK_EQ(shm_chan_tryrecv(&c, v->t, &val), r ? SHM_EAGAIN : SHM_OK);
        CHECK_EQ(shm_timer_next(&c), period ? v->t0 + period : UINT64_MAX);
    } else if (what == STOP || what == RESET) {
        uint64_t next = shm_timer_next(&c);
        struct shm_chan *ch = shm_at(&c, v->t);
        bool done = what == STOP ? next == UINT64_MAX : next == v->t0 + 100;
        CHECK(done || died);
        if (what == STOP && r == 0 && period == 0) /* it was in no heap, before and after */
            CHECK(died || load_acq(&ch->qcount) == 0);
        else if (done)
            CHECK_EQ(load_acq(&ch->qcount), 0);
        else
            CHECK_EQ(load_acq(&ch->qcount), r == 0);
    } else {
        int early, late;
        drain_runnable(&c, &early, &stopped);
        CHECK(what == FUNC_FIRE || early == 0);
        run_until(&c, v->t0 + 99);
        drain_runnable(&c, &begun, &stopped);
        run_until(&c, v->t0 + 100);
        drain_runnable(&c, &late, &stopped);
        int all = early + begun + late;
        switch (what) {
        case FUNC_FIRE:
            CHECK_EQ(all, 1);
            break;
        case FUNC_STOP:
            CHECK(all == 0 || (died && all == 1));
            break;
        case FUNC_RESET:
            CHECK(all == 1 && (late == 1 || died));
            break;
        default: /* was it made or not? */
            CHECK_EQ(early + begun, 0);
            CHECK(late == 1 || (died && late == 0));
        }
        CHECK_EQ(shm_timer_next(&c), UINT64_MAX);
        for (uint64_t i = 1; i < load_acq(&c.hdr->g_next); i++)
            CHECK_EQ(SHM_ST_STATUS(load_acq(&c.gtab[i].status)), Gdead);
    }
    munmap(v, sizeof *v);
    h_seg_end(&c);
    return died;
}

static void test_what_dies_with_its_m_is_none_or_whole(void)
{
    int deaths = 0;
    if (H_TSAN) /* a death takes the process */
        return;
    for (int what = 0; what < WHATS; what++)
        for (uint32_t with = 0; with < (what <= RESET ? 4 : 1); with++)
            for (size_t p = 0; p < sizeof points / sizeof *points; p++)
                for (uint32_t nth = 1; nth < 100 && die_at(what, points[p], nth, with); nth++)
                    deaths++;
    CHECK(deaths > 300);
}

H_MAIN(T(test_what_dies_with_its_m_is_none_or_whole),
       T(test_every_arming_ends_in_one_value_or_one_stop),
       T(test_a_timer_sends_once_and_to_who_waits_directly),
       T(test_after_stop_or_reset_nothing_of_before_is_received),
       T(test_a_ticker_drops_what_nobody_takes_and_keeps_its_beat),
       T(test_a_timer_nobody_can_reach_leaves_its_heap),
       T(test_who_looks_at_the_channel_sees_what_is_due),
       T(test_after_func_starts_its_goroutine_once_unless_it_is_stopped))
