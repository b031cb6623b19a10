/* A waker is killed between the word of a note and the futex; lock_futex.c, reap.c. */
#include "gs.h"
#include "internal.h"

static struct shm_ctx k; /* the keeper's */

static uint32_t slot_of(int pid)
{
    for (uint32_t i = 0; i < load_acq(&k.hdr->max_m); i++)
        if (load_acq(&k.mtab[i].pid) == (uint32_t)pid && load_acq(&k.mtab[i].kind) != SHM_M_FREE)
            return i;
    return UINT32_MAX;
}

static void sleep_and_run(struct shm_ctx *c, int i, void *arg)
{
    (void)i, (void)arg;
    shm_gref r;
    bool inherit;
    int e;
    while ((e = shm_findrunnable(c, true, &r, &inherit)) == SHM_EINTR)
        ;
    CHECK_EQ(e, SHM_OK);
    CHECK(shm_execute(c, r, inherit));
    l_end(c, r);
    shm_releasep(c);
}

static void wake_and_die(struct shm_ctx *c, int i, void *arg)
{
    (void)i, (void)arg;
    shm_gref r;
    shm_off off;
    h_die_at("note.set", 1);
    CHECK_EQ(shm_gnew(c, &r), SHM_OK);
    CHECK_EQ(shm_cont_make(c, &off, "frame", 5, NULL, 0), SHM_OK);
    shm_gcont_set(c, shm_g(c, r), off, 5);
    shm_newproc(c, r); /* without a P: to the global queue, and somebody is woken */
}

static bool sleeps(int pid)
{
    char path[32], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *f = fopen(path, "r");
    CHECK(f && fgets(text, sizeof text, f));
    fclose(f);
    return strstr(text, ") S ") != NULL;
}

/* Found by shm/model/idle.pml: the word said that the sleeper had been woken, so nobody woke it. */
static void test_a_sleeper_whose_waker_died_between_its_note_and_the_futex_is_woken(void)
{
    h_seg(&k, (struct shm_opts){.nprocs = 1});
    CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
    int sleeper = h_fork(sleep_and_run, 0, NULL);
    uint32_t slot;
    H_WAIT((slot = slot_of(sleeper)) != UINT32_MAX && load_seq(&k.mtab[slot].note) == 2 &&
           sleeps(sleeper));
    int waker = h_fork(wake_and_die, 0, NULL), status = h_wait(waker);
    CHECK(WIFSIGNALED(status));
    shm_reap(&k, &k.mtab[slot_of(waker)], status);
    CHECK_EQ(h_wait(sleeper), 0); /* the G was queued before the wake */
    CHECK_QUIET(&k);
    shm_mexit(&k);
    h_seg_end(&k);
}

H_MAIN(T(test_a_sleeper_whose_waker_died_between_its_note_and_the_futex_is_woken))
