"""Timers as handles: the same in every process, gone with the last one. Ours; what is ported of Go
is in test_time.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from test_time import send_index

import mpgort
from mpgort import (
    Chan,
    Ticker,
    Timer,
    _core,
    after,
    after_func,
    chan,
    context,
    go,
    gosched,
    sleep,
    spawn,
)

Run = Callable[..., Any]
HOUR = 3600.0


# ---- handles ---------------------------------------------------------------------------------


@dataclass
class Kept:
    timers: dict[str, Timer | Ticker]
    ctx: context.Context
    cancel: context.CancelFunc


async def cancel_kept(kept: Kept, back: Chan[Kept]) -> None:
    kept.cancel(KeyError("kept"))
    kept.timers["t"].stop()
    await back.send(kept)


async def inside_of_others() -> None:
    ctx, cancel = context.with_timeout(context.background(), HOUR)
    kept = Kept({"t": Timer(HOUR), "k": Ticker(HOUR), "f": after_func(HOUR, gosched)}, ctx, cancel)
    back: Chan[Kept] = chan()
    go(cancel_kept, kept, back)
    assert await back.recv() == kept
    assert isinstance(context.cause(ctx), KeyError)
    assert [t.stop() for t in kept.timers.values()] == [False, None, True]


def test_timers_and_contexts_cross_inside_of_other_objects(run: Run) -> None:
    run(inside_of_others)


async def stop_there(t: Timer, back: Chan[Any]) -> None:
    assert t.c is not None
    await back.send((t, t.c, hash(t), t.stop()))


async def across() -> None:
    t = Timer(HOUR)
    back: Chan[Any] = chan()
    for _ in range(3):
        go(stop_there, t, back)
    got = [await back.recv() for _ in range(3)]
    assert sorted(x[3] for x in got) == [False, False, True]
    for other, c, h, _ in got:
        assert other == t and h == hash(t) and c == t.c
    assert t != t.c and t.c != t and t != Timer(HOUR)
    k = Ticker(HOUR)
    assert k.c == k.c and k != k.c
    f = after_func(HOUR, gosched)
    assert f.c is None and f.stop() and not f.stop()


def test_a_timer_is_the_same_in_every_process(run: Run) -> None:
    run(across)


async def left_behind() -> object:
    Ticker(0.001)
    for _ in range(100):
        Timer(HOUR)
        after(HOUR)
    await chan().recv()


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_timers_nobody_can_reach_do_not_hide_a_deadlock(procs: int) -> None:
    with pytest.raises(mpgort.Deadlock):
        mpgort.run(left_behind, procs=procs)


async def wait_then_fail() -> None:
    after_func(0.02, fail)
    await chan().recv()


def fail() -> None:
    raise KeyError("from the timer")


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_a_pending_function_keeps_a_sleeping_program_alive_and_its_panic_ends_it(
    procs: int,
) -> None:
    with pytest.raises(mpgort.GoroutinePanic) as e:
        mpgort.run(wait_then_fail, procs=procs)
    assert isinstance(e.value.__cause__, KeyError)


async def not_started() -> tuple[int, str]:
    timers = [after_func(HOUR, gosched) for _ in range(5)]
    n = mpgort.num_goroutine()
    for t in timers:
        t.stop()
    while mpgort.num_goroutine() != 1:
        await gosched()
    return n, "ok"


def test_a_pending_function_is_no_goroutine_yet(run: Run) -> None:
    assert run(not_started) == (1, "ok")


async def again_and_again() -> list[int]:
    fired: Chan[int] = chan(10)
    t = after_func(0, send_index, 7, fired)
    got = [await fired.recv()]
    for _ in range(4):
        assert t.reset(0.001) is False
        got.append(await fired.recv())
    return got


def test_reset_starts_a_function_once_more(run: Run) -> None:
    """Go time.Timer.Reset: "f will be called in its own goroutine"."""
    assert run(again_and_again) == [7] * 5


async def no_number(make: str) -> None:
    {"after": after, "Timer": Timer, "Ticker": Ticker, "sleep": sleep}[make](math.nan)


@pytest.mark.parametrize("make", ["after", "Timer", "Ticker", "sleep"])
def test_nan_is_an_error_that_names_the_call(make: str) -> None:
    with pytest.raises(ValueError, match=f"^{make}: a number of seconds is needed, not nan$"):
        mpgort.run(no_number, make, procs=0)


def test_a_timer_outside_a_goroutine_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"Timer\(\) outside a goroutine"):
        Timer(1)


# ---- nothing stays ---------------------------------------------------------------------------

ROOM = 300  # handles that sleeping Ms keep alive a while longer, and tables that grow


async def churn(n: int) -> None:
    fired: Chan[int] = chan(n)
    for i in range(n):
        Timer(HOUR)
        Ticker(HOUR)
        after(HOUR)
        after_func(HOUR, send_index, i, fired).stop()
        after_func(0, send_index, i, fired).reset(0.0001)
        root, cancel = context.with_timeout(context.with_value(context.background(), i, [i]), HOUR)
        kid, _ = context.with_cancel(context.with_value(root, "k", "v" * 100))
        assert kid.value(i) == [i]
        if i % 2:
            go(receive, kid.done())
        if i % 3:
            cancel(ValueError("enough"))
            assert context.cause(kid) is not None
        else:
            context.with_timeout(kid, 0.0001)
            cancel()
        await fired.recv()


async def receive(ch: Chan[Any]) -> None:
    await ch.recv()


async def blocks_after(n: int, at_most: float) -> int:
    """How many blocks the heap has once it has no more than that, or ten seconds later."""
    prog = _core.current()
    assert prog is not None
    await spawn(churn, n)
    deadline = time.monotonic() + 10
    while True:
        await sleep(0.03)
        blocks: int = prog.stats()["live_blocks"]
        if blocks <= at_most or time.monotonic() > deadline:
            return blocks


async def leaks() -> tuple[int, int]:
    for _ in range(3):
        first = await blocks_after(100, math.inf)
    return first, await blocks_after(800, first + ROOM)


def test_timers_and_contexts_leave_no_block_behind(run: Run) -> None:
    first, then = run(leaks)
    assert then <= first + ROOM
