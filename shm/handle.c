/* handle.c — objects that live as long as somebody holds a handle.
 *
 * A channel, a join object or a user's object begins with `struct shm_obj`; it counts
 *   - the handles that the Pythons of all Ms hold: one slot each in the holding M's table;
 *   - the handle words written in bytes: messages, results, continuations (bytes.c);
 *   - the references of the runtime itself (a g on its join object).
 * A count alone would outlive a dead M: one does not know how much of it was his. So each M's part
 * stands in the segment, in his table, and his reaper gives it back slot by slot. It is a table and
 * not a counter per object and M because handles are few and objects may be a million.
 *
 * THE TABLE is words: the offset of an object, or FREE | next free slot + 1. The first few lie in
 * the M, so that a worker that comes up in a full heap can begin what waits for it; then it is a
 * heap block. It grows by copying into a block of twice the size; where it is and how large it is
 * change in one tx.
 *
 * IN HAND. Every reference stands somewhere: in a slot, in bytes, in an object. On its way from one
 * place to the next it is in the hand of an M, m->hand, from the transaction that takes it out of
 * one to the one that stores it in the other: a new object's first (m->hand_join: the one that a
 * join's goroutine gets), that of a wait until it is linked, that of an object which goes on
 * another. So a reaper finds it stored, or in the hand, and gives it back. One word is enough for
 * what an M does in a row.
 *
 * THE COUNT is changed by all, so no transaction can hold it, but it must not change without the
 * word that says where the reference is: m->hand, a block's header, a goroutine's wait. So who
 * changes it (move()) names object, outcome and that word in its slot, then moves the count by a
 * CAS that puts its own name beside it, stores the word, and takes its name out again. While a name
 * stands there, others wait: a few instructions. A reaper that finds the dead M's name there stores
 * the word for it; if he does not, the count was not changed yet, or all is done. Rejected: to
 * leave the gap (now and then an object would stay for ever), and to count the references anew
 * after a death (the others would have to stop). Searched to its end: model/refs.pml.
 *
 * THE LAST reference. Who finds that it is his names the object in m->going, then moves refs from 1
 * to 0 by CAS: so a named one with refs 0 is his to free, with refs above 0 he still has his
 * reference. What frees an object takes its parts out of it one by one, each in a transaction that
 * says where it is now, so that a reaper goes on with it; the last one makes the block the M's own
 * and takes the name back. An object may hold the last reference of another, so the names are a
 * stack. Weak references look for refs > 0, under a lock that who frees has to take (timers,
 * contexts).
 *
 * WHAT IS LOST: a reference taken by plain shm_obj_ref() and not stored yet, or in the hand when
 * that gets another. Both are seldom, and short: the start of a group's block, a submit, the joins
 * that one look into a queue of ends takes, the end of a goroutine within blocks. Then the count is
 * too high, and the object stays to the program's end. It is never too low. */
#include "internal.h"

#define FREE (1ULL << 63)

static struct shm_obj *obj_at(struct shm_ctx *c, shm_off obj, const char *what)
{
    struct shm_obj *o = shm_at(c, obj);
    if (unlikely(obj == 0 || obj % 8 || obj >= c->hdr->size || shm_refs(o) == 0))
        shm_throw("%s: %#llx is no object with references", what, (unsigned long long)obj);
    return o;
}

/* ---- the count ------------------------------------------------------------------------------- */

/* The word of o, found to be w, when nobody is changing it any more. That takes a few instructions,
 * unless who does it is swapped out, or stopped, or dead. */
static uint64_t settled(struct shm_ctx *c, struct shm_obj *o, uint64_t w)
{
    for (unsigned spins = 1; unlikely(SHM_OBJ_BY(w)); spins++) {
        cpu_relax();
        if (spins % 1024 == 0)
            shm_wait_for_m(c, SHM_OBJ_BY(w));
        w = load_acq(&o->word); /* pairs with the stores of who changes it */
    }
    return w;
}

/* True: there is one more of o (one fewer: by is -1), and the word of this M's or its goroutine's
 * at `where` is value; whatever instruction a death comes at. False: w is something else. */
