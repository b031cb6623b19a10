/* programs.h — whole programs in C: goroutines whose frames are continuations, on many Ms.
 *
 * What mpgort/_core/loop.c does is done here, by the same steps in the same order, so that
 * ThreadSanitizer sees them: every M is a thread of one process (a forked process in the other
 * builds), in a loop of shm_findrunnable, shm_execute, a turn of the goroutine (turn.h), its park.
 *
 *   p_run(&opts)      M0 with the goroutine opts.main, a keeper, opts.workers Ms, a thread outside
 *   p_spawn(...)      a goroutine and its join; in a group, if that is not 0
 *   op_...            what can be awaited; then t->ok, t->v, t->which say how it ended */
#ifndef PROGRAMS_H
#define PROGRAMS_H

#include "turn.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

struct p_opts {
    p_body main;
    void (*outside)(struct shm_ctx *c, shm_gref r); /* by a thread that is no M's; or NULL */
    uint32_t procs, workers;
    uint32_t migrate, shake, max_procs; /* max_procs: gomaxprocs changes all the time, up to it */
    bool trace;
};

static struct p_opts p_o;

/* ---- what can be awaited --------------------------------------------------------------------- */

/* e of a try, or of a park that did not; then the wait's reference is not needed. */
static int p_tried(struct turn *t, int e, shm_off held, const struct shm_val *v)
{
    if (e == SHM_PARKED)
        return e;
    if (held)
        shm_obj_unref(t->c, held);
    CHECK(e == SHM_OK || e == SHM_ECLOSED);
    return p_done(t, e == SHM_OK ? SHM_OK_VALUE : SHM_OK_CLOSED, e == SHM_OK ? v : NULL);
}

H_UNUSED static int op_gosched(struct turn *t)
{
    (void)p_done(t, SHM_OK_VALUE, NULL);
    shm_gosched(t->c, t->r);
    return SHM_PARKED;
}

H_UNUSED static int op_sleep(struct turn *t, uint64_t ns)
{
    (void)p_done(t, SHM_OK_VALUE, NULL);
    return shm_sleep_park(t->c, t->r, shm_now_ns() + ns);
}

/* v is eaten. */
H_UNUSED static int op_send(struct turn *t, shm_off ch, struct shm_val v)
{
    int e = h_rand(t->c) % 2 ? shm_chan_trysend(t->c, ch, &v) : SHM_EAGAIN;
    bool park = e == SHM_EAGAIN;
    if (park) {
        shm_obj_ref_hand(t->c, ch);
        e = shm_chan_send_park(t->c, ch, &v, t->r);
    }
    if (e < 0)
        shm_val_drop(t->c, &v);
    return p_tried(t, e, park ? ch : 0, NULL);
}

H_UNUSED static int op_recv(struct turn *t, shm_off ch)
{
    struct shm_val v;
    int e = h_rand(t->c) % 2 ? shm_chan_tryrecv(t->c, ch, &v) : SHM_EAGAIN;
    bool park = e == SHM_EAGAIN;
    if (park) {
        shm_obj_ref_hand(t->c, ch);
        e = shm_chan_recv_park(t->c, ch, &v, t->r);
    }
    return p_tried(t, e, park ? ch : 0, &v);
}

/* The values of the cases are eaten. */
H_UNUSED static int op_select(struct turn *t, struct shm_case *cs, uint32_t n)
{
    struct shm_val v;
    uint32_t which = 0;
    int e = h_rand(t->c) % 2 ? shm_select_try(t->c, cs, n, &which, &v) : SHM_EAGAIN;
    if (e == SHM_EAGAIN && (e = shm_select_park(t->c, cs, n, t->r, &which, &v)) == SHM_PARKED)
        return e;
    for (uint32_t i = 0; i < n; i++)
        if (cs[i].dir == SHM_DIR_SEND && (i != which || e != SHM_OK))
            shm_val_drop(t->c, &cs[i].v);
    (void)p_tried(t, e, 0, cs[which].dir == SHM_DIR_RECV ? &v : NULL);
    t->g->waitobj = which;
    return SHM_OK;
}

