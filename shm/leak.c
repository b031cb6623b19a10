/* leak.c — a partial deadlock: parked goroutines that nothing reachable can ever ready.
 *
 * A goroutine that waits on an object (channel, lock, another goroutine's end, a group) goes on
 * only if somebody does something to that object, or cancels it by its handle; and for that he must
 * have a handle. All handles are counted (handle.c). So:
 *
 *   1 Every light goroutine parked in such a wait is a CANDIDATE. All it holds stands in its
 *     continuation, and is found there: an object's references are either INSIDE (found in
 *     candidates, and in the objects that they lead to) or held by somebody else.
 *   2 An object with references that are not inside can be reached by what is no candidate: a
 *     goroutine that runs, is runnable, asleep or at home (main), a timer, a thread, a process
 *     outside, a message on its way. It is LIVE. So is what a timer will move.
 *   3 Live spreads along edges: from an object to who waits on it and to what it holds (a buffer's
 *     values, a group's children, a context's children), from a goroutine to what it holds.
 *   4 Candidates that are not live never run again: the leaks.
 *
 * IN DOUBT LIVE. References that nobody accounts for (a handle Python has not yet dropped, one that
 * a dead M leaked, a wait this file does not know) count as somebody else's. So what is at home
 * (MPGORT_MIGRATE=never: everybody) is never reported, nor what an M that answers late keeps warm.
 *
 * NOBODY IS STOPPED. The walk is done twice; what was not found the second time just as it was the
 * first, with the same wait, the same references and the same edges, is live. Why that is enough: a
 * set that is closed (no reference from outside) at one moment is closed for ever. If it was not at
 * the moment between the walks, then either an object had a reference more than was read before and
 * after, or a message was missing from a buffer that held it before and after: somebody worked on
 * that buffer meanwhile, so had a handle on it, from where? From what he holds for longer, which
 * both walks count as not inside; or from a wait that he has left, and a second wait is another
 * one.
 *
 * As in check.c, nothing is trusted: what is followed may have been freed; the second walk finds
 * out. */
#include "internal.h"

#include <stdlib.h>

#define GOROUTINE (1ULL << 63) /* in an id: a goid; else the offset of an object */
#define STEPS (1U << 24)       /* the longest list that is followed */
#define OBJECT_BYTES 512       /* at least as large as each that is read */
static_assert(sizeof(struct shm_timer) <= OBJECT_BYTES && sizeof(struct shm_join) <= OBJECT_BYTES &&
                  sizeof(struct shm_context) <= OBJECT_BYTES &&
                  sizeof(struct shm_group) <= OBJECT_BYTES,
              "an object");

struct node {
    uint64_t id;
    uint64_t sig; /* of all that was read: the same in both walks, or it counts as live */
    shm_off on;   /* a goroutine's: what it waits on, the first of several; 0: nothing */
    uint32_t refs, inside;
    uint32_t edges; /* the last added + 1, 0: none */
    bool read, live;
};
struct edge {
    uint32_t to, next;
    bool counted; /* it stands for one of to's references */
};
struct walk {
    struct shm_ctx *c;
    struct node *nodes;
    struct edge *edges;
    uint32_t *table; /* hash of id -> node + 1 */
    uint32_t n, cap, nedges, edges_cap, table_cap;
    bool full; /* no memory: nothing is known */
};

/* ---- the graph ------------------------------------------------------------------------------- */

static uint32_t slot_of(const struct walk *w, uint64_t id)
{
    uint32_t i = (uint32_t)(id * 0x9E3779B97F4A7C15ULL >> 32) & (w->table_cap - 1);
    while (w->table[i] && w->nodes[w->table[i] - 1].id != id)
        i = (i + 1) & (w->table_cap - 1);
    return i;
}

static struct node *lookup(const struct walk *w, uint64_t id)
{
    uint32_t at = w->table_cap ? w->table[slot_of(w, id)] : 0;
    return at ? &w->nodes[at - 1] : NULL;
}

