/* test_segment.c — making, refusing and growing a segment; M slots; the layout table; transactions
 * (shm/segment.c, shm/undo.c). */
#include "harness.h"

#include <sys/stat.h>

/* ---- layout ---------------------------------------------------------------------------------- */

/* Bytes of a numpy dtype text: "u4", "S64", "V16", "(3,2)u8". */
static uint64_t dtype_bytes(const char *t)
{
    uint64_t n = 1;
    if (*t == '(') {
        for (t++; *t != ')'; t += *t == ',')
            n *= strtoull(t, (char **)&t, 10);
        t++;
    }
    return n * strtoull(t + 1, NULL, 10);
}

static void test_every_byte_of_a_struct_is_in_exactly_one_row(void)
{
    const struct {
        const char *table;
        size_t size;
    } structs[] = {{"hdr", sizeof(struct shm_hdr)},
                   {"g", sizeof(struct shm_g)},
                   {"p", sizeof(struct shm_p)},
                   {"m", sizeof(struct shm_m)}};
    size_t n, seen = 0;
    const struct shm_field *f = shm_layout(&n);
    for (size_t s = 0; s < sizeof structs / sizeof *structs; s++) {
        uint64_t at = 0;
        for (size_t i = 0; i < n; i++) {
            if (strcmp(f[i].table, structs[s].table) != 0)
                continue;
            seen++;
            if (f[i].offset != at)
                fprintf(stderr, "%s.%s begins at %u, the row before ends at %llu\n", f[i].table,
                        f[i].field, f[i].offset, (unsigned long long)at);
            CHECK_EQ(f[i].offset, at);
            if (*f[i].field) {
                CHECK_EQ(dtype_bytes(f[i].dtype), f[i].size);
            } else {
                CHECK(f[i].size < SHM_CACHELINE);
            }
            at += f[i].size;
        }
        CHECK_EQ(at, structs[s].size);
    }
    CHECK_EQ(seen, n);
}

/* ---- create and attach ----------------------------------------------------------------------- */

static void test_an_attached_segment_is_the_created_one(void)
{
    struct shm_ctx a, b;
    h_seg(&a, (struct shm_opts){.nprocs = 3, .name = "prog"});
    char why[SHM_WHY_BYTES];
    CHECK_EQ(shm_seg_attach(&b, a.fd, why), SHM_OK);
    CHECK(a.base != b.base);
    CHECK(strcmp(b.hdr->name, "prog") == 0);
    CHECK_EQ(b.hdr->nprocs, 3);
    CHECK_EQ(b.hdr->max_p, 4);
    CHECK(!b.ptab[2].nosteal && b.ptab[3].nosteal);
    CHECK_EQ(load_acq(&b.hdr->idle_p[0]), 7);
    store_rel(&a.hdr->goidgen, 42);
    CHECK_EQ(load_acq(&b.hdr->goidgen), 42);
    shm_seg_detach(&b);
    h_seg_end(&a);
}

static void test_without_workers_the_one_p_may_be_stolen_from(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.nprocs = UINT32_MAX});
    CHECK_EQ(c.hdr->max_p, 1);
    CHECK(!c.ptab[0].nosteal);
    h_seg_end(&c);
}

static void test_creation_touches_little(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){.max_goroutines = 4000000, .heap_bytes = 64ULL << 30});
    struct stat st;
    CHECK_EQ(fstat(c.fd, &st), 0);
    CHECK(st.st_size > (64LL << 30));
    CHECK(st.st_blocks * 512 < 512 * 1024);
    h_seg_end(&c);
}

static void expect_refused(int fd, const char *what)
{
    struct shm_ctx c;
    char why[SHM_WHY_BYTES] = "";
    int e = shm_seg_attach(&c, fd, why);
    if (e != SHM_EBADSEG)
        fprintf(stderr, "attach with %s: %d\n", what, e);
    CHECK_EQ(e, SHM_EBADSEG);
    CHECK(strlen(why) > 10);
}

