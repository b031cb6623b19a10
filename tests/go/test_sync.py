"""Go's tests of sync (sync/*_test.go, runtime/sema_test.go, x/sync/semaphore), and what is added.

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always). Where
the originals sleep so that another goroutine may come to its wait, these look at its status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked

import mpgort
from mpgort import (
    Chan,
    Goroutine,
    SyncError,
    chan,
    default,
    go,
    goid,
    gosched,
    select,
    sleep,
    spawn,
    sync,
)

Run = Callable[..., Any]


async def ready(c: Chan[Any]) -> bool:
    i, _ = await select(c.recv, default)
    return i == 0


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


# ---- a holder that is killed -----------------------------------------------------------------


async def hold(lock: Any, held: Chan[bool]) -> None:
    async with lock:
        await held.send(True)
        await chan().recv()


async def killed_holder(kind: str) -> list[str]:
    m, rw, held = sync.Mutex(), sync.RWMutex(), chan()
    lock: Any = {"mutex": m, "writer": rw.writer(), "reader": rw.reader()}[kind]
    whole: Any = m if kind == "mutex" else rw
    h = spawn(hold, lock, held)
    await held.recv()
    waiters = [spawn(whole.lock) for _ in range(40)]
    reason = "sync.Mutex.Lock" if kind == "mutex" else "sync.RWMutex.Lock"
    await parked(reason, *waiters)
    h.kill()
    texts = set()
    for w in [h, *waiters]:
        try:
            await w
            texts.add("no error")
        except (mpgort.Killed, mpgort.OwnerDied) as e:
            texts.add(type(e).__name__)
    got = sorted(texts)
    for attempt in (whole.lock, whole.try_lock):
        try:
            result = attempt()
            if attempt == whole.lock:
                await result
        except mpgort.OwnerDied as e:
            got.append(str(e))
    got.append(f"recovered {whole.recover()} {whole.recover()}")
    async with lock:
        pass
    await whole.lock()
    whole.unlock()
    return got


@pytest.mark.parametrize("kind", ["mutex", "writer", "reader"])
def test_when_its_holder_is_killed_everybody_is_told_until_recover(run: Run, kind: str) -> None:
    text = "sync: the goroutine that held the lock died with its worker; recover() frees it"
    assert run(killed_holder, kind) == [
        "Killed",
        "OwnerDied",
        text,
        text,
        "recovered True False",
    ]


async def lock_and_signal(c: sync.Cond, held: Chan[bool]) -> None:
    async with c.lock:
        c.signal()
        await held.send(True)
        await chan().recv()


async def waits_inside(c: sync.Cond, catch: bool) -> str:
    async with c.lock:
        try:
            await c.wait()
        except mpgort.OwnerDied:
            if not catch:
                raise
    return "locked"


async def dead_in_wait(catch: bool) -> list[str]:
    c, held = sync.Cond(sync.Mutex()), chan()
    w = spawn(waits_inside, c, catch)
    await parked("sync.Cond.Wait", w)
    h = spawn(lock_and_signal, c, held)
    await held.recv()
    await parked("sync.Mutex.Lock", w)
    h.kill()
    try:
        got = [str(await w)]
    except SyncError as e:
        got = [type(e).__name__]
    c.lock.recover()
    return [*got, str(c.lock.try_lock())]


@pytest.mark.parametrize("catch", [False, True])
def test_a_wait_that_cannot_get_its_mutex_back_unlocks_nobody_elses(run: Run, catch: bool) -> None:
    assert run(dead_in_wait, catch) == ["SyncError" if catch else "OwnerDied", "True"]


async def once_killed() -> list[Any]:
    once, held, ran = sync.Once(), chan(), sync.AtomicInt()

    async def stay() -> None:
        await held.send(True)
        await chan().recv()

    async def first() -> None:
        await once.do(stay)

    async def then() -> None:
        await once.do(lambda: ran.add(1))

    h = spawn(first)
    await held.recv()
    w = spawn(then)
    await parked("sync.Once.Do", w)
    h.kill()
    got: list[Any] = []
    for what in (w, spawn(then)):
        try:
            await what
        except mpgort.OwnerDied:
            got.append("told")
    got.append(once.recover())
    await then()
    return [*got, ran.load()]


def test_a_once_whose_runner_is_killed_can_be_run_again_after_recover(run: Run) -> None:
    assert run(once_killed) == ["told", "told", True, 1]


async def churn_recovering(m: sync.Mutex, inside: sync.AtomicInt) -> None:
    while True:
        try:
            await m.lock()
        except mpgort.OwnerDied:
            if m.recover():
                inside.store(0)
            continue
        assert inside.add(1) == 1
        if inside.load() == 1 and goid() % 3 == 0:
            await gosched()
        inside.add(-1)
        m.unlock()
        await gosched()


async def kill_storm(n: int, rounds: int) -> bool:
    m, inside = sync.Mutex(), sync.AtomicInt()
    for _ in range(rounds):
        handles = [spawn(churn_recovering, m, inside) for _ in range(n)]
        for h in handles:
            await gosched()
            h.kill()
        for h in handles:
            try:
                await h
            except mpgort.Killed:
                pass
    try:
        await m.lock()
    except mpgort.OwnerDied:
        m.recover()
        await m.lock()
    m.unlock()
    return True


def test_killing_at_any_moment_loses_no_mutex(run: Run) -> None:
    assert run(kill_storm, 20, 5)


async def killed_waiters() -> list[bool]:
    s, rw, wg = sync.Semaphore(2), sync.RWMutex(), sync.WaitGroup()
    await s.acquire()
    big = spawn(s.acquire, 2)
    await parked("sync.Semaphore.Acquire", big)
    small = spawn(s.acquire)
    await parked("sync.Semaphore.Acquire", small)
    await rw.rlock()
    writer = spawn(rw.lock)
    await parked("sync.RWMutex.Lock", writer)
    reader = spawn(rw.rlock)
    await parked("sync.RWMutex.RLock", reader)
    wg.add(1)
    waits = [spawn(wg.wait) for _ in range(3)]
    await parked("sync.WaitGroup.Wait", *waits)
    for h in (big, writer, waits[0]):
        h.kill()
    await small
    await reader
    wg.done()
    await waits[1]
    await waits[2]
    return [rw.try_rlock()]


def test_those_behind_a_killed_waiter_go_on(run: Run) -> None:
    assert run(killed_waiters) == [True]


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


# ---- WaitGroup -------------------------------------------------------------------------------


async def at_barrier(wg1: sync.WaitGroup, wg2: sync.WaitGroup, exited: Chan[bool]) -> None:
    wg1.done()
    await wg2.wait()
    await exited.send(True)


async def barriers(rounds: int, n: int) -> int:
    wg1, wg2, early = sync.WaitGroup(), sync.WaitGroup(), 0
    for _ in range(rounds):
        wg1.add(n)
        wg2.add(n)
        exited = chan(n)
        for _ in range(n):
            go(at_barrier, wg1, wg2, exited)
        await wg1.wait()
        for _ in range(n):
            early += await ready(exited)
            wg2.done()
        for _ in range(n):
            await exited.recv()
    return early


def test_a_waitgroup_lets_all_go_at_zero_and_none_before(run: Run) -> None:
    """Go TestWaitGroup."""
    assert run(barriers, 8, 16) == 0


async def negative() -> list[str]:
    wg, texts = sync.WaitGroup(), []
    wg.add(1)
    wg.done()
    for n in (-1, -(2**63)):
        try:
            wg.add(n)
        except SyncError as e:
            texts.append(str(e))
    await wg.wait()  # unchanged
    return texts


def test_a_negative_counter_is_an_error(run: Run) -> None:
    """Go TestWaitGroupMisuse. Here the counter is left as it was."""
    assert run(negative) == ["sync: negative WaitGroup counter"] * 2


async def add_one(n: sync.AtomicInt, wg: sync.WaitGroup) -> None:
    n.add(1)
    wg.done()


async def races(rounds: int) -> int:
    seen = 0
    for _ in range(rounds):
        wg, n = sync.WaitGroup(), sync.AtomicInt()
        for _ in range(2):
            wg.add(1)
            go(add_one, n, wg)
        await wg.wait()
        seen += n.load()
    return seen


def test_wait_never_returns_early(run: Run) -> None:
    """Go TestWaitGroupRace."""
    assert run(races, 1000) == 2000


async def reused(rounds: int, waiters: int) -> list[int]:
    wg, out = sync.WaitGroup(), chan(waiters * 2)
    handles: list[Goroutine[Any]] = []
    for k in range(rounds):
        wg.add(1)
        handles = [spawn(wg.wait) for _ in range(waiters)]
        await parked("sync.WaitGroup.Wait", *handles)
        wg.done()
        wg.add(1)  # the next round begins while the last is being woken
        late = spawn(wg.wait)
        for h in handles:
            await h
        await parked("sync.WaitGroup.Wait", late)
        wg.done()
        await late
        await out.send(k)
        await out.recv()
    return [rounds, len(handles)]


def test_a_waitgroup_is_used_again_while_its_waiters_wake(run: Run) -> None:
    """More waiters than are woken in one go (32)."""
    assert run(reused, 5, 80) == [5, 80]


async def started(out: Chan[Any], *args: Any, **kwargs: Any) -> None:
    await out.send((args, kwargs))


def plain(cell: sync.AtomicInt) -> None:
    cell.add(1)


async def wg_go() -> Any:
    wg, out, cell = sync.WaitGroup(), chan(1), sync.AtomicInt()
    wg.go(started, out, 1, k=2)
    wg.go(plain, cell)
    await wg.wait()
    return await out.recv(), cell.load()


def test_waitgroup_go_counts_the_goroutine_it_starts(run: Run) -> None:
    """Go 1.25 WaitGroup.Go."""
    assert run(wg_go) == (((1,), {"k": 2}), 1)


async def wg_go_unsendable() -> str:
    wg = sync.WaitGroup()
    try:
        wg.go(started, open("/dev/null"))
    except mpgort.SerializationError as e:
        await wg.wait()  # it does not count
        return str(e)
    return "sent"


def test_waitgroup_go_with_what_cannot_cross_counts_nothing(run: Run) -> None:
    assert "never crosses" in run(wg_go_unsendable)


# ---- Once ------------------------------------------------------------------------------------


async def run_once(once: sync.Once, o: sync.AtomicInt, done: Chan[int], how: str) -> None:
    async def increment() -> None:
        await gosched()
        o.add(1)

    await once.do(increment if how == "async" else (lambda: o.add(1)))
    await done.send(o.load())


async def once(n: int, how: str) -> list[int]:
    the_once, o, done = sync.Once(), sync.AtomicInt(), chan()
    for _ in range(n):
        go(run_once, the_once, o, done, how)
    seen = [await done.recv() for _ in range(n)]
    return [*seen, o.load()]


@pytest.mark.parametrize("how", ["async", "plain"])
def test_once_runs_once_and_all_wait_for_it(run: Run, how: str) -> None:
    """Go TestOnce."""
    assert run(once, 10, how) == [1] * 11


async def once_fails() -> list[Any]:
    the_once, seen = sync.Once(), sync.AtomicInt()

    async def fail() -> None:
        seen.add(1)
        raise ValueError("failed")

    got: list[Any] = []
    for _ in range(2):
        try:
            await the_once.do(fail)
            got.append("ok")
        except ValueError as e:
            got.append(str(e))
    return [*got, seen.load()]


def test_an_exception_counts_as_done_and_is_the_first_callers(run: Run) -> None:
    """Go TestOncePanic."""
    assert run(once_fails) == ["failed", "ok", 1]


async def once_within() -> None:
    the_once = sync.Once()

    async def again() -> None:
        await the_once.do(again)

    await the_once.do(again)


def test_once_within_itself_is_a_deadlock() -> None:
    with pytest.raises(mpgort.Deadlock, match="sync.Once.Do"):
        mpgort.run(once_within, procs=1)


# ---- Cond ------------------------------------------------------------------------------------


async def one_waiter(
    m: sync.Mutex, c: sync.Cond, i: int, running: Chan[int], awake: Chan[int]
) -> None:
    await m.lock()
    await running.send(i)
    await c.wait()
    await awake.send(i)
    m.unlock()


async def cond_signal(n: int) -> int:
    m = sync.Mutex()
    c, running, awake, wrong = sync.Cond(m), chan(n), chan(n), 0
    for i in range(n):
        go(one_waiter, m, c, i, running, awake)
    for _ in range(n):
        await running.recv()
    for _ in range(n):
        wrong += await ready(awake)
        await m.lock()
        c.signal()
        m.unlock()
        await awake.recv()
        wrong += await ready(awake)
    c.signal()
    return wrong


@pytest.mark.parametrize("n", [2, 40])
def test_signal_wakes_exactly_one(run: Run, n: int) -> None:
    """Go TestCondSignal."""
    assert run(cond_signal, n) == 0


async def generations(n: int) -> list[int]:
    m = sync.Mutex()
    c, running, awake, order = sync.Cond(m), chan(n), chan(n), []
    for i in range(n):
        go(one_waiter, m, c, i, running, awake)
        if i > 0:
            order.append(await awake.recv())
        await running.recv()
        await m.lock()
        c.signal()
        m.unlock()
    return [*order, await awake.recv()]


def test_signal_wakes_in_the_order_of_waiting(run: Run) -> None:
    """Go TestCondSignalGenerations."""
    assert run(generations, 100) == list(range(100))


async def until_exit(
    m: sync.Mutex,
    c: sync.Cond,
    g: int,
    running: Chan[int],
    awake: Chan[int],
    exit_: sync.AtomicInt,
) -> None:
    await m.lock()
    while not exit_.load():
        await running.send(g)
        await c.wait()
        await awake.send(g)
    m.unlock()


async def broadcasts(n: int, rounds: int) -> list[int]:
    m, exit_ = sync.Mutex(), sync.AtomicInt()
    c, running, awake, wrong = sync.Cond(m), chan(n), chan(n), []
    for g in range(n):
        go(until_exit, m, c, g, running, awake, exit_)
    for k in range(rounds):
        for _ in range(n):
            await running.recv()
        if k == rounds - 1:
            await m.lock()
            exit_.store(1)
            m.unlock()
        if await ready(awake):
            wrong.append(k)
        await m.lock()
        c.broadcast()
        m.unlock()
        seen = {await awake.recv() for _ in range(n)}
        if len(seen) != n:
            wrong.append(k)
    if await ready(running):
        wrong.append(rounds)
    c.broadcast()
    return wrong


def test_broadcast_wakes_all_and_none_twice(run: Run) -> None:
    """Go TestCondBroadcast."""
    assert run(broadcasts, 200, 200) == []


async def race_1(c: sync.Cond, x: sync.AtomicInt) -> None:
    async with c.lock:
        x.store(1)
        await c.wait()
        assert x.load() == 2
        x.store(3)
        c.signal()


async def race_2(c: sync.Cond, x: sync.AtomicInt) -> None:
    await c.lock.lock()
    while x.load() != 1:
        c.lock.unlock()
        await gosched()
        await c.lock.lock()
    x.store(2)
    c.signal()
    c.lock.unlock()


async def race_3(c: sync.Cond, x: sync.AtomicInt) -> None:
    await c.lock.lock()
    while x.load() != 3:
        if x.load() == 2:
            await c.wait()
            assert x.load() == 3
            break
        c.lock.unlock()
        await gosched()
        await c.lock.lock()
    c.lock.unlock()


async def cond_race(rounds: int) -> int:
    for _ in range(rounds):
        c, x = sync.Cond(sync.Mutex()), sync.AtomicInt()
        handles = [spawn(f, c, x) for f in (race_1, race_2, race_3)]
        for h in handles:
            await h
    return rounds


def test_what_a_cond_protects_is_seen_by_who_wakes(run: Run) -> None:
    """Go TestRace (sync/cond_test.go), 50 times."""
    assert run(cond_race, 50) == 50


async def first_waiter(m: sync.Mutex, c: sync.Cond, ch: Chan[bool]) -> None:
    await m.lock()
    await ch.send(True)
    await c.wait()
    m.unlock()
    await ch.send(True)


async def second_waiter(m: sync.Mutex, c: sync.Cond, done: sync.AtomicInt) -> None:
    await m.lock()
    while not done.load():
        await c.wait()
    m.unlock()


async def stealing(rounds: int) -> int:
    for _ in range(rounds):
        m, done, ch = sync.Mutex(), sync.AtomicInt(), chan()
        c = sync.Cond(m)
        go(first_waiter, m, c, ch)
        await ch.recv()
        await m.lock()
        m.unlock()
        # The first waiter is in wait() now. A second one must not get the signal meant for it.
        go(c.broadcast)
        h = spawn(second_waiter, m, c, done)
        await ch.recv()
        await m.lock()
        done.store(1)
        m.unlock()
        while not h.done():
            c.broadcast()
            await gosched()
        await h
    return rounds


def test_a_late_waiter_does_not_steal_a_broadcast(run: Run) -> None:
    """Go TestCondSignalStealing."""
    assert run(stealing, 1000) == 1000


async def cancelled_wait() -> list[Any]:
    m = sync.Mutex()
    c = sync.Cond(m)
    held = []

    async def waits(mine: sync.AtomicInt) -> int:
        async with m:
            try:
                await c.wait()
            except mpgort.Cancelled:
                mine.store(not m.try_lock())  # it has the lock
                raise
            return goid()

    for k in range(20):
        mine = sync.AtomicInt()
        h, other = spawn(waits, mine), spawn(waits, mine)
        await parked("sync.Cond.Wait", h, other)
        await m.lock()
        h.cancel()
        if k % 2:
            c.broadcast()  # too late for it, or not
        m.unlock()
        try:
            await h
        except mpgort.Cancelled:
            held.append(mine.load())
        c.signal()
        await other
    return [held, m.try_lock()]


def test_a_cancelled_wait_has_the_lock_again(run: Run) -> None:
    """As asyncio.Condition.wait: whoever awaits it holds the lock before and after."""
    assert run(cancelled_wait) == [[1] * 20, True]


async def cond_unlocked() -> str:
    c = sync.Cond(sync.Mutex())
    try:
        await c.wait()
    except SyncError as e:
        return str(e)
    return "waited"


def test_wait_without_the_lock_is_an_error(run: Run) -> None:
    assert run(cond_unlocked) == "sync: unlock of unlocked mutex"


# ---- Semaphore -------------------------------------------------------------------------------


async def hammer_semaphore(s: sync.Semaphore, loops: int, inside: sync.AtomicInt, n: int) -> None:
    for i in range(loops):
        await s.acquire()
        assert 1 <= inside.add(1) <= n
        if i % 10 == 0:
            await gosched()
        inside.add(-1)
        s.release()


async def semaphore(n: int, loops: int) -> int:
    s, inside, wg = sync.Semaphore(n), sync.AtomicInt(), sync.WaitGroup()
    for _ in range(10):
        wg.go(hammer_semaphore, s, loops, inside, n)
    await wg.wait()
    return inside.load()


@pytest.mark.parametrize("n", [1, 3])
def test_a_semaphore_lets_n_in(run: Run, n: int) -> None:
    """Go TestSemaphore (sync/mutex_test.go)."""
    assert run(semaphore, n, 1000) == 0


async def handoff(rounds: int) -> int:
    stolen = 0
    for _ in range(rounds):
        s, out = sync.Semaphore(1), chan(1)
        await s.acquire()
        h = spawn(s.acquire)
        await parked("sync.Semaphore.Acquire", h)
        s.release()
        stolen += s.try_acquire()
        await h
        assert len(out) == 0
    return stolen


def test_a_released_token_belongs_to_the_first_waiter_at_once(run: Run) -> None:
    """Go TestSemaHandoff. There the releaser yields so that the waiter runs first, in two thirds of
    10,000; here the token is handed over, so nobody can be faster, in all of 500."""
    assert run(handoff, 500) == 0


async def large(n: int) -> list[str]:
    s, order = sync.Semaphore(n), chan(n + 1)

    async def small() -> None:
        for _ in range(20):
            async with s:
                await gosched()
        await order.send("small")

    async def big() -> None:
        await s.acquire(n)
        await order.send("big")
        s.release(n)

    wg = sync.WaitGroup()
    await s.acquire(n - 1)
    h = spawn(big)
    await parked("sync.Semaphore.Acquire", h)
    assert not s.try_acquire(), "a large request waits"
    for _ in range(n):
        wg.go(small)
    s.release(n - 1)
    await h
    await wg.wait()
    return [await order.recv() for _ in range(n + 1)]


def test_a_large_acquire_is_not_starved_by_small_ones(run: Run) -> None:
    """x/sync TestLargeAcquireDoesntStarve."""
    assert run(large, 4)[0] == "big"


async def alloc_cancel() -> int:
    s = sync.Semaphore(10)
    await s.acquire(1)
    big = spawn(s.acquire, 10)
    await parked("sync.Semaphore.Acquire", big)
    small = [spawn(s.acquire, 1) for _ in range(3)]
    await parked("sync.Semaphore.Acquire", *small)
    big.cancel()
    for h in small:
        await h
    return len(small)


def test_those_behind_a_cancelled_acquire_go_on(run: Run) -> None:
    """x/sync TestAllocCancelDoesntStarve."""
    assert run(alloc_cancel) == 3


async def released_too_much() -> list[str]:
    s, texts = sync.Semaphore(2), []
    for n in (1, 0, 2):
        try:
            s.release(n)
        except SyncError as e:
            texts.append(str(e))
    for n in (3, -1):
        try:
            await s.acquire(n)
        except ValueError as e:
            texts.append(str(e))
    return texts


def test_releasing_more_than_held_or_asking_for_more_than_there_is_is_an_error(run: Run) -> None:
    """x/sync TestWeightedPanic."""
    assert run(released_too_much) == [
        "semaphore: released more than held",
        "semaphore: released more than held",
        "acquire: 3 tokens of a semaphore that has 2 in all",
        "acquire: -1: a number of tokens is not negative",
    ]


# ---- AtomicInt -------------------------------------------------------------------------------


async def adds(a: sync.AtomicInt, n: int) -> None:
    for _ in range(n):
        a.add(1)


async def cas_adds(a: sync.AtomicInt, n: int) -> None:
    for _ in range(n):
        while True:
            old = a.load()
            if a.cas(old, old + 1):
                break


async def atomics(n: int) -> list[Any]:
    a, wg = sync.AtomicInt(), sync.WaitGroup()
    for f in (adds, cas_adds, adds, cas_adds):
        wg.go(f, a, n)
    await wg.wait()
    total = a.load()
    a.store(5)
    edge = sync.AtomicInt(2**63 - 1)
    return [total, a.swap(6), a.cas(5, 7), a.cas(6, 7), a.load(), edge.add(1)]


def test_atomic_operations_are_indivisible_and_wrap(run: Run) -> None:
    """Go sync/atomic: AddInt64, CompareAndSwapInt64, SwapInt64; wraps as int64."""
    assert run(atomics, 2000) == [8000, 5, False, True, 7, -(2**63)]


# ---- handles ---------------------------------------------------------------------------------


async def same(objects: list[Any], again: list[Any]) -> list[bool]:
    await gosched()
    return [x is y and x == y and hash(x) == hash(y) for x, y in zip(objects, again, strict=True)]


async def cross() -> list[bool]:
    m = sync.Mutex()
    rw = sync.RWMutex()
    objects = [
        m,
        rw,
        sync.WaitGroup(),
        sync.Once(),
        sync.Cond(m),
        sync.Semaphore(1),
        sync.AtomicInt(3),
    ]
    c = chan(1)
    await c.send(objects)
    back = await c.recv()
    views = rw.reader() == rw.reader() != rw.writer()
    return [a == b for a, b in zip(objects, back, strict=True)] + [
        views,
        objects[4].lock == m,
        m != objects[2],
        *await spawn(same, objects, back),
    ]


def test_handles_are_equal_in_every_process(run: Run) -> None:
    assert run(cross) == [True] * 17


async def live(rounds: int) -> int:
    from mpgort import _core

    prog = _core.current()
    assert prog is not None
    for _ in range(rounds):
        m, rw = sync.Mutex(), sync.RWMutex()
        things = [m, rw, rw.reader(), sync.WaitGroup(), sync.Cond(m), sync.AtomicInt()]
        async with rw.reader():
            h = spawn(same, things, things)
            await h
        del m, rw, things, h
    await sleep(0.1)  # the M lets go of the handles that it keeps for a while
    blocks: int = prog.stats()["live_blocks"]
    return blocks


def test_what_nobody_has_a_handle_on_is_freed(run: Run) -> None:
    assert run(live, 200) < 400


async def outside_error(make: Callable[[], Any]) -> None:
    make()


@pytest.mark.parametrize(
    "make",
    [
        sync.Mutex,
        sync.RWMutex,
        sync.WaitGroup,
        sync.Once,
        lambda: sync.Semaphore(1),
        sync.AtomicInt,
    ],
)
def test_made_outside_a_goroutine_it_says_so(make: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"\(\) outside a goroutine: start one with mpgort.run"):
        make()


async def wrong_arguments(what: str) -> None:
    wrong: dict[str, Callable[[], Any]] = {
        "mutex": lambda: sync.Mutex(1),  # type: ignore[call-arg]
        "cond": lambda: sync.Cond(sync.RWMutex()),  # type: ignore[arg-type]
        "semaphore": lambda: sync.Semaphore(-1),
        "atomic": lambda: sync.AtomicInt(2**63),
        "once": lambda: sync.Once().do(3),  # type: ignore[arg-type]
        "go": lambda: sync.WaitGroup().go(3),  # type: ignore[arg-type]
        "view": lambda: sync.RWMutexReader(),
    }
    wrong[what]()


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("mutex", TypeError, "takes no arguments"),
        ("cond", TypeError, "Mutex"),
        ("semaphore", ValueError, "-1"),
        ("atomic", OverflowError, "too"),
        ("once", TypeError, "a function is needed, not 3"),
        ("go", TypeError, "a function is needed"),
        ("view", TypeError, "cannot create"),
    ],
)
def test_wrong_arguments_are_named(what: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        mpgort.run(wrong_arguments, what, procs=0)


# ---- all together ----------------------------------------------------------------------------

PRIMES = [2, 3, 7, 11, 13, 17, 19, 23, 27, 31]


async def multi_worker(w: int, q: Chan[int], r: Chan[int]) -> None:
    async for v in q:
        if PRIMES[w % len(PRIMES)] == v:
            await gosched()
        await r.send(v)


async def feeder(n: int, q: Chan[int], r: Chan[int], wg: sync.WaitGroup) -> int:
    expect = 0
    for i in range(n):
        v = PRIMES[i % len(PRIMES)]
        expect += v
        await q.send(v)
    q.close()
    await wg.wait()
    r.close()
    return expect


async def multi_consumer(workers: int, n: int) -> tuple[int, int, int]:
    q, r, wg = chan(workers * 3), chan(workers * 3), sync.WaitGroup()
    for w in range(workers):
        wg.go(multi_worker, w, q, r)
    h = spawn(feeder, n, q, r, wg)
    count = total = 0
    async for v in r:
        count += 1
        total += v
    return count, total, await h


def test_many_consumers_get_every_value_once(run: Run) -> None:
    """Go TestMultiConsumer."""
    n = 271_828
    count, total, expect = run(multi_consumer, 23, n)
    assert (count, total) == (n, expect)