static bool more_nodes(struct walk *w)
{
    uint32_t cap = w->cap ? 2 * w->cap : 1024;
    struct node *nodes = realloc(w->nodes, cap * sizeof *nodes);
    if (nodes)
        w->nodes = nodes;
    uint32_t *table = nodes ? calloc(2ULL * cap, sizeof *table) : NULL;
    if (!table)
        return false;
    free(w->table);
    w->table = table;
    w->table_cap = 2 * cap;
    w->cap = cap;
    for (uint32_t i = 0; i < w->n; i++)
        table[slot_of(w, w->nodes[i].id)] = i + 1;
    return true;
}

/* The number of the node with this id, made if it is new. */
static uint32_t node(struct walk *w, uint64_t id)
{
    const struct node *known = lookup(w, id);
    if (known)
        return (uint32_t)(known - w->nodes);
    if (w->n == w->cap && !more_nodes(w)) {
        w->full = true;
        return 0;
    }
    w->table[slot_of(w, id)] = w->n + 1;
    w->nodes[w->n] = (struct node){.id = id};
    return w->n++;
}

static void sign(struct node *x, uint64_t what)
{
    x->sig = (x->sig ^ what) * 0x9E3779B97F4A7C15ULL;
    x->sig ^= x->sig >> 29;
}

/* from is live: so is to. */
static void lead(struct walk *w, uint32_t from, uint32_t to, bool counted)
{
    if (w->nedges == w->edges_cap) {
        uint32_t cap = w->edges_cap ? 2 * w->edges_cap : 1024;
        struct edge *more = realloc(w->edges, cap * sizeof *more);
        if (!more) {
            w->full = true;
            return;
        }
        w->edges = more;
        w->edges_cap = cap;
    }
    w->edges[w->nedges] = (struct edge){to, w->nodes[from].edges, counted};
    w->nodes[from].edges = ++w->nedges;
    w->nodes[to].inside += counted;
    sign(&w->nodes[from], w->nodes[to].id + counted);
}

/* ---- what stands in the segment -------------------------------------------------------------- */

/* n bytes at off can be read without a fault, whatever they are. */
static bool readable(const struct walk *w, shm_off off, uint64_t n)
{
    struct shm_hdr *h = w->c->hdr;
    /* Never-used bytes have no pages. Under heap_lock; what is seen late is only not followed. */
    uint64_t end = load_rlx((_Atomic uint64_t *)&h->heap_top);
    return off % 8 == 0 && off >= h->heap_off + SHM_CACHELINE && off < end && n <= end - off;
}

/* from holds a reference on the object at off. */
static void holds(struct walk *w, uint32_t from, shm_off off)
{
    if (off)
        lead(w, from, node(w, off), true);
}

/* The handles in a block of bytes. */
static void bytes(struct walk *w, uint32_t from, shm_off off)
{
    uint32_t n;
    if (!readable(w, off, 8) || shm_blk(w->c, off)->cls > SHM_NCLASS)
        return;
    uint64_t usable = shm_usable(w->c, off);
    const uint64_t *words = shm_bytes_handles(w->c, off, &n);
    sign(&w->nodes[from], off);
    if (!readable(w, off, usable) || 8ULL * n > usable ||
        (const uint8_t *)(words + n) > (const uint8_t *)shm_at(w->c, off) + usable)
        return;
    for (uint32_t i = 0; i < n && !w->full; i++)
        holds(w, from, SHM_HANDLE_OFF(words[i]));
}

static void value(struct walk *w, uint32_t from, const struct shm_val *v)
{
    if (v->tag == SHM_VAL_HEAP)
        bytes(w, from, v->h.off);
}

static bool pending(const struct shm_tnode *n)
{
    uint64_t when = load_acq(&n->when_ns); /* pairs with shm_timers_set() */
    return when != 0 && when != UINT64_MAX;
}

/* ---- goroutines ------------------------------------------------------------------------------ */

