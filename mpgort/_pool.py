"""Pool: multiprocessing.Pool over goroutines. A face: the work is in _engine.py and _job.py.

The interface is multiprocessing's whole: what a program of it does goes on as it was. What differs
is what that one cannot do: a dead worker fails the task that it ran (there, its caller waits for
ever), lambdas and coroutine functions may be given, and `chunksize` need not be: without one
(None, or imap's 1) items travel in chunks whose size is measured, with the results of chunk size 1:
an item that fails is its own failure, and those after it come.

As there, leaving the block, or the interpreter's exit, terminates; close() and join() wait."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]
from typing import Any, NoReturn

from mpgort import _core
from mpgort._engine import Engine, Handle, method_of, recast
from mpgort._executor import is_async
from mpgort._job import Failure, Job
from mpgort._options import Given, deadline_in, default_procs, integer, whole

RUN, CLOSE, TERMINATE = "RUN", "CLOSE", "TERMINATE"
Callback = Callable[[Any], object] | None


class AsyncResult:
    """What apply_async() returns. Waiting for it reads the results of all (Engine.lead)."""

    def __init__(self, engine: Engine, callback: Callback, error_callback: Callback) -> None:
        self._engine = engine
        self._callback = callback
        self._error_callback = error_callback
        self._event = threading.Event()
        self._success = False
        self._value: Any = None

    def ready(self) -> bool:
        return self._event.is_set()

    def successful(self) -> bool:
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        deadline = deadline_in(timeout)
        if not self.ready():
            self._engine.lead(self.ready, deadline)
        if not self.ready():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            self._event.wait(left)

    def get(self, timeout: float | None = None) -> Any:
        self.wait(timeout)
        if not self.ready():
            raise multiprocessing.TimeoutError
        if self._success:
            return self._value
        raise self._value

    def _set(self, value: Any, exc: BaseException | None) -> None:
        if self.ready():
            return
        self._success = exc is None
        self._value = value if exc is None else recast(exc, RemoteTraceback)
        tell = self._callback if exc is None else self._error_callback
        self._callback = self._error_callback = None
        try:
            if tell is not None:
                tell(self._value)
        except Exception:
            logging.getLogger("mpgort").exception("exception calling callback for %r", self)
        finally:
            self._event.set()

    # ---- as a task (_engine.Task) ------------------------------------------------------------

    def ended(self, h: Handle) -> None:
        self._set(*h._outcome())

    def fail(self, exc: BaseException) -> None:
        self._set(None, exc)

    def cancel(self) -> None:
        pass


ApplyResult = AsyncResult


class MapResult(AsyncResult):
    """What map_async() returns: all values in a list, or the first failure, when all have ended."""

    def _whole(self, job: Job) -> None:
        values: list[Any] = []
        for _, parts in (job.out.pop(base) for base in sorted(job.out)):
            for part in parts:
                if isinstance(part, Failure):
                    self._set(None, part.exc)
                    return
                values.extend(part)
        self._set(values, None)


class IMapIterator(_core.Drain[Any]):
    """What imap() returns. An item that failed raises at its place; next() may go on after it."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def next(self, timeout: float | None = None) -> Any:
        """The next value; raises multiprocessing.TimeoutError after `timeout` seconds."""
        self._job.deadline = deadline_in(timeout)
        try:
            return self.__next__()
        finally:
            self._job.deadline = None  # it was for this item


