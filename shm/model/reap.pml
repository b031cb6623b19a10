/* reap.pml — a transaction, a death at any step of it, the reap, and the death of the reaper:
 * shm/undo.c, shm/lock_futex.c (held[], lock, unlock, shm_lock_reap), shm/sudog.c (claim, win, park),
 * shm/chan.c, shm/sched.c (shm_ready), shm/reap.c.
 *
 * A channel with room for one value. M 1 does one of: it sends value 1, to G which waits or into the
 * ring; it receives for G, which runs on it and may have to park. M 2 sends value 2. M 1 may be
 * killed before any step; keeper 3 reaps it; keeper 3 may be killed before any step; keeper 4 reaps
 * keeper 3, then M 1 again.
 *
 * HOLDS, when nothing moves any more
 *   the lock is free, no log has a note, no name is left of the dead
 *   INV one-place: value 2 is in the ring or with G; value 1 too, or it was M 1's own at its death
 *   G waits, linked and armed; or it is runnable, in one queue, with a value and ok; or it ran on M 1
 *       when that died, and has ended: nothing leads to it
 *   and at any time: no G is queued twice, no wait is ended twice, status moves are those of g.c
 *
 * ABSTRACTED. A store of a value, of a queue's first word, ... is one word each. The run queue is one bit
 * per G, and the look around of nowhere.c one step (runq.pml has it). G is alone in recvq. A sleeping
 * waiter of the lock is one that waits.
 * MEMORY ORDER. A process dies between two of its instructions, so one order is what there is for what
 * it stored before; between the living, all is under the lock.
 *
 * MUTATIONS
 *   1 note(): the word is stored before the note is counted
 *   2 shm_reap_locks(): the locks are given back before the waits are whole again
 *   3 shm_ready(): the name is taken back before the queue has the G
 *   4 shm_tx_rollback(): a note is counted off before the old value is back
 *   5 shm_claim_named(): the name comes after the claim
 *   6 shm_park_commit(): the name comes after the move to waiting
 */
#ifndef MUTATE
#define MUTATE 0
#endif
#define LOG 5

/* Words that change by tx */
#define QFIRST 0 /* ch->recvq_first: G's sudog, or none */
#define LINKED 1 /* its `linked` */
#define VALUE 2  /* g->value */
#define OK 3     /* g->ok */
#define QCOUNT 4
#define BLOCK 5  /* value 1's: allocated by M 1, published, freed */
#define MINE 1
#define PUBLISHED 2
#define FREED 3
byte word[6];
byte slot;                              /* the ring's; plain */
byte lock;                              /* 0 free, else the M */

mtype = { running, waiting, runnable, ended };
mtype = { none, armed, claimed };
mtype status = waiting, state = armed;  /* of G: g->status, g->wait */
byte owner, claimer;
bool queued, waitkind;                  /* waitkind: plain, after waitobj */

/* struct shm_m, 1 .. 4 */
byte undo_n[5], undo_word[5 * LOG], undo_old[5 * LOG];
bool held[5], ready[5], park[5];        /* inflight READY and PARK name G or nobody */
bool dead[5], reaped[5];
bool got;                               /* M 1's G received without a wait: its hands */

/* ---- undo.c ----------------------------------------------------------------------------------- */

inline tx_store(w, v)
{
    atomic { undo_word[me * LOG + undo_n[me]] = w; undo_old[me * LOG + undo_n[me]] = word[w] }
#if MUTATE == 1
    word[w] = v;
    undo_n[me]++
#else
    undo_n[me]++;
    word[w] = v
#endif
}

inline tx_commit() { undo_n[me] = 0 }

inline rollback(d)
{
    do
    :: undo_n[d] ->
#if MUTATE == 4
        undo_n[d]--;
        word[undo_word[d * LOG + undo_n[d]]] = undo_old[d * LOG + undo_n[d]]
#else
        word[undo_word[d * LOG + undo_n[d] - 1]] = undo_old[d * LOG + undo_n[d] - 1];
        undo_n[d]--
#endif
    :: else -> break
    od
}

/* ---- lock_futex.c ----------------------------------------------------------------------------- */

inline take_lock()
{
    held[me] = true;
    atomic { lock == 0 -> lock = me }
}

inline give_lock()
{
    atomic { assert(lock == me); lock = 0 }
    held[me] = false
}

inline lock_reap(d)
{
    if
    :: held[d] ->
        atomic {
            if
            :: lock == d -> lock = 0
            :: else
            fi
        }
        held[d] = false
    :: else
    fi
}

/* ---- sudog.c, sched.c ------------------------------------------------------------------------- */

/* shm_claim_named(), lock held: mine */
inline claim_named()
{
#if MUTATE != 5
    ready[me] = true;
#endif
    atomic {
        mine = state == armed;
        if
        :: mine -> state = claimed; claimer = me
        :: else
        fi
    }
#if MUTATE == 5
    ready[me] = true;
#endif
    if
    :: !mine -> ready[me] = false
    :: else
    fi
}

/* shm_ready() */
inline make_ready()
{
    ready[me] = true;
    atomic { assert(status == waiting); status = runnable }
#if MUTATE == 3
    ready[me] = false;
#endif
    atomic { assert(!queued); queued = true }
#if MUTATE != 3
    ready[me] = false
#endif
}

/* shm_sudog_remove() of G, in a tx */
inline remove()
{
    tx_store(QFIRST, 0);
    tx_store(LINKED, 0)
}

