/* programs.h — whole programs in C: goroutines whose frames are continuations, on many Ms.
 *
 * What mpgort/_core/proc.c does with Python's frames is done here with a struct, by the same steps
 * in the same order, so that ThreadSanitizer sees them: every M is a thread of one process (a
 * forked process in the other builds), in a loop of shm_findrunnable, shm_execute, a turn of the
 * goroutine, its park. A goroutine is a function of its frame, entered at each turn:
 *
 *     static void echo(struct turn *t)
 *     {
 *         GO(t);
 *         for (;;) {
 *             AWAIT(t, op_recv(t, OBJ(t, 0)));
 *             if (t->ok != SHM_OK_VALUE)
 *                 break;
 *             t->f.a[0] = v_eat(t->c, &t->v);
 *             AWAIT(t, op_send(t, OBJ(t, 1), v_int(t->f.a[0])));
 *         }
 *         DONE(t);
 *     }
 *
 * Between two turns a light one's frame stands in its continuation and nowhere else (INV
 * parked-complete), one at home in the table of its M. What is not in the frame is gone after an
 * AWAIT. A frame's objects are references of its own, as a continuation's handle words are.
 *
 *   p_run(&opts)      M0 with the goroutine opts.main, a keeper, opts.workers Ms, a thread outside
 *   p_spawn(...)      a goroutine and its join; in a group, if that is not 0
 *   op_...            what can be awaited; then t->ok, t->v, t->which say how it ended
 *   hold, let         an object into the frame's slot, which takes the reference over; out of it */
#ifndef PROGRAMS_H
#define PROGRAMS_H

#include "gs.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>

struct turn;
typedef void (*p_body)(struct turn *);

enum { P_NUMS = 6, P_OBJS = 5, P_MAX_G = 20000 };
struct p_frame {
    p_body fn;
    uint32_t pc, pad;
    uint64_t a[P_NUMS];
    uint64_t h[P_OBJS]; /* handle words, 0: none */
};

struct p_m { /* an M's own */
    struct shm_ctx *c;
    struct p_frame *home[P_MAX_G]; /* by index of the G */
};

struct turn {
    struct shm_ctx *c;
    struct p_m *m;
    shm_gref r;
    struct shm_g *g;
    struct p_frame f;
    uint64_t epoch;   /* of the wait that is being prepared */
    uint8_t ok;       /* how the last one ended */
    int which;        /* of a select: the case, -1 none */
    struct shm_val v; /* received */
};

struct p_opts {
    p_body main;
    void (*outside)(struct shm_ctx *c, shm_gref r); /* by a thread that is no M's; or NULL */
    uint32_t procs, workers;
    uint32_t migrate, shake, max_procs; /* max_procs: gomaxprocs changes all the time, up to it */
    bool trace;
};

static struct p_opts p_o;

enum { OP_NONE = 0, OP_SEMA, OP_LOCK, OP_COND, OP_COND_LOCK, OP_COND_CANCELLED }; /* g->op */

/* ---- frames ---------------------------------------------------------------------------------- */

#define OBJ(t, i) SHM_HANDLE_OFF((t)->f.h[i])

H_UNUSED static void hold(struct turn *t, int i, shm_off obj)
{
    CHECK_EQ(t->f.h[i], 0);
    t->f.h[i] = SHM_HANDLE(1, obj);
}

H_UNUSED static void let(struct turn *t, int i)
{
    shm_off obj = OBJ(t, i);
    t->f.h[i] = 0;
    if (obj)
        shm_obj_unref(t->c, obj);
}

static shm_off p_cont(struct shm_ctx *c, const struct p_frame *f)
{
    uint64_t words[P_OBJS];
    uint32_t n = 0;
    shm_off off;
    for (int i = 0; i < P_OBJS; i++)
        if (f->h[i])
            words[n++] = f->h[i];
    CHECK_EQ(shm_cont_make(c, &off, f, sizeof *f, words, n), SHM_OK);
    while (n-- > 0) /* the frame's own go */
        shm_obj_unref(c, SHM_HANDLE_OFF(words[n]));
    return off;
}

static struct shm_join *p_join(struct turn *t)
{
    return t->g->obj ? shm_at(t->c, t->g->obj) : NULL;
}

/* core_store(): the frame is complete outside this function. */
static void p_store(struct turn *t)
{
    struct shm_g *g = t->g;
    bool main = g->flags & SHM_GF_MAIN;
    if (main || t->c->hdr->migrate == 2 || (t->c->hdr->migrate == 0 && h_rand(t->c) % 16 == 0)) {
        struct p_frame *f = malloc(sizeof *f);
        CHECK(f != NULL);
        *f = t->f;
        t->m->home[shm_gidx(t->r)] = f;
        g->home_m1 = (uint16_t)t->c->m1;
        g->home_why = main ? SHM_HOME_MAIN : h_rand(t->c) % 2 ? SHM_HOME_PINNED : SHM_HOME_HEAVY;
        return;
    }
    shm_gcont_set(t->c, g, p_cont(t->c, &t->f), sizeof t->f);
    g->home_m1 = 0;
    g->home_why = SHM_HOME_NONE;
}

