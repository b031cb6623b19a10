/* Tests of reap.c: an M is killed at each failpoint on the way of each primitive, and reaped.
 *
 * The test's own process is the keeper (k) and a living worker (w, on P 1). Each round builds a world of
 * parked goroutines and channels with values, forks an M that does one thing on P 0, and kills it at
 * its n-th failpoint; n counts up until it survives. Then
 *   - the checker finds nothing wrong with the segment;
 *   - w runs whatever is runnable: each goroutine of the world comes up at most once, and one that does
 *     not still waits;
 *   - each value is somewhere once, or was in the hands of who died;
 *   - w takes the world apart, with every verb it needs, and the segment is empty but for what the dead
 *     had in its hands.
 * The reaper, too, is killed at each of its failpoints, and followed by another.
 *
 * Each death is a fork, so a build with a sanitizer tries a part of them, from another start each time.
 * TSan sees nothing between processes: there it is a handful. */
#include "gs.h"
#include "internal.h"

enum { VALUES = 512, WAITERS = 40, SLEEPERS = 35, READY = 12, GLOBAL = 30, MINE = 900 };

struct world { /* shared with the children */
    shm_off empty, room, full, recvs, closing, s1, s2, join, table;
    shm_gref gs[400];
    uint32_t ngs;
    shm_gref born[WAITERS], parked, home, asleep;
    _Atomic uint32_t got; /* value + 1 that the M received */
    uint8_t seen[VALUES], ran[400];
    const char *name;
};
static struct world *W;
static struct shm_ctx k, w;

static uint32_t add(shm_gref r)
{
    CHECK(W->ngs < 400);
    W->gs[W->ngs] = r;
    return W->ngs++;
}

static shm_gref light(struct shm_ctx *c)
{
    shm_gref r = l_new(c);
    add(r);
    return r;
}

/* As the binding's: the wait holds its object. */
static void recv_on(struct shm_ctx *c, shm_off ch, shm_gref r)
{
    struct shm_val v;
    shm_obj_ref(c, ch);
    int e = shm_chan_recv_park(c, ch, &v, r);
    if (e == SHM_PARKED)
        return;
    shm_obj_unref(c, ch);
    if (e == SHM_OK) {
        store_rlx(&W->got, (uint32_t)v_num(c, &v) + 1);
        shm_val_drop(c, &v);
    }
}

static void send_on(struct shm_ctx *c, shm_off ch, shm_gref r, uint64_t n)
{
    struct shm_val v = v_ref(c, n, W->table);
    shm_obj_ref(c, ch);
    int e = shm_chan_send_park(c, ch, &v, r);
    if (e == SHM_PARKED)
        return;
    shm_obj_unref(c, ch);
    if (e != SHM_OK)
        shm_val_drop(c, &v);
}

static void build(void)
{
    struct shm_ctx *c = &w;
    uint32_t which;
    struct shm_val v;
    memset(W, 0, sizeof *W);
    CHECK_EQ(shm_chan_new(c, 0, &W->table), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->empty), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 3, &W->room), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 2, &W->full), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->recvs), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->closing), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->s1), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->s2), SHM_OK);
    CHECK_EQ(shm_join_new(c, &W->join), SHM_OK);
    send_on(c, W->room, 0, 1);
    send_on(c, W->full, 0, 2);
    send_on(c, W->full, 0, 3);
    for (uint64_t n = 4; n < 6; n++)
        send_on(c, W->full, light(c), n);
    for (int i = 0; i < 2; i++)
        recv_on(c, W->recvs, light(c));
    for (int i = 0; i < WAITERS; i++)
        recv_on(c, W->closing, W->born[i] = light(c));
    for (int i = 0; i < 3; i++) {
        shm_gref r = light(c);
        shm_obj_ref(c, W->join);
        CHECK_EQ(shm_join_park(c, W->join, r), SHM_PARKED);
    }
    shm_gref sel = light(c);
    struct shm_case cases[2] = {s_recv(W->s1), s_send(W->s2, v_ref(c, 6, W->table))};
    CHECK_EQ(shm_select_park(c, cases, 2, sel, &which, &v), SHM_PARKED);
    W->parked = light(c);
    shm_g(c, W->parked)->ok = SHM_OK_NONE;
    shm_g(c, W->parked)->waitkind = 0;
    shm_park_commit(c, W->parked, SHM_WR_USER, shm_wait_next(shm_g(c, W->parked)));
    W->home = light(c);
    shm_g(c, W->home)->home_m1 = c->m1;
    shm_g(c, W->home)->home_why = SHM_HOME_PINNED;
    recv_on(c, W->empty, W->home);
    for (int i = 0; i < SLEEPERS; i++) {
        W->asleep = light(c);
        CHECK_EQ(shm_sleep_park(c, W->asleep, shm_now_ns() + 3000000), SHM_PARKED);
    }
    for (int i = 0; i < GLOBAL; i++)
        shm_gosched(c, light(c));
    for (int i = 0; i < READY; i++) {
        shm_gref r;
        CHECK_EQ(shm_gnew(c, &r), SHM_OK);
        shm_off off;
        CHECK_EQ(shm_cont_make(c, &off, "frame", 5, NULL, 0), SHM_OK);
        shm_gcont_set(c, shm_g(c, r), off, 5);
        add(r);
        shm_newproc(c, r);
    }
}

