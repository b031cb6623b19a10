/* Tests of reap.c: an M is killed at each failpoint on the way of what makes objects, and of what
 * it does with maps, arrays, contexts, timers, groups, doneqs and joins (deaths.h). Afterwards
 *   - each object can be used, and what waits on it comes up once;
 *   - each value of the map is somewhere once, or was in the hands of who died;
 *   - a new object that the dead M had made, and nobody has a handle on, is gone. */
#include "deaths.h"

enum { KEYS = 14, VALUES = 64, KIDS = 3, LARGE = 200000 };
#define SEC 1000000000ULL

struct objects { /* shared with the children */
    shm_off table, map, root, child, grandchild, soon, timer, ticker, later, func, group, parent,
        doneq, array, lone, gate;
    shm_off kid[KIDS], ended;
    shm_gref parent_g, lone_g, gs[64];
    uint32_t ngs;
    bool in_body, parent_told; /* the group's parent is in its block; was cancelled */
    uint64_t t0;               /* what is due is due before it */
    uint8_t seen[VALUES];
};
static struct objects *O;

static shm_gref waits(shm_off ch)
{
    struct shm_val v;
    shm_gref r = l_new(&w);
    shm_obj_ref_hand(&w, ch);
    CHECK_EQ(shm_chan_recv_park(&w, ch, &v, r), SHM_PARKED);
    return O->gs[O->ngs++] = r;
}

static shm_off join_of(struct shm_ctx *c, shm_gref r)
{
    shm_off j;
    CHECK_EQ(shm_join_new(c, &j), SHM_OK);
    ((struct shm_join *)shm_at(c, j))->g = r;
    shm_join_give(c, shm_g(c, r), j);
    return j;
}

static shm_off done(struct shm_ctx *c, shm_off x)
{
    shm_off ch;
    CHECK_EQ(shm_context_done(c, x, &ch), SHM_OK);
    return ch;
}

static shm_off context(struct shm_ctx *c, shm_off parent, uint64_t deadline)
{
    shm_off x;
    CHECK_EQ(shm_context_new(c, parent, deadline, &x), SHM_OK);
    return x;
}

static shm_off timer(uint64_t when, uint64_t period)
{
    struct shm_val tick = {.tag = 8};
    shm_off t;
    bool was;
    CHECK_EQ(shm_timer_new(&w, &tick, &t), SHM_OK);
    CHECK_EQ(shm_timer_reset(&w, t, when, period, &was), SHM_OK);
    return t;
}

/* A function that is to be called: idle, complete. */
static shm_gref call(struct shm_ctx *c)
{
    shm_gref r;
    shm_off off;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    CHECK_EQ(shm_cont_make(c, &off, "call", 4, NULL, 0), SHM_OK);
    shm_gcont_set(c, shm_g(c, r), off, 4);
    return r;
}

