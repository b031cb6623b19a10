"""The options of run and Runtime, which take the same, and of the environment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mpgort
from mpgort import _segment


def run(**options: Any) -> None:
    mpgort.run(int, **options)


def runtime(**options: Any) -> None:
    mpgort.Runtime(**options).shutdown()


@pytest.mark.parametrize("face", [run, runtime])
@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ({"proc": 2}, TypeError, "unexpected keyword argument 'proc'"),
        ({"procs": -1}, ValueError, "procs=-1: give 0 to "),
        ({"procs": 1000}, ValueError, "procs=1000: give 0 to "),
        ({"procs": 1.5}, TypeError, "procs must be an integer, not 1.5"),
        ({"start_method": "thread"}, ValueError, "start_method='thread': give one of fork, "),
        ({"heap_bytes": 5}, ValueError, "heap_bytes=5: give 1048576 to "),
        ({"max_goroutines": 0}, ValueError, "max_goroutines=0: give 1 to "),
        ({"heavy_bytes": -1}, ValueError, "heavy_bytes=-1: give 0 to "),
        ({"heavy_bytes": "1M"}, TypeError, "heavy_bytes must be an integer, not '1M'"),
        ({"initializer": 3}, TypeError, "initializer must be callable, not 3"),
        ({"blas_threads": 0}, ValueError, "blas_threads=0: give 1 or more"),
        ({"max_rss": 0}, ValueError, "max_rss=0: give 1 or more"),
        ({"max_tasks_per_m": 0}, ValueError, "max_tasks_per_m=0: give 1 or more"),
        ({"max_tasks_per_m": True}, TypeError, "max_tasks_per_m must be an integer, not True"),
        ({"name": 3}, TypeError, "name must be a str, not 3"),
    ],
)
def test_a_bad_option_is_refused_at_the_call_by_name(
    face: Callable[..., None], option: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as e:
        face(**option)
    assert text in str(e.value)


@pytest.mark.parametrize(("value", "error"), [("x", TypeError), (float("nan"), ValueError)])
def test_a_timeout_that_is_no_number_is_refused_by_each_call_that_has_one(
    value: Any, error: type[Exception]
) -> None:
    with mpgort.Runtime(1) as rt, mpgort.Executor(1) as ex, mpgort.Pool(1) as pool:
        h, ch = rt.spawn(mpgort.sleep, 0.2), rt.chan()
        waits = [h.result, ch.get, rt.recycle, rt.shutdown, ch.as_queue().get]
        waits.append(ex.submit(time.sleep, 0.1).result)
        waits.append(pool.apply_async(time.sleep, (0.1,)).get)
        waits.append(pool.imap(abs, [1]).next)
        waits.append(lambda timeout: ex.map(abs, [1], timeout=timeout))
        waits.append(lambda timeout: rt.spawn(abs, 1, timeout=timeout))
        for wait in waits:
            with pytest.raises(error, match="a timeout must be a number of seconds, not "):
                wait(timeout=value)
        assert ex.submit(abs, -1).result(float("inf")) == 1
        assert list(ex.map(abs, [-1], timeout=float("inf"))) == [1]
        assert pool.apply_async(abs, (-1,)).get(float("inf")) == 1


@pytest.mark.parametrize("face", [run, runtime])
def test_none_is_the_default_of_each_option_that_has_one(face: Callable[..., None]) -> None:
    names = ("start_method", "heap_bytes", "initializer", "blas_threads", "max_rss", "name")
    face(procs=0, max_tasks_per_m=None, **dict.fromkeys(names))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MPGORT_PROCS", "many"),
        ("MPGORT_MIGRATE", "often"),
        ("MPGORT_DEBUG", "schedtrace=x"),
        ("MPGORT_DEBUG", "shake=-1"),
    ],
)
def test_a_bad_environment_variable_is_refused_by_name(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable):
        mpgort.run(lambda: None)


def test_the_environment_sets_the_number_of_workers(program):
    r = program(
        """
        import mpgort

        async def main():
            return mpgort.gomaxprocs()

        print(mpgort.run(main))
        """,
        env={"MPGORT_PROCS": "3"},
    )
    assert (r.status, r.out) == (0, "3\n"), r.err


def test_schedtrace_prints_gos_line_each_period(program):
    r = program(
        """
        import mpgort
        from mpgort import sleep

        async def main():
            await sleep(0.5)

        mpgort.run(main, procs=2)
        """,
        env={"MPGORT_DEBUG": "schedtrace=50"},
    )
    assert r.status == 0, r.err
    assert len([line for line in r.err.splitlines() if line.startswith("SCHED")]) >= 3


def test_blas_threads_are_set_before_the_workers_import_anything(program):
    r = program("""
        import os
        import mpgort
        from mpgort import spawn

        async def threads():
            return os.environ["OPENBLAS_NUM_THREADS"], os.environ["OMP_NUM_THREADS"]

        async def main():
            return await spawn(threads)

        print(mpgort.run(main, procs=1, blas_threads=3), "OMP_NUM_THREADS" in os.environ)
    """)
    assert (r.status, r.out) == (0, "('3', '3') False\n"), r.err


def test_a_name_that_a_killed_maker_left_is_swept(program):
    name = f"/dev/shm/mpgort-{os.geteuid()}-{2**22 + 5}-0123456789ab"
    Path(name).touch()
    r = program("import mpgort\nmpgort.run(lambda: None, procs=1)\n")
    assert r.status == 0, r.err
    assert not os.path.exists(name)


def test_a_small_dev_shm_is_said_at_start(monkeypatch):
    class Small:
        f_blocks, f_bavail, f_frsize = 16384, 16384, 4096

    monkeypatch.setattr(_segment.os, "statvfs", lambda path: Small)
    with pytest.warns(RuntimeWarning, match="64 MB free.*--shm-size"):
        _segment.warn_if_small(None)
    with pytest.warns(RuntimeWarning, match="less than heap_bytes=134217728"):
        _segment.warn_if_small(128 << 20)
