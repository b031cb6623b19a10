/* check.c — walks the whole segment and says what is wrong with it. Writes nothing.
 *
 * For tests, after each program, and for `doctor`: a segment at rest, or one whose Ms have died.
 * While Ms run, what they are in the middle of looks like a breach.
 *
 * NOTHING IS TRUSTED. An offset is followed only if it is that of a live block of the heap, large
 * enough for what is to be read there; an index only if the table has it; a chain only as long as
 * it can be. So a damaged segment is reported, not crashed on. (shm_heap_each() checks each run
 * before it steps to the next.)
 *
 * THE WALK
 *   1 all live blocks of the heap, in order, into a table of this process
 *   2 Ms and Ps: what they hold and name; run queues, free lists, timer heaps: where each G was met
 *     (check_sched.c)
 *   3 the g table: statuses, waits, continuations (check_sched.c). What a G, a handle or a queue
 *     leads to is marked, and the marks are followed: objects, their values, the handle words in
 *     those (check_objects.c)
 *   4 what is left over: Gs that are nowhere, published blocks that nothing names, counts too low
 *
 * The invariants are cited by the names they have in the essays. */
#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void check_say(struct check *k, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    k->breaches++;
    if (k->out)
        k->out(k->arg, text);
}

/* ---- 1: blocks ------------------------------------------------------------------------------- */

/* INV warm-free (runs.c). */
static void free_large(struct check *k, shm_off off)
{
    unsigned names = 0;
    for (int i = 0; i < SHM_WARM; i++)
        names += k->c->hdr->warm[i].blk == off;
    if (names != 1)
        check_say(k, "large block %#llx is free, named %u times as warm", LLU(off), names);
    k->warm++;
}

static void collect(void *arg, shm_off off, const struct shm_blk *b)
{
    struct check *k = arg;
    if (b->state == 0) {
        if (b->cls == SHM_NCLASS)
            free_large(k, off);
        return;
    }
    if (b->state > 2 || b->cls > SHM_NCLASS) {
        check_say(k, "block %#llx: state %u, class %u", LLU(off), b->state, b->cls);
        return;
    }
    if (k->nblocks == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 1024;
        struct block *more = realloc(k->blocks, cap * sizeof *more);
        if (!more) {
            check_say(k, "check: no memory for %zu blocks", cap);
            return;
        }
        k->blocks = more;
        k->cap = cap;
    }
    uint64_t usable = shm_usable(k->c, off);
    uint32_t user = b->user & ~SHM_BLK_CONT;
    k->conts += (b->user & SHM_BLK_CONT) != 0;
    if (8ULL * user > usable) {
        check_say(k, "block %#llx: %u handle words in %llu bytes", LLU(off), user, LLU(usable));
        user = 0;
    }
    k->blocks[k->nblocks++] =
        (struct block){.off = off, .usable = usable, .handles = user, .state = b->state};
}

