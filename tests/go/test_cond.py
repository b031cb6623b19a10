"""Go's tests of sync.Cond (sync/cond_test.go), and what is added.

Where the originals sleep so that another goroutine may come to its wait, these look at its
status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked, ready

import mpgort
from mpgort import Chan, SyncError, chan, go, goid, gosched, spawn, sync

Run = Callable[..., Any]


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
