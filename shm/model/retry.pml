/* retry.pml — a goroutine with retries, whose M may die at any step, and its reaper too: what it
 * awaited is done once. shm/retry.c (shm_retry_take, _done, _leave, _give, _live), mpgort/_core/proc.c
 * (core_run_g, park_retry), shm/mutex.c (shm_cond_park), shm/reap.c (wait_after_all, arm, run_again).
 *
 * G does four awaits: 1 it receives v, 2 it sends v, 3 it waits on a Cond, which gives its mutex up, 4
 * it sends 9; then it ends. Continuation c: it stands before await c; 5: before its end. Ms 1 and 2
 * run it, whoever finds it in the queue. A peer that does not die sends it 1 and 2, by the ring, which
 * has room for one, or into its hands, and signals the Cond. M 1 may be killed before any step; keeper
 * 3 reaps it. With TWICE, 3 may be killed before any step, too: keeper 4 reaps it, then M 1 once more.
 *
 * HOLDS, when nothing moves any more
 *   G has ended with a value; it has sent 1 and 9, once each and in this order
 *   2 is in the ring; the mutex was given up once; no name is left of the dead
 *   and at any time: G goes on after a wait only when it was woken; INV one-truth: who brings it up
 *       finds a continuation where he looks for it
 * With LEFT=0 it may have died with M 1 instead, and has sent no more than that. With PREEMPT it may
 * give its P up after each await that was done at once.
 *
 * ABSTRACTED. A transaction is one step, and the locks go with the dead: that is reap.pml. A block is
 * its content; who owns it is in reap.pml, too. One lock for the channels and the Cond. The run queue is
 * one bit, and the look around of nowhere.c one step.
 * MEMORY ORDER. As in reap.pml.
 *
 * MUTATIONS
 *   1 shm_retry_done_(): the checkpoint moves in a transaction after that of the operation
 *   2 move(): the epoch is not noted
 *   3 shm_retry_live(): the epoch is not looked at
 *   4 shm_cond_park(): shm_retry_leave() after the transaction in which the mutex is given up
 *   5 shm_reap_locks(): without wait_after_all()
 *   6 shm_retry_give(): not a transaction
 *   7 shm_park_commit(): armed before it is waiting
 */
#ifndef MUTATE
#define MUTATE 0
#endif
#ifndef LEFT
#define LEFT 1
#endif
#define NO_EPOCH 15

mtype = { running, waiting, runnable, ended };
mtype = { none, armed, claimed };
mtype = { nowhere, recvq, condq };  /* sudog.linked */
mtype status = runnable, state = none, linked = nowhere;
byte owner, epoch, sudog_epoch;     /* of G */
byte cont = 1, value;               /* g->cont_off, g->value */
bool woken = true;                  /* g->ok */
byte y_cont, y_value, y_epoch = NO_EPOCH, left = LEFT; /* struct shm_retry */
bool queued = true, died;           /* died: how it has ended */

bool ring;                          /* the channel has a value */
byte slot;
byte sent, out[3];
bool givenup;                       /* the mutex */
byte lock;                          /* 0 free, else the M */

/* struct shm_m, 1 .. 4 */
bool got[5], ready[5], park[5];     /* inflight: G or nobody */
byte park_epoch[5];
bool dead[5], reaped;

#define LIVE (y_cont && (MUTATE == 3 || y_epoch == epoch))

inline take_lock() { atomic { lock == 0 -> lock = me } }
inline give_lock() { atomic { assert(lock == me); lock = 0 } }

/* ---- retry.c, in a tx ------------------------------------------------------------------------- */

/* move(): where g stands now, and with what */
inline move(v)
{
    assert(cont);
    y_cont = cont;
    y_value = v;
    if
    :: MUTATE != 2 -> y_epoch = epoch
    :: else
    fi;
    cont = 0
}

/* shm_retry_give() */
inline give(less)
{
#if MUTATE == 6
    y_epoch = NO_EPOCH;
    cont = y_cont;
    y_cont = 0;
    value = y_value;
    left = left - less
#else
    atomic {
        cont = y_cont;
        value = y_value;
        y_cont = 0;
        y_epoch = NO_EPOCH;
        left = left - less
    }
#endif
}

/* ---- an M ------------------------------------------------------------------------------------- */

/* shm_park_commit(), the lock held */
inline park_commit()
{
    atomic { park_epoch[me] = epoch + 1; park[me] = true }
#if MUTATE == 7
    atomic { epoch++; state = armed }
#endif
    atomic { assert(status == running); status = waiting }
#if MUTATE != 7
    atomic { epoch++; state = armed } /* the last store: the truth is in g */
#endif
    park[me] = false
}

/* park_retry(): from the checkpoint on, to a wait or the end */
inline go_on()
{
    do
    :: y_cont == 5 ->
        atomic { y_cont = 0; status = ended; break } /* the join has its value: told once, join.c */
    :: else ->
        assert(y_cont);
        cont = y_cont + 1; /* core_store(): the checkpoint is what is believed */
        take_lock();
        if
        :: y_cont == 1 && ring -> /* shm_chan_recv_locked() */
#if MUTATE == 1
            ring = false;
#endif
            atomic { ring = false; move(slot) }
        :: y_cont == 1 && !ring ->
            atomic { woken = false; sudog_epoch = epoch + 1; linked = recvq }
            park_commit();
            give_lock();
            break
        :: y_cont == 2 || y_cont == 4 -> /* shm_chan_send_locked() */
#if MUTATE == 1
            atomic { out[sent] = (y_cont == 2 -> y_value : 9); sent++ }
            atomic { move(0) }
#else
            atomic { out[sent] = (y_cont == 2 -> y_value : 9); sent++; move(0) }
#endif
        :: y_cont == 3 -> /* shm_cond_park() */
            assert(!givenup);
#if MUTATE == 4
            atomic { woken = false; sudog_epoch = epoch + 1; linked = condq; givenup = true }
            y_epoch = NO_EPOCH;
#else
            atomic { woken = false; sudog_epoch = epoch + 1; linked = condq; givenup = true; y_epoch = NO_EPOCH }
#endif
            park_commit();
            give_lock();
            break
        fi;
        give_lock();
#ifdef PREEMPT
        if
        :: true -> /* core_preempt_due(), shm_gosched() */
            give(0);
            ready[me] = true;
            atomic { assert(status == running); status = runnable }
            queued = true;
            ready[me] = false;
            break
        :: true
        fi
#endif
    od
}