H_UNUSED static int op_join(struct turn *t, shm_off j)
{
    shm_obj_ref_hand(t->c, j);
    return p_tried(t, shm_join_park(t->c, j, t->r), j, NULL);
}

H_UNUSED static int op_lock(struct turn *t, shm_off m)
{
    if (h_rand(t->c) % 2 && shm_mutex_trylock(t->c, m, t->g->goid) == SHM_OK)
        return p_done(t, SHM_OK_VALUE, NULL);
    t->g->op = OP_LOCK;
    shm_obj_ref_hand(t->c, m);
    return p_tried(t, shm_mutex_lock_park(t->c, m, t->r), m, NULL);
}

H_UNUSED static int op_sema(struct turn *t, shm_off sy, int how, uint64_t want)
{
    t->g->op = OP_SEMA;
    shm_obj_ref_hand(t->c, sy);
    return p_tried(t, shm_sema_park(t->c, sy, how, want, t->r), sy, NULL);
}

/* The caller has the mutex of the Cond, before and after, however it ends. */
H_UNUSED static int op_cond(struct turn *t, shm_off cond)
{
    t->g->op = OP_COND;
    shm_obj_ref_hand(t->c, cond);
    return p_tried(t, shm_cond_park(t->c, cond, t->r), cond, NULL);
}

H_UNUSED static int op_group(struct turn *t, shm_off gr)
{
    shm_obj_ref_hand(t->c, gr);
    return p_tried(t, shm_group_park(t->c, gr, t->r), gr, NULL);
}

H_UNUSED static int op_doneq(struct turn *t, shm_off q)
{
    shm_obj_ref_hand(t->c, q);
    return p_tried(t, shm_doneq_park(t->c, q, t->r), q, NULL);
}

/* cond_again() of _core/mutex.c: from the Cond to its mutex. */
static int p_cond_again(struct turn *t)
{
    struct shm_g *g = t->g;
    shm_off off = g->waitobj;
    const struct shm_sema *sy = shm_at(t->c, off);
    if (g->ok == SHM_OK_CANCELLED)
        g->op = OP_COND_CANCELLED;
    else if (g->op == OP_COND)
        g->op = OP_COND_LOCK;
    shm_off m = sy->what == SHM_SY_COND ? sy->other : off;
    g->ok = SHM_OK_COMPETE;
    shm_obj_ref_hand(t->c, m);
    int e = shm_mutex_lock_park(t->c, m, t->r);
    shm_obj_unref(t->c, e == SHM_PARKED ? off : m);
    if (e == SHM_OK)
        g->ok = SHM_OK_VALUE;
    return e;
}

/* A woken G that may have to wait on, before its frame is looked at. True: it does. */
static bool p_waits_on(struct turn *t)
{
    struct shm_g *g = t->g;
    struct shm_join *j = p_join(t);
    shm_off off = g->waitobj;
    int e = SHM_OK;
    if (g->op < OP_LOCK || g->waitkind != SHM_OBJ_SEMA)
        return false;
    t->epoch = shm_wait_next(g);
    if (g->ok == SHM_OK_COMPETE) {
        shm_obj_ref_hand(t->c,
                         off); /* once it waits again, it may end elsewhere, and its hold with it */
        e = shm_mutex_again(t->c, t->r);
        shm_obj_unref(t->c, off);
    } else if (g->op != OP_LOCK && (g->ok == SHM_OK_CANCELLED || g->op == OP_COND)) {
        e = p_cond_again(t);
    }
    if (e == SHM_PARKED)
        p_parked(t, j);
    else
        CHECK_EQ(e, SHM_OK);
    return e == SHM_PARKED;
}

/* ---- starting -------------------------------------------------------------------------------- */

/* A filled G that has not been made runnable. f's references become the goroutine's. */
static shm_gref p_gnew(struct shm_ctx *c, const struct p_frame *f)
{
    shm_gref r;
    shm_off cont = p_cont(c, f);
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_gcont_set(c, shm_g(c, r), cont, sizeof *f);
    if (h_rand(c) % 8 == 0)
        shm_g(c, r)->flags |= SHM_GF_BATCH;
    return r;
}

/* group, q: 0 or the group it belongs to, the doneq that its end goes to. Its join, with a
 * reference that is the caller's; 0: the group takes none any more. */
