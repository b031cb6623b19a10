/* test_programs.c — whole programs on many Ms at once: channels, select, groups, kills and a map,
 * used by dozens of goroutines that move between the Ms, are cancelled, preempted and kept at home,
 * while Ps come and go.
 *
 * ThreadSanitizer sees each access of it (Ms are threads), and what a program keeps under its own
 * locks is plain memory: that a Mutex, a channel or a join orders what its users write is checked
 * by that too. Sync and time are in test_programs_sync.c. */
#include "world.h"

/* A call that blocks: the P goes to another M meanwhile. */
static void block(struct turn *t)
{
    shm_handoffp(t->c);
    nanosleep(&(struct timespec){.tv_nsec = (long)(h_rand(t->c) % 30000)}, NULL);
}

/* ---- channels and select --------------------------------------------------------------------- */

enum { PRODUCERS = 6, WORKERS = 5 };

/* Numbers a[0] to a[1], into h[0]; some with a channel for the answer. */
static void producer(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    for (; f->a[0] < f->a[1]; f->a[0]++) {
        if (f->a[0] % 4 == 0)
            hold(t, 1, new_chan(t->c, f->a[0] % 8 == 0));
        AWAIT(t, op_send(t, OBJ(t, 0),
                         f->h[1]            ? v_ref(t->c, f->a[0], OBJ(t, 1))
                         : f->a[0] % 4 == 1 ? v_big(t->c, f->a[0])
                                            : v_int(f->a[0])));
        CHECK_EQ(t->ok, SHM_OK_VALUE);
        if (f->h[1]) {
            AWAIT(t, op_recv(t, OBJ(t, 1)));
            CHECK_EQ(t->ok, SHM_OK_VALUE);
            CHECK_EQ(v_eat(t->c, &t->v), f->a[0]);
            let(t, 1);
        }
        if (h_rand(t->c) % 64 == 0)
            block(t);
    }
    DONE(t);
}

/* From h[0] to h[1], until h[0] is closed; h[2] is done() of a context that nobody cancels before
 * that. */
static void worker(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    for (;;) {
        AWAIT(t, op_select(t, (struct shm_case[]){s_recv(OBJ(t, 2)), s_recv(OBJ(t, 0))}, 2));
        CHECK_EQ(t->which, 1);
        if (t->ok != SHM_OK_VALUE)
            break;
        if (t->v.tag == SHM_VAL_HEAP) {
            uint32_t nh;
            const uint64_t *h = shm_bytes_handles(t->c, t->v.h.off, &nh);
            if (nh)
                f->h[3] = share(t->c, SHM_HANDLE_OFF(h[0]));
        }
        f->a[0] = v_eat(t->c, &t->v);
        AWAIT(t,
              op_select(
                  t, (struct shm_case[]){s_send(OBJ(t, 1), v_int(f->a[0])), s_recv(OBJ(t, 2))}, 2));
        CHECK(t->which == 0 && t->ok == SHM_OK_VALUE);
        if (f->h[3]) {
            AWAIT(t, op_send(t, OBJ(t, 3), v_big(t->c, f->a[0])));
            CHECK_EQ(t->ok, SHM_OK_VALUE);
            let(t, 3);
        }
    }
    DONE(t);
}

/* Closes h[0] after the producers, h[1] after the workers. */
static void closer(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    for (; f->a[0] < PRODUCERS + WORKERS; f->a[0]++) {
        if (f->a[0] == PRODUCERS)
            CHECK_EQ(shm_chan_close(t->c, OBJ(t, 0)), SHM_OK);
        AWAIT(t, op_join(t, w->j[f->a[0]]));
        CHECK_EQ(t->ok, SHM_OK_VALUE);
    }
    CHECK_EQ(shm_chan_close(t->c, OBJ(t, 1)), SHM_OK);
    DONE(t);
}

