/* heap.c — the shared heap: blocks in size classes from per-M magazines. Under them: runs.c.
 *
 * TWO LAYERS
 *   runs     of 4 KiB pages: spans of blocks of one class, and large blocks (runs.c)
 *   blocks   32 B .. 32 KiB, in 28 classes at most 4/3 apart (from 48 on no request wastes more
 *            than a quarter). A block is an 8-byte header and its payload. Each M has, per class, a
 *            magazine (last in, first out: the block freed last is the one still in the cache) and
 *            a span it cuts from the bottom (bump). Full magazines overflow by halves into the
 *            depot, one list per class, from where any M refills: so a block freed far from where
 *            it was allocated comes back a batch at a time.
 * The fast paths of shm_alloc and shm_free touch this M's own slot and the block: no lock, no
 * read-modify-write. Rejected: a lock-free list per class for all Ms (the line of its head would
 * travel at each block, and ABA needs a double-width CAS), and a free list per span (a block freed
 * by another M would need the owner's consent).
 *
 * WHO OWNS A BLOCK
 *   free (0)       its M's magazine or bump span, the depot, or hdr->warm (runs.c) has it
 *   allocated (1)  the M in its header: if that M dies, it is garbage
 *   published (2)  something in the segment names it
 * INV mag-truth: for a block whose M has died, the magazine decides, not the header. Allocation
 * writes the header, then takes the block out of the magazine; freeing makes the block the M's own,
 * puts it into the magazine, then marks it free. Whatever instruction the M died at, the reaper
 * declares free what stands in the magazine or the bump span, then frees what is allocated and the
 * M's; no block is lost and none is free twice.
 *
 * WHAT IS LIVE is not counted, for a death may come between the act and its count. It is what the
 * spans have, less what is free: in the depot, in the magazines, ahead of bump. Each of these moves
 * with the block itself, by one store or in one transaction (shm_heap_stats()). m->st.allocs and
 * its like are figures of what was done, each perhaps one short per death.
 *
 * SCRUB, an option: continuations and messages may hold secrets. What is freed is overwritten, and
 * so is what leaves a value in place or stays behind in a block written anew (bytes.c), a channel's
 * slot, and what an undo log keeps after its commit. Pages given back are the system's to clear. */
#include "heap.h"

#define MAX_SMALL 32768

/* What a free block's payload holds while it is in the depot. */
struct chained {
    shm_off next;       /* block of the same batch */
    shm_off next_batch; /* first block only */
    uint64_t n;         /* first block only: blocks in this batch */
};
static_assert(sizeof(struct chained) + sizeof(struct shm_blk) <= 32, "fits the smallest class");

/* ---- size classes ---------------------------------------------------------------------------- */

/* Class by size in units of 16 bytes, up to 928. */
static const uint8_t cls_of_16[] = {
    [0 ... 2] = 0,    [3] = 1,          [4] = 2,          [5] = 3,          [6] = 4,
    [7] = 5,          [8] = 6,          [9 ... 10] = 7,   [11 ... 12] = 8,  [13 ... 16] = 9,
    [17 ... 20] = 10, [21 ... 26] = 11, [27 ... 34] = 12, [35 ... 44] = 13, [45 ... 58] = 14};

/* `size` counts the block's header. */
static unsigned cls_of(size_t size)
{
    size_t u = (size + 15) / 16;
    if (likely(u < sizeof cls_of_16))
        return cls_of_16[u];
    unsigned cls = 15;
    while (sizes[cls] < size)
        cls++;
    return cls;
}

/* A magazine holds at most SHM_MAG blocks and about 32 KiB. */
static uint32_t mag_cap(unsigned cls)
{
    uint32_t n = 32768 / sizes[cls];
    return n > SHM_MAG ? SHM_MAG : n < 4 ? 4 : n;
}

/* The fewest pages, four or more, for four blocks or more and a rest of at most a sixteenth. */
static uint64_t span_pages(unsigned cls)
{
    uint64_t pages = 4;
    while (span_blocks(cls, pages) < 4 ||
           pages * PAGE - RUN_HEAD - span_blocks(cls, pages) * sizes[cls] > pages * PAGE / 16)
        pages++;
    return pages;
}

/* ---- block headers --------------------------------------------------------------------------- */

/* A word of this M's own slot, released for a reaper as shm_blk_set() is. */
static void own_set32(uint32_t *w, uint32_t v)
{
    store_rel((_Atomic uint32_t *)w, v);
}
static void own_set64(uint64_t *w, uint64_t v)
{
    store_rel((_Atomic uint64_t *)w, v);
}

