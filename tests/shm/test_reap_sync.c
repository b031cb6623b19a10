/* Tests of reap.c: an M is killed at each failpoint on its way through sync (deaths.h;
 * test_sema_dies.c looks at each operation's promise). Afterwards whatever the dead held is marked,
 * every waiter gets on: it has what it waited for or is told that the holder died, and every object
 * can be used. */
#include "deaths.h"

enum { WAITERS = 5, HOLDER = 1000000 /* a goroutine that has died; no G stands for it */ };
enum { MUTEX, COND, COND_MUTEX, WRITING, READING, WAITGROUP, ONCE, SEMAPHORE, KINDS };

static struct syncs { /* shared with the children */
    shm_off sy[KINDS];
    shm_gref gs[KINDS * WAITERS];
    uint32_t ngs;
} *S;

static int wait_on(struct shm_ctx *c, int i, shm_gref r)
{
    switch (i) {
    case MUTEX:
        return shm_mutex_lock_park(c, S->sy[i], r);
    case COND:
        if (shm_mutex_trylock(c, S->sy[COND_MUTEX], shm_g(c, r)->goid) != SHM_OK)
            return SHM_EAGAIN; /* the other one has it */
        return shm_cond_park(c, S->sy[i], r);
    default:
        return shm_sema_park(c, S->sy[i], i == WRITING ? SHM_SY_READ : SHM_SY_WRITE, 1, r);
    }
}

static void build(void)
{
    struct shm_ctx *c = &w;
    static const uint32_t what[KINDS] = {SHM_SY_MUTEX,   SHM_SY_COND,     SHM_SY_MUTEX,
                                         SHM_SY_RWMUTEX, SHM_SY_RWMUTEX,  SHM_SY_WAITGROUP,
                                         SHM_SY_ONCE,    SHM_SY_SEMAPHORE};
    if (S == NULL)
        S = h_shared(sizeof *S);
    memset(S, 0, sizeof *S);
    CHECK_EQ(shm_sema_new(c, SHM_SY_MUTEX, 0, 0, &S->sy[COND_MUTEX]), SHM_OK);
    for (int i = 0; i < KINDS; i++)
        if (i != COND_MUTEX)
            CHECK_EQ(shm_sema_new(c, what[i], i == SEMAPHORE ? WAITERS : 0,
                                  i == COND ? S->sy[COND_MUTEX] : 0, &S->sy[i]),
                     SHM_OK);
    CHECK_EQ(shm_mutex_trylock(c, S->sy[MUTEX], HOLDER), SHM_OK);
    CHECK_EQ(shm_sema_try(c, S->sy[WRITING], SHM_SY_WRITE, 0, HOLDER), SHM_OK);
    CHECK_EQ(shm_sema_try(c, S->sy[READING], SHM_SY_READ, 0, HOLDER), SHM_OK);
    CHECK_EQ(shm_waitgroup_add(c, S->sy[WAITGROUP], 1), SHM_OK);
    CHECK_EQ(shm_sema_try(c, S->sy[ONCE], 0, 0, HOLDER), SHM_OK);
    CHECK_EQ(shm_sema_try(c, S->sy[SEMAPHORE], 0, WAITERS, HOLDER), SHM_OK);
    for (int i = 0; i < KINDS; i++)
        for (int k = 0; i != COND_MUTEX && k < WAITERS; k++) {
            shm_gref r = l_new(c);
            shm_obj_ref_hand(c, S->sy[i]);
            CHECK_EQ(wait_on(c, i, r), SHM_PARKED);
            S->gs[S->ngs++] = r;
        }
}

/* ---- what an M does when it dies ------------------------------------------------------------- */

static void ok(int e)
{
    CHECK(e == SHM_OK || !d_alone);
}
static void unlock(struct shm_ctx *c)
{
    ok(shm_mutex_unlock(c, S->sy[MUTEX]));
}
static void wunlock(struct shm_ctx *c)
{
    ok(shm_rwmutex_unlock(c, S->sy[WRITING], SHM_SY_WRITE, HOLDER));
}
static void runlock(struct shm_ctx *c)
{
    ok(shm_rwmutex_unlock(c, S->sy[READING], SHM_SY_READ, HOLDER));
}
static void done(struct shm_ctx *c)
{
    ok(shm_waitgroup_add(c, S->sy[WAITGROUP], -1));
}
static void once_done(struct shm_ctx *c)
{
    shm_once_done(c, S->sy[ONCE]);
}
static void release(struct shm_ctx *c)
{
    ok(shm_semaphore_release(c, S->sy[SEMAPHORE], WAITERS));
}
static void signal_one(struct shm_ctx *c)
{
    shm_cond_signal(c, S->sy[COND]);
}
static void broadcast(struct shm_ctx *c)
{
    shm_cond_broadcast(c, S->sy[COND]);
}
static void park(struct shm_ctx *c, int i)
{
    shm_gref r = l_new(c);
    shm_obj_ref_hand(c, S->sy[i]);
    if (wait_on(c, i, r) != SHM_PARKED)
        shm_obj_unref(c, S->sy[i]);
}
static void lock(struct shm_ctx *c)
{
    park(c, MUTEX);
}
static void cond_wait(struct shm_ctx *c)
{
    park(c, COND);
}
static void rlock(struct shm_ctx *c)
{
    park(c, WRITING);
}
static void wlock(struct shm_ctx *c)
{
    park(c, READING);
}
static void wait_done(struct shm_ctx *c)
{
    park(c, WAITGROUP);
}
static void acquire(struct shm_ctx *c)
{
    park(c, SEMAPHORE);
}
static void recover(struct shm_ctx *c)
{
    uint32_t die = load_rlx(&h_any_left);
    h_die_after(0);
    shm_sema_reap(c, HOLDER);
    h_die_after(die);
    shm_sema_recover(c, S->sy[MUTEX]);
    shm_sema_recover(c, S->sy[WRITING]);
}
static void give_up(struct shm_ctx *c)
{
    shm_gref r = S->gs[0];
    if (g_cancel(c, r)) {
        shm_ready(c, r, true);
        shm_sema_left(c, S->sy[MUTEX]);
    }
}

