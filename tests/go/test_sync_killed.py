"""Who holds a lock, or waits for one, is killed: nobody waits for ever, and all are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from goroutines import parked

import mpgort
from mpgort import Chan, SyncError, chan, goid, gosched, spawn, sync

Run = Callable[..., Any]


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
