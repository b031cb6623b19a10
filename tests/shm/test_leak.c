/* Tests of leak.c: who waits for what nobody else can reach is reported, nobody else is. What goes
 * on while everything moves is in tests/unit/test_leaks.py. */
#include "gs.h"
#include <stdlib.h>

static struct shm_ctx c;

static void begin(void)
{
    h_seg(&c, (struct shm_opts){0});
    l_worker(&c);
}

static void end(void)
{
    CHECK_SEGMENT(&c);
    l_worker_end(&c);
    h_seg_end(&c);
}

static shm_off chan(uint32_t cap)
{
    shm_off ch;
    CHECK_EQ(shm_chan_new(&c, cap, &ch), SHM_OK);
    return ch;
}

/* A running G whose continuation holds a and b (0: nothing). */
static shm_gref holding(shm_off a, shm_off b)
{
    shm_gref r = l_new(&c);
    shm_off obj[2] = {a, b}, off;
    uint64_t h[2];
    uint32_t n = 0;
    for (int i = 0; i < 2; i++)
        if (obj[i])
            h[n++] = SHM_HANDLE(SHM_OBJ_CHAN, obj[i]);
    shm_gcont_drop(&c, shm_g(&c, r));
    CHECK_EQ(shm_cont_make(&c, &off, "frame", 5, h, n), SHM_OK);
    shm_gcont_set(&c, shm_g(&c, r), off, 5);
    return r;
}

/* It waits to receive from ch, with the wait's reference. */
static void receives(shm_gref r, shm_off ch)
{
    struct shm_val v;
    shm_obj_ref_hand(&c, ch);
    CHECK_EQ(shm_chan_recv_park(&c, ch, &v, r), SHM_PARKED);
}

static void sends(shm_off ch, shm_off obj)
{
    struct shm_val v = v_ref(&c, 1, obj);
    CHECK_EQ(shm_chan_trysend(&c, ch, &v), SHM_OK);
}

/* How many leak; *first: the object that the first of them waits on. */
static size_t leaks(shm_off *first)
{
    struct shm_leak *found;
    size_t n;
    CHECK_EQ(shm_leaks(&c, &found, &n), SHM_OK);
    *first = n ? found[0].on : 0;
    free(found);
    return n;
}

static void test_a_wait_leaks_when_the_last_other_handle_goes(void)
{
    shm_off on, ch;
    begin();
    ch = chan(0);
    receives(holding(ch, 0), ch);
    CHECK_EQ(leaks(&on), 0);
    shm_obj_unref(&c, ch);
    CHECK_EQ(leaks(&on), 1);
    CHECK_EQ(on, ch);
    end();
}

static void test_a_circle_of_waits_leaks_as_a_whole_or_not_at_all(void)
{
    enum { N = 50 };
    shm_off on, ch[N];
    begin();
    for (int i = 0; i < N; i++)
        ch[i] = chan(0);
    for (int i = 0; i < N; i++) /* each waits for the one before it */
        receives(holding(ch[i], ch[(i + 1) % N]), ch[i]);
    for (int i = 1; i < N; i++)
        shm_obj_unref(&c, ch[i]);
    CHECK_EQ(leaks(&on), 0);
    shm_obj_unref(&c, ch[0]);
    CHECK_EQ(leaks(&on), N);
    end();
}

static void test_a_buffer_passes_on_that_its_channel_can_be_reached(void)
{
    shm_off on, outer = 0, inner = 0;
    begin();
    outer = chan(1);
    inner = chan(0);
    sends(outer, inner);
    receives(holding(inner, 0), inner);
    shm_obj_unref(&c, inner);
    shm_off never = chan(0);
    receives(holding(outer, never), never);
    shm_obj_unref(&c, never);
    CHECK_EQ(leaks(&on), 1);
    CHECK_EQ(on, never);
    shm_obj_unref(&c, outer); /* only the leaked one has it now */
    CHECK_EQ(leaks(&on), 2);
    end();
}

static void test_a_goroutine_that_may_run_holds_what_it_holds(void)
{
    shm_off on, a, b;
    begin();
    a = chan(0);
    b = chan(0);
    receives(holding(a, 0), a);
    receives(holding(b, a), b); /* knows a, and b is main's */
    shm_obj_unref(&c, a);
    CHECK_EQ(leaks(&on), 0);
    struct shm_val v = v_int(1);
    CHECK_EQ(shm_chan_trysend(&c, b, &v), SHM_OK);
    CHECK_EQ(leaks(&on), 0); /* runnable */
    shm_gref r = l_next(&c);
    CHECK_EQ(leaks(&on), 0); /* running */
    shm_obj_unref(&c, b);    /* its wait's */
    l_end(&c, r);
    CHECK_EQ(leaks(&on), 1);
    CHECK_EQ(on, a);
    shm_obj_unref(&c, b);
    end();
}

static void test_a_lock_can_be_reached_by_its_living_holder(void)
{
    shm_off on, m;
    begin();
    CHECK_EQ(shm_sema_new(&c, SHM_SY_MUTEX, 0, 0, &m), SHM_OK);
    shm_gref holder = l_new(&c); /* without a handle */
    CHECK_EQ(shm_mutex_trylock(&c, m, shm_g(&c, holder)->goid), SHM_OK);
    shm_gref r = holding(m, 0);
    shm_obj_ref_hand(&c, m);
    CHECK_EQ(shm_mutex_lock_park(&c, m, r), SHM_PARKED);
    shm_obj_unref(&c, m);
    CHECK_EQ(leaks(&on), 0);
    store_rlx(&c.m->curg, holder);
    l_end(&c, holder);
    CHECK_EQ(leaks(&on), 1);
    CHECK_EQ(on, m);
    end();
}

H_MAIN(T(test_a_wait_leaks_when_the_last_other_handle_goes),
       T(test_a_circle_of_waits_leaks_as_a_whole_or_not_at_all),
       T(test_a_buffer_passes_on_that_its_channel_can_be_reached),
       T(test_a_goroutine_that_may_run_holds_what_it_holds),
       T(test_a_lock_can_be_reached_by_its_living_holder))
