/* check_objects.c — of the checker (check.c): what has waiters or counted references, and the
 * queues of those who wait: channels, timers, contexts, joins, groups, queues of joins, sync
 * objects, maps. */
#include "check.h"

/* ---- who waits ------------------------------------------------------------------------------- */

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
            check_say(k, "goroutine %llu: its sudog is in a queue of %#llx, it waits on %#llx",
                      LLU(g->goid), LLU(obj), LLU(g->waitobj));
        return &g->sudog;
    }
    const struct shm_sudog *s;
    if (off % 8 || off < c->hdr->heap_off ||
        off - c->hdr->heap_off + sizeof *s > load_acq(&c->hdr->heap_committed)) /* as the blocks */
        return NULL;
    s = shm_at(c, off); /* it says where in its block it stands */
    uint64_t back = sizeof(struct shm_selblk) + s->which * sizeof(struct shm_selcase);
    const struct block *b = off > back ? check_block_at(k, off - back) : NULL;
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
            check_say(k, "object %#llx: %#llx in its queue is no sudog", LLU(obj), LLU(off));
            return n;
        }
        if (s->prev != prev || s->linked != dir)
            check_say(
                k,
                "object %#llx: sudog %#llx in its queue: prev %#llx, wanted %#llx; linked %u, "
                "wanted %u",
                LLU(obj), LLU(off), LLU(s->prev), LLU(prev), s->linked, dir);
        if (s->prev != prev) /* a circle is met here the second time round */
            return n;
        *selects += s->isselect;
        const struct shm_g *g = check_meet(k, s->g, 0, "sudog");
        uint64_t w = g ? load_acq(&g->wait) : 0;
        bool waits = g && shm_readgstatus(k->c, s->g) == Gwaiting &&
                     SHM_W_STATE(w) == SHM_W_ARMED && (uint32_t)SHM_W_EPOCH(w) == s->epoch;
        /* The losers of a select stay until it has run its last pass. */
        if (!waits && !s->isselect && g && !(k->at[shm_gidx(s->g)] & AT_HAND))
            check_say(k,
                      "object %#llx: goroutine %llu in its queue does not wait (wait word %#llx)",
                      LLU(obj), LLU(g->goid), LLU(w));
        prev = off;
        off = s->next;
    }
    if (prev != last)
        check_say(k, "object %#llx: its queue ends with %#llx, last is %#llx", LLU(obj), LLU(prev),
                  LLU(last));
    return n;
}

static bool drained(const struct check *k, shm_off obj)
{
    for (uint32_t i = 0; i < load_acq(&k->c->hdr->max_m); i++) {
        shm_off named = load_acq(&k->c->mtab[i].inflight[SHM_IF_DRAIN]);
        /* A context's: its own channel, or one of a context below. */
        if (named == obj ||
            (named && check_block_at(k, named) && shm_kind(shm_at(k->c, named)) == SHM_OBJ_CONTEXT))
            return true;
    }
    return false;
}

/* The other side of check_node(). */
static void check_in_heap(struct check *k, const struct shm_tnode *n, const char *what, shm_off off)
{
    const struct shm_p *p = n->pi < load_acq(&k->c->hdr->max_p) ? &k->c->ptab[n->pi] : NULL;
    const struct block *b = p ? check_block_at(k, p->timers_off) : NULL;
    uint64_t when = load_acq(&n->when_ns);
    if ((n->index1 != 0) != (when != 0 && when != UINT64_MAX))
        check_say(k, "%s %#llx: due at %llu, place %u", what, LLU(off), LLU(when), n->index1 - 1);
    if (n->index1 == 0)
        return;
    const struct shm_timer_ent *a = b ? shm_at(k->c, b->off) : NULL;
    if (!a || n->index1 > p->timers_n || n->index1 * sizeof *a > b->usable ||
        a[n->index1 - 1].what != (shm_offof(k->c, n) | SHM_TNODE))
        check_say(k, "%s %#llx: is not where it says, place %u of P %u", what, LLU(off),
                  n->index1 - 1, n->pi);
}

