/* lock_futex.c — locks that know their owner, and notes; both on shared futexes.
 *
 * THE LOCK WORD  0: free; else waiters (bit 31) | epoch of the owner's slot (15 bits) | M slot + 1
 *
 *   lock    1 name the word in m->held[]       so that a reaper finds it whatever comes next
 *           2 CAS 0 -> mine                     or: set the waiters bit and sleep on the word
 *   unlock  1 exchange with 0; if the waiters bit was set, wake one
 *           2 take the name out of m->held[]
 * A word named in held[] that does not say "mine" was about to be taken, or has been given back:
 * the reaper leaves it. So each of the four gaps is safe to die in. Who was asleep takes the lock
 * with the waiters bit set: others may sleep behind it, and one needless wake is the price.
 *
 * A SET (a select of thousands of channels) has its words in a list of its own, which m->lockset
 * names instead of each word. The list may stand in what the locks guard, and be gone as soon as
 * the last is given back. So the first of the set, which is given back last, comes to m->held
 * before that.
 *
 * INV only-the-dead: a waiter never takes a lock from its owner, dead or not. What the owner was
 * doing has to be undone first, and only the reaper does that (undo.c), once, knowing by a pidfd
 * that the process has ended. A waiter sleeps at most BOUND at a time; if it then sees that the
 * owner has ended, it tells the keeper, and sleeps on. An owner that is stopped or swapped out is
 * waited for. The keeper itself, and M0 while no keeper lives (it is M0 that makes another, and a
 * thread of it that waits here may have the GIL), would wait for themselves, and not only for a
 * dead owner: a living one may wait in turn for a lock of somebody dead. So at each BOUND they do
 * that part of the reaping which needs no lock, for all the dead that hold any: shm_reap_holders().
 *
 * Rejected: pthread mutexes with PTHREAD_MUTEX_ROBUST. The kernel hands the lock of a dead owner to
 * the next waiter at once, that is, to an M that would have to repair what it does not know.
 *
 * THE NOTE is Go's: an event that happens once, until it is cleared. 0 clear, 1 set, 2 somebody
 * sleeps. The word says whether there is anybody to wake, so a wakeup of an awake M is one
 * exchange. A waker that dies after it has left a sleeper with a word that says 1: its reaper wakes
 * all sleepers, whatever their words say.
 *
 * The futexes are shared (no FUTEX_PRIVATE_FLAG): the key is the page of the object, not the
 * address, so every process finds the same queue whatever its base address. */
#include "internal.h"

#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WAITERS 0x80000000U
#define SPINS 60                  /* about a microsecond: a transaction is shorter */
#define BOUND_NS (10 * 1000000LL) /* how long a sleeper trusts that somebody will wake it */

static_assert(SHM_MAX_M < 0xffff, "an M slot + 1 has 16 bits of the lock word");

/* ---- futex ----------------------------------------------------------------------------------- */

/* 0: woken (or so it seems: look again). SHM_EAGAIN: *w was not val. SHM_ETIME. SHM_EINTR. */
int shm_futex_wait(_Atomic uint32_t *w, uint32_t val, int64_t timeout_ns)
{
    struct timespec t = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    if (syscall(SYS_futex, w, FUTEX_WAIT, val, timeout_ns < 0 ? NULL : &t, NULL, 0) == 0)
        return SHM_OK;
    switch (errno) {
    case EAGAIN:
        return SHM_EAGAIN;
    case ETIMEDOUT:
        return SHM_ETIME;
    case EINTR:
        return SHM_EINTR;
    }
    shm_throw("futex wait: %s", strerror(errno));
}

/* How many were woken. */
int shm_futex_wake(_Atomic uint32_t *w, int n)
{
    long r = syscall(SYS_futex, w, FUTEX_WAKE, n, NULL, NULL, 0);
    if (r < 0)
        shm_throw("futex wake: %s", strerror(errno));
    return (int)r;
}

/* ---- who owns -------------------------------------------------------------------------------- */

static uint32_t mine(const struct shm_ctx *c)
{
    return (load_rlx(&c->m->epoch) & 0x7fff) << 16 | c->m1;
}

/* False only if the process of that slot has ended, all its threads, reaped by its parent or not.
 * kill(pid, 0) cannot say that: a zombie answers, and /proc calls a process a zombie whose first
 * thread has ended while others run. A pid that was given to a new process answers for it: then the
 * dead pass for living a while longer, and the keeper, who has held a pidfd from the start, knows
 * better. The error is always on the side of waiting. */
bool shm_m_alive(struct shm_ctx *c, uint32_t m1)
{
    if (m1 == 0 || m1 > load_acq(&c->hdr->max_m)) /* pairs with the CAS in shm_minit() */
        return false;
    const struct shm_m *m = &c->mtab[m1 - 1];
    uint32_t pid = load_acq(&m->pid); /* pairs with the CAS in shm_minit() */
    if (load_rlx(&m->kind) == SHM_M_FREE || pid == 0)
        return false;
    if (pid == (uint32_t)getpid())
        return true;
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno != ESRCH;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int r = poll(&p, 1, 0);
    close(fd);
    return r != 1;
}