H_UNUSED static shm_off p_spawn(struct shm_ctx *c, const struct p_frame *f, shm_off group,
                                shm_off q)
{
    shm_off off;
    CHECK_EQ(shm_join_new(c, &off), SHM_OK);
    struct shm_join *j = shm_at(c, off);
    if (group)
        shm_join_group(c, off, group);
    if (q)
        shm_doneq_attach(c, q, off);
    shm_gref r = p_gnew(c, f);
    struct shm_g *g = shm_g(c, r);
    j->g = r;
    j->goid = g->goid;
    shm_join_give(c, g, off);
    if (group && shm_group_add(c, group, off) != SHM_OK) {
        CHECK(q == 0);
        shm_gcont_drop(c, g);
        CHECK(shm_casgstatus(c, r, Gidle, Gdead));
        shm_gfree(c, r);
        shm_obj_unref(c, off);
        shm_obj_unref(c, off);
        return 0;
    }
    shm_newproc(c, r);
    return off;
}

/* Enters a group's block: its goroutine needs a join to be known by. */
H_UNUSED static void p_enter(struct turn *t, shm_off gr)
{
    shm_off off = t->g->obj;
    if (off == 0) {
        CHECK_EQ(shm_join_new(t->c, &off), SHM_OK);
        struct shm_join *j = shm_at(t->c, off);
        j->g = t->r;
        j->goid = t->g->goid;
        shm_join_give(t->c, t->g, off);
        shm_obj_unref(t->c, off);
    }
    CHECK_EQ(shm_group_enter(t->c, gr, off), SHM_OK);
}

/* As admit() of proc.c. False: it waits at its group's limit, or has ended before it began. */
static bool p_admit(struct turn *t)
{
    struct shm_g *g = t->g;
    struct shm_join *j = p_join(t);
    bool cancelled = g->ok == SHM_OK_CANCELLED || (j && p_cancel_due(j));
    t->epoch = shm_wait_next(g);
    p_wait_end(t);
    if (cancelled) {
        p_load(t);
        p_finish(t, SHM_J_CANCELLED, 0);
        return false;
    }
    if (j == NULL || shm_group_admit(t->c, g->obj, t->r) == SHM_OK)
        return true;
    p_parked(t, j);
    return false;
}

/* ---- the Ms ---------------------------------------------------------------------------------- */

static bool p_new(const struct turn *t)
{
    return t->g->cont_off && ((struct p_frame *)shm_at(t->c, t->g->cont_off))->pc == 0;
}

/* As core_run_g(). */
static void p_run_g(struct p_m *m, shm_gref r)
{
    struct turn t = {.c = m->c, .m = m, .r = r, .g = shm_g(m->c, r)};
    struct shm_g *g = t.g;
    _Atomic uint32_t *attn = &m->c->m->attn;
    if (p_is_killed(&t)) {
        p_load(&t);
        p_killed(&t);
        return;
    }
    if (p_waits_on(&t) || (p_new(&t) && !p_admit(&t)))
        return;
    bool heavy = g->home_m1 && g->home_why == SHM_HOME_HEAVY;
    p_load(&t);
    if (heavy && load_rlx(attn) & SHM_ATTN_OFFLOAD) { /* it comes over to who has asked */
        and_seq(attn, ~(uint32_t)SHM_ATTN_OFFLOAD);
        shm_gcont_set(m->c, g, p_cont(m->c, &t.f), sizeof t.f);
        g->home_m1 = 0;
        g->home_why = SHM_HOME_NONE;
        shm_gosched(m->c, r);
        return;
    }
    t.f.fn(&t);
}

