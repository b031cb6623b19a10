/* panic.c — how a program ends by one of its goroutines: an exception has left one that go had
 * started, or such a one has died with its M. The first names itself in the header, M0 raises it.
 *
 *   hdr->panic   0 none; M slot + 1 << 8 | 1: that M writes it; 2: it is complete
 *
 * Who has claimed the word may be killed before it says 2. Its goroutine is running still, or is
 * being ended by it: so a reaper comes here for the same goroutine, with its death, takes the claim
 * over and frees what was there. Killed behind the 2: the panic stays what it was, and M0 is told
 * by the reaper, once more or at last.
 *
 * Who finds the claim of a living M goes his way: that one's is the panic, or its death is. */
#include "internal.h"

/* 0: it is another's, or complete. */
static bool claim(struct shm_ctx *c, uint32_t dead_m1)
{
    uint32_t w = load_acq(&c->hdr->panic), by = w >> 8; /* pairs with who panicked */
    if (w == 2 || (w != 0 && by != dead_m1 && by != c->m1))
        return false;
    return cas_acqrel(&c->hdr->panic, &w, c->m1 << 8 | 1); /* pairs with itself */
}

void shm_panic(struct shm_ctx *c, uint64_t goid, uint32_t how, struct shm_val *v, uint32_t dead_m1)
{
    struct shm_hdr *h = c->hdr;
    if (claim(c, dead_m1)) {
        struct shm_val old = h->panic_val; /* of somebody who died here */
        FAILPOINT("panic.claimed");
        h->panic_goid = goid;
        h->panic_how = how;
        shm_tx_begin(c);
        shm_val_adopt(c, &old);
        shm_val_publish(c, v);
        shm_tx_val(c, &h->panic_val, v);
        shm_tx_commit(c);
        v->tag = SHM_VAL_NONE;
        FAILPOINT("panic.said");
        shm_val_drop(c, &old);
        FAILPOINT("panic.dropped");
        store_rel(&h->panic, 2); /* publishes the above; pairs with core_failure() */
        FAILPOINT("panic.complete");
    }
    shm_val_drop(c, v);
    if (load_acq(&h->panic) != 2) /* pairs with who completes it, and tells M0 then */
        return;
    struct shm_m *m0 = &c->mtab[h->m0_slot];
    or_seq(&m0->attn, SHM_ATTN_PANIC); /* seen by M0 before it sleeps: tag idle-dance */
    FAILPOINT("panic.told");
    shm_notewakeup(&m0->note);
}
