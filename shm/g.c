/* g.c — goroutine descriptors: slots, the status word, the wait word, wait reasons.
 *
 * A SLOT AND ITS GENERATION. A g is used again as soon as its goroutine has ended, so whatever lies
 * outside (a queue entry, a sudog, a handle) names it by a gref: generation and index. The
 * generation lives in the status word itself, so that one CAS both moves the status and proves that
 * the slot is still the one that was meant. It grows at each use and skips 0.
 *
 * INV status-truth: a queue entry is a hint. Who pops a gref owns the G only if its CAS runnable ->
 * running, with that generation, succeeds. A duplicate or stale entry fails there and is dropped.
 *
 * THE MOVES (Go's, proc.go; nothing else is legal, and the table below is all there is)
 *
 *     dead -> idle          shm_gnew: a new generation; by who took the slot out of a free list
 *     idle -> runnable      newproc
 *     idle -> dead          the creation failed
 *     idle -> waiting       after_func: born asleep (timer.c)
 *     runnable -> running   execute; the one who succeeds owns the G
 *     running -> waiting    park; before the wait word is armed
 *     running -> runnable   gosched, preemption
 *     waiting -> runnable   ready; by the one who claimed the wait
 *     running -> dead       goexit0
 *
 * Who makes a move owned the G before it, so nobody competes for a move and a CAS that fails is a
 * broken program, with one exception: a waker can meet a parker that has published the wait and is
 * not yet `waiting`. It spins, as Go's casgstatus does, but only while that parker's process lives
 * (an endless spin for a corpse is what Go never has to fear).
 *
 * INV one-waker: the wait word is (epoch, armed) while somebody may wake the G, and the CAS to
 * (epoch, claimed by M) decides who does. The epoch counts the waits of the SLOT and is never
 * reset: a sudog or timer entry left over from an earlier wait, also of an earlier goroutine in the
 * same slot, never matches again. (Sudogs keep 32 bits of it: four thousand million waits.) The
 * claimed word stays until the next arming, so a reaper sees whom a dead claimer had in hand.
 *
 *     parker                                     waker
 *     1 continuation, value, reason into g       1 claim: CAS (epoch, armed) -> (epoch, claimed)
 *     2 running -> waiting                       2 value and ok into g
 *     3 arm: the last store (INV touch-nothing)  3 shm_ready: waiting -> runnable, into a queue
 *
 * Arming is sequentially consistent because a canceller that finds the G not waiting leaves a mark
 * and goes away; the parker arms, then looks for the mark (tag: cancel).
 *
 * COUNTED. spawned - finished, over all Ms, is the number of Gs with SHM_GF_COUNTED, at any
 * instruction: flag and counter change in one transaction. Who ends a G asks the flag, so however
 * often it is ended, by its M and by the reapers of both, it counts once.
 *
 * FREE SLOTS go through a magazine of the M (64 indices, no lock) and a central list, half a
 * magazine at a time. A slot is all the time in exactly one of: a magazine, the central list,
 * beyond g_next, in use, or named in inflight[SHM_IF_NEW] or curg of the M that is just moving
 * it. */
#include "internal.h"

#define BATCH (SHM_MAG / 2)
#define PLENTY 1024    /* free slots for everybody: enough for the magazines again */
#define COMMIT_GS 4096 /* descriptors committed at once: 512 KiB */

static_assert(2 * BATCH + 8 <= SHM_UNDO, "a refill is one transaction");

/* ---- status ---------------------------------------------------------------------------------- */

static const char *status_name(unsigned st)
{
    static const char *const names[] = {[Gidle] = "idle",
                                        [Grunnable] = "runnable",
                                        [Grunning] = "running",
                                        [Gwaiting] = "waiting",
                                        [Gdead] = "dead"};
    const char *n = st < sizeof names / sizeof *names ? names[st] : NULL;
    return n ? n : "no status";
}