static uint64_t block_bytes(const struct shm_ctx *c, shm_off off)
{
    unsigned cls = shm_blk(c, off)->cls;
    return cls < SHM_NCLASS ? sizes[cls] : run_at(c, off - RUN_HEAD)->pages * PAGE;
}

size_t shm_usable(const struct shm_ctx *c, shm_off off)
{
    size_t n = block_bytes(c, off);
    return shm_blk(c, off)->cls < SHM_NCLASS ? n - sizeof(struct shm_blk) : n - RUN_HEAD;
}

struct shm_blk *shm_live_blk(const struct shm_ctx *c, shm_off off, const char *what)
{
    const struct shm_hdr *h = c->hdr;
    if (unlikely(off < h->heap_off + RUN_HEAD || off >= h->size || off % 8))
        shm_throw("%s: %#llx is no block", what, (unsigned long long)off);
    struct shm_blk *b = shm_blk(c, off);
    if (unlikely(b->state == 0 || b->cls > SHM_NCLASS))
        shm_throw("%s: block %#llx has class %u, state %u; wanted a live one", what,
                  (unsigned long long)off, b->cls, b->state);
    return b;
}

static void blk_move(struct shm_ctx *c, shm_off off, unsigned state, const char *what)
{
    struct shm_blk *b = shm_live_blk(c, off, what);
    if (c->in_tx)
        shm_tx_store64(c, b, shm_blk_word(b->cls, state, c->m1, b->user));
    else
        shm_blk_set(b, b->cls, state, c->m1, b->user);
}

void shm_publish(struct shm_ctx *c, shm_off off)
{
    blk_move(c, off, 2, "publish");
}
void shm_adopt(struct shm_ctx *c, shm_off off)
{
    blk_move(c, off, 1, "adopt");
}

/* ---- magazines and the depot ----------------------------------------------------------------- */

static struct chained *chained_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

/* Moves the top n blocks of a magazine into the depot as one batch. */
static void spill(struct shm_ctx *c, struct shm_mag *mag, unsigned cls, uint32_t n)
{
    struct shm_hdr *h = c->hdr;
    const shm_off *blk = &mag->blk[mag->n - n];
    for (uint32_t i = 0; i < n; i++)
        chained_at(c, blk[i])->next = i + 1 < n ? blk[i + 1] : 0;
    chained_at(c, blk[0])->n = n;
    shm_lock(c, &h->depot_lock[cls]);
    chained_at(c, blk[0])->next_batch = h->depot[cls];
    shm_tx_begin(c);
    shm_tx_store64(c, &h->depot[cls], blk[0]);
    shm_tx_store64(c, &h->depot_n[cls], load_rlx(&h->depot_n[cls]) + n); /* under the lock */
    shm_tx_store32(c, &mag->n, mag->n - n);
    shm_tx_commit(c);
    shm_unlock(c, &h->depot_lock[cls]);
}

/* The magazine is empty: a batch from the depot into it, if there is one. */
static bool refill(struct shm_ctx *c, unsigned cls)
{
    struct shm_hdr *h = c->hdr;
    struct shm_mag *mag = &c->m->mag[cls];
    /* A hint: stored by shm_tx_store64() in spill(); a batch missed now is found next time. */
    if (load_rlx((_Atomic uint64_t *)&h->depot[cls]) == 0)
        return false;
    shm_lock(c, &h->depot_lock[cls]);
    shm_off first = h->depot[cls];
    if (first) {
        uint32_t n = (uint32_t)chained_at(c, first)->n, i = 0;
        for (shm_off b = first; b && i < SHM_MAG; b = chained_at(c, b)->next)
            mag->blk[i++] = b;
        if (i != n || n > SHM_MAG)
            shm_throw("heap: a batch of class %u has %u blocks, wanted %u", cls, i, n);
        shm_tx_begin(c);
        shm_tx_store64(c, &h->depot[cls], chained_at(c, first)->next_batch);
        shm_tx_store64(c, &h->depot_n[cls], load_rlx(&h->depot_n[cls]) - n); /* under the lock */
        shm_tx_store32(c, &mag->n, n);
        shm_tx_commit(c);
    }
    shm_unlock(c, &h->depot_lock[cls]);
    return first != 0;
}

/* All free blocks of m, this M or a dead one, to the depot. */
void shm_heap_flush(struct shm_ctx *c, struct shm_m *m)
{
    for (unsigned cls = 0; cls < SHM_NCLASS; cls++) {
        struct shm_mag *mag = &m->mag[cls];
        if (mag->n)
            spill(c, mag, cls, mag->n);
        while (mag->bump < mag->bump_end) {
            uint64_t n = (mag->bump_end - mag->bump) / sizes[cls];
            if (n > mag_cap(cls))
                n = mag_cap(cls);
            for (uint64_t i = 0; i < n; i++)
                mag->blk[i] = mag->bump + i * sizes[cls] + sizeof(struct shm_blk);
            shm_tx_begin(c);
            shm_tx_store32(c, &mag->n, (uint32_t)n);
            shm_tx_store64(c, &mag->bump, mag->bump + n * sizes[cls]);
            shm_tx_commit(c);
            spill(c, mag, cls, (uint32_t)n);
        }
    }
}

