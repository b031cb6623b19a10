/* kill.c — ending a goroutine from outside, whatever it does: kill, and the deadline of
 * spawn(timeout=).
 *
 * A kill is a mark on the join object (join->kill), set once, and whoever has the goroutine in hand
 * next ends it: no frame of it runs again, no finally block. What the killer does depends on where
 * it is:
 *
 *   waiting    its wait is claimed and unlinked, like a cancel's; then it is made runnable
 *   runnable   nothing: who executes it looks at the mark before it decodes anything. (A queue may
 *              hold a goroutine once only, so it cannot be taken out here.)
 *   running    its M is named in m->kill and asked to yield: at its next runtime call it ends. One
 *              that makes none for a while (GRACE_...) is ended with its M: the keeper stops the
 *              process, looks again whether that goroutine runs there, and kills it. Its reaper
 *              does the rest.
 *   outside    a plain function that waits with its thread blocked: its C stack cannot be dropped,
 *              so it is ended with its M, too.
 *   nested     the same, but others are at home there, and that M runs them meanwhile: it is told,
 *              by an exception, for their sake. shm_kill_told(): if it goes on, the keeper ends it
 *              as one that runs.
 *
 * In the first two cases the join has its end at once, before the goroutine's remains are cleared
 * away.
 *
 * tag: kill. The killer stores the mark, then loads status and wait; who arms a wait, or has just
 * made the goroutine running, loads the mark afterwards. All seq_cst: one of them sees the other.
 *
 * THE DEADLINE is a node of the join in a timer heap. It holds no reference, as all nodes: the end
 * takes it out under the heap's lock. */
#include "internal.h"

#define SENT UINT64_MAX          /* kill_ns: the M has been sent its SIGKILL */
#define GRACE_CPU_NS 20000000ULL /* what it may compute before it yields, ... */
#define GRACE_NS 200000000ULL    /* ... or how long it may sit in a call that blocks */

static struct shm_join *join_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}

/* It runs, or waits outside: its M is to be killed if it does not yield. */
static void ask_keeper(struct shm_ctx *c, shm_gref r, uint32_t m1)
{
    if (m1 == 0 || m1 > load_acq(&c->hdr->max_m)) /* pairs with shm_minit() */
        return;
    struct shm_m *m = &c->mtab[m1 - 1];
    uint32_t p1 = load_rlx(&m->p1); /* a hint */
    if (p1)
        store_rlx(&c->ptab[p1 - 1].preempt, 1); /* a level; pairs with shm_preempt_requested() */
    store_seq(&m->kill, r);                     /* pairs with shm_kill_due() */
    shm_wakepoller(c);
}

/* Asked by who does not own it, while its owner may write: the flags, or the whole word that they
 * stand in (shm_tx_ok()). The status that was loaded before says what they were at least then. */
static bool is_outside(struct shm_g *g)
{
    return load_rlx((_Atomic uint8_t *)&g->flags) & SHM_GF_OUTSIDE;
}

static void ended(struct shm_ctx *c, shm_off off)
{
    struct shm_val v = {.tag = SHM_VAL_NONE};
    shm_join_finish(c, off, SHM_J_KILLED, &v);
}

/* The mark is set. */
static void carry_out(struct shm_ctx *c, shm_off off)
{
    shm_gref r = join_at(c, off)->g;
    if (r == 0) /* being made: its first turn sees the mark */
        return;
    struct shm_g *g = shm_g(c, r);
    uint64_t w = load_seq(&g->status); /* tag: kill */
    if (SHM_ST_GEN(w) != shm_ggen(r))
        return;                   /* it ends just now */
    bool outside = is_outside(g); /* sits still while it waits */
    switch (SHM_ST_STATUS(w)) {
    case Gwaiting: {
        uint64_t wait = load_seq(&g->wait); /* tag: kill */
        if (outside && load_rlx(&c->mtab[SHM_ST_M1(w) - 1].kind) == SHM_M_WORKER) {
            ask_keeper(c, r, SHM_ST_M1(w));
            return;
        }
        if (SHM_W_STATE(wait) == SHM_W_ARMED &&
            shm_wait_abort(c, r, SHM_W_EPOCH(wait), SHM_OK_KILLED))
            shm_ready(c, r, true);
        else if (SHM_W_STATE(wait) != SHM_W_CLAIMED)
            return; /* not yet armed: who arms it sees the mark */
        ended(c, off);
        return;
    }
    case Grunnable:
        ended(c, off);
        return;
    case Grunning:
        ask_keeper(c, r, SHM_ST_M1(w));
    }
}

bool shm_join_kill(struct shm_ctx *c, shm_off off, uint32_t why)
{
    struct shm_join *j = join_at(c, off);
    uint32_t none = SHM_K_NONE;
    if (load_acq(&j->state) != SHM_J_PENDING) /* pairs with shm_join_finish() */
        return false;
    cas_seq(&j->kill, &none, why); /* tag: kill; marked already: carried out once more */
    FAILPOINT("kill.marked");
    carry_out(c, off);
    return true;
}

void shm_kill_told(struct shm_ctx *c, shm_gref r)
{
    ended(c, shm_g(c, r)->obj);
    ask_keeper(c, r, c->m1);
}

/* ---- the keeper's part ----------------------------------------------------------------------- */

