/* deadlock.c — nobody will ever do anything again: when that may be said.
 *
 * A DEADLOCK is declared only if no worker has left idle between two looks at all of them, and in
 * between no G was runnable, running or claimed, no timer was set, no M had died unnoticed and the
 * keeper slept. An M counts itself in idle_seq when it leaves idle, before anything else: one that
 * was idle at both looks, with the count unchanged, has slept all the time. A false alarm would be
 * a disaster, a late one is none: M0 looks when it goes idle, when the last worker tells it to, and
 * every 100 ms. */
#include "internal.h"

/* Every worker but this M is idle; with keepers: the keeper too. */
static bool all_idle(const struct shm_ctx *c, bool keepers)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_seq(&m->kind);
        if (m != c->m && (kind == SHM_M_WORKER || (keepers && kind == SHM_M_KEEPER)) &&
            load_seq(&m->spinning) != SHM_M_IDLE) /* tag: idle-dance */
            return false;
    }
    return true;
}

/* A G that something may still happen to by itself. A claimed one is in its waker's hand. */
static bool g_lives(const struct shm_g *g)
{
    uint64_t w = load_seq(&g->status);
    switch (SHM_ST_STATUS(w)) {
    case Gdead:
        return false;
    /* A thread of its process readies the one that waits for it; a timeout ends it. */
    case Gwaiting:
        return g->reason == SHM_WR_THREAD || SHM_W_STATE(load_seq(&g->wait)) != SHM_W_ARMED ||
               g->home_why == SHM_HOME_TIMED;
    }
    return true;
}

bool shm_checkdead(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    if (load_seq(&h->externs) || load_rlx(&c->m->curg)) /* own word */
        return false;
    uint64_t seq = load_seq(&h->idle_seq); /* pairs with add_seq in leave_idle() */
    if (!all_idle(c, true) || shm_timer_next(c) != UINT64_MAX || shm_anywork(c))
        return false;
    uint32_t nm = load_acq(&h->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < nm; i++) {
        struct shm_m *m = &c->mtab[i];
        uint32_t kind = load_seq(&m->kind);
        if (kind == SHM_M_WORKER &&
            load_seq(&m->kill)) /* the keeper is to end one there (kill.c) */
            return false;
        if (shm_any_home(m) || (kind == SHM_M_M0 && load_seq(&m->curg)))
            return false;
        /* A death nobody knows of yet: its reaper will ready those who wait for what it had. */
        if ((kind == SHM_M_WORKER || kind == SHM_M_KEEPER) && !shm_m_alive(c, i + 1))
            return false;
    }
    uint64_t ng = load_acq(&h->g_next); /* fresh slots beyond it: nobody has used them */
    for (uint64_t i = 1; i < ng; i++)
        if (g_lives(&c->gtab[i]))
            return false;
    return all_idle(c, true) && load_seq(&h->idle_seq) == seq && load_seq(&h->externs) == 0 &&
           shm_timer_next(c) == UINT64_MAX;
}

/* Nobody will ever do anything again? Asked by who has just gone idle. */
bool shm_looks_dead(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    if (!load_acq(&h->deadlock_on) || load_seq(&h->externs) || !all_idle(c, false) ||
        shm_timer_next(c) != UINT64_MAX)
        return false;
    if (load_rlx(&c->m->kind) == SHM_M_M0)
        return shm_checkdead(c);
    struct shm_m *m0 = &c->mtab[h->m0_slot];
    or_seq(&m0->attn, SHM_ATTN_CHECKDEAD); /* before the look; M0 goes idle, then looks itself */
    shm_wakem(c, m0);
    return false;
}