/* shm_chan_trysend() */
inline send(v)
{
    take_lock();
    do
    :: word[QFIRST] ->
        claim_named();
        if
        :: mine ->
            if
            :: v == 1 -> tx_store(BLOCK, PUBLISHED)
            :: else
            fi;
            tx_store(VALUE, v);
            remove();
            tx_store(OK, 1);
            tx_commit();
            break
        :: else -> remove(); tx_commit() /* stale */
        fi
    :: !word[QFIRST] && word[QCOUNT] == 0 ->
        slot = v;
        if
        :: v == 1 -> tx_store(BLOCK, PUBLISHED)
        :: else
        fi;
        tx_store(QCOUNT, 1);
        tx_commit();
        break
    :: !word[QFIRST] && word[QCOUNT] -> no_room = true; break
    od;
    give_lock();
    if
    :: mine -> make_ready()
    :: else
    fi
}

/* shm_chan_recv_park() of G */
inline recv_park()
{
    take_lock();
    if
    :: word[QCOUNT] ->
        tx_store(QCOUNT, 0);
        atomic { undo_n[me] = 0; got = true } /* tx_commit() */
    :: else ->
        waitkind = true;
        tx_store(LINKED, 1);
        tx_store(QFIRST, 1);
        tx_commit();
#if MUTATE != 6
        park[me] = true;
#endif
        atomic { assert(status == running); status = waiting }
#if MUTATE == 6
        park[me] = true;
#endif
        atomic { state = armed; claimer = 0 }
        park[me] = false
    fi;
    give_lock()
}

/* ---- reap.c ----------------------------------------------------------------------------------- */

#define CLAIMED(d) (status == waiting && state == claimed && claimer == d)

/* shm_reap_locks() */
inline reap_locks(d)
{
    rollback(d);
#if MUTATE == 2
    lock_reap(d);
#endif
    if /* arm() */
    :: park[d] && status == waiting && state == none -> state = armed
    :: else
    fi;
    if /* rearm() */
    :: ready[d] && CLAIMED(d) && word[LINKED] -> atomic { state = armed; claimer = 0 }
    :: else
    fi;
#if MUTATE != 2
    lock_reap(d)
#endif
}

/* finish_wakes(), shm_nowhere_queue() */
inline finish(d)
{
    if
    :: ready[d] && CLAIMED(d) -> make_ready()
    :: else
    fi;
    if
    :: ready[d] && status == runnable ->
        ready[me] = true; /* shm_requeue() of what is nowhere */
        atomic {
            if
            :: !queued && !(ready[2] && !dead[2]) -> queued = true
            :: else
            fi
        }
        ready[me] = false
    :: else
    fi;
    ready[d] = false;
    park[d] = false
}

/* end_gs(): take(), drop_parts(), end_g() */
inline end_gs(d)
{
    if
    :: status == running && owner == d ->
        if
        :: waitkind -> /* shm_sudog_unlink() */
            take_lock();
            if
            :: word[LINKED] -> remove(); tx_commit()
            :: else
            fi;
            give_lock();
            waitkind = false
        :: else
        fi;
        status = ended
    :: else
    fi
}

inline reap(d)
{
    reap_locks(d);
    finish(d);
    end_gs(d);
    if /* shm_heap_reap() */
    :: d == 1 && word[BLOCK] == MINE -> word[BLOCK] = FREED
    :: else
    fi;
    reaped[d] = true
}

proctype M1()
{
    byte me = 1;
    bool mine, no_room;
    {
        if
        :: status == waiting -> word[BLOCK] = MINE; send(1)
        :: status == running -> recv_park()
        fi
    } unless { dead[1] }
}

proctype M2()
{
    byte me = 2;
    bool mine, no_room;
    send(2);
    assert(!no_room)
}

proctype keeper(byte me)
{
    bool mine, no_room;
end:
    (me == 3 && dead[1]) || (me == 4 && dead[3]);
    {
        if
        :: me == 4 -> reap(3)
        :: else
        fi;
        reap(1)
    } unless { me == 3 && dead[3] }
}

active proctype killer()
{
end:
    dead[1] = true;
    if
    :: dead[3] = true
    :: true
    fi
}

active proctype at_the_end()
{
end:
    atomic {
        timeout ->
        assert(reaped[1]);
        assert(lock == 0 && !held[1] && !held[2] && !held[3] && !held[4]);
        assert(undo_n[1] + undo_n[2] + undo_n[3] + undo_n[4] == 0);
        assert(!ready[1] && !ready[2] && !ready[3] && !ready[4] && !park[1]);
        assert(word[QFIRST] == word[LINKED]);
        if
        :: status == waiting -> assert(state == armed && word[LINKED] && !queued && !word[QCOUNT])
        :: status == runnable -> assert(queued && !word[LINKED] && word[OK] && word[VALUE])
        :: else -> assert(status == ended && !queued && !word[LINKED])
        fi;
        /* value 2 */
        assert((word[QCOUNT] && slot == 2) + (word[VALUE] == 2) + got == 1);
        /* value 1 */
        assert((word[QCOUNT] && slot == 1) + (word[VALUE] == 1) == (word[BLOCK] == PUBLISHED))
    }
}

init
{
    atomic {
        if
        :: word[QFIRST] = 1; word[LINKED] = 1; waitkind = true /* G waits */
        :: status = running; state = none; owner = 1           /* G runs on M 1 */
        fi;
        run M1();
        run M2();
        run keeper(3);
        run keeper(4)
    }
}