class Worker:
    """A process of the pool, for those who look at `pool._pool`."""

    def __init__(self, pid: int) -> None:
        self.pid = self.ident = pid

    def is_alive(self) -> bool:
        return os.path.exists(f"/proc/{self.pid}")

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Pool:
    """A drop-in for multiprocessing.Pool whose tasks are goroutines.

    processes: workers; default: the CPUs that this process may use. initializer(*initargs) runs
    once in each. A worker is replaced after maxtasksperchild tasks (a chunk counts as one).
    context: a multiprocessing context, or its name; only the start method counts. The other options
    are those of `run`."""

    _state = "INIT"

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        start_method: str | None = None,
        heap_bytes: int | None = None,
        max_goroutines: int = 1 << 22,
        heavy_bytes: int = 16384,
        blas_threads: int | None = None,
        max_rss: int | None = None,
        name: str | None = None,
        scrub: bool = False,
    ) -> None:
        if processes is not None:
            if integer("processes", processes) < 1:
                raise ValueError("Number of processes must be at least 1")
            whole("processes", processes, 1, _core.MAX_PROCS)
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes or default_procs()
        self._engine = Engine(
            processes,
            Given(
                start_method=method_of(context, start_method),
                initializer=initializer,
                initargs=initargs,
                max_tasks_per_m=maxtasksperchild,
                heap_bytes=heap_bytes,
                max_goroutines=max_goroutines,
                heavy_bytes=heavy_bytes,
                blas_threads=blas_threads,
                max_rss=max_rss,
                name=name,
                scrub=scrub,
            ),
            terminate_at_exit=True,
        )
        self._state = RUN

    # ---- one call ----------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}
    ) -> Any:
        """func(*args, **kwds) on a worker; waits for the value."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """The same without waiting. Callbacks run in whatever thread brings the result."""
        self._check_running()
        result = AsyncResult(self._engine, callback, error_callback)
        try:
            self._engine.spawn(result, func, tuple(args), dict(kwds))
        except TypeError as e:
            result.fail(e)
        return result

    # ---- many at once ------------------------------------------------------------------------

    def map(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """[func(x) for x in iterable]."""
        values: list[Any] = self.map_async(func, iterable, chunksize).get()
        return values

    def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
    ) -> list[Any]:
        """[func(*x) for x in iterable]."""
        values: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return values

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        return self._map_async(func, iterable, False, chunksize, callback, error_callback)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        return self._map_async(func, iterable, True, chunksize, callback, error_callback)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        star: bool,
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
    ) -> MapResult:
        self._check_running()
        if chunksize is not None:
            whole("chunksize", chunksize, 1)
        result = MapResult(self._engine, callback, error_callback)
        self._job(func, iterable, chunksize, star=star, on_whole=result._whole)
        return result

    # ---- one after the other -----------------------------------------------------------------

    def imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """func(x) for x in iterable, in order, as they come. An iterable without a length is read
        by a thread, some way ahead of the workers."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int = 1
    ) -> IMapIterator:
        """The same in the order in which they end."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> IMapIterator:
        self._check_running()
        if integer("chunksize", chunksize) < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize}")
        size = chunksize if chunksize > 1 else None
        return IMapIterator(
            self._job(func, iterable, size, each=size is None, ordered=ordered, lazy=True)
        )

    def _job(
        self, func: Callable[..., Any], source: Iterable[Any], size: int | None, **how: Any
    ) -> Job:
        coro = is_async(func)
        if coro and size is None:
            size = 1
        raised = {"late": multiprocessing.TimeoutError, "cause": RemoteTraceback}
        return Job(self._engine, func, source, size=size, coro=coro, **raised, **how)

    # ---- the end -----------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")
        if not self._engine.alive:
            raise self._engine.why_not_alive()

    def close(self) -> None:
        """No more tasks are taken; the workers end when those that were have ended."""
        if self._state == RUN:
            self._state = CLOSE
            self._engine.close()

    def terminate(self) -> None:
        """The workers end now; when it returns they have, and the pool's own thread with them."""
        self._state = TERMINATE
        self._engine.terminate()
        self._engine.join()

    def join(self) -> None:
        """Waits for the workers' end, after close() or terminate()."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        self._engine.join()

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *_: object) -> None:
        self.terminate()

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)
            self._engine.terminate()

    def __reduce__(self) -> NoReturn:
        raise NotImplementedError(
            "pool objects cannot be passed between processes or pickled: "
            "a task starts others with mpgort.spawn"
        )

    def __repr__(self) -> str:
        return f"<mpgort.Pool state={self._state} pool_size={self._processes}>"

    @property
    def _pool(self) -> list[Worker]:
        """The workers; those that are just being started are waited for."""
        deadline = time.monotonic() + 10
        while True:
            slots = self._engine.runtime._prog.slots()
            workers = [Worker(pid) for _, kind, pid, _ in slots if kind == _core.M_WORKER]
            if len(workers) >= self._processes or time.monotonic() > deadline:
                return workers
            time.sleep(0.001)
