/* Tests of check.c: it finds what is broken, by its name, and does not fall over it. */
#include "gs.h"

static char said[16384];
static void collect(void *arg, const char *text)
{
    (void)arg;
    size_t at = strlen(said);
    snprintf(said + at, sizeof said - at, "%s\n", text);
}

/* Breaks word by `with`, looks, mends it again: something with `text` must have been said. */
#define FINDS(c, word, with, text)                                 \
    do {                                                           \
        __typeof__(word) was_ = (word);                            \
        (word) = (with);                                           \
        said[0] = 0;                                               \
        int n_ = shm_check(c, false, collect, NULL);               \
        if (n_ == 0 || !strstr(said, text))                        \
            fprintf(stderr, "wanted: %s\nsaid: %s\n", text, said); \
        CHECK(n_ > 0 && strstr(said, text) != NULL);               \
        (word) = was_;                                             \
        CHECK_SEGMENT(c);                                          \
    } while (0)

/* A program at rest with one of each: parked receiver, senders, select, sleeper, waiter,
 * runnable. */
struct scene {
    struct shm_ctx c;
    shm_off empty, full, s1, s2, j;
    shm_gref recv, send[2], sel, sleep, join, ready;
};

static void scene_begin(struct scene *s)
{
    struct shm_ctx *c = &s->c;
    struct shm_val v;
    uint32_t which;
    h_seg(c, (struct shm_opts){0});
    l_worker(c);
    CHECK_EQ(shm_chan_new(c, 0, &s->empty), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 2, &s->full), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &s->s1), SHM_OK);
    CHECK_EQ(shm_chan_new(c, 0, &s->s2), SHM_OK);
    CHECK_EQ(shm_join_new(c, &s->j), SHM_OK);
    s->recv = l_new(c);
    CHECK_EQ(shm_chan_recv_park(c, s->empty, &v, s->recv), SHM_PARKED);
    for (uint64_t i = 0; i < 2; i++) {
        v = v_big(c, i);
        CHECK_EQ(shm_chan_trysend(c, s->full, &v), SHM_OK);
    }
    for (int i = 0; i < 2; i++) {
        s->send[i] = l_new(c);
        v = v_ref(c, 2 + (uint64_t)i, s->s1);
        CHECK_EQ(shm_chan_send_park(c, s->full, &v, s->send[i]), SHM_PARKED);
    }
    s->sel = l_new(c);
    struct shm_case cases[2] = {s_recv(s->s1), s_send(s->s2, v_big(c, 9))};
    CHECK_EQ(shm_select_park(c, cases, 2, s->sel, &which, &v), SHM_PARKED);
    s->sleep = l_new(c);
    CHECK_EQ(shm_sleep_park(c, s->sleep, shm_now_ns() + 1000000000000ULL), SHM_PARKED);
    s->join = l_new(c);
    CHECK_EQ(shm_join_park(c, s->j, s->join), SHM_PARKED);
    s->ready = l_new(c);
    shm_gosched(c, s->ready);
    CHECK_SEGMENT(c);
}

static void wake(struct shm_ctx *c, shm_gref r)
{
    CHECK(g_cancel(c, r));
    shm_ready(c, r, true);
    CHECK_EQ(l_next(c), r);
    if (shm_g(c, r)->waitkind == SHM_WAIT_SELECT)
        shm_select_done(c, r, &(uint32_t){0});
    shm_val_drop(c, &shm_g(c, r)->value);
    l_end(c, r);
}

static void scene_end(struct scene *s)
{
    struct shm_ctx *c = &s->c;
    CHECK_EQ(l_next(c), s->ready);
    l_end(c, s->ready);
    wake(c, s->recv);
    wake(c, s->send[0]);
    wake(c, s->send[1]);
    wake(c, s->sel);
    wake(c, s->sleep);
    wake(c, s->join);
    shm_obj_unref(c, s->empty);
    shm_obj_unref(c, s->full);
    shm_obj_unref(c, s->s1);
    shm_obj_unref(c, s->s2);
    shm_obj_unref(c, s->j);
    shm_obj_unref(c, s->j);
    CHECK_QUIET(c);
    l_worker_end(c);
    h_seg_end(c);
}