/* ---- allocate and free ----------------------------------------------------------------------- */

static void count_alloc(struct shm_ctx *c, uint64_t bytes)
{
    own_add(&c->m->st.allocs, 1);
    own_add(&c->m->st.alloc_bytes, bytes);
}

static void count_free(struct shm_ctx *c, uint64_t bytes)
{
    own_add(&c->m->st.frees, 1);
    own_add(&c->m->st.free_bytes, bytes);
}

int shm_alloc(struct shm_ctx *c, size_t n, shm_off *off)
{
    if (unlikely(c->in_tx))
        shm_throw("alloc: M %u is in a transaction", c->m->index);
    if (unlikely(n > MAX_SMALL - sizeof(struct shm_blk))) {
        if (n > c->hdr->heap_bytes) {
            c->wanted = n;
            return SHM_ENOMEM;
        }
        uint64_t pages = (n + RUN_HEAD + PAGE - 1) / PAGE;
        int e = shm_run_large(c, pages, off);
        if (e == SHM_OK)
            count_alloc(c, pages * PAGE);
        return e;
    }
    unsigned cls = cls_of(n + sizeof(struct shm_blk));
    struct shm_mag *mag = &c->m->mag[cls];
    if (unlikely(mag->n == 0 && mag->bump >= mag->bump_end) && !refill(c, cls)) {
        int e = shm_run_span(c, span_pages(cls), cls);
        if (e)
            return e;
    }
    /* INV mag-truth: the header first, then out of the magazine. */
    if (likely(mag->n > 0)) {
        *off = mag->blk[mag->n - 1];
        shm_blk_set(shm_blk(c, *off), cls, 1, c->m1, 0);
        FAILPOINT("heap.alloc.marked");
        own_set32(&mag->n, mag->n - 1);
    } else {
        *off = mag->bump + sizeof(struct shm_blk);
        shm_blk_set(shm_blk(c, *off), cls, 1, c->m1, 0);
        FAILPOINT("heap.bump.marked");
        own_set64(&mag->bump, mag->bump + sizes[cls]);
    }
    FAILPOINT("heap.alloc.taken");
    count_alloc(c, sizes[cls]);
    return SHM_OK;
}

void shm_free(struct shm_ctx *c, shm_off off)
{
    struct shm_blk *b = shm_live_blk(c, off, "free");
    if (unlikely(c->in_tx))
        shm_throw("free: M %u is in a transaction", c->m->index);
    unsigned cls = b->cls;
    uint64_t bytes = block_bytes(c, off);
    shm_blk_set(b, cls, 1, c->m1, 0);
    FAILPOINT("heap.free.owned");
    if (unlikely(cls == SHM_NCLASS)) {
        shm_run_free(c, off - RUN_HEAD);
        count_free(c, bytes);
        return;
    }
    if (unlikely(c->hdr->scrub))
        memset(shm_at(c, off), SHM_SCRUB, sizes[cls] - sizeof *b); /* who still reads it shows */
    struct shm_mag *mag = &c->m->mag[cls];
    if (unlikely(mag->n == mag_cap(cls)))
        spill(c, mag, cls, mag->n / 2);
    /* INV mag-truth: into the magazine first, then free. */
    mag->blk[mag->n] = off;
    own_set32(&mag->n, mag->n + 1);
    FAILPOINT("heap.free.stored");
    shm_blk_set(b, cls, 0, 0, 0);
    count_free(c, bytes);
}

bool shm_same_size(const struct shm_ctx *c, shm_off off, size_t n)
{
    size_t size = n + sizeof(struct shm_blk);
    return size <= MAX_SMALL && cls_of(size) == shm_blk(c, off)->cls;
}

/* ---- looking at it all ----------------------------------------------------------------------- */

/* Blocks that m has ready. Of another M, as it is meanwhile: a bump span that is just changed has
 * ends that do not belong together. */
static uint64_t mag_blocks(struct shm_mag *mag, unsigned cls)
{
    uint64_t end = load_rlx((_Atomic uint64_t *)&mag->bump_end);
    uint64_t rest = (end - load_rlx((_Atomic uint64_t *)&mag->bump)) / sizes[cls];
    return load_rlx((_Atomic uint32_t *)&mag->n) +
           (rest <= span_blocks(cls, span_pages(cls)) ? rest : 0);
}

