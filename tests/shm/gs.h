/* gs.h — goroutines for the tests of what goroutines wait on.
 *
 *   l_…  light ones: a continuation of a few bytes, run by whoever finds them (l_next). The test is
 *        their code: it makes them do one thing, they park or not, it sees them come out runnable.
 *   o_…  outside ones: a thread or process that is no M's loop, blocked in the call itself. What a
 *        test of exactly-once needs: many at once, in a straight line of code.
 *
 * Values: v_int(n) stands in place, v_big(n) in a block, v_ref(n, obj) has a handle on obj in it;
 * v_num() reads any of them and v_eat() frees it too. */
#ifndef GS_H
#define GS_H

#include "harness.h"
#include "internal.h"

H_UNUSED static void gs_say(void *arg, const char *text)
{
    (void)arg;
    fprintf(stderr, "  check: %s\n", text);
}
#define CHECK_SEGMENT(c) CHECK_EQ(shm_check(c, false, gs_say, NULL), 0)
#define CHECK_QUIET(c) CHECK_EQ(shm_check(c, true, gs_say, NULL), 0)

/* The M's own random numbers. */
H_UNUSED static uint64_t h_rand(struct shm_ctx *c)
{
    c->rng = c->rng * 6364136223846793005ULL + 1442695040888963407ULL;
    return c->rng >> 33;
}

/* ---- values ---------------------------------------------------------------------------------- */

H_UNUSED static struct shm_val v_int(uint64_t n)
{
    struct shm_val v = {.tag = 8};
    memcpy(v.b, &n, 8);
    return v;
}

H_UNUSED static struct shm_val v_ref(struct shm_ctx *c, uint64_t n, shm_off obj)
{
    uint64_t bytes[5] = {n, ~n, n, ~n, n};
    uint64_t h = SHM_HANDLE(SHM_OBJ_CHAN, obj);
    struct shm_val v;
    CHECK_EQ(shm_val_make(c, &v, bytes, sizeof bytes, &h, obj != 0), SHM_OK);
    return v;
}

H_UNUSED static struct shm_val v_big(struct shm_ctx *c, uint64_t n)
{
    return v_ref(c, n, 0);
}

H_UNUSED static uint64_t v_num(struct shm_ctx *c, const struct shm_val *v)
{
    uint32_t len;
    uint64_t n, inv;
    const uint8_t *b = shm_val_bytes(c, v, &len);
    CHECK(b != NULL && (len == 8 || len == 40));
    memcpy(&n, b, 8);
    if (len == 40) {
        memcpy(&inv, b + 8, 8);
        CHECK_EQ(inv, ~n);
    }
    return n;
}

H_UNUSED static uint64_t v_eat(struct shm_ctx *c, struct shm_val *v)
{
    uint64_t n = v_num(c, v);
    shm_val_drop(c, v);
    return n;
}

/* ---- light ----------------------------------------------------------------------------------- */

/* Makes the calling thread a worker with P 0. */
H_UNUSED static void l_worker(struct shm_ctx *c)
{
    CHECK_EQ(shm_minit(c, SHM_M_WORKER), SHM_OK);
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
}

H_UNUSED static void l_worker_end(struct shm_ctx *c)
{
    shm_releasep(c);
    shm_mexit(c);
}

/* A segment with the calling thread as its one worker; its end, with nothing left in it. */
H_UNUSED static void l_seg(struct shm_ctx *c)
{
    h_seg(c, (struct shm_opts){0});
    l_worker(c);
}

H_UNUSED static void l_seg_end(struct shm_ctx *c)
{
    CHECK_QUIET(c);
    l_worker_end(c);
    h_seg_end(c);
}

/* A G that runs here, with a continuation stored, as before a park. */
H_UNUSED static shm_gref l_new(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_off off; /* not g's: nothing in the segment names a block before it is this M's */
    CHECK_EQ(shm_cont_make(c, &off, "frame", 5, NULL, 0), SHM_OK);
    shm_gcont_set(c, shm_g(c, r), off, 5);
    shm_tx_begin(c);
    shm_gcount(c, shm_g(c, r));
    shm_tx_commit(c);
    CHECK(shm_casgstatus(c, r, Gidle, Grunnable));
    CHECK(shm_execute(c, r, false));
    store_rlx(&c->m->inflight[SHM_IF_NEW], 0); /* as shm_newproc() does */
    return r;
}

/* The next runnable G, running here; 0: none. */
H_UNUSED static shm_gref l_next(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    do
        if (shm_findrunnable(c, false, &r, &inherit) != SHM_OK)
            return 0;
    while (!shm_execute(c, r, inherit));
    return r;
}

/* The number of the wait that r is in. */
H_UNUSED static uint64_t g_epoch(struct shm_ctx *c, shm_gref r)
{
    return SHM_W_EPOCH(load_acq(&shm_g(c, r)->wait));
}

/* Claims r's wait to cancel it; true: shm_ready() is to follow. */
H_UNUSED static bool g_cancel(struct shm_ctx *c, shm_gref r)
{
    return shm_wait_abort(c, r, g_epoch(c, r), SHM_OK_CANCELLED);
}

/* The running G ends. */
H_UNUSED static void l_end(struct shm_ctx *c, shm_gref r)
{
    shm_gcont_drop(c, shm_g(c, r));
    shm_goexit0(c, r);
}

