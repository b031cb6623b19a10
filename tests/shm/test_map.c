/* Tests of map.c: what is stored is found, in a map that grows, by many, and by a corpse's
 * successor. */
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
    o_seg(&c);
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
    o_seg_end(&c);
}

static void test_cas_replaces_what_is_the_same_bytes_and_nothing_else(void)
{
    struct shm_ctx c;
    o_seg(&c);
    shm_off m = map_new(&c), obj = map_new(&c), other = map_new(&c);
    uint64_t key = 3;
    struct shm_val small = v_int(1), big = v_big(&c, 1), ref = v_ref(&c, 1, obj),
                   ref2 = v_ref(&c, 1, other), copy, old;
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &small, &small, &old), SHM_EAGAIN); /* no key */
    CHECK_EQ(store(&c, m, key, v_int(1)), SHM_OK);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &big, &big, &old), SHM_EAGAIN);
    CHECK_EQ(shm_val_copy(&c, &copy, &big), SHM_OK);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &small, &copy, &old), SHM_OK);
    CHECK_EQ(v_eat(&c, &old), 1);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &small, &small, &old), SHM_EAGAIN);
    CHECK_EQ(shm_val_copy(&c, &copy, &ref), SHM_OK);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &big, &copy, &old), SHM_OK);
    shm_val_drop(&c, &old);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &ref2, &small, &old), SHM_EAGAIN);
    CHECK_EQ(shm_map_cas(&c, m, &key, sizeof key, &ref, &small, &old), SHM_OK);
    shm_val_drop(&c, &old);
    CHECK_EQ(load(&c, m, key), 1);
    CHECK_EQ(shm_map_load(&c, m, &key, sizeof key, NULL), SHM_OK);
    shm_val_drop(&c, &big);
    shm_val_drop(&c, &ref);
    shm_val_drop(&c, &ref2);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, m);
    shm_obj_unref(&c, obj);
    shm_obj_unref(&c, other);
    o_seg_end(&c);
}

/* ---- deaths ---------------------------------------------------------------------------------- */

static const char *const points[] = {
    "lock.named",      "lock.taken",  "lock.released", "map.grow.linked", "map.replace.published",
    "undo.noted",      "undo.stored", "undo.commit",   "undo.committed",  "heap.alloc.taken",
    "heap.free.stored"};

struct scene {
    const char *point;
    uint32_t nth;
    shm_off m;
};

/* The one that dies: each kind of change, to values that are blocks. */
static void act(struct shm_ctx *c, int i, void *arg)
{
    struct scene *s = arg;
    uint64_t key = 2;
    struct shm_val was, v = v_big(c, 22), old;
    (void)i;
    CHECK_EQ(shm_map_load(c, s->m, &key, sizeof key, &was), SHM_OK);
    h_die_at(s->point, s->nth);
    CHECK_EQ(store(c, s->m, 8, v_big(c, 8)), SHM_OK); /* it grows */
    CHECK_EQ(store(c, s->m, 1, v_big(c, 11)), SHM_EAGAIN);
    CHECK_EQ(shm_map_cas(c, s->m, &key, sizeof key, &was, &v, &old), SHM_OK);
    CHECK_EQ(v_eat(c, &old), 2);
    key = 3;
    CHECK_EQ(shm_map_delete(c, s->m, &key, sizeof key, &old), SHM_OK);
    CHECK_EQ(v_eat(c, &old), 3);
    h_die_at("", 0);
    shm_val_drop(c, &was);
}

/* Whether it has died of that, and was reaped: false, it does not pass that point so often. */
static bool dies(struct shm_ctx *c, void (*fn)(struct shm_ctx *, int, void *), struct scene *s)
{
    int status = h_wait(h_fork(fn, 0, s));
    bool died = WIFSIGNALED(status);
    CHECK(died || status == 0);
    if (died)
        shm_reap(c, &c->mtab[1], status);
    CHECK_SEGMENT(c);
    return died;
}