/* ---- locks ----------------------------------------------------------------------------------- */

static void held_add(struct shm_ctx *c, shm_lockword *l)
{
    struct shm_m *m = c->m;
    uint32_t n = load_rlx(&m->held_n);
    if (unlikely(n == SHM_HELD))
        shm_throw("lock: M %u holds %u locks already", m->index, n);
    store_rlx(&m->held[n], shm_offof(c, l));
    store_rel(&m->held_n, n + 1); /* after the name, before the CAS; read by the reaper */
}

/* Locks are mostly given back in reverse order; where not, the last name moves into the gap. It
 * stands in both places for an instant, which tells a reaper the same thing twice. */
static void held_remove(struct shm_ctx *c, shm_lockword *l)
{
    struct shm_m *m = c->m;
    uint32_t n = load_rlx(&m->held_n), i = n;
    shm_off off = shm_offof(c, l);
    while (i > 0 && load_rlx(&m->held[i - 1]) != off)
        i--;
    if (unlikely(i == 0))
        shm_throw("unlock: M %u does not hold the lock at %#llx", m->index,
                  (unsigned long long)off);
    store_rlx(&m->held[i - 1], load_rlx(&m->held[n - 1]));
    store_rel(&m->held_n, n - 1); /* after the move; read by the reaper */
}

static bool try_take(shm_lockword *l, uint32_t as)
{
    uint32_t free = 0;
    /* Acquires what the former owner, or its reaper, released; pairs with shm_unlock(). */
    return load_rlx(l) == 0 && cas_acq(l, &free, as);
}

static void tell_keeper(struct shm_ctx *c)
{
    uint64_t one = 1;
    if (c->kick_fd >= 0 && write(c->kick_fd, &one, sizeof one) < 0 && errno != EAGAIN)
        c->kick_fd = -1; /* the keeper is gone: its successor looks for the dead at its start */
}

/* Nobody else will: the keeper, and M0 while there is none that lives, whichever of its threads. */
static bool reaps(struct shm_ctx *c)
{
    const struct shm_m *m0 = &c->mtab[c->hdr->m0_slot]; /* set from start to end, as nprocs */
    uint32_t kind = load_rlx(&c->m->kind), n = load_acq(&c->hdr->max_m); /* pairs with minit */
    bool of_m0 = kind == SHM_M_AUX && load_rlx(&m0->pid) == load_rlx(&c->m->pid);
    if ((kind != SHM_M_M0 && !of_m0) || load_rlx(&c->hdr->nprocs) == 0)
        return kind == SHM_M_KEEPER;
    for (uint32_t i = 0; i < n; i++)
        if (load_acq(&c->mtab[i].kind) == SHM_M_KEEPER && shm_m_alive(c, i + 1)) /* as above */
            return false;
    return true;
}

/* The caller has waited long for that M. */
static void waits_on(struct shm_ctx *c, uint32_t m1)
{
    if (reaps(c))
        shm_reap_holders(c);
    else if (!shm_m_alive(c, m1))
        tell_keeper(c);
}

/* A while, for what that M does without a lock in a few instructions; if it has ended, as for its
 * locks. */