static void test_a_watchers_header_changes_only_when_it_looks_and_then_it_is_checked(void)
{
    struct shm_ctx c, w;
    char why[SHM_WHY_BYTES];
    h_seg(&c, (struct shm_opts){.nprocs = 1});
    CHECK_EQ(shm_seg_watch(&w, c.fd, why), SHM_OK);
    store_rel(&c.hdr->goidgen, 42);
    CHECK(load_acq(&w.hdr->goidgen) != 42);
    CHECK_EQ(shm_seg_look(&w, why), SHM_OK);
    CHECK_EQ(load_acq(&w.hdr->goidgen), 42);
    uint64_t n = load_acq(&c.hdr->g_committed), size = c.hdr->size;
    store_rel(&c.hdr->g_committed, UINT64_MAX);
    CHECK_EQ(shm_seg_look(&w, why), SHM_EBADSEG);
    CHECK_EQ(load_acq(&w.hdr->g_committed), n);
    store_rel(&c.hdr->g_committed, n);
    store_rel(&c.mtab[0].epoch, 7); /* the tables are the others' */
    CHECK_EQ(load_acq(&w.mtab[0].epoch), 7);
    CHECK_EQ(ftruncate(c.fd, (off_t)size - 4096), 0);
    CHECK_EQ(shm_seg_look(&w, why), SHM_EBADSEG);
    CHECK(strstr(why, "cut short") != NULL);
    shm_seg_detach(&w);
    h_seg_end(&c);
}

static void test_attach_refuses_what_is_no_segment_of_ours(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    struct shm_hdr good = *c.hdr;
#define WRONG(field, value)                        \
    do {                                           \
        c.hdr->field = value;                      \
        expect_refused(c.fd, #field " " #value);   \
        memcpy((void *)c.hdr, &good, sizeof good); \
    } while (0)
    WRONG(magic, good.magic + 1);
    WRONG(version, SHM_LAYOUT_VERSION + 1);
    WRONG(header_bytes, sizeof good - 8);
    WRONG(size, good.size - 4096);
    WRONG(uid, good.uid + 1);
    WRONG(nprocs, 5000);
    WRONG(max_p, SHM_MAX_P + 1);
    WRONG(max_p, good.nprocs);
    WRONG(m0_p, good.max_p);
    WRONG(max_g, good.max_g * 2);
    WRONG(max_m, SHM_MAX_M + 1);
    WRONG(m0_slot, SHM_MAX_M);
    WRONG(heap_bytes, good.heap_bytes + 4096);
    WRONG(heap_bytes, UINT64_MAX);
    WRONG(heap_top, good.size + 1);
    WRONG(heap_top, 0);
    WRONG(g_next, good.max_g + 1ULL);
    WRONG(g_committed, good.max_g + 1ULL);
    WRONG(code_n, SHM_MAX_CODE);
    WRONG(reason_n, SHM_MAX_REASON + 1);
    const shm_off bad[] = {0, 8, good.size, UINT64_MAX - 7, good.heap_off + 1};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        WRONG(mtab_off, bad[i]);
        WRONG(ptab_off, bad[i]);
        WRONG(gtab_off, bad[i]);
        WRONG(code_off, bad[i]);
        WRONG(heap_off, bad[i]);
        WRONG(reason_off, bad[i]);
    }
    static const mode_t modes[] = {0644, 0660, 0602, 0700, 04600, 01600};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        CHECK_EQ(fchmod(c.fd, modes[i]), 0);
        expect_refused(c.fd, "a mode that lets others write or read");
    }
    CHECK_EQ(fchmod(c.fd, 0600), 0);
    struct shm_ctx again;
    char why[SHM_WHY_BYTES];
    CHECK_EQ(shm_seg_attach(&again, c.fd, why), SHM_OK);
    shm_seg_detach(&again);

    CHECK_EQ(ftruncate(c.fd, (off_t)good.size - 4096), 0);
    expect_refused(c.fd, "a truncated end");
    CHECK_EQ(ftruncate(c.fd, 100), 0);
    expect_refused(c.fd, "a truncated header");
    CHECK_EQ(ftruncate(c.fd, 0), 0);
    expect_refused(c.fd, "nothing in it");
    h_seg_end(&c);
    int pipes[2];
    CHECK_EQ(pipe(pipes), 0);
    expect_refused(pipes[0], "a pipe");
    expect_refused(-1, "no descriptor");
    close(pipes[0]);
    close(pipes[1]);
}

