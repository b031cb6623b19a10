"""What users of other pools report, and why it cannot happen here: each a test, with its origin.

| reported                                                    | of                                |
| ----------------------------------------------------------- | --------------------------------- |
| one dead worker breaks the pool for good                    | apscheduler #362, temporalio/     |
|                                                             | sdk-python #245                   |
| it hangs when a worker is OOM-killed while it holds the     | pebble #97, dssg/triage #501      |
| queue's lock, or in the middle of a pipe's message          |                                   |
| workers outlive a parent that is killed by SIGKILL          | loky #360                         |
| a deadlock at the interpreter's exit with nested pools      | loky #363                         |
| a crash that meets a full call queue is never told          | loky #279                         |
| an exception that does not unpickle kills the pool, or      | cpython #79492, #103061, #120810  |
| hangs it                                                    |                                   |
| "leaked shared_memory objects" from the resource tracker    | cpython PR 13276, loky #242       |
| submission slows down with the number queued                | ray #3188 (and bench: `queued`)   |

What else kills a worker, and how a death is told, is in test_deaths.py; the segment after a death
at every store that matters is in tests/shm and tests/kill."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import comes_to_rest, wait_until

import mpgort


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def double(x: int) -> int:
    return 2 * x


def program_of(ex: mpgort.Executor) -> Any:
    assert ex._engine is not None
    return ex._engine.runtime._prog


# ---- one dead worker breaks the pool for good: apscheduler #362, temporalio/sdk-python #245 ------


def test_a_pool_whose_workers_die_takes_work_as_ever() -> None:
    with mpgort.Executor(2) as ex:
        for _ in range(5):
            bad = [ex.submit(kill_me) for _ in range(2)]  # both workers
            good = [ex.submit(double, i) for i in range(10)]
            assert all(isinstance(f.exception(timeout=30), mpgort.MDied) for f in bad)
            assert [f.result(timeout=30) for f in good] == list(range(0, 20, 2))
        assert list(ex.map(double, range(100))) == list(range(0, 200, 2))
        assert program_of(ex).stats()["deaths"] == 10


# ---- killed with the queue's lock, or half a message: pebble #97, dssg/triage #501 ---------------


def large(x: int) -> Any:
    return x, np.full(20_000, x), b"x" * 40_000


def test_a_worker_killed_at_any_moment_of_a_message_holds_up_nobody() -> None:
    """As the OOM killer does it: from outside, at random, while large results come and go."""
    rng = random.Random(6)
    with mpgort.Executor(2) as ex:
        ex.submit(int).result(timeout=30)
        prog = program_of(ex)
        kills, futures = 0, []
        while kills < 15:
            futures += [ex.submit(large, len(futures) + i) for i in range(20)]
            time.sleep(rng.uniform(0, 0.01))
            pids = busy_workers(prog)
            if pids:
                try:
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    pass
        done = died = 0
        for i, f in enumerate(futures):
            try:
                x, a, b = f.result(timeout=30)
                assert x == i and a[-1] == i and len(b) == 40_000
                done += 1
                del a
            except mpgort.MDied:
                died += 1
        assert done + died == len(futures) and died <= kills
        assert ex.submit(double, 4).result(timeout=30) == 8
        futures.clear()
        del f
        comes_to_rest(prog)


def busy_workers(prog: Any) -> list[int]:
    """Pids of the workers that have run something. (Those that are killed before they can are an
    end of their own: three in a row end the program.)"""
    ms = prog.stats()["ms"]
    return [m["pid"] for m in ms if m["pid"] != os.getpid() and m["executed"] > 0]


# ---- workers outlive their parent: loky #360 -----------------------------------------------------

PARENT = """
import sys, time
import mpgort