/* ---- channels and time ----------------------------------------------------------------------- */

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
        check_say(k, "channel %#llx: %llu wait to receive, %llu to send (INV chan-one-side)",
                  LLU(off), LLU(nr), LLU(ns));
    if (load_acq(&ch->closed) && (nr || ns) && !drained(k, off))
        check_say(k, "channel %#llx: closed, and %llu wait", LLU(off), LLU(nr + ns));
    if (ch->done)
        check_mark_object(k, ch->buf, true, "context of a channel");
    if (ch->cap == 0 && (n || (ch->buf && !ch->done)))
        check_say(k, "channel %#llx: no capacity, %u values", LLU(off), n);
    if (ch->cap == 0)
        return;
    if (n > ch->cap || ch->recvx >= ch->cap || ch->sendx != ((uint64_t)ch->recvx + n) % ch->cap) {
        check_say(k, "channel %#llx: %u of %u values from %u to %u", LLU(off), n, ch->cap,
                  ch->recvx, ch->sendx);
        return;
    }
    if (!load_acq(&ch->closed) && ((n && nr && !selects) || (n < ch->cap && ns && !selects)))
        check_say(k,
                  "channel %#llx: %u of %u values, yet %llu receive, %llu send (INV chan-no-idle)",
                  LLU(off), n, ch->cap, LLU(nr), LLU(ns));
    if (!check_mark(k, ch->buf, (uint64_t)ch->cap * sizeof(struct shm_val), "buffer of a channel"))
        return;
    const struct shm_val *v = shm_at(k->c, ch->buf);
    for (uint32_t i = 0; i < n; i++)
        check_mark_value(k, &v[((uint64_t)ch->recvx + i) % ch->cap], "value in a channel");
}

static void check_afterfunc(struct check *k, shm_off off)
{
    const struct shm_afterfunc *t = shm_at(k->c, off);
    check_lock(k, &t->lock, "after_func");
    check_mark_value(k, &t->call, "call of after_func");
}

/* INV children-first, and who is a child of whom. */
static void check_context(struct check *k, shm_off off)
{
    const struct shm_context *x = shm_at(k->c, off);
    unsigned state = load_acq(&x->state);
    check_lock(k, &x->lock, "context");
    if (state > SHM_CTX_DEADLINE || (state && !x->want && !x->why))
        check_say(k, "context %#llx: state %u", LLU(off), state);
    if (x->parent)
        check_mark_object(k, x->parent, true, "parent of a context");
    check_mark_value(k, &x->cause, "cause");
    check_mark_value(k, &x->key, "key of a context");
    check_mark_value(k, &x->value, "value of a context");
    if (load_acq(&x->done))
        check_mark_object(k, load_acq(&x->done), false, "done of a context");
    if (x->node.kind)
        check_in_heap(k, &x->node, "context", off);
    shm_off prev = 0, at = x->first;
    for (size_t n = 0; at; n++) {
        const struct block *b = check_block_at(k, at);
        const struct shm_context *y = shm_at(k->c, at);
        if (!b || b->usable < sizeof *y || shm_kind(&y->obj) != SHM_OBJ_CONTEXT || y->up != off ||
            y->prev != prev || n > k->nblocks) {
            check_say(k, "context %#llx: child %#llx is none of its own", LLU(off), LLU(at));
            return;
        }
        if (state && load_acq(&y->state) == 0)
            check_say(k, "context %#llx: is cancelled, its child %#llx not (INV children-first)",
                      LLU(off), LLU(at));
        prev = at;
        at = y->next;
    }
}

/* ---- goroutines and groups of them ----------------------------------------------------------- */

static void check_retry(struct check *k, const struct shm_join *j)
{
    const struct shm_retry *y = shm_at(k->c, j->retry);
    if (!check_mark(k, j->retry, sizeof *y, "checkpoint"))
        return;
    if (y->cont_off)
        check_mark(k, y->cont_off, y->cont_len, "continuation of a checkpoint");
    check_mark_value(k, &y->value, "value of a checkpoint");
    if (y->cont_off && y->waitkind)
        check_mark_object(k, y->waitobj, false, "waitobj of a checkpoint");
    if (y->waitkind && y->waitkind != SHM_OBJ_JOIN && y->waitkind != SHM_OBJ_GROUP)
        check_say(k, "goroutine %llu: its checkpoint waits on something of kind %u (INV one-truth)",
                  LLU(j->goid), y->waitkind);
    if (load_acq(&j->state) == SHM_J_PENDING && y->cont_off && j->g &&
        shm_g(k->c, j->g)->cont_off == y->cont_off)
        check_say(k, "goroutine %llu: its continuation is a checkpoint's too (INV one-truth)",
                  LLU(j->goid));
}

