/* idle.pml — shm/idle.c: the idle dance with wake debts, and the note of shm/lock_futex.c.
 *
 * MS workers share PS Ps. A thread without a ring (X: M0, the keeper, a thread that is no M) makes Gs
 * runnable in the global queue. One G does not end before all others have run: it computes, or waits in
 * a system call and has given its M's P away. Gs are counted, not told apart: what comes out of a queue
 * is runq.pml's.
 *
 * HOLDS
 *   INV work-conservation: that Ms sleep for ever while a G is queued is never reached, without any help
 *       of the keeper.
 *   With -DKEEPER a G may make another runnable, to runnext and the ring. Then work may wait on the P of
 *       the one that computes, and the keeper has to see to it: when nobody else moves, its tick
 *       always finds whom to wake, and a G is executed before the next.
 *   With -DDEATH X, or the last worker of several, may be killed before any step. After the reap all
 *       of this holds for those that live.
 *
 * ABSTRACTED. Queues are numbers (`glob`: the global and the batch queue); a G comes out in one
 * step, and a P's words are looked at in one. Spinning takes as many looks as you like, and
 * one may always go to sleep instead. No timers, no M0 (its nap ends by itself), no deadlock look.
 * MEMORY ORDER. One total order, as the steps of the dance have in C (seq_cst, tag: idle-dance). The
 * hints of pay() and may_spin() are relaxed there: late ones are among the interleavings here, torn
 * ones do not exist.
 *
 * MUTATIONS
 *   1 idle(): the last look (I3) comes before it says that it is idle (I2)
 *   2 resetspinning(): no look after F1
 *   3 shm_handoffp(): no look after the P is put back (golang/go #45867)
 *   4 queue(): looks for an idle P and a spinner before the G is in the queue
 *   5 KEEPER: the tick does not count the runnext of a P that runs
 *   6 DEATH: the reaper wakes only whose note it has set itself
 */
#ifndef MS
#define MS 2
#endif
#ifndef PS
#define PS 2
#endif
#ifndef OUTSIDE
#if defined(DEATH) || defined(KEEPER)
#define OUTSIDE 1 /* Gs that X makes runnable */
#else
#define OUTSIDE 2
#endif
#endif
#ifndef INSIDE
#define INSIDE 2 /* KEEPER: Gs that a G makes runnable while it runs */
#endif
#ifndef PAY_AT
#define PAY_AT 2 /* 4 in idle.c */
#endif
#ifndef MUTATE
#define MUTATE 0
#endif
#define NONE 255
#define BIT(i) (1 << (i))
#define X MS /* who is no worker */

mtype = { BUSY, SPINNING, IDLE };
byte idle_p, idle_m, glob; /* struct shm_hdr: bits, bits, runq_size */
byte pstat[PS];            /* struct shm_p: M + 1, 0 idle */
byte ring[PS], debt[PS];
bool next[PS];
mtype spinning[MS] = BUSY; /* struct shm_m */
byte note[MS];             /* 0 clear, 1 set, 2 somebody sleeps */
bool asleep[MS];           /* in the kernel, on the note */
byte outside = OUTSIDE, inside = INSIDE;
byte hand[MS + 1];   /* Gs that are runnable and in no queue: named in inflight[] */
bool runs[MS];       /* curg */
bool hogged;
byte executed, seen; /* seen: at the keeper's last tick */
byte victim = NONE;
bool dead, reaped;

#define QUEUED (glob + ring[0] + next[0] + (PS > 1 -> ring[PS - 1] + next[PS - 1] : 0))
#if MS == 1
#define INHAND (hand[0] + hand[X])
#define RUNS runs[0]
#elif MS == 2
#define INHAND (hand[0] + hand[1] + hand[X])
#define RUNS (runs[0] + runs[1])
#else
#define INHAND (hand[0] + hand[1] + hand[2] + hand[X])
#define RUNS (runs[0] + runs[1] + runs[2])
#endif
#define NOTHING (QUEUED + INHAND == 0 && !outside)
#define OVER (NOTHING && RUNS == 0)

/* ---- waking ----------------------------------------------------------------------------------- */

/* shm_notewakeup(), shm_notewakeup_anyway() */
inline notewakeup(m, anyway)
{
#ifdef DEATH
    atomic { was = note[m] == 2 || anyway; note[m] = 1 }
    atomic { asleep[m] = asleep[m] && !was; was = false; m = 0 }
#else
    atomic { asleep[m] = asleep[m] && note[m] != 2; note[m] = 1; m = 0 }
#endif
}