static void test_a_goroutine_that_is_nowhere_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    FINDS(c, c->hdr->runq_head, 0, "runnable, in no queue");
    FINDS(c, shm_g(c, s.recv)->wait, load_rlx(&shm_g(c, s.recv)->wait) & ~0xffULL, "not armed");
    FINDS(c, shm_g(c, s.sleep)->wait, load_rlx(&shm_g(c, s.sleep)->wait) | SHM_W_CLAIMED,
          "in nobody's hand");
    FINDS(c, shm_g(c, s.join)->cont_off, 0, "INV parked-complete");
    FINDS(c, shm_g(c, s.join)->status, SHM_ST(shm_ggen(s.join), 1, Grunning), "running, on no M");
    FINDS(c, shm_g(c, s.join)->status, SHM_ST(shm_ggen(s.join), 1, Gdead), "dead, in no free list");
    FINDS(c, shm_g(c, s.join)->status, SHM_ST(shm_ggen(s.join), 1, 5), "status 5");
    FINDS(c, c->hdr->runq_size, 7, "global queue: 1, counted 7");
    FINDS(c, c->hdr->batchq_size, 7, "batch queue: 0, counted 7");
    FINDS(c, shm_g(c, c->hdr->runq_head)->flags, SHM_GF_BATCH, "INV batch-apart");
    scene_end(&s);
}

static void test_a_queue_that_is_not_whole_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    struct shm_chan *empty = shm_at(c, s.empty), *full = shm_at(c, s.full);
    struct shm_join *j = shm_at(c, s.j);
    FINDS(c, empty->recvq_first, 0, "in no queue of it");
    FINDS(c, empty->recvq_last, 0, "its queue ends with");
    FINDS(c, full->sendq_first, 0x12345, "is no sudog");
    FINDS(c, full->sendq_first, UINT64_MAX - 7, "is no sudog");
    FINDS(c, shm_g(c, s.send[1])->sudog.prev, 0, "prev");
    FINDS(c, shm_g(c, s.send[0])->sudog.next, shm_offof(c, &shm_g(c, s.send[0])->sudog),
          "its queue");
    FINDS(c, shm_g(c, s.send[0])->sudog.linked, 1, "linked 1, wanted 2");
    FINDS(c, shm_g(c, s.send[0])->sudog.epoch, 77, "does not wait");
    FINDS(c, full->qcount, 1, "2 values from");
    FINDS(c, full->closed, 1, "closed, and 2 wait");
    FINDS(c, j->state, SHM_J_VALUE, "ended, and 1 wait");
    FINDS(c, j->lock, 0x7fff0001, "held by nobody alive");
    FINDS(c, c->p->timers_n, 0, "asleep, in no timer heap");
    FINDS(c, c->p->timer0_when, 5, "timer0_when");
    scene_end(&s);
}

static void test_a_block_that_nothing_names_or_that_is_named_and_free_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    struct shm_g *g = shm_g(c, s.send[0]);
    FINDS(c, g->value.tag, SHM_VAL_NONE, "is published, nothing names it");
    FINDS(c, g->cont_off, 0x1000, "no live block");
    FINDS(c, g->cont_off, UINT64_MAX - 7, "no live block");
    FINDS(c, shm_blk(c, g->cont_off)->state, 1, "not published");
    FINDS(c, shm_g(c, s.sel)->waitobj, 64, "no live block");
    FINDS(c, ((struct shm_obj *)shm_at(c, s.s1))->word, SHM_OBJ(1, 0, SHM_OBJ_CHAN),
          "1 references, found 3");
    FINDS(c, ((struct shm_obj *)shm_at(c, s.s1))->word, SHM_OBJ(4, 1, SHM_OBJ_CHAN),
          "its references are in M 0's hands");
    scene_end(&s);
}

