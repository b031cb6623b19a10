"""gomaxprocs while the program runs; an M that stands in a long call; Ms beyond need."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from goroutines import stands

import mpgort
from mpgort import Chan, chan, go, gomaxprocs, gosched, num_goroutine, sleep, spawn

LIMIT = 20.0


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await sleep(0.001)


def workers() -> int:
    prog = mpgort._core.current()
    assert prog is not None
    return sum(kind == mpgort._core.M_WORKER for _, kind, _, _ in prog.slots())


async def burn(s: float) -> int:
    end = time.perf_counter() + s
    while time.perf_counter() < end:
        await gosched()
    return os.getpid()


def busy(s: float) -> tuple[float, float]:
    """A plain function: from its begin to its end it has an M and a P."""
    begin = time.monotonic()
    while time.monotonic() < begin + s:
        pass
    return begin, time.monotonic()


def most_at_once(spans: list[tuple[float, float]]) -> int:
    edges = sorted([(b, 1) for b, _ in spans] + [(e, -1) for _, e in spans])
    return max(itertools.accumulate(step for _, step in edges))


async def changes(numbers: list[int]) -> list[tuple[int, int, int]]:
    seen = []
    for n in numbers:
        old = gomaxprocs(n)
        assert gomaxprocs() == gomaxprocs(0) == gomaxprocs(-1) == gomaxprocs(None) == n
        await until(lambda n=n: workers() >= n)  # type: ignore[misc]
        handles = [spawn(busy, 0.01) for _ in range(20)]
        seen.append((old, n, most_at_once([await h for h in handles])))
    return seen


@pytest.mark.parametrize("procs", [1, 2, 4])
def test_gomaxprocs_gives_the_old_number_and_no_more_run_at_once(procs: int) -> None:
    numbers = [4, 1, 3, 2, 1, 5, 1]
    seen = mpgort.run(changes, numbers, procs=procs)
    assert [old for old, _, _ in seen] == [procs, *numbers[:-1]]
    assert all(1 <= most <= n for _, n, most in seen), seen
    assert any(most > 1 for _, n, most in seen if n > 2), seen


async def in_a_worker(numbers: list[int]) -> Any:
    return await spawn(changes, numbers)


def test_a_goroutine_on_a_worker_can_change_it() -> None:
    assert [row[0] for row in mpgort.run(in_a_worker, [3, 1, 2], procs=1)] == [1, 3, 1]


async def relay(a: Chan, b: Chan, n: int) -> None:
    for _ in range(n):
        await b.send(await a.recv())


async def nobody_is_lost(rounds: int) -> int:
    chans = [chan(i % 3) for i in range(21)]
    n = 300
    for a, b in zip(chans, chans[1:], strict=False):
        go(relay, a, b, n)
    sleepers = [spawn(naps, 20) for _ in range(30)]

    async def feeds() -> None:
        for i in range(n):
            await chans[0].send(i)

    async def changes_all_the_time() -> None:
        for i in range(rounds):
            gomaxprocs(1 + (i * 7) % 5)
            await sleep(0.001)

    go(feeds)
    changer = spawn(changes_all_the_time)
    got = [await chans[-1].recv() for _ in range(n)]
    assert got == list(range(n))
    await changer
    for h in sleepers:
        await h
    await until(lambda: num_goroutine() == 1)
    return len(got)


async def naps(n: int) -> None:
    for _ in range(n):
        await sleep(0.001)


@pytest.mark.parametrize("procs", [1, 2, 4])
def test_no_goroutine_no_message_and_no_timer_is_lost_while_it_changes(procs: int) -> None:
    assert mpgort.run(nobody_is_lost, 100, procs=procs) == 300


async def bad(n: Any) -> str:
    try:
        return str(gomaxprocs(n))
    except (ValueError, TypeError, RuntimeError) as e:
        return str(e)


def test_what_cannot_be_is_refused_with_the_reason() -> None:
    assert "at most" in mpgort.run(bad, 10_000, procs=1)
    assert "at most" in mpgort.run(bad, 1 << 80, procs=1)
    assert "integer" in mpgort.run(bad, "two", procs=1)
    assert "procs=0" in mpgort.run(bad, 2, procs=0)
    assert mpgort.run(bad, 1, procs=0) == "1"
    assert mpgort.run(bad, mpgort._core.MAX_PROCS, procs=1) == "1"


async def comes_down() -> int:
    gomaxprocs(4)
    await until(lambda: workers() >= 4)
    gomaxprocs(1)
    end = time.monotonic() + LIMIT
    while workers() > 1 and time.monotonic() < end:
        await sleep(0.05)
    n = workers()
    assert await spawn(burn, 0.0)  # and the one that is left works
    return n


def test_ms_beyond_need_leave() -> None:
    assert mpgort.run(comes_down, procs=1) == 1


# ---- an M that stands ------------------------------------------------------------------------


async def chain(n: int) -> None:
    for _ in range(n):
        await spawn(burn, 0.0)


async def beside_a_blocked(n: int, told: Path) -> list[bool]:
    blocked = [spawn(stands, str(told)) for _ in range(n)]
    await until(lambda: all(h.status() == "running" for h in blocked[: gomaxprocs()]))
    await spawn(chain, 50)
    told.touch()
    return [await h for h in blocked]


@pytest.mark.parametrize("procs", [1, 2])
def test_a_worker_in_a_long_call_gives_its_place_to_another(procs: int, tmp_path: Path) -> None:
    """Go retake(): the P of an M that sits in a system call goes to a spare M."""
    assert mpgort.run(beside_a_blocked, procs, tmp_path / "told", procs=procs) == [True] * procs


async def queued_behind(told: Path) -> bool:
    """What lies in the ring of the M that stands is run by another."""

    async def spawns_then_blocks(out: Chan) -> bool:
        for i in range(5):
            go(out.send, i)
        return stands(str(told))

    out = chan(5)
    h = spawn(spawns_then_blocks, out)
    for _ in range(5):
        await out.recv()
    told.touch()
    stood: bool = await h
    return stood


@pytest.mark.parametrize("procs", [1, 2])
def test_those_queued_behind_a_blocked_one_are_taken_over(procs: int, tmp_path: Path) -> None:
    assert mpgort.run(queued_behind, tmp_path / "told", procs=procs)