/* ---- what an M does when it dies ------------------------------------------------------------- */

static void do_send(struct shm_ctx *c)
{
    send_on(c, W->recvs, l_new(c), 100);
}
static void do_send_room(struct shm_ctx *c)
{
    send_on(c, W->room, l_new(c), 100);
}
static void do_send_home(struct shm_ctx *c)
{
    send_on(c, W->empty, l_new(c), 100); /* the waiter is at home on w */
}
static void do_send_park(struct shm_ctx *c)
{
    send_on(c, W->s1, l_new(c), 100); /* to the select */
    l_end(c, load_acq(&c->m->curg));
    send_on(c, W->full, l_new(c), 101);
}
static void do_recv(struct shm_ctx *c)
{
    recv_on(c, W->room, l_new(c));
}
static void do_recv_full(struct shm_ctx *c)
{
    recv_on(c, W->full, l_new(c));
}
static void do_recv_park(struct shm_ctx *c)
{
    recv_on(c, W->recvs, l_new(c));
}
static void do_recv_select(struct shm_ctx *c)
{
    recv_on(c, W->s2, l_new(c));
}
static void select_on(struct shm_ctx *c, shm_off a, shm_off b)
{
    struct shm_case cases[2] = {s_recv(a), s_recv(b)};
    struct shm_val v;
    uint32_t which;
    shm_gref r = l_new(c);
    if (shm_select_park(c, cases, 2, r, &which, &v) == SHM_OK) {
        store_rlx(&W->got, (uint32_t)v_num(c, &v) + 1);
        shm_val_drop(c, &v);
    }
}
static void do_select(struct shm_ctx *c)
{
    select_on(c, W->full, W->room);
}
static void do_select_park(struct shm_ctx *c)
{
    select_on(c, W->recvs, W->s1);
}
static void do_close(struct shm_ctx *c)
{
    CHECK_EQ(shm_chan_close(c, W->closing), SHM_OK);
}
static void do_join(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, 100, W->table);
    shm_gref r = l_new(c);
    shm_join_finish(c, W->join, SHM_J_VALUE, &v);
    l_end(c, r);
}
static void do_timers(struct shm_ctx *c)
{
    uint32_t ran;
    while (shm_now_ns() < shm_timer_next(c))
        usleep(100);
    for (uint32_t i = 0; i < c->hdr->max_p; i++)
        shm_checktimers(c, &c->ptab[i], shm_now_ns(), &ran);
}
static void do_sleep(struct shm_ctx *c)
{
    CHECK_EQ(shm_sleep_park(c, l_new(c), shm_now_ns() + 2000000), SHM_PARKED);
}
static void do_steal(struct shm_ctx *c)
{
    shm_gref r = shm_runqsteal(c, c->p, &c->ptab[1], true);
    if (r) {
        shm_runqput(c, c->p, r, true);
        store_rel(&c->m->inflight[SHM_IF_GOT], 0);
    }
}
static void do_global(struct shm_ctx *c)
{
    shm_gref r = shm_globrunqget(c, c->p, UINT32_MAX);
    if (r && shm_execute(c, r, false))
        shm_gosched(c, r);
}
static void do_gosched(struct shm_ctx *c)
{
    shm_gosched(c, l_new(c));
}
static void do_newproc(struct shm_ctx *c)
{
    shm_gref r;
    shm_off off;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    CHECK_EQ(shm_cont_make(c, &off, "frame", 5, NULL, 0), SHM_OK);
    shm_gcont_set(c, shm_g(c, r), off, 5);
    shm_newproc(c, r);
}
static void do_newprocs(struct shm_ctx *c)
{
    for (int i = 0; i < 270; i++) /* the ring overflows */
        do_newproc(c);
}
static void do_exit(struct shm_ctx *c)
{
    l_end(c, l_new(c));
}
static void do_cancel(struct shm_ctx *c)
{
    shm_gref r = W->born[3];
    CHECK(shm_wait_abort(c, r, SHM_W_EPOCH(load_acq(&shm_g(c, r)->wait)), 2));
    shm_ready(c, r, true);
}
static void do_give(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, 100, W->table);
    CHECK(shm_wait_give(c, W->parked, SHM_W_EPOCH(load_acq(&shm_g(c, W->parked)->wait)), &v));
    shm_ready(c, W->parked, true);
}
static void do_handles(struct shm_ctx *c)
{
    uint32_t slot[20];
    for (int i = 0; i < 20; i++) {
        shm_obj_ref(c, W->table);
        CHECK_EQ(shm_handle_hold(c, W->table, &slot[i]), SHM_OK);
    }
    for (int i = 0; i < 20; i += 3)
        shm_handle_release(c, c->m1, slot[i]);
}
static void do_heap(struct shm_ctx *c)
{
    shm_off off[200];
    for (int i = 0; i < 200; i++)
        CHECK_EQ(shm_alloc(c, i % 50 == 7 ? 100000 : 200, &off[i]), SHM_OK);
    for (int i = 0; i < 200; i++)
        shm_free(c, off[i]);
}
static void do_idle(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    if (shm_findrunnable(c, false, &r, &inherit) == SHM_OK && shm_execute(c, r, inherit))
        shm_gosched(c, r);
}

