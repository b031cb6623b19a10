/* deaths.h — Ms killed at the failpoints on their way through an act, and reaped.
 *
 * The test's own process is the keeper (k) and a living worker (w, on P 1). A round builds a world,
 * forks an M that does one act on P 0 and kills it at its n-th failpoint; n counts up until it
 * survives. Then it is reaped, the checker finds nothing wrong with the segment, `apart` takes the
 * world apart with every verb that needs, holds it to what the act has promised, and the segment is
 * empty but for what only the dead had in its hands.
 *
 *   d_killed_everywhere    one M at each of its failpoints
 *   d_reaper_killed        and its reaper at each of his, who is followed by another
 *   d_killed_together      two Ms, each in an act of its own; all there are, if the world allows it
 *
 * Each death is a fork. MPGORT_STORM=1 tries all of them; else a tenth, drawn by MPGORT_SEED
 * (printed; another each time), and less with a sanitizer. TSan sees nothing between processes: a
 * handful. */
#ifndef DEATHS_H
#define DEATHS_H

#include "gs.h"

struct act {
    const char *name;
    void (*build)(void);           /* by w */
    void (*fn)(struct shm_ctx *c); /* by who dies */
    void (*apart)(uint32_t hands); /* by w; hands: of all who died */
    uint32_t hands;                /* values it may have in its hands */
    uint32_t lost;                 /* blocks that only it may refer to when it dies */
};

static struct shm_ctx k, w;
static int d_who;    /* which of the Ms that die together this process is */
static bool d_alone; /* nobody else acts on this world meanwhile */
static bool d_reaper_died;
/* By w, between the death and the reaping, when nobody waits for a lock of the dead any more. */
static void (*d_meanwhile)(void);
static uint64_t d_rng;

#if H_TSAN
#define D_SHARE 400
#define D_STORM_SHARE 800
#elif defined(__SANITIZE_ADDRESS__)
#define D_SHARE 50
#define D_STORM_SHARE 5
#else
#define D_SHARE 10
#define D_STORM_SHARE 1
#endif

static void d_seed(void)
{
    const char *s = getenv("MPGORT_SEED");
    if (d_rng)
        return;
    d_rng = s && *s ? strtoull(s, NULL, 0) : (shm_now_ns() ^ (uint64_t)getpid() << 20) | 1;
    printf("   MPGORT_SEED=%llu\n", (unsigned long long)d_rng);
}

static uint32_t d_rand(uint32_t n)
{
    d_rng = d_rng * 6364136223846793005ULL + 1442695040888963407ULL;
    return (uint32_t)(d_rng >> 33) % n;
}

/* From one failpoint to the next that is tried: all of them, or one in `share` on the average. */
static uint32_t d_step(uint32_t share)
{
    return h_storm() && !H_TSAN ? 1 : 1 + d_rand(2 * share - 1);
}

/* The same from the n-th on: at least one in twenty of those before. */
static uint32_t d_far(uint32_t n, uint32_t share)
{
    return 1 + d_rand(2 * (n / 20 > share ? n / 20 : share) - 1);
}

static void d_next(const struct act *act)
{
    h_what = act->name;
    alarm((unsigned)H_N(60, 1200));
}

static void d_child(struct shm_ctx *c, int n, void *arg)
{
    const struct act *act = arg;
    CHECK_EQ(shm_acquirep(c, d_who ? 2 : 0), SHM_OK);
    h_die_after((uint32_t)n);
    act->fn(c);
    h_die_after(0);
    if (load_acq(&c->m->curg))
        l_end(c, load_acq(&c->m->curg));
    shm_releasep(c);
}

static uint32_t d_slot(int pid)
{
    for (uint32_t i = 0; i < load_acq(&k.hdr->max_m); i++)
        if (load_acq(&k.mtab[i].pid) == (uint32_t)pid && load_acq(&k.mtab[i].kind) != SHM_M_FREE)
            return i;
    return UINT32_MAX;
}

static void d_worker(void)
{
    shm_ctx_copy(&w, &k);
    CHECK_EQ(shm_minit(&w, SHM_M_WORKER), SHM_OK);
    CHECK_EQ(shm_acquirep(&w, 1), SHM_OK);
}