/* r waits on obj and holds a reference on it. */
static void waits_on(struct walk *w, uint32_t g, shm_off obj)
{
    if (!w->nodes[g].on)
        w->nodes[g].on = obj;
    uint32_t o = node(w, obj);
    lead(w, g, o, true);
    lead(w, o, g, false);
}

/* False: this is no wait that ends by an object alone. */
static bool wait_of(struct walk *w, uint32_t at, const struct shm_g *g)
{
    switch (g->waitkind) {
    case 0: /* for ever; or for who readies it by name */
        return g->reason == SHM_WR_CHAN_RECV_NIL || g->reason == SHM_WR_CHAN_SEND_NIL ||
               g->reason == SHM_WR_SELECT_NO_CASES;
    case SHM_OBJ_CHAN:
    case SHM_OBJ_JOIN:
    case SHM_OBJ_SEMA:
    case SHM_OBJ_GROUP:
    case SHM_OBJ_DONEQ:
        waits_on(w, at, g->waitobj);
        return true;
    case SHM_WAIT_SELECT: {
        const struct shm_selblk *b = shm_at(w->c, g->waitobj);
        if (!readable(w, g->waitobj, sizeof *b) || b->n > SHM_SELECT_MAX ||
            !readable(w, g->waitobj, sizeof *b + b->n * sizeof b->cs[0]))
            return false;
        for (uint32_t i = 0; i < b->n; i++) {
            waits_on(w, at, b->cs[i].ch);
            value(w, at, &b->cs[i].v);
        }
        return true;
    }
    default:
        return false;
    }
}

static void goroutine(struct walk *w, const struct shm_g *g)
{
    uint64_t st = load_acq(&g->status), wait = load_acq(&g->wait); /* pair with who moves them */
    if (SHM_ST_STATUS(st) == Gdead || SHM_ST_STATUS(st) == Gidle)
        return;
    uint32_t at = node(w, GOROUTINE | g->goid);
    if (w->full)
        return;
    w->nodes[at].read = true;
    bool candidate = SHM_ST_STATUS(st) == Gwaiting && SHM_W_STATE(wait) == SHM_W_ARMED &&
                     !g->home_m1 && !(g->flags & (SHM_GF_OUTSIDE | SHM_GF_MAIN)) &&
                     wait_of(w, at, g);
    if (candidate) {
        sign(&w->nodes[at], wait);
        bytes(w, at, g->cont_off);
        value(w, at, &g->value);
        if (g->obj) { /* who has its handle may cancel it */
            uint32_t join = node(w, g->obj);
            lead(w, at, join, true);
            lead(w, join, at, false);
        }
        /* What was read is of this wait only if it is not over yet. */
        candidate = load_acq(&g->status) == st && load_acq(&g->wait) == wait;
    }
    if (!candidate) {
        for (uint32_t e = w->nodes[at].edges; e; e = w->edges[e - 1].next)
            w->nodes[w->edges[e - 1].to].inside -= w->edges[e - 1].counted;
        w->nodes[at].live = true;
    }
}

/* ---- objects --------------------------------------------------------------------------------- */

static void chan(struct walk *w, uint32_t at, const struct shm_chan *ch)
{
    uint32_t n = load_acq(&ch->qcount), cap = ch->cap, first = ch->recvx; /* as it is about now */
    sign(&w->nodes[at], (uint64_t)ch->sendx << 32 | first);
    if (ch->timer && pending(&((const struct shm_timer *)(const void *)ch)->node))
        w->nodes[at].live = true;
    if (ch->done)
        holds(w, at, ch->buf);
    if (!ch->buf || n > cap || first >= cap ||
        !readable(w, ch->buf, (uint64_t)cap * sizeof(struct shm_val)))
        return;
    const struct shm_val *v = shm_at(w->c, ch->buf);
    for (uint32_t i = 0; i < n; i++)
        value(w, at, &v[((uint64_t)first + i) % cap]);
}