/* core_run_g(), core_unstore(): and taken back. */
static void p_load(struct turn *t)
{
    struct shm_g *g = t->g;
    struct p_frame **home = &t->m->home[shm_gidx(t->r)];
    if (g->home_m1 == t->c->m1) {
        CHECK(*home != NULL);
        t->f = **home;
        free(*home);
        *home = NULL;
        return;
    }
    CHECK(g->cont_off != 0 && g->cont_len == sizeof t->f);
    memcpy(&t->f, shm_at(t->c, g->cont_off), sizeof t->f);
    for (int i = 0; i < P_OBJS; i++)
        if (t->f.h[i])
            shm_obj_ref(t->c, OBJ(t, i));
    shm_gcont_drop(t->c, g);
}

/* ---- the await ------------------------------------------------------------------------------- */

static bool p_cancel_due(struct shm_join *j)
{
    uint32_t one = 1;
    return load_rlx(&j->cancel) == 1 && cas_seq(&j->cancel, &one, 0);
}

/* Hidden from TSan, alone of all: j may be no join any more, but other memory that its owner writes
 * plainly. What is read then does not matter: for j to be gone its G must have ended, so have been
 * woken, and from then on nobody can claim the epoch that p_parked() asks for. Who gets it knows
 * that j was a join here too. */
__attribute__((noinline, no_sanitize("thread"))) static uint8_t p_asked(struct shm_join *j)
{
    return load_seq(&j->cancel) == 1 ? SHM_OK_CANCELLED : load_seq(&j->kill) ? SHM_OK_KILLED : 0;
}

/* The G has parked, or yielded: it is another's. As in park() of proc.c, tag: cancel, tag: kill. */
static void p_parked(struct turn *t, struct shm_join *j)
{
    uint8_t ok = j ? p_asked(j) : 0;
    if (!ok || !shm_wait_abort(t->c, t->r, t->epoch, ok))
        return;
    if (ok == SHM_OK_CANCELLED)
        store_seq(&j->cancel, 0);
    shm_ready(t->c, t->r, true);
}

/* Without a wait. v: received, NULL nothing. */
static int p_done(struct turn *t, uint8_t ok, const struct shm_val *v)
{
    struct shm_g *g = t->g;
    g->ok = ok;
    g->waitkind = 0;
    g->waitobj = 0;
    if (v)
        g->value = *v;
    else
        g->value.tag = SHM_VAL_NONE;
    return SHM_OK;
}

static bool p_before(struct turn *t)
{
    struct shm_join *j = p_join(t);
    if (j && p_cancel_due(j)) {
        (void)p_done(t, SHM_OK_CANCELLED, NULL);
        return false;
    }
    t->epoch = shm_wait_next(t->g);
    t->g->op = OP_NONE;
    p_store(t);
    return true;
}

/* True: the turn is over. */
static bool p_after(struct turn *t, int e, struct shm_join *j)
{
    if (e == SHM_OK && !shm_preempt_requested(t->c)) {
        p_load(t);
        return false;
    }
    if (e == SHM_OK) {
        if (t->g->value.tag == SHM_VAL_HEAP)
            shm_publish(t->c, t->g->value.h.off);
        shm_gosched(t->c, t->r);
    } else {
        CHECK_EQ(e, SHM_PARKED);
    }
    p_parked(t, j);
    return true;
}

static void p_wait_end(struct turn *t)
{
    struct shm_g *g = t->g;
    shm_off obj = g->waitobj;
    if (g->waitkind == 0 || g->waitkind >= SHM_WAIT_SELECT)
        return;
    g->waitkind = 0;
    g->waitobj = 0;
    shm_obj_unref(t->c, obj);
}

/* resume(): what the await gives. */
static void p_back(struct turn *t)
{
    struct shm_g *g = t->g;
    uint32_t tag;
    t->ok = g->ok;
    t->which = (int)g->waitobj;
    if (g->waitkind == SHM_WAIT_SELECT)
        t->which = shm_select_done(t->c, t->r, &tag);
    else if (g->op == OP_SEMA && g->waitkind == SHM_OBJ_SEMA && t->ok == SHM_OK_CANCELLED)
        shm_sema_left(t->c, g->waitobj);
    t->v.tag = SHM_VAL_NONE;
    if (t->ok == SHM_OK_VALUE)
        shm_val_take(t->c, &t->v, &g->value);
    else
        shm_val_drop(t->c, &g->value); /* what was not sent */
    g->value.tag = SHM_VAL_NONE;
    p_wait_end(t);
    if (g->op == OP_COND_CANCELLED)
        t->ok = SHM_OK_CANCELLED; /* it has the mutex all the same */
}

