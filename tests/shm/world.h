/* world.h — what the programs of test_programs*.c share: the words, the crew, who cancels it. */
#ifndef WORLD_H
#define WORLD_H

#include "programs.h"

/* What the goroutines of a program share. The plain words are under what is said beside them. */
enum { CREW = 24, KEYS = 8 };
static struct world {
    uint32_t n;      /* how much each is to do */
    shm_off j[CREW]; /* main's references */
    shm_off mutex, rw, sem, cond, once, wg, ctx, map;
    shm_off to, from;                           /* of the thread outside */
    uint64_t plain, queue, plain_rw, made_once; /* mutex, mutex, rw, once */
    uint64_t did[CREW];                         /* wg */
    _Atomic uint32_t ready, over;
    _Atomic uint64_t inside, passed, due;
} *w;

/* main as a program of each sort: Ms that are as many as Ps, that are more, that always or never
 * take another's goroutines; shaken, and with Ps that come and go. */
static void run_each(p_body main, void (*outside)(struct shm_ctx *, shm_gref), uint32_t n)
{
    static const struct p_opts runs[] = {
        {.procs = 3, .workers = 3},
        {.procs = 2, .workers = 3, .migrate = 1, .trace = true},
        {.procs = 2, .workers = 4, .max_procs = 4, .shake = 7},
        {.procs = 3, .workers = 3, .migrate = 2},
    };
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        struct p_opts o = runs[i];
        o.main = main;
        o.outside = outside;
        w = h_shared(sizeof *w);
        w->n = n;
        p_run(o);
        munmap(w, sizeof *w);
    }
}

H_UNUSED static shm_off new_chan(struct shm_ctx *c, uint32_t cap)
{
    shm_off ch;
    CHECK_EQ(shm_chan_new(c, cap, &ch), SHM_OK);
    return ch;
}

/* For the frame of a goroutine that is about to be spawned: the object, once more counted. */
H_UNUSED static uint64_t share(struct shm_ctx *c, shm_off obj)
{
    shm_obj_ref(c, obj);
    return SHM_HANDLE(1, obj);
}

H_UNUSED static shm_off start(struct turn *t, struct p_frame f)
{
    return p_spawn(t->c, &f, 0, 0);
}

H_UNUSED static unsigned ended(struct shm_ctx *c, shm_off j)
{
    return load_acq(&((struct shm_join *)shm_at(c, j))->state); /* pairs with shm_join_finish() */
}

H_UNUSED static uint64_t result(struct shm_ctx *c, shm_off j, unsigned state)
{
    CHECK_EQ(ended(c, j), state);
    return v_num(c, &((struct shm_join *)shm_at(c, j))->value);
}

/* Waits for all of w->j and lets them go: each has ended in `state`. k counts them, in the frame. */
#define JOIN_CREW(t, k, state)                   \
    for ((k) = 0; (k) < CREW; (k)++) {           \
        AWAIT(t, op_join(t, w->j[k]));           \
        CHECK_EQ(ended((t)->c, w->j[k]), state); \
        shm_obj_unref((t)->c, w->j[k]);          \
    }

H_UNUSED static shm_off new_sync(struct shm_ctx *c, uint32_t what, uint64_t n, shm_off mutex)
{
    shm_off sy;
    CHECK_EQ(shm_sema_new(c, what, n, mutex, &sy), SHM_OK);
    return sy;
}

/* The first act of a goroutine that canceller() waits for. */
H_UNUSED static void come(void)
{
    add_acqrel(&w->ready, 1); /* pairs with canceller() */
}

/* Of those who come only when a[0] have come: who is cancelled before he begins never does. */
H_UNUSED static void canceller(struct turn *t)
{
    GO(t);
    while (load_acq(&w->ready) < t->f.a[0]) /* pairs with come() */
        AWAIT(t, op_gosched(t));
    while (!load_acq(&w->over)) {
        shm_join_cancel(t->c, w->j[h_rand(t->c) % CREW]);
        AWAIT(t, op_sleep(t, h_rand(t->c) % 100000));
    }
    DONE(t);
}

#endif