/* A list of joins with a reference each. */
static void joins(struct walk *w, uint32_t at, shm_off j, size_t link)
{
    for (uint32_t n = 0; j && n < STEPS && readable(w, j, sizeof(struct shm_join)); n++) {
        holds(w, at, j);
        j = *(const shm_off *)(const void *)((const uint8_t *)shm_at(w->c, j) + link);
    }
}

static void join(struct walk *w, uint32_t at, const struct shm_join *j)
{
    value(w, at, &j->value);
    holds(w, at, j->group);
    holds(w, at, j->owns);
    holds(w, at, j->doneq);
    if (pending(&j->deadline)) /* it will be killed */
        w->nodes[at].live = true;
}

static void group(struct walk *w, uint32_t at, const struct shm_group *gr)
{
    joins(w, at, gr->kids_first, offsetof(struct shm_join, gnext));
    joins(w, at, gr->errs_first, offsetof(struct shm_join, gnext));
    holds(w, at, gr->parent);
    holds(w, at, gr->cancelling);
    if (load_acq(&gr->state) != SHM_GR_FINISHED) /* under its lock; as it is about now */
        holds(w, at, gr->outer);
}

static void context(struct walk *w, uint32_t at, const struct shm_context *x)
{
    holds(w, at, x->parent);
    if (load_acq(&x->done)) /* pairs with shm_context_done() */
        lead(w, at, node(w, load_acq(&x->done)), false);
    value(w, at, &x->cause);
    value(w, at, &x->key);
    value(w, at, &x->value);
    if (x->node.kind && pending(&x->node))
        w->nodes[at].live = true;
    shm_off child = x->first; /* cancelled with it; they have no reference from here */
    for (uint32_t n = 0; child && n < STEPS && readable(w, child, sizeof *x); n++) {
        lead(w, at, node(w, child), false);
        child = ((const struct shm_context *)shm_at(w->c, child))->next;
    }
}

/* Whoever holds a lock may unlock it, or die with it. */
static void held_by(struct walk *w, uint32_t at, uint64_t goid)
{
    const struct node *holder = lookup(w, GOROUTINE | goid);
    if (holder) /* else it has ended */
        lead(w, (uint32_t)(holder - w->nodes), at, false);
}

static void sema(struct walk *w, uint32_t at, const struct shm_sema *sy)
{
    uint64_t word = load_acq(&sy->word); /* as it is about now */
    bool lock = sy->what == SHM_SY_MUTEX || sy->what == SHM_SY_RWMUTEX || sy->what == SHM_SY_ONCE;
    sign(&w->nodes[at], word);
    holds(w, at, sy->other);
    if (lock && word >> 8)
        held_by(w, at, word >> 8);
    uint32_t cap = sy->holders_cap;
    if (!sy->holders || !readable(w, sy->holders, 8ULL * (cap + 1)))
        return;
    const uint64_t *readers = shm_at(w->c, sy->holders);
    for (uint64_t i = 1; i <= readers[0] && i <= cap; i++)
        held_by(w, at, readers[i]);
}

static void map(struct walk *w, uint32_t at, const struct shm_map *m)
{
    uint64_t chains = m->nbuckets, n = 0;
    uint32_t gen = m->gen & 1;
    sign(&w->nodes[at], m->n);
    if (chains > STEPS || !readable(w, m->buckets, 8 * chains))
        return;
    for (uint64_t i = 0; i < chains; i++) {
        shm_off e = ((const shm_off *)shm_at(w->c, m->buckets))[i];
        for (; e && n < STEPS && readable(w, e, sizeof(struct shm_ment)); n++) {
            const struct shm_ment *entry = shm_at(w->c, e);
            value(w, at, &entry->value);
            e = entry->next[gen];
        }
    }
}

