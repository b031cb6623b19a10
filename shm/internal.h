/* internal.h — for the .c files of shm only: failpoints and small helpers that are no one's API.
 *
 * FAILPOINT("area.name") stands before each store that matters. In a build with SHM_FAILPOINTS it
 * asks failpoint_hit(), which a test arms to die exactly there; in a release build it is nothing. */
#ifndef SHM_INTERNAL_H
#define SHM_INTERNAL_H

#include "shm.h"
#include <errno.h>
#include <string.h>
#include <time.h>

#ifdef SHM_FAILPOINTS
void shm_failpoint_hit(const char *name);
#define FAILPOINT(name) shm_failpoint_hit(name)
#else
#define FAILPOINT(name) ((void)0)
#endif

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Parts of shm_seg_create and shm_mexit that belong to the file that owns the structure. */
uint64_t shm_code_table_bytes(void);      /* code.c: reserved for the whole table */
uint64_t shm_code_first_bytes(void);      /* code.c: of it, what is needed from the start */
void shm_handles_drop(struct shm_ctx *c); /* handle.c: gives back all that this M's Python holds */
void shm_heap_flush(struct shm_ctx *c);   /* heap.c: this M's free blocks, to everybody */

/* sched.c, for sysmon.c: wakes one idle M if a P is idle; anyway: though somebody spins already. */
bool shm_wakeone(struct shm_ctx *c, bool anyway);
bool shm_anyidle(struct shm_ctx *c);                     /* an idle P and an idle M */
void shm_leaveidle(struct shm_ctx *c, uint32_t now_state); /* idle -> now_state, counted */

/* xorshift64*: the M's own random numbers (steal order). */
static inline uint64_t ctx_rand(struct shm_ctx *c)
{
    uint64_t x = c->rng;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    c->rng = x;
    return x * 0x2545F4914F6CDD1DULL;
}

#endif
