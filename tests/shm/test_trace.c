/* shm/trace.c: rings that are read while they are written. */
#include "harness.h"
#include "gs.h"

#define CAP 64

static void test_events_come_back_in_the_order_in_which_they_were_written(void)
{
    struct shm_ctx c;
    o_seg(&c);
    static struct shm_event ev[CAP];
    CHECK_EQ(shm_trace_stop(&c), SHM_EAGAIN);
    CHECK_EQ(shm_trace_start(&c, CAP), SHM_OK);
    CHECK_EQ(shm_trace_start(&c, CAP), SHM_EAGAIN);
    for (unsigned i = 0; i < 10; i++) {
        c.trace_stack = i;
        shm_trace(&c, SHM_TR_PARK, i, SHM_WR_SLEEP, 7);
    }
    CHECK_EQ(shm_trace_stop(&c), SHM_OK);
    CHECK_EQ(shm_trace_read(&c, c.m->index, ev), 10);
    for (unsigned i = 0; i < 10; i++) {
        CHECK_EQ(ev[i].goid, i);
        CHECK_EQ(ev[i].stack, i);
        CHECK_EQ(ev[i].reason, SHM_WR_SLEEP);
        CHECK(i == 0 || ev[i].ns >= ev[i - 1].ns);
    }
    CHECK_EQ(c.trace_stack, 0);
    o_seg_end(&c);
}

static void test_a_full_ring_keeps_the_last_events(void)
{
    struct shm_ctx c;
    o_seg(&c);
    static struct shm_event ev[CAP];
    CHECK_EQ(shm_trace_start(&c, CAP), SHM_OK);
    for (unsigned i = 0; i < 1000; i++)
        shm_trace(&c, SHM_TR_START, i, 0, 0);
    size_t n = shm_trace_read(&c, c.m->index, ev);
    CHECK_EQ(n, CAP - 1); /* the oldest might be being overwritten */
    CHECK_EQ(ev[0].goid, 1000 - n);
    CHECK_EQ(ev[n - 1].goid, 999);
    CHECK_EQ(shm_trace_stop(&c), SHM_OK);
    /* A second trace does not show the first. */
    CHECK_EQ(shm_trace_start(&c, CAP), SHM_OK);
    CHECK_EQ(shm_trace_read(&c, c.m->index, ev), 0);
    shm_trace(&c, SHM_TR_END, 5, 0, 0);
    CHECK_EQ(shm_trace_read(&c, c.m->index, ev), 1);
    o_seg_end(&c);
}

struct race {
    _Atomic uint32_t written, done;
};

/* M 0 of the test reads what M 1 writes all the while: whatever it sees is whole and in order. */
static void write_or_read(struct shm_ctx *c, int i, void *arg)
{
    struct race *r = arg;
    static struct shm_event ev[CAP];
    if (i == 1) {
        store_rel(&r->written, c->m->index + 1); /* whose ring; pairs with the reader's load */
        for (uint32_t k = 0; !load_acq(&r->done) || k < 5000;
             k++) { /* until the reader has enough */
            c->trace_stack = k ^ 0x5a5a5a5a;
            shm_trace(c, SHM_TR_PARK, k, 0, k);
        }
        return;
    }
    H_WAIT(load_acq(&r->written) != 0); /* pairs with the writer's store */
    uint32_t m = load_acq(&r->written) - 1;
    uint64_t last = 0;
    for (int turns = 0; turns < H_N(2000, 200000);) {
        size_t n = shm_trace_read(c, m, ev);
        turns += n > 0;
        for (size_t k = 0; k < n; k++) {
            CHECK_EQ(ev[k].arg, (uint32_t)ev[k].goid);
            CHECK_EQ(ev[k].stack, (uint32_t)ev[k].goid ^ 0x5a5a5a5a);
            CHECK(k == 0 || ev[k].goid == ev[k - 1].goid + 1);
        }
        if (n) {
            CHECK(ev[n - 1].goid >= last);
            last = ev[n - 1].goid;
        }
    }
    store_rel(&r->done, 1); /* ends the writer */
}

static void test_a_reader_beside_the_writer_sees_whole_events_in_order(void)
{
    struct shm_ctx c;
    o_seg(&c);
    CHECK_EQ(shm_trace_start(&c, CAP), SHM_OK);
    struct race *r = h_shared(sizeof *r);
    h_ms(2, write_or_read, r);
    munmap(r, sizeof *r);
    shm_mexit(&c);
    h_seg_end(&c);
}

H_MAIN(T(test_events_come_back_in_the_order_in_which_they_were_written),
       T(test_a_full_ring_keeps_the_last_events),
       T(test_a_reader_beside_the_writer_sees_whole_events_in_order))