static void build_all(bool in_body)
{
    struct shm_ctx *c = &w;
    if (O == NULL)
        O = h_shared(sizeof *O);
    memset(O, 0, sizeof *O);
    O->in_body = in_body;
    O->t0 = shm_now_ns() + 1000 * SEC;
    CHECK_EQ(shm_chan_new(c, 0, &O->table), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &O->gate), SHM_OK);
    CHECK_EQ(shm_map_new(c, &O->map), SHM_OK);
    for (uint64_t key = 0; key < KEYS; key++) {
        struct shm_val v = v_ref(c, key, O->table), old;
        CHECK_EQ(shm_map_store(c, O->map, &key, sizeof key, &v, false, &old), SHM_OK);
    }
    O->root = context(c, 0, UINT64_MAX);
    O->child = context(c, O->root, O->t0 + 2000 * SEC);
    O->grandchild = context(c, O->child, UINT64_MAX);
    O->soon = context(c, 0, O->t0 - 3);
    shm_off with[] = {O->root, O->grandchild, O->soon};
    for (size_t i = 0; i < sizeof with / sizeof *with; i++) {
        shm_off ch = done(c, with[i]);
        waits(ch);
        shm_obj_unref(c, ch);
    }
    O->timer = timer(O->t0 - 2, 0);
    O->ticker = timer(O->t0 - 1, 1000 * SEC);
    O->later = timer(O->t0 + 3000 * SEC, 0);
    waits(O->timer);
    waits(O->ticker);
    CHECK_EQ(shm_afterfunc_new(c, call(c), O->t0 + 3000 * SEC, &O->func), SHM_OK);
    /* A group that lets one child run at a time: it waits at the gate, the others to be let in, and
     * the parent at the block's end. */
    O->parent_g = l_new(c);
    O->parent = join_of(c, O->parent_g);
    CHECK_EQ(shm_group_new(c, 1, &O->group), SHM_OK);
    CHECK_EQ(shm_group_enter(c, O->group, O->parent), SHM_OK);
    store_rlx(&c->m->curg, 0);
    for (int i = 0; i < KIDS; i++) {
        struct shm_val v;
        shm_gref r = l_new(c);
        O->kid[i] = join_of(c, r);
        shm_join_group(c, O->kid[i], O->group);
        CHECK_EQ(shm_group_add(c, O->group, O->kid[i]), SHM_OK);
        if (shm_group_admit(c, O->kid[i], r) == SHM_OK) {
            shm_obj_ref(c, O->gate);
            CHECK_EQ(shm_chan_recv_park(c, O->gate, &v, r), SHM_PARKED);
        }
    }
    store_rlx(&c->m->curg, O->parent_g);
    if (in_body) {
        struct shm_val v;
        shm_obj_ref_hand(c, O->gate);
        CHECK_EQ(shm_chan_recv_park(c, O->gate, &v, O->parent_g), SHM_PARKED);
    } else {
        shm_group_exiting(c, O->group);
        shm_obj_ref_hand(c, O->group);
        CHECK_EQ(shm_group_park(c, O->group, O->parent_g), SHM_PARKED);
    }
    /* A queue of ends: one is in it, another will be. */
    CHECK_EQ(shm_doneq_new(c, &O->doneq), SHM_OK);
    for (int i = 0; i < 2; i++) {
        shm_gref r = l_new(c);
        shm_off j;
        CHECK_EQ(shm_join_new(c, &j), SHM_OK);
        ((struct shm_join *)shm_at(c, j))->g = r;
        shm_doneq_attach(c, O->doneq, j);
        shm_join_give(c, shm_g(c, r), j);
        if (i == 0) {
            struct shm_val v = v_ref(c, 40, O->table);
            O->ended = j;
            shm_join_finish(c, j, SHM_J_VALUE, &v);
            shm_obj_unref(c, j);
            shm_g(c, r)->obj = 0;
            l_end(c, r);
        } else {
            struct shm_val v;
            O->lone = j;
            O->lone_g = r;
            shm_obj_ref_hand(c, O->gate);
            CHECK_EQ(shm_chan_recv_park(c, O->gate, &v, r), SHM_PARKED);
        }
    }
    CHECK_EQ(shm_array_new(c, LARGE, &O->array), SHM_OK);
}

static void build(void)
{
    build_all(false);
}
static void build_in_body(void)
{
    build_all(true);
}

/* ---- what an M does when it dies ------------------------------------------------------------- */

static uint32_t hold(struct shm_ctx *c, shm_off obj)
{
    uint32_t slot;
    CHECK_EQ(shm_handle_hold(c, obj, &slot), SHM_OK);
    return slot;
}