static void check_join(struct check *k, shm_off off)
{
    const struct shm_join *j = shm_at(k->c, off);
    uint64_t selects = 0;
    check_lock(k, &j->lock, "join");
    uint64_t n = check_queue(k, off, j->waiters_first, j->waiters_last, SHM_DIR_RECV, &selects);
    if (load_acq(&j->state) > SHM_J_DIED)
        check_say(k, "join %#llx: state %u", LLU(off), load_acq(&j->state));
    if (load_acq(&j->state) != SHM_J_PENDING && n && !drained(k, off))
        check_say(k, "join %#llx: ended, and %llu wait", LLU(off), LLU(n));
    check_mark_value(k, &j->value, "result");
    if (j->retry)
        check_retry(k, j);
    if (j->group)
        check_mark_object(k, j->group, true, "group of a goroutine");
    if (j->owns)
        check_mark_object(k, j->owns, true, "group a goroutine is in");
    if (j->doneq)
        check_mark_object(k, j->doneq, true, "queue of a join");
    if ((j->dlisted == 1) != (j->doneq != 0 && load_acq(&j->state) != SHM_J_PENDING) &&
        !drained(k, off))
        check_say(k, "join %#llx: state %u, dlisted %u, queue %#llx", LLU(off), load_acq(&j->state),
                  j->dlisted, LLU(j->doneq));
}

/* The joins of one of its lists; returns how many. */
static uint64_t check_joins(struct check *k, shm_off off, shm_off first, shm_off last,
                            uint32_t listed)
{
    uint64_t n = 0;
    shm_off prev = 0;
    for (shm_off at = first; at && n <= k->nblocks; n++) {
        check_mark_object(k, at, true, "join in a group");
        const struct block *b = check_block_at(k, at);
        const struct shm_join *j = shm_at(k->c, at);
        if (!b || !b->object || shm_kind(&j->obj) != SHM_OBJ_JOIN)
            return n;
        if (j->listed != listed || j->gprev != prev || (listed == 1 && j->group != off) ||
            !j->counted)
            check_say(k,
                      "group %#llx: join %#llx: listed %u, wanted %u; prev %#llx, wanted %#llx; in "
                      "group %#llx, counted %u",
                      LLU(off), LLU(at), j->listed, listed, LLU(j->gprev), LLU(prev), LLU(j->group),
                      j->counted);
        prev = at;
        at = j->gnext;
    }
    if (prev != last)
        check_say(k, "group %#llx: a list ends with %#llx, last is %#llx", LLU(off), LLU(prev),
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
        check_say(k, "group %#llx: %u children, %llu listed, %u let in, %llu queued", LLU(off),
                  pending, LLU(kids), gr->running, LLU(q));
    if (pending == 0 && w && !drained(k, off))
        check_say(k, "group %#llx: no child is left, and %llu wait", LLU(off), LLU(w));
    if (gr->next && gr->running < gr->limit && !load_acq(&gr->aborting) && !drained(k, off))
        check_say(k, "group %#llx: %u of %u run, and %#llx is not let in", LLU(off), gr->running,
                  gr->limit, LLU(gr->next));
    if (gr->parent)
        check_mark_object(k, gr->parent, true, "parent of a group");
    if (gr->outer && load_acq(&gr->state) != SHM_GR_FINISHED)
        check_mark_object(k, gr->outer, true, "group around a group");
    if (gr->cancelling)
        check_mark_object(k, gr->cancelling, true, "join in an abort");
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
        check_mark_object(k, at, true, "ended goroutine");
        if (!check_block_at(k, at) || shm_kind(&j->obj) != SHM_OBJ_JOIN || j->dlisted != 1 ||
            j->doneq != off) {
            check_say(k, "doneq %#llx: %#llx in it is no join of it", LLU(off), LLU(at));
            return;
        }
        last = at;
        at = j->dnext;
    }
    if (q->last != last)
        check_say(k, "doneq %#llx: ends with %#llx, last is %#llx", LLU(off), LLU(last),
                  LLU(q->last));
}

