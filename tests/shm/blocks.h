/* blocks.h — for tests of what lies in the heap: a segment with one M, what is live, and objects
 * that can be counted. */
#ifndef BLOCKS_H
#define BLOCKS_H

#include "harness.h"

#include <sys/stat.h>

static H_UNUSED void seg_with_m(struct shm_ctx *c, uint64_t heap_bytes)
{
    h_seg(c, (struct shm_opts){.heap_bytes = heap_bytes});
    CHECK_EQ(shm_minit(c, SHM_M_M0), SHM_OK);
}

static H_UNUSED struct shm_heap_stats stats(struct shm_ctx *c)
{
    struct shm_heap_stats s;
    shm_heap_stats(c, &s);
    return s;
}

struct census {
    uint64_t blocks[3]; /* by state */
};

static H_UNUSED void count_block(void *arg, shm_off off, const struct shm_blk *b)
{
    struct census *n = arg;
    (void)off;
    CHECK(b->state <= 2);
    n->blocks[b->state]++;
}

static H_UNUSED struct census census(struct shm_ctx *c)
{
    struct census n = {0};
    CHECK(shm_heap_each(c, count_block, &n));
    return n;
}

/* The bytes that the heap says it has; the kernel's count of the whole object must agree. */
static H_UNUSED uint64_t backed(struct shm_ctx *c)
{
    struct stat st;
    CHECK_EQ(fstat(c->fd, &st), 0);
    uint64_t heap = stats(c).committed, all = (uint64_t)st.st_blocks * 512;
    static uint64_t outside, since; /* bytes of the object that are not the heap's; which object */
    if (since != c->hdr->start_ns) {
        since = c->hdr->start_ns;
        outside = all - heap;
    }
    CHECK_EQ(all - heap, outside);
    return heap;
}

static H_UNUSED shm_off new_obj(struct shm_ctx *c, uint32_t refs)
{
    shm_off off;
    CHECK_EQ(shm_alloc(c, sizeof(struct shm_obj), &off), SHM_OK);
    struct shm_obj *o = shm_at(c, off);
    shm_obj_init(o, SHM_OBJ_USER, refs);
    return off;
}

static H_UNUSED uint32_t refs(struct shm_ctx *c, shm_off obj)
{
    return shm_refs(shm_at(c, obj));
}

#endif