static void make_chans(struct shm_ctx *c)
{
    struct shm_val tick = {.tag = 8};
    shm_off off;
    CHECK_EQ(shm_chan_new(c, 0, &off), SHM_OK);
    hold(c, off);
    CHECK_EQ(shm_chan_new(c, 9, &off), SHM_OK);
    hold(c, off);
    CHECK_EQ(shm_timer_new(c, &tick, &off), SHM_OK);
    hold(c, off);
}
static void make_syncs(struct shm_ctx *c)
{
    shm_off off;
    for (uint32_t what = SHM_SY_MUTEX; what <= SHM_SY_SEMAPHORE; what++)
        if (what != SHM_SY_COND) {
            CHECK_EQ(shm_sema_new(c, what, 1, 0, &off), SHM_OK);
            hold(c, off);
        }
    CHECK_EQ(shm_atomic_new(c, 7, &off), SHM_OK);
    hold(c, off);
}
static void make_others(struct shm_ctx *c)
{
    shm_off off;
    CHECK_EQ(shm_map_new(c, &off), SHM_OK);
    hold(c, off);
    CHECK_EQ(shm_group_new(c, 3, &off), SHM_OK);
    hold(c, off);
    CHECK_EQ(shm_doneq_new(c, &off), SHM_OK);
    hold(c, off);
    hold(c, context(c, 0, UINT64_MAX));
    hold(c, context(c, 0, O->t0 + SEC));
}
static void make_arrays(struct shm_ctx *c)
{
    shm_off off;
    for (int i = 0; i < 4; i++) {
        CHECK_EQ(shm_array_new(c, i & 1 ? LARGE : 100, &off), SHM_OK);
        hold(c, off);
    }
}
static void make_child_contexts(struct shm_ctx *c)
{
    hold(c, context(c, O->root, UINT64_MAX));
    hold(c, context(c, O->grandchild, O->t0 + SEC));
    shm_off x;
    struct shm_val key = v_ref(c, 50, O->table), value = v_ref(c, 51, O->table);
    CHECK_EQ(shm_context_value(c, O->child, &key, &value, &x), SHM_OK);
    hold(c, x);
}
static void make_done(struct shm_ctx *c)
{
    hold(c, done(c, O->child));
}
static void make_func(struct shm_ctx *c)
{
    shm_off t;
    CHECK_EQ(shm_afterfunc_new(c, call(c), O->t0 + 4000 * SEC, &t), SHM_OK);
    hold(c, t);
}
/* As spawn: the join, its handle, the goroutine. */
static void spawn(struct shm_ctx *c)
{
    shm_off j;
    uint32_t slot;
    CHECK_EQ(shm_join_new(c, &j), SHM_OK);
    CHECK_EQ(shm_handle_hold(c, j, &slot), SHM_OK);
    shm_gref r = call(c);
    ((struct shm_join *)shm_at(c, j))->g = r;
    shm_join_give(c, shm_g(c, r), j);
    shm_newproc(c, r);
}
/* As a group's spawn. */
static void spawn_child(struct shm_ctx *c)
{
    shm_off j;
    uint32_t slot;
    CHECK_EQ(shm_join_new(c, &j), SHM_OK);
    shm_join_group(c, j, O->group);
    CHECK_EQ(shm_handle_hold(c, j, &slot), SHM_OK);
    shm_gref r = call(c);
    ((struct shm_join *)shm_at(c, j))->g = r;
    shm_join_give(c, shm_g(c, r), j);
    if (shm_group_add(c, O->group, j) == SHM_OK) {
        shm_newproc(c, r);
        return;
    }
    CHECK(!d_alone); /* it takes none any more */
    shm_gcont_drop(c, shm_g(c, r));
    shm_g(c, r)->obj = 0;
    CHECK(shm_casgstatus(c, r, Gidle, Gdead));
    shm_gfree(c, r);
    shm_obj_unref(c, j);
}
/* As submit: the end goes to a queue, the handle comes last. */
static void submit(struct shm_ctx *c)
{
    shm_off j;
    uint32_t slot;
    CHECK_EQ(shm_join_new(c, &j), SHM_OK);
    shm_doneq_attach(c, O->doneq, j);
    shm_gref r = call(c);
    ((struct shm_join *)shm_at(c, j))->g = r;
    shm_join_give(c, shm_g(c, r), j);
    shm_newproc(c, r);
    CHECK_EQ(shm_handle_hold(c, j, &slot), SHM_OK);
}

