"""kill and spawn(timeout=): a goroutine is ended from outside, whatever it does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from goroutines import stands, until

import mpgort
from mpgort import (
    Chan,
    Goroutine,
    Group,
    Killed,
    Runtime,
    chan,
    go,
    gosched,
    num_goroutine,
    select,
    sleep,
    spawn,
    to_thread,
)

LIMIT = 20.0


async def outcome(h: Goroutine) -> str:
    try:
        return repr(await h)
    except Exception as e:
        return f"{type(e).__name__}: {e}"


async def receives(ch: Chan, log: Chan) -> None:
    try:
        await ch.recv()
    finally:
        await log.send("finally")


async def sends(ch: Chan, log: Chan) -> None:
    try:
        await ch.send("never")
    finally:
        await log.send("finally")


async def selects(ch: Chan, log: Chan) -> None:
    try:
        await select(ch.recv, chan().recv)
    finally:
        await log.send("finally")


async def sleeps(ch: Chan, log: Chan) -> None:
    try:
        await sleep(1000)
    finally:
        await log.send("finally")


async def with_file(ch: Chan, log: Chan) -> None:
    with open("/dev/null") as f:
        try:
            await ch.recv()
        finally:
            f.read()
            await log.send("finally")


async def kill_parked(fn: Callable[..., Any], reason: str) -> list[Any]:
    ch, log = chan(), chan(5)
    h = spawn(fn, ch, log)
    await until(lambda: h.status() == reason)
    # It may be just parking: then its own M ends it.
    seen: list[Any] = [h.kill(), await outcome(h), h.status(), h.kill(), len(log)]
    # It is in no queue any more: what is sent and received next passes it by.
    go(ch.send, "kept")
    seen.append(await ch.recv())
    await until(lambda: num_goroutine() == 1)
    return seen


PARKED = [
    (receives, "chan receive"),
    (sends, "chan send"),
    (selects, "select"),
    (sleeps, "sleep"),
    (with_file, "chan receive"),
]


@pytest.mark.parametrize("fn,reason", PARKED, ids=lambda x: getattr(x, "__name__", ""))
def test_a_parked_goroutine_ends_at_once_without_its_finally(
    fn: Callable[..., Any], reason: str, procs: int
) -> None:
    assert mpgort.run(kill_parked, fn, reason, procs=procs) == [
        True,
        "Killed: the goroutine was killed",
        "killed",
        False,
        0,
        "kept",
    ]


async def runs(log: Chan, i: int) -> None:
    await log.send(i)


async def kill_runnable(n: int, procs: int, told: Path) -> tuple[set[str], int]:
    held = [spawn(computes_until, str(told)) for _ in range(procs)]
    await until(lambda: all(h.status() == "running" for h in held))
    log = chan(n)
    handles = [spawn(runs, log, i) for i in range(n)]
    for h in handles:
        h.kill()
    told.touch()
    results = {await outcome(h) for h in handles}
    assert [await h for h in held] == [True] * procs
    await until(lambda: num_goroutine() == 1)
    return results, len(log)


def computes_until(told: str) -> bool:
    """Computes, so that the keeper gives nobody else its P."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if os.path.exists(told):
            return True
    return False


def test_a_runnable_goroutine_that_is_killed_never_runs(procs: int, tmp_path: Path) -> None:
    results, ran = mpgort.run(kill_runnable, 50, procs, tmp_path / "told", procs=procs)
    assert (results, ran) == ({"Killed: the goroutine was killed"}, 0)


async def kill_while_they_run(n: int) -> None:
    log = chan(n)
    handles = [spawn(runs, log, i) for i in range(n)]
    for h in handles:
        h.kill()
    results = [await outcome(h) for h in handles]
    assert set(results) <= {"None", "Killed: the goroutine was killed"}
    await until(lambda: num_goroutine() == 1)
    log.close()
    ran = [i async for i in log]
    assert len(ran) == len(set(ran))  # those killed at their end are among them
    assert {i for i, r in enumerate(results) if r == "None"} <= set(ran)


def test_of_a_start_and_a_kill_one_wins_and_nothing_is_run_twice(procs: int) -> None:
    mpgort.run(kill_while_they_run, 50, procs=procs)