static const struct act {
    const char *name;
    void (*fn)(struct shm_ctx *c);
    uint32_t hands; /* values it may have in its hands */
} acts[] = {
    {"send to a waiter", do_send, 1},
    {"send into room", do_send_room, 1},
    {"send to one at home", do_send_home, 1},
    {"send to a select, park", do_send_park, 2},
    {"recv from room", do_recv, 1},
    {"recv from full", do_recv_full, 1},
    {"recv parks", do_recv_park, 0},
    {"recv from a select", do_recv_select, 1},
    {"select", do_select, 1},
    {"select parks", do_select_park, 0},
    {"close with waiters", do_close, 0},
    {"join finish", do_join, 1},
    {"timers", do_timers, 0},
    {"sleep", do_sleep, 0},
    {"steal", do_steal, 0},
    {"global queue", do_global, 0},
    {"gosched", do_gosched, 0},
    {"newproc", do_newproc, 0},
    {"overflow", do_newprocs, 0},
    {"exit", do_exit, 0},
    {"cancel", do_cancel, 0},
    {"give", do_give, 1},
    {"handles", do_handles, 0},
    {"heap", do_heap, 0},
    {"schedule", do_idle, 0},
};

static void child(struct shm_ctx *c, int n, void *act)
{
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_after((uint32_t)n);
    ((const struct act *)act)->fn(c);
    h_die_after(0);
    if (load_acq(&c->m->curg))
        l_end(c, load_acq(&c->m->curg));
    shm_releasep(c);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static void see(const struct shm_val *v)
{
    if (v->tag != SHM_VAL_NONE) {
        uint64_t n = v_num(&w, v);
        CHECK(n < VALUES);
        CHECK_EQ(W->seen[n]++, 0); /* once */
    }
}

/* The end of a G that w has running. */
static void finish(shm_gref r)
{
    struct shm_g *g = shm_g(&w, r);
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT) {
        struct shm_selblk *b = shm_at(&w, g->waitobj);
        for (uint32_t i = 0; i < b->n; i++)
            see(&b->cs[i].v);
        shm_select_done(&w, r, &tag);
    } else if (g->waitkind && g->waitkind < SHM_WAIT_SELECT) {
        shm_off o = g->waitobj;
        g->waitkind = 0;
        shm_obj_unref(&w, o);
    }
    see(&g->value);
    shm_val_drop(&w, &g->value);
    for (uint32_t i = 0; i < W->ngs; i++)
        if (W->gs[i] == r)
            CHECK_EQ(W->ran[i]++, 0); /* once */
    shm_gcont_drop(&w, g);
    shm_goexit0(&w, r);
}

