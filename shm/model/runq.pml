/* runq.pml — shm/runq.c: a ring with its runnext, overflow into the global queue, stealing.
 *
 * M 0 owns P 0 and makes N Gs runnable, to runnext or to the tail as it likes, so that the ring
 * overflows; in between it may run one. M 1 owns P 1, takes from its ring, from the global queue and
 * from P 0, and makes one G runnable itself, where M 0 may steal it. Both go on until all have run.
 *
 * HOLDS
 *   each G comes out of the queues once, and none is lost: all are executed
 *   INV nothing-in-hand: at every step a runnable G is in a queue, or named in inflight[]
 *   INV linked-once: no G enters the global list while it is in it
 * With -DDEATH M 0 may be killed before any step. The keeper gives back its lock and looks around as
 * nowhere.c does (gather, look_around, sort_out) while M 1 goes on; then M 1 steals from P 0 as it is.
 *   INV moved-counts: what the keeper queues was nowhere; and still none is lost
 *
 * ABSTRACTED. The transaction on the global list is one step (reap.pml has the steps of one); moves of a
 * status are one step (park.pml). Indices are bytes that do not wrap here. runnext_stays() may say
 * yes or no. Without LARGE the keeper reads an array in one step. Left out: the batch queue, home queues
 * with their `turning`, that two Ms move Gs while one is reaped, that several are.
 * MEMORY ORDER. All steps are in one total order here. In C a slot is relaxed, published by the release of
 * runqtail, consumed by the acq_rel CAS of runqhead; a name is stored with release before the CAS that
 * takes the G. That these suffice is not shown here; TSan runs tests/shm/test_runq.c.
 *
 * MUTATIONS
 *   1 runqput: the tail is stored before the slot
 *   2 runqputslow: the batch is linked before the CAS that takes it out of the ring
 *   3 runqsteal: the names go before the tail shows the loot
 *   4 runqget: the head is stored, not moved by CAS
 *   5 DEATH: look_around() does not look at what was moved meanwhile (e, f)
 *   6 DEATH: look_around() does not look at the names again (d)
 */
#ifndef R
#define R 4 /* SHM_RUNQ */
#endif
#ifndef MAKES
#define MAKES 1 /* Gs that M 0 makes runnable; M 1 makes one */
#endif
#ifndef MUTATE
#define MUTATE 0
#endif
#ifndef LOOKS
#define LOOKS 1
#endif
#ifndef TRIES
#define TRIES 1
#endif
#define B (R / 2 + 1) /* names of a batch */
#define N (R + 2 + MAKES)
#define GS (N + 1)    /* G 0: none */
#define KEEPER 2
#define SLOT(p, i) slot[(p) * R + (i) % R]
#define BATCH(m, i) batch[(m) * B + (i)]
#define BIT(g) (1 << (g))

byte head[2], tail[2], next[2], slot[2 * R];            /* struct shm_p */
byte lock, list[N + 1], listn;                          /* struct shm_hdr: sched_lock, runq */
byte ready[3], kicked[2], got[2], batch[2 * B];         /* struct shm_m: inflight[] */
byte moved[2];                                          /* struct shm_m */
short all, runnable, taken;                                   /* struct shm_g: a bit per G */
short listed;                                            /* schedlink is in use: a bit per G */
bool dead, reaped;                                      /* M 0 */

#define SHOWN(m, g, i) (head[m] + i < tail[m] && SLOT(m, head[m] + i) == g)
#define QUEUED(m, g) \
    (next[m] == g || SHOWN(m, g, 0) || SHOWN(m, g, 1) || SHOWN(m, g, 2) || SHOWN(m, g, 3))
#define NAMED(m, g)                                                                      \
    (ready[m] == g || kicked[m] == g || got[m] == g || BATCH(m, 0) == g || BATCH(m, 1) == g || \
     BATCH(m, 2) == g)
#define LOST(g)                                                                     \
    ((runnable & BIT(g)) && !(taken & BIT(g)) && !(listed & BIT(g)) && !QUEUED(0, g) && \
     !QUEUED(1, g) && !NAMED(0, g) && !NAMED(1, g) && ready[KEEPER] != g)
#if R != 4 || N > 8
#error "SHOWN, NAMED and nothing_in_hand are written for this size"
#endif