static bool move(struct shm_ctx *c, struct shm_obj *o, uint64_t *w, int by, void *where,
                 uint64_t value)
{
    struct shm_m *m = c->m;
    uint64_t next = *w + ((uint64_t)(int64_t)by << 32);
    if (unlikely(c->in_tx)) /* what a rollback took back would be counted */
        shm_throw("handle: M %u is in a transaction", m->index);
    m->ref_where = shm_offof(c, where);
    m->ref_value = value;
    store_rlx(&m->ref_next, next | SHM_OBJ(0, c->m1, 0));
    store_rel(&m->ref_obj, shm_offof(c, o)); /* after those; for the reaper, as all below */
    FAILPOINT("handle.move.named");
    if (unlikely(!cas_acqrel(&o->word, w, next | SHM_OBJ(0, c->m1, 0)))) {
        store_rel(&m->ref_obj, 0); /* nothing has changed */
        return false;
    }
    FAILPOINT("handle.move.counted");
    store_rel((_Atomic uint64_t *)where, value); /* as a reaper does for a dead M */
    FAILPOINT("handle.move.stored");
    store_rel(&o->word, next); /* pairs with the loads of others; while it was ours they waited */
    FAILPOINT("handle.move.given");
    store_rel(&m->ref_obj, 0);
    return true;
}

void shm_refs_reap(struct shm_ctx *c, struct shm_m *dead)
{
    shm_off obj = load_acq(&dead->ref_obj); /* a dead M's words */
    uint64_t w = load_rlx(&dead->ref_next);
    if (obj == 0)
        return;
    struct shm_obj *o = shm_at(c, obj);
    if (load_acq(&o->word) == w) { /* no other word has this M's name in it */
        store_rel((_Atomic uint64_t *)shm_at(c, dead->ref_where), dead->ref_value);
        FAILPOINT("handle.reap.stored");
        store_rel(&o->word, w & ~SHM_OBJ(0, 0xffff, 0)); /* as move() does */
    }
    FAILPOINT("handle.reap.given");
    store_rel(&dead->ref_obj, 0); /* for a next reaper */
}

void shm_obj_ref(struct shm_ctx *c, shm_off obj)
{
    struct shm_obj *o = obj_at(c, obj, "ref");
    uint64_t w = load_rlx(&o->word);
    /* Relaxed would do for a count that cannot reach 0 here; it costs the same. */
    do
        w = settled(c, o, w);
    while (unlikely(!cas_acqrel(&o->word, &w, w + SHM_OBJ(1, 0, 0))));
}

bool shm_obj_tryref(struct shm_ctx *c, shm_off obj)
{
    struct shm_obj *o = shm_at(c, obj);
    uint64_t w = load_rlx(&o->word);
    do
        w = settled(c, o, w);
    while (SHM_OBJ_REFS(w) && !cas_acqrel(&o->word, &w, w + SHM_OBJ(1, 0, 0))); /* as in ref */
    return SHM_OBJ_REFS(w) != 0;
}

void shm_obj_ref_as(struct shm_ctx *c, shm_off obj, void *where, uint64_t value)
{
    struct shm_obj *o = obj_at(c, obj, "ref");
    uint64_t w = load_rlx(&o->word);
    do
        w = settled(c, o, w);
    while (unlikely(!move(c, o, &w, 1, where, value)));
}

/* ---- in hand --------------------------------------------------------------------------------- */

void shm_hand(struct shm_ctx *c, shm_off obj)
{
    shm_tx_store64(c, &c->m->hand, obj);
}

void shm_obj_ref_hand(struct shm_ctx *c, shm_off obj)
{
    shm_obj_ref_as(c, obj, &c->m->hand, obj);
}

void shm_hand_given(struct shm_ctx *c, shm_off obj)
{
    if (c->m->hand == obj) /* own words */
        shm_tx_store64(c, &c->m->hand, 0);
    else if (c->m->hand_join == obj)
        shm_tx_store64(c, &c->m->hand_join, 0);
}

int shm_obj_alloc(struct shm_ctx *c, uint32_t kind, size_t bytes, size_t behind, shm_off *off)
{
    int e = shm_alloc(c, bytes + behind, off);
    if (e)
        return e;
    struct shm_obj *o = shm_at(c, *off);
    memset(o, 0, bytes);
    shm_obj_init(o, kind, 1);
    return SHM_OK;
}

void shm_obj_born(struct shm_ctx *c, shm_off obj)
{
    shm_tx_begin(c);
    shm_obj_made(c, obj);
    shm_tx_commit(c);
}

void shm_obj_made(struct shm_ctx *c, shm_off obj)
{
    shm_publish(c, obj);
    shm_hand(c, obj);
}

static bool is_going(const struct shm_m *m, shm_off obj)
{
    return m->going_n && m->going[m->going_n - 1] == obj;
}

void shm_going(struct shm_ctx *c, shm_off obj)
{
    struct shm_m *m = c->m;
    if (m->going_n == SHM_GOING) /* so deep: a death would leave it */
        return;
    shm_tx_store64(c, &m->going[m->going_n], obj);
    shm_tx_store32(c, &m->going_n, m->going_n + 1);
}

