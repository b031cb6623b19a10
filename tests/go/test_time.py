"""Go's tests of timers: time/sleep_test.go, time/tick_test.go and runtime/proc_test.go.

Each runs with 0, 1, 2 and 4 processors, and where every park moves (MPGORT_MIGRATE=always). "Not
before" and order are asserted, never "not later": a machine may be slow. The meaning is that of
Go 1.23: where the originals drain a channel after Stop, these assert that nothing is there.

Not ported: TestIssue5745, TestZeroTimerResetPanics and ..StopPanics (no zero value of a Timer),
TestOverflowPeriodRuntimeTimer and TestTick (no such function here), TestSleepZeroDeadlock (asks for
Go's collector)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mpgort
from mpgort import (
    Chan,
    Ticker,
    Timer,
    after,
    after_func,
    chan,
    context,
    default,
    go,
    gosched,
    select,
    sleep,
    spawn,
)

Run = Callable[..., Any]
HOUR = 3600.0


async def pending(ch: Chan[Any]) -> bool:
    """Is there something to receive now?"""
    i, _ = await select(ch.recv, default)
    return i == 0


# ---- not before, in order --------------------------------------------------------------------


async def sleeps() -> list[float]:
    took = []
    for s in (0.02, 0.001, 0.0, -1.0):
        t0 = time.monotonic()
        await sleep(s)
        took.append(time.monotonic() - t0 - s)
    return took


def test_sleep_never_returns_too_early(run: Run) -> None:
    """Go TestSleep."""
    assert min(run(sleeps)) >= 0


async def afters() -> list[float]:
    early = []
    for s in (0.02, 0.0, -3.0):
        t0 = time.monotonic()
        c = after(s)
        early.append(await c.recv() - t0 - max(s, 0.0))
    return early


def test_after_sends_the_time_of_its_firing_and_not_before(run: Run) -> None:
    """Go TestAfter."""
    assert min(run(afters)) >= 0


async def count_down(i: int, c: Chan[bool]) -> None:
    if i == 0:
        await c.send(True)
    else:
        after_func(0, count_down, i - 1, c)


async def chain_of_funcs() -> object:
    c: Chan[bool] = chan()
    after_func(0, count_down, 10, c)
    return await c.recv()


def test_an_after_func_may_start_the_next(run: Run) -> None:
    """Go TestAfterFunc."""
    assert run(chain_of_funcs) is True


async def await_slot(slot: int, result: Chan[tuple[int, float]], c: Chan[float]) -> None:
    await result.send((slot, await c.recv()))


async def queue_slots(slots: list[int], delta: float) -> list[tuple[int, float]]:
    result: Chan[tuple[int, float]] = chan(len(slots))
    while True:  # until all were set before the first was due
        t0 = time.monotonic() + 0.02
        timers = [after(t0 + slot * delta - time.monotonic()) for slot in slots]
        if time.monotonic() < t0:
            break
    for slot, timer in zip(slots, timers, strict=True):
        go(await_slot, slot, result, timer)
    got = [await result.recv() for _ in slots]
    return [(slot, t - t0) for slot, t in got]


def test_timers_fire_in_the_order_of_their_times(run: Run) -> None:
    """Go TestAfterQueuing. By the times that they send: who gets to run first is another matter."""
    slots, delta = [5, 3, 6, 6, 6, 1, 1, 2, 7, 9, 4, 8, 0], 0.01
    got = run(queue_slots, slots, delta)
    assert sorted(slot for slot, _ in got) == sorted(slots)
    for slot, t in got:
        assert t >= slot * delta - 1e-6
    for slot, t in got:
        assert all(t <= u for other, u in got if other > slot)


# ---- stop and reset --------------------------------------------------------------------------


async def send_true(c: Chan[bool]) -> None:
    await c.send(True)


async def stopped() -> list[bool]:
    after_func(0.01, gosched)
    t0 = Timer(20)
    c1: Chan[bool] = chan(1)
    t1 = after_func(30, send_true, c1)
    seen = [t0.stop(), t1.stop()]
    t0.reset(0.0)  # fires, and is stopped with its value in the channel
    await sleep(0.01)
    seen += [t0.stop(), await pending(t0.c), await pending(c1), t1.stop(), t0.stop()]
    return seen


def test_nothing_is_received_after_stop(run: Run) -> None:
    """Go TestAfterStop, with 1.23's rule: Stop after an unread firing is True and takes it away."""
    assert run(stopped) == [True, True, True, False, False, False, False]


