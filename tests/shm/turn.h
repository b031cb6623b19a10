/* turn.h — a goroutine in C: its frame, its turns, what ends it.
 *
 * What mpgort/_core/proc.c and cont.c do with Python's frames is done here with a struct, by the
 * same steps in the same order. A goroutine is a function of its frame, entered at each turn:
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
 *   hold, let         an object into the frame's slot, which takes the reference over; out of it */
#ifndef TURN_H
#define TURN_H

#include "gs.h"

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

#endif
