"""mpgort as the engine of Dask's workers: `dask worker SCHEDULER:8786 --preload mpgort.dask`.

The way past one machine: Dask's scheduler deals tasks out to its workers, on as many machines as
there are, and each runs them on processes of an Executor, one for each of its `nthreads`, instead
of on threads. So tasks compute beside each other, and a task that kills its process is an MDied of
that task, which Dask runs again where it has `retries` left; the Dask worker, what it holds and
its other tasks go on.

The same for a cluster in one process, LocalCluster(processes=False, preload="mpgort.dask"), and by
hand: distributed.Worker(executor=mpgort.Executor(8))."""

from typing import Any

from mpgort._executor import Executor


def dask_setup(worker: Any) -> None:
    """Called by Dask in each worker that preloads this module. The worker shuts it down."""
    worker.executors["default"] = Executor(worker.state.nthreads, name="dask-worker")
