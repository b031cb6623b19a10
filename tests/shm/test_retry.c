/* Tests of retry.c: a goroutine with retries carries out a script, one operation after the other,
 * on an M that is killed at its n-th failpoint, n counting up until it survives. However often,
 * whoever goes on with it finds what it had: each message was received once and sent once, in
 * order, each lock is held once; and the segment is whole.
 *
 * The test's own process is the keeper and everybody else: it sends, receives, unlocks and signals
 * when the goroutine waits, and forks the next M for each stretch of the script up to a wait. The
 * driver below does what _core/proc.c does with such a goroutine; its continuation is (step, x),
 * where x is what was received last.
 *
 *   r  x = receive from A        e  select: x = receive from A, or from E    l u  lock, unlock
 *   s  send x + 100 to B         E  select: receive from E, or send to B     R W v V  read, write,
 *   ends
 *   g  gosched                   j  join of one that has ended or will       a z  acquire, release
 *   p P  sleep 0, 1 ms           c  sleep, and a cancel is due               w  wait on the cond */
#include "gs.h"
#include "internal.h"

enum { HOLDER = 1000000, MOST = 16 };

struct script {
    const char *ops;
    uint32_t acap, asent;     /* A: its size, values sent by parked senders or into it */
    uint32_t bcap, breceives; /* B: its size, receivers that are parked there */
    bool held;                /* what it locks is another's */
    bool ended;               /* the joined one has */
};

static const struct script scripts[] = {
    {"rsrsrs", 3, 3, 3, 0, false, true}, {"rsrs", 0, 2, 0, 2, false, true},
    {"rsrs", 1, 2, 1, 0, false, true},   {"rsrs", 0, 0, 0, 0, false, true},
    {"eEeE", 2, 2, 2, 0, false, true},   {"eEeE", 0, 2, 0, 2, false, true},
    {"eEeE", 0, 0, 0, 0, false, true},   {"lulwu", 1, 0, 1, 0, false, true},
    {"lwwu", 1, 0, 1, 0, true, true},    {"azRvWV", 1, 0, 1, 0, false, true},
    {"azRvWV", 1, 0, 1, 0, true, true},  {"jgpPg", 1, 0, 1, 0, false, true},
    {"rjsc", 1, 1, 1, 0, false, false},
};

struct world { /* shared with the children */
    const struct script *s;
    shm_off a, b, e, mutex, cond, rw, sema, other, join, table;
    shm_gref g, receivers[MOST];
    shm_off mine;
    uint32_t fed, nout, out[MOST];
};
static struct world *W;
static struct shm_ctx k, w;

struct frame {
    uint64_t step, x, pad_[2]; /* too long for a value in place */
};

/* ---- the goroutine --------------------------------------------------------------------------- */

static void store(struct shm_ctx *c, struct shm_g *g, const struct frame *f)
{
    shm_off off;
    uint64_t h = SHM_HANDLE(SHM_OBJ_CHAN, W->table);
    CHECK_EQ(shm_cont_make(c, &off, f, sizeof *f, &h, 1), SHM_OK);
    shm_gcont_set(c, g, off, sizeof *f);
    g->op = f->step ? (uint8_t)W->s->ops[f->step - 1] : 0;
}

static int on(struct shm_ctx *c, shm_off obj, int e) /* the wait holds its object */
{
    if (e != SHM_PARKED)
        shm_obj_unref(c, obj);
    return e;
}

static int sema(struct shm_ctx *c, shm_off sy, int how, uint64_t want, shm_gref r)
{
    shm_obj_ref_hand(c, sy);
    return on(c, sy, shm_sema_park(c, sy, how, want, r));
}

static int select_(struct shm_ctx *c, struct shm_case *cases, shm_gref r, struct shm_val *v)
{
    uint32_t which = 0;
    cases[0].tag = 70;
    cases[1].tag = 71;
    int e = shm_select_park(c, cases, 2, r, &which, v);
    for (int i = 0; i < 2; i++)
        if (e != SHM_PARKED && cases[i].dir == SHM_DIR_SEND &&
            (e != SHM_OK || which != (uint32_t)i))
            shm_val_drop(c, &cases[i].v);
    return e;
}