if __name__ == "__main__":
    if sys.argv[1] == "Executor":
        pool = mpgort.Executor(2, mp_context=sys.argv[2])
        waits = [pool.submit(time.sleep, 1000) for _ in range(4)]
    else:
        pool = mpgort.Pool(2)
        waits = pool.map_async(time.sleep, [1000] * 4)
    print("busy", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize(
    "args", [("Executor", "fork"), ("Executor", "forkserver"), ("Executor", "spawn"), ("Pool", "")]
)
def test_when_the_parent_is_killed_no_worker_is_left(program: Any, args: tuple[str, str]) -> None:
    """`program` finds every process of the session, and every name in /dev/shm, a second later."""
    program.killed = True
    running = program.start(PARENT, *args)
    assert running.line() == "busy"
    wait_until("the workers are there", lambda: len(running.workers()) >= 2, 30)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait(10).status == -signal.SIGKILL


# ---- a deadlock at exit with nested pools: loky #363 ---------------------------------------------


def test_nested_pools_that_nobody_shuts_down_do_not_hold_up_the_exit(program: Any) -> None:
    done = program("""
        import mpgort

        def leaf(x):
            return x + 1

        def nest(depth):
            if depth == 0:
                return sum(mpgort.Pool(1).map(leaf, range(3)))
            ex = mpgort.Executor(1)
            return ex.submit(nest, depth - 1).result()

        if __name__ == "__main__":
            ex = mpgort.Executor(2)
            print([f.result() for f in [ex.submit(nest, 2) for _ in range(2)]])
            pending = ex.submit(nest, 1)  # still at it when the interpreter ends
    """)
    assert (done.status, done.out, done.err) == (0, "[6, 6]\n", "")


# ---- a crash while the call queue is full: loky #279 ---------------------------------------------


def slow(x: int) -> int:
    time.sleep(0.001)
    return x


def test_crashes_among_thousands_that_are_queued_are_told_each() -> None:
    with mpgort.Executor(2) as ex:
        futures = [ex.submit(kill_me) if i % 100 == 50 else ex.submit(slow, i) for i in range(1000)]
        for i, f in enumerate(futures):
            if i % 100 == 50:
                assert isinstance(f.exception(timeout=30), mpgort.MDied)
            else:
                assert f.result(timeout=30) == i


# ---- an exception that does not unpickle: cpython #79492, #103061, #120810 -----------------------


class Stubborn(Exception):
    """Pickles; unpickling it fails."""

    def __reduce__(self) -> Any:
        return Stubborn.fail, ("text",)

    @staticmethod
    def fail(text: str) -> None:
        raise ZeroDivisionError("not here")


class Leaves(Exception):
    """Unpickling it takes the process along, if anybody does so without care."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class TwoFields(Exception):
    """What pickle gives its constructor (args) is not what that takes."""

    def __init__(self, foo: int, bar: str) -> None:
        super().__init__(f"{foo}, {bar}")
        self.foo, self.bar = foo, bar


def raises(kind: type[Exception]) -> None:
    raise kind("text")


def gives(e: Exception) -> Exception:
    return e


@pytest.mark.parametrize("kind", [Stubborn, Leaves])
def test_an_exception_that_does_not_unpickle_fails_its_own_task(kind: type[Exception]) -> None:
    with mpgort.Executor(2) as ex:
        others = [ex.submit(slow, i) for i in range(20)]
        exc = ex.submit(raises, kind).exception(timeout=30)
        assert exc is not None and "text" in str(exc)
        assert [f.result(timeout=30) for f in others] == list(range(20))
        assert ex.submit(double, 1).result(timeout=30) == 2
    with mpgort.Pool(1) as pool:
        with pytest.raises(Exception, match="text"):
            pool.apply(raises, (kind,))
        assert pool.apply(double, (1,)) == 2


def test_an_exception_crosses_as_a_value_too_whatever_its_constructor_takes() -> None:
    with mpgort.Executor(1) as ex:
        e: Any = ex.submit(gives, TwoFields(42, "x")).result(timeout=30)
        assert (type(e), e.foo, e.bar, str(e)) == (TwoFields, 42, "x", "42, x")
        assert [str(e) for e in ex.map(TwoFields, [1, 2], "ab")] == ["1, a", "2, b"]


# ---- "leaked shared_memory objects": cpython PR 13276, loky #242 ---------------------------------


@pytest.mark.parametrize("end", ["returns", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_nobody_complains_of_shared_memory_and_none_is_left(program: Any, end: str) -> None:
    program.killed = "kill" in end
    done = program(f"""
        import os, sys
        import numpy as np
        import mpgort

        def half(a):
            return a[: len(a) // 2]

        def dies(a):
            os.kill(os.getpid(), 9)

        if __name__ == "__main__":
            ex = mpgort.Executor(2)
            kept = [ex.submit(half, np.ones(100_000)).result() for _ in range(3)]
            ours = mpgort.shared.zeros(100_000)
            d = mpgort.shared.dict({{"a": kept[0]}})
            assert isinstance(ex.submit(dies, ours).exception(), mpgort.MDied)
            assert "multiprocessing.resource_tracker" not in sys.modules or (
                sys.modules["multiprocessing.resource_tracker"]._resource_tracker._pid is None
            )
            print(sum(a.sum() for a in kept), flush=True)
            {"" if end == "returns" else end}
    """)
    assert (done.out, done.err) == ("150000.0\n", "")


# ---- submission slows with the number queued: ray #3188 ------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """Calls, of Python and C functions, that this thread makes in it."""
    n = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return n


def stands_until(told: Any) -> None:
    while not told[0]:
        time.sleep(0.001)


def test_a_submission_does_the_same_however_many_are_queued() -> None:
    """Counted: calls, and blocks of shared memory. The time is measured in bench/figures.py."""
    with mpgort.Executor(1) as ex:
        ex.submit(int).result(timeout=30)
        assert ex._engine is not None
        told = mpgort.shared.zeros(1, runtime=ex._engine.runtime)
        gate = ex.submit(stands_until, told)
        prog = program_of(ex)

        def submit() -> None:
            futures.append(ex.submit(double, 1))

        def cost() -> tuple[int, int]:
            calls, allocs = [], []
            for _ in range(20):
                before = prog.stats()["allocs"]
                calls.append(calls_of(submit))
                allocs.append(prog.stats()["allocs"] - before)
            return min(calls), min(allocs)

        futures: list[Any] = []
        first = cost()
        for _ in range(5000):
            submit()
        assert cost() == first
        assert ex._engine.runtime.stats()["runnable"] >= 5000
        told[0] = 1
        assert gate.result(timeout=30) is None
        assert all(f.result(timeout=30) == 2 for f in futures)