static void p_end(struct shm_ctx *c)
{
    store_rel(&c->hdr->shutdown, 1); /* pairs with attention() in sched.c */
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++)
        shm_notewakeup(&c->mtab[i].note);
    uint64_t one = 1;
    CHECK_EQ(write(c->kick_fd, &one, sizeof one), sizeof one);
}

static void p_finish(struct turn *t, unsigned state, uint64_t result)
{
    struct shm_g *g = t->g;
    struct shm_val v = v_int(result);
    bool main = g->flags & SHM_GF_MAIN;
    for (int i = 0; i < P_OBJS; i++)
        let(t, i);
    if (g->obj) {
        shm_join_finish(t->c, g->obj, state, &v);
        shm_obj_unref_word(t->c, &g->obj);
    }
    shm_goexit0(t->c, t->r);
    if (main)
        p_end(t->c);
}

/* Its end by force, as killed() of proc.c: its frame does not run any more. */
static void p_killed(struct turn *t)
{
    struct shm_g *g = t->g;
    uint32_t tag;
    for (int i = 0; i < P_OBJS; i++)
        let(t, i);
    shm_val_drop(t->c, &g->value);
    g->value.tag = SHM_VAL_NONE;
    if (g->waitkind == SHM_OBJ_SEMA)
        shm_sema_left(t->c, g->waitobj);
    if (g->waitkind == SHM_WAIT_SELECT)
        shm_select_done(t->c, t->r, &tag);
    p_wait_end(t);
    shm_sema_reap(t->c, g->goid);
    shm_join_finish(t->c, g->obj, SHM_J_KILLED, &(struct shm_val){.tag = SHM_VAL_NONE});
    shm_obj_unref_word(t->c, &g->obj);
    shm_goexit0(t->c, t->r);
}

static bool p_is_killed(struct turn *t)
{
    struct shm_join *j = p_join(t);
    return j && load_seq(&j->kill); /* tag: kill */
}

#define GO(t)            \
    switch ((t)->f.pc) { \
    case 0:
#define AWAIT(t, op)                         \
    do {                                     \
        (t)->f.pc = __LINE__;                \
        if (p_is_killed(t)) {                \
            p_killed(t);                     \
            return;                          \
        }                                    \
        if (p_before(t)) {                   \
            struct shm_join *j_ = p_join(t); \
            if (p_after(t, (op), j_))        \
                return;                      \
        }                                    \
        __attribute__((fallthrough));        \
    case __LINE__:                           \
        p_back(t);                           \
    } while (0)
#define END(t, state, result) \
    }                         \
    p_finish(t, (state), (result))
#define DONE(t) END(t, SHM_J_VALUE, 0)

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
        shm_obj_ref(t->c, ch);
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
        shm_obj_ref(t->c, ch);
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
    shm_obj_ref(t->c, j);
    return p_tried(t, shm_join_park(t->c, j, t->r), j, NULL);
}

H_UNUSED static int op_lock(struct turn *t, shm_off m)
{
    if (h_rand(t->c) % 2 && shm_mutex_trylock(t->c, m, t->g->goid) == SHM_OK)
        return p_done(t, SHM_OK_VALUE, NULL);
    t->g->op = OP_LOCK;
    shm_obj_ref(t->c, m);
    return p_tried(t, shm_mutex_lock_park(t->c, m, t->r), m, NULL);
}

H_UNUSED static int op_sema(struct turn *t, shm_off sy, int how, uint64_t want)
{
    t->g->op = OP_SEMA;
    shm_obj_ref(t->c, sy);
    return p_tried(t, shm_sema_park(t->c, sy, how, want, t->r), sy, NULL);
}

/* The caller has the mutex of the Cond, before and after, however it ends. */
H_UNUSED static int op_cond(struct turn *t, shm_off cond)
{
    t->g->op = OP_COND;
    shm_obj_ref(t->c, cond);
    return p_tried(t, shm_cond_park(t->c, cond, t->r), cond, NULL);
}

H_UNUSED static int op_group(struct turn *t, shm_off gr)
{
    shm_obj_ref(t->c, gr);
    return p_tried(t, shm_group_park(t->c, gr, t->r), gr, NULL);
}

H_UNUSED static int op_doneq(struct turn *t, shm_off q)
{
    shm_obj_ref(t->c, q);
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
    shm_obj_ref(t->c, m);
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
        shm_obj_ref(t->c,
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
    if (group) {
        shm_obj_ref(c, group);
        j->group = group;
    }
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
        add_seq(&c->hdr->externs, 1);
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
