/* claim.pml — one wait, several that would end it: a timer, a close, a cancel. shm/sudog.c (claim, win,
 * drain, unlink, shm_wait_abort), shm/chan.c, shm/select.c, shm/ticker.c (shm_timer_fire), shm/g.c
 * (shm_wait_claim).
 *
 * G waits WAITS times, each time on channel B alone (its own sudog) or on A and B (select: a sudog for
 * each). H waits on B once. B has room for one value; a timer sends FIRES values to it, when there is
 * room or a waiter. Somebody closes A. Somebody cancels G's wait, whichever it is then.
 *
 * HOLDS
 *   INV one-waker: each wait is ended once; who loses touches nothing of that G
 *   what ends it is what G finds: the value, the close (of A, by the case of A) or the cancel
 *   INV one-place: no value is lost or doubled: sent = received + in the ring
 *   INV chan-no-idle: at the end nobody waits on B while it has a value, nor on A, which is closed
 *   at the end of a wait none of G's sudogs is in a queue
 *
 * ABSTRACTED. A transaction under a lock is one step (reap.pml). G's M and H's run nothing else, so ready
 * is the move of the status (park.pml, runq.pml).
 * MEMORY ORDER. One total order; in C the claim is seq_cst and all else is under locks.
 *
 * MUTATIONS
 *   1 shm_sudog_claim(): believes `linked`, without a claim
 *   2 shm_select_done() leaves the losing sudogs in their queues
 *   3 shm_sudog_claim() gives up at the first stale sudog
 *   4 shm_wait_abort(): readied before it is unlinked
 *   5 shm_chan_recv_park(): the lock is given back between the last look and the sudog
 */
#ifndef WAITS
#define WAITS 2
#endif
#ifndef FIRES
#define FIRES 2
#endif
#ifndef MUTATE
#define MUTATE 0
#endif
#define G 0
#define H 1
#define NONE 9

mtype = { runnable, running, waiting };  /* g->status */
mtype = { none, armed, claimed };        /* g->wait */
mtype = { nothing, value, closed, cancelled };
mtype status[2] = running, state[2] = none, ok[2] = nothing;
byte epoch[2], values[2];                /* values: in g->value */
byte winner = NONE;                      /* of G's select block: the sudog */

/* Sudogs: 0 G's own, on B; 1 and 2 its cases of A and B; 3 H's, on B. */
bool linked[4];
byte sepoch[4];
#define OF(s) (s == 3 -> H : G)
bool qa;                                 /* A's recvq has sudog 1 */
byte qb[2] = NONE;                       /* B's recvq */
bool is_closed;
byte ring;                               /* values in B */
bool lock_a, lock_b;
byte sent, got, ended[2 * (WAITS + 2)];

inline lock(l) { atomic { !l -> l = true } }

/* In a transaction: shm_sudog_put(), shm_sudog_remove() on B */
inline put_b(s)
{
    linked[s] = true;
    if
    :: qb[0] == NONE -> qb[0] = s
    :: else -> qb[1] = s
    fi
}
inline remove_b(s)
{
    linked[s] = false;
    if
    :: qb[0] == s -> qb[0] = qb[1]; qb[1] = NONE
    :: else -> assert(qb[1] == s); qb[1] = NONE
    fi
}

/* shm_wait_claim() */
inline claim(g, e)
{
    atomic { mine = state[g] == armed && epoch[g] == e }
    if
    :: mine ->
        atomic {
            if
            :: state[g] == armed && epoch[g] == e -> state[g] = claimed; won(g)
            :: else -> mine = false
            fi
        }
    :: else
    fi
}
inline won(g)
{
    ended[2 * epoch[g] + g]++;
    assert(ended[2 * epoch[g] + g] == 1)
}

/* shm_ready() */
inline ready(g) { atomic { assert(status[g] == waiting); status[g] = runnable } }

/* shm_sudog_claim() on B, lock held: s, NONE */
inline sudog_claim()
{
    do
    :: qb[0] == NONE -> s = NONE; break
    :: else ->
        s = qb[0];
#if MUTATE == 1
        mine = true;
        atomic { won(OF(s)); state[OF(s)] = claimed }
#else
        claim(OF(s), sepoch[s]);
#endif
        if
        :: mine -> break
        :: else ->
            atomic { remove_b(s) }
#if MUTATE == 3
            s = NONE;
            break
#endif
        fi
    od;
    mine = false
}

/* A timer: shm_timer_fire(), as shm_chan_send_locked() */
proctype timer()
{
    byte s = NONE, n;
    bool mine;
    do
    :: n < FIRES ->
        lock(lock_b);
        sudog_claim();
        if
        :: s != NONE ->
            atomic { /* the transaction */
                values[OF(s)]++;
                ok[OF(s)] = value;
                remove_b(s);
                if
                :: s == 2 -> winner = s
                :: else
                fi;
                sent++
            }
        :: s == NONE && ring == 0 -> atomic { ring = 1; sent++ }
        :: s == NONE && ring == 1 /* a tick nobody has taken is not doubled */
        fi;
        lock_b = false;
        if
        :: s != NONE -> ready(OF(s))
        :: else
        fi;
        atomic { s = NONE; n++ }
    :: else -> break
    od
}