/* The last handle on each goes; only that is on the way of the act. */
static void drop(struct shm_ctx *c, const shm_off *obj, uint32_t n, uint32_t die)
{
    uint32_t slot[8];
    for (uint32_t i = 0; i < n; i++)
        slot[i] = hold(c, obj[i]);
    h_die_after(die);
    for (uint32_t i = 0; i < n; i++)
        shm_handle_release(c, c->m1, slot[i]);
}

static uint32_t not_yet(void)
{
    uint32_t n = load_rlx(&h_any_left);
    h_die_after(0);
    return n;
}

/* Channels in values in channels: what the first holds is held by nobody else. */
static void drop_chans(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    shm_off ch[3], top;
    CHECK_EQ(shm_chan_new(c, 2, &ch[0]), SHM_OK);
    for (int i = 1; i < 3; i++) {
        CHECK_EQ(shm_chan_new(c, 2, &ch[i]), SHM_OK);
        for (int k = 0; k < 2; k++) {
            struct shm_val v = v_ref(c, 60, ch[i - 1]);
            CHECK_EQ(shm_chan_trysend(c, ch[i], &v), SHM_OK);
        }
        shm_obj_unref(c, ch[i - 1]);
    }
    top = ch[2];
    drop(c, &top, 1, die);
}
static void drop_timers(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    struct shm_val tick = {.tag = 8};
    shm_off t[2];
    bool was;
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(shm_timer_new(c, &tick, &t[i]), SHM_OK);
        CHECK_EQ(shm_timer_reset(c, t[i], O->t0 + SEC, i, &was), SHM_OK);
    }
    drop(c, t, 2, die);
}
static void drop_syncs(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    shm_off s[4];
    CHECK_EQ(shm_sema_new(c, SHM_SY_MUTEX, 0, 0, &s[0]), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_COND, 0, s[0], &s[1]), SHM_OK);
    CHECK_EQ(shm_sema_new(c, SHM_SY_RWMUTEX, 0, 0, &s[2]), SHM_OK);
    CHECK_EQ(shm_sema_try(c, s[2], SHM_SY_READ, 0, 5), SHM_OK);
    CHECK_EQ(shm_atomic_new(c, 0, &s[3]), SHM_OK);
    drop(c, s, 4, die);
}
static void drop_map(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    shm_off map, ch;
    CHECK_EQ(shm_map_new(c, &map), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 1, &ch), SHM_OK);
    for (uint64_t key = 0; key < 6; key++) {
        struct shm_val v = v_ref(c, key, ch), old;
        CHECK_EQ(shm_map_store(c, map, &key, sizeof key, &v, false, &old), SHM_OK);
    }
    shm_obj_unref(c, ch);
    drop(c, &map, 1, die);
}
static void drop_contexts(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    struct shm_val key = v_big(c, 61), value = v_big(c, 62);
    shm_off x[4];
    x[0] = context(c, O->child, O->t0 + SEC);
    x[1] = context(c, x[0], O->t0 + SEC / 2);
    CHECK_EQ(shm_context_value(c, x[1], &key, &value, &x[2]), SHM_OK);
    x[3] = context(c, x[2], UINT64_MAX);
    shm_off ch[2] = {done(c, x[1]), done(c, x[3])};
    for (int i = 0; i < 4; i++) /* each holds the one above, its channel the last */
        shm_obj_unref(c, x[i]);
    drop(c, ch, 2, die);
}
static void drop_others(struct shm_ctx *c)
{
    uint32_t die = not_yet();
    shm_off o[6];
    CHECK_EQ(shm_group_new(c, 0, &o[0]), SHM_OK);
    CHECK_EQ(shm_doneq_new(c, &o[1]), SHM_OK);
    CHECK_EQ(shm_array_new(c, LARGE, &o[2]), SHM_OK);
    CHECK_EQ(shm_array_new(c, 100, &o[3]), SHM_OK);
    CHECK_EQ(shm_afterfunc_new(c, call(c), O->t0 + 4000 * SEC, &o[4]), SHM_OK);
    CHECK_EQ(shm_join_new(c, &o[5]), SHM_OK); /* of one that ended, with a result */
    struct shm_val v = v_ref(c, 63, O->table);
    shm_join_finish(c, o[5], SHM_J_VALUE, &v);
    shm_obj_unref(c, o[5]);
    CHECK_EQ(shm_join_deadline(c, o[5], O->t0 + SEC), SHM_OK);
    drop(c, o, 6, die);
}