struct block *check_block_at(const struct check *k, shm_off off)
{
    size_t lo = 0, hi = k->nblocks;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (k->blocks[mid].off < off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < k->nblocks && k->blocks[lo].off == off ? &k->blocks[lo] : NULL;
}

struct block *check_mark(struct check *k, shm_off off, uint64_t n, const char *what)
{
    struct block *b = check_block_at(k, off);
    if (!b || b->usable < n) {
        check_say(k, "%s: %#llx is no live block of %llu bytes", what, LLU(off), LLU(n));
        return NULL;
    }
    if (b->state != 2)
        check_say(k, "%s: block %#llx is not published", what, LLU(off));
    if (!b->marked) {
        b->marked = 1;
        k->todo[k->ntodo++] = (size_t)(b - k->blocks);
    }
    return b;
}

/* What an object of its kind needs; UINT64_MAX: no such kind. */
static uint64_t object_bytes(const struct check *k, shm_off off, const struct block *b)
{
    switch (shm_kind(shm_at(k->c, off))) {
    case SHM_OBJ_CHAN:
        return b->usable >= sizeof(struct shm_chan) &&
                       ((const struct shm_chan *)shm_at(k->c, off))->timer
                   ? sizeof(struct shm_timer)
                   : sizeof(struct shm_chan);
    case SHM_OBJ_JOIN:
        return sizeof(struct shm_join);
    case SHM_OBJ_TIMER:
        return sizeof(struct shm_afterfunc);
    case SHM_OBJ_CONTEXT:
        return sizeof(struct shm_context);
    case SHM_OBJ_GROUP:
        return sizeof(struct shm_group);
    case SHM_OBJ_DONEQ:
        return sizeof(struct shm_doneq);
    case SHM_OBJ_ARRAY:
        return b->usable < sizeof(struct shm_array)
                   ? UINT64_MAX
                   : sizeof(struct shm_array) +
                         ((const struct shm_array *)shm_at(k->c, off))->bytes;
    case SHM_OBJ_SEMA:
        return sizeof(struct shm_sema);
    case SHM_OBJ_ATOMIC:
        return sizeof(struct shm_atomic);
    case SHM_OBJ_MAP:
        return sizeof(struct shm_map);
    case SHM_OBJ_USER:
        return sizeof(struct shm_obj);
    }
    return UINT64_MAX;
}

void check_mark_object(struct check *k, shm_off off, bool counted, const char *what)
{
    struct block *b = check_mark(k, off, sizeof(struct shm_obj), what);
    if (!b)
        return;
    const struct shm_obj *o = shm_at(k->c, off);
    if (b->usable < object_bytes(k, off, b)) {
        check_say(k, "%s: object %#llx has kind %u in %llu bytes", what, LLU(off), shm_kind(o),
                  LLU(b->usable));
        return;
    }
    b->object = 1;
    b->found += counted;
}

void check_mark_value(struct check *k, const struct shm_val *v, const char *what)
{
    if (v->tag <= sizeof v->b || v->tag == SHM_VAL_NONE)
        return;
    if (v->tag != SHM_VAL_HEAP) {
        check_say(k, "%s: a value of tag %#x", what, v->tag);
        return;
    }
    check_mark(k, v->h.off, v->h.len, what);
}

void check_kept(struct check *k, shm_off off, uint64_t bytes, const char *what)
{
    struct block *b = check_mark(k, off, bytes, what);
    if (b)
        b->registry = 1;
}

/* ---- 3: what is marked ----------------------------------------------------------------------- */

static void follow(struct check *k)
{
    while (k->ntodo) {
        struct block *b = &k->blocks[k->todo[--k->ntodo]];
        const uint64_t *words = shm_at(k->c, b->off + b->usable - 8ULL * b->handles);
        for (uint32_t i = 0; i < b->handles; i++)
            check_mark_object(k, SHM_HANDLE_OFF(words[i]), true, "handle in bytes");
        if (b->object)
            check_object(k, b->off);
    }
}

/* ---- 4: what is left over -------------------------------------------------------------------- */

/* An object that nothing in the segment names, but somebody's C variable: tests have such. */
static bool looks_like_object(const struct check *k, const struct block *b)
{
    const struct shm_obj *o = shm_at(k->c, b->off);
    return b->usable >= sizeof *o && b->usable >= object_bytes(k, b->off, b) && shm_refs(o) > 0 &&
           shm_refs(o) < 1U << 24;
}

static void check_left(struct check *k)
{
    struct shm_ctx *c = k->c;
    for (size_t i = 0; i < k->nblocks; i++)
        if (!k->quiet && !k->blocks[i].marked && k->blocks[i].state == 2 &&
            looks_like_object(k, &k->blocks[i])) {
            check_mark_object(k, k->blocks[i].off, false, "object");
            follow(k);
        }
    for (size_t i = 0; i < k->nblocks; i++) {
        const struct block *b = &k->blocks[i];
        const struct shm_obj *o = shm_at(c, b->off);
        if (k->quiet && !b->registry)
            check_say(k, "block %#llx of %llu bytes is left (state %u, M %u)", LLU(b->off),
                      LLU(b->usable), b->state, shm_blk(c, b->off)->owner_m1 - 1U);
        else if (b->state == 2 && !b->marked)
            check_say(k, "block %#llx of %llu bytes is published, nothing names it", LLU(b->off),
                      LLU(b->usable));
        if (b->object && SHM_OBJ_BY(load_acq(&o->word)))
            check_say(k, "object %#llx: its references are in M %u's hands", LLU(b->off),
                      SHM_OBJ_BY(load_acq(&o->word)) - 1);
        if (b->object && shm_refs(o) < b->found)
            check_say(k, "object %#llx: %u references, found %u", LLU(b->off), shm_refs(o),
                      b->found);
    }
    for (uint64_t i = 1; i < k->ng; i++) {
        const struct shm_g *g = &c->gtab[i];
        if (SHM_ST_STATUS(load_acq(&g->status)) == Gwaiting &&
            SHM_W_STATE(load_acq(&g->wait)) == SHM_W_ARMED && !(k->at[i] & AT_WAITQ) &&
            (g->waitkind == SHM_OBJ_CHAN || g->waitkind == SHM_OBJ_JOIN ||
             g->waitkind == SHM_OBJ_SEMA || g->waitkind == SHM_OBJ_GROUP ||
             g->waitkind == SHM_OBJ_DONEQ))
            check_say(k, "goroutine %llu: waits on %#llx, in no queue of it", LLU(g->goid),
                      LLU(g->waitobj));
    }
    struct shm_heap_stats s;
    shm_heap_stats(c, &s);
    if (s.live_blocks != k->nblocks)
        check_say(k, "heap: %zu live blocks, counted %llu", k->nblocks, LLU(s.live_blocks));
    uint64_t warm = 0;
    for (int i = 0; i < SHM_WARM; i++)
        warm += c->hdr->warm[i].blk != 0;
    if (warm != k->warm || warm != load_rlx(&c->hdr->warm_n)) /* at rest */
        check_say(k, "heap: %zu large blocks are free, %llu named as warm, counted %llu", k->warm,
                  LLU(warm), LLU(load_rlx(&c->hdr->warm_n)));
    if (s.live_conts != k->conts)
        check_say(k, "heap: %zu continuations, counted %llu", k->conts, LLU(s.live_conts));
    if (shm_gcounted(c) != k->gs)
        check_say(k, "%llu goroutines are counted, there are %llu", LLU(shm_gcounted(c)),
                  LLU(k->gs));
}

int shm_check(struct shm_ctx *c, bool quiet, void (*out)(void *, const char *), void *arg)
{
    struct shm_hdr *h = c->hdr;
    struct check k = {.c = c, .quiet = quiet, .out = out, .arg = arg};
    uint64_t next = load_acq(&h->g_next), pages = load_acq(&h->g_committed);
    k.ng = next < pages ? next : pages;
    if (next > pages && next > 1)
        check_say(&k, "g table: %llu slots used, %llu have pages", LLU(next), LLU(pages));
    if (!shm_heap_each(c, collect, &k))
        check_say(&k, "heap: its runs do not tile it");
    k.at = calloc(k.ng + 1, 1);
    k.todo = calloc(k.nblocks + 1, sizeof *k.todo);
    if (k.at && k.todo) {
        check_header(&k);
        for (uint32_t i = 0; i < load_acq(&h->max_m); i++)
            check_m(&k, i);
        for (uint32_t i = 0; i < load_acq(&h->max_p); i++)
            check_p(&k, i);
        for (uint64_t i = 1; i < k.ng; i++)
            check_g(&k, i);
        follow(&k);
        check_left(&k);
    } else {
        check_say(&k, "check: no memory for %llu goroutines", LLU(k.ng));
    }
    free(k.at);
    free(k.todo);
    free(k.blocks);
    return k.breaches;
}