async def calls_without_parking(log: Chan) -> None:
    ch = chan(1)
    try:
        while True:
            await ch.send(1)
            await ch.recv()
    finally:
        await log.send("finally")


async def kill_running(fn: Callable[..., Any]) -> list[Any]:
    log = chan(1)
    h = spawn(fn, log)
    await until(lambda: h.status() in ("running", "runnable"))
    await sleep(0.01)
    pids = {os.getpid()}
    return [h.kill(), await outcome(h), len(log), len(pids)]


def test_one_that_never_parks_ends_at_its_next_runtime_call(procs: int) -> None:
    expected = [True, "Killed: the goroutine was killed", 0, 1]
    assert mpgort.run(kill_running, calls_without_parking, procs=procs) == expected


async def two_ways(a: Chan, b: Chan) -> str:
    return str(await b.recv())


async def kill_twice_and_await_everywhere() -> list[str]:
    h = spawn(receives, chan(), chan(1))
    waiters = [spawn(outcome, h) for _ in range(5)]
    await until(lambda: h.status() == "chan receive")
    await until(lambda: all(w.status() == "join" for w in waiters))
    go(h.kill)
    go(h.kill)
    return [await w for w in waiters]


def test_every_waiter_sees_the_kill(procs: int) -> None:
    expected = ["Killed: the goroutine was killed"] * 5
    assert mpgort.run(kill_twice_and_await_everywhere, procs=procs) == expected


async def kills_itself(out: Chan) -> None:
    h = await out.recv()
    h.kill()
    await chan().recv()


async def suicide() -> str:
    out = chan()
    h = spawn(kills_itself, out)
    await out.send(h)
    return await outcome(h)


def test_a_goroutine_can_kill_itself(procs: int) -> None:
    assert mpgort.run(suicide, procs=procs) == "Killed: the goroutine was killed"


async def group_with_killed() -> list[str]:
    try:
        async with Group() as g:
            victim = g.spawn(receives, chan(), chan(1))
            other = g.spawn(receives, chan(), chan(1))
            await until(lambda: {victim.status(), other.status()} == {"chan receive"})
            victim.kill()
            await chan().recv()
    except ExceptionGroup as e:
        return [str(x) for x in e.exceptions] + [other.status()]
    return []


def test_a_killed_child_is_a_failure_of_its_group(procs: int) -> None:
    expected = ["the goroutine was killed", "cancelled"]
    assert mpgort.run(group_with_killed, procs=procs) == expected


async def parent(out: Chan) -> None:
    async with Group() as g:
        await out.send(g.spawn(receives, chan(), chan(1)))
        await chan().recv()


async def kill_parent() -> str:
    out = chan()
    h = spawn(parent, out)
    child = await out.recv()
    await until(lambda: h.status() == child.status() == "chan receive")
    h.kill()
    await until(child.done)
    return child.status()


def test_the_children_of_a_killed_parent_are_cancelled(procs: int) -> None:
    assert mpgort.run(kill_parent, procs=procs) == "cancelled"


async def storm(n: int) -> dict[str, int]:
    ch = chan()

    async def pairs(i: int) -> int:
        for k in range(40):
            if (i + k) % 2:
                await select((ch.send, i), ch.recv)
            else:
                await gosched()
        return i

    handles = [spawn(pairs, i) for i in range(n)]
    for i, h in enumerate(handles):
        if i % 3 == 0:
            await gosched()
        h.kill()
    ends: dict[str, int] = {}
    for h in handles:
        text = (await outcome(h)).split(":")[0]
        ends["done" if text.isdigit() else text] = ends.get(text, 0) + 1
    await until(lambda: num_goroutine() == 1)
    return ends


def test_a_storm_of_kills_leaves_nobody_behind(procs: int) -> None:
    with Runtime(procs=procs) as rt:
        ends = rt.spawn(storm, 100).result(timeout=60) if procs else {}
    if not procs:
        ends = mpgort.run(storm, 100, procs=0)
    assert set(ends) <= {"Killed", "done"}


# ---- timeout ---------------------------------------------------------------------------------


