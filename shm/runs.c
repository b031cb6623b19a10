/* runs.c — the pages under the heap: runs of 4 KiB pages, taken, given back, kept warm.
 *
 * The region [heap_off, heap_top) is tiled by runs, each with a 64-byte header at its start: a SPAN
 * (blocks of one class, heap.c), a LARGE block, or FREE. Free runs are linked in address order,
 * taken first fit from their upper end, and merged with their neighbours; a free run at the top
 * lowers heap_top. All under heap_lock, by tx.
 *
 * MEMORY IS GIVEN BACK. Of a free run only the first page, with its header, is backed: the others
 * are holes. They are punched before the run is linked, while it still belongs to who frees it, so
 * neither a reader of the list nor a rollback meets a run that is half one and half the other; an
 * allocation commits its pages again. heap_committed moves in the same transaction.
 * Spans are not given back: what a class has needed once it is likely to need again.
 *
 * A death between the commit of a merge and the punching of the page that held the absorbed header
 * leaves that one page backed: it is whole again after the run's next use.
 *
 * WARM. To give 200 MB back, to get them again as zeros and to map them page by page takes five
 * times as long as to write them (180 against 22 ms), and who sends an array of some size mostly
 * sends the next. So a large block that is freed stays for WARM_NS as it is, a run of its own with
 * all its pages, named in hdr->warm; a large block of about its size takes it over. What nobody
 * took the keeper gives back (shm_heap_cool()); and so does at once whoever finds no room. It is
 * free like any other (live figures do not count it, heap_committed does). There are SHM_WARM at
 * most, of hdr->warm_max bytes together: what is beyond goes back at once. warm_max is the keeper's
 * word that it is there to see to it; it is 0 without one, and under scrub.
 *
 * INV warm-free: a large block that is free (0) is named in hdr->warm, once, and there is no other
 * there. Between that and an M's own it changes in one transaction. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* fallocate */
#endif
#include "heap.h"

#include <fcntl.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define WARM_NS 300000000ULL
#define WARM_LEAST (64ULL << 10) /* bytes; a smaller one is as soon made anew */

/* In a tx, heap_lock held: so many more, or fewer, live large blocks, and bytes in them. */
static void large_count(struct shm_ctx *c, uint64_t n, uint64_t bytes)
{
    struct shm_hdr *h = c->hdr;
    shm_tx_store64(c, &h->large_bytes, load_rlx(&h->large_bytes) + bytes);
    shm_tx_store64(c, &h->large_n, load_rlx(&h->large_n) + n);
}

/* What a new run holds before anybody can reach it: written plainly. */
static void run_format(struct shm_ctx *c, shm_off at, unsigned kind, unsigned cls, uint64_t pages)
{
    if (kind == RUN_LARGE) {
        shm_blk_set(&run_at(c, at)->blk, SHM_NCLASS, 1, c->m1, 0);
        return;
    }
    for (uint64_t i = 0; i < span_blocks(cls, pages); i++)
        shm_blk_set(shm_at(c, at + RUN_HEAD + i * sizes[cls]), cls, 0, 0, 0);
}

/* heap_lock held, in a tx. The link that leads to what comes after the free run at `prev`. */
static uint64_t *link_after(struct shm_ctx *c, shm_off prev)
{
    return prev ? &run_at(c, prev)->next : &c->hdr->run_free;
}

/* heap_lock held. A new span becomes this M's bump span of its class. */
static int run_take(struct shm_ctx *c, uint64_t pages, unsigned kind, unsigned cls, shm_off *off)
{
    struct shm_hdr *h = c->hdr;
    shm_off prev = 0, r = h->run_free;
    while (r && run_at(c, r)->pages < pages) {
        prev = r;
        r = run_at(c, r)->next;
    }
    uint64_t spare = r ? run_at(c, r)->pages - pages : 0;
    shm_off at = r ? r + spare * PAGE : h->heap_top;
    if (!r && pages * PAGE > h->size - at) {
        c->wanted = pages * PAGE;
        return SHM_ENOMEM;
    }
    /* The rest of a large block is committed by its owner alone: it may take long. */
    int e = shm_commit(c, at, kind == RUN_SPAN ? pages * PAGE : PAGE);
    if (e)
        return e;
    struct run *n = run_at(c, at);
    run_format(c, at, kind, cls, pages);
    shm_tx_begin(c);
    shm_tx_store64(c, &n->pages, pages);
    shm_tx_store64(c, &n->kind_cls, (uint64_t)kind << 32 | cls);
    if (!r)
        shm_tx_store64(c, &h->heap_top, at + pages * PAGE);
    else if (spare)
        shm_tx_store64(c, &run_at(c, r)->pages, spare);
    else
        shm_tx_store64(c, link_after(c, prev), n->next);
    shm_tx_store64(c, &h->heap_committed,
                   load_rlx(&h->heap_committed) + (pages - (r && !spare)) * PAGE);
    if (kind == RUN_LARGE) {
        large_count(c, 1, pages * PAGE);
    } else {
        shm_tx_store64(c, &h->cut[cls], load_rlx(&h->cut[cls]) + span_blocks(cls, pages));
        struct shm_mag *mag = &c->m->mag[cls];
        shm_tx_store64(c, &mag->bump, at + RUN_HEAD);
        shm_tx_store64(c, &mag->bump_end, at + RUN_HEAD + span_blocks(cls, pages) * sizes[cls]);
    }
    shm_tx_commit(c);
    *off = at;
    return SHM_OK;
}