static bool legal(unsigned old, unsigned to)
{
    switch (old) {
    case Gidle:
        return to == Grunnable || to == Gdead || to == Gwaiting;
    case Grunnable:
        return to == Grunning;
    case Grunning:
        return to == Gwaiting || to == Grunnable || to == Gdead;
    case Gwaiting:
        return to == Grunnable;
    }
    return false;
}

/* Found `w` instead of old. Returns if it is worth another look. */
SHM_COLD static void casgstatus_slow(struct shm_ctx *c, shm_gref r, unsigned old, unsigned to,
                                     uint64_t w, unsigned spins)
{
    unsigned found = SHM_ST_STATUS(w);
    bool parking = old == Gwaiting && found == Grunning;
    if (parking && spins % 1024 == 1023 && !shm_m_alive(c, SHM_ST_M1(w)))
        parking = false;
    if (!parking)
        shm_throw("casgstatus: goroutine %llu: %s -> %s, found %s (M %d)",
                  (unsigned long long)shm_g(c, r)->goid, status_name(old), status_name(to),
                  status_name(found), (int)SHM_ST_M1(w) - 1);
    cpu_relax();
}

bool shm_casgstatus(struct shm_ctx *c, shm_gref r, unsigned old, unsigned to)
{
    struct shm_g *g = shm_g(c, r);
    if (unlikely(!legal(old, to)))
        shm_throw("casgstatus: %s -> %s is no legal move", status_name(old), status_name(to));
    uint64_t w = load_rlx(&g->status), n = SHM_ST(shm_ggen(r), c->m1, to);
    for (unsigned spins = 0;; spins++) {
        if (unlikely(SHM_ST_GEN(w) != shm_ggen(r)))
            return false;
        if (likely(SHM_ST_STATUS(w) == old)) {
            /* Releases what the owner has written into g; acquires what the former one has. Pairs
             * with the CAS of the move before and of the move after. */
            if (cas_acqrel(&g->status, &w, n))
                return true;
            continue;
        }
        casgstatus_slow(c, r, old, to, w, spins);
        w = load_rlx(&g->status);
    }
}

unsigned shm_readgstatus(const struct shm_ctx *c, shm_gref r)
{
    uint64_t w = load_acq(&shm_g(c, r)->status); /* pairs with the CAS of the last move */
    return SHM_ST_GEN(w) == shm_ggen(r) ? SHM_ST_STATUS(w) : (unsigned)Gdead;
}

bool shm_gclaim_runnable(struct shm_ctx *c, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    uint64_t w = load_rlx(&g->status);
    while (SHM_ST_GEN(w) == shm_ggen(r) && SHM_ST_STATUS(w) == Grunnable)
        /* INV status-truth. Acquires the continuation; pairs with the CAS in shm_ready(). */
        if (cas_acqrel(&g->status, &w, SHM_ST(shm_ggen(r), c->m1, Grunning)))
            return true;
    return false;
}

/* ---- the wait -------------------------------------------------------------------------------- */

uint64_t shm_wait_next(const struct shm_g *g)
{
    return SHM_W_EPOCH(load_rlx(&g->wait)) + 1; /* the owner of the G asks: nobody writes it */
}

void shm_wait_arm(struct shm_ctx *c, shm_gref r, uint64_t epoch)
{
    FAILPOINT("g.wait.arm");
    /* INV touch-nothing begins. Publishes everything the parker wrote; pairs with the CAS in
     * shm_wait_claim(). Seq_cst before the parker's look for a cancel (tag: cancel). */
    store_seq(&shm_g(c, r)->wait, SHM_W(epoch, 0, SHM_W_ARMED));
    shm_shake(c); /* armed | the parking M goes on */
}