async def timeouts() -> list[Any]:
    start = time.monotonic()
    slow = spawn(receives, chan(), chan(1), timeout=0.05)
    quick = spawn(two_ways, chan(), chan(), timeout=LIMIT)
    never = spawn(sleep_and_say, 0.01, timeout=None)
    seen = [await outcome(slow), time.monotonic() - start >= 0.05, slow.status()]
    quick.kill()
    seen += [await outcome(quick), await outcome(never)]
    done = spawn(sleep_and_say, 0.0, timeout=1)
    seen.append(await outcome(done))
    await sleep(1.1)
    seen.append(await outcome(done))  # its deadline passes by a result
    return seen


async def sleep_and_say(s: float) -> str:
    await sleep(s)
    return "slept"


def test_timeout_is_a_kill_at_the_deadline(procs: int) -> None:
    assert mpgort.run(timeouts, procs=procs) == [
        "TimeoutError: the goroutine ran longer than its timeout",
        True,
        "killed",
        "Killed: the goroutine was killed",
        "'slept'",
        "'slept'",
        "'slept'",
    ]


async def no_time_at_all() -> str:
    return await outcome(spawn(sleep_and_say, 1, timeout=0))


def test_a_timeout_of_nothing_ends_it_before_it_can_do_much(procs: int) -> None:
    expected = "TimeoutError: the goroutine ran longer than its timeout"
    assert mpgort.run(no_time_at_all, procs=procs) == expected


async def takes_timeout(timeout: float) -> float:
    return timeout


async def passes_timeout() -> Any:
    import functools

    try:
        spawn(takes_timeout, timeout="soon")
    except TypeError:
        return await spawn(functools.partial(takes_timeout, timeout=3.5))


def test_timeout_is_spawns_own_keyword(procs: int) -> None:
    assert mpgort.run(passes_timeout, procs=procs) == 3.5


async def deadline_is_no_deadlock() -> str:
    return await outcome(spawn(chan().recv, timeout=0.2))


def test_a_program_that_waits_for_a_deadline_is_not_dead(procs: int) -> None:
    expected = "TimeoutError: the goroutine ran longer than its timeout"
    assert mpgort.run(deadline_is_no_deadlock, procs=procs) == expected


async def thread_is_left(told: Path) -> str:
    async def waits() -> None:
        await to_thread(stands, str(told))

    said = await outcome(spawn(waits, timeout=0.05))
    told.touch()
    return said


def test_a_timeout_does_not_wait_for_a_thread(procs: int, tmp_path: Path) -> None:
    expected = "TimeoutError: the goroutine ran longer than its timeout"
    assert mpgort.run(thread_is_left, tmp_path / "told", procs=procs) == expected


def test_a_kill_from_a_plain_thread() -> None:
    with Runtime(procs=1) as rt:
        h = rt.spawn(chan_of_its_own)
        while h.status() != "chan receive":
            time.sleep(0.001)
        assert h.kill()
        with pytest.raises(Killed):
            h.result(timeout=LIMIT)


async def chan_of_its_own() -> None:
    await chan().recv()


# ---- those that never yield ------------------------------------------------------------------


def computes() -> None:
    while True:
        pass


def sits_in_a_call() -> None:
    time.sleep(1000)


async def computes_in_a_coroutine() -> None:
    await gosched()
    while True:
        pass


def waits_in_a_plain_function() -> None:
    chan().get()


def holds_the_gil() -> None:
    pow(3, 10**9)


HOGS = [computes, sits_in_a_call, computes_in_a_coroutine, waits_in_a_plain_function, holds_the_gil]


async def naps(n: int) -> int:
    for _ in range(n):
        await sleep(0.001)
    return n


async def kill_hog(fn: Callable[..., Any], rounds: int) -> list[Any]:
    seen: list[Any] = []
    state = "chan receive" if fn is waits_in_a_plain_function else "running"
    for _ in range(rounds):
        others = [spawn(naps, 100) for _ in range(10)]
        h = spawn(fn)
        while h.status() != state:
            await sleep(0.001)
        h.kill()
        seen += [await outcome(h), [await x for x in others] == [100] * 10]
    return seen


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("fn", HOGS)
@pytest.mark.parametrize("procs", [1, 2])
def test_a_hog_ends_with_its_process_and_every_other_goroutine_goes_on(
    fn: Callable[..., Any], procs: int
) -> None:
    expected = ["Killed: the goroutine was killed", True] * 2
    assert mpgort.run(kill_hog, fn, 2, procs=procs) == expected