static void run_all(void)
{
    shm_gref r;
    while ((r = l_next(&w)) != 0)
        finish(r);
}

static uint32_t live(void)
{
    uint32_t n = 0;
    for (uint64_t i = 1; i < load_acq(&w.hdr->g_next); i++)
        n += SHM_ST_STATUS(load_acq(&w.gtab[i].status)) != Gdead;
    return n;
}

static void take_apart(const struct act *act)
{
    struct shm_val v;
    uint32_t missing = 0, top = 7;
    CHECK_SEGMENT(&k);
    run_all();
    CHECK_SEGMENT(&k);
    for (uint32_t i = 0; i < W->ngs; i++) { /* each is waiting, or has come up */
        unsigned st = shm_readgstatus(&w, W->gs[i]);
        CHECK(W->ran[i] ? st == Gdead : st == Gwaiting);
    }
    for (uint64_t i = 1; i < load_acq(&w.hdr->g_next); i++) { /* the others' too */
        struct shm_g *g = &w.gtab[i];
        uint64_t st = load_acq(&g->status), wait = load_acq(&g->wait);
        if (SHM_ST_STATUS(st) == Gdead)
            continue;
        CHECK_EQ(SHM_ST_STATUS(st), Gwaiting);
        shm_gref r = (uint64_t)SHM_ST_GEN(st) << 32 | i;
        CHECK(shm_wait_abort(&w, r, SHM_W_EPOCH(wait), 2));
        shm_ready(&w, r, false);
    }
    run_all();
    CHECK_EQ(live(), 0);
    shm_off chans[] = {W->room, W->full, W->recvs, W->empty, W->closing, W->s1, W->s2};
    for (size_t i = 0; i < sizeof chans / sizeof *chans; i++)
        while (shm_chan_tryrecv(&w, chans[i], &v) == SHM_OK) {
            see(&v);
            shm_val_drop(&w, &v);
        }
    struct shm_join *j = shm_at(&w, W->join);
    see(&j->value);
    if (W->got)
        CHECK_EQ(W->seen[W->got - 1]++, 0);
    for (uint32_t n = 1; n < top; n++)
        missing += !W->seen[n];
    CHECK(missing <= act->hands);
    for (size_t i = 0; i < sizeof chans / sizeof *chans; i++)
        shm_obj_unref(&w, chans[i]);
    shm_obj_unref(&w, W->join);
    shm_obj_unref(&w, W->join);
    shm_obj_unref(&w, W->table);
}

static uint32_t slot_of(int pid)
{
    for (uint32_t i = 0; i < load_acq(&k.hdr->max_m); i++)
        if (load_acq(&k.mtab[i].pid) == (uint32_t)pid && load_acq(&k.mtab[i].kind) != SHM_M_FREE)
            return i;
    return UINT32_MAX;
}

static void begin(void)
{
    if (W == NULL) {
        W = h_shared(sizeof *W);
        h_last = h_shared(sizeof *h_last); /* the same text in every forked process */
    }
    h_seg(&k, (struct shm_opts){.nprocs = 2});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    shm_ctx_copy(&w, &k);
    CHECK_EQ(shm_minit(&w, SHM_M_WORKER), SHM_OK);
    CHECK_EQ(shm_acquirep(&w, 1), SHM_OK);
    build();
    CHECK_SEGMENT(&k);
}