/* As a park() of the binding. *v: what was received at once. */
static int carry_out(struct shm_ctx *c, char op, shm_gref r, uint64_t x, struct shm_val *v)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_val out;
    int e;
    switch (op) {
    case 'r':
        shm_obj_ref_hand(c, W->a);
        return on(c, W->a, shm_chan_recv_park(c, W->a, v, r));
    case 's':
        out = v_ref(c, x + 100, W->table);
        shm_obj_ref_hand(c, W->b);
        return on(c, W->b, shm_chan_send_park(c, W->b, &out, r));
    case 'e':
        return select_(c, (struct shm_case[]){s_recv(W->e), s_recv(W->a)}, r, v);
    case 'E':
        return select_(
            c, (struct shm_case[]){s_recv(W->e), s_send(W->b, v_ref(c, x + 100, W->table))}, r, v);
    case 'l':
        shm_obj_ref_hand(c, W->mutex);
        return on(c, W->mutex, shm_mutex_lock_park(c, W->mutex, r));
    case 'u':
        return shm_mutex_unlock(c, W->mutex);
    case 'w':
        shm_obj_ref_hand(c, W->cond);
        return on(c, W->cond, shm_cond_park(c, W->cond, r));
    case 'a':
        return sema(c, W->sema, SHM_SY_WRITE, 2, r);
    case 'z':
        return shm_semaphore_release(c, W->sema, 2);
    case 'R':
        return sema(c, W->rw, SHM_SY_READ, 1, r);
    case 'W':
        return sema(c, W->rw, SHM_SY_WRITE, 1, r);
    case 'v':
    case 'V':
        return shm_rwmutex_unlock(c, W->rw, op == 'v' ? SHM_SY_READ : SHM_SY_WRITE, g->goid);
    case 'j':
        shm_obj_ref_hand(c, W->other);
        e = on(c, W->other, shm_join_park(c, W->other, r));
        if (e == SHM_OK) {
            g->ok = 1;
            shm_wait_ended(c, g, SHM_OBJ_JOIN, W->other);
        }
        return e;
    default:
        return shm_sleep_park(c, r, op == 'p' ? 0 : shm_now_ns() + 1000000);
    }
}

static void wait_end(struct shm_ctx *c, struct shm_g *g)
{
    if (g->waitkind && g->waitkind < SHM_WAIT_SELECT)
        shm_wait_ends(c, g);
    g->waitkind = 0;
}

/* What the await gives, as resume(). */
static void see(struct shm_ctx *c, shm_gref r, struct frame *f)
{
    struct shm_g *g = shm_g(c, r);
    char op = W->s->ops[f->step - 1];
    CHECK_EQ(shm_retry_view(c, r), SHM_OK);
    CHECK_EQ(g->ok, op == 'c' ? SHM_OK_CANCELLED : SHM_OK_VALUE);
    if (op == 'e' || op == 'E')
        CHECK_EQ(g->waitobj, 71);
    CHECK_EQ(g->value.tag != SHM_VAL_NONE, op == 'r' || op == 'e');
    if (g->value.tag != SHM_VAL_NONE)
        f->x = v_num(c, &g->value);
    shm_val_drop(c, &g->value);
    wait_end(c, g);
}

static void ends(struct shm_ctx *c, shm_gref r)
{
    struct shm_val v = v_ref(c, 300, W->table);
    struct shm_g *g = shm_g(c, r);
    shm_join_finish(c, g->obj, SHM_J_VALUE, &v);
    shm_retry_drop(c, g->obj);
    shm_obj_unref_word(c, &g->obj);
    shm_goexit0(c, r);
}

/* Its part of step `f->step`. SHM_OK: on with the next. */
static int step(struct shm_ctx *c, shm_gref r, struct frame *f)
{
    struct shm_g *g = shm_g(c, r);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    char op = W->s->ops[f->step++];
    store(c, g, f);
    if (op == 'c') {
        store_seq(&((struct shm_join *)shm_at(c, g->obj))->cancel, 1);
        shm_retry_cancelled(c, r);
        return SHM_OK;
    }
    if (op == 'g') {
        shm_retry_leave_(c, r);
        g->ok = 1;
        shm_gosched(c, r);
        return SHM_PARKED;
    }
    c->retrying = r;
    int e = carry_out(c, op, r, f->x, &v);
    bool done = c->retrying == 0;
    c->retrying = 0;
    CHECK(e == SHM_PARKED || e == SHM_OK);
    if (e == SHM_OK && done)
        shm_retry_settle(c);
    else if (e == SHM_OK)
        shm_retry_take(c, r);
    return e;
}