ended_by: list[str] = []


def waits_and_tells() -> None:
    try:
        chan().get()
    except BaseException as e:
        ended_by.append(type(e).__name__)
        raise


async def kill_waiting_plain_function() -> str:
    h = spawn(waits_and_tells)
    while h.status() != "chan receive":
        await sleep(0.001)
    h.kill()
    return await outcome(h)


def test_without_workers_the_wait_of_a_plain_function_that_is_killed_raises_killed() -> None:
    ended_by.clear()
    assert mpgort.run(kill_waiting_plain_function, procs=0) == "Killed: the goroutine was killed"
    assert ended_by == ["Killed"]


def is_killed_and_waits(up: Chan, stubborn: str) -> None:
    up.get().kill()
    while True:
        try:
            chan().get()
        except Exception:
            while stubborn == "computes":
                pass
            if not stubborn:
                raise


async def heavy_parent(held: str) -> tuple[str, int]:
    """Its M is the child's, too, if there is one only."""
    up = chan(1)
    h = spawn(is_killed_and_waits, up, "")
    await up.send(h)
    return await outcome(h), len(held)


@pytest.mark.usefixtures("auto")
def test_a_plain_function_that_waits_where_others_are_at_home_is_killed_and_they_go_on(
    procs: int,
) -> None:
    expected = ("Killed: the goroutine was killed", 20_000)
    assert mpgort.run(heavy_parent, "x" * 20_000, procs=procs) == expected


async def at_home(up: Chan, held: str) -> int:
    await up.send(None)
    await chan().recv()
    return len(held)


async def kill_the_stubborn(stubborn: str) -> tuple[str, str, int]:
    up = chan()
    guest = spawn(at_home, up, "x" * 20_000)
    await up.recv()
    h = spawn(is_killed_and_waits, up, stubborn)
    await up.send(h)
    end = await outcome(h), (await outcome(guest)).split()[0]
    return *end, mpgort._core.current().stats()["deaths"]


@pytest.mark.usefixtures("auto")
@pytest.mark.parametrize("stubborn", ["computes", "waits"])
def test_one_that_goes_on_after_it_was_told_ends_with_its_process(stubborn: str) -> None:
    expected = ("Killed: the goroutine was killed", "MDied:", 1)
    assert mpgort.run(kill_the_stubborn, stubborn, procs=1) == expected


async def hog_with_deadline() -> list[str]:
    return [await outcome(spawn(computes, timeout=0.05)) for _ in range(2)]


@pytest.mark.parametrize("procs", [1, 2])
def test_a_hog_ends_at_its_deadline(procs: int) -> None:
    expected = ["TimeoutError: the goroutine ran longer than its timeout"] * 2
    assert mpgort.run(hog_with_deadline, procs=procs) == expected


async def group_with_hog() -> list[str]:
    try:
        async with Group() as g:
            g.spawn(computes, timeout=0.05)
            other = g.spawn(receives, chan(), chan(1))
    except ExceptionGroup as e:
        return [str(x) for x in e.exceptions] + [other.status()]
    return []


@pytest.mark.parametrize("procs", [1, 2])
def test_a_hog_at_its_deadline_is_a_failure_of_its_group(procs: int) -> None:
    expected = ["the goroutine ran longer than its timeout", "cancelled"]
    assert mpgort.run(group_with_hog, procs=procs) == expected


async def group_with_dead(signal_number: int) -> list[str]:
    gate = chan()
    try:
        async with Group(limit=1) as g:
            g.spawn(dies, gate, signal_number)
            rest = [g.spawn(naps, 1) for _ in range(3)]
            await gate.send(None)
    except ExceptionGroup as e:
        return [type(x).__name__ for x in e.exceptions] + [h.status() for h in rest]
    return []


async def dies(gate: Chan, signal_number: int) -> None:
    await gate.recv()
    os.kill(os.getpid(), signal_number)
    time.sleep(LIMIT)


@pytest.mark.parametrize("procs", [1, 2])
def test_a_child_whose_process_dies_is_a_failure_and_gives_its_place_back(procs: int) -> None:
    expected = ["MDied", "cancelled", "cancelled", "cancelled"]
    assert mpgort.run(group_with_dead, 9, procs=procs) == expected
