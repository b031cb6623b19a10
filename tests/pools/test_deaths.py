"""A dead worker fails the task that it ran, and nothing else. What kills it is in the tests' names.

What users of other pools report of deaths is in test_reports.py."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import comes_to_rest, wait_until

import mpgort
from mpgort import _service, chan, spawn


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def leave() -> None:
    os._exit(3)


async def kill_me_after_a_park() -> None:
    c = chan(1)
    await c.send(1)
    await spawn(int)
    kill_me()


class KillsWhereItArrives:
    def __reduce__(self) -> Any:
        return kill_me, ()


def double(x: int) -> int:
    return 2 * x


def slow(x: int) -> int:
    time.sleep(0.01)
    return x


@pytest.mark.parametrize("end", [kill_me, segfault, leave, kill_me_after_a_park])
def test_only_the_task_that_ran_there_fails(end: Callable[[], Any]) -> None:
    with mpgort.Executor(2) as ex:
        before = [ex.submit(slow, i) for i in range(20)]
        bad = ex.submit(end)
        after = [ex.submit(slow, i) for i in range(20)]
        with pytest.raises(mpgort.MDied):
            bad.result(timeout=30)
        assert [f.result(timeout=30) for f in before + after] == [*range(20), *range(20)]
        assert list(ex.map(double, range(1000))) == list(range(0, 2000, 2))


def test_the_signal_or_exit_code_is_told() -> None:
    with mpgort.Executor(2) as ex:
        a, b = ex.submit(kill_me), ex.submit(leave)
        first, second = a.exception(timeout=30), b.exception(timeout=30)
    assert isinstance(first, mpgort.MDied) and first.signal == signal.SIGKILL
    assert isinstance(second, mpgort.MDied) and second.exitcode == 3


def test_an_argument_that_kills_where_it_arrives() -> None:
    with mpgort.Executor(2) as ex:
        with pytest.raises(mpgort.MDied):
            ex.submit(double, KillsWhereItArrives()).result(timeout=30)  # type: ignore[arg-type]
        assert ex.submit(double, 4).result(timeout=30) == 8


def test_as_completed_sees_the_failure_too() -> None:
    with mpgort.Executor(2) as ex:
        futures = {ex.submit(kill_me), *(ex.submit(slow, i) for i in range(10))}
        done = list(concurrent.futures.as_completed(futures, timeout=30))
        failed = [f for f in done if f.exception()]
    assert len(done) == 11 and len(failed) == 1


def dies_at_50(x: int) -> int:
    time.sleep(0.005)
    if x == 50:
        kill_me()
    return x


def test_a_task_that_ends_before_it_has_begun_is_not_taken_for_a_cancelled_one() -> None:
    """As that of a worker that dies just before the call is made."""
    with mpgort.Executor(1) as ex:
        held = ex.submit(time.sleep, 30)
        wait_until("it runs", held.running)
        queued = ex.submit(double, 1)
        assert queued._handle is not None and held._handle is not None
        assert queued._handle.kill()
        assert isinstance(queued.exception(timeout=30), mpgort.Killed)
        assert not queued.cancelled()
        assert held._handle.kill()
        assert isinstance(held.exception(timeout=30), mpgort.Killed)


def test_map_raises_at_the_item_that_killed_its_worker() -> None:
    with mpgort.Executor(2) as ex:
        got = []
        with pytest.raises(mpgort.MDied):
            for v in ex.map(dies_at_50, range(100), chunksize=1):
                got.append(v)
        assert got == list(range(50))


def test_a_pool_gives_every_other_result() -> None:
    with mpgort.Pool(2) as p:
        failed, got = 0, []
        it = p.imap_unordered(dies_at_50, range(100))
        while True:
            try:
                got.append(next(it))
            except StopIteration:
                break
            except mpgort.MDied:
                failed += 1
        assert sorted(got) == [x for x in range(100) if x != 50] and failed == 1
        with pytest.raises(mpgort.MDied):
            p.apply(kill_me)
        with pytest.raises(mpgort.MDied):
            p.map(dies_at_50, range(45, 55), chunksize=2)
        assert p.map(double, range(10)) == list(range(0, 20, 2))


def hold(a: Any) -> None:
    assert a.sum() == len(a)
    kill_me()


def test_arrays_that_a_dead_worker_held_are_given_back() -> None:
    with mpgort.Executor(2) as ex:
        for _ in range(3):
            with pytest.raises(mpgort.MDied):
                ex.submit(hold, np.ones(1 << 20)).result(timeout=30)
        engine = ex._engine
        assert engine is not None
        prog = engine.runtime._prog
        wait_until("the arrays are freed", lambda: prog.stats()["large_bytes"] == 0)
        comes_to_rest(prog)


def one_more(a: Any, k: int) -> Any:
    assert (a == k).all()
    return np.full(len(a), k + 1, np.uint8)


def test_arrays_to_and_fro_are_what_they_were_while_workers_are_killed() -> None:
    rnd, died = random.Random(7), 0
    sizes = [70_000, 100_000, 300_000, 1 << 20, 3 << 20]
    with mpgort.Runtime(2) as rt:
        for turn in range(40):
            sent = []
            for _ in range(6):
                n, k = rnd.choice(sizes), rnd.randrange(200)
                sent.append((n, k, rt.spawn(one_more, np.full(n, k, np.uint8), k)))
            if turn % 2:
                time.sleep(rnd.random() * 0.01)
                pids = list(_service.workers(rt._prog))
                with contextlib.suppress(ProcessLookupError, IndexError):  # is just being replaced
                    os.kill(rnd.choice(pids), signal.SIGKILL)
            while sent:
                n, k, h = sent.pop()
                try:
                    got = h.result(30)
                except mpgort.MDied:
                    died += 1
                else:
                    assert len(got) == n and (got == k + 1).all()
                    del got
                del h
        assert died <= 20
        wait_until("the arrays are freed", lambda: rt.stats()["large_bytes"] == 0)
        comes_to_rest(rt._prog)
        wait_until("their pages are, too", lambda: rt.stats()["committed"] < 4 << 20)


def test_shutdown_waits_for_a_task_whose_worker_dies_meanwhile() -> None:
    ex = mpgort.Executor(2)
    f = ex.submit(lambda: (time.sleep(0.2), kill_me()))
    ex.shutdown()
    assert isinstance(f.exception(timeout=0), mpgort.MDied)