/* ---- afterwards ------------------------------------------------------------------------------ */

static void run_all(void)
{
    shm_gref r;
    while ((r = l_next(&w)) != 0) {
        struct shm_g *g = shm_g(&w, r);
        shm_off sy = g->waitobj;
        if (g->waitkind == 0) { /* the dead M's, which had not come to wait */
            l_end(&w, r);
            continue;
        }
        uint32_t what = ((struct shm_sema *)shm_at(&w, sy))->what;
        if (g->ok == SHM_OK_COMPETE && shm_mutex_again(&w, r) == SHM_PARKED)
            continue;
        if (g->ok == SHM_OK_OWNER)
            shm_sema_recover(&w, sy);
        else if (g->ok != SHM_OK_VALUE)
            shm_sema_left(&w, sy);
        else if (what == SHM_SY_MUTEX)
            CHECK_EQ(shm_mutex_unlock(&w, sy), SHM_OK);
        else if (what == SHM_SY_RWMUTEX)
            CHECK_EQ(shm_rwmutex_unlock(&w, sy, sy == S->sy[READING] ? SHM_SY_WRITE : SHM_SY_READ,
                                        g->goid),
                     SHM_OK);
        else if (what == SHM_SY_ONCE)
            shm_once_done(&w, sy);
        g->waitkind = 0;
        shm_obj_unref(&w, sy);
        for (uint32_t i = 0; i < S->ngs; i++)
            if (S->gs[i] == r)
                S->gs[i] = 0;
        l_end(&w, r);
    }
}

static void apart(uint32_t hands)
{
    (void)hands;
    shm_sema_reap(&w, HOLDER);
    run_all();
    /* What no holder's death lets on: these are no locks. */
    if (load_acq(&((struct shm_sema *)shm_at(&w, S->sy[WAITGROUP]))->word))
        CHECK_EQ(shm_waitgroup_add(&w, S->sy[WAITGROUP], -1), SHM_OK);
    while (shm_semaphore_release(&w, S->sy[SEMAPHORE], 1) == SHM_OK)
        run_all();
    shm_cond_broadcast(&w, S->sy[COND]);
    run_all();
    CHECK_SEGMENT(&k);
    for (uint32_t i = 0; i < S->ngs; i++)
        CHECK_EQ(S->gs[i], 0); /* everybody has got on */
    CHECK_EQ(d_waiting(&(uint64_t){1}), 0);
    for (int i = 0; i < KINDS; i++)
        shm_sema_recover(&w, S->sy[i]);
    CHECK_EQ(shm_mutex_trylock(&w, S->sy[MUTEX], 5), SHM_OK);
    CHECK_EQ(shm_mutex_trylock(&w, S->sy[COND_MUTEX], 5), SHM_OK);
    CHECK_EQ(shm_sema_try(&w, S->sy[WRITING], SHM_SY_WRITE, 0, 5), SHM_OK);
    CHECK_EQ(shm_sema_try(&w, S->sy[READING], SHM_SY_WRITE, 0, 5), SHM_OK);
    for (int i = 0; i < KINDS; i++)
        shm_obj_unref(&w, S->sy[i]);
}

static const struct act acts[] = {
    {"unlock", build, unlock, apart, 0, 0},
    {"end writing", build, wunlock, apart, 0, 0},
    {"end reading", build, runlock, apart, 0, 0},
    {"the last done", build, done, apart, 0, 0},
    {"end a once", build, once_done, apart, 0, 0},
    {"release", build, release, apart, 0, 0},
    {"signal", build, signal_one, apart, 0, 0},
    {"broadcast", build, broadcast, apart, 0, 0},
    {"lock", build, lock, apart, 0, 0},
    {"cond wait", build, cond_wait, apart, 0, 0},
    {"wait to read", build, rlock, apart, 0, 0},
    {"wait to write", build, wlock, apart, 0, 0},
    {"wait for a waitgroup", build, wait_done, apart, 0, 0},
    {"acquire", build, acquire, apart, 0, 0},
    {"recover", build, recover, apart, 0, 0},
    {"a waiter gives up", build, give_up, apart, 0, 0},
};
#define N (sizeof acts / sizeof *acts)

static void test_an_m_killed_at_each_failpoint_of_sync_leaves_nobody_waiting(void)
{
    d_killed_everywhere(acts, N);
}
static void test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another(void)
{
    d_reaper_killed(acts, N);
}
static void test_all_workers_killed_at_once_leave_nobody_waiting(void)
{
    d_killed_together(acts, N, true);
}

H_MAIN(T(test_an_m_killed_at_each_failpoint_of_sync_leaves_nobody_waiting),
       T(test_a_reaper_killed_at_each_of_its_failpoints_is_followed_by_another),
       T(test_all_workers_killed_at_once_leave_nobody_waiting))
