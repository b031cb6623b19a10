/* check_sched.c — of the checker (check.c): locks, Ms, Ps, their queues and timer heaps, the g
 * table. */
#include "check.h"

/* ---- Ms and Ps ------------------------------------------------------------------------------- */

void check_lock(struct check *k, const shm_lockword *l, const char *what)
{
    struct shm_ctx *c = k->c;
    uint32_t w = load_acq(l), m1 = w & 0xffff; /* pairs with shm_lock() */
    if (w == 0)
        return;
    if (m1 == 0 || m1 > load_acq(&c->hdr->max_m) ||
        (load_acq(&c->mtab[m1 - 1].epoch) & 0x7fff) != (w >> 16 & 0x7fff) || !shm_m_alive(c, m1)) {
        check_say(k, "%s: lock %#llx is %#x: held by nobody alive", what, LLU(shm_offof(c, l)), w);
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
        check_say(k, "%s: lock %#llx is held by M %u%s", what, LLU(shm_offof(c, l)), m1 - 1,
                  named ? "" : ", which does not name it");
}

const struct shm_g *check_meet(struct check *k, shm_gref r, uint8_t where, const char *what)
{
    uint32_t i = shm_gidx(r);
    if (i == 0 || i >= k->ng) {
        check_say(k, "%s: %#llx is no goroutine", what, LLU(r));
        return NULL;
    }
    if (shm_ggen(r) == SHM_ST_GEN(load_acq(&k->c->gtab[i].status))) { /* else a stale hint */
        if (where == AT_FREE && (k->at[i] & AT_FREE))
            check_say(k, "%s: slot %u is free twice", what, i);
        k->at[i] |= where;
    }
    return &k->c->gtab[i];
}

/* A chain by schedlink: how many. */
static uint64_t chain(struct check *k, shm_gref r, uint8_t where, const char *what)
{
    uint64_t n = 0;
    while (r && n <= k->ng) {
        const struct shm_g *g = check_meet(k, r, where, what);
        n++;
        if (!g)
            return n;
        r = g->schedlink;
    }
    if (r)
        check_say(k, "%s: a circle", what);
    return n;
}

static void check_handles(struct check *k, const struct shm_m *m)
{
    if (m->handles_off == 0)
        return;
    if (!shm_handles_own(k->c, m)) {
        struct block *b = check_mark(k, m->handles_off, 8ULL * m->handles_cap, "handle table");
        if (!b)
            return;
        b->registry = 1;
    } else if (m->handles_cap > SHM_HANDLES_OWN) {
        check_say(k, "M %u: %u handles in its own words", m->index, m->handles_cap);
        return;
    }
    const uint64_t *w = shm_at(k->c, m->handles_off);
    uint32_t held = 0;
    for (uint32_t i = 0; i < m->handles_cap; i++)
        if (!(w[i] >> 63)) {
            held++;
            check_mark_object(k, w[i], true, "handle table");
        }
    if (held != m->handles_n)
        check_say(k, "M %u: %u handles in its table, counted %u", m->index, held, m->handles_n);
}

void check_m(struct check *k, uint32_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_m *m = &c->mtab[i];
    uint32_t kind = load_acq(&m->kind), undo = load_acq(&m->undo_n);
    bool free = kind == SHM_M_FREE, dead = !free && !shm_m_alive(c, i + 1);
    if (kind > SHM_M_AUX)
        check_say(k, "M %u: kind %u", i, kind);
    if (undo > SHM_UNDO || ((free || dead || k->quiet) && undo))
        check_say(k, "M %u: %s, with %u stores not committed (INV undo)", i,
                  free   ? "free"
                  : dead ? "dead"
                         : "at rest",
                  undo);
    if ((free || dead || k->quiet) && (load_acq(&m->held_n) || load_acq(&m->lockset)))
        check_say(k, "M %u: %s, names %u locks%s", i,
                  free   ? "free"
                  : dead ? "dead"
                         : "at rest",
                  load_acq(&m->held_n), load_acq(&m->lockset) ? " and a set of them" : "");
    if (free && (load_acq(&m->curg) || load_acq(&m->p1) || m->gfree.n || m->handles_n))
        check_say(k, "M %u: free, has goroutine %#llx, P %d, %u free slots, %u handles", i,
                  LLU(load_acq(&m->curg)), (int)load_acq(&m->p1) - 1, m->gfree.n, m->handles_n);
    if (load_acq(&m->curg))
        check_meet(k, load_acq(&m->curg), AT_CURG, "curg");
    for (uint32_t s = 0; s < SHM_INFLIGHT; s++) {
        uint64_t r = load_acq(&m->inflight[s]);
        if (r && s != SHM_IF_DRAIN)
            check_meet(k, r, AT_HAND, "inflight");
        if (r && k->quiet && s != SHM_IF_NEW) /* that one is left standing, and stale */
            check_say(k, "M %u: inflight[%u] names %#llx", i, s, LLU(r));
    }
    for (uint32_t n = 0; n < m->gfree.n && n < SHM_MAG; n++)
        if (m->gfree.idx[n] < k->ng)
            check_meet(k,
                       (uint64_t)SHM_ST_GEN(load_acq(&c->gtab[m->gfree.idx[n]].status)) << 32 |
                           m->gfree.idx[n],
                       AT_FREE, "g magazine");
        else
            check_say(k, "M %u: g magazine has slot %u", i, m->gfree.idx[n]);
    chain(k, load_acq(&m->homeq), AT_QUEUE, "home queue");
    chain(k, load_acq(&m->homeq_fifo), AT_QUEUE, "home queue");
    check_handles(k, m);
}

/* Entry i of p's heap is a node: inside a timer or a context, which says the same. */
static void check_node(struct check *k, const struct shm_p *p, uint32_t i,
                       const struct shm_timer_ent *e)
{
    shm_off off = e->what & ~SHM_TNODE;
    const struct block *t = check_block_at(k, off - offsetof(struct shm_timer, node)),
                       *x = check_block_at(k, off - offsetof(struct shm_context, node)),
                       *j = check_block_at(k, off - offsetof(struct shm_join, deadline));
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
        check_say(k, "P %u: timer %u: nothing is at %#llx", p->index, i, LLU(off));
    else if (n->kind != (j                              ? SHM_TN_JOIN
                         : t && n->kind == SHM_TN_TIMER ? SHM_TN_TIMER
                                                        : SHM_TN_CONTEXT) ||
             n->pi != p->index || n->index1 != i + 1 || load_acq(&n->when_ns) != e->when_ns)
        check_say(k, "P %u: timer %u: its object says kind %u, P %u, place %u, when %llu", p->index,
                  i, n->kind, n->pi, n->index1 - 1, LLU(load_acq(&n->when_ns)));
}

static void check_timers(struct check *k, const struct shm_p *p)
{
    struct shm_ctx *c = k->c;
    uint32_t n = p->timers_n;
    uint64_t first = UINT64_MAX;
    check_lock(k, &p->timers_lock, "timers");
    if (n > p->timers_cap)
        check_say(k, "P %u: %u timers, room for %u", p->index, n, p->timers_cap);
    if (p->timers_off == 0 || n > p->timers_cap)
        return;
    struct block *b = check_mark(k, p->timers_off,
                                 (uint64_t)p->timers_cap * sizeof(struct shm_timer_ent), "timers");
    if (!b)
        return;
    b->registry = 1;
    const struct shm_timer_ent *a = shm_at(c, p->timers_off);
    for (uint32_t i = 0; i < n; i++) {
        if (i && a[i].when_ns < a[(i - 1) / 4].when_ns)
            check_say(k, "P %u: timer %u is before its parent", p->index, i);
        if (a[i].what & SHM_TNODE) {
            check_node(k, p, i, &a[i]);
            continue;
        }
        const struct shm_g *g = check_meet(k, a[i].what, AT_HEAP, "timers");
        if (g &&
            (g->waitkind != SHM_WAIT_SLEEP || g->waitobj != shm_offof(c, p) || g->sudog.next != i ||
             !g->sudog.linked || SHM_W_EPOCH(load_acq(&g->wait)) != a[i].epoch))
            check_say(k, "P %u: timer %u: goroutine %llu does not wait there", p->index, i,
                      LLU(g->goid));
    }
    if (n)
        first = a[0].when_ns;
    if (load_acq(&p->timer0_when) != first)
        check_say(k, "P %u: timer0_when %llu, the first timer %llu", p->index,
                  LLU(load_acq(&p->timer0_when)), LLU(first));
    if (n && k->quiet)
        check_say(k, "P %u: %u timers are left", p->index, n);
}

void check_p(struct check *k, uint32_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_p *p = &c->ptab[i];
    uint64_t w = load_acq(&p->status), h = load_acq(&p->runqhead), t = load_acq(&p->runqtail);
    unsigned st = SHM_ST_STATUS(w), m1 = SHM_ST_M1(w);
    if (st != Pidle && st != Prunning && st != Psyscall && st != Pdead)
        check_say(k, "P %u: status %u", i, st);
    if (st == Pdead && (h != t || load_acq(&p->runnext)))
        check_say(k, "P %u: dead, and %llu are queued there", i,
                  LLU(t - h + (load_acq(&p->runnext) != 0)));
    if (st == Prunning &&
        (m1 == 0 || m1 > load_acq(&c->hdr->max_m) || load_acq(&c->mtab[m1 - 1].p1) != i + 1))
        check_say(k, "P %u: runs on M %d, which does not have it", i, (int)m1 - 1);
    if (t < h || t - h > SHM_RUNQ)
        check_say(k, "P %u: ring from %llu to %llu", i, LLU(h), LLU(t));
    else
        for (; h < t; h++)
            check_meet(k, load_acq(&p->runq[h % SHM_RUNQ]), AT_QUEUE | AT_NORMALQ, "ring");
    if (load_acq(&p->runnext))
        check_meet(k, load_acq(&p->runnext), AT_QUEUE | AT_NORMALQ, "runnext");
    check_timers(k, p);
}

/* ---- the header ------------------------------------------------------------------------------ */

void check_header(struct check *k)
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
        check_say(k, "global queue: %llu, counted %llu, tail %#llx", LLU(n),
                  LLU(load_acq(&h->runq_size)), LLU(h->runq_tail));
    n = chain(k, h->batchq_head, AT_QUEUE | AT_BATCHQ, "batch queue");
    if (n != load_acq(&h->batchq_size) || (n == 0) != (h->batchq_tail == 0))
        check_say(k, "batch queue: %llu, counted %llu, tail %#llx", LLU(n),
                  LLU(load_acq(&h->batchq_size)), LLU(h->batchq_tail));
    n = chain(k, h->gfree_head, AT_FREE, "free list");
    if (n != load_acq(&h->gfree_n))
        check_say(k, "free list: %llu, counted %llu", LLU(n), LLU(load_acq(&h->gfree_n)));
    if (load_acq(&h->panic) == 2 && h->panic_val.tag == SHM_VAL_HEAP) /* pairs with who panicked */
        check_kept(k, h->panic_val.h.off, h->panic_val.h.len, "panic");
    if (load_acq(&h->pickled)) /* pairs with shm_pickled() */
        check_mark_object(k, load_acq(&h->pickled), true, "what was pickled");
    if (load_acq(&h->trace_rings)) /* pairs with shm_trace_start() */
        check_kept(k, h->trace_off,
                   load_acq(&h->trace_rings) * h->trace_cap * sizeof(struct shm_event), "trace");
    for (uint32_t id = 1; id <= load_acq(&h->code_n); id++) {
        size_t bytes;
        uint8_t hash[16];
        const void *payload = shm_code_payload(c, id, &bytes, hash);
        check_kept(k, shm_offof(c, payload), bytes, "code");
    }
}