active proctype nothing_in_hand()
{
end:
    atomic {
        LOST(1) || LOST(2) || LOST(3) || LOST(4) || LOST(5) || LOST(6) || LOST(7) || LOST(8) ->
        assert(false)
    }
}

/* What is beyond head and tail is stale; 0 keeps the number of states down. */
inline clear(p, k)
{
    i = 0;
    do
    :: i < k -> SLOT(p, h + i) = 0; i++
    :: else -> i = 0; break
    od
}

/* ---- global queue ----------------------------------------------------------------------------- */

inline take_lock() { atomic { lock == 0 -> lock = me + 1 } }

/* gqput(): the set `bat`, in order of number */
inline globrunqput()
{
    take_lock();
    atomic {
        assert((listed & bat) == 0); /* INV linked-once */
        listed = listed | bat;
        i = 1;
        do
        :: i < GS && (bat & BIT(i)) -> list[listn] = i; listn++; i++
        :: i < GS && !(bat & BIT(i)) -> i++
        :: else -> break
        od;
        i = 0
    }
    lock = 0
}

/* gqget(): r, named in GOT; of two, the second goes to the ring, if that is empty */
inline globrunqget()
{
    if
    :: listn == 0
    :: else ->
        take_lock();
        if
        :: listn == 0
        :: else ->
            atomic { r = list[0]; got[me] = r; n = 1; t = tail[me] }
            if
            :: true
            :: listn > 1 && head[me] == t ->
                atomic { n = 2; BATCH(me, 0) = list[1] }
                SLOT(me, t) = list[1]
            fi;
            atomic { /* the transaction */
                listn = listn - n;
                i = 0;
                do
                :: i < n -> listed = listed & ~BIT(list[i]); i++
                :: else -> break
                od;
                i = 0;
                do
                :: i < listn -> list[i] = list[i + n]; i++
                :: else -> break
                od;
                do
                :: i < listn + n -> list[i] = 0; i++
                :: else -> break
                od;
                i = 0
            }
        fi;
        lock = 0;
        if
        :: n == 2 -> tail[me] = t + 1; moved_unname()
        :: else
        fi;
        atomic { n = 0; t = 0 }
    fi
}

/* ---- ring and runnext ------------------------------------------------------------------------- */

inline moved_unname()
{
    moved[me]++;
    do
    :: i < B -> BATCH(me, i) = 0; i++
    :: else -> i = 0; break
    od
}

/* shm_runqput(), runqputslow(): r */
inline runqput(to_next)
{
    if
    :: to_next ->
        old = next[me];
        do
        :: kicked[me] = old;
            atomic { /* cas_acqrel(&p->runnext) */
                ok = next[me] == old;
                if
                :: ok -> next[me] = r
                :: else -> old = next[me]
                fi
            }
            if
            :: ok -> break
            :: else
            fi
        od;
        atomic { r = old; old = 0 }
    :: else
    fi;
    do
    :: r == 0 -> break
    :: else ->
        atomic { h = head[me]; t = tail[me] } /* the tail: own word */
        if
        :: t - h < R ->
#if MUTATE == 1
            tail[me] = t + 1;
            SLOT(me, t) = r;
#else
            SLOT(me, t) = r;
            tail[me] = t + 1;
#endif
            r = 0
        :: else -> /* runqputslow */
            do
            :: i < B - 1 -> atomic { BATCH(me, i) = SLOT(me, h + i); bat = bat | BIT(SLOT(me, h + i)); i++ }
            :: else -> break
            od;
            atomic { BATCH(me, B - 1) = r; bat = bat | BIT(r); i = 0 }
#if MUTATE == 2
            globrunqput();
#endif
            atomic { /* cas_acqrel(&p->runqhead) */
                ok = head[me] == h;
                if
                :: ok -> head[me] = h + B - 1; clear(me, B - 1)
                :: else
                fi
            }
            if
            :: ok ->
#if MUTATE != 2
                globrunqput();
#endif
                moved_unname();
                r = 0
            :: else ->
                do
                :: i < B -> BATCH(me, i) = 0; i++
                :: else -> i = 0; break
                od
            fi;
            bat = 0
        fi
    od;
    kicked[me] = 0;
    atomic { h = 0; t = 0; ok = false }
}

