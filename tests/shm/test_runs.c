/* test_runs.c — page runs: given back, and kept warm (shm/runs.c). */
#include "blocks.h"

static void test_freed_runs_merge_and_go_back_to_the_system(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 64 << 20);
    enum { N = 8 };
    static const int order[][N] = {{0, 1, 2, 3, 4, 5, 6, 7},
                                   {7, 6, 5, 4, 3, 2, 1, 0},
                                   {1, 3, 5, 7, 0, 2, 4, 6},
                                   {3, 4, 2, 5, 1, 6, 0, 7}};
    for (size_t o = 0; o < sizeof order / sizeof *order; o++) {
        uint64_t before = backed(&c), top = c.hdr->heap_top;
        shm_off off[N];
        for (int i = 0; i < N; i++) {
            CHECK_EQ(shm_alloc(&c, 1 << 20, &off[i]), SHM_OK);
            memset(shm_at(&c, off[i]), i, 1 << 20);
        }
        CHECK(backed(&c) - before >= (uint64_t)N << 20);
        for (int i = 0; i < N; i++) {
            shm_free(&c, off[order[o][i]]);
            census(&c); /* the runs tile the heap at each step */
            for (int k = i + 1; k < N; k++)
                CHECK_EQ(*((uint8_t *)shm_at(&c, off[order[o][k]]) + 500000), order[o][k]);
        }
        CHECK_EQ(backed(&c), before);
        CHECK_EQ(c.hdr->heap_top, top);
        CHECK_EQ(c.hdr->run_free, 0);
    }
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_a_hole_is_filled_first_and_its_pages_are_backed_again(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 64 << 20);
    shm_off a, b, guard, x;
    CHECK_EQ(shm_alloc(&c, 300000, &a), SHM_OK);
    CHECK_EQ(shm_alloc(&c, 700000, &b), SHM_OK);
    CHECK_EQ(shm_alloc(&c, 40000, &guard), SHM_OK);
    uint64_t top = c.hdr->heap_top, full = backed(&c);
    shm_free(&c, a);
    shm_free(&c, b);
    CHECK(backed(&c) <= full - 990000);
    CHECK_EQ(shm_alloc(&c, 990000, &x), SHM_OK); /* fits only if the two were merged */
    CHECK(x < guard);
    CHECK_EQ(c.hdr->heap_top, top);
    memset(shm_at(&c, x), 1, 990000);
    shm_free(&c, x);
    CHECK_EQ(shm_alloc(&c, 50000, &x), SHM_OK);
    CHECK(x < guard);
    uint64_t n = 0;
    shm_off small[3000];
    for (; n < 3000 && c.hdr->heap_top == top; n++) /* spans are cut from the hole as well */
        CHECK_EQ(shm_alloc(&c, 300, &small[n]), SHM_OK);
    CHECK(n == 3000 || n * 300 > 600000);
    CHECK_EQ(small[10] < guard, 1);
    h_seg_end(&c);
}

static void churn_runs(struct shm_ctx *c, int i, void *arg)
{
    int rounds = *(int *)arg;
    shm_off off[16] = {0};
    size_t len[16];
    for (int r = 0; r < rounds; r++) {
        uint64_t x = (c->rng = c->rng * 6364136223846793005ULL + 1442695040888963407ULL) >> 30;
        int k = (int)(x % 16);
        if (off[k]) {
            const uint8_t *p = shm_at(c, off[k]);
            CHECK_EQ(p[0], i);
            CHECK_EQ(p[len[k] / 2], i);
            CHECK_EQ(p[len[k] - 1], i);
            shm_free(c, off[k]);
            off[k] = 0;
            continue;
        }
        len[k] = 33000 + (x >> 4) % 300000;
        CHECK_EQ(shm_alloc(c, len[k], &off[k]), SHM_OK);
        uint8_t *p = shm_at(c, off[k]);
        p[0] = p[len[k] / 2] = p[len[k] - 1] = (uint8_t)i;
    }
    for (int k = 0; k < 16; k++)
        if (off[k])
            shm_free(c, off[k]);
}

static void test_runs_of_many_ms_do_not_overlap(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    int rounds = H_N(1500, 50000);
    h_ms(4, churn_runs, &rounds);
    CHECK_EQ(stats(&c).large_bytes, 0);
    CHECK_EQ(c.hdr->run_free, 0);
    CHECK_EQ(c.hdr->heap_top, c.hdr->heap_off);
    CHECK_EQ(backed(&c), 0);
    shm_mexit(&c);
    h_seg_end(&c);
}