/* ---- sync, maps ------------------------------------------------------------------------------ */

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
        check_say(k, "sync object %#llx: is a %u", LLU(off), sy->what);
    if (n && sy->what == SHM_SY_MUTEX && !(word & SHM_SY_SLOW))
        check_say(k, "mutex %#llx: %llu wait, its word is %#llx (INV mutex-slow)", LLU(off), LLU(n),
                  LLU(word));
    if (breaches == k->breaches && shm_sema_owes(c, sy))
        check_say(k, "sync object %#llx: somebody waits who may go (INV sync-settled)", LLU(off));
    if (sy->what == SHM_SY_SEMAPHORE && word > sy->n)
        check_say(k, "semaphore %#llx: %llu of %llu free", LLU(off), LLU(word), LLU(sy->n));
    if (sy->other)
        check_mark_object(k, sy->other, true, "mutex of a cond");
    struct block *b =
        sy->holders ? check_mark(k, sy->holders, 8ULL * (sy->holders_cap + 1), "holders") : NULL;
    if (b && *(const uint64_t *)shm_at(c, sy->holders) > sy->n)
        check_say(k, "rwmutex %#llx: %llu readers, more are named", LLU(off), LLU(sy->n));
    const struct block *p = sy->prev ? check_block_at(k, sy->prev) : NULL;
    if ((sy->prev && !p) ||
        (p ? ((const struct shm_sema *)shm_at(c, sy->prev))->next : c->hdr->sema_first) != off)
        check_say(k, "sync object %#llx: is not in the list of all", LLU(off));
}

static void check_map(struct check *k, shm_off off)
{
    const struct shm_map *m = shm_at(k->c, off);
    uint64_t n = 0;
    check_lock(k, &m->lock, "map");
    if (m->nbuckets == 0 && m->n == 0)
        return;
    if (m->gen > 1 || m->nbuckets & (m->nbuckets - 1) ||
        !check_mark(k, m->buckets, 8 * m->nbuckets, "table of a map")) {
        check_say(k, "map %#llx: generation %u, %llu chains", LLU(off), m->gen, LLU(m->nbuckets));
        return;
    }
    for (uint64_t i = 0; i < m->nbuckets; i++) {
        shm_off at = ((const shm_off *)shm_at(k->c, m->buckets))[i];
        for (; at && n <= m->n; n++) {
            const struct shm_ment *e = shm_at(k->c, at);
            if (!check_mark(k, at, sizeof *e, "entry of a map") ||
                (e->hash & (m->nbuckets - 1)) != i)
                break;
            check_mark_value(k, &e->value, "value in a map");
            at = e->next[m->gen];
        }
        if (at)
            check_say(k, "map %#llx: entry %#llx is not of chain %llu", LLU(off), LLU(at), LLU(i));
    }
    if (n != m->n)
        check_say(k, "map %#llx: %llu entries, counted %llu (INV map-complete)", LLU(off), LLU(n),
                  LLU(m->n));
}

void check_object(struct check *k, shm_off off)
{
    switch (shm_kind(shm_at(k->c, off))) {
    case SHM_OBJ_CHAN:
        check_chan(k, off);
        break;
    case SHM_OBJ_TIMER:
        check_afterfunc(k, off);
        break;
    case SHM_OBJ_CONTEXT:
        check_context(k, off);
        break;
    case SHM_OBJ_JOIN:
        check_join(k, off);
        break;
    case SHM_OBJ_GROUP:
        check_group(k, off);
        break;
    case SHM_OBJ_DONEQ:
        check_doneq(k, off);
        break;
    case SHM_OBJ_SEMA:
        check_sema(k, off);
        break;
    case SHM_OBJ_MAP:
        check_map(k, off);
        break;
    }
}