/* shm_wakeone() up to the claim: `m`, MS nobody */
inline look_for_m(anyway)
{
    atomic { m = (idle_p -> (anyway -> MS : 0) : MS + 1) } /* S2 */
    do /* S3, one M after the other */
    :: atomic { m < MS && (m == me || spinning[m] != SPINNING) -> m++ } /* own: not a step */
    :: atomic { m < MS && m != me && spinning[m] == SPINNING -> m = MS + 1; break }
    :: atomic { m == MS -> bits = idle_m; m = 0; break } /* S4 */
    :: atomic { m > MS -> break }
    od;
    do
    :: atomic { m < MS && (bits & BIT(m)) && spinning[m] == IDLE -> spinning[m] = SPINNING; break }
    :: atomic { m < MS && (bits & BIT(m)) && spinning[m] != IDLE -> m++ }
    :: atomic { m < MS && !(bits & BIT(m)) -> m++ }
    :: atomic { m >= MS -> m = MS; break }
    od;
    bits = 0
}

inline wakeone(anyway)
{
    look_for_m(anyway);
    if
    :: m < MS -> notewakeup(m, false)
    :: else -> m = 0
    fi
}

/* shm_anywork(): `work` */
inline anywork()
{
    atomic { work = glob > 0; i = (work -> PS : 0) }
    do
    :: atomic { i < PS && (ring[i] || (pstat[i] == 0 && next[i])) -> work = true; i = PS }
    :: atomic { i < PS && !(ring[i] || (pstat[i] == 0 && next[i])) -> i++ }
    :: atomic { i == PS -> i = 0; break }
    od
}

inline pay_if_work()
{
    anywork();
    if
    :: work -> work = false; wakeone(false)
    :: else
    fi
}

/* ---- P ---------------------------------------------------------------------------------------- */

inline takep()
{
    atomic { bits = idle_p; i = 0 }
    do
    :: atomic { i < PS && !(bits & BIT(i)) -> i++ }
    :: atomic { i < PS && (bits & BIT(i)) && pstat[i] -> i++ }
    :: atomic { i < PS && (bits & BIT(i)) && !pstat[i] -> pstat[i] = me + 1; p = i; i = 0; bits = 0 }
        idle_p = idle_p & ~BIT(p);
        break
    :: atomic { i == PS -> i = 0; bits = 0; break }
    od
}

inline putp()
{
    idle_p = idle_p | BIT(p);
    atomic { pstat[p] = 0; p = NONE } /* I1 */
}

/* ---- an M ------------------------------------------------------------------------------------- */

#define GOT r = true; hand[me]++

/* find(): r */
inline find()
{
    if
    :: atomic { next[p] -> next[p] = false; GOT } /* shm_runqget() */
    :: atomic { !next[p] && ring[p] -> ring[p]--; GOT }
    :: atomic { !next[p] && !ring[p] -> i = 0 }
        if
        :: atomic { glob -> glob--; GOT } /* from_list() */
        :: atomic { !glob }
            do /* steal() */
            :: atomic { i < PS && i != p && ring[i] -> ring[i]--; GOT; break }
            :: atomic { i < PS && i != p && !ring[i] && next[i] -> next[i] = false; GOT; break }
            :: atomic { i < PS && i != p && pstat[i] && next[i] && !hogged -> i++ } /* it went */
            :: atomic { i < PS && (i == p || (!ring[i] && !next[i])) -> i++ }
            :: atomic { i == PS -> break }
            od
        fi;
        i = 0
    fi
}

inline resetspinning()
{
    spinning[me] = BUSY; /* F1 */
#if MUTATE != 2
    pay_if_work() /* F2 */
#endif
}

inline pay()
{
    if
    :: spinning[me] == SPINNING -> resetspinning(); debt[p] = 0
    :: else ->
        atomic { i = ring[p] + next[p] + glob; work = i >= 2 || (i == 1 && debt[p]) }
        if
        :: work -> wakeone(false); atomic { i = 0; work = false }
        :: else
        fi;
        atomic { debt[p] = i; i = 0 }
    fi
}

/* A G that runs makes another runnable: shm_ready(), queue() */
inline ready()
{
    atomic { /* shm_runqput(next) */
        if
        :: next[p] -> ring[p]++
        :: else -> next[p] = true
        fi;
        hand[me]--;
        i = debt[p] + 1
    }
    if
    :: i >= PAY_AT -> wakeone(false); i = 0
    :: else
    fi;
    atomic { debt[p] = i; i = 0 }
}

inline handoffp()
{
    putp();
#if MUTATE != 3
    pay_if_work()
#endif
    /* No idle M: the keeper starts one. Here: this one comes back. */
}

/* something() */
inline last_look()
{
    if
    :: idle_p -> anywork()
    :: else
    fi
}

