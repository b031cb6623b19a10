/* Tests of scrub beside death: what was overwritten stands nowhere any more, at whatever failpoint
 * the M is killed that overwrote it (shm/heap.c, SCRUB; shm/undo.c, shm/chan.c). */
#include "deaths.h"

enum { SECRET = 0x5ec1e7 };

static void overwrites_a_secret(struct shm_ctx *c, int n, void *word)
{
    h_die_after((uint32_t)n);
    shm_tx_begin(c);
    shm_tx_store64(c, word, 1);
    shm_tx_commit(c);
    h_die_after(0);
}
static void test_a_dead_ms_log_keeps_no_old_value_with_scrub(void)
{
    bool died = true;
    for (int n = 1; died; n++) {
        shm_off off;
        h_seg(&k, (struct shm_opts){.nprocs = 3, .scrub = 1});
        CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
        CHECK_EQ(shm_alloc(&k, 64, &off), SHM_OK);
        uint64_t *word = shm_at(&k, off);
        *word = SECRET;
        int pid = h_fork(overwrites_a_secret, n, word), status = h_wait(pid);
        died = d_killed(status);
        struct shm_m *m = &k.mtab[died ? d_slot(pid) : 1];
        if (died)
            shm_reap(&k, m, status);
        for (uint32_t i = 0; i < SHM_UNDO; i++)
            CHECK(m->undo[i].old != SECRET);
        h_seg_end(&k);
    }
}

static void receives_a_secret(struct shm_ctx *c, int n, void *arg)
{
    struct shm_val v;
    h_die_after((uint32_t)n);
    CHECK_EQ(shm_chan_tryrecv(c, *(shm_off *)arg, &v), SHM_OK);
    h_die_after(0);
}

static void test_a_slot_of_a_channel_keeps_nothing_with_scrub_when_its_receiver_dies(void)
{
    bool died = true;
    for (int n = 1; died; n++) {
        shm_off off;
        h_seg(&k, (struct shm_opts){.nprocs = 3, .scrub = 1});
        CHECK_EQ(shm_minit(&k, SHM_M_KEEPER), SHM_OK);
        CHECK_EQ(shm_chan_new(&k, 1, &off), SHM_OK);
        struct shm_val v = v_int(SECRET);
        CHECK_EQ(shm_chan_trysend(&k, off, &v), SHM_OK);
        int pid = h_fork(receives_a_secret, n, &off), status = h_wait(pid);
        died = d_killed(status);
        struct shm_m *m = &k.mtab[died ? d_slot(pid) : 1];
        if (died)
            shm_reap(&k, m, status);
        const struct shm_chan *ch = shm_at(&k, off);
        uint64_t in_slot;
        memcpy(&in_slot, shm_at(&k, ch->buf), sizeof in_slot);
        CHECK_EQ(in_slot == SECRET, load_acq(&ch->qcount) == 1);
        for (uint32_t i = 0; i < SHM_UNDO; i++)
            CHECK(m->undo[i].old != SECRET);
        h_seg_end(&k);
    }
}

H_MAIN(T(test_a_dead_ms_log_keeps_no_old_value_with_scrub),
       T(test_a_slot_of_a_channel_keeps_nothing_with_scrub_when_its_receiver_dies))
