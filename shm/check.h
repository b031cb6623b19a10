/* check.h — what the files of the checker share: check.c (the walk, the blocks), check_sched.c (Ms,
 * Ps, queues, goroutines), check_objects.c (what goroutines wait on and hold). Nobody else includes
 * it; what is everybody's is shm_check(). */
#ifndef SHM_CHECK_H
#define SHM_CHECK_H

#include "internal.h"

enum {               /* where a G was met */
       AT_QUEUE = 1, /* ring, runnext, global, batch or home queue */
       AT_FREE = 2,  /* magazine or central list */
       AT_HAND = 4,  /* m->inflight */
       AT_CURG = 8,
       AT_WAITQ = 16,   /* its own sudog, in a channel's or join's queue */
       AT_HEAP = 32,    /* its own sudog, in a timer heap */
       AT_NORMALQ = 64, /* of AT_QUEUE: not the batch queue and not at home */
       AT_BATCHQ = 128, /* of AT_QUEUE: the batch queue */
};

struct block {
    shm_off off;
    uint64_t usable;
    uint32_t handles; /* words at its end */
    uint32_t found;   /* references to it, if it is an object */
    uint8_t state, marked, object, registry;
};

struct check {
    struct shm_ctx *c;
    bool quiet;
    void (*out)(void *, const char *);
    void *arg;
    int breaches;
    struct block *blocks;
    size_t nblocks, cap, conts, warm;
    uint8_t *at; /* per g slot */
    uint64_t ng;
    uint64_t gs;  /* with SHM_GF_COUNTED */
    size_t *todo; /* marked blocks whose contents are to be followed */
    size_t ntodo;
};

#define LLU(x) ((unsigned long long)(x))

/* check.c */
/* A breach. */
void check_say(struct check *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The live block that begins at off; NULL: there is none. */
struct block *check_block_at(const struct check *k, shm_off off);
/* Something in the segment names n bytes at off: what they hold will be followed. NULL: there is no
 * such live block. */
struct block *check_mark(struct check *k, shm_off off, uint64_t n, const char *what);
/* The same of an object; counted: one of the references in obj->refs. */
void check_mark_object(struct check *k, shm_off off, bool counted, const char *what);
void check_mark_value(struct check *k, const struct shm_val *v, const char *what);
/* What stays to the program's end. */
void check_kept(struct check *k, shm_off off, uint64_t bytes, const char *what);
/* check_sched.c */
void check_lock(struct check *k, const shm_lockword *l, const char *what);
/* r was met `where`. NULL: the table has no such slot. */
const struct shm_g *check_meet(struct check *k, shm_gref r, uint8_t where, const char *what);
void check_header(struct check *k);
void check_m(struct check *k, uint32_t i);
void check_p(struct check *k, uint32_t i);
void check_g(struct check *k, uint64_t i);
/* check_objects.c: what a block marked as an object holds */
void check_object(struct check *k, shm_off off);

#endif