/* ---- goroutines ------------------------------------------------------------------------------ */

static void check_select(struct check *k, const struct shm_g *g)
{
    const struct shm_selblk *b = shm_at(k->c, g->waitobj);
    if (!check_mark(k, g->waitobj, sizeof *b, "select"))
        return;
    if (b->n > SHM_SELECT_MAX ||
        !check_mark(k, g->waitobj, sizeof *b + b->n * sizeof b->cs[0], "select")) {
        check_say(k, "goroutine %llu: a select of %u cases", LLU(g->goid), b->n);
        return;
    }
    if (b->lockset && b->lockset != g->waitobj + sizeof *b + b->n * sizeof b->cs[0])
        check_say(k, "goroutine %llu: its select has its locks at %#llx", LLU(g->goid),
                  LLU(b->lockset));
    for (uint32_t i = 0; i < b->n; i++) {
        check_mark_object(k, b->cs[i].ch, false, "select case");
        check_mark_value(k, &b->cs[i].v, "select case");
    }
}

static void check_wait(struct check *k, const struct shm_g *g)
{
    uint64_t w = load_acq(&g->wait);
    uint8_t at = k->at[g - k->c->gtab];
    if (SHM_W_STATE(w) != SHM_W_ARMED && !(at & AT_HAND))
        check_say(k, "goroutine %llu: waiting, %s, in nobody's hand (INV one-waker)", LLU(g->goid),
                  SHM_W_STATE(w) == SHM_W_CLAIMED ? "claimed" : "not armed");
    switch (g->waitkind) {
    case 0:
        break;
    case SHM_OBJ_CHAN:
    case SHM_OBJ_JOIN:
    case SHM_OBJ_SEMA:
    case SHM_OBJ_GROUP:
    case SHM_OBJ_DONEQ:
        check_mark_object(k, g->waitobj, false, "waitobj");
        break;
    case SHM_WAIT_SELECT:
        check_select(k, g);
        break;
    case SHM_WAIT_SLEEP:
        if (SHM_W_STATE(w) == SHM_W_ARMED && !(at & AT_HEAP))
            check_say(k, "goroutine %llu: asleep, in no timer heap", LLU(g->goid));
        break;
    default:
        check_say(k, "goroutine %llu: waits on something of kind %u", LLU(g->goid), g->waitkind);
    }
}