async def stop_stress(n: int) -> list[bool]:
    fired: Chan[int] = chan(n)
    timers = [after_func(HOUR, send_index, i, fired) for i in range(n)]
    await gosched()
    return [t.stop() for t in timers] + [await pending(fired)]


async def send_index(i: int, fired: Chan[int]) -> None:
    await fired.send(i)


def test_many_stopped_functions_never_start(run: Run) -> None:
    """Go TestTimerStopStress, without its wait of 3 s."""
    assert run(stop_stress, 100) == [True] * 100 + [False]


async def resets(d: float) -> None:
    t0 = Timer(2 * d * 1000)
    await sleep(d)
    assert t0.reset(3 * d * 1000), "resetting an unfired timer returned False"
    assert not await pending(t0.c), "timer fired early"
    begun = time.monotonic()
    assert t0.reset(2 * d)
    assert await t0.c.recv() >= begun + 2 * d
    assert not t0.reset(50 * d), "resetting an expired timer returned True"
    t0.reset(0)
    await sleep(d)  # fired, unread
    begun = time.monotonic()
    assert t0.reset(d), "a value nobody received counts as active"
    assert await t0.c.recv() >= begun + d, "a stale value was received after reset"


def test_reset_moves_the_firing_and_no_stale_value_is_received(run: Run) -> None:
    """Go TestReset, with 1.23's rule for a value that nobody has received."""
    run(resets, 0.005)


async def overflow() -> list[object]:
    seen: list[object] = []
    go(sleep, 1e300)
    for never in (1e300, math.inf, 9.3e9):
        i, _ = await select(after(never).recv, after(0.005).recv)
        seen.append(i)
    t = Timer(math.inf)
    seen += [t.stop(), t.stop(), t.reset(math.inf), t.reset(0.0), (await t.c.recv()) > 0]
    f = after_func(math.inf, gosched)
    seen += [f.reset(1e300), f.stop(), f.stop()]
    await sleep(-math.inf)
    i, _ = await select(after(-math.inf).recv, after(HOUR).recv)
    return [*seen, i]


def test_absurdly_long_never_fires_and_negative_at_once(run: Run) -> None:
    """Go TestOverflowSleep."""
    assert run(overflow) == [1, 1, 1, True, False, False, True, True, True, True, False, 0]


async def zero_timers(n: int) -> int:
    for _ in range(n):
        await Timer(0).c.recv()
    return n


def test_a_timer_of_zero_is_never_missed(run: Run) -> None:
    """Go TestZeroTimer (issue 44868), 1,000,000 of them there."""
    assert run(zero_timers, 3000) == 3000


async def modified_earlier(n: int) -> int:
    for _ in range(n):
        timer = Timer(HOUR)
        for _ in range(10):
            timer.stop()
            timer.reset(-1e9)
        i, _ = await select(timer.c.recv, after(50).recv)
        assert i == 0, "deadline expired"
    return n


def test_a_timer_moved_earlier_is_not_dropped(run: Run) -> None:
    """Go TestTimerModifiedEarlier (issue 47329), 1000 times there."""
    assert run(modified_earlier, 200) == 200


async def adjust(n: int, seed: int) -> int:
    rnd = random.Random(seed)
    timers: list[Timer | None] = [None] * n
    states = [0] * n
    left = list(range(n))
    while left:
        i = rnd.choice(left)
        timer, state = timers[i], states[i]
        states[i] += 1
        if state == 0:
            timers[i] = Timer(0)
            continue
        assert timer is not None and timer.c is not None
        if state in (1, 9):
            await timer.c.recv()
        elif state in (2, 4, 6):
            assert not timer.reset(60.0 * state), f"shouldn't be active ({state})"
        elif state in (3, 5, 7):
            assert timer.stop(), f"timer {i} state {state}: stop returned False"
        elif state == 8:
            assert not timer.reset(0)
        else:
            left.remove(i)
    return n


