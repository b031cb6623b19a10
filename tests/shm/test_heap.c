/* test_heap.c — blocks (shm/heap.c). Page runs: test_runs.c. */
#include "blocks.h"

#include <fcntl.h>

/* ---- a /dev/shm that can be full ------------------------------------------------------------- */

/* This program's posix_fallocate stands before libc's: shm_commit gets a budget of bytes. */
static _Atomic int64_t room = INT64_MAX;

int posix_fallocate(int fd, off_t at, off_t n)
{
    if (load_rlx(&room) < n)
        return ENOSPC;
    if (load_rlx(&room) != INT64_MAX)
        atomic_fetch_sub_explicit(&room, n, memory_order_relaxed);
    return fallocate(fd, 0, at, n) ? errno : 0;
}

/* ---- sizes ----------------------------------------------------------------------------------- */

static void test_a_block_is_large_enough_aligned_and_wastes_at_most_a_quarter(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 64 << 20);
    for (size_t n = 0; n <= 40000; n += n < 2000 ? 1 : 37) {
        shm_off off;
        CHECK_EQ(shm_alloc(&c, n, &off), SHM_OK);
        CHECK_EQ(off % 8, 0);
        CHECK(shm_usable(&c, off) >= n);
        memset(shm_at(&c, off), 0xaa, shm_usable(&c, off));
        CHECK_EQ(shm_blk(&c, off)->state, 1);
        CHECK_EQ(shm_blk(&c, off)->owner_m1, c.m1);
        size_t whole = n + sizeof(struct shm_blk), block = shm_usable(&c, off) + 8;
        if (whole > 48 && whole <= 32768)
            CHECK(block - whole <= block / 4);
        shm_free(&c, off);
    }
    static const size_t want[] = {32, 64, 80, 96, 112, 128}; /* with the header */
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        shm_off off;
        CHECK_EQ(shm_alloc(&c, want[i] - 8, &off), SHM_OK);
        CHECK_EQ(shm_usable(&c, off), want[i] - 8);
        shm_free(&c, off);
    }
    for (size_t n = 65536; n <= 4 << 20; n = n * 3 + 5) {
        shm_off off;
        CHECK_EQ(shm_alloc(&c, n, &off), SHM_OK);
        CHECK_EQ(off % 16, 0);
        CHECK(shm_usable(&c, off) >= n && shm_usable(&c, off) < n + 4096 + 64);
        shm_free(&c, off);
    }
    CHECK_EQ(stats(&c).live_blocks, 0);
    CHECK_EQ(stats(&c).live_bytes, 0);
    CHECK_EQ(stats(&c).large_bytes, 0);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_the_block_freed_last_is_used_first(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    shm_off a, b, x;
    CHECK_EQ(shm_alloc(&c, 100, &a), SHM_OK);
    CHECK_EQ(shm_alloc(&c, 100, &b), SHM_OK);
    shm_free(&c, a);
    shm_free(&c, b);
    CHECK_EQ(shm_alloc(&c, 100, &x), SHM_OK);
    CHECK_EQ(x, b);
    CHECK_EQ(shm_alloc(&c, 100, &x), SHM_OK);
    CHECK_EQ(x, a);
    h_seg_end(&c);
}

/* ---- many Ms --------------------------------------------------------------------------------- */

#define BOX 4096
struct exchange {
    _Atomic uint64_t box[BOX]; /* blocks on their way to whoever takes them */
    int rounds;
};

/* A block is full of the mark that its holder wrote; two holders of one block would see it. */
static void swap_blocks(struct shm_ctx *c, int i, void *arg)
{
    struct exchange *x = arg;
    uint64_t rng = (uint64_t)i * 77777 + 1;
    for (int r = 0; r < x->rounds; r++) {
        rng = rng * 6364136223846793005ULL + 1442695040888963407ULL;
        size_t n = 16 + (rng >> 40) % (rng >> 62 ? 200 : 3000);
        if ((rng >> 20) % 1000 == 0)
            n = 60000;
        shm_off off;
        CHECK_EQ(shm_alloc(c, n, &off), SHM_OK);
        uint64_t *w = shm_at(c, off);
        w[0] = (uint64_t)i << 32 | (uint32_t)r;
        w[1] = ~w[0];
        CHECK_EQ(shm_usable(c, off) >= n, 1);
        shm_publish(c, off);
        shm_off other = xchg_acqrel(&x->box[(rng >> 33) % BOX], off);
        if (!other)
            continue;
        w = shm_at(c, other);
        CHECK_EQ(w[0], ~w[1]);
        CHECK_EQ(shm_blk(c, other)->state, 2);
        w[0] = w[1] = 0;
        shm_free(c, other);
    }
}

