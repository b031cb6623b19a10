"""The interfaces, name by name: what today's pools have under a public name, ours have, too, with
the same parameters in the same order."""

from __future__ import annotations

import concurrent.futures
import inspect
import multiprocessing.pool
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from goroutines import stands

import mpgort
from mpgort import _options, _pool

# Windows' and Python's own affairs: the class of processes that a Pool is made of
LEFT_OUT = {"Process"}
PAIRS = [
    (concurrent.futures.ProcessPoolExecutor, mpgort.Executor),
    (concurrent.futures.Future, mpgort._executor.Future),
    (multiprocessing.pool.Pool, mpgort.Pool),
    (multiprocessing.pool.AsyncResult, _pool.AsyncResult),
    (multiprocessing.pool.IMapIterator, _pool.IMapIterator),
]


def parameters(fn: Any) -> list[str]:
    """Names of what may be given; *args and **kwargs stand for any."""
    return [
        p.name
        for p in inspect.signature(fn).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]


@pytest.mark.parametrize("theirs, ours", PAIRS, ids=lambda c: f"{c.__module__}.{c.__name__}")
def test_every_public_name_is_there_with_its_parameters(theirs: Any, ours: Any) -> None:
    names = {n for n in dir(theirs) if not n.startswith("_")} - LEFT_OUT
    names |= {"__init__", "__enter__", "__exit__"} & set(dir(theirs))
    if theirs in (multiprocessing.pool.AsyncResult, multiprocessing.pool.IMapIterator):
        names.discard("__init__")  # nobody makes one
    for name in sorted(names):
        assert hasattr(ours, name), f"{ours.__name__} has no {name}"
        if callable(getattr(theirs, name)) and name != "__exit__":
            want, have = parameters(getattr(theirs, name)), parameters(getattr(ours, name))
            missing = [p for p in want if p not in have]
            assert not missing, f"{ours.__name__}.{name} takes no {missing}"
            assert [p for p in have if p in want] == want, name


def test_what_3_14_adds_is_there_on_every_python() -> None:
    assert "buffersize" in parameters(mpgort.Executor.map)
    assert mpgort.Executor.terminate_workers and mpgort.Executor.kill_workers


def compute(seconds: float) -> None:
    """Unlike a sleep, which lets the keeper give others another place to run."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("end", ["terminate_workers", "kill_workers"])
def test_the_workers_end_at_once_whatever_they_do(end: str) -> None:
    ex = mpgort.Executor(1)
    runs = ex.submit(compute, 60)
    wait_until("it has begun", runs.running)
    waits = ex.submit(int)
    pid = next(p for _, kind, p, _ in ex._engine.runtime._prog.slots() if kind == 2)  # type: ignore[union-attr]
    started = time.monotonic()
    getattr(ex, end)()
    assert waits.cancelled()
    with pytest.raises(BrokenProcessPool):
        runs.result(timeout=30)
    assert time.monotonic() - started < 20
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.submit(int)
    wait_until("no process is left", lambda: not os.path.exists(f"/proc/{pid}"))
    getattr(ex, end)()
    getattr(mpgort.Executor(1), end)()  # never started


def nest(depth: int) -> int:
    """Submits within a task, to an executor of the worker's own."""
    if depth == 0:
        return 1
    with mpgort.Executor(1) as inner:
        return 1 + inner.submit(nest, depth - 1).result()


def test_an_executor_within_a_task_is_one_of_its_own_and_never_deadlocks() -> None:
    with mpgort.Executor(1) as ex:
        assert ex.submit(nest, 2).result(timeout=60) == 3


async def tree(depth: int) -> int:
    if depth == 0:
        return 1
    return sum([await h for h in [mpgort.spawn(tree, depth - 1) for _ in range(2)]])


def test_nested_tasks_by_spawn_need_no_workers_of_their_own() -> None:
    with mpgort.Executor(1, max_pending=1) as ex:
        assert [f.result(timeout=60) for f in [ex.submit(tree, 6) for _ in range(3)]] == [64] * 3


