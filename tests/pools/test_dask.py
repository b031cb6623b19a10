"""Dask distributed with mpgort as its workers' engine (where distributed is installed)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import mpgort

distributed = pytest.importorskip("distributed")

LOCAL: dict[str, Any] = {"processes": False, "dashboard_address": None, "n_workers": 1}


def kill_once(flag: str) -> int:
    """Kills the process it runs on the first time."""
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def square(x: int) -> int:
    return x * x


def test_tasks_run_on_an_executors_processes_and_one_that_dies_is_retried(tmp_path: Any) -> None:
    ex = mpgort.Executor(2)
    with distributed.LocalCluster(threads_per_worker=2, executor=ex, **LOCAL) as cluster:
        with distributed.Client(cluster) as client:
            squares = client.map(square, range(50), pure=False, retries=2)
            f = client.submit(kill_once, str(tmp_path / "a"), retries=2)
            assert f.result(timeout=60) != os.getpid()
            assert client.gather(squares) == [x * x for x in range(50)]
            g = client.submit(kill_once, str(tmp_path / "b"))
            assert isinstance(g.exception(timeout=60), mpgort.MDied)
            total = client.submit(sum, squares)
            assert total.result(timeout=60) == sum(x * x for x in range(50))
            assert client.submit(square, 3, pure=False).result(timeout=60) == 9


def test_the_demo_kills_a_process_and_finishes() -> None:
    command = [sys.executable, "-m", "mpgort", "demo", "cluster", "-n", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was killed after 15" in done.stdout and "every result is right" in done.stdout