bool shm_wait_claim(struct shm_ctx *c, shm_gref r, uint64_t epoch)
{
    struct shm_g *g = shm_g(c, r);
    uint64_t w = load_seq(&g->wait); /* after the canceller's mark (tag: cancel) */
    /* The generation may be looked at apart: for it to change, the wait must have been claimed. */
    if (SHM_W_STATE(w) != SHM_W_ARMED || (uint32_t)SHM_W_EPOCH(w) != (uint32_t)epoch ||
        SHM_ST_GEN(load_acq(&g->status)) != shm_ggen(r)) /* acquired to keep the two in order */
        return false;
    shm_shake(c); /* the look | the claim */
    /* INV one-waker: who wins owns the G until it is runnable. Pairs with shm_wait_arm(). */
    return cas_seq(&g->wait, &w, SHM_W(SHM_W_EPOCH(w), c->m1, SHM_W_CLAIMED));
}

/* ---- slots ----------------------------------------------------------------------------------- */

static shm_gref free_ref(const struct shm_ctx *c, uint32_t idx)
{
    return (uint64_t)SHM_ST_GEN(load_rlx(&c->gtab[idx].status)) << 32 | idx;
}

/* g_lock held, the magazine is empty. Slots that were used before: their pages are warm. */
static uint32_t refill_from_list(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    shm_gref r = h->gfree_head;
    uint32_t n = 0;
    shm_tx_begin(c);
    for (; r && n < BATCH; n++) {
        shm_tx_store32(c, &m->gfree.idx[n], shm_gidx(r));
        r = shm_g(c, r)->schedlink;
    }
    shm_tx_store64(c, &h->gfree_head, r);
    shm_tx_store64(c, &h->gfree_n, load_rlx(&h->gfree_n) - n);
    shm_tx_store32(c, &m->gfree.n, n);
    shm_tx_commit(c);
    return n;
}

/* g_lock held, the magazine is empty, the list too. Slots never used: pages may have to be got. */
static int refill_from_fresh(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    uint64_t next = load_rlx(&h->g_next), committed = load_rlx(&h->g_committed); /* under g_lock */
    uint32_t n = h->max_g - next < BATCH ? (uint32_t)(h->max_g - next) : BATCH;
    if (n == 0) {
        store_rlx(&h->g_scarce, 1); /* a hint: others' magazines may have some */
        return SHM_EGFULL;
    }
    if (next + n > committed) {
        uint64_t more = h->max_g - committed < COMMIT_GS ? h->max_g - committed : COMMIT_GS;
        int e = shm_commit(c, h->gtab_off + committed * sizeof(struct shm_g),
                           more * sizeof(struct shm_g));
        if (e)
            return e;
        store_rel(&h->g_committed, committed + more); /* pages first; pairs with table walkers */
    }
    for (uint32_t i = 0; i < n; i++) { /* lowest index on top of the magazine */
        m->gfree.idx[i] = (uint32_t)(next + n - 1 - i);
        store_rlx(&c->gtab[next + i].status, SHM_ST(0, 0, Gdead)); /* not yet reachable */
    }
    shm_tx_begin(c);
    shm_tx_store64(c, &h->g_next, next + n);
    shm_tx_store32(c, &m->gfree.n, n);
    shm_tx_commit(c);
    return SHM_OK;
}

SHM_COLD static int refill(struct shm_ctx *c)
{
    int e = SHM_OK;
    shm_lock(c, &c->hdr->g_lock);
    if (refill_from_list(c) == 0)
        e = refill_from_fresh(c);
    shm_unlock(c, &c->hdr->g_lock);
    return e;
}

