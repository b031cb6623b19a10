/* heap.h — what heap.c and runs.c share: the runs, and the sizes of the blocks in them. */
#ifndef SHM_HEAP_H
#define SHM_HEAP_H

#include "internal.h"

#define PAGE 4096ULL
#define RUN_HEAD 64

enum { RUN_FREE = 1, RUN_SPAN = 2, RUN_LARGE = 3 };

struct run {
    uint64_t pages;
    uint64_t kind_cls; /* RUN_* << 32 | class of a span */
    shm_off next;      /* of a free run: the next by address */
    uint64_t pad_[4];
    struct shm_blk blk; /* of a large block; its payload begins after the header */
};
static_assert(sizeof(struct run) == RUN_HEAD, "one line, and payloads of large blocks are aligned");

static inline struct run *run_at(const struct shm_ctx *c, shm_off off)
{
    return shm_at(c, off);
}
static inline uint64_t run_kind(const struct run *r)
{
    return r->kind_cls >> 32;
}

/* Of the blocks of each class, their headers included. */
static const uint16_t sizes[SHM_NCLASS] = {
    32,  48,   64,   80,   96,   112,  128,  160,  192,  256,   320,   416,   544,   704,
    928, 1216, 1600, 2112, 2784, 3680, 4864, 6432, 8512, 11264, 14912, 19744, 25600, 32768};

static inline uint64_t span_blocks(unsigned cls, uint64_t pages)
{
    return (pages * PAGE - RUN_HEAD) / sizes[cls];
}

/* A new span, which becomes this M's bump span of its class. */
SHM_MUSTUSE int shm_run_span(struct shm_ctx *c, uint64_t pages, unsigned cls);
/* A large block of this M's own. */
SHM_MUSTUSE int shm_run_large(struct shm_ctx *c, uint64_t pages, shm_off *off);
/* The run at `at`, a large block of this M's own, is free. */
void shm_run_free(struct shm_ctx *c, shm_off at);

#endif
