/* test_bytes.c — values and continuations, and the handles in them (shm/bytes.c). */
#include "blocks.h"

static void test_a_value_of_up_to_15_bytes_needs_no_block(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    uint8_t bytes[100];
    for (int i = 0; i < 100; i++)
        bytes[i] = (uint8_t)i;
    for (uint32_t len = 0; len <= sizeof bytes; len++) {
        struct shm_val v, w;
        uint32_t n;
        CHECK_EQ(shm_val_make(&c, &v, bytes, len, NULL, 0), SHM_OK);
        CHECK_EQ(stats(&c).live_blocks, len > 15);
        CHECK(memcmp(shm_val_bytes(&c, &v, &n), bytes, len) == 0);
        CHECK_EQ(n, len);
        CHECK_EQ(shm_val_copy(&c, &w, &v), SHM_OK);
        shm_val_drop(&c, &v);
        CHECK(memcmp(shm_val_bytes(&c, &w, &n), bytes, len) == 0);
        CHECK_EQ(n, len);
        shm_val_drop(&c, &w);
        CHECK(shm_val_bytes(&c, &w, &n) == NULL);
        CHECK_EQ(stats(&c).live_blocks, 0);
    }
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_handles_in_a_value_are_counted_copied_and_given_back(void)
{
    struct shm_ctx c;
    seg_with_m(&c, 0);
    shm_off a = new_obj(&c, 2), b = new_obj(&c, 1);
    uint64_t h[] = {SHM_HANDLE(SHM_OBJ_USER, a), SHM_HANDLE(SHM_OBJ_USER, b)};
    for (uint32_t len = 0; len < 200; len += 13) {
        struct shm_val v, w;
        uint8_t bytes[200] = {0};
        CHECK_EQ(shm_val_make(&c, &v, bytes, len, h, 2), SHM_OK);
        CHECK_EQ(v.tag, SHM_VAL_HEAP);
        CHECK_EQ(refs(&c, a), 3);
        CHECK_EQ(refs(&c, b), 2);
        CHECK_EQ(shm_val_copy(&c, &w, &v), SHM_OK);
        CHECK_EQ(refs(&c, a), 4);
        CHECK_EQ(refs(&c, b), 3);
        shm_val_drop(&c, &v);
        CHECK_EQ(refs(&c, a), 3);
        shm_val_drop(&c, &w);
        CHECK_EQ(refs(&c, a), 2);
        CHECK_EQ(refs(&c, b), 1);
        CHECK_EQ(stats(&c).live_blocks, 2);
    }
    shm_off cont;
    CHECK_EQ(shm_cont_make(&c, &cont, "frames", 6, h, 2), SHM_OK);
    shm_obj_unref(&c, b); /* the last of b is the block's */
    CHECK_EQ(stats(&c).live_conts, 1);
    CHECK(memcmp(shm_at(&c, cont), "frames", 6) == 0);
    shm_publish(&c, cont);
    shm_cont_drop(&c, cont, 6);
    CHECK_EQ(stats(&c).live_conts, 0);
    CHECK_EQ(refs(&c, a), 2);
    CHECK_EQ(stats(&c).live_blocks, 1);
    CHECK_EQ(shm_cont_make(&c, &cont, "frames", 6, h, 1), SHM_OK);
    shm_obj_unref(&c, a);
    shm_obj_unref(&c, a);
    shm_publish(&c, cont);
    shm_cont_drop(&c, cont, 6);
    CHECK_EQ(stats(&c).live_conts, 0);
    CHECK_EQ(stats(&c).live_blocks, 0);
    shm_mexit(&c);
    h_seg_end(&c);
}

static void test_other_bytes_go_into_the_same_block_only_if_they_would_get_one_of_its_size(void)
{
    struct shm_ctx c;
    struct shm_g g = {.cont_off = 0};
    uint8_t bytes[200] = {1, 2, 3};
    uint32_t n;
    seg_with_m(&c, 0);
    shm_off a = new_obj(&c, 1), off;
    uint64_t h[] = {SHM_HANDLE(SHM_OBJ_USER, a)};
    CHECK_EQ(shm_gcont_take(&c, &g), 0);
    CHECK_EQ(shm_cont_make(&c, &off, "frames", 6, h, 1), SHM_OK);
    shm_gcont_set(&c, &g, off, 6);
    CHECK_EQ(shm_blk(&c, off)->state, 2);
    CHECK_EQ(shm_gcont_take(&c, &g), off); /* this M's: if it dies, garbage */
    CHECK_EQ(shm_blk(&c, off)->state, 1);
    CHECK_EQ(g.cont_off, 0);
    CHECK(!shm_cont_rewrite(&c, off, bytes, 200));
    CHECK(!shm_cont_rewrite(&c, off, bytes, 40000));
    CHECK(shm_cont_rewrite(&c, off, bytes, 9));
    CHECK(memcmp(shm_at(&c, off), bytes, 9) == 0);
    CHECK(shm_bytes_handles(&c, off, &n)[0] == h[0]);
    CHECK_EQ(n, 1);
    CHECK_EQ(refs(&c, a), 2); /* one of them the block's all the time */
    shm_gcont_set(&c, &g, off, 9);
    shm_gcont_drop(&c, &g);
    CHECK_EQ(refs(&c, a), 1);
    shm_obj_unref(&c, a);
    CHECK_EQ(stats(&c).live_blocks, 0);
    CHECK_EQ(stats(&c).live_conts, 0);
    shm_mexit(&c);
    h_seg_end(&c);
}

H_MAIN(T(test_a_value_of_up_to_15_bytes_needs_no_block),
       T(test_handles_in_a_value_are_counted_copied_and_given_back),
       T(test_other_bytes_go_into_the_same_block_only_if_they_would_get_one_of_its_size))
