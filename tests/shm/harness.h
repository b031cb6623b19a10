/* harness.h — what every C test of shm/ stands on. One test file is one program: its cases are
 * static functions `test_…`, listed in H_MAIN.
 *
 *   CHECK(cond)            fails with the text; CHECK_EQ(a, b) with both values
 *   h_seg(&c, opts)        a fresh segment on a memfd; opts fields that are 0 get a default
 *   h_threads(n, fn, arg)  n Ms as threads: fn(ctx of its own, i, arg)
 *   h_forks(n, fn, arg)    n Ms as forked processes; each must exit with 0
 *   h_ms(n, fn, arg)       forks; threads where ThreadSanitizer looks (it sees one process only)
 *   H_WAIT(cond)           until cond holds: no sleeping and hoping, the time limit is the net
 *   H_N(quick, storm)      a count: quick, or storm if MPGORT_STORM=1
 *   h_die_at(name, nth)    SIGKILL at the nth pass of that FAILPOINT in this process
 *   h_call_after(nth, fn)  fn() at the nth FAILPOINT: what another M may do just there
 *
 * A test that exceeds its time limit prints every G, M and P of its segment and aborts. Children
 * die with their parent. */
#ifndef HARNESS_H
#define HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "shm.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_THREAD__)
#define H_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define H_TSAN 1
#endif
#endif
#ifndef H_TSAN
#define H_TSAN 0
#endif

#define H_UNUSED __attribute__((unused))

typedef void (*h_fn)(struct shm_ctx *c, int i, void *arg);
struct h_test {
    const char *name;
    void (*fn)(void);
};

static struct shm_ctx *h_ctx; /* the segment that a dump shows */
static const char *h_name = "";
static bool h_child;

/* ---- failing --------------------------------------------------------------------------------- */

H_UNUSED static void h_dump(void)
{
    struct shm_ctx *c = h_ctx;
    if (!c || !c->base)
        return;
    for (uint32_t i = 0; i < load_acq(&c->hdr->max_m); i++) {
        struct shm_m *m = &c->mtab[i];
        if (load_acq(&m->kind) != SHM_M_FREE)
            fprintf(stderr,
                    "  M %u: kind %u pid %u P %d curg %#llx note %u spinning %u attn %#x undo %u "
                    "held %u homeq %u\n",
                    i, load_acq(&m->kind), load_acq(&m->pid), (int)load_acq(&m->p1) - 1,
                    (unsigned long long)load_acq(&m->curg), load_acq(&m->note),
                    load_acq(&m->spinning), load_acq(&m->attn), load_acq(&m->undo_n),
                    load_acq(&m->held_n), load_acq(&m->homeq_n));
        for (uint32_t k = 0; k < load_acq(&m->held_n) && k < SHM_HELD; k++)
            fprintf(stderr, "       lock at %#llx is %#x\n", (unsigned long long)m->held[k],
                    *(uint32_t *)shm_at(c, m->held[k]));
    }
    for (uint32_t i = 0; i < c->hdr->max_p; i++) {
        struct shm_p *p = &c->ptab[i];
        fprintf(stderr, "  P %u: status %u M %d ring %llu..%llu runnext %#llx debt %u timers %u\n",
                i, SHM_ST_STATUS(load_acq(&p->status)), (int)SHM_ST_M1(load_acq(&p->status)) - 1,
                (unsigned long long)load_acq(&p->runqhead),
                (unsigned long long)load_acq(&p->runqtail),
                (unsigned long long)load_acq(&p->runnext), load_acq(&p->debt), p->timers_n);
    }
    fprintf(stderr, "  global queue: %llu\n", (unsigned long long)load_acq(&c->hdr->runq_size));
    uint64_t shown = 0, n = load_acq(&c->hdr->g_next);
    if (n > load_acq(&c->hdr->g_committed))
        n = load_acq(&c->hdr->g_committed);
    for (uint64_t i = 1; i < n && shown < 200; i++) {
        struct shm_g *g = &c->gtab[i];
        uint64_t st = load_acq(&g->status), w = load_acq(&g->wait);
        if (SHM_ST_STATUS(st) == Gidle || SHM_ST_STATUS(st) == Gdead)
            continue;
        shown++;
        fprintf(stderr,
                "  G %llu (slot %llu gen %u): status %u M %d wait epoch %llu state %u reason %s "
                "home %u/%u\n",
                (unsigned long long)g->goid, (unsigned long long)i, SHM_ST_GEN(st),
                SHM_ST_STATUS(st), (int)SHM_ST_M1(st) - 1, (unsigned long long)SHM_W_EPOCH(w),
                SHM_W_STATE(w), shm_reason_text(c, g->reason), g->home_m1, g->home_why);
    }
}

