/* test_handle.c — counted objects, and what an M holds of them (shm/handle.c). */
#include "blocks.h"

static void test_an_m_that_leaves_gives_back_every_handle_it_holds(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    shm_off a = new_obj(&c, 1), b = new_obj(&c, 0);
    uint32_t slot[100];
    shm_obj_init(shm_at(&c, b), SHM_OBJ_USER, 100);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(shm_handle_hold(&c, b, &slot[i]), SHM_OK);
    for (int i = 0; i < 100; i++)
        for (int k = 0; k < i; k++)
            CHECK(slot[i] != slot[k]);
    for (int i = 0; i < 100; i += 2)
        shm_handle_release(&c, c.m1, slot[i]);
    CHECK_EQ(refs(&c, b), 50);
    CHECK_EQ(c.m->handles_n, 50);
    uint32_t cap = c.m->handles_cap;
    for (int i = 0; i < 50; i++) {
        shm_obj_ref(&c, a);
        CHECK_EQ(shm_handle_hold(&c, a, &slot[0]), SHM_OK);
    }
    CHECK_EQ(c.m->handles_cap, cap);
    shm_mexit(&c);
    struct shm_ctx again;
    shm_ctx_copy(&again, &c);
    CHECK_EQ(shm_minit(&again, SHM_M_M0), SHM_OK);
    CHECK_EQ(refs(&again, a), 1);
    CHECK_EQ(stats(&again).live_blocks, 1); /* b went with its last handle, and so did the table */
    h_seg_end(&c);
}

static void test_the_first_handles_need_no_room(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 4 << 20);
    shm_off a = new_obj(&c, 1), block;
    uint32_t slot[SHM_HANDLES_OWN];
    shm_obj_init(shm_at(&c, a), SHM_OBJ_USER, SHM_HANDLES_OWN + 1);
    uint64_t had = stats(&c).live_blocks;
    for (int i = 0; i < SHM_HANDLES_OWN * 3 / 4; i++)
        CHECK_EQ(shm_handle_hold(&c, a, &slot[i]), SHM_OK);
    CHECK_EQ(stats(&c).live_blocks, had);
    for (uint32_t size = 4 << 20; size >= 16; size /= 2)
        while (shm_alloc(&c, size, &block) == SHM_OK)
            ;
    for (int i = SHM_HANDLES_OWN * 3 / 4; i < SHM_HANDLES_OWN; i++)
        CHECK_EQ(shm_handle_hold(&c, a, &slot[i]), SHM_OK);
    CHECK_EQ(shm_handle_hold(&c, a, &slot[0]), SHM_ENOMEM);
    CHECK_EQ(refs(&c, a), SHM_HANDLES_OWN + 1);
    h_seg_end(&c);
}

static void ref_unref(struct shm_ctx *c, int i, void *arg)
{
    shm_off obj = *(shm_off *)arg;
    (void)i;
    for (int r = 0; r < 10000; r++) {
        shm_obj_ref(c, obj);
        shm_obj_unref(c, obj);
    }
    shm_obj_unref(c, obj);
}

static void test_the_last_of_many_ms_frees_the_object_once(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    shm_off obj = new_obj(&c, 4);
    h_ms(4, ref_unref, &obj);
    CHECK_EQ(stats(&c).live_blocks, 0);
    shm_mexit(&c);
    h_seg_end(&c);
}

H_MAIN(T(test_an_m_that_leaves_gives_back_every_handle_it_holds),
       T(test_the_first_handles_need_no_room), T(test_the_last_of_many_ms_frees_the_object_once))
