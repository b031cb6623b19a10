/* bury.h — after a death at a failpoint: what a reaper does with what the dead M had of timers and
 * contexts in hand, without the rest of the program around it. The M that calls it stands alone. */
#ifndef BURY_H
#define BURY_H

#include "gs.h"

/* A G that the dead M names: claimed and given what it waits for; claimed only; being parked; made
 * runnable; not begun. */
static void bury_g(struct shm_ctx *c, shm_gref r, unsigned slot)
{
    struct shm_g *g = shm_g(c, r);
    switch (shm_readgstatus(c, r)) {
    case Gwaiting:
        if (SHM_W_STATE(load_acq(&g->wait)) == SHM_W_ARMED)
            break;
        if (SHM_W_STATE(load_acq(&g->wait)) == SHM_W_NONE)
            shm_wait_arm(c, r, shm_wait_next(g));
        else if (g->waitkind ? g->sudog.linked : g->ok == 2)
            shm_wait_arm(c, r, SHM_W_EPOCH(load_acq(&g->wait)));
        else
            shm_ready(c, r, false);
        break;
    case Grunnable: /* the dead M had no P: there is one queue for it */
        for (shm_gref at = c->hdr->runq_head; at; at = shm_g(c, at)->schedlink)
            if (at == r)
                return;
        shm_globrunqput(c, r);
        break;
    case Gidle:
        if (slot != SHM_IF_NEW)
            break;
        if (g->waitkind)
            shm_sudog_unlink(c, r);
        if (g->cont_off)
            shm_cont_drop(c, g->cont_off, g->cont_len);
        CHECK(shm_casgstatus(c, r, Gidle, Gdead));
        shm_gfree(c, r);
    }
}

H_UNUSED static void bury(struct shm_ctx *c, struct shm_m *dead)
{
    shm_tx_rollback(c, dead);
    for (uint32_t i = 0; i < SHM_INFLIGHT; i++) { /* before the locks go: armed again */
        shm_gref r = i == SHM_IF_DRAIN ? 0 : load_acq(&dead->inflight[i]);
        if (r && shm_readgstatus(c, r) == Gwaiting && shm_g(c, r)->waitkind &&
            shm_g(c, r)->sudog.linked)
            bury_g(c, r, i);
    }
    shm_lock_reap(c, dead);
    for (uint32_t i = 0; i < SHM_INFLIGHT; i++) {
        shm_gref r = i == SHM_IF_DRAIN ? 0 : load_acq(&dead->inflight[i]);
        if (r)
            bury_g(c, r, i);
        if (i != SHM_IF_DRAIN)
            store_rlx(&dead->inflight[i], 0);
    }
    shm_off drain = load_acq(&dead->inflight[SHM_IF_DRAIN]);
    if (drain)
        shm_waiters_drain(c, drain);
    store_rlx(&dead->inflight[SHM_IF_DRAIN], 0);
    shm_handle_reap(c, dead);
    shm_heap_reap(c, dead);
}

#endif