/* Dies at the nth failpoint it comes to, whatever its name; 0: no more. h_last (shared memory, if
 * set) keeps the name; h_what says in failures what was done. */
static _Atomic uint32_t h_any_left;
H_UNUSED static const char **h_last;
H_UNUSED static const char *h_what;

H_UNUSED static void h_die_after(uint32_t nth)
{
    store_rlx(&h_any_left, nth);
}

_Noreturn H_UNUSED static void h_fail(const char *file, int line, const char *text)
{
    fprintf(stderr, "\n%s:%d: FAILED in %s%s: %s\n", file, line, h_name, h_child ? " (child)" : "",
            text);
    if (h_what)
        fprintf(stderr, "  %s, killed at %s\n", h_what, h_last && *h_last ? *h_last : "?");
    h_dump();
    fflush(NULL);
    if (h_child)
        _exit(98);
    abort();
}

#define CHECK(cond)                            \
    do {                                       \
        if (!(cond))                           \
            h_fail(__FILE__, __LINE__, #cond); \
    } while (0)

#define CHECK_EQ(a, b)                                                                             \
    do {                                                                                           \
        long long a_ = (long long)(a), b_ = (long long)(b);                                        \
        if (a_ != b_) {                                                                            \
            char t_[300];                                                                          \
            snprintf(t_, sizeof t_, "%s == %s: %lld (%#llx) and %lld (%#llx)", #a, #b, a_, a_, b_, \
                     b_);                                                                          \
            h_fail(__FILE__, __LINE__, t_);                                                        \
        }                                                                                          \
    } while (0)

#define H_WAIT(cond)       \
    do {                   \
        while (!(cond))    \
            sched_yield(); \
    } while (0)

H_UNUSED static bool h_storm(void)
{
    const char *s = getenv("MPGORT_STORM");
    return s && *s && *s != '0';
}
#define H_N(quick, storm) (h_storm() ? (storm) : (quick))

/* ---- failpoints ------------------------------------------------------------------------------ */

static const char *h_fp_name;
static _Atomic uint32_t h_fp_left;

H_UNUSED static void h_die_at(const char *name, uint32_t nth)
{
    h_fp_name = name;
    store_rlx(&h_fp_left, nth);
}

static uint32_t h_call_left; /* 0: it was called, or none is to be */
static void (*h_call)(void);

H_UNUSED static void h_call_after(uint32_t nth, void (*fn)(void))
{
    h_call = fn;
    h_call_left = nth;
}

void shm_failpoint_hit(const char *name);
void shm_failpoint_hit(const char *name)
{
    if (h_call_left && --h_call_left == 0)
        h_call();
    if (load_rlx(&h_any_left) &&
        atomic_fetch_sub_explicit(&h_any_left, 1, memory_order_relaxed) == 1) {
        if (h_last)
            *h_last = name;
        kill(getpid(), SIGKILL);
    }
    if (h_fp_name && strcmp(name, h_fp_name) == 0 &&
        atomic_fetch_sub_explicit(&h_fp_left, 1, memory_order_relaxed) == 1)
        kill(getpid(), SIGKILL);
}

/* ---- segments -------------------------------------------------------------------------------- */

H_UNUSED static int h_memfd(void)
{
    int fd = memfd_create("mpgort-test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(fchmod(fd, 0600), 0);
    return fd;
}

/* Makes *c the ctx of a fresh segment, without an M: shm_minit it if the test's own thread is
 * one. */
H_UNUSED static void h_seg(struct shm_ctx *c, struct shm_opts o)
{
    if (o.nprocs == 0)
        o.nprocs = 2;
    if (o.nprocs == UINT32_MAX)
        o.nprocs = 0; /* asked for */
    if (o.max_goroutines == 0)
        o.max_goroutines = 10000;
    if (o.heap_bytes == 0)
        o.heap_bytes = 256 << 20;
    if (o.heavy_bytes == 0)
        o.heavy_bytes = 16384;
    CHECK_EQ(shm_seg_create(c, h_memfd(), &o), SHM_OK);
    h_ctx = c;
}

H_UNUSED static void h_seg_end(struct shm_ctx *c)
{
    int fd = c->fd;
    if (h_ctx == c)
        h_ctx = NULL;
    shm_seg_detach(c);
    close(fd);
}

/* ---- Ms -------------------------------------------------------------------------------------- */

struct h_m {
    struct shm_ctx c;
    h_fn fn;
    void *arg;
    int i;
};

static void *h_thread_main(void *p)
{
    struct h_m *t = p;
    CHECK_EQ(shm_minit(&t->c, SHM_M_WORKER), SHM_OK);
    t->fn(&t->c, t->i, t->arg);
    shm_mexit(&t->c);
    return NULL;
}

H_UNUSED static void h_threads(int n, h_fn fn, void *arg)
{
    CHECK(h_ctx != NULL);
    pthread_t th[n];
    struct h_m *ms = calloc((size_t)n, sizeof *ms);
    for (int i = 0; i < n; i++) {
        ms[i] = (struct h_m){.fn = fn, .arg = arg, .i = i};
        shm_ctx_copy(&ms[i].c, h_ctx);
        CHECK_EQ(pthread_create(&th[i], NULL, h_thread_main, &ms[i]), 0);
    }
    for (int i = 0; i < n; i++)
        CHECK_EQ(pthread_join(th[i], NULL), 0);
    free(ms);
}

/* One forked M. Its ctx is taken before fn; unless fn dies on the way, it exits with 0. */
H_UNUSED static int h_fork(h_fn fn, int i, void *arg)
{
    CHECK(h_ctx != NULL);
    fflush(NULL);
    int parent = getpid();
    int pid = fork();
    CHECK(pid >= 0);
    if (pid)
        return pid;
    h_child = true;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(97);
    struct shm_ctx c = *h_ctx;
    shm_ctx_forked(&c);
    h_ctx = &c;
    CHECK_EQ(shm_minit(&c, SHM_M_WORKER), SHM_OK);
    fn(&c, i, arg);
    shm_mexit(&c);
    fflush(NULL);
    _exit(0);
}

H_UNUSED static int h_wait(int pid)
{
    int status = 0, r;
    while ((r = waitpid(pid, &status, 0)) < 0 && errno == EINTR)
        ;
    CHECK_EQ(r, pid);
    return status;
}

H_UNUSED static void h_forks(int n, h_fn fn, void *arg)
{
    int pid[n];
    for (int i = 0; i < n; i++)
        pid[i] = h_fork(fn, i, arg);
    for (int i = 0; i < n; i++) {
        int st = h_wait(pid[i]);
        char t[80];
        snprintf(t, sizeof t, "child %d ended with status %#x", i, (unsigned)st);
        if (st)
            h_fail(__FILE__, __LINE__, t);
    }
}

H_UNUSED static void h_ms(int n, h_fn fn, void *arg)
{
    if (H_TSAN)
        h_threads(n, fn, arg);
    else
        h_forks(n, fn, arg);
}

/* Anonymous memory that forked children and the test share; zeros. */
H_UNUSED static void *h_shared(size_t n)
{
    void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* ---- running --------------------------------------------------------------------------------- */

static void h_alarm(int sig)
{
    (void)sig;
    fprintf(stderr, "\n%s: TIME LIMIT exceeded; the segment now:\n", h_name);
    h_dump();
    fflush(NULL);
    signal(SIGABRT, SIG_DFL);
    abort();
}

H_UNUSED static int h_main(int argc, char **argv, const struct h_test *tests, size_t n)
{
    int ran = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGALRM, h_alarm);
    for (size_t i = 0; i < n; i++) {
        if (argc > 1 && !strstr(tests[i].name, argv[1]))
            continue;
        h_name = tests[i].name;
        h_fp_name = NULL;
        alarm((unsigned)H_N(60, 600));
        tests[i].fn();
        alarm(0);
        printf("ok %s\n", h_name);
        ran++;
    }
    printf("%d tests passed\n", ran);
    return 0;
}

/* H_MAIN(T(test_a), T(test_b)): the program. With an argument it runs the tests whose name has
 * it. */
#define T(fn) {#fn, fn}
#define H_MAIN(...)                                                     \
    int main(int argc, char **argv)                                     \
    {                                                                   \
        static const struct h_test tests[] = {__VA_ARGS__};             \
        return h_main(argc, argv, tests, sizeof tests / sizeof *tests); \
    }

#endif