static void test_creation_refuses_impossible_sizes(void)
{
    struct shm_ctx c;
    const struct shm_opts bad[] = {
        {.nprocs = SHM_MAX_P, .max_goroutines = 10, .heap_bytes = 1 << 20},
        {.nprocs = 1, .max_goroutines = 0, .heap_bytes = 1 << 20},
        {.nprocs = 1, .max_goroutines = 10, .heap_bytes = 4096},
        {.nprocs = 1, .max_goroutines = 10, .heap_bytes = UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int fd = h_memfd();
        CHECK_EQ(shm_seg_create(&c, fd, &bad[i]), SHM_ESYS);
        CHECK_EQ(errno, EINVAL);
        close(fd);
    }
}

/* ---- M slots --------------------------------------------------------------------------------- */

static void hold_slot(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    _Atomic uint32_t *taken = arg; /* [0] how many hold one; [1 + slot]: by how many */
    CHECK_EQ(add_acqrel(&taken[1 + c->m->index], 1), 0);
    CHECK_EQ(load_acq(&c->m->pid), getpid());
    add_acqrel(&taken[0], 1);
    H_WAIT(load_acq(&taken[0]) == 20);
}

static void test_each_m_has_a_slot_of_its_own_and_the_table_grows(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK(load_acq(&c.hdr->max_m) < 20);
    _Atomic uint32_t *taken = h_shared((SHM_MAX_M + 1) * sizeof *taken);
    h_ms(20, hold_slot, taken);
    CHECK(load_acq(&c.hdr->max_m) >= 20);
    for (uint32_t i = 0; i < load_acq(&c.hdr->max_m); i++)
        CHECK_EQ(load_acq(&c.mtab[i].kind), SHM_M_FREE);
    munmap(taken, (SHM_MAX_M + 1) * sizeof *taken);
    h_seg_end(&c);
}

static void test_a_full_table_of_ms_is_an_error(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    struct shm_ctx m[SHM_MAX_M], more;
    for (int i = 0; i < SHM_MAX_M; i++) {
        shm_ctx_copy(&m[i], &c);
        CHECK_EQ(shm_minit(&m[i], SHM_M_AUX), SHM_OK);
    }
    shm_ctx_copy(&more, &c);
    CHECK_EQ(shm_minit(&more, SHM_M_AUX), SHM_EFULL);
    uint32_t epoch = load_rlx(&m[7].m->epoch);
    shm_mexit(&m[7]);
    CHECK_EQ(shm_minit(&more, SHM_M_AUX), SHM_OK);
    CHECK_EQ(more.m->index, 7);
    CHECK_EQ(load_rlx(&more.m->epoch), epoch + 1);
    h_seg_end(&c);
}

/* ---- transactions ---------------------------------------------------------------------------- */

static void test_a_rollback_restores_the_oldest_value_of_each_word(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    shm_off off;
    CHECK_EQ(shm_alloc(&c, 64, &off), SHM_OK);
    uint64_t *w = shm_at(&c, off);
    uint32_t *half = (uint32_t *)&w[3];
    w[0] = 1, w[1] = 2, half[0] = 3, half[1] = 4;
    shm_tx_begin(&c);
    shm_tx_store64(&c, &w[0], 10);
    shm_tx_store64(&c, &w[1], 20);
    shm_tx_store32(&c, &half[0], 30);
    shm_tx_store64(&c, &w[0], 11);
    shm_tx_store32(&c, &half[0], 31);
    CHECK_EQ(w[0], 11);
    shm_tx_rollback(&c, c.m);
    CHECK_EQ(w[0], 1);
    CHECK_EQ(w[1], 2);
    CHECK_EQ(half[0], 3);
    CHECK_EQ(half[1], 4);
    shm_tx_begin(&c);
    shm_tx_store64(&c, &w[0], 12);
    shm_tx_commit(&c);
    shm_tx_rollback(&c, c.m); /* nothing to undo after a commit */
    CHECK_EQ(w[0], 12);
    shm_free(&c, off);
    shm_mexit(&c);
    h_seg_end(&c);
}

/* A list of three words under a lock, which must always hold n, n + 1, n + 2. */
static void move_triple(struct shm_ctx *c, int i, void *arg)
{
    uint64_t *w = arg;
    (void)i;
    for (;;) {
        shm_lock(c, &c->hdr->code_lock);
        uint64_t n = w[0];
        shm_tx_begin(c);
        for (int k = 0; k < 3; k++)
            shm_tx_store64(c, &w[k], n + 3 + (uint64_t)k);
        shm_tx_commit(c);
        shm_unlock(c, &c->hdr->code_lock);
    }
}

struct death {
    const char *where;
    uint32_t nth;
    uint64_t *w;
};

static void die_there(struct shm_ctx *c, int i, void *arg)
{
    const struct death *d = arg;
    h_die_at(d->where, d->nth);
    move_triple(c, i, d->w);
}

static void test_an_m_killed_at_any_store_leaves_all_or_nothing(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    static const char *const where[] = {"undo.noted",  "undo.counted",   "undo.stored",
                                        "undo.commit", "undo.committed", "lock.named",
                                        "lock.taken",  "lock.released"};
    for (size_t k = 0; k < sizeof where / sizeof *where; k++) {
        for (uint32_t nth = 1; nth <= 7; nth++) {
            struct shm_ctx c;
            h_seg(&c, (struct shm_opts){0});
            CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
            shm_off off;
            CHECK_EQ(shm_alloc(&c, 64, &off), SHM_OK);
            uint64_t *w = shm_at(&c, off);
            w[0] = 0, w[1] = 1, w[2] = 2;
            struct death d = {where[k], nth, w};
            CHECK_EQ(h_wait(h_fork(die_there, 0, &d)), SIGKILL);
            struct shm_m *dead = &c.mtab[1];
            CHECK(!shm_m_alive(&c, dead->index + 1));
            shm_tx_rollback(&c, dead);
            shm_lock_reap(&c, dead);
            CHECK_EQ(w[1], w[0] + 1);
            CHECK_EQ(w[2], w[0] + 2);
            CHECK_EQ(w[0] % 3, 0);
            CHECK_EQ(load_acq(&c.hdr->code_lock), 0);
            CHECK_EQ(load_acq(&dead->held_n), 0);
            shm_lock(&c, &c.hdr->code_lock);
            shm_unlock(&c, &c.hdr->code_lock);
            h_seg_end(&c);
        }
    }
}

static void die_in_commit(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    uint64_t *w = arg;
    h_die_at("undo.commit", 1);
    shm_tx_begin(c);
    for (int k = 0; k < SHM_UNDO; k++)
        shm_tx_store64(c, &w[k], 1);
    shm_tx_commit(c);
}

static void roll_back_half(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    (void)arg;
    h_die_at("undo.restored", SHM_UNDO / 2);
    shm_tx_rollback(c, &c->mtab[1]);
}

static void test_a_reaper_that_dies_in_a_rollback_is_followed_by_another(void)
{
    if (H_TSAN)
        return; /* needs processes to kill */
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    shm_off off;
    CHECK_EQ(shm_alloc(&c, SHM_UNDO * 8, &off), SHM_OK);
    uint64_t *w = shm_at(&c, off);
    memset(w, 0, SHM_UNDO * 8);
    CHECK_EQ(h_wait(h_fork(die_in_commit, 0, w)), SIGKILL);
    CHECK_EQ(load_acq(&c.mtab[1].undo_n), SHM_UNDO);
    CHECK_EQ(h_wait(h_fork(roll_back_half, 0, w)), SIGKILL);
    CHECK_EQ(load_acq(&c.mtab[1].undo_n), SHM_UNDO / 2 + 1);
    shm_tx_rollback(&c, &c.mtab[1]);
    for (int k = 0; k < SHM_UNDO; k++)
        CHECK_EQ(w[k], 0);
    h_seg_end(&c);
}

H_MAIN(T(test_every_byte_of_a_struct_is_in_exactly_one_row),
       T(test_an_attached_segment_is_the_created_one),
       T(test_without_workers_the_one_p_may_be_stolen_from), T(test_creation_touches_little),
       T(test_attach_refuses_what_is_no_segment_of_ours),
       T(test_a_watchers_header_changes_only_when_it_looks_and_then_it_is_checked),
       T(test_creation_refuses_impossible_sizes),
       T(test_each_m_has_a_slot_of_its_own_and_the_table_grows),
       T(test_a_full_table_of_ms_is_an_error),
       T(test_a_rollback_restores_the_oldest_value_of_each_word),
       T(test_an_m_killed_at_any_store_leaves_all_or_nothing),
       T(test_a_reaper_that_dies_in_a_rollback_is_followed_by_another))