/* shm_runqget(): r, named in GOT */
inline runqget()
{
    r = next[me];
    if
    :: r ->
        got[me] = r;
        atomic { /* cas_acqrel(&p->runnext) */
            if
            :: next[me] == r -> next[me] = 0
            :: else -> r = 0
            fi
        }
    :: else
    fi;
    do
    :: r -> break
    :: else ->
        h = head[me];
        if
        :: h == tail[me] -> got[me] = 0; break
        :: else ->
            atomic { r = SLOT(me, h); got[me] = r } /* own store */
#if MUTATE == 4
            ok = head[me] == h;
#endif
            atomic { /* cas_acqrel(&p->runqhead) */
#if MUTATE != 4
                ok = head[me] == h;
#endif
                if
                :: ok -> head[me] = h + 1; SLOT(me, h) = 0
                :: else -> r = 0
                fi;
                ok = false
            }
        fi
    od;
    h = 0
}

/* ---- stealing --------------------------------------------------------------------------------- */

/* runqgrab(), shm_runqsteal(): r, named in GOT; the ring is empty. One attempt. */
inline runqsteal(v)
{
    h = head[v];
    atomic { t = tail[v]; n = t - h; n = n - n / 2; t = 0 }
    if
    :: n == 0 ->
        if
        :: next[v] -> /* stealnext, and runnext_stays() says yes */
            old = next[v];
            BATCH(me, 0) = old;
            atomic { /* cas_acqrel(&victim->runnext) */
                if
                :: old && next[v] == old -> next[v] = 0; n = 1; SLOT(me, tail[me]) = old
                :: else
                fi;
                old = 0
            }
        :: true
        fi
    :: n > R / 2 -> n = 0 /* head and tail are not of one moment */
    :: else ->
        do
        :: i < n ->
            old = SLOT(v, h + i);
            atomic { BATCH(me, i) = old; SLOT(me, tail[me] + i) = old; i++; old = 0 }
        :: else -> i = 0; break
        od;
        atomic { /* cas_acqrel(&victim->runqhead) */
            if
            :: head[v] == h -> head[v] = h + n; clear(v, n)
            :: else -> n = 0
            fi
        }
    fi;
    if
    :: n ->
        atomic { r = SLOT(me, tail[me] + n - 1); got[me] = r; SLOT(me, tail[me] + n - 1) = 0 }
#if MUTATE == 3
        moved_unname();
#endif
        if
        :: n > 1 -> tail[me] = tail[me] + n - 1
        :: else
        fi;
#if MUTATE != 3
        moved_unname();
#endif
        n = 0
    :: else ->
        do
        :: i < B -> BATCH(me, i) = 0; i++
        :: else -> i = 0; break
        od
    fi;
    h = 0
}

/* ---- who uses them ---------------------------------------------------------------------------- */

inline execute()
{
    atomic { /* shm_gclaim_runnable() */
        assert(!(taken & BIT(r)));
        taken = taken | BIT(r)
    }
    atomic { got[me] = 0; r = 0 }
}

/* The G that `g` counts becomes runnable: shm_ready(), queue() */
inline make(g)
{
    atomic { r = g; ready[me] = r }
    runnable = runnable | BIT(r);
    if
    :: ok = true
    :: ok = false
    fi;
    runqput(ok);
    ready[me] = 0
}

/* findrunnable() */
inline look(other)
{
    runqget();
    if
    :: r == 0 -> globrunqget()
    :: else
    fi;
    if
    :: r == 0 -> runqsteal(other)
    :: else
    fi;
    if
    :: r -> execute()
    :: else
    fi
}

/* M 0 makes the Gs g .. to and looks so many times, then it is busy. */
proctype owner(byte g; byte to; byte looks)
{
    byte me = 0, r, old, h, t, n, i;
    short bat;
    bool ok;
    {
        do
        :: g <= to -> make(g); g++
        :: looks -> look(1); looks--
        :: g > to && looks == 0 -> break
        od
    } unless { dead }
}

/* M 1 looks until all have run; DEATH: `tries` times before M 0 is reaped. */
proctype thief(byte g; byte tries)
{
    byte me = 1, r, old, h, t, n, i;
    short bat;
    bool ok;
    do
    :: g && taken -> make(g); g = 0
#ifdef DEATH
    :: tries -> look(0); tries--
    :: reaped -> tries = 0; look(0)
#else
    :: look(0)
#endif
    :: taken == all -> break
    od
}

#ifdef DEATH
#ifdef LARGE
#define LOOK /* word by word */
#else
#define LOOK atomic /* an array of words in one step */
#endif