static void put(struct shm_ctx *c, uint64_t key, uint64_t n)
{
    struct shm_val v = v_ref(c, n, O->table), old = {.tag = SHM_VAL_NONE};
    int e = shm_map_store(c, O->map, &key, sizeof key, &v, false, &old);
    CHECK(e == SHM_OK || e == SHM_EAGAIN);
    shm_val_drop(c, &old);
}
static void map_new_keys(struct shm_ctx *c)
{
    for (uint64_t i = 0; i < 4; i++) /* the table grows */
        put(c, 100 + i + 10 * (uint64_t)d_who, 20 + i + 4 * (uint64_t)d_who);
}
static void map_replace(struct shm_ctx *c)
{
    put(c, 3, 30 + (uint64_t)d_who);
}
static void map_delete(struct shm_ctx *c)
{
    struct shm_val old = {.tag = SHM_VAL_NONE};
    uint64_t key = 4;
    int e = shm_map_delete(c, O->map, &key, sizeof key, &old);
    CHECK(e == SHM_OK || !d_alone);
    shm_val_drop(c, &old);
}
static void map_load(struct shm_ctx *c)
{
    struct shm_val v;
    uint64_t key = 5;
    CHECK_EQ(shm_map_load(c, O->map, &key, sizeof key, &v), SHM_OK);
    shm_val_drop(c, &v);
}
static void cancel(struct shm_ctx *c)
{
    struct shm_val cause = {.tag = SHM_VAL_NONE};
    shm_context_cancel(c, O->root, SHM_CTX_CANCELED, &cause);
}
static void fire(struct shm_ctx *c)
{
    uint32_t ran;
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_p); i++)
        shm_checktimers(c, &c->ptab[i], O->t0, &ran);
}
static void stop(struct shm_ctx *c)
{
    shm_timer_stop(c, O->timer);
    shm_timer_stop(c, O->ticker);
}
static void reset(struct shm_ctx *c)
{
    bool was;
    CHECK_EQ(shm_timer_reset(c, O->timer, O->t0 + 2000 * SEC, 0, &was), SHM_OK);
}
static void func_stop(struct shm_ctx *c)
{
    shm_afterfunc_stop(c, O->func);
}
static void func_reset(struct shm_ctx *c)
{
    bool was;
    CHECK_EQ(shm_afterfunc_reset(c, O->func, O->t0 + 5000 * SEC, &was), SHM_OK);
}
static void end_kid(struct shm_ctx *c, unsigned state)
{
    struct shm_val v = v_ref(c, 41, O->table);
    shm_join_finish(c, O->kid[0], state, &v);
}
static void kid_ends(struct shm_ctx *c)
{
    end_kid(c, SHM_J_VALUE);
}
static void kid_fails(struct shm_ctx *c)
{
    end_kid(c, SHM_J_ERROR);
}
static void abort_group(struct shm_ctx *c)
{
    shm_group_abort(c, O->group);
}
static void take(struct shm_ctx *c)
{
    shm_off j[2];
    uint32_t slot, n = shm_doneq_take(c, O->doneq, j, 2);
    for (uint32_t i = 0; i < n; i++)
        CHECK_EQ(shm_handle_hold(c, j[i], &slot), SHM_OK);
}
static void wait_doneq(struct shm_ctx *c)
{
    shm_off j[2];
    uint32_t n = shm_doneq_take(c, O->doneq, j, 2);
    for (uint32_t i = 0; i < n; i++)
        shm_obj_unref(c, j[i]);
    shm_gref r = l_new(c);
    shm_obj_ref_hand(c, O->doneq);
    if (shm_doneq_park(c, O->doneq, r) != SHM_PARKED)
        shm_obj_unref(c, O->doneq);
}
static void end_lone(struct shm_ctx *c)
{
    struct shm_val v = v_ref(c, 42, O->table);
    shm_join_finish(c, O->lone, SHM_J_VALUE, &v);
}
static void cancel_lone(struct shm_ctx *c)
{
    shm_join_cancel(c, O->lone);
}
static void kill_lone(struct shm_ctx *c)
{
    shm_join_kill(c, O->lone, SHM_K_KILL);
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static void see(struct shm_val *v)
{
    if (v->tag == SHM_VAL_NONE)
        return;
    uint64_t n = v_num(&w, v);
    CHECK(n < VALUES);
    CHECK_EQ(O->seen[n]++, 0); /* once */
    shm_val_drop(&w, v);
}

static void finish(shm_gref r)
{
    struct shm_g *g = shm_g(&w, r);
    struct shm_val none = {.tag = SHM_VAL_NONE};
    d_wait_over(r);
    shm_val_drop(&w, &g->value); /* a tick */
    O->parent_told |= r == O->parent_g && g->ok == SHM_OK_CANCELLED;
    for (uint32_t i = 0; i < O->ngs; i++)
        if (O->gs[i] == r)
            O->gs[i] = 0; /* it has come up */
    if (g->obj) {
        shm_off obj = g->obj;
        shm_join_finish(&w, obj, SHM_J_VALUE, &none);
        g->obj = 0;
        shm_obj_unref(&w, obj);
    }
    shm_gcont_drop(&w, g);
    shm_goexit0(&w, r);
}

static void end_all(void)
{
    shm_gref r;
    for (uint64_t i = 1; (r = d_waiting(&i)) != 0;) {
        if (g_cancel(&w, r))
            shm_ready(&w, r, false);
        d_run(finish); /* who ends may wake others */
    }
}

static void apart(uint32_t hands)
{
    uint32_t missing = 0, n;
    shm_off j[8];
    shm_timer_stop(&w, O->later);
    bool failed = load_acq(&((struct shm_join *)shm_at(&w, O->kid[0]))->state) == SHM_J_ERROR;
    d_run(finish);
    CHECK_EQ(O->parent_told, O->in_body && failed);
    fire(&w);
    cancel(&w);
    d_run(finish);
    bool was;
    if (O->gs[3] || O->gs[4]) { /* the timers had been stopped, or moved away */
        CHECK_EQ(shm_timer_reset(&w, O->timer, O->t0 - 1, 0, &was), SHM_OK);
        CHECK_EQ(shm_timer_reset(&w, O->ticker, O->t0 - 1, 0, &was), SHM_OK);
        fire(&w);
        d_run(finish);
    }
    for (uint32_t i = 0; i < O->ngs; i++)
        CHECK_EQ(O->gs[i], 0); /* nobody has missed what he waited for */
    shm_timer_stop(&w, O->timer);
    shm_timer_stop(&w, O->ticker);
    shm_afterfunc_stop(&w, O->func);
    d_run(finish);
    end_all();
    CHECK_SEGMENT(&k);
    while ((n = shm_doneq_take(&w, O->doneq, j, 8)) != 0)
        for (uint32_t i = 0; i < n; i++)
            shm_obj_unref(&w, j[i]);
    for (uint64_t key = 0; key < 120; key++) {
        struct shm_val v = {.tag = SHM_VAL_NONE};
        int e = shm_map_delete(&w, O->map, &key, sizeof key, &v);
        CHECK(e == SHM_OK || e == SHM_EAGAIN);
        see(&v);
    }
    for (n = 0; n < KEYS; n++)
        missing += n != 3 && n != 4 && !O->seen[n];
    CHECK_EQ(missing, 0);
    CHECK(hands || O->seen[3] + O->seen[30] + O->seen[31] == 1);
    for (int i = 0; i < KIDS; i++)
        shm_obj_unref(&w, O->kid[i]);
    shm_off all[] = {O->ended, O->lone,   O->parent, O->group, O->doneq, O->func,
                     O->timer, O->ticker, O->later,  O->root,  O->child, O->grandchild,
                     O->soon,  O->map,    O->array,  O->gate,  O->table};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        shm_obj_unref(&w, all[i]);
}

/* lost: what the joins may keep that the dead had just taken (essay of handle.c). */
static const struct act acts[] = {
    {"make channels", build, make_chans, apart, 0, 0},
    {"make sync objects", build, make_syncs, apart, 0, 0},
    {"make others", build, make_others, apart, 0, 0},
    {"make arrays", build, make_arrays, apart, 0, 0},
    {"make contexts below others", build, make_child_contexts, apart, 0, 0},
    {"make a done channel", build, make_done, apart, 0, 0},
    {"make an after_func", build, make_func, apart, 0, 0},
    {"spawn", build, spawn, apart, 0, 0},
    {"submit", build, submit, apart, 0, 0},
    {"spawn into a group", build, spawn_child, apart, 0, 0},
    {"the last handle on channels", build, drop_chans, apart, 0, 0},
    {"the last handle on timers", build, drop_timers, apart, 0, 0},
    {"the last handle on sync objects", build, drop_syncs, apart, 0, 0},
    {"the last handle on a map", build, drop_map, apart, 0, 0},
    {"the last handle on contexts", build, drop_contexts, apart, 0, 0},
    {"the last handle on others", build, drop_others, apart, 0, 0},
    {"new keys of a map", build, map_new_keys, apart, 0, 0},
    {"replace in a map", build, map_replace, apart, 1, 0},
    {"delete from a map", build, map_delete, apart, 1, 0},
    {"load from a map", build, map_load, apart, 0, 0},
    {"cancel a context", build, cancel, apart, 0, 0},
    {"timers of all kinds", build, fire, apart, 0, 0},
    {"stop timers", build, stop, apart, 0, 0},
    {"reset a timer", build, reset, apart, 0, 0},
    {"stop an after_func", build, func_stop, apart, 0, 0},
    {"reset an after_func", build, func_reset, apart, 0, 0},
    {"a child of a group ends", build, kid_ends, apart, 0, 0},
    {"a child of a group fails", build, kid_fails, apart, 0, 0},
    {"a child fails, the parent in its block", build_in_body, kid_fails, apart, 0, 0},
    {"abort a group", build, abort_group, apart, 0, 0},
    {"take ends", build, take, apart, 0, 6},
    {"wait for ends", build, wait_doneq, apart, 0, 6},
    {"end into a queue", build, end_lone, apart, 0, 0},
    {"cancel one that waits", build, cancel_lone, apart, 0, 0},
    {"kill one that waits", build, kill_lone, apart, 0, 0},
};
#define N (sizeof acts / sizeof *acts)

static void test_an_m_killed_at_each_failpoint_leaves_every_object_whole(void)
{
    d_killed_everywhere(acts, N);
}
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    d_reaper_killed(acts, N);
}
static void test_all_workers_killed_at_once_leave_a_whole_segment(void)
{
    d_killed_together(acts, N, true);
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_leaves_every_object_whole),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another),
       T(test_all_workers_killed_at_once_leave_a_whole_segment))