static void d_no_worker(void)
{
    shm_releasep(&w);
    shm_mexit(&w);
}

static void d_begin(const struct act *act)
{
    if (h_last == NULL)
        h_last = h_shared(sizeof *h_last); /* the same text in every forked process */
    h_seg(&k, (struct shm_opts){.nprocs = 3});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    d_worker();
    act->build();
    CHECK_SEGMENT(&k);
}

static void d_end(uint32_t lost)
{
    struct shm_heap_stats s;
    d_no_worker();
    shm_heap_stats(&k, &s);
    if (lost == 0)
        CHECK_QUIET(&k);
    else
        CHECK(s.live_blocks <= lost);
    shm_mexit(&k);
    h_seg_end(&k);
}

/* ---- taking a world apart -------------------------------------------------------------------- */

/* Whoever is up ends, and whom that readies. */
H_UNUSED static void d_run(void (*finish)(shm_gref r))
{
    shm_gref r;
    while ((r = l_next(&w)) != 0)
        finish(r);
}

/* What a G that has come up had of its wait. */
H_UNUSED static void d_wait_over(shm_gref r)
{
    struct shm_g *g = shm_g(&w, r);
    uint32_t tag;
    if (g->waitkind == SHM_WAIT_SELECT) {
        shm_select_done(&w, r, &tag);
    } else if (g->waitkind && g->waitkind < SHM_WAIT_SELECT) {
        shm_wait_ends(&w, g);
    }
}

/* The next G from slot *i on that has not ended: it waits. 0: none. */
H_UNUSED static shm_gref d_waiting(uint64_t *i)
{
    for (; *i < load_acq(&w.hdr->g_next); ++*i) {
        uint64_t st = load_acq(&w.gtab[*i].status);
        if (SHM_ST_STATUS(st) == Gdead)
            continue;
        CHECK_EQ(SHM_ST_STATUS(st), Gwaiting);
        return (uint64_t)SHM_ST_GEN(st) << 32 | (*i)++;
    }
    return 0;
}

/* ---- one M ----------------------------------------------------------------------------------- */

static bool d_killed(int status)
{
    bool died = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    CHECK(died || status == 0);
    return died;
}

/* False: it did not die any more. reaper: true if it has done all of it. */
static bool d_round(const struct act *act, uint32_t n, bool (*reaper)(uint32_t slot, int status))
{
    d_alone = true;
    d_begin(act);
    int pid = h_fork(d_child, (int)n, (void *)(uintptr_t)act), status = h_wait(pid);
    uint32_t slot = d_slot(pid);
    bool died = d_killed(status);
    CHECK_EQ(died, slot != UINT32_MAX);
    if (d_meanwhile) {
        if (died)
            shm_reap_locks(&k, &k.mtab[slot]);
        d_meanwhile();
    }
    if (died && (reaper == NULL || !reaper(slot, status))) {
        shm_reap(&k, &k.mtab[slot], status);
        CHECK_EQ(load_acq(&k.mtab[slot].kind), SHM_M_FREE);
    }
    CHECK_SEGMENT(&k);
    act->apart(died ? act->hands : 0);
    d_end(died ? act->lost : 0);
    return died;
}

H_UNUSED static void d_killed_everywhere(const struct act *acts, size_t nacts)
{
    d_seed();
    for (size_t i = 0; i < nacts; i++) {
        uint32_t n = d_step(D_SHARE), deaths = 0;
        d_next(&acts[i]);
        for (; d_round(&acts[i], n, NULL); deaths++)
            n += d_step(D_SHARE);
        printf("   %s: killed at %u of %u failpoints\n", acts[i].name, deaths, n - 1);
    }
}

/* ---- the reaper, too ------------------------------------------------------------------------- */

static uint32_t d_reaper_n, d_reaped;
static int d_reaped_status;

static void d_second_keeper(struct shm_ctx *c, int n, void *arg)
{
    (void)arg;
    store_rlx(&c->m->kind, SHM_M_KEEPER);
    h_die_after((uint32_t)n);
    shm_reap(c, &c->mtab[d_reaped], d_reaped_status);
    h_die_after(0);
}

