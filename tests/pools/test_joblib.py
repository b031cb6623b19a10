"""joblib on mpgort: joblib.parallel_config("mpgort") after import mpgort.joblib."""

from __future__ import annotations

import os
import time
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed

import mpgort.joblib

pytestmark = pytest.mark.usefixtures("joblib_ends")


def double(x: int) -> int:
    return 2 * x


def pid_of(_: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def fails_at_5(x: int) -> int:
    if x == 5:
        raise ZeroDivisionError(x)
    return x


def test_parallel_gives_the_results_in_order_from_other_processes() -> None:
    with joblib.parallel_config("mpgort", n_jobs=2):
        assert Parallel()(delayed(double)(i) for i in range(500)) == list(range(0, 1000, 2))
        pids = set(Parallel()(delayed(pid_of)(i) for i in range(20)))
    # Two Ps; an M that sleeps in a task gives up its P, so more than two Ms may have had one.
    assert len(pids) >= 2 and os.getpid() not in pids


def test_lambdas_generators_and_unordered_results() -> None:
    par = Parallel(n_jobs=2, backend="mpgort", return_as="generator")
    assert list(par(delayed(lambda x: x + 1)(i) for i in range(50))) == list(range(1, 51))
    par = Parallel(n_jobs=2, backend="mpgort", return_as="generator_unordered")
    assert sorted(par(delayed(double)(i) for i in range(50))) == list(range(0, 100, 2))


def test_an_exception_comes_out_and_the_next_call_works() -> None:
    with joblib.parallel_config("mpgort", n_jobs=2):
        with pytest.raises(ZeroDivisionError):
            Parallel()(delayed(fails_at_5)(i) for i in range(1000))
        assert Parallel()(delayed(double)(i) for i in range(10)) == list(range(0, 20, 2))


def inner(x: int) -> list[int]:
    return Parallel(n_jobs=2)(delayed(double)(x + i) for i in range(3))  # type: ignore[no-any-return]


def test_a_parallel_within_a_task_works() -> None:
    with joblib.parallel_config("mpgort", n_jobs=2):
        assert Parallel()(delayed(inner)(i) for i in range(4)) == [
            [2 * (i + k) for k in range(3)] for i in range(4)
        ]


def look(a: Any, i: int) -> tuple[float, bool]:
    return float(a[i]), bool(a.flags.writeable)


def test_an_array_that_all_tasks_get_is_written_once() -> None:
    a = np.arange(1 << 20, dtype=float)
    with joblib.parallel_config("mpgort", n_jobs=2):
        Parallel()(delayed(double)(i) for i in range(10))
        engine = mpgort.joblib.executor(2, None)._engine
        assert engine is not None
        before = engine.runtime.stats()["alloc_bytes"]
        got = Parallel()(delayed(look)(a, i) for i in range(40))
        written = engine.runtime.stats()["alloc_bytes"] - before
    assert got == [(float(i), False) for i in range(40)]
    assert a.nbytes <= written < 2 * a.nbytes


def threads(_: int) -> int:
    import threadpoolctl

    return max([p["num_threads"] for p in threadpoolctl.threadpool_info()], default=1)


def test_inner_max_num_threads_limits_blas_in_the_workers() -> None:
    with joblib.parallel_config("mpgort", n_jobs=2, inner_max_num_threads=1):
        assert set(Parallel()(delayed(threads)(i) for i in range(4))) == {1}