/* Exact when nobody allocates or frees meanwhile (relaxed: these are statistics): a batch on its
 * way into the depot or out of it may be seen twice, or not. */
void shm_heap_stats(struct shm_ctx *c, struct shm_heap_stats *s)
{
    const struct shm_hdr *h = c->hdr;
    uint32_t n = load_acq(&h->max_m); /* pairs with the CAS in shm_minit() */
    uint64_t cont_frees = 0;
    memset(s, 0, sizeof *s);
    for (unsigned cls = 0; cls < SHM_NCLASS; cls++) {
        uint64_t free = load_rlx(&h->depot_n[cls]), cut = load_rlx(&h->cut[cls]);
        for (uint32_t i = 0; i < n; i++)
            free += mag_blocks(&c->mtab[i].mag[cls], cls);
        uint64_t live = cut > free ? cut - free : 0;
        s->live_blocks += live;
        s->live_bytes += live * sizes[cls];
    }
    s->large_bytes = load_rlx(&h->large_bytes);
    s->live_blocks += load_rlx(&h->large_n);
    s->live_bytes += s->large_bytes;
    /* Frees first: so one in transit counts as live, and the difference never wraps. */
    for (uint32_t i = 0; i < n; i++)
        cont_frees += load_acq(&c->mtab[i].st.cont_frees); /* before the loads below */
    for (uint32_t i = 0; i < n; i++)
        s->live_conts += load_rlx(&c->mtab[i].st.cont_allocs);
    s->live_conts -= cont_frees;
    s->committed = load_rlx(&h->heap_committed);
}

bool shm_heap_each(struct shm_ctx *c, void (*fn)(void *arg, shm_off off, const struct shm_blk *b),
                   void *arg)
{
    const struct shm_hdr *h = c->hdr;
    shm_off at = h->heap_off, top = h->heap_top;
    while (at < top) {
        const struct run *r = run_at(c, at);
        unsigned cls = (uint32_t)r->kind_cls;
        if (r->pages == 0 || r->pages > (top - at) / PAGE || run_kind(r) < RUN_FREE ||
            run_kind(r) > RUN_LARGE || (run_kind(r) == RUN_SPAN && cls >= SHM_NCLASS))
            return false;
        if (run_kind(r) == RUN_LARGE)
            fn(arg, at + RUN_HEAD, &r->blk);
        for (uint64_t i = 0; run_kind(r) == RUN_SPAN && i < span_blocks(cls, r->pages); i++) {
            shm_off off = at + RUN_HEAD + i * sizes[cls] + sizeof(struct shm_blk);
            fn(arg, off, shm_blk(c, off));
        }
        at += r->pages * PAGE;
    }
    return at == top;
}

/* ---- after a death --------------------------------------------------------------------------- */

struct reaping {
    uint32_t m1, n;
    shm_off off[128];
};

static void note_if_his(void *arg, shm_off off, const struct shm_blk *b)
{
    struct reaping *r = arg;
    /* A block of a living M may change under our eyes, but never into one of the dead M's. */
    union shm_blk_bits u = {.word = load_rlx((_Atomic uint64_t *)(uintptr_t)b)};
    if (u.blk.state == 1 && u.blk.owner_m1 == r->m1 && r->n < 128)
        r->off[r->n++] = off;
}

/* What is in the magazine or ahead of bump is free, whatever its header says (INV mag-truth). */
static void settle(struct shm_ctx *c, struct shm_m *dead)
{
    for (unsigned cls = 0; cls < SHM_NCLASS; cls++) {
        const struct shm_mag *mag = &dead->mag[cls];
        for (uint32_t i = 0; i < mag->n; i++)
            shm_blk_set(shm_blk(c, mag->blk[i]), cls, 0, 0, 0);
        for (shm_off at = mag->bump; at < mag->bump_end; at += sizes[cls])
            shm_blk_set(shm_at(c, at), cls, 0, 0, 0);
    }
}

void shm_heap_reap(struct shm_ctx *c, struct shm_m *dead)
{
    struct reaping r = {.m1 = dead->index + 1};
    settle(c, dead);
    shm_heap_flush(c, dead);
    /* A handful at a time: freeing takes locks of its own. Who frees owns the block from the first
     * step on, so a reaper that dies here leaves it to the one who reaps him. */
    do {
        r.n = 0;
        shm_lock(c, &c->hdr->heap_lock);
        bool whole = shm_heap_each(c, note_if_his, &r);
        shm_unlock(c, &c->hdr->heap_lock);
        if (!whole)
            shm_throw("heap_reap: the runs do not tile the heap");
        for (uint32_t i = 0; i < r.n; i++)
            shm_bytes_drop(c, r.off[i]);
    } while (r.n > 0);
}
