/* places.h — for the tests of the scheduler: what goroutines wait in, and Ms in their loops.
 *
 * A `goroutine` here is a G whose code is a C function of the test, called by the M that executes
 * it; what it waits on is a place: a slot in the heap that one G parks in and another takes out. */
#ifndef PLACES_H
#define PLACES_H

#include "gs.h"

/* ---- places ---------------------------------------------------------------------------------- */

struct place {
    shm_lockword lock;
    uint32_t aborts; /* who waits here may go away by itself: its entry is stale then */
    shm_gref g;      /* who waits here, under lock */
    uint64_t epoch;
};

/* The running r parks here, or, if somebody waits here, that one is taken out: its gref, else 0. */
H_UNUSED static shm_gref meet(struct shm_ctx *c, struct place *pl, shm_gref r)
{
    shm_gref other;
    shm_lock(c, &pl->lock);
    if ((other = pl->g)) {
        pl->g = 0;
        if (!shm_wait_claim(c, other, pl->epoch)) {
            CHECK(pl->aborts);
            other = 0;
        }
    }
    if (!other && r) {
        pl->g = r;
        pl->epoch = shm_wait_next(shm_g(c, r));
        shm_gopark(c, r, SHM_WR_CHAN_RECV);
        shm_wait_arm(c, r, pl->epoch);
    }
    shm_unlock(c, &pl->lock);
    return other;
}

H_UNUSED static shm_gref take_out(struct shm_ctx *c, struct place *pl)
{
    return meet(c, pl, 0);
}

H_UNUSED static struct place *places(struct shm_ctx *c, uint32_t n)
{
    shm_off off;
    CHECK_EQ(shm_alloc(c, n * sizeof(struct place), &off), SHM_OK);
    memset(shm_at(c, off), 0, n * sizeof(struct place));
    return shm_at(c, off);
}

H_UNUSED static shm_gref spawn(struct shm_ctx *c)
{
    shm_gref r;
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    shm_newproc(c, r);
    return r;
}

/* Gref of the next G, executed; 0: none now. */
H_UNUSED static shm_gref next_g(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    int e = shm_findrunnable(c, false, &r, &inherit);
    if (e == SHM_EAGAIN)
        return 0;
    CHECK_EQ(e, SHM_OK);
    CHECK(shm_execute(c, r, inherit));
    return r;
}

H_UNUSED static void m_alone(struct shm_ctx *c, uint32_t nprocs, uint32_t kind)
{
    h_seg(c, (struct shm_opts){.nprocs = nprocs});
    shm_calibrate(c);
    CHECK_EQ(shm_minit(c, kind), SHM_OK);
}

H_UNUSED static void second(struct shm_ctx *to, const struct shm_ctx *from, uint32_t kind)
{
    shm_ctx_copy(to, from);
    CHECK_EQ(shm_minit(to, kind), SHM_OK);
}

H_UNUSED static void nothing_in_hand(struct shm_ctx *c)
{
    for (int i = 0; i < SHM_INFLIGHT; i++)
        CHECK_EQ(load_rlx(&c->m->inflight[i]), 0);
}

/* ---- programs: Ms in their loops ------------------------------------------------------------- */

/* What every M of a program shares. */
struct prog {
    shm_off places_off;
    uint32_t nplaces, ntok, turns, nworkers, sleep_ns;
    _Atomic uint32_t started, left, deadlocks, stop;
    _Atomic uint32_t running[8192], turn[8192]; /* by index of the G */
    _Atomic uint32_t owner_of_p[SHM_MAX_P];     /* m1 */
};

H_UNUSED static struct place *place_at(struct shm_ctx *c, struct prog *s, uint32_t i)
{
    return (struct place *)shm_at(c, s->places_off) + i;
}

H_UNUSED static void wake_all(struct shm_ctx *c)
{
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++)
        shm_notewakeup(&c->mtab[i].note);
}

H_UNUSED static void end_program(struct shm_ctx *c)
{
    store_rel(&c->hdr->shutdown, 1);
    wake_all(c);
}

H_UNUSED static void busy_ns(uint64_t ns)
{
    uint64_t until = shm_now_ns() + ns;
    while (shm_now_ns() < until)
        cpu_relax();
}

/* As core_m_loop(): SHM_OK and a running G, or why the loop ends. */
H_UNUSED static int schedule(struct shm_ctx *c, shm_gref *r)
{
    for (;;) {
        bool inherit;
        int e = shm_findrunnable(c, false, r, &inherit);
        if (e == SHM_EAGAIN)
            e = shm_findrunnable(c, true, r, &inherit);
        if (e == SHM_EINTR)
            continue;
        if (e != SHM_OK)
            return e;
        if (shm_execute(c, *r, inherit))
            return SHM_OK;
    }
}

/* One turn of a token: alone in the world, alone on its P; then it parks, yields or ends. */
H_UNUSED static void token_turn(struct shm_ctx *c, struct prog *s, shm_gref r)
{
    uint32_t idx = shm_gidx(r), rnd = (uint32_t)random();
    CHECK_EQ(add_acqrel(&s->running[idx], 1), 0);
    if (c->p)
        CHECK_EQ(xchg_acqrel(&s->owner_of_p[c->p->index], c->m1), 0);
    uint32_t n = add_acqrel(&s->turn[idx], 1) + 1;
    if (rnd % 8 == 0)
        busy_ns(rnd / 8 % 60000);
    if (c->p)
        CHECK_EQ(xchg_acqrel(&s->owner_of_p[c->p->index], 0), c->m1);
    sub_acqrel(&s->running[idx], 1);
    if (n == s->turns) {
        shm_goexit0(c, r);
        if (sub_acqrel(&s->left, 1) == 1)
            end_program(c);
        return;
    }
    if (rnd >> 20 & 1 && rnd >> 21 & 1) {
        shm_gosched(c, r);
        return;
    }
    if (s->sleep_ns && rnd >> 23 & 1) {
        CHECK_EQ(shm_sleep_park(c, r, shm_now_ns() + rnd % s->sleep_ns), SHM_PARKED);
        return;
    }
    shm_gref other = meet(c, place_at(c, s, rnd >> 8 & (s->nplaces - 1)), r);
    if (other) {
        shm_ready(c, other, rnd >> 22 & 1);
        shm_gosched(c, r);
    }
}

H_UNUSED static void worker(struct shm_ctx *c, struct prog *s)
{
    shm_gref r;
    int e;
    add_acqrel(&s->started, 1);
    while ((e = schedule(c, &r)) == SHM_OK)
        token_turn(c, s, r);
    CHECK_EQ(e, SHM_EDEAD);
    if (c->p)
        shm_releasep(c);
}

#endif