/* shm_chan_close(A), shm_sudog_drain() */
proctype closer()
{
    bool mine;
    lock(lock_a);
    is_closed = true;
    if
    :: qa ->
        claim(G, sepoch[1]);
        atomic {
            qa = false;
            linked[1] = false;
            if
            :: mine -> ok[G] = closed; winner = 1
            :: else
            fi
        }
    :: else
    fi;
    lock_a = false;
    if
    :: mine -> ready(G)
    :: else
    fi
}

/* shm_sudog_unlink(): from B alone, or by shm_select_unlink() */
inline unlink(sel)
{
    if
    :: sel -> lock(lock_a)
    :: else
    fi;
    lock(lock_b);
    atomic {
        if
        :: linked[1] -> linked[1] = false; qa = false
        :: else
        fi;
        if
        :: linked[0] -> remove_b(0)
        :: else
        fi;
        if
        :: linked[2] -> remove_b(2)
        :: else
        fi
    }
    lock_b = false;
    if
    :: sel -> lock_a = false
    :: else
    fi
}

/* shm_join_deliver() of join.c, shm_wait_abort(): once, at any wait */
proctype canceller()
{
    byte e;
    bool mine;
    do
    :: atomic { e = epoch[G]; mine = state[G] == armed }
        if
        :: mine && status[G] == waiting -> break
        :: !(mine && status[G] == waiting) -> goto done
        fi
    od;
    claim(G, e);
    if
    :: mine ->
#if MUTATE == 4
        ok[G] = cancelled;
        ready(G);
        unlink(true);
#else
        unlink(true);
        ok[G] = cancelled;
        ready(G)
#endif
    :: else
    fi;
done:
    skip
}

/* shm_park_commit() */
inline park_commit(g)
{
    atomic { assert(status[g] == running); status[g] = waiting }
    atomic { epoch[g]++; state[g] = armed }
}

proctype waiter()
{
    byte n;
    bool sel, there;
    do
    :: n == WAITS -> break
    :: n < WAITS ->
        atomic {
            n++;
            if
            :: sel = true
            :: sel = false
            fi
        }
        /* shm_select_park(), shm_chan_recv_park(): locks by ascending offset */
        if
        :: sel -> lock(lock_a)
        :: else
        fi;
        lock(lock_b);
        if
        :: sel && is_closed
        :: ring -> atomic { ring = 0; got++ }
        :: !ring && !(sel && is_closed) -> there = true
        fi;
#if MUTATE == 5
        lock_b = false;
        lock(lock_b);
#endif
        if
        :: there ->
            atomic { /* enqueue() */
                ok[G] = nothing;
                values[G] = 0;
                winner = NONE;
                if
                :: sel ->
                    sepoch[1] = epoch[G] + 1;
                    sepoch[2] = epoch[G] + 1;
                    linked[1] = true;
                    qa = true;
                    put_b(2)
                :: else -> sepoch[0] = epoch[G] + 1; put_b(0)
                fi
            }
            park_commit(G)
        :: else
        fi;
        lock_b = false;
        if
        :: sel -> lock_a = false
        :: else
        fi;
        if
        :: there ->
end:
            atomic { status[G] == runnable -> status[G] = running }
            if
            :: sel ->
#if MUTATE != 2
                unlink(true) /* shm_select_done() */
#endif
            :: else
            fi;
            atomic {
                assert(!linked[0] && !linked[1] && !linked[2]);
                assert(ok[G] != nothing && (values[G] == 1) == (ok[G] == value));
                assert(ok[G] != closed || (is_closed && winner == 1));
                assert(ok[G] != value || !sel || winner == 2);
                got = got + values[G];
                values[G] = 0
            }
        :: else
        fi;
        there = false
    od
}

/* H: shm_chan_recv_park() */
proctype other()
{
    lock(lock_b);
    if
    :: ring -> atomic { ring = 0; got++ } lock_b = false
    :: !ring ->
        atomic { sepoch[3] = epoch[H] + 1; put_b(3) }
        park_commit(H);
        lock_b = false;
end:
        atomic { status[H] == runnable -> status[H] = running }
        atomic { assert(ok[H] == value && values[H] == 1); got++; values[H] = 0 }
    fi
}

active proctype at_the_end()
{
end:
    atomic {
        timeout ->
        assert(sent == got + ring);
        assert(!lock_a && !lock_b);
        assert(status[G] == running || (status[G] == waiting && state[G] == armed && !ring));
        assert(status[H] == running || (status[H] == waiting && state[H] == armed && !ring));
        assert(!(qa && is_closed))
    }
}

init
{
    atomic {
        run timer();
        run closer();
        run canceller();
        run waiter();
        run other()
    }
}