/* As core_schedule() and loop(). */
static void p_loop(struct p_m *m)
{
    struct shm_ctx *c = m->c;
    shm_gref r;
    bool inherit;
    int e = SHM_OK;
    while (e != SHM_EDEAD) {
        e = shm_findrunnable(c, false, &r, &inherit);
        if (e == SHM_EAGAIN && shm_linger(c))
            e = shm_findrunnable(c, false, &r, &inherit);
        if (e == SHM_EAGAIN)
            e = shm_findrunnable(c, true, &r, &inherit);
        if (e == SHM_ERETIRE)
            store_seq(&c->hdr->retiring, 0); /* another may; pairs with shm_m_retire() */
        CHECK(e == SHM_OK || e == SHM_EINTR || e == SHM_ERETIRE || e == SHM_EDEAD);
        if (e != SHM_OK || !shm_execute(c, r, inherit))
            continue;
        p_run_g(m, r);
        uint32_t dice = (uint32_t)h_rand(c), old;
        if (p_o.max_procs && dice % 64 == 0)
            CHECK_EQ(shm_gomaxprocs(c, 1 + dice / 64 % p_o.max_procs, &old), SHM_OK);
    }
    if (c->p)
        shm_releasep(c);
}

static void p_again_as(struct shm_ctx *c, uint32_t kind)
{
    shm_mexit(c);
    CHECK_EQ(shm_minit(c, kind), SHM_OK);
}

static void p_keep(struct shm_ctx *c)
{
    int pidfd = (int)syscall(SYS_pidfd_open, getppid(), 0), e;
    CHECK(pidfd >= 0);
    while ((e = shm_sysmon(c, pidfd, NULL, 0)) == -2 || e == -4) /* -4: there are enough Ms */
        ;
    CHECK_EQ(e, -3);
    close(pidfd);
}

static void p_one(struct shm_ctx *c, int i, void *arg)
{
    struct p_m *m = arg;
    shm_gref r;
    c->rng += (uint64_t)i * 7919;
    if (i) /* there are no others before there is M0; pairs with the store below */
        H_WAIT(load_acq(&c->hdr->deadlock_on));
    switch (i) {
    case 0:
        p_again_as(c, SHM_M_M0);
        store_rel(&c->hdr->deadlock_on, 1);
        CHECK((m = calloc(1, sizeof *m)) && (m->home[0] = malloc(sizeof(struct p_frame))));
        m->c = c;
        CHECK_EQ(shm_gnew(c, &r), SHM_OK);
        struct shm_g *g = shm_g(c, r);
        g->flags = SHM_GF_MAIN | SHM_GF_STARTED;
        g->home_m1 = (uint16_t)c->m1;
        g->home_why = SHM_HOME_MAIN;
        *m->home[0] = (struct p_frame){.fn = p_o.main};
        m->home[shm_gidx(r)] = m->home[0]; /* no G has index 0 */
        m->home[0] = NULL;
        shm_newproc(c, r);
        p_loop(m);
        free(m);
        break;
    case 1:
        p_again_as(c, SHM_M_KEEPER);
        p_keep(c);
        break;
    case 2:
        if (p_o.outside == NULL)
            break;
        p_again_as(c, SHM_M_AUX);
        r = o_new(c);
        p_o.outside(c, r);
        o_end(c, r);
        add_seq(&c->hdr->externs, -1U);
        break;
    default:
        CHECK((m = calloc(1, sizeof *m)) != NULL);
        m->c = c;
        p_loop(m);
        for (int k = 0; k < P_MAX_G; k++)
            CHECK(m->home[k] == NULL);
        free(m);
    }
}

/* main and all that it has started have ended, and nothing is left. */
H_UNUSED static void p_run(struct p_opts o)
{
    struct shm_ctx c;
    p_o = o;
    h_seg(&c, (struct shm_opts){.nprocs = o.procs,
                                .migrate = o.migrate,
                                .shake = o.shake,
                                .max_goroutines = P_MAX_G - 1});
    shm_calibrate(&c);
    CHECK_EQ(shm_minit(&c, SHM_M_AUX), SHM_OK);
    CHECK((c.kick_fd = eventfd(0, EFD_NONBLOCK)) >= 0);
    if (o.outside) /* before the others can all wait for it, and find that nobody comes */
        add_seq(&c.hdr->externs, 1);
    if (o.trace)
        CHECK_EQ(shm_trace_start(&c, 256), SHM_OK);
    h_ms(3 + (int)o.workers, p_one, NULL);
    if (o.trace)
        CHECK_EQ(shm_trace_stop(&c), SHM_OK);
    CHECK_QUIET(&c);
    close(c.kick_fd);
    shm_mexit(&c);
    h_seg_end(&c);
}

#endif