/* h[3]: the closer. */
static void pipeline(struct turn *t)
{
    struct p_frame *f = &t->f;
    struct shm_ctx *c = t->c;
    GO(t);
    shm_off ch;
    hold(t, 0, new_chan(c, c->hdr->migrate)); /* 0, 1 or 2 */
    hold(t, 1, new_chan(c, 3));
    CHECK_EQ(shm_context_new(c, 0, UINT64_MAX, &w->ctx), SHM_OK);
    CHECK_EQ(shm_context_done(c, w->ctx, &ch), SHM_OK);
    hold(t, 2, ch);
    for (uint32_t i = 0; i < PRODUCERS; i++)
        w->j[i] = start(t, (struct p_frame){.fn = producer,
                                            .a = {i * w->n, (i + 1) * w->n},
                                            .h = {share(c, OBJ(t, 0))}});
    for (uint32_t i = 0; i < WORKERS; i++)
        w->j[PRODUCERS + i] = start(
            t,
            (struct p_frame){.fn = worker,
                             .h = {share(c, OBJ(t, 0)), share(c, OBJ(t, 1)), share(c, OBJ(t, 2))}});
    hold(t, 3,
         start(t, (struct p_frame){.fn = closer, .h = {share(c, OBJ(t, 0)), share(c, OBJ(t, 1))}}));
    for (;;) {
        AWAIT(t, op_recv(t, OBJ(t, 1)));
        if (t->ok != SHM_OK_VALUE)
            break;
        f->a[0] += v_eat(t->c, &t->v);
        f->a[1]++;
    }
    CHECK_EQ(f->a[1], PRODUCERS * w->n);
    CHECK_EQ(f->a[0], f->a[1] * (f->a[1] - 1) / 2);
    AWAIT(t, op_join(t, OBJ(t, 3)));
    for (uint32_t i = 0; i < PRODUCERS + WORKERS; i++)
        shm_obj_unref(t->c, w->j[i]);
    shm_context_cancel(t->c, w->ctx, SHM_CTX_CANCELED, &(struct shm_val){.tag = SHM_VAL_NONE});
    shm_obj_unref(t->c, w->ctx);
    DONE(t);
}

static void test_a_pipeline_delivers_each_message_once(void)
{
    run_each(pipeline, NULL, (uint32_t)H_N(120, 20000));
}

/* ---- groups and joins ------------------------------------------------------------------------ */

enum { KIDS = 3, DEPTH = 4, DOOMED = 8 };

/* a[0]: levels below; its result is the number of leaves. */
static void node(struct turn *t)
{
    struct p_frame *f = &t->f;
    shm_off off;
    GO(t);
    f->a[1] = f->a[0] == 0;
    if (f->a[0]) {
        CHECK_EQ(shm_group_new(t->c, (uint32_t)f->a[0] % 3, &off), SHM_OK);
        hold(t, 0, off);
        p_enter(t, off);
        for (int i = 1; i <= KIDS; i++) {
            struct p_frame kid = {.fn = node, .a = {f->a[0] - 1}};
            hold(t, i, p_spawn(t->c, &kid, off, 0));
        }
        AWAIT(t, op_group(t, OBJ(t, 0)));
        CHECK(!shm_group_exiting(t->c, OBJ(t, 0)) && !shm_group_error(t->c, OBJ(t, 0), &off));
        shm_group_finish(t->c, OBJ(t, 0));
        for (int i = 1; i <= KIDS; i++)
            f->a[1] += result(t->c, OBJ(t, i), SHM_J_VALUE);
    } else {
        AWAIT(t, op_gosched(t));
    }
    END(t, SHM_J_VALUE, f->a[1]);
}

/* a[0] != 0: it fails. Else it waits on h[0], on which nothing comes. */
static void doomed(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    if (f->a[0]) {
        AWAIT(t, op_sleep(t, h_rand(t->c) % 50000));
    } else {
        AWAIT(t, op_recv(t, OBJ(t, 0)));
        CHECK_EQ(t->ok, SHM_OK_CANCELLED);
    }
    END(t, f->a[0] ? SHM_J_ERROR : SHM_J_CANCELLED, 0);
}

/* A block whose children fail: all are cancelled, and its own body. Its result: how many failed. */
static void parent(struct turn *t)
{
    struct p_frame *f = &t->f;
    shm_off off;
    GO(t);
    hold(t, 1, new_chan(t->c, 0));
    CHECK_EQ(shm_group_new(t->c, 0, &off), SHM_OK);
    hold(t, 0, off);
    p_enter(t, off);
    for (uint32_t i = 0; i < DOOMED; i++) {
        struct p_frame kid = {.fn = doomed, .a = {i % 4 == 1}, .h = {share(t->c, OBJ(t, 1))}};
        shm_off j = p_spawn(t->c, &kid, off, 0);
        if (j) /* else one has failed already */
            shm_obj_unref(t->c, j);
    }
    AWAIT(t, op_recv(t, OBJ(t, 1)));
    CHECK_EQ(t->ok, SHM_OK_CANCELLED);
    CHECK(shm_group_exiting(t->c, OBJ(t, 0)));
    AWAIT(t, op_group(t, OBJ(t, 0)));
    CHECK_EQ(t->ok, SHM_OK_VALUE);
    for (; shm_group_error(t->c, OBJ(t, 0), &off); f->a[0]++)
        shm_obj_unref(t->c, off);
    shm_group_finish(t->c, OBJ(t, 0));
    END(t, SHM_J_VALUE, f->a[0]);
}