int shm_gnew(struct shm_ctx *c, shm_gref *out)
{
    struct shm_m *m = c->m;
    if (unlikely(m->gfree.n == 0)) {
        int e = refill(c);
        if (e)
            return e;
    }
    uint32_t idx = m->gfree.idx[m->gfree.n - 1];
    struct shm_g *g = &c->gtab[idx];
    uint32_t gen = SHM_ST_GEN(load_rlx(&g->status)) + 1; /* free: nobody else writes it */
    gen += gen == 0;
    shm_gref r = (uint64_t)gen << 32 | idx;
    store_rlx(&m->inflight[SHM_IF_NEW], r); /* INV nothing-in-hand, before it leaves the magazine */
    FAILPOINT("g.new.named");
    store_rel((_Atomic uint32_t *)&m->gfree.n, m->gfree.n - 1); /* after the name; for the reaper */
    FAILPOINT("g.new.taken");
    g->goid = add_rlx(&c->hdr->goidgen, 1);
    g->cont_off = 0;
    g->cont_len = 0;
    g->reason = SHM_WR_NONE;
    g->flags = 0;
    g->ok = 0;
    g->value.tag = SHM_VAL_NONE;
    g->schedlink = 0;
    g->home_m1 = 0;
    g->home_why = SHM_HOME_NONE;
    g->waitkind = 0;
    g->since_ms = 0;
    g->obj = 0;
    g->parent = 0;
    g->op = 0;
    g->retries = 0;
    g->ran_m1 = 0;
    g->waitobj = 0;
    memset(&g->sudog, 0, sizeof g->sudog);
    g->sudog.g = r;
    /* The epoch goes on; nobody waits. Before the new generation is visible. */
    store_rlx(&g->wait, SHM_W(SHM_W_EPOCH(load_rlx(&g->wait)), 0, SHM_W_NONE));
    store_rel(&g->status, SHM_ST(gen, c->m1, Gidle)); /* old grefs are stale from here on */
    *out = r;
    return SHM_OK;
}

/* Half of a full magazine to the central list. */
static void spill(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    struct shm_m *m = c->m;
    uint32_t n = m->gfree.n - BATCH;
    shm_lock(c, &h->g_lock);
    shm_gref head = h->gfree_head;
    for (uint32_t i = n; i < m->gfree.n; i++) {
        uint32_t idx = m->gfree.idx[i];
        c->gtab[idx].schedlink = head; /* a free slot's, reachable only by the store below */
        head = free_ref(c, idx);
    }
    shm_tx_begin(c);
    shm_tx_store64(c, &h->gfree_head, head);
    shm_tx_store64(c, &h->gfree_n, load_rlx(&h->gfree_n) + BATCH);
    shm_tx_store32(c, &m->gfree.n, n);
    shm_tx_commit(c);
    shm_unlock(c, &h->g_lock);
}

void shm_gfree(struct shm_ctx *c, shm_gref r)
{
    struct shm_m *m = c->m;
    uint64_t w = load_rlx(&shm_g(c, r)->status);
    if (unlikely(w != SHM_ST(shm_ggen(r), SHM_ST_M1(w), Gdead)))
        shm_throw("gfree: goroutine slot %u of generation %u is %s of generation %u, not dead",
                  shm_gidx(r), shm_ggen(r), status_name(SHM_ST_STATUS(w)), SHM_ST_GEN(w));
    if (unlikely(c->hdr->scrub)) /* heap.c */
        shm_g(c, r)->value = (struct shm_val){.tag = SHM_VAL_NONE};
    if (unlikely(m->gfree.n == SHM_MAG))
        spill(c);
    FAILPOINT("g.free.put");
    m->gfree.idx[m->gfree.n] = shm_gidx(r);
    store_rel((_Atomic uint32_t *)&m->gfree.n, m->gfree.n + 1); /* after idx; for the reaper */
    FAILPOINT("g.free.stored");
    if (load_rlx(&m->inflight[SHM_IF_NEW]) == r) /* own word: a creation that failed */
        store_rel(&m->inflight[SHM_IF_NEW], 0);  /* after it is free; for the reaper */
    if (unlikely(load_rlx(&c->hdr->g_scarce))) {
        shm_gfree_flush(c, m);
        if (load_rlx(&c->hdr->gfree_n) > PLENTY) /* hints, both */
            store_rlx(&c->hdr->g_scarce, 0);
    }
}

