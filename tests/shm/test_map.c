/* Tests of map.c: what is stored is found, in a map that grows, by many, and by a corpse's successor. */
#include "gs.h"

static shm_off map_new(struct shm_ctx *c)
{
    shm_off m;
    CHECK_EQ(shm_map_new(c, &m), SHM_OK);
    return m;
}

static int store(struct shm_ctx *c, shm_off m, uint64_t key, struct shm_val v)
{
    struct shm_val old = {.tag = SHM_VAL_NONE};
    int e = shm_map_store(c, m, &key, sizeof key, &v, false, &old);
    shm_val_drop(c, &old);
    return e;
}

static uint64_t load(struct shm_ctx *c, shm_off m, uint64_t key)
{
    struct shm_val v;
    int e = shm_map_load(c, m, &key, sizeof key, &v);
    CHECK(e == SHM_OK || e == SHM_EAGAIN);
    return e == SHM_OK ? v_eat(c, &v) : UINT64_MAX;
}

static int count(void *arg, const uint8_t *key, uint32_t len, const struct shm_val *v)
{
    (void)key;
    (void)v;
    CHECK_EQ(len, 8);
    ++*(uint64_t *)arg;
    return 0;
}

static void test_a_map_that_grows_keeps_all_it_has(void)
{
    struct shm_ctx c;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    shm_off m = map_new(&c);
    uint64_t n = 0, key = 3;
    struct shm_val v = v_int(99), old;
    CHECK_EQ(load(&c, m, 1), UINT64_MAX);
    CHECK_EQ(shm_map_delete(&c, m, &key, sizeof key, &old), SHM_EAGAIN);
    for (uint64_t i = 0; i < 1000; i++) {
        CHECK_EQ(store(&c, m, i, i % 2 ? v_big(&c, i) : v_int(i)), SHM_OK);
        CHECK_EQ(store(&c, m, i, i % 3 ? v_big(&c, i) : v_int(i)), SHM_EAGAIN);
    }
    CHECK_SEGMENT(&c);
    for (uint64_t i = 0; i < 1000; i++)
        CHECK_EQ(load(&c, m, i), i);
    CHECK_EQ(shm_map_store(&c, m, &key, sizeof key, &v, true, &old), SHM_EAGAIN);
    CHECK_EQ(v_eat(&c, &old), 3);
    for (key = 0; key < 1000; key += 2) {
        CHECK_EQ(shm_map_delete(&c, m, &key, sizeof key, &old), SHM_OK);
        CHECK_EQ(v_eat(&c, &old), key);
    }
    CHECK_EQ(shm_map_each(&c, m, count, &n), 0);
    CHECK_EQ(n, 500);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, m);
    CHECK_QUIET(&c);
    shm_mexit(&c);
    h_seg_end(&c);
}

struct traffic {
    shm_off m;
    _Atomic uint64_t first;
};

static void storm(struct shm_ctx *c, int i, void *arg)
{
    struct traffic *t = arg;
    for (uint64_t k = 0; k < 2000; k++) {
        struct shm_val v = v_int(k), old;
        uint64_t own = (uint64_t)(i + 1) << 32 | k, all = k;
        CHECK_EQ(store(c, t->m, own, v_big(c, own)), SHM_OK);
        CHECK_EQ(load(c, t->m, own), own);
        int e = shm_map_store(c, t->m, &all, sizeof all, &v, true, &old);
        if (e == SHM_OK)
            add_rlx(&t->first, 1);
        else
            CHECK_EQ(v_eat(c, &old), k);
        if (k % 2) {
            CHECK_EQ(shm_map_delete(c, t->m, &own, sizeof own, &old), SHM_OK);
            CHECK_EQ(v_eat(c, &old), own);
        }
    }
}

static void test_many_store_and_delete_and_each_key_has_one_first(void)
{
    struct shm_ctx c;
    struct traffic *t = h_shared(sizeof *t);
    uint64_t n = 0;
    h_seg(&c, (struct shm_opts){0});
    CHECK_EQ(shm_minit(&c, SHM_M_M0), SHM_OK);
    t->m = map_new(&c);
    h_ms(4, storm, t);
    CHECK_EQ(t->first, 2000);
    CHECK_EQ(shm_map_each(&c, t->m, count, &n), 0);
    CHECK_EQ(n, 2000 + 4 * 1000);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, t->m);
    CHECK_QUIET(&c);
    shm_mexit(&c);
    h_seg_end(&c);
    munmap(t, sizeof *t);
}

H_MAIN(T(test_a_map_that_grows_keeps_all_it_has),
       T(test_many_store_and_delete_and_each_key_has_one_first))
