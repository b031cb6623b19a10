/* handle.c — objects that live as long as somebody holds a handle.
 *
 * A channel, a join object or a user's object begins with `struct shm_obj`; obj->refs counts
 *   - the handles that the Pythons of all Ms hold: one slot each in the holding M's table;
 *   - the handle words written in bytes: messages, results, continuations (heap.c);
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
 * join's goroutine gets), that of a handle let go of, that of an object which goes on another. So a
 * reaper finds it stored, or in the hand, and gives it back. One word is enough for what an M does
 * in a row.
 *
 * THE LAST reference. Who finds that it is his names the object in m->going, then moves refs from 1
 * to 0 by CAS: so a named one with refs 0 is his to free, with refs above 0 he still has his
 * reference. What frees an object takes its parts out of it one by one, each in a transaction that
 * says where it is now, so that a reaper goes on with it; the last one makes the block the M's own
 * and takes the name back. An object may hold the last reference of another, so the names are a
 * stack. Weak references look for refs > 0, under a lock that who frees has to take (timers,
 * contexts).
 *
 * WHAT IS LOST: a reference that was just taken (shm_obj_ref()) and is not stored yet, and one that
 * is given back beside others, in the instruction between the hand and the count. Then the count is
 * too high, the object stays to the program's end. It is never too low. */
#include "internal.h"

#define FREE (1ULL << 63)

static struct shm_obj *obj_at(struct shm_ctx *c, shm_off obj, const char *what)
{
    struct shm_obj *o = shm_at(c, obj);
    if (unlikely(obj == 0 || obj % 8 || obj >= c->hdr->size || load_rlx(&o->refs) == 0))
        shm_throw("%s: %#llx is no object with references", what, (unsigned long long)obj);
    return o;
}

void shm_obj_ref(struct shm_ctx *c, shm_off obj)
{
    /* Relaxed would do for a count that cannot reach 0 here; it costs the same. */
    add_acqrel(&obj_at(c, obj, "ref")->refs, 1);
}

void shm_hand(struct shm_ctx *c, shm_off obj)
{
    shm_tx_store64(c, &c->m->hand, obj);
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
    o->kind = kind;
    store_rlx(&o->refs, 1); /* nobody else knows it yet */
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

bool shm_obj_drop(struct shm_ctx *c, shm_off obj)
{
    struct shm_m *m = c->m;
    _Atomic uint32_t *refs = &obj_at(c, obj, "unref")->refs;
    uint32_t n = load_acq(refs); /* pairs with the CAS of others: what they did to it */
    for (;;) {
        if (n > 1) {
            if (unlikely(is_going(m, obj))) /* somebody has got one meanwhile: shm_join_fire() */
                m->going_n--;
            if (m->hand == obj)
                m->hand = 0;
            else if (unlikely(m->hand_join == obj))
                m->hand_join = 0;
        } else if (!is_going(m, obj)) {
            shm_tx_begin(c);
            shm_going(c, obj);
            shm_hand_given(c, obj);
            shm_tx_commit(c);
        }
        /* Releases what this M did to the object to whoever frees it. */
        if (likely(cas_acqrel(refs, &n, n - 1)))
            return n == 1;
    }
}

static void obj_free(struct shm_ctx *c, shm_off obj)
{
    switch (((struct shm_obj *)shm_at(c, obj))->kind) {
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

void shm_obj_unref_word(struct shm_ctx *c, shm_off *word)
{
    shm_off obj = *word;
    if (obj == 0)
        return;
    shm_tx_begin(c);
    shm_tx_store64(c, word, 0);
    shm_hand(c, obj);
    shm_tx_commit(c);
    shm_obj_unref(c, obj);
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
    while (dead->going_n) {
        shm_off obj = dead->going[dead->going_n - 1];
        bool last = load_acq(&((struct shm_obj *)shm_at(c, obj))->refs) == 0; /* essay */
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