/* A woken one whose mutex may have been taken: as cond_again() of the binding. */
static bool waits_on(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    shm_off off = g->waitobj;
    const struct shm_sema *sy = g->waitkind == SHM_OBJ_SEMA ? shm_at(c, off) : NULL;
    int e = SHM_OK;
    c->retrying = r;
    if (sy && sy->what == SHM_SY_COND) {
        g->ok = SHM_OK_COMPETE;
        shm_obj_ref_hand(c, W->mutex);
        e = shm_mutex_lock_park(c, W->mutex, r);
        shm_obj_unref(c, e == SHM_PARKED ? off : W->mutex);
    } else if (g->ok == SHM_OK_COMPETE) {
        e = shm_mutex_again(c, r);
    }
    c->retrying = 0;
    CHECK(e == SHM_PARKED || e == SHM_OK);
    if (e == SHM_OK && sy && sy->what == SHM_SY_COND)
        g->ok = SHM_OK_VALUE;
    return e == SHM_PARKED;
}

/* r is running here: until it waits or ends. */
static void run(struct shm_ctx *c, shm_gref r)
{
    struct frame f;
    if (waits_on(c, r))
        return;
    shm_retry_take(c, r);
    do {
        const struct shm_retry *y = shm_retry_of(c, shm_g(c, r));
        memcpy(&f, shm_at(c, y->cont_off), sizeof f);
        if (f.step)
            see(c, r, &f);
        if (f.step == strlen(W->s->ops)) {
            ends(c, r);
            return;
        }
    } while (step(c, r, &f) == SHM_OK);
}

/* ---- everybody else -------------------------------------------------------------------------- */

static void out(struct shm_val *v, uint32_t place)
{
    CHECK(place < MOST);
    W->out[place] = (uint32_t)v_eat(&w, v);
    W->nout++;
}

/* Receivers that were parked have got the first, in their order; they come up in another. */
static uint32_t place_of(shm_gref r)
{
    uint32_t i = 0;
    while (i < MOST && W->receivers[i] != r)
        i++;
    return i;
}

static void feed(void)
{
    struct shm_val v = v_ref(&w, W->fed++, W->table);
    CHECK_EQ(shm_chan_trysend(&w, W->a, &v), SHM_OK);
}

/* It waits: does what it waits for. */
static void help(void)
{
    struct shm_g *g = shm_g(&w, W->g);
    struct shm_val v = {.tag = SHM_VAL_NONE};
    const struct shm_sema *sy = g->waitkind == SHM_OBJ_SEMA ? shm_at(&w, g->waitobj) : NULL;
    uint32_t ran;
    switch (g->op) {
    case 'r':
    case 'e':
        feed();
        return;
    case 's':
    case 'E':
        CHECK_EQ(shm_chan_tryrecv(&w, W->b, &v), SHM_OK);
        out(&v, W->nout);
        return;
    case 'w':
        if (sy->what == SHM_SY_COND) { /* and the mutex is not free when it wakes, the first time */
            int e = shm_mutex_trylock(&w, W->mutex, HOLDER);
            CHECK(e == SHM_OK);
            shm_cond_broadcast(&w, W->cond);
            return;
        } /* fall through */
    case 'l':
        CHECK_EQ(shm_mutex_unlock(&w, W->mutex), SHM_OK);
        return;
    case 'a':
        CHECK_EQ(shm_semaphore_release(&w, W->sema, 2), SHM_OK);
        return;
    case 'R':
        CHECK_EQ(shm_rwmutex_unlock(&w, W->rw, SHM_SY_WRITE, HOLDER), SHM_OK);
        return;
    case 'j':
        shm_join_finish(&w, W->other, SHM_J_VALUE, &v);
        return;
    case 'P':
        while (shm_now_ns() < shm_timer_next(&w))
            usleep(100);
        for (uint32_t i = 0; i < w.hdr->max_p; i++)
            shm_checktimers(&w, &w.ptab[i], shm_now_ns(), &ran);
        return;
    default:
        CHECK(!"it waits for what nobody does");
    }
}

/* Peers that were parked at the beginning and have come up; the goroutine itself is put back. */
static void run_peers(void)
{
    shm_gref r, back = 0;
    CHECK_EQ(shm_acquirep(&w, 1), SHM_OK);
    while ((r = l_next(&w)) != 0) {
        struct shm_g *g = shm_g(&w, r);
        if (r == W->g) {
            back = r;
            continue;
        }
        wait_end(&w, g);
        if (g->value.tag != SHM_VAL_NONE)
            out(&g->value, place_of(r));
        l_end(&w, r);
    }
    shm_releasep(&w);
    if (back) {
        store_rlx(&w.m->curg, back);
        shm_gosched(&w, back);
    }
}

