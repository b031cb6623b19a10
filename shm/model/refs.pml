/* refs.pml — one object, its count, and where each reference stands, while an M dies at any step, and its
 * reaper too. shm/handle.c (move, settled, drop, shm_refs_reap, shm_hand_reap), shm/reap.c
 * (shm_reap_locks before the rest).
 *
 * Ms 1 and 2 have a reference each, in a word of their own. Each takes another one, into a second word,
 * then gives both back; the last one frees the object. M 1 may be killed before any step; keeper 3 reaps
 * it. With TWICE, 3 may be killed before any step, too: keeper 4 reaps it, then M 1 once more.
 *
 * HOLDS
 *   nobody changes the count of the object once it was freed
 *   when nothing moves any more: the object was freed, once; no word and no name is left of the dead
 *
 * ABSTRACTED. A transaction is one step (reap.pml). settled() waits until no name stands beside the count.
 * MEMORY ORDER. One total order: a process dies between two of its instructions, and what it stored before
 * is then there (undo.c).
 *
 * MUTATIONS
 *   1 move(): the object is named after the count has changed
 *   2 shm_refs_reap(): the word is stored whether the count has changed or not
 *   3 move(): the M's name is taken out before the word is stored
 *   4 settled(): does not wait
 *   5 shm_reap(): what is in hand is given back first
 *   6 drop(): the last reference leaves its word before it is named in `going`
 */
#ifndef MUTATE
#define MUTATE 0
#endif

byte refs = 2, by;                 /* obj->word */
bool freed;
/* struct shm_m, 1 .. 4; words: two each */
bool word[10], going[5], named[5]; /* going[], ref_obj */
byte where[5], next[5];            /* ref_where, the count of ref_next */
bool value[5];                     /* ref_value */
bool dead[5], reaped;

inline cas(from, to, name)
{
    atomic {
        assert(!freed);
        if
        :: refs == from && (by == 0 || MUTATE == 4) -> refs = to; by = name; ok = true
        :: else -> ok = false
        fi
    }
}

/* ok: one more (by is 1) or one fewer, and word k is v */
inline move(d, k, v)
{
    atomic { where[me] = k; value[me] = v; next[me] = w + d }
    if
    :: MUTATE != 1 -> named[me] = true
    :: else
    fi;
    cas(w, w + d, me);
    if
    :: ok ->
        if
        :: MUTATE == 1 -> named[me] = true
        :: else
        fi;
        if
        :: MUTATE == 3 -> atomic { by = 0; refs = next[me] }
        :: else
        fi;
        word[k] = v;
        if
        :: MUTATE != 3 -> atomic { refs = next[me]; by = 0 }
        :: else
        fi;
        named[me] = false
    :: else -> named[me] = false
    fi
}

inline settled() { atomic { (by == 0 || MUTATE == 4) -> w = refs } }

inline ref_as(k)
{
    ok = false;
    do
    :: ok -> break
    :: else -> settled(); move(1, k, true)
    od
}

inline gone() { atomic { assert(!freed); freed = true; going[me] = false } }

inline unref_as(k)
{
    ok = false;
    do
    :: ok -> break
    :: else ->
        settled();
        if
        :: w > 1 -> move(-1, k, false)
        :: else ->
            if
            :: MUTATE == 6 && !going[me] -> word[k] = false; going[me] = true
            :: !going[me] -> atomic { going[me] = true; word[k] = false }
            :: else
            fi;
            cas(1, 0, 0);
            if
            :: ok -> gone()
            :: else
            fi
        fi
    od
}

proctype M(byte me)
{
    byte w;
    bool ok;
    {
        ref_as(2 * me + 1);
        unref_as(2 * me);
        unref_as(2 * me + 1)
    } unless { me == 1 && dead[1] }
}

/* In shm_reap_locks(). */
inline refs_reap(d)
{
    if
    :: named[d] ->
        if
        :: (refs == next[d] && by == d) || MUTATE == 2 ->
            word[where[d]] = value[d];
            if
            :: by == d -> by = 0
            :: else
            fi
        :: else
        fi;
        named[d] = false
    :: else
    fi
}

/* shm_hand_reap(), and all that is like it. */
inline hand_reap(d)
{
    if
    :: word[2 * d] -> unref_as(2 * d)
    :: else
    fi;
    if
    :: word[2 * d + 1] -> unref_as(2 * d + 1)
    :: else
    fi;
    if
    :: going[d] ->
        ok = refs == 0;
        atomic {
            going[d] = false;
            if
            :: ok -> going[me] = true
            :: else -> word[2 * me] = true
            fi
        }
        if
        :: ok -> gone()
        :: else -> unref_as(2 * me)
        fi
    :: else
    fi
}

inline reap(d)
{
    if
    :: MUTATE == 5 -> hand_reap(d); refs_reap(d)
    :: else -> refs_reap(d); hand_reap(d)
    fi
}

proctype keeper(byte me)
{
    byte w;
    bool ok;
end:
    (me == 3 && dead[1]) || (me == 4 && dead[3]);
    {
        if
        :: me == 4 -> reap(3)
        :: else
        fi;
        reap(1);
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
    byte i;
end:
    atomic {
        timeout ->
        assert(reaped && freed && refs == 0 && by == 0);
        for (i : 1 .. 4) {
            assert(!named[i] && !going[i] && !word[2 * i] && !word[2 * i + 1])
        }
    }
}

init
{
    atomic {
        word[2] = true;
        word[4] = true;
        run M(1);
        run M(2);
        run keeper(3);
        run keeper(4)
    }
}
