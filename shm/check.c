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
 *   3 the g table: statuses, waits, continuations. What a G, a handle or a queue leads to is
 *     marked, and the marks are followed: objects, their values, the handle words in those
 *   4 what is left over: Gs that are nowhere, published blocks that nothing names, counts too low
 *
 * The invariants are cited by the names they have in the essays. */
#include "internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum {               /* where a G was met */
       AT_QUEUE = 1, /* ring, runnext, global, batch or home queue */
       AT_FREE = 2,  /* magazine or central list */
       AT_HAND = 4,  /* m->inflight */
       AT_CURG = 8,
       AT_WAITQ = 16,   /* its own sudog, in a channel's or join's queue */
       AT_HEAP = 32,    /* its own sudog, in a timer heap */
       AT_NORMALQ = 64, /* of AT_QUEUE: not the batch queue and not at home */
       AT_BATCHQ = 128, /* of AT_QUEUE: the batch queue */
};

struct block {
    shm_off off;
    uint64_t usable;
    uint32_t handles; /* words at its end */
    uint32_t found;   /* references to it, if it is an object */
    uint8_t state, marked, object, registry;
};

struct check {
    struct shm_ctx *c;
    bool quiet;
    void (*out)(void *, const char *);
    void *arg;
    int breaches;
    struct block *blocks;
    size_t nblocks, cap;
    uint8_t *at; /* per g slot */
    uint64_t ng;
    size_t *todo; /* marked blocks whose contents are to be followed */
    size_t ntodo;
};

__attribute__((format(printf, 2, 3))) static void say(struct check *k, const char *fmt, ...)
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

#define LLU(x) ((unsigned long long)(x))

/* ---- 1: blocks ------------------------------------------------------------------------------- */

static void collect(void *arg, shm_off off, const struct shm_blk *b)
{
    struct check *k = arg;
    if (b->state == 0)
        return;
    if (b->state > 2 || b->cls > SHM_NCLASS) {
        say(k, "block %#llx: state %u, class %u", LLU(off), b->state, b->cls);
        return;
    }
    if (k->nblocks == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 1024;
        struct block *more = realloc(k->blocks, cap * sizeof *more);
        if (!more) {
            say(k, "check: no memory for %zu blocks", cap);
            return;
        }
        k->blocks = more;
        k->cap = cap;
    }
    uint64_t usable = shm_usable(k->c, off);
    uint32_t user = b->user & ~SHM_BLK_CONT;
    if (8ULL * user > usable) {
        say(k, "block %#llx: %u handle words in %llu bytes", LLU(off), user, LLU(usable));
        user = 0;
    }
    k->blocks[k->nblocks++] =
        (struct block){.off = off, .usable = usable, .handles = user, .state = b->state};
}

static struct block *block_at(const struct check *k, shm_off off)
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

/* Something in the segment names n bytes at off. NULL: there is no such live block. */
static struct block *mark(struct check *k, shm_off off, uint64_t n, const char *what)
{
    struct block *b = block_at(k, off);
    if (!b || b->usable < n) {
        say(k, "%s: %#llx is no live block of %llu bytes", what, LLU(off), LLU(n));
        return NULL;
    }
    if (b->state != 2)
        say(k, "%s: block %#llx is not published", what, LLU(off));
    if (!b->marked) {
        b->marked = 1;
        k->todo[k->ntodo++] = (size_t)(b - k->blocks);
    }
    return b;
}