/* The goroutine this M is to be killed for, if it is still there. */
static bool still_there(struct shm_ctx *c, struct shm_m *m, shm_gref r)
{
    struct shm_g *g = shm_g(c, r);
    uint64_t w = load_seq(&g->status); /* pairs with its moves: shm_casgstatus() */
    if (SHM_ST_GEN(w) != shm_ggen(r) || SHM_ST_M1(w) != m->index + 1)
        return false;
    return SHM_ST_STATUS(w) == Grunning || (SHM_ST_STATUS(w) == Gwaiting && is_outside(g));
}

/* What a process has computed. By its own clock, for on a busy machine it may not run for long. */
uint64_t shm_cpu_ns(int pid)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
        return 0; /* it has died: the wall clock decides */
    return (uint64_t)t.tv_sec * 1000000000ULL + (uint64_t)t.tv_nsec;
}

/* The slot of a child; it may have got one since the caller last looked. */
static struct shm_m *m_of(struct shm_ctx *c, const struct shm_child *child)
{
    if (child->m1)
        return &c->mtab[child->m1 - 1];
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) /* pairs with shm_minit() */
        if (load_acq(&c->mtab[i].kind) == SHM_M_WORKER &&
            load_acq(&c->mtab[i].pid) == (uint32_t)child->pid) /* as above */
            return &c->mtab[i];
    return NULL;
}

int shm_kill_due(struct shm_ctx *c, const struct shm_child *children, int n, uint64_t now_ns,
                 bool *pending)
{
    *pending = false;
    for (int i = 0; i < n; i++) {
        struct shm_m *m = m_of(c, &children[i]);
        shm_gref r = m ? load_seq(&m->kill) : 0; /* pairs with ask_keeper() */
        if (r == 0 || m->kill_ns == SENT)
            continue;
        if (!still_there(c, m, r)) {
            cas_seq(&m->kill, &r, 0); /* unless ask_keeper() has named another meanwhile */
            m->kill_ns = 0;
        } else if (shm_readgstatus(c, r) == Gwaiting) {
            return i; /* outside: there is nothing it could yield */
        } else if (m->kill_ns == 0) {
            m->kill_ns = now_ns;
            m->kill_cpu_ns = shm_cpu_ns(children[i].pid);
            *pending = true;
        } else if (now_ns - m->kill_ns >= GRACE_NS ||
                   shm_cpu_ns(children[i].pid) >= m->kill_cpu_ns + GRACE_CPU_NS) {
            return i;
        } else {
            *pending = true;
        }
    }
    return -1;
}

bool shm_kill_check(struct shm_ctx *c, uint32_t m1)
{
    struct shm_m *m = &c->mtab[m1 - 1];
    shm_gref r = load_seq(&m->kill); /* pairs with ask_keeper() */
    bool yes = r && still_there(c, m, r);
    if (!yes)
        store_seq(&m->kill, 0);
    m->kill_ns = yes ? SENT : 0; /* the name stays until the slot is another's: shm_checkdead() */
    return yes;
}

/* ---- the deadline ---------------------------------------------------------------------------- */

int shm_join_deadline(struct shm_ctx *c, shm_off off, uint64_t when_ns)
{
    struct shm_join *j = join_at(c, off);
    struct shm_p *p = shm_timers_p(c);
    int e = shm_timers_lock(c, p);
    if (e)
        return e;
    j->deadline.pi = p->index;
    j->deadline.kind = SHM_TN_JOIN;
    shm_tx_begin(c);
    shm_timers_set(c, p, &j->deadline, when_ns);
    shm_tx_commit(c);
    shm_unlock(c, &p->timers_lock);
    shm_timers_tell(c, p, when_ns);
    return SHM_OK;
}

/* It has ended, or goes. */
void shm_join_no_deadline(struct shm_ctx *c, shm_off off)
{
    struct shm_join *j = join_at(c, off);
    if (j->deadline.kind == 0)
        return;
    struct shm_p *p = &c->ptab[j->deadline.pi];
    shm_lock(c, &p->timers_lock);
    if (load_rlx(&j->deadline.when_ns)) { /* under the lock */
        shm_tx_begin(c);
        shm_timers_set(c, p, &j->deadline, 0);
        shm_tx_commit(c);
    }
    shm_unlock(c, &p->timers_lock);
}

/* timers_lock held. The join whose deadline is due, with a reference; 0: it goes just now. */
shm_off shm_join_fire(struct shm_ctx *c, struct shm_p *p, struct shm_tnode *n)
{
    struct shm_join *j =
        (struct shm_join *)(void *)((uint8_t *)n - offsetof(struct shm_join, deadline));
    bool alive = shm_obj_tryref(c, shm_offof(c, j)); /* else its end waits for this lock */
    shm_tx_begin(c);
    shm_timers_set(c, p, n, 0);
    if (alive)
        shm_tx_store32(c, &j->kill, load_rlx(&j->kill) ? load_rlx(&j->kill) : SHM_K_TIMEOUT);
    if (alive) /* for the reaper, until it is carried out */
        shm_tx_store64(c, &c->m->inflight[SHM_IF_DRAIN], shm_offof(c, j));
    shm_tx_commit(c);
    FAILPOINT("kill.fire.out");
    return alive ? shm_offof(c, j) : 0;
}

void shm_join_carry(struct shm_ctx *c, shm_off off)
{
    shm_join_kill(c, off, SHM_K_TIMEOUT);
    store_rel(&c->m->inflight[SHM_IF_DRAIN], 0); /* after it */
    shm_obj_unref(c, off);
}
