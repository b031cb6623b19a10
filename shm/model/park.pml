/* park.pml — park, ready, an unlockf that says false, and a cancel that comes in between:
 * shm/g.c, shm/sudog.c (shm_park_commit, shm_wait_give, shm_wait_abort), shm/sched.c (shm_ready,
 * shm_execute), mpgort/_core/runtime.c (gopark_park, take_back, mod_goready), _core/proc.c (park),
 * shm/join.c (cancel).
 *
 * One G parks WAITS times in gopark, each time with an unlockf that says true or false, and ends. Ms 0
 * and 1 run it, whoever finds it in the queue. A thread calls goready READIES times, another cancels the
 * G once; both do it when they like.
 *
 * HOLDS
 *   the G runs on one M at a time, and each move of its status is one of the table in g.c
 *   INV one-waker: of the readier, the canceller and the M whose unlockf said false, one ends each wait
 *   INV touch-nothing: an M that has armed a wait neither ends a later one nor finds the G its own
 *       again but by claiming this one
 *   the G goes on with what its one waker gave: value and ok of this wait
 *   a cancel is not lost: a G that waits for ever has none due
 *
 * ABSTRACTED. The queue is a channel (runq.pml). The G's continuation is `where`: which wait it is in.
 * MEMORY ORDER. One total order. In C status moves are acq_rel: what g holds goes with them; the arming
 * and the look for a cancel are seq_cst on both sides (tag: cancel), which this needs: MUTATE 4.
 *
 * MUTATIONS
 *   1 shm_ready(): queued before it is runnable
 *   2 take_back(): without a claim, by the status alone
 *   3 shm_wait_give(): the value is written after the G is runnable
 *   4 park(): looks for a cancel before it arms
 *   5 shm_wait_claim(): does not compare the epoch
 */
#ifndef WAITS
#define WAITS 2
#endif
#ifndef READIES
#define READIES 2
#endif
#ifndef MUTATE
#define MUTATE 0
#endif

mtype = { runnable, running, waiting, gone };   /* Grunnable, Grunning, Gwaiting, Gdead */
mtype = { none, armed, claimed };               /* SHM_W_* */
mtype = { nothing, value, cancelled, undone };  /* g->ok */
mtype status = running;
byte epoch;                                     /* g->wait */
mtype state = none;
mtype ok;
byte given;                                     /* g->value: the epoch it was meant for */
byte where;                                     /* its continuation */
bool cancel;                                    /* join->cancel */
byte ended[WAITS + 1];                          /* how often each wait was ended */
byte runs;                                      /* Ms that run it */
byte ready_ok, cancel_ok;                       /* what their callers were told */
byte got_value, got_cancel;                     /* what the G has met */
chan queue = [4] of { bit };

/* shm_wait_claim() of the wait `e`: mine */
inline claim(e)
{
    atomic { mine = state == armed && (MUTATE == 5 || epoch == e) } /* load_seq */
    if
    :: mine ->
        atomic { /* cas_seq */
            if
            :: state == armed && (MUTATE == 5 || epoch == e) -> state = claimed; ended[epoch]++; assert(ended[epoch] == 1)
            :: else -> mine = false
            fi
        }
    :: else
    fi
}

/* shm_ready() */
inline ready()
{
    atomic { status == waiting || status != running } /* casgstatus_slow: it is about to be */
#if MUTATE == 1
    queue!0;
#endif
    atomic { assert(status == waiting); status = runnable }
#if MUTATE != 1
    queue!0
#endif
}

/* shm_wait_abort(), which the caller readies; `how` */
inline abort(e, how)
{
    claim(e);
    if
    :: mine -> ok = how
    :: else
    fi
}

/* From running on, until it is another's, or ended */
inline go_on()
{
    do
    :: atomic { where == WAITS -> assert(status == running); status = gone; runs--; where++; break }
    :: else ->
        /* park(): a cancel that is due is raised here */
        atomic {
            if
            :: cancel -> cancel = false; got_cancel++
            :: else
            fi
        }
        /* wait_begin() */
        atomic { mine_e = epoch + 1; where++; ok = nothing; given = 0 }
#if MUTATE == 4
        due = cancel;
#endif
        atomic { assert(status == running); status = waiting; runs-- } /* shm_gopark() */
        atomic { epoch = mine_e; state = armed } /* shm_wait_arm() */
        if
        :: true -> mine = false /* unlockf is None, or says true */
        :: true -> /* take_back() */
#if MUTATE == 2
            mine = status == waiting;
#else
            abort(mine_e, undone);
#endif
            if
            :: mine ->
                atomic { assert(status == waiting); status = runnable }
                atomic { assert(status == runnable); status = running; runs++; assert(runs == 1) }
            :: else
            fi
        fi;
        if
        :: mine -> mine = false; resume()
        :: else ->
#if MUTATE != 4
            due = cancel; /* load_seq, tag: cancel */
#endif
            if
            :: due -> abort(mine_e, cancelled)
            :: else
            fi;
            if
            :: mine -> cancel = false; ready(); mine = false
            :: else
            fi;
            due = false;
            break
        fi
    od;
    mine_e = 0
}

/* The G goes on after a wait: resume_value() */
inline resume()
{
    atomic {
        assert(ok != nothing);
        assert(ok != value || given == epoch);
        if
        :: ok == value -> got_value++
        :: ok == cancelled -> got_cancel++
        :: else
        fi
    }
}

proctype M(bit me)
{
    byte mine_e;
    bool mine, due;
    if
    :: me == 0 -> runs = 1; go_on()
    :: else
    fi;
end:
    do
    :: queue?_ ->
        atomic { /* shm_gclaim_runnable() */
            mine = status == runnable;
            if
            :: mine -> status = running; runs++; assert(runs == 1)
            :: else
            fi
        }
        if
        :: mine -> mine = false; resume(); go_on()
        :: else
        fi
    od
}

/* mod_goready() */
proctype readier()
{
    byte e, n;
    bool mine;
    do
    :: n < READIES ->
        atomic { e = epoch; mine = state == armed } /* load_acq */
        mine = mine && status == waiting;
        if
        :: mine -> claim(e)
        :: else
        fi;
        if
        :: mine ->
#if MUTATE == 3
            ready();
            atomic { given = e; ok = value }
#else
            atomic { given = e; ok = value } /* shm_wait_give(): one transaction */
            ready();
#endif
            ready_ok++
        :: else /* "bad g->status in ready" */
        fi;
        atomic { n++; mine = false; e = 0 }
    :: else -> break
    od
}

/* shm_join_cancel(), deliver() */
proctype canceller()
{
    byte e;
    bool mine;
    cancel = true; /* store_seq, tag: cancel */
    atomic { e = epoch; mine = state == armed }
    mine = mine && cancel && status == waiting;
    if
    :: mine -> abort(e, cancelled)
    :: else
    fi;
    if
    :: mine -> cancel = false; ready()
    :: else
    fi
}

/* When nothing moves any more */
active proctype end_of_it()
{
end:
    atomic {
        timeout ->
        assert(status == gone || (status == waiting && state == armed && !cancel));
        assert(got_value == ready_ok);
        assert(runs == 0)
    }
}

init
{
    atomic {
        run M(0);
        run M(1);
        run readier();
        run canceller()
    }
}