/* What an object of its kind needs; UINT64_MAX: no such kind. */
static uint64_t object_bytes(const struct check *k, shm_off off, const struct block *b)
{
    switch (((const struct shm_obj *)shm_at(k->c, off))->kind) {
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

/* counted: one of the references in obj->refs. */
static void mark_object(struct check *k, shm_off off, bool counted, const char *what)
{
    struct block *b = mark(k, off, sizeof(struct shm_obj), what);
    if (!b)
        return;
    const struct shm_obj *o = shm_at(k->c, off);
    if (b->usable < object_bytes(k, off, b)) {
        say(k, "%s: object %#llx has kind %u in %llu bytes", what, LLU(off), o->kind,
            LLU(b->usable));
        return;
    }
    b->object = 1;
    b->found += counted;
}

static void mark_value(struct check *k, const struct shm_val *v, const char *what)
{
    if (v->tag <= sizeof v->b || v->tag == SHM_VAL_NONE)
        return;
    if (v->tag != SHM_VAL_HEAP) {
        say(k, "%s: a value of tag %#x", what, v->tag);
        return;
    }
    mark(k, v->h.off, v->h.len, what);
}

/* What stays to the program's end, named by the header. */
static void kept(struct check *k, shm_off off, uint64_t bytes, const char *what)
{
    struct block *b = mark(k, off, bytes, what);
    if (b)
        b->registry = 1;
}

/* ---- 2: locks, Ms, Ps ------------------------------------------------------------------------ */

static void check_lock(struct check *k, const shm_lockword *l, const char *what)
{
    struct shm_ctx *c = k->c;
    uint32_t w = load_acq(l), m1 = w & 0xffff; /* pairs with shm_lock() */
    if (w == 0)
        return;
    if (m1 == 0 || m1 > load_acq(&c->hdr->max_m) ||
        (load_acq(&c->mtab[m1 - 1].epoch) & 0x7fff) != (w >> 16 & 0x7fff) || !shm_m_alive(c, m1)) {
        say(k, "%s: lock %#llx is %#x: held by nobody alive", what, LLU(shm_offof(c, l)), w);
        return;
    }
    const struct shm_m *m = &c->mtab[m1 - 1];
    bool named = false;
    for (uint32_t i = 0; i < load_acq(&m->held_n) && i < SHM_HELD; i++)
        named |= load_rlx(&m->held[i]) == shm_offof(c, l);
    shm_off set = load_acq(&m->lockset); /* pairs with shm_lock_all() */
    const struct shm_lockset *s = shm_at(c, set);
    for (uint64_t i = 0; set && !named && i < s->n && i < SHM_SELECT_MAX; i++)
        named = s->word[i] == shm_offof(c, l);
    if (!named || k->quiet)
        say(k, "%s: lock %#llx is held by M %u%s", what, LLU(shm_offof(c, l)), m1 - 1,
            named ? "" : ", which does not name it");
}

static const struct shm_g *meet(struct check *k, shm_gref r, uint8_t where, const char *what)
{
    uint32_t i = shm_gidx(r);
    if (i == 0 || i >= k->ng) {
        say(k, "%s: %#llx is no goroutine", what, LLU(r));
        return NULL;
    }
    if (shm_ggen(r) == SHM_ST_GEN(load_acq(&k->c->gtab[i].status))) { /* else a stale hint */
        if (where == AT_FREE && (k->at[i] & AT_FREE))
            say(k, "%s: slot %u is free twice", what, i);
        k->at[i] |= where;
    }
    return &k->c->gtab[i];
}

/* A chain by schedlink: how many. */
static uint64_t chain(struct check *k, shm_gref r, uint8_t where, const char *what)
{
    uint64_t n = 0;
    while (r && n <= k->ng) {
        const struct shm_g *g = meet(k, r, where, what);
        n++;
        if (!g)
            return n;
        r = g->schedlink;
    }
    if (r)
        say(k, "%s: a circle", what);
    return n;
}

static void check_handles(struct check *k, const struct shm_m *m)
{
    if (m->handles_off == 0)
        return;
    if (!shm_handles_own(k->c, m)) {
        struct block *b = mark(k, m->handles_off, 8ULL * m->handles_cap, "handle table");
        if (!b)
            return;
        b->registry = 1;
    } else if (m->handles_cap > SHM_HANDLES_OWN) {
        say(k, "M %u: %u handles in its own words", m->index, m->handles_cap);
        return;
    }
    const uint64_t *w = shm_at(k->c, m->handles_off);
    uint32_t held = 0;
    for (uint32_t i = 0; i < m->handles_cap; i++)
        if (!(w[i] >> 63)) {
            held++;
            mark_object(k, w[i], true, "handle table");
        }
    if (held != m->handles_n)
        say(k, "M %u: %u handles in its table, counted %u", m->index, held, m->handles_n);
}

static void check_m(struct check *k, uint32_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_m *m = &c->mtab[i];
    uint32_t kind = load_acq(&m->kind), undo = load_acq(&m->undo_n);
    bool free = kind == SHM_M_FREE, dead = !free && !shm_m_alive(c, i + 1);
    if (kind > SHM_M_AUX)
        say(k, "M %u: kind %u", i, kind);
    if (undo > SHM_UNDO || ((free || dead || k->quiet) && undo))
        say(k, "M %u: %s, with %u stores not committed (INV undo)", i,
            free   ? "free"
            : dead ? "dead"
                   : "at rest",
            undo);
    if ((free || dead || k->quiet) && (load_acq(&m->held_n) || load_acq(&m->lockset)))
        say(k, "M %u: %s, names %u locks%s", i,
            free   ? "free"
            : dead ? "dead"
                   : "at rest",
            load_acq(&m->held_n), load_acq(&m->lockset) ? " and a set of them" : "");
    if (free && (load_acq(&m->curg) || load_acq(&m->p1) || m->gfree.n || m->handles_n))
        say(k, "M %u: free, has goroutine %#llx, P %d, %u free slots, %u handles", i,
            LLU(load_acq(&m->curg)), (int)load_acq(&m->p1) - 1, m->gfree.n, m->handles_n);
    if (load_acq(&m->curg))
        meet(k, load_acq(&m->curg), AT_CURG, "curg");
    for (uint32_t s = 0; s < SHM_INFLIGHT; s++) {
        uint64_t r = load_acq(&m->inflight[s]);
        if (r && s != SHM_IF_DRAIN)
            meet(k, r, AT_HAND, "inflight");
        if (r && k->quiet && s != SHM_IF_NEW) /* that one is left standing, and stale */
            say(k, "M %u: inflight[%u] names %#llx", i, s, LLU(r));
    }
    for (uint32_t n = 0; n < m->gfree.n && n < SHM_MAG; n++)
        if (m->gfree.idx[n] < k->ng)
            meet(k,
                 (uint64_t)SHM_ST_GEN(load_acq(&c->gtab[m->gfree.idx[n]].status)) << 32 |
                     m->gfree.idx[n],
                 AT_FREE, "g magazine");
        else
            say(k, "M %u: g magazine has slot %u", i, m->gfree.idx[n]);
    uint64_t home = chain(k, load_acq(&m->homeq), AT_QUEUE, "home queue") +
                    chain(k, m->homeq_fifo, AT_QUEUE, "home queue");
    if (home != load_acq(&m->homeq_n))
        say(k, "M %u: %llu at home, counted %u", i, LLU(home), load_acq(&m->homeq_n));
    check_handles(k, m);
}

/* Entry i of p's heap is a node: inside a timer or a context, which says the same. */
static void check_node(struct check *k, const struct shm_p *p, uint32_t i,
                       const struct shm_timer_ent *e)
{
    shm_off off = e->what & ~SHM_TNODE;
    const struct block *t = block_at(k, off - offsetof(struct shm_timer, node)),
                       *x = block_at(k, off - offsetof(struct shm_context, node)),
                       *j = block_at(k, off - offsetof(struct shm_join, deadline));
    const struct shm_tnode *n = shm_at(k->c, off);
    if (t && t->usable < sizeof(struct shm_timer))
        t = NULL;
    if (x && x->usable < sizeof(struct shm_context))
        x = NULL;
    if (j && j->usable >= sizeof(struct shm_join) && n->kind == SHM_TN_JOIN)
        t = x = NULL;
    else
        j = NULL;
    if (!t && !x && !j)
        say(k, "P %u: timer %u: nothing is at %#llx", p->index, i, LLU(off));
    else if (n->kind != (j                              ? SHM_TN_JOIN
                         : t && n->kind == SHM_TN_TIMER ? SHM_TN_TIMER
                                                        : SHM_TN_CONTEXT) ||
             n->pi != p->index || n->index1 != i + 1 || load_acq(&n->when_ns) != e->when_ns)
        say(k, "P %u: timer %u: its object says kind %u, P %u, place %u, when %llu", p->index, i,
            n->kind, n->pi, n->index1 - 1, LLU(load_acq(&n->when_ns)));
}

static void check_timers(struct check *k, const struct shm_p *p)
{
    struct shm_ctx *c = k->c;
    uint32_t n = p->timers_n;
    uint64_t first = UINT64_MAX;
    check_lock(k, &p->timers_lock, "timers");
    if (n > p->timers_cap)
        say(k, "P %u: %u timers, room for %u", p->index, n, p->timers_cap);
    if (p->timers_off == 0 || n > p->timers_cap)
        return;
    struct block *b =
        mark(k, p->timers_off, (uint64_t)p->timers_cap * sizeof(struct shm_timer_ent), "timers");
    if (!b)
        return;
    b->registry = 1;
    const struct shm_timer_ent *a = shm_at(c, p->timers_off);
    for (uint32_t i = 0; i < n; i++) {
        if (i && a[i].when_ns < a[(i - 1) / 4].when_ns)
            say(k, "P %u: timer %u is before its parent", p->index, i);
        if (a[i].what & SHM_TNODE) {
            check_node(k, p, i, &a[i]);
            continue;
        }
        const struct shm_g *g = meet(k, a[i].what, AT_HEAP, "timers");
        if (g &&
            (g->waitkind != SHM_WAIT_SLEEP || g->waitobj != shm_offof(c, p) || g->sudog.next != i ||
             !g->sudog.linked || SHM_W_EPOCH(load_acq(&g->wait)) != a[i].epoch))
            say(k, "P %u: timer %u: goroutine %llu does not wait there", p->index, i, LLU(g->goid));
    }
    if (n)
        first = a[0].when_ns;
    if (load_acq(&p->timer0_when) != first)
        say(k, "P %u: timer0_when %llu, the first timer %llu", p->index,
            LLU(load_acq(&p->timer0_when)), LLU(first));
    if (n && k->quiet)
        say(k, "P %u: %u timers are left", p->index, n);
}

static void check_p(struct check *k, uint32_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_p *p = &c->ptab[i];
    uint64_t w = load_acq(&p->status), h = load_acq(&p->runqhead), t = load_acq(&p->runqtail);
    unsigned st = SHM_ST_STATUS(w), m1 = SHM_ST_M1(w);
    if (st != Pidle && st != Prunning && st != Psyscall && st != Pdead)
        say(k, "P %u: status %u", i, st);
    if (st == Pdead && (h != t || load_acq(&p->runnext)))
        say(k, "P %u: dead, and %llu are queued there", i,
            LLU(t - h + (load_acq(&p->runnext) != 0)));
    if (st == Prunning &&
        (m1 == 0 || m1 > load_acq(&c->hdr->max_m) || load_acq(&c->mtab[m1 - 1].p1) != i + 1))
        say(k, "P %u: runs on M %d, which does not have it", i, (int)m1 - 1);
    if (t < h || t - h > SHM_RUNQ)
        say(k, "P %u: ring from %llu to %llu", i, LLU(h), LLU(t));
    else
        for (; h < t; h++)
            meet(k, load_acq(&p->runq[h % SHM_RUNQ]), AT_QUEUE | AT_NORMALQ, "ring");
    if (load_acq(&p->runnext))
        meet(k, load_acq(&p->runnext), AT_QUEUE | AT_NORMALQ, "runnext");
    check_timers(k, p);
}

static void check_header(struct check *k)
{
    struct shm_ctx *c = k->c;
    struct shm_hdr *h = c->hdr;
    check_lock(k, &h->sched_lock, "sched_lock");
    check_lock(k, &h->g_lock, "g_lock");
    check_lock(k, &h->heap_lock, "heap_lock");
    check_lock(k, &h->code_lock, "code_lock");
    check_lock(k, &h->reason_lock, "reason_lock");
    check_lock(k, &h->procs_lock, "procs_lock");
    check_lock(k, &h->sema_lock, "sema_lock");
    for (int i = 0; i < SHM_NCLASS; i++)
        check_lock(k, &h->depot_lock[i], "depot_lock");
    uint64_t n = chain(k, h->runq_head, AT_QUEUE | AT_NORMALQ, "global queue");
    if (n != load_acq(&h->runq_size) || (n == 0) != (h->runq_tail == 0))
        say(k, "global queue: %llu, counted %llu, tail %#llx", LLU(n), LLU(load_acq(&h->runq_size)),
            LLU(h->runq_tail));
    n = chain(k, h->batchq_head, AT_QUEUE | AT_BATCHQ, "batch queue");
    if (n != load_acq(&h->batchq_size) || (n == 0) != (h->batchq_tail == 0))
        say(k, "batch queue: %llu, counted %llu, tail %#llx", LLU(n),
            LLU(load_acq(&h->batchq_size)), LLU(h->batchq_tail));
    n = chain(k, h->gfree_head, AT_FREE, "free list");
    if (n != load_acq(&h->gfree_n))
        say(k, "free list: %llu, counted %llu", LLU(n), LLU(load_acq(&h->gfree_n)));
    if (load_acq(&h->panic) == 2 && h->panic_val.tag == SHM_VAL_HEAP) /* pairs with who panicked */
        kept(k, h->panic_val.h.off, h->panic_val.h.len, "panic");
    if (load_acq(&h->trace_rings)) /* pairs with shm_trace_start() */
        kept(k, h->trace_off, load_acq(&h->trace_rings) * h->trace_cap * sizeof(struct shm_event),
             "trace");
    for (uint32_t id = 1; id <= load_acq(&h->code_n); id++) {
        size_t bytes;
        uint8_t hash[16];
        const void *payload = shm_code_payload(c, id, &bytes, hash);
        kept(k, shm_offof(c, payload), bytes, "code");
    }
}

/* ---- 3: goroutines and what they lead to ----------------------------------------------------- */

static void check_select(struct check *k, const struct shm_g *g)
{
    const struct shm_selblk *b = shm_at(k->c, g->waitobj);
    if (!mark(k, g->waitobj, sizeof *b, "select"))
        return;
    if (b->n > SHM_SELECT_MAX ||
        !mark(k, g->waitobj, sizeof *b + b->n * sizeof b->cs[0], "select")) {
        say(k, "goroutine %llu: a select of %u cases", LLU(g->goid), b->n);
        return;
    }
    if (b->lockset && b->lockset != g->waitobj + sizeof *b + b->n * sizeof b->cs[0])
        say(k, "goroutine %llu: its select has its locks at %#llx", LLU(g->goid), LLU(b->lockset));
    for (uint32_t i = 0; i < b->n; i++) {
        mark_object(k, b->cs[i].ch, false, "select case");
        mark_value(k, &b->cs[i].v, "select case");
    }
}

static void check_wait(struct check *k, const struct shm_g *g)
{
    uint64_t w = load_acq(&g->wait);
    uint8_t at = k->at[g - k->c->gtab];
    if (SHM_W_STATE(w) != SHM_W_ARMED && !(at & AT_HAND))
        say(k, "goroutine %llu: waiting, %s, in nobody's hand (INV one-waker)", LLU(g->goid),
            SHM_W_STATE(w) == SHM_W_CLAIMED ? "claimed" : "not armed");
    switch (g->waitkind) {
    case 0:
        break;
    case SHM_OBJ_CHAN:
    case SHM_OBJ_JOIN:
    case SHM_OBJ_SEMA:
    case SHM_OBJ_GROUP:
    case SHM_OBJ_DONEQ:
        mark_object(k, g->waitobj, false, "waitobj");
        break;
    case SHM_WAIT_SELECT:
        check_select(k, g);
        break;
    case SHM_WAIT_SLEEP:
        if (SHM_W_STATE(w) == SHM_W_ARMED && !(at & AT_HEAP))
            say(k, "goroutine %llu: asleep, in no timer heap", LLU(g->goid));
        break;
    default:
        say(k, "goroutine %llu: waits on something of kind %u", LLU(g->goid), g->waitkind);
    }
}

static void check_g(struct check *k, uint64_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_g *g = &c->gtab[i];
    uint64_t w = load_acq(&g->status);
    unsigned st = SHM_ST_STATUS(w);
    uint8_t at = k->at[i];
    if (st == Gdead) {
        if (!(at & (AT_FREE | AT_HAND | AT_CURG)))
            say(k, "g slot %llu: dead, in no free list", LLU(i));
        return;
    }
    if (k->quiet)
        say(k, "goroutine %llu is left, status %u, %s", LLU(g->goid), st,
            shm_reason_text(c, g->reason));
    if (at & AT_FREE)
        say(k, "goroutine %llu: status %u, in a free list", LLU(g->goid), st);
    if (st != Gidle && st != Grunnable && st != Grunning && st != Gwaiting)
        say(k, "goroutine %llu: status %u", LLU(g->goid), st);
    if (st == Gidle)
        return;
    bool complete = g->cont_off || g->home_m1 || (g->flags & SHM_GF_OUTSIDE);
    if (st != Grunning && !complete)
        say(k, "goroutine %llu: parked, neither stored nor at home (INV parked-complete)",
            LLU(g->goid));
    if (g->cont_off && st != Grunning) /* of a running one it may just be made or eaten */
        mark(k, g->cont_off, g->cont_len, "continuation");
    if (g->obj)
        mark_object(k, g->obj, true, "join of a goroutine");
    if (st != Grunning)
        mark_value(k, &g->value, "value of a goroutine");
    if (st == Grunning && !(at & AT_CURG) && !(g->flags & SHM_GF_OUTSIDE))
        say(k, "goroutine %llu: running, on no M", LLU(g->goid));
    if (st == Grunnable && !(at & (AT_QUEUE | AT_HAND | AT_CURG)) && !(g->flags & SHM_GF_OUTSIDE))
        say(k, "goroutine %llu: runnable, in no queue", LLU(g->goid));
    if (st == Grunnable && at & (g->flags & SHM_GF_BATCH ? AT_NORMALQ : AT_BATCHQ))
        say(k, "goroutine %llu: in a queue of the other class (INV batch-apart)", LLU(g->goid));
    if (st == Gwaiting)
        check_wait(k, g);
    if (g->waitkind == SHM_WAIT_SELECT && st == Grunnable)
        check_select(k, g); /* readied, not yet through its last pass */
}

/* The sudog at off, of a queue of object obj: the one in a g, or one in a select's block. */
static const struct shm_sudog *sudog_at(struct check *k, shm_off off, shm_off obj)
{
    struct shm_ctx *c = k->c;
    uint64_t in = off - c->hdr->gtab_off;
    if (off >= c->hdr->gtab_off && in / sizeof(struct shm_g) < k->ng) {
        const struct shm_g *g = &c->gtab[in / sizeof(struct shm_g)];
        if (in % sizeof(struct shm_g) != offsetof(struct shm_g, sudog))
            return NULL;
        k->at[in / sizeof(struct shm_g)] |= AT_WAITQ;
        if (g->waitobj != obj)
            say(k, "goroutine %llu: its sudog is in a queue of %#llx, it waits on %#llx",
                LLU(g->goid), LLU(obj), LLU(g->waitobj));
        return &g->sudog;
    }
    const struct shm_sudog *s;
    if (off % 8 || off < c->hdr->heap_off ||
        off - c->hdr->heap_off + sizeof *s > load_acq(&c->hdr->heap_committed)) /* as the blocks */
        return NULL;
    s = shm_at(c, off); /* it says where in its block it stands */
    uint64_t back = sizeof(struct shm_selblk) + s->which * sizeof(struct shm_selcase);
    const struct block *b = off > back ? block_at(k, off - back) : NULL;
    return b && b->usable >= back + sizeof(struct shm_selcase) && s->isselect ? s : NULL;
}

static uint64_t check_queue(struct check *k, shm_off obj, shm_off first, shm_off last, uint8_t dir,
                            uint64_t *selects)
{
    shm_off prev = 0;
    uint64_t n = 0;
    for (shm_off off = first; off && n <= k->ng * SHM_SELECT_MAX; n++) {
        const struct shm_sudog *s = sudog_at(k, off, obj);
        if (!s) {
            say(k, "object %#llx: %#llx in its queue is no sudog", LLU(obj), LLU(off));
            return n;
        }
        if (s->prev != prev || s->linked != dir)
            say(k,
                "object %#llx: sudog %#llx in its queue: prev %#llx, wanted %#llx; linked %u, "
                "wanted %u",
                LLU(obj), LLU(off), LLU(s->prev), LLU(prev), s->linked, dir);
        if (s->prev != prev) /* a circle is met here the second time round */
            return n;
        *selects += s->isselect;
        const struct shm_g *g = meet(k, s->g, 0, "sudog");
        uint64_t w = g ? load_acq(&g->wait) : 0;
        bool waits = g && shm_readgstatus(k->c, s->g) == Gwaiting &&
                     SHM_W_STATE(w) == SHM_W_ARMED && (uint32_t)SHM_W_EPOCH(w) == s->epoch;
        /* The losers of a select stay until it has run its last pass. */
        if (!waits && !s->isselect && g && !(k->at[shm_gidx(s->g)] & AT_HAND))
            say(k, "object %#llx: goroutine %llu in its queue does not wait (wait word %#llx)",
                LLU(obj), LLU(g->goid), LLU(w));
        prev = off;
        off = s->next;
    }
    if (prev != last)
        say(k, "object %#llx: its queue ends with %#llx, last is %#llx", LLU(obj), LLU(prev),
            LLU(last));
    return n;
}

static bool drained(const struct check *k, shm_off obj)
{
    for (uint32_t i = 0; i < load_acq(&k->c->hdr->max_m); i++) {
        shm_off named = load_acq(&k->c->mtab[i].inflight[SHM_IF_DRAIN]);
        /* A context's: its own channel, or one of a context below. */
        if (named == obj || (named && block_at(k, named) &&
                             ((struct shm_obj *)shm_at(k->c, named))->kind == SHM_OBJ_CONTEXT))
            return true;
    }
    return false;
}

/* The other side of check_node(). */
static void check_in_heap(struct check *k, const struct shm_tnode *n, const char *what, shm_off off)
{
    const struct shm_p *p = n->pi < k->c->hdr->max_p ? &k->c->ptab[n->pi] : NULL;
    const struct block *b = p ? block_at(k, p->timers_off) : NULL;
    uint64_t when = load_acq(&n->when_ns);
    if ((n->index1 != 0) != (when != 0 && when != UINT64_MAX))
        say(k, "%s %#llx: due at %llu, place %u", what, LLU(off), LLU(when), n->index1 - 1);
    if (n->index1 == 0)
        return;
    const struct shm_timer_ent *a = b ? shm_at(k->c, b->off) : NULL;
    if (!a || n->index1 > p->timers_n || n->index1 * sizeof *a > b->usable ||
        a[n->index1 - 1].what != (shm_offof(k->c, n) | SHM_TNODE))
        say(k, "%s %#llx: is not where it says, place %u of P %u", what, LLU(off), n->index1 - 1,
            n->pi);
}

static void check_chan(struct check *k, shm_off off)
{
    const struct shm_chan *ch = shm_at(k->c, off);
    uint32_t n = load_acq(&ch->qcount);
    uint64_t selects = 0;
    check_lock(k, &ch->lock, "channel");
    if (ch->timer)
        check_in_heap(k, &((const struct shm_timer *)(const void *)ch)->node, "timer", off);
    uint64_t nr = check_queue(k, off, ch->recvq_first, ch->recvq_last, SHM_DIR_RECV, &selects);
    uint64_t ns = check_queue(k, off, ch->sendq_first, ch->sendq_last, SHM_DIR_SEND, &selects);
    if (nr && ns && !selects)
        say(k, "channel %#llx: %llu wait to receive, %llu to send (INV chan-one-side)", LLU(off),
            LLU(nr), LLU(ns));
    if (load_acq(&ch->closed) && (nr || ns) && !drained(k, off))
        say(k, "channel %#llx: closed, and %llu wait", LLU(off), LLU(nr + ns));
    if (ch->done)
        mark_object(k, ch->buf, true, "context of a channel");
    if (ch->cap == 0 && (n || (ch->buf && !ch->done)))
        say(k, "channel %#llx: no capacity, %u values", LLU(off), n);
    if (ch->cap == 0)
        return;
    if (n > ch->cap || ch->recvx >= ch->cap || ch->sendx != ((uint64_t)ch->recvx + n) % ch->cap) {
        say(k, "channel %#llx: %u of %u values from %u to %u", LLU(off), n, ch->cap, ch->recvx,
            ch->sendx);
        return;
    }
    if (!load_acq(&ch->closed) && ((n && nr && !selects) || (n < ch->cap && ns && !selects)))
        say(k, "channel %#llx: %u of %u values, yet %llu receive, %llu send (INV chan-no-idle)",
            LLU(off), n, ch->cap, LLU(nr), LLU(ns));
    if (!mark(k, ch->buf, (uint64_t)ch->cap * sizeof(struct shm_val), "buffer of a channel"))
        return;
    const struct shm_val *v = shm_at(k->c, ch->buf);
    for (uint32_t i = 0; i < n; i++)
        mark_value(k, &v[((uint64_t)ch->recvx + i) % ch->cap], "value in a channel");
}

static void check_afterfunc(struct check *k, shm_off off)
{
    const struct shm_afterfunc *t = shm_at(k->c, off);
    check_lock(k, &t->lock, "after_func");
    mark_value(k, &t->call, "call of after_func");
}

/* INV children-first, and who is a child of whom. */
static void check_context(struct check *k, shm_off off)
{
    const struct shm_context *x = shm_at(k->c, off);
    unsigned state = load_acq(&x->state);
    check_lock(k, &x->lock, "context");
    if (state > SHM_CTX_DEADLINE || (state && !x->want && !x->why))
        say(k, "context %#llx: state %u", LLU(off), state);
    if (x->parent)
        mark_object(k, x->parent, true, "parent of a context");
    mark_value(k, &x->cause, "cause");
    mark_value(k, &x->key, "key of a context");
    mark_value(k, &x->value, "value of a context");
    if (load_acq(&x->done))
        mark_object(k, load_acq(&x->done), false, "done of a context");
    if (x->node.kind)
        check_in_heap(k, &x->node, "context", off);
    shm_off prev = 0, at = x->first;
    for (size_t n = 0; at; n++) {
        const struct block *b = block_at(k, at);
        const struct shm_context *y = shm_at(k->c, at);
        if (!b || b->usable < sizeof *y || y->obj.kind != SHM_OBJ_CONTEXT || y->up != off ||
            y->prev != prev || n > k->nblocks) {
            say(k, "context %#llx: child %#llx is none of its own", LLU(off), LLU(at));
            return;
        }
        if (state && load_acq(&y->state) == 0)
            say(k, "context %#llx: is cancelled, its child %#llx not (INV children-first)",
                LLU(off), LLU(at));
        prev = at;
        at = y->next;
    }
}

static void check_retry(struct check *k, const struct shm_join *j)
{
    const struct shm_retry *y = shm_at(k->c, j->retry);
    if (!mark(k, j->retry, sizeof *y, "checkpoint"))
        return;
    if (y->cont_off)
        mark(k, y->cont_off, y->cont_len, "continuation of a checkpoint");
    mark_value(k, &y->value, "value of a checkpoint");
    if (y->cont_off && y->waitkind)
        mark_object(k, y->waitobj, false, "waitobj of a checkpoint");
    if (y->waitkind && y->waitkind != SHM_OBJ_JOIN && y->waitkind != SHM_OBJ_GROUP)
        say(k, "goroutine %llu: its checkpoint waits on something of kind %u (INV one-truth)",
            LLU(j->goid), y->waitkind);
    if (load_acq(&j->state) == SHM_J_PENDING && y->cont_off && j->g &&
        shm_g(k->c, j->g)->cont_off == y->cont_off)
        say(k, "goroutine %llu: its continuation is a checkpoint's too (INV one-truth)",
            LLU(j->goid));
}

static void check_join(struct check *k, shm_off off)
{
    const struct shm_join *j = shm_at(k->c, off);
    uint64_t selects = 0;
    check_lock(k, &j->lock, "join");
    uint64_t n = check_queue(k, off, j->waiters_first, j->waiters_last, SHM_DIR_RECV, &selects);
    if (load_acq(&j->state) > SHM_J_DIED)
        say(k, "join %#llx: state %u", LLU(off), load_acq(&j->state));
    if (load_acq(&j->state) != SHM_J_PENDING && n && !drained(k, off))
        say(k, "join %#llx: ended, and %llu wait", LLU(off), LLU(n));
    mark_value(k, &j->value, "result");
    if (j->retry)
        check_retry(k, j);
    if (j->group)
        mark_object(k, j->group, true, "group of a goroutine");
    if (j->owns)
        mark_object(k, j->owns, true, "group a goroutine is in");
    if (j->doneq)
        mark_object(k, j->doneq, true, "queue of a join");
    if ((j->dlisted == 1) != (j->doneq != 0 && load_acq(&j->state) != SHM_J_PENDING) &&
        !drained(k, off))
        say(k, "join %#llx: state %u, dlisted %u, queue %#llx", LLU(off), load_acq(&j->state),
            j->dlisted, LLU(j->doneq));
}

/* The joins of one of its lists; returns how many. */
static uint64_t check_joins(struct check *k, shm_off off, shm_off first, shm_off last,
                            uint32_t listed)
{
    uint64_t n = 0;
    shm_off prev = 0;
    for (shm_off at = first; at && n <= k->nblocks; n++) {
        mark_object(k, at, true, "join in a group");
        const struct block *b = block_at(k, at);
        const struct shm_join *j = shm_at(k->c, at);
        if (!b || !b->object || j->obj.kind != SHM_OBJ_JOIN)
            return n;
        if (j->listed != listed || j->gprev != prev || (listed == 1 && j->group != off))
            say(k,
                "group %#llx: join %#llx: listed %u, wanted %u; prev %#llx, wanted %#llx; in "
                "group %#llx",
                LLU(off), LLU(at), j->listed, listed, LLU(j->gprev), LLU(prev), LLU(j->group));
        prev = at;
        at = j->gnext;
    }
    if (prev != last)
        say(k, "group %#llx: a list ends with %#llx, last is %#llx", LLU(off), LLU(prev),
            LLU(last));
    return n;
}

static void check_group(struct check *k, shm_off off)
{
    const struct shm_group *gr = shm_at(k->c, off);
    uint64_t selects = 0;
    check_lock(k, &gr->lock, "group");
    uint64_t w = check_queue(k, off, gr->waiters_first, gr->waiters_last, SHM_DIR_RECV, &selects);
    uint64_t q = check_queue(k, off, gr->queue_first, gr->queue_last, SHM_DIR_SEND, &selects);
    uint64_t kids = check_joins(k, off, gr->kids_first, gr->kids_last, 1);
    check_joins(k, off, gr->errs_first, gr->errs_last, 2);
    uint32_t pending = load_acq(&gr->pending);
    if (kids > pending || gr->running > pending || q > pending)
        say(k, "group %#llx: %u children, %llu listed, %u let in, %llu queued", LLU(off), pending,
            LLU(kids), gr->running, LLU(q));
    if (pending == 0 && w && !drained(k, off))
        say(k, "group %#llx: no child is left, and %llu wait", LLU(off), LLU(w));
    if (gr->next && gr->running < gr->limit && !load_acq(&gr->aborting) && !drained(k, off))
        say(k, "group %#llx: %u of %u run, and %#llx is not let in", LLU(off), gr->running,
            gr->limit, LLU(gr->next));
    if (gr->parent)
        mark_object(k, gr->parent, true, "parent of a group");
    if (gr->outer && load_acq(&gr->state) != SHM_GR_FINISHED)
        mark_object(k, gr->outer, true, "group around a group");
    if (gr->cancelling)
        mark_object(k, gr->cancelling, true, "join in an abort");
}

static void check_doneq(struct check *k, shm_off off)
{
    const struct shm_doneq *q = shm_at(k->c, off);
    uint64_t selects = 0, left = k->nblocks;
    shm_off last = 0;
    check_lock(k, &q->lock, "doneq");
    check_queue(k, off, q->waiters_first, q->waiters_last, SHM_DIR_RECV, &selects);
    for (shm_off at = q->first; at && left; left--) {
        const struct shm_join *j = shm_at(k->c, at);
        mark_object(k, at, true, "ended goroutine");
        if (!block_at(k, at) || j->obj.kind != SHM_OBJ_JOIN || j->dlisted != 1 || j->doneq != off) {
            say(k, "doneq %#llx: %#llx in it is no join of it", LLU(off), LLU(at));
            return;
        }
        last = at;
        at = j->dnext;
    }
    if (q->last != last)
        say(k, "doneq %#llx: ends with %#llx, last is %#llx", LLU(off), LLU(last), LLU(q->last));
}

static void check_sema(struct check *k, shm_off off)
{
    struct shm_ctx *c = k->c;
    const struct shm_sema *sy = shm_at(c, off);
    uint64_t selects = 0, word = load_acq(&sy->word);
    int breaches = k->breaches;
    check_lock(k, &sy->lock, "sync object");
    uint64_t n = check_queue(k, off, sy->first, sy->last, SHM_DIR_RECV, &selects) +
                 check_queue(k, off, sy->rfirst, sy->rlast, SHM_DIR_SEND, &selects);
    if (sy->what < SHM_SY_MUTEX || sy->what > SHM_SY_SEMAPHORE)
        say(k, "sync object %#llx: is a %u", LLU(off), sy->what);
    if (n && sy->what == SHM_SY_MUTEX && !(word & SHM_SY_SLOW))
        say(k, "mutex %#llx: %llu wait, its word is %#llx (INV mutex-slow)", LLU(off), LLU(n),
            LLU(word));
    if (breaches == k->breaches && shm_sema_owes(c, sy))
        say(k, "sync object %#llx: somebody waits who may go (INV sync-settled)", LLU(off));
    if (sy->what == SHM_SY_SEMAPHORE && word > sy->n)
        say(k, "semaphore %#llx: %llu of %llu free", LLU(off), LLU(word), LLU(sy->n));
    if (sy->other)
        mark_object(k, sy->other, true, "mutex of a cond");
    struct block *b =
        sy->holders ? mark(k, sy->holders, 8ULL * (sy->holders_cap + 1), "holders") : NULL;
    if (b && *(const uint64_t *)shm_at(c, sy->holders) > sy->n)
        say(k, "rwmutex %#llx: %llu readers, more are named", LLU(off), LLU(sy->n));
    const struct block *p = sy->prev ? block_at(k, sy->prev) : NULL;
    if ((sy->prev && !p) ||
        (p ? ((const struct shm_sema *)shm_at(c, sy->prev))->next : c->hdr->sema_first) != off)
        say(k, "sync object %#llx: is not in the list of all", LLU(off));
}

static void check_map(struct check *k, shm_off off)
{
    const struct shm_map *m = shm_at(k->c, off);
    uint64_t n = 0;
    check_lock(k, &m->lock, "map");
    if (m->nbuckets == 0 && m->n == 0)
        return;
    if (m->gen > 1 || m->nbuckets & (m->nbuckets - 1) ||
        !mark(k, m->buckets, 8 * m->nbuckets, "table of a map")) {
        say(k, "map %#llx: generation %u, %llu chains", LLU(off), m->gen, LLU(m->nbuckets));
        return;
    }
    for (uint64_t i = 0; i < m->nbuckets; i++) {
        shm_off at = ((const shm_off *)shm_at(k->c, m->buckets))[i];
        for (; at && n <= m->n; n++) {
            const struct shm_ment *e = shm_at(k->c, at);
            if (!mark(k, at, sizeof *e, "entry of a map") || (e->hash & (m->nbuckets - 1)) != i)
                break;
            mark_value(k, &e->value, "value in a map");
            at = e->next[m->gen];
        }
        if (at)
            say(k, "map %#llx: entry %#llx is not of chain %llu", LLU(off), LLU(at), LLU(i));
    }
    if (n != m->n)
        say(k, "map %#llx: %llu entries, counted %llu (INV map-complete)", LLU(off), LLU(n),
            LLU(m->n));
}

static void follow(struct check *k)
{
    while (k->ntodo) {
        struct block *b = &k->blocks[k->todo[--k->ntodo]];
        const uint64_t *words = shm_at(k->c, b->off + b->usable - 8ULL * b->handles);
        for (uint32_t i = 0; i < b->handles; i++)
            mark_object(k, SHM_HANDLE_OFF(words[i]), true, "handle in bytes");
        const struct shm_obj *o = shm_at(k->c, b->off);
        if (b->object && o->kind == SHM_OBJ_CHAN)
            check_chan(k, b->off);
        if (b->object && o->kind == SHM_OBJ_TIMER)
            check_afterfunc(k, b->off);
        if (b->object && o->kind == SHM_OBJ_CONTEXT)
            check_context(k, b->off);
        if (b->object && o->kind == SHM_OBJ_JOIN)
            check_join(k, b->off);
        if (b->object && o->kind == SHM_OBJ_GROUP)
            check_group(k, b->off);
        if (b->object && o->kind == SHM_OBJ_DONEQ)
            check_doneq(k, b->off);
        if (b->object && o->kind == SHM_OBJ_SEMA)
            check_sema(k, b->off);
        if (b->object && o->kind == SHM_OBJ_MAP)
            check_map(k, b->off);
    }
}

/* An object that nothing in the segment names, but somebody's C variable: tests have such. */
static bool looks_like_object(const struct check *k, const struct block *b)
{
    const struct shm_obj *o = shm_at(k->c, b->off);
    return b->usable >= sizeof *o && b->usable >= object_bytes(k, b->off, b) &&
           load_acq(&o->refs) > 0 && load_acq(&o->refs) < 1U << 24;
}

/* ---- 4: what is left over -------------------------------------------------------------------- */

static void check_left(struct check *k)
{
    struct shm_ctx *c = k->c;
    for (size_t i = 0; i < k->nblocks; i++)
        if (!k->quiet && !k->blocks[i].marked && k->blocks[i].state == 2 &&
            looks_like_object(k, &k->blocks[i])) {
            mark_object(k, k->blocks[i].off, false, "object");
            follow(k);
        }
    for (size_t i = 0; i < k->nblocks; i++) {
        const struct block *b = &k->blocks[i];
        const struct shm_obj *o = shm_at(c, b->off);
        if (k->quiet && !b->registry)
            say(k, "block %#llx of %llu bytes is left (state %u, M %u)", LLU(b->off),
                LLU(b->usable), b->state, shm_blk(c, b->off)->owner_m1 - 1U);
        else if (b->state == 2 && !b->marked)
            say(k, "block %#llx of %llu bytes is published, nothing names it", LLU(b->off),
                LLU(b->usable));
        if (b->object && load_acq(&o->refs) < b->found)
            say(k, "object %#llx: %u references, found %u", LLU(b->off), load_acq(&o->refs),
                b->found);
    }
    for (uint64_t i = 1; i < k->ng; i++) {
        const struct shm_g *g = &c->gtab[i];
        if (SHM_ST_STATUS(load_acq(&g->status)) == Gwaiting &&
            SHM_W_STATE(load_acq(&g->wait)) == SHM_W_ARMED && !(k->at[i] & AT_WAITQ) &&
            (g->waitkind == SHM_OBJ_CHAN || g->waitkind == SHM_OBJ_JOIN ||
             g->waitkind == SHM_OBJ_SEMA || g->waitkind == SHM_OBJ_GROUP ||
             g->waitkind == SHM_OBJ_DONEQ))
            say(k, "goroutine %llu: waits on %#llx, in no queue of it", LLU(g->goid),
                LLU(g->waitobj));
    }
    struct shm_heap_stats s;
    shm_heap_stats(c, &s);
    uint32_t deaths = load_acq(&c->hdr->reaped); /* each may leave one counted: count_alloc() */
    if (s.live_blocks < k->nblocks || s.live_blocks - k->nblocks > deaths)
        say(k, "heap: %zu live blocks, counted %llu", k->nblocks, LLU(s.live_blocks));
    if (k->quiet && s.live_conts > deaths)
        say(k, "heap: %llu continuations are left", LLU(s.live_conts));
}

int shm_check(struct shm_ctx *c, bool quiet, void (*out)(void *, const char *), void *arg)
{
    struct shm_hdr *h = c->hdr;
    struct check k = {.c = c, .quiet = quiet, .out = out, .arg = arg};
    uint64_t next = load_acq(&h->g_next), pages = load_acq(&h->g_committed);
    k.ng = next < pages ? next : pages;
    if (next > pages && next > 1)
        say(&k, "g table: %llu slots used, %llu have pages", LLU(next), LLU(pages));
    if (!shm_heap_each(c, collect, &k))
        say(&k, "heap: its runs do not tile it");
    k.at = calloc(k.ng + 1, 1);
    k.todo = calloc(k.nblocks + 1, sizeof *k.todo);
    if (k.at && k.todo) {
        check_header(&k);
        for (uint32_t i = 0; i < load_acq(&h->max_m); i++)
            check_m(&k, i);
        for (uint32_t i = 0; i < h->max_p; i++)
            check_p(&k, i);
        for (uint64_t i = 1; i < k.ng; i++)
            check_g(&k, i);
        follow(&k);
        check_left(&k);
    } else {
        say(&k, "check: no memory for %llu goroutines", LLU(k.ng));
    }
    free(k.at);
    free(k.todo);
    free(k.blocks);
    return k.breaches;
}
