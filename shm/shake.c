/* shake.c — a schedule shaker: makes the orders likely that are hardly ever seen.
 *
 * Most of what can go wrong between Ms needs one of them to stand still for microseconds at one
 * place: between a claim and the ready, between a status and the queue, after the wait is armed and
 * before the parking M has let go. With hdr->shake (MPGORT_DEBUG=shake=SEED) an M sometimes does
 * stand still there: it yields its processor, spins, sleeps, or finds a preempt request.
 *
 * WHERE. shm_shake(c) stands at such places, with a comment that says which two acts it stands
 * between. Some are under a lock: others wait for it a little longer. A place costs a test of a
 * word of the ctx, so they are in every build: what a user's own program does under another order
 * can be seen, too. Rejected: every FAILPOINT, of which a park passes a dozen; and a build of its
 * own, which nobody would run.
 *
 * HOW OFTEN changes: a place acts one time in 1 << mood, and the mood lasts for some hundreds of
 * places. So an M is quick for a while and slow for a while beside others; even noise would only
 * make all of them slower. Each M has its own generator, of the seed and its slot. The same seed is
 * not the same schedule (the machine has its part in it), but it repeats what this file does: what
 * fails under a seed mostly fails under it again. */
#include "internal.h"

#include <sched.h>

#define MOODS 8         /* 1 << 2 .. 1 << 9 */
#define MOOD_PLACES 255 /* a mood lasts for up to so many */
#define SLEEP_NS 50000

void shm_shake_begin(struct shm_ctx *c)
{
    uint64_t seed = c->hdr->shake;
    /* Multiplied apart: neighbours among seeds and slots are to have nothing in common. */
    c->shake = seed ? (seed * 0x9E3779B97F4A7C15ULL ^ c->m1 * 0xBF58476D1CE4E5B9ULL) | 1 : 0;
    c->shake_left = 0;
}

void shm_shake_now(struct shm_ctx *c)
{
    uint64_t x = c->shake; /* xorshift: 0 is the one state it never comes to */
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    c->shake = x;
    if (c->shake_left == 0) {
        c->shake_left = 1 + (x >> 40 & MOOD_PLACES);
        c->shake_mood = 2 + (x >> 32) % MOODS;
    }
    c->shake_left--;
    if (x >> 8 & ((1U << c->shake_mood) - 1))
        return;
    switch (x >> 24 & 7) {
    case 0:
        nanosleep(&(struct timespec){.tv_nsec = 1 + (long)(x >> 32) % SLEEP_NS}, NULL);
        return;
    case 1:
    case 2:
        sched_yield();
        return;
    case 3:
        if (c->p)
            store_rlx(&c->p->preempt, 1); /* as the keeper would: a level, cleared by schedule() */
        return;
    default: /* up to some us, the time of a hand-over */
        for (uint64_t n = x >> 32 & 255; n > 0; n--)
            cpu_relax();
    }
}