static void end(bool whole)
{
    shm_releasep(&w);
    shm_mexit(&w);
    struct shm_heap_stats s;
    shm_heap_stats(&k, &s);
    if (whole)
        CHECK_QUIET(&k);
    else
        CHECK(s.live_blocks <= 16); /* what only the dead referred to */
    shm_mexit(&k);
    h_seg_end(&k);
}

/* False: it did not die any more. */
static bool round_of(const struct act *act, uint32_t n, int (*reaper)(uint32_t slot, int status))
{
    begin();
    int pid = h_fork(child, (int)n, (void *)(uintptr_t)act), status = h_wait(pid);
    uint32_t slot = slot_of(pid);
    bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(died || status == 0);
    CHECK_EQ(died, slot != UINT32_MAX);
    if (died && reaper(slot, status) == 0) {
        shm_reap(&k, &k.mtab[slot], status);
        CHECK_EQ(load_acq(&k.mtab[slot].kind), SHM_M_FREE);
    }
    take_apart(act);
    end(!died);
    return died;
}

static int no_reaper(uint32_t slot, int status)
{
    (void)slot, (void)status;
    return 0;
}

#if H_TSAN
#define STRIDE 41
#elif defined(__SANITIZE_ADDRESS__)
#define STRIDE 5
#else
#define STRIDE 1
#endif

static void next_act(const struct act *act)
{
    h_what = act->name;
    alarm((unsigned)H_N(60, 600));
}

static void test_an_m_killed_at_each_failpoint_of_each_primitive_leaves_a_whole_segment(void)
{
    uint32_t from = (uint32_t)getpid();
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        uint32_t n = 1 + from++ % STRIDE, deaths = 0;
        bool many = acts[i].fn == do_newprocs || acts[i].fn == do_heap || acts[i].fn == do_timers;
        next_act(&acts[i]);
        for (; round_of(&acts[i], n, no_reaper); deaths++)
            n += many && n > 60 && !h_storm() ? 97 : STRIDE;
        printf("   %s: killed at %u of %u failpoints\n", acts[i].name, deaths, n - 1);
    }
}

static uint32_t reaper_n;
static bool reaper_died;
static uint32_t reaped_slot;
static int reaped_status;
static void second_keeper(struct shm_ctx *c, int n, void *arg)
{
    (void)arg;
    store_rlx(&c->m->kind, SHM_M_KEEPER);
    h_die_after((uint32_t)n);
    shm_reap(c, &c->mtab[reaped_slot], reaped_status);
    h_die_after(0);
}

/* A keeper that is killed at its reaper_n-th failpoint; then it is reaped, and the other once more. */
static int killed_reaper(uint32_t slot, int status)
{
    reaped_slot = slot;
    reaped_status = status;
    int pid = h_fork(second_keeper, (int)reaper_n, NULL), st = h_wait(pid);
    uint32_t keeper = slot_of(pid);
    reaper_died = st != 0;
    if (!reaper_died)
        return -1; /* it has done it */
    CHECK(WIFSIGNALED(st) && keeper != UINT32_MAX);
    shm_reap(&k, &k.mtab[keeper], st);
    return 0;
}

/* In the quick run every 13th death of the worker, and every 11th of its reaper, from another start each
 * time; in the storm all of both. */
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    uint32_t from = (uint32_t)getpid(), deaths = 0;
    for (size_t i = 0; i < sizeof acts / sizeof *acts; i++) {
        bool died = true;
        uint32_t step = H_N(13, 1) * STRIDE, rstep = H_N(11, 1) * STRIDE;
        next_act(&acts[i]);
        for (uint32_t n = 1 + from++ % step; died && n < H_N(80, 3000); n += step) {
            reaper_died = true;
            for (reaper_n = 1 + from++ % rstep; died && reaper_died; reaper_n += rstep) {
                reaper_died = false;
                died = round_of(&acts[i], n, killed_reaper);
                deaths += reaper_died;
            }
        }
    }
    printf("   %u reapers killed\n", deaths);
    CHECK(H_TSAN || deaths > 20);
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_of_each_primitive_leaves_a_whole_segment),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another))
