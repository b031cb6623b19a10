/* sysmon.c — the keeper's loop: Go's sysmon, and the eyes on who dies.
 *
 * The keeper runs no G and has no P. Everything here is a net under what the Ms do by themselves,
 * so the program is right without it (killed, stopped), only later: a slice longer than 10 ms, work
 * that waits for its hog, a timer that is due while nobody looks.
 *
 * ONE TICK
 *   1 a P that has been in one time slice for SLICE_NS: p->preempt (a level; its M clears it)
 *   2 work queued on a P whose M has executed nothing since the last tick, on a P without M, or in
 *     the global queue, and an idle P: an M is woken, even beside a spinner. So work waits at most
 *     from one tick to the end of the next. (The M of a P that executes pays its debts itself.)
 *   3 a G at home on such an M, while another is idle: SHM_ATTN_OFFLOAD
 *   4 a timer overdue by LATE_NS: run here; what it readies goes to the global queue and wakes.
 *   5 an M that has executed nothing for BLOCKED_NS and hardly computes (it is in a C call that
 *     waits), while work is owed: one P more than gomaxprocs, as long as that lasts (procs.c); but
 *     for a program whose number is a promise
 *   6 memory that is kept warm and that nobody has taken: given back (runs.c)
 *
 * HOW LONG TO SLEEP. 1 ms while some Ps run and some are idle (debts can arise), 10 ms while all
 * run (preemption only) or M0 runs main, and 10 ms for a while after; then, when nothing has run
 * for QUIET ticks, LONG_MS. Never longer than to the next timer. Before the long sleep:
 *
 *     keeper                                     who leaves idle, who sets a timer
 *     1 keeper_asleep = 1                        1 state busy; the timer into the heap
 *     2 looks once more: runs somebody, timer?   2 keeper_asleep == 1: CAS to 0, writes the eventfd
 *     3 polls
 * It is the idle dance with the eventfd in the place of the note. The long sleep begins late and
 * the kick costs the kicker 10 us, so that programs that do something ten times a second never pay
 * it.
 *
 * The keeper's m->spinning says idle while it polls, busy while it acts on what it saw (also
 * between two calls, when its caller reaps): a deadlock is not declared over its head
 * (deadlock.c). */
#include "internal.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define SLICE_NS 10000000ULL
#define LATE_NS 500000ULL
#define BLOCKED_NS 20000000ULL
#define QUIET 20
#define TICK_MS 1
#define SLOW_MS 10
#define LONG_MS 1000
#define WARM_MAX (512ULL << 20)

struct round {
    uint32_t running, idle; /* worker Ps */
    bool main_runs, owed;
};

/* In a system call that waits; not: wants a processor, on a machine that has none for it. */
static bool sleeps(int pid)
{
    char path[32], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    const char *name_end = strrchr(text, ')');
    return name_end && name_end[1] == ' ' && (name_end[2] == 'S' || name_end[2] == 'D');
}

/* Its M has executed nothing for a while, and does not compute either: 1. */
static bool stands_still(struct shm_p *p, const struct shm_m *m, uint64_t now, bool stands)
{
    if (!stands) {
        p->sysmon_still_ns = 0;
        return false;
    }
    int pid = (int)load_rlx(&m->pid); /* a hint */
    if (p->sysmon_still_ns == 0) {
        p->sysmon_still_ns = now;
        p->sysmon_cpu_ns = shm_cpu_ns(pid);
        return false;
    }
    uint64_t still = now - p->sysmon_still_ns;
    return still >= BLOCKED_NS && (shm_cpu_ns(pid) - p->sysmon_cpu_ns) * 4 < still && sleeps(pid);
}

/* 1 and 2, 3, 5 for one P that M m runs. True: it is blocked. */
static bool look_at(struct shm_ctx *c, struct shm_p *p, struct shm_m *m, uint64_t now,
                    struct round *r)
{
    uint32_t tick = load_rlx(&p->schedtick);             /* a hint: its M counts on */
    uint32_t exec = (uint32_t)load_rlx(&m->st.executed); /* as above */
    bool stands = exec == p->sysmon_exec && load_rlx(&m->curg) != 0;
    if (tick != p->sysmon_tick || load_rlx(&m->curg) == 0) {
        p->sysmon_tick = tick;
        p->sysmon_when_ns = now;
    } else if (now - p->sysmon_when_ns >= SLICE_NS) {
        store_rlx(&p->preempt, 1); /* a level; pairs with shm_preempt_requested() */
        p->sysmon_when_ns = now;
    }
    p->sysmon_exec = exec;
    bool blocked = stands_still(p, m, now, stands);
    if (!stands)
        return false;
    if (!shm_runqempty(p))
        r->owed = true;
    if (shm_any_home(m) && shm_anyidlep(c))
        or_seq(&m->attn, SHM_ATTN_OFFLOAD); /* pairs with its next look, in attention() */
    return blocked;
}