static int run_alloc(struct shm_ctx *c, uint64_t pages, unsigned kind, unsigned cls, shm_off *off)
{
    shm_lock(c, &c->hdr->heap_lock);
    int e = run_take(c, pages, kind, cls, off);
    shm_unlock(c, &c->hdr->heap_lock);
    return e;
}

static void punch(struct shm_ctx *c, shm_off at, uint64_t n)
{
    if (n == 0)
        return;
    while (fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n))
        if (errno != EINTR)
            shm_throw("heap: punch %#llx + %#llx: %s", (unsigned long long)at,
                      (unsigned long long)n, strerror(errno));
}

/* Links the run at `at`, a large block of this M, into the free runs. */
static void give_back(struct shm_ctx *c, shm_off at)
{
    struct shm_hdr *h = c->hdr;
    struct run *n = run_at(c, at);
    uint64_t pages = n->pages;
    if (unlikely(c->hdr->scrub))
        memset((uint8_t *)n + RUN_HEAD, SHM_SCRUB, PAGE - RUN_HEAD);
    punch(c, at + PAGE, (pages - 1) * PAGE);
    FAILPOINT("runs.large.punched");

    shm_lock(c, &h->heap_lock);
    shm_off pprev = 0, prev = 0, next = h->run_free;
    while (next && next < at) {
        pprev = prev;
        prev = next;
        next = run_at(c, next)->next;
    }
    bool low = prev && prev + run_at(c, prev)->pages * PAGE == at;
    bool high = next && at + pages * PAGE == next;
    shm_off start = low ? prev : at, after = high ? run_at(c, next)->next : next;
    uint64_t total =
        pages + (low ? run_at(c, prev)->pages : 0) + (high ? run_at(c, next)->pages : 0);
    bool top = start + total * PAGE == h->heap_top;
    uint64_t *link = link_after(c, low ? pprev : prev);

    shm_tx_begin(c);
    if (top) {
        shm_tx_store64(c, &h->heap_top, start);
        shm_tx_store64(c, link, 0);
    } else {
        struct run *f = run_at(c, start);
        shm_tx_store64(c, &f->pages, total);
        shm_tx_store64(c, &f->next, after);
        shm_tx_store64(c, &f->kind_cls, (uint64_t)RUN_FREE << 32);
        shm_tx_store64(c, link, start);
    }
    shm_tx_store64(c, &n->blk, shm_blk_word(SHM_NCLASS, 0, 0, 0));
    shm_tx_store64(c, &h->heap_committed,
                   load_rlx(&h->heap_committed) - (pages + low + high - !top) * PAGE);
    large_count(c, -1ULL, -(pages * PAGE));
    shm_tx_commit(c);
    if (high)
        punch(c, next, PAGE);
    if (low)
        punch(c, at, PAGE);
    if (top)
        punch(c, start, PAGE);
    shm_unlock(c, &h->heap_lock);
}

/* ---- warm ------------------------------------------------------------------------------------ */

/* In a tx, heap_lock held: the block of the run at `at` is live and this M's, or free and warm. */
static void warm_move(struct shm_ctx *c, shm_off at, bool live)
{
    struct shm_hdr *h = c->hdr;
    struct run *r = run_at(c, at);
    uint64_t bytes = r->pages * PAGE, one = 1;
    if (!live) {
        bytes = -bytes;
        one = -one;
    }
    shm_tx_store64(c, &h->warm_n, load_rlx(&h->warm_n) - one);
    shm_tx_store64(c, &h->warm_bytes, h->warm_bytes - bytes);
    large_count(c, one, bytes);
    shm_tx_store64(c, &r->blk, shm_blk_word(SHM_NCLASS, live, live ? c->m1 : 0, 0));
}

