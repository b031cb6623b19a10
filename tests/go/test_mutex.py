"""Go's tests of sync.Mutex and RWMutex (sync/mutex_test.go, rwmutex_test.go), and what is added.

Where the originals sleep so that another goroutine may come to its wait, these look at its
status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked, ready

import mpgort
from mpgort import Chan, SyncError, chan, go, gosched, sleep, spawn, sync

Run = Callable[..., Any]


# ---- Mutex -----------------------------------------------------------------------------------


async def hammer_mutex(m: sync.Mutex, loops: int, inside: sync.AtomicInt) -> int:
    entered = 0
    for i in range(loops):
        if i % 3 == 0:
            if not m.try_lock():
                continue
        else:
            await m.lock()
        assert inside.add(1) == 1
        if i % 7 == 0:
            await gosched()
        entered += 1
        inside.add(-1)
        m.unlock()
    return entered


async def mutex(loops: int) -> list[int]:
    m, inside = sync.Mutex(), sync.AtomicInt()
    await m.lock()
    assert not m.try_lock()
    m.unlock()
    assert m.try_lock()
    m.unlock()
    handles = [spawn(hammer_mutex, m, loops, inside) for _ in range(10)]
    return [await h for h in handles]


def test_a_mutex_lets_one_in_at_a_time(run: Run) -> None:
    """Go TestMutex, HammerMutex. Stricter: it looks who is inside, who also parks there."""
    assert all(667 - 1 <= n <= 1000 for n in run(mutex, 1000))


async def add_unlocked(m: sync.Mutex, cell: sync.AtomicInt, n: int) -> None:
    for _ in range(n):
        async with m:
            v = cell.load()
            if v % 5 == 0:
                await gosched()
            cell.store(v + 1)


async def no_update_lost(goroutines: int, n: int) -> int:
    m, cell, wg = sync.Mutex(), sync.AtomicInt(), sync.WaitGroup()
    for _ in range(goroutines):
        wg.go(add_unlocked, m, cell, n)
    await wg.wait()
    return cell.load()


def test_no_update_under_a_mutex_is_lost(run: Run) -> None:
    assert run(no_update_lost, 20, 500) == 20 * 500


async def misuse(what: str) -> str:
    m, rw = sync.Mutex(), sync.RWMutex()
    try:
        if what == "Mutex.Unlock":
            m.unlock()
        elif what == "Mutex.Unlock2":
            await m.lock()
            m.unlock()
            m.unlock()
        elif what == "RWMutex.Unlock":
            rw.unlock()
        elif what == "RWMutex.Unlock2":
            await rw.rlock()
            rw.unlock()
        elif what == "RWMutex.Unlock3":
            await rw.lock()
            rw.unlock()
            rw.unlock()
        elif what == "RWMutex.RUnlock":
            rw.runlock()
        elif what == "RWMutex.RUnlock2":
            await rw.lock()
            rw.runlock()
        else:
            await rw.rlock()
            rw.runlock()
            rw.runlock()
    except SyncError as e:
        return str(e)
    return "no error"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("Mutex.Unlock", "sync: unlock of unlocked mutex"),
        ("Mutex.Unlock2", "sync: unlock of unlocked mutex"),
        ("RWMutex.Unlock", "sync: Unlock of unlocked RWMutex"),
        ("RWMutex.Unlock2", "sync: Unlock of unlocked RWMutex"),
        ("RWMutex.Unlock3", "sync: Unlock of unlocked RWMutex"),
        ("RWMutex.RUnlock", "sync: RUnlock of unlocked RWMutex"),
        ("RWMutex.RUnlock2", "sync: RUnlock of unlocked RWMutex"),
        ("RWMutex.RUnlock3", "sync: RUnlock of unlocked RWMutex"),
    ],
)
def test_unlocking_what_is_not_locked_is_an_error(what: str, text: str) -> None:
    """Go TestMutexMisuse; fatal there, an exception here."""
    assert mpgort.run(misuse, what, procs=1) == text


async def hog(m: sync.Mutex, stop: Chan[bool]) -> None:
    while True:
        await m.lock()
        await sleep(0.0001)
        m.unlock()
        if await ready(stop):
            return


async def ten_times(m: sync.Mutex) -> int:
    for _ in range(10):
        await sleep(0.0001)
        await m.lock()
        m.unlock()
    return 10


async def fairness() -> int:
    m, stop = sync.Mutex(), chan()
    h, t = spawn(hog, m, stop), spawn(ten_times, m)
    done: int = await t
    stop.close()
    await h
    return done


@pytest.mark.timeout(30)
def test_a_mutex_that_somebody_hogs_is_still_handed_on(run: Run) -> None:
    """Go TestMutexFairness: ten times within ten seconds."""
    assert run(fairness) == 10


async def unlock_of(m: sync.Mutex) -> None:
    m.unlock()


async def by_another() -> bool:
    m = sync.Mutex()
    await m.lock()
    await spawn(unlock_of, m)
    return m.try_lock()


def test_a_mutex_belongs_to_no_goroutine(run: Run) -> None:
    """Go sync/mutex.go: it may be unlocked by another, and its holder may end."""
    assert run(by_another)


async def lock_and_end(m: sync.Mutex) -> None:
    await m.lock()


async def holder_ends() -> str:
    m = sync.Mutex()
    await spawn(lock_and_end, m)
    h = spawn(lock_and_end, m)
    await parked("sync.Mutex.Lock", h)
    m.unlock()
    await h
    return repr(m)


def test_a_goroutine_may_end_with_a_mutex_locked(run: Run) -> None:
    assert "locked by goroutine" in run(holder_ends)


async def lock_raise(m: sync.Mutex) -> None:
    async with m:
        raise ValueError("inside")


async def unlocked_after(m_new: bool) -> bool:
    m = sync.Mutex()
    try:
        await lock_raise(m)
    except ValueError:
        pass
    return m.try_lock()


def test_async_with_unlocks_whatever_leaves_it(run: Run) -> None:
    assert run(unlocked_after, True)


async def lock_into(m: sync.Mutex, out: Chan[int], i: int) -> None:
    await m.lock()
    await out.send(i)
    m.unlock()


async def fifo(n: int) -> list[int]:
    m, out = sync.Mutex(), chan(n)
    await m.lock()
    for i in range(n):
        await parked("sync.Mutex.Lock", spawn(lock_into, m, out, i))
    m.unlock()
    return [await out.recv() for _ in range(n)]


def test_waiters_get_the_mutex_in_the_order_in_which_they_came(run: Run) -> None:
    assert run(fifo, 20) == list(range(20))


# ---- cancel ----------------------------------------------------------------------------------


async def cancel_waiters(n: int) -> tuple[int, int]:
    m, out = sync.Mutex(), chan(n)
    await m.lock()
    handles = []
    for i in range(n):
        handles.append(spawn(lock_into, m, out, i))
        await parked("sync.Mutex.Lock", handles[-1])
    for h in handles[::2]:
        h.cancel()
    m.unlock()
    ended = 0
    for h in handles:
        try:
            await h
        except mpgort.Cancelled:
            ended += 1
    assert m.try_lock()
    return ended, len(out)


def test_a_cancelled_waiter_of_a_mutex_is_passed_over(run: Run) -> None:
    assert run(cancel_waiters, 20) == (10, 10)


async def churn(m: sync.Mutex, inside: sync.AtomicInt) -> None:
    while True:
        async with m:
            assert inside.add(1) == 1
            inside.add(-1)
        await gosched()


async def cancel_storm(n: int, rounds: int) -> bool:
    m, inside = sync.Mutex(), sync.AtomicInt()
    for _ in range(rounds):
        handles = [spawn(churn, m, inside) for _ in range(n)]
        for h in handles:
            await gosched()
            h.cancel()
        for h in handles:
            try:
                await h
            except mpgort.Cancelled:
                pass
    await m.lock()  # a hand-off that was lost would leave it locked
    m.unlock()
    return inside.load() == 0


def test_cancelling_at_any_moment_loses_no_mutex(run: Run) -> None:
    assert run(cancel_storm, 20, 10)


# ---- RWMutex ---------------------------------------------------------------------------------


async def parallel_reader(
    m: sync.RWMutex, locked: Chan[bool], unlock: Chan[bool], done: Chan[bool]
) -> None:
    await m.rlock()
    await locked.send(True)
    await unlock.recv()
    m.runlock()
    await done.send(True)


async def parallel_readers(n: int) -> int:
    m, locked, unlock, done = sync.RWMutex(), chan(), chan(), chan()
    for _ in range(n):
        go(parallel_reader, m, locked, unlock, done)
    for _ in range(n):
        await locked.recv()
    for _ in range(n):
        await unlock.send(True)
    for _ in range(n):
        await done.recv()
    return n


@pytest.mark.parametrize("n", [1, 3, 4, 40])
def test_readers_read_together(run: Run, n: int) -> None:
    """Go TestParallelReaders; with more readers than a RWMutex has room for at first, too."""
    assert run(parallel_readers, n) == n


async def hammer_reader(rw: sync.RWMutex, n: int, activity: sync.AtomicInt) -> None:
    for i in range(n):
        await rw.rlock()
        assert 1 <= activity.add(1) < 10000
        if i % 16 == 0:
            await gosched()
        activity.add(-1)
        rw.runlock()


async def hammer_writer(rw: sync.RWMutex, n: int, activity: sync.AtomicInt) -> None:
    for i in range(n):
        async with rw.writer():
            assert activity.add(10000) == 10000
            if i % 16 == 0:
                await gosched()
            activity.add(-10000)


async def hammer_rwmutex(readers: int, n: int) -> int:
    rw, activity, wg = sync.RWMutex(), sync.AtomicInt(), sync.WaitGroup()
    wg.go(hammer_writer, rw, n, activity)
    for i in range(readers):
        if i == readers // 2:
            wg.go(hammer_writer, rw, n, activity)
        wg.go(hammer_reader, rw, n, activity)
    await wg.wait()
    return activity.load()


@pytest.mark.parametrize("readers", [1, 3, 5, 10])
def test_a_writer_is_alone(run: Run, readers: int) -> None:
    """Go TestRWMutex, HammerRWMutex. Stricter: whoever has it parks, too."""
    assert run(hammer_rwmutex, readers, 1000) == 0


async def rw_try() -> list[bool]:
    m = sync.RWMutex()
    await m.lock()
    got = [m.try_lock(), m.try_rlock()]
    m.unlock()
    got.append(m.try_lock())
    m.unlock()
    got += [m.try_rlock(), m.try_rlock(), m.try_lock()]
    m.runlock()
    m.runlock()
    return got


def test_try_lock_and_try_rlock_say_whether_they_would_wait(run: Run) -> None:
    """Go TestRWMutex, its first part."""
    assert run(rw_try) == [False, False, True, True, True, False]


async def note(lock: Any, out: Chan[str], what: str) -> None:
    async with lock:
        await out.send(what)


async def preference() -> list[str]:
    m, out = sync.RWMutex(), chan(8)
    await m.rlock()
    handles = [spawn(note, m.writer(), out, "w1")]
    await parked("sync.RWMutex.Lock", *handles)
    assert not m.try_rlock(), "a writer waits"
    for what in ("r1", "r2"):
        handles.append(spawn(note, m.reader(), out, what))
        await parked("sync.RWMutex.RLock", handles[-1])
    handles.append(spawn(note, m.writer(), out, "w2"))
    await parked("sync.RWMutex.Lock", handles[-1])
    m.runlock()
    for h in handles:
        await h
    return [await out.recv() for _ in handles]


def test_a_waiting_writer_keeps_new_readers_out_and_lets_those_who_waited_go_next(run: Run) -> None:
    """Go sync/rwmutex.go: a writer waits for the readers before it only; readers that came while it
    waited or wrote go before the next writer."""
    first, *middle, last = run(preference)
    assert (first, sorted(middle), last) == ("w1", ["r1", "r2"], "w2")


async def rlocker() -> list[bool]:
    m, wlocked, rlocked = sync.RWMutex(), chan(1), chan(1)
    n = 10

    async def both(rl: sync.RWMutexReader) -> None:
        for _ in range(n):
            await rl.lock()
            await rl.lock()
            await rlocked.send(True)
            await m.lock()
            await wlocked.send(True)

    h, rl, early = spawn(both, m.reader()), m.reader(), []
    for _ in range(n):
        await rlocked.recv()
        rl.unlock()
        early.append(await ready(wlocked))
        rl.unlock()
        await wlocked.recv()
        early.append(await ready(rlocked))
        m.unlock()
    await h
    return early


def test_reader_is_a_locker_of_its_own(run: Run) -> None:
    """Go TestRLocker."""
    assert run(rlocker) == [False] * 20


async def cancelled_writer() -> bool:
    m = sync.RWMutex()
    await m.rlock()
    w = spawn(m.lock)
    await parked("sync.RWMutex.Lock", w)
    r = spawn(m.rlock)
    await parked("sync.RWMutex.RLock", r)
    w.cancel()
    await r  # it stood behind the writer only
    return m.try_rlock()


def test_readers_behind_a_cancelled_writer_go_on(run: Run) -> None:
    assert run(cancelled_writer)