static void families(struct turn *t)
{
    struct p_frame *f = &t->f;
    shm_off off, joins[8];
    GO(t);
    hold(t, 0, start(t, (struct p_frame){.fn = node, .a = {DEPTH}}));
    CHECK_EQ(shm_doneq_new(t->c, &off), SHM_OK);
    hold(t, 1, off);
    for (uint32_t i = 0; i < w->n; i++)
        shm_obj_unref(t->c, p_spawn(t->c, &(struct p_frame){.fn = parent}, 0, off));
    while (f->a[0] < w->n) {
        uint32_t got = shm_doneq_take(t->c, OBJ(t, 1), joins, 1 + (uint32_t)h_rand(t->c) % 8);
        for (uint32_t i = 0; i < got; i++, f->a[0]++) {
            uint64_t failed = result(t->c, joins[i], SHM_J_VALUE);
            CHECK(failed >= 1 && failed <= DOOMED / 4);
            shm_obj_unref(t->c, joins[i]);
        }
        if (got == 0)
            AWAIT(t, op_doneq(t, OBJ(t, 1)));
    }
    AWAIT(t, op_join(t, OBJ(t, 0)));
    CHECK_EQ(result(t->c, OBJ(t, 0), SHM_J_VALUE), KIDS * KIDS * KIDS * KIDS);
    DONE(t);
}

static void test_blocks_end_with_all_their_children_whether_they_fail_or_not(void)
{
    run_each(families, NULL, (uint32_t)H_N(20, 2000));
}

/* ---- kills ----------------------------------------------------------------------------------- */

/* Waits on one thing after the other, for ever: h[0] and h[1] are channels that all have. */
static void victim(struct turn *t)
{
    GO(t);
    for (;;) {
        AWAIT(t, op_sleep(t, h_rand(t->c) % 20000));
        AWAIT(t,
              op_select(
                  t, (struct shm_case[]){s_recv(OBJ(t, 0)), s_send(OBJ(t, 1), v_big(t->c, 1))}, 2));
        shm_val_drop(t->c, &t->v);
        AWAIT(t, op_send(t, OBJ(t, 0), v_big(t->c, 2)));
        AWAIT(t, op_sema(t, w->sem, 0, 1)); /* he who dies with it keeps it */
        AWAIT(t, op_recv(t, OBJ(t, 1)));
        shm_val_drop(t->c, &t->v);
        CHECK_EQ(shm_semaphore_release(t->c, w->sem, 1), SHM_OK);
    }
    DONE(t);
}

/* Some before they have begun, some where they wait, some that run and wait next. */
static void killer(struct turn *t)
{
    struct p_frame *f = &t->f;
    struct shm_ctx *c = t->c;
    GO(t);
    hold(t, 0, new_chan(c, 0));
    hold(t, 1, new_chan(c, 2));
    w->sem = new_sync(c, SHM_SY_SEMAPHORE, 3, 0);
    for (; f->a[0] < w->n; f->a[0]++) {
        for (uint32_t i = 0; i < CREW; i++) {
            w->j[i] =
                start(t, (struct p_frame){.fn = victim,
                                          .h = {share(t->c, OBJ(t, 0)), share(t->c, OBJ(t, 1))}});
            if (i % 3 == 0)
                shm_join_kill(t->c, w->j[i], SHM_K_KILL);
        }
        for (f->a[1] = 0; f->a[1] < CREW; f->a[1]++) {
            if (h_rand(t->c) % 4 == 0)
                AWAIT(t, op_sleep(t, h_rand(t->c) % 30000));
            shm_join_kill(t->c, w->j[f->a[1]], SHM_K_KILL);
        }
        JOIN_CREW(t, f->a[1], SHM_J_KILLED);
    }
    while (shm_gcounted(t->c) > 1) /* a killed one's join ends before its frame is dropped */
        AWAIT(t, op_sleep(t, 20000));
    shm_obj_unref(t->c, w->sem);
    DONE(t);
}

static void test_a_kill_ends_whoever_waits_wherever_it_waits(void)
{
    run_each(killer, NULL, (uint32_t)H_N(6, 1000));
}

/* ---- a map, and a thread outside ------------------------------------------------------------- */