/* The free slots of m, this M or a dead one. */
void shm_gfree_flush(struct shm_ctx *c, struct shm_m *m)
{
    struct shm_hdr *h = c->hdr;
    if (m->gfree.n == 0)
        return;
    shm_lock(c, &h->g_lock);
    while (m->gfree.n > 0) {
        uint32_t idx = m->gfree.idx[m->gfree.n - 1];
        c->gtab[idx].schedlink = h->gfree_head; /* free, so nobody's: needs no undo */
        shm_tx_begin(c);
        shm_tx_store64(c, &h->gfree_head, free_ref(c, idx));
        shm_tx_store64(c, &h->gfree_n, load_rlx(&h->gfree_n) + 1);
        shm_tx_store32(c, &m->gfree.n, m->gfree.n - 1);
        shm_tx_commit(c);
    }
    shm_unlock(c, &h->g_lock);
}

/* ---- how many there are ---------------------------------------------------------------------- */

/* In a tx of the caller's, who owns it. */
void shm_gcount(struct shm_ctx *c, struct shm_g *g)
{
    shm_tx_store64(c, &c->m->st.spawned, load_rlx(&c->m->st.spawned) + 1); /* own word */
    shm_tx_flags(c, g, g->flags | SHM_GF_COUNTED);
}

void shm_guncount(struct shm_ctx *c, struct shm_g *g)
{
    if (!(g->flags & SHM_GF_COUNTED)) /* a thread's, or an after_func's that has not begun */
        return;
    shm_tx_begin(c);
    shm_tx_store64(c, &c->m->st.finished, load_rlx(&c->m->st.finished) + 1); /* own word */
    shm_tx_flags(c, g, g->flags & (uint8_t)~SHM_GF_COUNTED);
    shm_tx_commit(c);
}

uint64_t shm_gcounted(const struct shm_ctx *c)
{
    uint64_t n = 0, max_m = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint64_t i = 0; i < max_m; i++)
        n -= load_acq(
            &c->mtab[i].st.finished); /* before the loads below; pairs with shm_tx_store64() */
    for (uint64_t i = 0; i < max_m; i++)
        n += load_rlx(&c->mtab[i].st.spawned);
    return n;
}

/* ---- wait reasons ---------------------------------------------------------------------------- */

static char *user_reason(const struct shm_ctx *c, uint32_t i)
{
    return (char *)shm_at(c, c->hdr->reason_off) + (size_t)i * SHM_REASON_BYTES;
}

const char *shm_reason_text(const struct shm_ctx *c, unsigned reason)
{
    static const char *const texts[] = {
#define X(name, text) text,
        SHM_WAIT_REASONS(X)
#undef X
    };
    if (reason < SHM_WR_USER)
        return texts[reason];
    if (reason - SHM_WR_USER < load_acq(&c->hdr->reason_n)) /* pairs with shm_reason_register() */
        return user_reason(c, reason - SHM_WR_USER);
    return "unknown wait reason";
}

/* The text is cut at SHM_REASON_BYTES - 1. No transaction: the one store that counts a text comes
 * after it is complete, and a text that was not counted is overwritten. */
int shm_reason_register(struct shm_ctx *c, const char *text, unsigned *reason)
{
    struct shm_hdr *h = c->hdr;
    int e = SHM_EFULL;
    shm_lock(c, &h->reason_lock);
    uint32_t n = load_rlx(&h->reason_n), i = 0; /* under reason_lock */
    while (i < n && strncmp(user_reason(c, i), text, SHM_REASON_BYTES - 1) != 0)
        i++;
    if (i < SHM_MAX_REASON) {
        if (i == n) {
            strncpy(user_reason(c, i), text, SHM_REASON_BYTES - 1);
            user_reason(c, i)[SHM_REASON_BYTES - 1] = 0;
            store_rel(&h->reason_n, n + 1); /* after the text; pairs with shm_reason_text() */
        }
        *reason = SHM_WR_USER + i;
        e = SHM_OK;
    }
    shm_unlock(c, &h->reason_lock);
    return e;
}
