"""Go's tests of sync (waitgroup_test.go, once_test.go, runtime/sema_test.go, x/sync/semaphore), and
what is added; and what all of sync has in common. Mutex and Cond have files of their own.

Where the originals sleep so that another goroutine may come to its wait, these look at its
status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked, ready

import mpgort
from mpgort import (
    Chan,
    Goroutine,
    SyncError,
    chan,
    go,
    gosched,
    sleep,
    spawn,
    sync,
)

Run = Callable[..., Any]


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