/* Counts under keys that all use, by cas; and has one of its own, that comes and goes. */
static void counter(struct turn *t)
{
    struct p_frame *f = &t->f;
    GO(t);
    for (; f->a[0] < w->n; f->a[0]++) {
        uint64_t key = h_rand(t->c) % KEYS, own = KEYS + f->a[1], n;
        struct shm_val was, now, old = {.tag = SHM_VAL_NONE};
        int e;
        do {
            CHECK_EQ(shm_map_load(t->c, w->map, &key, sizeof key, &was), SHM_OK);
            n = v_num(t->c, &was) + 1;
            now = n % 3 ? v_int(n) : v_big(t->c, n);
            e = shm_map_cas(t->c, w->map, &key, sizeof key, &was, &now, &old);
            shm_val_drop(t->c, &was);
            if (e == SHM_EAGAIN)
                shm_val_drop(t->c, &now);
        } while (e == SHM_EAGAIN);
        CHECK_EQ(e, SHM_OK);
        shm_val_drop(t->c, &old);
        now = v_int(f->a[0]);
        CHECK_EQ(shm_map_store(t->c, w->map, &own, sizeof own, &now, false, &old), SHM_OK);
        if (h_rand(t->c) % 4 == 0)
            AWAIT(t, op_gosched(t));
        own = KEYS + f->a[1];
        CHECK_EQ(shm_map_delete(t->c, w->map, &own, sizeof own, &old), SHM_OK);
        CHECK_EQ(v_eat(t->c, &old), f->a[0]);
    }
    DONE(t);
}

/* What comes on h[0] goes back on h[1], until h[0] is closed. */
static void echo(struct turn *t)
{
    GO(t);
    for (;;) {
        AWAIT(t, op_recv(t, OBJ(t, 0)));
        if (t->ok != SHM_OK_VALUE)
            break;
        t->f.a[0] = v_eat(t->c, &t->v);
        AWAIT(t, op_send(t, OBJ(t, 1), v_int(t->f.a[0])));
    }
    DONE(t);
}

static void talk(struct shm_ctx *c, shm_gref r)
{
    struct shm_val v;
    H_WAIT(load_acq(&w->ready)); /* pairs with count_and_talk() */
    shm_obj_ref(c, w->to);
    shm_obj_ref(c, w->from);
    for (uint32_t i = 0; i < w->n; i++) {
        CHECK_EQ(o_send(c, r, w->to, i % 2 ? v_int(i) : v_big(c, i), -1), SHM_OK);
        CHECK_EQ(o_recv(c, r, w->from, &v, -1), SHM_OK);
        CHECK_EQ(v_eat(c, &v), i);
    }
    CHECK_EQ(shm_chan_close(c, w->to), SHM_OK);
    shm_obj_unref(c, w->to);
    shm_obj_unref(c, w->from);
}

static int add_up(void *arg, const uint8_t *key, uint32_t len, const struct shm_val *v)
{
    struct turn *t = arg;
    (void)key;
    CHECK_EQ(len, 8);
    t->f.a[1] += v_num(t->c, v);
    t->f.a[2]++;
    return 0;
}

static void count_and_talk(struct turn *t)
{
    struct p_frame *f = &t->f;
    struct shm_ctx *c = t->c;
    GO(t);
    CHECK_EQ(shm_map_new(c, &w->map), SHM_OK);
    for (uint64_t key = 0; key < KEYS; key++) {
        struct shm_val zero = v_int(0), old;
        CHECK_EQ(shm_map_store(c, w->map, &key, sizeof key, &zero, false, &old), SHM_OK);
    }
    hold(t, 0, w->to = new_chan(c, 0));
    hold(t, 1, w->from = new_chan(c, 1));
    store_rel(&w->ready, 1); /* pairs with talk() */
    hold(t, 2,
         start(t, (struct p_frame){.fn = echo, .h = {share(c, OBJ(t, 0)), share(c, OBJ(t, 1))}}));
    for (uint32_t i = 0; i < CREW; i++)
        w->j[i] = start(t, (struct p_frame){.fn = counter, .a = {0, i}});
    AWAIT(t, op_join(t, OBJ(t, 2)));
    JOIN_CREW(t, f->a[0], SHM_J_VALUE);
    CHECK_EQ(shm_map_each(t->c, w->map, add_up, t), 0);
    CHECK(f->a[1] == CREW * (uint64_t)w->n && f->a[2] == KEYS);
    shm_obj_unref(t->c, w->map);
    DONE(t);
}

static void test_a_map_counts_all_and_a_thread_outside_talks_with_goroutines(void)
{
    run_each(count_and_talk, talk, (uint32_t)H_N(60, 10000));
}

H_MAIN(T(test_a_pipeline_delivers_each_message_once),
       T(test_blocks_end_with_all_their_children_whether_they_fail_or_not),
       T(test_a_kill_ends_whoever_waits_wherever_it_waits),
       T(test_a_map_counts_all_and_a_thread_outside_talks_with_goroutines))
