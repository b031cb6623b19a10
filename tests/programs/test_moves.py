"""Moves are unobservable: whatever a goroutine holds when it parks, it holds when it goes on.

Run with MPGORT_MIGRATE=always every park is a trip through bytes, on three workers, and every
result is compared with that of the same arithmetic by a plain loop."""

import os
from typing import Any

import pytest

import mpgort
from mpgort import Chan, Runtime, chan, go, gosched, spawn


async def leaf(x: int) -> int:
    """Three frames deep, with something on each frame's stack while it is parked."""
    return x + await lower(x) * 2


async def lower(x: int) -> int:
    await gosched()
    return x % 7


async def wander(seed: int, parks: int) -> tuple[int, list[int]]:
    """Parks `parks` times with all kinds of locals alive. Returns a checksum of them and the
    processes that it has run on."""
    pids: list[int] = []
    numbers = [seed]
    same = numbers
    pair: list[Any] = [numbers, None]
    pair[1] = pair  # a cycle
    table = {"sum": 0, (seed, "key"): 1.5}
    text = f"goroutine {seed}"
    seen: set[int] = set()
    total = 0

    def bump(k: int) -> None:
        nonlocal total
        total += k

    rest = iter(range(1, parks + 1))
    letters = iter(text)
    for i in rest:
        pid = os.getpid()
        if pid not in pids:
            pids.append(pid)
        bump(await leaf(i + seed))
        numbers.append(total % 1009)
        if len(numbers) > 8:
            del numbers[0]
        table["sum"] = sum(numbers)
        seen.add(i % 11)
        letter = next(letters, None)
        if letter is None:
            letters = iter(text)
        else:
            total += ord(letter)
        assert same is numbers and pair[0] is numbers and pair[1] is pair
        assert table[(seed, "key")] == 1.5 and text == f"goroutine {seed}"
    assert seen == {i % 11 for i in range(1, parks + 1)}
    return total * 31 + table["sum"], pids


def expected(seed: int, parks: int) -> int:
    """The checksum of `wander` by a plain loop."""
    total, numbers, text = 0, [seed], f"goroutine {seed}"
    letters = iter(text)
    for i in range(1, parks + 1):
        x = i + seed
        total += x + x % 7 * 2
        numbers = [*numbers, total % 1009][-8:]
        letter = next(letters, None)
        if letter is None:
            letters = iter(text)
        else:
            total += ord(letter)
    return total * 31 + sum(numbers)


async def wander_and_report(seed: int, parks: int, out: Chan) -> None:
    await out.send((seed, *await wander(seed, parks)))


@pytest.fixture(params=["always", "as it comes", "never"])
def migrate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "as it comes":
        monkeypatch.delenv("MPGORT_MIGRATE", raising=False)
    else:
        monkeypatch.setenv("MPGORT_MIGRATE", request.param)
    return request.param


def test_a_thousand_goroutines_that_move_at_every_park_compute_as_if_they_had_not(
    migrate: str,
) -> None:
    count, parks = 1000, 100
    with Runtime(procs=3) as rt:
        out = rt.chan(64)
        for seed in range(count):
            rt.go(wander_and_report, seed, parks, out)
        results = [out.get(timeout=60) for _ in range(count)]
        rt.shutdown(timeout=20)
    assert {seed: value for seed, value, _ in results} == {
        seed: expected(seed, parks) for seed in range(count)
    }
    everywhere = {pid for _, _, pids in results for pid in pids}
    moved = sum(len(pids) > 1 for _, _, pids in results)
    assert os.getpid() not in everywhere
    if migrate == "always":
        assert len(everywhere) >= 3  # more: a spare M took the P of one that the machine let stand
        assert moved > count // 2
    if migrate == "never":
        assert moved == 0


async def until_all_have_ended(count: int, parks: int) -> list[int]:
    handles = [spawn(wander, seed, parks) for seed in range(count)]
    return [(await h)[0] for h in handles]


def test_no_continuation_is_left_when_all_goroutines_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPGORT_MIGRATE", "always")
    with Runtime(procs=3) as rt:
        before = rt.stats()["live_conts"]
        values = rt.spawn(until_all_have_ended, 200, 20).result(timeout=60)
        after = rt.stats()["live_conts"]
    assert values == [expected(seed, 20) for seed in range(200)]
    assert (before, after) == (0, 0)


# ---- what is shared by two frames ------------------------------------------------------------


async def append_below(shared: list[int]) -> None:
    await gosched()
    shared.append(2)
    await gosched()


async def share_between_frames() -> list[int]:
    mine = [1]
    await append_below(mine)
    mine.append(3)
    await gosched()
    return mine


async def shared_many_times(n: int) -> list[list[int]]:
    handles = [spawn(share_between_frames) for _ in range(n)]
    return [await h for h in handles]


def test_two_frames_that_hold_one_list_hold_one_list_after_the_move(migrate: str) -> None:
    assert mpgort.run(shared_many_times, 50, procs=3) == [[1, 2, 3]] * 50


async def raise_and_catch(seed: int) -> list[str]:
    log: list[str] = []
    try:
        await gosched()
        try:
            await gosched()
            raise KeyError(seed)
        except KeyError as e:
            await gosched()  # parked inside the handler
            log.append(f"caught {e.args[0]}")
            raise ValueError("again") from e
        finally:
            await gosched()
            log.append("finally")
    except ValueError as e:
        await gosched()
        log.append(f"{e}, from {e.__cause__!r}")
    async with Gate() as gate:
        await gosched()
        log.append(gate.state)
    log.append(gate.state)
    async for x in countdown(3):
        log.append(str(x))
    return log


class Gate:
    state = "new"

    async def __aenter__(self) -> "Gate":
        await gosched()
        self.state = "open"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await gosched()
        self.state = "shut"


async def countdown(n: int) -> Any:
    while n:
        await gosched()
        yield n
        n -= 1


async def caught_many_times(n: int) -> list[list[str]]:
    handles = [spawn(raise_and_catch, seed) for seed in range(n)]
    return [await h for h in handles]


def test_handlers_context_managers_and_async_generators_move_in_the_middle(migrate: str) -> None:
    for seed, log in enumerate(mpgort.run(caught_many_times, 50, procs=3)):
        assert log == [
            f"caught {seed}",
            "finally",
            f"again, from KeyError({seed})",
            "open",
            "shut",
            "3",
            "2",
            "1",
        ]


# ---- main is at home -------------------------------------------------------------------------


async def fill(into: list[int], n: int) -> int:
    """As main: `into` is the caller's own list."""
    ch = chan()
    go(feed, ch, n)
    async for i in ch:
        into.append(i)
        await gosched()
    return os.getpid()


async def feed(ch: Chan, n: int) -> None:
    for i in range(n):
        await ch.send(i)
    ch.close()


def test_what_main_appends_to_a_list_of_the_caller_is_there_after_run(migrate: str) -> None:
    mine: list[int] = []
    assert mpgort.run(fill, mine, 100, procs=2) == os.getpid()
    assert mine == list(range(100))