/* ---- outside --------------------------------------------------------------------------------- */

/* A segment with the calling thread as M0, which runs nothing; its end, with nothing left in it. */
H_UNUSED static void o_seg(struct shm_ctx *c)
{
    h_seg(c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(c, SHM_M_M0), SHM_OK);
}

H_UNUSED static void o_seg_end(struct shm_ctx *c)
{
    CHECK_QUIET(c);
    shm_mexit(c);
    h_seg_end(c);
}

H_UNUSED static shm_gref o_new(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_g(c, r)->flags |= SHM_GF_OUTSIDE;
    CHECK(shm_casgstatus(c, r, Gidle, Grunnable));
    CHECK(shm_gclaim_runnable(c, r));
    return r;
}

H_UNUSED static void o_end(struct shm_ctx *c, shm_gref r)
{
    shm_goexit0(c, r);
}

/* An outside thread's G (SHM_GF_OUTSIDE, parked): sleeps until readied. SHM_OK and SHM_ETIME
 * (unlinked, g->ok 3): running again; SHM_EINTR on a signal, still parked: call again. */
H_UNUSED static int o_sleep(struct shm_ctx *c, shm_gref r, int64_t timeout_ns)
{
    struct shm_g *g = shm_g(c, r);
    uint64_t until = timeout_ns < 0 ? UINT64_MAX : shm_now_ns() + (uint64_t)timeout_ns;
    for (;;) {
        uint64_t w = load_acq(&g->status); /* pairs with the CAS in shm_ready() */
        if (shm_gclaim_runnable(c, r))
            return SHM_OK;
        uint64_t now = until == UINT64_MAX ? 0 : shm_now_ns();
        if (now >= until) {
            /* The epoch of our own wait: it changes by our arming only. */
            if (shm_wait_abort(c, r, SHM_W_EPOCH(load_acq(&g->wait)), 3)) {
                bool back = shm_casgstatus(c, r, Gwaiting, Grunnable) && shm_gclaim_runnable(c, r);
                store_rlx(&c->m->inflight[SHM_IF_READY], 0);
                CHECK(back);
                return SHM_ETIME;
            }
            until = UINT64_MAX; /* somebody has it in hand and will ready it */
            continue;
        }
        /* Status and owner are in the low half; nobody changes it but who readies. */
        if (shm_futex_wait((_Atomic uint32_t *)&g->status, (uint32_t)w,
                           until == UINT64_MAX ? -1 : (int64_t)(until - now)) == SHM_EINTR)
            return SHM_EINTR;
    }
}

/* After SHM_PARKED: until readied. SHM_OK, SHM_ECLOSED, SHM_ETIME. */
H_UNUSED static int o_wait(struct shm_ctx *c, shm_gref r, int64_t timeout_ns)
{
    int e;
    while ((e = o_sleep(c, r, timeout_ns)) == SHM_EINTR)
        ;
    if (e == SHM_ETIME)
        return e;
    CHECK_EQ(e, SHM_OK);
    return shm_g(c, r)->ok == 1 ? SHM_OK : SHM_ECLOSED;
}

/* v is eaten, sent or not. */
H_UNUSED static int o_send(struct shm_ctx *c, shm_gref r, shm_off ch, struct shm_val v,
                           int64_t timeout_ns)
{
    int e = shm_chan_send_park(c, ch, &v, r);
    if (e == SHM_OK)
        return e;
    if (e != SHM_PARKED) {
        shm_val_drop(c, &v);
        return e;
    }
    e = o_wait(c, r, timeout_ns);
    if (e != SHM_OK)
        shm_val_drop(c, &shm_g(c, r)->value);
    return e;
}

H_UNUSED static int o_recv(struct shm_ctx *c, shm_gref r, shm_off ch, struct shm_val *v,
                           int64_t timeout_ns)
{
    int e = shm_chan_recv_park(c, ch, v, r);
    if (e != SHM_PARKED)
        return e;
    e = o_wait(c, r, timeout_ns);
    *v = shm_g(c, r)->value;
    return e;
}

H_UNUSED static struct shm_case s_recv(shm_off ch)
{
    return (struct shm_case){.ch = ch, .dir = SHM_DIR_RECV};
}
H_UNUSED static struct shm_case s_send(shm_off ch, struct shm_val v)
{
    return (struct shm_case){.ch = ch, .dir = SHM_DIR_SEND, .v = v};
}

/* Values to send that were not chosen are eaten. -1 in *which: timed out. */
H_UNUSED static int o_select(struct shm_ctx *c, shm_gref r, struct shm_case *cases, uint32_t n,
                             uint32_t *which, struct shm_val *v, int64_t timeout_ns)
{
    int e = shm_select_park(c, cases, n, r, which, v);
    if (e == SHM_PARKED) {
        e = o_wait(c, r, timeout_ns);
        *which = (uint32_t)shm_select_done(c, r, &(uint32_t){0});
        *v = shm_g(c, r)->value;
        CHECK((e == SHM_ETIME) == (*which == UINT32_MAX));
        return e;
    }
    for (uint32_t i = 0; i < n; i++)
        if (cases[i].dir == SHM_DIR_SEND && (i != *which || e != SHM_OK))
            shm_val_drop(c, &cases[i].v);
    return e;
}

#endif