def test_shutdown_from_another_thread_refuses_who_waits_for_room(tmp_path: Path) -> None:
    ex = mpgort.Executor(1, max_pending=1)
    first = ex.submit(stands, str(tmp_path / "told"))
    refused = threading.Event()

    def second() -> None:
        with pytest.raises(RuntimeError, match="after shutdown"):
            ex.submit(int)
        refused.set()
        (tmp_path / "told").touch()

    t = threading.Thread(target=second)
    t.start()
    wait_until("it waits", lambda: t.is_alive() and ex._room is not None and ex._room.pending == 1)
    ex.shutdown()
    assert refused.wait(30) and first.result(timeout=0)
    t.join()


def test_the_pools_take_every_option_of_a_runtime_and_hand_it_on() -> None:
    given: dict[str, Any] = {
        "heap_bytes": 64 << 20,
        "max_goroutines": 1000,
        "heavy_bytes": 999,
        "blas_threads": 1,
        "max_rss": 1 << 40,
        "name": "pool",
        "scrub": True,
    }
    theirs = {"max_tasks_per_m", "initializer", "initargs"}  # under their own names or place
    assert given.keys() | theirs | {"start_method"} == _options.Given.__annotations__.keys()
    with mpgort.Executor(1, **given) as ex, mpgort.Pool(1, **given) as pool:
        assert ex.submit(abs, -1).result(timeout=30) == pool.apply(abs, (-1,)) == 1
        assert ex._engine is not None
        for engine in (ex._engine, pool._engine):
            opts = engine.runtime._host.opts
            found = {**opts._asdict(), **opts.plan._asdict()}
            assert {name: found[name] for name in given} == given
            assert found["max_tasks"] == 0
    for kind in (mpgort.Executor, mpgort.Pool, mpgort.Runtime):
        with pytest.raises(TypeError, match="scrubb"):
            kind(1, scrubb=True)  # type: ignore[call-arg]


def blocks(_: int) -> tuple[float, float]:
    """In a call that blocks, longer than it takes the keeper to see that (20 ms)."""
    begin = time.monotonic()
    time.sleep(0.05)
    return begin, time.monotonic()


@pytest.mark.parametrize("n", [1, 2])
def test_no_more_tasks_run_at_once_than_there_are_workers_also_when_they_block(n: int) -> None:
    with mpgort.Executor(n) as ex, mpgort.Pool(n) as pool:
        ways = [
            [f.result(timeout=30) for f in [ex.submit(blocks, i) for i in range(4)]],
            list(ex.map(blocks, range(4), chunksize=1)),
            pool.map(blocks, range(4), chunksize=1),
        ]
        for spans in ways:
            assert max(sum(b <= at < e for b, e in spans) for at, _ in spans) <= n
        assert ex._engine is not None
        assert ex._engine.runtime.stats()["workers"] == n


def test_a_pool_beside_others_is_started_by_fork_as_the_first_was(program: Any) -> None:
    """So it finds what the main block has made, as that of concurrent.futures does."""
    done = program("""
        import os, threading, time
        import mpgort

        def task(x):
            return x, made

        def waits(path):
            while not os.path.exists(path):
                time.sleep(0.002)

        async def main():
            return await mpgort.spawn(task, 4)

        if __name__ == "__main__":
            made, told, lock = "here", __file__ + ".told", threading.Lock()
            one = mpgort.Executor(1)
            print(one.submit(task, 1).result())
            two = mpgort.Executor(1)
            for _ in range(100):  # the collector is at it
                one.submit(int).add_done_callback(lambda _: lock.acquire() and lock.release())
            print(two.submit(task, 2).result())
            with mpgort.Pool(1) as pool:
                print(pool.apply(task, (3,)), mpgort.run(main, procs=1))
            done = threading.Event()  # in a callback there is another thread: the main one
            late = []
            def begins(f):
                with mpgort.Executor(1) as ex:
                    late.append(ex._start().runtime._host.opts.method)
                done.set()
            one.submit(waits, told).add_done_callback(begins)
            open(told, "w").close()
            print(done.wait(30), late)
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "(1, 'here')",
        "(2, 'here')",
        "(3, 'here') (4, 'here')",
        "True ['forkserver']",
    ]
