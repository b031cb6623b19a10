/* bytes.c — values and continuations: bytes, and the handles that are written in them.
 *
 * A message, a result, a resume value is a struct shm_val: up to 15 bytes stand in place, others in
 * a heap block that it alone names. A continuation is such a block too, named by g->cont_off.
 *
 * THE BLOCK begins with the bytes and ends with the handle words (kind << 56 | offset), the last
 * words of its usable size:
 *
 *     shm_blk | bytes ......................... (rest) | word n ... word 2 | word 1
 *
 * How many words there are stands in the block's header, and whether it is a continuation. So who
 * meets the block alone, a reaper of its owner above all, gives back what it refers to without
 * knowing how many bytes there are or what they mean.
 *
 * COUNTED: a word that the header counts is one reference on its object, and no other word is.
 * It is written first; then header and object's count change as one (shm_obj_ref_as(), handle.c).
 * So a block is whole at every instruction, however many of its words it has by then, and
 * shm_bytes_drop() goes on where a dead M stood.
 *
 * CONTINUATIONS ARE COUNTED: a block becomes one, and ceases to be one, in the transaction that
 * says so in its header.
 *
 * FROM HAND TO HAND a block goes with what names it. Under a lock that is one transaction, with
 * shm_publish() and shm_adopt(). Without one (the words of a G, by its owner) it leaves the segment
 * by being the M's own first and named no more after that, and comes into it the other way round:
 * in between it has a name and an owner. A reaper goes by names first (it ends the G, which drops
 * what it names), by owners last (shm_heap_reap()), and then such a block is free. */
#include "internal.h"

/* ---- blocks with handle words ---------------------------------------------------------------- */

static uint32_t nhandles(const struct shm_blk *b)
{
    return b->user & ~SHM_BLK_CONT;
}

static uint64_t *handle_words(const struct shm_ctx *c, shm_off off)
{
    return (uint64_t *)((uint8_t *)shm_at(c, off) + shm_usable(c, off)) - nhandles(shm_blk(c, off));
}

const uint64_t *shm_bytes_handles(const struct shm_ctx *c, shm_off off, uint32_t *n)
{
    *n = nhandles(shm_blk(c, off));
    return handle_words(c, off);
}

void shm_bytes_hold(struct shm_ctx *c, shm_off off, uint64_t word)
{
    struct shm_blk *b = shm_blk(c, off);
    handle_words(c, off)[-1] = word;
    shm_obj_ref_as(c, SHM_HANDLE_OFF(word), b, shm_blk_word(b->cls, 1, c->m1, b->user + 1));
}

static size_t bytes_size(uint32_t len, uint32_t nh)
{
    return ((size_t)len + 7) / 8 * 8 + 8ULL * nh;
}

static int bytes_make(struct shm_ctx *c, shm_off *off, const void *bytes, uint32_t len,
                      const uint64_t *h, uint32_t nh, uint32_t cont)
{
    int e = shm_alloc(c, bytes_size(len, nh), off);
    if (e)
        return e;
    if (len)
        memcpy(shm_at(c, *off), bytes, len);
    struct shm_blk *b = shm_blk(c, *off);
    if (cont) {
        shm_tx_begin(c);
        shm_tx_store64(c, b, shm_blk_word(b->cls, 1, c->m1, cont));
        shm_tx_store64(c, &c->m->st.cont_allocs, load_rlx(&c->m->st.cont_allocs) + 1);
        shm_tx_commit(c);
    }
    while (nh > 0)
        shm_bytes_hold(c, *off, h[--nh]);
    return SHM_OK;
}

void shm_bytes_drop(struct shm_ctx *c, shm_off off)
{
    struct shm_blk *b = shm_live_blk(c, off, "drop");
    shm_blk_set(b, b->cls, 1, c->m1, b->user);
    while (nhandles(b))
        shm_obj_unref_as(c, SHM_HANDLE_OFF(*handle_words(c, off)), b,
                         shm_blk_word(b->cls, 1, c->m1, b->user - 1));
    if (b->user) { /* SHM_BLK_CONT */
        shm_tx_begin(c);
        shm_tx_store64(c, b, shm_blk_word(b->cls, 1, c->m1, 0));
        shm_tx_store64(c, &c->m->st.cont_frees, load_rlx(&c->m->st.cont_frees) + 1);
        shm_tx_commit(c);
    }
    shm_free(c, off);
}

/* ---- values ---------------------------------------------------------------------------------- */