void check_g(struct check *k, uint64_t i)
{
    struct shm_ctx *c = k->c;
    const struct shm_g *g = &c->gtab[i];
    uint64_t w = load_acq(&g->status);
    unsigned st = SHM_ST_STATUS(w);
    uint8_t at = k->at[i];
    if (st == Gdead) {
        if (!(at & (AT_FREE | AT_HAND | AT_CURG)))
            check_say(k, "g slot %llu: dead, in no free list", LLU(i));
        return;
    }
    if (k->quiet)
        check_say(k, "goroutine %llu is left, status %u, %s", LLU(g->goid), st,
                  shm_reason_text(c, g->reason));
    if (at & AT_FREE)
        check_say(k, "goroutine %llu: status %u, in a free list", LLU(g->goid), st);
    if (st != Gidle && st != Grunnable && st != Grunning && st != Gwaiting)
        check_say(k, "goroutine %llu: status %u", LLU(g->goid), st);
    k->gs += (g->flags & SHM_GF_COUNTED) != 0;
    if (st == Gidle)
        return;
    bool complete = g->cont_off || g->home_m1 || (g->flags & SHM_GF_OUTSIDE);
    if (st != Grunning && !complete)
        check_say(k, "goroutine %llu: parked, neither stored nor at home (INV parked-complete)",
                  LLU(g->goid));
    if (g->cont_off && st != Grunning) /* of a running one it may just be made or eaten */
        check_mark(k, g->cont_off, g->cont_len, "continuation");
    if (g->obj)
        check_mark_object(k, g->obj, true, "join of a goroutine");
    if (st != Grunning)
        check_mark_value(k, &g->value, "value of a goroutine");
    if (st == Grunning && !(at & AT_CURG) && !(g->flags & SHM_GF_OUTSIDE))
        check_say(k, "goroutine %llu: running, on no M", LLU(g->goid));
    if (st == Grunnable && !(at & (AT_QUEUE | AT_HAND | AT_CURG)) && !(g->flags & SHM_GF_OUTSIDE))
        check_say(k, "goroutine %llu: runnable, in no queue", LLU(g->goid));
    if (st == Grunnable && at & (g->flags & SHM_GF_BATCH ? AT_NORMALQ : AT_BATCHQ))
        check_say(k, "goroutine %llu: in a queue of the other class (INV batch-apart)",
                  LLU(g->goid));
    if (st == Gwaiting)
        check_wait(k, g);
    if (g->waitkind == SHM_WAIT_SELECT && st == Grunnable)
        check_select(k, g); /* readied, not yet through its last pass */
}