static void test_a_large_block_that_is_free_and_not_warm_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    shm_off a, b;
    store_rlx(&c->hdr->warm_max, 1 << 20);
    CHECK_EQ(shm_alloc(c, 100000, &a), SHM_OK);
    CHECK_EQ(shm_alloc(c, 200000, &b), SHM_OK);
    shm_free(c, a);
    shm_free(c, b);
    CHECK_EQ(c->hdr->warm[1].blk, b);
    CHECK_SEGMENT(c);
    FINDS(c, c->hdr->warm[0].blk, b, "is free, named 0 times as warm");
    FINDS(c, c->hdr->warm[0].blk, b, "is free, named 2 times as warm");
    FINDS(c, c->hdr->warm[2].blk, 8, "2 large blocks are free, 3 named as warm");
    FINDS(c, c->hdr->warm_n, 5, "2 named as warm, counted 5");
    FINDS(c, shm_blk(c, a)->state, 2, "is published, nothing names it");
    scene_end(&s);
}

static void test_a_count_that_does_not_fit_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    FINDS(c, c->m->st.spawned, 3, "3 goroutines are counted, there are 7");
    FINDS(c, c->m->st.finished, 1, "6 goroutines are counted, there are 7");
    FINDS(c, shm_g(c, s.recv)->flags, 0, "7 goroutines are counted, there are 6");
    FINDS(c, c->m->st.cont_allocs, 9, "7 continuations, counted 9");
    scene_end(&s);
}

static void test_what_a_program_leaves_behind_is_found(void)
{
    struct scene s;
    scene_begin(&s);
    said[0] = 0;
    CHECK(shm_check(&s.c, true, collect, NULL) > 10);
    CHECK(strstr(said, "is left, status 4, chan receive") != NULL);
    CHECK(strstr(said, "is left, status 4, select") != NULL);
    CHECK(strstr(said, "timers are left") != NULL);
    CHECK(strstr(said, "bytes is left") != NULL);
    scene_end(&s);
}

/* Words of the header, tables and blocks overwritten at random: it reports, and comes back. */
static void test_a_damaged_segment_is_reported_and_not_crashed_on(void)
{
    struct scene s;
    scene_begin(&s);
    struct shm_ctx *c = &s.c;
    uint64_t *spans[][2] = {
        {(uint64_t *)shm_g(c, 1), (uint64_t *)shm_g(c, 9)},
        {(uint64_t *)shm_at(c, s.empty), (uint64_t *)shm_at(c, s.empty) + 12},
        {(uint64_t *)shm_at(c, s.full), (uint64_t *)shm_at(c, s.full) + 12},
        {(uint64_t *)shm_at(c, shm_g(c, s.sel)->waitobj),
         (uint64_t *)shm_at(c, shm_g(c, s.sel)->waitobj) + 24},
        {(uint64_t *)c->ptab, (uint64_t *)(c->ptab + 1)},
        {(uint64_t *)&c->mtab[0].curg, (uint64_t *)&c->mtab[0].undo},
        {(uint64_t *)&c->hdr->sched_lock, (uint64_t *)&c->hdr->g_lock + 2},
    };
    int found = 0, tries = H_N(3000, 100000);
    for (int i = 0; i < tries; i++) {
        uint64_t **span = spans[h_rand(c) % (sizeof spans / sizeof *spans)];
        _Atomic uint64_t *w =
            (_Atomic uint64_t *)(span[0] + h_rand(c) % (uint64_t)(span[1] - span[0]));
        uint64_t was = load_rlx(w), bad[] = {0,
                                             1,
                                             UINT64_MAX,
                                             h_rand(c),
                                             s.full,
                                             was + 8,
                                             was ^ 1,
                                             h_rand(c) << 32,
                                             c->hdr->heap_off + h_rand(c) % 65536};
        store_rlx(w, bad[h_rand(c) % (sizeof bad / sizeof *bad)]);
        said[0] = 0;
        found += shm_check(c, i % 2, i % 2 ? NULL : collect, NULL) > 0;
        store_rlx(w, was);
    }
    CHECK(found > tries / 2);
    CHECK_SEGMENT(c);
    scene_end(&s);
}

H_MAIN(T(test_a_goroutine_that_is_nowhere_is_found), T(test_a_queue_that_is_not_whole_is_found),
       T(test_a_block_that_nothing_names_or_that_is_named_and_free_is_found),
       T(test_a_large_block_that_is_free_and_not_warm_is_found),
       T(test_a_count_that_does_not_fit_is_found), T(test_what_a_program_leaves_behind_is_found),
       T(test_a_damaged_segment_is_reported_and_not_crashed_on))
