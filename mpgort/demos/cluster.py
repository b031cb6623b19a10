"""Dask distributed on mpgort: a cluster whose tasks outlive the death of the processes they run on.

A LocalCluster stands for the machines of a real one (there: `dask worker ... --preload
mpgort.dask`). Each of its workers runs its tasks on processes of its own, and while it does, one
of these is killed: Dask runs again what ran there, and nothing else."""

import argparse
import importlib
import os
import signal
import time
from typing import Any

from mpgort.demos import at_least_1


def square(x: int) -> tuple[int, int]:
    time.sleep(0.02)
    return x * x, os.getpid()


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=at_least_1, default=200, metavar="TASKS", help="how many tasks")


def demo(args: argparse.Namespace) -> int:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        print("this demo needs Dask: pip install distributed")
        return 1
    threads = max(1, args.procs or 2)
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=threads,
            processes=False,
            dashboard_address=None,
            preload="mpgort.dask",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        futures = client.map(square, range(args.n), pure=False, retries=3)
        results = []
        killed = 0
        for _, (value, pid) in distributed.as_completed(futures, with_results=True):
            results.append((value, pid))
            if len(results) == args.n // 4:
                os.kill(pid, signal.SIGKILL)
                killed = pid
        after = {pid for _, pid in results[args.n // 4 :]}
    right = sorted(v for v, _ in results) == [x * x for x in range(args.n)]
    print(f"{len(results)} tasks on 2 Dask workers of {threads} processes each")
    print(f"process {killed} was killed after {args.n // 4}; {len(after)} ran the rest")
    print("every result is right" if right else "results are missing or wrong")
    return 0 if right else 1
