"""Backend "mpgort" of joblib: `import mpgort.joblib`, then `joblib.parallel_config("mpgort")`.

Batches are tasks of an Executor, which is kept for the next call with as many jobs, as loky's
workers are. What joblib does with memory maps, so that an array that every task gets is written
once and not once per task, is done with shared memory: for the length of a Parallel call an array
argument of 64 KiB or more is the read-only view of one copy (`Sharer`).

As with joblib's other backends of processes, a Parallel within a task runs in threads. A dead
worker fails the batch that it ran, with MDied."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import joblib
from joblib._parallel_backends import (
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

from mpgort import _core, shared
from mpgort._executor import Executor, Future
from mpgort._options import cpu_count

SHARE_BYTES = 65536

# by jobs and inner threads: for which initializer with which arguments, and the executor
_executors: dict[tuple[int, int | None], tuple[tuple[Any, ...], Executor]] = {}
_lock = threading.Lock()


def limit_threads(n: int) -> None:
    """Initializer of a worker: BLAS and OpenMP libraries that are loaded already use n threads."""
    try:
        import threadpoolctl
    except ImportError:
        return
    threadpoolctl.threadpool_limits(n)


def begin(threads: int, initializer: Callable[..., object] | None, initargs: Any) -> None:
    """Initializer of a worker."""
    limit_threads(threads)
    if initializer is not None:
        initializer(*initargs)


def executor(n_jobs: int, threads: int | None, *begins: Any) -> Executor:
    """The Executor with so many workers, made at the first call; another one where an initializer
    or its arguments (begins) are other objects than at the last call."""
    with _lock:
        was, found = _executors.get((n_jobs, threads), ((), None))
        same = len(was) == len(begins) and all(a is b for a, b in zip(was, begins, strict=True))
        if found is not None and not same:
            found.shutdown(wait=False)
        if found is None or not same or found._broken is not None or found._shut_down:
            inner = threads or max(1, cpu_count() // n_jobs)
            found = Executor(
                n_jobs,
                initializer=begin,
                initargs=(inner, begins[0] if begins else None, begins[1:]),
                blas_threads=inner,
                name="joblib",
            )
            _executors[n_jobs, threads] = begins, found
        return found


class Sharer:
    """Array arguments in shared memory, each once, as long as this lives."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.known: dict[int, tuple[Any, Any]] = {}  # by id: the array, kept alive, and its copy

    def share(self, a: Any) -> Any:
        kind = type(a)
        if kind.__name__ not in ("ndarray", "memmap") or a.nbytes < SHARE_BYTES:
            return a
        if a.dtype.hasobject or not a.flags.forc:
            return a
        entry = self.known.get(id(a))
        if entry is None:
            copy = shared.array(a, runtime=self.executor)
            copy.flags.writeable = False
            entry = self.known[id(a)] = (a, copy)
        return entry[1]


class MpgortBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    _workers: Any = None  # the Executor, while a Parallel is open: under loky's name for it

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None or _core.current() is not None:
            return 1
        return max(1, cpu_count() + 1 + n_jobs) if n_jobs < 0 else n_jobs

    def configure(
        self,
        n_jobs: int | None = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **options: Any,
    ) -> int:
        n = self.effective_n_jobs(n_jobs)
        if n == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        # those of parallel_config (of joblib 1.5 on), and those of Parallel
        options = {**getattr(self, "backend_kwargs", {}), **options}
        initializer = options.get("initializer")
        self._begins = () if initializer is None else (initializer, *options.get("initargs", ()))
        self._workers = executor(n, self.inner_max_num_threads, *self._begins)
        self._sharer = Sharer(self._workers)
        self.parallel = parallel
        return n

    def submit(
        self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None
    ) -> Future[Any]:
        share = self._sharer.share
        if hasattr(func, "items"):  # BatchedCalls: (function, args, kwargs) each
            func.items = [
                (f, tuple(map(share, args)), {k: share(v) for k, v in kwargs.items()})
                for f, args, kwargs in func.items
            ]
        future: Future[Any] = self._workers.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: Future[Any]) -> Any:
        return future.result()

    def stop_call(self) -> None:
        self._sharer.known.clear()

    def terminate(self) -> None:
        """The executor stays for the next call."""
        self.stop_call()
        self._workers = None
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A task has failed: what has not begun is taken back, what runs is ended."""
        engine = self._workers._engine
        self._workers.shutdown(wait=False, cancel_futures=True)
        if engine is not None:
            engine.terminate()
        if ensure_ready:
            initializer, *initargs = self._begins or (None,)
            self.configure(
                self.parallel.n_jobs, self.parallel, initializer=initializer, initargs=initargs
            )


joblib.register_parallel_backend("mpgort", MpgortBackend)
