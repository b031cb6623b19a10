/* Tests of reap.c: an M is killed at each failpoint on the way of what it does with channels,
 * timers and the queues, and reaped (deaths.h). The world has parked goroutines and channels with
 * values in it.
 *   - w runs whatever is runnable: each goroutine of the world comes up at most once, and one that
 *     does not still waits;
 *   - each value is somewhere once, or was in the hands of who died. */
#include "deaths.h"

enum {
    VALUES = 512,
    WAITERS = 40,
    SLEEPERS = 35,
    READY = 12,
    GLOBAL = 30,
    BATCH = 3,
    WORDS = 3000
};

struct world { /* shared with the children */
    shm_off empty, room, full, recvs, closing, s1, s2, join, table;
    shm_gref gs[400];
    uint32_t ngs;
    shm_gref born[WAITERS], parked, home, asleep;
    _Atomic uint32_t got[2]; /* value + 1 that the M received */
    uint8_t seen[VALUES], ran[400];
    const char *name;
};
static struct world *W;

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
    shm_obj_ref_hand(c, ch);
    int e = shm_chan_recv_park(c, ch, &v, r);
    if (e == SHM_PARKED)
        return;
    shm_obj_unref(c, ch);
    if (e == SHM_OK) {
        store_rlx(&W->got[d_who], (uint32_t)v_num(c, &v) + 1);
        shm_val_drop(c, &v);
    }
}