void shm_wait_for_m(struct shm_ctx *c, uint32_t m1)
{
    waits_on(c, m1);
    nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

SHM_COLD static void lock_slow(struct shm_ctx *c, shm_lockword *l)
{
    uint32_t as = mine(c), v = load_rlx(l);
    if (unlikely((v & ~WAITERS) == as))
        shm_throw("lock: M %u holds the lock at %#llx already", c->m->index,
                  (unsigned long long)shm_offof(c, l));
    for (int i = 0; i < SPINS; i++) {
        if (try_take(l, as))
            return;
        cpu_relax();
    }
    as |= WAITERS;
    for (;;) {
        if (try_take(l, as))
            return;
        v = load_rlx(l);
        if (v == 0)
            continue;
        if (!(v & WAITERS)) {
            /* So that the owner's exchange in shm_unlock() sees that somebody sleeps. */
            if (!cas_acq(l, &v, v | WAITERS))
                continue;
            v |= WAITERS;
        }
        if (shm_futex_wait(l, v, BOUND_NS) == SHM_ETIME)
            waits_on(c, v & 0xffff);
    }
}

void shm_lock(struct shm_ctx *c, shm_lockword *l)
{
    held_add(c, l);
    FAILPOINT("lock.named");
    shm_shake(c); /* what was seen without the lock | the lock */
    if (unlikely(!try_take(l, mine(c))))
        lock_slow(c, l);
    FAILPOINT("lock.taken");
}

static void release(struct shm_ctx *c, shm_lockword *l)
{
    if (unlikely(c->in_tx))
        shm_throw("unlock: M %u has not committed its transaction", c->m->index);
    uint32_t was = xchg_acqrel(l, 0); /* pairs with try_take() of the next owner */
    FAILPOINT("lock.released");
    if (unlikely((was & ~WAITERS) != mine(c)))
        shm_throw("unlock: the lock at %#llx is %#x, M %u wants %#x",
                  (unsigned long long)shm_offof(c, l), was, c->m->index, mine(c));
    if (was & WAITERS)
        shm_futex_wake(l, 1);
}

void shm_unlock(struct shm_ctx *c, shm_lockword *l)
{
    release(c, l);
    held_remove(c, l);
}

void shm_lock_all(struct shm_ctx *c, shm_off off)
{
    const struct shm_lockset *s = shm_at(c, off);
    if (unlikely(load_rlx(&c->m->lockset)))
        shm_throw("lock: M %u holds a set of locks already", c->m->index);
    store_rel(&c->m->lockset, off); /* after the list, before the first CAS; read by the reaper */
    FAILPOINT("lockset.named");
    shm_shake(c); /* as in shm_lock() */
    for (uint64_t i = 0; i < s->n; i++) {
        shm_lockword *l = shm_at(c, s->word[i]);
        if (unlikely(!try_take(l, mine(c))))
            lock_slow(c, l);
        FAILPOINT("lockset.taken");
    }
}

void shm_unlock_all(struct shm_ctx *c, shm_off off)
{
    const struct shm_lockset *s = shm_at(c, off);
    shm_lockword *last = shm_at(c, s->word[0]);
    for (uint64_t i = s->n - 1; i > 0; i--)
        release(c, shm_at(c, s->word[i]));
    held_add(c, last);
    FAILPOINT("lockset.last");
    store_rel(&c->m->lockset, 0); /* after the name in held, before the set may go */
    shm_unlock(c, last);
}

/* A word that the dead one named and that does not say it was his is another's, or free. */
static void reap_word(shm_lockword *l, uint32_t his)
{
    uint32_t v = load_rlx(l);
    while ((v & ~WAITERS) == his)
        if (cas_acqrel(l, &v, 0)) { /* pairs with try_take() of the next owner */
            if (v & WAITERS)
                shm_futex_wake(l, 1);
            break;
        }
    FAILPOINT("lock.reaped");
}

void shm_lock_reap(struct shm_ctx *c, struct shm_m *dead)
{
    uint32_t his = (load_rlx(&dead->epoch) & 0x7fff) << 16 | (dead->index + 1);
    if (load_acq(&dead->undo_n)) /* pairs with shm_tx_rollback() */
        shm_throw("lock_reap: M %u has not been rolled back", dead->index);
    shm_off off = load_acq(&dead->lockset); /* pairs with shm_lock_all() */
    if (off) {
        const struct shm_lockset *s = shm_at(c, off);
        for (uint64_t i = s->n - 1; i > 0; i--)
            reap_word(shm_at(c, s->word[i]), his);
        uint32_t n = load_rlx(&dead->held_n); /* a dead M's; below the last is given back, too */
        store_rlx(&dead->held[n], s->word[0]);
        store_rel(&dead->held_n, n + 1); /* as in held_add() */
        store_rel(&dead->lockset, 0);    /* as in shm_unlock_all() */
    }
    for (uint32_t n = load_acq(&dead->held_n); n > 0; n--) { /* pairs with held_add() */
        reap_word(shm_at(c, load_rlx(&dead->held[n - 1])), his);
        store_rel(&dead->held_n, n - 1); /* after the release; read by a next reaper */
    }
}

/* ---- notes ----------------------------------------------------------------------------------- */

void shm_noteclear(_Atomic uint32_t *note)
{
    store_seq(note, 0); /* before the sleeper's last look for work; tag: idle-dance */
}

void shm_notewakeup(_Atomic uint32_t *note)
{
    /* Publishes what the waker did before; pairs with the loads in shm_notetsleep(). */
    uint32_t was = xchg_seq(note, 1);
    FAILPOINT("note.set");
    if (was == 2)
        shm_futex_wake(note, INT32_MAX);
}

/* By a reaper: the dead may have set the note and not come to the wake. */
void shm_notewakeup_anyway(_Atomic uint32_t *note)
{
    store_seq(note, 1); /* as in shm_notewakeup() */
    shm_futex_wake(note, INT32_MAX);
}

bool shm_notetsleep(_Atomic uint32_t *note, int64_t timeout_ns)
{
    uint64_t until = timeout_ns < 0 ? 0 : shm_now_ns() + (uint64_t)timeout_ns;
    for (;;) {
        uint32_t v = 0;
        cas_seq(note, &v, 2); /* clear -> somebody sleeps, seen by the exchange in notewakeup() */
        if (v == 1)
            return true;
        int e = shm_futex_wait(note, 2, timeout_ns);
        if (load_acq(note) == 1) /* pairs with the exchange in shm_notewakeup() */
            return true;
        if (e == SHM_EINTR || e == SHM_ETIME) {
            v = 2;
            /* Lost against a wakeup: it counts. */
            return !cas_seq(note, &v, 0) && v == 1;
        }
        if (timeout_ns >= 0) {
            uint64_t now = shm_now_ns();
            timeout_ns = now < until ? (int64_t)(until - now) : 0;
        }
    }
}