static void test_a_block_has_one_owner_and_may_be_freed_by_any_m(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    struct exchange *x = h_shared(sizeof *x);
    x->rounds = H_N(100000, 3000000);
    h_ms(4, swap_blocks, x);
    uint64_t left = 0;
    for (int i = 0; i < BOX; i++)
        left += load_acq(&x->box[i]) != 0;
    struct census n = census(&c);
    CHECK_EQ(n.blocks[2], left);
    CHECK_EQ(n.blocks[1], 0);
    CHECK_EQ(stats(&c).live_blocks, left);
    for (int i = 0; i < BOX; i++)
        if (load_acq(&x->box[i]))
            shm_free(&c, load_acq(&x->box[i]));
    CHECK_EQ(stats(&c).live_bytes, 0);
    CHECK_EQ(stats(&c).large_bytes, 0);
    munmap(x, sizeof *x);
    shm_mexit(&c);
    h_seg_end(&c);
}

#define EACH 5000
struct taken {
    shm_off off[4][EACH];
    _Atomic uint32_t ready;
};

static void take_and_pass_on(struct shm_ctx *c, int i, void *arg)
{
    struct taken *t = arg;
    for (int k = 0; k < EACH; k++) {
        CHECK_EQ(shm_alloc(c, 24 + (size_t)(k % 4) * 32, &t->off[i][k]), SHM_OK);
        *(uint64_t *)shm_at(c, t->off[i][k]) = 0;
    }
    add_acqrel(&t->ready, 1);
    H_WAIT(load_acq(&t->ready) == 4);
    for (int k = 0; k < EACH; k++) { /* each word counted by exactly one M */
        _Atomic uint64_t *w = shm_at(c, t->off[(i + 1) % 4][k]);
        CHECK_EQ(add_acqrel(w, 1), 0);
        shm_free(c, t->off[(i + 1) % 4][k]);
    }
}

static void test_what_other_ms_freed_is_allocated_again(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    struct taken *t = h_shared(sizeof *t);
    h_ms(4, take_and_pass_on, t);
    uint64_t once = backed(&c);
    for (int r = 0; r < 5; r++) {
        store_rel(&t->ready, 0);
        h_ms(4, take_and_pass_on, t);
    }
    CHECK_EQ(stats(&c).live_blocks, 0);
    CHECK(backed(&c) <= once + once / 8); /* the Ms that ended left what they had */
    munmap(t, sizeof *t);
    shm_mexit(&c);
    h_seg_end(&c);
}

/* ---- no memory ------------------------------------------------------------------------------- */

static void test_at_the_ceiling_nothing_changes_and_a_free_helps(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 1 << 20);
    shm_off off[64], x;
    int n = 0, e;
    while ((e = shm_alloc(&c, 60000, &off[n])) == SHM_OK)
        n++;
    CHECK_EQ(e, SHM_ENOMEM);
    CHECK(n >= 15);
    struct census before = census(&c);
    struct shm_heap_stats s = stats(&c);
    CHECK_EQ(shm_alloc(&c, 2 << 20, &x), SHM_ENOMEM);
    CHECK_EQ(shm_alloc(&c, SIZE_MAX - 100, &x), SHM_ENOMEM);
    CHECK_EQ(shm_alloc(&c, 32000, &x), SHM_ENOMEM);
    struct census after = census(&c);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    struct shm_heap_stats s2 = stats(&c);
    CHECK(memcmp(&s, &s2, sizeof s) == 0);
    shm_free(&c, off[n / 2]);
    CHECK_EQ(shm_alloc(&c, 60000, &x), SHM_OK);
    CHECK_EQ(x, off[n / 2]);
    h_seg_end(&c);
}

static void test_without_room_nothing_changes_and_a_later_try_succeeds(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 64 << 20);
    shm_off keep, x;
    CHECK_EQ(shm_alloc(&c, 500000, &x), SHM_OK);
    CHECK_EQ(shm_alloc(&c, 100, &keep), SHM_OK);
    shm_free(&c, x); /* a hole, whose pages are not there */
    struct census before = census(&c);
    struct shm_heap_stats s = stats(&c);
    for (int64_t r = 0; r < 5; r++) {
        store_rlx(&room, r * 4096);
        CHECK_EQ(shm_alloc(&c, 400000, &x), SHM_ENOSPC); /* from the hole */
        store_rlx(&room, r * 4096);
        CHECK_EQ(shm_alloc(&c, 5 << 20, &x), SHM_ENOSPC); /* from the top */
        if (r < 4) {
            store_rlx(&room, r * 4096);
            CHECK_EQ(shm_alloc(&c, 5000, &x), SHM_ENOSPC); /* a span */
        }
        struct shm_val v;
        uint8_t bytes[3000] = {0};
        store_rlx(&room, 0);
        CHECK_EQ(shm_val_make(&c, &v, bytes, sizeof bytes, NULL, 0), SHM_ENOSPC);
        CHECK_EQ(shm_cont_make(&c, &x, bytes, sizeof bytes, NULL, 0), SHM_ENOSPC);
        struct census after = census(&c);
        CHECK(memcmp(&before, &after, sizeof before) == 0);
        struct shm_heap_stats s2 = stats(&c);
        CHECK_EQ(s2.live_blocks, s.live_blocks);
        CHECK_EQ(s2.live_conts, s.live_conts);
        CHECK_EQ(s2.committed, s.committed);
        CHECK_EQ(s2.large_bytes, 0);
        CHECK_EQ(load_rlx(&c.m->held_n), 0);
    }
    store_rlx(&room, INT64_MAX);
    CHECK_EQ(shm_alloc(&c, 400000, &x), SHM_OK);
    memset(shm_at(&c, x), 1, 400000);
    CHECK_EQ(shm_alloc(&c, 5 << 20, &x), SHM_OK);
    memset(shm_at(&c, x), 1, 5 << 20);
    h_seg_end(&c);
}