int shm_val_make(struct shm_ctx *c, struct shm_val *v, const void *bytes, uint32_t len,
                 const uint64_t *h, uint32_t nh)
{
    if (len <= sizeof v->b && nh == 0) {
        if (len)
            memcpy(v->b, bytes, len);
        v->tag = (uint8_t)len;
        return SHM_OK;
    }
    shm_off off;
    int e = bytes_make(c, &off, bytes, len, h, nh, 0);
    if (e)
        return e;
    v->h.off = off;
    v->h.len = len;
    v->tag = SHM_VAL_HEAP;
    return SHM_OK;
}

const uint8_t *shm_val_bytes(const struct shm_ctx *c, const struct shm_val *v, uint32_t *len)
{
    if (v->tag == SHM_VAL_HEAP) {
        *len = v->h.len;
        return shm_at(c, v->h.off);
    }
    *len = v->tag == SHM_VAL_NONE ? 0 : v->tag;
    return v->tag == SHM_VAL_NONE ? NULL : v->b;
}

/* The way of a value out of the segment. */
static bool val_leaves(struct shm_ctx *c, struct shm_val *v, shm_off *off)
{
    bool heap = v->tag == SHM_VAL_HEAP;
    *off = heap ? v->h.off : 0;
    if (heap)
        shm_adopt(c, *off);
    store_rel((_Atomic uint8_t *)&v->tag, SHM_VAL_NONE); /* after that, for a reaper: FROM HAND */
    if (unlikely(c->hdr->scrub))
        memset(v->b, 0, sizeof v->b);
    return heap;
}

void shm_val_take(struct shm_ctx *c, struct shm_val *to, struct shm_val *from)
{
    shm_off off;
    *to = *from;
    val_leaves(c, from, &off);
}

void shm_val_drop(struct shm_ctx *c, struct shm_val *v)
{
    shm_off off;
    if (val_leaves(c, v, &off))
        shm_bytes_drop(c, off);
}

int shm_val_copy(struct shm_ctx *c, struct shm_val *to, const struct shm_val *from)
{
    if (from->tag != SHM_VAL_HEAP) {
        *to = *from;
        return SHM_OK;
    }
    shm_off src = from->h.off;
    return shm_val_make(c, to, shm_at(c, src), from->h.len, handle_words(c, src),
                        nhandles(shm_blk(c, src)));
}

/* ---- continuations --------------------------------------------------------------------------- */

int shm_cont_make(struct shm_ctx *c, shm_off *off, const void *bytes, uint32_t len,
                  const uint64_t *h, uint32_t nh)
{
    return bytes_make(c, off, bytes, len, h, nh, SHM_BLK_CONT);
}

int shm_cont_of_val(struct shm_ctx *c, const struct shm_val *v, shm_off *off, uint32_t *len)
{
    const uint8_t *bytes = shm_val_bytes(c, v, len);
    uint32_t nh = v->tag == SHM_VAL_HEAP ? nhandles(shm_blk(c, v->h.off)) : 0;
    return shm_cont_make(c, off, bytes, *len, nh ? handle_words(c, v->h.off) : NULL, nh);
}

void shm_cont_drop(struct shm_ctx *c, shm_off off, uint32_t len)
{
    if (len > shm_usable(c, off) - 8ULL * nhandles(shm_blk(c, off)))
        shm_throw("drop: a continuation of %u bytes does not fit block %#llx", len,
                  (unsigned long long)off);
    shm_bytes_drop(c, off);
}

void shm_gcont_set(struct shm_ctx *c, struct shm_g *g, shm_off off, uint32_t len)
{
    g->cont_len = len;
    store_rel((_Atomic uint64_t *)&g->cont_off, off); /* after len; for the reaper */
    shm_publish(c, off);
}

shm_off shm_gcont_take(struct shm_ctx *c, struct shm_g *g)
{
    shm_off off = g->cont_off;
    if (off == 0)
        return 0;
    shm_adopt(c, off);
    store_rel((_Atomic uint64_t *)&g->cont_off, 0); /* after that, as in val_leaves() */
    FAILPOINT("bytes.cont.left");
    return off;
}

void shm_gcont_drop(struct shm_ctx *c, struct shm_g *g)
{
    shm_off off = shm_gcont_take(c, g);
    if (off != 0)
        shm_cont_drop(c, off, g->cont_len);
}

/* If this M dies in here, the block is its own: its words are given back, its bytes not read. */
bool shm_cont_rewrite(struct shm_ctx *c, shm_off off, const void *bytes, uint32_t len)
{
    uint32_t nh = nhandles(shm_live_blk(c, off, "rewrite"));
    if (!shm_same_size(c, off, bytes_size(len, nh)))
        return false;
    FAILPOINT("bytes.cont.rewrite");
    memcpy(shm_at(c, off), bytes, len);
    if (unlikely(c->hdr->scrub))
        memset((uint8_t *)shm_at(c, off) + len, SHM_SCRUB, shm_usable(c, off) - len - 8ULL * nh);
    return true;
}
