/* test_code.c — the code table (shm/code.c). */
#include "harness.h"

#define CODES 3000

static void hash_of(uint8_t hash[16], uint32_t k)
{
    memset(hash, 0, 16);
    /* Few buckets, so that chains grow; the hash differs in its last bytes alone. */
    uint32_t bucket = k % 7;
    memcpy(hash, &bucket, 4);
    memcpy(hash + 12, &k, 4);
}

static size_t payload_of(char text[64], uint32_t k)
{
    return (size_t)snprintf(text, 64, "module.function_%u", k);
}

struct all {
    _Atomic uint32_t id[CODES];
};

static void intern_all(struct shm_ctx *c, int i, void *arg)
{
    struct all *a = arg;
    for (uint32_t n = 0; n < CODES; n++) {
        uint32_t k = (n * 7 + (uint32_t)i * 1013) % CODES, id, none = 0;
        uint8_t hash[16], back[16];
        char text[64];
        hash_of(hash, k);
        size_t len = payload_of(text, k), got;
        CHECK_EQ(shm_code_intern(c, hash, text, len, &id), SHM_OK);
        CHECK(id >= 1 && id <= CODES);
        if (!cas_acqrel(&a->id[k], &none, id))
            CHECK_EQ(none, id);
        const void *p = shm_code_payload(c, id, &got, back);
        CHECK(p != NULL);
        CHECK_EQ(got, len);
        CHECK(memcmp(p, text, len) == 0);
        CHECK(memcmp(back, hash, 16) == 0);
    }
}

static void test_a_hash_has_one_number_in_every_m(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    struct all *a = h_shared(sizeof *a);
    h_ms(4, intern_all, a);
    CHECK_EQ(load_acq(&c.hdr->code_n), CODES);
    struct shm_heap_stats s;
    shm_heap_stats(&c, &s);
    CHECK_EQ(s.live_blocks, CODES); /* who came second has given its copy back */
    munmap(a, sizeof *a);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_a_number_nobody_was_given_has_no_payload(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    uint8_t hash[16] = {1};
    size_t n;
    uint32_t id;
    CHECK(shm_code_payload(&c, 0, &n, hash) == NULL);
    CHECK(shm_code_payload(&c, 1, &n, hash) == NULL);
    CHECK_EQ(shm_code_intern(&c, hash, NULL, 0, &id), SHM_OK);
    CHECK_EQ(id, 1);
    CHECK(shm_code_payload(&c, 1, &n, hash) != NULL);
    CHECK_EQ(n, 0);
    CHECK(shm_code_payload(&c, 2, &n, hash) == NULL);
    CHECK(shm_code_payload(&c, UINT32_MAX, &n, hash) == NULL);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_a_full_table_is_an_error_and_changes_nothing(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    uint8_t hash[16] = {0};
    uint32_t id;
    for (uint32_t k = 0; k < SHM_MAX_CODE - 1; k++) {
        memcpy(hash, &k, 4);
        CHECK_EQ(shm_code_intern(&c, hash, &k, sizeof k, &id), SHM_OK);
        CHECK_EQ(id, k + 1);
    }
    struct shm_heap_stats before, after;
    shm_heap_stats(&c, &before);
    memset(hash, 0xff, 16);
    CHECK_EQ(shm_code_intern(&c, hash, "x", 1, &id), SHM_EFULL);
    shm_heap_stats(&c, &after);
    CHECK_EQ(after.live_blocks, before.live_blocks);
    CHECK_EQ(load_acq(&c.hdr->code_n), SHM_MAX_CODE - 1);
    uint32_t k = 4711;
    memset(hash, 0, 16);
    memcpy(hash, &k, 4);
    CHECK_EQ(shm_code_intern(&c, hash, &k, sizeof k, &id), SHM_OK);
    CHECK_EQ(id, k + 1);
    shm_mexit(&c);
    h_seg_end(&c);
}

struct death {
    const char *where;
    uint32_t nth;
};

static void die_interning(struct shm_ctx *c, int i, void *arg)
{
    (void)i;
    const struct death *d = arg;
    uint32_t id;
    h_die_at(d->where, d->nth);
    for (uint32_t k = 0;; k++) {
        uint8_t hash[16];
        hash_of(hash, k);
        (void)!shm_code_intern(c, hash, &k, sizeof k, &id);
    }
}

static void test_an_m_killed_while_adding_leaves_a_table_the_others_go_on_with(void)
{
    if (H_TSAN)
        return; /* needs a process to kill */
    static const char *const where[] = {"undo.noted",        "undo.stored",     "undo.commit",
                                        "code.counted",      "lock.taken",      "lock.released",
                                        "heap.alloc.marked", "heap.bump.marked"};
    for (size_t w = 0; w < sizeof where / sizeof *where; w++)
        for (uint32_t nth = 1; nth <= 12; nth++) {
            struct shm_ctx c;
            h_seg(&c, (struct shm_opts){0});
            CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
            if (strcmp(where[w], "heap.alloc.marked") == 0) {
                /* So that there is a batch in the depot to allocate from. */
                shm_off off[200];
                for (int i = 0; i < 200; i++)
                    CHECK_EQ(shm_alloc(&c, 4, &off[i]), SHM_OK);
                for (int i = 0; i < 200; i++)
                    shm_free(&c, off[i]);
            }
            struct death d = {where[w], nth};
            CHECK_EQ(h_wait(h_fork(die_interning, 0, &d)), SIGKILL);
            struct shm_m *dead = &c.mtab[1];
            shm_tx_rollback(&c, dead);
            shm_lock_reap(&c, dead);
            shm_heap_reap(&c, dead);
            uint32_t had = load_acq(&c.hdr->code_n);
            for (uint32_t k = 0; k < 100; k++) {
                uint8_t hash[16], back[16];
                uint32_t id, again;
                size_t n;
                hash_of(hash, k);
                CHECK_EQ(shm_code_intern(&c, hash, &k, sizeof k, &id), SHM_OK);
                const uint32_t *p = shm_code_payload(&c, id, &n, back);
                CHECK(p != NULL && n == sizeof k && *p == k && memcmp(hash, back, 16) == 0);
                CHECK_EQ(shm_code_intern(&c, hash, &k, sizeof k, &again), SHM_OK);
                CHECK_EQ(again, id);
            }
            /* One code, at most, has an entry that nobody found. */
            CHECK(load_acq(&c.hdr->code_n) - (had > 100 ? had : 100) <= 1);
            struct shm_heap_stats s;
            shm_heap_stats(&c, &s);
            CHECK_EQ(s.live_blocks, load_acq(&c.hdr->code_n));
            h_seg_end(&c);
        }
}

H_MAIN(T(test_a_hash_has_one_number_in_every_m), T(test_a_number_nobody_was_given_has_no_payload),
       T(test_a_full_table_is_an_error_and_changes_nothing),
       T(test_an_m_killed_while_adding_leaves_a_table_the_others_go_on_with))