/* ---- death ----------------------------------------------------------------------------------- */

struct death {
    const char *where;
    uint32_t nth;
};

/* Blocks in the depot: each batch is linked through its blocks' first words, batches through the
 * second word of their first block. */
static uint64_t depot_blocks(struct shm_ctx *c)
{
    uint64_t n = 0;
    for (int cls = 0; cls < SHM_NCLASS; cls++)
        for (shm_off b = c->hdr->depot[cls]; b; b = ((uint64_t *)shm_at(c, b))[1])
            for (shm_off k = b; k; k = *(uint64_t *)shm_at(c, k)) {
                CHECK_EQ(shm_blk(c, k)->state, 0);
                CHECK_EQ(shm_blk(c, k)->cls, cls);
                CHECK_EQ(shm_blk(c, k)->user++, 0); /* not seen before */
                n++;
            }
    return n;
}

struct bytes {
    const struct shm_ctx *c;
    uint64_t n;
};

static void add_live(void *arg, shm_off off, const struct shm_blk *b)
{
    struct bytes *live = arg;
    if (b->state != 0) /* none is large */
        live->n += shm_usable(live->c, off) + sizeof *b;
}

static void die_at_work(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    const struct death *d = arg;
    shm_off off[200];
    uint32_t slot;
    h_die_at(d->where, d->nth);
    for (;;) {
        for (int k = 0; k < 200; k++)
            CHECK_EQ(shm_alloc(c, k % 20 == 0 ? 40000 : (size_t)k * 8, &off[k]), SHM_OK);
        CHECK_EQ(shm_handle_hold(c, new_obj(c, 1), &slot), SHM_OK);
        for (int k = 0; k < 200; k++)
            shm_free(c, off[k]);
        shm_handle_release(c, (c)->m1, slot);
    }
}

static void test_a_dead_ms_blocks_are_neither_lost_nor_free_twice(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    static const char *const where[] = {
        "heap.alloc.marked", "heap.bump.marked",   "heap.free.owned",   "heap.free.stored",
        "runs.large.taken",  "runs.large.punched", "handle.unref.last", "handle.released",
        "undo.noted",        "undo.counted",       "undo.stored",       "undo.commit",
        "undo.committed",    "lock.taken",         "lock.released"};
    for (size_t w = 0; w < sizeof where / sizeof *where; w++)
        for (uint32_t nth = 1; nth < 200; nth = nth * 2 + 1) {
            struct shm_ctx c;
            seg_with_m(&c, 16 << 20);
            shm_off kept[50];
            for (int k = 0; k < 50; k++) {
                CHECK_EQ(shm_alloc(&c, (size_t)k * 30, &kept[k]), SHM_OK);
                shm_publish(&c, kept[k]);
            }
            struct death d = {where[w], nth};
            CHECK_EQ(h_wait(h_fork(die_at_work, 0, &d)), SIGKILL);
            struct shm_m *dead = &c.mtab[1];
            shm_tx_rollback(&c, dead);
            shm_lock_reap(&c, dead);
            shm_handle_reap(&c, dead);
            shm_heap_reap(&c, dead);
            shm_mexit(&c); /* its own free blocks go to the depot too */
            struct census n = census(&c);
            CHECK_EQ(n.blocks[1], 0);
            CHECK(n.blocks[2] - 50 <= 1); /* an object whose last reference he had in hand */
            CHECK_EQ(stats(&c).large_bytes, 0);
            /* Every free block is in the depot, once; all others are counted. */
            CHECK_EQ(depot_blocks(&c), n.blocks[0]);
            CHECK_EQ(stats(&c).live_blocks, n.blocks[2]);
            struct bytes live = {&c, 0};
            CHECK(shm_heap_each(&c, add_live, &live));
            CHECK_EQ(stats(&c).live_bytes, live.n);
            h_seg_end(&c);
        }
}

H_MAIN(T(test_a_block_is_large_enough_aligned_and_wastes_at_most_a_quarter),
       T(test_the_block_freed_last_is_used_first),
       T(test_a_block_has_one_owner_and_may_be_freed_by_any_m),
       T(test_what_other_ms_freed_is_allocated_again),
       T(test_at_the_ceiling_nothing_changes_and_a_free_helps),
       T(test_without_room_nothing_changes_and_a_later_try_succeeds),
       T(test_a_dead_ms_blocks_are_neither_lost_nor_free_twice))