void shm_going_not(struct shm_ctx *c, shm_off obj)
{
    if (is_going(c->m, obj))
        shm_tx_store32(c, &c->m->going_n, c->m->going_n - 1);
}

/* True: it was the last one, and the object goes. `where`, which gets the value, says where the
 * reference stands up to now; NULL: nowhere. */
static bool drop(struct shm_ctx *c, shm_off obj, void *where, uint64_t value)
{
    struct shm_m *m = c->m;
    struct shm_obj *o = obj_at(c, obj, "unref");
    uint64_t w = load_rlx(&o->word);
    for (;;) {
        w = settled(c, o, w);
        if (SHM_OBJ_REFS(w) > 1) {
            if (unlikely(is_going(m, obj))) { /* somebody has got one meanwhile: shm_join_fire() */
                shm_tx_begin(c);
                shm_going_not(c, obj);
                if (m->hand == 0) { /* own words */
                    shm_hand(c, obj);
                    where = &m->hand;
                    value = 0;
                }
                shm_tx_commit(c);
            }
            /* Releases what this M did to the object to whoever frees it; pairs with his CAS. */
            if (likely(where ? move(c, o, &w, -1, where, value)
                             : cas_acqrel(&o->word, &w, w - SHM_OBJ(1, 0, 0))))
                return false;
        } else {
            if (!is_going(m, obj)) {
                shm_tx_begin(c);
                shm_going(c, obj);
                if (where)
                    shm_tx_store64(c, where, value);
                shm_tx_commit(c);
                where = NULL;
            }
            if (likely(cas_acqrel(&o->word, &w, w - SHM_OBJ(1, 0, 0)))) /* as above */
                return true;
        }
    }
}

bool shm_obj_drop(struct shm_ctx *c, shm_off obj)
{
    struct shm_m *m = c->m;
    shm_off *hand = m->hand == obj ? &m->hand : m->hand_join == obj ? &m->hand_join : NULL;
    return drop(c, obj, hand, 0);
}

static void obj_free(struct shm_ctx *c, shm_off obj)
{
    switch (shm_kind(shm_at(c, obj))) {
    case SHM_OBJ_CHAN:
        shm_chan_free(c, obj);
        break;
    case SHM_OBJ_JOIN:
        shm_join_free(c, obj);
        break;
    case SHM_OBJ_SEMA:
        shm_sema_free(c, obj);
        break;
    case SHM_OBJ_MAP:
        shm_map_free(c, obj);
        break;
    case SHM_OBJ_GROUP:
        shm_group_free(c, obj);
        break;
    case SHM_OBJ_TIMER:
        shm_afterfunc_free(c, obj);
        break;
    case SHM_OBJ_CONTEXT:
        shm_context_free(c, obj);
        break;
    case SHM_OBJ_DONEQ:
        shm_doneq_free(c, obj);
        break;
    default:
        shm_obj_end(c, obj);
    }
}

void shm_obj_unref(struct shm_ctx *c, shm_off obj)
{
    if (!shm_obj_drop(c, obj))
        return;
    FAILPOINT("handle.unref.last");
    obj_free(c, obj);
}

void shm_obj_unref_as(struct shm_ctx *c, shm_off obj, void *where, uint64_t value)
{
    if (!drop(c, obj, where, value))
        return;
    FAILPOINT("handle.unref.last");
    obj_free(c, obj);
}

void shm_obj_unref_word(struct shm_ctx *c, shm_off *word)
{
    if (*word)
        shm_obj_unref_as(c, *word, word, 0);
}

void shm_obj_gone(struct shm_ctx *c, shm_off obj)
{
    shm_adopt(c, obj);
    shm_going_not(c, obj);
}

void shm_obj_end(struct shm_ctx *c, shm_off obj)
{
    shm_tx_begin(c);
    shm_obj_gone(c, obj);
    shm_tx_commit(c);
    shm_free(c, obj);
}

/* What the dead M has in its hand comes into this one's: should it die, its own reaper goes on. */
void shm_hand_reap(struct shm_ctx *c, struct shm_m *dead)
{
    shm_off join = dead->hand_join;
    shm_obj_unref_word(c, &dead->hand);
    if (join && ((struct shm_join *)shm_at(c, join))->doneq) /* it will never be started */
        shm_doneq_detach(c, join);
    shm_obj_unref_word(c, &dead->hand_join);
    shm_obj_unref_word(c, &dead->hand_group);
    while (dead->going_n) {
        shm_off obj = dead->going[dead->going_n - 1];
        bool last = shm_refs(shm_at(c, obj)) == 0; /* essay */
        shm_tx_begin(c);
        shm_tx_store32(c, &dead->going_n, dead->going_n - 1);
        if (!last) {
            shm_hand(c, obj);
        } else {
            shm_going(c, obj);
        }
        shm_tx_commit(c);
        FAILPOINT("handle.going.taken");
        if (last)
            obj_free(c, obj);
        else
            shm_obj_unref(c, obj);
    }
}

