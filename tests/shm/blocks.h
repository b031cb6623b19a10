/* blocks.h — for tests of what lies in the heap: a segment with one M, what is live, and objects
 * that can be counted. */
#ifndef BLOCKS_H
#define BLOCKS_H

#include "harness.h"

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
