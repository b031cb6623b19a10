/* sched.c — what the scheduler's steps cost, in ns. One file, no harness:
 *
 *   gcc -std=gnu11 -O2 -pthread -Ishm bench/shm/sched.c shm/[a-z]*.c -o /tmp/sched && /tmp/sched
 *
 * Each figure is the best of five rounds (the machine is shared): what it costs undisturbed.
 *   ready..execute    waiting G -> runnext -> running, on one M (aim: 60 ns or less)
 *   + park, claim     the same with gopark, arming and the claim: a whole turn of a parked G
 *   gosched           running -> global tail -> running, one G
 *   spawn..exit       gnew, newproc, findrunnable, execute, goexit0
 *   wake, 2 Ms        one G sent to and fro between two awake Ms (always home there), one way */
#define _GNU_SOURCE
#include "shm.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#define N 1000000
#define ROUNDS 5
#define TRIPS 100000

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "sched: %s\n", what);
        exit(1);
    }
}

static shm_gref run_next(struct shm_ctx *c)
{
    shm_gref r;
    bool inherit;
    must(shm_findrunnable(c, false, &r, &inherit) == SHM_OK, "nothing runnable");
    must(shm_execute(c, r, inherit), "stale");
    return r;
}

static shm_gref spawn(struct shm_ctx *c)
{
    shm_gref r;
    must(shm_gnew(c, &r) == SHM_OK, "gnew");
    shm_newproc(c, r);
    return r;
}

static void ready_only(struct shm_ctx *c)
{
    shm_gref r = spawn(c);
    must(run_next(c) == r, "order");
    struct shm_g *g = shm_g(c, r);
    for (int i = 0; i < N; i++) {
        /* Not part of it: the park, as one store. */
        store_rlx(&g->status, SHM_ST(shm_ggen(r), c->m1, Gwaiting));
        shm_ready(c, r, true);
        run_next(c);
    }
    shm_goexit0(c, r);
}

static void park_too(struct shm_ctx *c)
{
    shm_gref r = spawn(c);
    run_next(c);
    for (int i = 0; i < N; i++) {
        uint64_t epoch = shm_wait_next(shm_g(c, r));
        shm_gopark(c, r, SHM_WR_CHAN_RECV);
        shm_wait_arm(c, r, epoch);
        must(shm_wait_claim(c, r, epoch), "claim");
        shm_ready(c, r, true);
        run_next(c);
    }
    shm_goexit0(c, r);
}

static void gosched(struct shm_ctx *c)
{
    shm_gref r = spawn(c);
    run_next(c);
    for (int i = 0; i < N; i++) {
        shm_gosched(c, r);
        run_next(c);
    }
    shm_goexit0(c, r);
}

static void spawn_exit(struct shm_ctx *c)
{
    for (int i = 0; i < N; i++) {
        spawn(c);
        shm_goexit0(c, run_next(c));
    }
}

static void bench(struct shm_ctx *c, const char *name, void (*fn)(struct shm_ctx *))
{
    double best = 1e18;
    for (int k = 0; k < ROUNDS; k++) {
        uint64_t from = shm_now_ns();
        fn(c);
        double ns = (double)(shm_now_ns() - from) / N;
        best = ns < best ? ns : best;
    }
    printf("%-16s %7.1f ns\n", name, best);
}

static void open_segment(struct shm_ctx *c, uint32_t nprocs)
{
    struct shm_opts o = {.nprocs = nprocs, .max_goroutines = 1000, .heap_bytes = 16 << 20};
    int fd = memfd_create("bench", MFD_CLOEXEC);
    must(fd >= 0 && shm_seg_create(c, fd, &o) == SHM_OK, "segment");
    shm_calibrate(c);
}

/* Two Ms, a home G each: A's readies B's and parks, and so on. */
struct pair {
    _Atomic uint64_t g[2], epoch[2];
    _Atomic uint32_t up;
    uint64_t ns, sleeps;
};

static void one_of_two(struct shm_ctx *c, int i, struct pair *b)
{
    shm_gref r, mine;
    bool inherit;
    must(shm_minit(c, SHM_M_WORKER) == SHM_OK, "minit");
    must(shm_gnew(c, &mine) == SHM_OK, "gnew");
    shm_g(c, mine)->home_m1 = (uint16_t)c->m1;
    shm_newproc(c, mine);
    uint64_t from = 0;
    for (int k = 0; k <= TRIPS; k++) {
        int e;
        while ((e = shm_findrunnable(c, true, &r, &inherit)) == SHM_EINTR)
            ;
        must(e == SHM_OK && shm_execute(c, r, inherit) && r == mine, "home G");
        uint64_t epoch = shm_wait_next(shm_g(c, r));
        store_rel(&b->g[i], mine);
        store_rel(&b->epoch[i], epoch);
        if (k == 0) {
            add_acqrel(&b->up, 1);
            while (load_acq(&b->up) < 2)
                cpu_relax();
            from = shm_now_ns();
        }
        shm_gopark(c, r, SHM_WR_CHAN_RECV);
        shm_wait_arm(c, r, epoch);
        /* M 0 begins; from then on who runs has been readied by the other, which is parked now or
         * in a moment. */
        shm_gref other = load_acq(&b->g[1 - i]);
        if (k > 0 || i == 0) {
            while (!shm_wait_claim(c, other, load_acq(&b->epoch[1 - i])))
                cpu_relax();
            shm_ready(c, other, true);
        }
        if (i == 1 && k == TRIPS)
            break;
    }
    if (i == 0) {
        b->ns = shm_now_ns() - from;
        b->sleeps = load_rlx(&c->m->st.sleeps);
    }
}

static void two_ms(void)
{
    struct shm_ctx c;
    open_segment(&c, 2);
    struct pair *b =
        mmap(NULL, sizeof *b, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    must(b != MAP_FAILED, "mmap");
    for (int i = 0; i < 2; i++)
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            one_of_two(&c, i, b);
            _exit(0);
        }
    int status[2];
    wait(&status[0]);
    wait(&status[1]);
    must(status[0] == 0 && status[1] == 0, "a child failed");
    printf("%-16s %7.1f ns   (%llu sleeps in %d trips)\n", "wake, 2 Ms", (double)b->ns / TRIPS / 2,
           (unsigned long long)b->sleeps, TRIPS);
}

int main(void)
{
    struct shm_ctx c;
    shm_gref r;
    bool inherit;
    open_segment(&c, 1);
    must(shm_minit(&c, SHM_M_WORKER) == SHM_OK, "minit");
    must(shm_findrunnable(&c, false, &r, &inherit) == SHM_EAGAIN, "not empty"); /* takes the P */
    bench(&c, "ready..execute", ready_only);
    bench(&c, "+ park, claim", park_too);
    bench(&c, "gosched", gosched);
    bench(&c, "spawn..exit", spawn_exit);
    two_ms();
    return 0;
}