static struct round tick(struct shm_ctx *c)
{
    struct shm_hdr *h = c->hdr;
    uint32_t n = load_acq(&h->max_p), blocked = 0; /* pairs with procs.c */
    uint64_t now = shm_now_ns();
    struct round r = {0};
    for (uint32_t i = 0; i < n; i++) {
        struct shm_p *p = &c->ptab[i];
        uint64_t w = load_seq(&p->status);
        if (p->nosteal || SHM_ST_STATUS(w) == Pdead)
            continue;
        if (SHM_ST_STATUS(w) == Prunning) {
            r.running++;
            blocked += look_at(c, p, &c->mtab[SHM_ST_M1(w) - 1], now, &r);
        } else {
            r.idle++;
            r.owed |= !shm_runqempty(p);
        }
    }
    if (load_rlx(&h->promised))
        blocked = 0;
    r.owed |= load_seq(&h->runq_size) > 0 || load_seq(&h->batchq_size) > 0;
    /* Not taken back as soon as nothing is owed: the extra P is what sees to that. */
    shm_procs_extra(c, r.owed || blocked < load_rlx(&h->extra) ? blocked : load_rlx(&h->extra));
    r.main_runs = load_rlx(&c->mtab[h->m0_slot].curg) != 0; /* a hint */
    shm_m_offer_leave(c, now);
    shm_heap_cool(c, now); /* one at a time: 200 MB take 40 ms */
    if (r.owed && r.idle)
        shm_wakeone(c, true);
    if (shm_timer_next(c) < now - LATE_NS)
        for (uint32_t i = 0; i < load_acq(&h->max_p); i++) { /* as above */
            uint32_t ran;
            shm_checktimers(c, &c->ptab[i], now, &ran);
        }
    return r;
}

/* Step 2 before the long sleep. An M has left idle before it asks whether to kick. */
static bool somebody_runs(struct shm_ctx *c)
{
    uint32_t n = load_acq(&c->hdr->max_m); /* pairs with shm_minit() */
    for (uint32_t i = 0; i < n; i++)
        if (load_rlx(&c->mtab[i].kind) == SHM_M_WORKER &&
            load_seq(&c->mtab[i].spinning) != SHM_M_IDLE) /* pairs with leave_idle() */
            return true;
    return load_seq(&c->mtab[c->hdr->m0_slot].curg) != 0 || shm_anywork(c) ||
           load_rlx(&c->hdr->warm_n); /* a hint: in a second at the latest */
}

/* How long to poll. */
static int nap_ms(struct shm_ctx *c, const struct round *r)
{
    struct shm_hdr *h = c->hdr;
    bool quiet = !r->running && !r->main_runs && !r->owed;
    int ms = r->running && r->idle ? TICK_MS : SLOW_MS;
    c->tick = quiet ? c->tick + 1 : 0;
    if (c->tick >= QUIET) {
        store_seq(&h->keeper_asleep, 1); /* before the last look; pairs with shm_wakepoller() */
        if (somebody_runs(c))
            store_seq(&h->keeper_asleep, 0); /* nobody need kick */
        else
            ms = LONG_MS;
    }
    uint64_t next = shm_timer_next(c), now = shm_now_ns();
    if (next != UINT64_MAX) {
        uint64_t in = next + LATE_NS > now ? (next + LATE_NS - now) / 1000000 + 1 : 0;
        if (in < (uint64_t)ms)
            ms = (int)in;
    }
    return ms;
}

int shm_sysmon(struct shm_ctx *c, int m0_pidfd, struct shm_child *children, int n)
{
    struct shm_hdr *h = c->hdr;
    struct pollfd fds[SHM_MAX_M + 2] = {{.fd = m0_pidfd, .events = POLLIN},
                                        {.fd = c->kick_fd, .events = POLLIN}};
    store_rlx(&h->warm_max, h->scrub                       ? 0
                            : h->heap_bytes / 4 < WARM_MAX ? h->heap_bytes / 4
                                                           : WARM_MAX);
    if (n > SHM_MAX_M)
        shm_throw("sysmon: %d children, there are %d M slots", n, SHM_MAX_M);
    for (int i = 0; i < n; i++)
        fds[i + 2] = (struct pollfd){.fd = children[i].pidfd, .events = POLLIN};
    for (;;) {
        uint32_t want = load_seq(&h->want_m);
        if (load_acq(&h->shutdown)) /* pairs with who ends the program */
            return -3;
        while (want)
            if (cas_seq(&h->want_m, &want, want - 1)) /* pairs with shm_handoffp() */
                return -4;
        struct round r = tick(c);
        bool killing;
        int victim = shm_kill_due(c, children, n, shm_now_ns(), &killing);
        if (victim >= 0)
            return SHM_SYSMON_KILL - victim;
        int ms = nap_ms(c, &r);
        if (killing && ms > TICK_MS)
            ms = TICK_MS;
        store_seq(&c->m->spinning, SHM_M_IDLE);
        int e = poll(fds, (nfds_t)n + 2, ms), err = errno;
        store_seq(&c->m->spinning, SHM_M_BUSY);
        add_seq(&h->idle_seq, 1); /* before anything is done; pairs with shm_checkdead() */
        store_seq(&h->keeper_asleep, 0);
        if (e < 0) {
            if (err != EINTR)
                shm_throw("sysmon: poll: %s", strerror(err));
            return -2;
        }
        if (fds[0].revents)
            return -1;
        for (int i = 0; i < n; i++)
            if (fds[i + 2].revents) {
                store_seq(&h->retiring, 0); /* it may be that one; pairs with shm_m_retire() */
                return i;
            }
        if (fds[1].revents) {
            uint64_t count;
            ssize_t got = read(c->kick_fd, &count, sizeof count);
            c->tick = 0;
            if (got < 0 && errno != EAGAIN && errno != EINTR)
                shm_throw("sysmon: eventfd: %s", strerror(errno));
            return -2;
        }
        /* All is quiet, also if an M that does nothing keeps from the long sleep: is it dead? */
        if (e == 0 && (ms == LONG_MS || (c->tick > QUIET && c->tick % QUIET == 0)))
            return -2;
    }
}