proctype M(byte me)
{
    bool mine;
    {
end:
        do
        :: queued ->
            got[me] = true; /* INV nothing-in-hand */
            atomic { mine = queued; queued = false }
            atomic { /* shm_gclaim_runnable(): INV status-truth */
                mine = mine && status == runnable;
                if
                :: mine -> status = running; owner = me
                :: else
                fi
            }
            got[me] = false;
            if
            :: mine ->
                assert(woken);
                atomic { move(value); value = 0 } /* shm_retry_take() */
                go_on()
            :: else
            fi
        od
    } unless { dead[me] }
}

/* ---- the peer --------------------------------------------------------------------------------- */

/* The lock held, G linked: claimed, given v and readied; or stale and taken out (sudog.c) */
inline wake(v)
{
    atomic {
        mine = state == armed && sudog_epoch == epoch;
        linked = nowhere;
        if
        :: mine -> state = claimed; value = v; woken = true
        :: else
        fi
    }
    give_lock();
    if
    :: mine ->
        atomic { status == waiting -> status = runnable } /* casgstatus_slow() */
        queued = true
    :: else
    fi
}

active proctype peer()
{
    byte me = 5, v = 1;
    bool mine;
end:
    do
    :: v <= 2 && (!ring || linked == recvq) ->
        take_lock();
        if
        :: linked == recvq ->
            wake(v);
            if
            :: mine -> v++
            :: else
            fi
        :: linked != recvq && !ring -> atomic { slot = v; ring = true; v++ }; give_lock()
        :: else -> give_lock()
        fi
    :: v > 2 && linked == condq ->
        take_lock();
        if
        :: linked == condq -> wake(0)
        :: else -> give_lock()
        fi
    od
}

/* ---- reap.c ----------------------------------------------------------------------------------- */

inline lock_reap(d)
{
    atomic {
        if
        :: lock == d -> lock = 0
        :: else
        fi
    }
}

/* shm_reap_locks() */
inline reap_locks(d)
{
#if MUTATE != 5
    if /* wait_after_all() */
    :: status == running && owner == d && !LIVE && linked != nowhere && sudog_epoch == epoch + 1 ->
        atomic { park_epoch[d] = epoch + 1; park[d] = true }
        status = waiting
    :: else
    fi;
#endif
    if /* arm() */
    :: park[d] && status == waiting && epoch < park_epoch[d] -> atomic { epoch++; state = armed }
    :: else
    fi;
    lock_reap(d)
}

/* shm_nowhere_queue() */
inline queue_names(d)
{
    if
    :: (got[d] || ready[d]) && status == runnable ->
        ready[me] = true;
        atomic { /* what is nowhere; in a living hand: looked for again */
            status != runnable || queued || !(got[2] || ready[2]);
            if
            :: status == runnable && !queued -> queued = true
            :: else
            fi
        }
        ready[me] = false
    :: else
    fi;
    atomic { got[d] = false; ready[d] = false; park[d] = false }
}

/* end_gs(): take(), then run_again() or end_g() */
inline end_gs(d)
{
    if
    :: status == running && owner == d ->
        owner = me;
        if
        :: (LIVE && left) || (!LIVE && cont) ->
            if
            :: LIVE && linked != nowhere -> /* drop_parts() */
                take_lock();
                linked = nowhere;
                give_lock()
            :: else
            fi;
            if
            :: LIVE -> woken = true; give(1)
            :: else
            fi;
            ready[me] = true;
            atomic { assert(status == running); status = runnable }
            queued = true; /* shm_requeue() */
            ready[me] = false
        :: else ->
            assert(LIVE && LEFT == 0);
            atomic { died = true; y_cont = 0; status = ended }
        fi
    :: else
    fi
}

proctype keeper(byte me)
{
end:
    (me == 3 && dead[1]) || (me == 4 && dead[3]);
    {
        if
        :: me == 4 -> reap_locks(3); queue_names(3); end_gs(3)
        :: else
        fi;
        reap_locks(1);
        queue_names(1);
        end_gs(1);
        reaped = true
    } unless { me == 3 && dead[3] }
}

active proctype killer()
{
end:
    dead[1] = true;
#ifdef TWICE
    if
    :: dead[3] = true
    :: true
    fi
#endif
}

active proctype at_the_end()
{
end:
    atomic {
        timeout ->
        assert(reaped && lock == 0);
        assert(!got[1] && !ready[1] && !park[1] && !got[3] && !ready[3] && !park[3]);
        assert(sent <= 2 && (sent == 0 || out[0] == 1) && (sent < 2 || out[1] == 9));
        assert(died || (status == ended && sent == 2 && givenup && linked == nowhere && ring && slot == 2));
        assert(!died || LEFT == 0)
    }
}

init
{
    atomic {
        run M(1);
        run M(2);
        run keeper(3);
        run keeper(4)
    }
}