static void send_on(struct shm_ctx *c, shm_off ch, shm_gref r, uint64_t n)
{
    struct shm_val v = v_ref(c, n, W->table);
    shm_obj_ref_hand(c, ch);
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
    if (W == NULL)
        W = h_shared(sizeof *W);
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
        shm_obj_ref_hand(c, W->join);
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
    for (int i = 0; i < BATCH; i++) {
        shm_gref r = light(c);
        shm_g(c, r)->flags |= SHM_GF_BATCH;
        shm_gosched(c, r);
    }
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

static uint64_t mine(void)
{
    return 100 + 10 * (uint64_t)d_who;
}

static void do_send(struct shm_ctx *c)
{
    send_on(c, W->recvs, l_new(c), mine());
}
static void do_send_room(struct shm_ctx *c)
{
    send_on(c, W->room, l_new(c), mine());
}
static void do_send_home(struct shm_ctx *c)
{
    send_on(c, W->empty, l_new(c), mine()); /* the waiter is at home on w */
}
static void do_send_park(struct shm_ctx *c)
{
    send_on(c, W->s1, l_new(c), mine()); /* to the select */
    l_end(c, load_acq(&c->m->curg));
    send_on(c, W->full, l_new(c), mine() + 1);
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
        store_rlx(&W->got[d_who], (uint32_t)v_num(c, &v) + 1);
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
    int e = shm_chan_close(c, W->closing);
    CHECK(e == SHM_OK || !d_alone);
}
static void do_join(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, mine(), W->table);
    shm_gref r = l_new(c);
    shm_join_finish(c, W->join, SHM_J_VALUE, &v);
    l_end(c, r);
}
static void do_timers(struct shm_ctx *c)
{
    uint32_t ran;
    while (shm_timer_next(c) != UINT64_MAX && shm_now_ns() < shm_timer_next(c))
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
static void do_batch(struct shm_ctx *c)
{
    shm_gref r = shm_batchqget(c);
    if (r && shm_execute(c, r, false))
        shm_gosched(c, r);
}
static void do_gosched(struct shm_ctx *c)
{
    shm_gosched(c, l_new(c));
}
static void do_repark(struct shm_ctx *c) /* over the bytes that it went on from */
{
    shm_gref r = l_new(c);
    shm_off off = shm_gcont_take(c, shm_g(c, r));
    CHECK(shm_cont_rewrite(c, off, "again", 5));
    shm_gcont_set(c, shm_g(c, r), off, 5);
    shm_gosched(c, r);
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
    bool won = g_cancel(c, r);
    CHECK(won || !d_alone);
    if (won)
        shm_ready(c, r, true);
}
static void do_give(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, mine(), W->table);
    bool won = shm_wait_give(c, W->parked, g_epoch(c, W->parked), &v);
    CHECK(won || !d_alone);
    if (won)
        shm_ready(c, W->parked, true);
    else
        shm_val_drop(c, &v);
}
static void do_handles(struct shm_ctx *c)
{
    uint32_t slot[20];
    for (int i = 0; i < 20; i++) {
        shm_obj_ref_hand(c, W->table);
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
/* Killed by a signal that left it time to say where it was. */
static void do_words(struct shm_ctx *c)
{
    shm_off join;
    uint32_t slot;
    struct shm_val none = {.tag = SHM_VAL_NONE};
    shm_gref r = l_new(c);
    memset(c->m->words, 'x', WORDS);
    store_rlx(&c->m->words_n, WORDS);
    store_rlx(&c->m->words_sig, SIGKILL);
    CHECK_EQ(shm_join_new(c, &join), SHM_OK);
    shm_join_give(c, shm_g(c, r), join);
    CHECK_EQ(shm_handle_hold(c, join, &slot), SHM_OK);
    shm_g(c, r)->flags |= SHM_GF_GO;
    FAILPOINT("test.words");
    shm_join_finish(c, join, SHM_J_VALUE, &none);
    shm_g(c, r)->obj = 0;
    shm_obj_unref(c, join);
    shm_handle_release(c, c->m1, slot);
    shm_g(c, r)->flags &= (uint8_t)~SHM_GF_GO;
    l_end(c, r);
}
static void do_idle(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    if (shm_findrunnable(c, false, &r, &inherit) == SHM_OK && shm_execute(c, r, inherit))
        shm_gosched(c, r);
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
    if (g->waitkind == SHM_WAIT_SELECT) {
        struct shm_selblk *b = shm_at(&w, g->waitobj);
        for (uint32_t i = 0; i < b->n; i++)
            see(&b->cs[i].v);
    }
    d_wait_over(r);
    see(&g->value);
    shm_val_drop(&w, &g->value);
    for (uint32_t i = 0; i < W->ngs; i++)
        if (W->gs[i] == r)
            CHECK_EQ(W->ran[i]++, 0); /* once */
    shm_gcont_drop(&w, g);
    shm_goexit0(&w, r);
}

static void take_apart(uint32_t hands)
{
    struct shm_val v;
    uint32_t missing = 0, top = 7;
    d_run(finish);
    CHECK_SEGMENT(&k);
    for (uint32_t i = 0; i < W->ngs; i++) { /* each is waiting, or has come up */
        unsigned st = shm_readgstatus(&w, W->gs[i]);
        CHECK(W->ran[i] ? st == Gdead : st == Gwaiting);
    }
    shm_gref r;
    for (uint64_t i = 1; (r = d_waiting(&i)) != 0;) { /* the others' too */
        CHECK(g_cancel(&w, r));
        shm_ready(&w, r, false);
    }
    d_run(finish);
    CHECK_EQ(d_waiting(&(uint64_t){1}), 0);
    shm_off chans[] = {W->room, W->full, W->recvs, W->empty, W->closing, W->s1, W->s2};
    for (size_t i = 0; i < sizeof chans / sizeof *chans; i++)
        while (shm_chan_tryrecv(&w, chans[i], &v) == SHM_OK) {
            see(&v);
            shm_val_drop(&w, &v);
        }
    struct shm_join *j = shm_at(&w, W->join);
    see(&j->value);
    for (int i = 0; i < 2; i++)
        if (W->got[i])
            CHECK_EQ(W->seen[W->got[i] - 1]++, 0);
    for (uint32_t n = 1; n < top; n++)
        missing += !W->seen[n];
    CHECK(missing <= hands);
    for (size_t i = 0; i < sizeof chans / sizeof *chans; i++)
        shm_obj_unref(&w, chans[i]);
    shm_obj_unref(&w, W->join);
    shm_obj_unref(&w, W->join);
    shm_obj_unref(&w, W->table);
}

static void words_arrived(uint32_t hands)
{
    struct shm_val *v = &k.hdr->panic_val;
    if (load_acq(&k.hdr->panic) == 2) {
        uint32_t n;
        const uint8_t *b = shm_val_bytes(&k, v, &n);
        CHECK_EQ(n, sizeof(struct shm_died) + WORDS);
        CHECK(b[sizeof(struct shm_died)] == 'x' && b[n - 1] == 'x');
        CHECK_EQ(shm_blk(&k, v->h.off)->state, 2);
    }
    take_apart(hands);
}

static const struct act acts[] = {
    {"send to a waiter", build, do_send, take_apart, 1, 0},
    {"send into room", build, do_send_room, take_apart, 1, 0},
    {"send to one at home", build, do_send_home, take_apart, 1, 0},
    {"send to a select, park", build, do_send_park, take_apart, 2, 0},
    {"recv from room", build, do_recv, take_apart, 1, 0},
    {"recv from full", build, do_recv_full, take_apart, 1, 0},
    {"recv parks", build, do_recv_park, take_apart, 0, 0},
    {"recv from a select", build, do_recv_select, take_apart, 1, 0},
    {"select", build, do_select, take_apart, 1, 0},
    {"select parks", build, do_select_park, take_apart, 0, 0},
    {"close with waiters", build, do_close, take_apart, 0, 0},
    {"join finish", build, do_join, take_apart, 1, 0},
    {"timers", build, do_timers, take_apart, 0, 0},
    {"sleep", build, do_sleep, take_apart, 0, 0},
    {"steal", build, do_steal, take_apart, 0, 0},
    {"global queue", build, do_global, take_apart, 0, 0},
    {"batch queue", build, do_batch, take_apart, 0, 0},
    {"gosched", build, do_gosched, take_apart, 0, 0},
    {"repark", build, do_repark, take_apart, 0, 0},
    {"newproc", build, do_newproc, take_apart, 0, 0},
    {"overflow", build, do_newprocs, take_apart, 0, 0},
    {"exit", build, do_exit, take_apart, 0, 0},
    {"cancel", build, do_cancel, take_apart, 0, 0},
    {"give", build, do_give, take_apart, 1, 0},
    {"handles", build, do_handles, take_apart, 0, 0},
    {"heap", build, do_heap, take_apart, 0, 0},
    {"schedule", build, do_idle, take_apart, 0, 0},
    {"last words", build, do_words, words_arrived, 0, 0},
};

#define N (sizeof acts / sizeof *acts)

static void test_an_m_killed_at_each_failpoint_of_each_primitive_leaves_a_whole_segment(void)
{
    d_killed_everywhere(acts, N);
}
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    d_reaper_killed(acts, N);
}
static void test_two_ms_killed_at_once_leave_a_whole_segment(void)
{
    d_killed_together(acts, N, false);
}

/* Dead with the name of a goroutine that the others have run to its end meanwhile:
 * its slot is theirs. */
static void starts_one(struct shm_ctx *c, int n, void *where)
{
    (void)n;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_at(where, 1);
    do_newproc(c);
    do_global(c);
}
static void test_a_slot_that_others_have_freed_before_the_reaper_comes_is_freed_once(void)
{
    static char *const points[] = {"sched.newproc.queued", "sched.execute.curg"};
    for (int i = 0; i < 2; i++) {
        h_what = points[i];
        d_begin(&acts[0]);
        int pid = h_fork(starts_one, 0, points[i]), status = h_wait(pid);
        CHECK(WIFSIGNALED(status));
        uint32_t slot = d_slot(pid);
        struct shm_m *dead = &k.mtab[slot];
        shm_gref r = i ? load_acq(&dead->curg) : load_acq(&dead->inflight[SHM_IF_NEW]);
        CHECK(shm_execute(&w, r, false));
        finish(r);
        d_run(finish);
        shm_reap(&k, dead, status);
        take_apart(0);
        d_end(16);
    }
}

/* The text goes to the goroutine that ran, whole, and only if the M died of what it is about. */
static void dies_talking(struct shm_ctx *c, int n, void *arg)
{
    (void)arg;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_at("test.words", 1);
    (void)n;
    do_words(c);
}
static void test_last_words_are_those_of_the_signal_it_died_of(void)
{
    static const int ends[] = {SIGKILL, SIGSEGV, 3 << 8, -1 /* not known */};
    for (int i = 0; i < 4; i++) {
        int status = ends[i];
        d_begin(&acts[N - 1]);
        int pid = h_fork(dies_talking, 0, NULL);
        CHECK(d_killed(h_wait(pid)));
        shm_reap(&k, &k.mtab[d_slot(pid)], status);
        CHECK_EQ(load_acq(&k.hdr->panic), 2);
        CHECK_EQ(k.hdr->panic_val.tag == SHM_VAL_HEAP, status == SIGKILL || status == -1);
        if (k.hdr->panic_val.tag == SHM_VAL_HEAP)
            words_arrived(0);
        else
            take_apart(0);
        d_end(16);
    }
}

/* Counted, and not yet pushed: its reaper pushed it, and counted it again. So its home M took itself
 * for one with work for ever: it did not sleep any more, and no deadlock was found. */
static void readies_one_at_home(struct shm_ctx *c, int n, void *where)
{
    (void)n;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_at(where, 1);
    do_send_home(c);
}
static void test_who_dies_as_he_readies_one_at_home_leaves_its_m_with_nothing_to_do(void)
{
    static char *const points[] = {"runq.home.counted", "runq.home.put"};
    for (int i = 0; i < 2; i++) {
        bool inherit;
        shm_gref r;
        h_what = points[i];
        d_begin(&acts[0]);
        int pid = h_fork(readies_one_at_home, 0, points[i]), status = h_wait(pid);
        CHECK(d_killed(status));
        shm_reap(&k, &k.mtab[d_slot(pid)], status);
        CHECK(shm_any_home(w.m));
        take_apart(1);
        CHECK_EQ(shm_findrunnable(&w, false, &r, &inherit), SHM_EAGAIN);
        CHECK(!shm_any_home(w.m));
        CHECK_EQ(load_acq(&w.m->homeq_n), 0);
        d_end(16);
    }
}

/* ---- a panic --------------------------------------------------------------------------------- */

static void do_panic(struct shm_ctx *c)
{
    struct shm_val v = v_big(c, 7);
    shm_gref r = l_new(c);
    shm_g(c, r)->flags |= SHM_GF_GO;
    shm_panic(c, shm_g(c, r)->goid, SHM_J_ERROR, &v, 0);
    CHECK_EQ(v.tag, SHM_VAL_NONE);
    FAILPOINT("test.panicked");
    shm_g(c, r)->flags &= (uint8_t)~SHM_GF_GO;
}

static void build_panic(void)
{
    if (W == NULL)
        W = h_shared(sizeof *W);
    memset(W, 0, sizeof *W);
}

/* It is whole, the one exception or a death, and M0 knows; nobody else's bytes are left. */
static void panic_arrived(uint32_t hands)
{
    struct shm_hdr *h = k.hdr;
    struct shm_val none = {.tag = SHM_VAL_NONE}, v = h->panic_val;
    d_run(finish);                           /* it was not yet that far */
    if (hands == 0 || load_acq(&h->panic)) { /* else it died before it had a goroutine */
        CHECK_EQ(load_acq(&h->panic), 2);
        CHECK(load_acq(&k.mtab[h->m0_slot].attn) & SHM_ATTN_PANIC);
        CHECK_EQ(h->panic_goid, 1);
        if (h->panic_how == SHM_J_ERROR)
            CHECK_EQ(v_num(&w, &v), 7);
        else
            CHECK_EQ(v.tag, sizeof(struct shm_died));
    }
    if (!hands)
        CHECK_EQ(h->panic_how, SHM_J_ERROR);
    h->panic_val = none;
    store_rlx(&h->panic, 0);
    shm_val_drop(&w, &v);
}

static const struct act panics[] = {{"panic", build_panic, do_panic, panic_arrived, 1, 0}};

static void test_a_panic_is_whole_and_told_whenever_who_says_it_dies(void)
{
    d_killed_everywhere(panics, 1);
}
static void test_a_panic_is_whole_and_told_though_reapers_die_of_it_too(void)
{
    d_reaper_killed(panics, 1);
}

H_MAIN(T(test_a_panic_is_whole_and_told_whenever_who_says_it_dies),
       T(test_a_panic_is_whole_and_told_though_reapers_die_of_it_too),
       T(test_who_dies_as_he_readies_one_at_home_leaves_its_m_with_nothing_to_do),
       T(test_last_words_are_those_of_the_signal_it_died_of),
       T(test_a_slot_that_others_have_freed_before_the_reaper_comes_is_freed_once),
       T(test_an_m_killed_at_each_failpoint_of_each_primitive_leaves_a_whole_segment),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another),
       T(test_two_ms_killed_at_once_leave_a_whole_segment))