/* ---- warm ------------------------------------------------------------------------------------ */

#define MB (1 << 20)

/* As with a keeper that sees to what is kept. */
static void warm_seg(struct shm_ctx *c, uint64_t heap_bytes, uint64_t warm_max)
{
    seg_with_m(c, heap_bytes);
    store_rlx(&c->hdr->warm_max, warm_max);
}

static shm_off large(struct shm_ctx *c, uint64_t n)
{
    shm_off off;
    CHECK_EQ(shm_alloc(c, n, &off), SHM_OK);
    CHECK_EQ(shm_blk(c, off)->state, 1);
    CHECK_EQ(shm_blk(c, off)->owner_m1, c->m1);
    memset(shm_at(c, off), 7, n);
    return off;
}

static uint64_t warm(struct shm_ctx *c)
{
    uint64_t n = 0, bytes = 0;
    for (int i = 0; i < SHM_WARM; i++)
        if (c->hdr->warm[i].blk) {
            shm_off off = c->hdr->warm[i].blk;
            CHECK_EQ(shm_blk(c, off)->state, 0);
            CHECK_EQ(shm_blk(c, off)->cls, SHM_NCLASS);
            bytes += shm_usable(c, off) + 64;
            n++;
        }
    CHECK_EQ(load_rlx(&c->hdr->warm_n), n);
    CHECK_EQ(c->hdr->warm_bytes, bytes);
    return bytes;
}

static void all_cold(struct shm_ctx *c)
{
    while (shm_heap_cool(c, UINT64_MAX))
        continue;
    CHECK_EQ(warm(c), 0);
    CHECK_EQ(stats(c).large_bytes, 0);
    CHECK_EQ(c->hdr->run_free, 0);
    CHECK_EQ(c->hdr->heap_top, c->hdr->heap_off);
    CHECK_EQ(backed(c), 0);
}

static void test_a_large_block_that_is_freed_serves_the_next_of_its_size_as_it_is(void)
{
    struct shm_ctx c;
    warm_seg(&c, 64 * MB, 32 * MB);
    shm_off a = large(&c, 4 * MB), b = large(&c, MB);
    uint64_t full = backed(&c);
    shm_free(&c, a);
    shm_free(&c, b);
    CHECK_EQ(stats(&c).live_blocks, 0); /* free, and all its pages are there */
    CHECK_EQ(stats(&c).live_bytes, 0);
    CHECK_EQ(backed(&c), full);
    CHECK_EQ(warm(&c), full);
    CHECK_EQ(large(&c, MB - 100 * 1024), b); /* an eighth less at the most */
    CHECK(large(&c, 3 * MB) != a);
    CHECK(large(&c, 4 * MB + 8192) != a);
    CHECK_EQ(large(&c, 4 * MB - 1), a);
    CHECK_EQ(warm(&c), 0);
    h_seg_end(&c);
}

static void test_what_was_freed_last_is_taken_first(void)
{
    struct shm_ctx c;
    warm_seg(&c, 64 * MB, 32 * MB);
    shm_off a = large(&c, MB), b = large(&c, MB), d = large(&c, MB);
    shm_free(&c, b);
    shm_free(&c, a);
    CHECK_EQ(large(&c, MB), a);
    CHECK_EQ(large(&c, MB), b);
    CHECK(large(&c, MB) > d);
    h_seg_end(&c);
}

static void test_what_nobody_takes_is_given_back_after_a_while(void)
{
    struct shm_ctx c;
    warm_seg(&c, 64 * MB, 32 * MB);
    shm_off a = large(&c, 4 * MB), b = large(&c, 4 * MB);
    uint64_t now = shm_now_ns();
    shm_free(&c, a);
    CHECK(!shm_heap_cool(&c, now)); /* looked at the clock before it was freed */
    shm_free(&c, b);
    CHECK(!shm_heap_cool(&c, now + 100000000));
    CHECK(shm_heap_cool(&c, now + 10000000000));
    CHECK(shm_heap_cool(&c, now + 10000000000)); /* one at a time */
    CHECK(!shm_heap_cool(&c, now + 10000000000));
    all_cold(&c);
    h_seg_end(&c);
}