/* heap_lock held. The run that `w` names is this M's own. */
static shm_off warm_take(struct shm_ctx *c, struct shm_warm *w)
{
    shm_off at = w->blk - RUN_HEAD;
    shm_tx_begin(c);
    shm_tx_store64(c, &w->blk, 0);
    warm_move(c, at, true);
    shm_tx_commit(c);
    return at;
}

/* The one freed last whose pages are enough, and at most an eighth more. 0: there is none. */
static shm_off warm_alloc(struct shm_ctx *c, uint64_t pages)
{
    struct shm_hdr *h = c->hdr;
    struct shm_warm *best = NULL;
    shm_off at = 0;
    if (load_rlx(&h->warm_n) == 0) /* a hint: then they are made anew */
        return 0;
    shm_lock(c, &h->heap_lock);
    for (struct shm_warm *w = h->warm; w < h->warm + SHM_WARM; w++) {
        uint64_t has = w->blk ? run_at(c, w->blk - RUN_HEAD)->pages : 0;
        if (has >= pages && has - pages <= pages / 8 && (!best || w->since_ns > best->since_ns))
            best = w;
    }
    if (best)
        at = warm_take(c, best);
    shm_unlock(c, &h->heap_lock);
    return at;
}

static bool warm_keep(struct shm_ctx *c, shm_off at)
{
    struct shm_hdr *h = c->hdr;
    uint64_t bytes = run_at(c, at)->pages * PAGE;
    uint64_t max = load_rlx(&h->warm_max); /* a level */
    if (bytes < WARM_LEAST || bytes > max)
        return false;
    shm_lock(c, &h->heap_lock);
    struct shm_warm *w = h->warm, *end = w + SHM_WARM;
    while (w < end && w->blk)
        w++;
    bool fits = w < end && h->warm_bytes + bytes <= max;
    if (fits) {
        w->since_ns = shm_now_ns(); /* means nothing until `blk` is there */
        FAILPOINT("runs.warm.since");
        shm_tx_begin(c);
        shm_tx_store64(c, &w->blk, at + RUN_HEAD);
        warm_move(c, at, false);
        shm_tx_commit(c);
    }
    shm_unlock(c, &h->heap_lock);
    if (fits)
        shm_wakepoller(c);
    return fits;
}

bool shm_heap_cool(struct shm_ctx *c, uint64_t now_ns)
{
    struct shm_hdr *h = c->hdr;
    shm_off at = 0;
    if (load_rlx(&h->warm_n) == 0) /* a hint: the keeper asks again */
        return false;
    shm_lock(c, &h->heap_lock);
    for (struct shm_warm *w = h->warm; w < h->warm + SHM_WARM && !at; w++)
        if (w->blk && w->since_ns + WARM_NS <= now_ns)
            at = warm_take(c, w);
    shm_unlock(c, &h->heap_lock);
    FAILPOINT("runs.cool.taken");
    if (at)
        give_back(c, at);
    return at != 0;
}

void shm_populate(void *from, uint64_t n)
{
    uint64_t before = (uintptr_t)from % PAGE;
    int err = errno;
    /* A kernel before 5.14 does not know it; then each page faults. */
    (void)madvise((uint8_t *)from - before, n + before, MADV_POPULATE_WRITE);
    errno = err;
}

/* ---- for heap.c ------------------------------------------------------------------------------ */

/* No room, but there is some after this. */
static bool made_room(struct shm_ctx *c, int e)
{
    return (e == SHM_ENOMEM || e == SHM_ENOSPC) && shm_heap_cool(c, UINT64_MAX);
}

int shm_run_span(struct shm_ctx *c, uint64_t pages, unsigned cls)
{
    shm_off at; /* mag->bump has it from here on */
    int e;
    do
        e = run_alloc(c, pages, RUN_SPAN, cls, &at);
    while (made_room(c, e));
    return e;
}

static int large_new(struct shm_ctx *c, uint64_t pages, shm_off *at)
{
    int e = run_alloc(c, pages, RUN_LARGE, SHM_NCLASS, at);
    if (e)
        return e;
    FAILPOINT("runs.large.taken");
    e = shm_commit(c, *at, pages * PAGE);
    if (e)
        give_back(c, *at);
    return e;
}

int shm_run_large(struct shm_ctx *c, uint64_t pages, shm_off *off)
{
    int e = SHM_OK;
    shm_off at;
    while ((at = warm_alloc(c, pages)) == 0 && (e = large_new(c, pages, &at)) && made_room(c, e))
        continue;
    *off = at + RUN_HEAD;
    return e;
}

void shm_run_free(struct shm_ctx *c, shm_off at)
{
    if (!warm_keep(c, at))
        give_back(c, at);
}