def test_timers_moved_to_and_fro_lose_nothing(run: Run) -> None:
    """Go TestAdjustTimers (issue 47762)."""
    assert run(adjust, 100, random.randrange(1 << 30)) == 100


# ---- tickers ---------------------------------------------------------------------------------


async def ticks(count: int, delta: float) -> None:
    t0 = time.monotonic()
    ticker = Ticker(delta)
    times = [await ticker.c.recv() for _ in range(count // 2)]
    assert times[0] >= t0 + delta
    assert times == sorted(times)
    t1 = time.monotonic()
    ticker.reset(2 * delta)
    times = [await ticker.c.recv() for _ in range(count // 2)]
    assert times[0] >= t1 + 2 * delta, "a tick of before the reset"
    ticker.stop()
    await sleep(3 * delta)
    assert not await pending(ticker.c), "Ticker did not shut down"


def test_a_ticker_ticks_at_its_period_until_it_is_stopped(run: Run) -> None:
    """Go TestTicker, without its upper bound."""
    run(ticks, 10, 0.004)


async def slow_receiver() -> tuple[int, int, int]:
    ticker = Ticker(0.001)
    await sleep(0.05)
    n = len(ticker.c), ticker.c.cap
    got = 0
    while await pending(ticker.c):
        got += 1
        if got > 1:  # one that was kept, and what ticks while we look
            ticker.stop()
    ticker.stop()
    return n[0], n[1], got


def test_ticks_for_a_slow_receiver_are_dropped(run: Run) -> None:
    """Go time.NewTicker: "drop ticks to make up for slow receivers"; len and cap as since 1.23."""
    length, cap, got = run(slow_receiver)
    assert (length, cap) == (0, 0)
    assert got <= 3


async def teardown() -> None:
    for _ in range(3):
        ticker = Ticker(0.002)
        await ticker.c.recv()
        ticker.stop()


def test_tickers_come_and_go(run: Run) -> None:
    """Go TestTeardown."""
    run(teardown)


async def non_positive(what: str) -> None:
    if what == "new":
        Ticker(-1)
    Ticker(1).reset(0)


@pytest.mark.parametrize(("what", "text"), [("new", "Ticker"), ("reset", "Ticker.reset")])
def test_a_ticker_needs_a_positive_interval(what: str, text: str) -> None:
    """Go TestNewTickerLtZeroDuration, TestTickerResetLtZeroDuration."""
    with pytest.raises(ValueError, match=f"^non-positive interval for {text}$"):
        mpgort.run(non_positive, what, procs=1)


# ---- fairness --------------------------------------------------------------------------------


async def babble(c: Chan[bool], done: Chan[None]) -> None:
    while True:
        i, _ = await select((c.send, True), done.recv)
        if i == 1:
            return


async def fairness() -> int:
    done: Chan[None] = chan()
    c: Chan[bool] = chan()
    babblers = [spawn(babble, c, done) for _ in range(2)]
    timer = after(0.02)
    n = 0
    while True:
        i, _ = await select(c.recv, timer.recv)
        if i == 1:
            break
        n += 1
    done.close()
    for h in babblers:
        await h
    return n


def test_a_timer_fires_while_goroutines_talk_without_end(run: Run) -> None:
    """Go TestTimerFairness."""
    assert run(fairness) >= 0


async def talk(c: Chan[bool], done: Chan[bool]) -> None:
    timer = after(0.02)
    while True:
        i, _ = await select((c.send, True), c.recv, timer.recv)
        if i == 2:
            break
    await done.send(True)


async def fairness2() -> list[object]:
    c: Chan[bool] = chan()
    done: Chan[bool] = chan()
    for _ in range(2):
        go(talk, c, done)
    return [await done.recv(), await done.recv()]


def test_both_of_a_busy_pair_see_their_timer(run: Run) -> None:
    """Go TestTimerFairness2, without its system call."""
    assert run(fairness2) == [True, True]


async def ping(a: Chan[int], b: Chan[int]) -> None:
    while True:
        await b.send(await a.recv())


async def timer_of_main_beside_a_pingpong() -> bool:
    a, b = chan(), chan()
    go(ping, a, b)
    go(ping, b, a)
    await a.send(1)
    fired: Chan[bool] = chan()
    after_func(0.01, send_true, fired)
    return await fired.recv()


def test_an_after_func_of_main_starts_beside_a_pingpong(run: Run) -> None:
    assert run(timer_of_main_beside_a_pingpong) is True


async def busy_main() -> object:
    fired: Chan[bool] = chan(1)
    after_func(0.01, send_true, fired)
    while len(fired) == 0:  # no await: nobody runs main's timers here
        pass
    return await fired.recv()


@pytest.mark.parametrize("procs", [1, 2])
def test_a_timer_of_a_busy_main_is_run_by_the_others(procs: int) -> None:
    assert mpgort.run(busy_main, procs=procs) is True


async def hog(timers: Chan[Chan[float]], stop: Chan[bool]) -> None:
    await timers.send(after(0.01))
    while len(stop) == 0:
        pass


async def busy_worker(hogs: int) -> bool:
    timers: Chan[Chan[float]] = chan()
    stop: Chan[bool] = chan(1)
    handles = [spawn(hog, timers, stop) for _ in range(hogs)]
    for c in [await timers.recv() for _ in range(hogs)]:
        await c.recv()
    await stop.send(True)
    for h in handles:
        await h
    return True


@pytest.mark.parametrize("procs", [1, 2])
def test_a_timer_of_a_worker_that_never_looks_is_run_by_the_others(procs: int) -> None:
    assert mpgort.run(busy_worker, procs, procs=procs)


def plain() -> tuple[float, bool]:
    t0 = time.monotonic()
    t = Timer(0.01)
    assert t.c is not None
    at = t.c.get()
    fired: Chan[bool] = chan(1)
    after_func(0.005, send_true, fired)
    return at - t0, fired.get(timeout=30)


async def from_a_plain_function() -> tuple[float, bool]:
    got: tuple[float, bool] = await spawn(plain)
    return got


def test_plain_functions_make_timers_and_wait_for_them(run: Run) -> None:
    took, fired = run(from_a_plain_function)
    assert took >= 0.01 and fired


async def every_tick(n: int) -> int:
    ticker = Ticker(0.001)
    got = 0
    async for _ in ticker.c:
        got += 1
        if got == n:
            return got
    return -1


def test_ticks_are_iterated_over(run: Run) -> None:
    assert run(every_tick, 5) == 5


async def later(path: Path) -> None:
    after_func(0.02, path.touch)


@pytest.mark.parametrize("procs", [0, 1, 2])
def test_the_end_of_a_runtime_waits_for_what_is_due(procs: int, tmp_path: Path) -> None:
    with mpgort.Runtime(procs=procs) as rt:
        rt.spawn(later, tmp_path / "ran").result()
    assert (tmp_path / "ran").exists()


# ---- fewer processors ------------------------------------------------------------------------


async def set_timers(out: Chan[Any]) -> None:
    ctx, _ = context.with_timeout(context.background(), 0.05)
    fired: Chan[bool] = chan(1)
    after_func(0.05, send_true, fired)
    await out.send((after(0.05), ctx, fired))


async def shrink() -> list[object]:
    out: Chan[Any] = chan()
    for _ in range(8):
        go(set_timers, out)
    timers = [await out.recv() for _ in range(8)]
    mpgort.gomaxprocs(1)
    got: list[object] = []
    for c, ctx, fired in timers:
        await c.recv()
        await ctx.done().recv()
        got.append((await fired.recv(), ctx.err() == context.DEADLINE_EXCEEDED))
    return got


@pytest.mark.parametrize("procs", [1, 2, 4])
def test_timers_of_a_processor_that_is_taken_away_fire(procs: int) -> None:
    assert mpgort.run(shrink, procs=procs) == [(True, True)] * 8
