"""lock_os_thread and to_thread: what ties a goroutine to one process."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from goroutines import stands, until

import mpgort
from mpgort import (
    Cancelled,
    Chan,
    Deadlock,
    chan,
    go,
    goid,
    gosched,
    lock_os_thread,
    sleep,
    spawn,
    to_thread,
    unlock_os_thread,
)

VAR = contextvars.ContextVar("VAR", default="unset")


# ---- lock_os_thread --------------------------------------------------------------------------


async def locked(turns: int) -> set[int]:
    lock_os_thread()
    pids = set()
    for i in range(turns):
        pids.add(os.getpid())
        await (gosched() if i % 2 else sleep(0.0005))
    unlock_os_thread()
    return pids


async def company(turns: int) -> None:
    for _ in range(turns):
        await gosched()


async def all_stay() -> list[int]:
    for _ in range(4):
        go(company, 300)
    handles = [spawn(locked, 60) for _ in range(5)]
    return [len(await h) for h in handles]


def test_a_locked_goroutine_stays_on_its_process(procs: int) -> None:
    assert mpgort.run(all_stay, procs=procs) == [1] * 5


async def who(out: Chan, n: int) -> None:
    for _ in range(n):
        await out.send(os.getpid())
        await gosched()


async def alone() -> tuple[int, set[int]]:
    gate, pid = chan(), chan()

    async def holds() -> None:
        lock_os_thread()
        await pid.send(os.getpid())
        await gate.recv()

    go(holds)
    mine = await pid.recv()
    out = chan(200)
    handles = [spawn(who, out, 20) for _ in range(10)]
    for h in handles:
        await h
    out.close()
    others = {p async for p in out}
    await gate.send(None)
    return mine, others


@pytest.mark.parametrize("procs", [1, 2, 4])
def test_no_other_goroutine_runs_on_the_process_of_a_locked_one(procs: int) -> None:
    """Go LockOSThread: "no other goroutine will execute in it". The keeper starts an M instead."""
    mine, others = mpgort.run(alone, procs=procs)
    assert others and mine not in others


async def nesting() -> list[bool]:
    seen = []

    def home() -> bool:
        rows = mpgort._core.goroutines(mpgort._core.current())
        return next(row for row in rows if row[0] == me)[5] == 4

    async def asks(out: Chan) -> None:
        await out.send(home())

    async def state() -> bool:
        out = chan()
        go(asks, out)
        return await out.recv()

    unlock_os_thread()  # without a lock: nothing
    me = goid()
    for act in (lock_os_thread, lock_os_thread, unlock_os_thread, unlock_os_thread):
        act()
        seen.append(await state())
    return seen


async def nesting_main() -> list[bool]:
    return await spawn(nesting)


def test_locks_count(procs: int) -> None:
    """Go TestLockOSThreadNesting."""
    assert mpgort.run(nesting_main, procs=procs) == [True, True, True, False]


async def ends_locked() -> int:
    lock_os_thread()
    await gosched()
    return os.getpid()


async def after_it(rounds: int) -> tuple[list[int], set[int]]:
    ended = [await spawn(ends_locked) for _ in range(rounds)]
    out = chan(400)
    for h in [spawn(who, out, 20) for _ in range(10)]:
        await h
    out.close()
    return ended, {p async for p in out}


@pytest.mark.parametrize("procs", [1, 2])
def test_a_goroutine_that_ends_locked_takes_its_process_with_it(procs: int) -> None:
    """Go TestLockOSThreadExit."""
    ended, others = mpgort.run(after_it, 5, procs=procs)
    assert len(set(ended)) == 5 and others and not others & set(ended)


async def pinned(path: str, gate: Chan, ready: Chan) -> tuple[int, str]:
    with open(path) as f:
        await ready.send(os.getpid())
        await gate.recv()
        return os.getpid(), f.read()


async def lock_beside(path: str) -> tuple[int, int, tuple[int, str]]:
    gate, ready = chan(), chan()
    h = spawn(pinned, path, gate, ready)
    pid = await ready.recv()
    ended = await spawn(ends_locked)
    await until(lambda: h.status() == "chan receive")
    await gate.send(None)
    return pid, ended, await h


def test_a_process_that_leaves_waits_for_those_at_home_there(tmp_path: Any) -> None:
    (tmp_path / "f").write_text("text")
    pid, ended, (again, text) = mpgort.run(lock_beside, str(tmp_path / "f"), procs=1)
    assert pid == ended == again and text == "text"


async def locked_yields(n: int, procs: int) -> bool:
    """Go TestYieldLocked."""

    async def other() -> None:
        lock_os_thread()
        for _ in range(n):
            await gosched()

    await spawn(other)
    return True


def test_a_locked_goroutine_that_yields_goes_on(procs: int) -> None:
    assert mpgort.run(locked_yields, 10, procs, procs=procs)


async def yield_progress(lock: bool) -> str:
    """Go testYieldProgress."""
    c, ack = chan(), chan()
    done = chan(1)

    async def spins() -> None:
        if lock:
            lock_os_thread()
        while not len(done):
            await gosched()
        await ack.send(True)

    go(spins)
    await sleep(0.01)
    await done.send(1)
    await ack.recv()
    assert len(c) == 0
    return "progress"


@pytest.mark.parametrize(
    "lock", [False, True], ids=["TestYieldProgress", "TestYieldLockedProgress"]
)
def test_yield_progress(lock: bool, procs: int) -> None:
    assert mpgort.run(yield_progress, lock, procs=procs) == "progress"


async def block_locked() -> None:
    """Go TestBlockLocked."""
    n = 10
    c = chan()

    async def sends() -> None:
        lock_os_thread()
        for _ in range(n):
            await c.send(True)
        unlock_os_thread()

    go(sends)
    for _ in range(n):
        await c.recv()


def test_block_locked(procs: int) -> None:
    mpgort.run(block_locked, procs=procs)


async def locked_deadlock() -> None:
    lock_os_thread()
    await chan().recv()


async def locked_deadlock2() -> None:
    async def waits() -> None:
        lock_os_thread()
        await chan().recv()

    go(waits)
    await chan().recv()


@pytest.mark.parametrize("main", [locked_deadlock, locked_deadlock2])
def test_locked_deadlock(main: Callable[[], Any], procs: int) -> None:
    """Go TestLockedDeadlock, TestLockedDeadlock2."""
    with pytest.raises(Deadlock, match="all goroutines are asleep"):
        mpgort.run(main, procs=procs)


# ---- to_thread -------------------------------------------------------------------------------


class NeverCrosses:
    def __reduce__(self) -> Any:
        raise TypeError("never crosses")


async def identity() -> list[bool]:
    x = NeverCrosses()
    got = await to_thread(lambda v: (v, threading.get_ident()), x)
    return [got[0] is x, got[1] != threading.get_ident(), os.getpid() == await to_thread(os.getpid)]


async def identity_main() -> list[bool]:
    return await identity() + await spawn(identity)


def test_to_thread_copies_nothing_and_runs_in_another_thread(procs: int) -> None:
    assert mpgort.run(identity_main, procs=procs) == [True] * 6


def fails(text: str) -> None:
    raise LookupError(text)


async def failing() -> str:
    try:
        await to_thread(fails, text="from the thread")
    except LookupError as e:
        return str(e.args[0])
    return ""


async def failing_main() -> list[str]:
    return [await failing(), await spawn(failing)]


def test_an_exception_of_the_thread_is_raised_at_the_await(procs: int) -> None:
    assert mpgort.run(failing_main, procs=procs) == ["from the thread"] * 2


async def context() -> str:
    VAR.set("mine")
    return await to_thread(VAR.get)


def test_the_thread_sees_the_goroutines_context_variables(procs: int) -> None:
    assert mpgort.run(context, procs=procs) == "mine"


async def p_is_free(n: int, told: Path) -> list[bool]:
    handles = [spawn(to_thread, stands, str(told)) for _ in range(n)]
    await until(lambda: all(h.status() == "to_thread" for h in handles))
    for _ in range(10):
        await spawn(goid)
    told.touch()
    return [await h for h in handles]


def test_blocked_threads_hold_no_p(procs: int, tmp_path: Path) -> None:
    assert mpgort.run(p_is_free, 10, tmp_path / "told", procs=procs) == [True] * 10


async def cancelled(told: Path, ended: Path) -> list[str]:
    h = spawn(waits_for_thread, told, ended)
    await until(lambda: h.status() == "to_thread")
    h.cancel()
    return await h


async def waits_for_thread(told: Path, ended: Path) -> list[str]:
    seen = []
    try:
        await to_thread(stands_and_says, str(told), ended)
    except Cancelled:
        seen.append("cancelled, late" if ended.exists() else "cancelled")
    told.touch()
    await until(ended.exists)
    await sleep(0.1)  # its result comes meanwhile, and is nobody's
    seen.append(await to_thread(str, "second"))
    return seen


def stands_and_says(told: str, ended: Path) -> None:
    stands(told)
    ended.touch()


def test_a_cancel_ends_the_await_and_the_late_result_is_dropped(procs: int, tmp_path: Path) -> None:
    paths = tmp_path / "told", tmp_path / "ended"
    assert mpgort.run(cancelled, *paths, procs=procs) == ["cancelled", "second"]


async def is_no_deadlock() -> str:
    await to_thread(time.sleep, 0.3)
    return "on"


def test_a_program_that_waits_for_a_thread_is_not_dead(procs: int) -> None:
    assert mpgort.run(is_no_deadlock, procs=procs) == "on"


async def moves_on() -> int:
    pids = set()
    for _ in range(20):
        await to_thread(int)
        for _ in range(3):
            await gosched()
        pids.add(os.getpid())
    return len(pids)


async def many_threads(n: int) -> list[int]:
    handles = [spawn(moves_on) for _ in range(n)]
    return [await h for h in handles]


def test_many_goroutines_use_threads_at_once(procs: int) -> None:
    assert len(mpgort.run(many_threads, 20, procs=procs)) == 20


async def uses_threads(n: int) -> list[None]:
    return [await h for h in [spawn(to_thread, time.sleep, 0.01) for _ in range(n)]]


def test_the_threads_of_to_thread_end_with_the_program_so_the_next_may_be_forked() -> None:
    before = threading.active_count()
    mpgort.run(uses_threads, 3, procs=0)
    mpgort.run(to_thread, int, procs=1)
    with mpgort.Runtime(0) as rt:
        rt.spawn(uses_threads, 2).result(timeout=30)
    assert threading.active_count() == before


def test_to_thread_of_what_is_no_function_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="a function is needed"):
        to_thread(3)  # type: ignore[arg-type]


# ---- threads that wait -----------------------------------------------------------------------


async def receives(ch: Chan) -> int:
    return await ch.recv()


@pytest.mark.parametrize("procs", [0, 2])
def test_a_dump_names_the_threads_that_wait_with_their_frames(procs: int) -> None:
    with mpgort.Runtime(procs=procs) as rt:
        ch, gate = rt.chan(), rt.chan()
        h = rt.spawn(receives, gate)

        def reads() -> None:
            ch.get()

        waits = [
            threading.Thread(target=reads, name="reader"),
            threading.Thread(target=h.result, name="joiner"),
        ]
        for t in waits:
            t.start()
        dump = ""
        while dump.count("[chan receive") < 2 or "[join]" not in dump:  # pytest has the limit
            dump = rt.stack()
        assert "\nthread joiner [join]:\n" in dump
        of_reader = dump.split("\nthread reader [chan receive]:\n")[1].splitlines()
        assert of_reader[0].endswith("reads(...)") and "test_threads.py" in of_reader[1]
        assert dump.startswith("goroutine ")  # they come last
        # Seen from another process it has no name.
        outside = subprocess.run(
            [sys.executable, "-m", "mpgort", "stack", str(os.getpid())],
            capture_output=True,
            text=True,
        )
        who = f"thread {waits[0].native_id} of process {os.getpid()} [chan receive]:"
        assert who in outside.stdout, outside.stderr
        ch.put(1)
        gate.put(1)
        for t in waits:
            t.join()
        assert "thread" not in rt.stack()