static void test_what_is_kept_is_bounded_and_nothing_is_without_a_keeper(void)
{
    struct shm_ctx c;
    warm_seg(&c, 256 * MB, 5 * MB);
    shm_off off[SHM_WARM + 2];
    for (int i = 0; i < 4; i++)
        off[i] = large(&c, 2 * MB);
    for (int i = 0; i < 4; i++)
        shm_free(&c, off[i]);
    CHECK(warm(&c) > 4 * MB && warm(&c) <= 5 * MB);
    shm_free(&c, large(&c, 6 * MB));
    CHECK(warm(&c) <= 5 * MB);
    all_cold(&c);
    for (int i = 0; i < SHM_WARM + 2; i++)
        off[i] = large(&c, 100000);
    for (int i = 0; i < SHM_WARM + 2; i++)
        shm_free(&c, off[i]);
    CHECK_EQ(load_rlx(&c.hdr->warm_n), SHM_WARM);
    all_cold(&c);
    store_rlx(&c.hdr->warm_max, 0);
    shm_free(&c, large(&c, 2 * MB));
    all_cold(&c);
    h_seg_end(&c);
}

static void test_what_is_kept_warm_is_no_room_that_is_missing(void)
{
    struct shm_ctx c;
    warm_seg(&c, 16 * MB, 16 * MB);
    shm_off a = large(&c, 5 * MB), b = large(&c, 5 * MB), d = large(&c, 5 * MB);
    shm_free(&c, a);
    shm_free(&c, b);
    shm_free(&c, d);
    shm_off whole = large(&c, 15 * MB + 512 * 1024); /* needs all three */
    CHECK_EQ(warm(&c), 0);
    shm_off x;
    CHECK_EQ(shm_alloc(&c, MB, &x), SHM_ENOMEM);
    shm_free(&c, whole);
    CHECK(warm(&c) > 15 * MB);
    for (int i = 0; i < 2000; i++) /* of a span */
        CHECK_EQ(shm_alloc(&c, 2000, &x), SHM_OK);
    CHECK_EQ(warm(&c), 0);
    h_seg_end(&c);
}

static void churn_warm(struct shm_ctx *c, int i, void *arg)
{
    if (i == 0) /* as the keeper */
        for (int r = 0; r < *(int *)arg; r++)
            shm_heap_cool(c, r % 16 ? shm_now_ns() : UINT64_MAX);
    else
        churn_runs(c, i, arg);
}

static void test_warm_runs_of_many_ms_have_one_owner(void)
{
    struct shm_ctx c;
    warm_seg(&c, 0, MB);
    int rounds = H_N(1500, 50000);
    h_ms(4, churn_warm, &rounds);
    all_cold(&c);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void die_at_warm(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    h_die_after(*(uint32_t *)arg);
    shm_off a = large(c, 100000), b = large(c, 200000);
    shm_free(c, a);
    shm_free(c, b);
    a = large(c, 98000);
    b = large(c, 300000);
    shm_heap_cool(c, UINT64_MAX); /* the one of 200,000 */
    shm_free(c, b);
    shm_free(c, a);
    shm_heap_cool(c, UINT64_MAX);
}

static void test_a_warm_run_is_lost_in_no_death(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    int status = SIGKILL;
    for (uint32_t nth = 1; status == SIGKILL; nth++) {
        struct shm_ctx c;
        warm_seg(&c, 16 * MB, 4 * MB);
        status = h_wait(h_fork(die_at_warm, 0, &nth));
        struct shm_m *dead = &c.mtab[1];
        if (status == SIGKILL) {
            shm_tx_rollback(&c, dead);
            shm_lock_reap(&c, dead);
            shm_heap_reap(&c, dead);
        } else {
            CHECK_EQ(status, 0);
            CHECK(nth > 100);
        }
        CHECK_EQ(census(&c).blocks[1], 0);
        CHECK_EQ(stats(&c).live_blocks, 0);
        warm(&c);
        while (shm_heap_cool(&c, UINT64_MAX))
            continue;
        CHECK_EQ(warm(&c), 0);
        CHECK_EQ(c.hdr->heap_top, c.hdr->heap_off);
        CHECK_EQ(stats(&c).committed, 0);
        shm_mexit(&c);
        h_seg_end(&c);
    }
}

H_MAIN(T(test_freed_runs_merge_and_go_back_to_the_system),
       T(test_a_hole_is_filled_first_and_its_pages_are_backed_again),
       T(test_runs_of_many_ms_do_not_overlap),
       T(test_a_large_block_that_is_freed_serves_the_next_of_its_size_as_it_is),
       T(test_what_was_freed_last_is_taken_first),
       T(test_what_nobody_takes_is_given_back_after_a_while),
       T(test_what_is_kept_is_bounded_and_nothing_is_without_a_keeper),
       T(test_what_is_kept_warm_is_no_room_that_is_missing),
       T(test_warm_runs_of_many_ms_have_one_owner), T(test_a_warm_run_is_lost_in_no_death))
