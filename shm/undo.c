/* undo.c — transactions: what a dead M left half done is as if it had never begun.
 *
 * THE PROTOCOL, one word at a time
 *   1 the M notes (offset, old value) in its own log, m->undo[n];
 *   2 it counts the note, undo_n = n + 1;
 *   3 it stores the new value.
 * Commit is the single store undo_n = 0, then the locks are released. Killed before 3: the rollback
 * restores what is there anyway. Killed after 3, before the commit: the old value is back. Killed
 * after the commit: all new values stand. No other states exist.
 *
 * Why notes of old values, not of new ones (a redo log): a transaction reads what it has just
 * written, often, and commits nearly always. Undo makes reads plain and commit one store.
 *
 * Why no fence between processes: a process dies between two of its instructions, and what it
 * stored before is then in the cache, in order or not. So the order matters to the compiler alone;
 * the release stores below keep it, and cost nothing on x86.
 *
 * INV undo: between begin and commit nothing can fail or block: no allocation, no lock, no system
 * call. What is only reachable through a logged word (a fresh block, a node of a list not yet
 * linked) is written plainly before it. */
#include "internal.h"

#define HALF (1ULL << 63) /* in undo.off: a 32-bit word */

static_assert(sizeof(((struct shm_m *)0)->undo) == SHM_UNDO * sizeof(struct shm_undo), "the log");

void shm_tx_begin(struct shm_ctx *c)
{
    if (unlikely(c->in_tx || load_rlx(&c->m->undo_n)))
        shm_throw("tx_begin: M %u is in a transaction already, with %u stores", c->m->index,
                  load_rlx(&c->m->undo_n));
    c->in_tx = true;
}

static void note(struct shm_ctx *c, shm_off where, uint64_t old)
{
    struct shm_m *m = c->m;
    uint32_t n = load_rlx(&m->undo_n);
    if (unlikely(!c->in_tx || n == SHM_UNDO))
        shm_throw("tx_store: M %u %s (%u stores)", m->index,
                  c->in_tx ? "has a full undo log" : "is in no transaction", n);
    m->undo[n].off = where;
    m->undo[n].old = old;
    FAILPOINT("undo.noted");
    store_rel(&m->undo_n, n + 1); /* after the note, before the new value; read by the reaper */
    FAILPOINT("undo.counted");
}

/* The words are stored atomically, with release: some are read without the lock (len(), hints). */
void shm_tx_store64(struct shm_ctx *c, void *word, uint64_t value)
{
    _Atomic uint64_t *w = word;
    note(c, shm_offof(c, word), load_rlx(w));
    store_rel(w, value); /* pairs with the word's own lock-free readers, if it has any */
    FAILPOINT("undo.stored");
}

void shm_tx_store32(struct shm_ctx *c, void *word, uint32_t value)
{
    _Atomic uint32_t *w = word;
    note(c, shm_offof(c, word) | HALF, load_rlx(w));
    store_rel(w, value); /* as in shm_tx_store64() */
    FAILPOINT("undo.stored");
}

void shm_tx_commit(struct shm_ctx *c)
{
    if (unlikely(!c->in_tx))
        shm_throw("tx_commit: M %u is in no transaction", c->m->index);
    FAILPOINT("undo.commit");
    uint32_t n = load_rlx(&c->m->undo_n);
    store_rel(&c->m->undo_n, 0); /* after every new value; read by the reaper */
    FAILPOINT("undo.emptied");
    if (unlikely(c->hdr->scrub)) /* old values may be what nobody is to find any more */
        memset(c->m->undo, 0, n * sizeof *c->m->undo);
    c->in_tx = false;
    FAILPOINT("undo.committed");
}

/* Newest first: a word stored twice gets its first old value last. Each step counts itself off, and
 * repeating one does no harm, so a reaper that dies here is itself followed by another. */
void shm_tx_rollback(struct shm_ctx *c, struct shm_m *dead)
{
    for (uint32_t n = load_acq(&dead->undo_n); n > 0; n--) { /* pairs with note() */
        const struct shm_undo *u = &dead->undo[n - 1];
        shm_off where = u->off & ~HALF;
        if (unlikely(n > SHM_UNDO || where + 8 > c->mapped))
            shm_throw("rollback: M %u has note %u at %#llx", dead->index, n,
                      (unsigned long long)where);
        if (u->off & HALF)
            store_rel((_Atomic uint32_t *)shm_at(c, where), (uint32_t)u->old); /* see store32 */
        else
            store_rel((_Atomic uint64_t *)shm_at(c, where), u->old); /* see store64 */
        FAILPOINT("undo.restored");
        store_rel(&dead->undo_n, n - 1); /* after the old value is back; read by a next reaper */
    }
    if (unlikely(c->hdr->scrub)) /* what it had emptied, too */
        memset(dead->undo, 0, sizeof dead->undo);
    if (dead == c->m)
        c->in_tx = false;
}