/* idle(), leave_idle() */
inline idle()
{
    note[me] = 0; /* shm_noteclear() */
    if
    :: p != NONE -> putp() /* I1 */
    :: else
    fi;
#if MUTATE == 1
    last_look();
#endif
    idle_m = idle_m | BIT(me); /* I2 */
    spinning[me] = IDLE;
#if MUTATE != 1
    last_look(); /* I3 */
#endif
    if
    :: work -> /* I4 */
        atomic {
            work = false;
            if
            :: spinning[me] == IDLE -> spinning[me] = SPINNING
            :: else
            fi
        }
    :: else -> /* I5: shm_notetsleep() */
        do
        :: atomic { note[me] != 1 -> note[me] = 2; asleep[me] = true } /* the kernel compares */
            if
            :: !asleep[me]
            :: atomic { OVER && asleep[me] -> goto end }
            fi
        :: atomic { note[me] == 1 -> break }
        od;
        atomic {
            if
            :: spinning[me] == IDLE -> spinning[me] = BUSY
            :: else
            fi
        }
    fi;
    idle_m = idle_m & ~BIT(me)
}

proctype worker(byte me)
{
    byte p = NONE, i, m, bits;
    bool r, work, was;
    {
    top:
        do
        :: true ->
            if
            :: p == NONE -> takep()
            :: else
            fi;
            if
            :: p != NONE -> find()
            :: else
            fi;
            if
            :: r ->
                pay();
                atomic { hand[me]--; runs[me] = true; executed++ } /* shm_execute() */
                do
#ifdef KEEPER
                :: atomic { inside -> inside--; hand[me]++ } ready()
#endif
#ifndef DEATH
                :: atomic { !hogged -> hogged = true }
                    if
#if PS > 1
                    :: true /* computes */
#endif
#if PS == 1 || defined(LARGE)
                    :: idle_m -> handoffp() /* waits in a system call */
                    :: !idle_m -> hogged = false; break
#endif
                    fi;
                    atomic { NOTHING && RUNS == 1 -> break }
#endif
#if defined(DEATH) || defined(LARGE)
                :: break
#else
                :: hogged -> break /* the first is the one that stays */
#endif
                od;
                atomic { r = false; runs[me] = false }
            :: else ->
                if
                :: p != NONE -> spinning[me] = SPINNING /* spin() */
                :: idle()
                fi
            fi
        od
    } unless { dead && victim == me };
end:
    skip
}

/* A thread without a ring makes Gs runnable: queue() */
proctype outsider()
{
    byte me = X, i, m, bits;
    bool work, was;
    {
        do
        :: atomic { outside -> outside--; hand[X]++ }
#if MUTATE == 4
            look_for_m(false);
            atomic { glob++; hand[X]-- } /* shm_globrunqput() */
            if
            :: m < MS -> notewakeup(m, false)
            :: else -> m = 0
            fi
#else
            atomic { glob++; hand[X]-- } /* shm_globrunqput() */
            wakeone(false)
#endif
        :: atomic { !outside -> break }
        od
    } unless { dead && victim == X }
}

#ifdef KEEPER
/* tick() of shm/sysmon.c, when nobody else moves */
proctype keeper()
{
    byte me = X, i, m, bits;
    bool work, was;
end:
    do
    :: timeout ->
        if
        :: OVER -> break
        :: else ->
            atomic { assert(executed > seen || seen == 0); seen = executed }
#if MUTATE == 5
            anywork();
#else
            work = QUEUED > 0; /* of a P that stands: runnext too */
#endif
            if
            :: work && idle_p -> look_for_m(true); assert(m < MS); notewakeup(m, false)
            :: else
            fi;
            work = false
        fi
    od
}
#endif

#ifdef DEATH
/* shm_reap() */
proctype keeper()
{
    byte me = X, i, m, bits;
    bool work, was;
    if
    :: victim = X
#if MS > 1
    :: victim = MS - 1
#endif
    fi;
    dead = true;
    atomic { /* the running one ends */
        if
        :: victim == X -> outside = 0
        :: else -> runs[victim] = false
        fi
    }
    do /* shm_nowhere_queue() */
    :: hand[victim] -> atomic { glob++; hand[victim]-- } wakeone(false)
    :: else -> break
    od;
    if
    :: victim < MS ->
        do /* give_p() */
        :: i < PS && pstat[i] == victim + 1 ->
            debt[i] = 0;
            idle_p = idle_p | BIT(i);
            pstat[i] = 0;
            i++
        :: i < PS && pstat[i] != victim + 1 -> i++
        :: else -> i = 0; break
        od;
        idle_m = idle_m & ~BIT(victim); /* clear_slot() */
        spinning[victim] = BUSY
    :: else
    fi;
    do
    :: i < MS && i != victim -> m = i; notewakeup(m, MUTATE != 6); i++
    :: i < MS && i == victim -> i++
    :: else -> i = 0; break
    od;
    anywork();
    if
    :: work -> wakeone(true)
    :: else
    fi
}
#endif

init
{
    byte i;
    atomic {
        do
        :: i < PS -> idle_p = idle_p | BIT(i); i++
        :: else -> i = 0; break
        od;
        do
        :: i < MS -> run worker(i); i++
        :: else -> i = 0; break
        od;
        run outsider();
#if defined(KEEPER) || defined(DEATH)
        run keeper()
#endif
    }
}