proctype killer()
{
    dead = true
}

/* ---- nowhere.c ----------------------------------------------------------------------------------- */

inline met(g, set)
{
    if
    :: g && (names & BIT(g)) -> set = set | BIT(g)
    :: else
    fi
}

/* look_at_names(), of M 1 */
inline look_at_names()
{
    LOOK {
        met(ready[1], inhand);
        met(kicked[1], inhand);
        met(got[1], inhand);
        do
        :: i < B -> met(BATCH(1, i), inhand); i++
        :: else -> i = 0; break
        od
    }
}

/* look_at_ring(), from h to t */
inline look_at_ring(p)
{
    LOOK {
        do
        :: h < t -> met(SLOT(p, h), queued); h++
        :: else -> h = 0; t = 0; break
        od
    }
    met(next[p], queued)
}

proctype keeper()
{
    byte me = KEEPER, was, i, g, h, t, tail0, tail1;
    short names, queued, inhand, bat;
    bool still;
end:
    dead;
    atomic { /* shm_reap_locks() */
        if
        :: lock == 1 -> lock = 0
        :: else
        fi;
        /* gather() */
        names = BIT(ready[0]) | BIT(kicked[0]) | BIT(got[0]);
        i = 0;
        do
        :: i < B -> names = names | BIT(BATCH(0, i)); i++
        :: else -> break
        od;
        i = 0;
        names = names & runnable & ~taken & ~1
    }
    do
    :: names == 0 -> break
    :: else ->
        take_lock();
        atomic { queued = 0; inhand = 0; was = moved[1] } /* a */
        look_at_names();                                  /* b */
        h = head[1]; t = tail[1]; tail1 = t;              /* c; M 1's first: its loot comes after */
        look_at_ring(1);
        h = head[0]; t = tail[0]; tail0 = t;
        look_at_ring(0);
        queued = queued | (listed & names); /* sched_lock is held */
#if MUTATE != 6
        look_at_names();                                  /* d */
#endif
#if MUTATE != 5
        h = tail1; t = tail[1];                           /* e */
        look_at_ring(1);
        h = tail0; t = tail[0];
        look_at_ring(0);
#endif
#if MUTATE != 5
        still = moved[1] == was;                          /* f */
#else
        still = true;
#endif
        lock = 0;
        /* sort_out() */
        names = names & ~queued & ~taken;
        g = 1;
        do
        :: g < GS ->
            if
            :: still && (names & BIT(g)) && !(inhand & BIT(g)) && !(taken & BIT(g)) ->
                atomic {
                    /* truly nowhere */
                    assert(!(listed & BIT(g)));
                    ready[KEEPER] = g; /* shm_requeue() */
                    bat = BIT(g);
                    names = names & ~bat
                }
                globrunqput();
                ready[KEEPER] = 0
            :: else
            fi;
            g++
        :: else -> break
        od;
        atomic { g = 0; bat = 0; h = 0; t = 0; tail0 = 0; tail1 = 0 }
    od;
    atomic { /* its names are gone, its P is given back */
        ready[0] = 0; kicked[0] = 0; got[0] = 0;
        i = 0;
        do
        :: i < B -> BATCH(0, i) = 0; i++
        :: else -> break
        od;
        i = 0;
        all = runnable; /* what it has not made will not be */
        reaped = true
    }
}
#endif

init
{
    byte c, makes = MAKES, looks = LOOKS;
    atomic {
        /* P 0 as it is found: 1 or R Gs in its ring (LARGE: 0 to R), one as its runnext or none */
        do
        :: c < R -> c++; SLOT(0, c - 1) = c; tail[0] = c
#ifdef LARGE
        :: true -> break
#elif defined(DEATH)
        :: c == R - 1 -> makes = 0; break
        :: c == R -> looks = 0; break
#else
        :: c == 1 || c == R -> break
#endif
        od;
#if defined(LARGE) || !defined(DEATH)
        if
        :: c++; next[0] = c
        :: true
        fi;
#endif
        runnable = BIT(c + 1) - 2;
        all = BIT(c + makes + 1) - 2;
        run owner(c + 1, c + makes, looks);
#ifdef DEATH
        run killer();
        run keeper();
        run thief(0, TRIES);
#else
        all = all | BIT(c + makes + 1);
        run thief(c + makes + 1, 0);
#endif
        c = 0; makes = 0; looks = 0
    }
}