/* A keeper that is killed at its d_reaper_n-th failpoint; then it is reaped, and the other once
 * more. */
static bool d_dying_reaper(uint32_t slot, int status)
{
    d_reaped = slot;
    d_reaped_status = status;
    int pid = h_fork(d_second_keeper, (int)d_reaper_n, NULL), st = h_wait(pid);
    uint32_t keeper = d_slot(pid);
    d_reaper_died = d_killed(st);
    if (d_reaper_died)
        shm_reap(&k, &k.mtab[keeper], st);
    return !d_reaper_died;
}

/* In the storm all of its failpoints (one in five with ASan, which takes seven times as long), at a
 * tenth of the worker's: each has a few hundred. An act of thousands comes to the same places again
 * and again, so of those far on fewer are tried. */
H_UNUSED static void d_reaper_killed(const struct act *acts, size_t nacts)
{
    uint32_t deaths = 0, share = h_storm() ? 10 : 3 * D_SHARE;
    uint32_t its = h_storm() ? D_STORM_SHARE : 2 * D_SHARE;
    d_seed();
    for (size_t i = 0; i < nacts; i++) {
        bool died = true;
        d_next(&acts[i]);
        for (uint32_t n = 1 + d_rand(share); died; n += d_far(n, share)) {
            d_reaper_died = true;
            for (d_reaper_n = d_far(0, its); died && d_reaper_died; d_reaper_n += d_far(0, its)) {
                d_reaper_died = false;
                died = d_round(&acts[i], n, d_dying_reaper);
                deaths += d_reaper_died;
            }
        }
        if (h_storm())
            printf("   %s: %u reapers killed so far\n", acts[i].name, deaths);
    }
    d_reaper_died = false;
    printf("   %u reapers killed\n", deaths);
}

/* ---- several at once ------------------------------------------------------------------------- */

/* Both acts in one world, at the same time. Who waits for a lock of the other's goes on when that
 * one is reaped. all: no other worker lives until then. */
static void d_both(const struct act *a, const struct act *b, uint32_t na, uint32_t nb, bool all)
{
    const struct act *acts[2] = {a, b};
    uint32_t n[2] = {na, nb}, slot[2];
    int pid[2], status[2];
    uint32_t hands = 0, lost = 0;
    d_alone = false;
    d_begin(a);
    if (all)
        d_no_worker();
    for (d_who = 0; d_who < 2; d_who++)
        pid[d_who] = h_fork(d_child, (int)n[d_who], (void *)(uintptr_t)acts[d_who]);
    d_who = 0;
    for (int i = 0; i < 2; i++) {
        int got;
        while ((got = waitpid(-1, &status[i], 0)) < 0 && errno == EINTR)
            ;
        int which = got == pid[1];
        CHECK(which || got == pid[0]);
        if (!d_killed(status[i]))
            continue;
        hands += acts[which]->hands;
        lost += acts[which]->lost;
        slot[i] = d_slot(got);
        shm_reap(&k, &k.mtab[slot[i]], status[i]);
    }
    CHECK_SEGMENT(&k);
    if (all)
        d_worker();
    a->apart(hands);
    d_end(lost);
}

H_UNUSED static void d_killed_together(const struct act *acts, size_t nacts, bool all)
{
    uint32_t rounds = h_storm() && !H_TSAN ? 3000 : 400 / D_SHARE;
    d_seed();
    for (uint32_t i = 0; i < rounds; i++) {
        const struct act *a = &acts[d_rand((uint32_t)nacts)], *b = &acts[d_rand((uint32_t)nacts)];
        char what[200];
        uint32_t na = 1 + d_rand(60), nb = 1 + d_rand(60);
        if (a->build != b->build) /* not of one world */
            continue;
        snprintf(what, sizeof what, "%s (%u) and %s (%u)", a->name, na, b->name, nb);
        d_next(a);
        h_what = what;
        d_both(a, b, na, nb, all);
    }
}

#endif