static void object(struct walk *w, uint32_t at)
{
    shm_off off = w->nodes[at].id;
    const struct shm_obj *o = shm_at(w->c, off);
    w->nodes[at].read = true;
    if (!readable(w, off, OBJECT_BYTES)) { /* also one at the very end of the heap */
        w->nodes[at].live = true;
        return;
    }
    uint64_t word = load_acq(&o->word); /* before what it holds; pairs with shm_obj_unref() */
    w->nodes[at].refs = SHM_OBJ_REFS(word);
    sign(&w->nodes[at], word);
    switch (shm_kind(o)) {
    case SHM_OBJ_CHAN:
        chan(w, at, (const void *)o);
        break;
    case SHM_OBJ_JOIN:
        join(w, at, (const void *)o);
        break;
    case SHM_OBJ_GROUP:
        group(w, at, (const void *)o);
        break;
    case SHM_OBJ_CONTEXT:
        context(w, at, (const void *)o);
        break;
    case SHM_OBJ_SEMA:
        sema(w, at, (const void *)o);
        break;
    case SHM_OBJ_MAP:
        map(w, at, (const void *)o);
        break;
    case SHM_OBJ_DONEQ:
        joins(w, at, ((const struct shm_doneq *)(const void *)o)->first,
              offsetof(struct shm_join, dnext));
        break;
    case SHM_OBJ_TIMER:
        value(w, at, &((const struct shm_afterfunc *)(const void *)o)->call);
        break;
    }
}

/* ---- the walk -------------------------------------------------------------------------------- */

/* 3 of the essay, from what is live already. */
static void spread(struct walk *w)
{
    uint32_t n = 0, *todo = malloc((w->n + 1ULL) * sizeof *todo);
    if (!todo) {
        w->full = true;
        return;
    }
    for (uint32_t i = 0; i < w->n; i++)
        if (w->nodes[i].live)
            todo[n++] = i;
    while (n)
        for (uint32_t e = w->nodes[todo[--n]].edges; e; e = w->edges[e - 1].next) {
            struct node *to = &w->nodes[w->edges[e - 1].to];
            if (!to->live) {
                to->live = true;
                todo[n++] = w->edges[e - 1].to;
            }
        }
    free(todo);
}

/* before: the first walk, NULL: this is it. */
static void walk(struct walk *w, const struct walk *before)
{
    struct shm_hdr *h = w->c->hdr;
    uint64_t ng = load_acq(&h->g_next), pages = load_acq(&h->g_committed); /* as in dump.c */
    if (!more_nodes(w)) { /* there is a node 0 for who finds no room for more */
        w->full = true;
        return;
    }
    for (uint64_t i = 1; i < ng && i < pages && !w->full; i++)
        goroutine(w, &w->c->gtab[i]);
    for (uint32_t i = 0; i < w->n && !w->full; i++) /* those that are found on the way, too */
        if (!w->nodes[i].read) {
            if (w->nodes[i].id & GOROUTINE)
                w->nodes[i].live = true;
            else
                object(w, i);
        }
    for (uint32_t i = 0; i < w->n; i++) {
        struct node *x = &w->nodes[i];
        const struct node *was = before ? lookup(before, x->id) : x;
        if (!(x->id & GOROUTINE) && x->refs != x->inside)
            x->live = true;
        if (!was || was->live || was->sig != x->sig)
            x->live = true;
    }
    if (!w->full)
        spread(w);
}

static void walk_free(struct walk *w)
{
    free(w->nodes);
    free(w->edges);
    free(w->table);
}

int shm_leaks(struct shm_ctx *c, struct shm_leak **leaks, size_t *n)
{
    struct walk first = {.c = c}, second = {.c = c};
    *leaks = NULL;
    *n = 0;
    walk(&first, NULL);
    if (!first.full)
        walk(&second, &first);
    bool ok = !first.full && !second.full;
    if (ok && second.n && (*leaks = malloc(second.n * sizeof **leaks)) == NULL)
        ok = false;
    for (uint32_t i = 0; ok && i < second.n; i++)
        if (second.nodes[i].id & GOROUTINE && !second.nodes[i].live)
            (*leaks)[(*n)++] =
                (struct shm_leak){second.nodes[i].id & ~GOROUTINE, second.nodes[i].on};
    walk_free(&first);
    walk_free(&second);
    return ok ? SHM_OK : SHM_ENOMEM;
}