static bool die_at(const char *point, uint32_t nth)
{
    struct shm_ctx c;
    struct scene *s = h_shared(sizeof *s);
    l_seg(&c);
    *s = (struct scene){.point = point, .nth = nth, .m = map_new(&c)};
    for (uint64_t k = 0; k < 8; k++)
        CHECK_EQ(store(&c, s->m, k, v_big(&c, k)), SHM_OK);
    bool died = dies(&c, act, s);
    /* What is done is done in order, whole. */
    bool added = load(&c, s->m, 8) == 8, stored = load(&c, s->m, 1) == 11,
         swapped = load(&c, s->m, 2) == 22, deleted = load(&c, s->m, 3) == UINT64_MAX;
    CHECK(added || load(&c, s->m, 8) == UINT64_MAX);
    CHECK(stored ? added : load(&c, s->m, 1) == 1);
    CHECK(swapped ? stored : load(&c, s->m, 2) == 2);
    CHECK(deleted ? swapped : load(&c, s->m, 3) == 3);
    for (uint64_t k = 4; k < 8; k++)
        CHECK_EQ(load(&c, s->m, k), k);
    shm_obj_unref(&c, s->m);
    l_seg_end(&c);
    munmap(s, sizeof *s);
    return died;
}

static void test_a_death_in_a_change_leaves_it_done_or_not_begun(void)
{
    uint32_t deaths = 0;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        for (uint32_t nth = 1; nth <= (uint32_t)H_N(12, 1000) && die_at(points[i], nth); nth++)
            deaths++;
    CHECK(deaths > 40);
}

static void pickle(struct shm_ctx *c, int i, void *arg)
{
    struct scene *s = arg;
    (void)i;
    h_die_at(s->point, s->nth);
    CHECK_EQ(shm_pickled(c, &s->m), SHM_OK);
    h_die_at("", 0);
}

static bool die_pickling_at(const char *point, uint32_t nth)
{
    struct shm_ctx c;
    struct scene *s = h_shared(sizeof *s);
    shm_off first, again;
    l_seg(&c);
    *s = (struct scene){.point = point, .nth = nth};
    bool died = dies(&c, pickle, s);
    CHECK_EQ(shm_pickled(&c, &first), SHM_OK);
    CHECK(died || first == s->m);
    CHECK_EQ(shm_pickled(&c, &again), SHM_OK);
    CHECK_EQ(first, again);
    CHECK_EQ(shm_refs(shm_at(&c, first)), 1);
    CHECK_SEGMENT(&c);
    c.hdr->pickled = 0;
    shm_obj_unref(&c, first);
    l_seg_end(&c);
    munmap(s, sizeof *s);
    return died;
}

static void test_the_map_of_what_was_pickled_is_made_once_whoever_dies_of_it(void)
{
    static const char *const at[] = {"handle.move.named", "handle.move.counted",
                                     "handle.move.stored", "handle.move.given"};
    uint32_t deaths = 0;
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        for (uint32_t nth = 1; die_pickling_at(at[i], nth); nth++)
            deaths++;
    for (size_t i = 0; i < sizeof points / sizeof *points; i++)
        for (uint32_t nth = 1; die_pickling_at(points[i], nth); nth++)
            deaths++;
    CHECK(deaths > 10);
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
    o_seg(&c);
    t->m = map_new(&c);
    h_ms(4, storm, t);
    CHECK_EQ(t->first, 2000);
    CHECK_EQ(shm_map_each(&c, t->m, count, &n), 0);
    CHECK_EQ(n, 2000 + 4 * 1000);
    CHECK_SEGMENT(&c);
    shm_obj_unref(&c, t->m);
    o_seg_end(&c);
    munmap(t, sizeof *t);
}

H_MAIN(T(test_a_map_that_grows_keeps_all_it_has),
       T(test_cas_replaces_what_is_the_same_bytes_and_nothing_else),
       T(test_a_death_in_a_change_leaves_it_done_or_not_begun),
       T(test_the_map_of_what_was_pickled_is_made_once_whoever_dies_of_it),
       T(test_many_store_and_delete_and_each_key_has_one_first))