static void build(const struct script *s)
{
    struct shm_ctx *c = &w;
    memset(W, 0, sizeof *W);
    W->s = s;
    CHECK_EQ(shm_chan_new(c, 0, &W->table), SHM_OK);
    CHECK_EQ(shm_chan_new(c, s->acap, &W->a), SHM_OK);
    CHECK_EQ(shm_chan_new(c, s->bcap, &W->b), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &W->e), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_MUTEX, 0, 0, &W->mutex), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_COND, 0, W->mutex, &W->cond), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_RWMUTEX, 0, 0, &W->rw), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_SEMAPHORE, 2, 0, &W->sema), SHM_OK);
    CHECK_EQ(shm_join_new(c, &W->other), SHM_OK);
    if (s->held && strchr(s->ops, 'l')) {
        CHECK_EQ(shm_mutex_trylock(c, W->mutex, HOLDER), SHM_OK);
    } else if (s->held) {
        CHECK_EQ(shm_sema_try(c, W->rw, SHM_SY_WRITE, 1, HOLDER), SHM_OK);
        CHECK_EQ(shm_sema_try(c, W->sema, SHM_SY_WRITE, 2, HOLDER), SHM_OK);
    }
    if (s->ended)
        shm_join_finish(c, W->other, SHM_J_VALUE, &(struct shm_val){.tag = SHM_VAL_NONE});
    CHECK_EQ(shm_acquirep(c, 1), SHM_OK);
    for (uint32_t i = 0; i < s->asent; i++) {
        struct shm_val v = v_ref(c, W->fed++, W->table);
        if (i < s->acap) {
            CHECK_EQ(shm_chan_trysend(c, W->a, &v), SHM_OK);
        } else {
            shm_obj_ref_hand(c, W->a);
            CHECK_EQ(shm_chan_send_park(c, W->a, &v, l_new(c)), SHM_PARKED);
        }
    }
    for (uint32_t i = 0; i < s->breceives; i++) {
        struct shm_val v;
        shm_obj_ref_hand(c, W->b);
        W->receivers[i] = l_new(c);
        CHECK_EQ(shm_chan_recv_park(c, W->b, &v, W->receivers[i]), SHM_PARKED);
    }
    CHECK_EQ(shm_gnew(c, &W->g), SHM_OK);
    CHECK_EQ(shm_join_new(c, &W->mine), SHM_OK);
    CHECK_EQ(shm_retry_new(c, W->mine, 1), SHM_OK);
    struct shm_g *g = shm_g(c, W->g);
    shm_join_give(c, g, W->mine);
    g->retries = 1;
    ((struct shm_join *)shm_at(c, W->mine))->g = W->g;
    store(c, g, &(struct frame){0});
    shm_newproc(c, W->g);
    shm_releasep(c);
}

/* ---- deaths ---------------------------------------------------------------------------------- */

static void child(struct shm_ctx *c, int n, void *arg)
{
    shm_gref r;
    (void)arg;
    CHECK_EQ(shm_acquirep(c, 0), SHM_OK);
    h_die_after((uint32_t)n);
    while ((r = l_next(c)) != 0 && r == W->g)
        run(c, r);
    h_die_after(0);
    if (r) /* a peer that it has woken: not its business */
        shm_gosched(c, r);
    shm_releasep(c);
}

static uint32_t slot_of(int pid)
{
    for (uint32_t i = 0; i < load_acq(&k.hdr->max_m); i++)
        if (load_acq(&k.mtab[i].pid) == (uint32_t)pid && load_acq(&k.mtab[i].kind) != SHM_M_FREE)
            return i;
    return UINT32_MAX;
}

static uint32_t reaped_slot, reapers;
static int reaped_status;
static void second_keeper(struct shm_ctx *c, int n, void *arg)
{
    (void)arg;
    store_rlx(&c->m->kind, SHM_M_KEEPER);
    h_die_after((uint32_t)n);
    shm_reap(c, &c->mtab[reaped_slot], reaped_status);
    h_die_after(0);
}

/* rn: the failpoint at which the first reaper dies, 0: it does not. */
static void reap(uint32_t slot, int status, uint32_t rn)
{
    if (rn) {
        reaped_slot = slot;
        reaped_status = status;
        int pid = h_fork(second_keeper, (int)rn, NULL), st = h_wait(pid);
        if (st == 0)
            return;
        reapers++;
        shm_reap(&k, &k.mtab[slot_of(pid)], st);
    }
    shm_reap(&k, &k.mtab[slot], status);
}