static int grow(struct shm_ctx *c)
{
    struct shm_m *m = c->m;
    uint32_t cap = m->handles_cap ? m->handles_cap * 2 : SHM_HANDLES_OWN;
    shm_off fresh = shm_offof(c, m->handles_own), old = m->handles_off;
    int e = old ? shm_alloc(c, cap * sizeof(uint64_t), &fresh) : SHM_OK;
    if (e)
        return e;
    bool old_block = old && !shm_handles_own(c, m);
    uint64_t *w = shm_at(c, fresh);
    if (old)
        memcpy(w, shm_at(c, old), m->handles_cap * sizeof *w);
    for (uint32_t i = m->handles_cap; i < cap; i++)
        w[i] = FREE | (i + 1 < cap ? i + 2 : m->handles_free);
    shm_tx_begin(c);
    if (old)
        shm_publish(c, fresh);
    if (old_block)
        shm_adopt(c, old);
    shm_tx_store64(c, &m->handles_off, fresh);
    shm_tx_store32(c, &m->handles_free, m->handles_cap + 1);
    shm_tx_store32(c, &m->handles_cap, cap);
    shm_tx_commit(c);
    if (old_block)
        shm_free(c, old);
    return SHM_OK;
}

int shm_handle_hold(struct shm_ctx *c, shm_off obj, uint32_t *slot)
{
    struct shm_m *m = c->m;
    if (m->handles_n >= m->handles_cap - m->handles_cap / 4) {
        int e = grow(c); /* early: a message that is taken must find room for its handles */
        if (e && m->handles_free == 0)
            return e;
    }
    uint32_t i = m->handles_free - 1;
    uint64_t *w = (uint64_t *)shm_at(c, m->handles_off) + i;
    shm_tx_begin(c);
    shm_tx_store32(c, &m->handles_free, (uint32_t)*w);
    shm_tx_store32(c, &m->handles_n, m->handles_n + 1);
    shm_tx_store64(c, w, obj);
    shm_hand_given(c, obj);
    shm_tx_commit(c);
    *slot = i;
    return SHM_OK;
}

static void release(struct shm_ctx *c, struct shm_m *m, uint32_t slot)
{
    uint64_t *w = (uint64_t *)shm_at(c, m->handles_off) + slot;
    if (unlikely(slot >= m->handles_cap || *w & FREE))
        shm_throw("handle_release: slot %u of M %u is free", slot, m->index);
    shm_off obj = *w;
    shm_tx_begin(c);
    shm_tx_store64(c, w, FREE | m->handles_free);
    shm_tx_store32(c, &m->handles_free, slot + 1);
    shm_tx_store32(c, &m->handles_n, m->handles_n - 1);
    shm_hand(c, obj);
    shm_tx_commit(c);
    FAILPOINT("handle.released");
    shm_shake(c); /* out of the table | its reference given back */
    shm_obj_unref(c, obj);
}

/* holder: this M, or another slot of the same process that stands still meanwhile. */
void shm_handle_release(struct shm_ctx *c, uint32_t holder_m1, uint32_t slot)
{
    release(c, &c->mtab[holder_m1 - 1], slot);
}

/* All handles of m, then its table. m is this M, or dead. */
static void drop_all(struct shm_ctx *c, struct shm_m *m)
{
    shm_off table = m->handles_off;
    if (table == 0)
        return;
    for (uint32_t i = 0; i < m->handles_cap; i++)
        if (!(*((uint64_t *)shm_at(c, table) + i) & FREE))
            release(c, m, i);
    bool block = !shm_handles_own(c, m);
    shm_tx_begin(c);
    if (block)
        shm_adopt(c, table);
    shm_tx_store64(c, &m->handles_off, 0);
    shm_tx_store32(c, &m->handles_cap, 0);
    shm_tx_store32(c, &m->handles_free, 0);
    shm_tx_commit(c);
    if (block)
        shm_free(c, table);
}

void shm_handles_drop(struct shm_ctx *c)
{
    drop_all(c, c->m);
}
void shm_handle_reap(struct shm_ctx *c, struct shm_m *dead)
{
    drop_all(c, dead);
}
