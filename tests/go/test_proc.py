"""Ports of Go's runtime/proc_test.go and the rest of crash_test.go: who runs when, how a program
ends. TestYieldProgress, YieldLockedProgress, YieldLocked, BlockLocked and LockedDeadlock(2) are in
tests/unit/test_threads.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Programs

import mpgort
from mpgort import (
    Chan,
    Deadlock,
    Goroutine,
    Group,
    _core,
    chan,
    go,
    goexit,
    gosched,
    select,
    sleep,
    spawn,
)
from mpgort.sync import AtomicInt

LIMIT = 20.0


# ---- who runs --------------------------------------------------------------------------------


def lock_step(n: int, p: int, turns: int, at: AtomicInt) -> bool:
    """Busy from begin to end: its turn comes only if all others run at the same time."""
    end = time.monotonic() + LIMIT
    for i in range(turns):
        expected = p * i + n
        while at.load() != expected:
            if time.monotonic() > end:
                return False
            time.sleep(0)  # two processors for more Ms; no runtime call
        at.store(expected + 1)
    return True


async def parallelism(p: int, turns: int, idle: float) -> list[bool]:
    seen = []
    for _ in range(3):
        await sleep(idle)  # Go #45867: all Ms are asleep when the work comes
        at = AtomicInt(0)
        handles = [spawn(lock_step, n, p, turns, at) for n in range(p)]
        seen += [await h for h in handles]
    return seen


@pytest.mark.parametrize("idle", [0.0, 0.05], ids=["", "after idle"])
@pytest.mark.parametrize("p", [2, 4])
def test_goroutine_parallelism(p: int, idle: float) -> None:
    """TestGoroutineParallelism, TestGoroutineParallelism2."""
    assert mpgort.run(parallelism, p, 20, idle, procs=p) == [True] * (3 * p)


async def spins(n: AtomicInt, stop: AtomicInt) -> None:
    while not stop.load():
        n.add(1)
        await gosched()


async def ping_pong(a: Chan, b: Chan, n: AtomicInt, stop: AtomicInt) -> None:
    while not stop.load():
        await a.send(1)
        n.add(1)
        await b.recv()


async def answers(a: Chan, b: Chan) -> None:
    async for _ in a:
        await b.send(1)


ROUNDS = 100_000  # of both pairs: many times what is handed over in one time slice


async def hog_beside_light() -> tuple[int, int]:
    stop, hogs, lights = AtomicInt(0), AtomicInt(0), AtomicInt(0)
    handles = []
    for count in (hogs, lights):
        a, b = chan(), chan()
        go(answers, a, b)
        handles.append(spawn(ping_pong, a, b, count, stop))
    handles.append(spawn(spins, AtomicInt(0), stop))
    end = time.monotonic() + LIMIT
    while not (hogs.load() and lights.load()):  # the worker is there
        assert time.monotonic() < end, "one of the pairs never began"
        await sleep(0.001)
    begun = hogs.load(), lights.load()
    while hogs.load() - begun[0] + lights.load() - begun[1] < ROUNDS:
        assert time.monotonic() < end, f"{hogs.load()} and {lights.load()} rounds"
        await sleep(0.001)
    stop.store(1)
    for h in handles:
        await h
    return hogs.load() - begun[0], lights.load() - begun[1]


def test_ping_pong_hog() -> None:
    """TestPingPongHog: pairs that hand each other the time slice share it with the other pair.
    Until they have had their rounds: in the time that Go gives them a worker may not have begun."""
    a, b = mpgort.run(hog_beside_light, procs=1)
    assert a and b and max(a, b) < 20 * min(a, b), (a, b)


async def hog_without_parks(stop: AtomicInt) -> None:
    ch = chan(1)
    while not stop.load():
        await ch.send(1)
        await ch.recv()


async def hog_with_select(stop: AtomicInt) -> None:
    a, b = chan(1), chan(1)
    while not stop.load():
        await select((a.send, 1), (b.send, 1))
        await select(a.recv, b.recv)


async def hog_that_goes(stop: AtomicInt) -> None:
    while not stop.load():
        go(int)
        chan().close()


async def awaits_ended(stop: AtomicInt) -> None:
    h = spawn(int)
    await h
    while not stop.load():
        await h


async def timer_beside(hog: Callable[..., Any], n: int) -> float:
    stop = AtomicInt(0)
    hogs = [spawn(hog, stop) for _ in range(n)]
    late = [await spawn(how_late, 0.02) for _ in range(3)]
    stop.store(1)
    for h in hogs:
        await h
    return min(late)


async def how_late(s: float) -> float:
    begin = time.monotonic()
    await sleep(s)
    return time.monotonic() - begin - s


@pytest.mark.parametrize("hog", [hog_without_parks, hog_with_select, awaits_ended])
def test_timer_fairness(hog: Callable[..., Any], procs: int) -> None:
    """TestTimerFairness, TestTimerFairness2: timers fire while all Ms are busy."""
    assert mpgort.run(timer_beside, hog, max(procs, 1), procs=procs) < 2.0


async def takes_turns(me: int, n: int, x: AtomicInt, done: Goroutine[int]) -> None:
    for _ in range(n):
        while x.load() != me:
            await done  # done at once: it never parks
        x.store(1 - me)


async def preempted(n: int) -> int:
    x, done = AtomicInt(0), spawn(int)
    await done
    for h in [spawn(takes_turns, me, n, x, done) for me in (0, 1)]:
        await h
    return x.load()


@pytest.mark.parametrize("procs", [0, 1])
def test_preemption(procs: int) -> None:
    """TestPreemption: two that wait for each other by looking, on one processor."""
    assert mpgort.run(preempted, 5, procs=procs) == 0


async def counted(n: int) -> list[tuple[int, int]]:
    gate, seen = chan(), []
    handles = [spawn(gate.recv) for _ in range(n)]
    while any(h.status() != "chan receive" for h in handles):
        await gosched()
    seen.append((mpgort.num_goroutine(), len(_core.goroutines(_core.current()))))
    gate.close()
    for h in handles:
        await h
    end = time.monotonic() + LIMIT
    while mpgort.num_goroutine() > 1 and time.monotonic() < end:
        await gosched()  # ended, and about to be gone
    seen.append((mpgort.num_goroutine(), len(_core.goroutines(_core.current()))))
    return seen


def test_num_goroutine_counts_what_a_dump_lists(procs: int) -> None:
    """TestNumGoroutine. Stricter: at a moment of rest, where both must be exact."""
    assert mpgort.run(counted, 20, procs=procs) == [(21, 21), (1, 1)]


def test_spurious_wakeups_never_hang_a_sleep(program: Programs) -> None:
    """TestSpuriousWakeupsNeverHangSemasleep: signals to whoever waits, all the time."""
    running = program.start(
        """
        import mpgort, sound
        from mpgort import sleep, spawn

        async def main():
            print("started")
            await spawn(sleep, 0.5)

        if __name__ == "__main__":
            sound.at_the_end()
            mpgort.run(main, procs=2)
        """
    )
    assert running.line() == "started"
    end = time.monotonic() + LIMIT
    while running.popen.poll() is None and time.monotonic() < end:
        for p in [*running.workers(), *filter(None, [running.keeper()])]:
            try:
                os.kill(p.pid, signal.SIGINT)  # to them a handler that does nothing
            except ProcessLookupError:
                pass
    ended = running.wait(1.0)
    assert (ended.status, ended.err) == (0, "sound\n")


# ---- how it ends -----------------------------------------------------------------------------


async def main_goexit_beside_a_sleeper() -> None:
    go(sleep, 0.05)
    goexit()


async def main_goexit_beside_a_parked() -> None:
    go(chan().recv)
    goexit()


@pytest.mark.parametrize("main", [main_goexit_beside_a_sleeper, main_goexit_beside_a_parked])
def test_goexit_deadlock(main: Callable[..., Any], procs: int) -> None:
    """TestGoexitDeadlock, TestGoexitCrash: what is left goes on, then it is a deadlock."""
    text = r"^no goroutines \(main called runtime.Goexit\) - deadlock!"
    with pytest.raises(Deadlock, match=text):
        mpgort.run(main, procs=procs)


async def exits_later() -> None:
    await sleep(0.02)
    raise SystemExit(0)


async def goexit_exit() -> None:
    go(exits_later)
    try:
        goexit()
    finally:
        await sleep(0.0)


def test_goexit_in_main_with_a_goroutine_that_fails(procs: int) -> None:
    """TestGoexitExit, as far as it has a meaning here: an exception of another ends the program."""
    with pytest.raises(mpgort.GoroutinePanic, match="SystemExit"):
        mpgort.run(goexit_exit, procs=procs)


async def finally_that_parks(log: Chan) -> None:
    try:
        goexit()
    finally:
        await sleep(0.001)
        await log.send("finally")


async def goexit_in_children() -> list[Any]:
    log = chan(10)
    async with Group() as g:
        handles = [g.spawn(finally_that_parks, log) for _ in range(5)]
    return [await h for h in handles] + [len(log), handles[0].status()]


def test_goexit_in_a_child_runs_its_finally_and_gives_none(procs: int) -> None:
    assert mpgort.run(goexit_in_children, procs=procs) == [None] * 5 + [5, "done"]


async def fails_as_it_leaves() -> None:
    try:
        goexit()
    finally:
        raise ValueError("hello")


async def fails_and_recovers_as_it_leaves() -> None:
    try:
        goexit()
    finally:
        try:
            raise ValueError("hello")
        except ValueError:
            pass


async def leaves_as_it_fails() -> None:
    try:
        raise ValueError("hello")
    finally:
        goexit()


async def as_it_leaves(fn: Callable[..., Any]) -> Any:
    try:
        return await spawn(fn)
    except ValueError as e:
        return e.args


@pytest.mark.parametrize(
    ("fn", "outcome"),
    [
        (fails_as_it_leaves, ("hello",)),
        (fails_and_recovers_as_it_leaves, None),
        (leaves_as_it_fails, None),
    ],
)
def test_what_is_raised_last_counts_goexit_or_a_failure(
    fn: Callable[..., Any], outcome: Any, procs: int
) -> None:
    """TestPanicAfterGoexit, TestRecoveredPanicAfterGoexit; TestGoexitInPanic, where the panic is
    printed all the same: here goexit() is raised in its place."""
    assert mpgort.run(as_it_leaves, fn, procs=procs) == outcome


PROGRAMS = {
    "panic": (
        "async def main():\n    go(fails)\n    await chan().recv()\n",
        "panic: ValueError: lost\n\ngoroutine 2 [running]:\n",
    ),
    "deadlock": (
        "async def main():\n    await chan().recv()\n",
        "fatal error: all goroutines are asleep - deadlock!\n\ngoroutine 1 [chan receive]:\n",
    ),
    "goexit": (
        "async def main():\n    goexit()\n",
        "fatal error: no goroutines (main called runtime.Goexit) - deadlock!\n",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("procs", [0, 2])
def test_mpgort_run_ends_with_gos_words_and_status_2(name: str, procs: int, tmp_path: Path) -> None:
    body, words = PROGRAMS[name]
    path = tmp_path / "prog.py"
    path.write_text(
        "from mpgort import *\nfrom mpgort import go, chan, goexit\n\n\n"
        "async def fails():\n    raise ValueError('lost')\n\n\n" + body
    )
    done = subprocess.run(
        [sys.executable, "-m", "mpgort", "run", "--procs", str(procs), str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(words), done.stderr
    if name == "panic":
        assert "in fails\n" in done.stderr