static void take_apart(bool died)
{
    uint32_t sends = 0;
    struct shm_val v;
    struct shm_join *j = shm_at(&k, W->mine);
    for (const char *s = W->s->ops; *s; s++)
        sends += *s == 's' || *s == 'E';
    run_peers();
    while (shm_chan_tryrecv(&w, W->b, &v) == SHM_OK)
        out(&v, W->nout);
    CHECK_EQ(W->nout, sends);
    for (uint32_t i = 0; i < sends; i++) /* each once, in order */
        CHECK_EQ(W->out[i], 100 + i);
    CHECK_EQ(load_acq(&j->state), SHM_J_VALUE);
    CHECK_EQ(shm_mutex_trylock(&w, W->mutex, 5), SHM_OK); /* all was given back, once */
    CHECK_EQ(shm_sema_try(&w, W->rw, SHM_SY_WRITE, 1, 5), SHM_OK);
    CHECK_EQ(shm_sema_try(&w, W->sema, SHM_SY_WRITE, 2, 5), SHM_OK);
    CHECK_SEGMENT(&k);
    shm_off objs[] = {W->a,    W->b,     W->e,     W->cond, W->mutex, W->rw,
                      W->sema, W->other, W->other, W->mine, W->table};
    for (size_t i = 0; i < sizeof objs / sizeof *objs; i++)
        shm_obj_unref(&w, objs[i]);
    struct shm_heap_stats s;
    shm_heap_stats(&k, &s);
    CHECK(died ? s.live_blocks <= 8 : s.live_blocks <= 8);
}

/* M number `which` of the script dies at its n-th failpoint. False: it did not. */
static bool round_of(const struct script *s, uint32_t which, uint32_t n, uint32_t rn)
{
    bool died = false;
    if (W == NULL) {
        W = h_shared(sizeof *W);
        h_last = h_shared(sizeof *h_last);
    }
    h_seg(&k, (struct shm_opts){.nprocs = 2});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    shm_ctx_copy(&w, &k);
    CHECK_EQ(shm_minit(&w, SHM_M_WORKER), SHM_OK);
    build(s);
    for (uint32_t i = 0;; i++) {
        int pid = h_fork(child, i == which ? (int)n : 0, NULL), status = h_wait(pid);
        uint32_t slot = slot_of(pid);
        CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
        if (status) {
            died = true;
            reap(slot, status, rn);
        }
        CHECK_SEGMENT(&k);
        if (load_acq(&((struct shm_join *)shm_at(&k, W->mine))->state) != SHM_J_PENDING)
            break;
        CHECK(i < 100);
        run_peers();
        if (shm_readgstatus(&w, W->g) == Gwaiting)
            help();
    }
    take_apart(died);
    shm_mexit(&w);
    shm_mexit(&k);
    h_seg_end(&k);
    return died;
}

#if H_TSAN
#define STRIDE 41
#elif defined(__SANITIZE_ADDRESS__)
#define STRIDE 7
#else
#define STRIDE 1
#endif

static void test_an_m_killed_at_each_failpoint_repeats_and_loses_no_operation(void)
{
    uint32_t from = (uint32_t)getpid();
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        uint32_t deaths = 0, which = 0, n;
        h_what = scripts[i].ops;
        alarm((unsigned)H_N(60, 600));
        do {
            for (n = 1 + from++ % STRIDE; round_of(&scripts[i], which, n, 0); deaths++)
                n += H_N(19, 1) * STRIDE;
            which++;
        } while (n > H_N(19, 1) * STRIDE);
        printf("   %s: killed %u times, on %u Ms\n", scripts[i].ops, deaths, which);
        CHECK(H_TSAN || deaths > 0);
    }
}

static void test_a_killed_reaper_of_it_is_followed_by_another(void)
{
    uint32_t from = (uint32_t)getpid(), step = H_N(97, 3) * STRIDE, rstep = H_N(41, 2) * STRIDE;
    reapers = 0;
    for (size_t i = 0; i < sizeof scripts / sizeof *scripts; i++) {
        h_what = scripts[i].ops;
        alarm((unsigned)H_N(60, 600));
        for (uint32_t which = 0; which < 2; which++)
            for (uint32_t n = 1 + from++ % step, was = 1; was; n += step)
                for (uint32_t rn = 1 + from++ % rstep, before = ~0U; was && before != reapers;
                     rn += rstep) {
                    before = reapers;
                    was = round_of(&scripts[i], which, n, rn);
                }
    }
    printf("   %u reapers killed\n", reapers);
    CHECK(H_TSAN || reapers > 0);
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_repeats_and_loses_no_operation),
       T(test_a_killed_reaper_of_it_is_followed_by_another))
